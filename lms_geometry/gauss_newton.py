"""Registration by Gauss-Newton steps, damped as by Levenberg and Marquardt.

The slopes of linearized sampling are the derivative of every pixel with respect to its source point. Times the
derivative of the source point with respect to the motion's few parameters they give the normal equations of a step
(Lucas and Kanade 1981, here with slopes that see as far as a spread of samples does). Several starts of each image take
their steps together; the worst are dropped on the way, and an image that has converged leaves the batch.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from kornia.geometry.grid import create_meshgrid
from torch import Tensor

from lms_geometry.agreement import Residual, residual
from lms_geometry.annealing import annealed
from lms_geometry.backends.common import usable_points
from lms_geometry.config import LinearizedSampling
from lms_geometry.motions import motion_derivative, motion_matrix, turned
from lms_geometry.noise import draw_noise
from lms_geometry.problem import WHOLLY_SEEN, Problem
from lms_geometry.projection import project
from lms_geometry.sampling import grid_sample_value_and_slope

# From this share on the intercept is dropped: the value is the exact bilinear one.
_EXACT = 0.5
# The source is at most so many times larger: between samples that are far apart, detail is noise.
_SOURCE_TO_TARGET = 4

_DAMPING = 1e-2
_LEAST_DAMPING = 1e-5
# Of the parameters, whose units are half the target's longer side, radians and octaves.
_LONGEST_STEP = 0.2
_CONVERGED = 1e-4


class Stage(NamedTuple):
    """A stage of the search: until which share of the steps, at which longer side of the target, and what then goes on.

    ``kept`` starts go on to the next. Only the first ``free`` of the motion's parameters move: shear and perspective
    wait, since they can explain a wrong turn away.
    """

    until: float
    longest: int | None
    kept: int
    free: int


_SEARCH = (Stage(0.25, 32, 3, 5), Stage(0.5, 64, 1, 6), Stage(0.75, None, 1, 8))


class Descent(NamedTuple):
    """Parameters before each step and after the last, ``(steps + 1, B, P)``; losses, ``(steps, B)``; flags, ``(B)``."""

    path: Tensor
    loss: Tensor
    converged: Tensor


def descend(
    problem: Problem,
    sampling: LinearizedSampling | Literal["bilinear"],
    anneal: tuple[float, float] | None,
    starts: int,
    steps: Iterator[int],
    count: int,
    generator: torch.Generator | None,
) -> Descent:
    """Search from several starts, then finish from the best.

    Args:
        problem: what is to be aligned.
        sampling: how to read the source.
        anneal: ``sigma`` at the first step and when the finish begins.
        starts: number of starts, turned about the centre.
        steps: numbers of the steps, consumed as they are taken.
        count: how many there are.
        generator: source of randomness.

    Returns:
        The way of the best start.
    """
    parameters = turned(problem.motion, starts, like=problem.source).expand(len(problem.source), -1, -1)
    path: list[Tensor] = []
    losses: list[Tensor] = []
    step = 0
    for stage in _SEARCH:
        level = _shrunk(problem, stage.longest)
        for step in islice(steps, round(stage.until * count) - len(losses)):
            settings = _annealed(sampling, anneal, step / count)
            equations = _normal_equations(level, parameters, settings, generator)
            path.append(parameters)
            losses.append(equations.loss)
            move = _step(
                equations.matrix[..., : stage.free, : stage.free], equations.gradient[..., : stage.free], _DAMPING
            )
            parameters = parameters + F.pad(move, (0, parameters.shape[-1] - move.shape[-1]))
        if parameters.shape[1] > stage.kept:
            settings = _annealed(sampling, anneal, step / count)
            loss = _compare(level, parameters, settings, generator).residual.loss
            best = loss.topk(stage.kept, 1, largest=False, sorted=False).indices
            parameters, *path = (p.gather(1, best[..., None].expand(-1, -1, p.shape[2])) for p in (parameters, *path))
            losses = [loss.gather(1, best) for loss in losses]
    path, losses = [p[:, 0] for p in path], [loss[:, 0] for loss in losses]
    settings = _annealed(sampling, anneal, _SEARCH[-1].until)
    more_path, more_losses, converged = _finish(problem, parameters[:, 0], settings, steps, generator)
    return Descent(torch.stack(path + more_path), torch.stack(losses + more_losses), converged)


def _finish(
    problem: Problem,
    parameters: Tensor,
    sampling: LinearizedSampling | Literal["bilinear"],
    steps: Iterator[int],
    generator: torch.Generator | None,
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Steps that are taken back where the loss rises, until each image has converged."""
    batch, unknowns = parameters.shape
    trial = parameters = parameters.clone()
    loss, damping = parameters.new_full((batch,), torch.inf), parameters.new_full((batch,), _DAMPING)
    matrix, gradient = parameters.new_zeros(batch, unknowns, unknowns), parameters.new_zeros(batch, unknowns)
    delta: Tensor | None = None
    path, losses = [parameters.clone()], []
    rows, active = torch.arange(batch, device=parameters.device), problem
    for _ in steps:
        if len(rows) > 0:
            now = _normal_equations(
                active, trial[rows, None], sampling, generator, None if delta is None else delta[rows]
            )
            if delta is None:
                delta = now.delta
            better = now.loss[:, 0] <= loss[rows]
            taken, rest = rows[better], rows[~better]
            parameters[taken], loss[taken] = trial[taken], now.loss[better, 0]
            matrix[taken], gradient[taken] = now.matrix[better, 0], now.gradient[better, 0]
            damping[taken] = (damping[taken] / 3).clamp_min(_LEAST_DAMPING)
            damping[rest] = damping[rest] * 4
            move = _step(matrix[rows], gradient[rows], damping[rows, None])
            trial = parameters.clone()
            trial[rows] += move
            moving = move.abs().amax(1) > _CONVERGED
            if not moving.all():
                rows = rows[moving]
                active = problem.take(rows)
        path.append(parameters.clone())
        losses.append(loss.clone())
    flags = torch.ones(batch, dtype=torch.bool, device=parameters.device)
    flags[rows] = False
    return path, losses, flags


