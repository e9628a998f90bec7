"""The functions under torch.compile, torch.func, torch.export and autocast."""

import copy
import io
import warnings
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from settings import TORCH, paper
from torch.export import Dim
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from lms_geometry import (
    LinearizedGridSample,
    draw_noise,
    grid_sample_linearized,
    homography_warp_linearized,
    remap_linearized,
    warp_affine_linearized,
    warp_perspective_linearized,
)

SAMPLING = paper(num_samples=4)
B, C, H, W, h, w = 2, 3, 11, 13, 4, 5


def _case(name):
    """A warp as a function of image, parameters and noise, and the parameters."""
    identity = torch.eye(3).expand(B, 3, 3) + 0.03 * torch.randn(B, 3, 3)
    y, x = torch.meshgrid(torch.arange(float(h)), torch.arange(float(w)), indexing="ij")
    maps = torch.stack((2 * x, 2 * y)).unsqueeze(1) + 0.1 * torch.randn(2, B, h, w)
    return {
        "grid_sample": (
            lambda i, g, n: grid_sample_linearized(i, g, sampling=SAMPLING, noise=n),
            F.affine_grid(identity[:, :2], (B, C, h, w), align_corners=False),
        ),
        "warp_affine": (
            lambda i, m, n: warp_affine_linearized(i, m, (h, w), sampling=SAMPLING, noise=n),
            0.4 * identity[:, :2],
        ),
        "warp_affine, fill": (
            lambda i, m, n: warp_affine_linearized(
                i, m, (h, w), padding_mode="fill", fill_value=torch.ones(C), sampling=SAMPLING, noise=n
            ),
            0.4 * identity[:, :2],
        ),
        "warp_perspective": (
            lambda i, m, n: warp_perspective_linearized(i, m, (h, w), sampling=SAMPLING, noise=n),
            identity * torch.tensor([[0.4, 0.4, 0.4], [0.4, 0.4, 0.4], [0.1, 0.1, 1.0]]),
        ),
        "homography_warp": (
            lambda i, m, n: homography_warp_linearized(i, m, (h, w), sampling=SAMPLING, noise=n),
            identity,
        ),
        "remap": (lambda i, m, n: remap_linearized(i, *m, align_corners=True, sampling=SAMPLING, noise=n), maps),
    }[name]


NAMES = ("grid_sample", "warp_affine", "warp_affine, fill", "warp_perspective", "homography_warp", "remap")
every_warp = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def image():
    return torch.rand(B, C, H, W)


@pytest.fixture
def noise():
    return draw_noise(SAMPLING, (h, w))


def _gradients(warp, image, parameters, noise):
    inputs = (image.clone().requires_grad_(), parameters.clone().requires_grad_())
    out = warp(*inputs, noise)
    return (out, *torch.autograd.grad(out.square().sum(), inputs))


@pytest.mark.slow
@every_warp
def test_it_compiles_to_one_graph(name, image, noise):
    warp, parameters = _case(name)
    torch._dynamo.reset()
    compiled = torch.compile(warp, fullgraph=True, backend="aot_eager")
    for got, plain in zip(
        _gradients(compiled, image, parameters, noise), _gradients(warp, image, parameters, noise), strict=True
    ):
        torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_without_noise_it_still_compiles_to_one_graph_and_for_sizes_to_come(image):
    torch._dynamo.reset()
    compiled = torch.compile(grid_sample_linearized, fullgraph=True, backend="aot_eager")
    for size in ((h, w), (h + 2, w + 1), (h + 5, w)):
        assert compiled(image, torch.zeros(B, *size, 2, requires_grad=True)).shape == (B, C, *size)


@every_warp
def test_forward_and_reverse_mode_agree(name, image, noise):
    warp, parameters = _case(name)
    for argument in (0, 1):
        forward, reverse = (j(warp, argument)(image, parameters, noise) for j in (jacfwd, jacrev))
        torch.testing.assert_close(forward, reverse, rtol=1e-4, atol=1e-4)
        assert reverse.abs().sum() > 0


def test_without_intercept_forward_mode_still_sees_the_slope(image, noise):
    sampling = paper(num_samples=4, intercept=False)
    grid = 0.5 * torch.randn(B, h, w, 2)

    def sample(points):
        return grid_sample_linearized(image, points, sampling=sampling, noise=noise)

    torch.testing.assert_close(jacfwd(sample)(grid), jacrev(sample)(grid))
    assert jacfwd(sample)(grid).abs().sum() > 0


def test_without_intercept_a_derivative_taken_around_vmap_still_sees_the_slope(image, noise):
    sampling = paper(num_samples=4, intercept=False)
    grid = 0.5 * torch.randn(B, h, w, 2)

    def sample(i, points):
        return grid_sample_linearized(i[None], points[None], sampling=sampling, noise=noise)[0]

    around = grad(lambda points: vmap(sample)(image, points).square().sum())(grid)
    plain = grad(lambda points: grid_sample_linearized(image, points, sampling=sampling, noise=noise).square().sum())(
        grid
    )
    torch.testing.assert_close(around, plain, rtol=1e-4, atol=1e-4)
    assert plain.abs().sum() > 0


