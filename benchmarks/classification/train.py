"""Training of networks side by side, from checkpoints that resume exactly, in one process or several.

Nothing random is carried from step to step: the batch and the samples of a step follow from the seed and the step's
number. So a checkpoint is the weights, Adam's moments and the measurements, and a run that was stopped ends with the
same weights as one that was not. Networks that differ by their seed only are trained together, since a step of several
takes little longer than a step of one; each has a checkpoint of its own, from which it goes on alone or with others.
Several processes (``torchrun``) share each batch and average their gradients.
"""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from benchmarks.classification.data import SIZE, Data, Images
from benchmarks.classification.networks import Network, Scale
from benchmarks.classification.samplers import Sampler

BATCH = 64
CLASSIFIER_RATE = 1e-3

_EVALUATION_BATCH = 500

# The state of one network's training, which is also its checkpoint: "step", "every", "curve", and the weights "network"
# and "best" and Adam's "optimizer", as their state dictionaries. A network's tensors have no axis for networks.
State = dict[str, Any]


class Job(NamedTuple):
    """The description of a training: a transformer, a sampler's name, how many times the view is shrunk, a seed."""

    transformer: str
    sampler: str
    rate: int
    seed: int

    def __str__(self) -> str:
        return f"{self.transformer} {self.rate}x, {self.sampler}, seed {self.seed}"

    def path(self, folder: Path, data_name: str, size: str) -> Path:
        """The checkpoint of this job, for a data set and a scale."""
        name = "-".join(map(str, (data_name, size, *self))).replace(" ", "_").replace(",", "")
        return folder / f"{name}.pt"


