"""The fused CPU backend: one pass over the output, in float32, by a small C library.

The library (``_cpu.c``) is built where there is a compiler, and is loaded here with ctypes, which releases the
interpreter's lock during a call. ``cpu_threads.py`` has the threads. README.md gives the reasons for its design.
"""

import ctypes
import importlib.util
from ctypes import c_char_p

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.backends import cpu_threads
from lms_geometry.backends.common import (
    batch_stride,
    compact,
    image_gradient,
    is_read_by_kernels,
    unexpanded,
    usable_points,
)
from lms_geometry.backends.cpu_jobs import JOBS, GradientJob, SampleJob
from lms_geometry.backends.cpu_threads import threads_for
from lms_geometry.checks import PADDING_MODES
from lms_geometry.config import LinearizedSampling, Reading
from lms_geometry.footprint import Placement

__all__ = ["grid_gradient", "image_gradient", "sample", "supports", "supports_gradient", "unavailable_reason"]

# The number of channels that the library reads at once where they lie side by side. An image with fewer channels is
# read plane by plane.
_CHANNELS_AT_ONCE = 8


def unavailable_reason() -> str | None:
    """Why this backend cannot be used here, or ``None`` if it can."""
    if _library is None:
        return "its C library was not built: install lms_geometry again where there is a C compiler, GCC or clang"
    return None


def supports(image: Tensor, mode: str) -> bool:
    """Whether this backend can sample such an image."""
    height, width = image.shape[-2:]
    return supports_gradient(image) and is_read_by_kernels(image, mode) and height * width < 2**31


def supports_gradient(gradient: Tensor) -> bool:
    """Whether this backend can turn such a gradient into that of the grid."""
    return gradient.device.type == "cpu" and gradient.dtype == torch.float32


def sample(
    input: Tensor, grid: Tensor, placement: Placement, sampling: LinearizedSampling, reading: Reading
) -> tuple[Tensor, Tensor]:
    """As :func:`lms_geometry.backends.eager.sample`."""
    (batch, channels, height, width), (h, w) = input.shape, grid.shape[1:3]
    slope = input.new_empty((batch, channels, h, w, 2))
    if sampling.intercept:
        value = input.new_empty((batch, channels, h, w))
    else:  # the value is that of an ordinary sampler to the last bit
        value = F.grid_sample(input, usable_points(grid), *reading)
    if value.numel() == 0:
        return value, slope
    reads = batch * h * w * sampling.num_samples
    input = unexpanded(input)
    channels_last = channels >= _CHANNELS_AT_ONCE and (
        input.is_contiguous(memory_format=torch.channels_last) or reads > input.shape[0] * height * width
    )
    input = input.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    grid, jacobian, noise, pixel_stride = compact(grid, placement.jacobian, placement.noise)
    threads = threads_for(reads * channels)
    job = SampleJob(
        input=input.data_ptr(),
        grid=grid.data_ptr(),
        jacobian=None if jacobian is None else jacobian.data_ptr(),
        noise=noise.data_ptr(),
        value=value.data_ptr(),
        slope=slope.data_ptr(),
        input_stride=batch_stride(input),
        grid_stride=batch_stride(grid),
        jacobian_stride=0 if jacobian is None else batch_stride(jacobian),
        noise_stride=batch_stride(noise),
        pixel_stride=4 * pixel_stride,
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        out_height=h,
        out_width=w,
        samples=sampling.num_samples,
        sigma=sampling.sigma,
        jitter=sampling.jitter,
        ridge=sampling.ridge,
        to_whiten=placement.whiten,
        intercept=sampling.intercept,
        mask=sampling.mask_out_of_bounds,
        padding=PADDING_MODES.index(reading.padding_mode),
        align_corners=reading.align_corners,
        channels_last=channels_last,
        threads=threads,
    )
    run("sample", job, threads)
    if job.out_of_memory:
        raise MemoryError("there is no memory for the samples of a block of pixels")
    return value, slope


def grid_gradient(gradient: Tensor, slope: Tensor) -> Tensor:
    """As :func:`lms_geometry.backends.eager.grid_gradient`."""
    batch, channels, h, w = gradient.shape
    out = gradient.new_empty((batch, h, w, 2))
    gradient, slope = gradient.contiguous(), slope.contiguous()
    job = GradientJob(
        value_gradient=gradient.data_ptr(),
        slope=slope.data_ptr(),
        grid_gradient=out.data_ptr(),
        batch=batch,
        channels=channels,
        pixels=h * w,
    )
    run("gradient", job, threads_for(gradient.numel()))
    return out


def run(kernel: str, job: ctypes.Structure, threads: int) -> None:
    """Do a job on a number of threads, by the kernel for this machine's instruction set."""
    cpu_threads.run(getattr(_library, f"{kernel}_{_instructions}"), job, threads)


def _load() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("lms_geometry.backends._cpu")
    if spec is None or spec.origin is None:
        return None
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:
        raise ImportError(f"its C library cannot be loaded: {error}") from error
    for name, job in JOBS.items():
        if not hasattr(library, name) or getattr(library, name)() != ctypes.sizeof(job):
            raise ImportError(
                f"its C library {spec.origin} was built from other sources than cpu.py belongs to: build it again with "
                "`pip install --editable .` in the source tree, or install lms_geometry again"
            )
    return library


_library = _load()
_instructions = ""
if _library is not None:
    _library.instruction_set.restype = c_char_p
    _instructions = _library.instruction_set().decode()
