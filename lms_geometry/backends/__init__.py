"""One job: read the samples around every point and fit. Every backend gives the same numbers, but for rounding.

The choice is automatic: ``cpu`` for the CPU where it is available, and ``eager`` for other devices and for all that
``cpu`` cannot do. The environment variable ``LMS_GEOMETRY_BACKEND`` names one to try first. ``triton`` is used only
where it is named so, because it has not run on a GPU yet. A backend is a module with the functions of
:mod:`lms_geometry.backends.eager`.
"""

import os
from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import ModuleType

import torch
from torch import Tensor

from lms_geometry.config import Averaging, Reading

BACKENDS = ("eager", "cpu", "triton")
VARIABLE = "LMS_GEOMETRY_BACKEND"


def choose(image: Tensor, mode: str) -> ModuleType:
    """The backend that samples such an image.

    Raises:
        ValueError: if the environment variable names no backend.
        RuntimeError: if it names one that is not available here.
    """
    return _choose(image.device, lambda backend: backend.supports(image, mode))


def choose_for_area(image: Tensor, averaging: Averaging, reading: Reading) -> ModuleType:
    """The backend that averages such an image over areas, in a module of its own. Raises as :func:`choose`.

    The fused kernels have the slope from edges only.
    """
    backend = _choose(
        image.device, lambda backend: averaging.estimate == "edges" and backend.supports(image, reading.mode)
    )
    return _load(f"{backend.__name__.rpartition('.')[-1]}_area")


def choose_for_gradient(gradient: Tensor) -> ModuleType:
    """The backend that turns such a gradient of the value into that of the grid. Raises as :func:`choose`."""
    return _choose(gradient.device, lambda backend: backend.supports_gradient(gradient))


@cache
def unavailable_reason(name: str) -> str | None:
    """Why a backend cannot be used here, or ``None`` if it can."""
    try:
        return _load(name).unavailable_reason()
    except ImportError as error:
        return f"it cannot be imported: {error}"


def _choose(device: torch.device, supported: Callable[[ModuleType], bool]) -> ModuleType:
    forced = os.environ.get(VARIABLE)
    if forced:
        if forced not in BACKENDS:
            raise ValueError(f"{VARIABLE} must be one of {BACKENDS}, got {forced!r}")
        reason = unavailable_reason(forced)
        if reason is not None:
            raise RuntimeError(f"{VARIABLE} asks for the backend {forced!r}, but {reason}; unset it to do without")
    for name in (forced, "cpu" if device.type == "cpu" else "eager"):
        if name and unavailable_reason(name) is None and supported(_load(name)):
            return _load(name)
    return _load("eager")


@cache
def _load(name: str) -> ModuleType:
    return import_module(f"lms_geometry.backends.{name}")
