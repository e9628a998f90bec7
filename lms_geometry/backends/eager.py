"""The reference backend: plain torch, a loop over the samples that keeps only running sums."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lms_geometry.backends.common import image_gradient, usable_points
from lms_geometry.config import LinearizedSampling, Reading
from lms_geometry.coordinates import grid_units, outermost_centre, units_per_pixel
from lms_geometry.footprint import Placement, finite_difference_jacobian, footprint, place
from lms_geometry.least_squares import Moments
from lms_geometry.limits import ON_EDGE
from lms_geometry.noise import whitened

__all__ = ["grid_gradient", "image_gradient", "sample", "supports", "supports_gradient", "unavailable_reason"]


def unavailable_reason() -> str | None:
    """Why this backend cannot be used here: it always can."""
    return None


def supports(image: Tensor, mode: str) -> bool:  # noqa: ARG001
    """Whether this backend can sample such an image: it can sample any."""
    return True


def supports_gradient(gradient: Tensor) -> bool:  # noqa: ARG001
    """Whether this backend can turn such a gradient into that of the grid: it can with any."""
    return True


def sample(
    input: Tensor, grid: Tensor, placement: Placement, sampling: LinearizedSampling, reading: Reading
) -> tuple[Tensor, Tensor]:
    """The linear model around every point (equations 2 to 9).

    Args:
        input: the source image, :math:`(B, C, H, W)`.
        grid: the points in normalised coordinates, :math:`(B, h, w, 2)`.
        placement: where the samples fall around them.
        sampling: settings of the method.
        reading: how ``F.grid_sample`` reads the image.

    Returns:
        The value :math:`I_0 + A_1`, :math:`(B, C, h, w)`, and the slopes along x and y in intensity per unit of the
        grid, :math:`(B, C, h, w, 2)`: 0 along a coordinate that is NaN, infinite or far outside.
    """
    size = input.shape[-1], input.shape[-2]
    points = usable_points(grid)
    centre = F.grid_sample(input, points, *reading)
    slope, intercept = _fit(
        input, centre, points, *_samples(grid, placement, sampling, size, reading), sampling, reading
    )
    value = centre if intercept is None else intercept.add_(centre)
    units = grid_units(size, reading.align_corners)
    slope = torch.stack([s * unit for s, unit in zip(slope, units, strict=True)], -1)
    return value, torch.where((grid == points).unsqueeze(1), slope, 0.0)


def grid_gradient(gradient: Tensor, slope: Tensor) -> Tensor:
    """The gradient for the grid ``(B, h, w, 2)`` from that for the value ``(B, C, h, w)``: no second sampling."""
    return (slope * gradient.unsqueeze(-1)).sum(-4)


def _samples(
    grid: Tensor, placement: Placement, sampling: LinearizedSampling, size: tuple[int, int], reading: Reading
) -> tuple[Tensor, Tensor]:
    """The footprint ``(2, 2, B, h, w)`` in source pixels, and the draws ``(2, K - 1, B, h, w)`` that it scales."""
    noise, jacobian, whiten = placement
    if jacobian is None:
        jacobian = finite_difference_jacobian(grid.movedim(-1, 0), grid_units(size, reading.align_corners))
    else:
        jacobian = rearrange(jacobian, "b h w row column -> row column b h w")
    noise = rearrange(noise if noise.ndim == 5 else noise.unsqueeze(0), "b k h w xy -> k b h w xy")
    noise = rearrange(whitened(noise) if whiten else noise, "k b h w xy -> xy k b h w").contiguous()
    return footprint(jacobian, sampling.sigma, sampling.jitter), noise


def _fit(
    input: Tensor,
    centre: Tensor,
    points: Tensor,
    footprint: Tensor,
    noise: Tensor,
    sampling: LinearizedSampling,
    reading: Reading,
) -> tuple[Tensor, Tensor | None]:
    """Read the samples around every point and fit a plane to them (equations 4 to 7).

    The slopes along x and y are in intensity per source pixel, ``(2, B, C, h, w)``. ``A_1``, ``(B, C, h, w)``, is
    ``None`` without the row of ones. ``centre`` holds what was read at the points.
    """
    size = input.shape[-1], input.shape[-2]
    # An axis of one texel has no slope and no spread.
    units = [0.0 if n == 1 else units_per_pixel(n, reading.align_corners) for n in size]
    reach = torch.stack([row * unit for row, unit in zip(footprint, units, strict=True)])
    points = rearrange(points, "b h w xy -> xy b h w").contiguous()
    draws = noise.unbind(1)
    weights = [noise.new_ones(1, 1, 1)] * len(draws)
    if sampling.mask_out_of_bounds:
        weights = [_inside(place(points, reach, z), size, reading.align_corners).to(noise.dtype) for z in draws]
    moments = Moments(draws, weights, sampling.ridge, sampling.intercept)
    for z, weight in zip(draws, weights, strict=True):
        where = rearrange(place(points, reach, z), "xy b h w -> b h w xy")
        moments.add(z, weight, F.grid_sample(input, where, *reading).sub_(centre))
    return moments.solve(footprint)


def _inside(points: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Whether a point lies within the outermost texel centres, so that no padding enters what is read there."""
    limit_x, limit_y = (outermost_centre(n, align_corners) + ON_EDGE for n in size)
    x, y = points.abs()
    return (x <= limit_x) & (y <= limit_y)
