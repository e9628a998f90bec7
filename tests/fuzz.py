"""Random calls of the public functions: backends against one another and against float64, and bad arguments.

    python tests/fuzz.py [--calls N] [--first N] [--failures N]
    TRITON_INTERPRET=1 python tests/fuzz.py --backend triton

A case draws a function, tensors and settings from a seed of its own, so that a case that fails can be run alone:
``--first NUMBER --calls 1``. Each call of a public function counts. A case is one of four:

- **numbers**: values and gradients of the C kernel, on every instruction set of this machine, or of the Triton kernels
  are compared with those of plain torch in float32, and these with plain torch in float64. They must be finite, and a
  kernel may differ from torch by eight times what float32 costs torch. Where a read falls on a texel but for rounding,
  a derivative jumps. So the result in float64 is also computed at inputs that are moved by a few roundings, and how far
  it moves is allowed.
- **ties**: the same at points that are made for rounding to decide: mirrored grids, rows of points on the first or the
  last row of texels, Jacobians at their limit.
- **arguments**: one argument of a function or a class is replaced by an odd one. The call must succeed or raise an
  error that is the library's own and names the argument.
- **register**: two small images are registered, which are related or not, blank, or huge in value. The matrix must be
  finite and the score a number from 0 to 1. In every second of these cases one argument is replaced by an odd one.
"""

import argparse
import contextlib
import inspect
import itertools
import os
import sys
import time
import traceback
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from kornia.geometry import warp_affine

import lms_geometry
from lms_geometry import LinearizedSampling, backends, draw_noise
from lms_geometry.backends import cpu
from lms_geometry.limits import FAR_OUTSIDE, FARTHEST_DRAW, LARGEST_DERIVATIVE

HERE = str(Path(lms_geometry.__file__).parent)
SIZES = (1, 2, 2, 3, 4, 5, 7)
WARPS = ("warp_affine_linearized", "warp_perspective_linearized", "homography_warp_linearized")
FUNCTIONS = ("grid_sample_linearized",) * 6 + (
    "grid_sample_value_and_slope",
    *WARPS,
    "remap_linearized",
    "roi_align_linearized",
    "roi_align_linearized",
)
ODD = (
    None, True, 0, -1, 7, 2.5, float("nan"), 1e300, "nope", "zeros", (), (3,), (2, 3), (-2, 3), [1, 2], {}, object(),
    torch.float32, np.int64(3), np.float32(0.5), np.True_, np.zeros(3), torch.tensor(True), torch.zeros(()),
    torch.zeros(0), torch.zeros(2, 3), torch.zeros(2, 2, 3, 3), torch.zeros(1, 1, 4, 4, dtype=torch.int32),
    torch.zeros(2, 3, 5, 5).to_sparse(), torch.zeros(2, 3, 5, 5, dtype=torch.float16), torch.zeros(1, 3, 5, 5).double(),
    torch.zeros(1, 2, 2, 2, device="meta"), LinearizedSampling(), LinearizedSampling.paper(), torch.Generator(),
)  # fmt: skip
INSTRUCTION_SETS = "baseline", "avx2", "avx512"
MOTIONS = "translation", "rigid", "similarity", "anisotropic", "affine", "homography"
SETTINGS = {
    LinearizedSampling: {},
    lms_geometry.Adam: {},
    lms_geometry.GaussNewton: {},
    lms_geometry.Annealed: {"first": 4.0, "last": 0.1},
    lms_geometry.Stage: {"until": 0.5, "longest": 32, "kept": 2, "free": 3},
    lms_geometry.Transform: {"matrix": torch.eye(3)[None]},
    lms_geometry.LinearizedGridSample: {"sampling": None},
    lms_geometry.LinearizedHomographyWarper: {"height": 3, "width": 4},
    lms_geometry.LinearizedRoIAlign: {"output_size": 3, "spatial_scale": 1.0, "sampling_ratio": 1},
}
INTENSITY = (1.0, 1.0, 1.0, 255.0, 1e-6, 1e6)


class CallError(Exception):
    """A call that did what it must not do."""


