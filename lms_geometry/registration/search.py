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
from lms_geometry.registration.problem import Problem
from lms_geometry.registration.refine import level_sizes, refine
from lms_geometry.registration.schedule import Annealed, Stage
from lms_geometry.registration.solvers import Adam, GaussNewton
from lms_geometry.registration.starts import edges, feature_starts, phase_starts, warp

# The longer side of the target, in pixels, at which starts are searched from, and at which results are compared.
SEARCHED, COMPARED = 128, 256
# The longer side of the target up to which the search is all there is: a finish has too little to go by.
_UNFINISHED = 48
# Of two starts that agree this nearly as well, the plainer one goes on.
_TIE = 0.02
# The agreement above which no further start is sought.
_SURE = 0.5
# How many starts the finish is tried from at its first size, if they agree nearly as well as the best.
_TRIED, _NEARLY = 3, 0.15
# The rotations that are tried by default.
_ROTATIONS = 5
# A start from the images is near: the samples need not reach so far, and no smaller images are needed.
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
    """A start of each pair, and where the search led from it.

    Args:
        names: the kind of start, for each pair.
        path: the matrices, ``(steps + 1, B, 3, 3)``.
        loss: the losses, ``(steps, B)``.
        converged: whether each pair has converged, ``(B)``.
        value: the agreement that it ends with, ``(B)``; -2 where a pair has no such candidate.
    """

    names: Sequence[str]
    path: Tensor
    loss: Tensor
    converged: Tensor
    value: Tensor


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
    search = _Search(full, solver, given, generator)
    descends = given or "resize" in names or "turns" in names
    rotations = solver.starts or (_ROTATIONS if "turns" in names else 1)
    large = max(full.dsize) > SEARCHED
    everything = torch.arange(len(full.source), device=full.source.device)
    if descends and not large:
        search.descend(rotations, steps, everything)
    if given or (large and descends):
        search.stand("init" if given else "resize", full.start, everything)
    # Matched features are the quickest way where images are large, descents where they are small. The slower way is
    # gone where the quicker one is not sure of its result.
    ways = ("features", "descent", "phase") if large else ("phase", "features")
    for way in ways:
        rows = search.unsure()
        if len(rows) > 0 and way == "descent" and descends:
            search.descend(rotations, steps, rows)
        elif len(rows) > 0 and way in names:
            search.from_images(way, rows)
    if not search.candidates:
        reasons = search.not_tried or ["too few features agree"]
        raise ValueError(f"starts must leave a way to begin, but {list(names)} found none: {', '.join(reasons)}")
    return search.finish()


