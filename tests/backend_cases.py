"""What the tests of every backend share: cases drawn by hypothesis, and a backend's results beside those of eager."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from settings import paper

from lms_geometry import LinearizedSampling, backends
from lms_geometry.config import Reading
from lms_geometry.differentiation import linearized_sample
from lms_geometry.footprint import Placement

PAPER = paper()
WHITENED = paper(pattern="whitened", mask_out_of_bounds=False)
PADDING_MODES = ("zeros", "border", "reflection")

many = st.builds(
    LinearizedSampling,
    num_samples=st.integers(4, 12),
    sigma=st.sampled_from([0.0, 1.0, 3.0]),
    jitter=st.sampled_from([0.5, 1.0]),
    ridge=st.sampled_from([1e-3, 0.3]),
    intercept=st.booleans(),
    mask_out_of_bounds=st.just(False),
    pattern=st.just("whitened"),
    slope=st.just("plane"),
)
few = st.builds(
    LinearizedSampling,
    num_samples=st.integers(4, 12),
    sigma=st.sampled_from([0.0, 1.0, 3.0]),
    jitter=st.sampled_from([0.5, 1.0]),
    ridge=st.sampled_from([1e-4, 1e-3, 0.3, 3.0]),
    intercept=st.booleans(),
    mask_out_of_bounds=st.booleans(),
    pattern=st.sampled_from(["gaussian", "whitened"]),
    slope=st.just("plane"),
)
sizes = st.tuples(*(st.integers(low, high) for low, high in ((1, 5), (1, 19), (2, 13), (2, 13), (1, 11), (1, 13))))


def run_under_the_interpreter(file):
    """Run a test file again in a process of its own, with Triton's interpreter, which is asked for before the import."""
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", file],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        cwd=Path(file).parent.parent,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr


def image_and_grid(generator, size, shared=None):
    B, C, H, W, h, w = size
    image = torch.rand(1 if shared == "image" else B, C, H, W, generator=generator)
    theta = 0.9 * torch.eye(2, 3) + 0.3 * torch.randn(1 if shared == "grid" else B, 2, 3, generator=generator)
    grid = F.affine_grid(theta, [len(theta), C, h, w], align_corners=False)
    grid = grid + 0.05 * torch.randn(grid.shape, generator=generator)
    return image.expand(B, -1, -1, -1), grid.expand(B, -1, -1, -1)


def draw_jacobian(generator, size, kind):
    B, _, _, _, h, w = size
    shapes = {"pixel": (B, h, w), "image": (B, 1, 1), "one": (1, 1, 1), "row": (B, h, 1)}
    return None if kind is None else torch.randn(*shapes[kind], 2, 2, generator=generator)


def run(backend, arguments, weight):
    """Value, slope, and the gradients for image and grid."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backends.VARIABLE, backend)
        image, grid, *settings = _grouped(*arguments)
        image, grid = (t.detach().requires_grad_() for t in (image, grid))
        value, slope = linearized_sample(image, grid, *settings)
        return value.detach(), slope, *torch.autograd.grad(value, (image, grid), weight)


def sample(backend, *arguments):
    """Value and slope by a backend's own function."""
    return backend.sample(*_grouped(*arguments))


def _grouped(image, grid, jacobian, noise, whiten, sampling, mode, padding_mode, align_corners):
    return image, grid, Placement(noise, jacobian, whiten), sampling, Reading(mode, padding_mode, align_corners)


def doubled(arguments):
    return [t.double() if isinstance(t, torch.Tensor) else t for t in arguments]


def assert_same(got, expected, exact):
    """To 2e-6 of the largest number, or of 1, and to eight times what float32 costs eager."""
    for ours, eagers, true in zip(got, expected, exact, strict=True):
        allowed = 2e-6 * eagers.abs().max().clamp_min(1) + 8 * (eagers - true).abs().max()
        assert ours.isfinite().all()
        assert (ours - eagers).abs().max() <= allowed
