"""The gradient field of section 6.3, Fig. 8: does descent on a translation point to the truth?

    python -m benchmarks.gradients --data DIR [--json FILE]

A photo is shrunk and, as in the authors' notebook, moved over a grid of translations, up to half its width either way.
At each translation the direction of descent of the squared error is compared with the direction to the truth. The table
gives the share of directions within 45 degrees, which is 0.25 for directions at random, and the mean angle. The figure
shows the directions on a photo, and the share as the distance from the truth grows.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.commands import parser
from benchmarks.datasets import NAMES, SIZES, load_images
from benchmarks.figures import LINES, save_beside
from benchmarks.peers import AUTHORS
from benchmarks.problems import make_targets
from benchmarks.results import report
from benchmarks.runs import Job, add_options, run_cells
from benchmarks.samplers import (
    DEFAULT,
    MASKED,
    PAPER,
    PLANE,
    WHITENED,
    Read,
    Sampler,
    authors,
    bilinear,
    linearized,
    mipmapped,
    multi_scale,
    on_pyramid,
    released,
    scale_space,
    supersampled,
)
from lms_geometry.figures import BLUE, VERMILION

# The largest translation along an axis, in half widths, and the number of translations along an axis.
REACH, POINTS = 1.0, 10
# The outer radii of the rings around the truth in which shares are measured.
DISTANCES = (0.3, 0.6, 0.9, REACH * 2**0.5)
SAMPLERS: dict[str, Sampler] = {
    "bilinear": bilinear,
    "multi-scale (1, 5, 10)": multi_scale,
    "supersampled 3 x 3": supersampled(3),
    "mipmap": mipmapped(),
    "scale space, 1": scale_space(1.0),
    "scale space, 2": scale_space(2.0),
    "paper's text": linearized(PAPER),
    "paper's, mask off": linearized(replace(PAPER, mask_out_of_bounds=False)),
    "paper's, mask off, K = 16": linearized(replace(PAPER, num_samples=16, mask_out_of_bounds=False)),
    "released code's settings": released,
    "whitened, mask off": linearized(WHITENED),
    "whitened, mask off, sigma = 4": linearized(replace(WHITENED, sigma=4)),
    "whitened on a matched pyramid": on_pyramid(WHITENED),
    "the same, sigma = 2": on_pyramid(replace(WHITENED, sigma=2)),
    "whitened, sigma 0.3, masked": linearized(MASKED),
    "default": linearized(DEFAULT),
    "default, plane": linearized(PLANE),
    "default, sigma = 1": linearized(replace(DEFAULT, sigma=1)),
    "default, plane, sigma = 1": linearized(replace(PLANE, sigma=1)),
    "default, sigma = 4": linearized(replace(DEFAULT, sigma=4)),
    "default, plane, sigma = 4": linearized(replace(PLANE, sigma=4)),
}
# The samplers of the figure's lower half, and their labels.
DRAWN = {
    "bilinear": "bilinear",
    "multi-scale (1, 5, 10)": "multi-scale (1, 5, 10)",
    "scale space, 2": "scale space",
    "paper's text": "paper's text",
    "released code's settings": "released code's settings",
    "whitened, mask off, sigma = 4": "whitened, sigma = 4",
    "default": "default",
    "default, sigma = 1": "default, sigma = 1",
}
ALT = (
    "Above, a photo under a field of arrows for three samplers. Bilinear's point everywhere; the linearized ones to "
    "the centre, where the truth is. Below, the share of good directions as the distance from the truth grows."
)
NOTES = (
    "The paper shows arrows on photos and gives no numbers; its claim, that the linearized gradient points to the "
    "truth where the bilinear one does not, is what the table measures. Where nearly all of a photo has left the view, "
    "the way out lowers the error as the way back does; so the far directions are hard for every sampler. Bilinear's "
    "share depends on where the grid falls between texels: from 0.1 to 0.6 with other spacings of it. The default "
    "looks as far as an output pixel reaches; a wider sigma looks further."
)
# The samplers of the figure's upper half, and their labels.
ARROWS = {
    "bilinear": "bilinear",
    "paper's text": "paper's text",
    "whitened, mask off, sigma = 4": "whitened, sigma = 4",
}


# From the way back to the way away.
_BLUE_TO_VERMILION = LinearSegmentedColormap.from_list("angle", [BLUE, "#ffffff", VERMILION])


def main() -> None:
    command = parser(__doc__)
    add_options(command, "gradients")
    command.add_argument("--images", choices=tuple(SIZES), default="photos")
    command.add_argument("--count", type=int, default=40, help="images")
    command.add_argument("--rates", type=int, nargs="+", default=[8, 4, 2, 1], help="how many times to shrink")
    command.add_argument("--authors", type=Path, help="a folder with the authors' release, for one more sampler")
    options = command.parse_args()
    images = load_images(options.images, options.data, options.count)
    samplers = SAMPLERS | ({AUTHORS: authors(options.authors)} if options.authors else {})

    jobs: list[Job] = [
        {"count": options.count, "seed": options.seed, "rate": rate, "sampler": name}
        for rate in options.rates
        for name in samplers
    ]
    cells = run_cells(jobs, lambda job: _measure(images, samplers, job), images, options.finished, "gradients")
    found = {(str(job["sampler"]), int(job["rate"])): cell for job, cell in zip(jobs, cells, strict=True)}

    draw = partial(_draw, images[:1], found, options.rates, options.seed)
    figure = save_beside(options.json, (6.2, 4.6), ALT, draw)
    report(
        options.json,
        "Gradient field",
        f"Section 6.3, Fig. 8: the share of descent directions within 45 degrees of the truth, and the mean angle, "
        f"over {options.count} {NAMES[options.images]}. Each is shrunk and moved over a grid of {POINTS} x {POINTS} "
        "translations up to the half width either way, as in the authors' notebook. Directions at random have 0.25 and "
        "90°.",
        ["sampler", *(f"{rate}x" for rate in options.rates)],
        [[name, *(f"{found[name, r][0]:.2f}, {found[name, r][1]:.0f}°" for r in options.rates)] for name in samplers],
        {
            "distances": DISTANCES,
            **{f"{name}, {rate}x": " ".join(f"{v:.4g}" for v in cell) for (name, rate), cell in found.items()},
        },
        figure,
        NOTES,
    )


def angles_to_truth(read: Read, images: Tensor, rate: float, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Angles between descent and the direction to the truth, over a grid of translations.

    Returns:
        The angles in degrees, ``(points, images)``; the translations, ``(points, 2)``; the gradients for the
        translations, ``(points, images, 2)``.
    """
    generator = torch.Generator().manual_seed(seed)
    side = round(images.shape[-1] / rate)
    truth = torch.eye(2, 3).repeat(len(images), 1, 1)
    target = make_targets(images, truth, (side, side))
    # An even number of points leaves out the truth itself, from which no direction leads to it.
    axis = torch.linspace(-REACH, REACH, POINTS)
    shifts, gradients = torch.cartesian_prod(axis, axis), []
    for shift in shifts:
        translation = shift.repeat(len(images), 1).requires_grad_()
        warps = torch.cat((truth[:, :, :2], translation[:, :, None]), 2)
        moved = read(warps, (side, side), 0, generator)
        (gradient,) = torch.autograd.grad((moved - target).square().mean((1, 2, 3)).sum(), translation)
        gradients.append(gradient)
    gradient = torch.stack(gradients)
    # Where every pixel sees padding only, the gradient is 0 and counts as a right angle.
    cosine = F.cosine_similarity(gradient, shifts[:, None], dim=-1)
    return cosine.clamp(-1, 1).acos().rad2deg(), shifts, gradient


