"""One job: read the samples around every point and fit. Every backend gives the same numbers.

The choice is automatic: ``cpu`` for the CPU and ``triton`` for other devices, where they are there, and ``eager`` else,
also for what those two cannot do. The environment variable ``LMS_GEOMETRY_BACKEND`` names one to use instead. A backend
is a module with the functions of :mod:`lms_geometry.backends.eager`.
"""

import os
from functools import cache
from importlib import import_module
from types import ModuleType

from torch import Tensor

BACKENDS = ("eager", "cpu", "triton")
VARIABLE = "LMS_GEOMETRY_BACKEND"


def choose(input: Tensor, mode: str) -> ModuleType:
    """The backend that samples such an image.

    Raises:
        ValueError: if the environment variable names no backend.
        RuntimeError: if it names one that is missing here.
    """
    forced = os.environ.get(VARIABLE)
    if forced:
        if forced not in BACKENDS:
            raise ValueError(f"{VARIABLE} must be one of {BACKENDS}, got {forced!r}")
        reason = missing(forced)
        if reason is not None:
            raise RuntimeError(f"{VARIABLE} asks for the backend {forced!r}, but {reason}; unset it to do without")
    name = forced or ("cpu" if input.device.type == "cpu" else "triton")
    if missing(name) is None and _load(name).supports(input, mode):
        return _load(name)
    return _load("eager")


@cache
def missing(name: str) -> str | None:
    """Why a backend cannot be used here, if it cannot."""
    try:
        return _load(name).missing()
    except ImportError as error:
        return f"it cannot be imported: {error}"


@cache
def _load(name: str) -> ModuleType:
    return import_module(f"lms_geometry.backends.{name}")
