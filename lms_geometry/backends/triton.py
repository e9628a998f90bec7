"""The fused GPU backend: one pass over the output in Triton, with float32 arithmetic whatever the image's precision.

This file chooses the sizes of blocks and launches the kernels of ``_triton_kernels.py``. README.md gives the reasons
for its design.
"""

import subprocess
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from lms_geometry.backends import _triton_kernels as kernels
from lms_geometry.backends import common
from lms_geometry.backends.common import batch_stride, compact, is_read_by_kernels, unexpanded
from lms_geometry.config import LinearizedSampling, Reading
from lms_geometry.footprint import Placement

_DEVICES = ("cuda", "xpu")  # torch calls AMD's GPUs "cuda" too
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# The number of programs that keeps any GPU busy. If the output has fewer blocks of pixels, its channels are shared out
# among programs as well.
_ENOUGH_PROGRAMS = 1024


def unavailable_reason() -> str | None:
    """Why this backend cannot be used here, or ``None`` if it can."""
    if not _interpreted():
        try:
            triton.runtime.driver.active.get_current_target()
        except (AttributeError, RuntimeError, OSError, subprocess.SubprocessError) as error:  # It may call a compiler.
            return f"Triton finds no GPU: {error}"
    return None


def supports(image: Tensor, mode: str) -> bool:
    """Whether this backend can sample such an image.

    Offsets within an image have 32 bits, and a copy of it may be twice as large.
    """
    return supports_gradient(image) and is_read_by_kernels(image, mode) and _extent(image) < 2**30


def supports_gradient(gradient: Tensor) -> bool:
    """Whether this backend can turn such a gradient into that of the grid."""
    return (gradient.device.type in _DEVICES or _interpreted()) and gradient.dtype in _DTYPES


def sample(
    input: Tensor, grid: Tensor, placement: Placement, sampling: LinearizedSampling, reading: Reading
) -> tuple[Tensor, Tensor]:
    """As :func:`lms_geometry.backends.eager.sample`, also for an image in half precision beside a float32 grid."""
    (batch, channels, height, width), (h, w) = input.shape, grid.shape[1:3]
    slope = grid.new_empty((batch, channels, h, w, 2))
    if sampling.intercept:
        value = input.new_empty((batch, channels, h, w))
    else:  # the value is that of an ordinary sampler to the last bit
        value = F.grid_sample(input.to(grid.dtype), common.usable_points(grid), *reading).to(input.dtype)
    if value.numel() == 0:
        return value, slope
    # One load can read several channels if they lie side by side. Where they do not, the image is copied first, which
    # pays only if more samples are read than the image has texels.
    at_once = 1
    if channels > 1 and batch * h * w * sampling.num_samples > height * width * (batch if input.stride(0) else 1):
        at_once = 16 if channels % 16 == 0 else min(8, triton.next_power_of_2(channels))
        input = _side_by_side(input, at_once)
    samples = triton.next_power_of_2(sampling.num_samples)
    # A thread handles 8 samples where only pixels lie along the threads, and 16 numbers where channels do too. With
    # more, the numbers no longer fit in registers; with fewer, too few loads are under way at a time.
    pixels = max(1, min(128, (1024 if at_once <= 4 else 2048 // at_once) // samples))
    blocks = batch * triton.cdiv(h * w, pixels)
    programs, group = _deal(channels, at_once, blocks)
    grid, jacobian, noise, pixel_stride = compact(grid, placement.jacobian, placement.noise)
    with _device_of(input):
        kernels.sample[blocks, programs](
            input,
            grid,
            jacobian,
            noise,
            value,
            slope,
            input_stride=input.stride(0) // at_once,
            channel_stride=input.stride(1),
            row_stride=input.stride(2) // at_once,
            column_stride=input.stride(3) // at_once,
            grid_stride=batch_stride(grid) // 2,
            jacobian_stride=0 if jacobian is None else batch_stride(jacobian) // 4,
            pixel_stride=pixel_stride,
            noise_stride=batch_stride(noise) // 2,
            C=channels,
            H=height,
            W=width,
            h=h,
            w=w,
            group=group,
            sigma=float(sampling.sigma),
            jitter=float(sampling.jitter),
            ridge=float(sampling.ridge),
            K=sampling.num_samples,
            WHITEN=placement.whiten,
            INTERCEPT=sampling.intercept,
            MASK=sampling.mask_out_of_bounds,
            PADDING=reading.padding_mode,
            ALIGN_CORNERS=reading.align_corners,
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


def image_gradient(gradient: Tensor, image: Tensor, grid: Tensor, reading: Reading) -> Tensor:
    """As :func:`lms_geometry.backends.common.image_gradient`, by atomic additions in float32.

    Unlike torch's own kernel it does not work out the gradient of the grid, for which that kernel reads the image.
    Where deterministic algorithms are asked for, torch's kernel is called, so that its error is raised.
    """
    if torch.are_deterministic_algorithms_enabled():
        return common.image_gradient(gradient, image, grid, reading)
    (batch, channels, height, width), (h, w), pixels = image.shape, grid.shape[1:3], 128
    out = grid.new_zeros(image.shape)
    blocks = batch * triton.cdiv(h * w, pixels)
    if gradient.numel() > 0:
        programs, group = _deal(channels, 1, blocks)
        grid = unexpanded(grid).contiguous()
        with _device_of(gradient):
            kernels.image_gradient[blocks, programs](
                gradient.contiguous(),
                grid,
                out,
                batch_stride(grid) // 2,
                channels,
                height,
                width,
                h * w,
                group,
                PADDING=reading.padding_mode,
                ALIGN_CORNERS=reading.align_corners,
                PIXELS=pixels,
                enable_fp_fusion=True,
            )
    return out.to(image.dtype)


def _interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 was set when Triton was imported. Kernels then run in Python, on any tensors."""
    return not isinstance(kernels.sample, triton.JITFunction)


def _device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which the tensor's device is the current one, since that is where Triton launches."""
    return nullcontext() if tensor.device.type == "cpu" else getattr(torch, tensor.device.type).device(tensor.device)


def _extent(image: Tensor) -> int:
    """The distance from the first number of an image to the last, as it lies in memory or in a contiguous copy."""
    here = sum((n - 1) * step for n, step in zip(image.shape[1:], image.stride()[1:], strict=True))
    return max(here, image.shape[1:].numel())


def _deal(channels: int, at_once: int, blocks: int) -> tuple[int, int]:
    """The number of programs that share a block's channels, and the steps of ``at_once`` channels that each takes."""
    steps = triton.cdiv(channels, at_once)
    group = triton.cdiv(steps, min(steps, triton.cdiv(_ENOUGH_PROGRAMS, blocks)))
    return triton.cdiv(steps, group), group


def _side_by_side(input: Tensor, at_once: int) -> Tensor:
    """The image with the channels of a texel side by side, so that one load reads ``at_once`` of them.

    It is a copy, padded to a multiple of these channels, unless the image is stored that way already.
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
