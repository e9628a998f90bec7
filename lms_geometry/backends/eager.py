"""The reference backend: plain torch, a loop over the samples that keeps only running sums."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.checks import MODES, PADDING_MODES
from lms_geometry.config import LinearizedSampling
from lms_geometry.footprint import finite_difference_jacobian, footprint, place
from lms_geometry.least_squares import count_and_mean, solve_slope
from lms_geometry.noise import whitened

# Half widths of the image. A point beyond, infinite or nowhere (NaN) is moved here, outside: the bilinear kernel casts
# coordinates to integers, and what it does with such is undefined (pytorch issue 24823).
_FAR_OUTSIDE = 1e5


def missing() -> str | None:
    """Why this backend cannot be used here: it always can."""
    return None


def supports(input: Tensor, mode: str) -> bool:  # noqa: ARG001
    """Whether this backend can sample such an image: it can sample any."""
    return True


def sample(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    noise: Tensor,
    whiten: bool,
    sampling: LinearizedSampling,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    """The linear model around every point (equations 2 to 9).

    Args:
        input: the source image, :math:`(B, C, H, W)`.
        grid: the points in normalised coordinates, :math:`(B, h, w, 2)`.
        jacobian: source pixels per output pixel, :math:`(B, h, w, 2, 2)` or of length 1 along the first three; finite
            differences of the grid if ``None``.
        noise: the draws, :math:`(K - 1, h, w, 2)` or :math:`(B, K - 1, h, w, 2)`.
        whiten: whether the draws are still to be whitened.
        sampling: settings of the method.
        mode, padding_mode, align_corners: how ``F.grid_sample`` reads the image.

    Returns:
        The value :math:`I_0 + A_1`, :math:`(B, C, h, w)`, and the slopes along x and y in intensity per unit of the
        grid, :math:`(B, C, h, w, 2)`: 0 along a coordinate that is no finite number or far outside.
    """
    size = input.shape[-1], input.shape[-2]
    points = usable_points(grid)
    centre = F.grid_sample(input, points, mode, padding_mode, align_corners)
    if jacobian is None:
        jacobian = finite_difference_jacobian(_in_pixels(grid, size, align_corners))
    else:
        jacobian = jacobian.movedim((-2, -1), (0, 1))
    if whiten:
        noise = whitened(noise.movedim(-4, 0)).movedim(0, -4)
    noise = noise.movedim(-1, 0)
    slope, intercept = fit(
        input,
        centre,
        points.movedim(-1, 0).contiguous(),
        footprint(jacobian, sampling.sigma, sampling.jitter),
        noise.unsqueeze(2).contiguous() if noise.ndim == 4 else noise.transpose(1, 2).contiguous(),
        sampling,
        mode,
        padding_mode,
        align_corners,
    )
    value = centre if intercept is None else intercept.add_(centre)
    pixels = [(n - 1) / 2 if align_corners else n / 2 for n in size]
    slope = torch.stack([s * n for s, n in zip(slope, pixels, strict=True)], -1)
    return value, torch.where((grid == points).unsqueeze(1), slope, 0.0)


def grid_gradient(gradient: Tensor, slope: Tensor) -> Tensor:
    """The gradient for the grid ``(B, h, w, 2)`` from that for the value ``(B, C, h, w)``: no second sampling."""
    return (slope * gradient.unsqueeze(-1)).sum(-4)


def image_gradient(
    gradient: Tensor, input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool
) -> Tensor:
    """The gradient for the image, by the centre's bilinear weights, computed in the grid's precision."""
    settings = MODES.index(mode), PADDING_MODES.index(padding_mode), align_corners
    backward = torch.ops.aten.grid_sampler_2d_backward
    image, points = input.to(grid.dtype), usable_points(grid)
    return backward(gradient.to(grid.dtype), image, points, *settings, (True, False))[0].to(input.dtype)


def usable_points(grid: Tensor) -> Tensor:
    """The points of a grid, those far outside or nowhere moved to one place outside."""
    return grid.nan_to_num(_FAR_OUTSIDE).clamp(-_FAR_OUTSIDE, _FAR_OUTSIDE)


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
        The slopes along x and y in intensity per source pixel, :math:`(2, B, C, h, w)`, and :math:`A_1`,
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


def _in_pixels(grid: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Normalised points ``(B, h, w, 2)`` as source pixels ``(2, B, h, w)``, texel centres at integers."""
    return torch.stack(
        [
            (x + 1) * ((n - 1) / 2) if align_corners else (x + 1) * (n / 2) - 0.5
            for x, n in zip(grid.unbind(-1), size, strict=True)
        ]
    )
