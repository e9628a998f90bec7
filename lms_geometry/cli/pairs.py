"""``lms-geometry pairs``: align the many pairs of a CSV file, in a run that can be taken up again."""

import argparse
import csv
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from os.path import normpath
from pathlib import Path
from typing import Any

import numpy as np

from lms_geometry.cli.align import FAULTS, Settings, Side, align, failure, outcome, read_side, say_not_tried, summary
from lms_geometry.cli.console import say
from lms_geometry.cli.inputs import InputError, some
from lms_geometry.cli.picture import Array
from lms_geometry.cli.points import read_table
from lms_geometry.cli.register import check_pair, write_pair
from lms_geometry.cli.results import Results

_FILES = ("source", "target", "source_mask", "target_mask")
_MATRIX = tuple(f"m{row}{column}" for row in (1, 2, 3) for column in (1, 2, 3))
COLUMNS = ("name", "source", "target", "good", "score", "overlap", "start", "converged", *_MATRIX, "error")


@dataclass(frozen=True)
class Pair:
    """A row of the CSV file: a name, the two images, and their masks, where they have any."""

    name: str
    source: Path
    target: Path
    source_mask: Path | None = None
    target_mask: Path | None = None

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others in a table of results."""
        return self.name, str(self.source), str(self.target)


def run_pairs(options: argparse.Namespace) -> int:
    """Align each pair; returns 0, or 1 if any of them failed."""
    from tqdm import tqdm

    settings = Settings.of(options)
    if options.batch < 1:
        raise InputError(f"--batch must be at least 1, got {options.batch}")
    pairs = read_pairs(options.pairs)
    files = [path for pair in pairs for path in (pair.source, pair.target, pair.source_mask, pair.target_mask) if path]
    earlier = _resume(options.out, settings, options.overwrite) if options.resume else None
    results = Results(options.out, [options.pairs, *files], options.overwrite or earlier is not None)
    done = earlier or []
    if earlier is None:
        results.check("results.csv", "settings.json")
        results.write_json("settings.json", settings.as_dict())
    finished = {(row["name"], row["source"], row["target"]): row["good"] == "True" for row in done}
    good = [finished[pair.key] for pair in pairs if pair.key in finished]
    reasons: dict[str, None] = {}
    left = [pair for pair in pairs if pair.key not in finished]
    results.write_text("results.csv", _as_csv([dict(zip(COLUMNS, COLUMNS, strict=True)), *done]))
    with (options.out / "results.csv").open("a", encoding="utf-8", errors="surrogateescape") as file:
        for start in tqdm(range(0, len(left), options.batch), desc="pairs", unit="batch"):
            for pair, result in align_pairs(left[start : start + options.batch], settings, options.images, results):
                file.write(_as_csv([_row(pair, result)]))
                file.flush()  # what is found is kept, however the run ends
                good.append(result["good"])
                reasons |= dict.fromkeys(result.get("not_tried", ()))
                if not result["good"]:
                    say(f"{pair.name}: {summary(result)}")
    say_not_tried([{"not_tried": reasons}])
    say(f"{sum(good)} of {len(pairs)} pairs are good; results.csv is in {options.out}")
    return 0 if all(good) else 1


def read_pairs(path: Path) -> list[Pair]:
    """The pairs of a CSV file: paths are relative to its folder, and a pair without a name is called by its number."""
    head, *rows = read_table(path)
    names = [name.strip().lower() for name in head]
    if "source" not in names or "target" not in names:
        raise InputError(f"{path} must have columns source and target, got {', '.join(head)}")
    pairs = []
    for number, row in enumerate(rows, start=1):
        cells = {name: cell.strip() for name, cell in zip(names, row, strict=False) if cell.strip()}
        if "source" not in cells or "target" not in cells:
            raise InputError(f"{path}, row {number}: a source and a target are wanted, got {', '.join(row)}")
        given = {name: path.parent / cells[name] for name in _FILES if name in cells}
        pairs.append(Pair(cells.get("name", f"{number:04}"), **given))
    if not pairs:
        raise InputError(f"{path} holds no pairs")
    folders = Counter(normpath(pair.name) for pair in pairs)
    twice = list(dict.fromkeys(pair.name for pair in pairs if folders[normpath(pair.name)] > 1))
    if twice:
        raise InputError(f"{path} names several pairs {some(twice)}: give each a name, and so a folder, of its own")
    return pairs


def align_pairs(
    pairs: Sequence[Pair], settings: Settings, images: bool = False, results: Results | None = None
) -> Iterator[tuple[Pair, dict[str, Any]]]:
    """Align a batch of pairs, those of equal shapes at once; a fault of a pair is that pair's result.

    Args:
        pairs: the pairs.
        settings: how to align them.
        images: whether each gets a folder of images, as ``lms-geometry register`` writes them, in ``results``.
        results: where.
    """
    ready: list[tuple[Pair, Side, Side]] = []
    for pair in pairs:
        try:
            sides = read_side(pair.source, pair.source_mask), read_side(pair.target, pair.target_mask)
            ready.append((pair, *sides))
        except FAULTS as error:
            yield pair, failure(pair.source, pair.target, error)
    ready.sort(key=lambda item: _shapes(item[1:]))
    for _, group in groupby(ready, key=lambda item: _shapes(item[1:])):
        for pair, source, target, result in _align_group(list(group), settings):
            if images and results is not None and "error" not in result:
                try:
                    check_pair(source, results, f"{pair.name}/")
                    result = write_pair(source, target, result, results, f"{pair.name}/")
                except FAULTS as error:
                    result = failure(pair.source, pair.target, error)
            yield pair, {"source": str(pair.source), "target": str(pair.target), **result}


def align_rows(rows: Mapping[str, Array], **settings: Any) -> dict[str, Array]:  # noqa: ANN401
    """Align a batch of pairs that a table names, for engines that run over many machines.

    Args:
        rows: columns ``source`` and ``target``, and, if wanted, ``name``, ``source_mask`` and ``target_mask``: paths
            that the machine can read.
        settings: those of the command, such as ``motion="homography"``.

    Returns:
        The columns of the command's ``results.csv``, one row for each pair, in the order given. A pair that cannot be
        used has its fault in the column ``error``.
    """
    files = {name: rows[name] for name in _FILES if name in rows}
    pairs = [
        Pair(str(index), **{name: Path(cells[index]) for name, cells in files.items() if _is_path(cells[index])})
        for index in range(len(rows["source"]))
    ]
    found = {int(pair.name): _row(pair, result) for pair, result in align_pairs(pairs, Settings(**settings))}
    names = rows.get("name", np.array([f"{index:04}" for index in range(len(pairs))]))
    table = [found[index] | {"name": str(names[index])} for index in range(len(pairs))]
    return {name: np.array([_typed(name, row.get(name)) for row in table]) for name in COLUMNS}


def _align_group(
    group: list[tuple[Pair, Side, Side]], settings: Settings
) -> Iterator[tuple[Pair, Side, Side, dict[str, Any]]]:
    """Align pairs of equal shapes: at once, or, if one of them cannot be used, each by itself."""
    try:
        found = align([source for _, source, _ in group], [target for *_, target in group], settings)
        for index, item in enumerate(group):
            yield *item, outcome(found, index, settings)
    except FAULTS as error:
        if len(group) > 1:
            for item in group:
                yield from _align_group([item], settings)
        else:
            pair, source, target = group[0]
            yield pair, source, target, failure(pair.source, pair.target, error)


def _resume(folder: Path, settings: Settings, overwrite: bool) -> list[dict[str, str]] | None:
    """The rows of an earlier run that found something; ``None`` if the folder holds no earlier run.

    Raises:
        InputError: if the earlier run had other settings, or if there is a table that is not of an earlier run and
            ``overwrite`` does not allow to replace it.
    """
    table = folder / "results.csv"
    before, wanted = _read_settings(folder / "settings.json"), json.loads(json.dumps(settings.as_dict()))
    if before is not None and before != wanted:
        raise InputError(f"{folder} was begun with other settings, {before}: use them, or another --out")
    rows = _read_results(table)
    if before is not None and rows is not None:
        return [row for row in rows if row.get("error") == "" and all(row.get(name) for name in _MATRIX)]
    if table.exists() and not overwrite:
        fault = "its columns are not those" if before is not None else "settings.json beside it is missing or not that"
        way_out = "choose another --out, or replace it by --overwrite"
        raise InputError(f"{table} cannot be resumed, as {fault} of an earlier run: {way_out}")
    return None


def _read_settings(path: Path) -> dict[str, Any] | None:
    """The settings that an earlier run wrote; ``None`` if the file is missing or holds anything else."""
    try:
        found = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) and found.keys() == Settings().as_dict().keys() else None


def _read_results(path: Path) -> list[dict[str, str]] | None:
    """The rows that an earlier run wrote, if any; ``None`` if the file holds anything else."""
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
    except FileNotFoundError:
        return []
    except csv.Error:
        return None
    return rows if reader.fieldnames == list(COLUMNS) else None


def _row(pair: Pair, result: dict[str, Any]) -> dict[str, Any]:
    numbers = [number for row in result.get("matrix", []) for number in row]
    matrix = dict(zip(_MATRIX, numbers, strict=False))
    return {"name": pair.name, **result, **matrix, "source": str(pair.source), "target": str(pair.target)}


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO(newline="")
    csv.DictWriter(text, COLUMNS, restval="", extrasaction="ignore", lineterminator="\n").writerows(rows)
    return text.getvalue()


def _is_path(cell: object) -> bool:
    """Whether a cell names a file: those left empty are empty strings, nothing or NaN."""
    return isinstance(cell, str) and cell != ""


def _typed(name: str, value: Any) -> str | float | bool:  # noqa: ANN401
    """A cell in the type of its column, which is the same where there is nothing to tell."""
    if name in ("good", "converged"):
        return bool(value)
    if name in ("score", "overlap", *_MATRIX):
        return float("nan") if value is None else float(value)
    return "" if value is None else str(value)


def _shapes(sides: tuple[Side, Side]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(side.image.shape) for side in sides)
