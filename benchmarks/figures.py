"""Figures of the experiments, in the style of the site."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from lms_geometry.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION

_STYLE = Path(__file__).parents[1] / "docs" / "figure.mplstyle"

# Dots per inch.
DPI = 130

PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, GREY)
MARKERS = "osD^vP*X<>"


def look(colour: str, marker: str, linestyle: str | tuple[int, tuple[int, ...]] = "-") -> dict[str, Any]:
    """The look of a line: markers stand apart, so that they can be told along a line of many points."""
    return {"color": colour, "marker": marker, "linestyle": linestyle, "markevery": 0.17, "markersize": 4}


# The look of every sampler, the same in all figures.
LINES: dict[str, dict[str, Any]] = {
    "bilinear": look(GREY, "s", "--"),
    "multi-scale (1, 5, 10)": look(GREEN, "v", "--"),
    "scale space": look(GREEN, "^"),
    "default": look(BLUE, "o"),
    "default, sigma = 1": look(BLUE, "<", "-."),
    "default, 8 to 0.125": look(BLUE, ">", "-."),
    "paper's text": look(SKY, "D"),
    "released code's settings": look(PURPLE, "P"),
    "whitened, 5 to 0.125": look(VERMILION, "X"),
    "whitened, sigma = 4": look(VERMILION, "X"),
    "register": look(ORANGE, "*", ":"),
}


def number_look(number: int) -> dict[str, Any]:
    """The look of a line that has none of its own: colours and markers go round with different periods."""
    return look(PALETTE[number % len(PALETTE)], MARKERS[number % len(MARKERS)])


def label_ends(axes: Axes, lines: Sequence[Line2D], apart: float) -> None:
    """Write each line's label right of its last point, pushed apart where they would overlap.

    Args:
        axes: the panel, whose limits are set.
        lines: the lines to label.
        apart: the least distance between two labels, in units of the y axis.
    """
    ends = sorted(((*np.asarray(line.get_xydata())[-1].tolist(), line) for line in lines), key=lambda end: end[1])
    places = [y for _, y, _ in ends]
    for _ in range(100):  # push neighbours apart a little at a time, so that groups stay where their lines are
        for low in range(len(places) - 1):
            overlap = apart - (places[low + 1] - places[low])
            if overlap > 1e-6:
                places[low] -= overlap / 2
                places[low + 1] += overlap / 2
    for place, (x, y, line) in zip(places, ends, strict=True):
        style: dict[str, Any] = {"arrowstyle": "-", "color": line.get_color(), "linewidth": 0.6, "shrinkA": 0}
        axes.annotate(
            str(line.get_label()),
            (x, y),
            (1.05, place),
            textcoords=axes.get_yaxis_transform(),
            color=line.get_color(),
            fontsize=8,
            va="center",
            arrowprops=style,
            annotation_clip=False,
        )


def save_beside(
    result: Path | None, size: tuple[float, float], alt: str, draw: Callable[[Figure], None]
) -> dict[str, str] | None:
    """Write the figure of a result under the result's own name, as PNG.

    Args:
        result: the JSON file of the result; ``None`` if none is written, and then no figure is.
        size: width and height in inches.
        alt: what the figure shows, in words.
        draw: fills the figure.

    Returns:
        What ``report`` takes as its ``figure``.
    """
    if result is None:
        return None
    path = result.with_suffix(".png")
    save_figure(path, size, draw)
    return {"file": path.name, "alt": alt}


def save_figure(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    """Let ``draw`` fill a figure of ``size`` inches, and write it."""
    with style.context(_STYLE), mpl.rc_context({"figure.dpi": DPI}):
        figure = Figure(figsize=size)
        draw(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
