"""The drift of a stack: matrices over time, smoothed."""

import numpy as np
import torch
from torch import Tensor

from lms_geometry.registration.motion import Motion
from lms_geometry.registration.transforms import Transform

# How scikit-image calls the motions. A scale per axis does not stay one where matrices are averaged.
_MODELS = {
    "rigid": "euclidean",
    "similarity": "similarity",
    "anisotropic": "affine",
    "affine": "affine",
    "homography": "projective",
}


def smooth_matrices(matrices: Tensor, weight: Tensor, size: tuple[int, int], motion: Motion, sigma: float) -> Tensor:
    """The drift of a frame's corners, smoothed over time by a Gaussian, as matrices of the same motion.

    Args:
        matrices: each frame to the reference, in pixels, ``(F, 3, 3)``.
        weight: how much each counts, ``(F)``: what counts nothing is filled in from its neighbours in time.
        size: (height, width) of a frame.
        motion: the motion model.
        sigma: the Gaussian's standard deviation, in frames.
    """
    height, width = size
    corners = matrices.new_tensor([[0, 0], [width - 1, 0], [width - 1, height - 1], [0, height - 1]])
    tracks = Transform(matrices).points(corners[None])
    time = torch.arange(len(matrices), dtype=matrices.dtype)
    exponent = -((time[:, None] - time) ** 2) / (2 * sigma**2) + weight.log()
    smooth = torch.einsum("ts,scx->tcx", exponent.softmax(1), tracks)
    if motion == "translation":
        moved = torch.eye(3, dtype=matrices.dtype).repeat(len(matrices), 1, 1)
        moved[:, :2, :2] = matrices[0, :2, :2]
        moved[:, :2, 2] = (smooth - corners @ matrices[0, :2, :2].T).mean(1)
        return moved
    return torch.stack([_fit(corners, track, _MODELS[motion]) for track in smooth])


def _fit(corners: Tensor, track: Tensor, model: str) -> Tensor:
    from skimage.transform import estimate_transform

    fitted = estimate_transform(model, corners.numpy(), track.numpy())
    return torch.from_numpy(np.asarray(fitted.params, np.float64))
