"""The kernels of the GPU backend, in Triton.

The value and the slopes of an output pixel are linear in what its K samples read. So a program works out for a block of
pixels where the samples fall and with what weight each enters, all samples at once, and then reads channel after
channel. Names are those of footprint.py, noise.py and least_squares.py.

Tensors are ``[channels, samples, pixels]``, of which Triton wants each length to be a power of two. The centre is
sample 0. Samples beyond K have no weight. Pixels beyond the last repeat the last, and are not stored.
"""

import torch
import triton
import triton.language as tl

from lms_geometry import limits

_FAR_OUTSIDE = tl.constexpr(limits.FAR_OUTSIDE)
_LARGEST_DERIVATIVE = tl.constexpr(limits.LARGEST_DERIVATIVE)
_FLAT = tl.constexpr(limits.FLAT)
_LARGEST_SHEAR = tl.constexpr(limits.LARGEST_SHEAR)
_NEARLY = tl.constexpr(limits.NEARLY)
_ON_EDGE = tl.constexpr(limits.ON_EDGE)
_LARGEST_FLOAT = tl.constexpr(torch.finfo(torch.float32).max)


@triton.jit(do_not_specialize=["C", "H", "W", "h", "w", "group"])
def sample(
    input, grid, jacobian, noise, value, slope,
    input_stride, channel_stride, row_stride, column_stride,
    grid_stride, jacobian_stride, pixel_stride, noise_stride,
    C, H, W, h, w, group,
    sigma, jitter, ridge,
    K: tl.constexpr, WHITEN: tl.constexpr, INTERCEPT: tl.constexpr, MASK: tl.constexpr,
    PADDING: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
    SAMPLES: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Value and slopes of a block of pixels of one image, for a group of channels."""
    pixels = h * w
    image, first, pixel = _block(pixels, PIXELS)

    # Where the samples fall: the footprint L around the centre (8, 9).
    grid += 2 * (image * grid_stride)
    grid_x, grid_y = _pair(grid, pixel)
    half_x, half_y, shift = _half(W, ALIGN_CORNERS), _half(H, ALIGN_CORNERS), _shift(ALIGN_CORNERS)
    if jacobian is None:
        row, column = pixel // w, pixel % w
        xx, yx, _ = _smaller_difference(grid, grid_x, grid_y, pixel, 1, column > 0, column < w - 1, half_x, half_y)
        xy, yy, _ = _smaller_difference(grid, grid_x, grid_y, pixel, w, row > 0, row < h - 1, half_x, half_y)
    else:
        at = 4 * (image * jacobian_stride + pixel * pixel_stride)[:, None, None]
        by_column, by_row = tl.split(tl.load(jacobian + at + 2 * tl.arange(0, 2)[:, None] + tl.arange(0, 2)))
        xx, yx = tl.split(by_column)
        xy, yy = tl.split(by_row)
    l11, l21, l22 = _footprint(xx, xy, yx, yy, sigma, jitter)

    sample = tl.arange(0, SAMPLES)[:, None]
    centre, drawn = sample == 0, (sample > 0) & (sample < K)
    draw = noise + 2 * (image * noise_stride + (sample - 1).to(tl.int64) * pixels + pixel)[:, :, None]
    noise_x, noise_y = tl.split(tl.load(draw + tl.arange(0, 2), drawn[:, :, None], 0.0))
    if WHITEN:
        noise_x, noise_y = _whiten(noise_x, noise_y, drawn, K)
    x = (_clamped(grid_x) + 1) * half_x - shift + l11 * noise_x
    y = (_clamped(grid_y) + 1) * half_y - shift + l21 * noise_x + l22 * noise_y
    if MASK:
        edge_x, edge_y = half_x * _ON_EDGE, half_y * _ON_EDGE
        drawn = drawn & (x >= -edge_x) & (x <= W - 1 + edge_x) & (y >= -edge_y) & (y <= H - 1 + edge_y)

    # The moments of the draws in the fit. Without the row of ones their mean m is taken as 0.
    weight = tl.where(drawn, 1.0, tl.zeros_like(x))
    count = tl.maximum(tl.sum(weight, 0), 1.0)
    kept = count / (count + ridge)  # 1 - s
    mean_x, mean_y = tl.zeros_like(count), tl.zeros_like(count)
    if INTERCEPT:
        mean_x, mean_y = tl.sum(weight * noise_x, 0) / count, tl.sum(weight * noise_y, 0) / count
    lost = ridge / (count + ridge)  # s
    # The draws, centred, and sheared along y until the two axes are uncorrelated.
    offset_x, offset_y = weight * (noise_x - mean_x), weight * (noise_y - mean_y)
    second_xx = tl.sum(offset_x * offset_x, 0) + lost * count * mean_x * mean_x
    shear = tl.sum(offset_x * offset_y, 0) + lost * count * mean_x * mean_y
    shear = tl.minimum(tl.maximum(shear / tl.where(second_xx > 0, second_xx, 1.0), -_LARGEST_SHEAR), _LARGEST_SHEAR)
    several = tl.where(count > 1, 1.0, 0.0)  # one draw lies on a line, and rounding must not say other
    offset_y = several * (offset_y - shear * offset_x)
    rest_y = several * (mean_y - shear * mean_x)
    second_yy = tl.sum(offset_y * offset_y, 0) + lost * count * rest_y * rest_y

    # The weight of each sample in the slopes A_uv = (L Q L' + eps I)^-1 L q and in A_1.
    l21 += shear * l22
    area, along_x, along_y = l11 * l22, l11 * l11 + l21 * l21, l22 * l22
    trace = along_x * second_xx + along_y * second_yy
    determinant = area * area * (second_xx * second_yy) + ridge * (trace + ridge)
    scaled, damping = area / determinant, ridge / determinant
    xx, xy = scaled * (l22 * second_yy) + damping * l11, -scaled * (l21 * second_xx)
    yx, yy = damping * l21, scaled * (l11 * second_xx) + damping * l22
    both = damping * (l21 * l22)
    drift_x = kept * (mean_x * (scaled * (area * second_yy) + damping * along_x) + rest_y * both)
    drift_y = kept * (mean_x * both + rest_y * (scaled * (area * second_xx) + damping * along_y))
    cross_x, cross_y = offset_x + weight * (lost * mean_x), offset_y + weight * (lost * rest_y)
    weight_1 = weight * (kept / count) - drift_x * cross_x - drift_y * cross_y
    unit_x, unit_y = tl.where(_usable(grid_x), half_x, 0.0), tl.where(_usable(grid_y), half_y, 0.0)
    weight_x = unit_x * xx * cross_x + unit_x * xy * cross_y
    weight_y = unit_y * yx * cross_x + unit_y * yy * cross_y

    # The fit takes differences from the centre, so the centre's weight is less by all the others.
    weight_1 = tl.where(centre, 1 - tl.sum(weight_1, 0), weight_1)
    weight_x = tl.where(centre, -tl.sum(weight_x, 0), weight_x)
    weight_y = tl.where(centre, -tl.sum(weight_y, 0), weight_y)

    texel_x, left, right = _taps(x, W, shift, PADDING)
    texel_y, above, below = _taps(y, H, shift, PADDING)
    # Written as multiples of CHANNELS, so that the compiler sees that loads are aligned.
    below_it, beside_it = row_stride * CHANNELS, column_stride * CHANNELS
    texel = texel_y * below_it + texel_x * beside_it
    start = tl.program_id(1) * group * CHANNELS
    channel = tl.arange(0, CHANNELS)[:, None]
    input += image * input_stride * CHANNELS + start.to(tl.int64) * channel_stride
    value += (image * C + start) * pixels
    slope += (image * C + start) * pixels * 2
    read = (drawn | centre)[None]
    at = first + tl.arange(0, PIXELS)
    twice = 2 * first.to(tl.int64) + tl.arange(0, 2 * PIXELS)
    for _ in range(start, tl.minimum(start + group * CHANNELS, C), CHANNELS):
        upper = input + (channel * channel_stride)[:, :, None] + texel
        lower = upper + below_it
        intensity = above * left * tl.load(upper, read, 0.0).to(tl.float32)
        intensity += above * right * tl.load(upper + beside_it, read, 0.0).to(tl.float32)
        intensity += below * left * tl.load(lower, read, 0.0).to(tl.float32)
        intensity += below * right * tl.load(lower + beside_it, read, 0.0).to(tl.float32)
        there = start + channel < C
        if INTERCEPT:
            tl.store(value + channel.to(tl.int64) * pixels + at, tl.sum(weight_1 * intensity, 1), there & (at < pixels))
        slopes = tl.interleave(tl.sum(weight_x * intensity, 1), tl.sum(weight_y * intensity, 1))
        tl.store(slope + channel.to(tl.int64) * (2 * pixels) + twice, slopes, there & (twice < 2 * pixels))
        start += CHANNELS
        input += CHANNELS * channel_stride
        value += CHANNELS * pixels
        slope += CHANNELS * pixels * 2


@triton.jit(do_not_specialize=["C"])
def grid_gradient(gradient, slope, out, C, n, NUMBERS: tl.constexpr, CHANNELS: tl.constexpr):
    """The sum over the channels of slope times gradient: ``n`` numbers per image, x and y in turn."""
    image, first, _ = _block(n, NUMBERS)
    at = first + tl.arange(0, NUMBERS)
    channel = tl.arange(0, CHANNELS)
    total = tl.zeros([CHANNELS, NUMBERS], tl.float32)
    for _ in range(0, C, CHANNELS):
        there = (channel < C)[:, None] & (at < n)
        plane = (image * C + channel)[:, None] * n
        total += tl.load(slope + plane + at, there, 0.0) * tl.load(gradient + plane // 2 + at // 2, there, 0.0)
        channel += CHANNELS
    tl.store(out + image * n + at, tl.sum(total, 0), at < n)


@triton.jit(do_not_specialize=["C", "H", "W", "pixels", "group"])
def image_gradient(
    gradient, grid, out, grid_stride, C, H, W, pixels, group,
    PADDING: tl.constexpr, ALIGN_CORNERS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Every pixel adds its gradient to the four texels around its centre."""
    image, first, pixel = _block(pixels, PIXELS)
    grid_x, grid_y = _pair(grid + 2 * (image * grid_stride), pixel)
    shift = _shift(ALIGN_CORNERS)
    texel_x, left, right = _taps((_clamped(grid_x) + 1) * _half(W, ALIGN_CORNERS) - shift, W, shift, PADDING)
    texel_y, above, below = _taps((_clamped(grid_y) + 1) * _half(H, ALIGN_CORNERS) - shift, H, shift, PADDING)
    here = first + tl.arange(0, PIXELS) < pixels
    start = tl.program_id(1) * group
    gradient += (image * C + start) * pixels + pixel
    out += (image * C + start) * H * W + texel_y * W + texel_x
    for _ in range(start, tl.minimum(start + group, C)):
        share = tl.load(gradient).to(tl.float32)
        tl.atomic_add(out, above * left * share, here & (above * left > 0), sem="relaxed")
        tl.atomic_add(out + 1, above * right * share, here & (above * right > 0), sem="relaxed")
        tl.atomic_add(out + W, below * left * share, here & (below * left > 0), sem="relaxed")
        tl.atomic_add(out + W + 1, below * right * share, here & (below * right > 0), sem="relaxed")
        gradient += pixels
        out += H * W


@triton.jit(do_not_specialize=["C", "texels", "W"])
def side_by_side(
    input, out, input_stride, channel_stride, row_stride, column_stride, C, texels, W,
    TEXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Copy an image whose channels lie apart into one of shape (B, H, W, C), with C padded by zeros."""
    image, first, texel = _block(texels, TEXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    source = image * input_stride + channel.to(tl.int64) * channel_stride
    number = tl.load(input + source + texel // W * row_stride + texel % W * column_stride, channel < C, 0.0)
    at = tl.multiple_of((image * texels + texel) * (tl.num_programs(1) * CHANNELS), CHANNELS)
    tl.store(out + at + channel, number, (first + tl.arange(0, TEXELS) < texels)[None])


@triton.jit
def _block(length, SIZE: tl.constexpr):
    """The image that a program works on, the first index of its block, and the indices, of ``length`` in an image."""
    blocks = tl.cdiv(length, SIZE)
    first = tl.program_id(0) % blocks * SIZE
    return (tl.program_id(0) // blocks).to(tl.int64), first, tl.minimum(first + tl.arange(0, SIZE), length - 1)


@triton.jit
def _pair(grid, pixel):
    return tl.split(tl.load(grid + 2 * pixel.to(tl.int64)[:, None] + tl.arange(0, 2)))


@triton.jit
def _half(size, ALIGN_CORNERS: tl.constexpr):
    """Source pixels per grid unit along an axis of ``size`` texels (coordinates.py)."""
    return (size - 1 if ALIGN_CORNERS else size) * 0.5


@triton.jit
def _shift(ALIGN_CORNERS: tl.constexpr):
    """The distance from the outermost texel centres to where -1 and 1 lie in the grid, in source pixels."""
    return 0.0 if ALIGN_CORNERS else 0.5


@triton.jit
def _usable(x):
    return tl.abs(x) <= _FAR_OUTSIDE  # false for NaN


@triton.jit
def _clamped(x):
    """A coordinate of the grid; one that is NaN, infinite or far outside is moved to one place outside."""
    return tl.where(_usable(x), x, tl.where(x < 0, -_FAR_OUTSIDE, _FAR_OUTSIDE))


@triton.jit
def _smaller_difference(grid, grid_x, grid_y, pixel, step, has_before, has_after, half_x, half_y):
    """J along one axis: of the steps to both neighbours the smaller, in source pixels (footprint.py).

    The last result says whether it is the step forward; it is also true where there is no neighbour.
    """
    before_x, before_y = _pair(grid, tl.where(has_before, pixel - step, pixel))
    after_x, after_y = _pair(grid, tl.where(has_after, pixel + step, pixel))
    before_x, before_y = (grid_x - before_x) * half_x, (grid_y - before_y) * half_y
    after_x, after_y = (after_x - grid_x) * half_x, (after_y - grid_y) * half_y
    before = tl.where(has_before, _comparable(before_x * before_x + before_y * before_y), float("inf"))
    after = tl.where(has_after, _comparable(after_x * after_x + after_y * after_y), float("inf"))
    forward = after * _NEARLY <= before
    return tl.where(forward, after_x, before_x), tl.where(forward, after_y, before_y), forward


@triton.jit
def _comparable(length):
    """A length to be compared, in which NaN counts as infinite."""
    return tl.where(length == length, tl.minimum(length, _LARGEST_FLOAT), float("inf"))


@triton.jit
def _footprint(xx, xy, yx, yy, sigma, jitter):
    """The lower Cholesky factor of ``sigma^2 J J' + jitter^2 I`` (footprint.py)."""
    xx, xy, yx, yy = _derivative(xx) * sigma, _derivative(xy) * sigma, _derivative(yx) * sigma, _derivative(yy) * sigma
    row_x, row_y, least = xx * xx + xy * xy, yx * yx + yy * yy, jitter * jitter
    forth, back = xx * yy, xy * yx
    area = tl.where(tl.abs(forth - back) > (tl.abs(forth) + tl.abs(back)) * _FLAT, forth - back, 0.0)
    determinant = area * area + least * (row_x + row_y + least)
    l11 = tl.sqrt(row_x + least)
    scale = 1 / tl.where(l11 > 0, l11, 1.0)
    l22 = tl.where(l11 > 0, tl.sqrt(determinant) * scale, tl.sqrt(row_y + least))
    return l11, (xx * yx + xy * yy) * scale, l22


@triton.jit
def _derivative(x):
    """An entry of the Jacobian, within the limit; 0 if it is not finite."""
    x = tl.where(tl.abs(x) <= _LARGEST_FLOAT, x, 0.0)
    return tl.minimum(tl.maximum(x, -_LARGEST_DERIVATIVE), _LARGEST_DERIVATIVE)


@triton.jit
def _whiten(x, y, drawn, K: tl.constexpr):
    """Give the draws of each pixel mean 0 and covariance 1, by Gram-Schmidt, in as many rounds as noise.py."""
    each: tl.constexpr = 1 / (K - 1)
    for _ in tl.static_range(2 if K == 4 else 1):
        x = tl.where(drawn, x - tl.sum(x, 0) * each, 0.0)
        y = tl.where(drawn, y - tl.sum(y, 0) * each, 0.0)
        x *= _reciprocal_root(tl.sum(x * x, 0) * each)
        y -= tl.sum(x * y, 0) * each * x
        y *= _reciprocal_root(tl.sum(y * y, 0) * each)
    return x, y


@triton.jit
def _reciprocal_root(x):
    """1 over the square root, and 0 for 0."""
    return tl.where(x > 0, 1 / tl.sqrt(tl.where(x > 0, x, 1.0)), 0.0)


@triton.jit
def _taps(x, size, shift, PADDING: tl.constexpr):
    """The first of the two texels that are read along an axis, and the weights of both.

    The first always has a neighbour inside the image. The weights are those of a tent of half width 1 around the
    sample, which are 0 for a texel that the sample does not reach.
    """
    x, _ = _folded(x, size, shift, PADDING)
    first = tl.minimum(tl.maximum(x, 0.0), (size - 1) * 1.0 - 1).to(tl.int32)
    return first, tl.maximum(1 - tl.abs(x - first), 0.0), tl.maximum(1 - tl.abs(x - first - 1), 0.0)


@triton.jit
def _folded(x, size, shift, PADDING: tl.constexpr):
    """The coordinate at which the image is read for ``x``, which the padding decides, and its derivative by ``x``."""
    last = (size - 1) * 1.0
    sign = tl.full(x.shape, 1.0, tl.float32)
    if PADDING == "reflection":
        span = last + 2 * shift
        sign = tl.where(x + shift < 0, -1.0, 1.0)
        x = tl.abs(x + shift)
        x -= tl.floor(x / (2 * span)) * (2 * span)
        sign = tl.where(x < span, sign, -sign)
        x = tl.minimum(x, 2 * span - x) - shift
    if PADDING != "zeros":
        sign = tl.where((x > 0) & (x < last), sign, 0.0)
        x = tl.minimum(tl.maximum(x, 0.0), last)
    return x, sign
