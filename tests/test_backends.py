"""Every backend gives eager's numbers, however many threads and processes ask, and the choice among them is the user's."""

import ctypes
import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from backend_cases import (
    PADDING_MODES,
    PAPER,
    WHITENED,
    assert_same,
    doubled,
    draw_jacobian,
    few,
    image_and_grid,
    many,
    run,
    sample,
    sizes,
)
from hypothesis import given
from hypothesis import strategies as st
from settings import paper

from lms_geometry import backends, draw_noise, grid_sample_linearized
from lms_geometry.backends import cpu, cpu_threads, eager

INSTRUCTION_SETS = ("baseline", "avx2", "avx512")

needs_cpu = pytest.mark.skipif(
    cpu.unavailable_reason() is not None, reason=f"no cpu backend: {cpu.unavailable_reason()}"
)
every_backend = pytest.mark.parametrize("name", ["eager", pytest.param("cpu", marks=needs_cpu)])


@needs_cpu
@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=sizes,
    sampling=many | few,
    jacobian=st.sampled_from([None, "pixel", "image", "one", "row"]),
    shared=st.sampled_from([None, "image", "grid"]),
    noise_by_image=st.booleans(),
    channels_last=st.booleans(),
    to_whiten=st.booleans(),
)
def test_cpu_agrees_with_eager(
    instructions,
    align_corners,
    padding_mode,
    seed,
    size,
    sampling,
    jacobian,
    shared,
    noise_by_image,
    channels_last,
    to_whiten,
):
    _skip_unless_supported(instructions)
    generator = torch.Generator().manual_seed(seed)
    image, grid = image_and_grid(generator, size, shared)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    drawn = replace(sampling, pattern="gaussian") if to_whiten else sampling
    noise = [draw_noise(drawn, size[-2:], generator=generator) for _ in range(size[0] if noise_by_image else 1)]
    noise = torch.stack(noise) if noise_by_image else noise[0]
    arguments = [
        image,
        grid,
        draw_jacobian(generator, size, jacobian),
        noise,
        to_whiten and sampling.pattern == "whitened",
        sampling,
        "bilinear",
        padding_mode,
        align_corners,
    ]
    weight = torch.randn(*size[:2], *size[-2:], generator=generator)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "_instructions", instructions)
        got = run("cpu", arguments, weight)
    assert_same(got, run("eager", arguments, weight), run("eager", doubled(arguments), weight.double()))


