"""Boxes moved onto a target crop by gradient descent alone: draws ``box_fitting.png`` beside this file.

The crop is 128 pixels wide and high, and RoIAlign pools it to 32 x 32, four times smaller. From the same random starts,
Adam follows the gradient of bilinear samples, of bilinear samples of a blurred photo, and the slope of a plane fitted
to drawn samples, which are spread over many bins at first.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from skimage import data
from torch import Tensor

from lms_geometry import LinearizedSampling, roi_align_linearized

TRUE_BOX = torch.tensor([120.0, 60.0, 248.0, 188.0])
BINS, SAMPLING_RATIO = 32, 2
NUM_STARTS, STEPS, LEARNING_RATE = 50, 200, 1.0
CONVERGED = 0.9  # intersection over union with the true box
COLOURS = {"bilinear": "C1", "linearized": "C0", "bilinear, blurred photo": "C2"}
HERE = Path(__file__).parent
# Drawn samples with the value of an ordinary sampler.
_WHITENED = LinearizedSampling(num_samples=8, jitter=1.0, intercept=False, pattern="whitened", slope="plane")

Pool = Callable[[Tensor, Tensor, float], Tensor]


def main() -> None:
    """Fit the boxes in each way and draw what came out."""
    photo = torch.from_numpy(data.chelsea()).permute(2, 0, 1)[None].float() / 255
    target = bilinear(photo, TRUE_BOX[None], 0.0)
    starts = draw_starts(torch.Generator().manual_seed(0))
    ways: dict[str, Pool] = {"bilinear": bilinear, "linearized": linearized, "bilinear, blurred photo": blurred}
    paths = {name: fit(photo, target, starts, pool) for name, pool in ways.items()}
    overlaps = {name: overlap(path) for name, path in paths.items()}
    for name, values in overlaps.items():
        print(f"{name}: {(values[-1] > CONVERGED).sum().item()} of {NUM_STARTS} starts converge")
    draw(photo, target, paths, overlaps)


def draw_starts(generator: torch.Generator) -> Tensor:
    """Boxes up to half a width off the true one, and up to 1.4 times wider or narrower, higher or lower."""
    size, centre = TRUE_BOX[2:] - TRUE_BOX[:2], (TRUE_BOX[2:] + TRUE_BOX[:2]) / 2
    shift, zoom = torch.rand(2, NUM_STARTS, 2, generator=generator) - 0.5
    centre, size = centre + shift * size, size * 2**zoom
    return torch.cat((centre - size / 2, centre + size / 2), 1)


def bilinear(photo: Tensor, boxes: Tensor, spread: float) -> Tensor:  # noqa: ARG001
    """RoIAlign by ``F.grid_sample``, differentiated as it stands."""
    share = (torch.arange(BINS * SAMPLING_RATIO) + 0.5) / (BINS * SAMPLING_RATIO)
    (left, top), (right, bottom) = boxes[:, :2].T[..., None], boxes[:, 2:].T[..., None]
    x = 2 * (left + (right - left) * share) / photo.shape[-1] - 1
    y = 2 * (top + (bottom - top) * share) / photo.shape[-2] - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), -1)
    points = F.grid_sample(photo.expand(len(boxes), -1, -1, -1), grid, align_corners=False)
    return F.avg_pool2d(points, SAMPLING_RATIO)


def blurred(photo: Tensor, boxes: Tensor, spread: float) -> Tensor:
    """The same on the photo, blurred as far as the drawn samples reach in a box of the true size."""
    sigma = spread * (TRUE_BOX[2] - TRUE_BOX[0]).item() / BINS
    width = 2 * round(3 * sigma) + 1
    edges = F.pad(photo, (width // 2,) * 4, "replicate")
    smooth = gaussian_blur2d(edges, width, (sigma, sigma))[..., width // 2 : -(width // 2), width // 2 : -(width // 2)]
    return bilinear(smooth, boxes, spread)


def linearized(photo: Tensor, boxes: Tensor, spread: float) -> Tensor:
    """The library's, with the value of the first."""
    sampling = replace(_WHITENED, sigma=spread)
    return roi_align_linearized(photo, [boxes], BINS, 1.0, SAMPLING_RATIO, aligned=True, sampling=sampling)


