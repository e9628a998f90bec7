"""The verdict on a registration: a score, the overlap, and whether to believe the result.

A result is called good if its gradients agree over the overlap by more than chance, and no other motion explains the
images nearly as well: neither another shift, as between repetitive images, nor a turn, as of a disc.
"""

from typing import NamedTuple

import torch
from kornia.geometry.conversions import convert_affinematrix_to_homography
from torch import Tensor

from lms_geometry.registration.agreement import shrink_mask, vector_field
from lms_geometry.registration.motion import PARAMETERS, rotation_scale_matrix
from lms_geometry.registration.phase import shift_correlation
from lms_geometry.registration.problem import Problem, normalisation
from lms_geometry.registration.search import COMPARED, measure, working
from lms_geometry.registration.starts import warp

# The agreement, less two standard errors, above which a result is called good. docs/tutorials/registration.md says on
# which pairs it was chosen, and how often it is wrong.
GOOD_SCORE = 0.3
# The smallest share of the target that the source of a good result covers.
LEAST_OVERLAP = 0.05
# A result is ambiguous if a rival explains the images this nearly as well.
_RIVAL = 0.8
# The longer side at which rival shifts are compared, and the distance in its pixels from which a shift is another one.
_RIVAL_SIDE, _FAR = 128, 8
# The turn of a rival about the middle of what shows structure: in radians, and at least so many pixels at the mean
# distance from the middle, since on small images a smaller turn is none that could be seen.
_TURN, _TURNED = 0.2, 2.0


class Verdict(NamedTuple):
    """The verdict on each pair of a batch.

    Args:
        score: the mean correlation of gradient vectors over the overlap, from 0 to 1, ``(B)``.
        good: whether to believe the result, ``(B)``.
        overlap: the share of the target that the source covers, ``(B)``.
    """

    score: Tensor
    good: Tensor
    overlap: Tensor


def judge(problem: Problem, matrix: Tensor) -> Verdict:
    """Judge matrices from target to source in normalised coordinates, ``(B, 3, 3)``."""
    small = working(problem, COMPARED)
    found = measure(small, matrix)
    finite = matrix.isfinite().all(-1).all(-1)
    score = torch.where(finite, found.mean.nan_to_num(0.0), 0.0)
    value = torch.where(finite, found.value.nan_to_num(-1.0), -1.0)
    good = (value > GOOD_SCORE) & (found.overlap > LEAST_OVERLAP)
    if good.any():
        tiny = working(problem, _RIVAL_SIDE)
        good = good & ~_shifted_alike(tiny, matrix) & ~_turned_alike(tiny, matrix)
    return Verdict(score, good, found.overlap.nan_to_num(0.0))


def _shifted_alike(problem: Problem, matrix: Tensor) -> Tensor:
    """Whether the images match nearly as well after a shift, ``(B)``."""
    warped, valid = warp(problem, matrix)
    grey, target = (image.mean(1, keepdim=True) for image in (warped, problem.target))
    structure = problem.loss == "structure"
    # A gain that is fitted may be negative: then the negative of the source is what matches.
    signs = (1, -1) if problem.fit_gain_bias and not structure else (1,)
    surface = shift_correlation(grey, valid, target, problem.target_mask, structure, signs)
    height, width = surface.shape[-2:]
    y, x = (
        torch.minimum(index, n - index) for n in (height, width) for index in [torch.arange(n, device=surface.device)]
    )
    reach = min(_FAR, max(problem.target.shape[-2:]) // 8)
    near = (y[:, None] <= reach) & (x <= reach)
    here, matching = surface[..., near].amax(-1).max(0)
    rival = surface.masked_fill(near, -1).amax((-2, -1)).gather(0, matching[None])[0]
    return rival > _RIVAL * here


def _turned_alike(problem: Problem, matrix: Tensor) -> Tensor:
    """Whether the images match nearly as well after a turn about the middle of the structure, ``(B)``."""
    if "angle" not in PARAMETERS[problem.motion]:
        return torch.zeros(len(matrix), dtype=torch.bool, device=matrix.device)
    _, valid = warp(problem, matrix)
    strength = vector_field(problem.target).square().sum(1) * shrink_mask(valid)[:, 0]
    height, width = strength.shape[-2:]
    across, down = (torch.arange(n, dtype=strength.dtype, device=strength.device) for n in (width, height))
    total = strength.sum((1, 2)).clamp_min(torch.finfo(strength.dtype).tiny)
    x, y = (strength.sum(1) * across).sum(1) / total, (strength.sum(2) * down).sum(1) / total
    distance = torch.hypot(across - x[:, None, None], down[:, None] - y[:, None, None])
    radius = (strength * distance).sum((1, 2)) / total
    angle = (_TURNED / radius.clamp_min(torch.finfo(radius.dtype).tiny)).clamp(_TURN, torch.pi / 4)
    one, none = torch.ones_like(angle), torch.zeros_like(angle)
    to_middle, turn = (
        convert_affinematrix_to_homography(rotation_scale_matrix(by, one, one, *shift))
        for by, shift in ((none, (-x, -y)), (angle, (x, y)))
    )
    to_normalised = normalisation(problem.target)
    turned = matrix @ (to_normalised @ turn @ to_middle @ to_normalised.inverse()).to(matrix)
    return measure(problem, turned).mean > _RIVAL * measure(problem, matrix).mean
