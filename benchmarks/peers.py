"""What linearized sampling is compared with: samplers that blur the image instead of sampling it many times."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

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


def _blurred(image: Tensor, sigma: float) -> Tensor:
    width = 2 * int(3 * sigma) + 1
    return gaussian_blur2d(image, (width, width), (sigma, sigma), border_type="constant")
