"""How far two images agree in structure: the correlation of their gradient vectors, in windows of the overlap.

Brightness, contrast and layout (sky over ground, a page on a table) say little about whether two images are aligned;
edges that lie on each other do. So the images are compared by vector fields that are zero where an image is flat: its
gradient or, between sensors whose contrasts may be reversed, the gradient with its angle doubled. The fields are
correlated in small windows, each as important as its texture, so that a hidden part costs its share and no more.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# The standard deviation, in pixels, of the blur before a gradient is taken.
_BLUR = 1.0
# The side of a window in pixels, and of one in an image whose longer side is below so many pixels.
_WINDOW, _SMALL_WINDOW, _SMALL = 9, 5, 48
# The standard errors that are taken off a mean correlation, so that a small overlap does not win by chance.
_ERRORS = 2.0
# The share of an image's mean gradient energy below which a window is taken as flat.
_FLAT = 1e-2


class Agreement(NamedTuple):
    """The agreement of warped sources with their targets.

    Args:
        mean: the size of the mean correlation of the gradient vectors, ``(B)``, from 0 to 1.
        value: the same less two standard errors, ``(B)``, so that a small overlap does not win by chance.
        overlap: the share of the target's weight at which both images are valid, ``(B)``.
    """

    mean: Tensor
    value: Tensor
    overlap: Tensor


def agreement(
    warped: Tensor, target: Tensor, valid_weight: Tensor, target_weight: Tensor, doubled: bool = False
) -> Agreement:
    """Compare warped sources with their targets.

    Args:
        warped: warped sources, ``(B, C, h, w)``.
        target: targets, ``(B, C, h, w)``.
        valid_weight: weight of the pixels at which both are valid, ``(B, 1, h, w)``.
        target_weight: weight of the target's pixels, ``(B, 1, h, w)``.
        doubled: whether the gradients' angles are doubled, for images whose contrasts may be reversed.
    """
    side = _WINDOW if max(target.shape[-2:]) >= _SMALL else _SMALL_WINDOW
    inside = shrink_mask(valid_weight)
    first, second = (vector_field(image, doubled) * inside for image in (warped, target))
    product, energy_1, energy_2 = (
        _window((a * b).sum(1, keepdim=True), side) for a, b in ((first, second), (first, first), (second, second))
    )
    floor_1, floor_2 = (
        _FLAT * energy.mean((1, 2, 3), keepdim=True) + torch.finfo(energy.dtype).tiny for energy in (energy_1, energy_2)
    )
    correlation = product / (energy_1.sqrt() * energy_2.sqrt()).clamp_min(torch.finfo(product.dtype).tiny)
    # Texture in either image makes a window count: one that shows something where the other shows nothing disagrees.
    weight = (energy_1 / (energy_1 + floor_1) + energy_2 / (energy_2 + floor_2)) * (_window(inside, side) > 0.5)
    total = weight.sum((1, 2, 3)).clamp_min(1e-6)
    mean = (correlation * weight).sum((1, 2, 3)) / total
    spread = ((correlation - mean[:, None, None, None]).square() * weight).sum((1, 2, 3)) / total
    windows = weight.sum((1, 2, 3)).square() / weight.square().sum((1, 2, 3)).clamp_min(1e-6) / side**2
    error = (spread / windows.clamp_min(1)).sqrt()
    overlap = valid_weight.sum((1, 2, 3)) / target_weight.sum((1, 2, 3)).clamp_min(1e-6)
    mean = mean.abs() * (windows > 0.5)
    return Agreement(mean.clamp(0, 1), mean - _ERRORS * error, overlap)


def vector_field(image: Tensor, doubled: bool = False) -> Tensor:
    """The gradient of the grey image as two channels, ``(B, 2, h, w)``, its size compressed by a square root."""
    x, y = gradient(blur(image.mean(1, keepdim=True), _BLUR))
    size = (x.square() + y.square()).sqrt()
    size = size + 1e-3 * size.amax((2, 3), keepdim=True) + torch.finfo(size.dtype).tiny
    if doubled:
        return torch.cat(((x.square() - y.square()) / size, 2 * x * y / size), 1) / size.sqrt()
    return torch.cat((x, y), 1) / size.sqrt()


def gradient(grey: Tensor) -> tuple[Tensor, Tensor]:
    """The central differences along x and y, ``(B, 1, h, w)`` each, 0 at the border."""
    x, y = torch.zeros_like(grey), torch.zeros_like(grey)
    x[..., 1:-1] = (grey[..., 2:] - grey[..., :-2]) / 2
    y[..., 1:-1, :] = (grey[..., 2:, :] - grey[..., :-2, :]) / 2
    return x, y


def blur(image: Tensor, sigma: float) -> Tensor:
    """The image ``(B, C, h, w)`` under a Gaussian of standard deviation ``sigma`` pixels, its border repeated."""
    reach = max(1, round(3 * sigma))
    kernel = (-torch.arange(-reach, reach + 1, dtype=image.dtype, device=image.device).square() / (2 * sigma**2)).exp()
    kernel = (kernel / kernel.sum()).view(1, 1, 1, -1)
    planes = image.flatten(0, 1)[:, None]
    planes = F.conv2d(F.pad(planes, (reach, reach, 0, 0), mode="replicate"), kernel)
    planes = F.conv2d(F.pad(planes, (0, 0, reach, reach), mode="replicate"), kernel.mT)
    return planes.view_as(image)


def shrink_mask(mask: Tensor) -> Tensor:
    """1 where the whole neighbourhood that a blurred gradient sees is valid, ``(B, 1, h, w)``."""
    reach = 3 if max(mask.shape[-2:]) >= _SMALL else 1
    return (-F.max_pool2d(-(mask > 0).to(mask), 2 * reach + 1, 1, reach)).clamp(0, 1)


def _window(values: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(values, side, 1, side // 2, count_include_pad=False)
