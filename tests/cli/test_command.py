import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from lms_geometry import Transform, cli


def test_register_writes_the_aligned_image_its_comparisons_and_the_matrix(photos, tmp_path, capsys):
    folder, truth = photos
    arguments = [str(folder / "source.jpg"), str(folder / "target.png"), "--out", str(tmp_path / "out")]
    assert cli.main(["register", *arguments, "--motion", "similarity", "--max-size", "128"]) == 0
    result = json.loads((tmp_path / "out" / "registration.json").read_text())
    corners = torch.tensor([[0.0, 0.0, 1.0], [451, 0, 1], [0, 300, 1], [451, 300, 1]]).T
    found = torch.tensor(result["matrix"])
    assert (found @ corners - truth @ corners)[:2].abs().max() < 2
    assert result["motion"] == "similarity"
    (a, b, _), (c, d, _), last = result["matrix"]  # a similarity at full size too
    assert (a, b, *last) == pytest.approx((d, -c, 0, 0, 1), abs=2e-5)
    assert result["loss"]["last"] <= result["loss"]["first"]
    assert result["score"] > 0.97
    assert result["good"] is True
    assert result["converged"] is True
    aligned, target = (
        np.asarray(Image.open(p), dtype=float) for p in (tmp_path / "out" / "aligned.png", folder / "target.png")
    )
    assert aligned.shape == target.shape == (170, 250, 3)
    inside = aligned.any(-1)  # beyond the photo aligned.png is black
    assert np.abs(aligned - target)[inside].mean() < 8
    overlay = np.asarray(Image.open(tmp_path / "out" / "overlay.png"), dtype=float)
    assert np.array_equal(overlay[..., 1], overlay[..., 2])
    assert np.abs(overlay[..., 0] - overlay[..., 1])[inside].mean() < 8
    board = np.asarray(Image.open(tmp_path / "out" / "checkerboard.png"), dtype=float)
    assert np.array_equal(board[:31, :31], target[:31, :31])
    assert np.array_equal(board[:31, 31:62], aligned[:31, 31:62])
    printed = capsys.readouterr().out
    assert "registration.json" in printed
    assert "source.jpg: good, score 0.9" in printed
    assert "start " in printed
    assert "overlap" in printed
    read = Transform.load(tmp_path / "out" / "transform.tfm")
    torch.testing.assert_close(read.matrix[0].float(), found, rtol=1e-5, atol=1e-5)
    assert torch.equal(Transform.load(tmp_path / "out" / "registration.json").matrix[0].float(), found)


def test_a_folder_is_registered_against_one_target_and_a_failure_sets_the_exit_status(photos, tmp_path, capsys):
    folder = tmp_path / "sources"
    folder.mkdir()
    Image.open(photos[0] / "source.jpg").save(folder / "b.jpg", quality=95)
    Image.fromarray(data.coffee()[:300, :452]).save(folder / "a.png")
    (folder / "notes.txt").write_text("not an image")
    arguments = [str(folder), str(photos[0] / "target.png"), "--out", str(tmp_path / "out")]
    assert cli.main(["register", *arguments, "--motion", "similarity", "--max-size", "64", "--min-score", "0.9"]) == 1
    results = json.loads((tmp_path / "out" / "registrations.json").read_text())
    assert [result["good"] for result in results] == [False, True]
    assert (tmp_path / "out" / "a.png" / "overlay.png").exists()
    assert results[1] == json.loads((tmp_path / "out" / "b.jpg" / "registration.json").read_text())
    assert "FAILED" in capsys.readouterr().out
    only = [str(folder / "b.jpg"), str(photos[0] / "target.png"), "--out", str(tmp_path / "b"), "--max-size", "64"]
    assert cli.main(["register", *only, "--motion", "similarity", "--min-score", "1"]) == 1


