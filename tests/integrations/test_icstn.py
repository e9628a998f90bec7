"""Recurrent spatial transformers that warp by ``transformImage(opt, image, pMtrx)``."""

import sys
import types

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lms_geometry.integrations import linearize
from lms_geometry.integrations.icstn import linearize_icstn
from settings import paper
from torch import nn

EXACT = paper(intercept=False)
IMAGE = torch.rand(2, 1, 20, 29, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SHEAR = np.array([[0.9, 0.1, 0.0], [0.0, 0.8, 0.05], [0.0, 0.0, 1.0]], dtype=np.float32)
WARPS = {
    "translation": [[[1, 0, 0.1], [0, 1, -0.2], [0, 0, 1]], [[1, 0, 0.3], [0, 1, 0.05], [0, 0, 1]]],
    "similarity": [[[0.8, -0.2, 0.1], [0.2, 0.8, 0], [0, 0, 1]], [[1.1, 0.3, 0], [-0.3, 1.1, 0.1], [0, 0, 1]]],
    "affine": [[[0.8, 0.1, 0.1], [0, 0.6, -0.2], [0, 0, 1]], [[1, 0.2, 0], [0.4, 0.9, 0.1], [0, 0, 1]]],
    "homography": [[[0.8, 0.1, 0.1], [0, 0.6, -0.2], [0.1, -0.2, 1]], [[1, 0.2, 0], [0.4, 0.9, 0.1], [0.2, 0.1, 1]]],
}


def transform_image(opt, image, p_matrix):
    """The call form and the conventions of such code: corners at -1 and 1, and no word of align_corners."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, opt.H), torch.linspace(-1, 1, opt.W), indexing="ij")
    points = torch.stack((x, y, torch.ones_like(x)), -1).to(p_matrix)
    x, y, depth = (points @ (torch.from_numpy(opt.refMtrx).to(p_matrix) @ p_matrix).mT[:, None]).unbind(-1)
    return F.grid_sample(image, torch.stack((x / (depth + 1e-8), y / (depth + 1e-8)), -1), mode="bilinear")


@pytest.fixture
def warp(monkeypatch):
    module = types.ModuleType("warp")
    module.transformImage = types.FunctionType(transform_image.__code__, globals())
    monkeypatch.setitem(sys.modules, "warp", module)
    return module


def options(height=6, width=9, reference=SHEAR):
    return types.SimpleNamespace(H=height, W=width, refMtrx=reference)


def matrices(kind):
    return torch.tensor(WARPS[kind], dtype=torch.float64).requires_grad_()


pytestmark = pytest.mark.filterwarnings("ignore:Default grid_sample:UserWarning")


@pytest.mark.parametrize("kind", WARPS)
@pytest.mark.parametrize("size", [(6, 9), (1, 4), (5, 1)])
def test_values_are_those_of_the_function_replaced(warp, kind, size):
    original = warp.transformImage
    want = original(options(*size), IMAGE, matrices(kind))
    with linearize_icstn(warp, sampling=EXACT):
        got = warp.transformImage(options(*size), IMAGE, matrices(kind))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
    assert warp.transformImage is original


@pytest.mark.parametrize("kind", WARPS)
def test_the_gradient_is_the_true_one_on_a_plane(warp, kind):
    """There, plain bilinear sampling has it too, as long as no sample leaves the image."""
    y, x = torch.meshgrid(torch.arange(200.0), torch.arange(290.0), indexing="ij")
    image = (0.3 * x - 0.2 * y).double().expand(2, 1, -1, -1)
    inside = SHEAR * np.array([[0.3], [0.3], [1]], dtype=np.float32)
    near = paper(intercept=False, sigma=0.2, ridge=1e-9, mask_out_of_bounds=False)

    def gradient():
        p = matrices(kind)
        out = warp.transformImage(options(reference=inside), image, p)
        return torch.autograd.grad((out * torch.linspace(1, 2, out[0].numel()).view_as(out[0])).sum(), p)[0]

    want = gradient()
    with linearize_icstn(warp, sampling=near):
        torch.testing.assert_close(gradient(), want, rtol=1e-4, atol=1e-4)


def test_for_an_affine_warp_the_jacobian_is_what_finite_differences_find(warp):
    def run():
        torch.manual_seed(0)
        p = matrices("affine")
        out = warp.transformImage(options(), IMAGE, p)
        return out.detach(), torch.autograd.grad(out.square().sum(), p)[0]

    with linearize(sampling=paper()) as patch:
        want = run()
    assert "swapped" in patch.report()
    with linearize_icstn(warp, sampling=paper()):
        got = run()
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_matrix_without_gradient_goes_to_the_function_that_was_there(warp):
    want = transform_image(options(), IMAGE, matrices("affine").detach())
    with linearize_icstn(warp, sampling=paper()):
        assert torch.equal(warp.transformImage(options(), IMAGE, matrices("affine").detach()), want)
        with torch.no_grad():
            assert torch.equal(warp.transformImage(options(), IMAGE, matrices("affine")), want)
    with linearize_icstn(warp):
        assert torch.equal(warp.transformImage(options(), IMAGE, matrices("affine").detach()), want)


def test_with_fixed_points_a_network_is_evaluated_on_what_it_was_trained_on(warp):
    with linearize_icstn(warp):
        trained = warp.transformImage(options(), IMAGE, 2.5 * matrices("affine"))
        with torch.no_grad():
            evaluated = warp.transformImage(options(), IMAGE, 2.5 * matrices("affine"))
    assert torch.equal(trained, evaluated)
    assert not torch.equal(trained, transform_image(options(), IMAGE, 2.5 * matrices("affine")))


@pytest.mark.parametrize("requires_grad", [True, False])
def test_with_align_corners_the_identity_is_the_identity(warp, requires_grad):
    opt = options(20, 29, np.eye(3, dtype=np.float32))
    identity = torch.eye(3, dtype=torch.float64).repeat(2, 1, 1).requires_grad_(requires_grad)
    assert not torch.allclose(warp.transformImage(opt, IMAGE, identity), IMAGE, atol=0.1)
    with linearize_icstn(warp, sampling=EXACT, align_corners=True):
        torch.testing.assert_close(warp.transformImage(opt, IMAGE, identity), IMAGE, rtol=0, atol=1e-5)


def test_a_generator_is_left_to_the_calls_that_draw(warp):
    generator, identity = torch.Generator().manual_seed(3), torch.eye(3, dtype=torch.float64).repeat(2, 1, 1)
    opt, before = options(20, 29, np.eye(3, dtype=np.float32)), generator.get_state()
    with linearize_icstn(warp, sampling=paper(), align_corners=True, generator=generator):
        torch.testing.assert_close(warp.transformImage(opt, IMAGE, identity), IMAGE, rtol=0, atol=1e-5)
        with torch.no_grad():
            warp.transformImage(opt, IMAGE, identity.requires_grad_())
        assert torch.equal(generator.get_state(), before)
        warp.transformImage(opt, IMAGE, identity)
        assert not torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("align_corners", [False, True])
def test_what_was_bound_meanwhile_is_the_function_that_was_there_once_the_patch_is_off(warp, align_corners):
    want = warp.transformImage(options(), IMAGE, 2.5 * matrices("affine"))
    with linearize_icstn(warp, align_corners=align_corners):
        kept = warp.transformImage
        assert not torch.equal(kept(options(), IMAGE, 2.5 * matrices("affine")), want)
    assert torch.equal(kept(options(), IMAGE, 2.5 * matrices("affine")), want)


class ICSTN(nn.Module):
    """Warps, looks, and composes the next warp with the last, a few times over."""

    def __init__(self, opt, warp, steps=3):
        super().__init__()
        self.opt, self.warp, self.steps = opt, warp, steps
        self.predict = nn.Linear(opt.H * opt.W, 8, dtype=torch.float64)

    def forward(self, image, p):
        warped = []
        for _ in range(self.steps):
            warped.append(self.warp.transformImage(self.opt, image, p))
            step = F.pad(self.predict(warped[-1].flatten(1)), (0, 1)).view(-1, 3, 3) * 0.1
            p = (torch.eye(3, dtype=p.dtype) + step) @ p
        return [*warped, self.warp.transformImage(self.opt, image, p)]


def test_every_step_of_a_recurrent_network_is_linearized(warp):
    opt = options()
    torch.manual_seed(2)
    net = ICSTN(opt, warp)
    start = matrices("homography").detach()

    def run():
        out = net(IMAGE, start)
        return torch.stack(out).detach(), torch.autograd.grad(out[-1].square().sum(), net.predict.weight)[0]

    plain = run()
    with linearize_icstn(warp, sampling=EXACT):
        linearized = run()
    torch.testing.assert_close(linearized[0], plain[0], rtol=0, atol=1e-5)
    assert not torch.allclose(linearized[1], plain[1], rtol=0.1)
    with linearize(net) as patch:
        net(IMAGE, start)
    swapped, left = sorted(patch.report().splitlines()[1:], key=lambda row: "left" in row)
    assert swapped.split()[0] == "3"
    assert left.split()[0] == "1"
    assert "grid carries no gradient" in left


def test_bad_input_is_told_what_to_do_instead(warp):
    with pytest.raises(TypeError, match="got its name 'warp': import it and pass it"):
        linearize_icstn("warp")
    with pytest.raises(AttributeError, match="did you mean 'transformImage'"):
        linearize_icstn(warp, "transformimage")
    original = warp.transformImage
    with pytest.raises(ValueError, match="generator must be None for a sampling with fixed points"):
        linearize_icstn(warp, generator=torch.Generator())
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None, got int"):
        linearize_icstn(warp, sampling=paper(), generator=3)
    with pytest.raises(TypeError, match=r"sampling must be a LinearizedSampling or None, got 'paper': pass"):
        linearize_icstn(warp, sampling="paper")
    with pytest.raises(TypeError, match="align_corners must be True or False, got None"):
        linearize_icstn(warp, align_corners=None)
    assert warp.transformImage is original
