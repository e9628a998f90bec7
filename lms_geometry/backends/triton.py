"""The fused GPU backend: one pass over the output in Triton, with float32 arithmetic whatever the image's precision.

As in the CPU's kernel, the value and the slopes of an output pixel are linear in what its K samples read. So a program
works out for a block of pixels where the samples fall and with what weight each enters, all samples at once, and then
reads channel after channel. Names are those of footprint.py, noise.py and least_squares.py. README.md says why it is as
it is.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from lms_geometry.backends import eager
from lms_geometry.config import LinearizedSampling

_DEVICES = ("cuda", "xpu")  # AMD's GPUs are "cuda" too
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# From so many channels on they are read side by side, and an image that has them otherwise is copied first.
_CHANNELS_AT_ONCE = 8

# Samples of a program where pixels lie along the threads and where channels do: 8 and 16 numbers a thread. More of them
# leave too few registers, fewer too few reads under way.
_SAMPLES_A_PROGRAM = 1024
_SAMPLES_A_PROGRAM_OF_CHANNELS = 128

# Programs that keep any GPU busy. If the output has fewer blocks of pixels, its channels are dealt out as well.
_ENOUGH_PROGRAMS = 1024

_FAR_OUTSIDE = tl.constexpr(1e5)  # eager.py
_LARGEST_DERIVATIVE = tl.constexpr(1e4)  # footprint.py
_LARGEST_FLOAT = tl.constexpr(torch.finfo(torch.float32).max)


def missing() -> str | None:
    """Why this backend cannot be used here, or ``None`` if it can."""
    if not _interpreted():
        try:
            triton.runtime.driver.active.get_current_target()
        except RuntimeError as error:
            return f"Triton finds no GPU: {error}"
    return None


def supports(input: Tensor, mode: str) -> bool:
    """Whether this backend can sample such an image."""
    (height, width), (next_row, next_column) = input.shape[-2:], input.stride()[-2:]
    return (
        (input.device.type in _DEVICES or _interpreted())
        and input.dtype in _DTYPES
        and mode == "bilinear"
        and min(height, width) > 1
        and max(height * width, (height - 1) * next_row + (width - 1) * next_column) * input.shape[1] < 2**31
    )


def sample(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    noise: Tensor,
    sampling: LinearizedSampling,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    """As :func:`lms_geometry.backends.eager.sample`, also for a half precision image beside a float32 grid."""
    (batch, channels, height, width), (h, w) = input.shape, grid.shape[1:3]
    slope = grid.new_empty((batch, channels, h, w, 2))
    if sampling.intercept:
        value = input.new_empty((batch, channels, h, w))
    else:  # to the last bit what an ordinary sampler reads
        points = eager.usable_points(grid)
        value = F.grid_sample(input.to(grid.dtype), points, mode, padding_mode, align_corners).to(input.dtype)
    if value.numel() == 0:
        return value, slope
    samples = triton.next_power_of_2(sampling.num_samples)
    reads = batch * h * w * sampling.num_samples
    at_once = 1
    if channels >= _CHANNELS_AT_ONCE and (input.stride(1) == 1 or reads > batch * height * width):
        input, at_once = _channels_last(input), min(triton.next_power_of_2(channels), 32)
    pixels = max(1, min(128, (_SAMPLES_A_PROGRAM if at_once == 1 else _SAMPLES_A_PROGRAM_OF_CHANNELS) // samples))
    blocks = batch * triton.cdiv(h * w, pixels)
    group = _group(channels, at_once, blocks)
    noise = noise.contiguous()
    jacobian_strides = (0,) * 5
    if jacobian is not None:
        jacobian_strides = jacobian.expand(batch, h, w, 2, 2).stride()
    with _device_of(input):
        _sample_kernel[blocks, triton.cdiv(channels, group)](
            input,
            grid,
            jacobian,
            noise,
            value,
            slope,
            *input.stride(),
            *grid.stride(),
            *jacobian_strides,
            noise.stride(0) if noise.ndim == 5 else 0,
            channels,
            height,
            width,
            h,
            w,
            group,
            float(sampling.sigma),
            float(sampling.jitter),
            float(sampling.ridge),
            K=sampling.num_samples,
            WHITEN=sampling.pattern == "whitened",
            INTERCEPT=sampling.intercept,
            MASK=sampling.mask_out_of_bounds,
            PADDING=padding_mode,
            ALIGN_CORNERS=align_corners,
            SAMPLES=samples,
            PIXELS=pixels,
            CHANNELS=at_once,
        )
    return value, slope


def grid_gradient(gradient: Tensor, slope: Tensor) -> Tensor:
    """As :func:`lms_geometry.backends.eager.grid_gradient`, summed in one order, so that it repeats to the last bit."""
    batch, channels, h, w = gradient.shape
    out = slope.new_empty((batch, h, w, 2))
    if out.numel() > 0:
        numbers, at_once = 256, min(triton.next_power_of_2(channels), 8)
        with _device_of(gradient):
            _grid_gradient_kernel[batch * triton.cdiv(2 * h * w, numbers),](
                gradient.contiguous(), slope.contiguous(), out, channels, 2 * h * w, NUMBERS=numbers, CHANNELS=at_once
            )
    return out


def image_gradient(
    gradient: Tensor, input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool
) -> Tensor:
    """As :func:`lms_geometry.backends.eager.image_gradient`, without a look at the image. It adds up by atomics."""
    if torch.are_deterministic_algorithms_enabled():  # torch's own says what it makes of that
        return eager.image_gradient(
            gradient.to(grid.dtype), input.to(grid.dtype), grid, mode, padding_mode, align_corners
        ).to(input.dtype)
    (batch, channels, height, width), (h, w) = input.shape, grid.shape[1:3]
    out = grid.new_zeros(input.shape)
    if gradient.numel() > 0:
        pixels = 128
        blocks = batch * triton.cdiv(h * w, pixels)
        group = _group(channels, 1, blocks)
        with _device_of(input):
            _image_gradient_kernel[blocks, triton.cdiv(channels, group)](
                gradient.contiguous(),
                grid,
                out,
                *grid.stride(),
                channels,
                height,
                width,
                h,
                w,
                group,
                PADDING=padding_mode,
                ALIGN_CORNERS=align_corners,
                PIXELS=pixels,
            )
    return out.to(input.dtype)


def _interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 was set when Triton was imported: kernels then run in Python, on any tensors."""
    return not isinstance(_sample_kernel, triton.JITFunction)


