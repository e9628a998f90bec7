"""The mean over an output pixel's area and its gradients, fused in C: the numbers of ``eager_area.py`` in float32.

The library is that of :mod:`lms_geometry.backends.cpu`, which says what images it can read. A pixel without area has
``F.grid_sample``'s value to the last bit, since that is who reads it. Where no pixel has an area, torch's own operators
do everything.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.area import difference_rounding
from lms_geometry.backends.common import (
    batch_stride,
    compact_jacobian,
    image_gradient_at,
    point_gradient_at,
    slopes_by_channel,
    unexpanded,
    usable_points,
)
from lms_geometry.backends.cpu import run
from lms_geometry.backends.cpu_jobs import AreaJob
from lms_geometry.backends.cpu_threads import threads_for
from lms_geometry.checks import PADDING_MODES
from lms_geometry.config import Averaging, Reading
from lms_geometry.limits import TOLERANCE

# Output pixels of a piece, the unit of work of `area_gradient`. A piece also works out the row before and the row
# after, so it has several rows. The number of threads has no say, since pieces decide in which order sums are formed.
_LARGEST_PIECE, _FEWEST_ROWS, _PIECES = 1 << 14, 8, 16


def area_mean(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    averaging: Averaging,
    reading: Reading,
) -> Tensor:
    """As :func:`lms_geometry.backends.eager_area.area_mean`."""
    (batch, channels), (h, w) = input.shape[:2], grid.shape[1:3]
    if batch * channels * h * w == 0:
        return input.new_empty((batch, channels, h, w))
    job = _job(input, grid, jacobian, averaging, reading)
    if not _has_area(job):
        return F.grid_sample(input, _usable(grid, job), *reading)
    value = input.new_empty((batch, channels, h, w))
    plain = torch.empty((batch, h, w), dtype=torch.bool)
    job.value, job.plain = value.data_ptr(), plain.data_ptr()
    _do("area_mean", job, batch * h * w * averaging.nodes**2 * channels)
    if job.any_plain:
        centre = F.grid_sample(input, _usable(grid, job), *reading)
        torch.where(plain.unsqueeze(1), centre, value, out=value)
    return value


def area_image_gradient(
    gradient: Tensor,
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    averaging: Averaging,
    reading: Reading,
) -> Tensor:
    """As :func:`lms_geometry.backends.eager_area.area_image_gradient`."""
    by_image = torch.zeros(input.shape, dtype=torch.float32)
    if gradient.numel() == 0 or input.numel() == 0:
        return by_image
    job = _job(input, grid, jacobian, averaging, reading)
    if not _has_area(job):
        return image_gradient_at(gradient, input, _usable(grid, job), reading)
    gradient = gradient.contiguous()
    job.value_gradient, job.image_gradient = gradient.data_ptr(), by_image.data_ptr()
    # A thread adds up whole images where there are enough of them, else some channels of an image.
    threads = threads_for(gradient.numel() * averaging.nodes**2)
    job.together = -(-input.shape[1] // -(-threads // input.shape[0]))
    _do("area_image_gradient", job, gradient.numel() * averaging.nodes**2)
    return by_image


def area_gradient(
    gradient: Tensor,
    value: Tensor,
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    averaging: Averaging,
    reading: Reading,
) -> tuple[Tensor, Tensor | None]:
    """As :func:`lms_geometry.backends.eager_area.area_gradient`."""
    batch, h, w, _ = grid.shape
    if gradient.numel() == 0:
        return torch.zeros_like(grid), None if jacobian is None else torch.zeros_like(jacobian)
    job = _job(input, grid, jacobian, averaging, reading)
    job.count = averaging.edge_nodes
    if not _has_area(job):
        points = _usable(grid, job)
        by_grid = point_gradient_at(gradient, input, points, reading)
        if points is not grid:
            by_grid = torch.where(grid == points, by_grid, 0.0)
        return by_grid, None if jacobian is None else torch.zeros_like(jacobian)
    gradient, value = gradient.contiguous(), value.contiguous()
    by_grid = torch.empty((batch, h, w, 2), dtype=torch.float32)
    job.rows = min(h, max(_FEWEST_ROWS, min(_LARGEST_PIECE, batch * h * w // _PIECES) // w))
    by_jacobian = None
    if jacobian is not None:
        shape = (batch, h, w, 2, 2) if job.pixel_stride else (batch, -(-h // job.rows), 1, 2, 2)
        by_jacobian = torch.empty(shape, dtype=torch.float32)
        job.jacobian_gradient = by_jacobian.data_ptr()
    job.value, job.value_gradient, job.grid_gradient = value.data_ptr(), gradient.data_ptr(), by_grid.data_ptr()
    _do("area_gradient", job, gradient.numel() * 4 * averaging.edge_nodes)
    if by_jacobian is None or jacobian is None:
        return by_grid, None
    return by_grid, by_jacobian.sum_to_size(jacobian.shape)


def area_slopes(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor,
    averaging: Averaging,
    reading: Reading,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`lms_geometry.backends.eager_area.area_slopes`."""
    job = _job(input, grid, jacobian, averaging, reading)
    shape = *input.shape[:2], *grid.shape[1:3]
    if math.prod(shape) == 0 or not _has_area(job):
        return slopes_by_channel(area_mean, area_gradient, input, grid, jacobian, averaging, reading)
    value = area_mean(input, grid, jacobian, averaging, reading)
    slope, by_jacobian = (torch.empty((*shape, *axes), dtype=torch.float32) for axes in ((2,), (2, 2)))
    job.count = averaging.edge_nodes
    job.value, job.grid_gradient, job.jacobian_gradient = value.data_ptr(), slope.data_ptr(), by_jacobian.data_ptr()
    _do("area_slopes", job, value.numel() * 4 * averaging.edge_nodes)
    return value, slope, by_jacobian


