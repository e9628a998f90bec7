"""Conversions between texels and the units of a grid.

Along an axis of ``size`` texels, source pixels put texel centres at the integers 0 to ``size - 1``. A grid, as
``F.grid_sample`` takes it, puts -1 and 1 at the outermost texel centres with ``align_corners=True`` and at the outer
edges of the outermost texels with ``False``.
"""

from typing import TypeVar

from torch import Tensor

_Number = TypeVar("_Number", float, Tensor)


def pixels_per_unit(size: int, align_corners: bool) -> float:
    """How many source pixels a step of 1 in the grid is."""
    return (size - 1) / 2 if align_corners else size / 2


def units_per_pixel(size: int, align_corners: bool) -> float:
    """How far a step of one source pixel goes in the grid; an axis of a single texel counts as one of two."""
    return 2 / max(size - 1, 1) if align_corners else 2 / size


def to_pixels(coordinate: _Number, size: int, align_corners: bool) -> _Number:
    """A coordinate of the grid in source pixels."""
    pixels = (coordinate + 1) * pixels_per_unit(size, align_corners)
    return pixels if align_corners else pixels - 0.5


def grid_units(size: tuple[int, int], align_corners: bool) -> list[float]:
    """How many source pixels a step of 1 in the grid is along x and y, for an image of (width, height)."""
    return [pixels_per_unit(n, align_corners) for n in size]


def to_grid(pixels: _Number, size: int, align_corners: bool) -> _Number:
    """A coordinate in source pixels as one of the grid."""
    return 2 * pixels / (size - 1) - 1 if align_corners else (2 * pixels + 1) / size - 1


def outermost_centre(size: int, align_corners: bool) -> float:
    """The distance of the outermost texel centres from the middle of the image, in units of the grid."""
    return 1.0 if align_corners else 1 - 1 / size
