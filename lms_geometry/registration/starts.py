"""Where a search may start: the names of the kinds of starts, and those that come from the images themselves."""

import torch
from torch import Tensor

from lms_geometry.homography import homography_warp_linearized
from lms_geometry.registration import features, phase
from lms_geometry.registration.agreement import gradient
from lms_geometry.registration.motion import PARAMETERS, nearest_in
from lms_geometry.registration.problem import FULLY_VALID, Problem, normalisation

START_NAMES = ("resize", "turns", "phase", "features")

# The longer side of the target, in pixels, at which spectra are compared, and the smallest target that has any to speak
# of.
_PHASE_SIDE, _SMALLEST_PHASE = 96, 40


def warp(problem: Problem, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The source through matrices ``(B, 3, 3)``, without aliasing, and the weight of the pixels where both are valid.

    What counts is the overlap, whatever the loss takes the outside for.
    """
    size = problem.size
    mask = torch.ones_like(problem.source[:, :1]) if problem.source_mask is None else problem.source_mask
    usable = matrix.isfinite().all(-1).all(-1)[:, None, None]
    matrix = torch.where(usable, matrix, torch.eye(3, dtype=matrix.dtype, device=matrix.device))
    warped = homography_warp_linearized(problem.source, matrix, size, padding_mode="border")
    valid = homography_warp_linearized(mask, matrix, size)
    valid = (valid > FULLY_VALID).to(mask) * problem.target_mask * usable[..., None]
    return warped.nan_to_num(0.0, 0.0, 0.0), valid


def phase_starts(problem: Problem) -> tuple[Tensor | None, str | None]:
    """The similarities that the spectra suggest, ``(B, 3, 3)`` in normalised coordinates, or why there are none."""
    if max(problem.dsize) < _SMALLEST_PHASE:
        return None, f"phase: the target is smaller than {_SMALLEST_PHASE} pixels"
    small = problem.shrunk(_PHASE_SIDE, 4 * _PHASE_SIDE)
    batch = len(small.source)
    grey = small.target.mean(1, keepdim=True)
    resized, _ = warp(small, small.start)
    turned = "angle" in PARAMETERS[problem.motion]
    scaled = problem.motion not in ("translation", "rigid")
    linear = phase.similarities(resized.mean(1, keepdim=True), grey, scaled)
    if not turned:
        linear = linear[:, :1]
    height, width = grey.shape[-2:]
    to_pixels = grey.new_tensor([width / 2, height / 2])
    best, best_quality = small.start, torch.full_like(small.start[:, 0, 0], -torch.inf)
    for index in range(linear.shape[1]):
        matrix = torch.eye(3, dtype=grey.dtype, device=grey.device).repeat(batch, 1, 1)
        matrix[:, :2, :2] = linear[:, index] * to_pixels / to_pixels[:, None]
        warped, valid = warp(small, small.start @ matrix)
        shift, quality = phase.best_shift(warped.mean(1, keepdim=True), valid, grey, small.target_mask)
        moved = torch.eye(3, dtype=grey.dtype, device=grey.device).repeat(batch, 1, 1)
        moved[:, :2, 2] = shift / to_pixels
        better = quality > best_quality
        best = torch.where(better[:, None, None], small.start @ matrix @ moved, best)
        best_quality = torch.where(better, quality, best_quality)
    return nearest_in(problem.motion, best, problem.start, problem.dsize), None


def feature_starts(problem: Problem, rows: Tensor) -> tuple[Tensor, Tensor, str | None]:
    """The motions on which matched features agree.

    Args:
        problem: the pairs, at full size.
        rows: the numbers of the pairs that need such a start.

    Returns:
        Matrices in normalised coordinates, ``(B, 3, 3)``; which of them were found, ``(B)``; and why none was sought.
    """
    found = torch.zeros(len(problem.source), dtype=torch.bool, device=problem.source.device)
    matrices = problem.start.clone()
    if not features.large_enough(problem.source, problem.target):
        return matrices, found, f"features: {features.TOO_SMALL}"
    if features.opencv() is None:
        return matrices, found, f"features: {features.MISSING}"
    for row in rows.tolist():
        source_mask, target_mask = (_hiding(mask, row) for mask in (problem.source_mask, problem.target_mask))
        images = problem.source[row], problem.target[row]
        matrix = features.match(*images, source_mask, target_mask, problem.motion, problem.loss == "structure")
        if matrix is not None:
            to_source = normalisation(problem.source)[0].double().cpu() @ torch.linalg.inv(matrix)
            normalised = to_source @ normalisation(problem.target)[0].double().cpu().inverse()
            matrices[row] = (normalised / normalised[2, 2]).to(matrices)
            found[row] = True
    return nearest_in(problem.motion, matrices, problem.start, problem.dsize), found, None


def _hiding(mask: Tensor | None, row: int) -> Tensor | None:
    """The mask of a pair, if it hides anything."""
    return None if mask is None or bool((mask[row] > FULLY_VALID).all()) else mask[row]


def edges(image: Tensor) -> Tensor:
    """How strong edges are, ``(B, 1, h, w)``, which another sensor, sign or turn leaves about as it is."""
    x, y = gradient(image.mean(1, keepdim=True))
    size = (x.square() + y.square()).sqrt()
    return size / (size + size.mean((2, 3), keepdim=True) + torch.finfo(size.dtype).tiny)
