"""The figure of the hunt: scenes, the squares that networks looked at, and what they saw there."""

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.drop_in import load_photos
from benchmarks.hunt.network import Hunter, view
from benchmarks.hunt.scenes import SIDE, Material, Scenes, compose
from benchmarks.hunt.train import TEST_SEED
from lms_geometry.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY

# What samplers are called above their views, and their colours in the other figures.
_LOOKS = {
    "bilinear": ("bilinear", GREY),
    "bilinear, blurred by 0.125 output pixel": ("pre-blurred", GREEN),
    "supersampled 3 x 3": ("supersampled\n3 x 3", ORANGE),
    "mipmap": ("mipmap", PURPLE),
    "paper": ("paper", SKY),
    "default": ("default", BLUE),
}
# How much wider the scenes are drawn than the views.
_WIDER = 1.3
# The number of scenes, and how hard they are.
_SHOWN, _DIFFICULTY = 4, 0.5


def shown_scenes(material: Material, grain: float) -> Scenes:
    """Scenes of test signs in photos of scikit-image."""
    photos = (255 * load_photos()).byte()
    return compose(material._replace(photos=list(photos)), TEST_SEED, range(_SHOWN), grain, (_DIFFICULTY, _DIFFICULTY))


def inches(count: int) -> tuple[float, float]:
    """The size of the figure for so many networks: its panels are square."""
    width = 6.2
    return width, 0.3 + _SHOWN * _WIDER * width / (_WIDER + count)


@torch.no_grad()
def draw(scenes: Scenes, networks: Mapping[str, Hunter], figure: Figure) -> None:
    """A row for each scene: the scene, and the view of each sampler's network."""
    panels = figure.subplots(len(scenes.images), 1 + len(networks), width_ratios=[_WIDER, *[1] * len(networks)])
    for number, row in enumerate(panels):
        image = scenes.images[number : number + 1]
        for panel in row:
            panel.set(xticks=[], yticks=[])
        row[0].imshow(image[0].permute(1, 2, 0).numpy())
        for panel, (name, network) in zip(row[1:], networks.items(), strict=True):
            title, colour = _LOOKS[name]
            place = network.localise(image)
            scale, x, y = place[0].tolist()
            left, top = ((centre - scale + 1) * SIDE / 2 - 0.5 for centre in (x, y))
            row[0].add_patch(Rectangle((left, top), scale * SIDE, scale * SIDE, fill=False, edgecolor=colour))
            seen = view(network.sampler, image, place, torch.Generator().manual_seed(0))
            panel.imshow(seen[0].permute(1, 2, 0).clamp(0, 1).numpy())
            for spine in panel.spines.values():
                spine.set(edgecolor=colour, linewidth=2, visible=True)
            if number == 0:
                panel.set_title(title, fontsize=7)
