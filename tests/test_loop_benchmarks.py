"""The benchmarks that need no data: a registration loop of one's own, and a transformer on scikit-learn's digits."""

import json
import math

import torch

from benchmarks import digits, drop_in


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
