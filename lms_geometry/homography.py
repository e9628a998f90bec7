"""The warp by a homography from destination to source, as a function and as a module.

The names, parameters and conventions are those of ``kornia.geometry``.
"""

import torch
from kornia.geometry.transform import HomographyWarper
from torch import Tensor

from lms_geometry.autocast import no_autocast
from lms_geometry.checks import PADDING_MODES, check_dense, check_flag, check_size, check_tensor
from lms_geometry.config import LinearizedSampling, Reading
from lms_geometry.projection import pixel_normalisation, project, unit_scale
from lms_geometry.symbolic import one_node
from lms_geometry.warp import check_warp, sample_at, warp_pixels


@one_node
def homography_warp_linearized(
    patch_src: Tensor,
    src_homo_dst: Tensor,
    dsize: tuple[int, int],
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool = False,
    normalized_coordinates: bool = True,
    normalized_homography: bool = True,
    *,
    sampling: LinearizedSampling | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Warp an image by a homography from destination to source, with the linearized gradient for it.

    Stands for :func:`kornia.geometry.homography_warp`; sampled by :func:`grid_sample_linearized` with the exact
    Jacobian at every pixel.

    Convention:
        - ``patch_src`` is :math:`(B, C, H, W)`, ``dsize`` is ``(height, width)``
        - ``src_homo_dst`` maps **destination to source**, in **normalised** coordinates of either image; in pixels with
          ``normalized_coordinates=False``
        - with ``normalized_homography=False`` it maps source to destination in pixels, as in
          :func:`warp_perspective_linearized`
        - ``align_corners`` sets the meaning of -1 and 1, as in :func:`grid_sample_linearized`
        - a non-finite matrix puts every pixel outside the image, with gradient 0; so does a horizon (depth 0) with
          the pixels on it

    Args:
        patch_src: the image, shape :math:`(B, C, H, W)`.
        src_homo_dst: homographies, shape :math:`(B, 3, 3)` or, as kornia documents them, :math:`(B, 1, 3, 3)`. Either
            batch may be 1 and is then shared.
        dsize: size of the output, ``(height, width)``.
        mode: how samples are read, ``"bilinear"`` | ``"nearest"`` | ``"bicubic"``.
        padding_mode: ``"zeros"`` | ``"border"`` | ``"reflection"``.
        align_corners: see above.
        normalized_coordinates: see above.
        normalized_homography: see above.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.
        noise: draws of :func:`draw_noise` for ``dsize``, or ``None``: see :func:`grid_sample_linearized`.
        generator: source of randomness when ``noise`` is ``None``.

    Returns:
        The warped image, shape :math:`(B, C, h, w)`, in ``patch_src``'s dtype.

    Raises:
        TypeError: if an argument has the wrong type or dtype.
        ValueError: if an argument has the wrong shape, device or batch, or is not one of the choices.

    Example:
        >>> image = torch.rand(1, 3, 20, 30)
        >>> homography_warp_linearized(image, torch.eye(3)[None], (5, 7)).shape
        torch.Size([1, 3, 5, 7])
    """
    if isinstance(src_homo_dst, Tensor) and src_homo_dst.ndim == 4 and src_homo_dst.shape[1] == 1:
        src_homo_dst = src_homo_dst.squeeze(1)
    check_tensor("src_homo_dst", src_homo_dst, ("B", 3, 3))
    reading = Reading(mode, padding_mode, check_flag("align_corners", align_corners))
    check_flag("normalized_coordinates", normalized_coordinates)
    check_flag("normalized_homography", normalized_homography)
    dsize, sampling = check_warp(
        "patch_src", patch_src, "src_homo_dst", src_homo_dst, dsize, reading, PADDING_MODES, sampling, noise, generator
    )
    if not normalized_homography:
        return warp_pixels(patch_src, src_homo_dst, dsize, reading, None, sampling, noise, generator)
    size = patch_src.shape[-2], patch_src.shape[-1]
    with no_autocast(patch_src.device):
        matrix = src_homo_dst.to(torch.promote_types(src_homo_dst.dtype, torch.float32))
        finite = matrix.detach().isfinite().all(-1).all(-1)[:, None, None]
        matrix = torch.where(finite, matrix, torch.eye(3, dtype=matrix.dtype, device=matrix.device))
        if not normalized_coordinates:
            matrix = pixel_normalisation(size, align_corners, matrix) @ matrix
        grid, jacobian = project(
            unit_scale(matrix),
            finite,
            dsize,
            size,
            align_corners,
            normalized_coordinates,
            differentiable_jacobian=not sampling.is_drawn,
        )
    return sample_at(patch_src, grid, jacobian, reading, sampling, noise, generator)


class LinearizedHomographyWarper(HomographyWarper):
    r"""A :class:`kornia.geometry.HomographyWarper` that samples with :func:`homography_warp_linearized`.

    Convention:
        - the homography maps **destination to source**, in **normalised** coordinates, or in pixels with
          ``normalized_coordinates=False``, as in :func:`homography_warp_linearized`

    Args:
        height: height of the destination.
        width: width of the destination.
        mode: how samples are read, ``"bilinear"`` | ``"nearest"`` | ``"bicubic"``.
        padding_mode: ``"zeros"`` | ``"border"`` | ``"reflection"``.
        normalized_coordinates: whether homographies are in normalised coordinates or in pixels.
        align_corners: meaning of -1 and 1.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.

    Raises:
        TypeError: if a flag is not a bool.
        ValueError: if the size is negative or no size.

    Example:
        >>> warper = LinearizedHomographyWarper(5, 7)
        >>> warper(torch.rand(1, 3, 20, 30), torch.eye(3)[None]).shape
        torch.Size([1, 3, 5, 7])
        >>> warper.precompute_warp_grid(torch.eye(3)[None])
        >>> warper(torch.rand(1, 3, 20, 30)).shape
        torch.Size([1, 3, 5, 7])
    """

    def __init__(
        self,
        height: int,
        width: int,
        mode: str = "bilinear",
        padding_mode: str = "zeros",
        normalized_coordinates: bool = True,
        align_corners: bool = False,
        *,
        sampling: LinearizedSampling | None = None,
    ) -> None:
        height, width = check_size("(height, width)", (height, width))
        check_flag("normalized_coordinates", normalized_coordinates)
        check_flag("align_corners", align_corners)
        super().__init__(height, width, mode, padding_mode, normalized_coordinates, align_corners)
        self.sampling = LinearizedSampling() if sampling is None else sampling
        self._precomputed: Tensor | None = None

    def precompute_warp_grid(self, src_homo_dst: Tensor) -> None:
        """Keep a copy of homographies :math:`(B, 3, 3)` or :math:`(B, 1, 3, 3)` for calls that give none."""
        self._precomputed = check_dense("src_homo_dst", src_homo_dst).clone()

    def forward(
        self,
        patch_src: Tensor,
        src_homo_dst: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Warp ``patch_src`` :math:`(B, C, H, W)` by ``src_homo_dst``, or by the precomputed ones.

        Homographies are :math:`(B, 3, 3)` or, as kornia documents them, :math:`(B, 1, 3, 3)`.

        Raises:
            RuntimeError: if there are neither.
        """
        homography = self._precomputed if src_homo_dst is None else src_homo_dst
        if homography is None:
            raise RuntimeError("src_homo_dst must be given, or kept before by precompute_warp_grid()")
        settings = self.mode, self.padding_mode, self.align_corners, self.normalized_coordinates
        dsize = self.height, self.width
        return homography_warp_linearized(
            patch_src, homography, dsize, *settings, sampling=self.sampling, noise=noise, generator=generator
        )

    def extra_repr(self) -> str:
        """Settings for ``repr``."""
        return (
            f"height={self.height}, width={self.width}, mode={self.mode!r}, padding_mode={self.padding_mode!r}, "
            f"normalized_coordinates={self.normalized_coordinates}, align_corners={self.align_corners}, "
            f"sampling={self.sampling}"
        )
