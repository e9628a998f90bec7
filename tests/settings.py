"""Settings that several test files sample with, and what an older kornia is not compared with."""

import inspect
from dataclasses import replace

import pytest
import torch
from kornia.geometry.conversions import normal_transform_pixel

from lms_geometry import LinearizedSampling


def paper(**changes):
    """The paper's settings, with changes."""
    return replace(LinearizedSampling.paper(), **changes)


TORCH = tuple(map(int, torch.__version__.split(".")[:2]))
KORNIA_TAKES_FLAG = "align_corners" in inspect.signature(normal_transform_pixel).parameters
# Kornia before 0.9 computes points of float64 images in float32.
KORNIA_ROUNDING = 1e-9 if KORNIA_TAKES_FLAG else 2e-5


def needs_torch(*version, because):
    """Skip a test under an older torch. The page on installation lists these reasons."""
    return pytest.mark.skipif(version > TORCH, reason=f"torch before {version[0]}.{version[1]} {because}")


def skip_where_old_kornia_differs(align_corners, *others):
    """Kornia before 0.9 puts -1 and 1 at texel centres whatever the flag.

    ``others`` says whether it differs in other ways: it fills images of three channels only, and a homography of pixels
    is not made a normalised one, or is sampled bilinearly whatever the mode.
    """
    if not KORNIA_TAKES_FLAG and (not align_corners or any(others)):
        pytest.skip("kornia before 0.9 has another convention here")
