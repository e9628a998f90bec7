"""Figures of the experiments, in the style of the site."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib import style
from matplotlib.figure import Figure

_STYLE = Path(__file__).parents[1] / "docs" / "figure.mplstyle"

# Dots per inch.
DPI = 130

# The look of every sampler, the same in all figures.
LINES = {
    "bilinear": {"color": "#999999", "linestyle": "--"},
    "multi-scale (1, 5, 10)": {"color": "#7aa74b", "linestyle": "--"},
    "scale space": {"color": "#7aa74b"},
    "default": {"color": "#e3a72f"},
    "default, sigma = 1": {"color": "#e3a72f", "linestyle": "-."},
    "default, 8 to 0.125": {"color": "#e3a72f"},
    "paper's text": {"color": "#3f88c5"},
    "released code's settings": {"color": "#a06cd5"},
    "whitened, 5 to 0.125": {"color": "#d1603d"},
    "whitened, sigma = 4": {"color": "#d1603d"},
    "register": {"color": "#222222", "linestyle": ":"},
}


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
