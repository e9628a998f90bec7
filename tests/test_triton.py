"""The Triton backend gives eager's numbers: on a GPU where there is one, else under Triton's interpreter, on the CPU.

The interpreter must be asked for before Triton is imported. So, where there is no GPU, one test runs this file again in
a process of its own, in which the other tests run.
"""

import os
from dataclasses import replace
from importlib.util import find_spec

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
    run_under_the_interpreter,
    sample,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from lms_geometry import backends, draw_noise, grid_sample_linearized
from lms_geometry.backends import eager
from lms_geometry.config import Reading

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.accelerator.is_available() and torch.accelerator.current_accelerator().type in ("cuda", "xpu")
DEVICE = torch.accelerator.current_accelerator() if GPU else torch.device("cpu")

# The interpreter computes with NumPy, which warns of arithmetic with points that are no number.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow) encountered:RuntimeWarning")
runs_kernels = pytest.mark.skipif(not (INTERPRETED or GPU), reason="runs in the test under the interpreter")
compiles = pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")

# B, C, H, W, h, w: from a few points of a large image, which is read as it is, to many points of a small one, whose
# channels are first put side by side.
sizes = st.tuples(
    st.integers(1, 3),
    st.sampled_from([1, 2, 3, 5, 16, 19, 32]),
    *(st.integers(low, high) for low, high in ((2, 13), (2, 13), (1, 9), (1, 11))),
)


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED or GPU, reason="the other tests run here")
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


@runs_kernels
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@settings(max_examples=6)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=sizes,
    sampling=many | few,
    jacobian=st.none() | st.sampled_from(["pixel", "image", "one", "row"]),
    shared=st.sampled_from([None, "image", "grid"]),
    noise_by_image=st.booleans(),
    layout=st.sampled_from(["contiguous", "channels last", "strided"]),
    enough=st.sampled_from([1, 1024]),
    to_whiten=st.booleans(),
)
def test_triton_agrees_with_eager(
    align_corners, padding_mode, seed, size, sampling, jacobian, shared, noise_by_image, layout, enough, to_whiten
):
    generator = torch.Generator().manual_seed(seed)
    image, grid = image_and_grid(generator, size, shared)
    if layout == "channels last":
        image = image.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        image = image.repeat_interleave(2, -1).repeat_interleave(3, -2)[..., ::3, ::2]
        grid = grid.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    drawn = replace(sampling, pattern="gaussian") if to_whiten else sampling
    noise = [draw_noise(drawn, size[-2:], generator=generator) for _ in range(size[0] if noise_by_image else 1)]
    arguments = _on_device(
        image,
        grid,
        draw_jacobian(generator, size, jacobian),
        torch.stack(noise) if noise_by_image else noise[0],
        to_whiten and sampling.pattern == "whitened",
        sampling,
        "bilinear",
        padding_mode,
        align_corners,
    )
    weight = torch.randn(*size[:2], *size[-2:], generator=generator).to(DEVICE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_triton(), "_ENOUGH_PROGRAMS", enough)
        got = run("triton", arguments, weight)
    expected = run("eager", arguments, weight)
    assert_same(got, expected, run("eager", doubled(arguments), weight.double()))


