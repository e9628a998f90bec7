"""From growing to shrinking: value and derivatives along a path of scales.

    python -m benchmarks.pixel.path --data DIR [--json FILE]

Single output pixels stay at random points of a photo while the number of source pixels that they cover goes from 0.9 to
2.2, along one axis, along both, and along both turned. Their sum with random weights is what is followed: the figure
shows it, its derivative by the source point and its derivative by the scale. The table gives the largest change of each
between neighbouring scales.
"""

import argparse
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.datasets import load_images
from benchmarks.figures import save_figure
from benchmarks.pixel.samplers import DEFAULT, FINE, View, bilinear, shrinking, supersampled
from benchmarks.pixel.samplers import SAMPLERS as PIXEL_SAMPLERS
from benchmarks.results import report
from lms_geometry.figures import BLUE, GREY, ORANGE, SKY

# Title, how many of the two axes change, and the angle in radians.
PATHS = {"one axis": (1, 0.0), "both axes": (2, 0.0), "both axes, turned": (2, 0.35)}
LOWEST, HIGHEST, STEPS = 0.9, 2.2, 131
PIXELS = 50
SAMPLERS: dict[str, View] = {
    "bilinear": bilinear,
    "supersampled 3 x 3": supersampled(3),
    "mean over the pixel": supersampled(FINE),
    DEFAULT: PIXEL_SAMPLERS[DEFAULT],
}
QUANTITIES = ("value", "slope", "by the scale")
_LOOKS = {
    "bilinear": {"color": GREY, "linestyle": "--", "linewidth": 1.2},
    "supersampled 3 x 3": {"color": ORANGE, "linewidth": 1.2},
    "mean over the pixel": {"color": SKY, "linewidth": 2.6},
    DEFAULT: {"color": BLUE, "linewidth": 1.6},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="a folder of photos; README.md says of which")
    parser.add_argument("--photo", type=int, default=0, help="number of the photo in the folder, from 0")
    parser.add_argument("--json", type=Path, help="write the result to this file, and its figure beside it")
    options = parser.parse_args()
    photo = load_images("photos", options.data, options.photo + 1)[-1:].double().mean(1, keepdim=True)
    scales = torch.linspace(LOWEST, HIGHEST, STEPS, dtype=torch.float64)
    curves = {
        (title, name): along_path(view, photo, scales, axes, turn)
        for title, (axes, turn) in PATHS.items()
        for name, view in SAMPLERS.items()
    }

    figure = None
    if options.json:
        alt = (
            "Nine plots over the number of source pixels that an output pixel covers, for a change along one axis, "
            "along both, and along both turned. The default follows bilinear sampling up to 1 and the mean over the "
            "pixel from 2 on, in the value and in the slope, without a jump between them. Its derivative by the scale "
            "is 0 up to 1, largest about 1.5, and that of the mean from 2 on."
        )
        figure = {"file": options.json.with_suffix(".png").name, "alt": alt}
        save_figure(options.json.with_suffix(".png"), (6.2, 4.6), partial(_draw, scales, curves))
    report(
        options.json,
        "From growing to shrinking",
        f"A sum, with random weights, of {PIXELS} output pixels at points of a photo that stay, while the number of "
        f"source pixels that they cover grows from {LOWEST} to {HIGHEST} in {STEPS - 1} steps: the largest change of a "
        "quantity in one step, as a share of the range of the default's. Triples are of the value, of its derivative "
        "by the source point and of its derivative by the scale.",
        ["sampler", *PATHS],
        [[name, *(" / ".join(_jumps(curves, title, name)) for title in PATHS)] for name in SAMPLERS],
        {
            f"{title}, {name}, {quantity}": " ".join(f"{v:.5g}" for v in curve.tolist())
            for (title, name), quantities in curves.items()
            for quantity, curve in quantities.items()
        },
        figure,
    )


def along_path(view: View, photo: Tensor, scales: Tensor, axes: int, turn: float) -> dict[str, Tensor]:
    """The weighted sum of pixels at every scale, its derivative by x of their source points, and by the scale.

    Args:
        view: the sampler.
        photo: ``(1, 1, H, W)``.
        scales: number of source pixels that the output pixel covers.
        axes: 1 if the scale is that of the output's x axis alone, and 1 that of the other; 2 if it is that of both.
        turn: angle of the warp in radians.
    """
    generator = torch.Generator().manual_seed(0)
    points = torch.rand(PIXELS, 2, 1, generator=generator, dtype=torch.float64) * 1.6 - 0.8
    weights = torch.randn(PIXELS, generator=generator, dtype=torch.float64)
    scales = scales.clone().requires_grad_()
    stretch = torch.stack((scales, scales if axes == 2 else torch.ones_like(scales)), -1)
    linear = shrinking(1.0, turn, photo, (1, 1))[:, :, :2] * stretch[:, None]
    shifts = points.repeat(len(scales), 1, 1).requires_grad_()
    theta = torch.cat((linear.repeat_interleave(PIXELS, 0), shifts), 2)
    value = view(photo.expand(len(theta), -1, -1, -1), theta, (1, 1), generator).view(len(scales), PIXELS) @ weights
    by_shift, by_scale = torch.autograd.grad(value.sum(), (shifts, scales), allow_unused=True, materialize_grads=True)
    by_x = by_shift[:, 0, 0].view(len(scales), PIXELS).sum(1) * 2 / photo.shape[-1]
    return {"value": value.detach(), "slope": by_x, "by the scale": by_scale}


def _jumps(curves: dict[tuple[str, str], dict[str, Tensor]], title: str, name: str) -> list[str]:
    shares = []
    for quantity in QUANTITIES:
        reference = curves[title, DEFAULT][quantity]
        jump = curves[title, name][quantity].diff().abs().max() / (reference.max() - reference.min())
        shares.append(f"{jump.item():.3f}")
    return shares


def _draw(scales: Tensor, curves: dict[tuple[str, str], dict[str, Tensor]], figure: Figure) -> None:
    panels = figure.subplots(3, 3, sharex=True, sharey="row")
    labels = ("value", "by x, per\nsource pixel", "by the scale")
    for row, quantity, label in zip(panels, QUANTITIES, labels, strict=True):
        for panel, title in zip(row, PATHS, strict=True):
            for name, look in _LOOKS.items():
                panel.plot(scales, curves[title, name][quantity], label=name, **look)
        row[0].set_ylabel(label)
    for panel, title in zip(panels[0], PATHS, strict=True):
        panel.set_title(title)
    for panel in panels[2]:
        panel.set(xlabel="source pixels covered", xlim=(LOWEST, HIGHEST))
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


if __name__ == "__main__":
    main()