@needs_cpu
@pytest.mark.parametrize("instructions", INSTRUCTION_SETS)
@pytest.mark.parametrize("sampling", [replace(PAPER, ridge=0.3), WHITENED], ids=["masked", "whitened"])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30, -2e5, 1e4])
def test_cpu_agrees_with_eager_beside_points_far_outside_or_nowhere(
    instructions, sampling, padding_mode, bad, monkeypatch
):
    _skip_unless_supported(instructions)
    monkeypatch.setattr(cpu, "_instructions", instructions)
    generator = torch.Generator().manual_seed(0)
    size = (2, 3, 7, 9, 5, 11)
    image, grid = image_and_grid(generator, size)
    grid[:, 2, 3, 0] = bad
    grid[0, 2, 7, 1] = bad
    grid[1, 4, 10] = bad
    weight = torch.randn(2, 3, 5, 11, generator=generator)
    arguments = [image, grid, None, draw_noise(sampling, (5, 11)), False, sampling, "bilinear", padding_mode, False]
    got, expected = run("cpu", arguments, weight), run("eager", arguments, weight)
    assert all(t.isfinite().all() for t in got)
    near = (grid.abs() < 100).all(-1)  # a point far away has no digits left for where in the image it is mirrored to
    for ours, eagers in zip(got[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours.movedim(1, -1)[near], eagers.movedim(1, -1)[near], rtol=1e-5, atol=1e-5)
    nowhere = ~(grid.abs() <= 1e5)
    assert nowhere.any() == (bad != 1e4)
    for _, slope, _, gradient in (got, expected):
        assert (slope.movedim(1, 0)[:, nowhere] == 0).all()
        assert (gradient[nowhere] == 0).all()


@needs_cpu
def test_cpu_agrees_with_eager_on_an_output_of_many_blocks():
    generator = torch.Generator().manual_seed(0)
    for size in ((3, 3, 40, 50, 61, 67), (2, 33, 30, 20, 41, 39), (1, 2, 31, 29, 1, 500)):
        image, grid = image_and_grid(generator, size)
        noise = draw_noise(WHITENED, size[-2:], generator=generator)
        arguments = [image, grid, None, noise, False, WHITENED, "bilinear", "zeros", False]
        weight = torch.randn(*size[:2], *size[-2:], generator=generator)
        assert_same(
            run("cpu", arguments, weight),
            run("eager", arguments, weight),
            run("eager", doubled(arguments), weight.double()),
        )


@every_backend
@pytest.mark.parametrize("ridge", [1e-9, 1e38])
@pytest.mark.parametrize(("sigma", "jitter"), [(100, 100), (100, 0), (0, 100), (1e-30, 1e-30)])
def test_settings_at_the_ends_of_their_ranges_give_finite_output_and_gradients(sigma, jitter, ridge, name, monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, name)
    image, grid = torch.rand(1, 2, 9, 11), (2 * torch.rand(1, 4, 5, 2) - 1).requires_grad_()
    for scale, pattern in itertools.product((1e-6, 1.0, 1e6), ("gaussian", "whitened")):
        jacobian = scale * torch.randn(1, 4, 5, 2, 2)
        sampling = paper(sigma=sigma, jitter=jitter, ridge=ridge, pattern=pattern, mask_out_of_bounds=ridge > 1e-4)
        out = grid_sample_linearized(image, grid, jacobian=jacobian, sampling=sampling)
        assert out.isfinite().all()
        assert torch.autograd.grad(out.sum(), grid)[0].isfinite().all()


@needs_cpu
def test_without_intercept_cpu_reads_what_grid_sample_reads_whatever_the_samples_read():
    image = torch.rand(1, 3, 9, 9)
    image[:, :, :, 6:] = torch.inf
    grid = F.affine_grid(torch.eye(2, 3)[None] * 0.2, (1, 3, 5, 7), align_corners=False)
    sampling = replace(PAPER, intercept=False, sigma=3.0, jitter=3.0)
    value, _ = sample(cpu, image, grid, None, draw_noise(sampling, (5, 7)), False, sampling, "bilinear", "zeros", False)
    torch.testing.assert_close(value, F.grid_sample(image, grid, align_corners=False))


@needs_cpu
@pytest.mark.parametrize("team", ["torch's", "Python's"])
def test_the_number_of_threads_changes_no_digit(team, monkeypatch):
    if team == "Python's":
        monkeypatch.setattr(cpu_threads, "_team", None)
    elif sys.platform != "win32":
        assert cpu_threads._team is not None
    threads = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    results = []
    try:
        for count in (1, 2, 5, 16):
            torch.set_num_threads(count)
            generator.manual_seed(0)
            size = (5, 3, 30, 40, 61, 67)
            image, grid = image_and_grid(generator, size)
            noise = draw_noise(PAPER, size[-2:], generator=generator)
            weight = torch.randn(*size[:2], *size[-2:], generator=generator)
            results.append(run("cpu", [image, grid, None, noise, False, PAPER, "bilinear", "zeros", False], weight))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@every_backend
def test_several_threads_may_sample_at_once(name, monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, name)
    generator = torch.Generator().manual_seed(0)
    cases = [image_and_grid(generator, (4, 3, 20, 21, 40, 41)) for _ in range(8)]
    noise = draw_noise(PAPER, (40, 41), generator=generator)

    def gradient(case):
        image, grid = case
        grid = grid.detach().requires_grad_()
        return torch.autograd.grad(
            grid_sample_linearized(image, grid, sampling=paper(), noise=noise).square().sum(), grid
        )[0]

    alone = [gradient(case) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(alone, pool.map(gradient, cases), strict=True))


FORK = """
import os, torch
from lms_geometry import LinearizedSampling, draw_noise
from lms_geometry.backends import cpu
from lms_geometry.config import Reading
from lms_geometry.footprint import Placement
torch.set_num_threads(2)
sampling = LinearizedSampling.paper()
image, grid, noise = torch.rand(4, 3, 20, 21), 2 * torch.rand(4, 40, 41, 2) - 1, draw_noise(sampling, (40, 41))
sample = lambda: cpu.sample(image, grid, Placement(noise), sampling, Reading("bilinear", "zeros", False))
before = sample()
child = os.fork()
if child == 0:
    after = sample()
    torch.set_num_threads(1)  # torch's own comparison would wait for threads that are not there
    same = all(torch.equal(a, b) for a, b in zip(before, after))
    os._exit(0 if same else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
raise SystemExit(status or not all(torch.equal(a, b) for a, b in zip(before, sample())))
"""


@needs_cpu
@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="no fork here")
def test_cpu_works_in_a_child_after_a_fork_and_in_its_parent():
    assert subprocess.run([sys.executable, "-c", FORK], timeout=120, check=False).returncode == 0


