"""How well the gradient of samplers for the matrix of a warp agrees with that of the mean over the output pixel.

    python -m benchmarks.pixel.gradient --data DIR [--json FILE]

A loss weighs the pixels of the view at random. Its gradient for the six entries of the matrix is compared with finite
differences of the same loss on the true mean over each output pixel: the cosine over the photos, for each entry by
itself. The figure shows the cosines.
"""

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.datasets import load_images
from benchmarks.figures import save_figure
from benchmarks.pixel.samplers import DEFAULT, SAMPLERS, Size, View, area_held, linearized, pixel_mean, shrinking
from benchmarks.results import report
from benchmarks.runs import Job, add_options, run_cells
from lms_geometry import LinearizedSampling
from lms_geometry.figures import BLUE, GREY, ORANGE, PURPLE, SKY

RATES = (8, 4, 2)
TURNS = (0.0, 0.35)
COMPARED: dict[str, View] = {
    **SAMPLERS,
    "default, area held": area_held,
    "default, fitted plane": linearized(LinearizedSampling(slope="plane")),
}
# The entries of the matrix, row by row: how x and y of the image depend on x and y of the view, and the shifts.
ENTRIES = ("x by x", "x by y", "x shift", "y by x", "y by y", "y shift")
# Height and width of the part of the image that the view covers, in source pixels.
_COVERED = (104, 120)
# Half the distance of the two matrices of a finite difference, in normalised units.
_STEP = 1e-3
# In the figure.
_DRAWN = {
    "bilinear": {"color": GREY, "marker": "s"},
    "supersampled 3 x 3": {"color": ORANGE, "marker": "^"},
    "mipmap": {"color": PURPLE, "marker": "v"},
    "paper": {"color": SKY, "marker": "D"},
    DEFAULT: {"color": BLUE, "marker": "o"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    add_options(parser, "pixel_gradient")
    parser.add_argument("--count", type=int, default=40, help="photos")
    parser.add_argument("--draws", type=int, default=5, help="random weights of the view")
    options = parser.parse_args()
    photos = load_images("photos", options.data, options.count)

    jobs: list[Job] = [
        {"seed": options.seed, "draws": options.draws, "rate": rate, "turn": turn} for rate in RATES for turn in TURNS
    ]
    cells = run_cells(jobs, partial(_measure, photos), photos, options.finished, "pixel_gradient")
    found = {(float(job["rate"]), float(job["turn"])): cell for job, cell in zip(jobs, cells, strict=True)}
    mean: dict[tuple[str, float, float], list[float]] = {
        (name, rate, turn): torch.tensor(cosines).mean(0).tolist()
        for (rate, turn), cell in found.items()
        for name, cosines in cell.items()
    }
    deviation = max(torch.tensor(cell[DEFAULT]).std(0).max().item() for cell in found.values())

    figure = None
    if options.json:
        figure = {"file": options.json.with_suffix(".png").name, "alt": _alt(mean)}
        save_figure(options.json.with_suffix(".png"), (6.2, 3.2), partial(_draw, mean))
    report(
        options.json,
        "The gradient over an output pixel",
        f"The cosine, over {options.count} photos of BSDS500 in colour, between a sampler's gradient for an entry of "
        "the matrix and finite differences of the mean over the output pixel, which is that of 24 x 24 bilinear reads "
        "in float64. The loss is a sum of the view with random weights; cosines are means over "
        f"{options.draws} draws of them. Pairs are of straight warps and of warps turned by {TURNS[1]} radians. The "
        "columns are the entries: how x and y of the image depend on those of the view, and the shifts.",
        ["shrunk", "sampler", *ENTRIES],
        [
            [
                f"{rate}x",
                name,
                *(" / ".join(f"{mean[name, rate, turn][entry]:.3f}" for turn in TURNS) for entry in range(6)),
            ]
            for rate in RATES
            for name in COMPARED
        ],
        {
            f"{rate:g}x, {turn:g}, {name}": [" ".join(f"{cosine:.4f}" for cosine in draw) for draw in draws]
            for (rate, turn), cell in found.items()
            for name, draws in cell.items()
        },
        figure,
        f"The standard deviation over draws of weights is at most {deviation:.4f} for the default.",
    )


def _measure(photos: Tensor, job: Job) -> dict[str, list[list[float]]]:
    """Of every sampler, the cosines of the six entries for each draw of weights."""
    rate, turn, seed = float(job["rate"]), float(job["turn"]), int(job["seed"])
    size = round(_COVERED[0] / rate), round(_COVERED[1] / rate)
    photos = photos.double()
    theta = shrinking(rate, turn, photos, size)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.randn(int(job["draws"]), *photos.shape[:2], *size, generator=generator, dtype=torch.float64)
    expected = finite_differences(photos, theta, size, weights)
    return {
        name: [
            F.cosine_similarity(matrix_gradient(view, photos, theta, weight, generator), by_mean, dim=0).tolist()
            for weight, by_mean in zip(weights, expected, strict=True)
        ]
        for name, view in COMPARED.items()
    }


def matrix_gradient(view: View, photos: Tensor, theta: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient of the weighted view for the six entries of each photo's matrix, ``(B, 6)``."""
    theta = theta.clone().requires_grad_()
    loss = (view(photos, theta, (weight.shape[-2], weight.shape[-1]), generator) * weight).sum()
    return torch.autograd.grad(loss, theta)[0].flatten(1)


def finite_differences(photos: Tensor, theta: Tensor, size: Size, weights: Tensor) -> Tensor:
    """The derivative of the weighted mean over the output pixels by each entry, ``(draws, B, 6)``."""
    derivatives = []
    for entry in range(6):
        step = torch.zeros_like(theta)
        step.view(-1, 6)[:, entry] = _STEP
        rise = (pixel_mean(photos, theta + step, size) - pixel_mean(photos, theta - step, size)) / (2 * _STEP)
        derivatives.append((weights * rise).sum((2, 3, 4)))
    return torch.stack(derivatives, -1)


def _alt(mean: dict[tuple[str, float, float], list[float]]) -> str:
    smallest = {name: min(min(mean[name, 8, turn]) for turn in TURNS) for name in _DRAWN}
    others = ", ".join(f"{name} {cosine:.2f}" for name, cosine in smallest.items() if name != DEFAULT)
    return (
        "Two plots, for photos shrunk 4 and 8 times, of the cosine between the gradient of each sampler and the true "
        f"one, for the six entries of the matrix. The default's are all at least {smallest[DEFAULT]:.2f} at 8x; the "
        f"smallest of the others are {others}."
    )


def _draw(mean: dict[tuple[str, float, float], list[float]], figure: Figure) -> None:
    panels = figure.subplots(1, 2, sharey=True)
    for panel, rate in zip(panels, (4, 8), strict=True):
        for number, (name, look) in enumerate(_DRAWN.items()):
            places = [entry + 0.14 * (number - 2) for entry in range(6)]
            cosines = [sum(mean[name, rate, turn][entry] for turn in TURNS) / len(TURNS) for entry in range(6)]
            panel.vlines(places, 0, cosines, color=look["color"], linewidth=0.8, alpha=0.6)
            panel.plot(places, cosines, linestyle="none", markersize=4.5, label=name, **look)
        panel.set_xticks(range(6), [entry.replace(" ", "\n", 1) for entry in ENTRIES])
        panel.set(title=f"shrunk {rate} times", ylim=(0, 1.04))
    panels[0].set_ylabel("cosine with the true gradient")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, handletextpad=0.2)


if __name__ == "__main__":
    main()
