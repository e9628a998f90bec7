"""The reference backend: plain torch, a loop over the samples that keeps only running sums."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.config import LinearizedSampling
from lms_geometry.footprint import place
from lms_geometry.least_squares import count_and_mean, solve_slope


def fit(
    input: Tensor,
    centre: Tensor,
    points: Tensor,
    footprint: Tensor,
    noise: Tensor,
    sampling: LinearizedSampling,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> tuple[Tensor, Tensor | None]:
    """Read the samples around every point and fit a plane to them (equations 4 to 7).

    Args:
        input: the source image, :math:`(B, C, H, W)`.
        centre: what was read at the points, :math:`(B, C, h, w)`.
        points: where, in the normalised coordinates of ``F.grid_sample``, :math:`(2, B, h, w)`.
        footprint: :math:`L` in source pixels, :math:`(2, 2, B, h, w)` or of length 1 along the last three.
        noise: the draws, :math:`(2, K - 1, B, h, w)` or of length 1 along B.
        sampling: the ridge, the row of ones and the mask.
        mode, padding_mode, align_corners: how ``F.grid_sample`` reads the image.

    Returns:
        The slopes along x and y in intensity a source pixel, :math:`(2, B, C, h, w)`, and :math:`A_1`,
        :math:`(B, C, h, w)`, or ``None`` without the row of ones.
    """
    size = input.shape[-1], input.shape[-2]
    reach = _in_grid_units(footprint, size, align_corners)
    draws = noise.unbind(1)
    weights = [noise.new_ones(1, 1, 1)] * len(draws)
    if sampling.mask_out_of_bounds:
        weights = [_inside(place(points, reach, z), size, align_corners).to(noise.dtype) for z in draws]
    count, mean = count_and_mean(draws, weights)
    if not sampling.intercept:
        mean = torch.zeros_like(mean)
    shrinkage = sampling.ridge / (count + sampling.ridge)

    second = shrinkage * count * mean * mean.unsqueeze(1)
    cross, total = noise.new_zeros(2, 1, 1, 1, 1), noise.new_zeros(1, 1, 1, 1)
    for z, weight in zip(draws, weights, strict=True):
        grid = place(points, reach, z).permute(1, 2, 3, 0)
        difference = F.grid_sample(input, grid, mode, padding_mode, align_corners).sub_(centre)
        offset = (z - mean) * weight
        second = torch.addcmul(second, offset, offset.unsqueeze(1))
        cross = torch.addcmul(cross, offset.unsqueeze(2), difference)
        total = torch.addcmul(total, weight.unsqueeze(1), difference)

    cross = cross.addcmul((shrinkage * mean).unsqueeze(2), total)
    slope = solve_slope(second, cross, footprint, sampling.ridge)
    if not sampling.intercept:
        return slope, None
    (drift_x, drift_y), (slope_x, slope_y) = place(torch.zeros_like(mean), footprint, mean).unsqueeze(2), slope
    total = total.div(count.unsqueeze(1)).addcmul(drift_x, slope_x, value=-1).addcmul(drift_y, slope_y, value=-1)
    return slope, total.mul(1 - shrinkage.unsqueeze(1))


def _in_grid_units(footprint: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """A footprint in source pixels to units of ``F.grid_sample``. An axis one texel long has no slope and no spread."""
    units = (0.0 if n == 1 else 2 / (n - 1 if align_corners else n) for n in size)
    return torch.stack([row * unit for row, unit in zip(footprint, units, strict=True)])


def _inside(points: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Whether a point lies within the outermost texel centres, so that no padding enters what is read there."""
    limit_x, limit_y = (1.0 if align_corners else 1 - 1 / n for n in size)
    x, y = points.abs()
    return (x <= limit_x) & (y <= limit_y)
