"""The effect of each setting, section 6.5, Figs. 9 and 10, and of settings that the paper lacks.

    python -m benchmarks.ablation --data DIR [--study settings] [--json FILE]

The study ``settings`` changes one setting at a time, and measures alignment (``benchmarks.alignment``, milder
perturbations) and the gradient field (``benchmarks.gradients``) again. The study ``collapse`` aligns photos of 16
pixels with targets of the same size and larger, where the samples of an output pixel fall on one texel unless jitter
spreads them.
"""

from dataclasses import replace
from functools import partial

import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks import patterns
from benchmarks.commands import parser
from benchmarks.datasets import load_images
from benchmarks.figures import MARKERS, save_beside
from benchmarks.gradients import angles_to_truth
from benchmarks.problems import REPORTED, SCALES, THRESHOLDS, descend, recalls_of, show_recalls
from benchmarks.results import report
from benchmarks.runs import Job, add_options, run_cells
from benchmarks.samplers import PAPER, WHITENED, Draw, Sampler, linearized, on_pyramid

# The settings that the studies change: the paper's with the mask off, because its effect would hide the others'.
BASE = replace(PAPER, mask_out_of_bounds=False)
# The first and the last sigma of a descent, in output pixels.
ANNEAL = (5.0, 0.125)
PATTERNS: dict[str, Draw] = {
    "antithetic": patterns.antithetic,
    "ring": patterns.ring,
    "two rings": patterns.two_rings,
    "spiral": patterns.spiral,
    "quasi-random": patterns.quasi_random,
}
STUDIES: dict[str, dict[str, dict[str, Sampler]]] = {
    "settings": {
        "sigma": {f"{s:g}": linearized(replace(BASE, sigma=s)) for s in (0.125, 0.25, 0.5, 1, 2, 4)},
        "K": {str(k): linearized(replace(BASE, num_samples=k)) for k in (4, 8, 16, 32)},
        "K, whitened": {str(k): linearized(replace(WHITENED, num_samples=k)) for k in (4, 8, 16, 32)},
        "mask": {
            "on, zeros": linearized(PAPER),
            "off, zeros": linearized(BASE),
            "on, border": linearized(PAPER, padding_mode="border"),
            "off, border": linearized(BASE, padding_mode="border"),
        },
        "intercept": {
            "off": linearized(replace(BASE, intercept=False)),
            "off, mask on": linearized(replace(PAPER, intercept=False)),
            "off, whitened": linearized(replace(WHITENED, intercept=False)),
        },
        "ridge": {f"{r:g}": linearized(replace(BASE, ridge=r)) for r in (1e-6, 1e-3, 1, 100)},
        "pattern": {
            "gaussian": linearized(BASE),
            "whitened": linearized(WHITENED),
            **{name: linearized(BASE, draw=draw) for name, draw in PATTERNS.items()},
        },
        "pattern, sigma 5 to 0.125": {
            "gaussian": linearized(BASE, ANNEAL),
            "whitened": linearized(WHITENED, ANNEAL),
            "whitened, K = 4": linearized(replace(WHITENED, num_samples=4), ANNEAL),
            "whitened, K = 16": linearized(replace(WHITENED, num_samples=16), ANNEAL),
            **{name: linearized(BASE, ANNEAL, draw=draw) for name, draw in PATTERNS.items()},
        },
        "matched pyramid": {
            "sigma 1, blur 0.25": on_pyramid(WHITENED, share=0.25),
            "sigma 1, blur 0.5": on_pyramid(WHITENED),
            "sigma 1, blur 1": on_pyramid(WHITENED, share=1),
            "sigma 2, blur 0.5": on_pyramid(replace(WHITENED, sigma=2)),
            "sigma 5 to 0.125, blur 0.5": on_pyramid(WHITENED, ANNEAL),
        },
    },
    "collapse": {
        "jitter": {f"{j:g}": linearized(replace(BASE, jitter=j)) for j in (0, 0.25, 0.5, 1, 2)},
        "jitter, intercept off": {
            f"{j:g}": linearized(replace(BASE, jitter=j, intercept=False)) for j in (0, 0.25, 0.5, 1, 2)
        },
    },
}
RATES: dict[str, dict[str, float]] = {
    "settings": {"8x": 8, "4x": 4},
    "collapse": {"1x": 1, "enlarged 2x": 1 / 2, "enlarged 4x": 1 / 4},
}
# The side of the photos of the study of collapse, in pixels.
SMALL = 16
TITLES = {"settings": "Ablation", "collapse": "Collapse prevention"}
WHATS = {
    "settings": (
        "Section 6.5, Figs. 9 and 10, and settings that the paper lacks. Alignment: {count} photos, milder "
        "perturbations, recall at {low} / {high}. Field: the share within 45 degrees, {fields} photos. One setting is "
        "changed at a time; the others are the paper's with the mask off and sigma 1, not annealed, unless the table "
        "says so."
    ),
    "collapse": (
        "Section 6.5: alignment of {count} photos of 16 pixels, milder perturbations, with targets of the same size "
        "and larger; recall at {low} / {high}. Jitter is in source pixels; 0 turns collapse prevention off. The other "
        "settings are the paper's with the mask off."
    ),
}
NOTES = {
    "settings": (
        "Where sigma falls, `field` is measured at the first sigma. `matched pyramid` reads whitened samples from the "
        "photo, blurred by a share of the samples' spread."
    ),
    "collapse": None,
}
ALT = {
    "settings": (
        "Recall at 0.3 and the share of good directions, at 8x and 4x, against sigma, and against K for independent "
        "and whitened samples."
    ),
    "collapse": "Recall at 0.02 against jitter, a line for each size of the target, with and without the intercept.",
}

