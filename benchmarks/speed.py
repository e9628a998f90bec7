"""Time and peak memory of linearized sampling, as ratios to bilinear sampling.

    python -m benchmarks.speed [--rounds N] [--threads N] [--json FILE]

All samplers run in one process, one after the other within each round, so that what else the machine does falls on
all alike; a ratio is taken within a round, and the table gives its median and quartiles. Milliseconds depend on the
machine, ratios less so. Runs on a GPU when there is one.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TypedDict

import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from benchmarks.results import report
from lms_geometry import LinearizedSampling, grid_sample_linearized

# B, C, H, W, h, w, and whether the image takes a gradient: it does where it is a feature map.
CASES = (
    (64, 3, 50, 50, 50, 50, False),
    (64, 3, 50, 50, 12, 12, False),
    (4, 3, 512, 512, 512, 512, False),
    (4, 3, 512, 512, 128, 128, False),
    (8, 64, 64, 64, 64, 64, True),
)
SAMPLES = (4, 8, 16, 32)
COLUMNS = ("B,C,H,W,h,w", "sampler", "forward, ms", "both, ms", "ratio (quartiles)", "peak memory, MB", "ratio")
WHITENED = LinearizedSampling(pattern="whitened", mask_out_of_bounds=False)

Sampler = Callable[[Tensor, Tensor], Tensor]


class Row(TypedDict):
    """One sampler at one size. Ratios to bilinear, of times as (lower quartile, median, upper quartile)."""

    size: str
    sampler: str
    forward_ms: float
    both_ms: float
    forward_ratio: list[float]
    both_ratio: list[float]
    memory_mb: float
    memory_ratio: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    rows = []
    for case in tqdm(CASES, desc="speed", unit="size"):
        rows += measure(case, _samplers(), options.rounds, device)
    rows += measure(CASES[0], _samplers_by_count(), options.rounds, device)
    report(
        options.json,
        "Speed",
        "Time and peak memory of one call, forward and backward with a gradient for the grid, as ratios to bilinear "
        "sampling: the median over interleaved rounds, and its quartiles.",
        COLUMNS,
        [_cells(row) for row in rows],
        rows,
    )


def measure(
    case: tuple[int, int, int, int, int, int, bool],
    samplers: dict[str, Sampler],
    rounds: int,
    device: torch.device,
) -> list[Row]:
    """One row a sampler; the first sampler is what the others are compared with."""
    B, C, H, W, h, w, image_gradient = case
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(B, C, H, W, generator=generator).to(device).requires_grad_(image_gradient)
    theta = torch.eye(2, 3) + 0.05 * torch.randn(B, 2, 3, generator=generator)
    grid = F.affine_grid(theta, [B, C, h, w], align_corners=False).to(device).requires_grad_()
    weight = torch.rand(B, C, h, w, generator=generator).to(device)

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
            "size": f"{B},{C},{H},{W},{h},{w}" + (" image gradient too" if image_gradient else ""),
            "sampler": name,
            "forward_ms": 1e3 * statistics.median(times[name, "forward"]),
            "both_ms": 1e3 * statistics.median(times[name, "both"]),
            "forward_ratio": _quartiles(times[name, "forward"], times[reference, "forward"]),
            "both_ratio": _quartiles(times[name, "both"], times[reference, "both"]),
            "memory_mb": memory[name] / 2**20,
            "memory_ratio": memory[name] / memory[reference],
        }
        for name in samplers
    ]


def _cells(row: Row) -> list[str]:
    low, middle, high = row["both_ratio"]
    return [
        row["size"],
        row["sampler"],
        f"{row['forward_ms']:.1f}",
        f"{row['both_ms']:.1f}",
        f"{middle:.1f} ({low:.1f} to {high:.1f})",
        f"{row['memory_mb']:.1f}",
        f"{row['memory_ratio']:.1f}",
    ]


def _samplers() -> dict[str, Sampler]:
    return {
        "bilinear": _bilinear,
        "multi-scale (1, 5, 10)": _multi_scale,
        "linearized, paper": _linearized(LinearizedSampling.paper()),
        "linearized, whitened": _linearized(WHITENED),
    }


def _samplers_by_count() -> dict[str, Sampler]:
    linearized = {f"linearized, whitened, K = {k}": _linearized(replace(WHITENED, num_samples=k)) for k in SAMPLES}
    return {"bilinear": _bilinear, **linearized}


def _bilinear(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(image, grid, align_corners=False)


def _multi_scale(image: Tensor, grid: Tensor) -> Tensor:
    """The paper's baseline: the mean of bilinear samples of the image blurred by three Gaussians."""
    smallest = min(image.shape[-2:])
    blurred = []
    for sigma in (1.0, 5.0, 10.0):
        width = min(2 * int(3 * sigma) + 1, smallest - 1 + smallest % 2)
        blurred.append(gaussian_blur2d(image, (width, width), (sigma, sigma)))
    return torch.stack([_bilinear(level, grid) for level in blurred]).mean(0)


def _linearized(sampling: LinearizedSampling) -> Sampler:
    return lambda image, grid: grid_sample_linearized(image, grid, align_corners=False, sampling=sampling)


def _time(run: Callable[[Sampler], None], sampler: Sampler, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run(sampler)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _peak_memory(run: Callable[[Sampler], None], sampler: Sampler, device: torch.device) -> int:
    """Bytes that torch's allocator holds at most, above what it held before."""
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
