"""Errors for bad arguments of ``register`` and its solvers: each names the argument, what came and what is wanted."""

import math
from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from lms_geometry.checks import (
    check_choice,
    check_same_batch,
    check_same_device,
    check_same_dtype,
    check_tensor,
)
from lms_geometry.registration.motion import Motion
from lms_geometry.registration.problem import FULLY_VALID
from lms_geometry.registration.similarity import Loss


def check_positive(name: str, value: object, most: float = math.inf) -> None:
    """Raise unless ``value`` is a finite number above 0 and at most ``most``."""
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float))
        or not math.isfinite(value)
        or not 0 < value <= most
    ):
        limit = "" if most == math.inf else f" and at most {most}"
        raise ValueError(f"{name} must be a finite number above 0{limit}, got {value!r}")


def check_count(name: str, value: object, most: float = math.inf) -> None:
    """Raise unless ``value`` is an int of at least 1 and at most ``most``."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        limit = "of at least 1" if most == math.inf else f"from 1 to {most}"
        raise ValueError(f"{name} must be an int {limit}, got {value!r}")


def check_images(source: Tensor, target: Tensor) -> None:
    """Raise unless the images can be compared."""
    check_tensor("source", source, ("B", "C", "H", "W"))
    check_tensor("target", target, ("B", "C", "h", "w"))
    if source.shape[1] != target.shape[1] and 1 not in (source.shape[1], target.shape[1]):
        raise ValueError(f"target must have source's {source.shape[1]} channels or either 1, got {target.shape[1]}")
    check_same_device("target", target, "source", source)
    check_same_dtype("target", target, "source", source)
    check_same_batch("target", target, "source", source)
    for name, image in (("source", source), ("target", target)):
        if image.numel() == 0:
            raise ValueError(f"{name} must not be empty, got {tuple(image.shape)}")


def check_choices(motion: Motion, loss: Loss) -> None:
    """Raise unless the way to compare the images is one of those there are."""
    check_choice("motion", motion, get_args(Motion))
    check_choice("loss", loss, get_args(Loss))


def check_starts(starts: object, known: Sequence[str], given: bool, adam: bool) -> None:
    """Raise unless ``starts`` is names of kinds of starts, and leaves any."""
    if starts is None:
        return
    names = ", ".join(f'"{name}"' for name in known)
    if isinstance(starts, str) or not isinstance(starts, Sequence) or not all(isinstance(s, str) for s in starts):
        raise TypeError(f"starts must be None or a tuple with any of {names}, got {starts!r}")
    unknown = [name for name in starts if name not in known]
    if unknown or not (starts or given):
        raise ValueError(f"starts must be a tuple with any of {names}, got {starts!r}")
    if adam:
        raise ValueError("starts are those of GaussNewton: Adam descends from init, or from the plain resize")


def check_max_size(max_size: object) -> None:
    """Raise unless ``max_size`` is a number of pixels to work at."""
    if max_size is not None and (isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < 8):
        raise ValueError(f"max_size must be None or an int of at least 8, in pixels, got {max_size!r}")


def check_init(init: Tensor, source: Tensor, batch: int) -> None:
    """Raise unless ``init`` is matrices, one or a batch of them, that can be inverted."""
    check_tensor("init", init, ("B", 3, 3))
    check_same_device("init", init, "source", source)
    _check_batch("init", init, batch)
    working = torch.promote_types(source.dtype, torch.float32)
    scale = init.detach().abs().amax((1, 2), keepdim=True)
    inverse, singular = torch.linalg.inv_ex((init.detach() / scale).to(working))
    if singular.any() or not (init.to(working).isfinite() & inverse.isfinite()).all():
        raise ValueError(f"init must be finite and invertible in {working}")


def check_mask(name: str, mask: Tensor, image: Tensor, batch: int) -> None:
    """Raise unless ``mask`` is weights of the image's pixels, and something counts in every image."""
    check_tensor(name, mask, ("B", 1, *image.shape[-2:]))
    check_same_device(name, mask, "source", image)
    _check_batch(name, mask, batch)
    if not ((mask >= 0) & (mask <= 1)).all():
        raise ValueError(f"{name} must lie between 0 and 1")
    least = FULLY_VALID if name == "source_mask" else 0
    if not (mask > least).flatten(1).any(1).all():
        raise ValueError(f"{name} must be above {least} somewhere in every image")


def _check_batch(name: str, value: Tensor, batch: int) -> None:
    if value.shape[0] not in (1, batch):
        raise ValueError(f"{name} must have batch size 1 or the images' {batch}, got {value.shape[0]}")
