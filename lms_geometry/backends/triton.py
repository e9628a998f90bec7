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
    height, width = input.shape[-2:]
    return (
        (input.device.type in _DEVICES or _interpreted())
        and input.dtype in _DTYPES
        and mode == "bilinear"
        and min(height, width) > 1
        and _reach(input) < 2**30  # offsets within an image have 32 bits, and a copy may be twice as large
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
    """As :func:`lms_geometry.backends.eager.sample`, also for an image in half precision beside a float32 grid."""
    (batch, channels, height, width), (h, w) = input.shape, grid.shape[1:3]
    slope = grid.new_empty((batch, channels, h, w, 2))
    if sampling.intercept:
        value = input.new_empty((batch, channels, h, w))
    else:  # to the last bit what an ordinary sampler reads
        points = eager.usable_points(grid)
        value = F.grid_sample(input.to(grid.dtype), points, mode, padding_mode, align_corners).to(input.dtype)
    if value.numel() == 0:
        return value, slope
    at_once = 1
    if channels > 1 and batch * h * w * sampling.num_samples > height * width * (batch if input.stride(0) else 1):
        at_once = 16 if channels % 16 == 0 else min(8, triton.next_power_of_2(channels))
        input = _side_by_side(input, at_once)
    samples = triton.next_power_of_2(sampling.num_samples)
    pixels = max(1, min(128, (1024 if at_once <= 4 else 2048 // at_once) // samples))
    blocks = batch * triton.cdiv(h * w, pixels)
    programs, group = _deal(channels, at_once, blocks)
    grid = _once(grid).contiguous()
    noise = _once(noise).contiguous() if noise.ndim == 5 else noise.contiguous().unsqueeze(0)
    next_pixel = 0
    if jacobian is not None:
        if jacobian.shape[1:3] != (1, 1):
            jacobian, next_pixel = jacobian.expand(-1, h, w, 2, 2), 1
        jacobian = _once(jacobian).contiguous()
    with _device_of(input):
        _sample_kernel[blocks, programs](
            input,
            grid,
            jacobian,
            noise,
            value,
            slope,
            input.stride(0) // at_once,
            input.stride(1),
            input.stride(2) // at_once,
            input.stride(3) // at_once,
            _step(grid) // 2,
            0 if jacobian is None else _step(jacobian) // 4,
            next_pixel,
            _step(noise) // 2,
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
            enable_fp_fusion=True,
        )
    return value, slope


def grid_gradient(gradient: Tensor, slope: Tensor) -> Tensor:
    """As :func:`lms_geometry.backends.eager.grid_gradient`, summed in one order, so that it repeats to the last bit."""
    batch, channels, h, w = gradient.shape
    out = slope.new_empty((batch, h, w, 2))
    numbers, at_once = 512, min(4, triton.next_power_of_2(channels))
    if gradient.numel() > 0:
        with _device_of(gradient):
            _grid_gradient_kernel[(batch * triton.cdiv(2 * h * w, numbers),)](
                gradient.contiguous(),
                slope.contiguous(),
                out,
                channels,
                2 * h * w,
                NUMBERS=numbers,
                CHANNELS=at_once,
                enable_fp_fusion=True,
            )
    return out


def image_gradient(
    gradient: Tensor, input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool
) -> Tensor:
    """As :func:`lms_geometry.backends.eager.image_gradient`, by atomic additions in float32 and with no look at the image.

    Torch's own kernel reads the image for a gradient of the grid that nobody asks for. Where deterministic algorithms
    are asked for it is called all the same, to say what it says to that.
    """
    if torch.are_deterministic_algorithms_enabled():
        wide = (t.to(grid.dtype) for t in (gradient, input))
        return eager.image_gradient(*wide, grid, mode, padding_mode, align_corners).to(input.dtype)
    (batch, channels, height, width), (h, w), pixels = input.shape, grid.shape[1:3], 128
    out = grid.new_zeros(input.shape)
    blocks = batch * triton.cdiv(h * w, pixels)
    if gradient.numel() > 0:
        programs, group = _deal(channels, 1, blocks)
        grid = _once(grid).contiguous()
        with _device_of(input):
            _image_gradient_kernel[blocks, programs](
                gradient.contiguous(),
                grid,
                out,
                _step(grid) // 2,
                channels,
                height,
                width,
                h * w,
                group,
                PADDING=padding_mode,
                ALIGN_CORNERS=align_corners,
                PIXELS=pixels,
                enable_fp_fusion=True,
            )
    return out.to(input.dtype)


def _interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 was set when Triton was imported: kernels then run in Python, on any tensors."""
    return not isinstance(_sample_kernel, triton.JITFunction)


def _device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, whichever the tensors are on."""
    return nullcontext() if tensor.device.type == "cpu" else torch.accelerator.device_index(tensor.device.index)


def _reach(input: Tensor) -> int:
    """How far the last texel of an image is from the first."""
    return sum((n - 1) * step for n, step in zip(input.shape[1:], input.stride()[1:], strict=True))


def _once(tensor: Tensor) -> Tensor:
    """One image of a batch that is one image expanded, else the batch."""
    return tensor[:1] if tensor.stride(0) == 0 else tensor


def _step(tensor: Tensor) -> int:
    """How far it is from image to image, 0 where all share one."""
    return 0 if tensor.shape[0] == 1 else tensor.stride(0)


def _deal(channels: int, at_once: int, blocks: int) -> tuple[int, int]:
    """How many programs share the channels of a block, and how many times each does so many of them at once."""
    steps = triton.cdiv(channels, at_once)
    group = triton.cdiv(steps, min(steps, triton.cdiv(_ENOUGH_PROGRAMS, blocks)))
    return triton.cdiv(steps, group), group


def _side_by_side(input: Tensor, at_once: int) -> Tensor:
    """The image with the channels of a texel side by side, so many at once, which are read in one go.

    A copy, with room for what lacks to a multiple of these channels, unless the image has them so.
    """
    batch, channels, height, width = input.shape
    if input.stride(1) == 1 and all(n % at_once == 0 for n in (channels, *input.stride()[2:], input.stride(0))):
        return input
    once = _once(input)
    steps, texels = triton.cdiv(channels, at_once), 128
    out = input.new_empty((len(once), height, width, steps * at_once))
    with _device_of(input):
        _side_by_side_kernel[len(once) * triton.cdiv(height * width, texels), steps](
            once,
            out,
            *once.stride(),
            channels,
            height * width,
            width,
            TEXELS=texels,
            CHANNELS=at_once,
        )
    return out.permute(0, 3, 1, 2).expand(batch, -1, -1, -1)


# The kernels. Tensors are [channels, samples, pixels]; the centre is sample 0, and what fills up a power of two has no
# weight. What fills up the last block of pixels repeats the last pixel, and is not stored.


@triton.jit(do_not_specialize=["C", "H", "W", "h", "w", "group"])
def _sample_kernel(
    input, grid, jacobian, noise, value, slope,
    next_image, next_channel, next_row, next_column,
    next_grid, next_jacobian, next_jacobian_pixel, next_noise,
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
    grid += 2 * (image * next_grid)
    grid_x, grid_y = _pair(grid, pixel)
    half_x, half_y, shift = _half(W, ALIGN_CORNERS), _half(H, ALIGN_CORNERS), _shift(ALIGN_CORNERS)
    if jacobian is None:
        row, column = pixel // w, pixel % w
        xx, yx = _smaller_difference(grid, grid_x, grid_y, pixel, 1, column > 0, column < w - 1, half_x, half_y)
        xy, yy = _smaller_difference(grid, grid_x, grid_y, pixel, w, row > 0, row < h - 1, half_x, half_y)
    else:
        at = 4 * (image * next_jacobian + pixel * next_jacobian_pixel)[:, None, None]
        by_column, by_row = tl.split(tl.load(jacobian + at + 2 * tl.arange(0, 2)[:, None] + tl.arange(0, 2)))
        (xx, yx), (xy, yy) = tl.split(by_column), tl.split(by_row)
    l11, l21, l22 = _footprint(xx, xy, yx, yy, sigma, jitter)

    sample = tl.arange(0, SAMPLES)[:, None]
    centre, drawn = sample == 0, (sample > 0) & (sample < K)
    draw = noise + 2 * (image * next_noise + (sample - 1).to(tl.int64) * pixels + pixel)[:, :, None]
    noise_x, noise_y = tl.split(tl.load(draw + tl.arange(0, 2), drawn[:, :, None], 0.0))
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

    # What they weigh: in A_uv = (L Q L' + eps I)^-1 L q and in A_1.
    area = l11 * l22
    trace = (l11 * l11 + l21 * l21) * qxx + 2 * l21 * l22 * qxy + l22 * l22 * qyy
    determinant = area * area * tl.maximum(qxx * qyy - qxy * qxy, 0.0) + ridge * (tl.maximum(trace, 0.0) + ridge)
    scaled, damping = area / determinant, ridge / determinant
    xx, xy = scaled * (l22 * qyy + l21 * qxy) + damping * l11, -scaled * (l22 * qxy + l21 * qxx)
    yx, yy = damping * l21 - scaled * l11 * qxy, damping * l22 + scaled * l11 * qxx
    drift_x, drift_y = kept * l11 * mean_x, kept * (l21 * mean_x + l22 * mean_y)
    part_x, part_y = weight * (noise_x - kept * mean_x), weight * (noise_y - kept * mean_y)
    weight_1 = weight * (kept / count)
    weight_1 -= (drift_x * xx + drift_y * yx) * part_x + (drift_x * xy + drift_y * yy) * part_y
    unit_x, unit_y = tl.where(_usable(grid_x), half_x, 0.0), tl.where(_usable(grid_y), half_y, 0.0)
    weight_x = unit_x * xx * part_x + unit_x * xy * part_y
    weight_y = unit_y * yx * part_x + unit_y * yy * part_y

    # A difference from the centre is in the centre's own weight.
    weight_1 = tl.where(centre, 1 - tl.sum(weight_1, 0), weight_1)
    weight_x = tl.where(centre, -tl.sum(weight_x, 0), weight_x)
    weight_y = tl.where(centre, -tl.sum(weight_y, 0), weight_y)

    texel_x, left, right = _taps(x, W, shift, PADDING)
    texel_y, above, below = _taps(y, H, shift, PADDING)
    below_it, beside_it = next_row * CHANNELS, next_column * CHANNELS  # what the compiler is to see a multiple in
    texel = texel_y * below_it + texel_x * beside_it
    start = tl.program_id(1) * group * CHANNELS
    channel = tl.arange(0, CHANNELS)[:, None]
    input += image * next_image * CHANNELS + start.to(tl.int64) * next_channel
    value += (image * C + start) * pixels
    slope += (image * C + start) * pixels * 2
    read = (drawn | centre)[None]
    at = first + tl.arange(0, PIXELS)
    twice = 2 * first.to(tl.int64) + tl.arange(0, 2 * PIXELS)
    for _ in range(start, tl.minimum(start + group * CHANNELS, C), CHANNELS):
        upper = input + (channel * next_channel)[:, :, None] + texel
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
        input += CHANNELS * next_channel
        value += CHANNELS * pixels
        slope += CHANNELS * pixels * 2


@triton.jit(do_not_specialize=["C"])
def _grid_gradient_kernel(gradient, slope, out, C, n, NUMBERS: tl.constexpr, CHANNELS: tl.constexpr):
    """The sum over the channels of slope times gradient: ``n`` numbers an image, x and y in turn."""
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
def _image_gradient_kernel(
    gradient, grid, out, next_grid, C, H, W, pixels, group,
    PADDING: tl.constexpr, ALIGN_CORNERS: tl.constexpr, PIXELS: tl.constexpr,
):  # fmt: skip
    """Every pixel adds its gradient to the four texels around its centre."""
    image, first, pixel = _block(pixels, PIXELS)
    grid_x, grid_y = _pair(grid + 2 * (image * next_grid), pixel)
    shift = _shift(ALIGN_CORNERS)
    texel_x, left, right = _taps((_moved(grid_x) + 1) * _half(W, ALIGN_CORNERS) - shift, W, shift, PADDING)
    texel_y, above, below = _taps((_moved(grid_y) + 1) * _half(H, ALIGN_CORNERS) - shift, H, shift, PADDING)
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
def _side_by_side_kernel(
    input, out, next_image, next_channel, next_row, next_column, C, texels, W,
    TEXELS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A copy of an image with channels that lie apart as one, (B, H, W, C), whose C is filled up with zeros."""
    image, first, texel = _block(texels, TEXELS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    source = image * next_image + channel.to(tl.int64) * next_channel
    number = tl.load(input + source + texel // W * next_row + texel % W * next_column, channel < C, 0.0)
    at = tl.multiple_of((image * texels + texel) * (tl.num_programs(1) * CHANNELS), CHANNELS)
    tl.store(out + at + channel, number, (first + tl.arange(0, TEXELS) < texels)[None])


@triton.jit
def _block(length, SIZE: tl.constexpr):
    """The image of a program, the first number of its block, and the numbers, of so many an image."""
    blocks = tl.cdiv(length, SIZE)
    first = tl.program_id(0) % blocks * SIZE
    return (tl.program_id(0) // blocks).to(tl.int64), first, tl.minimum(first + tl.arange(0, SIZE), length - 1)


@triton.jit
def _pair(grid, pixel):
    return tl.split(tl.load(grid + 2 * pixel.to(tl.int64)[:, None] + tl.arange(0, 2)))


@triton.jit
def _half(size, ALIGN_CORNERS: tl.constexpr):
    """Source pixels a grid unit along an axis of so many texels."""
    return (size - 1 if ALIGN_CORNERS else size) * 0.5


@triton.jit
def _shift(ALIGN_CORNERS: tl.constexpr):
    """How far beyond its outermost texel centres an image ends."""
    return 0.0 if ALIGN_CORNERS else 0.5


@triton.jit
def _usable(x):
    return tl.abs(x) <= _FAR_OUTSIDE  # false for NaN


@triton.jit
def _moved(x):
    """A coordinate far outside or nowhere (NaN), moved to one place outside."""
    return tl.where(_usable(x), x, tl.where(x < 0, -_FAR_OUTSIDE, _FAR_OUTSIDE))


@triton.jit
def _smaller_difference(grid, grid_x, grid_y, pixel, step, has_before, has_after, half_x, half_y):
    """J along one axis: of the steps to both neighbours the smaller, in source pixels (footprint.py)."""
    before_x, before_y = _pair(grid, tl.where(has_before, pixel - step, pixel))
    after_x, after_y = _pair(grid, tl.where(has_after, pixel + step, pixel))
    before_x, before_y = (grid_x - before_x) * half_x, (grid_y - before_y) * half_y
    after_x, after_y = (after_x - grid_x) * half_x, (after_y - grid_y) * half_y
    before = tl.where(has_before, _comparable(before_x * before_x + before_y * before_y), float("inf"))
    after = tl.where(has_after, _comparable(after_x * after_x + after_y * after_y), float("inf"))
    return tl.where(after <= before, after_x, before_x), tl.where(after <= before, after_y, before_y)


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
    """A number of moderate size, 0 for one that is not finite."""
    x = tl.where(tl.abs(x) <= _LARGEST_FLOAT, x, 0.0)
    return tl.minimum(tl.maximum(x, -_LARGEST_DERIVATIVE), _LARGEST_DERIVATIVE)


@triton.jit
def _whiten(x, y, drawn, K: tl.constexpr):
    """Give the draws of each pixel mean 0 and covariance 1, by Gram-Schmidt over the two axes (noise.py)."""
    each: tl.constexpr = 1 / (K - 1)
    x = tl.where(drawn, x - tl.sum(x, 0) * each, 0.0)
    y = tl.where(drawn, y - tl.sum(y, 0) * each, 0.0)
    x *= 1 / tl.sqrt(tl.sum(x * x, 0) * each)
    y -= tl.sum(x * y, 0) * each * x
    return x, y * (1 / tl.sqrt(tl.sum(y * y, 0) * each))


@triton.jit
def _taps(x, size, shift, PADDING: tl.constexpr):
    """The first of the two texels that are read along an axis, and the weights of both.

    The first always has a neighbour. A tent around the sample gives a texel it does not reach, or one outside, no weight.
    """
    last = (size - 1) * 1.0
    if PADDING == "reflection":
        period = 2 * (last + 2 * shift)
        x = tl.abs(x + shift)
        x -= tl.floor(x / period) * period
        x = tl.minimum(x, period - x) - shift
    if PADDING != "zeros":
        x = tl.minimum(tl.maximum(x, 0.0), last)
    first = tl.minimum(tl.maximum(x, 0.0), last - 1).to(tl.int32)
    return first, tl.maximum(1 - tl.abs(x - first), 0.0), tl.maximum(1 - tl.abs(x - first - 1), 0.0)
