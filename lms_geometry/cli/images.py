"""Image files of the command: reading, resizing, comparing and writing them."""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# The largest image that is read, in pixels.
_MOST_PIXELS = 64_000_000
# The number of squares along the longer side of a checkerboard.
_SQUARES = 8

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


class InputError(Exception):
    """A file or an option that the user gave cannot be used; the message says which, why, and the way out."""


def read_image(path: Path) -> Tensor:
    """An image file as ``(1, 4, H, W)`` from 0 to 1: red, green, blue, and 1 where it is opaque."""
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            if image.width * image.height > _MOST_PIXELS:
                raise InputError(
                    f"{path} is too large: {image.width} x {image.height} is more than {_MOST_PIXELS:,} pixels"
                )
            upright: Image.Image = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):  # 16 bits or floats, which convert() would clip to 8 bits
                most = 1 if upright.mode == "F" else 65535
                pixels = np.asarray(upright, np.float32)[..., None].repeat(4, -1) / most
                if not 0 <= pixels.min() <= pixels.max() <= 1:
                    raise InputError(f"{path} has values that are not from 0 to {most}: save it with 8 or 16 bits")
                pixels[..., 3] = 1
            else:
                pixels = np.asarray(upright.convert("RGBA"), np.float32) / 255
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is empty or not an image in a format Pillow reads") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    if not pixels[..., 3].any():
        raise InputError(f"{path} is wholly transparent")
    return rearrange(torch.from_numpy(pixels), "h w c -> 1 c h w")


def write_image(image: Tensor, path: Path) -> None:
    """Write an image ``(1, 3, H, W)``; values outside 0 to 1 are cut off."""
    from PIL import Image

    pixels = rearrange((image.clamp(0, 1) * 255).round().to(torch.uint8), "1 c h w -> h w c")
    Image.fromarray(pixels.numpy()).save(path)


def shrink(image: Tensor, size: int) -> tuple[Tensor, Tensor | None]:
    """The colours of a ``read_image`` at a longer side of at most ``size``, and its mask, if a part is transparent."""
    scale = min(1.0, size / max(image.shape[-2:]))
    small = [max(1, round(n * scale)) for n in image.shape[-2:]]
    colours, opaque = image.split((3, 1), 1)
    premultiplied = torch.cat((colours * opaque, opaque), 1)
    shrunk = F.interpolate(premultiplied, small, mode="bilinear", antialias=True, align_corners=False)
    colours, mask = shrunk.split((3, 1), 1)
    return colours / mask.clamp_min(1e-3), None if (opaque == 1).all() else mask.clamp(0, 1)


def checkerboard(aligned: Tensor, target: Tensor) -> Tensor:
    """Squares of one image among squares of the other: edges run on from square to square where they agree."""
    height, width = target.shape[-2:]
    side = max(1, max(height, width) // _SQUARES)
    odd = (torch.arange(height)[:, None] // side + torch.arange(width) // side) % 2 == 1
    return torch.where(odd, aligned, target)