@pytest.mark.parametrize("intercept", [True, False])
def test_forward_mode_around_vmap_and_inside_it_is_that_of_the_batch(image, noise, intercept):
    sampling = paper(num_samples=4, intercept=intercept)
    grid, directions = torch.rand(B, h, w, 2) - 0.5, (torch.randn(B, C, H, W), torch.randn(B, h, w, 2))

    def sample(image, grid):
        return grid_sample_linearized(image, grid, sampling=sampling, noise=noise)

    def one(image, grid):
        return sample(image[None], grid[None])[0]

    for argument in (0, 1):
        primals, tangents = [image, grid], [torch.zeros_like(image), torch.zeros_like(grid)]
        tangents[argument] = directions[argument]
        _, expected = jvp(sample, tuple(primals), tuple(tangents))
        _, around = jvp(vmap(one), tuple(primals), tuple(tangents))
        inside = vmap(lambda i, g, di, dg: jvp(one, (i, g), (di, dg))[1])(*primals, *tangents)
        assert expected.abs().sum() > 0
        torch.testing.assert_close(around, expected)
        torch.testing.assert_close(inside, expected)


def test_forward_mode_of_a_matrix_goes_through_vmap(image, noise):
    warp, matrix = _case("warp_affine")

    def warps(matrices):
        return vmap(lambda i, m: warp(i[None], m[None], noise)[0])(image, matrices)

    torch.testing.assert_close(jacfwd(warps)(matrix), jacrev(warps)(matrix), rtol=1e-4, atol=1e-4)


def test_the_hessian_for_the_image_is_that_of_the_bilinear_weights():
    image, grid = torch.rand(1, 1, 5, 6, dtype=torch.float64), torch.rand(1, h, w, 2, dtype=torch.float64) * 2 - 1
    noise = draw_noise(SAMPLING, (h, w), dtype=torch.float64)
    found = hessian(lambda i: grid_sample_linearized(i, grid, sampling=SAMPLING, noise=noise).square().sum())(image)
    weights = torch.autograd.functional.jacobian(lambda i: F.grid_sample(i, grid, align_corners=False), image)
    weights = weights.flatten(0, 3).flatten(1)
    torch.testing.assert_close(found.view(30, 30), 2 * weights.T @ weights)


def test_mixed_second_derivatives_are_the_same_in_every_way(image, noise):
    """By (2) the weights of the centre are constants: they have no derivative by the grid."""
    grid = torch.rand(B, h, w, 2) - 0.5
    of_image, of_grid = torch.randn_like(image), torch.randn_like(grid)

    def loss(image, grid):
        return grid_sample_linearized(image, grid, sampling=SAMPLING, noise=noise).square().sum()

    for first, second, weight in ((0, 1, of_image), (1, 0, of_grid), (0, 0, of_image), (1, 1, of_grid)):
        inputs = [image.clone().requires_grad_(), grid.clone().requires_grad_()]
        (gradient,) = torch.autograd.grad(loss(*inputs), inputs[first], create_graph=True)
        (plain,) = torch.autograd.grad((gradient * weight).sum(), inputs[second])
        by_functions = grad(lambda *both, f=first, v=weight: (grad(loss, f)(*both) * v).sum(), second)(image, grid)
        torch.testing.assert_close(plain, by_functions, rtol=1e-4, atol=1e-4)
        assert plain.abs().sum() > 0


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("arguments", [(0, 0), (0, 1), (1, 0), (1, 1)])
def test_second_derivatives_are_the_same_in_every_nesting(arguments, intercept):
    sampling = paper(num_samples=4, intercept=intercept)
    image, grid = torch.rand(1, 1, 3, 4), torch.rand(1, 2, 3, 2) - 0.5
    noise = draw_noise(sampling, (2, 3))

    def loss(image, grid):
        return (grid_sample_linearized(image, grid, sampling=sampling, noise=noise) ** 3).sum()

    first, second = arguments
    expected, *others = (
        outer(inner(loss, first), second)(image, grid) for outer, inner in product((jacrev, jacfwd), repeat=2)
    )
    assert expected.abs().sum() > 0
    for other in others:
        torch.testing.assert_close(other, expected, rtol=1e-4, atol=1e-4)


def test_compiled_without_gradients_the_exact_value_costs_no_samples(image):
    operators = []

    def backend(graph, _):
        operators.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    sampling = paper(intercept=False)
    grid = torch.rand(B, h, w, 2)
    torch._dynamo.reset()
    compiled = torch.compile(lambda i, g: grid_sample_linearized(i, g, sampling=sampling), backend=backend)
    with torch.no_grad():
        torch.testing.assert_close(compiled(image, grid), F.grid_sample(image, grid, align_corners=False))
    assert any("grid_sample" in operator for operator in operators)
    assert not any("linearized_sample" in operator for operator in operators)


