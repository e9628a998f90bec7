"""GTSRB and MNIST as three splits of small images. The README says how to get the files.

A track of GTSRB is about 30 frames of one sign as a car drives up to it, all but equal. If they were split at random,
almost every frame held out would have a twin in training, and early stopping would choose the network that knows its
tracks by heart; so whole tracks are held out.
"""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.datasets import encoded_images, find_digits, read_sign
from benchmarks.runs import fingerprint
from lms_geometry.registration.motion import rotation_scale_matrix

SIZE = 50
HELD_OUT = 0.1

_DIGIT_SCALE = 1.5
_TURN, _LOG2_SCALE, _SHIFT = 0.5, 0.25, 0.15  # standard deviations of how digits lie; radians, octaves, half widths


class Images(NamedTuple):
    """``pixels`` are uint8, ``(N, C, SIZE, SIZE)``; ``labels`` are ``(N,)``."""

    pixels: Tensor
    labels: Tensor


class Data(NamedTuple):
    """The splits of a data set."""

    train: Images
    validation: Images
    test: Images


def load(name: str, folder: Path) -> Data:
    """Read a data set.

    Args:
        name: ``"gtsrb"``: from the official archives, unpacked, or from two ``.npz`` files of encoded images; whole
            images, scaled to ``SIZE``. ``"mnist"``: from ``mnist.npz``; digits turned, scaled and moved by normals
            drawn once, on a canvas of ``SIZE``, for on upright and centred digits a transformer has nothing to do.
        folder: where the files are.

    Raises:
        SystemExit: if they are not there.
    """
    return {"gtsrb": _load_signs, "mnist": _load_digits}[name](folder)


def identity(name: str, data: Data) -> str:
    """The name of a data set and what tells this copy and split of it from others, for names of files."""
    return f"{name}-{fingerprint(*data.train, *data.validation)}"


def hold_out(tracks: Tensor, classes: Tensor, seed: int = 0) -> Tensor:
    """Which images to keep from training: a share of ``HELD_OUT`` of each class's tracks, whole.

    Args:
        tracks: the track of each image, ``(N,)``, numbered within its class.
        classes: the class of each image, ``(N,)``.
        seed: of the choice.

    Returns:
        ``(N,)`` of bool.
    """
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(tracks), dtype=torch.bool)
    for wanted in classes.unique():
        of_class = classes == wanted
        numbers = tracks[of_class].unique()
        order = torch.randperm(len(numbers), generator=generator)
        held_out[of_class] = torch.isin(tracks[of_class], numbers[order[: max(1, round(HELD_OUT * len(numbers)))]])
    return held_out


def _load_signs(folder: Path) -> Data:
    if list(folder.glob("*train*.npz")):
        train, tracks = _read_archive(next(folder.glob("*train*.npz")))
        test, _ = _read_archive(next(folder.glob("*test*.npz")))
    else:
        train, tracks, test = _read_release(folder)
    held_out = hold_out(tracks, train.labels)
    return Data(_where(train, ~held_out), _where(train, held_out), test)


def _read_archive(path: Path) -> tuple[Images, Tensor]:
    with np.load(path) as archive:
        files, labels = encoded_images(archive), archive["labels"].tolist()
        tracks = torch.from_numpy(archive["track"].astype(np.int64)) if "track" in archive else torch.empty(0)
    return _decode(files, labels), tracks


def _read_release(folder: Path) -> tuple[Images, Tensor, Images]:
    """The directory tree of GTSRB_Final_Training_Images, GTSRB_Final_Test_Images and GTSRB_Final_Test_GT."""
    train = sorted(path for path in folder.rglob("*_*.ppm") if path.parent.name.isdigit())
    answers = next(folder.rglob("GT-final_test.csv"), None)
    if not train or answers is None:
        raise SystemExit(f"{folder} holds neither GTSRB's training images and GT-final_test.csv nor archives of them")
    labels = [int(path.parent.name) for path in train]
    tracks = torch.tensor([int(path.name.split("_")[0]) for path in train])
    with answers.open(newline="") as table:
        rows = list(csv.DictReader(table, delimiter=";"))
    places = {path.name: path for path in folder.rglob("*.ppm") if "_" not in path.name}
    test = _decode([places[row["Filename"]] for row in rows], [int(row["ClassId"]) for row in rows])
    return _decode(train, labels), tracks, test


def _decode(files: Sequence[Path | io.BytesIO], labels: list[int]) -> Images:
    pixels = torch.empty(len(files), 3, SIZE, SIZE, dtype=torch.uint8)
    for i, file in enumerate(files):
        pixels[i] = read_sign(file, SIZE)
    return Images(pixels, torch.tensor(labels))


def _load_digits(folder: Path) -> Data:
    with np.load(find_digits(folder)) as archive:
        train, test = (
            Images(
                _strew(torch.from_numpy(archive[f"x_{split}"]), seed), torch.from_numpy(archive[f"y_{split}"]).long()
            )
            for seed, split in enumerate(("train", "test"))
        )
    # MNIST does not say who wrote what.
    held_out = hold_out(torch.arange(len(train.labels)), torch.zeros(len(train.labels)))
    return Data(_where(train, ~held_out), _where(train, held_out), test)


def _strew(digits: Tensor, seed: int) -> Tensor:
    """Digits ``(N, 28, 28)`` laid on a canvas, ``(N, 1, SIZE, SIZE)``."""
    angle, log2_scale, *shift = torch.randn(4, len(digits), generator=torch.Generator().manual_seed(seed))
    scale = _DIGIT_SCALE * (_LOG2_SCALE * log2_scale).exp2()
    x, y = (scale * _SHIFT * s for s in shift)
    theta = rotation_scale_matrix(_TURN * angle, scale, scale, x, y)
    canvas = torch.empty(len(digits), 1, SIZE, SIZE, dtype=torch.uint8)
    for some in torch.arange(len(digits)).split(1000):
        grid = F.affine_grid(theta[some], [len(some), 1, SIZE, SIZE], align_corners=False)
        canvas[some] = F.grid_sample(digits[some, None].float(), grid, align_corners=False).round().byte()
    return canvas


def _where(images: Images, chosen: Tensor) -> Images:
    return Images(images.pixels[chosen], images.labels[chosen])
