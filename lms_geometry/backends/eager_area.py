"""The reference backend for the mean over an output pixel's area, in plain torch: values, gradients and slopes.

The equations are in :mod:`lms_geometry.area`. Every read is a call of ``F.grid_sample``.
"""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lms_geometry.area import (
    Area,
    blend,
    difference_rounding,
    edge_moment,
    excess_area,
    nodes_along,
    slope,
    slope_by_jacobian,
)
from lms_geometry.backends.common import image_gradient_at, point_gradient_at, slopes_by_channel, usable_points
from lms_geometry.config import Averaging, Reading
from lms_geometry.coordinates import grid_units, units_per_pixel
from lms_geometry.footprint import finite_difference_gradient, finite_difference_jacobian, finite_difference_tangent


def area_mean(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    averaging: Averaging,
    reading: Reading,
) -> Tensor:
    """The mean over the area of every output pixel.

    Args:
        input: the source image, :math:`(B, C, H, W)`.
        grid: the points in normalised coordinates, :math:`(B, h, w, 2)`.
        jacobian: source pixels per output pixel, :math:`(B, h, w, 2, 2)` or of length 1 along the first three; finite
            differences of the grid if ``None``.
        averaging: how the mean is taken.
        reading: how ``F.grid_sample`` reads the image.

    Returns:
        The values, :math:`(B, C, h, w)`. A pixel without area has the value of ``F.grid_sample``, to the last bit.
    """
    area, points, reach = _geometry(input, grid, jacobian, averaging.side, reading.align_corners)
    centre = F.grid_sample(input, _grid(points), *reading)
    spread = (area.extent != 0).any(0)
    if not (torch.compiler.is_compiling() or spread.any()):
        return centre
    value = torch.zeros_like(centre)
    for at, weight in _nodes(points, reach, area, averaging.nodes):
        value = torch.addcmul(value, weight.unsqueeze(1), F.grid_sample(input, at, *reading))
    return torch.where(spread.unsqueeze(1), value, centre)


def area_image_gradient(
    gradient: Tensor,
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    averaging: Averaging,
    reading: Reading,
) -> Tensor:
    """The gradient for the image, :math:`(B, C, H, W)`: the adjoint of :func:`area_mean`, whose arguments it takes."""
    area, points, reach = _geometry(input, grid, jacobian, averaging.side, reading.align_corners)
    spread = (area.extent != 0).any(0).unsqueeze(1)
    by_image = image_gradient_at(torch.where(spread, 0.0, gradient), input, _grid(points), reading)
    if spread.any():
        gradient = torch.where(spread, gradient, 0.0)
        for at, weight in _nodes(points, reach, area, averaging.nodes):
            by_image += image_gradient_at(gradient * weight.unsqueeze(1), input, at, reading)
    return by_image


def area_gradient(
    gradient: Tensor,
    value: Tensor,
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    averaging: Averaging,
    reading: Reading,
) -> tuple[Tensor, Tensor | None]:
    """The gradients for the grid and for the Jacobian.

    Args:
        gradient: that for the value, :math:`(B, C, h, w)`.
        value: the value, :math:`(B, C, h, w)`.
        input, grid, jacobian, averaging, reading: the arguments of :func:`area_mean`.

    Returns:
        The gradient for the grid, :math:`(B, h, w, 2)`, 0 along a coordinate that is not finite or far outside, and
        that for the Jacobian, of the Jacobian's shape. Without a Jacobian the second is ``None``, and the first
        contains what reaches the grid through its finite differences.
    """
    size = input.shape[-1], input.shape[-2]
    area, points, reach = _geometry(input, grid, jacobian, averaging.side, reading.align_corners)
    units = grid_units(size, reading.align_corners)
    narrow = (blend(area)[1] != 0).any()

    def read(at: Tensor) -> tuple[Tensor, Tensor]:
        """The sum over the channels of gradient times read, and its derivative by the source pixel where it counts."""
        total = (F.grid_sample(input, at, *reading) * gradient).sum(1)
        if not narrow:
            return total, torch.zeros_like(points)
        by_point = point_gradient_at(gradient, input, at, reading)
        return total, torch.stack([d / (u or 1.0) for d, u in zip(by_point.unbind(-1), units, strict=True)])

    if averaging.estimate == "edges":
        difference, edges, texels = _read_edges(area, points, reach, averaging.edge_nodes, read)
        edges.diagonal().sub_((value * gradient).sum(1).unsqueeze(-1))  # from both entries of the diagonal
        by_jacobian = slope_by_jacobian(area, edges, averaging.side)
    else:
        difference, texels = _fit_plane(area, points, reach, averaging.nodes, read)
        by_jacobian = points.new_zeros(2, *points.shape)
    by_point = slope(area, difference, texels)
    by_grid = torch.stack([d * u for d, u in zip(by_point, units, strict=True)], -1)
    by_grid = torch.where(grid == points.movedim(0, -1), by_grid, 0.0)
    by_jacobian = rearrange(by_jacobian, "i j b h w -> b h w i j")
    if jacobian is None:
        return by_grid + gradient_through_differences(grid, by_jacobian, size, reading.align_corners), None
    return by_grid, by_jacobian.sum_to_size(jacobian.shape)


