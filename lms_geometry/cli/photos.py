"""Files that Pillow reads: photos, and pictures and animations of the web."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from einops import rearrange

from lms_geometry.cli.inputs import InputError
from lms_geometry.cli.picture import Array, Layout, Picture, upright

if TYPE_CHECKING:
    from PIL import Image

# The largest image that is read, in pixels.
MOST_PIXELS = 64_000_000
# Formats that Pillow opens but does not decode by itself.
_NOT_DECODED = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# Formats whose further images are previews or layers of the first.
_ONE_PICTURE = {"JPEG", "MPO", "PSD"}
_ORIENTATION = 0x0112
# Ways to store pixels that are converted to no other colours, so that the file's profile still holds.
_PROFILED = {"L", "LA", "RGB", "RGBA", "I;16"}


@cache
def formats() -> tuple[str, ...]:
    """The names of the formats."""
    from PIL import Image

    Image.init()
    return tuple(name for name in Image.ID if name not in _NOT_DECODED)


@cache
def photo_suffixes() -> frozenset[str]:
    """How the names of such files end."""
    from PIL import Image

    return frozenset(suffix for suffix, name in Image.registered_extensions().items() if name in formats())


def check_pixels(path: Path, height: int, width: int) -> None:
    """Raise unless an image is small enough to be read."""
    if width * height > MOST_PIXELS:
        raise InputError(f"{path} is too large: {width} x {height} is more than {MOST_PIXELS:,} pixels")


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Pillow's warnings, of large files and of odd ones, say nothing that a row of the result does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class PhotoFrames:
    """The frames of such a file: one, unless it is an animation.

    Args:
        path: the file.
        labels: whether its numbers are names, not brightness: those of a palette stay as they are.
    """

    def __init__(self, path: Path, labels: bool) -> None:
        from PIL import Image

        self._path, self._labels = path, labels
        with _no_warnings(), Image.open(path, formats=formats()) as image:
            check_pixels(path, image.height, image.width)
            self._count = 1 if image.format in _ONE_PICTURE else getattr(image, "n_frames", 1)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Picture:
        from PIL import Image

        with _no_warnings(), Image.open(self._path, formats=formats()) as image:
            return self._frame(image, index)

    def transparent(self) -> bool:
        """Whether any frame is transparent anywhere."""
        from PIL import Image

        with _no_warnings(), Image.open(self._path, formats=formats()) as image:
            return any(self._frame(image, index).opaque is not None for index in range(self._count))

    def _frame(self, image: "Image.Image", index: int) -> Picture:
        """A frame of the open file, which it can read in their order without beginning again."""
        image.seek(index)
        check_pixels(self._path, image.height, image.width)
        deep = _deep_colours(image)
        image.load()
        profile = image.info.get("icc_profile") if image.mode in _PROFILED else None
        pixels = _read_deep_png(self._path, image) if deep else self._read(image)
        orientation = image.getexif().get(_ORIENTATION, 1)
        is_tiff = image.format == "TIFF"
        palette = image.getpalette() if self._labels and image.mode == "P" else None
        pixels, opaque = split_alpha(pixels) if len(pixels) in (2, 4) else (pixels, None)
        samples = len(pixels) > 1
        layout = Layout(
            "tiff" if is_tiff else "photo",
            "I" if self._count > 1 else "",
            "S" if samples else "",
            (len(pixels),) if samples else (),
            icc_profile=profile,
            palette=palette,
        )
        return Picture(upright(pixels, orientation), None if opaque is None else upright(opaque, orientation), layout)

    def _read(self, image: "Image.Image") -> Array:
        """The channels of an image, the last of two or four for how opaque it is."""
        mode = image.mode
        if self._labels and mode == "P":
            return np.asarray(image)[None]
        if mode.startswith("I;16") or (mode == "I" and image.format in ("PNG", "PPM")):
            return np.asarray(image).astype(np.uint16)[None]
        if mode in ("I", "F"):
            return np.asarray(image)[None]
        grey = mode in ("1", "L", "LA", "La")
        transparent = image.has_transparency_data
        image = image.convert(("LA" if grey else "RGBA") if transparent else ("L" if grey else "RGB"))
        pixels = np.atleast_3d(np.asarray(image))
        if mode == "P" and self._count == 1 and (pixels[..., :3] == pixels[..., :1]).all():
            pixels = pixels[..., 2:]  # grey, and how opaque it is
        return rearrange(pixels, "h w c -> c h w")


def split_alpha(pixels: Array) -> tuple[Array, Array | None]:
    """The channels but the last, and the last as how opaque they are: ``None`` if they are wholly."""
    most = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else 1
    opaque = (pixels[-1:] / np.float32(most)).clip(0, 1).astype(np.float32)
    return pixels[:-1], None if (opaque == 1).all() else opaque


def _deep_colours(image: "Image.Image") -> bool:
    """Whether the file has colours of more than 8 bits, which Pillow cuts to 8."""
    if image.format == "JPEG2000":
        return len(image.getbands()) > 1 and _bits_of_jpeg2000(image) > 8
    arguments = [tile[3] for tile in getattr(image, "tile", [])]
    raw = [part for given in arguments for part in (given if isinstance(given, tuple) else (given,))]
    if image.format == "PPM":
        return image.mode == "RGB" and any(isinstance(part, int) and part > 255 for part in raw)
    return len(image.getbands()) > 1 and any(isinstance(part, str) and ";16" in part for part in raw)


def _bits_of_jpeg2000(image: "Image.Image") -> int:
    """The bits of a channel that the file's header names."""
    file: Any = image.fp  # type: ignore[attr-defined]
    place = file.tell()
    file.seek(0)
    header = file.read(4096)
    file.seek(place)
    for mark, offset in ((b"ihdr", 14), (b"\xff\x51", 40)):
        found = header.find(mark)
        if found >= 0 and found + offset < len(header):
            return (header[found + offset] & 0x7F) + 1
    return 8


def _read_deep_png(path: Path, image: "Image.Image") -> Array:
    """The channels of a PNG with colours of 16 bits."""
    if image.format != "PNG" or image.mode not in ("RGB", "RGBA"):
        raise InputError(f"{path} has colours of more than 8 bits, which are read from PNG and TIFF only: save it so")
    from kornia_rs import io

    pixels = io.decode_image_png_u16(path.read_bytes(), (image.height, image.width), image.mode.lower())
    return rearrange(np.asarray(pixels), "h w c -> c h w")
