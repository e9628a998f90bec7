"""The figures of classification: error against steps, and average views of a class (Fig. 6)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from benchmarks.classification.data import SIZE, Images
from benchmarks.classification.networks import Network
from benchmarks.classification.samplers import BILINEAR, TRAINING, UNMASKED
from benchmarks.classification.train import Job, Split
from benchmarks.figures import LINES, look, number_look, save_figure
from benchmarks.peers import AUTHORS
from lms_geometry.figures import ORANGE, PURPLE

# The most classes whose average views are drawn, and the longest name that leaves room for two columns of a legend.
_CLASSES = 10
_LONG_NAME = 45

_STYLES: dict[str, dict[str, Any]] = {
    BILINEAR: LINES["bilinear"],
    "multi-scale (1, 5, 10)": LINES["multi-scale (1, 5, 10)"],
    "bilinear, border padding": LINES["bilinear"] | {"linestyle": ":"},
    "bilinear, blurred by 1 output pixel": LINES["scale space"] | {"linestyle": (0, (3, 1, 1, 1, 1, 1))},
    "bilinear, blurred by 0.5 output pixel": LINES["scale space"] | {"linestyle": "-."},
    "bilinear, blurred by 0.25 output pixel": LINES["scale space"],
    "bilinear, blurred by 0.125 output pixel": LINES["scale space"] | {"linestyle": ":"},
    "default": LINES["default"],
    "default, border padding": LINES["default"] | {"linestyle": ":"},
    "supersampled 3 x 3": look(ORANGE, "^"),
    "supersampled 3 x 3, border padding": look(ORANGE, "^", ":"),
    "mipmap": look(PURPLE, "v"),
    "mipmap, border padding": look(PURPLE, "v", ":"),
    "paper": LINES["paper's text"],
    "released code": LINES["released code's settings"],
    AUTHORS: LINES["released code's settings"] | {"linestyle": ":"},
    TRAINING: LINES["whitened, 5 to 0.125"],
    UNMASKED: LINES["whitened, 5 to 0.125"] | {"linestyle": "--"},
}


def draw_curves(path: Path, runs: Mapping[Job, Sequence[Sequence[float]]]) -> None:
    """Test error against steps: a panel per transformer and rate, a line per sampler, the range of its seeds shaded.

    Args:
        path: the file to write.
        runs: the curve of each run, as in :class:`Run`.
    """
    panels = list(dict.fromkeys((job.transformer, job.rate) for job in runs))
    samplers = list(dict.fromkeys(job.sampler for job in runs))
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    legend_columns = 1 if max(map(len, samplers)) > _LONG_NAME else 2
    legend_rows = -(-len(samplers) // legend_columns)

    def draw(figure: Figure) -> None:
        axes = figure.subplots(rows, columns, squeeze=False, sharey=True)
        for axis in axes.flat[len(panels) :]:
            axis.set_axis_off()
        for axis, (transformer, rate) in zip(axes.flat, panels, strict=False):
            for number, sampler in enumerate(samplers):
                curves = [curve for job, curve in runs.items() if job[:3] == (transformer, sampler, rate)]
                if not curves:
                    continue
                steps = [point[0] for point in min(curves, key=len)]
                errors = torch.tensor([[100 * point[2] for point in curve[: len(steps)]] for curve in curves])
                style = _STYLES.get(sampler, number_look(number))
                axis.plot(steps, errors.mean(0), label=sampler, **style)
                axis.fill_between(steps, errors.amin(0), errors.amax(0), color=style["color"], alpha=0.2, linewidth=0)
            axis.set_yscale("log", base=2)
            axis.yaxis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.25, 1.5)))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.set(title=f"{transformer}, {rate}x", xlabel="steps", ylabel="test error, %")
        lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
        figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=legend_columns)

    save_figure(path, (6.2, 2.3 * rows + 0.2 * legend_rows), draw)


@torch.no_grad()
def average_views(network: Network, split: Split, images: Images, classes: Sequence[int]) -> Tensor:
    """The mean over each class of a network's views, read at full size: ``(classes, C, SIZE, SIZE)``."""
    means = []
    for wanted in classes:
        canvas, seen, _ = split.batch((split.labels == wanted).nonzero())
        _, warp = network(canvas, seen, [torch.Generator().manual_seed(0)])
        grid = F.affine_grid(warp[:, 0, :2], [len(warp), 1, SIZE, SIZE], align_corners=False)
        full = images.pixels[images.labels == wanted].to(grid) / 255
        means.append(F.grid_sample(full, grid, align_corners=False).mean(0).cpu())
    return torch.stack(means)


def most_frequent(labels: Tensor) -> list[int]:
    """The ten classes with the most images, in ascending order."""
    return sorted(labels.bincount().topk(min(_CLASSES, int(labels.max()) + 1)).indices.tolist())


def draw_views(path: Path, views: Mapping[str, Tensor]) -> None:
    """A row of average views for each name."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots(len(views), 1, squeeze=False)
        for axis, (name, means) in zip(axes.flat, views.items(), strict=True):
            axis.imshow(torch.cat(tuple(means), -1).permute(1, 2, 0).expand(-1, -1, 3).clamp(0, 1).numpy())
            axis.set_title(name, loc="left", fontsize=7)
            axis.axis("off")

    save_figure(path, (6.2, 0.85 * len(views)), draw)
