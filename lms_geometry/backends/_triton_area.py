"""The equations of area.py for a block of pixels, in Triton: the area of each, its nodes, and the derivatives.

Names are those of area.py. A vector is a pair of tensors ``[pixels]``, and a matrix has the entries xx, xy, yx and yy,
row after row. The vectors P and M of the Jacobian, and their directions, are called ``rotation`` and ``reflection``.
"""

import triton
import triton.language as tl

from lms_geometry import area, limits
from lms_geometry.backends._triton_kernels import _derivative

_NARROW = tl.constexpr(limits.NARROW)
_TWO_NODES = tl.constexpr(limits.TWO_NODES)
_ALL_NODES = tl.constexpr(limits.ALL_NODES)
_GAUSS = tl.constexpr(area._GAUSS)
_EQUAL = tl.constexpr(limits.EQUAL)


@triton.jit
def excess_area(jacobian, side, least):
    """The area that an output pixel covers where the warp shrinks; ``least`` is the largest stretch without extent.

    Returns:
        The directions of P and M; the stretches, the extents, and the derivatives of the extents by the stretches.
    """
    xx, xy, yx, yy = jacobian
    xx, xy, yx, yy = _derivative(xx) * side, _derivative(xy) * side, _derivative(yx) * side, _derivative(yy) * side
    p, rotation = _polar(xx + yy, yx - xy)
    m, reflection = _polar(xx - yy, xy + yx)
    stretch = (p + m) / 2, (p - m) / 2
    first, first_rate = _extent(stretch[0], least)
    second, second_rate = _extent(stretch[1], least)
    return rotation, reflection, stretch, (first, second), (first_rate, second_rate)


@triton.jit
def axes(jacobian, stretch, extent, side):
    """The matrix E, in terms of J: what is 0 in J is 0 in E too, even to the last digit, where S has rank 1."""
    xx, xy, yx, yy = jacobian
    xx, xy, yx, yy = _derivative(xx) * side, _derivative(xy) * side, _derivative(yx) * side, _derivative(yy) * side
    p, m = stretch[0] + stretch[1], stretch[0] - stretch[1]
    per_p = (extent[0] + extent[1]) / tl.where(p > 0, p, 1.0)
    per_m = (extent[0] - extent[1]) / tl.where(m > 0, m, 1.0)
    even, odd = (per_p + per_m) / 2, (per_p - per_m) / 2
    return even * xx + odd * yy, even * xy - odd * yx, even * yx - odd * xy, even * yy + odd * xx


@triton.jit
def matrix(rotation, reflection, values):
    """The matrix with the Jacobian's singular vectors and other singular values."""
    p, m = (values[0] + values[1]) / 2, (values[0] - values[1]) / 2
    px, py, mx, my = p * rotation[0], p * rotation[1], m * reflection[0], m * reflection[1]
    return px + mx, my - py, py + my, px - mx


@triton.jit
def nodes_along(x, y, COUNT: tl.constexpr):
    """The nodes along an axis of the area: position of the outer ones, weight of an inner one, how many to read.

    Where no pixel of the block gives the inner nodes any weight, only the two outer ones have to be read.
    """
    share = (tl.sqrt(x * x + y * y) - _TWO_NODES) / (_ALL_NODES - _TWO_NODES)
    share = tl.minimum(tl.maximum(share, 0.0), 1.0)
    outer = share * ((COUNT - 1) / (2 * COUNT) - _GAUSS) + _GAUSS
    return outer, share * (1 / COUNT), tl.where(tl.max(share, 0) > 0, COUNT, 2)


@triton.jit
def node(i, nodes, COUNT: tl.constexpr):
    """Position and weight of a node along an axis. The first and the last of those to read are the outer ones."""
    outer, inner, count = nodes
    is_outer = (i == 0) | (i == count - 1)
    position = tl.where(is_outer, tl.where(i == 0, -outer, outer), (i + 0.5) * (1 / COUNT) - 0.5)
    return position, tl.where(is_outer, 0.5 - inner * ((COUNT - 2) / 2), inner)