class _Equations(NamedTuple):
    """Gauss-Newton's matrix ``(B, n, P, P)``, half the loss's gradient ``(B, n, P)``, loss and Huber's ``(B, n)``."""

    matrix: Tensor
    gradient: Tensor
    loss: Tensor
    delta: Tensor | None


def _normal_equations(
    problem: Problem,
    parameters: Tensor,
    sampling: LinearizedSampling | Literal["bilinear"],
    generator: torch.Generator | None,
    delta: Tensor | None = None,
) -> _Equations:
    """The normal equations of ``n`` starts of each image, at parameters ``(B, n, P)``.

    By the chain rule: the residual's derivative with respect to a pixel's source point, times that of the source point
    with respect to the parameters. The gain and the bias are two more unknowns, which are eliminated: their own
    equations hold already.
    """
    batch, starts, unknowns = parameters.shape
    comparison = _compare(problem, parameters, sampling, generator, delta)
    compared, (height, width) = comparison.residual, problem.target.shape[-2:]
    source_point = _source_point_derivative(problem, parameters.flatten(0, 1), comparison)
    by_point = (
        (compared.gain[..., None] * comparison.slope)
        .permute(0, 1, 5, 2, 3, 4)
        .reshape(batch * starts, 2, -1, height * width)
    )
    weight = compared.weight.flatten(0, 1).flatten(2)
    weighted = by_point * weight[:, None]

    second = torch.einsum("bicp,bjcp->bijp", by_point, weighted)
    matrix = source_point.flatten(2) @ torch.einsum("bkip,bijp->bkjp", source_point, second).flatten(2).mT
    first = (weighted * compared.difference.flatten(0, 1).flatten(2)[:, None]).sum(2)
    gradient = (source_point.flatten(2) @ first.flatten(1)[..., None])[..., 0]
    if problem.photometric:
        value = comparison.moved.flatten(0, 1).flatten(2)
        columns = torch.stack((value, torch.ones_like(value)), 1)
        cross = source_point.flatten(2) @ torch.einsum("bjcp,bicp->bjip", columns, weighted).flatten(2).mT
        own = torch.einsum("bicp,bjcp->bij", columns, columns * weight[:, None])
        # A gain and a bias do the same to a blank image: without what is added here, own is singular.
        own = own + torch.diag_embed(1e-6 * own.diagonal(dim1=-2, dim2=-1) + 1e-12)
        matrix = matrix - cross @ torch.linalg.solve_ex(own, cross.mT)[0]
    return _Equations(
        matrix.view(batch, starts, unknowns, unknowns),
        gradient.view(batch, starts, unknowns),
        compared.loss,
        compared.delta,
    )


class _Comparison(NamedTuple):
    """What ``n`` starts of each image see.

    The residual; the moved sources ``(B, n, C, h, w)`` and their slopes ``(B, n, C, h, w, 2)``; the normalised
    matrices, target to source, ``(B * n, 3, 3)``, and where they send the pixels, ``(B * n, h, w, 2)``.
    """

    residual: Residual
    moved: Tensor
    slope: Tensor
    matrix: Tensor
    points: Tensor


