"""The GPU backend for the mean over an output pixel's area: the functions of ``eager_area.py``, fused, in Triton.

Here the sizes of blocks are chosen and the kernels of ``_triton_area_kernels.py`` launched. The image may be float16 or
bfloat16 beside a float32 grid; arithmetic is in float32. Nothing here waits for the GPU.
"""

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from lms_geometry.area import difference_rounding
from lms_geometry.backends import _triton_area_kernels as kernels
from lms_geometry.backends import eager_area
from lms_geometry.backends.common import (
    batch_stride,
    compact_jacobian,
    slopes_by_channel,
    unexpanded,
    usable_points,
)
from lms_geometry.backends.triton import _deal, _device_of
from lms_geometry.config import Averaging, Reading
from lms_geometry.limits import TOLERANCE

# Number of output pixels of a program: one for each thread of its four warps.
_PIXELS = 128


def area_mean(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    averaging: Averaging,
    reading: Reading,
) -> Tensor:
    """As :func:`lms_geometry.backends.eager_area.area_mean`.

    ``F.grid_sample`` reads every point first, so that its values are there to the last bit, and the kernel overwrites
    those of the pixels that have an extent. To read only the others would take a wait for the GPU, which alone knows
    which these are.
    """
    value = F.grid_sample(input.to(grid.dtype), usable_points(grid), *reading)
    value = value.to(input.dtype).contiguous()
    if value.numel() == 0:
        return value
    at_once = _at_once(input)
    blocks = _blocks(value)
    programs, group = _deal(input.shape[1], at_once, blocks)
    vector, image_strides = _strides(input, at_once)
    grid, jacobian, least, strides = _geometry(input, grid, jacobian)
    with _device_of(input):
        kernels.mean[blocks, programs](
            input,
            grid,
            jacobian,
            value,
            *image_strides,
            *strides,
            *input.shape[1:],
            *value.shape[2:],
            group,
            float(averaging.side),
            least,
            COUNT=averaging.nodes,
            PADDING=reading.padding_mode,
            ALIGN_CORNERS=reading.align_corners,
            PIXELS=_PIXELS,
            CHANNELS=at_once,
            VECTOR=vector,
            enable_fp_fusion=True,
        )
    return value


def area_image_gradient(
    gradient: Tensor,
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    averaging: Averaging,
    reading: Reading,
) -> Tensor:
    """As :func:`lms_geometry.backends.eager_area.area_image_gradient`, by atomic additions in float32.

    Where deterministic algorithms are asked for, that function is called: torch's own kernel then has the say.
    """
    if torch.are_deterministic_algorithms_enabled():
        gradient, image = gradient.to(grid.dtype), input.to(grid.dtype)
        return eager_area.area_image_gradient(gradient, image, grid, jacobian, averaging, reading).to(input.dtype)
    out = grid.new_zeros(input.shape)
    if gradient.numel() == 0:
        return out.to(input.dtype)
    at_once = _at_once(input)
    blocks = _blocks(gradient)
    programs, group = _deal(input.shape[1], at_once, blocks)
    grid, jacobian, least, strides = _geometry(input, grid, jacobian)
    with _device_of(input):
        kernels.image_gradient[blocks, programs](
            gradient.contiguous(),
            grid,
            jacobian,
            out,
            *strides,
            *input.shape[1:],
            *gradient.shape[2:],
            group,
            float(averaging.side),
            least,
            COUNT=averaging.nodes,
            PADDING=reading.padding_mode,
            ALIGN_CORNERS=reading.align_corners,
            PIXELS=_PIXELS,
            CHANNELS=at_once,
            enable_fp_fusion=True,
        )
    return out.to(input.dtype)


