"""The gradient field of section 6.3, Fig. 8: does descent on a translation point to the truth?

    python -m benchmarks.gradients --data DIR [--photos 16] [--seed 0] [--json FILE]

The centre of a photo, two thirds of it a side, is shrunk. From a grid of translations of it, up to half of the photo's
half width either way, the descent direction of the squared error is compared with the direction to the truth: the table
gives the share within 45 degrees, where directions at random would have 0.25.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from benchmarks.peers import bilinear, blurred, multi_scale
from benchmarks.photos import load_photos
from benchmarks.results import report
from lms_geometry import LinearizedSampling, grid_sample_linearized

SIZE = 128
CROP = 2 / 3
REACH = 1 / 2
RATES = (8, 4)

Sampler = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    photos = load_photos(options.data, options.photos, SIZE)

    shares: dict[str, dict[int, float]] = {}
    jobs = [(name, sampler, rate) for name, sampler in _samplers().items() for rate in RATES]
    for name, sampler, rate in tqdm(jobs, desc="gradients"):
        shares.setdefault(name, {})[rate] = share_within_45_degrees(photos, sampler, rate, options.seed)
    report(
        options.json,
        "Gradient field",
        f"Section 6.3, Fig. 8: the share of descent directions within 45 degrees of the truth, over {options.photos} "
        f"photos. The centre of each, {CROP:.2f} of it a side, is shrunk and moved over a grid of translations up to "
        f"{REACH:.2f} of the half width either way.",
        ["sampler", *(f"{rate}x" for rate in RATES)],
        [[name, *(f"{by_rate[rate]:.2f}" for rate in RATES)] for name, by_rate in shares.items()],
        shares,
    )


def share_within_45_degrees(photos: Tensor, sampler: Sampler, rate: int, seed: int, points: int = 10) -> float:
    """Share of descent directions within 45 degrees of the truth, over photos and a grid of ``points`` x ``points``."""
    generator = torch.Generator().manual_seed(seed)
    batch, channels = photos.shape[:2]
    side = round(photos.shape[-1] * CROP / rate)
    crop = torch.tensor([[CROP, 0.0, 0.0], [0.0, CROP, 0.0]]).expand(batch, 2, 3)
    truth = F.affine_grid(crop, [batch, channels, side, side], align_corners=False)
    target = bilinear(photos, truth)
    # An even number of points leaves out the truth itself, where there is no direction.
    axis = torch.linspace(-REACH, REACH, points)
    right = 0
    for shift in torch.cartesian_prod(axis, axis):
        translation = shift.repeat(batch, 1).requires_grad_()
        moved = sampler(photos, truth + translation[:, None, None], generator)
        (gradient,) = torch.autograd.grad((moved - target).square().mean((1, 2, 3)).sum(), translation)
        right += int((F.cosine_similarity(gradient, shift[None]) > 0.5**0.5).sum())
    return right / (batch * points**2)


def _samplers() -> dict[str, Sampler]:
    whitened = LinearizedSampling(pattern="whitened", mask_out_of_bounds=False)
    return {
        "bilinear": lambda image, grid, _: bilinear(image, grid),
        "multi-scale (1, 5, 10)": lambda image, grid, _: multi_scale(image, grid),
        "bilinear, blurred by 1 output pixel": _on_a_blurred_image,
        "paper": partial(_linearized, LinearizedSampling.paper()),
        "paper, mask off": partial(_linearized, LinearizedSampling(mask_out_of_bounds=False)),
        "whitened, mask off": partial(_linearized, whitened),
        "whitened, mask off, sigma = 4": partial(
            _linearized, LinearizedSampling(sigma=4.0, pattern="whitened", mask_out_of_bounds=False)
        ),
    }


def _linearized(sampling: LinearizedSampling, image: Tensor, grid: Tensor, generator: torch.Generator) -> Tensor:
    return grid_sample_linearized(image, grid, align_corners=False, sampling=sampling, generator=generator)


def _on_a_blurred_image(image: Tensor, grid: Tensor, _: torch.Generator) -> Tensor:
    output_pixel = image.shape[-1] * CROP / grid.shape[1]
    canvas, enlarged = blurred(image, output_pixel)
    return bilinear(canvas, grid / enlarged)


if __name__ == "__main__":
    main()
