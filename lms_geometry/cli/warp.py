"""Warping pictures at full size, in their own type of numbers."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lms_geometry.cli.picture import Array, Picture, in_range
from lms_geometry.warp import warp_perspective_linearized

# The rows of a picture of labels that are warped at once.
_ROWS = 256


def warp_picture(picture: Picture, matrix: Tensor, size: tuple[int, int], device: str = "cpu") -> Picture:
    """Warp a picture: bilinearly, and by the mean over the area of a new pixel where it covers more than one old one.

    Args:
        picture: the picture.
        matrix: its pixels to those of the result, ``(3, 3)``.
        size: (height, width) of the result.
        device: where to compute.

    Returns:
        The warped picture: 0 and transparent outside the given one, and what is not finite stays so.
    """
    picture = _moved(picture, matrix)
    pixels, valid = picture.pixels, picture.valid
    image = torch.from_numpy(pixels.astype(picture.working))[None].to(device)
    matrix = matrix.to(image)
    if valid is None:
        warped = warp_perspective_linearized(image, matrix[None], size)[0].cpu().numpy()
        return replace(picture, pixels=in_range(warped, pixels.dtype))
    weight = torch.from_numpy(valid)[None].to(image)
    both = torch.cat((torch.where(weight > 0, image, 0.0) * weight, weight), 1)
    both = warp_perspective_linearized(both, matrix[None], size)[0]
    shown, weight = both[:-1], both[-1:]
    warped = torch.where(weight > 1e-3, shown / weight.clamp_min(1e-3), 0.0).cpu().numpy()
    if picture.opaque is not None:
        opaque = weight.clamp(0, 1).float().cpu().numpy()
        return replace(picture, pixels=in_range(warped, pixels.dtype), opaque=opaque)
    inside = warp_labels(np.ones((1, *picture.size), np.uint8), matrix, size) > 0
    warped = np.where(inside & (weight.cpu().numpy() < 0.5), np.nan, warped)
    return replace(picture, pixels=in_range(warped, pixels.dtype))


def warp_label_picture(picture: Picture, matrix: Tensor, size: tuple[int, int]) -> Picture:
    """Warp a picture of labels: each new pixel is the nearest old one, and 0 outside."""
    picture = _moved(picture, matrix)
    opaque = None if picture.opaque is None else warp_labels(picture.opaque, matrix, size)
    return replace(picture, pixels=warp_labels(picture.pixels, matrix, size), opaque=opaque)


def _moved(picture: Picture, matrix: Tensor) -> Picture:
    """The picture, without the size of its pixels if the matrix changes it by more than a hundredth."""
    linear = matrix[:2, :2].detach().cpu().double()
    scales = torch.linalg.svdvals(linear.nan_to_num()) / matrix[2, 2].item()
    if (scales - 1).abs().max() < 0.01:
        return picture
    kept = {name: value for name, value in picture.layout.metadata.items() if not name.startswith("PhysicalSize")}
    return replace(picture, layout=replace(picture.layout, metadata=kept))


def warp_labels(pixels: Array, matrix: Tensor, size: tuple[int, int]) -> Array:
    """The nearest of ``(C, H, W)`` numbers of any type, or 0 outside."""
    (height, width), (new_height, new_width) = pixels.shape[-2:], size
    inverse = torch.linalg.inv(matrix.detach().cpu().double()).numpy()
    warped = np.zeros((len(pixels), *size), pixels.dtype)
    x = np.arange(new_width)
    for top in range(0, new_height, _ROWS):
        y = np.arange(top, min(top + _ROWS, new_height))[:, None]
        a, b, depth = (row[0] * x + row[1] * y + row[2] for row in inverse)
        with np.errstate(divide="ignore", invalid="ignore"):
            column, row = np.rint(a / depth), np.rint(b / depth)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        column, row = (np.where(inside, index, 0).astype(np.int64) for index in (column, row))
        warped[:, top : top + _ROWS] = np.where(inside, pixels[:, row, column], 0)
    return warped
