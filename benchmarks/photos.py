"""The photos of the experiments, read from any folder of image files."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}


def photo_files(folder: Path) -> list[Path]:
    """The image files of a folder and of those in it, in the order of their names."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in _SUFFIXES)


def load_photos(folder: Path, count: int, size: int) -> Tensor:
    """The centres of a folder's first photos, in the order of their names: ``(count, 3, size, size)``, from 0 to 1.

    Photos with a side below ``size`` pixels are skipped.

    Raises:
        SystemExit: if the folder does not hold ``count`` photos of at least ``size`` pixels a side.
    """
    photos: list[Tensor] = []
    for path in photo_files(folder):
        if len(photos) == count:
            break
        with Image.open(path) as photo:
            if min(photo.size) >= size:
                left, top = (photo.width - size) // 2, (photo.height - size) // 2
                crop = photo.convert("RGB").crop((left, top, left + size, top + size))
                photos.append(torch.from_numpy(np.array(crop)).permute(2, 0, 1).float() / 255)
    if len(photos) < count:
        raise SystemExit(f"{folder} holds {len(photos)} photos of at least {size} pixels a side, {count} are needed")
    return torch.stack(photos)
