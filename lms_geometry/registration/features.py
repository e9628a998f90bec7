"""Starts from matched features: OpenCV's SIFT and its robust estimator MAGSAC, which come with an extra.

SIFT finds what viewpoint, zoom, light and hidden parts leave of a scene, in less time than a search takes. Where too
few of its matches agree, the images are seen from tilted viewpoints as well (Morel and Yu, ASIFT, 2009).
"""

from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lms_geometry.registration.motion import Motion
from lms_geometry.registration.problem import shrink

MISSING = "OpenCV is not installed: pip install 'lms_geometry[features]'"
TOO_SMALL = "an image is smaller than 32 pixels a side"

# The longer side, in pixels, at which features are sought, and that of the tilted views.
LONGEST, _TILTED_LONGEST = 1000, 320
_SMALLEST = 32
# A match is kept if its nearest descriptor is this much nearer than the second.
_RATIO = 0.8
# The distance in target pixels, at the size at which features are sought, within which a match agrees with a motion.
_NEAR = 3.0
# The number of agreeing matches below which the tilted views are tried, and the least that make a start.
_ENOUGH, _LEAST = 30, 7
# The most features of an image, and of each of its tilted views.
_MOST, _MOST_TILTED = 6000, 300
# The tilts of ASIFT: views compressed by up to sqrt(2) to this power.
_TILTS = 5


def opencv() -> ModuleType | None:
    """OpenCV, if it is installed."""
    try:
        return import_module("cv2")
    except ImportError:
        return None


def large_enough(source: Tensor, target: Tensor) -> bool:
    """Whether the images have room for features."""
    return min(*source.shape[-2:], *target.shape[-2:]) >= _SMALLEST


def match(
    source: Tensor,
    target: Tensor,
    source_mask: Tensor | None,
    target_mask: Tensor | None,
    motion: Motion,
    reversed_contrast: bool = False,
) -> Tensor | None:
    """The motion that most matched features of two images agree on.

    Args:
        source, target: the images, ``(C, H, W)`` and ``(C, h, w)``.
        source_mask, target_mask: where they are valid, ``(1, H, W)`` and ``(1, h, w)``; ``None``: everywhere.
        motion: the motion. One that knows no perspective gets an affine matrix, to be projected on what it knows.
        reversed_contrast: whether the source's negative is tried too.

    Returns:
        The matrix ``(3, 3)`` from source to target in pixels, float64, or ``None`` if too few features agree.
    """
    cv2 = opencv()
    assert cv2 is not None
    views = [_Views(cv2, image, mask) for image, mask in ((source, source_mask), (target, target_mask))]
    best: tuple[Any, int] = (None, 0)
    for tilts in (0, _TILTS):
        negatives = (False, True) if reversed_contrast else (False,)
        target_features = views[1].features(tilts, False)
        for negative in negatives:
            found = _agree(cv2, views[0].features(tilts, negative), target_features, motion)
            if found[1] > best[1]:
                best = found
        if best[1] >= _ENOUGH:
            break
    matrix, count = best
    return None if matrix is None or count < _LEAST else torch.from_numpy(matrix)


class _Views:
    """An image as OpenCV wants it, and its features."""

    def __init__(self, cv2: ModuleType, image: Tensor, mask: Tensor | None) -> None:
        self.cv2 = cv2
        self.size = image.shape[-2:]
        grey = shrink(image.mean(0)[None, None], LONGEST)
        low, high = grey.flatten().kthvalue(max(1, grey.numel() // 200)).values, grey.amax()
        self.grey = (255 * (grey - low) / (high - low).clamp_min(torch.finfo(grey.dtype).tiny)).clamp(0, 255)
        self.mask = None if mask is None else shrink(mask[None].to(grey), LONGEST)

    def features(self, tilts: int, negative: bool) -> tuple[Any, Any]:
        """Points ``(n, 2)`` in the image's own pixels, and descriptors ``(n, 128)``."""
        import numpy as np

        grey = 255 - self.grey if negative else self.grey
        mask = self.mask
        if tilts:
            grey = shrink(grey, _TILTED_LONGEST)
            mask = None if mask is None else shrink(mask, _TILTED_LONGEST)
        pixels = grey[0, 0].round().to(torch.uint8).cpu().numpy()
        valid = None if mask is None else (255 * (mask[0, 0] > 0.5)).to(torch.uint8).cpu().numpy()
        detector = self.cv2.SIFT_create(_MOST_TILTED if tilts else _MOST)
        if tilts:
            detector = self.cv2.AffineFeature_create(detector, tilts)
        found, descriptors = detector.detectAndCompute(pixels, valid)
        if descriptors is None or len(found) < 4:
            return np.zeros((0, 2)), np.zeros((0, 128), np.float32)
        strongest = np.argsort([-point.response for point in found], kind="stable")[:_MOST]
        found, descriptors = [found[index] for index in strongest], descriptors[strongest]
        descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-9))
        factor = np.array([self.size[1] / pixels.shape[1], self.size[0] / pixels.shape[0]])
        return (self.cv2.KeyPoint_convert(found) + 0.5) * factor - 0.5, descriptors


def _agree(cv2: ModuleType, source: tuple[Any, Any], target: tuple[Any, Any], motion: Motion) -> tuple[Any, int]:
    """The matrix that most matches agree on, and their number."""
    import numpy as np

    (source_points, source_descriptors), (target_points, target_descriptors) = source, target
    if min(len(source_points), len(target_points)) < 4:
        return None, 0
    nearest, kept = _nearest(torch.from_numpy(source_descriptors), torch.from_numpy(target_descriptors))
    matches = np.concatenate((source_points[kept], target_points[nearest[kept]]), 1)
    matches = matches[np.unique(matches.round(), axis=0, return_index=True)[1]]  # one match a place
    if len(matches) < 5:
        return None, 0
    first, second = matches[:, :2].astype(np.float32), matches[:, 2:].astype(np.float32)
    settings = {"maxIters": 10000, "confidence": 0.9999}
    near = _NEAR * max(1.0, float(target_points.max()) / LONGEST)
    if motion == "homography":
        matrix, agreeing = cv2.findHomography(first, second, cv2.USAC_MAGSAC, near, **settings)
    else:
        matrix, agreeing = cv2.estimateAffine2D(
            first, second, method=cv2.USAC_MAGSAC, ransacReprojThreshold=near, **settings
        )
        matrix = None if matrix is None else np.vstack((matrix, [0, 0, 1]))
    if matrix is None or not np.isfinite(matrix).all() or np.linalg.det(matrix) <= 0:
        return None, 0
    return matrix.astype(np.float64), int(agreeing.sum())


def _nearest(first: Tensor, second: Tensor) -> tuple[Any, Any]:
    """The number of each first descriptor's nearest second one, and which are much nearer than the next."""
    found = [(part @ second.T).topk(2, 1) for part in first.split(1000)]  # of unit length: the product tells distances
    squared = 2 - 2 * torch.cat([values for values, _ in found])
    kept = squared[:, 0] < _RATIO**2 * squared[:, 1]
    return torch.cat([places[:, 0] for _, places in found]).numpy(), kept.numpy()
