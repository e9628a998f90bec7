"""Inverse compositional spatial transformers, and others that warp by ``warp.transformImage(opt, image, pMtrx)``.

That function sends a grid with corners at -1 and 1 through a matrix and samples the image there. Called again and again
by a recurrent network, it gives each step's warp its own exact Jacobian here, perspective included.
"""

import torch
from torch import Tensor

from lms_geometry.config import LinearizedSampling
from lms_geometry.differentiation import carries_gradient
from lms_geometry.homography import homography_warp_linearized

from .replacement import Replacement, replace


def linearize_icstn(
    warp: object,
    name: str = "transformImage",
    *,
    sampling: LinearizedSampling | None = None,
    align_corners: bool = False,
    generator: torch.Generator | None = None,
) -> Replacement:
    """Replace the warp of an ICSTN by one with the linearized gradient for its matrix.

    Calls whose matrix carries no gradient, such as the perturbation of training images and all under ``no_grad``, go to
    the function that was there.

    Convention:
        - the function is called as ``transformImage(opt, image, pMtrx)``; ``image`` is :math:`(B, C, H, W)`, ``pMtrx``
          is :math:`(B, 3, 3)`, destination to source, of a translation, similarity, affine map or homography
        - ``opt`` has ``refMtrx``, a 3x3 matrix from the warped frame to the image's, and the output size ``H``, ``W``
        - the outermost output pixels stand at -1 and 1. Where that is in the image, ``align_corners`` says. ``False``,
          which the code leaves to ``F.grid_sample``, puts them on the outer edges of the image: the identity then
          enlarges a little and fades its border. ``True`` puts them on the outermost texel centres, so that the
          identity is the identity: what ``F.grid_sample`` did before torch 1.3, when the code was written

    Args:
        warp: the module that holds the function: ``import warp``.
        name: of the function.
        sampling: settings of the method; the paper's if ``None``.
        align_corners: see above. ``False`` keeps the values that the code has with today's torch; with ``True`` all
            calls change, those without a gradient too.
        generator: source of randomness; torch's global one if ``None``.

    Returns:
        The replacement, in place until ``remove()``.

    Raises:
        TypeError: if ``warp`` is a string.
        AttributeError: if ``warp`` has no such function.

    Example:
        >>> import types
        >>> warp = types.SimpleNamespace(transformImage=lambda opt, image, pMtrx: image)
        >>> opt = types.SimpleNamespace(refMtrx=torch.eye(3).numpy(), H=5, W=7)
        >>> with linearize_icstn(warp):
        ...     warp.transformImage(opt, torch.rand(2, 1, 20, 30), torch.eye(3).repeat(2, 1, 1).requires_grad_()).shape
        torch.Size([2, 1, 5, 7])
    """
    original = getattr(warp, name, None)
    plain = LinearizedSampling(intercept=False)

    def transform_image(opt: object, image: Tensor, pMtrx: Tensor) -> Tensor:
        wanted = carries_gradient(pMtrx)
        if not (wanted or align_corners) and original is not None:
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
            sampling=sampling if wanted else plain,
            generator=generator,
        )

    return replace(warp, name, transform_image)


def _corners_from_edges(size: tuple[int, int], like: Tensor) -> Tensor:
    """From coordinates with -1 and 1 on the outer edges of the outermost pixels to those with them on the centres."""
    height, width = size
    stretch = torch.eye(3, dtype=like.dtype, device=like.device)
    for axis, n in enumerate((width, height)):
        # A single pixel stands at 0 in the first. In the second it is the first of a row, which begins at -1.
        stretch[axis, axis], stretch[axis, 2] = (n / (n - 1), 0.0) if n > 1 else (1.0, -1.0)
    return stretch
