"""The verdict on a registration: a score, and whether to believe the result."""

from typing import NamedTuple

import torch
from torch import Tensor

from lms_geometry.registration.problem import Problem
from lms_geometry.registration.search import COMPARED, measure, working

GOOD_SCORE = 0.3


class Verdict(NamedTuple):
    score: Tensor
    good: Tensor
    overlap: Tensor


def judge(problem: Problem, matrix: Tensor) -> Verdict:
    small = working(problem, COMPARED)
    found = measure(small, matrix)
    finite = matrix.isfinite().all(-1).all(-1)
    score = torch.where(finite, found.mean.nan_to_num(0.0), 0.0)
    good = score > GOOD_SCORE
    return Verdict(score, good, found.overlap)
