"""Image alignment by gradient descent, section 6.4, Figs. 1 and 7.

    python -m benchmarks.alignment --data DIR [--images photos] [--json FILE]

Every image is warped and shrunk (``benchmarks.problems``). For each sampler 200 steps of Adam, at a learning rate of
0.02 and from the identity, search for the warp; ``register`` searches in its own way. The table gives the share of
problems whose mean corner error, in half widths, ends below 0.02 and below 0.3; the figure, for every threshold.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.commands import parser
from benchmarks.datasets import NAMES, SIZES, load_images
from benchmarks.figures import LINES, save_beside
from benchmarks.peers import AUTHORS
from benchmarks.problems import (
    REPORTED,
    SCALES,
    THRESHOLDS,
    Find,
    descend,
    normalised,
    recalls_of,
    show_recalls,
)
from benchmarks.results import report
from benchmarks.runs import Job, add_options, run_cells
from benchmarks.samplers import (
    DEFAULT,
    MASKED,
    PAPER,
    PLANE,
    WHITENED,
    Sampler,
    authors,
    bilinear,
    linearized,
    mipmapped,
    multi_scale,
    on_pyramid,
    released,
    scale_space,
    supersampled,
)
from lms_geometry import register
from lms_geometry.config import PIXEL

SAMPLERS: dict[str, Sampler] = {
    "bilinear": bilinear,
    "multi-scale (1, 5, 10)": multi_scale,
    "supersampled 3 x 3": supersampled(3),
    "mipmap": mipmapped(),
    "scale space, 4 to 0": scale_space(4.0),
    "paper's text": linearized(PAPER),
    "paper's, mask off": linearized(replace(PAPER, mask_out_of_bounds=False)),
    "paper's, mask and intercept off": linearized(replace(PAPER, mask_out_of_bounds=False, intercept=False)),
    "released code's settings": released,
    "whitened, mask off, 8 to 0.5": linearized(WHITENED, (8.0, 0.5)),
    "whitened, mask off, 8 to 0.125": linearized(WHITENED, (8.0, 0.125)),
    "whitened, mask off, 5 to 0.125": linearized(WHITENED, (5.0, 0.125)),
    "the same on a matched pyramid": on_pyramid(WHITENED, (5.0, 0.125)),
    "whitened, sigma 0.3, masked": linearized(MASKED),
    "default": linearized(DEFAULT),
    "default, plane": linearized(PLANE),
    "default, sigma = 1": linearized(replace(DEFAULT, sigma=1)),
    "default, plane, sigma = 1": linearized(replace(PLANE, sigma=1)),
    "default, 8 to a pixel": linearized(DEFAULT, (8.0, PIXEL)),
    "default, 8 to 0.125": linearized(DEFAULT, (8.0, 0.125)),
    "default, plane, 8 to a pixel": linearized(PLANE, (8.0, PIXEL)),
    "default, plane, 8 to 0.125": linearized(PLANE, (8.0, 0.125)),
}
REGISTER = "register, as it comes"
# The samplers of the figure, and their labels.
DRAWN = {
    "bilinear": "bilinear",
    "multi-scale (1, 5, 10)": "multi-scale (1, 5, 10)",
    "scale space, 4 to 0": "scale space",
    "paper's text": "paper's text",
    "released code's settings": "released code's settings",
    "whitened, mask off, 5 to 0.125": "whitened, 5 to 0.125",
    "default, 8 to 0.125": "default, 8 to 0.125",
    REGISTER: "register",
}
NOTES = (
    "The paper shows curves and gives no numbers. Its claims: linearized sampling aligns more than bilinear, most "
    "of all when targets are shrunk, and more than multi-scale sampling."
)


def main() -> None:
    command = parser(__doc__)
    add_options(command, "alignment")
    command.add_argument("--images", choices=tuple(SIZES), default="photos")
    command.add_argument("--count", type=int, default=80, help="images, each with one warp a draw")
    command.add_argument("--draws", type=int, default=1, help="draws of the warps")
    command.add_argument("--rates", type=int, nargs="+", default=[8, 4, 2, 1], help="how many times to shrink")
    command.add_argument("--scales", choices=tuple(SCALES), nargs="+", default=list(SCALES))
    command.add_argument("--steps", type=int, default=200)
    command.add_argument("--authors", type=Path, help="a folder with the authors' release, for one more sampler")
    options = command.parse_args()
    images = load_images(options.images, options.data, options.count)
    samplers = SAMPLERS | ({AUTHORS: authors(options.authors)} if options.authors else {})
    methods: dict[str, Find] = {
        name: partial(descend, sampler, steps=options.steps) for name, sampler in samplers.items()
    } | {REGISTER: _register}

    seeds = range(options.seed, options.seed + options.draws)
    jobs: list[Job] = [
        {
            "count": options.count,
            "seed": seed,
            "rate": rate,
            "scales": scales,
            "steps": options.steps,
            "sampler": name,
        }
        for seed in seeds
        for rate in options.rates
        for scales in options.scales
        for name in methods
    ]

    def measure(job: Job) -> list[float]:
        scale, rate = SCALES[str(job["scales"])], float(job["rate"])
        return recalls_of(methods[str(job["sampler"])], images, scale, rate, int(job["seed"]))

    curves: dict[tuple[str, str, int], list[list[float]]] = {}
    for job, curve in zip(jobs, run_cells(jobs, measure, images, options.finished, "alignment"), strict=True):
        curves.setdefault((str(job["scales"]), str(job["sampler"]), int(job["rate"])), []).append(curve)
    recalls = {cell: torch.tensor(found).mean(0).tolist() for cell, found in curves.items()}

    columns = ["scales", "sampler", *(f"{rate}x" for rate in options.rates)]
    rows = [
        [scales, name, *(show_recalls(recalls[scales, name, rate]) for rate in options.rates)]
        for scales in options.scales
        for name in methods
    ]

    alt = (
        f"Recall against the corner error allowed, for {NAMES[options.images]} shrunk "
        f"{', '.join(map(str, options.rates))} times, a line for each sampler; the table gives it at two errors."
    )
    figure = save_beside(
        options.json,
        inches(options.scales, options.rates),
        alt,
        partial(draw, recalls, options.scales, options.rates),
    )
    draws = f" x {options.draws} draws of warps" if options.draws > 1 else ""
    report(
        options.json,
        f"Alignment: {NAMES[options.images]} at {', '.join(f'{rate}x' for rate in options.rates)}",
        f"Section 6.4, Fig. 7: the share of problems whose mean corner error ends below {REPORTED[0]} / {REPORTED[1]} "
        f"half widths, over {options.count} {NAMES[options.images]}{draws}. Log2 of the scales has a standard "
        "deviation of sqrt(2) in the paper's perturbations, of sqrt(2)/2 in the milder ones. A blur or a sigma that "
        "falls from one number to another is in output pixels; the sigma of a pixel's own area is 1/sqrt(12) = 0.289.",
        columns,
        rows,
        {
            "thresholds": THRESHOLDS,
            **{", ".join(map(str, cell)): " ".join(f"{r:.3f}" for r in curve) for cell, curve in recalls.items()},
        },
        figure,
        NOTES,
    )


def _register(images: Tensor, target: Tensor, _: torch.Generator) -> Tensor:
    return normalised(register(images, target, "anisotropic").matrix, images, target)[:, :2]


def inches(scales: list[str], rates: list[int]) -> tuple[float, float]:
    """The size of the figure."""
    return max(1.75 * len(rates) + 0.6, 6.2), 1.6 * len(scales) + 0.8


def draw(found: dict[tuple[str, str, int], list[float]], scales: list[str], rates: list[int], figure: Figure) -> None:
    panels = figure.subplots(len(scales), len(rates), sharex=True, sharey=True, squeeze=False)
    for row, name in zip(panels, scales, strict=True):
        row[0].set_ylabel(f"recall, {name}")
        for panel, rate in zip(row, rates, strict=True):
            for sampler, label in DRAWN.items():
                if (name, sampler, rate) in found:
                    panel.plot(THRESHOLDS, found[name, sampler, rate], label=label, **LINES[label])
            panel.set(xscale="log", ylim=(0, 1))
    for panel, rate in zip(panels[0], rates, strict=True):
        panel.set_title(f"{rate}x")
    for panel in panels[-1]:
        panel.set_xlabel("corner error")
    lines = panels[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=3)


if __name__ == "__main__":
    main()
