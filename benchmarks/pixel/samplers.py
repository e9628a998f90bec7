"""The samplers compared, all in one form: images and the matrix of a warp in, views out.

The matrices are ``(B, 2, 3)``, view to image, normalised with ``align_corners=False``.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from kornia.geometry.conversions import convert_affinematrix_to_homography
from torch import Tensor

from benchmarks import antialiasing
from benchmarks.samplers import MASKED
from lms_geometry import LinearizedSampling, grid_sample_linearized, homography_warp_linearized

Size = tuple[int, int]
View = Callable[[Tensor, Tensor, Size, torch.Generator], Tensor]

# How many reads along each axis of an output pixel stand for all of it.
FINE = 24


def bilinear(images: Tensor, theta: Tensor, size: Size, _: torch.Generator) -> Tensor:
    return F.grid_sample(images, affine_grid(theta, size), align_corners=False)


def supersampled(count: int) -> View:
    """The mean of ``count * count`` bilinear reads within each output pixel."""

    def view(images: Tensor, theta: Tensor, size: Size, _: torch.Generator) -> Tensor:
        return antialiasing.pooled(images, affine_grid(theta, (count * size[0], count * size[1])), count)

    return view


def mipmapped(images: Tensor, theta: Tensor, size: Size, _: torch.Generator) -> Tensor:
    return antialiasing.mipmapped(images, affine_grid(theta, size))


def linearized(sampling: LinearizedSampling) -> View:
    def view(images: Tensor, theta: Tensor, size: Size, generator: torch.Generator) -> Tensor:
        matrix, drawn = convert_affinematrix_to_homography(theta), generator if sampling.is_drawn else None
        return homography_warp_linearized(images, matrix, size, sampling=sampling, generator=drawn)

    return view


def area_held(images: Tensor, theta: Tensor, size: Size, _: torch.Generator) -> Tensor:
    """The default, but that the derivative leaves out that the area of a pixel changes with the matrix."""
    jacobian = pixel_jacobian(theta.detach(), (images.shape[-2], images.shape[-1]), size)
    return grid_sample_linearized(images, affine_grid(theta, size), jacobian=jacobian)


DEFAULT = "default"
SAMPLERS: dict[str, View] = {
    "bilinear": bilinear,
    "supersampled 2 x 2": supersampled(2),
    "supersampled 3 x 3": supersampled(3),
    "supersampled 4 x 4": supersampled(4),
    "mipmap": mipmapped,
    "paper": linearized(LinearizedSampling.paper()),
    "whitened, sigma 0.3, masked": linearized(MASKED),
    DEFAULT: linearized(LinearizedSampling()),
    "default, K = 16": linearized(LinearizedSampling(num_samples=16)),
}


def pixel_mean(images: Tensor, theta: Tensor, size: Size) -> Tensor:
    """The mean over each output pixel, image by image, from 24 x 24 reads."""
    fine = supersampled(FINE)
    pairs = zip(images, theta.expand(len(images), -1, -1), strict=True)
    return torch.cat([fine(image[None], matrix[None], size, torch.default_generator) for image, matrix in pairs])


def shrinking(rate: float, turn: float, images: Tensor, size: Size) -> Tensor:
    """A warp of which every output pixel covers a square of the image with sides of ``rate`` source pixels.

    Args:
        rate: how many times the image is shrunk.
        turn: angle in radians.
        images: ``(B, C, H, W)``.
        size: height and width of the view.

    Returns:
        ``(B, 2, 3)``. The middle of the view lies 0.37 and 0.21 source pixels from that of the image.
    """
    height, width = images.shape[-2:]
    angle = torch.tensor(turn, dtype=torch.float64)
    turned = torch.stack((torch.stack((angle.cos(), -angle.sin())), torch.stack((angle.sin(), angle.cos()))))
    from_view = turned * rate * turned.new_tensor((size[1] / 2, size[0] / 2))
    to_image = turned.new_tensor((2 / width, 2 / height))
    linear, shift = to_image[:, None] * from_view, to_image * turned.new_tensor((0.37, 0.21))
    return torch.cat((linear, shift[:, None]), 1).to(images.dtype).repeat(len(images), 1, 1)


def affine_grid(theta: Tensor, size: Size) -> Tensor:
    return F.affine_grid(theta, [len(theta), 1, *size], align_corners=False)


def pixel_jacobian(theta: Tensor, image_size: Size, size: Size) -> Tensor:
    """Source pixels per output pixel, ``(B, 1, 1, 2, 2)``."""
    to_pixels, from_pixels = theta.new_tensor((image_size[1], image_size[0])), theta.new_tensor((size[1], size[0]))
    return (theta[:, :, :2] * to_pixels[:, None] / from_pixels)[:, None, None]
