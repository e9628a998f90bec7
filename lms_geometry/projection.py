"""Matrices, and the output pixels sent through them: a grid of source points and its exact Jacobian."""

import torch
from torch import Tensor

from lms_geometry._kornia import create_meshgrid, normal_transform_pixel

# The smallest determinant or depth that is divided by. One nearer to 0 counts as 0, because the square of its
# reciprocal, and so the gradient through it, would not be finite in float32.
_SMALLEST_DIVISOR = 1e-15

# The scale of a homography, its largest entry, below which its gradient grows no more.
_SMALLEST_SCALE = 1e-20


def project(
    src_from_dst: Tensor,
    usable: Tensor,
    dsize: tuple[int, int],
    size: tuple[int, int],
    align_corners: bool,
    normalized_coordinates: bool = True,
    affine: bool = False,
    differentiable_jacobian: bool = False,
) -> tuple[Tensor, Tensor]:
    """Send the destination's pixels through matrices to normalised source points.

    Args:
        src_from_dst: matrices ``(B, 3, 3)`` from destination to normalised source coordinates.
        usable: which of the matrices can be used, ``(B, 1, 1)``. The points of the others are NaN.
        dsize, size: sizes of destination and source, ``(height, width)``.
        align_corners: meaning of -1 and 1.
        normalized_coordinates: whether the matrices take the destination in normalised coordinates or in pixels.
        affine: whether the last row of every matrix is ``[0, 0, 1]``. Then one Jacobian serves a whole image.
        differentiable_jacobian: whether the Jacobian carries the derivative by the matrices, as the grid does.

    Returns:
        The grid ``(B, h, w, 2)``, and its Jacobian in source pixels per destination pixel, ``(B, h | 1, w | 1, 2, 2)``.
    """
    x, y = (
        create_meshgrid(
            *line, normalized_coordinates, device=usable.device, dtype=src_from_dst.dtype, align_corners=align_corners
        )
        for line in ((1, dsize[1]), (dsize[0], 1))
    )
    x, y = x[0, 0, :, 0], y[0, :, 0, 1]
    # The axes of coordinates come first and those of pixels last: a CPU takes long rows much faster than pairs.
    matrix = src_from_dst.movedim(0, -1)[..., None]
    # The source point is linear in x and y: a term for every column plus one for every row. Autograd then sums over
    # rows and columns, which is its quickest way back to the matrix.
    columns = matrix[:, 0] * x + matrix[:, 2]
    rows = matrix[:, 1] * y
    kept = (matrix if differentiable_jacobian else matrix.detach())[..., None]
    linear = kept[:2, :2]
    if affine:
        columns = torch.where(usable[:, 0], columns, torch.nan)
        columns, rows = (line[:2].movedim(0, -1).contiguous() for line in (columns, rows))
        points = columns[:, None] + rows[:, :, None]
    else:
        points, depth = (columns[:, :, None] + rows[..., None]).split((2, 1))
        usable = usable & (depth.detach().abs() > _SMALLEST_DIVISOR)
        depth = torch.where(usable, depth, 1.0)
        points = points / depth
        moved, divisor = (t if differentiable_jacobian else t.detach() for t in (points, depth))
        linear = (linear - moved[:, None] * kept[2:, :2]) / divisor
        points = torch.stack(torch.where(usable, points, torch.nan).unbind(), -1)
    if normalized_coordinates:
        linear = linear * pixel_normalisation(dsize, align_corners, linear)[0].diagonal()[:2, None, None, None]
    jacobian = linear / pixel_normalisation(size, align_corners, linear)[0].diagonal()[:2, None, None, None, None]
    return points, torch.stack(jacobian.flatten(0, 1).unbind(), -1).unflatten(-1, (2, 2))


def inverse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """The inverses of matrices ``(B, 3, 3)``, and whether each has one, ``(B, 1, 1)``; else it is the identity."""
    with torch.no_grad():
        # A determinant is at most the product of its rows' lengths (Hadamard). One that is smaller than the rounding
        # error of this product counts as 0.
        rounding = torch.finfo(matrix.dtype).eps * matrix.detach().norm(dim=-1).prod(-1)
        regular = _cofactors(matrix.detach())[1].abs() > rounding.clamp_min(_SMALLEST_DIVISOR)
        regular = regular[:, None, None]
    cofactors, determinant = _cofactors(
        torch.where(regular, matrix, torch.eye(3, dtype=matrix.dtype, device=matrix.device))
    )
    return cofactors / determinant[:, None, None], regular


def _cofactors(matrix: Tensor) -> tuple[Tensor, Tensor]:
    first, second, third = matrix.unbind(-2)
    columns = torch.linalg.cross(second, third), torch.linalg.cross(third, first), torch.linalg.cross(first, second)
    return torch.stack(columns, -1), (first * columns[0]).sum(-1)


def unit_scale(matrix: Tensor) -> Tensor:
    """Homographies scaled to a largest entry of 1: a multiple of one is the same warp.

    The gradient grows as a homography is scaled down. Below the smallest scale it grows no more, so that it is finite.
    """
    constant = matrix.detach()
    scale = constant.abs().amax((-2, -1), keepdim=True)
    divisor = torch.where(scale > _SMALLEST_SCALE, scale, _SMALLEST_SCALE)
    return constant / torch.where(scale > 0, scale, 1.0) + (matrix - constant) / divisor


def pixel_normalisation(size: tuple[int, int], align_corners: bool, like: Tensor) -> Tensor:
    """The matrix ``(1, 3, 3)`` from pixels of an image of ``size`` to normalised coordinates."""
    height, width = (max(n, 1) for n in size)
    return normal_transform_pixel(height, width, device=like.device, dtype=like.dtype, align_corners=align_corners)
