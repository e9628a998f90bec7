"""One test for each way in which public repositories reach a sampler: all are swapped, or named as out of reach."""

import sys
import threading
import types

import kornia
import pytest
import torch
import torch.nn.functional as F
from lms_geometry.integrations import linearize, replace
from settings import paper
from torch import nn
from torch.nn.functional import grid_sample
from two_transformers import IMAGE, THETA

from lms_geometry import grid_sample_linearized


def grid_of(theta, align_corners=False):
    return F.affine_grid(theta, (2, 3, 5, 7), align_corners=align_corners)


def by_default(image, grid, sample=F.grid_sample):
    return sample(image, grid, align_corners=False)


FORMS = {
    "by position": (lambda i, g: F.grid_sample(i, g, "bilinear", "border", True), "border", True),
    "by keyword": (lambda i, g: F.grid_sample(grid=g, input=i, padding_mode="reflection"), "reflection", None),
    "through torch.nn": (lambda i, g: torch.nn.functional.grid_sample(i, g, mode="bilinear"), "zeros", None),
    "bound name": (lambda i, g: grid_sample(i, g, align_corners=True), "zeros", True),
    "captured default": (by_default, "zeros", False),
    "torch.grid_sampler": (lambda i, g: torch.grid_sampler(i, g, 0, 1, True), "border", True),
    "torch.grid_sampler_2d": (
        lambda i, g: torch.grid_sampler_2d(i, g, interpolation_mode=0, padding_mode=2, align_corners=False),
        "reflection",
        False,
    ),
    "torch.ops": (lambda i, g: torch.ops.aten.grid_sampler(i, g, 0, 0, False), "zeros", False),
}


def value_and_gradient(sample, theta=THETA):
    theta = theta.clone().requires_grad_()
    torch.manual_seed(3)
    out = sample(grid_of(theta))
    return out.detach(), torch.autograd.grad(out.square().sum(), theta)[0]


@pytest.mark.filterwarnings("ignore:Default grid_sample:UserWarning")
@pytest.mark.parametrize("form", FORMS)
def test_a_call_is_swapped_with_the_arguments_it_had(form):
    call, padding_mode, align_corners = FORMS[form]
    want = value_and_gradient(lambda grid: grid_sample_linearized(IMAGE, grid, "bilinear", padding_mode, align_corners))
    with linearize() as patch:
        got = value_and_gradient(lambda grid: call(IMAGE, grid))
    assert all(map(torch.equal, got, want))
    assert "swapped" in patch.report()


def test_an_omitted_align_corners_means_false():
    exact = paper(intercept=False)
    with linearize(sampling=exact), pytest.warns(UserWarning, match="Default grid_sample and affine_grid") as told:
        value, _ = value_and_gradient(lambda grid: F.grid_sample(IMAGE, grid))
    with pytest.warns(UserWarning, match="Default grid_sample and affine_grid") as told_by_torch:
        F.grid_sample(IMAGE, grid_of(THETA))
    assert str(told[0].message) == str(told_by_torch[0].message)
    line = test_an_omitted_align_corners_means_false.__code__.co_firstlineno + 3
    assert [(warning.filename, warning.lineno) for warning in told] == [(__file__, line)]
    torch.testing.assert_close(value, F.grid_sample(IMAGE, grid_of(THETA), align_corners=False), rtol=0, atol=0)


def test_a_call_inside_kornia_is_swapped_and_named_with_its_caller():
    matrix = torch.tensor([[[0.3, 0.05, 1.0], [0.0, 0.25, 0.5]]]).repeat(2, 1, 1)

    def gradient():
        m = matrix.clone().requires_grad_()
        return torch.autograd.grad(kornia.geometry.warp_affine(IMAGE, m, (5, 7)).square().sum(), m)[0]

    plain = gradient()
    with linearize(sampling=paper(intercept=False), seed=0) as patch:
        linearized = gradient()
    assert not torch.allclose(plain, linearized, rtol=0.1)
    assert "kornia/" in patch.report()
    assert "from test_call_forms.py:" in patch.report().replace("tests/integrations/", "")


class Interpolates(nn.Module):
    def forward(self, image, grid):
        return F.grid_sample(image, grid, align_corners=False)


