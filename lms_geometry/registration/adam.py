"""Registration by Adam, the paper's descent (section 6.4), through the gradient of the warp."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from lms_geometry._kornia import homography_warp
from lms_geometry.config import LinearizedSampling
from lms_geometry.homography import homography_warp_linearized
from lms_geometry.registration.motion import PARAMETERS, motion_matrix
from lms_geometry.registration.problem import FULLY_VALID, Problem
from lms_geometry.registration.schedule import Annealed
from lms_geometry.registration.similarity import residual
from lms_geometry.registration.solvers import Adam, Trace


def descend(problem: Problem, solver: Adam, steps: Iterable[int], generator: torch.Generator | None) -> Trace:
    """Minimise the loss from the problem's start.

    Args:
        problem: the images to align.
        solver: the settings.
        steps: the numbers of the steps, consumed as they are taken.
        generator: source of randomness of the samples.
    """

    def losses(parameters: Tensor, step: int) -> Tensor:
        matrix = problem.start @ motion_matrix(problem.motion, parameters, problem.dsize)
        warped = _warp(problem, matrix, solver, step, generator)
        valid_weight = problem.target_mask
        if problem.source_mask is not None:
            inside = homography_warp(problem.source_mask, matrix.detach(), problem.size)
            valid_weight = valid_weight * (inside > FULLY_VALID)
        images = warped[:, None], problem.target[:, None]
        weights = valid_weight[:, None], problem.target_mask[:, None]
        return residual(*images, *weights, problem.fit_gain_bias, problem.loss).loss[:, 0] / unit

    # Adam's own constants suppose a loss of about 1, whatever the unit of the images.
    unit = problem.unit().square()
    start = problem.source.new_zeros(len(problem.source), len(PARAMETERS[problem.motion]))
    trace = minimise(losses, start, solver.learning_rate, steps)
    return trace._replace(loss=trace.loss * unit)


def minimise(
    losses: Callable[[Tensor, int], Tensor], parameters: Tensor, learning_rate: float, steps: Iterable[int]
) -> Trace:
    """Minimise each loss of a batch by Adam.

    Args:
        losses: a function of the parameters ``(B, P)`` and the number of the step that returns the losses ``(B)``.
        parameters: where to start, ``(B, P)``.
        learning_rate: Adam's learning rate.
        steps: the numbers of the steps, consumed as they are taken.
    """
    with torch.enable_grad():
        parameters = parameters.clone().requires_grad_()
        optimizer = torch.optim.Adam([parameters], lr=learning_rate)
        trace, path = [], []
        for step in steps:
            loss = losses(parameters, step)
            optimizer.zero_grad()
            loss.sum().backward()
            if parameters.grad is not None:  # where the loss leaves the range of floats, the motion stays
                parameters.grad.nan_to_num_(0.0, 0.0, 0.0)
            path.append(parameters.detach().clone())
            trace.append(loss.detach())
            optimizer.step()
    path.append(parameters.detach())
    none = torch.zeros_like(trace[0], dtype=torch.bool)
    return Trace(torch.stack(path), torch.stack(trace), none, none.long())


def _warp(problem: Problem, matrix: Tensor, solver: Adam, step: int, generator: torch.Generator | None) -> Tensor:
    """The source read through the normalised matrices ``(B, 3, 3)`` by the solver's sampler."""
    source, size, sampler = problem.source, problem.size, solver.sampler
    if isinstance(sampler, Annealed):
        sampler = sampler.at(step / solver.steps)
    if isinstance(sampler, LinearizedSampling):
        generator = generator if sampler.is_drawn else None
        return homography_warp_linearized(source, matrix, size, sampling=sampler, generator=generator)
    if callable(sampler):
        return sampler(source, matrix, size, step)
    return homography_warp(source, matrix, size)