@runs_kernels
@pytest.mark.parametrize(("num_samples", "channels"), [(3, 3), (9, 20), (40, 1)])
def test_any_number_of_samples_and_an_output_of_many_blocks(num_samples, channels, monkeypatch):
    monkeypatch.setattr(_triton(), "_ENOUGH_PROGRAMS", 1)
    generator = torch.Generator().manual_seed(0)
    sampling = replace(PAPER, num_samples=num_samples, ridge=0.3)
    size = (1, channels, 20, 30, 13, 17)
    image, grid = image_and_grid(generator, size)
    noise = draw_noise(sampling, size[-2:], generator=generator)
    arguments = _on_device(image, grid, None, noise, False, sampling, "bilinear", "zeros", False)
    weight = torch.randn(*size[:2], *size[-2:], generator=generator).to(DEVICE)
    expected = run("eager", arguments, weight)
    assert_same(run("triton", arguments, weight), expected, run("eager", doubled(arguments), weight.double()))


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("intercept", [True, False])
def test_half_precision_is_rounded_once_at_the_end(dtype, channels, intercept):
    generator = torch.Generator().manual_seed(0)
    sampling = replace(PAPER, ridge=0.3, intercept=intercept)
    size = (2, channels, 9, 7, 6, 11)
    image, grid = image_and_grid(generator, size)
    noise = draw_noise(sampling, size[-2:], generator=generator)
    half, grid, _, noise = _on_device(image.to(dtype), grid, None, noise)
    weight = torch.randn(*size[:2], *size[-2:], generator=generator).to(DEVICE, dtype)
    rest = (None, noise, False, sampling, "bilinear", "border", True)
    got = run("triton", [half, grid, *rest], weight)
    expected = run("eager", [half.float(), grid, *rest], weight.float())
    assert [t.dtype for t in got] == [dtype, torch.float32, dtype, torch.float32]
    for ours, eagers in zip(got, expected, strict=True):
        # Half a unit in the last place would do, but for the interpreter, which cuts bfloat16 off.
        tolerance = 1e-5 if ours.dtype == torch.float32 else torch.finfo(dtype).eps + 1e-5
        torch.testing.assert_close(ours.float(), eagers, rtol=tolerance, atol=1e-5)


@runs_kernels
@pytest.mark.parametrize("sampling", [replace(PAPER, ridge=0.3), WHITENED], ids=["masked", "whitened"])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_points_far_outside_or_nowhere_are_as_eager_has_them(sampling, padding_mode):
    generator = torch.Generator().manual_seed(0)
    size = (7, 3, 7, 9, 5, 11)
    image, grid = image_and_grid(generator, size)
    for b, bad in enumerate((torch.nan, torch.inf, -torch.inf, 1e30, -1e30, -2e5, 1e4)):
        grid[b, 2, 3, 0] = grid[b, 2, 7, 1] = grid[b, 4, 10, 0] = grid[b, 4, 10, 1] = bad
    noise = draw_noise(sampling, (5, 11), generator=generator)
    arguments = _on_device(image, grid, None, noise, False, sampling, "bilinear", padding_mode, False)
    weight = torch.randn(7, 3, 5, 11, generator=generator).to(DEVICE)
    got, expected = run("triton", arguments, weight), run("eager", arguments, weight)
    assert all(t.isfinite().all() for t in got)
    near = (arguments[1].abs() < 100).all(-1)  # far away no digits are left for where in the image that is mirrored to
    for ours, eagers in zip(got[:2], expected[:2], strict=True):
        torch.testing.assert_close(ours.movedim(1, -1)[near], eagers.movedim(1, -1)[near], rtol=1e-5, atol=1e-5)
    if padding_mode != "reflection":
        torch.testing.assert_close(got[2], expected[2], rtol=1e-5, atol=1e-5)
    nowhere = ~(arguments[1].abs() <= 1e5)
    for _, slope, _, gradient in (got, expected):
        assert (slope.movedim(1, 0)[:, nowhere] == 0).all()
        assert (gradient[nowhere] == 0).all()


@runs_kernels
@pytest.mark.parametrize("jitter", [0.0, 0.5])
def test_jacobians_of_low_rank_huge_or_no_number_are_as_eager_has_them(jitter):
    rows = ((0, 0, 1, 2), (1, 2, 0, 0), (1, 2, 2, 4), (0, 0, 0, 0), (1e6, 0, 0, 1), (torch.nan, 1, torch.inf, 1))
    jacobian = torch.tensor(rows, device=DEVICE).reshape(1, 1, 6, 2, 2)
    image, grid = (t.to(DEVICE) for t in image_and_grid(torch.Generator().manual_seed(0), (1, 3, 9, 7, 5, 6)))
    sampling = replace(PAPER, jitter=jitter, ridge=0.3)
    noise = draw_noise(sampling, (5, 6)).to(DEVICE)
    arguments = image, grid, jacobian, noise, False, sampling, "bilinear", "zeros", False
    for ours, eagers in zip(sample(_triton(), *arguments), sample(eager, *arguments), strict=True):
        torch.testing.assert_close(ours, eagers, rtol=1e-5, atol=1e-5)