class Split(NamedTuple):
    """The images that are sampled, those that a localiser sees (both uint8, unless blurred), and the labels."""

    canvas: Tensor
    seen: Tensor
    labels: Tensor

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images from 0 to 1, and labels, each with the axes of ``indices`` first."""
        flat = indices.to(self.labels.device).flatten()
        canvas, seen, labels = (tensor.index_select(0, flat).unflatten(0, indices.shape) for tensor in self)
        return canvas.float().mul_(1 / 255), seen.float().mul_(1 / 255), labels


class Run(NamedTuple):
    """A trained network, with the weights of the step of lowest validation error, and the measurements on the way.

    ``curve`` holds for each evaluation the step, validation and test error, and the mean log2 of the warp's scale on
    the test images, below 0 where it zooms in.
    """

    network: Network
    curve: list[tuple[int, float, float, float]]

    @property
    def best(self) -> tuple[int, float, float, float]:
        """The point of ``curve`` with the lowest validation error."""
        return best_of(self.curve)


def view_side(rate: int) -> int:
    """The side of a view shrunk ``rate`` times."""
    return round(SIZE / rate)


def train(
    jobs: Sequence[Job],
    sampler: Sampler,
    scale: Scale,
    every: int,
    data: Data,
    paths: Sequence[Path],
    device: torch.device,
    pause: int | None = None,
    deadline: float = math.inf,
) -> list[Run]:
    """Train until the last step or the end of patience; evaluate and write checkpoints every so many steps.

    Args:
        jobs: jobs that differ by their seed only.
        sampler: the sampler of the jobs.
        scale: the size of the networks and the length of training.
        every: the number of steps between evaluations.
        data: the images.
        paths: the checkpoint of each job. Training goes on from those that exist.
        device: where to train.
        pause: a step to stop at before the last, for a later call to go on from.
        deadline: the time, on the monotonic clock, after which no evaluation is trained for any more. Each network has
            been evaluated at least once.

    Raises:
        SystemExit: if a checkpoint has gone beyond the last step or was evaluated at other steps, or if the steps or a
            batch cannot be divided equally.
    """
    rank, world = _rank_and_world()
    if scale.steps % every:
        raise SystemExit(f"--steps must be a multiple of --every, got {scale.steps} and {every}")
    if BATCH % world:
        raise SystemExit(f"{world} processes cannot share a batch of {BATCH} equally")
    kind, view = jobs[0], view_side(jobs[0].rate)
    channels, classes = data.train.pixels.shape[1], int(data.train.labels.max()) + 1

    def build(count: int) -> Network:
        return Network(kind.transformer, scale, sampler, view, channels, classes, count).to(device)

    states = {}
    for job, path in zip(jobs, paths, strict=True):
        with torch.random.fork_rng():
            torch.manual_seed(job.seed)
            weights = _part(build(1).state_dict(), 0)
        states[job] = _load(path) or {"step": 0, "every": every, "curve": [], "network": weights, "best": weights}
        if states[job]["step"] > scale.steps:
            raise SystemExit(f"{path} is at step {states[job]['step']}, beyond {scale.steps}: ask for more steps")
        if states[job]["every"] != every:
            raise SystemExit(f"{path} was evaluated every {states[job]['every']} steps, not every {every}")

    last = scale.steps if pause is None else min(pause, scale.steps)
    if unfinished := _unfinished(states, scale, last):
        splits = [prepare(split, sampler, scale, view, device) for split in data]
        label = f"{kind.transformer} {kind.rate}x, {kind.sampler}, {len(unfinished)} of {len(jobs)} seeds"
        with tqdm(total=scale.steps, initial=_first_step(unfinished), desc=label, leave=False, disable=rank > 0) as bar:
            while unfinished and (_first_step(unfinished) == 0 or is_before(deadline)):
                bar.update(_first_step(unfinished) - bar.n)
                together = {job: state for job, state in unfinished.items() if state["step"] == _first_step(unfinished)}
                _advance(together, build(len(together)), scale, splits, bar)
                if rank == 0:
                    for job, path in zip(jobs, paths, strict=True):
                        if job in together:
                            _save(path, states[job])
                unfinished = _unfinished(states, scale, last)
        if world > 1:
            dist.barrier()

    runs = []
    for state in states.values():
        network = build(1)
        network.load_state_dict(_gather([state["best"]]))
        run = Run(network, [tuple(point) for point in state["curve"]])
        network.sampler = sampler.at(run.best[0])
        runs.append(run)
    return runs


@torch.no_grad()
def evaluate(network: Network, split: Split, seeds: Sequence[int]) -> list[tuple[float, float]]:
    """Each network's share of misread images and mean log2 of the warp's scale; processes share the images."""
    rank, world = _rank_and_world()
    totals = torch.zeros(2, len(seeds), device=split.labels.device)
    for number, indices in enumerate(torch.arange(rank, len(split.labels), world).split(_EVALUATION_BATCH)):
        canvas, seen, labels = split.batch(indices[:, None].expand(-1, len(seeds)))
        scores, warp = network(canvas, seen, [_generator(seed, number) for seed in seeds])
        zoom = torch.linalg.vector_norm(warp[..., :2, 0], dim=-1).log2()
        totals += torch.stack(((scores.argmax(-1) != labels).sum(0), zoom.sum(0)))
    if world > 1:
        dist.all_reduce(totals)
    return [(error, zoom) for error, zoom in (totals / len(split.labels)).T.tolist()]


def is_before(deadline: float) -> bool:
    """Whether there is time left by the first process's clock."""
    rank, world = _rank_and_world()
    before = [time.monotonic() < deadline if rank == 0 else None]
    if world > 1:
        dist.broadcast_object_list(before)
    return bool(before[0])


def prepare(images: Images, sampler: Sampler, scale: Scale, view: int, device: torch.device) -> Split:
    """The images as they are at every step: the canvas blurred, if the sampler wants that, and a shrunk copy."""
    shrink = SIZE // scale.side
    seen = [F.avg_pool2d(some.float(), shrink).round().byte() for some in images.pixels.split(500)]
    canvas = sampler.prepare(images.pixels, view)
    return Split(canvas.to(device), torch.cat(seen).to(device), images.labels.to(device))


