"""Registration by Gauss-Newton steps, damped as by Levenberg and Marquardt.

The slopes of linearized sampling are the derivative of every pixel with respect to its source point. Times the
derivative of the source point with respect to the motion's few parameters, they give the normal equations of a step
(Lucas and Kanade 1981, with slopes that see as far as the samples are spread). Several starts of each image take their
steps together. The worst are dropped on the way, and an image that has converged leaves the batch.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from lms_geometry._kornia import create_meshgrid
from lms_geometry.config import LinearizedSampling
from lms_geometry.noise import draw_noise
from lms_geometry.projection import project
from lms_geometry.registration.motion import PARAMETERS, motion_derivative, motion_matrix, rotated_starts
from lms_geometry.registration.problem import FULLY_VALID, Problem
from lms_geometry.registration.reading import is_inside, value_and_slope
from lms_geometry.registration.schedule import Annealed
from lms_geometry.registration.similarity import Residual, contrast, residual
from lms_geometry.registration.solvers import GaussNewton, Trace

# The share of the steps from which on annealed samples have no intercept: their value is the exact bilinear one.
_EXACT_FROM = 0.5
# The smallest damping. Every step of the finish that lowers the loss divides the damping by 3, down to this.
_LEAST_DAMPING = 1e-5
# The length of the longest step, over all parameters: half the target's longer side, radians and octaves of scale.
_LONGEST_STEP = 0.2

# Losses that differ by less than this share of the target's variance are equal.
TIE = 1e-3

# Its values are bilinear, and it needs no gradients, unlike ``"bilinear"``.
_BILINEAR = LinearizedSampling(intercept=False)

_Sampler = LinearizedSampling | Literal["bilinear"]


def descend(
    problem: Problem, solver: GaussNewton, starts: int, steps: Iterator[int], generator: torch.Generator | None
) -> Trace:
    """Search from several starts, then refine the best of them.

    Args:
        problem: the images to align.
        solver: the settings.
        starts: the number of starts, rotated about the target's centre. A translation has one.
        steps: the numbers of the steps, consumed as they are taken.
        generator: source of randomness of the samples.

    Returns:
        The way of the best start.
    """
    starts = 1 if problem.motion == "translation" else starts
    parameters = rotated_starts(problem.motion, starts, like=problem.source).expand(len(problem.source), -1, -1)
    path: list[Tensor] = []
    losses: list[Tensor] = []
    rotation = torch.arange(starts, device=parameters.device).expand(len(problem.source), -1)
    step = 0
    for stage in solver.stages:
        level = problem if stage.longest is None else problem.shrunk(stage.longest, stage.source_ratio * stage.longest)
        for step in islice(steps, round(stage.until * solver.steps) - len(losses)):
            equations = _normal_equations(level, parameters, _sampler(solver, step / solver.steps), generator)
            path.append(parameters)
            losses.append(equations.loss)
            move = _step(
                equations.matrix[..., : stage.free, : stage.free],
                equations.gradient[..., : stage.free],
                solver.damping,
            )
            parameters = parameters + F.pad(move, (0, parameters.shape[-1] - move.shape[-1]))
        if parameters.shape[1] > stage.kept:
            loss = _compare(level, parameters, _sampler(solver, step / solver.steps), generator).residual.loss
            # Of equally good starts the unturned one goes on. A square looks like itself after a quarter of a turn.
            tie = TIE * contrast(level.target[:, None], level.target_mask[:, None]).flatten()
            loss = loss - tie[:, None] * (rotation == 0)
            best = loss.topk(stage.kept, 1, largest=False, sorted=True).indices
            rotation = rotation.gather(1, best)
            parameters, *path = (p.gather(1, repeat(best, "b n -> b n p", p=p.shape[2])) for p in (parameters, *path))
            losses = [loss.gather(1, best) for loss in losses]
    search = [p[:, 0] for p in path], [loss[:, 0] for loss in losses]
    finish_path, finish_losses, converged = _finish(problem, parameters[:, 0], solver, steps, generator)
    path, losses = search[0] + finish_path, search[1] + finish_losses
    return Trace(torch.stack(path), torch.stack(losses), converged, rotation[:, 0])


def _finish(
    problem: Problem, parameters: Tensor, solver: GaussNewton, steps: Iterator[int], generator: torch.Generator | None
) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Take steps from parameters ``(B, P)``, and take them back where the loss rises, until each image has converged.

    Returns:
        The best parameters before each step and after the last, the smallest loss up to each step, and whether each
        image has converged.
    """
    sampler = _sampler(solver, solver.stages[-1].until)
    batch, unknowns = parameters.shape
    trial = parameters = parameters.clone()
    loss, damping = parameters.new_full((batch,), torch.inf), parameters.new_full((batch,), solver.damping)
    matrix, gradient = parameters.new_zeros(batch, unknowns, unknowns), parameters.new_zeros(batch, unknowns)
    delta: Tensor | None = None
    path, losses = [parameters.clone()], []
    rows, active = torch.arange(batch, device=parameters.device), problem
    for _ in steps:
        if len(rows) > 0:
            now = _normal_equations(
                active, trial[rows, None], sampler, generator, None if delta is None else delta[rows]
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
            moving = move.abs().amax(1) > solver.tolerance
            if not moving.all():
                rows = rows[moving]
                active = problem.take(rows)
        path.append(parameters.clone())
        losses.append(loss.clone())
    converged = torch.ones(batch, dtype=torch.bool, device=parameters.device)
    converged[rows] = False
    return path, losses, converged


def loss_at(problem: Problem) -> Tensor:
    """The loss at the problem's start, ``(B)``, of bilinear values."""
    none = problem.source.new_zeros(len(problem.source), 1, len(PARAMETERS[problem.motion]))
    return _compare(problem, none, _BILINEAR, None).residual.loss[:, 0]


class _Equations(NamedTuple):
    """The normal equations of ``n`` starts of each image.

    Args:
        matrix: Gauss-Newton's matrix, ``(B, n, P, P)``.
        gradient: half the gradient of the loss, ``(B, n, P)``.
        loss: the loss, ``(B, n)``.
        delta: the residual at which Huber's loss turns linear, ``(B, n)``.
    """

    matrix: Tensor
    gradient: Tensor
    loss: Tensor
    delta: Tensor | None


def _normal_equations(
    problem: Problem,
    parameters: Tensor,
    sampler: _Sampler,
    generator: torch.Generator | None,
    delta: Tensor | None = None,
) -> _Equations:
    """The normal equations of ``n`` starts of each image, at parameters ``(B, n, P)``.

    The chain rule gives a residual's derivative: that with respect to its source point, times that of the source point
    with respect to the parameters. The gain and the bias are two more unknowns. They are eliminated, since they already
    solve their own equations.
    """
    starts = parameters.shape[1]
    comparison = _compare(problem, parameters, sampler, generator, delta)
    compared = comparison.residual
    source_point = _source_point_derivative(problem, parameters.flatten(0, 1), comparison)
    by_parameter = source_point.flatten(2)
    by_point = rearrange(compared.gain[..., None] * comparison.slope, "b n c h w xy -> (b n) xy c (h w)")
    weight = rearrange(compared.weight, "b n 1 h w -> (b n) 1 (h w)")
    difference = rearrange(compared.difference, "b n c h w -> (b n) c (h w)")
    weighted = by_point * weight[:, None]

    second = torch.einsum("bicp,bjcp->bijp", by_point, weighted)
    matrix = by_parameter @ torch.einsum("bkip,bijp->bkjp", source_point, second).flatten(2).mT
    first = (weighted * difference[:, None]).sum(2)
    gradient = (by_parameter @ first.flatten(1)[..., None])[..., 0]
    if problem.fit_gain_bias:
        value = rearrange(comparison.warped, "b n c h w -> (b n) c (h w)")
        columns = torch.stack((value, torch.ones_like(value)), 1)
        cross = by_parameter @ torch.einsum("bjcp,bicp->bjip", columns, weighted).flatten(2).mT
        own = torch.einsum("bicp,bjcp->bij", columns, columns * weight[:, None])
        # On a blank image a gain and a bias do the same, and own would be singular without this.
        own = own + torch.diag_embed(1e-6 * own.diagonal(dim1=-2, dim2=-1) + 1e-12)
        matrix = matrix - cross @ torch.linalg.solve_ex(own, cross.mT)[0]
    matrix, gradient = (equation.unflatten(0, (-1, starts)) for equation in (matrix, gradient))
    return _Equations(matrix, gradient, compared.loss, compared.delta)


class _Comparison(NamedTuple):
    """The comparison of ``n`` starts of each image with its target.

    Args:
        residual: the residual.
        warped: the warped sources, ``(B, n, C, h, w)``.
        slope: their slopes per unit of the grid, ``(B, n, C, h, w, 2)``.
        matrix: the matrices, target to source in normalised coordinates, ``(B * n, 3, 3)``.
        points: the source points of the target's pixels, ``(B * n, h, w, 2)``.
    """

    residual: Residual
    warped: Tensor
    slope: Tensor
    matrix: Tensor
    points: Tensor


def _compare(
    problem: Problem,
    parameters: Tensor,
    sampler: _Sampler,
    generator: torch.Generator | None,
    delta: Tensor | None = None,
) -> _Comparison:
    """Warp the sources and compare them with their targets.

    The starts of an image are stacked along the height of one grid, so that they share the image.
    """
    starts = parameters.shape[1]
    (height, width), size = problem.target.shape[-2:], problem.source.shape[-2:]
    matrix = problem.start.repeat_interleave(starts, 0) @ motion_matrix(
        problem.motion, parameters.flatten(0, 1), problem.dsize
    )
    usable = matrix.isfinite().all(-1).all(-1)[:, None, None]
    points, jacobian = project(matrix, usable, (height, width), (size[0], size[1]), align_corners=False)
    grid = rearrange(points, "(b n) h w xy -> b (n h) w xy", n=starts)
    jacobian = rearrange(jacobian.expand(-1, height, width, -1, -1), "(b n) h w i j -> b (n h) w i j", n=starts)
    noise = None
    if isinstance(sampler, LinearizedSampling) and sampler.is_drawn:
        noise = draw_noise(sampler, (height, width), generator=generator, device=grid.device, dtype=grid.dtype)
        noise = repeat(noise, "k h w xy -> k (n h) w xy", n=starts)
    # If only the overlap counts, an edge of zeros would spoil the slopes beside it. Wide samples read zeros all the
    # same: to them, a border that goes on forever looks like image.
    wide = isinstance(sampler, LinearizedSampling) and sampler.intercept
    padding_mode = "zeros" if problem.source_mask is None or wide else "border"
    warped, slope = value_and_slope(problem.source, grid, jacobian, noise, sampler, padding_mode)
    warped = rearrange(warped, "b c (n h) w -> b n c h w", n=starts)
    slope = rearrange(slope, "b c (n h) w xy -> b n c h w xy", n=starts)
    target_weight = problem.target_mask[:, None]
    valid_weight = target_weight.expand(-1, starts, -1, -1, -1)
    if problem.source_mask is not None:
        inside = is_inside(problem.source_mask, grid, FULLY_VALID)
        valid_weight = valid_weight * rearrange(inside, "b c (n h) w -> b n c h w", n=starts)
    images, weights = (warped, problem.target[:, None]), (valid_weight, target_weight)
    compared = residual(*images, *weights, problem.fit_gain_bias, problem.loss, delta)
    return _Comparison(compared, warped, slope, matrix, points)


def _source_point_derivative(problem: Problem, parameters: Tensor, comparison: _Comparison) -> Tensor:
    """The derivative ``(N, P, 2, h * w)`` of the normalised source points with respect to the parameters ``(N, P)``."""
    matrix, points = comparison.matrix, comparison.points
    start = problem.start.repeat_interleave(len(parameters) // len(problem.start), 0)
    derivative = start[:, None] @ motion_derivative(problem.motion, parameters, problem.dsize)
    height, width = points.shape[1:3]
    pixels = create_meshgrid(height, width, device=points.device, dtype=points.dtype, align_corners=False)
    pixels = F.pad(rearrange(pixels, "1 h w xy -> xy (h w)"), (0, 0, 0, 1), value=1.0)
    depth = (matrix[:, 2:] @ pixels)[:, None]
    derivative = derivative @ pixels
    points = rearrange(points, "n h w xy -> n 1 xy (h w)")
    return ((derivative[:, :, :2] - points * derivative[:, :, 2:]) / depth).nan_to_num(0.0, 0.0, 0.0)


def _step(matrix: Tensor, gradient: Tensor, damping: Tensor | float) -> Tensor:
    """The damped step ``(..., P)``, of limited length. The small system is solved in double precision."""
    if matrix.device.type == "mps":  # It has no double precision.
        damping = damping.cpu() if isinstance(damping, Tensor) else damping
        return _step(matrix.cpu(), gradient.cpu(), damping).to(matrix.device)
    diagonal = matrix.double().diagonal(dim1=-2, dim2=-1)
    damped = matrix.double() + torch.diag_embed(diagonal * damping + 1e-9 * diagonal.amax(-1, keepdim=True) + 1e-12)
    step = -torch.linalg.solve_ex(damped, gradient.double())[0].nan_to_num(0.0, 0.0, 0.0)
    length = step.norm(dim=-1, keepdim=True)
    return (step * (_LONGEST_STEP / length.clamp_min(_LONGEST_STEP))).to(matrix.dtype)


def _sampler(solver: GaussNewton, share: float) -> _Sampler:
    """The solver's sampler after a share of the steps."""
    return solver.sampler.at(share, _EXACT_FROM) if isinstance(solver.sampler, Annealed) else solver.sampler
