"""Warps inside a network: test error by the gradient that features get from the sampler that reads them.

    python -m benchmarks.inside [--seeds 0 1 2] [--json FILE]

What is warped here is no image but the features of a convolution, which is trained at the same time. The default gives
them the exact adjoint of the mean over an output pixel. The paper's method gives the gradient of an output pixel to the
four texels at its centre. The digits are those of ``benchmarks.digits``, turned somewhere on a canvas in grain: a
spatial transformer has to find them; a RoIAlign head is given boxes that lie roughly over them, and moves these by
nothing but the gradient of the classification.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import antialiasing, digits
from benchmarks.commands import parser
from benchmarks.digits import CANVAS
from benchmarks.results import report
from benchmarks.runs import Job, run_cells
from lms_geometry import LinearizedSampling, grid_sample_linearized, roi_align_linearized

CHANNELS, SIZE = 8, 6
GRAIN = 0.2
STEPS, LEARNING_RATE = 500, 2e-3
# A tenth of the other layers': with the same rate, views leave the canvas early on and never return.
LOCALISER_LEARNING_RATE = 2e-4
# The boxes that are proposed for a digit, their side in pixels, and how far from the digit's centre along an axis
# theirs may lie.
PROPOSALS, SIDE, FARTHEST = 4, 36.0, 10.0

Read = Callable[[Tensor, Tensor], Tensor]


class Sampler(NamedTuple):
    """The same sampler for grids and for boxes."""

    warp: Read
    """Features ``(B, C, H, W)`` and a grid ``(B, h, w, 2)`` to ``(B, C, h, w)``."""
    pool: Read
    """Features ``(B, C, CANVAS, CANVAS)`` and boxes ``(B, n, 4)`` in pixels to ``(B * n, C, SIZE, SIZE)``."""


def supersampled(features: Tensor, grid: Tensor) -> Tensor:
    return antialiasing.supersampled(features, grid, 3)


def warped_by_centre(features: Tensor, grid: Tensor) -> Tensor:
    """The default's value and gradient for the grid, with bilinear sampling's gradient for the features."""
    centre = digits.bilinear(features, grid.detach())
    return grid_sample_linearized(features.detach(), grid) + (centre - centre.detach())


def pooled(features: Tensor, boxes: Tensor) -> Tensor:
    return roi_align_linearized(features, list(boxes), SIZE, sampling_ratio=3, aligned=True)


def pooled_by_centre(features: Tensor, boxes: Tensor) -> Tensor:
    """The default's value and gradient for the boxes, with bilinear sampling's gradient for the features."""
    centre = pooled_through(digits.bilinear, features, boxes.detach())
    return pooled(features.detach(), boxes) + (centre - centre.detach())


def pooled_as_paper(features: Tensor, boxes: Tensor) -> Tensor:
    """RoIAlign with the paper's settings: with one point in a bin, the features get the gradient of its centre."""
    paper = LinearizedSampling.paper()
    return roi_align_linearized(features, list(boxes), SIZE, sampling_ratio=1, aligned=True, sampling=paper)


def pooled_through(warp: Read, features: Tensor, boxes: Tensor) -> Tensor:
    """RoIAlign whose bins are the output pixels of a sampler of grids, which differentiates it."""
    share = (torch.arange(SIZE) + 0.5) / SIZE
    left, top, right, bottom = (2 * edge[:, None] / CANVAS - 1 for edge in boxes.flatten(0, 1).unbind(1))
    x, y = left + (right - left) * share, top + (bottom - top) * share
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)
    return warp(features.repeat_interleave(boxes.shape[1], 0), grid)


SAMPLERS = {
    "bilinear": Sampler(digits.bilinear, partial(pooled_through, digits.bilinear)),
    "supersampled, 3 x 3": Sampler(supersampled, partial(pooled_through, supersampled)),
    "linearized, as it comes": Sampler(grid_sample_linearized, pooled),
    "the same, features by the centre": Sampler(warped_by_centre, pooled_by_centre),
    "LinearizedSampling.paper()": Sampler(digits.linearized(LinearizedSampling.paper()), pooled_as_paper),
}