def _job(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    averaging: Averaging,
    reading: Reading,
) -> AreaJob:
    """The part of a job that all three functions have. It keeps the tensors alive that it points to."""
    (batch, channels, height, width), (h, w) = input.shape, grid.shape[1:3]
    input, grid = unexpanded(input).contiguous(), unexpanded(grid).contiguous()
    rounding, pixel_stride = 0.0, 0
    if jacobian is None:
        rounding = difference_rounding(torch.float32, max(height, width))
    else:
        jacobian, pixel_stride = compact_jacobian(jacobian, h, w)
    job = AreaJob(
        input=input.data_ptr(),
        grid=grid.data_ptr(),
        jacobian=None if jacobian is None else jacobian.data_ptr(),
        input_stride=batch_stride(input),
        grid_stride=batch_stride(grid),
        jacobian_stride=0 if jacobian is None else batch_stride(jacobian),
        pixel_stride=4 * pixel_stride,
        batch=batch,
        channels=channels,
        height=height,
        width=width,
        out_height=h,
        out_width=w,
        count=averaging.nodes,
        side=averaging.side,
        limit=1 + TOLERANCE + rounding,
        rounding=min(rounding, TOLERANCE / 2),  # Pixels that shrink nothing must never pass for some that do.
        padding=PADDING_MODES.index(reading.padding_mode),
        align_corners=reading.align_corners,
    )
    job.tensors = input, grid, jacobian
    return job


def _has_area(job: AreaJob) -> bool:
    """Whether any pixel has an area."""
    _do("area_search", job, job.batch * job.out_height * job.out_width)
    return bool(job.any_area)


def _usable(grid: Tensor, job: AreaJob) -> Tensor:
    """The points that ``F.grid_sample`` is given, after a search that went through all of them."""
    return usable_points(grid) if job.any_unusable else grid


def _do(kernel: str, job: AreaJob, reads: int) -> None:
    job.taken = 0
    run(kernel, job, threads_for(reads))
    if job.out_of_memory:
        raise MemoryError("no memory for the nodes of a block of pixels")
