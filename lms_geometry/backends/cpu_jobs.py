"""The jobs that Python hands to the C library: the same fields in the same order as in its sources."""

import ctypes
from ctypes import c_float, c_int32, c_int64, c_void_p


class SampleJob(ctypes.Structure):
    """``struct sample_job`` of ``_cpu.c``."""

    _fields_ = (
        *((name, c_void_p) for name in ("input", "grid", "jacobian", "noise", "value", "slope")),
        *((f"{name}_stride", c_int64) for name in ("input", "grid", "jacobian", "noise", "pixel")),
        *((name, c_int64) for name in ("batch", "channels", "height", "width", "out_height", "out_width", "samples")),
        *((name, c_float) for name in ("sigma", "jitter", "ridge")),
        *((name, c_int32) for name in ("to_whiten", "intercept", "mask", "padding", "align_corners", "channels_last")),
        ("threads", c_int32),
        ("taken", c_int64),
        ("out_of_memory", c_int32),
    )


class GradientJob(ctypes.Structure):
    """``struct gradient_job`` of ``_cpu.c``."""

    _fields_ = (
        *((name, c_void_p) for name in ("value_gradient", "slope", "grid_gradient")),
        *((name, c_int64) for name in ("batch", "channels", "pixels", "taken")),
    )


class AreaJob(ctypes.Structure):
    """``struct area_job`` of ``_cpu_area.h``."""

    _fields_ = (
        *((name, c_void_p) for name in ("input", "grid", "jacobian", "value", "value_gradient")),
        *((name, c_void_p) for name in ("image_gradient", "grid_gradient", "jacobian_gradient", "plain")),
        *((name, c_int64) for name in ("input_stride", "grid_stride", "jacobian_stride", "pixel_stride")),
        *((name, c_int64) for name in ("batch", "channels", "height", "width", "out_height", "out_width")),
        *((name, c_int64) for name in ("count", "rows", "together")),
        *((name, c_float) for name in ("side", "limit", "rounding")),
        *((name, c_int32) for name in ("padding", "align_corners")),
        ("taken", c_int64),
        *((name, c_int32) for name in ("any_area", "any_plain", "any_unusable", "out_of_memory")),
    )


# The structures by the names of the functions with which the library tells their sizes.
JOBS = {"sample_job_size": SampleJob, "gradient_job_size": GradientJob, "area_job_size": AreaJob}