class SpatialTransformer(nn.Module):
    """A convolution, a localiser, a sampler that reads the convolution's features, and a classifier."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.sample = sampler.warp
        self.convolve = nn.Sequential(nn.Conv2d(1, CHANNELS, 5, padding=2), nn.ReLU())
        self.localise = nn.Sequential(nn.AvgPool2d(4), *perceptron(CHANNELS * (CANVAS // 4) ** 2, 64, 64, 4))
        self.classify = perceptron(CHANNELS * SIZE**2, 64, 10)
        for parameter in self.localise[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor, proposals: Tensor) -> Tensor:  # noqa: ARG002
        """The scores of the ten digits, ``(B, 1, 10)``. The first view is the whole canvas."""
        features = self.convolve(image)
        theta = digits.matrices(self.localise(features).T)
        grid = F.affine_grid(theta, [len(image), 1, SIZE, SIZE], align_corners=False)
        return self.classify(self.sample(features, grid))[:, None]


class RoIHead(nn.Module):
    """A convolution, and a head that pools its features in a box, moves the box, pools them again and classifies."""

    def __init__(self, sampler: Sampler) -> None:
        super().__init__()
        self.pool = sampler.pool
        self.convolve = nn.Sequential(nn.Conv2d(1, CHANNELS, 5, padding=2), nn.ReLU())
        self.localise = perceptron(CHANNELS * SIZE**2, 64, 4)
        self.classify = perceptron(CHANNELS * SIZE**2, 64, 10)
        for parameter in self.localise[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor, proposals: Tensor) -> Tensor:
        """The scores of the ten digits for boxes ``(B, n, 4)``, ``(B, n, 10)``. At first the boxes stay as they are."""
        features = self.convolve(image)
        move, zoom = self.localise(self.pool(features, proposals)).view(proposals.shape).split(2, 2)
        first, last = proposals.split(2, 2)
        centre, side = (first + last) / 2 + (last - first) * move, (last - first) * zoom.exp2()
        boxes = torch.cat((centre - side / 2, centre + side / 2), 2)
        return self.classify(self.pool(features, boxes)).view(*proposals.shape[:2], 10)


NETWORKS: dict[str, type[SpatialTransformer] | type[RoIHead]] = {"STN": SpatialTransformer, "RoIAlign": RoIHead}
BATCH = {"STN": 32, "RoIAlign": 8}


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    command.add_argument("--samplers", choices=tuple(SAMPLERS), nargs="+", default=list(SAMPLERS))
    command.add_argument("--networks", choices=tuple(NETWORKS), nargs="+", default=list(NETWORKS))
    command.add_argument("--steps", type=int, default=STEPS)
    command.add_argument("--finished", type=Path, default=Path("runs/inside.jsonl"), help="the file of finished runs")
    command.add_argument("--json", type=Path, help="write the result to this file")
    options = command.parse_args()
    runs = [
        (sampler, network, seed)
        for seed in options.seeds
        for network in options.networks
        for sampler in options.samplers
    ]
    jobs = [
        {"network": network, "sampler": sampler, "seed": seed, "steps": options.steps}
        for sampler, network, seed in runs
    ]
    values = run_cells(jobs, train, digits.load()[0], options.finished, "inside")
    cells = dict(zip(runs, values, strict=True))
    rows, raw = [], {}
    for sampler in options.samplers:
        row = [sampler]
        for network in options.networks:
            of_seeds = [cells[sampler, network, seed] for seed in options.seeds]
            errors = raw[f"{sampler}, {network}"] = [cell["error"] for cell in of_seeds]
            each = " / ".join(f"{100 * error:.1f}" for error in errors)
            time_of_step = min(cell["ms a step"] for cell in of_seeds)
            row += [f"{100 * statistics.mean(errors):.1f} ({each})", f"{time_of_step:.0f}"]
        rows.append(row)
    report(
        options.json,
        "Warps inside a network",
        f"Test error in %, mean over {len(options.seeds)} seeds and, in brackets, of each, after {options.steps} "
        f"steps. What is sampled is not the image but the {CHANNELS} channels of a convolution over it, which is "
        f"trained too. The images are scikit-learn's digits, turned somewhere on a canvas of {CANVAS} x {CANVAS} "
        f"pixels in grain of standard deviation {GRAIN}. STN: a spatial transformer whose view of {SIZE} x {SIZE} "
        f"pixels is the whole canvas at first. RoIAlign: a head pools a box of {SIDE:g} pixels, whose centre is off by "
        f"up to {FARTHEST:g} pixels along either axis, in {SIZE} x {SIZE} bins; it moves and resizes the box, pools "
        "again and classifies. *Features by the centre* has the default's value and its gradient for the grid or the "
        "boxes, and bilinear sampling's gradient for the features. Time: milliseconds of one core for one step, the "
        "median over a run, the least over the seeds.",
        ["sampler", *(f"{network}{what}" for network in options.networks for what in ("", ": ms a step"))],
        rows,
        raw,
    )


def train(job: Job) -> dict[str, float]:
    """Train a network; return its test error and how long a step took."""
    images, labels, training, test = digits.load()
    network, seed = str(job["network"]), int(job["seed"])
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = NETWORKS[network](SAMPLERS[str(job["sampler"])])
    groups: list[dict[str, Any]] = [
        {"params": model.localise.parameters(), "lr": LOCALISER_LEARNING_RATE},
        {"params": [*model.convolve.parameters(), *model.classify.parameters()]},
    ]
    optimizer = torch.optim.Adam(groups, LEARNING_RATE)
    times = []
    for _ in range(int(job["steps"])):
        batch = training[torch.randint(len(training), (BATCH[network],), generator=generator)]
        seen = scenes(images[batch], generator)
        start = time.process_time()
        scores = model(*seen)
        loss = F.cross_entropy(scores.flatten(0, 1), labels[batch].repeat_interleave(scores.shape[1]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(time.process_time() - start)
    with torch.no_grad():
        guesses = model(*scenes(images[test], torch.Generator().manual_seed(1))).argmax(2)
    error = (guesses != labels[test][:, None]).float().mean().item()
    return {"error": error, "ms a step": 1e3 * statistics.median(times)}


def scenes(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Canvases ``(B, 1, CANVAS, CANVAS)`` with a digit each, and boxes near it ``(B, PROPOSALS, 4)``, in pixels."""
    theta = digits.placements(len(images), generator)
    middle = -torch.linalg.solve(theta[:, :, :2], theta[:, :, 2:]).mT
    off = 2 * torch.rand(len(images), PROPOSALS, 2, generator=generator) - 1
    centre = CANVAS / 2 * (1 + middle) + FARTHEST * off
    return digits.drawn(images, theta, GRAIN, generator), torch.cat((centre - SIDE / 2, centre + SIDE / 2), 2)


def perceptron(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU between them, over all that they are given, brought to mean 0 and variance 1."""
    layers = [nn.Linear(*pair) for pair in pairwise(sizes)]
    hidden = [part for layer in layers[:-1] for part in (layer, nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.LayerNorm(sizes[0]), *hidden, layers[-1])


if __name__ == "__main__":
    main()
