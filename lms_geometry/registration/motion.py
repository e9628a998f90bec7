"""Motion models of registration: the matrix of a few parameters, and its derivative.

A motion acts on the target's frame, in units of half its longer side, about its centre.
"""

import math
from typing import Literal

import torch
from kornia.geometry.conversions import convert_affinematrix_to_homography
from torch import Tensor

Motion = Literal["translation", "rigid", "similarity", "anisotropic", "affine", "homography"]

PARAMETERS: dict[Motion, tuple[str, ...]] = {
    "translation": ("x", "y"),
    "rigid": ("x", "y", "angle"),
    "similarity": ("x", "y", "angle", "scale"),
    "anisotropic": ("x", "y", "angle", "scale_x", "scale_y"),
    "affine": ("x", "y", "angle", "scale_x", "scale_y", "shear"),
    "homography": ("x", "y", "angle", "scale_x", "scale_y", "shear", "perspective_x", "perspective_y"),
}
# Factors that slow some parameters down. A small change of these moves the corners furthest. At the speed of the others
# they would lead the search away before the other parameters are right.
_RATES = {"shear": 0.25, "perspective_x": 0.1, "perspective_y": 0.1}


def motion_matrix(motion: Motion, parameters: Tensor, dsize: tuple[int, int]) -> Tensor:
    """The matrix of a motion: translation, rotation, scales, shear and perspective of the target's frame.

    Args:
        motion: the model.
        parameters: its parameters, ``(B, P)``; all 0 is no motion. Angles are in radians, scales are log2.
        dsize: the target's size (height, width), which gives the frame its shape.

    Returns:
        Matrices ``(B, 3, 3)`` in normalised coordinates.
    """
    rotation, stretch, perspective = _factors(motion, parameters)
    to_frame = _to_frame(dsize, parameters)
    return (rotation @ stretch @ perspective) * to_frame / to_frame[:, None]


def motion_derivative(motion: Motion, parameters: Tensor, dsize: tuple[int, int]) -> Tensor:
    """The derivative of :func:`motion_matrix` with respect to each parameter, ``(B, P, 3, 3)``."""
    rotation, stretch, perspective = _factors(motion, parameters)
    given = _given(motion, parameters)
    zero, one = torch.zeros_like(parameters[:, 0]), torch.ones_like(parameters[:, 0])
    none = (zero, zero, zero)
    cos, sin = rotation[:, 0, 0], rotation[:, 1, 0]
    scale_x, shear, scale_y = stretch[:, 0, 0], given.get("shear", zero), stretch[:, 1, 1]
    before, after = rotation, stretch @ perspective
    wide = before @ _rows((scale_x, scale_x * shear, zero), none, none) @ perspective * math.log(2)
    high = before @ _rows(none, (zero, scale_y, zero), none) @ perspective * math.log(2)
    derivatives = {
        "x": _rows((zero, zero, one), none, none) @ after,
        "y": _rows(none, (zero, zero, one), none) @ after,
        "angle": _rows((-sin, -cos, zero), (cos, -sin, zero), none) @ after,
        "scale": wide + high,
        "scale_x": wide,
        "scale_y": high,
        "shear": before @ _rows((zero, scale_x, zero), none, none) @ perspective,
        "perspective_x": before @ stretch @ _rows(none, none, (one, zero, zero)),
        "perspective_y": before @ stretch @ _rows(none, none, (zero, one, zero)),
    }
    to_frame = _to_frame(dsize, parameters)
    chosen = torch.stack([derivatives[name] * _RATES.get(name, 1.0) for name in PARAMETERS[motion]], 1)
    return chosen * to_frame / to_frame[:, None]


def _given(motion: Motion, parameters: Tensor) -> dict[str, Tensor]:
    """The parameters by their names, slowed down."""
    values = zip(PARAMETERS[motion], parameters.unbind(1), strict=True)
    return {name: value * _RATES.get(name, 1.0) for name, value in values}


