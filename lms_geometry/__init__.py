"""Image warps that are antialiased where they shrink, with gradients that see a whole pixel."""

from lms_geometry.config import LinearizedSampling
from lms_geometry.homography import LinearizedHomographyWarper, homography_warp_linearized
from lms_geometry.noise import draw_noise
from lms_geometry.registration import Adam, Annealed, GaussNewton, Registration, Stage, Transform, register
from lms_geometry.roi import LinearizedRoIAlign, roi_align_linearized
from lms_geometry.sampling import LinearizedGridSample, grid_sample_linearized, grid_sample_value_and_slope
from lms_geometry.warp import remap_linearized, warp_affine_linearized, warp_perspective_linearized

__all__ = [
    "Adam",
    "Annealed",
    "GaussNewton",
    "LinearizedGridSample",
    "LinearizedHomographyWarper",
    "LinearizedRoIAlign",
    "LinearizedSampling",
    "Registration",
    "Stage",
    "Transform",
    "draw_noise",
    "grid_sample_linearized",
    "grid_sample_value_and_slope",
    "homography_warp_linearized",
    "register",
    "remap_linearized",
    "roi_align_linearized",
    "warp_affine_linearized",
    "warp_perspective_linearized",
]
