"""Aliasing on a zone plate shrunk 4 times, as a picture and a number.

    python -m benchmarks.pixel.zone_plate [--json FILE]

A zone plate is a pattern of rings whose spatial frequency grows with the distance from the middle. Shrunk, its inner
rings stay and the outer ones, which are finer than the output's pixels, should average out to grey. What a sampler
leaves of them is aliasing: rings that are not there.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.figures import DPI, save_figure
from benchmarks.pixel.samplers import DEFAULT, SAMPLERS, pixel_mean, shrinking
from benchmarks.results import report

# Sides of the zone plate and of the view, and how many times it is shrunk. The view covers the middle of the plate.
SIDE, VIEW, RATE = 512, 78, 4
TURNS = (0.0, 0.35)
# What the table calls the mean of 24 x 24 reads, and what the figure shows.
MEAN = "mean over the output pixel"
_DRAWN = {
    "bilinear": "bilinear",
    "mipmap": "mipmap",
    "supersampled 3 x 3": "3 x 3 supersampled",
    DEFAULT: "default",
    MEAN: "mean over the pixel",
}
# Every pixel of a view is drawn as 2 x 2 dots, since a picture of rings that is resized shows rings of its own.
_DOTS, _GAP, _TITLE = 2 * VIEW, 6, 22
_INCHES = ((5 * _DOTS + 4 * _GAP) / DPI, (_DOTS + _TITLE) / DPI)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write the result to this file, and its figure beside it")
    options = parser.parse_args()
    left, views = {}, {}
    for turn in TURNS:
        views = shrunk(turn)
        for name, view in views.items():
            left[name, turn] = aliasing(view)

    figure = None
    if options.json:
        alt = (
            "A zone plate shrunk 4 times by five samplers. All show the inner rings. Outside, bilinear sampling shows "
            "strong false rings, a mipmap hardly any and blurred inner rings, supersampling and the default the same "
            "faint ones, the mean over the pixel fainter ones still."
        )
        figure = {"file": options.json.with_suffix(".png").name, "alt": alt}
        save_figure(options.json.with_suffix(".png"), _INCHES, partial(_draw, views))
    report(
        options.json,
        "Aliasing",
        f"A zone plate of {SIDE} x {SIDE} pixels, whose rings reach half a cycle per pixel at the middle of its sides, "
        f"shrunk {RATE} times, straight and turned by {TURNS[1]} radians. The view covers its middle. The table gives "
        "the energy that is left of the rings that are finer than the output's pixels can show, as a share of their "
        "energy in the source. None of it should be left. The figure is of the turned warp.",
        ["sampler", "straight", "turned"],
        [[name, *(f"{100 * left[name, turn]:.2f} %" for turn in TURNS)] for name in views],
        {f"{name}, {turn:g}": share for (name, turn), share in left.items()},
        figure,
    )


def zone_plate(side: int) -> Tensor:
    """Rings from 0 to 1, ``(1, 1, side, side)``, of half a cycle per pixel at the distance ``side / 2``."""
    square = (torch.arange(side, dtype=torch.float64) - (side - 1) / 2).square()
    phase = torch.pi * (square[:, None] + square) / side
    return ((1 + phase.cos()) / 2)[None, None]


def shrunk(turn: float) -> dict[str, Tensor]:
    """The zone plate shrunk by every sampler, and its mean over each output pixel."""
    plate, size = zone_plate(SIDE), (VIEW, VIEW)
    theta = shrinking(RATE, turn, plate, size)
    generator = torch.Generator().manual_seed(0)
    views = {name: view(plate, theta, size, generator) for name, view in SAMPLERS.items()}
    return {**views, MEAN: pixel_mean(plate, theta, size)}


def aliasing(view: Tensor) -> float:
    """Energy left of the rings that are finer than the output can show, as a share of that in the source."""
    place = torch.arange(VIEW, dtype=torch.float64) - (VIEW - 1) / 2
    # In cycles per output pixel, of which the output can show a half. Rings just above that may stay in part.
    frequency = RATE * torch.hypot(place[:, None], place) * (RATE / SIDE)
    left = (view[0, 0] - 0.5)[frequency > 0.6].square().mean()
    return left.item() / (1 / 8)


def _draw(views: dict[str, Tensor], figure: Figure) -> None:
    figure.set_layout_engine("none")
    width, height = figure.get_size_inches() * figure.dpi
    for number, (name, label) in enumerate(_DRAWN.items()):
        left = number * (_DOTS + _GAP)
        panel = figure.add_axes((left / width, 0, _DOTS / width, _DOTS / height))
        panel.imshow(views[name][0, 0].numpy(), cmap="gray", vmin=0, vmax=1)
        panel.set_axis_off()
        panel.set_title(label, fontsize=7.5, pad=4)


if __name__ == "__main__":
    main()
