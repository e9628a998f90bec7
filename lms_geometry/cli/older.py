"""The files that an older run wrote, so that a run that replaces it leaves none of them beside its own."""

import json
from pathlib import Path

from lms_geometry.cli.frames import aligned_stems
from lms_geometry.cli.images import WRITTEN_SUFFIXES

_FILES = {*(f"aligned{suffix}" for suffix in WRITTEN_SUFFIXES), "overlay.png", "checkerboard.png", "transform.tfm"}


def older_files(folder: Path) -> list[str]:
    """The images and transforms that a run wrote into a folder, as its registration.json says; none without it."""
    try:
        older = json.loads((folder / "registration.json").read_text())
        files = [name for name in older["files"] if name in _FILES]
        frames = [Path(row["frame"]).name for row in older["frames"]] if "aligned/" in older["files"] else []
    except (OSError, ValueError, LookupError, TypeError):  # it is missing, or of another program
        return []
    return files + [f"aligned/{stem}{suffix}" for stem in aligned_stems(frames) for suffix in WRITTEN_SUFFIXES]
