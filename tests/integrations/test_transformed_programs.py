"""Patches under what torch does to a program: checkpointing, ``torch.func``, tracing, export and compilation."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from lms_geometry.integrations import linearize
from lms_geometry.integrations.draws import Draws
from lms_geometry.integrations.stn import linearize_stn
from settings import needs_torch, paper
from torch import nn
from torch.utils.checkpoint import checkpoint
from two_transformers import BASE, EXACT, IMAGE, STN, THETA, Model, gradients, grid_that_learns, sample, swapped

from lms_geometry import LinearizedSampling


@pytest.mark.parametrize("seed", [None, 2])
@pytest.mark.parametrize("way", ["submodule", "submodule in a function", "whole"])
def test_checkpointing_finds_the_noise_of_the_forward_pass_again(way, seed):
    def run(model, forward):
        torch.manual_seed(7)
        with linearize(model, sampling=paper(), seed=seed) as patch:
            forward(IMAGE).square().sum().backward()
        calls = [row.split()[0] for row in patch.report().splitlines()[1:] if row.split()[0].isdigit()]
        return calls, [parameter.grad for parameter in model.parameters()]

    plain = Model()
    ways = {
        "submodule": lambda module, image: checkpoint(module, image, use_reentrant=False),
        "submodule in a function": lambda module, image: checkpoint(lambda x: module(x), image, use_reentrant=False),
    }
    model = Model(ways.get(way, plain.run))
    whole = (lambda image: checkpoint(model, image, use_reentrant=False)) if way == "whole" else model
    calls, got = run(model, whole)
    calls_plain, want = run(plain, plain)
    assert (calls, calls_plain) == (["2", "2"], ["1", "1"])
    assert all(map(torch.equal, got, want))


def test_noise_is_found_again_after_a_step_of_many_checkpointed_calls():
    draw, grid = Draws(seed=4), torch.zeros(1, 2, 3, 2)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):  # by these, checkpointing works
        before = torch.get_rng_state()
        first = draw(paper(), grid)
        for _ in range(5000):
            draw(paper(), grid)
        torch.set_rng_state(before)  # as checkpointing does before it runs a call again
        assert torch.equal(draw(paper(), grid), first)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("way", ["function", "function in a block", "submodule in a block", "sampler in a block"])
def test_what_checkpointing_would_run_again_without_the_patch_is_left(way, reentrant):
    def run(module, image):
        image = image.clone().requires_grad_()
        grid = F.affine_grid(module.theta, (2, 3, 5, 7), align_corners=False)
        called = {
            "function": (sample, image, grid),
            "submodule": (module, image),
            "sampler": (F.grid_sample, image, grid, "bilinear", "zeros", False),
        }
        return checkpoint(*called[way.split()[0]], use_reentrant=reentrant)

    model = Model(run)
    with linearize(None if way.endswith("block") else model, sampling=EXACT) as patch:
        assert swapped(model) == [False, False]
    assert "left: inside checkpoint(), which would run it again without this patch" in patch.report()
    assert "swapped" not in patch.report()


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_forward_may_go_backward_itself(reentrant):
    class Trainer(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = Model(
                lambda module, image: checkpoint(module, image.clone().requires_grad_(), use_reentrant=reentrant)
            )

        def forward(self):
            return swapped(self.model)

    with linearize(trainer := Trainer(), sampling=EXACT):
        assert trainer() == [True, True]


def test_a_pattern_sees_the_way_to_a_call_from_the_checkpoint_on():
    def outside(module, image):
        return checkpoint(inside, module, image, use_reentrant=False)

    def inside(module, image):
        return module(image)

    model = Model(outside)
    with linearize(model, sampling=EXACT, exclude=["inside()"]):
        assert swapped(model) == [False, False]
    with pytest.warns(UserWarning, match="matched no call"), linearize(model, sampling=EXACT, include=["outside()"]):
        assert swapped(model) == [False, False]


def test_a_module_that_another_patch_is_on_does_not_enter_a_block_again():
    model = Model(lambda module, image: checkpoint(module, image, use_reentrant=False)).eval()
    with linearize(model, sampling=EXACT), linearize() as patch:
        gradients(model)
    assert "left: inside checkpoint()" in patch.report()


def test_a_module_patch_holds_in_a_backward_pass_after_its_forward():
    """Checkpointing runs a submodule again, when the model's own forward has long returned."""
    model = Model(lambda module, image: checkpoint(module, image, use_reentrant=False))
    patch = linearize(model, sampling=EXACT, exclude=["mask"])
    assert swapped(model) == [True, False]
    patch.remove()


def reentrant(module, image):
    return checkpoint(module, image.clone().requires_grad_(), use_reentrant=True)


