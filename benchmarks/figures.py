"""Figures of the experiments, in the style of the site."""

from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
from matplotlib import style
from matplotlib.figure import Figure

_STYLE = Path(__file__).parents[1] / "docs" / "figure.mplstyle"

# Dots per inch.
DPI = 130
# Every sampler looks the same in every figure.
LINES = {
    "bilinear": {"color": "#999999", "linestyle": "--"},
    "multi-scale (1, 5, 10)": {"color": "#7aa74b", "linestyle": "--"},
    "scale space": {"color": "#7aa74b"},
    "paper's text": {"color": "#3f88c5"},
    "released code's settings": {"color": "#a06cd5"},
    "whitened, 5 to 0.125": {"color": "#d1603d"},
    "whitened, sigma = 4": {"color": "#d1603d"},
    "register": {"color": "#222222", "linestyle": ":"},
}


def save_figure(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    """Let ``draw`` fill a figure of ``size`` inches, and write it."""
    with style.context(_STYLE), mpl.rc_context({"figure.dpi": DPI}):
        figure = Figure(figsize=size)
        draw(figure)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Software": None})
