"""The Triton kernels for the mean over a pixel's area give the reference's numbers.

As in test_triton.py, they run on a GPU where there is one, and else in Triton's interpreter, in a process of its own.
"""

import os
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from backend_cases import PADDING_MODES, assert_same, doubled, draw_jacobian, image_and_grid, run_under_the_interpreter
from hypothesis import given, settings
from hypothesis import strategies as st

from lms_geometry import backends, grid_sample_linearized
from lms_geometry.backends import eager_area
from lms_geometry.config import Averaging, Reading

if find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OLD = tuple(map(int, version("triton").split(".")[:2])) < (3, 3)
GPU = torch.accelerator.is_available() and torch.accelerator.current_accelerator().type in ("cuda", "xpu")
DEVICE = torch.accelerator.current_accelerator() if GPU else torch.device("cpu")

# The interpreter computes with NumPy, which warns of arithmetic with points that are no number.
pytestmark = pytest.mark.filterwarnings("ignore:(invalid value|overflow|divide by zero) encountered:RuntimeWarning")
runs_kernels = pytest.mark.skipif(not (INTERPRETED or GPU), reason="runs in the test under the interpreter")

EDGES = Averaging(nodes=3, side=1.0, estimate="edges")
JACOBIAN = torch.tensor([[2.5, -1.0], [0.5, 1.7]]).reshape(1, 1, 1, 2, 2)

# B, C, H, W, h, w: large images, so that the random Jacobians shrink them, and outputs with one row or column.
sizes = st.tuples(
    st.integers(1, 2),
    st.sampled_from([1, 2, 3, 5]),
    *(st.integers(low, high) for low, high in ((2, 31), (2, 37), (1, 7), (1, 9))),
)


@pytest.mark.skipif(INTERPRETED or GPU, reason="the other tests run here")
def test_under_the_interpreter():
    run_under_the_interpreter(__file__)


@runs_kernels
@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@settings(max_examples=2)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=sizes,
    count=st.integers(2, 4),
    side=st.sampled_from([0.7, 1.0, 1.5]),
    kind=st.none() | st.sampled_from(["pixel", "image", "one", "row"]),
    shared=st.sampled_from([None, "image", "grid"]),
    layout=st.sampled_from(["contiguous", "channels last", "strided"]),
)
def test_triton_agrees_with_eager(align_corners, padding_mode, seed, size, count, side, kind, shared, layout):
    generator = torch.Generator().manual_seed(seed)
    image, grid = image_and_grid(generator, size, shared)
    if layout == "channels last":
        image = image.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        image = image.repeat_interleave(2, -1).repeat_interleave(3, -2)[..., ::3, ::2]
        grid = grid.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    jacobian = draw_jacobian(generator, size, kind)
    jacobian = None if jacobian is None else 1.5 * jacobian
    gradient = torch.randn(*size[:2], *size[-2:], generator=generator)
    assert_agrees(gradient, image, grid, jacobian, count, side, padding_mode, align_corners)


