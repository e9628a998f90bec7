"""Training one network, from checkpoints that resume exactly, in one process or several.

Nothing random is carried from step to step: the batch and the samples of a step follow from the seed and the step's
number. So a checkpoint is the weights, Adam's moments and what was measured, and a run that was stopped ends with the
same weights as one that was not. Several processes (``torchrun``) share each batch and average their gradients.
"""

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


class Job(NamedTuple):
    """What is trained: a transformer, the name of a sampler, how many times the view is shrunk, and a seed."""

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
    """Images as a network wants them: those it samples, those its localiser sees (both uint8), and their labels."""

    canvas: Tensor
    seen: Tensor
    labels: Tensor

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images from 0 to 1, and labels."""
        indices = indices.to(self.labels.device)
        return self.canvas[indices].float() / 255, self.seen[indices].float() / 255, self.labels[indices]


class Run(NamedTuple):
    """A trained network, the weights of the step with the lowest validation error, and what was measured on the way.

    ``curve`` holds for each evaluation the step, validation and test error, and the mean log2 of the warp's scale on
    the test images, below 0 where it zooms in.
    """

    network: Network
    curve: list[tuple[int, float, float, float]]

    @property
    def best(self) -> tuple[int, float, float, float]:
        """The point of ``curve`` with the lowest validation error."""
        return _best(self.curve)


def view_side(rate: int) -> int:
    """The side of a view shrunk ``rate`` times."""
    return round(SIZE / rate)


def train(job: Job, sampler: Sampler, scale: Scale, every: int, data: Data, path: Path, device: torch.device) -> Run:
    """Train until the last step or the end of patience; evaluate ``every`` so many steps, and keep a checkpoint.

    A checkpoint that ``path`` holds already is gone on from.

    Raises:
        SystemExit: if that checkpoint has gone beyond the last step or was evaluated at other steps, or if the steps
            or a batch cannot be shared out.
    """
    _, world = _rank_and_world()
    if scale.steps % every:
        raise SystemExit(f"--steps must be a multiple of --every, got {scale.steps} and {every}")
    if BATCH % world:
        raise SystemExit(f"{world} processes cannot share a batch of {BATCH} equally")
    channels, classes = data.train.pixels.shape[1], int(data.train.labels.max()) + 1
    with torch.random.fork_rng():
        torch.manual_seed(job.seed)
        network = Network(job.transformer, scale, sampler, view_side(job.rate), channels, classes).to(device)
    optimizer = torch.optim.Adam(
        [
            {"params": network.localise.parameters(), "lr": scale.localiser_rate},
            {"params": network.classify.parameters(), "lr": CLASSIFIER_RATE},
        ],
        fused=True,
    )
    state: dict[str, Any] = {"step": 0, "every": every, "curve": [], "best": network.state_dict()}
    checkpoint = _load(path)
    if checkpoint is not None:
        state = checkpoint
        if state["step"] > scale.steps:
            raise SystemExit(f"{path} is at step {state['step']}, beyond {scale.steps}: ask for more steps")
        if state["every"] != every:
            raise SystemExit(f"{path} was evaluated every {state['every']} steps, not every {every}")
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    if not _is_over(state, scale):
        _go_on(job, sampler, network, optimizer, state, scale, every, data, path, device)
    network.load_state_dict(state["best"])
    run = Run(network, [tuple(point) for point in state["curve"]])
    network.sampler = sampler.at(run.best[0])
    return run


@torch.no_grad()
def evaluate(network: Network, split: Split, seed: int) -> tuple[float, float]:
    """The share of images that are misread, and the mean log2 of the warp's scale; shared out over the processes."""
    rank, world = _rank_and_world()
    totals = torch.zeros(2, device=split.labels.device)
    for number, indices in enumerate(torch.arange(rank, len(split.labels), world).split(_EVALUATION_BATCH)):
        canvas, seen, labels = split.batch(indices)
        scores, warp = network(canvas, seen, _generator(seed, number))
        zoom = torch.linalg.vector_norm(warp[:, :2, 0], dim=1).log2()
        totals += torch.stack(((scores.argmax(1) != labels).sum(), zoom.sum()))
    if world > 1:
        dist.all_reduce(totals)
    error, zoom = (totals / len(split.labels)).tolist()
    return error, zoom


def prepare(images: Images, sampler: Sampler, scale: Scale, view: int, device: torch.device) -> Split:
    """Do once what is the same at every step."""
    shrink = SIZE // scale.side
    seen = [F.avg_pool2d(some.float(), shrink).round().byte() for some in images.pixels.split(500)]
    canvas = sampler.prepare(images.pixels, view)
    return Split(canvas.to(device), torch.cat(seen).to(device), images.labels.to(device))


def _go_on(
    job: Job,
    sampler: Sampler,
    network: Network,
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    scale: Scale,
    every: int,
    data: Data,
    path: Path,
    device: torch.device,
) -> None:
    rank, world = _rank_and_world()
    training, validation, test = (prepare(split, sampler, scale, network.view, device) for split in data)
    model: nn.Module = DistributedDataParallel(network) if world > 1 else network
    bar = tqdm(total=scale.steps, initial=state["step"], desc=str(job), leave=False, disable=rank > 0)
    while not _is_over(state, scale):
        state["step"] += 1
        network.sampler = sampler.at(state["step"])
        generator = _generator(job.seed, state["step"])
        batch = torch.randint(len(training.labels), (BATCH,), generator=generator)[rank::world]
        canvas, seen, labels = training.batch(batch)
        scores, _ = model(canvas, seen, generator)
        optimizer.zero_grad()
        F.cross_entropy(scores, labels).backward()
        optimizer.step()
        bar.update()
        if state["step"] % every == 0:
            error, _ = evaluate(network, validation, job.seed)
            if error < min((point[1] for point in state["curve"]), default=2.0):
                state["best"] = {name: value.clone() for name, value in network.state_dict().items()}
            state["curve"].append((state["step"], error, *evaluate(network, test, job.seed)))
            bar.set_postfix(validation=f"{error:.1%}", test=f"{state['curve'][-1][2]:.1%}")
            if rank == 0:
                _save(path, {**state, "network": network.state_dict(), "optimizer": optimizer.state_dict()})
    bar.close()
    if world > 1:
        dist.barrier()


def _is_over(state: dict[str, Any], scale: Scale) -> bool:
    """At the last step, or when the validation error has not fallen for too long."""
    if not state["curve"]:
        return False
    return state["step"] >= min(scale.steps, _best(state["curve"])[0] + scale.patience)


def _best(curve: list[tuple[int, float, float, float]]) -> tuple[int, float, float, float]:
    return min(curve, key=lambda point: (point[1], point[0]))


def _load(path: Path) -> dict[str, Any] | None:
    """The checkpoint that the first process finds, for all: others may run on machines without it."""
    rank, world = _rank_and_world()
    found = [torch.load(path, map_location="cpu", weights_only=True) if rank == 0 and path.exists() else None]
    if world > 1:
        dist.broadcast_object_list(found)
    return found[0]


def _save(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    torch.save(state, unfinished)
    unfinished.replace(path)


def _generator(seed: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_000_003 * number + seed)


def _rank_and_world() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