def _read_edges(
    area: Area, points: Tensor, reach: Tensor, count: int, read: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Differences between opposite edges, the matrix E' dv/dE but for the value, and the mean texel derivative."""
    texels = torch.zeros_like(points)
    # Of the low and the high edge across each axis.
    mean, moment = points.new_zeros(2, 2, *points.shape[1:]), points.new_zeros(2, 2, *points.shape[1:])
    for axis in (0, 1):
        nodes = nodes_along(area.axes[:, 1 - axis], count)
        for high in (0, 1):
            for (position, weight), in_moment in zip(nodes, edge_moment(nodes), strict=True):
                offset = torch.full_like(position, high - 0.5)
                x, y = (offset, position) if axis == 0 else (position, offset)
                here, by_point = read(_grid(_moved(points, reach, x, y)))
                mean[axis, high] += weight * here
                moment[axis, high] += in_moment * here
                texels += weight / 4 * by_point
    grown, turned = mean.mean(1), moment[:, 1] - moment[:, 0]
    edges = torch.stack((torch.stack((grown[0], turned[0])), torch.stack((turned[1], grown[1]))))
    return mean[:, 1] - mean[:, 0], edges, texels


def _fit_plane(
    area: Area, points: Tensor, reach: Tensor, count: int, read: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Slope of the plane fitted to the nodes, over the unit square of each pixel, and the mean texel derivative."""
    cross, second, texels = torch.zeros_like(points), torch.zeros_like(points), torch.zeros_like(points)
    for y, weight_y in nodes_along(area.axes[:, 1], count):
        for x, weight_x in nodes_along(area.axes[:, 0], count):
            here, by_point = read(_grid(_moved(points, reach, x, y)))
            weight, position = weight_x * weight_y, torch.stack((x, y))
            cross += weight * position * here
            second += weight * position.square()
            texels += weight * by_point
    return cross / second, texels


def area_slopes(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor,
    averaging: Averaging,
    reading: Reading,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, slope and slope by the Jacobian, of every channel by itself.

    Returns:
        The value :math:`(B, C, h, w)`; its derivative by the point, :math:`(B, C, h, w, 2)`, in intensity per unit of
        the grid; its derivative by the Jacobian, :math:`(B, C, h, w, 2, 2)`.
    """
    return slopes_by_channel(area_mean, area_gradient, input, grid, jacobian, averaging, reading)


def jacobian_of(grid: Tensor, size: tuple[int, int], align_corners: bool, tangent: Tensor | None = None) -> Tensor:
    """Finite differences of a grid, in source pixels, ``(B, h, w, 2, 2)``; or of a tangent of the grid."""
    points, units = grid.movedim(-1, 0), grid_units(size, align_corners)
    moved = points if tangent is None else tangent.movedim(-1, 0)
    differences = finite_difference_tangent(points, moved, units)
    return rearrange(differences, "i j b h w -> b h w i j")


def gradient_through_differences(
    grid: Tensor, by_jacobian: Tensor, size: tuple[int, int], align_corners: bool
) -> Tensor:
    """The gradient for a grid from that for its finite differences, 0 at points that are not finite or far outside."""
    by_jacobian = rearrange(by_jacobian, "b h w i j -> i j b h w")
    by_point = finite_difference_gradient(grid.movedim(-1, 0), by_jacobian, grid_units(size, align_corners))
    return torch.where(grid == usable_points(grid), by_point.movedim(0, -1), 0.0)


def _geometry(
    input: Tensor, grid: Tensor, jacobian: Tensor | None, side: float, align_corners: bool
) -> tuple[Area, Tensor, Tensor]:
    """The areas of the pixels, their source points in grid units ``(2, B, h, w)``, and E in grid units."""
    size = input.shape[-1], input.shape[-2]
    rounding = 0.0
    if jacobian is None:
        jacobian = finite_difference_jacobian(grid.movedim(-1, 0), grid_units(size, align_corners))
        rounding = difference_rounding(grid.dtype, max(size))
    else:
        jacobian = rearrange(jacobian, "b h w i j -> i j b h w")
    area = excess_area(jacobian, side, rounding)
    # An axis of a single texel with corners aligned has no length: there is nothing to move along.
    units = [units_per_pixel(n, align_corners) if n > 1 or not align_corners else 0.0 for n in size]
    reach = torch.stack([row * unit for row, unit in zip(area.axes, units, strict=True)])
    return area, usable_points(grid).movedim(-1, 0), reach


def _nodes(points: Tensor, reach: Tensor, area: Area, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The points of the nodes in the area, each a grid ``(B, h, w, 2)``, and their weights."""
    for y, weight_y in nodes_along(area.axes[:, 1], count):
        for x, weight_x in nodes_along(area.axes[:, 0], count):
            yield _grid(_moved(points, reach, x, y)), weight_x * weight_y


def _moved(points: Tensor, reach: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The points with the coordinates ``x`` and ``y`` in the unit square of each pixel."""
    return torch.addcmul(torch.addcmul(points, reach[:, 0], x), reach[:, 1], y)


def _grid(points: Tensor) -> Tensor:
    return points.permute(1, 2, 3, 0)
