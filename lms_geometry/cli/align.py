"""Aligning pictures as the command's options ask, and what is told of it."""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lms_geometry.cli.console import say
from lms_geometry.cli.images import read_picture
from lms_geometry.cli.inputs import InputError
from lms_geometry.cli.picture import Picture
from lms_geometry.registration import GaussNewton, Registration, register
from lms_geometry.registration.motion import Motion
from lms_geometry.registration.problem import FULLY_VALID
from lms_geometry.registration.similarity import Loss
from lms_geometry.registration.transforms import CONVENTION

LOOK = "look at the overlay before you use it"
# The share of the target that the source must cover, below which a good answer is worth a look.
_SMALL_OVERLAP = 0.5


@dataclass(frozen=True)
class Settings:
    """How to align: the options of the command that all pairs share, as ``lms-geometry register --help`` says."""

    motion: Motion = "affine"
    loss: Loss = "huber"
    max_size: int | None = None
    steps: int = GaussNewton().steps
    black: bool = False
    min_score: float | None = None
    device: str = "cpu"

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Settings":
        """The settings among the options, or an error that names the option."""
        settings = cls(**{name: getattr(options, name) for name in cls.__dataclass_fields__})
        if settings.max_size is not None and settings.max_size < 8:
            raise InputError(f"--max-size must be at least 8, got {settings.max_size}")
        if settings.min_score is not None and not 0 <= settings.min_score <= 1:
            raise InputError(f"--min-score must be from 0 to 1, got {settings.min_score}")
        check_device(settings.device)
        return settings

    def as_dict(self) -> dict[str, Any]:
        """The settings by their names."""
        return asdict(self)


@dataclass(frozen=True)
class Side:
    """One side of a pair: a picture, and what of it is compared.

    Args:
        name: what it is called in messages.
        picture: the picture.
        image: its numbers, ``(1, C, H, W)``.
        mask: which of them count, ``(1, 1, H, W)``; ``None``: all.
    """

    name: str
    picture: Picture
    image: Tensor
    mask: Tensor | None

    @classmethod
    def of(cls, name: str, picture: Picture, mask: Tensor | None = None) -> "Side":
        """The side of a picture, what is transparent and what ``mask`` hides left out."""
        try:
            image, valid = picture.comparable()
        except InputError as error:
            raise InputError(f"{name} {error}") from None
        if mask is not None:
            valid = mask if valid is None else mask * valid
        if valid is not None and not (valid > FULLY_VALID).any():
            raise InputError(f"{name} is nowhere opaque" if mask is None else f"{name} is wholly hidden by its mask")
        return cls(name, picture, image, valid)


def read_side(path: Path, mask_path: Path | None = None) -> Side:
    """The side of an image file, and of a file that is 0 where the image is not to be compared."""
    picture = read_picture(path)
    return Side.of(str(path), picture, None if mask_path is None else read_mask(mask_path, picture.size))


def read_mask(path: Path, size: tuple[int, int]) -> Tensor:
    """A mask ``(1, 1, H, W)``: 1 where any channel of an image file is not 0."""
    mask = read_picture(path)
    if mask.size != size:
        raise InputError(f"{path} must have its image's size, {_shape(size)}, got {_shape(mask.size)}")
    return torch.from_numpy((mask.pixels != 0).any(0)).float()[None, None]


def align(sources: Sequence[Side], targets: Sequence[Side], settings: Settings, progress: bool = False) -> Registration:
    """Align pairs of one size: as many sources as targets, or one of either."""
    source, target = (torch.cat([side.image for side in sides]) for sides in (sources, targets))
    if source.shape[1] != target.shape[1] and 1 not in (source.shape[1], target.shape[1]):
        source, target = (image.mean(1, keepdim=True) for image in (source, target))
    return register(
        source.to(settings.device),
        target.to(settings.device),
        settings.motion,
        GaussNewton(steps=settings.steps),
        loss=settings.loss,
        fit_gain_bias=True,
        overlap_only=not settings.black,
        source_mask=_masks(sources, settings.device),
        target_mask=_masks(targets, settings.device),
        max_size=settings.max_size,
        progress=progress,
    )


def outcome(found: Registration, index: int, settings: Settings) -> dict[str, Any]:
    """What was found for a pair of the batch, as it is written to files."""
    score = found.score[index].item()
    good = bool(found.good[index]) if settings.min_score is None else score >= settings.min_score
    return {
        "matrix": found.matrix[index].tolist(),
        "matrix_convention": CONVENTION,
        "source_size": list(found.source.shape[-2:]),
        "target_size": list(found.target.shape[-2:]),
        "score": score,
        "good": good,
        "overlap": found.overlap[index].item(),
        "start": found.start[index],
        "not_tried": list(found.not_tried),
        "converged": bool(found.converged[index]),
        **settings.as_dict(),
        "loss": {"name": settings.loss, "first": found.loss[0, index].item(), "last": found.loss[-1, index].item()},
    }


def summary(result: dict[str, Any]) -> str:
    """A line for a pair: the verdict, what it rests on, and whether to look at the overlay."""
    if "error" in result:
        return f"FAILED: {result['error']}"
    certain = result["good"] and result["converged"] and result["overlap"] >= _SMALL_OVERLAP
    parts = [
        "good" if result["good"] else "FAILED",
        f"score {result['score']:.3f}",
        f"overlap {100 * result['overlap']:.0f} %",
        f"start {result['start']}",
        "converged" if result["converged"] else "not converged",
    ]
    return f"{result['source']}: " + ", ".join(parts) + ("" if certain else f"; {LOOK}")


def say_not_tried(results: Iterable[dict[str, Any]]) -> None:
    """Print once what kinds of starts were not tried, and why."""
    for reason in dict.fromkeys(reason for result in results for reason in result.get("not_tried", ())):
        say(f"not tried: {reason}")


def failure(source: Path | str, target: Path | str, error: Exception) -> dict[str, Any]:
    """What is told of a pair that could not be aligned."""
    return {"source": str(source), "target": str(target), "good": False, "error": str(error)}


# What may go wrong with one pair, and leaves the others as they are.
FAULTS = (InputError, OSError, ValueError, RuntimeError, MemoryError)


def check_device(device: str) -> None:
    """Raise unless tensors can be made on a device."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"--device {device} cannot be used: {reason}") from None


def _masks(sides: Sequence[Side], device: str) -> Tensor | None:
    """The masks of a batch, ones where a picture has none; ``None`` if none has one."""
    if all(side.mask is None for side in sides):
        return None
    masks = [torch.ones_like(side.image[:, :1]) if side.mask is None else side.mask for side in sides]
    return torch.cat(masks).to(device)


def _shape(size: tuple[int, int]) -> str:
    """A size in the order in which image programs say it: width by height."""
    return f"{size[1]} x {size[0]}"
