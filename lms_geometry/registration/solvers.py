"""The solvers that ``register`` takes: frozen objects that hold their own settings, and the trace that each returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

from lms_geometry.config import LinearizedSampling
from lms_geometry.registration.checks import check_count, check_positive
from lms_geometry.registration.motion import motion_matrix
from lms_geometry.registration.problem import Problem
from lms_geometry.registration.schedule import SEARCH, Annealed, Stage

# A function that warps: the source, normalised target-to-source homographies, the target's size, the step's number.
Warp = Callable[[Tensor, Tensor, tuple[int, int], int], Tensor]

MOST_STARTS = 8


@dataclass(frozen=True, slots=True)
class GaussNewton:
    r"""Gauss-Newton steps from several starts, then steps damped as by Levenberg and Marquardt from the best of them.

    The slopes of linearized sampling are the derivative of every pixel with respect to its source point. They
    give the normal equations of a step, one small linear system per image (Lucas and Kanade 1981). The starts differ by
    a rotation about the target's centre and take their steps together, first on small images. The worst are dropped
    after each stage of the search. In the finish, which takes the steps after the last stage, a step that makes the
    loss rise is taken back and damped more, and an image that has converged leaves the batch.

    Args:
        steps: the largest number of steps.
        starts: the number of rotations that the search begins with, 1 to 8: the first of 0, 45, -45, 90, -90, 135, -135
            and 180 degrees. ``None`` means 5, or 1 without the start ``"turns"``. A translation always has one.
        sampler: how the source is read: :class:`Annealed` settings; a :class:`LinearizedSampling`, which stays as it
            is; or, for comparison, ``"bilinear"``, whose slopes are those of ``grid_sample``.
        damping: the share of the diagonal of the normal equations' matrix that is added to it. In the finish it is
            where the damping starts.
        tolerance: an image has converged when no parameter changes by more than this in a step. The parameters are in
            half the target's longer side, in radians and in octaves of scale.
        stages: the stages of the search, in the order in which they end. The last one keeps one start.

    Raises:
        TypeError: if ``sampler`` or ``stages`` has the wrong type.
        ValueError: if a setting is outside its range, or the stages are out of order.

    Example:
        >>> GaussNewton(steps=20, starts=1).sampler.first
        4.0
    """

    steps: int = 60
    starts: int | None = None
    sampler: Annealed | LinearizedSampling | Literal["bilinear"] = Annealed(4.0, 0.0625)
    damping: float = 1e-2
    tolerance: float = 1e-4
    stages: tuple[Stage, ...] = SEARCH

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        if self.starts is not None:
            check_count("starts", self.starts, MOST_STARTS)
        _check_sampler(self.sampler, 'an Annealed, a LinearizedSampling or "bilinear"')
        if callable(self.sampler):
            raise TypeError(f"sampler must give slopes, which a function does not: use Adam, got {self.sampler!r}")
        check_positive("damping", self.damping)
        check_positive("tolerance", self.tolerance)
        stages = self.stages
        if not isinstance(stages, tuple) or not stages or not all(isinstance(stage, Stage) for stage in stages):
            raise TypeError(f"stages must be a tuple of at least one Stage, got {stages!r}")
        ends = [stage.until for stage in stages]
        if ends != sorted(ends) or stages[-1].kept != 1:
            raise ValueError(f"stages must have rising until and end with kept=1, got {stages!r}")


@dataclass(frozen=True, slots=True)
class Adam:
    """The descent of the paper's section 6.4: Adam from one start, through the gradient of the warp.

    Args:
        steps: the number of steps.
        learning_rate: the learning rate, above 0.
        sampler: how the source is read: :class:`Annealed` settings; a :class:`LinearizedSampling`, which stays as it
            is; ``"bilinear"`` for ``grid_sample``; or a function ``(source, homographies, size, step)`` that returns
            the warped source. It gets the source :math:`(B, C, H, W)`, homographies :math:`(B, 3, 3)` from the target
            to the source in normalised coordinates (``align_corners=False``), the target's size (height, width) and
            the number of the step, from 0.

    Raises:
        TypeError: if ``sampler`` has the wrong type.
        ValueError: if a setting is outside its range.

    Example:
        >>> Adam(sampler=LinearizedSampling.paper()).steps
        200
    """

    steps: int = 200
    learning_rate: float = 0.02
    sampler: Annealed | LinearizedSampling | Literal["bilinear"] | Warp = Annealed(8.0, 0.125)

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_positive("learning_rate", self.learning_rate)
        _check_sampler(self.sampler, 'an Annealed, a LinearizedSampling, "bilinear" or a function')


class Trace(NamedTuple):
    """The way a solver took.

    Args:
        path: the parameters before each step and after the last, ``(steps + 1, B, P)``.
        loss: the loss before each step, ``(steps, B)``.
        converged: whether each image has converged, ``(B)``.
        start: the number of the rotation that each image's way began with, ``(B)``; 0 is none.
    """

    path: Tensor
    loss: Tensor
    converged: Tensor
    start: Tensor

    def matrices(self, problem: Problem) -> Tensor:
        """The path as matrices from target to source in normalised coordinates, ``(steps + 1, B, 3, 3)``."""
        motions = motion_matrix(problem.motion, self.path.flatten(0, 1), problem.dsize)
        return problem.start @ motions.unflatten(0, self.path.shape[:2])


def _check_sampler(sampler: object, wanted: str) -> None:
    if isinstance(sampler, type) or getattr(sampler, "__self__", None) is LinearizedSampling:
        raise TypeError(f"sampler must be {wanted}, got {sampler!r}, which still has to be called")
    bilinear = isinstance(sampler, str) and sampler == "bilinear"
    if not bilinear and not isinstance(sampler, Annealed | LinearizedSampling) and not callable(sampler):
        raise TypeError(f"sampler must be {wanted}, got {sampler!r}")
