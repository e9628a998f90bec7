"""How far the values of samplers are from the mean over the output pixel, and what they cost.

    python -m benchmarks.pixel.value --data DIR [--json FILE]

Photos are shrunk, straight and turned. The table gives the root mean square distance of the view from the true mean
over each output pixel, and the time of one call, forward and backward, beside that of bilinear sampling.
"""

import argparse
from pathlib import Path
from time import perf_counter

import torch
from torch import Tensor

from benchmarks.datasets import load_images
from benchmarks.pixel.samplers import SAMPLERS, View, pixel_mean, shrinking
from benchmarks.results import report

RATES = (1.5, 2.0, 3.0, 4.0, 8.0)
TURNS = (0.0, 0.35)
# Side of the part of the image that the view covers: turned, it stays within the 128 pixels of a photo.
_COVERED = 96
# How often a call is timed, for the fastest of them.
_ROUNDS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="a folder of photos; README.md says of which")
    parser.add_argument("--count", type=int, default=40, help="photos")
    parser.add_argument("--json", type=Path, help="write the result to this file")
    options = parser.parse_args()
    photos = load_images("photos", options.data, options.count)

    distances: dict[str, dict[str, float]] = {name: {} for name in SAMPLERS}
    for rate in RATES:
        for turn in TURNS:
            for name, distance in distances_from_mean(photos, rate, turn).items():
                distances[name][f"{rate:g}x, {turn:g}"] = distance
    times = relative_times(photos, SAMPLERS)
    report(
        options.json,
        "The value over an output pixel",
        f"The root mean square distance from the mean over the output pixel, in thousandths of the intensity's range, "
        f"over {options.count} photos of BSDS500 in colour. The mean is that of 24 x 24 bilinear reads. Pairs are of "
        f"straight warps and of warps turned by {TURNS[1]} radians, and away from the border. The last column is the "
        "time of one call in float32 at 4x, forward and backward for the matrix, as a multiple of bilinear sampling's.",
        ["sampler", *(f"{rate:g}x" for rate in RATES), "time"],
        [
            [
                name,
                *(" / ".join(f"{1000 * distances[name][f'{r:g}x, {t:g}']:.1f}" for t in TURNS) for r in RATES),
                f"{times[name]:.1f}",
            ]
            for name in SAMPLERS
        ],
        {"distances": distances, "times": times},
    )


def distances_from_mean(photos: Tensor, rate: float, turn: float) -> dict[str, float]:
    """Of every sampler, the root mean square distance of its view from the mean over each output pixel."""
    size = (round(_COVERED / rate),) * 2
    theta = shrinking(rate, turn, photos, size)
    mean = pixel_mean(photos, theta, size)
    generator = torch.Generator().manual_seed(0)
    return {
        name: (view(photos, theta, size, generator) - mean).square().mean().sqrt().item()
        for name, view in SAMPLERS.items()
    }


def relative_times(photos: Tensor, samplers: dict[str, View], rate: float = 4.0) -> dict[str, float]:
    """The shortest time of each sampler, as a multiple of the first one's. They take turns."""
    size = (round(_COVERED / rate),) * 2
    theta = shrinking(rate, 0.0, photos, size).requires_grad_()
    generator = torch.Generator().manual_seed(0)
    best = dict.fromkeys(samplers, float("inf"))
    for _ in range(_ROUNDS):
        for name, view in samplers.items():
            start = perf_counter()
            view(photos, theta, size, generator).sum().backward()
            best[name] = min(best[name], perf_counter() - start)
    first = next(iter(best.values()))
    return {name: time / first for name, time in best.items()}


if __name__ == "__main__":
    main()
