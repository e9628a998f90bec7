"""A registration loop of one's own, with kornia's warp and with what can take its place.

    python -m benchmarks.drop_in [--json FILE]

A photo is turned and moved, and then shrunk 8 times as a camera would, by the mean over 8 x 8 pixels. Adam looks for
the angle and the two offsets from the squared difference, from no turn and no offset, by nothing but the gradient that
a warp has for its matrix. The photos come with scikit-image, so that nothing has to be downloaded.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from kornia.geometry import get_rotation_matrix2d, warp_affine
from skimage import data
from torch import Tensor
from tqdm import tqdm

from benchmarks import antialiasing
from benchmarks.commands import timing_parser
from benchmarks.results import report
from lms_geometry import Annealed, LinearizedSampling, warp_affine_linearized
from lms_geometry.warp import pixel_grid

SIDE, SHRUNK = 256, 8
VIEW = (SIDE // SHRUNK, SIDE // SHRUNK)
STEPS, LEARNING_RATE = 150, 1.0
DRAWS = 12
# The largest angle in degrees, and the largest offset along an axis as a share of the side.
FARTHEST = {"nearer": (40.0, 0.1), "farther": (70.0, 0.18)}
# A problem counts as found below these: degrees, and pixels of the small view.
CLOSE = (1.0, 0.5)

Warp = Callable[[Tensor, Tensor, int], Tensor]


def supersampled(images: Tensor, M: Tensor, step: int) -> Tensor:  # noqa: ARG001
    """The mean of 3 x 3 bilinear reads in each output pixel."""
    grid, _ = pixel_grid(M, VIEW, (SIDE, SIDE), align_corners=False)
    return antialiasing.supersampled(images, grid, 3)


def mipmapped(images: Tensor, M: Tensor, step: int) -> Tensor:  # noqa: ARG001
    grid, _ = pixel_grid(M, VIEW, (SIDE, SIDE), align_corners=False)
    return antialiasing.mipmapped(images, grid)


def annealed(schedule: Annealed) -> Warp:
    samplings = list(schedule.over(STEPS))
    return lambda images, M, step: warp_affine_linearized(images, M, VIEW, sampling=samplings[step])


WARPS: dict[str, Warp] = {
    "kornia's warp_affine": lambda images, M, _: warp_affine(images, M, VIEW),
    "3 x 3 supersampling": supersampled,
    "mipmap": mipmapped,
    "warp_affine_linearized": lambda images, M, _: warp_affine_linearized(images, M, VIEW),
    "the same, annealed": annealed(Annealed(4.0, 0.29, LinearizedSampling())),
}


def main() -> None:
    command = timing_parser(__doc__, rounds=5)
    options = command.parse_args()
    torch.set_num_threads(options.threads)
    photos = load_photos().repeat_interleave(DRAWS, 0)
    rows, raw = [], {}
    times = _time_steps(photos[:1], options.rounds)
    for name, warp in tqdm(WARPS.items(), desc="drop_in", unit="warp"):
        row = [name]
        for case, farthest in FARTHEST.items():
            angle, move = draw_problems(len(photos), *farthest)
            degrees, pixels = errors(warp, photos, angle, move)
            found = (degrees < CLOSE[0]) & (pixels < CLOSE[1])
            row += [f"{int(found.sum())} of {len(found)}", f"{degrees.median():.2f}"]
            raw[f"{name}, {case}"] = " ".join(f"{value:.3f}" for value in degrees.tolist())
        rows.append([*row, f"{1e3 * times[name]:.1f}"])
    (near, near_share), (far, far_share) = FARTHEST.values()
    report(
        options.json,
        "A loop of one's own",
        f"Four photos of {SIDE} x {SIDE} pixels, each turned and moved {DRAWS} times at random and shrunk {SHRUNK} "
        f"times by means over pixels. {STEPS} steps of Adam look for the angle and the offset. Nearer: up to "
        f"{near:g} degrees and {near_share:g} of the side. Farther: up to {far:g} degrees and {far_share:g} of "
        f"the side. Found: off by less than {CLOSE[0]:g} degree and by less than half a pixel of the small view. Time: "
        "milliseconds for one step with one photo, the least of several rounds.",
        ["warp", "nearer: found", "degrees off, median", "farther: found", "degrees off, median", "ms a step"],
        rows,
        raw,
        notes="The annealed row is `Annealed(4.0, 0.29, LinearizedSampling()).over(150)`: a wider pixel at first.",
    )


def load_photos() -> Tensor:
    """Four photos of scikit-image, in colour, cut square: ``(4, 3, SIDE, SIDE)``."""
    photos = data.astronaut(), data.chelsea()[:, 75:375], data.coffee()[:, 100:500], data.rocket()[:, 106:533]
    tensors = [torch.from_numpy(photo.copy()).permute(2, 0, 1)[None].float() / 255 for photo in photos]
    return torch.cat([F.interpolate(photo, (SIDE, SIDE), mode="area") for photo in tensors])


def draw_problems(count: int, degrees: float, share: float) -> tuple[Tensor, Tensor]:
    """Angles in degrees ``(count,)`` and offsets in pixels of the photo ``(count, 2)``, even within the limits."""
    drawn = 2 * torch.rand(3, count, generator=torch.Generator().manual_seed(0)) - 1
    return degrees * drawn[0], share * SIDE * drawn[1:].T


def matrix(angle: Tensor, move: Tensor, shrunk: int) -> Tensor:
    """From the photo to the view: a turn about the middle, an offset in pixels of the photo, and the shrinking."""
    middle, size = (SIDE - 1) / 2, torch.full((len(angle), 2), 1 / shrunk)
    turned = get_rotation_matrix2d(torch.full((len(angle), 2), middle), angle, size)
    # That keeps the middle of the photo where it is; the view has its middle elsewhere.
    shift = move / shrunk + (SIDE / shrunk - 1) / 2 - middle
    return torch.cat((turned[:, :, :2], turned[:, :, 2:] + shift[:, :, None]), 2)


def errors(warp: Warp, photos: Tensor, angle: Tensor, move: Tensor) -> tuple[Tensor, Tensor]:
    """How far off Adam ends: degrees, and pixels of the view."""
    targets = F.avg_pool2d(warp_affine(photos, matrix(angle, move, 1), (SIDE, SIDE)), SHRUNK)
    found_angle = torch.zeros(len(photos), requires_grad=True)
    found_move = torch.zeros(len(photos), 2, requires_grad=True)
    adam = torch.optim.Adam([found_angle, found_move], LEARNING_RATE)
    for step in range(STEPS):
        view = warp(photos, matrix(found_angle, found_move, SHRUNK), step)
        loss = (view - targets).square().mean((1, 2, 3)).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
    return (found_angle.detach() - angle).abs(), (found_move.detach() - move).norm(dim=1) / SHRUNK


def _time_steps(photo: Tensor, rounds: int) -> dict[str, float]:
    """Seconds of a forward and a backward pass with one photo; the warps take turns."""
    times = dict.fromkeys(WARPS, float("inf"))
    for _ in range(20 * rounds):
        for name, warp in WARPS.items():
            angle, move = torch.full((1,), 20.0, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
            start = time.perf_counter()
            warp(photo, matrix(angle, move, SHRUNK), 0).square().mean().backward()
            times[name] = min(times[name], time.perf_counter() - start)
    return times


if __name__ == "__main__":
    main()
