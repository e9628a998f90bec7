"""The picture of a registration, and the outlines that it is made of."""

from typing import TYPE_CHECKING, Any

import torch
from kornia.geometry.linalg import transform_points
from torch import Tensor

from lms_geometry.figures import displayable, new_figure, show

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# The number of outlines that show a path.
_OUTLINES = 20


def draw_registration(source: Tensor, target: Tensor, warped: Tensor, path: Tensor) -> "Figure":
    """The source with the path on it, the target, the warped source, and the last two on top of each other.

    Args:
        source, target, warped: one image each, ``(C, H, W)`` and ``(C, h, w)``.
        path: matrices from source to target in pixels, ``(steps + 1, 3, 3)``.
    """
    figure = new_figure(7.2, 7.2)
    (sought, seen), (found, both) = figure.subplots(2, 2)
    show(sought, source, "source, and where the target was sought")
    draw_path(sought, path, source, target)
    show(seen, target, "target")
    show(found, warped, "source, warped")
    show(both, overlay(displayable(warped), displayable(target)), "red: source, cyan: target")
    return figure


def draw_path(axes: "Axes", path: Tensor, source: Tensor, target: Tensor) -> None:
    """Draw the target's outline on the source at some steps, dark to bright, and after the last, yellow and dashed."""
    outlines = outline(torch.linalg.inv_ex(path).inverse, target)
    for step in range(0, len(outlines), max(1, (len(outlines) - 1) // _OUTLINES)):
        shade = step / (len(outlines) - 1)
        draw_outline(axes, outlines[step], source, color=(1.0, shade, 0.0), linewidth=0.8)
    draw_outline(axes, outlines[-1], source, color="yellow", linewidth=2, linestyle="--")


def outline(matrix: Tensor, image: Tensor) -> Tensor:
    """The outer edge of an image's frame, sent through pixel matrices ``(n, 3, 3)``: five points, ``(n, 5, 2)``."""
    height, width = image.shape[-2:]
    corners = matrix.new_tensor([[0, 0], [width, 0], [width, height], [0, height], [0, 0]]) - 0.5
    return transform_points(matrix, corners.expand(len(matrix), -1, -1))


def draw_outline(axes: "Axes", points: Tensor, source: Tensor, **style: Any) -> None:  # noqa: ANN401
    """Draw a line through points ``(n, 2)`` in pixels of the source, with room around the source's frame."""
    height, width = source.shape[-2:]
    axes.plot(*points.detach().cpu().T.numpy(), **style)
    axes.set_facecolor("black")
    axes.set_xlim(-0.4 * width, 1.4 * width)
    axes.set_ylim(1.4 * height, -0.4 * height)


def overlay(warped: Tensor, target: Tensor) -> Tensor:
    """Red from one image and cyan from the other, ``(..., 3, h, w)``: grey where they agree."""
    red, cyan = (image.mean(-3, keepdim=True) for image in (warped, target))
    return torch.cat((red, cyan, cyan), -3)
