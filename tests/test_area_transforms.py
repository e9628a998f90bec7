"""The sampler as it comes under torch's transforms, compilers and exporters."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from lms_geometry.integrations import linearize
from settings import needs_torch
from torch import nn
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

from lms_geometry import LinearizedSampling, grid_sample_linearized, homography_warp_linearized

THETA = torch.tensor([[[2.5, 0.4, 0.1], [-0.3, 1.8, -0.1]]]).double()


def image(batch=1, channels=2):
    return torch.rand(batch, channels, 13, 17, generator=torch.Generator().manual_seed(0)).double()


def grid_of(theta, size=(4, 5)):
    return F.affine_grid(theta, (len(theta), 1, *size), align_corners=False)


def weigh(out):
    return (out * torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)).sum()


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("estimate", ["edges", "plane"])
def test_forward_and_reverse_mode_agree(estimate, given):
    """For image, grid and Jacobian, and for a bare grid through its finite differences."""
    sampling = LinearizedSampling(slope=estimate)
    jacobian = torch.tensor([[3.0, 0.5], [-0.2, 2.0]]).double().repeat(1, 4, 5, 1, 1) if given else None

    def sample(image, grid, jacobian=None):
        return grid_sample_linearized(image, grid, sampling=sampling, jacobian=jacobian)

    arguments = (image(), grid_of(THETA), *((jacobian,) if given else ()))
    which = tuple(range(len(arguments)))
    forward, reverse = jacfwd(sample, which)(*arguments), jacrev(sample, which)(*arguments)
    leaves = [a.clone().requires_grad_() for a in arguments]
    plain = torch.autograd.grad(weigh(sample(*leaves)), leaves)
    for f, r, p in zip(forward, reverse, plain, strict=True):
        torch.testing.assert_close(f, r)
        weights = torch.linspace(-1, 1, 40, dtype=torch.float64).view(1, 2, 4, 5)
        torch.testing.assert_close(torch.einsum("bchw,bchw...->...", weights, r), p)


def test_vmap_takes_any_axis_of_any_argument():
    images, grids = torch.stack((image(), 1 - image()), 2), torch.stack((grid_of(THETA), grid_of(0.4 * THETA)))
    wanted = [grid_sample_linearized(images[:, :, i], grids[i]) for i in (0, 1)]
    torch.testing.assert_close(vmap(grid_sample_linearized, (2, 0))(images, grids), torch.stack(wanted))
    shared = vmap(grid_sample_linearized, (None, 0))(image(), grids)
    torch.testing.assert_close(shared[1], grid_sample_linearized(image(), grids[1]))
    by_grid = vmap(grad(lambda g, i: weigh(grid_sample_linearized(i, g))), (0, 2))(grids, images)
    for i in (0, 1):
        leaf = grids[i].clone().requires_grad_()
        (alone,) = torch.autograd.grad(weigh(grid_sample_linearized(images[:, :, i], leaf)), leaf)
        torch.testing.assert_close(by_grid[i], alone)


def test_the_gradient_for_the_grid_may_be_differentiated_by_the_gradient_of_the_value():
    """The slopes are constants: the gradient is linear in what comes from the loss."""
    grid, weight = grid_of(THETA).requires_grad_(), torch.rand(1, 2, 4, 5).double().requires_grad_()
    (by_grid,) = torch.autograd.grad((grid_sample_linearized(image(), grid) * weight).sum(), grid, create_graph=True)
    (second,) = torch.autograd.grad(by_grid.square().sum(), weight)
    expected = jvp(lambda g: grid_sample_linearized(image(), g), (grid.detach(),), (2 * by_grid.detach(),))[1]
    torch.testing.assert_close(second, expected)


class Transformer(nn.Module):
    def __init__(self, sampled=grid_sample_linearized):
        super().__init__()
        self.localise = nn.Linear(13 * 17 * 2, 6)
        nn.init.normal_(self.localise.weight, std=1e-3, generator=torch.Generator().manual_seed(0))
        self.localise.bias.data = THETA.float().flatten()
        self.sampled = sampled

    def forward(self, image):
        theta = self.localise(image.flatten(1)).view(-1, 2, 3)
        grid = F.affine_grid(theta, (image.shape[0], 1, 4, 5), align_corners=False)
        return self.sampled(image, grid, align_corners=False)


def gradients(model, batch):
    model.zero_grad()
    out = model(batch)
    weigh(out).backward()
    return out.detach(), model.localise.weight.grad.clone()


@pytest.mark.slow
def test_a_model_compiles_into_one_graph_without_a_random_operator():
    model, batch = Transformer(), image(3).float()
    graphs = []

    def look(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled = gradients(torch.compile(model, backend="aot_eager", fullgraph=True), batch)
    for got, want in zip(compiled, gradients(model, batch), strict=True):
        torch.testing.assert_close(got, want)
    torch._dynamo.reset()
    torch.compile(model, backend=look, fullgraph=True)(batch)
    called = [str(node.target) for graph in graphs for node in graph.graph.nodes]
    assert any("area_mean" in name for name in called)
    assert not any("rand" in name for name in called)


@pytest.mark.slow
def test_transforms_inside_a_compiled_graph():
    read = image()

    def loss(grid):
        return weigh(grid_sample_linearized(read, grid))

    torch._dynamo.reset()
    compiled = torch.compile(lambda g: grad(loss)(g), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(grid_of(THETA)), grad(loss)(grid_of(THETA)))


def test_a_model_can_be_exported_for_any_batch():
    model = Transformer().eval()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(model, (image(3).float(),), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(image(5).float()), model(image(5).float()))


def test_a_patched_model_can_be_traced():
    model, batch = Transformer(F.grid_sample), image(3).float()
    with linearize(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(model, batch)
    torch.testing.assert_close(traced(1 - batch), Transformer()(1 - batch))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # of torch's affine_grid under vmap
def test_a_functional_model_has_gradients_for_each_example():
    model, batch = Transformer(), image(3).float()
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, example):
        return weigh(functional_call(model, parameters, (example[None],)))

    each = vmap(grad(loss), (None, 0))(parameters, batch)
    for i in range(3):
        _, alone = gradients(model, batch[i : i + 1])
        torch.testing.assert_close(each["localise.weight"][i], alone)


@needs_torch(2, 8, because="does not say that its exporter to ONNX is at work")
@pytest.mark.slow
@pytest.mark.parametrize("warp", ["grid", "homography"])
def test_an_onnx_file_holds_standard_operators_and_gives_the_same_numbers(warp, tmp_path):
    onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class Warp(nn.Module):
        def forward(self, image, matrix):
            return homography_warp_linearized(image, matrix, (4, 5))

    model = Transformer().eval() if warp == "grid" else Warp()
    matrix = torch.tensor([[[2.5, 0.4, 0.1], [-0.3, 1.8, -0.1], [0.05, 0.0, 1.0]]])
    arguments = (image(2).float(),) if warp == "grid" else (image(2).float(), matrix.repeat(2, 1, 1))
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, arguments, path, dynamo=True, verbose=False)
    nodes = onnx.load(path).graph.node
    assert {node.domain for node in nodes} == {""}
    assert "GridSample" in {node.op_type for node in nodes}
    session = onnxruntime.InferenceSession(path)
    names = [argument.name for argument in session.get_inputs()]
    (out,) = session.run(None, dict(zip(names, (a.numpy() for a in arguments), strict=True)))
    torch.testing.assert_close(torch.from_numpy(out), model(*arguments), rtol=0, atol=1e-5)
