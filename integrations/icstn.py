"""Inverse compositional spatial transformers, and others that warp by ``warp.transformImage(opt, image, pMtrx)``.

That function sends a grid with corners at -1 and 1 through a matrix and samples the image there. The replacement takes
the exact Jacobian of the matrix, perspective included, in each step of a recurrent network.
"""

import torch
from torch import Tensor

from lms_geometry.checks import check_flag
from lms_geometry.config import LinearizedSampling
from lms_geometry.differentiation import carries_gradient
from lms_geometry.homography import homography_warp_linearized

from .draws import check_draws
from .replacement import GuardedReplacement, Replacement


def linearize_icstn(
    warp: object,
    name: str = "transformImage",
    *,
    sampling: LinearizedSampling | None = None,
    align_corners: bool = False,
    generator: torch.Generator | None = None,
) -> Replacement:
    """Replace the warp of an ICSTN by one with the linearized gradient for its matrix.

    Calls whose matrix carries no gradient go to the function that was there. The perturbation of training images is
    such a call, and with drawn samples so is every call under ``no_grad``. With fixed points, as the sampling as it
    comes has, calls under ``no_grad`` are linearized, so that a network is evaluated on what it was trained on.

    Convention:
        - the function is called as ``transformImage(opt, image, pMtrx)``; ``image`` is :math:`(B, C, H, W)`, ``pMtrx``
          is :math:`(B, 3, 3)`, destination to source, of a translation, similarity, affine map or homography
        - ``opt`` has ``refMtrx``, a 3x3 matrix from the warped frame to the image's, and the output size ``H``, ``W``
        - the outermost output pixels stand at -1 and 1. With ``align_corners=False``, which is what ``F.grid_sample``
          takes where the code says nothing, these are the outer edges of the image: the identity enlarges the image a
          little and fades its border. With ``True`` they are the outermost texel centres, and the identity returns the
          image, as it did before torch 1.3, when the code was written

    Args:
        warp: the module that holds the function: ``import warp``.
        name: name of the function.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.
        align_corners: see above. ``False`` keeps the values that the code has with today's torch. ``True`` changes
            every call, also those without a gradient.
        generator: source of randomness; torch's global one if ``None``.

    Returns:
        The replacement, in place until ``remove()``.

    Raises:
        TypeError: if ``warp`` is a string, or an argument has the wrong type.
        AttributeError: if ``warp`` has no such function.
        ValueError: if a generator is given for fixed points.

    Example:
        >>> import types
        >>> warp = types.SimpleNamespace(transformImage=lambda opt, image, pMtrx: image)
        >>> opt = types.SimpleNamespace(refMtrx=torch.eye(3).numpy(), H=5, W=7)
        >>> with linearize_icstn(warp):
        ...     warp.transformImage(opt, torch.rand(2, 1, 20, 30), torch.eye(3).repeat(2, 1, 1).requires_grad_()).shape
        torch.Size([2, 1, 5, 7])
    """
    settings = check_draws(sampling, generator)
    check_flag("align_corners", align_corners)
    original = getattr(warp, name, None)
    plain = LinearizedSampling(intercept=False)

    def transform_image(opt: object, image: Tensor, pMtrx: Tensor) -> Tensor:
        linearized = carries_gradient(pMtrx) or not (settings.is_drawn or torch.is_grad_enabled())
        if not (linearized or align_corners) and original is not None:
            return original(opt, image, pMtrx)
        matrix = torch.as_tensor(opt.refMtrx, dtype=pMtrx.dtype, device=pMtrx.device) @ pMtrx  # type: ignore[attr-defined]
        size = opt.H, opt.W  # type: ignore[attr-defined]
        if not align_corners:
            matrix = matrix @ _corners_from_edges(size, like=matrix)
        return homography_warp_linearized(
            image,
            matrix,
            size,
            align_corners=align_corners,
            sampling=settings if linearized else plain,
            generator=generator if linearized else None,
        )

    return GuardedReplacement((warp, name, transform_image))


def _corners_from_edges(size: tuple[int, int], like: Tensor) -> Tensor:
    """The matrix from output coordinates with -1 and 1 on the outer edges to those with -1 and 1 on pixel centres."""
    height, width = size
    stretch = torch.eye(3, dtype=like.dtype, device=like.device)
    for axis, n in enumerate((width, height)):
        # A single pixel stands at 0 between the edges. In the other coordinates it is the first of a row, at -1.
        stretch[axis, axis], stretch[axis, 2] = (n / (n - 1), 0.0) if n > 1 else (1.0, -1.0)
    return stretch
