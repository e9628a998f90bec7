"""Autocast on any device, also on those that have none, such as meta."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch


def is_autocast(device: torch.device) -> bool:
    """Whether autocast is on."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def no_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast off."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()
