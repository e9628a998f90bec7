"""Whether the gradient of a view's place points to the sign, by sampler, at a network that is held fixed.

    python -m benchmarks.hunt.gradient --data SIGNS --photos TRAIN TEST [--grains 0 0.1] [--steps N] [--json FILE]

Views of several scales lie beside the signs of test scenes. The table has the mean cosine between the step that lessens
the classifier's loss and the way to the sign.
"""

import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks.classification.samplers import Sampler
from benchmarks.commands import parser
from benchmarks.hunt.__main__ import COMPARED, add_options, materials, trained
from benchmarks.hunt.network import VIEW, Hunter, view
from benchmarks.hunt.scenes import SIDE, Material, compose
from benchmarks.hunt.train import TEST_SEED
from benchmarks.results import report

TRAINED_WITH = "supersampled 3 x 3"
# The scales of the views; the difficulty of the scenes, with signs of 40 to 79 pixels, and their number.
SCALES = (0.2, 0.4, 0.8)
DIFFICULTY, COUNT = 0.6, 500
# The most that a view's centre lies beside the sign's along each axis, as a share of the view's side.
_ASIDE = 0.4


def main() -> None:
    command = parser(__doc__)
    add_options(command)
    command.add_argument("--seed", type=int, default=0, help="of the network")
    options = command.parse_args()
    material, tested = materials(options)
    rows, raw = [], {}
    for grain in options.grains:
        job = {"sampler": TRAINED_WITH, "grain": grain, "seed": options.seed, "steps": options.steps}
        network, _ = trained(job, material, options.finished)
        for name in tqdm(options.samplers, desc=f"gradient, grain {grain:g}"):
            values = [cosine(network, COMPARED[name], scale, grain, tested) for scale in SCALES]
            rows.append([f"{grain:g}", name, *(f"{value:.2f}" for value in values)])
            raw[f"{name}, grain {grain:g}"] = values
    report(
        options.json,
        "A hunt for small signs, which way the gradient points",
        f"The mean cosine, over {COUNT} test scenes, of the step of a view's centre that lessens the loss with the way "
        "from there to the sign, by the scale of the view. The network is one that was trained with "
        f"{TRAINED_WITH} bilinear reads; each sampler reads the same views for its classifier. A pixel of the view "
        f"is {', '.join(f'{scale * SIDE / VIEW:.1f}' for scale in SCALES)} pixels of the photo wide.",
        ["grain", "sampler", *(f"scale {scale:g}" for scale in SCALES)],
        rows,
        raw,
    )


def cosine(network: Hunter, sampler: Sampler, scale: float, grain: float, material: Material) -> float:
    """The mean cosine of the step that lessens the classifier's loss with the way from the view to the sign."""
    generator, found = torch.Generator().manual_seed(0), []
    for numbers in torch.arange(COUNT).split(50):
        scenes = compose(material, TEST_SEED, numbers.tolist(), grain, (DIFFICULTY, DIFFICULTY))
        aside = 2 * scale * _ASIDE * (2 * torch.rand(len(numbers), 2, generator=generator) - 1)
        centres = (scenes.centres + aside).requires_grad_()
        place = torch.cat((torch.full((len(numbers), 1), scale), centres), 1)
        scores = network.classify(view(sampler, scenes.images, place, generator))
        (gradient,) = torch.autograd.grad(F.cross_entropy(scores, scenes.labels, reduction="sum"), centres)
        found.append(F.cosine_similarity(-gradient, -aside))
    return torch.cat(found).mean().item()


if __name__ == "__main__":
    main()
