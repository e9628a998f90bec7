"""The fused GPU backend: one pass over the output in Triton, with float32 arithmetic whatever the image's precision.

Here the sizes of blocks are chosen and the kernels of ``_triton_kernels.py`` launched. README.md says why it is as it
is.
"""

import subprocess
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from lms_geometry.backends import _triton_kernels as kernels
from lms_geometry.backends import eager
from lms_geometry.backends.batches import compact, image_stride, unexpanded
from lms_geometry.config import LinearizedSampling

_DEVICES = ("cuda", "xpu")  # AMD's GPUs are "cuda" too
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# Programs that keep any GPU busy. If the output has fewer blocks of pixels, its channels are dealt out as well.
_ENOUGH_PROGRAMS = 1024


def missing() -> str | None:
    """Why this backend cannot be used here, or ``None`` if it can."""
    if not _interpreted():
        try:
            triton.runtime.driver.active.get_current_target()
        except (RuntimeError, OSError, subprocess.SubprocessError) as error:  # it may compile what it asks with
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
        and max(height, width) <= 2**24  # float32 counts no further
        and _reach(input) < 2**30  # offsets within an image have 32 bits, and a copy may be twice as large
    )


def sample(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    noise: Tensor,
    whiten: bool,
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
    at_once = 1  # the channels that one load reads; several want a copy of the image, which takes more reads to pay
    if channels > 1 and batch * h * w * sampling.num_samples > height * width * (batch if input.stride(0) else 1):
        at_once = 16 if channels % 16 == 0 else min(8, triton.next_power_of_2(channels))
        input = _side_by_side(input, at_once)
    samples = triton.next_power_of_2(sampling.num_samples)
    # 8 samples per thread where pixels alone lie along the threads, 16 numbers of samples where channels do too: with
    # more, numbers no longer fit in registers; with fewer, too few loads are under way.
    pixels = max(1, min(128, (1024 if at_once <= 4 else 2048 // at_once) // samples))
    blocks = batch * triton.cdiv(h * w, pixels)
    programs, group = _deal(channels, at_once, blocks)
    grid, jacobian, noise, next_pixel = compact(grid, jacobian, noise)
    with _device_of(input):
        kernels.sample[blocks, programs](
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
            image_stride(grid) // 2,
            0 if jacobian is None else image_stride(jacobian) // 4,
            next_pixel,
            image_stride(noise) // 2,
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
            WHITEN=whiten,
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
            kernels.grid_gradient[(batch * triton.cdiv(2 * h * w, numbers),)](
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
    """As :func:`lms_geometry.backends.eager.image_gradient`, by atomic additions in float32, blind to the image.

    Torch's own kernel reads the image for a gradient of the grid that nobody asks for. Where deterministic algorithms
    are asked for it is called all the same, to say what it says to that.
    """
    if torch.are_deterministic_algorithms_enabled():
        return eager.image_gradient(gradient, input, grid, mode, padding_mode, align_corners)
    (batch, channels, height, width), (h, w), pixels = input.shape, grid.shape[1:3], 128
    out = grid.new_zeros(input.shape)
    blocks = batch * triton.cdiv(h * w, pixels)
    if gradient.numel() > 0:
        programs, group = _deal(channels, 1, blocks)
        grid = unexpanded(grid).contiguous()
        with _device_of(input):
            kernels.image_gradient[blocks, programs](
                gradient.contiguous(),
                grid,
                out,
                image_stride(grid) // 2,
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
    return not isinstance(kernels.sample, triton.JITFunction)


def _device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Triton launches on the current device, whichever the tensors are on."""
    return nullcontext() if tensor.device.type == "cpu" else torch.accelerator.device_index(tensor.device.index)


def _reach(input: Tensor) -> int:
    """How far the last texel of an image is from the first."""
    return sum((n - 1) * step for n, step in zip(input.shape[1:], input.stride()[1:], strict=True))


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
    once = unexpanded(input)
    steps, texels = triton.cdiv(channels, at_once), 128
    out = input.new_empty((len(once), height, width, steps * at_once))
    with _device_of(input):
        kernels.side_by_side[len(once) * triton.cdiv(height * width, texels), steps](
            once,
            out,
            *once.stride(),
            channels,
            height * width,
            width,
            TEXELS=texels,
            CHANNELS=at_once,
            enable_fp_fusion=True,
        )
    return out.permute(0, 3, 1, 2).expand(batch, -1, -1, -1)
