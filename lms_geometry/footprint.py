"""How far one output pixel reaches in the source image: equations (3), (8) and (9).

The output-space samples of (3) follow the transform to first order, ``J n`` with ``J`` the derivative of the source
point by the output pixel; collapse prevention (8, 9) adds ``m`` in the source. For standard normal ``n`` and ``m`` the
sum ``sigma J n + jitter m`` is distributed as ``L z`` with ``L L' = sigma^2 J J' + jitter^2 I``: one draw ``z`` and one
lower triangular factor ``L``, here called the footprint, place every sample.

The axes of (x, y) come first: points are ``(2, B, h, w)``, a Jacobian and a footprint are ``(2, 2, B, h, w)`` and may
have length 1 along ``B``, ``h`` and ``w``.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lms_geometry.limits import FLAT, LARGEST_DERIVATIVE, NEARLY

_PIXELS = 1.0, 1.0


class Placement(NamedTuple):
    """What decides where the samples fall around the points of a grid ``(B, h, w, 2)``.

    ``noise`` holds draws of unit variance, ``(K - 1, h, w, 2)`` or ``(B, K - 1, h, w, 2)``, and ``whiten`` says whether
    they still have to be whitened. ``jacobian`` is in source pixels per output pixel, ``(B, h, w, 2, 2)``, where B, h
    and w may be 1; ``None`` stands for finite differences of the grid.
    """

    noise: Tensor
    jacobian: Tensor | None = None
    whiten: bool = False


def finite_difference_jacobian(points: Tensor, units: Sequence[float] = _PIXELS) -> Tensor:
    """Derivative of the source points with respect to the output pixel, from a bare grid of points.

    Of the forward and the backward difference it takes the smaller: callers fold several patches into one tall grid,
    and at a seam one of the two is nonsense. The forward one is taken where both are equal but for rounding, as where a
    grid is mirrored. An axis of length 1 has no neighbour and gives 0.

    Args:
        points: the points, ``(2, B, h, w)``.
        units: source pixels per unit of the points, along x and y. The points come in units of the grid, since points
            in pixels would be rounded before they are subtracted.
    """
    return finite_difference_tangent(points, points, units)


def finite_difference_tangent(points: Tensor, tangent: Tensor, units: Sequence[float] = _PIXELS) -> Tensor:
    """The same differences of other numbers, for example of what the points change by, ``(2, B, h, w)``."""
    return torch.stack([_smaller_difference(points, tangent, units, dim) for dim in (-1, -2)], 1)


def footprint(jacobian: Tensor, sigma: float, jitter: float) -> Tensor:
    """The lower Cholesky factor ``L`` of ``sigma^2 J J' + jitter^2 I``.

    Its determinant is summed from positive terms, so that a Jacobian of rank one loses no digits. One that is of rank
    one but for rounding counts as such.
    """
    jacobian = jacobian.nan_to_num(0.0, 0.0, 0.0).clamp(-LARGEST_DERIVATIVE, LARGEST_DERIVATIVE) * sigma
    (xx, xy), (yx, yy) = jacobian
    row_x, row_y = xx.square() + xy.square(), yx.square() + yy.square()
    forth, back = xx * yy, xy * yx
    area = torch.where((forth - back).abs() > FLAT * (forth.abs() + back.abs()), forth - back, 0.0)
    determinant = area.square() + jitter**2 * (row_x + row_y + jitter**2)
    l11 = (row_x + jitter**2).sqrt()
    scale = torch.where(l11 > 0, l11, 1.0).reciprocal()
    l21 = (xx * yx + xy * yy) * scale
    l22 = torch.where(l11 > 0, determinant.sqrt() * scale, (row_y + jitter**2).sqrt())
    return torch.stack((torch.stack((l11, torch.zeros_like(l11))), torch.stack((l21, l22))))


def place(points: Tensor, footprint: Tensor, draw: Tensor) -> Tensor:
    """The sample points ``points + L z`` for one draw ``z``, ``(2, B | 1, h, w)``."""
    x, y = draw
    return torch.addcmul(torch.addcmul(points, footprint[:, 0], x), footprint[:, 1], y)


def finite_difference_gradient(points: Tensor, gradient: Tensor, units: Sequence[float] = _PIXELS) -> Tensor:
    """The gradient for the points ``(2, B, h, w)`` from that for their Jacobian, ``(2, 2, B, h, w)``."""
    by_x, by_y = (_difference_gradient(points, gradient[:, i], units, dim) for i, dim in ((0, -1), (1, -2)))
    return _scaled(by_x + by_y, units)


def _smaller_difference(points: Tensor, tangent: Tensor, units: Sequence[float], dim: int) -> Tensor:
    """Of the forward and the backward difference the one that is smaller for the points, of ``tangent``."""
    last = points.shape[dim] - 1
    if last < 1:
        return torch.zeros_like(points)
    step = _scaled(tangent.diff(dim=dim), units)
    return torch.where(_is_forward(points, units, dim), _forward(step, dim, last), _backward(step, dim))


def _is_forward(points: Tensor, units: Sequence[float], dim: int) -> Tensor:
    """Whether the forward difference is the smaller, ``(1, B, h, w)``."""
    length = _scaled(points.diff(dim=dim), units).square().sum(0, keepdim=True).nan_to_num(torch.inf)
    return _forward(length, dim, length.shape[dim]) * NEARLY <= _backward(length, dim)


def _scaled(steps: Tensor, units: Sequence[float]) -> Tensor:
    return torch.stack([step * unit for step, unit in zip(steps, units, strict=True)])


def _forward(step: Tensor, dim: int, count: int) -> Tensor:
    return torch.cat((step, step.narrow(dim, count - 1, 1)), dim)


def _backward(step: Tensor, dim: int) -> Tensor:
    return torch.cat((step.narrow(dim, 0, 1), step), dim)


def _difference_gradient(points: Tensor, gradient: Tensor, units: Sequence[float], dim: int) -> Tensor:
    last = points.shape[dim] - 1
    if last < 1:
        return torch.zeros_like(points)
    forward = _is_forward(points, units, dim)
    of_forward, of_backward = torch.where(forward, gradient, 0.0), torch.where(forward, 0.0, gradient)
    # The forward step of a pixel has its number, the backward step that of the pixel before.
    by_step = of_forward.narrow(dim, 0, last) + of_backward.narrow(dim, 1, last)
    by_step.narrow(dim, last - 1, 1).add_(of_forward.narrow(dim, last, 1))
    by_step.narrow(dim, 0, 1).add_(of_backward.narrow(dim, 0, 1))
    none = torch.zeros_like(by_step.narrow(dim, 0, 1))
    return torch.cat((none, by_step), dim) - torch.cat((by_step, none), dim)
