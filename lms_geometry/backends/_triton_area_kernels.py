"""The kernels of the GPU backend for the mean over an output pixel's area, in Triton.

A program takes a block of output pixels of one image and works out their areas. Then it reads a few channels at a time,
node after node, and keeps nothing per node. Where a whole block has no extent, its pixels are read once or not at all.

Tensors are ``[pixels]``, or ``[channels, pixels]`` where they hold intensities. Pixels beyond the last repeat the last;
they are neither counted nor stored.
"""

import triton
import triton.language as tl

from lms_geometry.backends._triton_area import (
    axes,
    blend,
    excess_area,
    moment_scale,
    node,
    nodes_along,
    slope,
    slope_by_jacobian,
)
from lms_geometry.backends._triton_kernels import (
    _block,
    _clamped,
    _folded,
    _half,
    _pair,
    _shift,
    _smaller_difference,
    _taps,
    _usable,
)


@triton.jit(do_not_specialize=["channel_stride", "C", "H", "W", "h", "w", "group"])
def mean(
    input, grid, jacobian, value,
    input_stride, channel_stride, row_stride, column_stride, grid_stride, jacobian_stride, pixel_stride,
    C, H, W, h, w, group, side, least,
    COUNT: tl.constexpr, PADDING: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """The mean over the area of every pixel that has an extent. The value of any other pixel is left as it is."""
    pixels = h * w
    image, first, pixel = _block(pixels, PIXELS)
    grid += 2 * image * grid_stride
    jacobian = _jacobian(grid, jacobian, image, pixel, jacobian_stride, pixel_stride, H, W, h, w, ALIGN_CORNERS)
    _, _, stretch, extent, _ = excess_area(jacobian, side, least)
    spread = (extent[0] != 0) & (first + tl.arange(0, PIXELS) < pixels)
    if tl.max(spread.to(tl.int32), 0) == 0:
        return
    at_x, at_y = _point(grid, pixel, H, W, ALIGN_CORNERS)
    xx, xy, yx, yy = axes(jacobian, stretch, extent, side)
    columns, rows = nodes_along(xx, yx, COUNT), nodes_along(xy, yy, COUNT)

    row_stride, column_stride, shift = row_stride * VECTOR, column_stride * VECTOR, _shift(ALIGN_CORNERS)
    start = tl.program_id(1) * group * CHANNELS
    channel = start + tl.arange(0, CHANNELS)[:, None]
    input += image * input_stride * VECTOR
    value += image * C * pixels + pixel
    for _ in range(start, tl.minimum(start + group * CHANNELS, C), CHANNELS):
        planes, there = _planes(input, channel, channel_stride, VECTOR), _exists(channel, C, VECTOR) & spread
        total = tl.zeros([CHANNELS, PIXELS], tl.float32)
        for i in range(0, rows[2] * columns[2]):
            x, weight_x = node(i % columns[2], columns, COUNT)
            y, weight_y = node(i // columns[2], rows, COUNT)
            weight = weight_x * weight_y
            texel_x, left, right = _taps(at_x + xx * x + xy * y, W, shift, PADDING)
            texel_y, above, below = _taps(at_y + yx * x + yy * y, H, shift, PADDING)
            above, below, read = weight * above, weight * below, there & (weight > 0)
            upper = planes + (texel_y * row_stride + texel_x * column_stride)
            lower = upper + row_stride
            total += above * left * tl.load(upper, read, 0.0).to(tl.float32)
            total += above * right * tl.load(upper + column_stride, read, 0.0).to(tl.float32)
            total += below * left * tl.load(lower, read, 0.0).to(tl.float32)
            total += below * right * tl.load(lower + column_stride, read, 0.0).to(tl.float32)
        tl.store(value + channel.to(tl.int64) * pixels, total, there)
        channel += CHANNELS


@triton.jit(do_not_specialize=["C", "H", "W", "h", "w", "group"])
def image_gradient(
    gradient, grid, jacobian, out, grid_stride, jacobian_stride, pixel_stride,
    C, H, W, h, w, group, side, least,
    COUNT: tl.constexpr, PADDING: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Every pixel adds its gradient to the texels around its nodes, or around its point if it has no extent."""
    pixels = h * w
    image, first, pixel = _block(pixels, PIXELS)
    grid += 2 * image * grid_stride
    jacobian = _jacobian(grid, jacobian, image, pixel, jacobian_stride, pixel_stride, H, W, h, w, ALIGN_CORNERS)
    _, _, stretch, extent, _ = excess_area(jacobian, side, least)
    spread = extent[0] != 0
    at_x, at_y = _point(grid, pixel, H, W, ALIGN_CORNERS)
    xx, xy, yx, yy = axes(jacobian, stretch, extent, side)
    columns, rows = nodes_along(xx, yx, COUNT), nodes_along(xy, yy, COUNT)
    nodes = tl.where(tl.max(spread.to(tl.int32), 0) == 0, 1, rows[2] * columns[2])

    here, shift = first + tl.arange(0, PIXELS) < pixels, _shift(ALIGN_CORNERS)
    start = tl.program_id(1) * group * CHANNELS
    channel = start + tl.arange(0, CHANNELS)[:, None]
    gradient += image * C * pixels + pixel
    out += image * C * H * W
    for _ in range(start, tl.minimum(start + group * CHANNELS, C), CHANNELS):
        there = (channel < C) & here
        share = tl.load(gradient + channel.to(tl.int64) * pixels, there, 0.0).to(tl.float32)
        for i in range(0, nodes):
            x, weight_x = node(i % columns[2], columns, COUNT)
            y, weight_y = node(i // columns[2], rows, COUNT)
            weight = tl.where(spread, weight_x * weight_y, tl.where(i == 0, 1.0, 0.0))
            texel_x, left, right = _taps(at_x + xx * x + xy * y, W, shift, PADDING)
            texel_y, above, below = _taps(at_y + yx * x + yy * y, H, shift, PADDING)
            above, below = weight * above, weight * below
            upper = out + channel.to(tl.int64) * (H * W) + (texel_y * W + texel_x)
            tl.atomic_add(upper, above * left * share, there & (above * left > 0), sem="relaxed")
            tl.atomic_add(upper + 1, above * right * share, there & (above * right > 0), sem="relaxed")
            tl.atomic_add(upper + W, below * left * share, there & (below * left > 0), sem="relaxed")
            tl.atomic_add(upper + W + 1, below * right * share, there & (below * right > 0), sem="relaxed")
        channel += CHANNELS


@triton.jit(do_not_specialize=["channel_stride", "C", "H", "W", "h", "w"])
def gradient(
    gradient, value, input, grid, jacobian, by_grid, by_jacobian,
    input_stride, channel_stride, row_stride, column_stride, grid_stride, jacobian_stride, pixel_stride,
    C, H, W, h, w, side, least,
    COUNT: tl.constexpr, TOTAL: tl.constexpr, PADDING: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
    PIXELS: tl.constexpr, CHANNELS: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """The gradient for the points, with the Jacobian held fixed, and that for the Jacobian.

    What is read on the edges is multiplied by the gradient and summed over the channels before anything else. The
    gradient for the Jacobian is stored for every pixel, or as its ``TOTAL`` over the block.
    """
    pixels = h * w
    image, first, pixel = _block(pixels, PIXELS)
    grid += 2 * image * grid_stride
    jacobian = _jacobian(grid, jacobian, image, pixel, jacobian_stride, pixel_stride, H, W, h, w, ALIGN_CORNERS)
    rotation, reflection, stretch, extent, rate = excess_area(jacobian, side, least)
    spread = extent[0] != 0
    point = _point(grid, pixel, H, W, ALIGN_CORNERS)
    xx, xy, yx, yy = axes(jacobian, stretch, extent, side)
    columns, rows = nodes_along(xx, yx, COUNT), nodes_along(xy, yy, COUNT)
    # A pixel without an extent is read once, at its point, as if at the first node of the first edge.
    none = tl.max(spread.to(tl.int32), 0) == 0
    once, never = tl.where(spread, 0.0, 4.0), tl.zeros([PIXELS], tl.float32)

    change_x, grown_x, moment_x, change_y, grown_y, moment_y = never, never, never, never, never, never
    texels_x, texels_y = never, never
    here = first + tl.arange(0, PIXELS) < pixels
    row_stride, column_stride = row_stride * VECTOR, column_stride * VECTOR
    channel = tl.arange(0, CHANNELS)[:, None]
    input += image * input_stride * VECTOR
    for _ in range(0, C, CHANNELS):
        planes, there = _planes(input, channel, channel_stride, VECTOR), _exists(channel, C, VECTOR) & here
        at = (image * C + channel) * pixels + pixel
        factor = tl.load(gradient + at, there, 0.0).to(tl.float32)
        inside = tl.sum(factor * tl.load(value + at, there, 0.0).to(tl.float32), 0)
        change, mean, moment, slope_x, slope_y = _edges(
            planes, row_stride, column_stride, factor, there, spread, once, tl.where(none, 1, 2 * rows[2]),
            point, (xx, yx), (xy, yy), rows, H, W, COUNT, PADDING, ALIGN_CORNERS,
        )  # fmt: skip
        change_x, grown_x, moment_x = change_x + change, grown_x + (mean - inside), moment_x + moment
        texels_x, texels_y = texels_x + slope_x, texels_y + slope_y
        change, mean, moment, slope_x, slope_y = _edges(
            planes, row_stride, column_stride, factor, there, spread, never, tl.where(none, 0, 2 * columns[2]),
            point, (xy, yy), (xx, yx), columns, H, W, COUNT, PADDING, ALIGN_CORNERS,
        )  # fmt: skip
        change_y, grown_y, moment_y = change_y + change, grown_y + (mean - inside), moment_y + moment
        texels_x, texels_y = texels_x + slope_x, texels_y + slope_y
        channel += CHANNELS

    difference_1, texels_1 = blend(extent[0])
    difference_2, texels_2 = blend(extent[1])
    difference = difference_1, difference_2
    by_x, by_y = slope(
        rotation, reflection, difference, (texels_1, texels_2), (change_x, change_y), (texels_x, texels_y)
    )
    edges = grown_x, moment_x, moment_y, grown_y
    by_xx, by_xy, by_yx, by_yy = slope_by_jacobian(rotation, reflection, stretch, extent, rate, difference, edges, side)
    grid_x, grid_y = _pair(grid, pixel)
    by_x = tl.where(_usable(grid_x), by_x * _half(W, ALIGN_CORNERS), 0.0)
    by_y = tl.where(_usable(grid_y), by_y * _half(H, ALIGN_CORNERS), 0.0)
    at, which = image * pixels + pixel, tl.arange(0, 2)
    tl.store(by_grid + 2 * at[:, None] + which, tl.join(by_x, by_y), here[:, None])
    by_entry = tl.join(tl.join(by_xx, by_yx), tl.join(by_xy, by_yy))
    if TOTAL:
        by_jacobian += 4 * tl.program_id(0) + 2 * which[:, None] + which
        tl.store(by_jacobian, tl.sum(by_entry, 0))  # Pixels beyond the last were given no gradient.
    else:
        by_jacobian += 4 * at[:, None, None] + 2 * which[:, None] + which
        tl.store(by_jacobian, by_entry, here[:, None, None])


@triton.jit(do_not_specialize=["H", "W", "h", "w"])
def difference_gradient(
    grid, by_jacobian, by_grid, grid_stride, H, W, h, w, ALIGN_CORNERS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Add to the gradient for the points what reaches them through the differences that are their Jacobian."""
    pixels = h * w
    image, first, pixel = _block(pixels, PIXELS)
    grid += 2 * image * grid_stride
    by_jacobian += 4 * image * pixels
    half_x, half_y = _half(W, ALIGN_CORNERS), _half(H, ALIGN_CORNERS)
    row, column = pixel // w, pixel % w
    along_x, along_y = _by_difference(grid, by_jacobian, pixel, 1, column, w, half_x, half_y)
    down_x, down_y = _by_difference(grid, by_jacobian + 1, pixel, w, row, h, half_x, half_y)
    grid_x, grid_y = _pair(grid, pixel)
    by_x = tl.where(_usable(grid_x), (along_x + down_x) * half_x, 0.0)
    by_y = tl.where(_usable(grid_y), (along_y + down_y) * half_y, 0.0)
    by_grid += 2 * (image * pixels + pixel)[:, None] + tl.arange(0, 2)
    here = (first + tl.arange(0, PIXELS) < pixels)[:, None]
    tl.store(by_grid, tl.load(by_grid, here, 0.0) + tl.join(by_x, by_y), here)


@triton.jit
def _point(grid, pixel, H, W, ALIGN_CORNERS: tl.constexpr):
    """The source points, in source pixels."""
    x, y = _pair(grid, pixel)
    half_x, half_y, shift = _half(W, ALIGN_CORNERS), _half(H, ALIGN_CORNERS), _shift(ALIGN_CORNERS)
    return (_clamped(x) + 1) * half_x - shift, (_clamped(y) + 1) * half_y - shift


@triton.jit
def _jacobian(
    grid, jacobian, image, pixel, jacobian_stride, pixel_stride, H, W, h, w, ALIGN_CORNERS: tl.constexpr,
):  # fmt: skip
    """The entries xx, xy, yx, yy of the Jacobian, which is given or made of differences of the grid."""
    if jacobian is None:
        x, y = _pair(grid, pixel)
        half_x, half_y = _half(W, ALIGN_CORNERS), _half(H, ALIGN_CORNERS)
        row, column = pixel // w, pixel % w
        xx, yx, _ = _smaller_difference(grid, x, y, pixel, 1, column > 0, column < w - 1, half_x, half_y)
        xy, yy, _ = _smaller_difference(grid, x, y, pixel, w, row > 0, row < h - 1, half_x, half_y)
    else:
        at = 4 * (image * jacobian_stride + pixel * pixel_stride)[:, None, None]
        by_column, by_row = tl.split(tl.load(jacobian + at + 2 * tl.arange(0, 2)[:, None] + tl.arange(0, 2)))
        xx, yx = tl.split(by_column)
        xy, yy = tl.split(by_row)
    return xx, xy, yx, yy


@triton.jit
def _planes(input, channel, channel_stride, VECTOR: tl.constexpr):
    """Where channels begin. If a ``VECTOR`` of them lies side by side, the compiler sees from this that it does."""
    return input + (channel if VECTOR > 1 else channel.to(tl.int64) * channel_stride)


@triton.jit
def _exists(channel, C, VECTOR: tl.constexpr):
    """Whether an image has such a channel. Vectors have no channel too many, and a mask by channel would split them."""
    return channel >= 0 if VECTOR > 1 else channel < C


@triton.jit
def _edges(
    planes, row_stride, column_stride, factor, there, spread, otherwise, count,
    point, across, along, nodes, H, W, COUNT: tl.constexpr, PADDING: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
):  # fmt: skip
    """The sums over the channels of factor times read, on the two edges across an axis of the area.

    Args:
        planes, row_stride, column_stride: where the channels begin, and the strides to the texels below and beside.
        factor: the gradient, ``[channels, pixels]``, and ``there``, which of them exist.
        spread: which pixels have an extent, and ``otherwise``, the weight of the first node of those that have none.
        count: how many nodes to read, first those on the low edge.
        point, across, along: the source point, the axis from edge to edge, and the other axis.
        nodes: those along an edge.

    Returns:
        The difference of the means over the high and the low edge, the mean of both, the difference of the first
        moments, and a quarter of the mean derivative of the bilinear reads along x and along y.
    """
    zero, scale, shift = tl.zeros_like(spread.to(tl.float32)), moment_scale(nodes, COUNT), _shift(ALIGN_CORNERS)
    change, mean, moment, slope_x, slope_y = zero, zero, zero, zero, zero
    for i in range(0, count):
        position, weight = node(i % nodes[2], nodes, COUNT)
        weight = tl.where(spread, weight, tl.where(i == 0, otherwise, 0.0))
        half = tl.where(i < nodes[2], -0.5, 0.5)
        x = point[0] + half * across[0] + position * along[0]
        y = point[1] + half * across[1] + position * along[1]
        texel_x, left, right = _taps(x, W, shift, PADDING)
        texel_y, above, below = _taps(y, H, shift, PADDING)
        upper, read = planes + (texel_y * row_stride + texel_x * column_stride), there & (weight > 0)
        lower = upper + row_stride
        upper_left = weight * tl.sum(factor * tl.load(upper, read, 0.0).to(tl.float32), 0)
        upper_right = weight * tl.sum(factor * tl.load(upper + column_stride, read, 0.0).to(tl.float32), 0)
        lower_left = weight * tl.sum(factor * tl.load(lower, read, 0.0).to(tl.float32), 0)
        lower_right = weight * tl.sum(factor * tl.load(lower + column_stride, read, 0.0).to(tl.float32), 0)
        in_upper, in_lower = left * upper_left + right * upper_right, left * lower_left + right * lower_right
        sum = above * in_upper + below * in_lower
        change += 2 * half * sum
        mean += sum / 2
        moment += 2 * half * scale * position * sum
        by_left, by_right = _tap_slopes(x, W, shift, PADDING)
        by_above, by_below = _tap_slopes(y, H, shift, PADDING)
        slope_x += by_left * (above * upper_left + below * lower_left) / 4
        slope_x += by_right * (above * upper_right + below * lower_right) / 4
        slope_y += (by_above * in_upper + by_below * in_lower) / 4
    return change, mean, moment, slope_x, slope_y


@triton.jit
def _tap_slopes(x, size, shift, PADDING: tl.constexpr):
    """Derivatives of the weights of the two texels that are read along an axis, as ``F.grid_sample`` has them.

    At the centre of a texel the derivative is that of the interval which begins there.
    """
    x, sign = _folded(x, size, shift, PADDING)
    first, begin = tl.minimum(tl.maximum(x, 0.0), (size - 1) * 1.0 - 1).to(tl.int32), tl.floor(x)
    by_first = tl.where(begin == first, -sign, tl.where(begin == first - 1, sign, 0.0))
    return by_first, tl.where(begin == first, sign, tl.where(begin == first + 1, -sign, 0.0))


@triton.jit
def _by_difference(grid, by_step, pixel, step, number, count, half_x, half_y):
    """The gradient for points from that for their differences along one axis (footprint.py), in source pixels.

    The difference of a pixel is its step forward or backward. So a point is one end of its own pixel's step, and may be
    an end of the steps of the pixels before and after. ``number`` is the pixel's along the axis, one of ``count``.
    """
    x, y = tl.zeros_like(half_x + pixel), tl.zeros_like(half_x + pixel)
    for offset in tl.static_range(-1, 2):
        is_there = (number + offset >= 0) & (number + offset < count)
        other = tl.where(is_there, pixel + offset * step, pixel)
        has_before, has_after = is_there & (number + offset > 0), is_there & (number + offset < count - 1)
        other_x, other_y = _pair(grid, other)
        _, _, forward = _smaller_difference(grid, other_x, other_y, other, step, has_before, has_after, half_x, half_y)
        if offset == 0:
            sign = tl.where(has_after & forward, -1.0, tl.where(has_before, 1.0, 0.0))
        elif offset < 0:
            sign = tl.where(has_after & forward, 1.0, 0.0)
        else:
            sign = tl.where(has_after & forward, 0.0, tl.where(has_before, -1.0, 0.0))
        entries = by_step + 4 * other.to(tl.int64)
        x += sign * tl.load(entries)
        y += sign * tl.load(entries + 2)
    return x, y
