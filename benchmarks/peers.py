"""The peers of linearized sampling that blur the image before it is sampled, and the authors' own code."""

import contextlib
import importlib.util
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

# Standard deviations of the Gaussians of the paper's baseline, in source pixels.
MULTI_SCALE = (1.0, 5.0, 10.0)
# The name of the authors' own code in results.
AUTHORS = "released code itself"


def bilinear(image: Tensor, grid: Tensor) -> Tensor:
    """Plain ``grid_sample``. The batch of the image or of the grid may be 1 where the other's is larger."""
    batch = max(len(image), len(grid))
    return F.grid_sample(image.expand(batch, -1, -1, -1), grid.expand(batch, -1, -1, -1), align_corners=False)


def multi_scale(image: Tensor) -> tuple[Tensor, Tensor]:
    """The image that the paper's baseline (section 6.1) samples, on a canvas as ``blurred`` gives it.

    The baseline averages bilinear samples of three images, blurred by Gaussians of 1, 5 and 10 pixels. The average
    equals the bilinear sample of the mean of the three images, which is returned.
    """
    return blurred(image, *MULTI_SCALE)


def blurred(image: Tensor, *sigmas: float, padding_mode: str = "zeros") -> tuple[Tensor, Tensor]:
    """An image on a larger canvas, blurred, and the canvas's width and height in units of the image's.

    The canvas keeps the light that the blur spreads beyond the edges of the image. The mean of the blurred images is
    returned where there are several blurs.

    Args:
        image: ``(B, C, H, W)``.
        sigmas: standard deviations of Gaussians in pixels.
        padding_mode: how the canvas goes on around the image: ``"zeros"`` or ``"border"``.
    """
    margin = int(3 * max(sigmas)) + 1
    # The Fourier transform joins opposite edges. Where they are not both zero, what it mixes there is cut off.
    cut = margin if padding_mode == "border" else 0
    canvas = F.pad(image, (margin + cut,) * 4, {"zeros": "constant", "border": "replicate"}[padding_mode])
    height, width = canvas.shape[-2:]
    squares = (
        torch.fft.fftfreq(height, device=image.device)[:, None].square()
        + torch.fft.rfftfreq(width, device=image.device).square()
    )
    falloff = torch.stack([(-2 * (torch.pi * sigma) ** 2 * squares).exp() for sigma in sigmas]).mean(0)
    smooth = torch.fft.irfft2(torch.fft.rfft2(canvas) * falloff, s=(height, width))
    smooth = smooth[..., cut : height - cut, cut : width - cut]
    return smooth, image.new_tensor((smooth.shape[-1] / image.shape[-1], smooth.shape[-2] / image.shape[-2]))


def load_authors(folder: Path) -> Callable[[Tensor, Tensor], Tensor]:
    """The sampler of the authors' own ``warp/linearized.py``, read from a folder with their release.

    Raises:
        SystemExit: if the file is missing.
    """
    path = folder / "warp" / "linearized.py"
    spec = importlib.util.spec_from_file_location("authors_linearized", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise SystemExit(f"{path} is missing")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda image, grid: module.grid_sample(image, grid, "linearized", "zeros")


def authors_with_generator(folder: Path) -> Callable[[Tensor, Tensor, torch.Generator], Tensor]:
    """The authors' sampler, drawing from a given generator instead of the global one.

    Its messages about slopes that are NaN, and torch's warning that it does not give ``align_corners``, are silenced.

    Raises:
        SystemExit: if the file is missing.
    """
    sample = load_authors(folder)

    def sample_with_generator(image: Tensor, grid: Tensor, generator: torch.Generator) -> Tensor:
        with torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(None), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            return sample(image, grid)

    return sample_with_generator
