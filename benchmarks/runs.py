"""Long experiments in cells: every finished cell is a line of a file, and a run that is started again skips it."""

import hashlib
import json
from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from tqdm import tqdm

# The description of a cell: all that its value depends on, but for the images.
Job = Mapping[str, str | int | float]
Value = TypeVar("Value")


def add_options(parser: ArgumentParser, name: str) -> None:
    """Add the options that every experiment takes; ``name`` is the experiment's."""
    parser.add_argument("--data", type=Path, required=True, help="the folder with the images; README.md says of which")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the result to this file, and its figure beside it")
    parser.add_argument(
        "--finished",
        type=Path,
        default=Path(f"runs/{name}.jsonl"),
        help="the file of finished cells, which are not measured again (default: %(default)s)",
    )


def run_cells(
    jobs: Sequence[Job], measure: Callable[[Job], Value], images: Tensor, finished: Path, name: str
) -> list[Value]:
    """Measure every job whose value is not in a file yet.

    Args:
        jobs: the cells of the experiment. A job that differs in any entry, or has other images, is another cell.
        measure: returns the value of a job, of a type that JSON can hold.
        images: the images that are measured on.
        finished: a file of JSON lines, each with a job and its value. It is made if it is missing; lines are added.
        name: the label of the progress bar.

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
    """Eight hexadecimal digits that tell one set of images from another."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()[:8]


def _key(job: Job) -> str:
    return json.dumps(job, sort_keys=True)
