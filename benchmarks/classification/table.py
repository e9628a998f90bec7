"""Table 1 at equal steps, from the recorded curves: no training, only what the files in ``results`` hold.

    python -m benchmarks.classification.table [--json FILE]

In each row all samplers are taken after as many steps as the shortest training among them has; where those that read
best, ``LEADING``, were trained for longer, they have one more row. A network is taken at the weights with the lowest
validation error until then. Of the paddings, and of the blurs, that a sampler was trained with, the one with the lowest
mean validation error stands in the table.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

from scipy.stats import ttest_ind

from benchmarks.classification.networks import SCALES
from benchmarks.classification.train import best_of
from benchmarks.commands import parser
from benchmarks.results import report, spread

RESULTS = Path(__file__).parents[1] / "results"
DEFAULT = "default"
# The names of samplers in the results, without their padding, by what the table calls them.
SAMPLERS: dict[str, Callable[[str], bool]] = {
    "bilinear": "bilinear".__eq__,
    "pre-blurred": lambda name: name.startswith("bilinear, blurred by"),
    "multi-scale": "multi-scale (1, 5, 10)".__eq__,
    "supersampled 3 x 3": "supersampled 3 x 3".__eq__,
    "paper's text": "paper".__eq__,
    DEFAULT: DEFAULT.__eq__,
}
# Those that were trained for longer, in some cells.
LEADING = ("supersampled 3 x 3", DEFAULT)
# The paper's own errors in %: bilinear, multi-scale, linearized.
PAPER = {
    "STN 8x": (15.31, 15.00, 10.89),
    "STN 4x": (7.95, 8.30, 7.13),
    "STN 2x": (6.50, 6.70, 6.48),
    "STN 1x": (6.29, 6.83, 6.08),
    "ICSTN 8x": (9.80, 10.19, 6.10),
    "ICSTN 4x": (6.52, 6.06, 4.86),
    "ICSTN 2x": (5.00, 5.95, 4.68),
    "ICSTN 1x": (5.68, 5.40, 4.85),
}

# The points of a training: step, validation error, test error, mean log2 of the warp's scale.
Curve = Sequence[tuple[int, float, float, float]]


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--json", type=Path, help="also write the table to this file")
    options = command.parse_args()
    trained = curves_of(RESULTS)
    rows, raw = [], {}
    for cell, paper in PAPER.items():
        by_sampler = {name: found for name, kind in SAMPLERS.items() if (found := trainings(trained, cell, kind))}
        if DEFAULT not in by_sampler:
            continue
        lengths = {name: max(map(length_of, found.values())) for name, found in by_sampler.items()}
        for steps in sorted({min(lengths.values()), min(lengths[name] for name in LEADING if name in lengths)}):
            errors = {name: errors_after(steps, found) for name, found in by_sampler.items() if lengths[name] >= steps}
            rows += [
                [
                    cell,
                    f"{steps:,}",
                    *(_cell(errors.get(name, [])) for name in SAMPLERS),
                    " / ".join(f"{error:.1f}" for error in paper),
                ],
                ["", "*p*", *(_chance(errors[DEFAULT], errors.get(name, [])) for name in SAMPLERS), ""],
            ]
            raw[f"{cell}, {steps:,} steps"] = errors
    report(
        options.json,
        "Table 1 at equal steps",
        "Test error on GTSRB in %, mean and standard deviation over seeds, of networks of the size `small`; the number "
        "of seeds stands behind it where it is not 3. All samplers of a row have as many steps; an empty cell was not "
        "trained that long. Each has the padding (zeros or border), and the blur, with the lower validation error. "
        "*p*: how probable a difference from the default as large as this one were if there were none, by Welch's "
        "t-test. Paper: its own errors of bilinear, multi-scale and linearized sampling, of larger networks after up "
        "to 300,000 steps and another split.",
        ["", "steps", *SAMPLERS, "paper"],
        rows,
        raw,
    )


def curves_of(folder: Path) -> dict[str, Curve]:
    """The curves of all trainings of small networks on the present split of GTSRB, by their jobs as text.

    Of two curves of one job the longer one counts.
    """
    found: dict[str, Curve] = {}
    for path in sorted(folder.glob("classification_*.json")):
        result = json.loads(path.read_text())
        title = result["title"]
        if title.startswith("Classification, GTSRB") and "earlier" not in title and ", size " not in title:
            for job, curve in result["raw"].items():
                found[job] = max(curve, found.get(job, ()), key=len)
    return found


def trainings(trained: dict[str, Curve], cell: str, is_kind: Callable[[str], bool]) -> dict[str, dict[int, Curve]]:
    """The curves of a sampler in one cell of the table: by its full name, then by the seed."""
    found: dict[str, dict[int, Curve]] = {}
    for job, curve in trained.items():
        kind, _, seed = job.rpartition(", seed ")
        where, _, name = kind.partition(", ")
        if where == cell and is_kind(name.removesuffix(", border padding")):
            found.setdefault(name, {})[int(seed)] = curve
    return found


def length_of(by_seed: dict[int, Curve]) -> int:
    """The number of steps that all seeds have; one that ended because it improved no more has any number."""
    patience = SCALES["small"].patience
    lasting = [curve[-1][0] for curve in by_seed.values() if curve[-1][0] < best_of(curve)[0] + patience]
    return min(lasting, default=SCALES["paper"].steps)


def errors_after(steps: int, found: dict[str, dict[int, Curve]]) -> list[float]:
    """Test errors in %, a seed each, with the padding and the blur of the lowest mean validation error."""
    best = [
        [best_of([point for point in curve if point[0] <= steps]) for curve in by_seed.values()]
        for by_seed in found.values()
        if length_of(by_seed) >= steps
    ]
    chosen = min(best, key=lambda points: statistics.mean(point[1] for point in points))
    return [100 * point[2] for point in chosen]


def _chance(default: list[float], errors: list[float]) -> str:
    """The p-value of two samplers' errors; none for the default beside itself."""
    if not errors or errors == default:
        return ""
    return f"*{ttest_ind(default, errors, equal_var=False).pvalue:.2g}*"


def _cell(errors: list[float]) -> str:
    seeds = f" ({len(errors)})" if len(errors) not in (0, 3) else ""
    return spread(errors) + seeds


if __name__ == "__main__":
    main()
