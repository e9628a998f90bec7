"""The descent field and the samples of a warp that shrinks a photo 8 times: draws the pictures of these names."""

from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib import style
from skimage import data

from lms_geometry.plot import plot_gradient_field, plot_samples

HERE = Path(__file__).parent


def main() -> None:
    """Draw both pictures in the style of the site."""
    style.use(HERE.parent / "figure.mplstyle")
    cat = torch.from_numpy(data.chelsea()[:, 75:375].copy()).permute(2, 0, 1)[None].float() / 255
    small = F.interpolate(cat, (128, 128), mode="area")
    middle = torch.tensor([[[0.125, 0.0, -2.5], [0.0, 0.125, -2.5]]])
    plot_gradient_field(small, middle, (11, 11)).savefig(HERE / "descent_field.png", dpi=130)
    turned = torch.tensor([[[0.12, 0.03, -2.0], [-0.03, 0.12, 6.0]]])
    plot_samples(cat, turned, (36, 36), pixel=(17, 11)).savefig(HERE / "samples.png", dpi=130)


if __name__ == "__main__":
    main()
