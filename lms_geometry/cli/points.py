"""Points in CSV files."""

import csv
import io
from pathlib import Path

import torch

from lms_geometry.cli.inputs import InputError, check_readable
from lms_geometry.cli.results import Results
from lms_geometry.registration.transforms import Transform


def move_points(path: Path, transform: Transform, results: Results) -> str:
    """Write a CSV file with its points moved and its other columns as they are; returns the file's name.

    Its columns ``x`` and ``y`` are pixels with centres at integers; without a head, they are the first two. Where the
    transform has a matrix for each frame of a stack, the column ``frame`` says which, counted from 0.
    """
    rows = read_table(path)
    head = [] if _number(rows[0][0]) is not None else rows.pop(0)
    names = [name.strip().lower() for name in head] or ["x", "y"]
    if "x" not in names or "y" not in names:
        raise InputError(f"{path} must have columns x and y, got {', '.join(head)}")
    places = names.index("x"), names.index("y")
    count = len(transform.matrix)
    if count > 1 and "frame" not in names:
        raise InputError(f"{path} must have a column frame, from 0 to {count - 1}, for a transform of {count} matrices")
    points, frames = [], []
    for line, row in enumerate(rows, start=2 if head else 1):
        x, y = (_number(row[place]) if place < len(row) else None for place in places)
        if x is None or y is None:
            raise InputError(f"{path}, line {line}: x and y must be finite numbers, got {', '.join(row)}")
        frame = _number(row[names.index("frame")]) if count > 1 and len(row) > names.index("frame") else 0.0
        if frame is None or frame not in range(count):
            raise InputError(f"{path}, line {line}: frame must be from 0 to {count - 1}, got {', '.join(row)}")
        points.append([[x, y]])
        frames.append(int(frame))
    moved = Transform(transform.matrix[frames]).points(torch.tensor(points, dtype=torch.float64).view(-1, 1, 2))
    for row, point in zip(rows, moved[:, 0].tolist(), strict=True):
        for place, number in zip(places, point, strict=True):
            row[place] = repr(round(number, 6))
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(([head] if head else []) + rows)
    results.write_text(path.name, text.getvalue())
    return path.name


def read_table(path: Path) -> list[list[str]]:
    """The rows of a CSV file that are not empty."""
    check_readable(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}") from None
    if not rows:
        raise InputError(f"{path} is empty")
    return rows


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if torch.tensor(number).isfinite() else None
