"""TIFF files, and stacks of frames in them, with the metadata of OME and ImageJ, by tifffile."""

import logging
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from weakref import finalize

import numpy as np
from einops import rearrange

from lms_geometry.cli.inputs import InputError
from lms_geometry.cli.photos import PhotoFrames, check_pixels, split_alpha
from lms_geometry.cli.picture import Array, Kind, Layout, Picture, in_range, upright

if TYPE_CHECKING:
    from tifffile import TiffFile, TiffPageSeries

TIFF_SUFFIXES = {".tif", ".tiff", ".btf", ".tf8", ".lsm"}
# The most numbers that a frame may have: that of the largest photo, with four channels.
_MOST_NUMBERS = 256_000_000
_ORIENTATION = 274
# What of OME's metadata holds for warped frames as well.
_OME_PIXELS = ("PhysicalSizeX", "PhysicalSizeXUnit", "PhysicalSizeY", "PhysicalSizeYUnit", "TimeIncrement")


class TiffFrames:
    """The frames of a TIFF, read one at a time.

    Frames follow each other along the axis of time if the file names one, else along the first that holds no channels
    or samples. All other axes but height and width are channels of a frame.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        from tifffile import PHOTOMETRIC, TiffFile

        self._path = path
        with _quiet(), ExitStack() as opened:
            tiff = self._tiff = opened.enter_context(TiffFile(path))
            series = self._series = _only_series(path, tiff)
            page = series.keyframe
            plain = page.photometric in (PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB) and page.bitspersample >= 8
            if not plain or "X" not in series.axes or "Y" not in series.axes:
                raise NotPlain
            if series.dtype is None or series.dtype.kind not in "uif":
                raise InputError(
                    f"{path} has numbers of type {series.dtype}: those to be warped are integers or floats"
                )
            self._axes, self._shape = series.axes, series.shape
            lengths = dict(zip(series.axes, series.shape, strict=True))
            others = [axis for axis in series.axes if axis not in "CSYX"]
            self._frame_axis = "T" if "T" in others else (others or [""])[0]
            self._count = lengths.get(self._frame_axis, 1)
            self._channels = "".join(axis for axis in series.axes if axis not in ("Y", "X", self._frame_axis))
            self._alpha = "S" in self._channels and any(int(sample) in (1, 2) for sample in page.extrasamples)
            check_pixels(path, lengths["Y"], lengths["X"])
            if math.prod(series.shape) // self._count > _MOST_NUMBERS:
                raise InputError(f"{path} is too large: a frame is more than {_MOST_NUMBERS:,} numbers")
            tag = page.tags.get(_ORIENTATION)
            self._orientation = tag.value if tag is not None else 1
            profile = page.tags.get("InterColorProfile")
            kind: Kind = "ome" if tiff.is_ome else "imagej" if tiff.is_imagej else "tiff"
            self._layout = Layout(
                kind,
                self._frame_axis if self._count > 1 else "",
                self._channels,
                tuple(lengths[axis] for axis in self._channels),
                _ome_metadata(tiff) if tiff.is_ome else {},
                profile.value if profile is not None else None,
            )
            finalize(self, opened.pop_all().close)  # the file stays open as long as its frames are wanted

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Picture:
        with _quiet():
            frame = self._read(index)
        pixels = upright(frame.astype(frame.dtype.newbyteorder("="), copy=False), self._orientation)
        if not self._alpha:
            return Picture(pixels, None, self._layout)
        samples = self._layout.channel_shape[-1] - 1
        if pixels.shape[0] != samples + 1:
            raise InputError(f"{self._path} is partly transparent and has more channels than colours: save it without")
        pixels, opaque = split_alpha(pixels)
        axes, shape = ("S", (samples,)) if samples > 1 else ("", ())
        return Picture(pixels, opaque, replace(self._layout, channel_axes=axes, channel_shape=shape))

    def transparent(self) -> bool:
        """Whether any frame is transparent anywhere."""
        return self._alpha and any(self[index].opaque is not None for index in range(self._count))

    def _read(self, index: int) -> Array:
        """A frame ``(C, H, W)``: of a file that is not packed, or whose pages are frames, nothing else is read."""
        axes, shape, series = self._axes, self._shape, self._series
        lead = next((k for k in range(len(shape)) if math.prod(shape[:k]) == len(series.pages)), len(shape))
        if series.dataoffset is not None and series.keyframe.is_memmappable:
            dtype = np.dtype(series.keyframe.dtype).newbyteorder(self._tiff.byteorder)
            stack: Array = np.memmap(self._path, dtype, "r", series.dataoffset, shape)
            frame = stack if not self._frame_axis else stack.take(index, axes.index(self._frame_axis))
        elif self._frame_axis and self._frame_axis in axes[:lead]:
            numbers = np.arange(len(series.pages)).reshape(shape[:lead]).take(index, axes.index(self._frame_axis))
            pages = [_decode(self._path, series, int(number)) for number in numbers.ravel()]
            frame = np.stack(pages).reshape(*numbers.shape, *shape[lead:])
        else:
            pages = [_decode(self._path, series, number) for number in range(len(series.pages))]
            stack = np.stack(pages).reshape(shape)
            frame = stack if not self._frame_axis else stack.take(index, axes.index(self._frame_axis))
        names = axes.replace(self._frame_axis, "")
        order = [names.index(axis) for axis in (*self._channels, "Y", "X")]
        return frame.transpose(order).reshape(-1, shape[axes.index("Y")], shape[axes.index("X")])


class NotPlain(Exception):  # noqa: N818 - no error: another reader knows these colours
    """The file has colours that tifffile gives as stored, such as those of a palette; Pillow converts them."""


def open_tiff(path: Path, labels: bool) -> TiffFrames | PhotoFrames:
    """The frames of a TIFF file."""
    from tifffile import TiffFileError

    try:
        return TiffFrames(path)
    except (NotPlain, TiffFileError):  # the latter may be a photo under another name
        return PhotoFrames(path, labels)


def write_tiff(file: IO[bytes], pictures: Iterable[Picture], count: int) -> None:
    """Write frames one at a time, in the layout of the first: all of one size and type, with alpha or without."""
    from tifffile import TiffWriter

    pictures = iter(pictures)
    first = next(pictures)
    layout, dtype = first.layout, first.pixels.dtype
    alpha, samples = first.opaque is not None, layout.channel_axes.endswith("S")
    channels = layout.channel_shape[:-1] if samples else layout.channel_shape
    depth = (layout.channel_shape[-1] if samples else 1) + alpha
    inner = (*first.size, depth) if samples or alpha else first.size
    shape = ((count,) if count > 1 else ()) + channels + inner
    axes = (
        (layout.frame_axis or "I") * (count > 1) + layout.channel_axes.removesuffix("S") + "YX" + "S" * (len(inner) > 2)
    )
    pages = _pages(chain([first], pictures), depth if len(inner) > 2 else 0)
    kind = layout.kind
    if kind == "imagej" and (dtype not in (np.uint8, np.uint16, np.float32) or alpha):
        kind = "tiff"
    with TiffWriter(
        file, bigtiff=math.prod(shape) * dtype.itemsize > 2**32 - 2**25, ome=kind == "ome", imagej=kind == "imagej"
    ) as writer:
        writer.write(
            pages,
            shape=shape,
            dtype=dtype,
            photometric="rgb" if depth - alpha == 3 and samples else "minisblack",
            planarconfig="contig" if len(inner) > 2 else None,
            extrasamples=["unassalpha"] if alpha else None,
            metadata={"axes": axes, **layout.metadata},
            iccprofile=layout.icc_profile,
        )


def _pages(pictures: Iterable[Picture], depth: int) -> Iterator[Array]:
    """The pages of frames: a channel each, or, with a depth, all samples of a pixel side by side."""
    for picture in pictures:
        pixels, opaque = picture.pixels, picture.opaque
        if opaque is not None:
            most = np.iinfo(pixels.dtype).max if pixels.dtype.kind in "ui" else 1
            pixels = np.concatenate((pixels, in_range(opaque.astype(np.float64) * most, pixels.dtype)))
        if not depth:
            yield from pixels
        else:
            yield from rearrange(pixels, "(c s) h w -> c h w s", s=depth)


def _only_series(path: Path, tiff: "TiffFile") -> "TiffPageSeries":
    """The images of a file, which may have smaller copies of them, but nothing else."""
    len(tiff.pages)  # counts them, and so ends a list of pages that runs in a circle, which the series would follow
    series = [found for found in tiff.series if not found.keyframe.is_reduced]
    if len(series) != 1:
        raise InputError(f"{path} holds {len(series)} sets of images of unlike shapes: save each in a file of its own")
    return series[0]


def _decode(path: Path, series: "TiffPageSeries", number: int) -> Array:
    """A page of a file; by Pillow, if it is packed in a way that tifffile leaves to another package."""
    from PIL import Image

    page = series.pages[number]
    if page is None:
        raise InputError(f"{path} lacks a page")
    try:
        return page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        with Image.open(path, formats=["TIFF"]) as image:
            image.seek(page.index)
            if series.dtype is None or (series.dtype.itemsize > 1 and len(image.getbands()) > 1):
                raise InputError(f"{path} needs imagecodecs to be unpacked: pip install imagecodecs") from None
            return np.asarray(image).astype(series.dtype)


def _ome_metadata(tiff: "TiffFile") -> dict[str, Any]:
    """The size of a pixel and the names of the channels."""
    from tifffile import xml2dict

    image = xml2dict(tiff.ome_metadata or "<OME/>").get("OME", {}).get("Image", {})
    pixels = (image[0] if isinstance(image, list) else image).get("Pixels", {})
    metadata = {name: pixels[name] for name in _OME_PIXELS if name in pixels}
    channels = pixels.get("Channel", [])
    names = [channel.get("Name") for channel in (channels if isinstance(channels, list) else [channels])]
    if names and all(isinstance(name, str) for name in names):
        metadata["Channel"] = {"Name": names}
    return metadata


@contextmanager
def _quiet() -> Iterator[None]:
    """What tifffile logs of a damaged file, which is reported by the error that it ends in."""
    logger = logging.getLogger("tifffile")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)
