"""What is swapped, what is left alone, and which patch decides."""

import asyncio
import threading
from contextlib import ExitStack

import kornia
import pytest
import torch
import torch.nn.functional as F
from lms_geometry.integrations import linearize
from lms_geometry.integrations.stn import linearize_stn
from settings import needs_torch, paper
from torch import nn
from two_transformers import EXACT, IMAGE, STN, THETA, Model, gradients, grid_that_learns, sample, swapped

from lms_geometry import grid_sample_linearized


def test_a_block_ends_where_it_ends():
    model = Model()
    with linearize(sampling=EXACT):
        assert swapped(model) == [True, True]
    assert swapped(model) == [False, False]


def test_a_patch_on_a_module_swaps_only_what_its_forward_does():
    model = Model()
    patch = linearize(model.stn, sampling=EXACT)
    assert swapped(model) == [True, False]
    patch.remove()
    assert swapped(model) == [False, False]


LEFT_ALONE = {
    "mode 'nearest'": lambda: F.grid_sample(IMAGE, grid_that_learns(), mode="nearest", align_corners=False),
    "mode 'bicubic'": lambda: torch.grid_sampler(IMAGE, grid_that_learns(), 2, 0, False),
    "5-D, a volume": lambda: F.grid_sample(torch.rand(1, 2, 4, 5, 6), torch.rand(1, 3, 2, 4, 3).requires_grad_()),
    "grid carries no gradient": lambda: F.grid_sample(IMAGE.clone().requires_grad_(), grid_that_learns(False)),
}


@pytest.mark.filterwarnings("ignore:Default grid_sample:UserWarning")
@pytest.mark.parametrize("reason", LEFT_ALONE)
def test_a_call_that_is_left_alone_is_the_same_bit_for_bit_and_the_report_says_why(reason):
    torch.manual_seed(0)
    want = LEFT_ALONE[reason]()
    torch.manual_seed(0)
    with linearize() as patch:
        got = LEFT_ALONE[reason]()
    assert torch.equal(got, want)
    assert type(got.grad_fn) is type(want.grad_fn)
    assert f"left: {reason}" in patch.report()
    assert "swapped" not in patch.report()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_nothing_is_swapped(context):
    grid = grid_that_learns()
    with context(), linearize(sampling=paper()) as patch:
        got = sample(IMAGE, grid)
    assert torch.equal(got, sample(IMAGE, grid))
    assert "left: grid carries no gradient" in patch.report()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_grad_mode_what_is_included_has_the_values_it_was_trained_on(context):
    model = Model().eval()
    with linearize(model, include=["stn"], sampling=paper(), seed=0):
        trained_on = model(IMAGE)
    with linearize(model, include=["stn"], sampling=paper(), seed=0) as patch, context():
        assert torch.equal(model(IMAGE), trained_on)
    assert patch.report().count("swapped") == 1
    assert "left: grid carries no gradient" in patch.report()
    with linearize(sampling=EXACT, include=["two_transformers.py"]) as patch, context():
        sample(IMAGE, grid_that_learns())
    assert "swapped" not in patch.report()  # the values are the same


def test_what_is_included_is_swapped_in_training_too_where_its_grid_carries_no_gradient():
    """As the first look of a recurrent transformer, which starts from the identity."""
    grid = grid_that_learns(False)
    with linearize(include=["two_transformers.py"], sampling=paper(), seed=0) as patch:
        trained_on = sample(IMAGE, grid)
    with linearize(include=["two_transformers.py"], sampling=paper(), seed=0), torch.no_grad():
        assert torch.equal(sample(IMAGE, grid), trained_on)
    assert "swapped" in patch.report()


@pytest.mark.parametrize("size", [(1, 35), (35, 1), (1, 1)])
def test_a_row_of_points_is_left_alone_but_for_an_adapter_that_knows_its_jacobian(size):
    def sample_row(theta):
        grid = F.affine_grid(theta, (2, 3, *size), align_corners=False)
        return torch.autograd.grad(F.grid_sample(IMAGE, grid, align_corners=False).square().sum(), theta)[0]

    theta = THETA.clone().requires_grad_()
    want = sample_row(theta)
    with linearize(sampling=EXACT) as patch:
        assert torch.equal(sample_row(theta), want)
    assert "left: a row of points" in patch.report()
    with linearize_stn(sampling=EXACT) as patch:
        assert not torch.allclose(sample_row(theta), want, rtol=0.01)
    assert "swapped" in patch.report()