class Case:
    """One case: its tensors, each drawn from the case's seed, and its settings."""

    def __init__(self, seed):
        self.random, self.generator = Random(seed), torch.Generator().manual_seed(seed)
        self.name = self.random.choice(FUNCTIONS)
        self.B, self.C, self.H, self.W, self.h, self.w = (self.random.choice(SIZES) for _ in range(6))
        self.B = min(self.B, 3)
        self.sampling = self.settings()

    def one(self, *choices):
        return self.random.choice(choices)

    def uniform(self, *shape):
        return torch.rand(*shape, generator=self.generator)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator)

    def settings(self):
        if self.one(True, False):
            sigma = self.one(12**-0.5, 12**-0.5, 0.7, 3.0, 0.1)
            return LinearizedSampling(
                self.one(4, 9, 16),
                sigma,
                intercept=self.one(True, True, False),
                slope=self.one("edges", "edges", "plane"),
            )
        pattern, mask = self.one("gaussian", "whitened"), self.one(True, False)
        samples = self.one(4, 5, 8, 12) if pattern == "whitened" or not mask else self.one(3, 4, 8)
        sigma, jitter = self.one((1.0, 1.0), (0.3, 0.0), (0.0, 1.0), (3.0, 0.5), (100.0, 0.0), (0.3, 100.0))
        # An unmasked fit has all its draws, and so a small ridge costs no digits.
        ridge = self.one(1e-3, 1e-4, 0.3) if mask or samples == 3 else self.one(1e-3, 1e-4, 0.3, 1e-9)
        return LinearizedSampling(samples, sigma, jitter, ridge, self.one(True, False), mask, pattern, "plane")

    def image(self):
        image = self.uniform(self.B, self.C, self.H, self.W) * self.one(*INTENSITY)
        return image.contiguous(memory_format=torch.channels_last) if self.one(True, False, False) else image

    def matrix(self):
        """A destination-to-source matrix that shrinks, turns, mirrors or projects."""
        scale = self.one(0.3, 1.0, 1.0, 2.0, 5.0)
        matrix = scale * (self.one(1.0, 1.0, -1.0) * torch.eye(3) + self.one(0.0, 0.1, 0.5) * self.normal(3, 3))
        matrix[2] = torch.tensor([0.0, 0.0, 1.0]) + self.one(0.0, 0.05, 0.5) * self.normal(3)
        return matrix

    def grid(self):
        kind = self.one("affine", "affine", "projective", "random", "constant", "texels")
        if kind == "texels":
            places = [torch.randint(n, (self.B, self.h, self.w), generator=self.generator) for n in (self.W, self.H)]
            grid = torch.stack([(2 * p + 1) / n - 1 for p, n in zip(places, (self.W, self.H), strict=True)], -1)
        elif kind == "random":
            grid = self.one(0.5, 1.5, 20.0) * (2 * self.uniform(self.B, self.h, self.w, 2) - 1)
        elif kind == "constant":
            grid = self.normal(1, 1, 1, 2).expand(self.B, self.h, self.w, 2).clone()
        else:
            base = F.affine_grid(torch.eye(2, 3)[None], (1, 1, self.h, self.w), align_corners=False)
            grid = F.pad(base, (0, 1), value=1.0) @ self.matrix().T
            grid = (grid[..., :2] / (grid[..., 2:] if kind == "projective" else 1.0)).repeat(self.B, 1, 1, 1)
            grid = grid + self.one(0.0, 0.01) * self.normal(grid.shape)
        if self.one(*[False] * 7, True):
            grid.view(-1)[self.random.randrange(grid.numel())] = self.one(torch.nan, torch.inf, -torch.inf, 1e30, 3e5)
        return grid

    def tie(self):
        """A grid and an image whose points and steps are equal, or on a texel, but for rounding."""
        kind = self.one("mirror", "rows", "limit")
        y, x = torch.meshgrid(torch.linspace(-1, 1, self.h), torch.linspace(-1, 1, self.w), indexing="ij")
        tilt, size = self.normal(2), (self.one(0.5, 2.0, 5.0), self.one(0.7, 3.0))
        if kind == "mirror":
            x, y = self.one((x.abs(), y), (x, y.abs()), (x.abs(), y.abs()))
            grid = torch.stack((size[0] * x + tilt[0] * y, size[1] * y + tilt[1] * x), -1)
        elif kind == "rows":
            row = self.one(0, self.H - 1, 0)
            grid = torch.stack((size[0] * x, torch.full_like(y, (2 * row + 1) / self.H - 1)), -1)
            grid = self.one(grid, grid.flip(-1)) if self.H == self.W else grid
        else:
            grid = torch.stack((x, y), -1)
        jacobian = None
        if kind == "limit":
            signs = torch.tensor([self.one(1.0, -1.0) for _ in range(4)])
            jacobian = (self.one(1e4, 3e4, 1e30) * signs).view(1, 1, 1, 2, 2)
        return grid[None].repeat(self.B, 1, 1, 1), jacobian

    def jacobian(self):
        if self.one(True, False):
            return None
        shape = self.one((self.B, self.h, self.w), (1, 1, 1), (self.B, 1, 1), (1, self.h, 1))
        return self.one(0.0, 1e-6, 0.8, 3.0, 3.0, 30.0) * self.normal(*shape, 2, 2)

    def boxes(self):
        numbers = torch.randint(self.B, (self.one(0, 1, 3), 1), generator=self.generator)
        corners = self.normal(len(numbers), 4) * self.one(3.0, 3.0, 30.0, 1e5) + self.one(0.0, 2.0)
        return torch.cat((numbers, corners), 1)

    def tensors(self, ties=False):
        """The tensors of the call, by the names of its arguments; those that carry a gradient come first."""
        image, out = self.image(), (self.h, self.w)
        noise = None
        if self.sampling.is_drawn:
            by_image = self.B if self.one(True, False) and self.name != "roi_align_linearized" else 0
            drawn = [draw_noise(self.sampling, out, generator=self.generator) for _ in range(max(by_image, 1))]
            noise = torch.stack(drawn) if by_image else drawn[0]
            if self.one(*[False] * 30, True):
                noise = noise * 1e10
        if self.name.startswith("grid_sample"):
            grid, jacobian = self.tie() if ties else (self.grid(), self.jacobian())
            tensors = {"input": image, "grid": grid, "jacobian": jacobian}
        elif self.name == "roi_align_linearized":
            tensors = {"input": image, "boxes": self.boxes()}
        elif self.name == "remap_linearized":
            maps = self.grid().unbind(-1)
            tensors = {"image": image} | {n: 5 * m.contiguous() for n, m in zip(("map_x", "map_y"), maps, strict=True)}
        else:
            matrix = self.matrix().inverse() if self.one(True, True, False) else self.matrix()
            matrix = matrix.nan_to_num(0.0, 0.0, 0.0)[None].repeat(self.one(1, self.B), 1, 1)
            if "affine" in self.name:
                tensors = {"src": image, "M": matrix[:, :2]}
            elif "perspective" in self.name:
                tensors = {"src": image, "M": matrix * self.one(1.0, 1.0, 1e-8, 1e-37, 1e30)}
            else:
                tensors = {"patch_src": image, "src_homo_dst": matrix * self.one(1.0, 1.0, 1e-8, 1e-37, 1e30)}
        return tensors | {"noise": noise}

    def options(self):
        options = {"sampling": self.sampling}
        if self.name == "roi_align_linearized":
            ratio = self.one(-1, 1, 2)
            return options | {
                "output_size": (self.h, self.w),
                "sampling_ratio": ratio,
                "aligned": self.one(True, False),
            }
        options |= {"padding_mode": self.one("zeros", "border", "reflection"), "align_corners": self.one(True, False)}
        options["mode"] = self.one(*["bilinear"] * 8, "nearest", "bicubic")
        if self.name in WARPS:
            options["dsize"] = self.h, self.w
        if self.name == "homography_warp_linearized":
            options |= {"normalized_coordinates": self.one(True, False)}
        return options

    def pair(self):
        """Two images to register, and settings that are allowed."""
        sizes = [[self.one(1, 2, 7, 16, 24, 41) for _ in "hw"] for _ in "st"]
        kind = self.one("related", "related", "noise", "blank", "two values")
        channels, batch = self.one(1, 1, 3), self.one(1, 1, 2)
        source = self.uniform(batch, channels, *sizes[0])
        if kind == "blank":
            source = source * 0 + self.one(0.0, 0.5)
        elif kind == "two values":
            source = source.round()
        target = self.uniform(self.one(1, batch), channels, *sizes[1])
        if kind != "noise":
            source = F.avg_pool2d(source, 5, 1, 2)
            # Related by a motion that is drawn: the image is shrunk, turned and shifted by kornia.
            M = self.matrix()[None, :2] if kind == "related" else torch.eye(2, 3)[None]
            target = warp_affine(source[: len(target)], M.expand(len(target), -1, -1), sizes[1])
        unit = self.one(*INTENSITY, 1e-10, 1e30)
        arguments = {"source": source * unit, "target": target * self.one(unit, unit, 1.0)}
        sampler = self.one(lms_geometry.Annealed(4.0, 0.1, self.sampling), self.sampling, "bilinear")
        options = {
            "motion": self.one(*MOTIONS),
            "loss": self.one("squared", "squared", "huber", "structure"),
            "solver": self.one(lms_geometry.GaussNewton, lms_geometry.Adam)(self.one(3, 20), sampler=sampler),
            "fit_gain_bias": self.one(False, False, True),
            "overlap_only": self.one(False, False, True),
            "max_size": self.one(None, None, 12),
            "generator": self.generator,
        }
        if self.one(False, False, False, True):
            options["init"] = self.matrix().inverse()[None]
        for name, image in arguments.items():
            if self.one(False, False, False, True):
                options[f"{name}_mask"] = (self.uniform(len(image), 1, *image.shape[-2:]) > 0.3).float()
        return arguments | options


