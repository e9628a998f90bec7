"""kornia: image registration with any of its models, and patches of local affine frames.

``warp_affine``, ``warp_perspective``, ``remap`` and the rest need no adapter: :func:`linearize` sees them.
"""

from collections.abc import Callable
from functools import partial

import kornia
import torch
from einops import rearrange, repeat
from kornia.feature import laf
from kornia.geometry import ImageRegistrator
from torch import Tensor

from lms_geometry.checks import check_sampling
from lms_geometry.config import LinearizedSampling
from lms_geometry.differentiation import carries_gradient
from lms_geometry.homography import LinearizedHomographyWarper
from lms_geometry.sampling import grid_sample_linearized

from .draws import check_draws
from .replacement import GuardedReplacement, Replacement, replace


def linearize_registrator(registrator: ImageRegistrator, *, sampling: LinearizedSampling | None = None) -> Replacement:
    """Let an :class:`kornia.geometry.ImageRegistrator` warp with :class:`LinearizedHomographyWarper`.

    kornia ignores its own argument ``warper=`` where the model is named by a string; this function serves these models
    too. For a model of your own, ``ImageRegistrator(model, warper=LinearizedHomographyWarper)`` does the same.

    Args:
        registrator: a registrator whose model gives normalised homographies, as kornia's do.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.

    Returns:
        The replacement of ``registrator.warper``, in place until ``remove()``.

    Raises:
        TypeError: if ``registrator`` is no ``ImageRegistrator``, or ``sampling`` no settings.

    Example:
        >>> registrator = ImageRegistrator("similarity", num_iterations=2, pyramid_levels=1)
        >>> with linearize_registrator(registrator, sampling=LinearizedSampling(mask_out_of_bounds=False)):
        ...     registrator.register(torch.rand(1, 1, 32, 32), torch.rand(1, 1, 32, 32)).shape
        torch.Size([1, 3, 3])
    """
    if not isinstance(registrator, ImageRegistrator):
        raise TypeError(f"registrator must be a kornia ImageRegistrator, got {type(registrator).__name__}")
    settings = check_sampling(sampling)
    return replace(registrator, "warper", partial(LinearizedHomographyWarper, sampling=settings))


def linearize_lafs(
    *, sampling: LinearizedSampling | None = None, generator: torch.Generator | None = None
) -> Replacement:
    """Give ``extract_patches_simple`` and ``extract_patches_from_pyramid`` the linearized gradient for their frames.

    kornia folds all patches into one tall grid, and packs the levels of a pyramid into one image, where samples around
    a point of one level would fall into another. This adapter samples each level as an image of its own, so that
    samples beyond its border count as outside, and takes the exact Jacobian of each frame. It samples every patch at
    every level, as kornia itself does when the packed image would be too large.

    A call whose frames carry no gradient goes to kornia. The replacement holds for all callers in all threads.

    Args:
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.
        generator: source of randomness; torch's global one if ``None``.

    Returns:
        The replacement of two functions in ``kornia.feature.laf``, in place until ``remove()``.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if a generator is given for fixed points.
        RuntimeError: if this version of kornia lacks these functions.

    Example:
        >>> image, frame = torch.rand(1, 1, 64, 64), torch.tensor([[[[16.0, 0, 30], [0, 16, 34]]]], requires_grad=True)
        >>> with linearize_lafs():
        ...     laf.extract_patches_from_pyramid(image, frame, PS=8).shape
        torch.Size([1, 1, 1, 8, 8])
    """
    settings = check_draws(sampling, generator)
    missing = [name for name in ("_sample_patches", "_pyramid_atlas_fits") if not hasattr(laf, name)]
    if missing:
        raise RuntimeError(
            f"kornia {kornia.__version__} has no {missing} in kornia.feature.laf, by which kornia 0.9 samples patches: "
            "use linearize() with extract_patches_simple"
        )
    sample_patches = partial(_sample_patches, original=laf._sample_patches, sampling=settings, generator=generator)
    return GuardedReplacement((laf, "_sample_patches", sample_patches), (laf, "_pyramid_atlas_fits", _never_fits))


def _sample_patches(
    img: Tensor,
    grid: Tensor,
    h: int,
    w: int,
    *,
    original: Callable[[Tensor, Tensor, int, int], Tensor],
    sampling: LinearizedSampling,
    generator: torch.Generator | None,
) -> Tensor:
    """Patches ``(B, N, C, PS, PS)`` at grids ``(B, N, PS, PS, 2)``, each an affine map of a square."""
    if not carries_gradient(grid):
        return original(img, grid, h, w)
    count, size = grid.shape[1:3]
    corner = grid[:, :, 0, 0]
    step = torch.stack((grid[:, :, 0, -1] - corner, grid[:, :, -1, 0] - corner), -1) / max(size - 1, 1)
    jacobian = step * step.new_tensor((w / 2, h / 2))[:, None]
    patches = grid_sample_linearized(
        img,
        rearrange(grid, "b n h w xy -> b (n h) w xy"),
        padding_mode="border",
        align_corners=False,
        sampling=sampling,
        jacobian=repeat(jacobian, "b n xy uv -> b (n h) 1 xy uv", h=size),
        generator=generator,
    )
    return rearrange(patches, "b c (n h) w -> b n c h w", n=count)


def _never_fits(atlas_bytes: int) -> bool:  # noqa: ARG001
    return False
