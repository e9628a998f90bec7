"""Image files of the command: reading and writing them as they are, and comparing them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property
from itertools import chain
from pathlib import Path
from typing import IO, Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from lms_geometry.cli.inputs import InputError, check_readable
from lms_geometry.cli.picture import Picture, in_range
from lms_geometry.cli.results import Results

# The number of squares along the longer side of a checkerboard.
_SQUARES = 8


class Frames(Protocol):
    """The frames of a file or a folder, each of which is read when it is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Picture: ...


class _FileFrames(Frames, Protocol):
    """The frames of a file, which may have an alpha channel."""

    def transparent(self) -> bool:
        """Whether any frame is transparent anywhere."""
        ...


class _Guarded:
    """Frames of a file, all with an alpha channel if any has; faults are errors that name the file."""

    def __init__(self, path: Path, labels: bool) -> None:
        from lms_geometry.cli.photos import PhotoFrames
        from lms_geometry.cli.tiff import TIFF_SUFFIXES, open_tiff

        check_readable(path)
        self._path = path
        self._frames: _FileFrames
        with _faults(path):
            is_tiff = path.suffix.lower() in TIFF_SUFFIXES
            self._frames = open_tiff(path, labels) if is_tiff else PhotoFrames(path, labels)

    def __len__(self) -> int:
        return len(self._frames)

    def __getitem__(self, index: int) -> Picture:
        with _faults(self._path):
            picture = self._frames[index]
            if picture.opaque is None and self._transparent:
                return replace(picture, opaque=np.ones((1, *picture.size), np.float32))
            return picture

    @cached_property
    def _transparent(self) -> bool:
        """Whether the frames have an alpha channel, for which they are read once, one after the other."""
        return len(self) > 1 and self._frames.transparent()


def open_frames(path: Path, labels: bool = False) -> Frames:
    """The frames of an image file: one, or those of a stack.

    Raises:
        InputError: if the file is none that can be read; so does reading a frame.
    """
    return _Guarded(path, labels)


def read_picture(path: Path, labels: bool = False) -> Picture:
    """An image file that holds one image."""
    frames = open_frames(path, labels)
    if len(frames) != 1:
        raise InputError(f"{path} is a stack of {len(frames)} frames: lms-geometry stack aligns such")
    return frames[0]


@contextmanager
def _faults(path: Path) -> Iterator[None]:
    """Whatever a decoder raises for a damaged file as an error that names the file."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except InputError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path} is empty or not an image in a format Pillow reads") from None
    except Exception as error:  # decoders raise all kinds
        raise InputError(f"{path} cannot be read: {type(error).__name__}: {error}") from None


@cache
def suffixes() -> frozenset[str]:
    """How the names of image files end."""
    from lms_geometry.cli.photos import photo_suffixes
    from lms_geometry.cli.tiff import TIFF_SUFFIXES

    return photo_suffixes() | TIFF_SUFFIXES


# All that `suffix_for` returns.
WRITTEN_SUFFIXES = (".png", ".tif", ".ome.tif")


def suffix_for(picture: Picture, count: int = 1) -> str:
    """How the name ends of the file that holds such pictures as they are: PNG if it can, or TIFF."""
    if picture.layout.kind == "ome":
        return ".ome.tif"
    deep = picture.pixels.dtype == np.uint16 and len(picture.pixels) == 1 and picture.opaque is None
    fits = (picture.pixels.dtype == np.uint8 and len(picture.pixels) in (1, 3)) or deep
    return ".png" if fits and count == 1 and picture.layout.kind == "photo" else ".tif"


def write_pictures(results: Results, stem: str, pictures: Iterable[Picture], count: int = 1) -> str:
    """Write one picture, or a stack of ``count`` of one size, of the layout of the first; returns the file's name."""
    from lms_geometry.cli.tiff import write_tiff

    pictures = iter(pictures)
    first = next(pictures)
    name = stem + suffix_for(first, count)
    with results.open(name) as file:
        if name.endswith(".png"):
            _write_png(file, first)
        else:
            write_tiff(file, chain([first], pictures), count)
    return name


def _write_png(file: IO[bytes], picture: Picture) -> None:
    from PIL import Image

    pixels = picture.pixels
    if picture.opaque is not None:
        pixels = np.concatenate((pixels, in_range(picture.opaque * np.float32(255), pixels.dtype)))
    image = Image.fromarray(pixels[0] if len(pixels) == 1 else rearrange(pixels, "c h w -> h w c"))
    if picture.layout.palette is not None:
        image.putpalette(picture.layout.palette)
    image.save(file, format="PNG", icc_profile=picture.layout.icc_profile)


def checkerboard(aligned: Tensor, target: Tensor) -> Tensor:
    """Squares of one image among squares of the other: edges run on from square to square where they agree."""
    height, width = target.shape[-2:]
    side = max(1, max(height, width) // _SQUARES)
    odd = (torch.arange(height)[:, None] // side + torch.arange(width) // side) % 2 == 1
    return torch.where(odd, aligned, target)
