"""Reading the source at a grid of points: its value and its slope there, by linearized or by bilinear sampling."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.backends.common import usable_points
from lms_geometry.config import LinearizedSampling
from lms_geometry.sampling import grid_sample_value_and_slope


def value_and_slope(
    image: Tensor,
    grid: Tensor,
    jacobian: Tensor,
    noise: Tensor | None,
    sampler: LinearizedSampling | Literal["bilinear"],
    padding_mode: str,
) -> tuple[Tensor, Tensor]:
    """The value ``(B, C, h, w)`` and the slope ``(B, C, h, w, 2)`` per unit of the grid.

    Args:
        image: the image, ``(B, C, H, W)``.
        grid: the points in normalised coordinates (``align_corners=False``), ``(B, h, w, 2)``.
        jacobian: source pixels per output pixel at every point, ``(B, h, w, 2, 2)``.
        noise: the draws of linearized sampling, ``(K - 1, h, w, 2)``.
        sampler: settings of linearized sampling, or ``"bilinear"``.
        padding_mode: what lies outside the image, ``"zeros"`` or ``"border"``.
    """
    if isinstance(sampler, LinearizedSampling):
        return grid_sample_value_and_slope(
            image, grid, "bilinear", padding_mode, False, sampling=sampler, jacobian=jacobian, noise=noise
        )
    points = usable_points(grid)
    with torch.enable_grad():
        points.requires_grad_()
        value = F.grid_sample(image, points, padding_mode=padding_mode, align_corners=False)
        slopes = [torch.autograd.grad(channel.sum(), points, retain_graph=True)[0] for channel in value.unbind(1)]
    return value.detach(), torch.stack(slopes, 1)


def is_inside(mask: Tensor, grid: Tensor, least: float) -> Tensor:
    """1 where a mask ``(B, 1, H, W)`` reads more than ``least``, else 0, ``(B, 1, h, w)``."""
    inside = F.grid_sample(mask, usable_points(grid), align_corners=False)
    return (inside > least).to(inside)
