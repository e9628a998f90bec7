"""Motion models of registration: from a few parameters to a matrix, and how the matrix changes with them.

A motion acts on the target's frame, in units of half its longer side, about its centre.
"""

from typing import Literal

import torch
from torch import Tensor

Motion = Literal["translation", "similarity", "anisotropic", "affine", "homography"]

PARAMETERS: dict[Motion, tuple[str, ...]] = {
    "translation": ("x", "y"),
    "similarity": ("x", "y", "angle", "scale"),
    "anisotropic": ("x", "y", "angle", "scale_x", "scale_y"),
    "affine": ("x", "y", "angle", "scale_x", "scale_y", "shear"),
    "homography": ("x", "y", "angle", "scale_x", "scale_y", "shear", "tilt_x", "tilt_y"),
}
# Small steps of these move the corners furthest; taken as fast as the others they lead away before the rest is right.
_RATES = {"shear": 0.25, "tilt_x": 0.1, "tilt_y": 0.1}


def motion_matrix(motion: Motion, parameters: Tensor, dsize: tuple[int, int]) -> Tensor:
    """Rotation, scales, shear, translation and perspective of the target's frame.

    Args:
        motion: the model.
        parameters: its parameters, ``(B, P)``; all 0 is no motion.
        dsize: size of the target, whose shape is that of the frame.

    Returns:
        Normalised matrices ``(B, 3, 3)``.
    """
    names = PARAMETERS[motion]
    zero, one = torch.zeros_like(parameters[:, 0]), torch.ones_like(parameters[:, 0])
    given = {name: value * _RATES.get(name, 1.0) for name, value in zip(names, parameters.unbind(1), strict=True)}
    x, y, angle, shear, tilt_x, tilt_y = (given.get(n, zero) for n in ("x", "y", "angle", "shear", "tilt_x", "tilt_y"))
    scale_x, scale_y = (given.get(n, given.get("scale", zero)).exp2() for n in ("scale_x", "scale_y"))
    cos, sin = angle.cos(), angle.sin()
    rotation = _rows((cos, -sin, x), (sin, cos, y), (zero, zero, one))
    stretch = _rows((scale_x, scale_x * shear, zero), (zero, scale_y, zero), (zero, zero, one))
    perspective = _rows((one, zero, zero), (zero, one, zero), (tilt_x, tilt_y, one))
    to_frame = torch.tensor([dsize[1], dsize[0], max(dsize)], dtype=zero.dtype, device=zero.device) / max(dsize)
    return (rotation @ stretch @ perspective) * to_frame / to_frame[:, None]


def motion_derivative(motion: Motion, parameters: Tensor, dsize: tuple[int, int]) -> Tensor:
    """Derivative of :func:`motion_matrix` with respect to each parameter, ``(B, P, 3, 3)``."""
    jacobian = torch.func.vmap(torch.func.jacrev(lambda p: motion_matrix(motion, p[None], dsize)[0]))(parameters)
    return jacobian.movedim(-1, 1)


def turned(motion: Motion, count: int, like: Tensor) -> Tensor:
    """Parameters of ``count`` starts, ``(count, P)``: turned by 0, 45, -45, 90, -90, 135, -135 and 180 degrees."""
    parameters = like.new_zeros(count, len(PARAMETERS[motion]))
    if "angle" in PARAMETERS[motion]:
        eighths = torch.tensor([0, 1, -1, 2, -2, 3, -3, 4], dtype=like.dtype, device=like.device)
        parameters[:, PARAMETERS[motion].index("angle")] = eighths[:count] * (torch.pi / 4)
    return parameters


def _rows(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
