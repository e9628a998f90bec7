"""Time of the warp functions, as ratios to kornia's functions that they stand for.

    python -m benchmarks.speed_warps [--rounds N] [--threads N] [--json FILE]

The functions take turns within each round. A ratio is taken within a round, and the table gives its median over the
rounds. The work of a call is all that a user pays: the grid of the matrix and its Jacobian, the reads, and the way back
to the matrix.
"""

import statistics
import time
from collections.abc import Callable
from typing import TypedDict

import torch
from kornia.geometry import warp_affine, warp_perspective
from torch import Tensor
from tqdm import tqdm

import lms_geometry
from benchmarks.commands import timing_parser
from benchmarks.results import report
from lms_geometry._kornia import homography_warp

# Images, the side of a square image, the side of the output.
Case = tuple[int, int, int]
CASES: tuple[Case, ...] = ((64, 50, 50), (64, 50, 12), (4, 512, 512), (4, 512, 128))
Warp = Callable[..., Tensor]
# Kornia's function and the one that stands for it.
WARPS: dict[str, tuple[Warp, Warp]] = {
    "warp_affine": (warp_affine, lms_geometry.warp_affine_linearized),
    "warp_perspective": (warp_perspective, lms_geometry.warp_perspective_linearized),
    "homography_warp": (homography_warp, lms_geometry.homography_warp_linearized),
}


class Row(TypedDict):
    """What was measured of one function at one size. ``ratio`` is one to kornia's for each round."""

    size: str
    warp: str
    kornia_ms: float
    ratio: list[float]


def main() -> None:
    options = timing_parser(__doc__, rounds=30).parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(case, name, options.rounds) for case in tqdm(CASES, desc="warps", unit="size") for name in WARPS]
    report(
        options.json,
        "Speed of the warp functions",
        "Time of one call, forward and backward with a gradient for the matrix, as a ratio to kornia's function in the "
        "same round: medians. In brackets the milliseconds of kornia's function. The whole image is warped into an "
        "output as large or four times smaller, turned a little; images have three channels.",
        ["images, side, output's side", *WARPS],
        [
            [
                size,
                *(f"{statistics.median(r['ratio']):.1f} ({r['kornia_ms']:.1f} ms)" for r in rows if r["size"] == size),
            ]
            for size in dict.fromkeys(row["size"] for row in rows)
        ],
        rows,
    )


def measure(case: Case, name: str, rounds: int) -> Row:
    """Time both functions of a name."""
    count, side, output = case
    image = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    matrix = matrices(name, side, output).repeat(count, 1, 1).requires_grad_()
    times: list[list[float]] = []
    for _ in range(rounds + 2):  # two rounds to warm up
        times.append([])
        for warp in WARPS[name]:
            start = time.perf_counter()
            warp(image, matrix, (output, output), align_corners=False).sum().backward()
            times[-1].append(time.perf_counter() - start)
    times = times[2:]
    return {
        "size": f"{count}, {side}, {output}",
        "warp": name,
        "kornia_ms": 1e3 * statistics.median(kornia for kornia, _ in times),
        "ratio": [ours / kornia for kornia, ours in times],
    }


def matrices(name: str, side: int, output: int) -> Tensor:
    """A matrix of the kind that a function takes, with a batch of 1."""
    if name == "homography_warp":  # normalised, from the output to the image
        return torch.tensor([[[1.0, 0.1, 0.02], [-0.1, 1.0, 0.03], [0.02, 0.01, 1.0]]])
    shrunk = output / side
    affine = shrunk * torch.tensor([[[0.96, 0.1, 0.02 * side], [-0.1, 0.96, 0.03 * side]]])
    return (
        affine if name == "warp_affine" else torch.cat((affine, torch.tensor([[[1e-2 / side, 1e-2 / side, 1.0]]])), 1)
    )


if __name__ == "__main__":
    main()
