"""The benchmarks that need no data: a registration loop of one's own, and networks on scikit-learn's digits."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks import digits, drop_in, inside


def run(module, arguments, path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["run", *arguments, "--json", str(path)])
    module.main()
    return json.loads(path.read_text())


def test_the_matrix_turns_about_the_middle_moves_and_shrinks():
    angle, move = torch.tensor([30.0]), torch.tensor([[16.0, -8.0]])
    for shrunk in (1, 8):
        M = drop_in.matrix(angle, move, shrunk)[0]
        middle, right = (M @ torch.tensor([x, 127.5, 1.0]) for x in (127.5, 227.5))
        expected = torch.tensor([(256 / shrunk - 1) / 2 + 16 / shrunk, (256 / shrunk - 1) / 2 - 8 / shrunk])
        torch.testing.assert_close(middle, expected, atol=1e-3, rtol=0)
        turned = torch.tensor([math.cos(math.radians(30)), -math.sin(math.radians(30))]) * 100 / shrunk
        torch.testing.assert_close(right - middle, turned, atol=1e-3, rtol=0)


def test_problems_stay_within_their_limits():
    angle, move = drop_in.draw_problems(500, 40.0, 0.1)
    assert 38 < angle.abs().max() <= 40
    assert 25 < move.abs().max() <= 25.6


def test_a_near_warp_is_found(monkeypatch):
    monkeypatch.setattr(drop_in, "STEPS", 40)
    photos = drop_in.load_photos()[:1]
    angle, move = torch.tensor([6.0]), torch.tensor([[3.0, -5.0]])
    degrees, pixels = drop_in.errors(drop_in.WARPS["warp_affine_linearized"], photos, angle, move)
    assert degrees.max() < 0.5
    assert pixels.max() < 0.1


def test_the_loops_result_has_a_row_for_every_warp(tmp_path, monkeypatch):
    monkeypatch.setattr(drop_in, "STEPS", 2)
    monkeypatch.setattr(drop_in, "DRAWS", 1)
    monkeypatch.setattr(drop_in, "_time_steps", lambda photo, rounds: dict.fromkeys(drop_in.WARPS, 0.002))
    result = run(drop_in, [], tmp_path / "drop_in.json", monkeypatch)
    assert [row[0] for row in result["table"]["rows"]] == list(drop_in.WARPS)
    assert all(row[1].endswith("of 4") and row[-1] == "2.0" for row in result["table"]["rows"])


def test_digits_lie_inside_the_canvas_at_half_size():
    images, labels, train, test = digits.load()
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(labels)))
    seen = digits.canvases(images[train[:200]], 0.0, torch.Generator().manual_seed(0))
    assert seen.shape == (200, 1, 48, 48)
    # Half of 48 pixels at most, by a scale of up to 2^0.3, a little more when turned.
    wide = (seen.amax(2) > 0.05).sum(-1)
    assert 4 < wide.float().mean() < 24


def test_the_digits_result_has_the_mean_and_every_seed(tmp_path, monkeypatch):
    errors = iter([0.1, 0.3])
    monkeypatch.setattr(digits, "error_of", lambda *job: next(errors))
    arguments = ["--samplers", "bilinear", "--conditions", "8x, grain 0.3", "--seeds", "0", "1"]
    result = run(digits, arguments, tmp_path / "digits.json", monkeypatch)
    assert result["table"] == {"columns": ["sampler", "8x, grain 0.3"], "rows": [["bilinear", "20 (10 / 30)"]]}


def test_a_training_on_digits_is_that_of_its_seed():
    sampler = digits.SAMPLERS["linearized, as it comes"]
    first, again, other = (digits.error_of(sampler, 6, 0.1, seed, steps=12) for seed in (3, 3, 4))
    assert first == again != other


@pytest.mark.parametrize("form", ["warp", "pool"])
def test_by_the_centre_is_the_default_but_for_the_gradient_of_the_features(form):
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 3, inside.CANVAS, inside.CANVAS, generator=generator, requires_grad=True)
    where = {
        "warp": F.affine_grid(torch.tensor([[0.6, 0.2, 0.1], [-0.2, 0.6, 0.0]]).repeat(2, 1, 1), [2, 1, 6, 6], False),
        "pool": torch.tensor([[[5.0, 7.0, 41.0, 37.0], [9.0, 3.0, 30.0, 45.0]]]).repeat(2, 1, 1),
    }[form].requires_grad_()
    default, centre, bilinear = (
        getattr(inside.SAMPLERS[name], form)(features, where)
        for name in ("linearized, as it comes", "the same, features by the centre", "bilinear")
    )
    weight = torch.rand(default.shape, generator=generator)
    of_default, of_centre, of_bilinear = (
        torch.autograd.grad((weight * value).sum(), (features, where)) for value in (default, centre, bilinear)
    )
    torch.testing.assert_close(centre, default)
    torch.testing.assert_close(of_centre[1], of_default[1])
    torch.testing.assert_close(of_centre[0], of_bilinear[0])
    assert (of_centre[0] - of_default[0]).norm() > 0.5 * of_default[0].norm()
    assert (of_centre[1] - of_bilinear[1]).norm() > 0.5 * of_default[1].norm()


def test_samplers_of_boxes_that_should_agree_do():
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(2, 3, inside.CANVAS, inside.CANVAS, generator=generator, requires_grad=True)
    boxes = torch.tensor([[[5.0, 7.0, 41.0, 37.0]], [[9.0, 3.0, 30.0, 45.0]]])
    values = {name: sampler.pool(features, boxes) for name, sampler in inside.SAMPLERS.items()}
    weight = torch.rand(2, 3, inside.SIZE, inside.SIZE, generator=generator)
    gradients = {name: torch.autograd.grad((weight * value).sum(), features)[0] for name, value in values.items()}
    # The same reads, and so the same adjoint.
    torch.testing.assert_close(values["linearized, as it comes"], values["supersampled, 3 x 3"])
    torch.testing.assert_close(gradients["linearized, as it comes"], gradients["supersampled, 3 x 3"])
    # The paper's gradient for the features is bilinear sampling's; its value is not.
    torch.testing.assert_close(gradients["LinearizedSampling.paper()"], gradients["bilinear"])
    assert (values["LinearizedSampling.paper()"] - values["bilinear"]).abs().mean() > 0.05


def test_boxes_are_proposed_near_their_digits():
    images, _, train, _ = digits.load()
    canvases, boxes = inside.scenes(images[train[:50]], torch.Generator().manual_seed(0))
    assert canvases.shape == (50, 1, 48, 48)
    x = torch.arange(inside.CANVAS) + 0.5
    weight = F.avg_pool2d(canvases, 3, 1, 1)[:, 0].clamp_min(0.4) - 0.4  # the digit without its grain
    of_digit = torch.stack([(weight.sum(axis) * x).sum(1) for axis in (1, 2)], 1) / weight.sum((1, 2))[:, None]
    of_box = (boxes[..., :2] + boxes[..., 2:]) / 2
    off = (of_box - of_digit[:, None]).abs()
    assert 8 < off.max() < inside.FARTHEST + 4  # a digit's ink may lie beside its middle
    torch.testing.assert_close(boxes[..., 2:] - boxes[..., :2], torch.full((50, inside.PROPOSALS, 2), inside.SIDE))


def test_the_result_of_warps_inside_has_every_network_and_seed(tmp_path, monkeypatch):
    images, labels, train, test = digits.load()
    monkeypatch.setattr(digits, "load", lambda: (images, labels, train, test[:40]))
    arguments = ["--samplers", "linearized, as it comes", "--seeds", "0", "1", "--steps", "2"]
    arguments += ["--finished", str(tmp_path / "runs.jsonl")]
    result = run(inside, arguments, tmp_path / "inside.json", monkeypatch)
    assert result["table"]["columns"] == ["sampler", "STN", "STN: ms a step", "RoIAlign", "RoIAlign: ms a step"]
    [row] = result["table"]["rows"]
    first, second = result["raw"]["linearized, as it comes, STN"]
    assert row[1] == f"{50 * (first + second):.1f} ({100 * first:.1f} / {100 * second:.1f})"
    assert first != second