def test_in_eval_without_intercept_the_plain_sampler_runs():
    model = Model().eval()
    with linearize(model, sampling=EXACT) as patch:
        assert swapped(model) == [False, False]
        assert "runs in eval() or under no_grad were not looked at" in patch.report()
        assert "no call" not in patch.report()
        model.stn.train()
        assert swapped(model) == [True, False]
    model.train()
    model.stn.eval()
    for target in (model, None):
        with linearize(target, sampling=EXACT) as patch:
            assert swapped(model) == [False, True]
        assert "left: eval()" in patch.report()
    with linearize(model, sampling=paper(), seed=0):
        assert swapped(model.eval()) == [True, True]


def test_a_module_around_a_block_does_not_speak_for_the_calls_in_it():
    class Tool(nn.Module):
        def run(self, fit):
            return fit()

    def fit():
        with linearize(sampling=EXACT) as patch:
            sample(IMAGE, grid_that_learns())
        return patch.report()

    def fit_in_a_stack():
        with ExitStack() as stack:
            patch = stack.enter_context(linearize(sampling=EXACT))
            sample(IMAGE, grid_that_learns())
        return patch.report()

    assert "swapped" in Tool().eval().run(fit)
    assert "swapped" in Tool().eval().run(fit_in_a_stack)


def test_without_intercept_and_gradients_the_mode_is_not_entered():
    depths = []

    def run(module, image):
        depths.append(torch.overrides._len_torch_function_stack())
        return module(image)

    model = Model(run)
    with linearize(model, sampling=EXACT):
        with torch.no_grad():
            model(IMAGE)
        model.eval()(IMAGE)
    assert set(depths) == {0}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ((IMAGE, torch.zeros(1, 5, 7, 2).requires_grad_()), RuntimeError),
        ((IMAGE, torch.zeros(2, 5, 7, 3).requires_grad_()), RuntimeError),
        ((IMAGE, torch.zeros(2, 5, 7, 2).double().requires_grad_()), RuntimeError),
        ((IMAGE[..., :0], torch.zeros(2, 5, 7, 2).requires_grad_()), RuntimeError),
        ((IMAGE, torch.zeros(2, 5, 7, 2).requires_grad_(), "bilinear", "wrap"), ValueError),
        ((IMAGE, torch.zeros(2, 5, 7, 2).requires_grad_(), "linear"), ValueError),
        ((None, torch.zeros(2, 5, 7, 2).requires_grad_()), TypeError),
        ((IMAGE, [[0.0, 0.0]]), TypeError),
    ],
)
def test_a_call_that_torch_refuses_is_refused_by_torch(arguments, error):
    with pytest.raises(error) as plain:
        F.grid_sample(*arguments, align_corners=False)
    with linearize(), pytest.raises(error) as patched:
        F.grid_sample(*arguments, align_corners=False)
    assert str(patched.value) == str(plain.value)


@pytest.mark.parametrize("empty", [(2, 0, 7, 2), (2, 5, 0, 2), (0, 5, 7, 2)])
def test_an_empty_grid_gives_an_empty_image(empty):
    image, grid = IMAGE[: empty[0]], torch.zeros(empty, requires_grad=True)
    with linearize() as patch:
        got = sample(image, grid)
    assert "swapped" in patch.report()
    assert got.shape == sample(image, grid).shape
    got.sum().backward()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_layout_and_dtype_are_those_of_grid_sample(layout, dtype):
    image = IMAGE.to(dtype).contiguous(memory_format=layout)
    grid = grid_that_learns().to(dtype).transpose(1, 2)
    want = sample(image, grid)
    with linearize() as patch:
        got = sample(image, grid)
    assert "swapped" in patch.report()
    assert (got.dtype, got.stride(), got.shape) == (want.dtype, want.stride(), want.shape)


def test_under_autocast_a_call_is_what_the_library_gives_there():
    grid = grid_that_learns().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        plain = sample(IMAGE, grid)
        torch.manual_seed(0)
        want = grid_sample_linearized(IMAGE, grid)
        torch.manual_seed(0)
        with linearize():
            got = sample(IMAGE, grid)
    assert got.dtype == plain.dtype
    torch.testing.assert_close(got, want, rtol=0, atol=0)


# Which calls: patterns


@pytest.mark.parametrize(
    ("patterns", "want"),
    [
        ({"include": ["stn"]}, [True, False]),
        ({"include": ["heads"]}, [False, True]),
        ({"include": ["heads.mask"]}, [False, True]),
        ({"include": ["mas?"]}, [False, True]),
        ({"exclude": ["heads.*"]}, [True, False]),
        ({"include": ["stn", "mask"], "exclude": ["stn"]}, [False, True]),
        ({"include": []}, [False, False]),
        ({"exclude": []}, [True, True]),
        ({"include": ["sample()"]}, [True, True]),
        ({"exclude": ["sample()"]}, [False, False]),
        ({"include": ["two_transformers.py"]}, [True, True]),
        ({"include": ["tests/two_transformers.py"], "exclude": ["mask"]}, [True, False]),
        ({"exclude": [f"two_transformers.py:{sample.__code__.co_firstlineno + 1}"]}, [False, False]),
    ],
)
def test_patterns_choose_calls_by_module_site_or_function(patterns, want):
    model = Model()
    with linearize(model, sampling=EXACT, **patterns) as patch:
        assert swapped(model) == want
    assert ("left: " in patch.report()) != all(want)


