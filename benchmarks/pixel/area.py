"""The area sampler of :mod:`lms_geometry.area` with either estimate of the slope, for views through affine warps."""

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.area import excess_area, nodes_along, slope
from lms_geometry.backends import eager_area
from lms_geometry.backends.eager import _in_grid_units

_Untyped: TypeAlias = Any
_SIDE, _HOW = 1.0, ("bilinear", "zeros", False)


def area_sampled(image: Tensor, grid: Tensor, jacobian: Tensor, count: int = 3, plane: bool = False) -> Tensor:
    """The mean over the area of each output pixel, differentiable by the grid and the Jacobian.

    Args:
        image: ``(B, C, H, W)``; the padding is zeros.
        grid: normalised points with ``align_corners=False``, ``(B, h, w, 2)``.
        jacobian: source pixels per output pixel, ``(B, h, w, 2, 2)`` or of length 1 along the first three.
        count: number of nodes along an axis of the area.
        plane: whether the derivative is the slope of a plane fitted to the nodes, which does not depend on the
            Jacobian, and not that from the pixel's edges.

    Returns:
        ``(B, C, h, w)``.
    """
    return _Area.apply(image, grid, jacobian, count, plane)  # type: ignore[no-untyped-call]


class _Area(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Untyped, image: Tensor, grid: Tensor, jacobian: Tensor, count: int, plane: bool) -> Tensor:
        value = eager_area.area_mean(image, grid, jacobian, count, _SIDE, *_HOW)
        ctx.save_for_backward(value, image, grid, jacobian)
        ctx.count, ctx.plane = count, plane
        return value

    @staticmethod
    def backward(ctx: _Untyped, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (value, image, grid, jacobian) = gradients, ctx.saved_tensors
        if ctx.plane:
            return None, _plane_gradient(gradient, image, grid, jacobian, ctx.count), None, None, None
        found = eager_area.area_gradient(gradient, value, image, grid, jacobian, ctx.count, _SIDE, *_HOW)
        return None, *found, None, None


def _plane_gradient(gradient: Tensor, image: Tensor, grid: Tensor, jacobian: Tensor, count: int) -> Tensor:
    """The gradient for the grid from a plane fitted to the nodes, with the bilinear one where the area is narrow."""
    size = image.shape[-1], image.shape[-2]
    area = excess_area(jacobian.permute(3, 4, 0, 1, 2), _SIDE, 0.0)
    reach = _in_grid_units(area.axes, size, False)
    points = grid.movedim(-1, 0)
    across_x, across_y = nodes_along(area.axes[:, 0], count), nodes_along(area.axes[:, 1], count)
    spread_x, spread_y = (sum(w * p.square() for p, w in nodes) for nodes in (across_x, across_y))
    rise, texels = torch.zeros_like(points), torch.zeros_like(points)
    for y, weight_y in across_y:
        for x, weight_x in across_x:
            at = (points + reach[:, 0] * x + reach[:, 1] * y).permute(1, 2, 3, 0)
            weight = weight_x * weight_y
            read = weight * (F.grid_sample(image, at, *_HOW) * gradient).sum(1)
            rise += torch.stack((x * read / spread_x, y * read / spread_y))
            by_point = torch.ops.aten.grid_sampler_2d_backward(gradient, image, at, 0, 0, False, (False, True))[1]
            texels += weight * by_point.movedim(-1, 0)
    units = points.new_tensor(size).view(2, 1, 1, 1) / 2
    return (slope(area, rise, texels / units) * units).permute(1, 2, 3, 0)
