"""Classification behind spatial transformers, section 6.2, Table 1 and Fig. 6.

    python -m benchmarks.classification --data DIR [--set gtsrb|mnist] [--scale small|middle|paper] [--steps N]
        [--seeds 0 1 2] [--transformers none STN ICSTN] [--rates 8 4 2 1] [--samplers NAME ...]
        [--authors RELEASE] [--runs DIR] [--minutes M] [--json FILE]

The seeds of one transformer, rate and sampler are trained side by side, and each network is kept in ``--runs``. A
command that is stopped goes on where it stopped, and one with more ``--steps`` goes on from where the last one ended.
With ``--minutes``, as on a GPU that is lent for a time, transformers, rates and samplers take turns of some evaluations
each, so that all have come equally far when the time is over; the same command then goes on.
``torchrun --nproc-per-node N -m benchmarks.classification ...`` trains on several processes, which share each batch of
64.
"""

import math
import os
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from tqdm import tqdm

from benchmarks.classification.data import Data, identity, load
from benchmarks.classification.figures import average_views, draw_curves, draw_views, most_frequent
from benchmarks.classification.networks import LOOKS, SCALES, Scale
from benchmarks.classification.samplers import BILINEAR, COMPARED, SAMPLERS, Sampler
from benchmarks.classification.train import Job, Run, evaluate, is_before, prepare, train
from benchmarks.commands import parser
from benchmarks.peers import AUTHORS, authors_with_generator
from benchmarks.results import report, spread

RATES = (8, 4, 2, 1)
# The number of evaluations in a turn, where cells take turns.
_TURN = 5
NAMES = {"gtsrb": "GTSRB", "mnist": "MNIST"}


def main() -> None:
    command = parser(__doc__)
    command.add_argument("--data", type=Path, required=True, help="the folder of the set")
    command.add_argument("--set", choices=tuple(NAMES), default="gtsrb")
    command.add_argument("--scale", choices=tuple(SCALES), default="small")
    command.add_argument("--steps", type=int, help="instead of the scale's")
    command.add_argument("--every", type=int, default=2000, help="steps between evaluations, which choose the weights")
    command.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    command.add_argument("--transformers", choices=tuple(LOOKS), nargs="+", default=list(LOOKS))
    command.add_argument("--rates", type=int, choices=RATES, nargs="+", default=list(RATES))
    command.add_argument("--samplers", choices=tuple(SAMPLERS), nargs="+", default=list(COMPARED))
    command.add_argument("--authors", type=Path, help="a folder with the authors' release, for one more sampler")
    command.add_argument("--runs", type=Path, default=Path("runs/classification"), help="where networks are kept")
    command.add_argument("--minutes", type=float, help="the time to train, after which all that is reached is reported")
    command.add_argument("--json", type=Path, help="also write the figures to this file, and pictures beside it")
    options = command.parse_args()
    rank, device = _join_processes()

    data = load(options.set, options.data)
    scale = SCALES[options.scale]
    scale = replace(scale, steps=options.steps or scale.steps)
    samplers = {name: SAMPLERS[name] for name in options.samplers}
    if options.authors:
        samplers[AUTHORS] = Sampler(authors=authors_with_generator(options.authors))
    data_name = identity(options.set, data)
    cells = [
        [Job(transformer, name, rate, seed) for seed in options.seeds]
        for transformer in options.transformers
        for rate in options.rates
        for name, sampler in samplers.items()
        # Without a transformer nothing has a gradient, and samplers differ by their values only.
        if transformer != "none" or not sampler.is_random
    ]
    runs: dict[Job, Run] = {}
    deadline, turn = math.inf, scale.steps
    if options.minutes is not None:
        deadline, turn = time.monotonic() + 60 * options.minutes, _TURN * options.every
    turns = [(jobs, pause) for pause in range(turn, scale.steps + turn, turn) for jobs in cells]
    for jobs, pause in tqdm(turns, desc="classification", disable=rank > 0):
        if jobs[0] in runs and not is_before(deadline):
            break
        paths = [job.path(options.runs, data_name, options.scale) for job in jobs]
        trained = train(jobs, samplers[jobs[0].sampler], scale, options.every, data, paths, device, pause, deadline)
        runs |= zip(jobs, trained, strict=True)
    if dist.is_initialized():
        dist.destroy_process_group()
    if rank == 0:
        length = f"within {scale.steps} steps"
        if options.minutes is not None:
            reached = [run.curve[-1][0] for run in runs.values()]
            length = f"after {min(reached)} to {max(reached)} steps"
        _report(options.json, NAMES[options.set], options.scale, scale, length, data, runs, device)