def fit(photo: Tensor, target: Tensor, starts: Tensor, pool: Pool) -> Tensor:
    """Boxes before every step and after the last, ``(STEPS + 1, NUM_STARTS, 4)``."""
    torch.manual_seed(0)
    boxes = starts.clone().requires_grad_()
    optimizer = torch.optim.Adam([boxes], LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [STEPS * 3 // 4, STEPS * 9 // 10], 0.3)
    path = [starts]
    for step in range(STEPS):
        # From 8 bins down to half a bin over the first three quarters of the steps.
        spread = 8 * (0.5 / 8) ** min(step / (0.75 * STEPS), 1)
        loss = (pool(photo, boxes, spread) - target).square().mean((1, 2, 3)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        path.append(boxes.detach().clone())
    return torch.stack(path)


def overlap(boxes: Tensor) -> Tensor:
    """Intersection over union with the true box."""
    shared = torch.minimum(boxes[..., 2:], TRUE_BOX[2:]) - torch.maximum(boxes[..., :2], TRUE_BOX[:2])
    shared, area, true_area = (
        size.clamp_min(0).prod(-1) for size in (shared, boxes[..., 2:] - boxes[..., :2], TRUE_BOX[2:] - TRUE_BOX[:2])
    )
    return shared / (area + true_area - shared)


def draw(photo: Tensor, target: Tensor, paths: dict[str, Tensor], overlaps: dict[str, Tensor]) -> None:
    """One start and where it went; what the boxes hold there; the share of all starts that arrived, step by step."""
    arrived = {name: values[-1] > CONVERGED for name, values in overlaps.items()}
    shown = int((arrived["linearized"] & ~arrived["bilinear"]).nonzero()[0])
    start = paths["linearized"][0, shown]

    plt.style.use(HERE.parent / "figure.mplstyle")
    figure = plt.figure(figsize=(9, 2.7))
    left, middle, right = figure.add_gridspec(1, 3, width_ratios=(3.2, 2.2, 3.2))
    scene = figure.add_subplot(left, title="one of the starts, dashed, and the target, white", xticks=[], yticks=[])
    scene.imshow(to_array(photo))
    outline(scene, TRUE_BOX, "white", linewidth=5)
    outline(scene, start, "white", linestyle="--")
    crops = {"target": target, "start": bilinear(photo, start[None], 0)}
    for name in ("bilinear", "linearized"):
        end = paths[name][-1, shown]
        outline(scene, end, COLOURS[name])
        crops[name] = bilinear(photo, end[None], 0)
    for cell, (name, crop) in zip(middle.subgridspec(2, 2), crops.items(), strict=True):
        axes = figure.add_subplot(cell, title=name, xticks=[], yticks=[])
        axes.imshow(to_array(crop))
        axes.spines[:].set(visible=name in COLOURS, color=COLOURS.get(name), linewidth=2)
    share = figure.add_subplot(right, title=f"all {NUM_STARTS} starts", xlabel="step", ylabel="share at the target")
    for name, values in overlaps.items():
        share.plot((values > CONVERGED).float().mean(1), color=COLOURS[name], label=name)
    share.set_ylim(0, 1)
    share.legend(loc="center right")
    figure.savefig(HERE / "box_fitting.png")


def outline(axes: Axes, box: Tensor, colour: str, linewidth: float = 2, linestyle: str = "-") -> None:
    """Draw a box; pixel centres lie at halves in a box and at integers on the axes."""
    (x, y), (width, height) = (box[:2] - 0.5).tolist(), (box[2:] - box[:2]).tolist()
    rectangle = Rectangle((x, y), width, height, fill=False, edgecolor=colour, linewidth=linewidth, linestyle=linestyle)
    axes.add_patch(rectangle)


def to_array(image: Tensor) -> NDArray[np.float32]:
    """For ``imshow``."""
    return image[0].permute(1, 2, 0).numpy()


if __name__ == "__main__":
    main()
