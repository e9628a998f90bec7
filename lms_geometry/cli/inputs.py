"""Files that the user names: which can be read, and which of a folder are images."""

import re
import stat
from pathlib import Path

# How many names a line of the command has at most.
_NAMED = 12


class InputError(Exception):
    """A file or an option that the user gave cannot be used; the message says which, why, and the way out."""


def check_readable(path: Path) -> None:
    """Raise unless the path leads to a file, which may be opened without waiting for anyone, as a pipe makes one."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} does not exist") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{path} cannot be read: it is {'a folder' if stat.S_ISDIR(mode) else 'not a regular file'}")


def list_images(folder: Path) -> tuple[list[Path], list[str]]:
    """The images of a folder, frame 2 before frame 10, and the names of what else is in it and is left out."""
    from lms_geometry.cli.images import suffixes

    known = suffixes()
    paths = sorted(folder.iterdir(), key=lambda path: _natural(path.name))
    taken = [
        path for path in paths if path.suffix.lower() in known and not path.name.startswith(".") and not path.is_dir()
    ]
    if not taken:
        raise InputError(f"{folder} holds no images ({', '.join(sorted(known))})")
    left_out = set(paths) - set(taken)
    return taken, [path.name for path in paths if path in left_out]


def some(names: list[str]) -> str:
    """The first of many names."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _natural(name: str) -> list[tuple[int, int | str]]:
    parts = re.split(r"([0-9]+)", name)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts if part]