def run(name, tensors, options, backend="eager", double=False, weights=None):
    """Value, and gradients for all tensors that get one, by one backend."""
    os.environ[backends.VARIABLE] = backend
    tensors = {n: t.detach() if t is not None else None for n, t in tensors.items()}
    if double:
        tensors = {n: t.double() if t is not None else None for n, t in tensors.items()}
    leaves = [t.requires_grad_() for n, t in tensors.items() if t is not None and n != "noise"]
    result = getattr(lms_geometry, name)(**tensors, **options)
    if isinstance(result, tuple):
        return list(result)
    if weights is None or not result.requires_grad:
        return [result.detach()]
    gradients = torch.autograd.grad(result, leaves, weights.to(result), allow_unused=True)
    return [result.detach(), *(g for g in gradients if g is not None)]


def check_numbers(case, ties, counts, backend):
    """Compare a backend with plain torch on a case."""
    tensors, options = case.tensors(ties), case.options()
    plain = run(case.name, tensors, options)
    weights = torch.randn(plain[0].shape, generator=case.generator)
    ours = run(case.name, tensors, options, weights=weights)
    true = run(case.name, tensors, options, double=True, weights=weights)
    counts["calls"] += 3
    for result in ours:
        if not result.isfinite().all():
            raise CallError("a result that is not finite")
    if backend == "cpu" and cpu.unavailable_reason() is not None:
        return
    kernels = (cpu._instructions,)
    if backend == "cpu":
        kernels = INSTRUCTION_SETS[: INSTRUCTION_SETS.index(cpu._library.instruction_set().decode()) + 1]
    for instructions in kernels:
        cpu._instructions = instructions
        theirs = run(case.name, tensors, options, backend, weights=weights)
        counts["calls"] += 1
        compare(case, ties, tensors, options, weights, theirs, ours, true, counts)


