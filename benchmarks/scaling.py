"""How the time of linearized sampling grows with the batch, the channels, the output and the number of samples.

    python -m benchmarks.scaling [--rounds N] [--threads N] [--json FILE]

One of the four is varied at a time. The table gives the exponent of the growth over the upper half of the range, where
the fixed cost of a call matters little; an exponent of 1 is linear growth. The figure, written beside FILE, shows the
times.
"""

import math
from dataclasses import replace
from functools import partial

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from benchmarks import peers
from benchmarks.commands import timing_parser
from benchmarks.figures import MARKERS, save_beside
from benchmarks.results import report
from benchmarks.speed import SETTINGS, Case, Sampler, backends_here, linearized, measure

# The sizes that stay as they are while one of them is varied over its range.
BASE = {"B": 8, "C": 4, "output pixels": 64 * 64, "K": 8}
RANGES = {
    "B": (1, 2, 4, 8, 16, 32, 64),
    "C": (1, 2, 4, 8, 16, 32, 64),
    "output pixels": tuple(side * side for side in (8, 16, 32, 64, 128, 256)),
    "K": (4, 8, 16, 32, 64),
}
WHAT = (
    "Exponent of the growth of the time of one call, forward and backward with a gradient for the grid, whitened "
    "samples, over the upper half of the range: 1 is linear. Every time is the shortest of all rounds. Sizes that are "
    "not varied: " + ", ".join(f"{quantity} {value}" for quantity, value in BASE.items()) + ", image of 64 x 64."
)
ALT = "Four plots of time against batch, channels, output pixels and samples, on two logarithmic axes: straight lines"
# The size of the figure.
INCHES = (6.2, 4.2)

# Milliseconds by quantity and backend, for each value of the quantity's range.
Times = dict[str, dict[str, list[float]]]


def main() -> None:
    parser = timing_parser(__doc__, rounds=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    times: Times = {}
    for quantity, values in RANGES.items():
        for value in tqdm(values, desc=quantity, unit="size"):
            at = {**BASE, quantity: value}
            side = math.isqrt(at["output pixels"])
            case: Case = (at["B"], at["C"], 64, 64, side, side, 1.0, False)
            settings = replace(SETTINGS["whitened"], num_samples=at["K"])
            samplers: dict[str, Sampler] = {"bilinear": peers.bilinear}
            samplers |= {backend: linearized(settings, backend) for backend in backends_here(device)}
            for row in measure(case, samplers, options.rounds, device):
                times.setdefault(quantity, {}).setdefault(row["sampler"], []).append(row["both_best_ms"])
    figure = save_beside(options.json, INCHES, ALT, partial(draw, times))
    names = list(times["B"])
    rows = [[q, *(f"{_exponent(RANGES[q], by_name[n]):.2f}" for n in names)] for q, by_name in times.items()]
    report(options.json, "How the time grows", WHAT, ["", *names], rows, times, figure, device=device)


def _exponent(values: tuple[int, ...], times: list[float]) -> float:
    """The exponent of the power law through the middle and the last point."""
    middle = len(values) // 2
    return math.log(times[-1] / times[middle]) / math.log(values[-1] / values[middle])


def draw(times: Times, figure: Figure) -> None:
    for axes, (quantity, by_name) in zip(figure.subplots(2, 2).flat, times.items(), strict=True):
        for (name, line), marker in zip(by_name.items(), MARKERS, strict=False):
            axes.loglog(RANGES[quantity], line, marker=marker, label=name)
        axes.set(xlabel=quantity, ylabel="ms", xticks=RANGES[quantity], xticklabels=map(str, RANGES[quantity]))
        axes.minorticks_off()
    figure.axes[0].legend()


if __name__ == "__main__":
    main()
