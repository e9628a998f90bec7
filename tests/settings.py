"""Settings that several test files sample with, and what an older kornia is not compared with."""

import inspect
from dataclasses import replace

import pytest
from kornia.geometry.conversions import normal_transform_pixel

from lms_geometry import LinearizedSampling


def paper(**changes):
    """The paper's settings, with changes."""
    return replace(LinearizedSampling.paper(), **changes)


KORNIA_TAKES_FLAG = "align_corners" in inspect.signature(normal_transform_pixel).parameters


def skip_where_old_kornia_differs(align_corners, padding_mode="zeros"):
    """Kornia before 0.9 puts -1 and 1 at texel centres whatever the flag, and fills images of three channels only."""
    if not KORNIA_TAKES_FLAG and (not align_corners or padding_mode == "fill"):
        pytest.skip("kornia before 0.9 has another convention here")