# The size of the figures.
INCHES = (6.2, 2.6)


def main() -> None:
    command = parser(__doc__)
    add_options(command, "ablation")
    command.add_argument("--study", choices=tuple(STUDIES), default="settings")
    command.add_argument("--count", type=int, default=80, help="photos, each with one warp")
    command.add_argument("--fields", type=int, default=16, help="photos for the gradient field")
    command.add_argument("--steps", type=int, default=200)
    options = command.parse_args()
    photos = load_images("photos", options.data, max(options.count, options.fields))
    groups, rates = STUDIES[options.study], RATES[options.study]
    fields = options.study == "settings"

    variants = [(group, name) for group, samplers in groups.items() for name in samplers]
    measured = ["recall", *(["field"] if fields else [])]
    jobs: list[Job] = [
        {
            "measured": what,
            "count": options.fields if what == "field" else options.count,
            "seed": options.seed,
            "rate": rate,
            "steps": options.steps,
            "group": group,
            "variant": name,
        }
        for what in measured
        for rate in rates.values()
        for group, name in variants
    ]
    cells = run_cells(jobs, partial(_measure, photos, groups), photos, options.finished, "ablation")
    found = {
        (str(job["measured"]), float(job["rate"]), str(job["group"]), str(job["variant"])): cell
        for job, cell in zip(jobs, cells, strict=True)
    }

    draw = partial(draw_settings if fields else draw_collapse, found, groups, rates)
    figure = save_beside(options.json, INCHES, ALT[options.study], draw)
    columns = ["setting", "value", *(f"recall {rate}" for rate in rates), *(f"field {r}" for r in rates if fields)]
    rows = [
        [
            group,
            name,
            *(show_recalls(found["recall", rate, group, name]) for rate in rates.values()),
            *(f"{found['field', rate, group, name][0]:.2f}" for rate in rates.values() if fields),
        ]
        for group, name in variants
    ]
    report(
        options.json,
        TITLES[options.study],
        WHATS[options.study].format(count=options.count, fields=options.fields, low=REPORTED[0], high=REPORTED[1]),
        columns,
        rows,
        {
            f"{what}, {rate:g}x, {g}: {n}": " ".join(f"{v:.3f}" for v in cell)
            for (what, rate, g, n), cell in found.items()
        },
        figure,
        NOTES[options.study],
    )


def _measure(photos: Tensor, groups: dict[str, dict[str, Sampler]], job: Job) -> list[float]:
    group, name, rate, seed = str(job["group"]), str(job["variant"]), float(job["rate"]), int(job["seed"])
    images, sampler = photos[: int(job["count"])], groups[group][name]
    if job["measured"] == "field":
        angles, _, _ = angles_to_truth(sampler(images), images, rate, seed)
        return [(angles < 45).float().mean().item()]
    if rate <= 1:
        images = F.interpolate(images, (SMALL, SMALL), mode="bilinear", antialias=True)
    padding_mode = "border" if "border" in name else "zeros"
    find = partial(descend, sampler, steps=int(job["steps"]))
    return recalls_of(find, images, SCALES["milder"], rate, seed, padding_mode)


def draw_settings(
    found: dict[tuple[str, float, str, str], list[float]],
    groups: dict[str, dict[str, Sampler]],
    rates: dict[str, float],
    figure: Figure,
) -> None:
    far = THRESHOLDS.index(REPORTED[1])
    panels = figure.subplots(1, 3, sharey=True)
    for panel, group in zip(panels, ("sigma", "K", "K, whitened"), strict=True):
        values = [float(name) for name in groups[group]]
        for (label, rate), colour in zip(rates.items(), ("C0", "C1"), strict=True):
            recalls = [found["recall", rate, group, name][far] for name in groups[group]]
            fields = [found["field", rate, group, name][0] for name in groups[group]]
            panel.plot(values, recalls, marker="o", color=colour, label=f"recall, {label}")
            panel.plot(values, fields, marker="s", color=colour, linestyle="--", label=f"field, {label}")
        panel.set_xscale("log", base=2)
        panel.set(title=group, ylim=(0, 1.02), xticks=values, xticklabels=list(groups[group]))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)


def draw_collapse(
    found: dict[tuple[str, float, str, str], list[float]],
    groups: dict[str, dict[str, Sampler]],
    rates: dict[str, float],
    figure: Figure,
) -> None:
    panels = figure.subplots(1, len(groups), sharey=True)
    for panel, (group, samplers) in zip(panels, groups.items(), strict=True):
        for (label, rate), marker in zip(rates.items(), MARKERS, strict=False):
            recalls = [found["recall", rate, group, name][THRESHOLDS.index(REPORTED[0])] for name in samplers]
            panel.plot([float(name) for name in samplers], recalls, marker=marker, label=label)
        panel.set(title=group, xlabel="source pixels", ylim=(0, 1))
    panels[0].set_ylabel(f"recall at {REPORTED[0]}")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


if __name__ == "__main__":
    main()
