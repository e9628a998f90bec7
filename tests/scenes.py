"""Images to register, motions of them, and the error of a matrix that was found."""

import numpy as np
import torch
from skimage import data

from lms_geometry.registration import metrics


def draw_scene(size, seed=0):
    """Blobs of several sizes on black, the same scene at any size; coordinates are shares of the longer side."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(*(torch.arange(n) / max(size) for n in size), indexing="ij")
    image = torch.zeros(1, 3, *size)
    for _ in range(12):
        cx, cy = 0.15 + 0.5 * torch.rand(2, generator=generator)
        width = 0.03 + 0.08 * torch.rand(1, generator=generator)
        blob = (-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2)).exp()
        image = torch.maximum(image, torch.rand(1, 3, 1, 1, generator=generator) * blob)
    return image


def overlapping_crops():
    """Two crops of a photo, 140 x 150, large enough to be finished on tiles, and the matrix between them, ``(3, 3)``."""
    scene = torch.from_numpy(data.camera()[100:250, 150:320] / np.float32(255))[None, None]
    truth = torch.tensor([[1.0, 0.0, -12.0], [0.0, 1.0, -7.0], [0.0, 0.0, 1.0]])
    return scene[..., :140, :150], scene[..., 7:147, 12:162], truth


def about_centre(linear, shift, size, dsize):
    """The source-to-target matrix that applies ``linear`` about the centres, then moves by ``shift`` target pixels."""
    matrix = torch.eye(3)
    matrix[:2, :2] = torch.tensor(linear)
    source_centre, target_centre = (torch.tensor([(n[1] - 1) / 2, (n[0] - 1) / 2]) for n in (size, dsize))
    matrix[:2, 2] = target_centre + torch.tensor(shift) - matrix[:2, :2] @ source_centre
    return matrix


def corner_error(found, truth, dsize):
    """The corner error in source pixels of matrices from source to target, as ``register`` gives them."""
    return metrics.corner_error(torch.linalg.inv(found), torch.linalg.inv(truth.expand_as(found)), dsize)


SIZE, DSIZE = (72, 90), (24, 30)
MOTIONS = {
    "translation": ([[1 / 3, 0.0], [0.0, 1 / 3]], [3.0, -2.0]),
    "similarity": ([[0.36, -0.12], [0.12, 0.36]], [1.0, 2.0]),
    "anisotropic": ([[0.42, -0.08], [0.1, 0.3]], [1.0, 1.0]),
    "affine": ([[0.40, 0.05], [0.12, 0.31]], [-1.0, 1.5]),
}