def area_gradient(
    gradient: Tensor,
    value: Tensor,
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    averaging: Averaging,
    reading: Reading,
) -> tuple[Tensor, Tensor | None]:
    """As :func:`lms_geometry.backends.eager_area.area_gradient`.

    All sums are taken in a fixed order, so that the result is the same to the last bit on every run.
    """
    (batch, _, h, w), given = gradient.shape, jacobian
    by_grid = grid.new_zeros((batch, h, w, 2))
    if gradient.numel() == 0:
        return by_grid, None if given is None else torch.zeros_like(given)
    at_once = _at_once(input)
    blocks = _blocks(gradient)
    total = given is not None and given.shape[1:3] == (1, 1)  # A block then stores one sum.
    by_jacobian = grid.new_empty((batch, blocks // batch, 1, 2, 2) if total else (batch, h, w, 2, 2))
    vector, image_strides = _strides(input, at_once)
    grid, jacobian, least, strides = _geometry(input, grid, jacobian)
    with _device_of(input):
        kernels.gradient[blocks,](
            gradient.contiguous(),
            value.contiguous(),
            input,
            grid,
            jacobian,
            by_grid,
            by_jacobian,
            *image_strides,
            *strides,
            *input.shape[1:],
            h,
            w,
            float(averaging.side),
            least,
            COUNT=averaging.edge_nodes,
            TOTAL=total,
            PADDING=reading.padding_mode,
            ALIGN_CORNERS=reading.align_corners,
            PIXELS=_PIXELS,
            CHANNELS=at_once,
            VECTOR=vector,
            enable_fp_fusion=True,
        )
        if given is None:
            kernels.difference_gradient[_blocks(gradient),](
                grid,
                by_jacobian,
                by_grid,
                strides[0],
                *input.shape[2:],
                h,
                w,
                ALIGN_CORNERS=reading.align_corners,
                PIXELS=_PIXELS,
                enable_fp_fusion=True,
            )
    return by_grid, None if given is None else by_jacobian.sum_to_size(given.shape)


def area_slopes(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor,
    averaging: Averaging,
    reading: Reading,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`lms_geometry.backends.eager_area.area_slopes`."""
    return slopes_by_channel(area_mean, area_gradient, input, grid, jacobian, averaging, reading)


def _geometry(
    input: Tensor, grid: Tensor, jacobian: Tensor | None
) -> tuple[Tensor, Tensor | None, float, tuple[int, int, int]]:
    """The arguments from which the kernels compute the areas.

    Returns:
        Grid and Jacobian, contiguous, and an expanded batch as one image; the largest stretch that gives no extent; and
        three strides: from image to image in points, from image to image and from pixel to pixel in Jacobians.
    """
    h, w = grid.shape[1:3]
    grid = unexpanded(grid).contiguous()
    if jacobian is None:
        rounding = difference_rounding(grid.dtype, max(input.shape[2:]))
        return grid, None, 1 + TOLERANCE + rounding, (batch_stride(grid) // 2, 0, 0)
    jacobian, pixel_stride = compact_jacobian(jacobian, h, w)
    return grid, jacobian, 1 + TOLERANCE, (batch_stride(grid) // 2, batch_stride(jacobian) // 4, pixel_stride)


def _at_once(input: Tensor) -> int:
    """How many channels a program reads at once: a thread reads so many of one pixel."""
    return min(4, triton.next_power_of_2(input.shape[1]))


def _strides(input: Tensor, at_once: int) -> tuple[int, tuple[int, int, int, int]]:
    """How many channels one load reads, and the strides of the image.

    Channels that lie side by side are read as a vector, and the strides from image to image, row to row and column to
    column are then counted in vectors. Channels that lie apart are read one by one: a copy that puts them side by side
    would cost more than all else under a warp that shrinks nowhere.
    """
    image, channel, row, column = input.stride()
    vector = at_once if channel == 1 and all(n % at_once == 0 for n in (input.shape[1], image, row, column)) else 1
    return vector, (image // vector, channel, row // vector, column // vector)


def _blocks(out: Tensor) -> int:
    """How many programs it takes for all pixels of all images of ``out``, which is ``(B, C, h, w)``."""
    return out.shape[0] * triton.cdiv(out.shape[2] * out.shape[3], _PIXELS)
