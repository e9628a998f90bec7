"""What the command lines of the benchmarks share."""

from argparse import ArgumentParser
from pathlib import Path

import torch


def parser(doc: str | None) -> ArgumentParser:
    """A parser that introduces a module by the first line of its docstring."""
    return ArgumentParser(description=doc.split("\n")[0] if doc else None)


def timing_parser(doc: str | None, rounds: int) -> ArgumentParser:
    """A parser with the options of a benchmark that measures time; ``rounds`` is how often it repeats by default."""
    command = parser(doc)
    command.add_argument("--rounds", type=int, default=rounds, help="repetitions of every measurement")
    command.add_argument("--threads", type=int, default=torch.get_num_threads(), help="that torch computes with")
    command.add_argument("--json", type=Path, help="write the result to this file, and its figure beside it")
    return command
