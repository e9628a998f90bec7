"""What ``register`` is compared with: OpenCV, kornia, scikit-image, and bilinear sampling of a scale space.

Each takes sources ``(N, C, H, W)`` and targets ``(N, C, h, w)``, and gives the normalised target-to-source
matrices ``(N, 3, 3)`` that it found. Where a peer wants images of one size, both ways of making them so were tried, and
the better one is here.
"""

import warnings
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from types import ModuleType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from kornia.geometry import ImageRegistrator
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.problems import normalised
from lms_geometry import Adam, GaussNewton, register
from lms_geometry._kornia import denormalize_homography, homography_warp, normalize_homography

Method = Callable[[Tensor, Tensor], Tensor]

# Source pixels, from a quarter of the photo down to none.
_WIDTHS = (32.0, 22.6, 16.0, 11.3, 8.0, 5.7, 4.0, 2.8, 2.0, 1.4, 0.0)


def ecc(gaussian: int, levels: int = 0) -> Method:
    """OpenCV's ``findTransformECC``, affine, on grey images, the source shrunk to the target; or its pyramid."""

    def align(sources: Tensor, targets: Tensor) -> Tensor:
        cv2 = _opencv()
        shrunk = F.interpolate(sources, targets.shape[-2:], mode="area")
        found = []
        for source, target in zip(_grey(shrunk), _grey(targets), strict=True):
            matrix = np.eye(2, 3, dtype=np.float32)
            with suppress(cv2.error):  # it did not converge: the start is its answer
                matrix = find_ecc(cv2, source, target, matrix, cv2.MOTION_AFFINE, 200, gaussian, levels)
            found.append(torch.from_numpy(np.vstack((matrix, [0, 0, 1])).astype(np.float32)))
        size = targets.shape[-2], targets.shape[-1]
        return normalize_homography(torch.stack(found), size, size, align_corners=False)

    return align


def find_ecc(
    cv2: Any,  # noqa: ANN401
    source: NDArray[Any],
    target: NDArray[Any],
    start: NDArray[np.float32],
    motion: int,
    steps: int,
    gaussian: int,
    levels: int,
) -> NDArray[np.float32]:
    """The matrix from target to source, in pixels, of OpenCV's ``findTransformECC``, or of its pyramid of levels.

    Raises:
        cv2.error: if it does not converge.
    """
    criteria = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, steps, 1e-6)
    if not levels:
        return cv2.findTransformECC(target, source, start, motion, criteria, None, gaussian)[1]
    settings = cv2.ECCParameters()
    settings.criteria, settings.gaussFiltSize, settings.nlevels = criteria, gaussian, levels
    settings.motionType = motion
    return cv2.findTransformECCMultiScale(target, source, start, settings)[1]


def kornia_registrator(sources: Tensor, targets: Tensor) -> Tensor:
    """The ``ImageRegistrator`` of kornia: homography, 3 levels of 100 steps at 0.01, the target enlarged."""
    enlarged = F.interpolate(targets, sources.shape[-2:], mode="bilinear", align_corners=False)
    found = []
    for source, target in zip(sources.split(1), enlarged.split(1), strict=True):
        registrator = ImageRegistrator("homography", num_iterations=100, pyramid_levels=3, lr=1e-2)
        registrator.register(source, target)
        found.append(registrator.model().detach())
    return torch.cat(found)


def phase_correlation(sources: Tensor, targets: Tensor) -> Tensor:
    """scikit-image's ``phase_cross_correlation``, which knows translations only."""
    from skimage.registration import phase_cross_correlation

    shrunk = F.interpolate(sources, targets.shape[-2:], mode="area")
    height, width = targets.shape[-2:]
    found = torch.eye(3).repeat(len(sources), 1, 1)
    for matrix, source, target in zip(found, _grey(shrunk), _grey(targets), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shift, _, _ = phase_cross_correlation(source, target, upsample_factor=20)
        matrix[0, 2], matrix[1, 2] = float(shift[1]) * 2 / width, float(shift[0]) * 2 / height
    return found


def scale_space_adam(sources: Tensor, targets: Tensor) -> Tensor:
    """Bilinear samples of an image blurred less and less, 200 steps of Adam."""
    levels, half = _scale_space(sources)

    def warp(_: Tensor, homography: Tensor, dsize: tuple[int, int], step: int) -> Tensor:
        return homography_warp(levels[min(step // 15, len(levels) - 1)], half @ homography, dsize)

    return normalised(register(sources, targets, "anisotropic", Adam(sampler=warp)).matrix, sources, targets)


def scale_space_gauss_newton(sources: Tensor, targets: Tensor) -> Tensor:
    """Bilinear samples of an image blurred less and less, Gauss-Newton from 5 starts, 12 steps per level, affine."""
    levels, half = _scale_space(sources)
    size, dsize = (levels[0].shape[-2], levels[0].shape[-1]), (targets.shape[-2], targets.shape[-1])
    # As the others, from the photo laid on the target.
    found = denormalize_homography(torch.linalg.inv(half)[None], size, dsize, align_corners=False)
    for level in levels:
        solver = GaussNewton(steps=12, starts=5 if level is levels[0] else 1, sampler="bilinear")
        found = register(level, targets, "affine", solver, init=found).matrix
    return torch.linalg.inv(half) @ normalised(found, levels[0], targets)


def _scale_space(images: Tensor) -> tuple[list[Tensor], Tensor]:
    """The images on a canvas of zeros, blurred less and less, and the matrix from the images' coordinates to it."""
    canvas = F.pad(images, (images.shape[-1] // 2,) * 2 + (images.shape[-2] // 2,) * 2)
    levels = []
    for width in _WIDTHS:
        side = 2 * int(3 * width) + 1
        blurred = gaussian_blur2d(canvas, (side, side), (width, width), border_type="constant") if width else canvas
        levels.append(blurred)
    return levels, torch.diag(torch.tensor([0.5, 0.5, 1.0]))


def _grey(images: Tensor) -> list[Any]:
    return [np.ascontiguousarray(image.mean(0).numpy()) for image in images]


def _opencv() -> ModuleType:
    try:
        return import_module("cv2")
    except ImportError:
        raise SystemExit(
            "OpenCV is missing: pip install opencv-python-headless, or leave it out with --without opencv"
        ) from None