def test_a_pattern_for_a_function_holds_however_deep_the_call_is():
    def compose_flow(grid):
        maps = grid.unbind(-1)
        return kornia.geometry.remap(IMAGE, *maps, align_corners=False, normalized_coordinates=True)

    grid = grid_that_learns()
    with linearize(sampling=EXACT, exclude=["compose_flow()"]) as patch:
        compose_flow(grid)
    assert "left: excluded by 'compose_flow()'" in patch.report()


def test_what_runs_outside_the_block_is_no_part_of_the_way_to_a_call():
    def train():
        with linearize(exclude=["test_*()"]) as patch:
            sample(IMAGE, grid_that_learns())
        return patch

    with pytest.warns(UserWarning, match="matched no call"):
        assert "swapped" in train().report()


def test_a_submodule_may_have_a_name_with_py_in_it():
    model = nn.ModuleDict({"fpn": nn.ModuleDict({"pyramid": STN()})})
    with linearize(model, exclude=["fpn.pyramid"]) as patch:
        model["fpn"]["pyramid"](IMAGE)
    assert "left: excluded by 'fpn.pyramid'" in patch.report()


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["elsewhere.py", "elsewhere()", "two_transformers.py:1"])
def test_a_pattern_that_matches_nothing_is_told_at_the_end(argument, pattern):
    patterns = {argument: [pattern]}
    with pytest.warns(UserWarning, match="matched no call"), linearize(**patterns) as patch:
        sample(IMAGE, grid_that_learns())
    assert f"pattern {pattern!r} matched no call" in patch.report()
    patch = linearize(Model(), **patterns)
    with pytest.warns(UserWarning, match="matched no call"):
        patch.remove()


# Which patch: nesting, order, exceptions


@pytest.mark.parametrize("whole_first", [True, False])
def test_where_patches_meet_the_inner_one_decides_and_reports(whole_first):
    model = Model()
    puts = {
        "whole": lambda: linearize(model, sampling=EXACT),
        "part": lambda: linearize(model.stn, sampling=EXACT, exclude=["sample()"]),
    }
    patches = {name: puts[name]() for name in sorted(puts, reverse=whole_first)}
    assert swapped(model) == [False, True]
    model.stn(IMAGE)
    assert "in 'stn'" not in patches["whole"].report()
    assert "in 'heads.mask'" in patches["whole"].report()
    assert patches["part"].report().splitlines()[1].split()[0] == "2"
    patches["part"].remove()
    assert swapped(model) == [True, True]
    patches["whole"].remove()
    assert swapped(model) == [False, False]


def test_nested_modules_enter_the_patch_once():
    depths = []

    def run(module, image):
        depths.append(torch.overrides._len_torch_function_stack())
        return module(image)

    inner = Model(run)
    outer = Model(lambda module, image: inner(image))
    outer.inner = inner
    with linearize(outer):
        outer(IMAGE)
    assert set(depths) == {1}


def test_an_inner_patch_that_leaves_a_call_alone_is_not_overruled():
    model = Model()
    with linearize(sampling=EXACT), linearize(model, exclude=["stn", "mask"]):
        assert swapped(model) == [False, False]


def test_a_swap_inside_two_blocks_is_one_swap():
    theta = THETA.clone().requires_grad_()
    grid = F.affine_grid(theta, (2, 3, 5, 7), align_corners=False)
    torch.manual_seed(0)
    want = grid_sample_linearized(IMAGE, grid, sampling=EXACT).grad_fn
    with linearize() as outer, linearize(sampling=EXACT) as inner:
        torch.manual_seed(0)
        got = sample(IMAGE, grid).grad_fn
    assert type(got) is type(want)
    assert "no call" in outer.report()
    assert inner.report().count("\n") == 1


def test_calls_of_the_library_itself_are_not_counted():
    with linearize() as patch:
        grid_sample_linearized(IMAGE, grid_that_learns())
    assert "no call" in patch.report()


def test_a_second_patch_of_a_module_takes_the_place_of_the_first():
    model = Model()
    kind = type(model)
    first = linearize(model, sampling=EXACT)
    second = linearize(model, sampling=EXACT, exclude=["stn"])
    assert swapped(model) == [False, True]
    with pytest.raises(RuntimeError, match="took its place"):
        first.remove()
    second.remove()
    assert type(model) is kind


