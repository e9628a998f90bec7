"""The alignment problems of section 6.4, and the descent that every sampler is tried in.

A problem is a warp ``R S x + t`` from target to source in normalised coordinates: a rotation of standard deviation
pi/4, log2 of a scale per axis, a translation of 0.2 per axis, all normal and clipped at two standard deviations. The
target is the bilinear sample of the source through it. Descent starts at the identity.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from kornia.geometry.conversions import convert_affinematrix_to_homography
from torch import Tensor

from benchmarks.samplers import Sampler
from lms_geometry._kornia import normalize_homography
from lms_geometry.registration.adam import minimise
from lms_geometry.registration.metrics import corner_error
from lms_geometry.registration.motion import rotation_scale_matrix

# What finds the warps ``(B, 2, 3)`` of sources and targets.
Find = Callable[[Tensor, Tensor, torch.Generator], Tensor]

# Standard deviation of log2 of the scales. The paper's reaches 7 times up and down.
SCALES = {"milder": 2**0.5 / 2, "paper's": 2**0.5}
# Corner errors, in half widths, below which a share of the problems ends; those that tables show.
THRESHOLDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
REPORTED = (0.02, 0.3)
LEARNING_RATE = 0.02


def recalls_of(
    find: Find, images: Tensor, scale: float, rate: float, seed: int, padding_mode: str = "zeros"
) -> list[float]:
    """The recall of a method at every threshold, on one problem per image.

    Args:
        find: the method.
        images: the sources, ``(B, C, size, size)``.
        scale: standard deviation of log2 of the scales.
        rate: how many times a target is smaller than its source.
        seed: of the warps, and of the method.
        padding_mode: what targets show outside the source.
    """
    truth = draw_warps(len(images), scale, seed)
    side = max(round(images.shape[-1] / rate), 2)
    target = make_targets(images, truth, (side, side), padding_mode)
    found = find(images, target, torch.Generator().manual_seed(seed))
    errors = corner_error(convert_affinematrix_to_homography(found), convert_affinematrix_to_homography(truth))
    return [(errors < threshold).float().mean().item() for threshold in THRESHOLDS]


def show_recalls(recalls: Sequence[float]) -> str:
    """For a cell of a table."""
    return " / ".join(f"{recalls[THRESHOLDS.index(threshold)]:.2f}" for threshold in REPORTED)


def draw_warps(count: int, scale: float, seed: int) -> Tensor:
    """Target-to-source warps, normalised, ``(count, 2, 3)``."""
    return to_warps(draw_parameters(count, scale, seed))


def draw_parameters(count: int, scale: float, seed: int) -> Tensor:
    """What ``to_warps`` takes, ``(count, 5)``."""
    normals = torch.randn(count, 5, generator=torch.Generator().manual_seed(seed)).clamp(-2, 2)
    return normals * torch.tensor([math.pi / 4, scale, scale, 0.2, 0.2])


def to_warps(parameters: Tensor) -> Tensor:
    """Angle, log2 of two scales and two translations, ``(B, 5)``, to ``R S x + t``, ``(B, 2, 3)``."""
    angle, scale_x, scale_y, x, y = parameters.unbind(1)
    return rotation_scale_matrix(angle, scale_x.exp2(), scale_y.exp2(), x, y)


def make_targets(images: Tensor, warps: Tensor, dsize: tuple[int, int], padding_mode: str = "zeros") -> Tensor:
    """What bilinear sampling sees through the warps."""
    grid = F.affine_grid(warps, [len(warps), 1, *dsize], align_corners=False)
    return F.grid_sample(images, grid, "bilinear", padding_mode, align_corners=False)


def descend(sampler: Sampler, images: Tensor, target: Tensor, generator: torch.Generator, steps: int) -> Tensor:
    """The warps that Adam finds from the identity, minimising the squared error, ``(B, 2, 3)``."""
    read = sampler(images)

    def losses(parameters: Tensor, step: int) -> Tensor:
        warped = read(to_warps(parameters), (target.shape[-2], target.shape[-1]), step / steps, generator)
        return (warped - target).square().mean((1, 2, 3))

    return to_warps(minimise(losses, torch.zeros(len(target), 5), LEARNING_RATE, range(steps)).path[-1])


def normalised(matrix: Tensor, sources: Tensor, targets: Tensor) -> Tensor:
    """Source to target in pixels, as target to source in normalised coordinates, ``(B, 3, 3)``."""
    size, dsize = ((image.shape[-2], image.shape[-1]) for image in (sources, targets))
    return torch.linalg.inv(normalize_homography(matrix, size, dsize, align_corners=False))
