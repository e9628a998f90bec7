"""A spatial transformer on handwritten digits in grain: test error by sampler, view and grain.

    python -m benchmarks.digits [--seeds 0 1 2] [--json FILE]

This is the training of the site's page "A spatial transformer on digits", with more samplers and several seeds. The
digits come with scikit-learn, so that nothing has to be downloaded.
"""

import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from tqdm import tqdm

from benchmarks import antialiasing
from benchmarks.commands import parser
from benchmarks.results import report
from benchmarks.samplers import MASKED
from lms_geometry import LinearizedSampling, grid_sample_linearized
from lms_geometry.registration.motion import rotation_scale_matrix

CANVAS = 48
STEPS, BATCH, LEARNING_RATE = 600, 64, 2e-3
# Side of the view, and standard deviation of the grain.
CONDITIONS = {
    "8x, grain 0.3": (6, 0.3),
    "8x, grain 0.6": (6, 0.6),
    "8x, no grain": (6, 0.0),
    "1x, grain 0.3": (48, 0.3),
}

Sample = Callable[[Tensor, Tensor], Tensor]


def bilinear(image: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(image, grid, align_corners=False)


def linearized(sampling: LinearizedSampling) -> Sample:
    return lambda image, grid: grid_sample_linearized(image, grid, sampling=sampling)


SAMPLERS: dict[str, Sample] = {
    "bilinear": bilinear,
    "supersampled, 3 x 3": lambda image, grid: antialiasing.supersampled(image, grid, 3),
    "bilinear, on a mipmap": antialiasing.mipmapped,
    "LinearizedSampling.paper()": linearized(LinearizedSampling.paper()),
    "whitened, sigma 0.3, masked": linearized(MASKED),
    "linearized, as it comes": linearized(LinearizedSampling()),
}


class SpatialTransformer(nn.Module):
    """A localiser of three layers, a sampler, and a classifier of two."""

    def __init__(self, size: int, sample: Sample) -> None:
        super().__init__()
        self.size, self.sample = size, sample
        last = nn.Linear(64, 4)
        self.localise = nn.Sequential(
            nn.AvgPool2d(3), nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), last
        )
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        seen = min(size, 12)
        self.classify = nn.Sequential(
            nn.AdaptiveAvgPool2d(seen), nn.Flatten(), nn.Linear(seen**2, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, image: Tensor) -> Tensor:
        """The scores of the ten digits."""
        theta = matrices(self.localise(image).T)
        grid = F.affine_grid(theta, [len(image), 1, self.size, self.size], align_corners=False)
        return self.classify(self.sample(image, grid))


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    command.add_argument("--samplers", choices=tuple(SAMPLERS), nargs="+", default=list(SAMPLERS))
    command.add_argument("--conditions", choices=tuple(CONDITIONS), nargs="+", default=list(CONDITIONS))
    command.add_argument("--steps", type=int, default=STEPS)
    command.add_argument("--json", type=Path, help="write the result to this file")
    options = command.parse_args()
    cells = [(sampler, condition) for sampler in options.samplers for condition in options.conditions]
    errors = {
        (sampler, condition): [
            error_of(SAMPLERS[sampler], *CONDITIONS[condition], seed, options.steps) for seed in options.seeds
        ]
        for sampler, condition in tqdm(cells, desc="digits", unit="cell")
    }
    report(
        options.json,
        "Digits in grain",
        f"Test error in %, mean over {len(options.seeds)} seeds and, in brackets, of each, of a spatial transformer on "
        f"scikit-learn's digits after {options.steps} steps. The digits lie turned somewhere on a canvas of {CANVAS} x "
        f"{CANVAS} pixels; the view is as large, or 8 times smaller. Grain is noise of this standard deviation.",
        ["sampler", *options.conditions],
        [
            [sampler, *(_cell(errors[sampler, condition]) for condition in options.conditions)]
            for sampler in options.samplers
        ],
        {f"{sampler}, {condition}": values for (sampler, condition), values in errors.items()},
    )


def error_of(sample: Sample, size: int, grain: float, seed: int, steps: int) -> float:
    """Train a network and return its test error."""
    digits, labels, train, test = load()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = SpatialTransformer(size, sample)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        batch = train[torch.randint(len(train), (BATCH,), generator=generator)]
        loss = F.cross_entropy(model(canvases(digits[batch], grain, generator)), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        seen = canvases(digits[test], grain, torch.Generator().manual_seed(1))
        return (model(seen).argmax(1) != labels[test]).float().mean().item()


def load() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Digits ``(n, 1, 24, 24)``, their labels, and the numbers of those to train on and to test on."""
    images, labels = load_digits(return_X_y=True)
    small = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    digits = F.interpolate(small, (24, 24), mode="bicubic", align_corners=False).clamp(0, 1)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0))
    return digits, torch.tensor(labels), order[:1300], order[1300:]


def canvases(digits: Tensor, grain: float, generator: torch.Generator) -> Tensor:
    """Digits at half size, turned by up to 0.6 radians, anywhere on the canvas, with grain."""
    return drawn(digits, placements(len(digits), generator), grain, generator)


def placements(count: int, generator: torch.Generator) -> Tensor:
    """Matrices ``(count, 2, 3)`` from the canvas to a digit, which they put at half size anywhere on the canvas."""
    angle, log2_scale, x, y = torch.rand(4, count, generator=generator) * 2 - 1
    theta = matrices(torch.stack((0.6 * angle, 1 + 0.3 * log2_scale, 0 * x, 0 * y)))
    room = 1 - 1 / theta[:, 0].norm(dim=1)
    where = torch.stack((x, y), 1) * room[:, None]
    theta[:, :, 2:] = -theta[:, :, :2] @ where[:, :, None]
    return theta


def drawn(digits: Tensor, theta: Tensor, grain: float, generator: torch.Generator) -> Tensor:
    """Canvases ``(B, 1, CANVAS, CANVAS)`` with digits where the matrices put them, and grain."""
    noise = torch.randn(len(digits), 1, CANVAS, CANVAS, generator=generator)
    grid = F.affine_grid(theta, [len(digits), 1, CANVAS, CANVAS], align_corners=False)
    return F.grid_sample(digits, grid, align_corners=False) + grain * noise


def matrices(parameters: Tensor) -> Tensor:
    """Rotation, log2 of the scale, and shifts ``(4, B)`` as matrices ``(B, 2, 3)``."""
    angle, log2_scale, x, y = parameters
    scale = log2_scale.exp2()
    return rotation_scale_matrix(angle, scale, scale, x, y)


def _cell(errors: list[float]) -> str:
    each = " / ".join(f"{100 * error:.0f}" for error in errors)
    return f"{100 * statistics.mean(errors):.0f} ({each})"


if __name__ == "__main__":
    main()
