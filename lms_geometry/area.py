r"""The mean over the area of an output pixel, and its derivative from the pixel's edges.

An output pixel covers the parallelogram :math:`c + E p` of the source, for :math:`p` in the unit square. Here :math:`c`
is the pixel's source point and the columns of :math:`E` are the pixel's two axes in source pixels. With
:math:`\tilde I(p) = I(c + E p)` the value of the pixel is the mean

.. math::  v = \int \tilde I(p) \, dp

By the divergence theorem the mean of a derivative over the pixel is a difference of means over its edges, so that the
derivative of :math:`v` needs no differences between neighbouring texels. With :math:`R, L, B, T` the means over the
right, left, bottom and top edge, and :math:`m` the first moment along an edge,

.. math::
    E^\top \frac{dv}{dc} = \begin{pmatrix} R - L \\ B - T \end{pmatrix}, \qquad
    E^\top \frac{dv}{dE} = \begin{pmatrix}
    (R + L) / 2 - v & m(R) - m(L) \\ m(B) - m(T) & (B + T) / 2 - v
    \end{pmatrix}

**The area is the pixel's own only where the warp shrinks.** Let the Jacobian be :math:`J = U S V^\top`. A bilinear read
covers about one source pixel already. So an axis along which an output pixel covers at most one source pixel has no
extent, one along which it covers two or more has its whole extent, and between them the extent grows smoothly:
:math:`E = U \phi(S) V^\top`. Where nothing shrinks, :math:`E = 0`: the value is one bilinear read, and the derivative
is that of this read.

A 2 x 2 matrix is handled as two vectors, :math:`P = (a + d, c - b)` and :math:`M = (a - d, b + c)`: a rotation times a
scale, and a reflection times a scale. They have the lengths :math:`S_1 + S_2` and :math:`S_1 - S_2`, with
:math:`S_2 < 0` for a warp that mirrors. A function of the singular values, such as :math:`U \phi(S) V^\top`, changes
their lengths and keeps their directions.

The axes of (x, y) come first: a Jacobian is ``(2, 2, B, h, w)``, and may have length 1 along ``B``, ``h`` and ``w``.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from lms_geometry.limits import ALL_NODES, EQUAL, LARGEST_DERIVATIVE, NARROW, TOLERANCE, TWO_NODES

# Position of the nodes of Gauss's rule with two nodes, on an axis of length 1 about 0.
_GAUSS = 12**-0.5


class Area(NamedTuple):
    """The source area of every output pixel.

    All tensors are ``(B, h, w)``, or of length 1 along any of these, after the axes named here.
    """

    axes: Tensor
    """The columns of E, in source pixels: ``(2, 2, ...)``."""
    rotation: Tensor
    """Direction of the vector P of the Jacobian: ``(2, ...)``."""
    reflection: Tensor
    """Direction of the vector M of the Jacobian: ``(2, ...)``."""
    stretch: Tensor
    """Singular values of the Jacobian, the second with the sign of its determinant: ``(2, ...)``."""
    extent: Tensor
    """Singular values of E, with the same signs: ``(2, ...)``."""
    rate: Tensor
    """Derivatives of the extents by the stretches: ``(2, ...)``."""


def excess_area(jacobian: Tensor, side: float, rounding: float) -> Area:
    r"""The area that an output pixel covers where the warp shrinks: :math:`E = U \phi(S) V^\top`.

    Args:
        jacobian: source pixels per output pixel, ``(2, 2, ...)``.
        side: side of the averaged square, in output pixels: 1 for the pixel itself.
        rounding: error of the Jacobian, in source pixels per output pixel.
    """
    rotation, reflection, stretch = _decompose(jacobian, side)
    share = (stretch.abs() - (1 + TOLERANCE + rounding)).clamp(0, 1)
    kept = share * (2 - share)
    rate = torch.where(share > 0, kept + torch.where(share < 1, 2 * stretch.abs() * (1 - share), 0.0), 0.0)
    return _area(rotation, reflection, stretch, stretch * kept, rate)


def difference_rounding(dtype: torch.dtype, longest: int) -> float:
    """Error of a grid's finite differences, in source pixels, for an image whose longer side is ``longest``."""
    return 2 * torch.finfo(dtype).eps * longest


def nodes_along(axis: Tensor, count: int) -> list[tuple[Tensor, Tensor]]:
    r"""Positions and weights of the nodes along one axis of the unit square, ``(..., )`` each.

    Args:
        axis: the axis in source pixels, a column of E: ``(2, ...)``.
        count: number of nodes.

    Returns:
        The midpoint rule with so many nodes for a long axis. As the axis gets shorter the inner nodes lose their weight
        to the two outer ones, which move to where Gauss's rule with two nodes has them. There the inner ones need not
        be read. The first and the last entry are the outer nodes.
    """
    length = axis.square().sum(0).sqrt()
    share = ((length - TWO_NODES) / (ALL_NODES - TWO_NODES)).clamp(0, 1)
    outer = _GAUSS + share * ((count - 1) / (2 * count) - _GAUSS)
    inner = [(torch.full_like(length, (i + 0.5) / count - 0.5), share / count) for i in range(1, count - 1)]
    weight = (1 - share * ((count - 2) / count)) / 2
    return [(-outer, weight), *inner, (outer, weight)]


