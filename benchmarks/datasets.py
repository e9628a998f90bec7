"""The images of the experiments, read from folders that a user fills; README.md says where each set is to be had."""

import io
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from benchmarks.photos import load_photos

# The side of every set's images in pixels, and the set's name in titles.
SIZES = {"photos": 128, "gtsrb": 50, "mnist": 28}
NAMES = {"photos": "photos", "gtsrb": "traffic signs (GTSRB)", "mnist": "digits (MNIST)"}


def load_images(name: str, folder: Path, count: int) -> Tensor:
    """The first ``count`` images of a set, ``(count, C, size, size)`` from 0 to 1.

    Args:
        name: the set. ``"photos"`` are the centres of any photos, ``"gtsrb"`` whole images of traffic signs, resized,
            ``"mnist"`` digits of the test set.
        folder: a folder with image files or, for MNIST, with ``mnist.npz``.
        count: the number of images.

    Raises:
        SystemExit: if the folder holds fewer images.
    """
    load = {"photos": load_photos, "gtsrb": _load_signs, "mnist": _load_digits}[name]
    return load(folder, count, SIZES[name])


def _load_signs(folder: Path, count: int, size: int) -> Tensor:
    """Signs from the files of the official release, or from an archive that holds encoded images and their offsets."""
    archives = sorted(folder.glob("*test*.npz"))
    files: list[Path | io.BytesIO] = [*sorted(folder.rglob("*.ppm"))[:count]]
    if archives:
        with np.load(archives[0]) as archive:
            files = [*encoded_images(archive)[:count]]
    if len(files) < count:
        raise SystemExit(f"{folder} holds {len(files)} traffic signs, {count} are needed")
    return torch.stack([read_sign(file, size) for file in files]).float() / 255


def _load_digits(folder: Path, count: int, size: int) -> Tensor:
    path = find_digits(folder)
    with np.load(path) as archive:
        digits = torch.from_numpy(archive["x_test"][:count])
    if digits.shape != (count, size, size):
        raise SystemExit(f"{path} holds digits of shape {tuple(digits.shape)}, {(count, size, size)} is needed")
    return digits[:, None].float() / 255


def encoded_images(archive: Mapping[str, NDArray[Any]]) -> list[io.BytesIO]:
    """The image files of an archive, which holds them end to end in ``blob``."""
    blob, ends = archive["blob"].tobytes(), archive["offsets"].tolist()
    return [io.BytesIO(blob[a:b]) for a, b in pairwise(ends)]


def read_sign(file: Path | io.BytesIO, size: int) -> Tensor:
    """A whole image, resized to ``(3, size, size)``, uint8."""
    with Image.open(file) as image:
        pixels = np.array(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def find_digits(folder: Path) -> Path:
    """The path of MNIST's archive in a folder.

    Raises:
        SystemExit: if it is missing.
    """
    path = folder / "mnist.npz"
    if not path.exists():
        raise SystemExit(f"{path} is missing")
    return path
