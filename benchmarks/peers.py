"""What linearized sampling is compared with: samplers that blur the image instead of sampling it many times."""

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor


def bilinear(image: Tensor, grid: Tensor) -> Tensor:
    """Plain ``grid_sample``; either batch may be 1."""
    batch = max(len(image), len(grid))
    return F.grid_sample(image.expand(batch, -1, -1, -1), grid.expand(batch, -1, -1, -1), align_corners=False)


def multi_scale(levels: Sequence[Tensor], grid: Tensor) -> Tensor:
    """The paper's baseline (section 6.1): the mean of bilinear samples of three blurred images."""
    return torch.stack([bilinear(level, grid) for level in levels]).mean(0)


def blur_levels(image: Tensor) -> list[Tensor]:
    """The three images of the paper's baseline, blurred by Gaussians of 1, 5 and 10 pixels."""
    widths = {sigma: 2 * int(3 * sigma) + 1 for sigma in (1.0, 5.0, 10.0)}
    return [gaussian_blur2d(image, (w, w), (sigma, sigma), border_type="constant") for sigma, w in widths.items()]


def blurred(image: Tensor, sigma: float) -> tuple[Tensor, float]:
    """An image on a canvas of zeros, blurred, and the canvas's size in images.

    The canvas keeps what the blur spreads beyond the edge, as sampling with zero padding would see it.
    """
    margin = int(3 * sigma) + 1
    canvas = F.pad(image, (margin,) * 4)
    height, width = canvas.shape[-2], canvas.shape[-1]
    frequency_y, frequency_x = torch.fft.fftfreq(height), torch.fft.rfftfreq(width)
    falloff = (-2 * (torch.pi * sigma) ** 2 * (frequency_y[:, None] ** 2 + frequency_x**2)).exp()
    smooth = torch.fft.irfft2(torch.fft.rfft2(canvas) * falloff, s=(height, width))
    return smooth, width / image.shape[-1]


def load_authors(folder: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """The sampler of the authors' own ``warp/linearized.py``, from a folder with their release.

    Raises:
        SystemExit: if the file is not there.
    """
    path = folder / "warp" / "linearized.py"
    spec = importlib.util.spec_from_file_location("authors_linearized", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise SystemExit(f"{path} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda image, grid: module.grid_sample(image, grid, "linearized", "zeros")
