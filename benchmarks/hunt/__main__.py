"""A hunt for small traffic signs in photos: how often a spatial transformer finds and names them, by sampler.

    python -m benchmarks.hunt --data SIGNS --photos TRAIN TEST [--seeds 0 1 2] [--samplers NAME ...]
        [--grains 0 0.1] [--steps N] [--json FILE]

A sign lies somewhere in a photo of 256 x 256; the smallest are of 16 to 40 pixels. A localiser sees the photo 4 times
smaller and says where to look; a sampler reads a view of 24 x 24 there, out of the whole photo; a classifier sees
nothing but the view. The only loss is the classifier's.
"""

import math
import statistics
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.classification.samplers import SAMPLERS
from benchmarks.commands import parser
from benchmarks.figures import save_beside
from benchmarks.hunt.figures import draw, inches, shown_scenes
from benchmarks.hunt.network import Hunter
from benchmarks.hunt.scenes import Material, load, pixels, sides_at
from benchmarks.hunt.train import TESTED, Score, Training, test, train
from benchmarks.results import report, spread
from benchmarks.runs import Job, run_cells

STEPS, GRAINS = 2500, (0.0, 0.1)
# The difficulties that are tested, by the sides of signs in pixels.
TESTS = {"40 to 79 px": 0.6, "16 to 40 px": 1.0}
COMPARED = {
    name: SAMPLERS[f"{name}, border padding"]
    for name in (
        "bilinear",
        "bilinear, blurred by 0.125 output pixel",
        "supersampled 3 x 3",
        "mipmap",
        "paper",
        "default",
    )
}


def main() -> None:
    command = parser(__doc__)
    add_options(command)
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = command.parse_args()
    material, tested = materials(options)

    def measure(job: Job) -> dict[str, Any]:
        grain = float(job["grain"])
        network, training = trained(job, material, options.finished)
        scores = {name: test(network, grain, tested, difficulty) for name, difficulty in TESTS.items()}
        return {**training._asdict(), **scores}

    jobs: list[Job] = [
        {"sampler": sampler, "grain": grain, "seed": seed, "steps": options.steps}
        for seed in options.seeds
        for grain in options.grains
        for sampler in options.samplers
    ]
    values = run_cells(jobs, measure, pixels(material, tested), options.finished, "hunt")
    found: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for job, value in zip(jobs, values, strict=True):
        found.setdefault((str(job["sampler"]), float(job["grain"])), []).append(value)

    grain = options.grains[-1]
    shown = [job for job in jobs if job["grain"] == grain and job["seed"] == options.seeds[0]]
    figure = save_beside(
        options.json,
        inches(len(shown)),
        f"Four scenes with grain of {grain:g} and a sign each, with the squares that networks looked at, one for each "
        "sampler, and what they saw there.",
        partial(
            draw,
            shown_scenes(tested, grain),
            {str(job["sampler"]): trained(job, material, options.finished)[0] for job in shown},
        ),
    )
    seeds = f"{len(options.seeds)} seeds" if len(options.seeds) > 1 else "one seed"
    report(
        options.json,
        f"A hunt for small signs, grain {' and '.join(f'{grain:g}' for grain in options.grains)}, {seeds}",
        f"A spatial transformer after {options.steps} steps on signs in photos of 256 x 256, read in views of 24 x 24; "
        f"grain is the standard deviation of noise in every pixel. On {TESTED} test scenes for each range of the "
        "sign's side: the share of signs taken for another class, and the share of views whose centre is within a "
        "quarter of the sign's side of the sign's centre. Scale: that of the views of the larger signs, of which 1 is "
        "the whole photo. Reached: the mean side of the smallest signs that training came to. Mean and standard "
        f"deviation of {seeds}; milliseconds of processor time for a step, without making the scenes.",
        [
            "grain",
            "sampler",
            *(f"{sides}: {what}, %" for sides in TESTS for what in ("error", "found")),
            "scale",
            "reached, px",
            "ms a step",
        ],
        [[f"{grain:g}", name, *_cells(cell)] for (name, grain), cell in found.items()],
        {f"{name}, grain {grain:g}": cell for (name, grain), cell in found.items()},
        figure,
    )


def _cells(values: Sequence[dict[str, Any]]) -> list[str]:
    scores = {sides: [Score(*value[sides]) for value in values] for sides in TESTS}
    larger, *_ = scores.values()
    return [
        *(
            spread([100 * share for share in shares])
            for of_sides in scores.values()
            for shares in ([score.error for score in of_sides], [score.found for score in of_sides])
        ),
        spread([score.scale for score in larger], 2),
        spread([math.sqrt(math.prod(sides_at(value["difficulty"]))) for value in values], 0),
        f"{statistics.mean(value['milliseconds'] for value in values):.0f}",
    ]


def add_options(command: ArgumentParser) -> None:
    command.add_argument("--data", type=Path, required=True, help="a folder with the archives of GTSRB")
    command.add_argument("--photos", type=Path, nargs=2, metavar=("TRAIN", "TEST"), required=True, help="two folders")
    command.add_argument("--samplers", choices=tuple(COMPARED), nargs="+", default=list(COMPARED))
    command.add_argument("--grains", type=float, nargs="+", default=list(GRAINS), help="standard deviations of noise")
    command.add_argument("--steps", type=int, default=STEPS)
    command.add_argument("--json", type=Path, help="write the result to this file, and its figure beside it")
    command.add_argument(
        "--finished",
        type=Path,
        default=Path("runs/hunt.jsonl"),
        help="the file of finished cells, which are not measured again; networks are kept in a folder beside it",
    )


def materials(options: Namespace) -> tuple[Material, Material]:
    """What scenes of the training and of the test are made of."""
    train_photos, test_photos = options.photos
    return load(train_photos, options.data, "train"), load(test_photos, options.data, "test")


def trained(job: Job, material: Material, finished: Path) -> tuple[Hunter, Training]:
    """The network of a job, which is read from a file if it has been trained before, and what the training was like."""
    sampler, grain, seed, steps = (
        COMPARED[str(job["sampler"])],
        float(job["grain"]),
        int(job["seed"]),
        int(job["steps"]),
    )
    path = finished.with_suffix("") / f"{job['sampler']}, grain {grain:g}, seed {seed}, {steps} steps.pt"
    if not path.exists():
        network, training = train(sampler, grain, seed, steps, material)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"weights": network.state_dict(), "training": tuple(training)}, path)
    kept = torch.load(path)
    network = Hunter(sampler).eval()
    network.load_state_dict(kept["weights"])
    return network, Training(*kept["training"])


if __name__ == "__main__":
    main()
