"""The mean over an output pixel's area and its gradients, fused in C: the numbers of ``eager_area.py`` in float32.

The library is that of :mod:`lms_geometry.backends.cpu`, which says what images it can read. A pixel without area has
``F.grid_sample``'s value to the last bit, since that is who reads it. Where no pixel has an area, torch's own operators
do everything.
"""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.area import _TOLERANCE
from lms_geometry.backends.batches import image_stride, unexpanded
from lms_geometry.backends.cpu import _library, _run, _threads
from lms_geometry.backends.eager import usable_points
from lms_geometry.checks import MODES, PADDING_MODES

# Output pixels of a piece, the unit of work of `area_gradient`. A piece also works out the row before and the row
# after, so it has several rows. The number of threads has no say, since pieces decide in which order sums are formed.
_LARGEST_PIECE, _FEWEST_ROWS, _PIECES = 1 << 14, 8, 16


def area_mean(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    count: int,
    side: float,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> Tensor:
    """As :func:`lms_geometry.backends.eager_area.area_mean`."""
    (batch, channels), (h, w) = input.shape[:2], grid.shape[1:3]
    if batch * channels * h * w == 0:
        return input.new_empty((batch, channels, h, w))
    job = _job(input, grid, jacobian, count, side, padding_mode, align_corners)
    if not _has_area(job):
        return F.grid_sample(input, _usable(grid, job), mode, padding_mode, align_corners)
    value = input.new_empty((batch, channels, h, w))
    plain = torch.empty((batch, h, w), dtype=torch.bool)
    job.value, job.plain = value.data_ptr(), plain.data_ptr()
    _do("area_mean", job, batch * h * w * count * count * channels)
    if job.any_plain:
        centre = F.grid_sample(input, _usable(grid, job), mode, padding_mode, align_corners)
        torch.where(plain.unsqueeze(1), centre, value, out=value)
    return value


def area_image_gradient(
    gradient: Tensor,
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    count: int,
    side: float,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> Tensor:
    """As :func:`lms_geometry.backends.eager_area.area_image_gradient`."""
    by_image = torch.zeros(input.shape)
    if gradient.numel() == 0 or input.numel() == 0:
        return by_image
    job = _job(input, grid, jacobian, count, side, padding_mode, align_corners)
    if not _has_area(job):
        points = _usable(grid, job)
        return _bilinear(gradient, input, points, mode, padding_mode, align_corners, image=True)
    gradient = gradient.contiguous()
    job.value_gradient, job.image_gradient = gradient.data_ptr(), by_image.data_ptr()
    # A thread adds up whole images where there are enough of them, else some channels of an image.
    threads = _threads(gradient.numel() * count * count)
    job.together = -(-input.shape[1] // -(-threads // input.shape[0]))
    _do("area_image_gradient", job, gradient.numel() * count * count)
    return by_image


def area_gradient(
    gradient: Tensor,
    value: Tensor,
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    count: int,
    side: float,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> tuple[Tensor, Tensor | None]:
    """As :func:`lms_geometry.backends.eager_area.area_gradient`."""
    batch, h, w, _ = grid.shape
    if gradient.numel() == 0:
        return torch.zeros_like(grid), None if jacobian is None else torch.zeros_like(jacobian)
    job = _job(input, grid, jacobian, count, side, padding_mode, align_corners)
    if not _has_area(job):
        points = _usable(grid, job)
        by_grid = _bilinear(gradient, input, points, mode, padding_mode, align_corners, image=False)
        if points is not grid:
            by_grid = torch.where(grid == points, by_grid, 0.0)
        return by_grid, None if jacobian is None else torch.zeros_like(jacobian)
    gradient, value = gradient.contiguous(), value.contiguous()
    by_grid = torch.empty((batch, h, w, 2))
    job.rows = min(h, max(_FEWEST_ROWS, min(_LARGEST_PIECE, batch * h * w // _PIECES) // w))
    by_jacobian = None
    if jacobian is not None:
        by_jacobian = torch.empty((batch, h, w, 2, 2) if job.next_pixel else (batch, -(-h // job.rows), 1, 2, 2))
        job.jacobian_gradient = by_jacobian.data_ptr()
    job.value, job.value_gradient, job.grid_gradient = value.data_ptr(), gradient.data_ptr(), by_grid.data_ptr()
    _do("area_gradient", job, gradient.numel() * 4 * count)
    if by_jacobian is None or jacobian is None:
        return by_grid, None
    return by_grid, by_jacobian.sum_to_size(jacobian.shape)


def area_gradients(
    gradient: Tensor,
    value: Tensor,
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    count: int,
    side: float,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients for image, grid and Jacobian. Where no pixel has an area, torch's operator gives both at once."""
    settings = count, side, mode, padding_mode, align_corners
    if gradient.numel() > 0:
        job = _job(input, grid, jacobian, count, side, padding_mode, align_corners)
        if not _has_area(job) and not job.any_unusable:
            how = MODES.index(mode), PADDING_MODES.index(padding_mode), align_corners, (True, True)
            by_image, by_grid = torch.ops.aten.grid_sampler_2d_backward(gradient, input, grid, *how)
            return by_image, by_grid, None if jacobian is None else torch.zeros_like(jacobian)
    by_image = area_image_gradient(gradient, input, grid, jacobian, *settings)
    return by_image, *area_gradient(gradient, value, input, grid, jacobian, *settings)


class _AreaJob(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("input", "grid", "jacobian", "value", "value_gradient")),
        *((name, c_void_p) for name in ("image_gradient", "grid_gradient", "jacobian_gradient", "plain")),
        *((name, c_int64) for name in ("next_input", "next_grid", "next_jacobian", "next_pixel")),
        *((name, c_int64) for name in ("batch", "channels", "height", "width", "out_height", "out_width")),
        *((name, c_int64) for name in ("count", "rows", "together")),
        *((name, c_float) for name in ("side", "limit")),
        *((name, c_int32) for name in ("padding", "align_corners")),
        ("taken", c_int64),
        *((name, c_int32) for name in ("any_area", "any_plain", "any_unusable", "out_of_memory")),
    )


def _job(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    count: int,
    side: float,
    padding_mode: str,
    align_corners: bool,
) -> _AreaJob:
    """The part of a job that all three functions have. It keeps the tensors alive that it points to."""
    (batch, channels, height, width), (h, w) = input.shape, grid.shape[1:3]
    input, grid = unexpanded(input).contiguous(), unexpanded(grid).contiguous()
    limit = 1 + _TOLERANCE
    shared = jacobian is not None and jacobian.shape[1:3] == (1, 1)
    if jacobian is None:
        limit += 2 * torch.finfo(torch.float32).eps * max(height, width)
    else:
        jacobian = unexpanded(jacobian if shared else jacobian.expand(-1, h, w, 2, 2)).contiguous()
    job = _AreaJob(
        input=input.data_ptr(),
        grid=grid.data_ptr(),
        jacobian=None if jacobian is None else jacobian.data_ptr(),
        next_input=image_stride(input),
        next_grid=image_stride(grid),
        next_jacobian=0 if jacobian is None else image_stride(jacobian),
        next_pixel=0 if shared else 4,
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        out_height=h,
        out_width=w,
        count=count,
        side=side,
        limit=limit,
        padding=PADDING_MODES.index(padding_mode),
        align_corners=align_corners,
    )
    job.tensors = input, grid, jacobian
    return job


def _has_area(job: _AreaJob) -> bool:
    """Whether any pixel has an area."""
    _do("area_search", job, job.batch * job.out_height * job.out_width)
    return bool(job.any_area)


def _usable(grid: Tensor, job: _AreaJob) -> Tensor:
    """The points that ``F.grid_sample`` is given, after a search that went through all of them."""
    return usable_points(grid) if job.any_unusable else grid


def _do(kernel: str, job: _AreaJob, reads: int) -> None:
    job.taken = 0
    _run(kernel, job, _threads(reads))
    if job.out_of_memory:
        raise MemoryError("no memory for the nodes of a block of pixels")


def _bilinear(
    gradient: Tensor, input: Tensor, points: Tensor, mode: str, padding_mode: str, align_corners: bool, image: bool
) -> Tensor:
    """The gradient of ``F.grid_sample`` for the image or for the grid."""
    how = MODES.index(mode), PADDING_MODES.index(padding_mode), align_corners
    backward = torch.ops.aten.grid_sampler_2d_backward
    return backward(gradient, input, points, *how, (image, not image))[0 if image else 1]


if _library is not None and _library.area_job_size() != ctypes.sizeof(_AreaJob):
    raise ImportError("its C library is of another version: install lms_geometry again")
