"""Scenes: a photo with one traffic sign somewhere in it. A seed and a number always give the same scene."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.datasets import encoded_images
from benchmarks.photos import photo_files

SIDE = 256
# The shortest and the longest side of a sign in pixels, where it is hardest and where training starts.
SMALL, LARGE = (16.0, 40.0), (160.0, 220.0)

# The side that signs are kept at: that of a sign in most images of the set.
_SIGN = 40


class Material(NamedTuple):
    """What scenes are made of."""

    photos: list[Tensor]
    """Photos ``(3, H, W)`` of any size of at least ``SIDE``, uint8."""
    signs: Tensor
    """Signs, cut out along their boxes, ``(N, 3, 40, 40)``, uint8."""
    labels: Tensor
    """The class of each sign, ``(N,)``."""


class Scenes(NamedTuple):
    """A batch of scenes."""

    images: Tensor
    """``(B, 3, SIDE, SIDE)``, from 0 to 1."""
    labels: Tensor
    """The class of each sign, ``(B,)``."""
    centres: Tensor
    """The centre of each sign, x before y, normalised as in ``F.grid_sample`` without ``align_corners``, ``(B, 2)``."""
    sides: Tensor
    """The side of each sign in pixels, ``(B,)``."""


def load(photos: Path, signs: Path, split: str) -> Material:
    """Read photos and signs.

    Args:
        photos: a folder of photos. They are resized so that their shorter side is ``SIDE``.
        signs: a folder with GTSRB as an archive, as benchmarks/README.md describes it.
        split: ``"train"`` or ``"test"``, of the signs.

    Raises:
        SystemExit: if there are no photos or no archive.
    """
    files, archives = photo_files(photos), sorted(signs.glob(f"*{split}*.npz"))
    if not files or not archives:
        raise SystemExit(f"{photos} holds {len(files)} photos, {signs} {len(archives)} archives *{split}*.npz")
    with np.load(archives[0]) as archive:
        images, labels = encoded_images(archive), archive["labels"]
        boxes = archive["roi_xyxy"] / np.tile(archive["size_wh"], 2)  # as shares of the image's sides
    cut = torch.empty(len(images), 3, _SIGN, _SIGN, dtype=torch.uint8)
    for sign, file, box in zip(cut, images, boxes, strict=True):
        with Image.open(file) as image:
            corners = tuple(box * np.tile(image.size, 2))
            small = image.convert("RGB").resize((_SIGN, _SIGN), Image.Resampling.BILINEAR, corners)
            sign[:] = _tensor(small)
    return Material([_read(file) for file in files], cut, torch.from_numpy(labels.astype(np.int64)))


def pixels(*materials: Material) -> Tensor:
    """All pixels, for a fingerprint."""
    return torch.cat([part.flatten() for material in materials for part in (*material.photos, material.signs)])


def _read(file: Path) -> Tensor:
    with Image.open(file) as photo:
        larger = SIDE / min(photo.size)
        size = (max(round(photo.width * larger), SIDE), max(round(photo.height * larger), SIDE))
        return _tensor(photo.convert("RGB").resize(size, Image.Resampling.BICUBIC))


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@cache
def _noise(seed: int) -> Tensor:
    """A sheet of noise, out of which every scene's is cut somewhere: drawing it anew would take most of the time."""
    return torch.randn(3, 2 * SIDE, 2 * SIDE, generator=torch.Generator().manual_seed(seed))


def sides_at(difficulty: float) -> tuple[float, float]:
    """The shortest and the longest side of a sign: ``LARGE`` at difficulty 0, ``SMALL`` at 1."""
    shortest, longest = (large * (small / large) ** difficulty for large, small in zip(LARGE, SMALL, strict=True))
    return shortest, longest


def compose(
    material: Material, seed: int, numbers: Sequence[int], grain: float, difficulties: tuple[float, float]
) -> Scenes:
    """Make scenes.

    Args:
        material: what they are made of.
        seed: with the number of a scene, decides all that is drawn for it; below 1024.
        numbers: the numbers of the scenes, below 2 ** 22.
        grain: the standard deviation of the noise of each pixel.
        difficulties: the least and the greatest, by which ``sides_at`` has the sides of signs.
    """
    images = torch.empty(len(numbers), 3, SIDE, SIDE)
    chosen, centres, sides = [], [], []
    for image, number in zip(images, numbers, strict=True):
        generator = torch.Generator().manual_seed(seed * 2**22 + number)  # which has a state of 32 bits of it
        draw = torch.rand(10, generator=generator, dtype=torch.float64).tolist()
        photo = material.photos[int(draw[0] * len(material.photos))]
        top, left = (int(share * (length - SIDE + 1)) for share, length in zip(draw[1:3], photo.shape[1:], strict=True))
        image[:] = photo[:, top : top + SIDE, left : left + SIDE]
        difficulty = difficulties[0] + draw[3] * (difficulties[1] - difficulties[0])
        shortest, longest = sides_at(difficulty)
        side = round(shortest * (longest / shortest) ** draw[4])
        y, x = (int(share * (SIDE - side + 1)) for share in draw[5:7])
        which = int(draw[7] * len(material.labels))
        sign = F.interpolate(material.signs[which, None].float(), (side, side), mode="bilinear", antialias=True)
        image[:, y : y + side, x : x + side] = sign[0]
        image /= 255
        if grain:
            down, right = (int(share * SIDE) for share in draw[8:])
            image += grain * _noise(seed)[:, down : down + SIDE, right : right + SIDE]
        chosen.append(which)
        centres.append([2 * (corner + side / 2) / SIDE - 1 for corner in (x, y)])
        sides.append(side)
    return Scenes(images.clamp_(0, 1), material.labels[chosen], torch.tensor(centres), torch.tensor(sides))