@every_backend
def test_the_operators_pass_opcheck(name, monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, name)
    image, grid = image_and_grid(torch.Generator().manual_seed(0), (2, 3, 5, 7, 4, 6))
    ops = torch.ops.lms_geometry
    for jacobian, noise in (
        (None, draw_noise(PAPER, (4, 6))),
        (torch.rand(1, 1, 1, 2, 2), torch.stack([draw_noise(PAPER, (4, 6)) for _ in range(2)])),
    ):
        arguments = image, grid, jacobian, noise, False, 1.0, 1.0, 1e-3, True, True, "bilinear", "zeros", False
        torch.library.opcheck(ops.linearized_sample, arguments)
    gradient = torch.rand(2, 3, 4, 6)
    torch.library.opcheck(ops.grid_gradient, (gradient, torch.rand(2, 3, 4, 6, 2)))
    torch.library.opcheck(ops.image_gradient, (gradient, grid, 5, 7, "bilinear", "zeros", False))


@every_backend
def test_gradients_may_be_differentiated_again_and_batched(name, monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, name)
    image, grid = image_and_grid(torch.Generator().manual_seed(0), (2, 3, 5, 7, 4, 6))
    grid, noise = grid.detach().requires_grad_(), draw_noise(PAPER, (4, 6))

    def loss(points):
        return grid_sample_linearized(image, points, sampling=paper(), noise=noise).square().sum()

    (first,) = torch.autograd.grad(loss(grid), grid, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), grid)
    hessian = torch.func.hessian(loss)(grid.detach()).flatten(4).flatten(0, 3)
    torch.testing.assert_close(second.flatten(), hessian.T @ (2 * first.detach().flatten()))
    assert second.abs().sum() > 0

    image = image.detach().requires_grad_()
    out = grid_sample_linearized(image, grid, sampling=paper(), noise=noise)
    weights = torch.rand(5, *out.shape)
    batched = torch.autograd.grad(out, (image, grid), weights, is_grads_batched=True, retain_graph=True)
    for i, weight in enumerate(weights):
        for together, alone in zip(
            batched, torch.autograd.grad(out, (image, grid), weight, retain_graph=True), strict=True
        ):
            torch.testing.assert_close(together[i], alone)


@every_backend
def test_vmap_takes_any_axis_of_any_argument(name, monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, name)
    image, grid = image_and_grid(torch.Generator().manual_seed(0), (2, 9, 5, 7, 4, 6))
    noise, jacobian = draw_noise(PAPER, (4, 6)), torch.randn(2, 1, 1, 2, 2)
    by_image = torch.stack([draw_noise(PAPER, (4, 6)) for _ in range(2)])
    plain = image, grid, jacobian, noise
    mapped = [torch.randn(3, *t.shape) for t in (image, grid, jacobian, noise, by_image)]
    for position, value in ((0, mapped[0]), (1, mapped[1]), (2, mapped[2]), (3, mapped[3]), (3, mapped[4])):
        for axis in (0, 2):
            arguments = [value.movedim(0, axis) if i == position else t for i, t in enumerate(plain)]
            axes = tuple(axis if i == position else None for i in range(4))

            def sample(image, grid, jacobian, noise):
                return grid_sample_linearized(image, grid, jacobian=jacobian, sampling=paper(), noise=noise)

            together = torch.func.vmap(sample, axes)(*arguments)
            for i, one in enumerate(value):
                alone = sample(*(one if p == position else t for p, t in enumerate(plain)))
                torch.testing.assert_close(together[i], alone)


