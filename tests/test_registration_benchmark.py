import json

import pytest
import torch
from PIL import Image
from skimage import data

from benchmarks import registration
from benchmarks.datasets import load_images
from benchmarks.runs import fingerprint
from lms_geometry._kornia import homography_warp


@pytest.fixture
def folder_of_photos(tmp_path):
    for name in ("chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(data, name)()).save(tmp_path / f"{name}.png")
    return tmp_path


def test_registration_goes_on_where_it_stopped_and_draws(folder_of_photos, tmp_path, monkeypatch, capsys):
    methods = registration._methods(["opencv", "kornia"])
    few = {name: methods[name] for name in (registration.MAIN, "phase correlation", "Gauss-Newton, 1 start")}
    calls = []

    def counted(name):
        return lambda *arguments: calls.append(name) or few[name](*arguments)

    monkeypatch.setattr(registration, "_methods", lambda without: {name: counted(name) for name in few})
    monkeypatch.setattr(registration, "CASES", {"4x": (8, 1.0, ""), "4x, hidden": (8, 0.0, "hidden")})
    monkeypatch.setattr(registration, "ROUNDS", 1)
    out, finished = tmp_path / "registration.json", tmp_path / "finished.jsonl"
    photos = load_images("photos", folder_of_photos, 2)
    job = {"images": fingerprint(photos), "count": 2, "seed": 0, "method": registration.MAIN, "case": "4x"}
    finished.write_text(json.dumps({"job": job, "value": {"errors": [0.0, 1.0], "scores": [0.9, 0.5]}}) + "\n")
    arguments = ["--data", str(folder_of_photos), "--count", "2", "--json", str(out), "--finished", str(finished)]
    monkeypatch.setattr("sys.argv", ["registration", *arguments, "--threads", "1"])
    registration.main()
    table = json.loads(out.read_text())["table"]
    cells = {row[0]: row[1:3] for row in table["rows"]}
    assert cells[registration.MAIN][0] == "0.50"
    assert cells["Gauss-Newton, 1 start"][1] == "-"
    assert calls.count(registration.MAIN) == 2  # one set of problems, one round of timing
    assert calls.count("phase correlation") == 3
    assert out.with_suffix(".png").exists()
    assert "| Gauss-Newton |" in capsys.readouterr().out


def test_warps_of_other_sizes_keep_their_kind():
    photos = torch.rand(50, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    warps, half, moved = (
        registration._problems(photos, case, seed=1)[0] for case in ("4x", "4x, warps / 2", "4x, translations")
    )

    def angle_and_scales(warps):
        x, y = warps[:, :, 0], warps[:, :, 1]
        torch.testing.assert_close((x * y).sum(1), torch.zeros(50))
        return torch.stack((torch.atan2(x[:, 1], x[:, 0]), x.norm(dim=1).log2(), y.norm(dim=1).log2()))

    torch.testing.assert_close(angle_and_scales(half), angle_and_scales(warps) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(half[:, :, 2], warps[:, :, 2] / 2)
    torch.testing.assert_close(moved[:, :, :2], torch.eye(2).expand(50, 2, 2))
    torch.testing.assert_close(moved[:, :, 2], warps[:, :, 2])


def test_the_area_under_the_curve_is_the_share_of_pairs_in_order():
    scores, good = torch.tensor([0.1, 0.4, 0.4, 0.9]), torch.tensor([False, False, True, True])
    assert registration.roc_auc(scores, good) == pytest.approx((1 + 0.5 + 1 + 1) / 4)


@pytest.mark.parametrize("align", ["phase_correlation", "scale_space_gauss_newton"])
def test_a_peer_finds_a_translation(align):
    from benchmarks import registration_peers as peers

    image = torch.from_numpy(data.chelsea()[50:250, 100:300].copy()).permute(2, 0, 1)[None].float() / 255
    sources = torch.nn.functional.interpolate(image, (64, 64), mode="area")
    truth = torch.eye(3)[None].clone()
    truth[:, 0, 2] = 0.125
    targets = homography_warp(sources, truth, (32, 32))
    found = getattr(peers, align)(sources, targets)
    assert (found - truth).abs().max() < 0.05


def test_a_missing_opencv_is_named(monkeypatch):
    from benchmarks import registration_peers as peers

    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    with pytest.raises(SystemExit, match="OpenCV is missing: pip install opencv-python-headless"):
        peers.ecc(5)(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 8, 8))
