"""Two samplers look for the same view of a photo, step by step: draws ``alignment.gif`` beside this file.

A photo is turned by 40 degrees, stretched and moved, and is known only by a version 8 times smaller. Adam looks for the
warp from the same start and with the same loss, once through bilinear sampling and once through linearized sampling.
Every frame is a step of ``Registration.path``. ``lms-geometry demo`` draws the same search as one picture.
"""

import io
from pathlib import Path

import torch
import torch.nn.functional as F
from kornia.geometry import denormalize_homography, homography_warp, warp_perspective
from matplotlib.figure import Figure
from PIL import Image
from skimage import data
from torch import Tensor

from lms_geometry import Adam, register
from lms_geometry.figures import BLUE, VERMILION, show
from lms_geometry.registration.plotting import draw_outline, outline

HERE = Path(__file__).parent
SAMPLERS = {"bilinear": ("bilinear sampling", VERMILION), "linearized": ("lms_geometry", BLUE)}
# The steps that are shown: every one at first, when much happens, and fewer later.
STEPS = [*range(0, 40, 2), *range(40, 100, 4), *range(100, 201, 10)]
DOTS_PER_INCH, FRAME, LAST_FRAME = 100, 110, 3500  # the last two in milliseconds


def main() -> None:
    """Align with both samplers and draw the frames."""
    photo = torch.from_numpy(data.astronaut()).permute(2, 0, 1)[None].float() / 255
    source = F.interpolate(photo, (256, 256), mode="area")
    angle = torch.deg2rad(torch.tensor(40.0))
    cos, sin = angle.cos().item(), angle.sin().item()
    truth = torch.tensor([[[1.4 * cos, -0.8 * sin, 0.2], [1.4 * sin, 0.8 * cos, -0.1], [0.0, 0.0, 1.0]]])
    target = homography_warp(source, truth, (32, 32))
    solvers = {"bilinear": Adam(sampler="bilinear"), "linearized": Adam()}
    paths = {name: register(source, target, "anisotropic", solver).path[:, 0] for name, solver in solvers.items()}
    sought = outline(denormalize_homography(truth, (32, 32), (256, 256), align_corners=False), target)[0]
    frames = [draw(source, target, sought, {name: path[: step + 1] for name, path in paths.items()}) for step in STEPS]
    palette = frames[-1].quantize(255, Image.Quantize.MEDIANCUT)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [FRAME] * (len(indexed) - 1) + [LAST_FRAME]
    path = HERE / "alignment.gif"
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=durations, loop=0, optimize=True)
    print(f"{path}: {len(frames)} frames of {frames[0].size}, {path.stat().st_size / 1e6:.2f} MB")


def draw(source: Tensor, target: Tensor, sought: Tensor, paths: dict[str, Tensor]) -> Image.Image:
    """One frame: the photo with both outlines, and the three small views."""
    figure = Figure(figsize=(7.2, 3.1), dpi=DOTS_PER_INCH, facecolor="white")
    scene, *views = (
        figure.add_axes(place)
        for place in (
            (0.01, 0.02, 0.415, 0.88),
            (0.445, 0.1, 0.175, 0.7),
            (0.63, 0.1, 0.175, 0.7),
            (0.815, 0.1, 0.175, 0.7),
        )
    )
    show(scene, source[0], f"Where is the small view? Step {len(paths['linearized']) - 1}")
    draw_outline(scene, sought, source[0], color="white", linewidth=3.5)
    for name, (_, colour) in SAMPLERS.items():
        last = torch.linalg.inv(paths[name][-1:])
        draw_outline(scene, outline(last, target)[0], source[0], color=colour, linewidth=3 if name == "bilinear" else 2)
    scene.set(xlim=(-92, 348), ylim=(348, -92))
    show(views[0], target[0], "the small view")
    for axes, (name, (label, colour)) in zip(views[1:], SAMPLERS.items(), strict=True):
        show(axes, warp_perspective(source, paths[name][-1:], (32, 32))[0].clamp(0, 1), label)
        axes.title.set(color=colour, fontweight="bold", fontsize=9.5)
        axes.spines[:].set(color=colour, linewidth=2.5)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB")


if __name__ == "__main__":
    main()
