"""What the report of a patch says, and what bad input is told."""

import re
import sys

import kornia
import pytest
import torch
import torch.nn.functional as F
from lms_geometry.integrations import linearize
from settings import paper
from torch import nn
from two_transformers import EXACT, IMAGE, Model, grid_that_learns, sample


def test_the_report_is_a_table_of_call_sites():
    model = Model()
    with linearize(model, exclude=["mask"]) as patch:
        model(IMAGE)
        model(IMAGE)
    head, *rows = patch.report().splitlines()
    assert head.split("  ")[0].strip() == "calls"
    site = f"two_transformers.py:{sample.__code__.co_firstlineno + 1} sample()"
    for row, (module, outcome) in zip(
        rows, [("stn", "swapped"), ("heads.mask", "left: excluded by 'mask'")], strict=True
    ):
        assert row.split()[0] == "2"
        assert f"{site} in {module!r}" in row
        assert "(2, 3, 19, 26), (2, 5, 7, 2)" in row
        assert row.lstrip().startswith(f"2  {outcome}  ")


def test_where_no_call_was_linearized_report_and_removal_say_so_and_name_replace():
    class Gathers(nn.Module):
        """Warps by indexing, and resizes its mask with the sampler of torch."""

        def forward(self, image, shift):
            index = (torch.arange(26) + shift.round().long()).clamp(0, 25)
            return image[..., index] * sample(
                torch.ones_like(image), F.affine_grid(torch.eye(2, 3).repeat(2, 1, 1), image.shape, align_corners=False)
            )

    patch = linearize(model := Gathers())
    model(IMAGE, torch.tensor(2.0, requires_grad=True))
    told = r"no call was linearized: every call.*replace\(module, 'name', adapter\)"
    assert re.search(told, patch.report())
    with pytest.warns(UserWarning, match=told) as warned:
        patch.remove()
    assert warned[0].filename == __file__


def test_calls_that_the_user_excluded_are_no_reason_to_warn():
    patch = linearize(model := Model(), exclude=["stn", "mask"])
    model(IMAGE)
    patch.remove()
    assert "no call was linearized" not in patch.report()


def test_a_packed_pyramid_is_left_alone_and_the_adapter_named():
    frames = torch.tensor([[[[9.0, 0.0, 20.0], [0.0, 8.0, 15.0]]]], requires_grad=True)
    image = torch.rand(1, 1, 33, 47)
    with linearize() as patch:
        got = kornia.feature.extract_patches_from_pyramid(image, frames, PS=5)
    torch.testing.assert_close(got, kornia.feature.extract_patches_from_pyramid(image, frames, PS=5), rtol=0, atol=0)
    assert "lms_geometry.integrations.kornia" in patch.report()
    with linearize() as patch:
        kornia.feature.extract_patches_simple(image, frames, PS=5)
    assert "swapped" in patch.report()


def test_a_forward_set_on_an_instance_is_named():
    model = Model()
    model.stn.forward = model.forward = lambda image: image
    patch = linearize(model)
    assert "may not be seen when called on its own: submodule 'stn' has a forward of its own" in patch.report()
    assert (
        "the module has a forward of its own set on it; linearize() before that is set, or use a block"
        in patch.report()
    )
    patch.remove()


def test_a_block_that_was_never_entered_says_so():
    patch = linearize()
    sample(IMAGE, grid_that_learns())
    assert "never entered: write `with linearize() as patch:`" in patch.report()
    with patch:
        pass
    assert "Was the code run?" in patch.report()


def test_bad_input_is_told_what_to_do_instead():
    with pytest.raises(TypeError, match=r"target must be a torch\.nn\.Module or None, got function.*block"):
        linearize(sample)
    with pytest.raises(ValueError, match=r"target must not be TorchScript.*Python module"):
        linearize(torch.jit.script(nn.Linear(1, 1)))
    with pytest.raises(TypeError, match="sampling must be a LinearizedSampling or None, got dict"):
        linearize(sampling={})
    with pytest.raises(TypeError, match=r"seed must be an int or None, got 0\.5"):
        linearize(sampling=paper(), seed=0.5)
    with pytest.raises(TypeError, match=r"include must be a list of patterns.*got 'stn'"):
        linearize(Model(), include="stn")
    with pytest.raises(ValueError, match=r"exclude pattern 'head' matches none of the submodules \(stn, heads"):
        linearize(Model(), exclude=["head"])
    with pytest.raises(ValueError, match="a block has no module to look in"):
        linearize(include=["stn"])


def test_another_name_of_a_submodule_is_told_apart_from_none():
    model = Model()
    model.again = model.heads
    with pytest.raises(ValueError, match=r"include pattern 'again.mask' is another name of 'heads.mask': write that"):
        linearize(model, include=["again.mask"])


def test_a_patch_removed_twice_says_so():
    patch = linearize(Model())
    patch.remove()
    with pytest.raises(RuntimeError, match="off already"):
        patch.remove()
    with pytest.raises(RuntimeError, match="Call linearize"):
        patch.__enter__()
    with pytest.raises(RuntimeError, match="ends with its block"):
        linearize().remove()


def test_the_report_shortens_a_path_below_the_working_folder(tmp_path, monkeypatch):
    site = tmp_path / "theirs" / "model.py"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", "/elsewhere"])  # as in a notebook
    names = {"sample": F.grid_sample}
    exec(compile("def run(*arguments):\n    return sample(*arguments, align_corners=False)", str(site), "exec"), names)
    with linearize(sampling=EXACT) as patch:
        names["run"](IMAGE, grid_that_learns())
    assert " theirs/model.py:2 run()" in patch.report()
    assert str(tmp_path) not in patch.report()
