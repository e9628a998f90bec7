"""The folder of results: nothing is written over an input, over another result, or outside the folder."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from lms_geometry.cli.inputs import InputError


class Results:
    """The folder that ``--out`` names, and what may be written into it.

    Args:
        folder: the folder, which is made when the first file is written.
        inputs: the files that are read and that no result replaces.
        overwrite: whether a result may replace one of an earlier run; none replaces another of this run.
    """

    def __init__(self, folder: Path, inputs: Iterable[Path], overwrite: bool) -> None:
        self.folder = folder
        self._inputs = {_identity(path) for path in inputs} - {None}
        self._overwrite = overwrite
        self._written: set[tuple[int, int] | None] = set()

    def check(self, *names: str) -> None:
        """Raise unless files of these names, which may lie in folders of the folder, can be written."""
        for name in names:
            self._check(self.folder / name)

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """A file, which is there, and replaces an older one, once the block has ended without an error."""
        path = self.folder / name
        part = path.with_name(f".{path.name}.part")
        self._check(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._check(path)  # now that its folder is there
            part.unlink(missing_ok=True)
            with part.open("xb") as file:  # exclusive: it follows no link
                yield file
            part.replace(path)
            self._written |= {_identity(path)} - {None}
        except OSError as error:
            raise InputError(f"{path} cannot be written: {error.strerror or error}") from None
        finally:
            part.unlink(missing_ok=True)

    def write_json(self, name: str, value: object) -> None:
        """Write a file of JSON, in which a number that is not finite is ``null``."""
        finite = json.loads(json.dumps(value), parse_constant=lambda _: None)
        self.write_text(name, json.dumps(finite, indent=2) + "\n")

    def write_text(self, name: str, text: str) -> None:
        """Write a file of text."""
        with self.open(name) as file:
            file.write(text.encode("utf-8", "surrogateescape"))

    def remove(self, *names: str) -> None:
        """Remove files of an earlier run; those that may not be replaced stay, as do the results of this run."""
        for name in names:
            with suppress(InputError):
                self._check(self.folder / name)
                (self.folder / name).unlink(missing_ok=True)

    def _check(self, path: Path) -> None:
        way_out = "choose another --out"
        for parent in (path.parent, *path.parent.parents):
            if parent.exists() and not parent.is_dir():
                fault = "an input" if _identity(parent) in self._inputs else "a file, not a folder"
                raise InputError(f"{parent} is {fault}: {way_out}")
        if not path.parent.resolve().is_relative_to(self.folder.resolve()):
            raise InputError(f"{path.parent} leads out of {self.folder}: {way_out}")
        if path.is_dir():
            raise InputError(f"{path} is a folder: {way_out}")
        if _identity(path) in self._inputs:
            raise InputError(f"{path} is an input: {way_out}")
        if _identity(path) in self._written:
            raise InputError(f"{path} is a result of this run already: rename one of its inputs, or {way_out} for it")
        if (path.exists() or path.is_symlink()) and not self._overwrite:
            raise InputError(f"{path} exists already: {way_out}, or replace it by --overwrite")


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a file from others, however it is called; ``None`` if there is none."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino
