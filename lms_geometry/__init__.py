"""Image warps with the linearized multi-sampling gradient, as drop-ins for kornia and PyTorch."""

from lms_geometry.config import LinearizedSampling
from lms_geometry.modules import LinearizedGridSample, LinearizedHomographyWarper, LinearizedRoIAlign
from lms_geometry.noise import draw_noise
from lms_geometry.registration import Adam, Annealed, GaussNewton, Registration, Stage, register
from lms_geometry.roi import roi_align_linearized
from lms_geometry.sampling import grid_sample_linearized
from lms_geometry.warp import (
    homography_warp_linearized,
    remap_linearized,
    warp_affine_linearized,
    warp_perspective_linearized,
)

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
    "draw_noise",
    "grid_sample_linearized",
    "homography_warp_linearized",
    "register",
    "remap_linearized",
    "roi_align_linearized",
    "warp_affine_linearized",
    "warp_perspective_linearized",
]
