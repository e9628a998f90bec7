"""The functions of kornia that have ``align_corners`` since kornia 0.9 only, written out for older versions.

Without it, kornia puts -1 and 1 at the outermost texel centres, whatever flag ``F.grid_sample`` is given. So
``homography_warp`` of kornia 0.8 shifts and scales an image under the identity, by half a texel at the borders, unless
it is called with ``align_corners=True``. The package follows kornia 0.9 with every version: the identity returns the
image, under either flag.
"""

from inspect import signature

import torch
import torch.nn.functional as F
from kornia.geometry import conversions
from kornia.geometry.linalg import transform_points
from torch import Tensor

__all__ = ["create_meshgrid", "denormalize_homography", "homography_warp", "normal_transform_pixel"]
__all__ += ["normalize_homography"]

if "align_corners" in signature(conversions.normal_transform_pixel).parameters:
    from kornia.geometry.conversions import denormalize_homography, normal_transform_pixel, normalize_homography
    from kornia.geometry.grid import create_meshgrid
    from kornia.geometry.transform import homography_warp
else:

    def _scale_and_offset(size: int, align_corners: bool) -> tuple[float, float]:
        """From pixels to normalised coordinates. A single pixel lies in the middle."""
        if align_corners:
            return (2 / (size - 1), -1.0) if size > 1 else (1.0, 0.0)
        return 2 / size, 1 / size - 1

    def normal_transform_pixel(  # type: ignore[misc]
        height: int,
        width: int,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        align_corners: bool = True,
    ) -> Tensor:
        """As :func:`kornia.geometry.conversions.normal_transform_pixel`."""
        (x, left), (y, top) = (_scale_and_offset(size, align_corners) for size in (width, height))
        return torch.tensor([[[x, 0.0, left], [0.0, y, top], [0.0, 0.0, 1.0]]], device=device, dtype=dtype)

    def create_meshgrid(
        height: int,
        width: int,
        normalized_coordinates: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        align_corners: bool = True,
    ) -> Tensor:
        """As :func:`kornia.geometry.grid.create_meshgrid`."""
        lines = []
        for size in (width, height):
            line = torch.arange(size, device=device, dtype=dtype or torch.get_default_dtype())
            if normalized_coordinates:
                scale, offset = _scale_and_offset(max(size, 1), align_corners)
                line = line * scale + offset
            lines.append(line)
        return torch.stack(torch.meshgrid(*lines, indexing="xy"), -1)[None]

    def normalize_homography(
        dst_pix_trans_src_pix: Tensor,
        dsize_src: tuple[int, int],
        dsize_dst: tuple[int, int],
        align_corners: bool = True,
    ) -> Tensor:
        """As :func:`kornia.geometry.conversions.normalize_homography`."""
        source, destination = _normalisations(dst_pix_trans_src_pix, dsize_src, dsize_dst, align_corners)
        return destination @ dst_pix_trans_src_pix @ torch.linalg.inv(source)

    def denormalize_homography(
        dst_pix_trans_src_pix: Tensor,
        dsize_src: tuple[int, int],
        dsize_dst: tuple[int, int],
        align_corners: bool = True,
    ) -> Tensor:
        """As :func:`kornia.geometry.conversions.denormalize_homography`."""
        source, destination = _normalisations(dst_pix_trans_src_pix, dsize_src, dsize_dst, align_corners)
        return torch.linalg.inv(destination) @ dst_pix_trans_src_pix @ source

    def _normalisations(
        like: Tensor, dsize_src: tuple[int, int], dsize_dst: tuple[int, int], align_corners: bool
    ) -> tuple[Tensor, Tensor]:
        sizes = dsize_src, dsize_dst
        source, destination = (
            normal_transform_pixel(*size, device=like.device, dtype=like.dtype, align_corners=align_corners)
            for size in sizes
        )
        return source, destination

    def homography_warp(  # type: ignore[misc]
        patch_src: Tensor,
        src_homo_dst: Tensor,
        dsize: tuple[int, int],
        mode: str = "bilinear",
        padding_mode: str = "zeros",
        align_corners: bool = False,
    ) -> Tensor:
        """As :func:`kornia.geometry.transform.homography_warp`, in normalised coordinates."""
        grid = create_meshgrid(*dsize, True, src_homo_dst.device, src_homo_dst.dtype, align_corners)
        grid = transform_points(src_homo_dst, grid.expand(len(src_homo_dst), -1, -1, -1))
        return F.grid_sample(patch_src, grid, mode, padding_mode, align_corners)
