"""The result of a benchmark: a printed table, and a JSON file that the site's Reproduction page shows."""

import json
import platform
import shlex
import statistics
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch


def report(
    path: Path | None,
    title: str,
    what: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    raw: object,
    figure: dict[str, str] | None = None,
    notes: str | None = None,
    device: torch.device | None = None,
) -> None:
    """Print a table and, if there is a path, write a file with the table, the raw figures, the command and the machine.

    Args:
        path: the JSON file to write; ``None`` writes none.
        title: the heading of the result.
        what: a paragraph on what the table shows.
        columns: the table's head.
        rows: the table's rows.
        raw: the figures behind the table, of a type that JSON can hold.
        figure: a picture beside ``path`` and what it shows, ``{"file": ..., "alt": ...}``.
        notes: a paragraph on what differs from the paper, and why.
        device: the device of the measurement; ``None`` stands for the CPU.
    """
    print("\n".join("| " + " | ".join(row) + " |" for row in (columns, ["---"] * len(columns), *rows)))
    if path is None:
        return
    result = {
        "title": title,
        "what": what,
        "table": {"columns": columns, "rows": rows},
        **({} if figure is None else {"figure": figure}),
        **({} if notes is None else {"notes": notes}),
        "command": _command(),
        "about": {"machine": _machine(device), "torch": torch.__version__, "date": date.today().isoformat()},
        "raw": raw,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


def _command() -> str:
    """The command line, with placeholders for the user's folders."""
    path, *given = sys.argv
    arguments = [part for word in given for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, *names in (("--data", "DIR"), ("--authors", "RELEASE"), ("--photos", "TRAIN", "TEST")):
        if option in arguments:
            place = arguments.index(option) + 1
            arguments[place : place + len(names)] = names
    for option in ("--finished", "--runs"):
        if option in arguments:
            del arguments[(place := arguments.index(option)) : place + 2]
    if "--json" in arguments:
        place = arguments.index("--json") + 1
        arguments[place] = f"benchmarks/results/{Path(arguments[place]).name}"
    parts = Path(path).with_suffix("").parts
    while "benchmarks" in parts:
        parts = parts[parts.index("benchmarks") + 1 :]
    module = ".".join(("benchmarks", *(part for part in parts if part != "__main__")))
    return shlex.join(["python", "-m", module, *arguments])


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The mean and the standard deviation of values, for a cell of a table; the value alone if there is but one."""
    if len(values) < 2:
        return " ".join(f"{value:.{digits}f}" for value in values)
    return f"{statistics.mean(values):.{digits}f} ± {statistics.stdev(values):.{digits}f}"


def _machine(device: torch.device | None) -> str:
    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"
