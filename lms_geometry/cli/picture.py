"""An image as its file holds it: its own channels, its own type of numbers, and what of it is to be seen."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from einops import rearrange
from numpy.typing import NDArray
from torch import Tensor

from lms_geometry.cli.inputs import InputError

Array = NDArray[Any]
Kind = Literal["photo", "tiff", "ome", "imagej"]

# The shares of the pixels of a picture that is not 8 bits which are shown as black and as white.
_BLACK, _WHITE = 0.002, 0.998


@dataclass(frozen=True)
class Layout:
    """What a file holds beside the pixels of a frame, so that another can be written like it.

    Args:
        kind: whether it is a photo, a TIFF, or a TIFF with the metadata of OME or ImageJ.
        frame_axis: the letter of the axis along which frames follow each other, or nothing.
        channel_axes: the letters of the axes of a frame beside height and width, in the order in which its channels
            follow each other. ``S`` is for samples of a pixel, such as red, green, blue.
        channel_shape: their lengths.
        metadata: what tifffile writes into the file.
        icc_profile: the colours' profile.
        palette: the colours of a picture of labels.
    """

    kind: Kind = "photo"
    frame_axis: str = ""
    channel_axes: str = ""
    channel_shape: tuple[int, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)
    icc_profile: bytes | None = None
    palette: list[int] | None = None


@dataclass(frozen=True)
class Picture:
    """One image, or one frame of a stack.

    Args:
        pixels: ``(C, H, W)``, in the file's type and range: grey has one channel.
        opaque: how opaque each pixel is, from 0 to 1, ``(1, H, W)`` in float32. ``None``: wholly.
        layout: the rest of the file.
    """

    pixels: Array
    opaque: Array | None = None
    layout: Layout = Layout()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.pixels.shape[-2], self.pixels.shape[-1]

    @property
    def valid(self) -> Array | None:
        """How much each pixel counts, from 0 to 1, ``(1, H, W)``; ``None`` if all are opaque and finite."""
        if self.pixels.dtype.kind != "f" or np.isfinite(self.pixels).all():
            return self.opaque
        finite = np.asarray(np.isfinite(self.pixels).all(axis=0), np.float32)[None]
        return finite if self.opaque is None else finite * self.opaque

    def comparable(self) -> tuple[Tensor, Tensor | None]:
        """The image ``(1, C, H, W)`` of numbers about 1, 0 kept as 0, and its mask ``(1, 1, H, W)``, as for register.

        Raises:
            InputError: if there is nothing in it to be compared.
        """
        valid = self.valid
        shown = self.pixels if valid is None else self.pixels[:, valid[0] > 0]
        if shown.size == 0:
            raise InputError("is wholly transparent, or holds no finite number")
        low, high = float(shown.min()), float(shown.max())
        if low == high:
            raise InputError(f"is blank: all its pixels are {low:g}, so that nothing says where they belong")
        most = 255.0 if self.pixels.dtype == np.uint8 else max(abs(low), abs(high))
        scaled: Array = self.pixels.astype(self.working)
        pixels = (scaled / most).astype(np.float32, copy=False)
        if valid is None:
            return torch.from_numpy(pixels)[None], None
        pixels = np.where(valid > 0, pixels, np.float32(0))
        return torch.from_numpy(pixels)[None], torch.from_numpy(valid)[None]

    def displayed(self) -> Tensor:
        """The image ``(1, 3, H, W)`` from 0 to 1, black where it is transparent; all but 8 bits is stretched."""
        valid = self.valid
        channels = self.pixels.astype(self.working)
        channels = channels if len(channels) == 3 else channels.mean(0, keepdims=True)
        channels = np.nan_to_num(channels, posinf=0.0, neginf=0.0)
        low, high = 0.0, 255.0
        if self.pixels.dtype != np.uint8:
            shown = channels if valid is None else channels[:, valid[0] > 0]
            low, high = np.quantile(shown, (_BLACK, _WHITE)).tolist() if shown.size else (0.0, 1.0)
        pixels = ((channels - low) / (high - low if high > low else 1.0)).clip(0, 1)
        pixels = pixels if valid is None else pixels * valid
        return torch.from_numpy(np.broadcast_to(pixels, (3, *self.size)).astype(np.float32))[None]

    @property
    def working(self) -> type[np.float32] | type[np.float64]:
        """A type of floats in which the pixels keep their digits."""
        return np.float32 if self.pixels.dtype.itemsize <= 2 or self.pixels.dtype == np.float32 else np.float64


def from_display(image: Tensor) -> Picture:
    """A picture of 8 bits from an image ``(1, 3, H, W)``; values outside 0 to 1 are cut off."""
    return Picture(rearrange((image.clamp(0, 1) * 255).round().to(torch.uint8), "1 c h w -> c h w").numpy())


def in_range(pixels: Array, dtype: np.dtype[Any]) -> Array:
    """Numbers as ``dtype`` holds them: rounded and cut off if they are to be whole."""
    if dtype.kind == "f":
        return pixels.astype(dtype)
    limits = np.iinfo(dtype)
    # Of a type with 64 bits, the largest number is no float64.
    most = np.nextafter(float(limits.max), 0.0) if float(limits.max) > limits.max else limits.max
    return np.rint(pixels).clip(limits.min, most).astype(dtype)


def upright(pixels: Array, orientation: int) -> Array:
    """Pixels ``(..., H, W)`` turned as the tag of EXIF and TIFF says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(-2, -1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[..., ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[..., ::-1, :]
    return np.ascontiguousarray(pixels)