def _device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, whichever the tensors are on."""
    return nullcontext() if tensor.device.type == "cpu" else torch.accelerator.device_index(tensor.device.index)


def _channels_last(input: Tensor) -> Tensor:
    """The channels side by side; once, where a batch is one image expanded."""
    if input.stride(1) == 1:
        return input
    once = input[:1] if input.stride(0) == 0 else input
    return once.contiguous(memory_format=torch.channels_last).expand(input.shape)


def _group(channels: int, at_once: int, blocks: int) -> int:
    """How many channels a program does, one block after another."""
    steps = triton.cdiv(channels, at_once)
    return at_once * triton.cdiv(steps, min(steps, triton.cdiv(_ENOUGH_PROGRAMS, blocks)))


# The kernels. Tensors are [channels, samples, pixels]; the centre is sample 0, and what fills up a power of two has no
# weight. What fills up the last block of pixels repeats the last pixel, and is not stored.


@triton.jit(do_not_specialize=["C", "H", "W", "h", "w", "group"])
def _sample_kernel(
    input, grid, jacobian, noise, value, slope,
    next_image, next_channel, next_row, next_column,
    next_grid, next_grid_row, next_grid_column, next_grid_axis,
    next_jacobian, next_jacobian_row, next_jacobian_column, next_jacobian_axis, next_jacobian_derivative,
    next_noise,
    C, H, W, h, w, group,
    sigma, jitter, ridge,
    K: tl.constexpr, WHITEN: tl.constexpr, INTERCEPT: tl.constexpr, MASK: tl.constexpr,
    PADDING: tl.constexpr, ALIGN_CORNERS: tl.constexpr,
    SAMPLES: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Value and slopes of a block of pixels of one image, for a group of channels."""
    image, first, pixel, row, column = _block(h, w, PIXELS)

    # Where the samples fall: the footprint L around the centre (8, 9).
    half_x, half_y, shift = _half(W, ALIGN_CORNERS), _half(H, ALIGN_CORNERS), _shift(ALIGN_CORNERS)
    grid += image * next_grid
    grid_x, grid_y = _pair(grid, row, column, next_grid_row, next_grid_column, next_grid_axis)
    unit_x, unit_y = tl.where(_usable(grid_x), half_x, 0.0), tl.where(_usable(grid_y), half_y, 0.0)
    if jacobian is None:
        xx, yx = _smaller_difference(
            grid, grid_x, grid_y, row, column, column, w, 0, 1,
            next_grid_row, next_grid_column, next_grid_axis, half_x, half_y,
        )  # fmt: skip
        xy, yy = _smaller_difference(
            grid, grid_x, grid_y, row, column, row, h, 1, 0,
            next_grid_row, next_grid_column, next_grid_axis, half_x, half_y,
        )  # fmt: skip
    else:
        jacobian += image * next_jacobian
        of_y = jacobian + next_jacobian_axis
        xx, xy = _pair(jacobian, row, column, next_jacobian_row, next_jacobian_column, next_jacobian_derivative)
        yx, yy = _pair(of_y, row, column, next_jacobian_row, next_jacobian_column, next_jacobian_derivative)
    l11, l21, l22 = _footprint(xx, xy, yx, yy, sigma, jitter)

    sample = tl.arange(0, SAMPLES)[:, None]
    drawn = (sample > 0) & (sample < K)
    draw = noise + image * next_noise + (sample - 1).to(tl.int64) * (2 * h * w) + 2 * pixel
    noise_x, noise_y = tl.split(tl.load(draw[:, :, None] + tl.arange(0, 2), mask=drawn[:, :, None], other=0.0))
    if WHITEN:
        noise_x, noise_y = _whiten(noise_x, noise_y, drawn, K)
    x = (_moved(grid_x) + 1) * half_x - shift + l11 * noise_x
    y = (_moved(grid_y) + 1) * half_y - shift + l21 * noise_x + l22 * noise_y
    if MASK:
        drawn = drawn & (x >= 0) & (x <= W - 1) & (y >= 0) & (y <= H - 1)

    # The moments of the draws in the fit. Without the row of ones their mean m is taken as 0.
    weight = tl.where(drawn, 1.0, tl.zeros_like(x))
    count = tl.maximum(tl.sum(weight, 0), 1.0)
    kept = count / (count + ridge)  # 1 - s
    mean_x, mean_y = tl.zeros_like(count), tl.zeros_like(count)
    if INTERCEPT:
        mean_x, mean_y = tl.sum(weight * noise_x, 0) / count, tl.sum(weight * noise_y, 0) / count
    offset_x, offset_y = weight * (noise_x - mean_x), weight * (noise_y - mean_y)
    qxx = tl.sum(offset_x * offset_x, 0) + ridge * kept * mean_x * mean_x
    qxy = tl.sum(offset_x * offset_y, 0) + ridge * kept * mean_x * mean_y
    qyy = tl.sum(offset_y * offset_y, 0) + ridge * kept * mean_y * mean_y

    # The weights of the samples: in the slopes A_uv = (L Q L' + eps I)^-1 L q, then in A_1.
    area = l11 * l22
    trace = (l11 * l11 + l21 * l21) * qxx + 2 * l21 * l22 * qxy + l22 * l22 * qyy
    determinant = area * area * tl.maximum(qxx * qyy - qxy * qxy, 0.0) + ridge * (tl.maximum(trace, 0.0) + ridge)
    scaled, damping = area / determinant, ridge / determinant
    part_x, part_y = weight * (noise_x - kept * mean_x), weight * (noise_y - kept * mean_y)
    slope_x = (scaled * (l22 * qyy + l21 * qxy) + damping * l11) * part_x - scaled * (l22 * qxy + l21 * qxx) * part_y
    slope_y = (damping * l21 - scaled * l11 * qxy) * part_x + (damping * l22 + scaled * l11 * qxx) * part_y
    drift_x, drift_y = l11 * mean_x, l21 * mean_x + l22 * mean_y
    weight_1 = kept * (weight / count - drift_x * slope_x - drift_y * slope_y)
    weight_x, weight_y = unit_x * slope_x, unit_y * slope_y

    # A difference from the centre is in the centre's own weight.
    centre = sample == 0
    weight_1 = tl.where(centre, 1 - tl.sum(weight_1, 0), weight_1)
    weight_x = tl.where(centre, -tl.sum(weight_x, 0), weight_x)
    weight_y = tl.where(centre, -tl.sum(weight_y, 0), weight_y)

    texel_x, left, right = _taps(x, W, shift, PADDING)
    texel_y, above, below = _taps(y, H, shift, PADDING)
    texel = texel_y * next_row + texel_x * next_column
    read = drawn | centre
    channel = tl.program_id(1) * group + tl.arange(0, CHANNELS)
    input += image * next_image
    value += image * C * h * w
    slope += image * C * h * w * 2
    at = first + tl.arange(0, PIXELS)
    pair = 2 * first + tl.arange(0, 2 * PIXELS)
    for _ in range(0, group, CHANNELS):
        there = channel < C
        upper = input + (channel.to(tl.int64) * next_channel)[:, None, None] + texel
        lower = upper + next_row
        mask = there[:, None, None] & read
        intensity = above * left * tl.load(upper, mask, 0.0).to(tl.float32)
        intensity += above * right * tl.load(upper + next_column, mask, 0.0).to(tl.float32)
        intensity += below * left * tl.load(lower, mask, 0.0).to(tl.float32)
        intensity += below * right * tl.load(lower + next_column, mask, 0.0).to(tl.float32)
        plane = channel.to(tl.int64)[:, None] * (h * w)
        if INTERCEPT:
            tl.store(value + plane + at, tl.sum(weight_1 * intensity, 1), there[:, None] & (at < h * w))
        slopes = tl.interleave(tl.sum(weight_x * intensity, 1), tl.sum(weight_y * intensity, 1))
        tl.store(slope + 2 * plane + pair, slopes, there[:, None] & (pair < 2 * h * w))
        channel += CHANNELS


