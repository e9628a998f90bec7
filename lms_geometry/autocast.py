"""Autocast on any device, also on those that have none, such as meta."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from lms_geometry._torch_private import has_autocast


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is on."""
    return has_autocast(device.type) and torch.is_autocast_enabled(device.type)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off."""
    return torch.autocast(device.type, enabled=False) if has_autocast(device.type) else nullcontext()
