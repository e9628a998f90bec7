"""The figure of the hunt: scenes, the squares that networks looked at, and what they saw there."""

from collections.abc import Mapping

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from benchmarks.classification.samplers import Sampler
from benchmarks.drop_in import load_photos
from benchmarks.figures import PALETTE
from benchmarks.hunt.network import Hunter, view
from benchmarks.hunt.scenes import SIDE, Material, Scenes, compose
from benchmarks.hunt.train import TEST_SEED

INCHES = (6.2, 4.2)
# The number of scenes, and how hard they are.
_SHOWN, _DIFFICULTY = 3, 0.7
# Networks by sampler, and where each looked in every scene: the scale and the centre of its view.
Looks = Mapping[str, tuple[Sampler, list[list[float]]]]


def shown_scenes(material: Material, grain: float) -> Scenes:
    """Scenes of test signs in photos of scikit-image."""
    photos = (255 * load_photos()).byte()
    return compose(material._replace(photos=list(photos)), TEST_SEED, range(_SHOWN), grain, (_DIFFICULTY, _DIFFICULTY))


@torch.no_grad()
def look(network: Hunter, scenes: Scenes) -> list[list[float]]:
    """Where a network looks in each scene."""
    return network.localise(scenes.images).tolist()


def draw(scenes: Scenes, looks: Looks, figure: Figure) -> None:
    """A row for each scene: the scene, and the view of each sampler's network."""
    panels = figure.subplots(len(scenes.images), 1 + len(looks), width_ratios=[2.2, *[1] * len(looks)])
    for number, row in enumerate(panels):
        for panel in row:
            panel.set(xticks=[], yticks=[])
        row[0].imshow(scenes.images[number].permute(1, 2, 0).numpy())
        for panel, colour, (name, (sampler, places)) in zip(row[1:], PALETTE, looks.items(), strict=False):
            scale, x, y = places[number]
            left, top = ((centre - scale + 1) * SIDE / 2 - 0.5 for centre in (x, y))
            square = Rectangle((left, top), scale * SIDE, scale * SIDE, fill=False, edgecolor=colour)
            row[0].add_patch(square)
            with torch.no_grad():
                place = torch.tensor(places[number : number + 1])
                seen = view(sampler, scenes.images[number : number + 1], place, torch.Generator().manual_seed(0))
            panel.imshow(seen[0].permute(1, 2, 0).clamp(0, 1).numpy())
            for spine in panel.spines.values():
                spine.set(edgecolor=colour, linewidth=2, visible=True)
            if number == 0:
                panel.set_title(name.split(",")[0], fontsize=7)