@runs_kernels
def test_what_a_masked_sample_would_read_does_not_matter():
    image = torch.rand(1, 3, 9, 9, device=DEVICE)
    image[..., :2] = torch.nan
    grid = 0.2 + 0.1 * torch.rand(1, 4, 5, 2, device=DEVICE)
    sampling = replace(PAPER, sigma=0.0, ridge=0.3)
    noise = 0.3 * draw_noise(sampling, (4, 5)).to(DEVICE)
    noise[4:, ..., 0] = -50  # outside, beside the first columns
    arguments = grid, None, noise, False, sampling, "bilinear", "border", False
    expected = sample(eager, image.nan_to_num(0.0), *arguments)
    for ours, eagers in zip(sample(_triton(), image, *arguments), expected, strict=True):
        torch.testing.assert_close(ours, eagers, rtol=1e-5, atol=1e-5)


@runs_kernels
def test_without_intercept_it_reads_what_grid_sample_reads_to_the_last_bit():
    image, grid = image_and_grid(torch.Generator().manual_seed(0), (2, 3, 9, 7, 6, 11))
    image, grid, sampling = image.to(DEVICE), grid.to(DEVICE), replace(PAPER, intercept=False)
    noise = draw_noise(sampling, (6, 11)).to(DEVICE)
    for precision in (torch.float32, torch.float16):
        part = image.to(precision)
        value, _ = sample(_triton(), part, grid, None, noise, False, sampling, "bilinear", "reflection", True)
        expected = F.grid_sample(part.float(), grid, padding_mode="reflection", align_corners=True)
        assert torch.equal(value, expected.to(precision))


@runs_kernels
def test_the_grids_gradient_repeats_to_the_last_bit():
    gradient, slope = torch.randn(2, 37, 9, 70, device=DEVICE), torch.randn(2, 37, 9, 70, 2, device=DEVICE)
    first = _triton().grid_gradient(gradient, slope)
    assert all(torch.equal(first, _triton().grid_gradient(gradient, slope)) for _ in range(3))
    torch.testing.assert_close(first, eager.grid_gradient(gradient.double(), slope.double()).float())


@runs_kernels
def test_where_deterministic_algorithms_are_asked_for_torch_has_the_say_on_the_images_gradient():
    image, grid = (t.to(DEVICE) for t in image_and_grid(torch.Generator().manual_seed(0), (2, 3, 9, 7, 6, 11)))
    arguments = torch.rand(2, 3, 6, 11, device=DEVICE), image, grid, Reading("bilinear", "zeros", False)
    torch.use_deterministic_algorithms(True)
    try:
        if GPU:
            with pytest.raises(RuntimeError, match="deterministic"):
                _triton().image_gradient(*arguments)
        else:
            assert torch.equal(_triton().image_gradient(*arguments), eager.image_gradient(*arguments))
    finally:
        torch.use_deterministic_algorithms(False)


@runs_kernels
def test_an_empty_batch_gives_an_empty_result(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "triton")
    image = torch.rand(0, 3, 5, 7, device=DEVICE, requires_grad=True)
    grid = torch.rand(0, 4, 6, 2, device=DEVICE, requires_grad=True)
    out = grid_sample_linearized(image, grid)
    assert out.shape == (0, 3, 4, 6)
    assert [t.shape for t in torch.autograd.grad(out.sum(), (image, grid))] == [image.shape, grid.shape]


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_operators_pass_opcheck(dtype, monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "triton")
    image, grid = image_and_grid(torch.Generator().manual_seed(0), (2, 3, 5, 7, 2, 3))
    image, grid = image.to(DEVICE, dtype), grid.to(DEVICE)
    noise = draw_noise(PAPER, (2, 3)).to(DEVICE)
    ops = torch.ops.lms_geometry
    knobs = False, 1.0, 1.0, 1e-3, True, True, "bilinear", "zeros", False
    torch.library.opcheck(ops.linearized_sample, (image, grid, None, noise, *knobs))
    gradient = torch.rand(2, 3, 2, 3, device=DEVICE, dtype=dtype)
    torch.library.opcheck(ops.grid_gradient, (gradient, torch.rand(2, 3, 2, 3, 2, device=DEVICE)))
    torch.library.opcheck(ops.image_gradient, (gradient, grid, 5, 7, "bilinear", "zeros", False))