def test_a_file_of_a_folder_that_cannot_be_used_is_reported_and_the_rest_done(photos, tmp_path, capsys):
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "a.png").write_bytes(b"not an image")
    Image.open(photos[0] / "source.jpg").save(folder / "b.png")
    veiled = Image.open(photos[0] / "source.jpg")
    veiled.putalpha(128)
    veiled.save(folder / "c.png")
    arguments = [str(folder), str(photos[0] / "target.png"), "--out", str(tmp_path / "out")]
    assert cli.main(["register", *arguments, "--motion", "similarity", "--max-size", "64"]) == 1
    bad, good, veiled = json.loads((tmp_path / "out" / "registrations.json").read_text())
    assert bad["good"] is False
    assert veiled["error"] == f"{folder / 'c.png'} is nowhere opaque"
    assert not (tmp_path / "out" / "c.png").exists()
    assert f"{folder / 'a.png'} is empty or not an image" in bad["error"]
    assert good["good"] is True
    assert f"FAILED: {bad['error']}" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["register", "demo"])
def test_results_that_cannot_be_written_are_an_error_without_a_traceback(photos, tmp_path, capsys, command):
    out = tmp_path / "out"
    out.write_text("a file")
    files = [str(photos[0] / "source.jpg"), str(photos[0] / "target.png")] if command == "register" else []
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, *files, "--out", str(out)])
    assert stopped.value.code == 2
    assert f"lms-geometry: error: {out} is a file, not a folder: choose another --out" in capsys.readouterr().err


@pytest.mark.parametrize("colour", [0, 255])
def test_what_is_transparent_is_left_out(photos, tmp_path, colour):
    folder, truth = photos
    photo = np.asarray(Image.open(folder / "source.jpg"))
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]]
    opaque = ((x - 225) / 200) ** 2 + ((y - 150) / 140) ** 2 < 1
    pixels = np.dstack((np.where(opaque[..., None], photo, colour), 255 * opaque)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "source.png")
    arguments = [str(tmp_path / "source.png"), str(folder / "target.png"), "--out", str(tmp_path / "out")]
    assert cli.main(["register", *arguments, "--motion", "similarity", "--max-size", "64"]) == 0
    result = json.loads((tmp_path / "out" / "registration.json").read_text())
    assert result["score"] > 0.98
    torch.testing.assert_close(torch.tensor(result["matrix"])[:2, :2], truth[:2, :2], rtol=0, atol=0.02)


def test_a_folder_without_images_is_named(photos, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["register", str(tmp_path), str(photos[0] / "target.png"), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert f"{tmp_path} holds no images" in capsys.readouterr().err


def test_the_demo_recovers_what_bilinear_cannot_and_draws_it(tmp_path, capsys):
    assert cli.main(["demo", "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    errors = {
        line.split(":")[0].strip(): float(line.split()[3]) for line in printed.splitlines() if "corner error" in line
    }
    assert errors["linearized"] < 0.02
    assert errors["bilinear"] > 0.3
    with Image.open(tmp_path / "demo.png") as picture:
        assert min(picture.size) > 600


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "does not exist"),
        (b"", "is empty or not an image"),
        (b"not an image", "is empty or not an image"),
        ("folder", "cannot be read"),
        ("truncated", "cannot be read"),
        ("large", "is too large: 9000 x 8000 is more than 64,000,000 pixels"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(photos, tmp_path, capsys, content, message):
    path = tmp_path / "bad.png"
    if content == "folder":
        path.mkdir()
    elif content == "truncated":
        path.write_bytes((photos[0] / "target.png").read_bytes()[:3000])
    elif content == "large":
        Image.new("1", (9000, 8000)).save(path)
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["register", str(photos[0] / "source.jpg"), str(path), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert f"{path} {message}" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--max-size", "4"], "--max-size must be at least 8, got 4"),
        (["--steps", "0"], "steps must be"),
        (["--min-score", "nan"], "--min-score must be from 0 to 1, got nan"),
    ],
)
def test_an_option_outside_its_range_is_named(photos, tmp_path, capsys, option, message):
    arguments = [str(photos[0] / "source.jpg"), str(photos[0] / "target.png"), "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as stopped:
        cli.main(["register", *arguments, *option])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_python_m_runs_the_same_command():
    done = subprocess.run([sys.executable, "-m", "lms_geometry", "--help"], capture_output=True, text=True, check=True)
    assert "register" in done.stdout
