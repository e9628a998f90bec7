"""Registration beside its peers: how often each method finds the warp, and in what time.

    python -m benchmarks.registration --data DIR [--count 80] [--json FILE] [--threads N] [--without opencv]

The problems are the milder ones of section 6.4 (``benchmarks.problems``); then harder and easier ones: warps of other
sizes, translations only, and targets with noise, with another brightness and contrast, and with a part hidden. The
table gives the share of problems whose mean corner error, in half widths, ends below 0.02.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kornia.geometry.conversions import convert_affinematrix_to_homography
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from benchmarks import registration_peers as peers
from benchmarks.datasets import SIZES, load_images
from benchmarks.figures import MARKERS, label_ends, save_figure
from benchmarks.problems import SCALES, draw_parameters, make_targets, normalised, to_warps
from benchmarks.results import report
from benchmarks.runs import Job, add_options, run_cells
from benchmarks.samplers import WHITENED
from lms_geometry import Adam, Annealed, GaussNewton, register
from lms_geometry.figures import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILION
from lms_geometry.registration.metrics import corner_error

FOUND = 0.02
_NEAR = 0.3
# In the figure: the colour of the methods whose names have a word in them, the first that fits.
_FAMILIES = {
    "bilinear": GREY,
    "scale space": GREEN,
    "phase": ORANGE,
    "ECC": PURPLE,
    "kornia": VERMILION,
    "Gauss-Newton": BLUE,
    "Adam": BLUE,
}
PLAIN = ("8x", "4x")
TIMED, TIMED_SLOW, ROUNDS = 80, 2, 2

# Every set of problems: how much smaller the target is, how strong the warps, and what is done to the target.
CASES: dict[str, tuple[int, float, str]] = {
    "8x": (8, 1.0, ""),
    "4x": (4, 1.0, ""),
    "4x, warps / 2": (4, 0.5, ""),
    "4x, warps x 1.5": (4, 1.5, ""),
    "4x, translations": (4, 0.0, ""),
    "4x, noise": (4, 1.0, "noise"),
    "4x, light": (4, 1.0, "light"),
    "4x, hidden": (4, 1.0, "hidden"),
}
MAIN = "Gauss-Newton"
ROBUST = "Gauss-Newton, photometric, Huber"
FAST = "Gauss-Newton, 1 start, 20 steps"
STAGES = GaussNewton().stages
DRAWN = GaussNewton(sampler=Annealed(4.0, 0.0625, WHITENED))
# Ablations of the search: the arguments of ``register`` that differ from those of MAIN. They run on the plain problems
# only.
PARTS: dict[str, dict[str, Any]] = {
    "Gauss-Newton, 1 start": {"solver": GaussNewton(starts=1)},
    "Gauss-Newton, 3 starts": {"solver": GaussNewton(starts=3)},
    "Gauss-Newton, 8 starts": {"solver": GaussNewton(starts=8)},
    "Gauss-Newton, no start dropped until half of the steps": {
        "solver": GaussNewton(stages=(replace(STAGES[0], kept=5), *STAGES[1:]))
    },
    "Gauss-Newton, source not shrunk to match": {
        "solver": GaussNewton(stages=tuple(replace(stage, source_ratio=10**6) for stage in STAGES))
    },
    "Gauss-Newton, overlap only": {"overlap_only": True},
    "Gauss-Newton, affine": {"motion": "affine"},
    "Gauss-Newton, homography": {"motion": "homography"},
    "Gauss-Newton, homography, all of it from the start": {
        "motion": "homography",
        "solver": GaussNewton(stages=tuple(replace(stage, free=8) for stage in STAGES)),
    },
    "Gauss-Newton, whitened draws": {"solver": DRAWN},
    "Gauss-Newton, photometric, Huber, whitened draws": {
        "fit_gain_bias": True,
        "loss": "huber",
        "solver": DRAWN,
    },
    "Adam, whitened draws": {"solver": Adam(sampler=Annealed(8.0, 0.125, WHITENED))},
    "Gauss-Newton, 30 steps": {"solver": GaussNewton(steps=30)},
    "Gauss-Newton, 100 steps": {"solver": GaussNewton(steps=100)},
}

Method = Callable[[Tensor, Tensor], tuple[Tensor, Tensor | None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    add_options(parser, "registration")
    parser.add_argument("--count", type=int, default=80, help="photos, each with one warp")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--without", nargs="*", default=[], choices=("opencv", "kornia"), help="peers to leave out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    photos = load_images("photos", options.data, options.count)

    methods = _methods(options.without)
    jobs: list[Job] = [
        {"count": options.count, "seed": options.seed, "method": name, "case": case}
        for case in CASES
        for name in methods
        if name not in PARTS or case in PLAIN
    ]

    def measure(job: Job) -> dict[str, Any]:
        return _measure(methods[str(job["method"])], photos, str(job["case"]), options.seed)

    done: dict[str, dict[str, Any]] = {}
    for job, found in zip(jobs, run_cells(jobs, measure, photos, options.finished, "registration"), strict=True):
        done.setdefault(str(job["method"]), {})[str(job["case"])] = found
    times = _times({name: methods[name] for name in methods if name not in PARTS}, photos, options.seed)
    if options.json:
        recalls = {
            name: {case: _recall(found) for case, found in cases.items() if found} for name, cases in done.items()
        }
        draw(recalls, times, options.json.with_suffix(".png"))
    report(
        options.json,
        "Registration beside its peers",
        f"Recall below a corner error of {FOUND} half widths over {options.count} photos, one warp each. Time: "
        f"milliseconds per image of the 4x problems, in batches of {TIMED} (kornia's, of {TIMED_SLOW}), the least of "
        f"{ROUNDS} rounds in which the methods take turns. Scales have a standard deviation of sqrt(2)/2 in log2; "
        f"targets are 8 or 4 times smaller than the photos of {SIZES['photos']} pixels. "
        "Noise: of standard deviation 0.1. Light: a gain of 2 to the power of a normal of standard deviation 0.5, "
        "clipped at 1, and a bias of 0.2 times a normal. Hidden: a patch of one colour, 0.4 of the target's side.",
        ["method", *CASES, "ms"],
        [[name, *(_cell(by_case, case) for case in CASES), _time(times, name)] for name, by_case in done.items()],
        {
            **{
                f"{name}, {case}": " ".join(f"{error:.3f}" for error in found["errors"])
                for name, by_case in done.items()
                for case, found in by_case.items()
            },
            "seconds": times,
        },
        figure={
            "file": options.json.with_suffix(".png").name,
            "alt": "Left: recall against time an image at 4x, a point a method; right: recall against the size of the "
            "warps.",
        }
        if options.json
        else None,
        notes=_notes(done),
    )


def _methods(without: list[str]) -> dict[str, Method]:
    methods: dict[str, Method] = {
        MAIN: _ours(),
        ROBUST: _ours(fit_gain_bias=True, loss="huber"),
        FAST: _ours(solver=GaussNewton(steps=20, starts=1)),
        "Adam": _ours(solver=Adam()),
        "bilinear, Gauss-Newton": _ours(solver=GaussNewton(sampler="bilinear")),
        "scale space, Gauss-Newton": _peer(peers.scale_space_gauss_newton),
        "scale space, Adam": _peer(peers.scale_space_adam),
        "phase correlation": _peer(peers.phase_correlation),
    }
    if "opencv" not in without:
        methods["OpenCV ECC, Gaussian 1"] = _peer(peers.ecc(1))
        methods["OpenCV ECC, Gaussian 5"] = _peer(peers.ecc(5))
        methods["OpenCV ECC, pyramid of 2"] = _peer(peers.ecc(5, levels=2))
    if "kornia" not in without:
        methods["kornia ImageRegistrator"] = _peer(peers.kornia_registrator)
    return methods | {name: _ours(**given) for name, given in PARTS.items()}


def _ours(**given: Any) -> Method:  # noqa: ANN401
    def align(sources: Tensor, targets: Tensor) -> tuple[Tensor, Tensor | None]:
        generator = torch.Generator().manual_seed(0)
        found = register(sources, targets, **{"motion": "anisotropic", "generator": generator, **given})
        return normalised(found.matrix, sources, targets), found.score

    return align


def _peer(align: peers.Method) -> Method:
    return lambda sources, targets: (align(sources, targets), None)


def _measure(method: Method, photos: Tensor, case: str, seed: int) -> dict[str, Any]:
    """Corner errors in half widths, and scores."""
    truth, targets = _problems(photos, case, seed)
    found, scores = method(photos, targets)
    errors = corner_error(found, convert_affinematrix_to_homography(truth)).nan_to_num(100.0).clamp(max=100.0)
    return {
        "errors": [round(e, 5) for e in errors.tolist()],
        "scores": None if scores is None else [round(s, 4) for s in scores.tolist()],
    }


def _problems(photos: Tensor, case: str, seed: int) -> tuple[Tensor, Tensor]:
    """Warps ``(B, 2, 3)`` and targets."""
    rate, strength, change = CASES[case]
    strengths = torch.tensor([strength] * 3 + [strength or 1.0] * 2)
    truth = to_warps(draw_parameters(len(photos), SCALES["milder"], seed) * strengths)
    side = photos.shape[-1] // rate
    return truth, changed(make_targets(photos, truth, (side, side)), change, seed)


def _times(methods: dict[str, Method], photos: Tensor, seed: int) -> dict[str, float]:
    """Seconds an image of the 4x problems takes each method: the least of some rounds, in which they take turns."""
    photos = photos[:TIMED]
    _, targets = _problems(photos, "4x", seed)
    least = dict.fromkeys(methods, math.inf)
    for name in tqdm([*methods] * ROUNDS, desc="time"):
        count = TIMED_SLOW if name == "kornia ImageRegistrator" else len(photos)
        begin = time.perf_counter()
        methods[name](photos[:count], targets[:count])
        least[name] = min(least[name], (time.perf_counter() - begin) / count)
    return {name: round(seconds, 6) for name, seconds in least.items()}


def changed(targets: Tensor, change: str, seed: int) -> Tensor:
    """Targets with noise, in another light, or with a patch hidden."""
    generator = torch.Generator().manual_seed(1000 + seed)
    batch, side = len(targets), targets.shape[-1]
    if change == "noise":
        return targets + 0.1 * torch.randn(targets.shape, generator=generator)
    if change == "light":
        gain, bias = torch.randn(2, batch, 1, 1, 1, generator=generator)
        return targets * (0.5 * gain).clamp(-1, 1).exp2() + 0.2 * bias.clamp(-2, 2)
    if change == "hidden":
        patch_side = round(0.4 * side)
        corner = torch.randint(side - patch_side + 1, (batch, 2), generator=generator)
        colour = torch.rand(batch, targets.shape[1], 1, 1, generator=generator)
        place = torch.arange(side)
        rows, columns = ((c <= place) & (place < c + patch_side) for c in corner.T[..., None])
        return torch.where((rows[:, :, None] & columns[:, None])[:, None], colour, targets)
    return targets


def _recall(result: dict[str, Any]) -> float:
    return sum(e < FOUND for e in result["errors"]) / len(result["errors"])


def _cell(by_case: dict[str, Any], case: str) -> str:
    return f"{_recall(by_case[case]):.2f}" if case in by_case else "-"


def _time(times: dict[str, float], name: str) -> str:
    if name not in times:
        return "-"
    milliseconds = 1e3 * times[name]
    return f"{milliseconds:.0f}" if milliseconds >= 10 else f"{milliseconds:.1f}"


def roc_auc(scores: Tensor, good: Tensor) -> float:
    """The chance that a good one has a higher score than a bad one."""
    if good.all() or not good.any():
        return math.nan
    above = (scores[good][:, None] > scores[~good]).double() + 0.5 * (scores[good][:, None] == scores[~good]).double()
    return above.mean().item()


def _notes(done: dict[str, dict[str, Any]]) -> str:
    lines = []
    for name in (MAIN, ROBUST):
        if name not in done:
            continue
        results = done[name].values()
        errors = torch.tensor([e for result in results for e in result["errors"]])
        scores = torch.tensor([s for result in results for s in result["scores"]])
        areas = ", ".join(f"{roc_auc(scores, errors < limit):.3f} for errors below {limit}" for limit in (FOUND, _NEAR))
        lines.append(
            f"The score of *{name}* tells found from failed over all problems with an area under the curve of {areas}."
        )
    lines.append("OpenCV's and scikit-image's see grey images.")
    return " ".join(lines)


def draw(recalls: dict[str, dict[str, float]], times: dict[str, float], path: Path) -> None:
    """Recall against time and against the size of the warps; recalls are by method and case, times in seconds."""
    save_figure(path, (7.6, 3.7), partial(_draw_panels, recalls, times))


def _draw_panels(recalls: dict[str, dict[str, float]], times: dict[str, float], figure: Figure) -> None:
    by_time, by_size = figure.subplots(1, 2)
    sizes = {"4x, warps / 2": 0.5, "4x": 1.0, "4x, warps x 1.5": 1.5}
    lines = []
    for number, name in enumerate(name for name in recalls if name not in PARTS):
        family = next((colour for word, colour in _FAMILIES.items() if word in name), GREY)
        style = {"color": family, "marker": MARKERS[number % len(MARKERS)], "markersize": 5}
        if "4x" in recalls[name] and name in times:
            by_time.plot(times[name] * 1e3, recalls[name]["4x"], linestyle="", **style)
        points = [(size, recalls[name][case]) for case, size in sizes.items() if case in recalls[name]]
        if points:
            lines += by_size.plot(*zip(*points, strict=True), label=name, **style)
    by_time.set(xscale="log", xlabel="milliseconds per image, 4x", ylabel=f"recall at {FOUND}", ylim=(-0.05, 1.05))
    by_size.set(xlabel="size of the warps", ylim=(-0.05, 1.05), xlim=(0.45, 1.55))
    label_ends(by_size, lines, 0.075)


if __name__ == "__main__":
    main()
