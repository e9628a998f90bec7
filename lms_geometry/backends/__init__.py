"""One job, read the samples and fit. Every backend gives the same numbers."""

from lms_geometry.backends.eager import fit

__all__ = ["fit"]
