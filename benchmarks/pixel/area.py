"""The area sampler, through the functions of its reference backend, with the variants that only experiments want."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.area import excess_area, nodes_along, slope
from lms_geometry.backends import eager_area
from lms_geometry.backends.eager import _in_grid_units


def area_sampled(
    image: Tensor,
    grid: Tensor,
    jacobian: Tensor,
    count: int = 3,
    padding_mode: str = "zeros",
    slope: str = "edges",
    side: float = 1.0,
) -> Tensor:
    """The mean over the area of each output pixel, differentiable by the grid and the Jacobian.

    Args:
        image: ``(B, C, H, W)``.
        grid: normalised points with ``align_corners=False``, ``(B, h, w, 2)``.
        jacobian: source pixels per output pixel, ``(B, h, w, 2, 2)`` or of length 1 along the first three.
        count: number of nodes along an axis of the area.
        padding_mode: what a read outside the image sees.
        slope: ``"edges"`` for the derivative from the pixel's edges, or ``"plane"`` for the slope of a plane that is
            fitted to the nodes, which does not depend on the Jacobian.
        side: side of the square that the derivative is of, in output pixels. The value is always that of the pixel.

    Returns:
        ``(B, C, h, w)``.
    """
    sampled: Tensor = _Area.apply(image, grid, jacobian, count, padding_mode, slope, side)
    return sampled


class _Area(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, grid: Tensor, jacobian: Tensor, count: int, padding_mode: str, slope: str, side: float
    ) -> Tensor:
        ctx.save_for_backward(image, grid, jacobian)
        ctx.settings = count, padding_mode, slope, side
        return eager_area.area_mean(image, grid, jacobian, count, 1.0, "bilinear", padding_mode, False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        image, grid, jacobian = ctx.saved_tensors
        count, padding_mode, slope, side = ctx.settings
        how = count, side, "bilinear", padding_mode, False
        by_image = None
        if ctx.needs_input_grad[0]:
            by_image = eager_area.area_image_gradient(
                gradient, image, grid, jacobian, count, 1.0, "bilinear", padding_mode, False
            )
        if slope == "plane":
            by_grid = _plane_gradient(gradient, image, grid, jacobian, count, padding_mode)
            return by_image, by_grid, None, None, None, None, None
        value = eager_area.area_mean(image, grid, jacobian, *how)
        by_grid, by_jacobian = eager_area.area_gradient(gradient, value, image, grid, jacobian, *how)
        return by_image, by_grid, by_jacobian, None, None, None, None


def _plane_gradient(
    gradient: Tensor, image: Tensor, grid: Tensor, jacobian: Tensor, count: int, padding_mode: str
) -> Tensor:
    """The gradient for the grid from a plane fitted to the nodes, with the bilinear one where the area is narrow."""
    size = image.shape[-1], image.shape[-2]
    area = excess_area(jacobian.permute(3, 4, 0, 1, 2), 1.0, 0.0)
    reach = _in_grid_units(area.axes, size, False)
    points = grid.movedim(-1, 0)
    across_x, across_y = nodes_along(area.axes[:, 0], count), nodes_along(area.axes[:, 1], count)
    spread_x, spread_y = (sum(w * p.square() for p, w in nodes) for nodes in (across_x, across_y))
    difference, texels = torch.zeros_like(points), torch.zeros_like(points)
    for y, weight_y in across_y:
        for x, weight_x in across_x:
            at = (points + reach[:, 0] * x + reach[:, 1] * y).permute(1, 2, 3, 0)
            weight = weight_x * weight_y
            read = (F.grid_sample(image, at, "bilinear", padding_mode, False) * gradient).sum(1) * weight
            difference += torch.stack((x * read / spread_x, y * read / spread_y))
            how = 0, ("zeros", "border").index(padding_mode), False, (False, True)
            by_point = torch.ops.aten.grid_sampler_2d_backward(gradient, image, at, *how)[1]
            texels += weight * by_point.movedim(-1, 0)
    units = [n / 2 for n in size]
    texels = torch.stack([t / u for t, u in zip(texels, units, strict=True)])
    by_point = slope(area, difference, texels)
    return torch.stack([d * u for d, u in zip(by_point, units, strict=True)], -1)
