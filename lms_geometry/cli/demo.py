"""``lms-geometry demo``: recover a strong warp of a photo by bilinear and by linearized sampling."""

import argparse
from typing import IO

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from lms_geometry._kornia import denormalize_homography, homography_warp, normalize_homography
from lms_geometry.cli.console import say
from lms_geometry.cli.results import Results
from lms_geometry.figures import new_figure, show
from lms_geometry.registration import Adam, Registration, register
from lms_geometry.registration.metrics import corner_error
from lms_geometry.registration.plotting import draw_outline, draw_path, outline

# The corner error, in half widths, below which the warp counts as recovered.
_RECOVERED = 0.02


def run_demo(options: argparse.Namespace) -> int:
    """Warp a photo, shrink it 8 times, and recover the warp by Adam with bilinear and with linearized sampling."""
    from skimage import data

    results = Results(options.out, [], options.overwrite)
    results.check("demo.png")
    photo = rearrange(torch.from_numpy(data.astronaut()), "h w c -> 1 c h w").float() / 255
    source = F.interpolate(photo, (256, 256), mode="area")
    # Target to source, normalised: a rotation by 40 degrees, scales of 1.4 and 0.8, a translation by a tenth of the
    # width and a twentieth of the height.
    angle = torch.deg2rad(torch.tensor(40.0))
    cos, sin = angle.cos().item(), angle.sin().item()
    truth = torch.tensor([[[1.4 * cos, -0.8 * sin, 0.2], [1.4 * sin, 0.8 * cos, -0.1], [0.0, 0.0, 1.0]]])
    target = homography_warp(source, truth, (32, 32))
    say("A photo of 256 x 256 pixels, turned, stretched and moved, seen at 32 x 32.")
    found: dict[str, Registration] = {}
    errors: dict[str, float] = {}
    for name, solver in {"bilinear": Adam(sampler="bilinear"), "linearized": Adam()}.items():
        found[name] = register(source, target, "anisotropic", solver, progress=True)
        matrix = normalize_homography(found[name].matrix, (256, 256), (32, 32), align_corners=False).inverse()
        errors[name] = corner_error(matrix, truth).item()
        verdict = "recovered" if errors[name] < _RECOVERED else "failed"
        say(f"{name:>10}: corner error {errors[name]:.4f} of half the width: {verdict}")
    with results.open("demo.png") as file:
        _draw(source[0], target[0], truth, found, errors, file)
    say(f"The picture is {options.out / 'demo.png'}")
    return 0


def _draw(
    source: Tensor,
    target: Tensor,
    truth: Tensor,
    found: dict[str, Registration],
    errors: dict[str, float],
    file: IO[bytes],
) -> None:
    """As the paper's Fig. 1: the outline that is sought, and for each sampler the path it took and what it found."""
    sought = outline(denormalize_homography(truth, (32, 32), (256, 256), align_corners=False), target)[0]
    figure = new_figure(11, 6.6)
    axes = figure.subplots(2, 3)
    show(axes[0, 0], source, "source, 256 x 256 (white: what is sought)")
    draw_outline(axes[0, 0], sought, source, color="white", linewidth=2)
    show(axes[1, 0], target, "target, 32 x 32")
    for column, (name, result) in enumerate(found.items(), start=1):
        show(axes[0, column], source, f"{name}: its path, dark to bright")
        draw_outline(axes[0, column], sought, source, color="white", linewidth=2)
        draw_path(axes[0, column], result.path[:, 0], source, target)
        show(axes[1, column], result.warp()[0], f"{name}: corner error {errors[name]:.4f}")
    figure.savefig(file, format="png", dpi=120)
