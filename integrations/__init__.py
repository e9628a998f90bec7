"""Linearized sampling inside existing code. Installed as ``lms_geometry.integrations``."""

from .intercept import Patch, linearize
from .replacement import Replacement, replace

__all__ = ["Patch", "Replacement", "linearize", "replace"]
