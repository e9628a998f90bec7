"""Settings that several test files sample with."""

from dataclasses import replace

from lms_geometry import LinearizedSampling


def paper(**changes):
    """The paper's settings, with changes."""
    return replace(LinearizedSampling.paper(), **changes)
