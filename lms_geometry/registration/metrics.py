"""The distance between two matrices that register the same pair, such as one that was found and the truth."""

from kornia.geometry.linalg import transform_points
from torch import Tensor


def corner_error(first: Tensor, second: Tensor, dsize: tuple[int, int] | None = None) -> Tensor:
    """The mean distance between where two matrices send the target's four corners.

    Args:
        first: matrices from target to source, ``(..., 3, 3)``, with at least one leading axis.
        second: the matrices they are compared with, of the same shape.
        dsize: the target's size (height, width), for matrices in pixels with centres at integers: the corners are the
            centres of the outermost pixels, and the distance is in source pixels. Without it the matrices are in
            normalised coordinates: the corners are at -1 and 1, and the distance is in half widths of the source.

    Returns:
        Distances, ``(...)``.

    Example:
        >>> import torch
        >>> moved = torch.tensor([[[1.0, 0.0, 3.0], [0.0, 1.0, 4.0], [0.0, 0.0, 1.0]]])
        >>> corner_error(moved, torch.eye(3)[None], (20, 30))
        tensor([5.])
    """
    left, top, right, bottom = (-1, -1, 1, 1) if dsize is None else (0, 0, dsize[1] - 1, dsize[0] - 1)
    corners = first.new_tensor([[left, top], [right, top], [left, bottom], [right, bottom]])
    corners = corners.expand(*first.shape[:-2], 4, 2)
    return (transform_points(first, corners) - transform_points(second, corners)).norm(dim=-1).mean(-1)