@pytest.mark.parametrize("on_module", [True, False])
def test_an_exception_leaves_nothing_behind(on_module):
    model = Model(run=lambda module, image: [module(image), 1 / 0])
    target = model if on_module else None
    patch = linearize(target, sampling=EXACT, include=["a_function_that_is_not_there()"])
    with pytest.raises(ZeroDivisionError), patch:
        model(IMAGE)
    assert torch.overrides._len_torch_function_stack() == 0
    assert type(model) is Model
    model.run = lambda module, image: module(image)
    assert swapped(model) == [False, False]


def test_a_module_patch_survives_an_exception_in_its_forward():
    model = Model(run=lambda module, image: 1 / 0)
    patch = linearize(model, sampling=EXACT)
    with pytest.raises(ZeroDivisionError):
        model(IMAGE)
    assert torch.overrides._len_torch_function_stack() == 0
    model.run = lambda module, image: module(image)
    assert swapped(model) == [True, True]
    patch.remove()


def test_other_threads_are_not_in_a_block_and_share_a_module_patch():
    model = Model()
    found = {}
    with linearize(sampling=EXACT):
        thread = threading.Thread(target=lambda: found.update(block=swapped(Model())))
        thread.start()
        thread.join()
    with linearize(model, sampling=EXACT) as patch:
        threads = [threading.Thread(target=lambda: [model(IMAGE) for _ in range(10)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found["block"] == [False, False]
    assert patch.report().count("   40  ") == 2


def test_a_block_holds_in_its_own_task_only():
    async def task(is_block, log):
        for _ in range(3):
            await asyncio.sleep(0)
            log += swapped(Model())
        return is_block

    async def in_a_block(log):
        with linearize(sampling=EXACT) as patch:
            await task(True, log)
        return patch

    async def run():
        logs = [], [], []
        first, *_ = await asyncio.gather(in_a_block(logs[0]), task(False, logs[1]), in_a_block(logs[2]))
        return first, logs

    patch, (first, plain, second) = asyncio.run(run())
    assert first == second == [True] * 6
    assert plain == [False] * 6
    assert "calls were made by other tasks than the one that entered the block, and left" in patch.report()
    assert torch.overrides._len_torch_function_stack() == 0


def test_tasks_that_a_block_starts_are_in_it():
    async def task():
        return swapped(Model())

    async def run():
        with linearize(sampling=EXACT):
            return await asyncio.gather(task(), task())

    assert asyncio.run(run()) == [[True, True], [True, True]]


def test_one_patch_may_be_entered_within_itself():
    patch = linearize(sampling=EXACT)
    with patch:
        with patch:
            assert swapped(Model()) == [True, True]
        assert swapped(Model()) == [True, True]
    assert swapped(Model()) == [False, False]


def test_blocks_that_end_in_another_order_than_they_began_leave_the_others_open():
    first, second = linearize(sampling=EXACT), linearize(sampling=EXACT, exclude=["mask()"])
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert swapped(Model()) == [True, True]
    with pytest.warns(UserWarning, match="matched no call"):
        second.__exit__(None, None, None)
    assert "swapped" in second.report()
    assert "no call" in first.report()
    assert swapped(Model()) == [False, False]
    assert torch.overrides._len_torch_function_stack() == 0


# Noise


@needs_torch(2, 7, because="does not say whether checkpoint() will run a call again")
@pytest.mark.parametrize("on_module", [True, False])
def test_one_seed_repeats_a_run_and_leaves_the_global_generator_alone(on_module):
    def run(seed):
        model = Model()
        torch.manual_seed(seed + 100)
        before = torch.get_rng_state()
        with linearize(model if on_module else None, sampling=paper(), seed=seed % 10):
            found = [gradients(model) for _ in range(2)]
        assert torch.equal(before, torch.get_rng_state())
        return torch.stack([torch.stack(step) for step in found])

    first, again, other = run(3), run(13), run(4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1]), "steps must differ in noise"
    assert not torch.equal(first[0, 0] * 2, first[0, 1]), "calls must differ in noise"


def test_every_seed_has_noise_of_its_own():
    found = []
    for seed in (-2, -1, 0, 1, 7, 2**61 - 2, 2**61 - 1, 2**64 - 1):
        with linearize(model := Model(), sampling=paper(), seed=seed):
            found.append(gradients(model)[0])
    assert len(torch.stack(found).unique(dim=0)) == len(found)


def test_without_a_seed_torch_manual_seed_repeats_a_run():
    model = Model()
    found = []
    with linearize():
        for _ in range(2):
            torch.manual_seed(5)
            found.append(gradients(model))
    assert all(map(torch.equal, *found))
