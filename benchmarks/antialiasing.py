"""Bilinear sampling made free of aliasing by means that everybody has: supersampling, and a mipmap.

Both average the image over about one output pixel before or after it is read, and both are differentiable through
their reads. Grids are normalised with ``align_corners=False``, as in ``torch.nn.functional.grid_sample``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def supersampled(image: Tensor, grid: Tensor, count: int, padding_mode: str = "zeros") -> Tensor:
    """The mean of ``count * count`` bilinear reads within each output pixel.

    The reads lie on a regular square lattice, as far apart as pixels are in an output ``count`` times as large.

    Args:
        image: ``(B, C, H, W)``.
        grid: ``(B, h, w, 2)`` with h and w of at least 2; it may come from any transform. See ``denser``.
        count: how many reads there are along each axis of an output pixel.
        padding_mode: what a read outside the image sees.

    Returns:
        ``(B, C, h, w)``.
    """
    return pooled(image, denser(grid, count), count, padding_mode)


def pooled(image: Tensor, dense_grid: Tensor, count: int, padding_mode: str = "zeros") -> Tensor:
    """Bilinear reads on a grid ``(B, count * h, count * w, 2)``, averaged to ``(B, C, h, w)``."""
    return F.avg_pool2d(F.grid_sample(image, dense_grid, padding_mode=padding_mode, align_corners=False), count)


def denser(grid: Tensor, count: int) -> Tensor:
    """The grid of the same transform for an output ``count`` times as large, ``(B, count * h, count * w, 2)``.

    The transform is linear within each output pixel; its Jacobian there is taken from finite differences of the grid
    (central, one-sided at the edges). For an affine transform that is exact.
    """
    across = (torch.arange(count, device=grid.device, dtype=grid.dtype) + 0.5) / count - 0.5
    down = across[:, None].expand(count, count)
    by_y, by_x = torch.gradient(grid, dim=(1, 2))
    linear = torch.stack((grid, by_x, by_y), -2)
    terms = torch.stack((torch.ones_like(down), across.expand_as(down), down), -1)
    return torch.einsum("ijk, bhwkc -> bhiwjc", terms, linear).flatten(3, 4).flatten(1, 2)


def mipmapped(image: Tensor, grid: Tensor, padding_mode: str = "zeros", bias: float = 0.0) -> Tensor:
    """Trilinear reads from a mipmap: bilinear in each of the two levels around the one that an output pixel needs.

    A level averages squares of 2 x 2 pixels of the level below. An output pixel needs the level ``log2(s)``, where
    ``s`` is the larger singular value of its Jacobian in source pixels: the longer side of what it covers. The level
    is a constant to differentiation; the gradient is that of the reads.

    Args:
        image: ``(B, C, H, W)`` of any size; sides that are odd on some level are padded there by one pixel.
        grid: ``(B, h, w, 2)`` with h and w of at least 2.
        padding_mode: what a read outside the image sees, and what sides are padded with: ``"zeros"`` or ``"border"``.
        bias: is added to the level. -1 reads one level finer, which blurs less and aliases more.

    Returns:
        ``(B, C, h, w)``.
    """
    textures = mipmap(image, padding_mode)
    size = torch.tensor((image.shape[-1], image.shape[-2]), device=grid.device, dtype=grid.dtype)
    level = (longest_side(grid.detach() * size / 2).log2() + bias).clamp(0, len(textures) - 1)[:, None]
    value = torch.zeros((), device=image.device, dtype=image.dtype)
    for number, texture in enumerate(textures):
        weight = (1 - (level - number).abs()).clamp(min=0)
        if weight.any():
            # A padded level reaches farther right and down than the image does.
            covered = size / 2**number / size.new_tensor((texture.shape[-1], texture.shape[-2]))
            reads = F.grid_sample(texture, (grid + 1) * covered - 1, padding_mode=padding_mode, align_corners=False)
            value = value + weight * reads
    return value


def mipmap(image: Tensor, padding_mode: str = "zeros") -> list[Tensor]:
    """The image, and its means over squares of 2, 4, 8 ... pixels, until one pixel is left."""
    levels = [image]
    while max(levels[-1].shape[-2:]) > 1:
        height, width = levels[-1].shape[-2:]
        mode = {"zeros": "constant", "border": "replicate"}[padding_mode]
        levels.append(F.avg_pool2d(F.pad(levels[-1], (0, width % 2, 0, height % 2), mode), 2))
    return levels


def longest_side(points: Tensor) -> Tensor:
    """The larger singular value of each pixel's Jacobian, ``(B, h, w)``, from points ``(B, h, w, 2)``."""
    by_y, by_x = torch.gradient(points, dim=(1, 2))
    (xx, yy), xy = (by_x.square().sum(-1), by_y.square().sum(-1)), (by_x * by_y).sum(-1)
    return ((xx + yy) / 2 + torch.hypot((xx - yy) / 2, xy)).sqrt()