def test_compiled_forward_mode_sees_the_slope_even_without_gradients(image, noise):
    sampling = paper(num_samples=4, intercept=False)
    grid, direction = torch.rand(B, h, w, 2) - 0.5, torch.randn(B, h, w, 2)

    def slope(points):
        return jvp(lambda p: grid_sample_linearized(image, p, sampling=sampling, noise=noise), (points,), (direction,))[
            1
        ]

    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(slope, fullgraph=True, backend="aot_eager")(grid)
    torch.testing.assert_close(compiled, slope(grid))
    assert compiled.abs().sum() > 0


@every_warp
def test_vmap_equals_a_loop(name, image, noise):
    warp, parameters = _case(name)
    over = 1 if name == "remap" else 0
    together = vmap(lambda i, p, n: warp(i[None], p.unsqueeze(over), n)[0], (0, over, None))(image, parameters, noise)
    torch.testing.assert_close(together, warp(image, parameters, noise))
    noises = torch.stack([draw_noise(SAMPLING, (h, w)) for _ in range(3)])
    by_noise = vmap(lambda n: warp(image, parameters, n))(noises)
    for got, n in zip(by_noise, noises, strict=True):
        torch.testing.assert_close(got, warp(image, parameters, n))


def test_vmap_of_gradients_gives_one_an_image(image, noise):
    warp, parameters = _case("warp_affine")

    def loss(i, p):
        return warp(i[None], p[None], noise).square().sum()

    together = vmap(grad(loss, 1))(image, parameters)
    alone = torch.stack([grad(loss, 1)(i, p) for i, p in zip(image, parameters, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@every_warp
def test_it_exports(name, image, noise):
    warp, parameters = _case(name)

    class Warp(torch.nn.Module):
        def forward(self, image, parameters, noise):
            return warp(image, parameters, noise)

    program = torch.export.export(Warp(), (image, parameters, noise))
    torch.testing.assert_close(program.module()(image, parameters, noise), warp(image, parameters, noise))


@every_warp
def test_an_exported_or_traced_program_keeps_its_gradients(name, image, noise):
    warp, parameters = _case(name)

    class Warp(torch.nn.Module):
        def forward(self, image, parameters, noise):
            return warp(image, parameters, noise)

    inputs = image.requires_grad_(), parameters.requires_grad_(), noise
    exported = torch.export.export(Warp(), inputs).module()
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and warns of every check
        torch.jit.save(torch.jit.trace(warp, inputs, check_trace=False), buffer)
        buffer.seek(0)
        traced = torch.jit.load(buffer)
    expected = _gradients(warp, *inputs)
    for program in (exported, traced):
        for got, plain in zip(_gradients(program, *inputs), expected, strict=True):
            torch.testing.assert_close(got, plain, rtol=1e-4, atol=1e-4)
    direction = torch.randn_like(parameters)
    plain = jvp(lambda p: warp(image.detach(), p, noise), (parameters.detach(),), (direction,))
    kept = jvp(lambda p: exported(image.detach(), p, noise), (parameters.detach(),), (direction,))
    torch.testing.assert_close(kept, plain, rtol=1e-4, atol=1e-4)


def test_it_exports_for_any_size(image):
    class Sample(torch.nn.Module):
        def forward(self, image, grid):
            return grid_sample_linearized(image, grid)

    least = 4 if TORCH < (2, 7) else 2
    sizes = {
        "image": {0: Dim("B"), 2: Dim("H", min=least), 3: Dim("W", min=least)},
        "grid": {0: Dim("B"), 1: Dim("h"), 2: Dim("w")},
    }
    program = torch.export.export(Sample(), (image, torch.zeros(B, h, w, 2)), dynamic_shapes=sizes)
    assert program.module()(torch.rand(3, C, 5, 6), torch.zeros(3, 7, 8, 2)).shape == (3, C, 7, 8)


def test_autocast_gives_the_dtype_of_grid_sample(image):
    grid = torch.zeros(B, h, w, 2)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", dtype=dtype):
            for i, g in ((image, grid), (image.to(dtype), grid), (image.to(dtype), grid.to(dtype))):
                assert grid_sample_linearized(i, g).dtype == F.grid_sample(i, g, align_corners=False).dtype


def test_checkpointing_recomputes_the_same_samples(image):
    from torch.utils.checkpoint import checkpoint

    grid = torch.randn(B, h, w, 2, requires_grad=True)
    torch.manual_seed(1)
    (plain,) = torch.autograd.grad(grid_sample_linearized(image, grid).square().sum(), grid)
    torch.manual_seed(1)
    out = checkpoint(grid_sample_linearized, image, grid, use_reentrant=False)
    (recomputed,) = torch.autograd.grad(out.square().sum(), grid)
    assert torch.equal(plain, recomputed)


def test_a_module_survives_deepcopy_pickling_and_torch_save(image, noise):
    module = LinearizedGridSample(padding_mode="border", sampling=SAMPLING)
    grid = torch.randn(B, h, w, 2)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for other in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert torch.equal(other(image, grid, noise=noise), module(image, grid, noise=noise))