@triton.jit(do_not_specialize=["C", "n"])
def _grid_gradient_kernel(gradient, slope, out, C, n, NUMBERS: tl.constexpr, CHANNELS: tl.constexpr):
    """The sum over the channels of slope times gradient: ``n`` numbers an image, x and y in turn."""
    blocks = tl.cdiv(n, NUMBERS)
    image = (tl.program_id(0) // blocks).to(tl.int64)
    at = tl.program_id(0) % blocks * NUMBERS + tl.arange(0, NUMBERS)
    channel = tl.arange(0, CHANNELS)
    total = tl.zeros([CHANNELS, NUMBERS], tl.float32)
    for _ in range(0, C, CHANNELS):
        mask = (channel < C)[:, None] & (at < n)
        plane = (image * C + channel)[:, None] * n
        total += tl.load(slope + plane + at, mask, 0.0) * tl.load(gradient + plane // 2 + at // 2, mask, 0.0)
        channel += CHANNELS
    tl.store(out + image * n + at, tl.sum(total, 0), at < n)


@triton.jit(do_not_specialize=["C", "H", "W", "h", "w", "group"])
def _image_gradient_kernel(
    gradient, grid, out,
    next_grid, next_grid_row, next_grid_column, next_grid_axis,
    C, H, W, h, w, group,
    PADDING: tl.constexpr, ALIGN_CORNERS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Every pixel adds its gradient to the four texels around its centre."""
    image, first, pixel, row, column = _block(h, w, PIXELS)
    grid_x, grid_y = _pair(grid + image * next_grid, row, column, next_grid_row, next_grid_column, next_grid_axis)
    shift = _shift(ALIGN_CORNERS)
    x = (_moved(grid_x) + 1) * _half(W, ALIGN_CORNERS) - shift
    y = (_moved(grid_y) + 1) * _half(H, ALIGN_CORNERS) - shift
    texel_x, left, right = _taps(x, W, shift, PADDING)
    texel_y, above, below = _taps(y, H, shift, PADDING)
    here = first + tl.arange(0, PIXELS) < h * w
    start = tl.program_id(1) * group
    gradient += (image * C + start) * (h * w) + pixel
    out += (image * C + start) * (H * W) + texel_y * W + texel_x
    for _ in range(start, tl.minimum(start + group, C)):
        share = tl.load(gradient).to(tl.float32)
        tl.atomic_add(out, above * left * share, here & (above * left > 0), sem="relaxed")
        tl.atomic_add(out + 1, above * right * share, here & (above * right > 0), sem="relaxed")
        tl.atomic_add(out + W, below * left * share, here & (below * left > 0), sem="relaxed")
        tl.atomic_add(out + W + 1, below * right * share, here & (below * right > 0), sem="relaxed")
        gradient += h * w
        out += H * W


@triton.jit
def _block(h, w, PIXELS: tl.constexpr):
    """The image and the pixels of a program."""
    blocks = tl.cdiv(h * w, PIXELS)
    first = tl.program_id(0) % blocks * PIXELS
    pixel = tl.minimum(first + tl.arange(0, PIXELS), h * w - 1)
    return (tl.program_id(0) // blocks).to(tl.int64), first, pixel, pixel // w, pixel % w


@triton.jit
def _pair(pointer, row, column, next_row, next_column, next_number):
    """Two numbers of every pixel."""
    at = row.to(tl.int64) * next_row + column.to(tl.int64) * next_column
    return tl.split(tl.load(pointer + at[:, None] + tl.arange(0, 2) * next_number))


@triton.jit
def _half(size, ALIGN_CORNERS: tl.constexpr):
    """Source pixels a grid unit along an axis of so many texels."""
    return (size - 1 if ALIGN_CORNERS else size) * 0.5


@triton.jit
def _shift(ALIGN_CORNERS: tl.constexpr):
    """How far the ends of an image are beyond its outermost texel centres."""
    return 0.0 if ALIGN_CORNERS else 0.5


@triton.jit
def _usable(x):
    return tl.abs(x) <= _FAR_OUTSIDE  # false for NaN


@triton.jit
def _moved(x):
    """A coordinate far outside or nowhere (NaN), moved to one place outside."""
    return tl.where(_usable(x), x, tl.where(x < 0, -_FAR_OUTSIDE, _FAR_OUTSIDE))


@triton.jit
def _smaller_difference(
    grid, grid_x, grid_y, row, column, place, length, down, right,
    next_row, next_column, next_axis, half_x, half_y,
):  # fmt: skip
    """J along one axis: of the steps to both neighbours the smaller, in source pixels (footprint.py)."""
    later, sooner = (place < length - 1).to(tl.int32), (place > 0).to(tl.int32)
    next_x, next_y = _pair(grid, row + later * down, column + later * right, next_row, next_column, next_axis)
    last_x, last_y = _pair(grid, row - sooner * down, column - sooner * right, next_row, next_column, next_axis)
    forward_x, forward_y = (next_x - grid_x) * half_x, (next_y - grid_y) * half_y
    backward_x, backward_y = (grid_x - last_x) * half_x, (grid_y - last_y) * half_y
    forward = tl.where(later == 1, _comparable(forward_x * forward_x + forward_y * forward_y), float("inf"))
    backward = tl.where(sooner == 1, _comparable(backward_x * backward_x + backward_y * backward_y), float("inf"))
    nearer = forward <= backward
    return tl.where(nearer, forward_x, backward_x), tl.where(nearer, forward_y, backward_y)


@triton.jit
def _comparable(length):
    """A length that is no number is longer than any."""
    return tl.where(length == length, tl.minimum(length, _LARGEST_FLOAT), float("inf"))


@triton.jit
def _footprint(xx, xy, yx, yy, sigma, jitter):
    """The lower Cholesky factor of ``sigma^2 J J' + jitter^2 I`` (footprint.py)."""
    xx, xy, yx, yy = _derivative(xx) * sigma, _derivative(xy) * sigma, _derivative(yx) * sigma, _derivative(yy) * sigma
    row_x, row_y, area, least = xx * xx + xy * xy, yx * yx + yy * yy, xx * yy - xy * yx, jitter * jitter
    determinant = area * area + least * (row_x + row_y + least)
    l11 = tl.sqrt(row_x + least)
    scale = 1 / tl.where(l11 > 0, l11, 1.0)
    l22 = tl.where(l11 > 0, tl.sqrt(determinant) * scale, tl.sqrt(row_y + least))
    return l11, (xx * yx + xy * yy) * scale, l22


@triton.jit
def _derivative(x):
    """Any number as a finite one of moderate size, one that is none as 0."""
    x = tl.where(tl.abs(x) <= _LARGEST_FLOAT, x, 0.0)
    return tl.minimum(tl.maximum(x, -_LARGEST_DERIVATIVE), _LARGEST_DERIVATIVE)


@triton.jit
def _whiten(x, y, drawn, K: tl.constexpr):
    """Give the draws of each pixel mean 0 and covariance 1, by Gram-Schmidt over the two axes (noise.py)."""
    each: tl.constexpr = 1 / (K - 1)
    x = tl.where(drawn, x - tl.sum(x, 0) * each, 0.0)
    y = tl.where(drawn, y - tl.sum(y, 0) * each, 0.0)
    x /= tl.sqrt(tl.sum(x * x, 0) * each)
    y -= tl.sum(x * y, 0) * each * x
    return x, y / tl.sqrt(tl.sum(y * y, 0) * each)


@triton.jit
def _taps(x, size, shift, PADDING: tl.constexpr):
    """The first of the two texels that are read along an axis, and the weights of both.

    The first always has a neighbour. A tent around the sample gives a texel it does not reach, or one outside, no weight.
    """
    last = (size - 1).to(tl.float32)
    if PADDING == "reflection":
        period = 2 * (last + 2 * shift)
        x = tl.abs(x + shift)
        x -= tl.floor(x / period) * period
        x = tl.minimum(x, period - x) - shift
    if PADDING != "zeros":
        x = tl.minimum(tl.maximum(x, 0.0), last)
    first = tl.minimum(tl.maximum(x, 0.0), last - 1).to(tl.int32)
    return first, tl.maximum(1 - tl.abs(x - first), 0.0), tl.maximum(1 - tl.abs(x - first - 1), 0.0)