def compare(case, ties, tensors, options, weights, theirs, ours, true, counts):
    """Raise unless the kernel's results are torch's, but for what float32 costs."""
    scales = sizes_of_terms(case, tensors)
    over = beyond(theirs, ours, true, scales)
    if over:
        moved = [jolted(tensors, case, ties) for _ in range(32)]
        again = [run(case.name, t, options, double=True, weights=weights) for t in moved]
        counts["calls"] += len(again)
        over = beyond(theirs, ours, true, scales, again)
        counts["decided by rounding"] += not over
    if over:
        raise CallError(f"the kernel differs ({cpu._instructions}): {over}")


def sizes_of_terms(case, tensors):
    """How large the terms are of which each result is the sum, which may be larger than the result.

    These are estimates from above, so that a result is not held to digits that float32 has not.
    """
    image, *companions = (tensor for name, tensor in tensors.items() if name != "noise" and tensor is not None)
    largest = image.abs().max().item() if image.numel() else 0.0
    # Float32 places a point that is r texels away to 6e-8 r texels. At a horizon derivatives are at their limit.
    matrix = tensors.get("M", tensors.get("src_homo_dst"))
    distances = [c.abs().nan_to_num(FAR_OUTSIDE, FAR_OUTSIDE).max().item() for c in companions if c.numel()]
    if matrix is not None:
        distances = [LARGEST_DERIVATIVE if matrix.shape[1] == 3 and matrix[:, 2, :2].any() else 1.0]
    noise = tensors["noise"]
    drawn = 0.0 if noise is None or noise.numel() == 0 else noise.abs().max().item()
    distance = max(distances, default=0.0) * (1 + case.sampling.sigma * drawn) * max(image.shape[-2:]) / 2
    far = 1 + 0.1 * min(distance, FAR_OUTSIDE)
    # A fit divides the rounding of the reads by the spread of the samples, or by the ridge where they have none.
    slope = far * largest * max(image.shape[-2:]) * max(1, 0.2 / case.sampling.ridge**0.5)
    sizes = [far * largest, far, slope, slope]
    if matrix is not None:  # a sum over all pixels, each of which has the inverse of the matrix for a lever
        sizes[2] *= 100 * case.h * case.w / matrix.abs().max().item()
    elif case.name == "grid_sample_value_and_slope":
        sizes[1] = slope
    if drawn > FARTHEST_DRAW:
        # Draws that the limit lays on one another leave a fit no digits: what is asked for is a finite result.
        sizes = [torch.inf] * 4
    return sizes