def _advance(
    states: Mapping[Job, State], network: Network, scale: Scale, splits: Sequence[Split], bar: "tqdm[Any]"
) -> None:
    """Train networks from the step that all of them have reached to the next evaluation, and put down their states."""
    rank, world = _rank_and_world()
    training, validation, test = splits
    sampler, seeds = network.sampler, [job.seed for job in states]
    network.load_state_dict(_gather([state["network"] for state in states.values()]))
    optimizer = torch.optim.Adam(
        [
            {"params": network.localise.parameters(), "lr": scale.localiser_rate},
            {"params": network.classify.parameters(), "lr": CLASSIFIER_RATE},
        ],
        fused=True,
    )
    first, every = (next(iter(states.values()))[entry] for entry in ("step", "every"))
    if first:
        saved = [state["optimizer"]["state"] for state in states.values()]
        gathered = {index: _gather([moments[index] for moments in saved]) for index in saved[0]}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": gathered})
    model: nn.Module = DistributedDataParallel(network) if world > 1 else network

    for step in range(first + 1, first + every + 1):
        network.sampler = sampler.at(step)
        generators = [_generator(seed, step) for seed in seeds]
        drawn = [torch.randint(len(training.labels), (BATCH,), generator=generator) for generator in generators]
        canvas, seen, labels = training.batch(torch.stack(drawn, 1)[rank::world])
        scores, _ = model(canvas, seen, generators)
        optimizer.zero_grad()
        # The mean over a network's batch, summed over the networks, whose gradients then do not mix.
        (len(seeds) * F.cross_entropy(scores.flatten(0, 1), labels.flatten())).backward()
        optimizer.step()
        bar.update()

    weights, adam = network.state_dict(), optimizer.state_dict()
    measured = zip(evaluate(network, validation, seeds), evaluate(network, test, seeds), strict=True)
    for number, (state, ((error, _), tested)) in enumerate(zip(states.values(), measured, strict=True)):
        state["step"], state["network"] = first + every, _part(weights, number)
        moments = {index: _part(moment, number) for index, moment in adam["state"].items()}
        state["optimizer"] = {**adam, "state": moments}
        if error < min((point[1] for point in state["curve"]), default=2.0):
            state["best"] = state["network"]
        state["curve"].append((state["step"], error, *tested))
    bar.set_postfix_str(", ".join(f"{state['curve'][-1][2]:.1%}" for state in states.values()))


def _gather(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several networks, with an axis for the networks. Adam's number of steps is one for all."""
    return {name: parts[0][name] if name == "step" else torch.stack([p[name] for p in parts]) for name in parts[0]}


def _part(tensors: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """A copy of the tensors of one network, the inverse of ``_gather``."""
    return {name: (value if name == "step" else value[number]).clone() for name, value in tensors.items()}


def _unfinished(states: Mapping[Job, State], scale: Scale, last: int) -> dict[Job, State]:
    return {job: state for job, state in states.items() if state["step"] < last and not _is_over(state, scale)}


def _first_step(states: Mapping[Job, State]) -> int:
    return min(state["step"] for state in states.values())


def _is_over(state: State, scale: Scale) -> bool:
    """Whether training is at its last step, or the validation error has not fallen for too long."""
    if not state["curve"]:
        return False
    return state["step"] >= min(scale.steps, best_of(state["curve"])[0] + scale.patience)


def best_of(curve: Sequence[tuple[int, float, float, float]]) -> tuple[int, float, float, float]:
    """The point of a curve with the lowest validation error, the first if there are more."""
    return min(curve, key=lambda point: (point[1], point[0]))


def _load(path: Path) -> State | None:
    """The checkpoint that the first process finds, sent to all, since others may run on machines without it."""
    rank, world = _rank_and_world()
    found = [torch.load(path, map_location="cpu", weights_only=True) if rank == 0 and path.exists() else None]
    if world > 1:
        dist.broadcast_object_list(found)
    return found[0]


def _save(path: Path, state: State) -> None:
    """Write a checkpoint whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * number + seed)


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