def _factors(motion: Motion, parameters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The rotation with translation, the scales with the shear, and the perspective: their product is the motion."""
    zero, one = torch.zeros_like(parameters[:, 0]), torch.ones_like(parameters[:, 0])
    given = _given(motion, parameters)
    x, y, angle, shear = (given.get(name, zero) for name in ("x", "y", "angle", "shear"))
    scale_x, scale_y = (given.get(name, given.get("scale", zero)).exp2() for name in ("scale_x", "scale_y"))
    rotation = convert_affinematrix_to_homography(rotation_scale_matrix(angle, one, one, x, y))
    stretch = _rows((scale_x, scale_x * shear, zero), (zero, scale_y, zero), (zero, zero, one))
    last_row = given.get("perspective_x", zero), given.get("perspective_y", zero), one
    return rotation, stretch, _rows((one, zero, zero), (zero, one, zero), last_row)


def _to_frame(dsize: tuple[int, int], like: Tensor) -> Tensor:
    """The factors ``(3)`` from normalised coordinates to the target's frame, whose unit is half the longer side."""
    return like.new_tensor([dsize[1], dsize[0], max(dsize)]) / max(dsize)


def nearest_in(motion: Motion, matrix: Tensor, start: Tensor, dsize: tuple[int, int]) -> Tensor:
    """The matrix of a motion that is nearest to a given one over the target.

    Args:
        motion: the model.
        matrix: any matrices from target to source in normalised coordinates, ``(B, 3, 3)``.
        start: those that the motion starts from, such as the plain resize, ``(B, 3, 3)``.
        dsize: the target's size (height, width).

    Returns:
        Matrices ``start @ motion_matrix(...)``, ``(B, 3, 3)``. A homography is any matrix, and is returned as it is.
    """
    if motion == "homography":
        return matrix
    moved = torch.linalg.solve(start, matrix)
    moved = moved / moved[:, 2:, 2:]
    to_frame = _to_frame(dsize, matrix)
    moved = moved / to_frame * to_frame[:, None]  # as ``motion_matrix`` says, in a frame whose pixels are square
    linear = moved[:, :2, :2] - moved[:, :2, 2:] * moved[:, 2:, :2]  # about the centre, without the perspective
    if motion == "translation":
        linear = torch.eye(2, dtype=matrix.dtype, device=matrix.device).expand_as(linear)
    elif motion != "affine":
        a, b, c, d = linear[:, 0, 0], linear[:, 0, 1], linear[:, 1, 0], linear[:, 1, 1]
        angle = torch.atan2(c - b, a + d)
        unit = torch.ones_like(angle)
        scale_x = scale_y = ((a + d).square() + (c - b).square()).sqrt() / 2
        if motion == "rigid":
            scale_x = scale_y = unit
        elif motion == "anisotropic":
            scale_x, scale_y = linear.norm(dim=1).unbind(1)
        linear = rotation_scale_matrix(angle, scale_x, scale_y, 0 * angle, 0 * angle)[:, :, :2]
    found = torch.eye(3, dtype=matrix.dtype, device=matrix.device).repeat(len(matrix), 1, 1)
    found[:, :2, :2], found[:, :2, 2] = linear, moved[:, :2, 2]
    return start @ (found * to_frame / to_frame[:, None])


def rotated_starts(motion: Motion, count: int, like: Tensor) -> Tensor:
    """Parameters ``(count, P)`` of rotations by 0, 45, -45, 90, -90, 135, -135 and 180 degrees, in this order."""
    parameters = like.new_zeros(count, len(PARAMETERS[motion]))
    if "angle" in PARAMETERS[motion]:
        eighths = torch.tensor([0, 1, -1, 2, -2, 3, -3, 4], dtype=like.dtype, device=like.device)
        parameters[:, PARAMETERS[motion].index("angle")] = eighths[:count] * (torch.pi / 4)
    return parameters


def rotation_scale_matrix(angle: Tensor, scale_x: Tensor, scale_y: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The affine matrix ``[R S, t]`` that scales, then rotates, then translates.

    Args:
        angle: rotation in radians, from the x axis towards the y axis, ``(...)``.
        scale_x, scale_y: factors along the axes before the rotation, ``(...)``.
        x, y: translation, ``(...)``.

    Returns:
        Matrices ``(..., 2, 3)``.
    """
    cos, sin = angle.cos(), angle.sin()
    return _rows((cos * scale_x, -sin * scale_y, x), (sin * scale_x, cos * scale_y, y))


def _rows(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    return torch.stack([torch.stack(row, -1) for row in rows], -2)