@triton.jit
def moment_scale(nodes, COUNT: tl.constexpr):
    """The factor that makes the first moment of an edge exact for intensities that vary linearly along it."""
    outer, inner, _ = nodes
    inner_squares: tl.constexpr = (COUNT * COUNT - 1) / 12 - (COUNT - 1) * (COUNT - 1) / (2 * COUNT)
    return 1 / (12 * ((1 - inner * (COUNT - 2)) * outer * outer + inner * (inner_squares / COUNT)))


@triton.jit
def blend(extent):
    """Weight of the difference between two edges, in 1 / source pixels, and of the bilinear derivative."""
    narrowness = extent * extent / _NARROW
    narrow = narrowness < 1
    difference = tl.where(narrow, extent * (2 - narrowness) / _NARROW, 1 / tl.where(narrow, 1.0, extent))
    rest = tl.maximum(1 - narrowness, 0.0)
    return difference, rest * rest


@triton.jit
def slope(rotation, reflection, by_difference, by_texels, difference, texels):
    """Derivative of the value by the source point, per source pixel."""
    px, py = rotation
    mx, my = reflection
    twice_x, twice_y = px * mx - py * my, py * mx + px * my  # The direction with twice the angle of U.
    mean, half = (by_texels[0] + by_texels[1]) / 2, (by_texels[0] - by_texels[1]) / 2
    xx, xy, yx, yy = matrix(rotation, reflection, by_difference)
    x = xx * difference[0] + xy * difference[1] + mean * texels[0]
    y = yx * difference[0] + yy * difference[1] + mean * texels[1]
    x += half * (twice_x * texels[0] + twice_y * texels[1])
    y += half * (twice_y * texels[0] - twice_x * texels[1])
    return x, y


@triton.jit
def slope_by_jacobian(rotation, reflection, stretch, extent, rate, by_difference, edges, side):
    """Derivative of the value by the Jacobian. ``edges`` is the matrix ``E' dv/dE``."""
    xx, xy, yx, yy = matrix(rotation, reflection, by_difference)
    exx, exy, eyx, eyy = edges
    exx, eyx = xx * exx + xy * eyx, yx * exx + yy * eyx
    exy, eyy = xx * exy + xy * eyy, yx * exy + yy * eyy
    along_p, across_p = _components((exx + eyy) / 2, (eyx - exy) / 2, rotation)
    along_m, across_m = _components((exx - eyy) / 2, (exy + eyx) / 2, reflection)
    mean, half = (rate[0] + rate[1]) / 2, (rate[0] - rate[1]) / 2
    across_p *= _divided(extent[0] + extent[1], stretch[0] + stretch[1], stretch[0], mean)
    across_m *= _divided(extent[0] - extent[1], stretch[0] - stretch[1], stretch[0], mean)
    px, py = _combine(side * (along_p * mean + along_m * half), side * across_p, rotation)
    mx, my = _combine(side * (along_p * half + along_m * mean), side * across_m, reflection)
    return px + mx, my - py, py + my, px - mx


@triton.jit
def _polar(x, y):
    """Length and direction of a vector; that of the x axis for a vector of length 0."""
    length = tl.sqrt(x * x + y * y)
    divisor = tl.where(length > 0, length, 1.0)
    return length, (tl.where(length > 0, x / divisor, 1.0), y / divisor)


@triton.jit
def _extent(stretch, least):
    """The extent of an axis and its derivative by the stretch."""
    size = tl.abs(stretch)
    share = tl.minimum(tl.maximum(size - least, 0.0), 1.0)
    kept = share * (2 - share)
    return stretch * kept, tl.where(share > 0, kept + tl.where(share < 1, 2 * size * (1 - share), 0.0), 0.0)


@triton.jit
def _components(x, y, direction):
    """A vector's components along a direction and, a quarter turn on, across it."""
    return direction[0] * x + direction[1] * y, direction[0] * y - direction[1] * x


@triton.jit
def _combine(along, across, direction):
    """The vector with these components."""
    return along * direction[0] - across * direction[1], along * direction[1] + across * direction[0]


@triton.jit
def _divided(numerator, denominator, scale, limit):
    """A divided difference, or its limit where the denominator is small beside ``scale``."""
    apart = denominator > scale * _EQUAL
    return tl.where(apart, numerator / tl.where(apart, denominator, 1.0), limit)
