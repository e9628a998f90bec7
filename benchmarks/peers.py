"""What linearized sampling is compared with: samplers that blur the image instead of sampling it many times."""

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor


def bilinear(image: Tensor, grid: Tensor) -> Tensor:
    """Plain ``grid_sample``."""
    return F.grid_sample(image, grid, align_corners=False)


def multi_scale(image: Tensor, grid: Tensor) -> Tensor:
    """The paper's baseline (section 6.1): the mean of bilinear samples of three blurred images."""
    return torch.stack([bilinear(_blurred(image, sigma), grid) for sigma in (1.0, 5.0, 10.0)]).mean(0)


def blurred(image: Tensor, sigma: float) -> tuple[Tensor, float]:
    """An image on a canvas of zeros, blurred, and the canvas's size in images.

    The canvas keeps what the blur spreads beyond the edge, as sampling with zero padding would see it.
    """
    margin = int(3 * sigma) + 1
    canvas = F.pad(image, (margin,) * 4)
    return _blurred(canvas, sigma), canvas.shape[-1] / image.shape[-1]


def _blurred(image: Tensor, sigma: float) -> Tensor:
    width = 2 * int(3 * sigma) + 1
    return gaussian_blur2d(image, (width, width), (sigma, sigma), border_type="constant")