def test_reentrant_checkpointing_swaps_what_it_computes_again():
    model = Model(reentrant)
    patch = linearize(model, sampling=EXACT)
    assert swapped(model) == [True, True]
    first_pass = "left: reentrant checkpointing, or its first pass, without a gradient: the same value"
    assert patch.report().count(first_pass) == patch.report().count("swapped") == 2
    patch.remove()


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize(
    "settings", [paper(), paper(pattern="whitened", sigma=0.3, jitter=0.0), LinearizedSampling()], ids=str
)
def test_reentrant_checkpointing_has_the_values_and_gradients_of_no_checkpointing(settings, seed):
    if seed is not None and not settings.is_drawn:
        pytest.skip("nothing is drawn")

    def run(model):
        results = []
        with linearize(model, sampling=settings, seed=seed) as patch:
            torch.manual_seed(5)
            for _ in range(1 if seed else 2):  # calls that are run again have numbers of their own
                out = model(IMAGE)
                out.square().sum().backward()
                results += [out.detach(), *(parameter.grad.clone() for parameter in model.parameters())]
                model.zero_grad()
        return results, patch.report()

    (got, report), (want, _) = run(Model(reentrant)), run(Model())
    for ours, plain in zip(got, want, strict=True):
        torch.testing.assert_close(ours, plain)
    assert "left" not in report
    assert [row.split()[0] for row in report.splitlines()[1:3]] == (["2", "2"] if seed else ["4", "4"])


