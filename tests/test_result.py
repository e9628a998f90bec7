"""What a ``Registration`` does beside holding its tensors: its one line, and ``warp``, ``save`` and ``plot``."""

import json
import sys

import numpy as np
import pytest
import torch
from kornia.geometry import warp_perspective
from scenes import DSIZE, MOTIONS, SIZE, about_centre, draw_scene

from lms_geometry import Adam, GaussNewton, register


@pytest.fixture(scope="module")
def two():
    """Two pairs, the second of which matches nothing."""
    source = draw_scene(SIZE)
    target = warp_perspective(source, about_centre(*MOTIONS["similarity"], SIZE, DSIZE)[None], DSIZE)
    noise = torch.rand(1, 3, *DSIZE, generator=torch.Generator().manual_seed(0))
    return register(source, torch.cat((target, noise)), "similarity")


def test_its_repr_is_one_line(two):
    low, high = sorted(f"{score:.3f}" for score in two.score.tolist())
    converged = sum(two.converged.tolist())
    expected = f"Registration(2 pairs, 72 x 90 onto 24 x 30, 60 steps, {converged} converged, score {low} to {high})"
    assert repr(two) == expected
    single = register(two.source, two.target[:1], "similarity", Adam(steps=1))
    assert repr(single) == (
        f"Registration(1 pair, 72 x 90 onto 24 x 30, 1 steps, 0 converged, score {single.score.item():.3f})"
    )


def test_it_warps_the_source_and_other_images_of_its_frame(two):
    source = two.source.expand(2, -1, -1, -1)
    torch.testing.assert_close(two.warp(), warp_perspective(source, two.matrix, DSIZE))
    mask = (torch.rand(2, 1, *SIZE) > 0.5).double()
    torch.testing.assert_close(two.warp(mask), warp_perspective(mask, two.matrix.double(), DSIZE))
    assert two.warp(mask).dtype == torch.float64
    half = two.warp(two.source.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), two.warp(), rtol=0, atol=1e-3)
    one = register(two.source, two.target[:1], "similarity", GaussNewton(steps=4))
    assert one.warp(mask).shape == (2, 1, *DSIZE)


def test_an_image_that_is_not_of_the_sources_frame_is_refused(two):
    with pytest.raises(ValueError, match=r"image must have shape \(B, C, 72, 90\), got \(1, 3, 24, 30\)"):
        two.warp(torch.rand(1, 3, *DSIZE))
    with pytest.raises(ValueError, match="image must have batch size 1 or matrix's 2, got 3"):
        two.warp(torch.rand(3, 3, *SIZE))
    with pytest.raises(TypeError, match=r"image must have a floating dtype of 16, 32 or 64 bits, got torch\.uint8"):
        two.warp(torch.zeros(1, 1, *SIZE, dtype=torch.uint8))


def test_it_is_saved_as_json_and_replaces_what_was_there(two, tmp_path):
    path = tmp_path / "found.json"
    path.write_text("something else")
    two.save(path)
    saved = json.loads(path.read_text())
    assert torch.equal(torch.tensor(saved["matrix"]), two.matrix)
    assert torch.equal(torch.tensor(saved["score"]), two.score)
    assert saved["converged"] == two.converged.tolist()
    assert saved["good"] == two.good.tolist()
    assert torch.equal(torch.tensor(saved["overlap"]), two.overlap)
    assert saved["start"] == list(two.start)
    assert saved["not_tried"] == list(two.not_tried)
    assert saved["source_size"] == list(SIZE)
    assert saved["target_size"] == list(DSIZE)
    assert saved["steps"] == 60
    assert saved["first_loss"] == two.loss[0].tolist()
    assert saved["last_loss"] == two.loss[-1].tolist()
    assert saved["matrix_convention"] == "source to target, pixels, centres at integers"
    two.save(str(tmp_path / "again.json"))
    assert json.loads((tmp_path / "again.json").read_text()) == saved


def test_what_is_not_finite_is_saved_as_null(tmp_path):
    source = torch.rand(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    found = register(source, source[..., ::2, ::2], "homography", Adam(steps=20, learning_rate=1e30))
    assert not found.matrix.isfinite().all()
    found.save(tmp_path / "found.json")
    text = (tmp_path / "found.json").read_text()
    assert "null" in text
    assert "NaN" not in text
    assert "Infinity" not in text


def test_it_draws_the_path_and_the_images(two):
    figure = two.plot(1)
    panels = figure.axes
    assert [panel.get_title() for panel in panels[1:]] == ["target", "source, warped", "red: source, cyan: target"]
    path, target, warped, both = panels
    np.testing.assert_allclose(target.images[0].get_array(), two.target[1].permute(1, 2, 0), atol=1e-6)
    np.testing.assert_allclose(warped.images[0].get_array(), two.warp()[1].permute(1, 2, 0), atol=1e-6)
    red, green, blue = np.moveaxis(both.images[0].get_array(), -1, 0)
    np.testing.assert_allclose(red, two.warp()[1].mean(0), atol=1e-6)
    np.testing.assert_allclose(green, two.target[1].mean(0), atol=1e-6)
    assert (green == blue).all()
    # The last line is the target's outer edge in the source: by the matrix it goes back to the target's frame.
    outline = torch.from_numpy(path.lines[-1].get_xydata()).float()
    back = (two.matrix[1] @ torch.cat((outline, torch.ones(5, 1)), 1).T)[:2].T
    expected = torch.tensor([[-0.5, -0.5], [29.5, -0.5], [29.5, 23.5], [-0.5, 23.5], [-0.5, -0.5]])
    torch.testing.assert_close(back, expected, rtol=0, atol=1e-2)


def test_grey_images_of_any_range_can_be_drawn():
    source = 255 * draw_scene(SIZE).mean(1, keepdim=True) - 20
    found = register(source, source[..., ::3, ::3], "translation", GaussNewton(steps=3))
    drawn = found.plot().axes[0].images[0].get_array()
    low, high = source.min(), source.max()
    np.testing.assert_allclose(drawn[..., 1], ((source - low) / (high - low))[0, 0], atol=1e-5)


def test_a_pair_that_is_not_in_the_batch_is_refused(two):
    with pytest.raises(IndexError, match="index must be from -2 to 1, got 2"):
        two.plot(2)


def test_a_missing_extra_is_named(two, monkeypatch):
    for module in ("matplotlib.figure", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=r"a picture needs matplotlib: pip install 'lms_geometry\[plot\]'"):
        two.plot()
    with pytest.raises(ModuleNotFoundError, match=r"progress=True needs tqdm: pip install 'lms_geometry\[cli\]'"):
        register(two.source, two.target, progress=True)
