"""The frames of a stack: those of a file, or the image files of a folder."""

from collections import Counter
from pathlib import Path

from lms_geometry.cli.images import Frames, open_frames, read_picture
from lms_geometry.cli.inputs import InputError, list_images
from lms_geometry.cli.picture import Picture


class FolderFrames:
    """Image files of one size, type and number of channels, as frames in the order of their names."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Picture:
        return read_picture(self.paths[index])


def scan_folder(folder: Path) -> tuple[FolderFrames, list[str], list[str]]:
    """The frames of a folder, what cannot be one of them and why, and the names of what is no image.

    Each file is read once, so that a damaged one is known before anything is aligned.
    """
    paths, skipped = list_images(folder)
    frames: list[Path] = []
    faults: list[str] = []
    first: Picture | None = None
    for path in paths:
        try:
            picture = read_picture(path)
            if first is not None and _kind(picture) != _kind(first):
                raise InputError(f"{path} is {_kind(picture)}, and {frames[0]} is {_kind(first)}")
        except InputError as error:
            faults.append(str(error))
            continue
        first = first or picture
        frames.append(path)
    if not frames:
        raise InputError(f"{folder} holds no frame that can be read: {faults[0]}")
    return FolderFrames(frames), faults, skipped


def read_frames(path: Path) -> tuple[Frames, list[str], list[str]]:
    """The frames of a folder or a file, as :func:`scan_folder` gives them."""
    if path.is_dir():
        return scan_folder(path)
    return open_frames(path), [], []


def aligned_stems(names: list[str]) -> list[str]:
    """How the aligned frames of a folder are called, but for the ending, where their files have these names."""
    stems = [Path(name).stem for name in names]
    taken = Counter([*stems, *names])
    return [stem if taken[stem] == 1 else name for stem, name in zip(stems, names, strict=True)]


def _kind(picture: Picture) -> str:
    channels, height, width = picture.pixels.shape
    return f"{width} x {height}, {channels} channels, {picture.pixels.dtype}"