def beyond(theirs, ours, true, scales, again=()):
    """What is beyond eight times the error of float32, in words, or an empty string."""
    for position, (c, e, d) in enumerate(zip(theirs, ours, true, strict=True)):
        if c.numel() == 0:
            continue
        if not c.isfinite().all():
            return "a result of the kernel is not finite"
        size = max(d.abs().max().item(), e.abs().max().item(), scales[position])
        error = max([(e - d).abs().max().item(), *((e - r[position]).abs().max().item() for r in again)])
        apart = (c - e).abs().max().item()
        if apart > 8 * error + 1e-6 * size + 1e-30:
            return f"result {position} by {apart:.3g}, float32 costs {error:.3g} of {size:.3g}"
    return ""


def jolted(tensors, case, ties):
    """The same tensors, but for a few roundings. At ties the Jacobian is scaled as a whole: its entries stay equal.

    The rules by which ties are decided have wider margins, so that a jolt does not turn a decision.
    """

    def move(name, tensor):
        if tensor is None or tensor.numel() == 0:
            return tensor
        if name == "jacobian":
            tensor = tensor.clamp(-LARGEST_DERIVATIVE, LARGEST_DERIVATIVE)  # beyond it nothing moves
            if ties:
                return tensor * (1 - 4e-7 * case.uniform(1))
        size = tensor.abs().nan_to_num(0.0, 0.0).amax()
        if name in ("grid", "map_x", "map_y"):
            size = size.clamp(max=1e3)  # one entry may be huge
        step = 4e-7 * size * (2 * case.uniform(*tensor.shape) - 1)
        if name == "boxes":
            step[:, 0] = 0.0  # the number of the image
        return torch.where(tensor.isfinite(), tensor + step, tensor)

    return {name: move(name, tensor) for name, tensor in tensors.items()}


def check_arguments(case, counts):
    """Call with one argument replaced."""
    os.environ.pop(backends.VARIABLE, None)
    if case.one(*[False] * 9, True):
        return check_settings(case, counts)
    arguments = {n: t for n, t in case.tensors().items() if t is not None} | case.options()
    function = getattr(lms_geometry, case.name)
    name = case.random.choice(list(inspect.signature(function).parameters))
    value = case.random.choice(ODD)
    counts["calls"] += 1
    names = [name] if name != "sampling" else ["sampling", "noise", "generator"]
    names += ["fill"] if name == "fill_value" else ["size"] if name == "output_size" else []
    _must_name(partial(function, **arguments | {name: value}), [*names, *related(name, arguments)], f"{name}={value!r}")


def related(name, arguments):
    """The other arguments that an error may name: those that must fit the one that was replaced."""
    return [n for n, value in arguments.items() if isinstance(value, torch.Tensor) or n == "sampling"]