def test_the_choice_is_automatic_and_may_be_forced(monkeypatch):
    image = torch.rand(1, 1, 5, 6)
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    assert backends.choose(image, "bilinear") is (eager if cpu.unavailable_reason() else cpu)
    monkeypatch.setenv(backends.VARIABLE, "eager")
    assert backends.choose(image, "bilinear") is eager


@needs_cpu
@pytest.mark.parametrize("size", [(4, 1), (1, 4), (1, 1)])
def test_the_backend_of_the_grids_gradient_is_chosen_by_the_gradient_and_not_by_its_size(size, monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "cpu")
    gradient, slope = torch.rand(2, 3, *size), torch.rand(2, 3, *size, 2)
    assert backends.choose_for_gradient(gradient) is cpu
    assert backends.choose_for_gradient(gradient.double()) is eager
    torch.testing.assert_close(cpu.grid_gradient(gradient, slope), eager.grid_gradient(gradient, slope))


@needs_cpu
@pytest.mark.parametrize("name", ["sample_job_size", "gradient_job_size"])
@pytest.mark.parametrize("stale", ["other size", "no size"])
def test_a_library_built_from_other_sources_is_refused_with_the_way_out(name, stale, monkeypatch):
    class Stale:
        def __init__(self, path):
            self.library = ctypes.PyDLL(path)

        def __getattr__(self, symbol):
            if symbol != name:
                return getattr(self.library, symbol)
            if stale == "no size":
                raise AttributeError(symbol)
            return lambda: getattr(self.library, symbol)() + 8

    monkeypatch.setattr(ctypes, "CDLL", Stale)
    with pytest.raises(ImportError, match=r"built from other sources .* `pip install --editable \.`"):
        cpu._load()


@needs_cpu
def test_what_cpu_cannot_do_eager_does(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "cpu")
    image = torch.rand(1, 1, 5, 6)
    assert backends.choose(image, "bilinear") is cpu
    for other, mode in (
        (image.double(), "bilinear"),
        (image, "nearest"),
        (image, "bicubic"),
        (image[:, :, :1], "bilinear"),
        (image[:, :, :2, :1].expand(1, 1, 2, 2**24 + 1), "bilinear"),  # float32 counts its columns no more
    ):
        assert backends.choose(other, mode) is eager


def test_a_backend_that_is_missing_or_unknown_is_an_error_that_says_what_to_do(monkeypatch):
    image, grid = torch.rand(1, 1, 5, 6), torch.zeros(1, 2, 3, 2)
    monkeypatch.setenv(backends.VARIABLE, "cpu")
    monkeypatch.setattr(cpu, "_library", None)
    backends.unavailable_reason.cache_clear()
    try:
        with pytest.raises(RuntimeError, match=r"'cpu', but its C library was not built: install .* compiler.*; unset"):
            grid_sample_linearized(image, grid)
        monkeypatch.delenv(backends.VARIABLE)
        assert backends.choose(image, "bilinear") is eager
    finally:
        backends.unavailable_reason.cache_clear()
    monkeypatch.setenv(backends.VARIABLE, "gpu")
    with pytest.raises(
        ValueError, match=r"LMS_GEOMETRY_BACKEND must be one of .*'eager', 'cpu', 'triton'.*, got 'gpu'"
    ):
        grid_sample_linearized(image, grid)


@needs_cpu
def test_a_library_that_does_not_load_is_a_backend_that_is_missing(monkeypatch):
    class Broken:
        def __init__(self, path):
            raise OSError(f"{path}: undefined symbol")

    monkeypatch.setattr(ctypes, "CDLL", Broken)
    monkeypatch.delitem(sys.modules, "lms_geometry.backends.cpu")
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    backends.unavailable_reason.cache_clear()
    backends._load.cache_clear()
    try:
        assert "cannot be loaded" in backends.unavailable_reason("cpu")
        assert backends.choose(torch.rand(1, 1, 5, 6), "bilinear") is eager
    finally:
        backends.unavailable_reason.cache_clear()
        backends._load.cache_clear()


def _skip_unless_supported(instructions):
    here = cpu._library.instruction_set().decode()
    if INSTRUCTION_SETS.index(instructions) > INSTRUCTION_SETS.index(here):
        pytest.skip(f"this processor has no {instructions}")
