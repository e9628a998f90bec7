"""The share of images whose loss falls after a step against its gradient, for slopes of several widths.

    python -m benchmarks.classification.steps --data DIR [--set gtsrb|mnist] [--steps N] [--rate 8] [--seeds 0 1 2]
        [--runs DIR] [--json FILE]

Without its intercept linearized sampling has the value of bilinear sampling, so that only the gradients differ. The
STNs are those of ``python -m benchmarks.classification``. The four parameters of each test image's warp, in radians,
octaves and half widths, move against the gradient by a step of a given length.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.classification.data import SIZE, Images, identity, load
from benchmarks.classification.networks import SCALES, Network, similarity
from benchmarks.classification.samplers import BILINEAR, SAMPLERS, TRAINING, Sampler
from benchmarks.classification.train import Job, Split, prepare, train
from benchmarks.commands import parser
from benchmarks.results import report
from benchmarks.samplers import WHITENED

# The number of test images, and the lengths of the steps.
IMAGES = 600
LENGTHS = (0.01, 0.03, 0.1, 0.2)
TRAINED_WITH = (BILINEAR, TRAINING)

_WIDE = replace(WHITENED, intercept=False)
SLOPES = {
    "bilinear": Sampler(),
    **{f"linearized, sigma {sigma:g}": Sampler(replace(_WIDE, sigma=sigma)) for sigma in (0.25, 0.5, 1.0)},
    "linearized, sigma 0.5, K = 64": Sampler(replace(_WIDE, sigma=0.5, num_samples=64)),
}


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--data", type=Path, required=True, help="the folder of the set")
    command.add_argument("--set", choices=("gtsrb", "mnist"), default="gtsrb")
    command.add_argument("--steps", type=int, default=SCALES["small"].steps, help="of training")
    command.add_argument("--every", type=int, default=2000, help="steps between evaluations")
    command.add_argument("--rate", type=int, default=8)
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    command.add_argument("--runs", type=Path, default=Path("runs/classification"), help="where networks are kept")
    command.add_argument("--json", type=Path, help="also write the figures to this file")
    options = command.parse_args()

    data, device = load(options.set, options.data), torch.device("cpu")
    scale = replace(SCALES["small"], steps=options.steps)
    data_name = identity(options.set, data)
    chosen = torch.randperm(len(data.test.labels), generator=torch.Generator().manual_seed(0))[:IMAGES]
    images = Images(data.test.pixels[chosen], data.test.labels[chosen])
    shares: dict[tuple[str, str], list[list[float]]] = {}
    for trained_with in TRAINED_WITH:
        jobs = [Job("STN", trained_with, options.rate, seed) for seed in options.seeds]
        paths = [job.path(options.runs, data_name, "small") for job in jobs]
        for run in train(jobs, SAMPLERS[trained_with], scale, options.every, data, paths, device):
            split = prepare(images, Sampler(), scale, run.network.view, device)
            for slope, other in SLOPES.items():
                shares.setdefault((trained_with, slope), []).append(share_of_falls(run.network, split, other, LENGTHS))
    table = {kind: torch.tensor(by_seed).mean(0).tolist() for kind, by_seed in shares.items()}
    report(
        options.json,
        "Classification, what a step against the gradient gains",
        f"The share of {IMAGES} test images whose loss falls when the warp that an STN gave them, at {options.rate}x, "
        f"takes a step of a given length against its gradient; mean over {len(options.seeds)} seeds. The value is that "
        "of bilinear sampling in every row.",
        ["STN trained with", "gradient", *(f"step {length:g}" for length in LENGTHS)],
        [[*kind, *(f"{share:.2f}" for share in row)] for kind, row in table.items()],
        {" / ".join(kind): by_seed for kind, by_seed in shares.items()},
    )


def share_of_falls(network: Network, split: Split, sampler: Sampler, lengths: Sequence[float]) -> list[float]:
    """For each length, the share of images whose loss falls after a step of the warp against its gradient."""
    canvas, seen, labels = split.batch(torch.arange(len(split.labels))[:, None])
    generator = torch.Generator().manual_seed(0)

    def losses(parameters: Tensor) -> Tensor:
        theta = similarity(parameters)[:, 0, :2]
        views = sampler.read(canvas[:, 0], theta, SIZE, network.view, generator)
        return F.cross_entropy(network.classify(views[:, None])[:, 0], labels[:, 0], reduction="none")

    start = network.localise(seen).detach().requires_grad_()
    before = losses(start)
    (gradient,) = torch.autograd.grad(before.sum(), start)
    with torch.no_grad():
        return [
            (losses(start - length * F.normalize(gradient, dim=-1)) < before).float().mean().item()
            for length in lengths
        ]


if __name__ == "__main__":
    main()
