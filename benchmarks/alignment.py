"""Image alignment by gradient descent, section 6.4.

    python -m benchmarks.alignment --data DIR [--photos 80] [--problems 1] [--seed 0] [--json FILE]

A photo is warped by ``R S x + t`` (normalised coordinates, target to source): a rotation of standard deviation pi/4,
log2 of two scales of sqrt(2)/2, two translations of 0.2, normals clipped at two standard deviations. The target is the
bilinear sample of it at a reduced size, with zero padding. ``register`` starts at the identity and minimises the
squared error by 200 steps of Adam at 0.02. The table gives the share of problems whose mean corner error, in half
widths, ends below 0.02 and below 0.3.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch
from kornia.geometry.conversions import normalize_homography
from kornia.geometry.linalg import transform_points
from kornia.geometry.transform import homography_warp
from torch import Tensor
from tqdm import tqdm

from benchmarks.photos import load_photos
from benchmarks.results import report
from lms_geometry import LinearizedSampling, register

SIZE = 128
RATES = (8, 4)
THRESHOLDS = (0.02, 0.3)
SAMPLERS: dict[str, dict[str, Any]] = {
    "bilinear": {"motion": "anisotropic", "sampling": "bilinear"},
    "paper": {"motion": "anisotropic", "sampling": LinearizedSampling.paper()},
    "paper, mask off": {"motion": "anisotropic", "sampling": LinearizedSampling(mask_out_of_bounds=False)},
    "register's default": {"motion": "anisotropic"},
    "register's default, affine": {"motion": "affine"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="a folder of photos")
    parser.add_argument("--photos", type=int, default=80)
    parser.add_argument("--problems", type=int, default=1, help="draws of the warps, each with all photos")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the corner errors to this file")
    options = parser.parse_args()
    photos = load_photos(options.data, options.photos, SIZE)

    errors: dict[str, dict[int, list[float]]] = {}
    seeds = range(options.seed, options.seed + options.problems)
    jobs = [(name, rate, seed) for name in SAMPLERS for rate in RATES for seed in seeds]
    for name, rate, seed in tqdm(jobs, desc="alignment"):
        found = corner_errors(photos, rate, seed, **SAMPLERS[name])
        errors.setdefault(name, {}).setdefault(rate, []).extend(found.tolist())

    report(
        options.json,
        "Alignment",
        f"Section 6.4, Fig. 7: recall below a corner error of {THRESHOLDS[0]} / {THRESHOLDS[1]} half widths, over "
        f"{options.photos} photos with {options.problems} warps each, scales of standard deviation sqrt(2)/2 in log2.",
        ["sampler", *(f"{rate}x" for rate in RATES)],
        [[name, *(_recalls(by_rate[rate]) for rate in RATES)] for name, by_rate in errors.items()],
        {name: {rate: [round(e, 5) for e in some] for rate, some in by.items()} for name, by in errors.items()},
    )


def corner_errors(photos: Tensor, rate: int, seed: int, **options: Any) -> Tensor:  # noqa: ANN401
    """Mean corner error of each photo after registration, in half widths of the source, ``(N,)``."""
    truth = draw_warps(len(photos), seed)
    size, dsize = (SIZE, SIZE), (SIZE // rate, SIZE // rate)
    target = homography_warp(photos, truth, dsize)
    found = register(photos, target, generator=torch.Generator().manual_seed(seed), **options)
    found_warp = normalize_homography(found.matrix, size, dsize, align_corners=False).inverse()
    corners = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]).expand(len(photos), 4, 2)
    return (transform_points(found_warp, corners) - transform_points(truth, corners)).norm(dim=-1).mean(-1)


def draw_warps(count: int, seed: int) -> Tensor:
    """Target-to-source warps of section 6.4, normalised, ``(count, 3, 3)``."""
    generator = torch.Generator().manual_seed(seed)
    normals = torch.randn(count, 5, generator=generator)
    while (far := normals.abs() > 2).any():
        normals = torch.where(far, torch.randn(count, 5, generator=generator), normals)
    angle, scales, shift = normals[:, 0] * math.pi / 4, (normals[:, 1:3] * 0.5**0.5).exp2(), normals[:, 3:] * 0.2
    rotation = torch.stack((angle.cos(), -angle.sin(), angle.sin(), angle.cos()), -1).view(-1, 2, 2)
    warps = torch.eye(3).repeat(count, 1, 1)
    warps[:, :2, :2], warps[:, :2, 2] = rotation * scales[:, None], shift
    return warps


def _recalls(errors: list[float]) -> str:
    return " / ".join(f"{sum(e < threshold for e in errors) / len(errors):.2f}" for threshold in THRESHOLDS)


if __name__ == "__main__":
    main()