@runs_kernels
def test_what_triton_cannot_do_another_backend_does(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "triton")
    image = torch.rand(1, 1, 5, 6, device=DEVICE)
    for good in (image, image.half(), image.bfloat16()):
        assert backends.choose(good, "bilinear") is _triton()
    huge = torch.empty_strided((1, 1, 2, 2), (1, 1, 2**30, 1), device="meta")
    for other, mode in (
        (image.double(), "bilinear"),
        (image, "nearest"),
        (image, "bicubic"),
        (image[:, :, :1], "bilinear"),
        (huge, "bilinear"),
    ):
        assert backends.choose(other, mode) is eager


@runs_kernels
def test_triton_runs_only_where_it_is_named(monkeypatch):
    image = torch.rand(1, 1, 5, 6, device=DEVICE if GPU else "meta")
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    assert backends.choose(image, "bilinear") is eager
    monkeypatch.setenv(backends.VARIABLE, "triton")
    assert backends.choose(image, "bilinear") is _triton()


@pytest.mark.skipif(INTERPRETED or GPU, reason="Triton works here")
def test_without_a_gpu_the_backend_is_missing_and_says_so(monkeypatch):
    monkeypatch.setenv(backends.VARIABLE, "triton")
    with pytest.raises(RuntimeError, match=r"'triton', but Triton finds no GPU"):
        grid_sample_linearized(torch.rand(1, 1, 5, 6), torch.zeros(1, 2, 3, 2))


@pytest.mark.slow
@compiles
@pytest.mark.parametrize("architecture", [90])
@pytest.mark.parametrize(("precision", "channels"), [("fp32", 1), ("fp32", 4), ("bf16", 16)])
def test_the_kernels_compile_for_gpus_that_are_not_here(architecture, precision, channels, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels, image = _triton().kernels, f"*{precision}"
    reading = {"PADDING": "reflection", "ALIGN_CORNERS": False}
    knobs = {"K": 8, "WHITEN": True, "INTERCEPT": True, "MASK": True}
    tile = {"SAMPLES": 8, "PIXELS": 128 // channels, "CHANNELS": channels}
    strides = {"jacobian": None, "channel_stride": 1} if channels > 1 else {"column_stride": 1}
    sources = (
        (kernels.sample, {"input": image, "value": image}, {**reading, **knobs, **tile, **strides}),
        (kernels.image_gradient, {"gradient": image}, {**reading, "PIXELS": 128}),
        (kernels.grid_gradient, {"gradient": image}, {"NUMBERS": 512, "CHANNELS": 4}),
        (kernels.side_by_side, {"input": image, "out": image}, {"TEXELS": 128, "CHANNELS": channels}),
    )
    for kernel, types, constants in sources:
        assert "cubin" in _compiled(kernel, types, constants, architecture).asm


def _compiled(kernel, types, constants, architecture):
    import triton

    floats = dict.fromkeys(("grid", "jacobian", "noise", "value", "slope", "gradient", "out"), "*fp32")
    floats |= dict.fromkeys(("sigma", "jitter", "ridge"), "fp32") | types
    signature = {name: floats.get(name, "i32") for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    source = triton.compiler.ASTSource(kernel, signature, constants)
    target = triton.backends.compiler.GPUTarget("cuda", architecture, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True})


def _triton():
    from lms_geometry.backends import triton

    return triton


def _on_device(*arguments):
    return [t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in arguments]
