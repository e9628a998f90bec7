"""Whether the gradient for a view's place points to the sign, by sampler, at a network that is held fixed.

    python -m benchmarks.hunt.gradient --data SIGNS --photos TRAIN TEST [--grains 0 0.1] [--steps N] [--json FILE]

Views lie beside the signs of test scenes. The table has the mean cosine of the step that lessens the classifier's loss
with the way to the sign.
"""

import math
from itertools import product

import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks.classification.samplers import Sampler
from benchmarks.commands import parser
from benchmarks.hunt.__main__ import COMPARED, add_options, materials, trained
from benchmarks.hunt.network import VIEW, Hunter, view
from benchmarks.hunt.scenes import SIDE, Material, compose, sides_at
from benchmarks.hunt.train import TEST_SEED
from benchmarks.results import report

TRAINED_WITH = "supersampled 3 x 3"
# The difficulties of scenes, and how many there are of each.
DIFFICULTIES, COUNT = (0.0, 0.3, 0.6, 1.0), 300
# The side of a view, and the most that its centre lies beside the sign's along each axis, in sides of the sign.
_SIDE, _ASIDE = 1.2, 0.4


def main() -> None:
    command = parser(__doc__)
    add_options(command)
    command.add_argument("--seed", type=int, default=0, help="of the network")
    options = command.parse_args()
    material, tested = materials(options)
    trained_in = max(options.grains)
    job = {"sampler": TRAINED_WITH, "grain": trained_in, "seed": options.seed, "steps": options.steps}
    network, _ = trained(job, material, options.finished)
    rows, raw = [], {}
    for grain, name in tqdm(list(product(options.grains, options.samplers)), desc="hunt.gradient"):
        values = [cosine(network, COMPARED[name], difficulty, grain, tested) for difficulty in DIFFICULTIES]
        rows.append([f"{grain:g}", name, *(f"{value:.2f}" for value in values)])
        raw[f"{name}, grain {grain:g}"] = values
    report(
        options.json,
        "A hunt for small signs, which way the gradient points",
        f"The mean cosine, over {COUNT} test scenes, of the step of a view's centre that lessens the loss with the way "
        f"from there to the sign. A view is {_SIDE:g} times as wide as the sign, and lies beside it by up to "
        f"{_ASIDE:g} of the sign's side along each axis. One network gives the loss in all rows, trained with "
        f"{TRAINED_WITH} bilinear reads in grain of {trained_in:g}; each sampler reads the same views for its "
        "classifier. Columns: the sides of signs, and how many times their views are shrunk.",
        ["grain", "sampler", *map(_column, DIFFICULTIES)],
        rows,
        raw,
    )


def _column(difficulty: float) -> str:
    shortest, longest = sides_at(difficulty)
    return f"{shortest:.0f} to {longest:.0f} px, {_SIDE * math.sqrt(shortest * longest) / VIEW:.1f}x"


def cosine(network: Hunter, sampler: Sampler, difficulty: float, grain: float, material: Material) -> float:
    """The mean cosine of the step that lessens the classifier's loss with the way from the view to the sign."""
    generator, found = torch.Generator().manual_seed(0), []
    for numbers in torch.arange(COUNT).split(50):
        scenes = compose(material, TEST_SEED, numbers.tolist(), grain, (difficulty, difficulty))
        side = 2 * scenes.sides[:, None] / SIDE  # normalised
        aside = _ASIDE * side * (2 * torch.rand(len(numbers), 2, generator=generator) - 1)
        centres = (scenes.centres + aside).requires_grad_()
        place = torch.cat((_SIDE * side / 2, centres), 1)
        scores = network.classify(view(sampler, scenes.images, place, generator))
        (gradient,) = torch.autograd.grad(F.cross_entropy(scores, scenes.labels, reduction="sum"), centres)
        found.append(F.cosine_similarity(-gradient, -aside))
    return torch.cat(found).mean().item()


if __name__ == "__main__":
    main()
