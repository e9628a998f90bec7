"""What the backends share: which points can be read, the image's gradient, and batches as kernels take them."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from lms_geometry.checks import MODES, PADDING_MODES
from lms_geometry.config import Reading
from lms_geometry.limits import FAR_OUTSIDE


def usable_points(grid: Tensor) -> Tensor:
    """The points of a grid, with those that are NaN, infinite or far outside moved to one place outside."""
    return grid.nan_to_num(FAR_OUTSIDE).clamp(-FAR_OUTSIDE, FAR_OUTSIDE)


def image_gradient(gradient: Tensor, image: Tensor, grid: Tensor, reading: Reading) -> Tensor:
    """The gradient for the image, by the weights with which the centres are read, in the grid's precision.

    Of the image only the size and the dtype matter.
    """
    gradient, points = gradient.to(grid.dtype), usable_points(grid)
    return image_gradient_at(gradient, image.to(grid.dtype), points, reading).to(image.dtype)


def image_gradient_at(gradient: Tensor, image: Tensor, points: Tensor, reading: Reading) -> Tensor:
    """The gradient of ``F.grid_sample`` for the image."""
    return torch.ops.aten.grid_sampler_2d_backward(gradient, image, points, *_numbers(reading), (True, False))[0]


def point_gradient_at(gradient: Tensor, image: Tensor, points: Tensor, reading: Reading) -> Tensor:
    """The gradient of ``F.grid_sample`` for the points."""
    return torch.ops.aten.grid_sampler_2d_backward(gradient, image, points, *_numbers(reading), (False, True))[1]


def _numbers(reading: Reading) -> tuple[int, int, bool]:
    """How an image is read, as torch's operators take it."""
    return MODES.index(reading.mode), PADDING_MODES.index(reading.padding_mode), reading.align_corners


def slopes_by_channel(
    mean: Callable[..., Tensor],
    gradient: Callable[..., tuple[Tensor, Tensor | None]],
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor,
    *how: object,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`lms_geometry.backends.eager_area.area_slopes`, by a backend's ``area_mean`` and ``area_gradient``.

    Each channel becomes an image of its own, and the gradient for a value is 1.
    """
    batch, channels = input.shape[:2]
    value = mean(input, grid, jacobian, *how)
    values, images = (rearrange(tensor, "b c h w -> (b c) 1 h w") for tensor in (value, input))
    grid, jacobian = (
        tensor.expand(*grid.shape[:3], *tensor.shape[3:]).repeat_interleave(channels, 0) for tensor in (grid, jacobian)
    )
    slope, by_jacobian = gradient(torch.ones_like(values), values, images, grid, jacobian, *how)
    assert by_jacobian is not None
    return value, slope.unflatten(0, (batch, channels)), by_jacobian.unflatten(0, (batch, channels))


def is_read_by_kernels(image: Tensor, mode: str) -> bool:
    """Whether the fused kernels can read an image: bilinearly, with a neighbour for every texel.

    Beyond a length of 2**24, float32 does not count every texel.
    """
    height, width = image.shape[-2:]
    return mode == "bilinear" and min(height, width) > 1 and max(height, width) <= 2**24


def unexpanded(tensor: Tensor) -> Tensor:
    """The first image of a batch that is one image expanded, and any other batch as it is."""
    return tensor[:1] if tensor.stride(0) == 0 else tensor


def compact(grid: Tensor, jacobian: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor | None, Tensor, int]:
    """Grid, Jacobian and noise, contiguous and each with a batch, and the Jacobian's stride from pixel to pixel.

    The stride, counted in Jacobians, is 0 where all pixels of an image share one, and 1 elsewhere.
    """
    h, w = grid.shape[1:3]
    noise = noise if noise.ndim == 5 else noise.unsqueeze(0)
    grid, noise = (unexpanded(tensor).contiguous() for tensor in (grid, noise))
    if jacobian is None:
        return grid, None, noise, 0
    jacobian, pixel_stride = compact_jacobian(jacobian, h, w)
    return grid, jacobian, noise, pixel_stride


def compact_jacobian(jacobian: Tensor, h: int, w: int) -> tuple[Tensor, int]:
    """The Jacobian as :func:`compact` returns it, for an output of ``h`` x ``w`` pixels, and its stride."""
    shared = jacobian.shape[1:3] == (1, 1)
    jacobian = unexpanded(jacobian if shared else jacobian.expand(-1, h, w, 2, 2)).contiguous()
    return jacobian, 0 if shared else 1


def batch_stride(tensor: Tensor) -> int:
    """The stride from image to image, 0 where the whole batch shares one image."""
    return 0 if tensor.shape[0] == 1 else tensor.stride(0)
