"""Time and peak memory of linearized sampling on every backend, as ratios to bilinear sampling.

    python -m benchmarks.speed [--rounds N] [--threads N] [--authors DIR] [--json FILE]

All samplers run in one process and take turns within each round, so that other work of the machine slows all of them
alike. A ratio is taken within a round, and the table gives its median over the rounds. Milliseconds depend on the
machine, ratios less so. ``DIR`` holds the authors' release. The benchmark runs on a GPU if there is one.
"""

import gc
import os
import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks import antialiasing, peers
from benchmarks.commands import timing_parser
from benchmarks.results import report
from benchmarks.samplers import WHITENED
from lms_geometry import LinearizedSampling, backends, grid_sample_linearized

# B, C, H, W, h, w; how much of the image the view covers along an axis, about; and whether the image takes a
# gradient, as a feature map does.
Case = tuple[int, int, int, int, int, int, float, bool]
CASES: tuple[Case, ...] = (
    (64, 3, 50, 50, 50, 50, 0.6, False),
    (64, 3, 50, 50, 50, 50, 1.0, False),
    (64, 3, 50, 50, 50, 50, 1.5, False),
    (64, 3, 50, 50, 12, 12, 1.0, False),
    (4, 3, 512, 512, 512, 512, 0.6, False),
    (4, 3, 512, 512, 512, 512, 1.5, False),
    (4, 3, 512, 512, 128, 128, 1.0, False),
    (8, 64, 64, 64, 64, 64, 1.0, True),
)
SETTINGS = {
    "default": LinearizedSampling(),
    "paper": LinearizedSampling.paper(),
    "whitened": WHITENED,
}
WHAT = (
    "Time of one call, forward and backward with a gradient for the grid, and the peak memory above the inputs, both "
    "as ratios to bilinear sampling in the same round: medians. The grid is bare: samples are drawn, "
    "and supersampling's dense grid is made, in the call."
)

Sampler = Callable[[Tensor, Tensor], Tensor]


class Row(TypedDict):
    """What was measured of one sampler at one size.

    Ratios are to bilinear sampling; those of times are lists of the lower quartile, the median and the upper quartile.
    """

    size: str
    sampler: str
    forward_ms: float
    both_ms: float
    both_best_ms: float
    forward_ratio: list[float]
    both_ratio: list[float]
    memory_mb: float
    memory_ratio: float


def main() -> None:
    parser = timing_parser(__doc__, rounds=30)
    parser.add_argument("--authors", type=Path, help="a folder with the authors' release, as one more sampler")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message="Default grid_sample")  # the authors' release says no align_corners
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    samplers: dict[str, Sampler] = {
        "bilinear": peers.bilinear,
        "multi-scale (1, 5, 10)": multi_scale,
        **{f"supersampled {n} x {n}": partial(antialiasing.supersampled, count=n) for n in (2, 3, 4)},
        "mipmap": antialiasing.mipmapped,
    }
    if options.authors is not None:
        samplers["authors' code"] = peers.load_authors(options.authors)
    for backend in backends_here(device):
        samplers |= {f"{name}, {backend}": linearized(s, backend) for name, s in SETTINGS.items()}

    rows = []
    for case in tqdm(CASES, desc="speed", unit="size"):
        rows += measure(case, samplers, options.rounds, device)
    columns = ["B,C,H,W,h,w x covered", "bilinear, ms", *list(samplers)[1:]]
    report(options.json, "Speed", WHAT, columns, _table(rows), rows, device=device)


def multi_scale(image: Tensor, grid: Tensor) -> Tensor:
    """The paper's baseline; its blurs are part of the call."""
    canvas, enlarged = peers.multi_scale(image)
    return peers.bilinear(canvas, grid / enlarged)


def backends_here(device: torch.device) -> list[str]:
    """The names of the backends that can run on ``device``: eager, and the fused one if it is available."""
    fused = "cpu" if device.type == "cpu" else "triton"
    return ["eager", fused] if backends.unavailable_reason(fused) is None else ["eager"]


def linearized(sampling: LinearizedSampling, backend: str) -> Sampler:
    """Linearized sampling on one backend; a backward pass that follows runs on it too."""

    def sample(image: Tensor, grid: Tensor) -> Tensor:
        os.environ[backends.VARIABLE] = backend
        return grid_sample_linearized(image, grid, align_corners=False, sampling=sampling)

    return sample


def measure(
    case: Case,
    samplers: Mapping[str, Sampler],
    rounds: int,
    device: torch.device,
    layout: Callable[[Tensor], Tensor] = lambda image: image,
) -> list[Row]:
    """A row per sampler. Ratios are to the first sampler. ``layout`` gives the image its dtype and its strides."""
    B, C, H, W, h, w, covered, image_gradient = case
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(B, C, H, W, generator=generator).to(device)
    image = layout(image).requires_grad_(image_gradient)
    theta = covered * torch.eye(2, 3) + 0.05 * covered * torch.randn(B, 2, 3, generator=generator)
    grid = F.affine_grid(theta, [B, C, h, w], align_corners=False).to(device).requires_grad_()
    weight = torch.rand(B, C, h, w, generator=generator).to(image)

    def forward(sampler: Sampler) -> None:
        with torch.no_grad():
            sampler(image, grid)

    def both(sampler: Sampler) -> None:
        out = sampler(image, grid)
        torch.autograd.grad(out, (image, grid) if image_gradient else grid, weight)

    times: dict[tuple[str, str], list[float]] = {}
    for round_number in range(-2, rounds):  # two rounds to warm up
        for name, sampler in samplers.items():
            for what, run in (("forward", forward), ("both", both)):
                elapsed = _time(run, sampler, device)
                if round_number >= 0:
                    times.setdefault((name, what), []).append(elapsed)
    memory = {name: _peak_memory(both, sampler, device) for name, sampler in samplers.items()}

    reference = next(iter(samplers))
    return [
        {
            "size": f"{B},{C},{H},{W},{h},{w} x {covered:g}" + (" image gradient too" if image_gradient else ""),
            "sampler": name,
            "forward_ms": 1e3 * statistics.median(times[name, "forward"]),
            "both_ms": 1e3 * statistics.median(times[name, "both"]),
            "both_best_ms": 1e3 * min(times[name, "both"]),
            "forward_ratio": _quartiles(times[name, "forward"], times[reference, "forward"]),
            "both_ratio": _quartiles(times[name, "both"], times[reference, "both"]),
            "memory_mb": memory[name] / 2**20,
            "memory_ratio": memory[name] / memory[reference],
        }
        for name in samplers
    ]


def _table(rows: list[Row]) -> list[list[str]]:
    """A line per size: the milliseconds of bilinear sampling, then every other sampler's ratios of time and memory."""
    table = []
    for size in dict.fromkeys(row["size"] for row in rows):
        first, *others = (row for row in rows if row["size"] == size)
        cells = (f"{row['both_ratio'][1]:.1f} / {row['memory_ratio']:.1f}" for row in others)
        table.append([size, f"{first['both_ms']:.2f}", *cells])
    return table


def _time(run: Callable[[Sampler], None], sampler: Sampler, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(sampler)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_memory(run: Callable[[Sampler], None], sampler: Sampler, device: torch.device) -> int:
    """The most bytes that torch's allocator holds during a call, less those that it held before."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run(sampler)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run(sampler)
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in recorded.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def _quartiles(times: list[float], reference: list[float]) -> list[float]:
    return statistics.quantiles([a / b for a, b in zip(times, reference, strict=True)], n=4)


if __name__ == "__main__":
    main()
