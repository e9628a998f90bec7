"""The reference backend for the mean over an output pixel's area, in plain torch: values, gradients and slopes.

The equations are in :mod:`lms_geometry.area`. Every read is a call of ``F.grid_sample``.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.area import Area, blend, edge_moment, excess_area, nodes_along, slope, slope_by_jacobian
from lms_geometry.backends.eager import _in_grid_units, _in_pixels, usable_points
from lms_geometry.checks import MODES, PADDING_MODES
from lms_geometry.footprint import finite_difference_gradient, finite_difference_jacobian


def area_mean(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    count: int,
    side: float,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> Tensor:
    """The mean over the area of every output pixel.

    Args:
        input: the source image, :math:`(B, C, H, W)`.
        grid: the points in normalised coordinates, :math:`(B, h, w, 2)`.
        jacobian: source pixels per output pixel, :math:`(B, h, w, 2, 2)` or of length 1 along the first three; finite
            differences of the grid if ``None``.
        count: number of nodes along an axis of the area.
        side: side of the averaged square, in output pixels.
        mode, padding_mode, align_corners: how ``F.grid_sample`` reads the image.

    Returns:
        The values, :math:`(B, C, h, w)`. A pixel without area has the value of ``F.grid_sample``, to the last bit.
    """
    area, points, reach = _geometry(input, grid, jacobian, side, align_corners)
    centre = F.grid_sample(input, _grid(points), mode, padding_mode, align_corners)
    spread = (area.extent != 0).any(0)
    if not spread.any():
        return centre
    value = torch.zeros_like(centre)
    for at, weight in _nodes(points, reach, area, count):
        value = torch.addcmul(value, weight.unsqueeze(1), F.grid_sample(input, at, mode, padding_mode, align_corners))
    return torch.where(spread.unsqueeze(1), value, centre)


def area_image_gradient(
    gradient: Tensor,
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    count: int,
    side: float,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> Tensor:
    """The gradient for the image, :math:`(B, C, H, W)`: the adjoint of :func:`area_mean`, whose arguments it takes."""
    area, points, reach = _geometry(input, grid, jacobian, side, align_corners)
    how = MODES.index(mode), PADDING_MODES.index(padding_mode), align_corners
    spread = (area.extent != 0).any(0).unsqueeze(1)

    def spread_out(at: Tensor, share: Tensor) -> Tensor:
        return torch.ops.aten.grid_sampler_2d_backward(share, input, at, *how, (True, False))[0]

    by_image = spread_out(_grid(points), torch.where(spread, 0.0, gradient))
    if spread.any():
        gradient = torch.where(spread, gradient, 0.0)
        for at, weight in _nodes(points, reach, area, count):
            by_image += spread_out(at, gradient * weight.unsqueeze(1))
    return by_image


def area_gradient(
    gradient: Tensor,
    value: Tensor,
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    count: int,
    side: float,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> tuple[Tensor, Tensor | None]:
    """The gradients for the grid and for the Jacobian.

    Args:
        gradient: that for the value, :math:`(B, C, h, w)`.
        value: the value, :math:`(B, C, h, w)`.
        input, grid, jacobian, count, side, mode, padding_mode, align_corners: the arguments of :func:`area_mean`.

    Returns:
        The gradient for the grid, :math:`(B, h, w, 2)`, 0 along a coordinate that is not finite or far outside, and
        that for the Jacobian, of the Jacobian's shape. Without a Jacobian the second is ``None``, and the first
        contains what reaches the grid through its finite differences.
    """
    size = input.shape[-1], input.shape[-2]
    area, points, reach = _geometry(input, grid, jacobian, side, align_corners)
    how = MODES.index(mode), PADDING_MODES.index(padding_mode), align_corners
    narrow = (blend(area)[1] != 0).any()
    texels = torch.zeros_like(points)
    # Means and moments of the low and the high edge across each axis, of gradient times read.
    mean, moment = points.new_zeros(2, 2, *points.shape[1:]), points.new_zeros(2, 2, *points.shape[1:])
    for axis in (0, 1):
        nodes = nodes_along(area.axes[:, 1 - axis], count)
        for high in (0, 1):
            for (position, weight), in_moment in zip(nodes, edge_moment(nodes), strict=True):
                offset = torch.full_like(position, high - 0.5)
                at = _grid(_moved(points, reach, *((offset, position) if axis == 0 else (position, offset))))
                read = (F.grid_sample(input, at, mode, padding_mode, align_corners) * gradient).sum(1)
                mean[axis, high] += weight * read
                moment[axis, high] += in_moment * read
                if narrow:
                    by_point = torch.ops.aten.grid_sampler_2d_backward(gradient, input, at, *how, (False, True))[1]
                    texels += weight / 4 * by_point.movedim(-1, 0)
    units = [(n - 1) / 2 if align_corners else n / 2 for n in size]
    texels = torch.stack([t / (u or 1.0) for t, u in zip(texels, units, strict=True)])
    by_point = slope(area, mean[:, 1] - mean[:, 0], texels)
    grown = mean.mean(1) - (value * gradient).sum(1)
    turned = moment[:, 1] - moment[:, 0]
    edges = torch.stack((torch.stack((grown[0], turned[0])), torch.stack((turned[1], grown[1]))))
    by_jacobian = slope_by_jacobian(area, edges, side)
    if jacobian is None:
        by_point = by_point + finite_difference_gradient(_in_pixels(grid, size, align_corners), by_jacobian)
    by_grid = torch.stack([d * u for d, u in zip(by_point, units, strict=True)], -1)
    by_grid = torch.where(grid == points.movedim(0, -1), by_grid, 0.0)
    if jacobian is None:
        return by_grid, None
    return by_grid, by_jacobian.permute(2, 3, 4, 0, 1).sum_to_size(jacobian.shape)


def area_slopes(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    count: int,
    side: float,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, slope and slope by the Jacobian, of every channel by itself.

    Returns:
        The value :math:`(B, C, h, w)`; its derivative by the point, :math:`(B, C, h, w, 2)`, in intensity per unit of
        the grid; its derivative by the Jacobian, :math:`(B, C, h, w, 2, 2)`.
    """
    batch, channels = input.shape[:2]
    if jacobian is None:
        size = input.shape[-1], input.shape[-2]
        jacobian = finite_difference_jacobian(_in_pixels(grid, size, align_corners)).permute(2, 3, 4, 0, 1)
    jacobian = jacobian.expand(*grid.shape[:3], 2, 2)
    # Each channel as an image of its own.
    input = input.flatten(0, 1).unsqueeze(1)
    grid, jacobian = grid.repeat_interleave(channels, 0), jacobian.repeat_interleave(channels, 0)
    settings = count, side, mode, padding_mode, align_corners
    value = area_mean(input, grid, jacobian, *settings)
    by_grid, by_jacobian = area_gradient(torch.ones_like(value), value, input, grid, jacobian, *settings)
    assert by_jacobian is not None
    return tuple(t.unflatten(0, (batch, channels)) for t in (value.squeeze(1), by_grid, by_jacobian))


def _geometry(
    input: Tensor, grid: Tensor, jacobian: Tensor | None, side: float, align_corners: bool
) -> tuple[Area, Tensor, Tensor]:
    """The areas of the pixels, their source points in grid units ``(2, B, h, w)``, and E in grid units."""
    size = input.shape[-1], input.shape[-2]
    rounding = 0.0
    if jacobian is None:
        jacobian = finite_difference_jacobian(_in_pixels(grid, size, align_corners))
        rounding = 2 * torch.finfo(grid.dtype).eps * max(size)
    else:
        jacobian = jacobian.permute(3, 4, 0, 1, 2)
    area = excess_area(jacobian, side, rounding)
    return area, usable_points(grid).movedim(-1, 0), _in_grid_units(area.axes, size, align_corners)


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