class _Search:
    """The candidates of a batch while they are found and compared."""

    def __init__(self, full: Problem, solver: GaussNewton, given: bool, generator: torch.Generator | None) -> None:
        small = _comparable(working(full, SEARCHED))
        self.unit = small.unit()
        self.full, self.small, self.compared = full, small.normalised(), working(full, COMPARED)
        self.solver, self.given, self.generator = solver, given, generator
        self.candidates: list[_Candidate] = []
        self.not_tried: list[str] = []

    def unsure(self) -> Tensor:
        """The numbers of the pairs that no candidate surely fits."""
        sure = torch.zeros(len(self.full.source), dtype=torch.bool, device=self.full.source.device)
        for candidate in self.candidates:
            sure |= candidate.value > _SURE
        return (~sure).nonzero().flatten()

    def stand(self, name: str, start: Tensor, rows: Tensor) -> None:
        """Add the start itself, as a candidate that stands still."""
        loss = gauss_newton.loss_at(replace(self.small, start=start))
        path = start.expand(self.solver.steps + 1, -1, -1, -1)
        self._add([name] * len(rows), path[:, rows], loss[rows].expand(self.solver.steps, -1), None, rows)

    def descend(self, rotations: int, steps: Iterator[int], rows: Tensor) -> None:
        """Add where Gauss-Newton steps lead from the plain start and its rotations."""
        problem = self.small.take(rows)
        trace = gauss_newton.descend(problem, self.solver, rotations, steps, self.generator)
        plain = "init" if self.given else "resize"
        path, loss, start = trace.matrices(problem), trace.loss, trace.start
        # A square looks like itself after a quarter of a turn: if no turn is needed, none is returned.
        unmoved = gauss_newton.loss_at(problem)
        needless = (start != 0) & (unmoved <= loss[-1] + gauss_newton.TIE)
        path = torch.where(needless[:, None, None], problem.start, path)
        loss, start = torch.where(needless, unmoved, loss), start.masked_fill(needless, 0)
        names = [plain if rotation == 0 else "turns" for rotation in start.tolist()]
        self._add(names, path, loss, trace.converged, rows)

    def from_images(self, way: str, rows: Tensor) -> None:
        """Add the starts by matched features or by phase, and where Gauss-Newton steps lead from them."""
        if way == "phase":
            start, why = phase_starts(self.small)
            found = rows
        else:
            start, matched, why = feature_starts(self.full, rows)
            found = rows[matched[rows]]
        if why:
            self.not_tried.append(why)
        if start is None or len(found) == 0:
            return
        if way == "features":
            self.stand(way, start, found)
        if way == "phase" or max(self.full.dsize) <= SEARCHED:
            # The start is near: the samples need not reach so far, and no smaller images are needed.
            problem = replace(self.small, start=start).take(found)
            sampler = self.solver.sampler
            if isinstance(sampler, Annealed):
                sampler = Annealed(1.0, 0.0625, sampler.sampling)
            nearby = replace(self.solver, stages=_NEAR, sampler=sampler)
            trace = gauss_newton.descend(problem, nearby, 1, iter(range(self.solver.steps)), self.generator)
            self._add([way] * len(found), trace.matrices(problem), trace.loss, trace.converged, found)

    def finish(self) -> Found:
        """Choose the best candidate of each pair, and finish at full size where that was not searched at."""
        values = torch.stack([candidate.value for candidate in self.candidates])
        chosen = _best(values).tolist()
        last, still = [], []
        for row, index in enumerate(chosen):
            matrix, converged = self.candidates[index].path[-1, row], bool(self.candidates[index].converged[row])
            if max(self.full.dsize) > _UNFINISHED:
                chosen[row], matrix, converged = self._finish(values[:, row], row)
            last.append(matrix)
            still.append(converged)
        best = [self.candidates[index] for index in chosen]
        path = torch.stack([candidate.path[:, row] for row, candidate in enumerate(best)], 1)
        loss = torch.stack([candidate.loss[:, row] for row, candidate in enumerate(best)], 1)
        return Found(
            torch.cat((path[:-1], torch.stack(last)[None])),
            loss * self.unit.square(),
            torch.tensor(still, device=path.device),
            tuple(candidate.names[row] for row, candidate in enumerate(best)),
            tuple(self.not_tried),
        )

    def _finish(self, values: Tensor, row: int) -> tuple[int, Tensor, bool]:
        """Finish one pair at full size from the candidate that the first size of the finish makes the best."""
        rows = torch.tensor([row], device=values.device)
        pair, small = self.full.take(rows), self.compared.take(rows)
        sizes = level_sizes(max(self.full.dsize))
        near = [i for i in values.argsort(descending=True).tolist() if values[i] >= values.max() - _NEARLY][:_TRIED]
        order = sorted({*near, int(_best(values[:, None]))})
        results = []
        for index in order:
            start = self.candidates[index].path[-1, row]
            first, still = refine(pair, start, sizes[:1])
            after = float(measure(small, first[None]).value)
            kept = after >= float(values[index]) - 1e-3
            results.append((first, after, still) if kept else (start, float(values[index]), False))
        agreed = torch.tensor([value for _, value, _ in results])
        chosen = int((agreed >= agreed.max() - _TIE / 2).float().argmax())
        start, value, still = results[chosen]
        matrix, still = refine(pair, start, sizes[1:]) if len(sizes) > 1 else (start, still)
        if float(measure(small, matrix[None]).value) < value - _TIE / 2:
            matrix, still = start, False
        return order[chosen], matrix, still

    def _add(self, names: list[str], path: Tensor, loss: Tensor, converged: Tensor | None, rows: Tensor) -> None:
        """Add a candidate of some of the pairs."""
        count = len(self.full.source)
        found = measure(self.compared.take(rows), path[-1])
        every_name = [""] * count
        for row, name in zip(rows.tolist(), names, strict=True):
            every_name[row] = name
        every_path = path.new_zeros(len(path), count, 3, 3)
        every_loss, value = loss.new_zeros(len(loss), count), loss.new_full((count,), -2.0)
        still = torch.zeros(count, dtype=torch.bool, device=loss.device)
        every_path[:, rows], every_loss[:, rows], value[rows] = path, loss, found.value
        if converged is not None:
            still[rows] = converged
        self.candidates.append(_Candidate(every_name, every_path, every_loss, still, value))


def by_adam(full: Problem, solver: Adam, given: bool, steps: Iterator[int], generator: torch.Generator | None) -> Found:
    """Adam's descent from the problem's start, at the size of the images."""
    # A function as sampler may compare the images it is given with others of its own.
    compared = _comparable(full)
    problem = full if callable(solver.sampler) else compared.normalised()
    trace = adam.descend(problem, solver, steps, generator)
    loss = trace.loss if callable(solver.sampler) else trace.loss * compared.unit().square()
    names = ("init" if given else "resize",) * len(full.source)
    return Found(trace.matrices(problem), loss, trace.converged, names, ())


def measure(problem: Problem, matrix: Tensor) -> Agreement:
    """The agreement of the pairs through matrices ``(B, 3, 3)``."""
    warped, valid = warp(problem, matrix)
    return agreement(warped, problem.target, valid, problem.target_mask, problem.loss == "structure")


def working(problem: Problem, longest: int) -> Problem:
    """The problem on small images: the source is shrunk as the target is, or to four times its size."""
    scale = min(1.0, longest / max(problem.target.shape[-2:]))
    source = max(problem.source.shape[-2:])
    return problem.shrunk(longest, max(source * scale, min(source, longest)))


def _comparable(problem: Problem) -> Problem:
    """The problem on images of edges, whose residuals can be compared, if their structure is what counts."""
    if problem.loss != "structure":
        return problem
    source, target = edges(problem.source), edges(problem.target)
    return replace(problem, source=source, target=target, loss="huber", fit_gain_bias=True)


def _best(values: Tensor) -> Tensor:
    """The number of the first candidate that agrees as well as the best, ``(B)``.

    The plainest come first.
    """
    return (values >= values.amax(0) - _TIE).to(values).argmax(0)