def _report(
    path: Path | None,
    data_name: str,
    size: str,
    scale: Scale,
    length: str,
    data: Data,
    runs: dict[Job, Run],
    device: torch.device,
) -> None:
    rates = list(dict.fromkeys(job.rate for job in runs))
    transformers = list(dict.fromkeys(job.transformer for job in runs))
    count = len({job.seed for job in runs})
    seeds = f"{count} seeds" if count > 1 else "one seed"
    rows: dict[tuple[str, str], dict[str, list[float]]] = {}
    for job, run in runs.items():
        _, validation, test, _ = run.best
        row = rows.setdefault((job.transformer, job.sampler), {})
        row.setdefault(f"{job.rate}x", []).append(test)
        row.setdefault(f"{job.rate}x, validation", []).append(validation)
        for name, error in _errors_read_otherwise(job, run, scale, data, device).items():
            rows.setdefault((job.transformer, name), {}).setdefault(f"{job.rate}x", []).append(error)
    measured = [*(f"{rate}x" for rate in rates), *(f"{rate}x, validation" for rate in rates)]
    figure = notes = None
    if path is not None:
        curves, views = path.with_name(f"{path.stem}_curves.png"), path.with_name(f"{path.stem}_views.png")
        draw_curves(curves, {job: run.curve for job, run in runs.items()})
        shown = {
            job: run for job, run in runs.items() if job.seed == min(j.seed for j in runs) and job.rate == rates[0]
        }
        classes = most_frequent(data.test.labels)
        draw_views(
            views,
            {
                f"{job.transformer}, {job.sampler}": average_views(
                    run.network,
                    prepare(data.test, run.network.sampler, scale, run.network.view, device),
                    data.test,
                    classes,
                )
                for job, run in shown.items()
            },
        )
        figure = {"file": curves.name, "alt": "Test error against steps of training, a line for each sampler."}
        notes = (
            f"![Average views of {len(classes)} classes, a row for each sampler.](../benchmarks/results/{views.name})"
            f"\n\nAverage views at {rates[0]}x of the {len(classes)} classes with most test images, drawn at full "
            "size, as in Fig. 6."
        )
    report(
        path,
        f"Classification, {data_name}, {'' if size == 'small' else f'size {size}, '}{', '.join(transformers)} at "
        f"{', '.join(f'{rate}x' for rate in rates)}, {seeds}",
        f"Section 6.2, Table 1: test error in %, mean and standard deviation over {seeds}, of networks of the "
        f"size `{size}` {length}, at the weights with the lowest validation error, which stands "
        "beside it. Rows that end in *tested* are the networks of the row above, their views read in another way at "
        "test time.",
        ["transformer", "sampler", *measured],
        [
            [*kind, *(spread([100 * error for error in errors.get(column, [])]) for column in measured)]
            for kind, errors in rows.items()
        ],
        {str(job): run.curve for job, run in runs.items()},
        figure,
        notes,
        device,
    )


def _errors_read_otherwise(job: Job, run: Run, scale: Scale, data: Data, device: torch.device) -> dict[str, float]:
    """Test errors of a network that was trained with random views, when they are less random or not at all."""
    sampler = run.network.sampler
    if sampler.sampling is None or not sampler.is_random or not sampler.sampling.intercept:
        return {}
    test = prepare(data.test, sampler, scale, run.network.view, device)
    many = replace(sampler, sampling=replace(sampler.sampling, num_samples=64))
    errors = {}
    for name, other in (("64 samples", many), (BILINEAR, SAMPLERS[BILINEAR])):
        run.network.sampler = other
        errors[f"{job.sampler}, {name} when tested"], _ = evaluate(run.network, test, [job.seed])[0]
    run.network.sampler = sampler
    return errors


def _join_processes() -> tuple[int, torch.device]:
    """Rank and device of this process, which meets the others if ``torchrun`` started several."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return dist.get_rank(), device
    return 0, device


if __name__ == "__main__":
    main()
