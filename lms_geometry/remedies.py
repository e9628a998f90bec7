"""The ways out of frequent mistakes, in words that an error ends with.

Each function returns text that follows the error's "got ...", or an empty string where no remedy is known.
"""

from collections.abc import Sequence
from typing import Any

import torch

from lms_geometry.config import LinearizedSampling

# The lengths, as shapes, of a last axis that is taken for channels.
_CHANNELS = ((1,), (3,), (4,))


def describe(value: Any) -> str:  # noqa: ANN401
    """The type of what came, in words for the types that are often passed in place of tensors."""
    if _is_pil(value):
        return "a PIL image"
    return f"a numpy array of {value.dtype}" if _is_numpy(value) else type(value).__name__


def as_tensor(name: str, value: Any, is_image: bool) -> str:  # noqa: ANN401
    """How to make a tensor of an image of PIL or an array of numpy."""
    if _is_pil(value):
        name = f"numpy.array({name})"
        axes, dtype = 2 if len(value.getbands()) == 1 else 3, "uint8"
    elif _is_numpy(value):
        axes, dtype = value.ndim if value.ndim == 2 or value.shape[-1:] in _CHANNELS else 0, str(value.dtype)
    else:
        return ""
    layout = {2: "[None, None]", 3: ".permute(2, 0, 1)[None]"}.get(axes, "") if is_image else ""
    floating = "" if dtype.startswith("float") else ".float()"
    return f": pass torch.from_numpy({name}){layout}{floating}{_to_unit_range(dtype) if is_image else ''}"


def as_floating(name: str, dtype: torch.dtype) -> str:
    """How to make a floating tensor of one of another type.

    Example:
        >>> as_floating("image", torch.uint8)
        ': divide by 255, as in image.float() / 255'
        >>> as_floating("source_mask", torch.uint8)
        ': make it 0 and 1, as in (source_mask > 0).float()'
        >>> as_floating("source_mask", torch.bool)
        ': convert it, as in source_mask.float()'
    """
    if name.endswith("mask") and not (dtype is torch.bool or dtype.is_complex):
        return f": make it 0 and 1, as in ({name} > 0).float()"
    divided = _to_unit_range(str(dtype).removeprefix("torch."))
    if divided:
        return f": divide by {divided[3:]}, as in {name}.float(){divided}"
    return "" if dtype.is_complex else f": convert it, as in {name}.float()"


def reshaped(name: str, got: tuple[int, ...], wanted: Sequence[str | int]) -> str:
    """How to give a tensor the shape that is wanted, in which names stand for any length."""
    is_image = [str(length).lower() for length in wanted[1:]] == ["c", "h", "w"]
    if is_image and len(got) == 3 and got[-1:] in _CHANNELS and got[:1] not in _CHANNELS:
        return f": move the channels to the front, as in {name}.permute(2, 0, 1)[None]"
    if is_image and len(got) == 2:
        return f": add axes for the batch and the channel, as in {name}[None, None]"
    rest = zip(got, wanted[1:], strict=False)
    if len(got) == len(wanted) - 1 and all(isinstance(want, str) or length == want for length, want in rest):
        return f": add an axis for the batch, as in {name}[None]"
    if tuple(wanted[1:]) == (2, 3) and got[-2:] == (3, 3):
        return f": pass {name}[..., :2, :] if its last row is 0, 0, 1; warp_perspective_linearized takes any"
    return ""


def as_sampling(value: object) -> str:
    """What came in place of settings, and which settings were meant."""
    if isinstance(value, str):
        paper = "LinearizedSampling.paper()"
        return f"{value!r}: pass {paper if value.lower() == 'paper' else f'None for the default or {paper}'}"
    if value is LinearizedSampling or getattr(value, "__self__", None) is LinearizedSampling:
        name = getattr(value, "__qualname__", "")
        return f"{name} itself: call it, as in {name}()"
    return type(value).__name__


def _to_unit_range(dtype: str) -> str:
    """The division that brings intensities of 8 or 16 bits to 0 to 1."""
    return {"uint8": " / 255", "uint16": " / 65535"}.get(dtype, "")


def _is_pil(value: object) -> bool:
    return type(value).__module__.partition(".")[0] == "PIL"


def _is_numpy(value: object) -> bool:
    return type(value).__module__ == "numpy" and hasattr(value, "ndim")