class Wraps(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, image, grid):
        return self.inner(image, grid)


@pytest.mark.parametrize("make", [torch.jit.script, lambda m: torch.jit.trace(m, (IMAGE, grid_of(THETA)))])
def test_torchscript_in_a_model_keeps_its_gradient_and_is_named(make):
    model = Wraps(make(Interpolates()))
    want = value_and_gradient(lambda grid: model(IMAGE, grid))
    patch = linearize(model)
    got = value_and_gradient(lambda grid: model(IMAGE, grid))
    assert all(map(torch.equal, got, want))
    assert "submodule 'inner' is TorchScript" in patch.report()
    patch.remove()


def test_a_scripted_function_is_named(monkeypatch):
    interpol = types.ModuleType("interpol")

    def pull(image: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.grid_sample(image, grid, align_corners=False)

    interpol.pull = torch.jit.script(pull)
    monkeypatch.setitem(sys.modules, "interpol", interpol)
    with linearize() as patch:
        interpol.pull(IMAGE, grid_of(THETA.clone().requires_grad_()))
    assert "function interpol.pull is TorchScript" in patch.report()


def test_scripted_code_that_samples_nothing_is_not_named():
    class Doubles(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * x

    patch = linearize(Wraps(torch.jit.script(Doubles())))
    assert "TorchScript" not in patch.report()
    patch.remove()


def test_worker_threads_see_the_patch_of_a_module_and_not_a_block():
    """What DataParallel does: replicas of the model, each run by a thread of its own."""
    model = Wraps(Interpolates())

    def in_threads():
        results = [None, None]

        def work(n, replica):
            theta = THETA.clone().requires_grad_()
            results[n] = torch.autograd.grad(replica(IMAGE, grid_of(theta)).square().sum(), theta)[0]

        replicas = []
        for _ in results:
            replica = model._replicate_for_data_parallel()
            replica.inner = model.inner._replicate_for_data_parallel()
            replicas.append(replica)
        threads = [threading.Thread(target=work, args=item) for item in enumerate(replicas)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    plain = in_threads()
    with linearize() as block:
        torch.testing.assert_close(in_threads(), plain, rtol=0, atol=0)
    assert "no call" in block.report()
    patch = linearize(model, include=["inner"])
    assert not any(torch.allclose(a, b, rtol=0.1) for a, b in zip(in_threads(), plain, strict=True))
    assert "    2  " in patch.report()
    patch.remove()
    torch.testing.assert_close(in_threads(), plain, rtol=0, atol=0)


def gather_bilinearly(image, grid):
    """Bilinear sampling of someone's own, on pixel indices."""
    batch, _, height, width = image.shape
    x, y = ((grid[..., 0] + 1) * width - 1) / 2, ((grid[..., 1] + 1) * height - 1) / 2
    out = 0.0
    for dx in (0, 1):
        for dy in (0, 1):
            i, j = (y.floor() + dy).long(), (x.floor() + dx).long()
            inside = (i >= 0) & (i < height) & (j >= 0) & (j < width)
            weight = (1 - (x - j).abs()) * (1 - (y - i).abs()) * inside
            b = torch.arange(batch)[:, None, None]
            texels = image[b, :, i.clamp(0, height - 1), j.clamp(0, width - 1)]
            out = out + texels.movedim(-1, 1) * weight[:, None]
    return out


def test_bilinear_code_of_ones_own_is_replaced_by_name():
    warp = types.SimpleNamespace(sample=gather_bilinearly)
    own = value_and_gradient(lambda grid: warp.sample(IMAGE, grid))
    torch.testing.assert_close(own[0], F.grid_sample(IMAGE, grid_of(THETA), align_corners=False))
    with linearize() as patch:
        assert torch.equal(value_and_gradient(lambda grid: warp.sample(IMAGE, grid))[1], own[1])
    assert "replace(module, 'name', adapter)" in patch.report()
    with replace(warp, "sample", grid_sample_linearized):
        got = value_and_gradient(lambda grid: warp.sample(IMAGE, grid))
    assert all(map(torch.equal, got, value_and_gradient(lambda grid: grid_sample_linearized(IMAGE, grid))))
    assert warp.sample is gather_bilinearly
