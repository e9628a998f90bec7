"""Without any one of the private names of torch, patches still work, and say what they cannot do."""

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._functorch import pyfunctorch
from torch.utils.checkpoint import checkpoint
from two_transformers import BASE, EXACT, IMAGE, STN, THETA, Model, gradients, grid_that_learns, sample, swapped

from lms_geometry import integrations

NAMES = {
    "hooks": lambda patch: patch.delattr(torch._C._autograd, "_top_saved_tensors_default_hooks"),
    "stack": lambda patch: patch.delattr(torch._guards.TracingContext, "extract_stack"),
    "guards": lambda patch: patch.delattr(torch, "_guards"),
    "transforms": lambda patch: patch.delattr(pyfunctorch, "temporarily_clear_interpreter_stack"),
    "eval_frame.py": lambda patch: hide_file(patch, "eval_frame.py"),
    "version": lambda patch: patch.setattr(torch.Tensor, "_version", property(lambda self: self.gone), raising=False),
    # The compiler itself needs these. So they are taken from the integrations, not from torch.
    "all": None,
    "mark": None,
    "compiled module": None,
}


def hide_file(patch, name):
    is_file = Path.is_file
    patch.setattr(Path, "is_file", lambda path: path.name != name and is_file(path))


@pytest.fixture
def without(monkeypatch):
    """The integrations, imported anew where torch lacks a name."""

    def integrations_without(name):
        torch.compiler.reset()
        for module in [module for module in sys.modules if module.startswith("lms_geometry.integrations")]:
            monkeypatch.delitem(sys.modules, module)
        if NAMES[name]:
            NAMES[name](monkeypatch)
        private = importlib.import_module("lms_geometry.integrations._torch_private")
        if name == "all":
            monkeypatch.setattr(private, "torch", SimpleNamespace())
        if name == "mark":
            monkeypatch.setattr(private, "as_constant", lambda function: function)
        if name == "compiled module":
            monkeypatch.setattr(private, "COMPILED_MODULES", "torch.nn.")
        importlib.import_module("lms_geometry.integrations.stn")
        return sys.modules["lms_geometry.integrations"]

    yield integrations_without
    torch.compiler.reset()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_patched_trained_and_reported_without_a_name(without, name):
    linearize = without(name).linearize
    model = Model(lambda module, image: checkpoint(module, image, use_reentrant=False))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    patch = linearize(model, exclude=["mask"], seed=0)
    model(IMAGE).square().mean().backward()
    optimizer.step()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert "swapped" in patch.report()
    assert "left: excluded by 'mask'" in patch.report()
    patch.remove()
    assert type(model) is Model
    with linearize(sampling=EXACT):
        assert swapped(Model()) == [True, True]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.parametrize("name", ["all", "mark", "eval_frame.py", "transforms", "compiled module"])
def test_a_compiled_model_is_swapped_or_the_report_says_why_not(without, name):
    model = Model()
    compiled = torch.compile(model, backend="eager")
    patch = without(name).linearize(compiled, sampling=EXACT, exclude=["mask"])
    known = name != "all"
    assert swapped(compiled) == [known, False]
    reason = "this version of torch does not say where compiled code makes a call"
    assert ("swapped" in patch.report(), f"left: {reason}" in patch.report()) == (known, not known)
    patch.remove()
    assert swapped(compiled) == [False, False]


def test_without_the_hooks_the_noise_is_the_same_and_the_report_says_at_what_price(without):
    def run(integrations):
        model = Model()
        before = torch.get_rng_state()
        with integrations.linearize(model, seed=2) as patch:
            found = gradients(model)
        return found, torch.equal(before, torch.get_rng_state()), patch.report()

    want, untouched, _ = run(integrations)
    got, touched, report = run(without("hooks"))
    assert all(map(torch.equal, got, want))
    assert (untouched, touched) == (True, False)
    assert "took a number from torch's global generator" in report


def test_without_a_way_to_leave_transforms_vmap_raises_the_error_of_torch(without):
    def warp(theta):
        return sample(IMAGE[:1], BASE @ theta[:, :2].T + theta[:, 2]).square().sum()

    with without("transforms").linearize():
        assert torch.func.grad(warp)(THETA[0]).abs().gt(0).all()
        with pytest.raises(RuntimeError, match="randomness"):
            torch.vmap(torch.func.grad(warp))(THETA)
        assert torch.vmap(torch.func.grad(warp), randomness="different")(THETA).isfinite().all()


def test_a_graph_that_runs_is_left_where_it_cannot_be_told_from_a_compiled_one(without):
    linearize = without("eval_frame.py").linearize
    graph, plain = torch.fx.symbolic_trace(STN()), STN()(IMAGE)
    with linearize() as patch:
        assert torch.equal(graph(IMAGE), plain)
        sample(IMAGE, grid_that_learns())
    assert "does not tell a graph of torch.compile from one of torch.fx" in patch.report()
    assert patch.report().count("swapped") == 1


def test_without_a_count_of_changes_a_grid_has_finite_differences(without):
    stn, unknown = STN(), without("version")
    with sys.modules["lms_geometry.integrations.stn"].linearize_stn(stn) as patch:
        stn(IMAGE)
    assert "swapped" in patch.report()
    assert "exact Jacobian" not in patch.report()
    assert unknown is sys.modules["lms_geometry.integrations"]
