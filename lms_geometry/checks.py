"""Errors for arguments that would otherwise give silently wrong output.

Each names the argument, the value or shape that came, the one that is wanted, and the way out if one is known.
"""

import operator
from collections.abc import Sequence
from contextlib import suppress
from typing import SupportsIndex

import torch
from torch import Tensor

from lms_geometry.autocast import is_autocast
from lms_geometry.config import LinearizedSampling
from lms_geometry.remedies import as_floating, as_sampling, as_tensor, describe, reshaped

# The names that torch gives to ways of reading an image, in the order of the numbers it has for them.
MODES = ("bilinear", "nearest", "bicubic")
PADDING_MODES = ("zeros", "border", "reflection")

# The types that the samplers compute in or convert from.
_FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_DEFAULT = LinearizedSampling()


def check_dense(name: str, value: object, is_image: bool = False) -> Tensor:
    """Return ``value``, a tensor that is neither sparse nor nested, or raise."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {describe(value)}{as_tensor(name, value, is_image)}")
    if value.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got a nested tensor: pad its parts to one size")
    if value.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, got layout {value.layout}: call to_dense()")
    return value


def check_tensor(name: str, value: object, shape: Sequence[str | int]) -> None:
    """Raise unless ``value`` is a floating tensor of ``shape``, in which names stand for any length."""
    value = check_dense(name, value, is_image=len(shape) == 4 and not isinstance(shape[-1], int))
    if value.dtype not in _FLOATING:
        raise TypeError(
            f"{name} must have a floating dtype of 16, 32 or 64 bits, got {value.dtype}{as_floating(name, value.dtype)}"
        )
    fits = value.ndim == len(shape) and all(
        isinstance(want, str) or got == want for got, want in zip(value.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(length) for length in shape)
        way_out = reshaped(name, tuple(value.shape), shape)
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(value.shape)}{way_out}")


def check_image(name: str, image: Tensor) -> None:
    """Raise unless ``image`` is a batch of images that have texels. It may have no image and no channel."""
    check_tensor(name, image, ("B", "C", "H", "W"))
    if min(image.shape[2:]) == 0:
        raise ValueError(f"{name} must have at least one texel, got {tuple(image.shape)}")


def check_same_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two tensors are on one device."""
    if value.device != other.device:
        raise ValueError(f"{name} must be on {other_name}'s device {other.device}, got {value.device}")


def check_same_dtype(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two tensors have one dtype, or run under autocast, which mixes them."""
    if value.dtype != other.dtype and not is_autocast(other.device):
        raise TypeError(f"{name} must have {other_name}'s dtype {other.dtype}, got {value.dtype}")


def check_same_batch(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless two batches have one size or either has size 1."""
    got, want = value.shape[0], other.shape[0]
    if got != want and got != 1 and want != 1:
        raise ValueError(f"{name} must have batch size 1 or {other_name}'s {want}, got {got}")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}, got {value!r}")


def check_flag(name: str, value: object, optional: bool = False) -> bool:
    """Return a flag, which is ``False`` for ``None`` where it is ``optional``, or raise."""
    if value is None and optional:
        return False
    if not isinstance(value, bool):
        wanted = "True, False or None" if optional else "True or False"
        raise TypeError(f"{name} must be {wanted}, got {value!r}, a {type(value).__name__}")
    return value


def check_integer(name: str, value: object) -> int:
    """Return ``value`` as an int, or raise. One of NumPy's will do, and one that a compiler or a tracer leaves open."""
    if not isinstance(value, bool):
        if isinstance(value, (int, torch.SymInt)):
            return value  # type: ignore[return-value]
        if isinstance(value, Tensor) and torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
            return value  # type: ignore[return-value]
        if isinstance(value, SupportsIndex):
            with suppress(TypeError):  # a tensor that is no single integer says so only now
                return operator.index(value)
    raise TypeError(f"{name} must be an int, got {value!r}")


def check_size(name: str, value: object) -> tuple[int, int]:
    """Return ``value`` as (height, width), or raise."""
    message = f"{name} must be (height, width), both ints of at least 0, got {value!r}"
    if not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(message)
    try:
        height, width = (check_integer(name, length) for length in value)
    except TypeError as error:
        raise ValueError(message) from error
    if min(height, width) < 0:
        raise ValueError(message)
    return height, width


def check_sampling(sampling: object) -> LinearizedSampling:
    """Return the settings of the method, which are the default ones for ``None``, or raise."""
    if sampling is None:
        return _DEFAULT
    if not isinstance(sampling, LinearizedSampling):
        raise TypeError(f"sampling must be a LinearizedSampling or None, got {as_sampling(sampling)}")
    return sampling


def check_noise(
    noise: Tensor | None,
    generator: object,
    sampling: LinearizedSampling,
    batch: int,
    size: tuple[int, int],
    image_name: str,
    image: Tensor,
) -> None:
    """Raise unless the noise, if any, fits an output of ``size`` and lies on the image's device.

    It may have a batch axis of ``batch`` in front. Fixed points take neither noise nor a generator.
    """
    for name, value in (("noise", noise), ("generator", generator)):
        if value is not None and not sampling.is_drawn:
            raise ValueError(
                f"{name} must be None for a sampling with fixed points, which draws nothing, got a "
                f"{type(value).__name__}: leave it out, or pass a sampling that draws, such as "
                "LinearizedSampling.paper()"
            )
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    if noise is not None:
        wanted = (sampling.num_samples - 1, *size, 2)
        check_tensor("noise", noise, (batch, *wanted) if getattr(noise, "ndim", 4) == 5 else wanted)
        check_same_device("noise", noise, image_name, image)
