"""``nn.Module`` forms of the functions: settings at construction, tensors at call."""

from collections.abc import Sequence

import torch
from kornia.geometry.transform import HomographyWarper
from torch import Tensor, nn

from lms_geometry.config import LinearizedSampling
from lms_geometry.roi import roi_align_linearized
from lms_geometry.sampling import grid_sample_linearized
from lms_geometry.warp import homography_warp_linearized


class LinearizedGridSample(nn.Module):
    """Module form of :func:`grid_sample_linearized`.

    Convention:
        - as :func:`grid_sample_linearized`

    Args:
        mode: how samples are read, ``"bilinear"`` | ``"nearest"`` | ``"bicubic"``.
        padding_mode: ``"zeros"`` | ``"border"`` | ``"reflection"``.
        align_corners: meaning of -1 and 1; ``None`` means ``False``.
        sampling: settings of the method; the paper's if ``None``.

    Example:
        >>> sample = LinearizedGridSample(sampling=LinearizedSampling(mask_out_of_bounds=False))
        >>> sample(torch.rand(2, 3, 20, 30), torch.zeros(2, 5, 6, 2)).shape
        torch.Size([2, 3, 5, 6])
    """

    def __init__(
        self,
        mode: str = "bilinear",
        padding_mode: str = "zeros",
        align_corners: bool | None = None,
        *,
        sampling: LinearizedSampling | None = None,
    ) -> None:
        super().__init__()
        self.mode = mode
        self.padding_mode = padding_mode
        self.align_corners = align_corners
        self.sampling = LinearizedSampling() if sampling is None else sampling

    def forward(
        self,
        input: Tensor,
        grid: Tensor,
        *,
        jacobian: Tensor | None = None,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Sample ``input`` :math:`(B, C, H, W)` at ``grid`` :math:`(B, h, w, 2)`, as :func:`grid_sample_linearized`."""
        return grid_sample_linearized(
            input,
            grid,
            self.mode,
            self.padding_mode,
            self.align_corners,
            sampling=self.sampling,
            jacobian=jacobian,
            noise=noise,
            generator=generator,
        )

    def extra_repr(self) -> str:
        """Settings for ``repr``."""
        return (
            f"mode={self.mode!r}, padding_mode={self.padding_mode!r}, align_corners={self.align_corners}, "
            f"sampling={self.sampling}"
        )


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
        sampling: settings of the method; the paper's if ``None``.

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
        super().__init__(height, width, mode, padding_mode, normalized_coordinates, align_corners)
        self.sampling = LinearizedSampling() if sampling is None else sampling
        self._precomputed: Tensor | None = None

    def precompute_warp_grid(self, src_homo_dst: Tensor) -> None:
        """Keep a copy of homographies :math:`(B, 3, 3)` or :math:`(B, 1, 3, 3)` for calls that give none."""
        self._precomputed = src_homo_dst.clone()

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
        if homography.ndim == 4 and homography.shape[1] == 1:
            homography = homography.squeeze(1)
        return homography_warp_linearized(
            patch_src,
            homography,
            (self.height, self.width),
            self.mode,
            self.padding_mode,
            self.align_corners,
            self.normalized_coordinates,
            sampling=self.sampling,
            noise=noise,
            generator=generator,
        )

    def extra_repr(self) -> str:
        """Settings for ``repr``."""
        return (
            f"height={self.height}, width={self.width}, mode={self.mode!r}, padding_mode={self.padding_mode!r}, "
            f"normalized_coordinates={self.normalized_coordinates}, align_corners={self.align_corners}, "
            f"sampling={self.sampling}"
        )


class LinearizedRoIAlign(nn.Module):
    """Module form of :func:`roi_align_linearized`, with the arguments of :class:`torchvision.ops.RoIAlign`.

    Convention:
        - as :func:`roi_align_linearized`

    Args:
        output_size: bins of a box, ``(height, width)`` or one number for both.
        spatial_scale: pixels of the image per unit of the boxes.
        sampling_ratio: points of a bin along either axis; if not positive, as many as the bin has pixels, rounded up.
        aligned: whether pixels have their centres at halves instead of integers.
        sampling: settings of the method; the paper's if ``None``.

    Example:
        >>> align = LinearizedRoIAlign((5, 7), spatial_scale=0.25, sampling_ratio=2, aligned=True)
        >>> align(torch.rand(1, 3, 20, 30), [torch.tensor([[16.0, 8.0, 72.0, 64.0]])]).shape
        torch.Size([1, 3, 5, 7])
    """

    def __init__(
        self,
        output_size: int | tuple[int, int],
        spatial_scale: float,
        sampling_ratio: int,
        aligned: bool = False,
        *,
        sampling: LinearizedSampling | None = None,
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.sampling_ratio = sampling_ratio
        self.aligned = aligned
        self.sampling = LinearizedSampling() if sampling is None else sampling

    def forward(
        self,
        input: Tensor,
        rois: Tensor | Sequence[Tensor],
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Pool ``rois`` of ``input`` :math:`(N, C, H, W)`, as :func:`roi_align_linearized`."""
        return roi_align_linearized(
            input,
            rois,
            self.output_size,
            self.spatial_scale,
            self.sampling_ratio,
            self.aligned,
            sampling=self.sampling,
            noise=noise,
            generator=generator,
        )

    def extra_repr(self) -> str:
        """Settings for ``repr``."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, sampling={self.sampling}"
        )