def test_reentrant_checkpointing_gives_a_grid_without_a_gradient_the_same_value_in_both_passes():
    """The first pass cannot know whether a grid will carry a gradient, so that it is swapped, and so in the second."""

    class Crop(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain, self.seen = nn.Parameter(torch.ones(())), []

        def forward(self, image):
            self.seen.append(sample(image, 2 * grid_that_learns(False)))
            return self.gain * self.seen[-1]

    class Cropped(Model):
        def __init__(self):
            super().__init__(reentrant)
            self.stn = Crop()

    model = Cropped()
    with linearize(model, sampling=paper()):
        gradients(model)
    first, second = model.stn.seen
    assert torch.equal(first, second)


@pytest.mark.parametrize("settings", [paper(), LinearizedSampling()], ids=str)
def test_what_is_excluded_stays_plain_in_both_passes_of_reentrant_checkpointing(settings):
    model = Model(reentrant)
    with linearize(model, sampling=settings, exclude=["mask", "stn"]):
        assert swapped(model) == [False, False]


def warp(theta):
    return F.grid_sample(IMAGE[:1], BASE @ theta[:, :2].T + theta[:, 2], align_corners=False).square().sum()


def test_vmap_shares_the_noise_and_swaps_what_a_derivative_goes_through():
    one = [torch.func.grad(warp), torch.func.jacrev(warp)]
    with linearize(sampling=paper(), seed=0) as patch:
        want = [[f(theta) for f in one] for theta in THETA]
    per_call = patch.report()
    with linearize(sampling=paper(), seed=0) as patch:
        in_vmap = torch.vmap(torch.func.grad(warp))(THETA)
        around_vmap = torch.func.grad(lambda theta: torch.vmap(warp)(theta).sum())(THETA)
        theta = THETA.clone().requires_grad_()
        torch.vmap(warp)(theta).sum().backward()
        plain = torch.vmap(warp)(THETA)
    assert "    4  " in per_call
    torch.testing.assert_close(in_vmap[0], want[0][0])
    assert not torch.allclose(in_vmap[1], want[1][0], rtol=0.01)
    torch.testing.assert_close(around_vmap[0], want[0][1])
    assert theta.grad.abs().amin((1, 2)).gt(0).all()
    torch.testing.assert_close(plain, torch.vmap(warp)(THETA), rtol=0, atol=0)
    assert "left: grid carries no gradient" in patch.report()


def test_forward_mode_has_the_derivative_that_reverse_mode_has():
    with linearize(sampling=paper(), seed=0):
        backward = torch.func.jacrev(warp)(THETA[0])
    with linearize(sampling=paper(), seed=0):
        forward = torch.func.jacfwd(warp)(THETA[0])
    torch.testing.assert_close(forward, backward)


# Compiled


def test_a_compiled_model_is_swapped_in_one_graph_and_compiled_anew_when_the_patch_goes():
    model = Model()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    patch = linearize(compiled, exclude=["mask"])
    torch.manual_seed(0)
    graph = compiled(IMAGE)
    assert "compiled" in patch.report()
    assert "left: excluded by 'mask'" in patch.report()
    torch.manual_seed(0)
    torch.testing.assert_close(graph, model(IMAGE))
    patch.remove()
    torch.testing.assert_close(compiled(IMAGE), Model()(IMAGE), rtol=0, atol=0)


def test_code_typed_at_a_prompt_is_no_compiled_graph():
    names = {"F": F}
    typed = "def typed(image, grid): return F.grid_sample(image, grid, align_corners=False)"
    exec(compile(typed, "<stdin>", "exec"), names)
    with linearize() as patch:
        torch.compiler.disable(names["typed"])(IMAGE, grid_that_learns())
    assert "<stdin>:1 typed()" in patch.report()


@pytest.mark.parametrize("patch", [linearize, linearize_stn])
@pytest.mark.parametrize("on_module", [True, False])
def test_a_patch_is_no_part_of_a_graph_traced_under_it(patch, on_module):
    stn = STN()
    with patch(stn if on_module else None):
        graph = torch.fx.symbolic_trace(stn)
    assert torch.equal(graph(IMAGE), STN()(IMAGE))


def test_a_traced_or_exported_graph_is_swapped():
    stn = STN()
    for graph in (torch.fx.symbolic_trace(stn), torch.export.export(stn, (IMAGE,)).module()):
        for target in (graph, None):
            with linearize(target) as patch:
                torch.manual_seed(0)
                got = graph(IMAGE)
            assert "swapped" in patch.report()
            with linearize():
                torch.manual_seed(0)
                torch.testing.assert_close(got, stn(IMAGE))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_call_traced_for_torchscript_is_swapped_and_shown_without_shapes():
    stn = STN()
    with linearize(stn) as patch, pytest.warns(UserWarning, match="an operator of lms_geometry") as told:
        graph = torch.jit.trace(stn, IMAGE, check_trace=False)
    assert "lms_geometry::area_mean" in str(graph.inlined_graph)
    assert [warning.filename for warning in told if warning.category is UserWarning] == [sample.__code__.co_filename]
    assert "traced" in patch.report()
    assert "swapped" in patch.report()
    assert "tensor(" not in patch.report()


@needs_torch(2, 7, because="does not say whether torch.export makes a graph")
def test_sites_and_functions_are_known_where_a_patched_model_is_exported():
    stn = STN()
    with linearize(stn, sampling=EXACT, exclude=["sample()"]) as patch:
        torch.export.export(stn, (IMAGE,), strict=False)
    assert re.search(r"left: excluded by 'sample\(\)' \S+ sample\(\) compiled$", " ".join(patch.report().split()))
    told = pytest.warns(UserWarning, match="traced or exported.*remove the patch before")
    with linearize(stn, sampling=EXACT, include=["two_transformers.py"]) as patch, told:
        torch.export.export(stn, (IMAGE,), strict=False)
    assert "swapped" in patch.report()


def test_a_training_loop_compiles_a_patched_model_once():
    model = Model()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    patch = linearize(model)
    # In a thread where nothing ran before, as at the start of a program.
    with ThreadPoolExecutor(1) as thread:
        for _ in range(3):
            thread.submit(lambda: compiled(IMAGE).sum().backward()).result()
    assert [row.split()[0] for row in patch.report().splitlines()[1:]] == ["1", "1"]
    patch.remove()


def sample_after_a_break(image, grid):
    torch._dynamo.graph_break()
    return sample(image, grid)


@pytest.mark.parametrize("on_module", [False, True])
def test_a_function_keeps_its_name_after_a_break_of_its_graph(on_module):
    class Breaks(nn.Module):
        def forward(self, image, grid):
            return sample_after_a_break(image, grid)

    model = Breaks()
    torch.compiler.reset()
    with linearize(model if on_module else None, exclude=["sample_after_a_break()"]) as patch:
        torch.compile(model, backend="eager")(IMAGE, grid_that_learns())
    assert "left: excluded by 'sample_after_a_break()'" in patch.report()
    assert "swapped" not in patch.report()
    assert "resume_in" not in patch.report()


def test_a_patched_module_says_why_it_cannot_be_scripted():
    model = Model()
    with linearize(model), pytest.raises(RuntimeError, match=r"remove\(\) its patch before torch\.jit\.script"):
        torch.jit.script(model)


def test_a_compiled_model_in_a_block_is_swapped_in_one_graph():
    stn = STN()
    compiled = torch.compile(stn, fullgraph=True, backend="eager")
    with linearize() as patch:
        torch.manual_seed(0)
        graph = compiled(IMAGE)
        assert patch.report().count("\n") == 1
        assert f"two_transformers.py:{sample.__code__.co_firstlineno + 1} sample()" in patch.report()
        torch.manual_seed(0)
        torch.testing.assert_close(graph, stn(IMAGE))
    with linearize(sampling=EXACT):
        torch.testing.assert_close(compiled(IMAGE), Model().stn(IMAGE))
    with linearize(exclude=["sample()"]):
        torch.testing.assert_close(compiled(IMAGE), Model().stn(IMAGE), rtol=0, atol=0)
    with linearize(sampling=paper(), seed=0), pytest.raises(Exception, match=r"call torch\.manual_seed"):
        compiled(IMAGE)


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_seed_in_a_compiled_graph_is_one_clear_error(fullgraph):
    torch.compiler.reset()
    model = Model()
    patch = linearize(model, sampling=paper(), seed=0)
    with pytest.raises(RuntimeError) as told:
        torch.compile(model, fullgraph=fullgraph, backend="eager")(IMAGE)
    assert str(told.value).startswith("RuntimeError: linearize(seed=...) cannot be used with torch.compile")
    assert "leave the seed out and call torch.manual_seed()" in str(told.value)
    patch.remove()