def _compare(
    problem: Problem,
    parameters: Tensor,
    sampling: LinearizedSampling | Literal["bilinear"],
    generator: torch.Generator | None,
    delta: Tensor | None = None,
) -> _Comparison:
    """Move the sources and compare them with their targets.

    The starts of an image are stacked along the height of one grid, so that they share the image.
    """
    batch, starts, _ = parameters.shape
    (height, width), size = problem.target.shape[-2:], problem.source.shape[-2:]
    matrix = problem.start.repeat_interleave(starts, 0) @ motion_matrix(
        problem.motion, parameters.flatten(0, 1), problem.dsize
    )
    usable = matrix.isfinite().all(-1).all(-1)[:, None, None]
    grid, jacobian = project(matrix, usable, (height, width), (size[0], size[1]), align_corners=False)
    grid = grid.view(batch, starts * height, width, 2)
    jacobian = jacobian.expand(-1, height, width, -1, -1).reshape(batch, starts * height, width, 2, 2)
    # Where only the overlap counts, an edge of zeros would spoil the slopes beside it. To wide samples a border that
    # goes on forever is worse: it looks like image.
    exact = not isinstance(sampling, LinearizedSampling) or not sampling.intercept
    padding = "border" if problem.source_mask is not None and exact else "zeros"
    points = usable_points(grid)
    if isinstance(sampling, LinearizedSampling):
        noise = draw_noise(sampling, (height, width), generator=generator, device=grid.device, dtype=grid.dtype)
        moved, slope = grid_sample_value_and_slope(
            problem.source,
            points,
            padding_mode=padding,
            sampling=sampling,
            jacobian=jacobian,
            noise=noise.repeat(1, starts, 1, 1),
        )
    else:
        with torch.enable_grad():
            points.requires_grad_()
            moved = F.grid_sample(problem.source, points, padding_mode=padding, align_corners=False)
            channels = [torch.autograd.grad(c.sum(), points, retain_graph=True)[0] for c in moved.unbind(1)]
        slope = torch.stack(channels, 1)
    moved = moved.detach().unflatten(2, (starts, height)).transpose(1, 2)
    slope = slope.unflatten(2, (starts, height)).transpose(1, 2)
    wanted = problem.target_mask[:, None]
    seen = wanted.expand(-1, starts, -1, -1, -1)
    if problem.source_mask is not None:
        inside = F.grid_sample(problem.source_mask, points.detach(), align_corners=False)
        seen = seen * (inside > WHOLLY_SEEN).to(inside).unflatten(2, (starts, height)).transpose(1, 2)
    compared = residual(moved, problem.target[:, None], seen, wanted, problem.photometric, problem.loss, delta)
    return _Comparison(compared, moved, slope, matrix, grid.view(batch * starts, height, width, 2))


def _source_point_derivative(problem: Problem, parameters: Tensor, comparison: _Comparison) -> Tensor:
    """Derivative ``(N, P, 2, h * w)`` of the normalised source points with respect to the parameters ``(N, P)``."""
    matrix, grid = comparison.matrix, comparison.points
    start = problem.start.repeat_interleave(len(parameters) // len(problem.start), 0)
    derivative = start[:, None] @ motion_derivative(problem.motion, parameters, problem.dsize)
    height, width = grid.shape[1:3]
    pixels = create_meshgrid(height, width, device=grid.device, dtype=grid.dtype, align_corners=False)
    pixels = torch.cat((pixels.reshape(-1, 2).mT, pixels.new_ones(1, height * width)))
    depth = (matrix[:, 2:] @ pixels)[:, None]
    derivative = derivative @ pixels
    points = grid.flatten(1, 2).mT[:, None]
    return ((derivative[:, :, :2] - points * derivative[:, :, 2:]) / depth).nan_to_num(0.0, 0.0, 0.0)


def _step(matrix: Tensor, gradient: Tensor, damping: Tensor | float) -> Tensor:
    """The damped step ``(..., P)``, of limited length. The small system is solved in double precision."""
    diagonal = matrix.double().diagonal(dim1=-2, dim2=-1)
    damped = matrix.double() + torch.diag_embed(diagonal * damping + 1e-9 * diagonal.amax(-1, keepdim=True) + 1e-12)
    step = -torch.linalg.solve_ex(damped, gradient.double())[0].nan_to_num(0.0, 0.0, 0.0)
    length = step.norm(dim=-1, keepdim=True)
    return (step * (_LONGEST_STEP / length.clamp_min(_LONGEST_STEP))).to(matrix.dtype)


def _annealed(
    sampling: LinearizedSampling | Literal["bilinear"], anneal: tuple[float, float] | None, share: float
) -> LinearizedSampling | Literal["bilinear"]:
    if not isinstance(sampling, LinearizedSampling) or anneal is None:
        return sampling
    return annealed(sampling, anneal, share, _EXACT)


def _shrunk(problem: Problem, longest: int | None) -> Problem:
    """The problem with a target of at most ``longest`` pixels, and a source to match."""
    if longest is None:
        return problem
    mask = problem.source_mask
    return replace(
        problem,
        source=_shrink(problem.source, _SOURCE_TO_TARGET * longest),
        target=_shrink(problem.target, longest),
        source_mask=None if mask is None else _shrink(mask, _SOURCE_TO_TARGET * longest),
        target_mask=_shrink(problem.target_mask, longest),
    )


def _shrink(image: Tensor, longest: int) -> Tensor:
    scale = longest / max(image.shape[-2:])
    if scale >= 1:
        return image
    return F.interpolate(image, [max(1, round(n * scale)) for n in image.shape[-2:]], mode="area")
