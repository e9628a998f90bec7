"""What all pictures of the library share: the figure, its colours, and how an image is shown."""

from io import BytesIO
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of M. Okabe and K. Ito, which people with any kind of colour vision can tell apart.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, GREY = "#E69F00", "#56B4E9", "#8c8c8c"


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure, in inches, which a notebook shows when it is a cell's last value."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        message = "a picture needs matplotlib: pip install 'lms_geometry[plot]'"
        raise ModuleNotFoundError(message, name=error.name) from None

    class Picture(Figure):
        """A figure that any notebook shows, also one that has not imported pyplot."""

        def _repr_png_(self) -> bytes:
            buffer = BytesIO()
            self.savefig(buffer, format="png", bbox_inches="tight")
            return buffer.getvalue()

    return Picture(figsize=(width, height), layout="constrained")


def show(axes: "Axes", image: Tensor, title: str) -> None:
    """Draw one image ``(C, H, W)``."""
    axes.imshow(displayable(image).permute(1, 2, 0).numpy())
    axes.set_title(title, fontsize=10)
    axes.set_xticks([])
    axes.set_yticks([])


def displayable(image: Tensor) -> Tensor:
    """An image ``(C, H, W)`` as three channels from 0 to 1: intensities outside 0 to 1 are stretched to that range."""
    image = image.detach().cpu().float().nan_to_num(0.0, 0.0, 0.0)
    image = image if len(image) == 3 else image.mean(0, keepdim=True).expand(3, -1, -1)
    low, high = image.min().clamp(max=0), image.max().clamp(min=1)
    return (image - low) / (high - low)
