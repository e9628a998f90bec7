"""Long experiments in cells: a finished cell is a line of a file, and a run that is started again goes on after it."""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

Job = Mapping[str, str | int | float]
Value = TypeVar("Value")


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """The options that every experiment takes."""
    parser.add_argument("--data", type=Path, required=True, help="the folder with the images; README.md says of which")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result to this file, and its figure beside it")
    parser.add_argument(
        "--finished",
        type=Path,
        default=Path(f"runs/{name}.jsonl"),
        help="finished cells: what is there is not measured again (default: %(default)s)",
    )


def run_cells(
    jobs: Sequence[Job], measure: Callable[[Job], Value], images: Tensor, finished: Path, name: str
) -> list[Value]:
    """Measure each job, but those that a file holds already.

    Args:
        jobs: what to measure; a job's entries must say all that its value depends on, but for the images.
        measure: gives a job's value, which JSON can hold.
        images: what it is measured on.
        finished: JSON lines, each a job and its value; made if missing, lines are added.
        name: stands before the progress bar.

    Returns:
        The values, in the order of the jobs.
    """
    identity = fingerprint(images)
    jobs = [{**job, "images": identity} for job in jobs]
    finished.parent.mkdir(parents=True, exist_ok=True)
    finished.touch()
    known = {_key(cell["job"]): cell["value"] for cell in map(json.loads, finished.read_text().splitlines())}
    for job in tqdm([job for job in jobs if _key(job) not in known], desc=name, unit="cell"):
        value = known[_key(job)] = measure(job)
        with finished.open("a") as lines:
            lines.write(json.dumps({"job": job, "value": value}) + "\n")
    return [known[_key(job)] for job in jobs]


def fingerprint(*tensors: Tensor) -> str:
    """Tells one set of images from another, for a job's entries or the name of a file."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:8]


def _key(job: Job) -> str:
    return json.dumps(job, sort_keys=True)