@runs_kernels
@pytest.mark.parametrize(
    ("channels", "layout", "jacobian"),
    [(6, torch.contiguous_format, JACOBIAN), (8, torch.channels_last, None)],
)
def test_an_output_of_many_blocks_and_channels_in_turn(channels, layout, jacobian, monkeypatch):
    monkeypatch.setattr("lms_geometry.backends.triton._ENOUGH_PROGRAMS", 1)
    generator = torch.Generator().manual_seed(0)
    image, grid = image_and_grid(generator, (1, channels, 40, 50, 13, 17))
    gradient = torch.randn(1, channels, 13, 17, generator=generator)
    assert_agrees(gradient, image.contiguous(memory_format=layout), grid, jacobian, 3, 1.0, "border", False)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once_at_the_end(dtype):
    generator = torch.Generator().manual_seed(0)
    image, grid = image_and_grid(generator, (1, 3, 25, 21, 6, 7))
    gradient = torch.randn(1, 3, 6, 7, generator=generator).to(dtype)
    half, grid, gradient = (t.to(DEVICE) for t in (image.to(dtype), grid, gradient))
    how = None, EDGES, Reading("bilinear", "border", True)
    value = _triton().area_mean(half, grid, *how)
    by_image = _triton().area_image_gradient(gradient, half, grid, *how)
    by_grid, _ = _triton().area_gradient(gradient, value, half, grid, *how)
    assert [t.dtype for t in (value, by_image, by_grid)] == [dtype, dtype, torch.float32]
    # Half a unit in the last place would do, but for the interpreter, which cuts bfloat16 off.
    tolerance = {"rtol": torch.finfo(dtype).eps + 1e-5, "atol": 1e-5}
    torch.testing.assert_close(value.float(), eager_area.area_mean(half.float(), grid, *how), **tolerance)
    expected = eager_area.area_image_gradient(gradient.float(), half.float(), grid, *how)
    torch.testing.assert_close(by_image.float(), expected, **tolerance)
    expected, _ = eager_area.area_gradient(gradient.float(), value.float(), half.float(), grid, *how)
    torch.testing.assert_close(by_grid, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


@runs_kernels
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("align_corners", [False, True])
def test_a_warp_that_shrinks_nowhere_is_grid_sample(padding_mode, align_corners):
    # With these sizes all source points are exact in float32, so both samplers have each on the same side of a texel.
    height, width = (5, 9) if align_corners else (4, 8)
    image = torch.rand(1, 2, height, width, device=DEVICE)
    whole = torch.tensor([2 / (width - align_corners), -2 / (height - align_corners)])
    turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    linear = torch.stack((torch.eye(2), torch.eye(2), -torch.eye(2), turn, 0.5 * torch.eye(2)))
    theta = torch.cat((linear, torch.zeros(5, 2, 1)), 2)
    theta[1, :, 2] = whole
    grid = F.affine_grid(theta, [5, 2, height, width], align_corners)
    turned = F.affine_grid(theta[3:4], [1, 2, width, height], align_corners)
    for points in (*grid[[0, 1, 2, 4]].split(1), turned):
        points = points.to(DEVICE)
        gradient = torch.randn(1, 2, *points.shape[1:3], device=DEVICE)
        reading = Reading("bilinear", padding_mode, align_corners)
        plain = [t.clone().requires_grad_() for t in (image, points)]
        expected = F.grid_sample(*plain, *reading)
        by_image, by_grid = torch.autograd.grad(expected, plain, gradient)
        value = _triton().area_mean(image, points, None, EDGES, reading)
        assert torch.equal(value, expected)
        torch.testing.assert_close(
            _triton().area_image_gradient(gradient, image, points, None, EDGES, reading), by_image, rtol=1e-5, atol=1e-5
        )
        ours, _ = _triton().area_gradient(gradient, value, image, points, None, EDGES, reading)
        torch.testing.assert_close(ours, by_grid, rtol=1e-5, atol=1e-5)


@runs_kernels
def test_pixels_without_extent_have_grid_samples_value_beside_pixels_with_one():
    image, grid = (t.to(DEVICE) for t in image_and_grid(torch.Generator().manual_seed(0), (1, 3, 19, 23, 5, 9)))
    jacobian = torch.eye(2, device=DEVICE).repeat(1, 5, 9, 1, 1)
    jacobian[:, :, ::2] *= 2.5
    value = _triton().area_mean(image, grid, jacobian, EDGES, Reading("bilinear", "zeros", False))
    plain = F.grid_sample(image, grid, align_corners=False)
    assert torch.equal(value[..., 1::2], plain[..., 1::2])
    assert (value[..., ::2] != plain[..., ::2]).float().mean() > 0.5
    assert_agrees(torch.randn_like(value), image, grid, jacobian, 3, 1.0, "zeros", False)


@runs_kernels
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_points_far_outside_or_nowhere_are_as_eager_has_them(padding_mode):
    generator = torch.Generator().manual_seed(0)
    image, grid = image_and_grid(generator, (1, 1, 27, 29, 7, 18))
    for row, bad in enumerate((torch.nan, torch.inf, -torch.inf, 1e30, -1e30, -2e5, 1e4)):
        column = 4 * (row % 2)
        grid[0, row, column, 0] = grid[0, row, column + 6, 1] = grid[0, row, column + 13] = bad
    gradient, image, grid = (t.to(DEVICE) for t in (torch.randn(1, 1, 7, 18, generator=generator), image, grid))
    rest = None, 3, 1.0, padding_mode, False
    got = results(_triton(), gradient, image, grid, *rest)
    assert all(t.isfinite().all() for t in got)
    assert (got[2][~(grid.abs() <= 1e5)] == 0).all()
    # Far away no digits are left for a place within the image. So such pixels have no part in the comparison.
    near = (grid.abs() < 100).all(-1).unsqueeze(1)
    arguments = gradient * near, image, grid, *rest
    got = results(_triton(), *arguments)
    expected, exact = results(eager_area, *arguments), results(eager_area, *doubled(arguments))
    for t in (got, expected, exact):
        t[0] = t[0][near]
    assert_same(got, expected, exact)


@runs_kernels
def test_jacobians_mirrored_turned_of_low_rank_huge_or_no_number_are_as_eager_has_them():
    rows = (
        *((-3, 0, 0, 3), (0, 2.5, -2.5, 0), (0, 2, 2, 0), (3, 1, 1, 3.001), (1.2, 0, 0, 1.2), (1.001, 0, 0, 5)),
        *((0, 0, 3, 2), (3, 2, 0, 0), (3, 2, 6, 4), (0, 0, 0, 0), (1e6, 0, 0, 1), (torch.nan, 3, torch.inf, 3)),
    )
    jacobian = torch.tensor(rows, dtype=torch.float32).reshape(1, 1, 12, 2, 2)
    generator = torch.Generator().manual_seed(0)
    image, grid = image_and_grid(generator, (1, 3, 29, 27, 5, 12))
    gradient = torch.randn(1, 3, 5, 12, generator=generator)
    assert_agrees(gradient, image, grid, jacobian, 3, 1.0, "border", False)


@runs_kernels
@pytest.mark.parametrize("jacobian", [None, JACOBIAN])
def test_the_gradients_for_grid_and_jacobian_repeat_to_the_last_bit(jacobian):
    image, grid = (t.to(DEVICE) for t in image_and_grid(torch.Generator().manual_seed(0), (1, 1, 30, 40, 13, 11)))
    jacobian = None if jacobian is None else jacobian.to(DEVICE)
    how = jacobian, EDGES, Reading("bilinear", "zeros", False)
    value = _triton().area_mean(image, grid, *how)
    first, again = (_triton().area_gradient(torch.ones_like(value), value, image, grid, *how) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert first[1] is again[1] is None or torch.equal(first[1], again[1])


@runs_kernels
def test_where_deterministic_algorithms_are_asked_for_torch_has_the_say_on_the_images_gradient():
    image, grid = (t.to(DEVICE) for t in image_and_grid(torch.Generator().manual_seed(0), (2, 3, 19, 17, 6, 5)))
    arguments = torch.rand(2, 3, 6, 5, device=DEVICE), image, grid, None, EDGES, Reading("bilinear", "zeros", False)
    torch.use_deterministic_algorithms(True)
    try:
        if GPU:
            with pytest.raises(RuntimeError, match="deterministic"):
                _triton().area_image_gradient(*arguments)
        else:
            got = _triton().area_image_gradient(*arguments)
            assert torch.equal(got, eager_area.area_image_gradient(*arguments))
    finally:
        torch.use_deterministic_algorithms(False)


@runs_kernels
@pytest.mark.parametrize(("batch", "channels"), [(0, 3), (2, 0)])
def test_an_empty_batch_or_no_channels_give_an_empty_result(batch, channels):
    image, grid = torch.rand(batch, channels, 5, 7, device=DEVICE), torch.rand(batch, 4, 6, 2, device=DEVICE)
    jacobian = torch.rand(1, 1, 1, 2, 2, device=DEVICE)
    how = EDGES, Reading("bilinear", "zeros", False)
    value = _triton().area_mean(image, grid, jacobian, *how)
    assert value.shape == (batch, channels, 4, 6)
    assert _triton().area_image_gradient(value, image, grid, jacobian, *how).shape == image.shape
    by_grid, by_jacobian = _triton().area_gradient(value, value, image, grid, jacobian, *how)
    assert torch.equal(by_grid, torch.zeros_like(grid))
    assert torch.equal(by_jacobian, torch.zeros_like(jacobian))


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_default_sampler_runs_on_the_kernels(dtype, monkeypatch):
    image, grid = image_and_grid(torch.Generator().manual_seed(0), (1, 3, 25, 21, 5, 6))
    image, grid = image.to(DEVICE, dtype).requires_grad_(), grid.to(DEVICE).requires_grad_()
    calls = []
    original = _triton().area_mean
    monkeypatch.setattr(_triton(), "area_mean", lambda *arguments: calls.append(1) or original(*arguments))
    results = {}
    for backend in ("eager", "triton"):
        monkeypatch.setenv(backends.VARIABLE, backend)
        value = grid_sample_linearized(image, grid)
        results[backend] = value.detach(), *torch.autograd.grad(value.float().square().sum(), (image, grid))
    assert calls
    for ours, eagers in zip(results["triton"], results["eager"], strict=True):
        assert ours.dtype == eagers.dtype
        tolerance = 1e-5 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
        torch.testing.assert_close(ours, eagers, rtol=tolerance, atol=tolerance * eagers.abs().max().item())


@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.skipif(OLD, reason="Triton before 3.3 is told otherwise that pointers are aligned")
@pytest.mark.parametrize(("precision", "channels", "vector"), [("fp32", 4, 4), ("bf16", 1, 1)])
def test_the_kernels_compile_for_gpus_that_are_not_here(precision, channels, vector, tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels, image = _triton().kernels, f"*{precision}"
    block = {"ALIGN_CORNERS": False, "PIXELS": 128}
    reading = block | {"COUNT": 3, "PADDING": "reflection", "CHANNELS": channels}
    bare = {"jacobian": None}
    sources = (
        (kernels.mean, {"input": image, "value": image}, reading | bare | {"VECTOR": vector}),
        (kernels.image_gradient, {"gradient": image}, reading | bare),
        (
            kernels.gradient,
            {"gradient": image, "value": image, "input": image},
            reading | {"VECTOR": vector, "TOTAL": True},
        ),
        (kernels.difference_gradient, {}, block),
    )
    compiled = [_compiled(*source) for source in sources]
    assert all("cubin" in kernel.asm for kernel in compiled)
    # Channels that lie side by side are read in one load of 16 bytes.
    assert ("ld.global.v4.b32" in compiled[0].asm["ptx"]) == (vector == 4)


def _compiled(kernel, types, constants):
    import triton

    floats = dict.fromkeys(("grid", "jacobian", "value", "gradient", "out", "by_grid", "by_jacobian"), "*fp32")
    floats |= dict.fromkeys(("side", "least"), "fp32") | types
    signature = {name: floats.get(name, "i32") for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    aligned = [["tt.divisibility", 16]]  # as every tensor that torch allocates
    pointers = {(i,): aligned for i, name in enumerate(kernel.arg_names) if signature[name].startswith("*")}
    source = triton.compiler.ASTSource(kernel, signature, constants, pointers)
    target = triton.backends.compiler.GPUTarget("cuda", 90, 32)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True})


def results(backend, gradient, image, grid, jacobian, count, side, padding_mode, align_corners):
    """Value, and the gradients for the image, the grid and, if there is one, the Jacobian."""
    how = Averaging(count, side, "edges"), Reading("bilinear", padding_mode, align_corners)
    value = backend.area_mean(image, grid, jacobian, *how)
    blank = image.new_zeros(1).expand(image.shape)  # Of the image only size and dtype matter.
    by_image = backend.area_image_gradient(gradient, blank, grid, jacobian, *how)
    by_grid, by_jacobian = backend.area_gradient(gradient, value, image, grid, jacobian, *how)
    assert (by_jacobian is None) == (jacobian is None)
    return [t for t in (value, by_image, by_grid, by_jacobian) if t is not None]


def assert_agrees(*arguments):
    """Triton's numbers are those of the reference, to 1e-5 or to what float32 costs the reference itself."""
    arguments = [t.to(DEVICE) if isinstance(t, torch.Tensor) else t for t in arguments]
    expected, exact = results(eager_area, *arguments), results(eager_area, *doubled(arguments))
    got = results(_triton(), *arguments)
    assert [t.shape for t in got] == [t.shape for t in expected]
    assert_same(got, expected, exact)


def _triton():
    from lms_geometry.backends import triton_area

    return triton_area