def check_settings(case, counts):
    """Make an object of a public class, and noise, with one argument replaced."""
    made, valid = case.random.choice(list(SETTINGS.items()))
    names = list(inspect.signature(made).parameters)
    if made is LinearizedSampling:
        valid = {n: getattr(case.sampling, n) for n in names}
    name, value = case.random.choice(names), case.random.choice(ODD)
    counts["calls"] += 1
    _must_name(partial(made, **valid | {name: value}), names, f"{made.__name__} with {name}={value!r}")
    counts["calls"] += 1
    key, value = case.one("sampling", "size", "generator", "dtype"), case.random.choice(ODD)
    arguments = {"sampling": LinearizedSampling.paper(), "size": (3, 4)} | {key: value}
    _must_name(partial(draw_noise, **arguments), [key], f"{key}={value!r}")


def check_register(case, counts):
    """Register two images, and ask for a result that is finite."""
    arguments = case.pair()
    counts["calls"] += 1
    names = list(inspect.signature(lms_geometry.register).parameters)
    if case.one(True, False):
        name, value = case.random.choice(names), case.random.choice(ODD)
        _must_name(partial(lms_geometry.register, **arguments | {name: value}), names, f"{name}={value!r}")
        return
    try:
        found = lms_geometry.register(**arguments)
    except ValueError as error:
        if not traceback.extract_tb(error.__traceback__)[-1].filename.startswith(HERE):
            raise
        counts["refused"] += 1
        return
    if not found.matrix.isfinite().all() or not found.path.isfinite().all():
        raise CallError(f"a matrix that is not finite: {found.matrix.tolist()}")
    if not ((found.score >= 0) & (found.score <= 1) & (found.overlap >= 0) & (found.overlap <= 1)).all():
        raise CallError(f"score {found.score.tolist()}, overlap {found.overlap.tolist()}")


def _must_name(call, names, what):
    try:
        call()
    except (TypeError, ValueError) as error:
        frames = traceback.extract_tb(error.__traceback__)
        if not frames[-1].filename.startswith(HERE) or not any(n in str(error) for n in names):
            raise CallError(f"{what} gives the raw error {type(error).__name__}: {error}") from error
    except Exception as error:
        raise CallError(f"{what} gives the raw error {type(error).__name__}: {error}") from error


def check(seed, counts, backend="cpu"):
    """Run the case of a seed."""
    case = Case(seed)
    kinds = ("numbers", "numbers", "ties", "arguments", "arguments") if backend == "cpu" else ("numbers", "ties")
    kind = case.one(*kinds)
    if kind == "arguments" and case.one(True, *[False] * 14):
        kind = "register"
    if kind == "ties":
        case.name = "grid_sample_linearized"
    counts[kind] += 1
    try:
        if kind == "register":
            check_register(case, counts)
        elif kind == "arguments":
            check_arguments(case, counts)
        else:
            check_numbers(case, kind == "ties", counts, backend)
    except Exception as error:
        what = error if isinstance(error, CallError) else f"raw error {error!r}"
        raise CallError(f"case {seed} ({kind}, {case.name}, {case.sampling}): {what}") from error


def fuzz(calls, first=0, stop_at=20, show=None, backend="cpu"):
    """Run cases until there were so many calls. Returns the failures, and counts of what was done."""
    counts, failures, start = Counter(), [], time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.callback(os.environ.update, {k: v for k, v in os.environ.items() if k == backends.VARIABLE})
        stack.callback(os.environ.pop, backends.VARIABLE, None)
        stack.callback(setattr, cpu, "_instructions", cpu._instructions)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        for seed in itertools.count(first):
            if counts["calls"] >= calls or len(failures) >= stop_at:
                return failures, counts
            try:
                check(seed, counts, backend)
            except CallError as failure:
                failures.append(str(failure))
                if show:
                    print(failure, file=show, flush=True)
            counts["cases"] += 1
            if show and counts["cases"] % 1000 == 0:
                print(f"{time.monotonic() - start:.0f} s: {dict(counts)}", file=show, flush=True)
    raise AssertionError


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=10_000, help="calls of public functions")
    parser.add_argument("--first", type=int, default=0, help="number of the first case, which is its seed")
    parser.add_argument("--failures", type=int, default=20, help="stop after so many")
    parser.add_argument("--backend", choices=("cpu", "triton"), default="cpu", help="what is compared with plain torch")
    options = parser.parse_args()
    torch.set_num_threads(1)
    failures, counts = fuzz(options.calls, options.first, options.failures, sys.stdout, options.backend)
    print(f"{dict(counts)}; {len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
