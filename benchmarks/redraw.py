"""Draw the figures of recorded results again, from the results alone.

    python -m benchmarks.redraw [NAME ...]

A change of style needs no experiment: the JSON files hold every number that is drawn. NAME is a result, such as
``registration``; all are drawn if none is given. Figures that show photos or networks at work are drawn by their
experiments only.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import ablation, alignment, registration, scaling
from benchmarks.classification.figures import draw_curves
from benchmarks.classification.train import Job
from benchmarks.commands import parser
from benchmarks.figures import save_figure

RESULTS = Path(__file__).parent / "results"
Raw = dict[str, Any]


def main() -> None:
    command = parser(__doc__)
    command.add_argument("names", nargs="*", help="results to draw; all of them if there is none")
    names = command.parse_args().names
    for path in sorted(RESULTS.glob("*.json")):
        if names and path.stem not in names:
            continue
        result = json.loads(path.read_text())
        drawn = [draw for prefix, draw in DRAWINGS.items() if path.stem.startswith(prefix)]
        if drawn and "figure" in result:
            drawn[0](result["raw"], path.with_name(result["figure"]["file"]))
            print(result["figure"]["file"])


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split()]


def _alignment(raw: Raw, path: Path) -> None:
    found = {}
    for key, recalls in raw.items():
        if key != "thresholds":
            scales, rest = key.split(", ", 1)
            sampler, rate = rest.rsplit(", ", 1)
            found[scales, sampler, int(rate)] = _numbers(recalls)
    names, rates = list(dict.fromkeys(key[0] for key in found)), list(dict.fromkeys(key[2] for key in found))
    save_figure(path, alignment.inches(names, rates), partial(alignment.draw, found, names, rates))


def _registration(raw: Raw, path: Path) -> None:
    recalls: dict[str, dict[str, float]] = {}
    for key, errors in raw.items():
        case = next(
            (case for case in sorted(registration.CASES, key=len, reverse=True) if key.endswith(f", {case}")), ""
        )
        if case:
            values = _numbers(errors)
            share = sum(value < registration.FOUND for value in values) / len(values)
            recalls.setdefault(key.removesuffix(f", {case}"), {})[case] = share
    registration.draw(recalls, raw["seconds"], path)


def _ablation(study: str, raw: Raw, path: Path) -> None:
    found = {}
    for key, values in raw.items():
        what, rate, variant = key.split(", ", 2)
        group, name = variant.rsplit(": ", 1)
        found[what, float(rate.removesuffix("x")), group, name] = _numbers(values)
    draw = ablation.draw_settings if study == "settings" else ablation.draw_collapse
    save_figure(path, ablation.INCHES, partial(draw, found, ablation.STUDIES[study], ablation.RATES[study]))


def _scaling(raw: Raw, path: Path) -> None:
    save_figure(path, scaling.INCHES, partial(scaling.draw, raw))


def _curves(raw: Raw, path: Path) -> None:
    runs = {}
    for key, curve in raw.items():
        kind, _, seed = key.rpartition(", seed ")
        transformer, rate, sampler = kind.replace(", ", " ", 1).split(" ", 2)  # as Job has it in str()
        runs[Job(transformer, sampler, int(rate.removesuffix("x")), int(seed))] = curve
    draw_curves(path, runs)


# How the figures of results are drawn whose names begin so.
DRAWINGS: dict[str, Callable[[Raw, Path], None]] = {
    "alignment": _alignment,
    "registration": _registration,
    "ablation": partial(_ablation, "settings"),
    "collapse": partial(_ablation, "collapse"),
    "scaling": _scaling,
    "classification": _curves,
}


if __name__ == "__main__":
    main()