def edge_moment(nodes: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Weights of the nodes of an edge in its first moment, which are exact for intensities that vary linearly."""
    scale = 1 / (12 * sum(weight * position.square() for position, weight in nodes))
    return [scale * weight * position for position, weight in nodes]


def blend(area: Area) -> tuple[Tensor, Tensor]:
    """How the derivative along each singular axis is put together, ``(2, ...)`` twice.

    Returns:
        The weight of the difference between two edges, in 1 / source pixels and with the sign of the extent, and that
        of the bilinear derivative. The first is the reciprocal of the extent unless the axis is narrow.
    """
    narrowness = area.extent.square() / NARROW
    narrow = narrowness < 1
    difference = torch.where(narrow, area.extent * (2 - narrowness) / NARROW, 1 / torch.where(narrow, 1.0, area.extent))
    return difference, (1 - narrowness).clamp_min(0).square()


def slope(area: Area, difference: Tensor, texels: Tensor) -> Tensor:
    r"""Derivative of the value by the source point, per source pixel: ``(2, ...)``.

    Args:
        area: the areas of the pixels.
        difference: :math:`(R - L, B - T)`, ``(2, ...)``.
        texels: the mean derivative of the bilinear reads, per source pixel, ``(2, ...)``.
    """
    by_difference, by_texels = blend(area)
    twice = _product(area.rotation, area.reflection)  # Twice the angle of U.
    half_sum, half_difference = by_texels.sum(0) / 2, (by_texels[0] - by_texels[1]) / 2
    symmetric = half_sum * texels + half_difference * torch.stack(
        (twice[0] * texels[0] + twice[1] * texels[1], twice[1] * texels[0] - twice[0] * texels[1])
    )
    return _apply(_matrix(area, by_difference), difference) + symmetric


def slope_by_jacobian(area: Area, edges: Tensor, side: float) -> Tensor:
    r"""Derivative of the value by the Jacobian, ``(2, 2, ...)``.

    Args:
        area: the areas of the pixels.
        edges: the matrix :math:`E^\top dv / dE` of this module's head, ``(2, 2, ...)``.
        side: as in :func:`excess_area`.
    """
    inverse = _matrix(area, blend(area)[0])
    # dv/dE, then by the vectors P and M of E, along and across their directions.
    by_e = torch.stack([_apply(inverse, edges[:, 0]), _apply(inverse, edges[:, 1])], 1)
    (a, b), (c, d) = by_e
    along_p, across_p = _components(torch.stack((a + d, c - b)) / 2, area.rotation)
    along_m, across_m = _components(torch.stack((a - d, b + c)) / 2, area.reflection)
    (s1, s2), (e1, e2), (rate1, rate2) = area.stretch, area.extent, area.rate
    mean, half = (rate1 + rate2) / 2, (rate1 - rate2) / 2
    by_p = _combine(along_p * mean + along_m * half, across_p * _divided(e1 + e2, s1 + s2, s1, mean), area.rotation)
    by_m = _combine(along_p * half + along_m * mean, across_m * _divided(e1 - e2, s1 - s2, s1, mean), area.reflection)
    return side * torch.stack(
        (torch.stack((by_p[0] + by_m[0], by_m[1] - by_p[1])), torch.stack((by_p[1] + by_m[1], by_p[0] - by_m[0])))
    )


def _decompose(jacobian: Tensor, side: float) -> tuple[Tensor, Tensor, Tensor]:
    """Directions of P and M, and the singular values, the second with the sign of the determinant."""
    jacobian = jacobian.nan_to_num(0.0, 0.0, 0.0).clamp(-LARGEST_DERIVATIVE, LARGEST_DERIVATIVE) * side
    (a, b), (c, d) = jacobian
    (p, rotation), (m, reflection) = _polar(torch.stack((a + d, c - b))), _polar(torch.stack((a - d, b + c)))
    return rotation, reflection, torch.stack((p + m, p - m)) / 2


def _area(rotation: Tensor, reflection: Tensor, stretch: Tensor, extent: Tensor, rate: Tensor) -> Area:
    area = Area(stretch, rotation, reflection, stretch, extent, rate)
    return area._replace(axes=_matrix(area, extent))


def _matrix(area: Area, values: Tensor) -> Tensor:
    """The matrix with the Jacobian's singular vectors and other singular values, ``(2, 2, ...)``."""
    p, m = (values[0] + values[1]) / 2 * area.rotation, (values[0] - values[1]) / 2 * area.reflection
    return torch.stack((torch.stack((p[0] + m[0], m[1] - p[1])), torch.stack((p[1] + m[1], p[0] - m[0]))))


def _polar(vector: Tensor) -> tuple[Tensor, Tensor]:
    """Length and direction of a vector ``(2, ...)``; that of the x axis for a vector of length 0."""
    length = vector.square().sum(0).sqrt()
    axis = torch.stack((torch.ones_like(length), torch.zeros_like(length)))
    return length, torch.where(length > 0, vector / torch.where(length > 0, length, 1.0), axis)


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return matrix[:, 0] * vector[0] + matrix[:, 1] * vector[1]


def _product(first: Tensor, second: Tensor) -> Tensor:
    """The direction whose angle is the sum of two directions' angles."""
    return torch.stack((first[0] * second[0] - first[1] * second[1], first[1] * second[0] + first[0] * second[1]))


def _components(vector: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """A vector's components along a direction and, a quarter turn on, across it."""
    x, y = direction
    return x * vector[0] + y * vector[1], x * vector[1] - y * vector[0]


def _combine(along: Tensor, across: Tensor, direction: Tensor) -> Tensor:
    x, y = direction
    return torch.stack((along * x - across * y, along * y + across * x))


def _divided(numerator: Tensor, denominator: Tensor, scale: Tensor, limit: Tensor) -> Tensor:
    """A divided difference, or its limit where the denominator is small beside ``scale``."""
    apart = denominator > EQUAL * scale
    return torch.where(apart, numerator / torch.where(apart, denominator, 1.0), limit)