def _measure(images: Tensor, samplers: dict[str, Sampler], job: Job) -> list[float]:
    """The share within 45 degrees and the mean angle; then all shares, and all mean angles, of the rings."""
    read = samplers[str(job["sampler"])](images)
    angles, shifts, _ = angles_to_truth(read, images, float(job["rate"]), int(job["seed"]))
    rings = torch.bucketize(shifts.norm(dim=1), torch.tensor(DISTANCES[:-1]))
    parts = [angles, *(angles[rings == ring] for ring in range(len(DISTANCES)))]
    shares, means = [(part < 45).float().mean().item() for part in parts], [part.mean().item() for part in parts]
    return [shares[0], means[0], *shares[1:], *means[1:]]


def _draw(
    photo: Tensor, found: dict[tuple[str, int], list[float]], rates: list[int], seed: int, figure: Figure
) -> None:
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.3, 1))[:, 0]
    for panel, (name, label) in zip(above.subplots(1, len(ARROWS)), ARROWS.items(), strict=True):
        angles, shifts, gradients = angles_to_truth(SAMPLERS[name](photo), photo, max(rates), seed)
        panel.imshow(photo[0].expand(3, -1, -1).permute(1, 2, 0).numpy(), extent=(-1, 1, 1, -1), alpha=0.6)
        x, y = -F.normalize(gradients[:, 0], dim=-1).T.numpy()
        look = {
            "cmap": _BLUE_TO_VERMILION,
            "clim": (0, 180),
            "angles": "xy",
            "pivot": "mid",
            "width": 0.014,
            "edgecolor": "#222222",
            "linewidth": 0.2,
        }
        panel.quiver(*shifts.T.numpy(), x, y, angles[:, 0].numpy(), **look)
        panel.plot(0, 0, "+", color="white", markersize=8)
        panel.set_axis_off()
        panel.set(title=f"{label}, {max(rates)}x", xlim=(-1.15, 1.15), ylim=(1.15, -1.15))
    middles = [(a + b) / 2 for a, b in zip((0.0, *DISTANCES), DISTANCES, strict=False)]
    panels = below.subplots(1, len(rates), sharey=True, squeeze=False)[0]
    for panel, rate in zip(panels, rates, strict=True):
        for sampler, label in DRAWN.items():
            if (sampler, rate) in found:
                panel.plot(middles, found[sampler, rate][2 : 2 + len(DISTANCES)], label=label, **LINES[label])
        panel.set(title=f"{rate}x", xlabel="distance", ylim=(0, 1.02), xlim=(0, DISTANCES[-1]))
    panels[0].set_ylabel("within 45°")
    below.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)


if __name__ == "__main__":
    main()
