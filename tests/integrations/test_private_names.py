"""Without any one of the private names of torch, patches still work, and say what they cannot do."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from lms_geometry.integrations import _torch_private, linearize, patched
from lms_geometry.integrations.stn import linearize_stn
from settings import needs_torch, paper
from torch._functorch import pyfunctorch
from torch.utils.checkpoint import checkpoint
from two_transformers import BASE, EXACT, IMAGE, STN, THETA, Model, gradients, grid_that_learns, sample, swapped

# checkpoint() of torch 2.14 itself needs the hooks, and so they are hidden from the integrations only.
HOOKLESS = SimpleNamespace(**vars(torch) | {"_C": SimpleNamespace(**vars(torch._C) | {"_autograd": SimpleNamespace()})})

NAMES = {
    "hooks": lambda patch: patch.setattr(_torch_private, "torch", HOOKLESS),
    "stack": lambda patch: patch.delattr(torch._guards.TracingContext, "extract_stack"),
    "transforms": lambda patch: patch.delattr(pyfunctorch, "temporarily_clear_interpreter_stack"),
    "version": lambda patch: patch.setattr(torch.Tensor, "_version", property(lambda self: self.gone), raising=False),
    "eval_frame.py": lambda patch: patch.setattr(_torch_private, "COMPILER_FILE", None),
    "compiled module": lambda patch: patch.setattr(patched, "_NO_SAMPLERS", ("torch.nn.",)),
    "mark": lambda patch: patch.setattr(_torch_private, "as_constant", lambda function: function),
    # The compiler itself needs some of these names, so they are hidden from the integrations only.
    "all": lambda patch: patch.setattr(_torch_private, "torch", SimpleNamespace()),
}

IMPORTED_ANEW = """
import sys, torch
from torch._functorch import pyfunctorch
sys.path.insert(0, "tests")
from two_transformers import IMAGE, Model
names = {
    "_top_saved_tensors_default_hooks": torch._C._autograd,
    "extract_stack": torch._guards.TracingContext,
    "temporarily_clear_interpreter_stack": pyfunctorch,
    "_guards": torch,
}
for name, owner in names.items():
    if hasattr(owner, name):  # an old version has not all of them
        delattr(owner, name)
    for module in [module for module in sys.modules if module.startswith("lms_geometry.integrations")]:
        del sys.modules[module]
    from lms_geometry import LinearizedSampling
    from lms_geometry.integrations import linearize
    model = Model()
    patch = linearize(model, sampling=LinearizedSampling.paper(), seed=0)
    model(IMAGE).square().mean().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert patch.report().count("swapped") == 2, patch.report()
    patch.remove()
"""


def test_the_integrations_are_imported_and_train_where_torch_lacks_its_private_names(request):
    ran = subprocess.run([sys.executable, "-c", IMPORTED_ANEW], cwd=request.config.rootpath, capture_output=True)
    assert ran.returncode == 0, ran.stderr.decode()


@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_patched_trained_and_reported_without_a_name(monkeypatch, name):
    NAMES[name](monkeypatch)
    model = Model(lambda module, image: checkpoint(module, image, use_reentrant=False))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    patch = linearize(model, exclude=["mask"], sampling=paper(), seed=0)
    model(IMAGE).square().mean().backward()
    optimizer.step()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
    assert "swapped" in patch.report()
    assert "left: excluded by 'mask'" in patch.report()
    patch.remove()
    assert type(model) is Model
    with linearize(sampling=EXACT):
        assert swapped(Model()) == [True, True]


@pytest.mark.filterwarnings("ignore::UserWarning")  # without the mark, the compiler says what it cannot trace
@pytest.mark.parametrize("name", ["all", "mark", "eval_frame.py", "transforms", "compiled module"])
def test_a_compiled_model_is_swapped_or_the_report_says_why_not(monkeypatch, name):
    torch.compiler.reset()
    NAMES[name](monkeypatch)
    model = Model()
    compiled = torch.compile(model, backend="eager")
    patch = linearize(compiled, sampling=EXACT, exclude=["mask"])
    known = name != "all"
    assert swapped(compiled) == [known, False]
    reason = "this version of torch does not say where compiled code makes a call"
    assert ("swapped" in patch.report(), f"left: {reason}" in patch.report()) == (known, not known)
    patch.remove()
    assert swapped(compiled) == [False, False]
    torch.compiler.reset()


@needs_torch(2, 7, because="has no such hooks")
def test_without_the_hooks_the_noise_is_the_same_and_the_report_says_at_what_price(monkeypatch):
    def run():
        model = Model()
        before = torch.get_rng_state()
        with linearize(model, sampling=paper(), seed=2) as patch:
            found = gradients(model)
        return found, torch.equal(before, torch.get_rng_state()), patch.report()

    want, untouched, _ = run()
    NAMES["hooks"](monkeypatch)
    got, touched, report = run()
    assert all(map(torch.equal, got, want))
    assert (untouched, touched) == (True, False)
    assert "took a number from torch's global generator" in report


def test_without_a_way_to_leave_transforms_vmap_raises_the_error_of_torch(monkeypatch):
    def warp(theta):
        return sample(IMAGE[:1], BASE @ theta[:, :2].T + theta[:, 2]).square().sum()

    NAMES["transforms"](monkeypatch)
    with linearize(sampling=paper()):
        assert torch.func.grad(warp)(THETA[0]).abs().gt(0).all()
        with pytest.raises(RuntimeError, match="randomness"):
            torch.vmap(torch.func.grad(warp))(THETA)
        assert torch.vmap(torch.func.grad(warp), randomness="different")(THETA).isfinite().all()


def test_a_graph_that_runs_is_left_where_it_cannot_be_told_from_a_compiled_one(monkeypatch):
    NAMES["eval_frame.py"](monkeypatch)
    graph, plain = torch.fx.symbolic_trace(STN()), STN()(IMAGE)
    with linearize() as patch:
        assert torch.equal(graph(IMAGE), plain)
        sample(IMAGE, grid_that_learns())
    assert "does not tell a graph of torch.compile from one of torch.fx" in patch.report()
    assert patch.report().count("swapped") == 1


def test_without_a_count_of_changes_a_grid_has_finite_differences(monkeypatch):
    NAMES["version"](monkeypatch)
    with linearize_stn() as patch:
        STN()(IMAGE)
    assert "swapped" in patch.report()
    assert "exact Jacobian" not in patch.report()
