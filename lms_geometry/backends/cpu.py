"""The fused CPU backend: one pass over the output, in float32, by a small C library that may or may not be there.

The library (``_cpu.c``) is built where there is a compiler, and loaded here with ctypes, which lets go of the
interpreter's lock during a call. It runs on the threads that torch runs on. README.md says why it is as it is.
"""

import ctypes
import importlib.util
import os
from ctypes import byref, c_char_p, c_float, c_int32, c_int64, c_uint, c_void_p

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.backends import eager
from lms_geometry.backends.batches import compact, image_stride, unexpanded
from lms_geometry.checks import PADDING_MODES
from lms_geometry.config import LinearizedSampling

image_gradient = eager.image_gradient

# Channels that the library reads at once where they lie side by side; fewer are read plane by plane.
_CHANNELS_AT_ONCE = 8

# With fewer reads per thread, waking it takes longer than it saves.
_READS_A_THREAD = 1 << 15


def missing() -> str | None:
    """Why this backend cannot be used here, or ``None`` if it can."""
    if _library is None:
        return "its C library was not built: install lms_geometry again where there is a C compiler, GCC or clang"
    return None


def supports(input: Tensor, mode: str) -> bool:
    """Whether this backend can sample such an image."""
    height, width = input.shape[-2:]
    return (
        input.device.type == "cpu"
        and input.dtype == torch.float32
        and mode == "bilinear"
        and min(height, width) > 1
        and max(height, width) <= 2**24  # float32 counts no further
        and height * width < 2**31
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
    """As :func:`lms_geometry.backends.eager.sample`."""
    (batch, channels, height, width), (h, w) = input.shape, grid.shape[1:3]
    slope = input.new_empty((batch, channels, h, w, 2))
    if sampling.intercept:
        value = input.new_empty((batch, channels, h, w))
    else:  # to the last bit what an ordinary sampler reads
        value = F.grid_sample(input, eager.usable_points(grid), mode, padding_mode, align_corners)
    if value.numel() == 0:
        return value, slope
    reads = batch * h * w * sampling.num_samples
    input = unexpanded(input)
    channels_last = channels >= _CHANNELS_AT_ONCE and (
        input.is_contiguous(memory_format=torch.channels_last) or reads > input.shape[0] * height * width
    )
    input = input.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    grid, jacobian, noise, next_pixel = compact(grid, jacobian, noise)
    threads = _threads(reads * channels)
    job = _SampleJob(
        input.data_ptr(),
        grid.data_ptr(),
        None if jacobian is None else jacobian.data_ptr(),
        noise.data_ptr(),
        value.data_ptr(),
        slope.data_ptr(),
        image_stride(input),
        image_stride(grid),
        0 if jacobian is None else image_stride(jacobian),
        image_stride(noise),
        4 * next_pixel,
        batch,
        channels,
        height,
        width,
        h,
        w,
        sampling.num_samples,
        sampling.sigma,
        sampling.jitter,
        sampling.ridge,
        whiten,
        sampling.intercept,
        sampling.mask_out_of_bounds,
        PADDING_MODES.index(padding_mode),
        align_corners,
        channels_last,
        threads,
    )
    _run("sample", job, threads)
    if job.out_of_memory:
        raise MemoryError("no memory for the samples of a block of pixels")
    return value, slope


def grid_gradient(gradient: Tensor, slope: Tensor) -> Tensor:
    """As :func:`lms_geometry.backends.eager.grid_gradient`."""
    batch, channels, h, w = gradient.shape
    out = gradient.new_empty((batch, h, w, 2))
    gradient, slope = gradient.contiguous(), slope.contiguous()
    job = _GradientJob(gradient.data_ptr(), slope.data_ptr(), out.data_ptr(), batch, channels, h * w)
    _run("gradient", job, _threads(gradient.numel()))
    return out


class _SampleJob(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("input", "grid", "jacobian", "noise", "value", "slope")),
        *((name, c_int64) for name in ("next_input", "next_grid", "next_jacobian", "next_noise", "next_pixel")),
        *((name, c_int64) for name in ("batch", "channels", "height", "width", "out_height", "out_width", "samples")),
        *((name, c_float) for name in ("sigma", "jitter", "ridge")),
        *((name, c_int32) for name in ("to_whiten", "intercept", "mask", "padding", "align_corners", "channels_last")),
        ("threads", c_int32),
        ("taken", c_int64),
        ("out_of_memory", c_int32),
    )


class _GradientJob(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("value_gradient", "slope", "grid_gradient")),
        *((name, c_int64) for name in ("batch", "channels", "pixels", "taken")),
    )


def _threads(reads: int) -> int:
    """As many of torch's threads as are worth waking."""
    if _team is None or _forked:
        return 1
    return max(1, min(torch.get_num_threads(), reads // _READS_A_THREAD))


def _run(kernel: str, job: ctypes.Structure, threads: int) -> None:
    """Do a job on so many threads. They take its parts until none is left."""
    function = getattr(_library, f"{kernel}_{_instructions}")
    if threads > 1 and _team is not None:
        _team(function, byref(job), c_uint(threads), c_uint(0))
    else:
        function(byref(job))


def _load() -> ctypes.CDLL | None:
    spec = importlib.util.find_spec("lms_geometry.backends._cpu")
    if spec is None or spec.origin is None:
        return None
    try:
        return ctypes.CDLL(spec.origin)
    except OSError as error:
        raise ImportError(f"its C library cannot be loaded: {error}") from error


def _find_team() -> "ctypes._NamedFuncPointer | None":
    """``GOMP_parallel`` of the OpenMP library that torch has loaded, for GNU's, LLVM's and Intel's all have it."""
    if not torch.backends.openmp.is_available():
        return None
    try:
        return ctypes.CDLL(None).GOMP_parallel
    except (AttributeError, TypeError):  # no such symbol; no such thing on Windows
        return None


def _note_fork() -> None:
    """A child has none of its parent's threads, and OpenMP, which does not notice, would wait for them."""
    global _forked
    _forked = True


_library = _load()
_team = _find_team()
_forked = False
_instructions = ""
if _library is not None:
    _library.instruction_set.restype = c_char_p
    _instructions = _library.instruction_set().decode()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_note_fork)
