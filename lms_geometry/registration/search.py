"""The way of a registration: coarse starts that compete, a finish at full size, and the verdict on what was found.

Starts of every kind are compared on small images by one measure, the agreement of gradients over the overlap, and the
best goes on. No stage is believed that ends with less agreement than it started with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lms_geometry.registration import adam, gauss_newton
from lms_geometry.registration.agreement import Agreement, agreement
from lms_geometry.registration.motion import motion_matrix
from lms_geometry.registration.problem import Problem
from lms_geometry.registration.refine import level_sizes, refine
from lms_geometry.registration.schedule import Annealed, Stage
from lms_geometry.registration.solvers import Adam, GaussNewton, Trace
from lms_geometry.registration.starts import edges, feature_starts, phase_starts, warp

# The longer side of the target, in pixels, at which starts are searched from, and at which results are compared.
SEARCHED, COMPARED = 128, 256
# Of two starts that agree this nearly as well, the plainer one goes on.
_TIE = 0.02
# The agreement above which no further start is sought, if most of the target is covered.
_SURE, _MOSTLY = 0.6, 0.5
# How many starts the finish is tried from at its first size, if they agree nearly as well as the best.
_TRIED, _NEARLY = 3, 0.15
# The rotations that are tried by default.
_ROTATIONS = 5
# A start from the images is near: the samples need less of a spread, and no smaller images.
_NEAR = (Stage(0.25, None, kept=1, free=8),)


class Found(NamedTuple):
    """What was found for each pair of a batch, all matrices from target to source in normalised coordinates.

    Args:
        path: the matrix before each step and after the last, ``(steps + 1, B, 3, 3)``.
        loss: the loss before each step, ``(steps, B)``.
        converged: whether the steps became too small to matter, ``(B)``.
        start: the kind of start that won, for each pair.
        not_tried: which kinds of starts were not tried, and why.
    """

    path: Tensor
    loss: Tensor
    converged: Tensor
    start: tuple[str, ...]
    not_tried: tuple[str, ...]


class _Candidate(NamedTuple):
    """A start of each pair, and where the search led from it."""

    names: Sequence[str]
    path: Tensor
    loss: Tensor
    converged: Tensor


def find(
    full: Problem,
    solver: GaussNewton,
    names: Sequence[str],
    given: bool,
    steps: Iterator[int],
    generator: torch.Generator | None,
) -> Found:
    """Search from all starts, compare what they led to, and finish from the best.

    Args:
        full: the pairs, at full size.
        solver: the settings of the search.
        names: the kinds of starts.
        given: whether the problem starts from the user's matrix.
        steps: the numbers of the steps, consumed as they are taken.
        generator: source of randomness of the samples.
    """
    small = working(full, SEARCHED)
    if full.loss == "structure":
        images = {"source": edges(small.source), "target": edges(small.target)}
        small = replace(small, **images, loss="huber", fit_gain_bias=True)
    small = small.normalised()
    compared = working(full, COMPARED)
    plain = "init" if given else "resize"
    not_tried: list[str] = []
    candidates: list[_Candidate] = []
    count = len(full.source)

    if given or "resize" in names or "turns" in names:
        rotations = solver.starts or (_ROTATIONS if "turns" in names else 1)
        trace = gauss_newton.descend(small, solver, rotations, steps, generator)
        searched = _candidate(small, trace, [plain if start == 0 else "turns" for start in trace.start.tolist()])
        candidates += [_still(searched, full.start, plain), searched]
    if "phase" in names:
        start, why = phase_starts(small)
        if why:
            not_tried.append(why)
        if start is not None:
            candidates.append(_from(small, start, "phase", solver, steps, generator))
    values, overlaps = _compare(compared, candidates)
    if "features" in names:
        unsure = torch.ones(count, dtype=torch.bool, device=full.source.device)
        if len(candidates):
            best = values.argmax(0, keepdim=True)
            unsure = ~((values.gather(0, best) > _SURE) & (overlaps.gather(0, best) > _MOSTLY))[0]
        start, matched, why = feature_starts(full, unsure.nonzero().flatten())
        if why:
            not_tried.append(why)
        if matched.any():
            candidate = _from(small, start, "features", solver, steps, generator)
            candidates += [_still(candidate, start, "features"), candidate]
            more = _compare(compared, candidates[-2:])
            values = torch.cat((values, torch.where(matched, more[0], -2.0)))
    if not candidates:
        raise ValueError(f"starts must leave a way to start, but of {list(names)} none can: {'; '.join(not_tried)}")
    best = _best(values)
    found = [candidates[index] for index in best.tolist()]
    path = torch.stack([candidate.path[:, row] for row, candidate in enumerate(found)], 1)
    loss = torch.stack([candidate.loss[:, row] for row, candidate in enumerate(found)], 1)
    converged = torch.stack([candidate.converged[row] for row, candidate in enumerate(found)])
    won = [candidate.names[row] for row, candidate in enumerate(found)]
    if max(full.dsize) > SEARCHED:
        path = path.clone()
        for row in range(count):
            index, matrix, still = _finish(full, compared, candidates, values, row)
            path[:, row], won[row] = candidates[index].path[:, row], candidates[index].names[row]
            loss[:, row] = candidates[index].loss[:, row]
            path[-1, row], converged[row] = matrix, still
    return Found(path, loss * full.unit().square(), converged, tuple(won), tuple(not_tried))


def by_adam(
    full: Problem, solver: Adam, given: bool, steps: Iterator[int], generator: torch.Generator | None
) -> Found:
    """Adam's descent from the problem's start, at the size of the images."""
    # A function as sampler may compare the images it is given with others of its own.
    problem = full if callable(solver.sampler) else full.normalised()
    trace = adam.descend(problem, solver, steps, generator)
    found = _candidate(problem, trace, ["init" if given else "resize"] * len(full.source))
    loss = found.loss if callable(solver.sampler) else found.loss * full.unit().square()
    return Found(found.path, loss, found.converged, tuple(found.names), ())


def measure(problem: Problem, matrix: Tensor) -> Agreement:
    """The agreement of the pairs through matrices ``(B, 3, 3)``."""
    warped, valid = warp(problem, matrix)
    return agreement(warped, problem.target, valid, problem.target_mask, problem.loss == "structure")


def working(problem: Problem, longest: int) -> Problem:
    """The problem on small images: the source is shrunk as the target is, or to four times its size."""
    scale = min(1.0, longest / max(problem.target.shape[-2:]))
    source = max(problem.source.shape[-2:])
    return problem.shrunk(longest, max(source * scale, min(source, longest)))


def _compare(problem: Problem, candidates: Sequence[_Candidate]) -> tuple[Tensor, Tensor]:
    """The agreement and the overlap that each candidate ends with, ``(candidates, B)``."""
    if not candidates:
        return (problem.source.new_zeros(0, len(problem.source)),) * 2
    found = [measure(problem, candidate.path[-1]) for candidate in candidates]
    return torch.stack([f.value for f in found]), torch.stack([f.overlap for f in found])


def _best(values: Tensor) -> Tensor:
    """The number of the first candidate that agrees as well as the best, ``(B)``.

    The first candidate is the plain start itself, the second where the search led from it: that one goes on if it
    agrees no less.
    """
    good = values >= values.amax(0) - _TIE
    first = good.to(values).argmax(0)
    if len(values) > 1:
        searched = (first == 0) & (values[1] >= values[0] - 1e-3)
        first = torch.where(searched, 1, first)
    return first


def _finish(
    full: Problem, compared: Problem, candidates: Sequence[_Candidate], values: Tensor, row: int
) -> tuple[int, Tensor, bool]:
    """Finish one pair at full size from the candidate that the first size of the finish makes the best."""
    rows = torch.tensor([row], device=full.source.device)
    pair, small = full.take(rows), compared.take(rows)
    sizes = level_sizes(max(full.dsize))
    own = values[:, row]
    order = [i for i in own.argsort(descending=True).tolist() if own[i] >= own.max() - _NEARLY][:_TRIED]
    order = sorted({*order, int(_best(values[:, row, None]))})
    results = []
    for index in order:
        start = candidates[index].path[-1, row]
        first, still = refine(pair, start, sizes[:1])
        before, after = measure(small, start[None]).value, measure(small, first[None]).value
        results.append((first, float(after), still) if after >= before - 1e-3 else (start, float(before), False))
    agreed = torch.tensor([value for _, value, _ in results])
    chosen = int((agreed >= agreed.max() - _TIE / 2).float().argmax())
    start, value, still = results[chosen]
    matrix, still = refine(pair, start, sizes[1:]) if len(sizes) > 1 else (start, still)
    if float(measure(small, matrix[None]).value) < value - _TIE / 2:
        matrix, still = start, False
    return order[chosen], matrix, still


def _from(
    small: Problem, start: Tensor, name: str, solver: GaussNewton, steps: Iterator[int], generator: torch.Generator | None
) -> _Candidate:
    """Search on from a start that the images gave, with samples that are spread little."""
    problem = replace(small, start=start)
    sampler = Annealed(1.0, 0.0625) if isinstance(solver.sampler, Annealed) else solver.sampler
    nearby = replace(solver, stages=_NEAR, sampler=sampler)
    trace = gauss_newton.descend(problem, nearby, 1, iter(range(solver.steps)), generator)
    return _candidate(problem, trace, [name] * len(start))


def _candidate(problem: Problem, trace: Trace, names: Sequence[str]) -> _Candidate:
    count, batch = trace.path.shape[:2]
    motions = motion_matrix(problem.motion, trace.path.flatten(0, 1), problem.dsize).view(count, batch, 3, 3)
    return _Candidate(names, problem.start @ motions, trace.loss, trace.converged)


def _still(candidate: _Candidate, start: Tensor, name: str) -> _Candidate:
    """The start itself, as a candidate that stands still."""
    loss = candidate.loss[:1].expand_as(candidate.loss)
    path = start.expand_as(candidate.path)
    return _Candidate([name] * len(start), path, loss, torch.zeros_like(candidate.converged))
