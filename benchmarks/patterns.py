"""Patterns of auxiliary samples that the library does not ship, to be given as ``noise=``.

Each returns ``(K - 1, h, w, 2)`` with a variance of 1 per axis, as ``draw_noise`` does.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor

from lms_geometry import LinearizedSampling, draw_noise

Size = tuple[int, int]


def antithetic(sampling: LinearizedSampling, size: Size, generator: torch.Generator) -> Tensor:
    """Gaussian draws in opposite pairs; where their number is odd, one draw has no opposite."""
    count = sampling.num_samples - 1
    pairs = replace(sampling, num_samples=(count + 1) // 2 + 1, pattern="gaussian")
    half = draw_noise(pairs, size, generator=generator)
    return torch.cat((half, -half))[:count]


def ring(sampling: LinearizedSampling, size: Size, generator: torch.Generator) -> Tensor:
    """A regular polygon, rotated by a random angle at every pixel. Mean 0 and covariance 1 hold exactly."""
    return _on_rings([math.sqrt(2)] * (sampling.num_samples - 1), size, generator)


def two_rings(sampling: LinearizedSampling, size: Size, generator: torch.Generator) -> Tensor:
    """A regular polygon, rotated at random, whose corners lie alternately on an inner circle and one twice as large."""
    count = sampling.num_samples - 1
    inner = math.sqrt(2 * count / (count + 3 * (count // 2)))
    return _on_rings([inner * (1 + corner % 2) for corner in range(count)], size, generator)


def spiral(sampling: LinearizedSampling, size: Size, generator: torch.Generator) -> Tensor:
    """A spiral of low discrepancy: steps of the golden angle, at radii that divide a Gaussian into equal parts."""
    count = sampling.num_samples - 1
    parts = (torch.arange(count) + 0.5) / count
    radii = (-2 * torch.log1p(-parts)).sqrt()
    radii = radii * (2 / radii.square().mean()).sqrt()
    golden = math.pi * (3 - math.sqrt(5))
    return _on_rings(radii.tolist(), size, generator, golden)


def quasi_random(sampling: LinearizedSampling, size: Size, generator: torch.Generator) -> Tensor:
    """A sequence of low discrepancy: the first points of R2, shifted at random at every pixel, made normal."""
    plastic = 1.32471795724474602596
    steps = torch.tensor([1 / plastic, 1 / plastic**2])
    points = torch.arange(sampling.num_samples - 1)[:, None] * steps
    shifts = torch.rand(1, *size, 2, generator=generator)
    uniform = (points[:, None, None] + shifts) % 1.0
    return math.sqrt(2) * torch.erfinv((2 * uniform - 1).clamp(-0.9999, 0.9999))


def _on_rings(radii: list[float], size: Size, generator: torch.Generator, turn: float | None = None) -> Tensor:
    """Points around each pixel, from a random angle on, each ``turn`` radians after the one before.

    Without ``turn`` the points divide a full circle into equal parts.
    """
    steps = torch.arange(len(radii)) * (2 * math.pi / len(radii) if turn is None else turn)
    angles = steps[:, None, None] + 2 * math.pi * torch.rand(1, *size, generator=generator)
    return torch.tensor(radii)[:, None, None, None] * torch.stack((angles.cos(), angles.sin()), -1)
