"""``stack``: frames are found where the camera was, whatever they are aligned with, and come out as they went in."""

import json

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from skimage.transform import EuclideanTransform, SimilarityTransform

from lms_geometry import Transform, cli
from lms_geometry.cli.drift import smooth_matrices
from lms_geometry.cli.frames import aligned_stems

QUICK = ["--motion", "translation", "--max-size", "96", "--steps", "30", "--batch", "4"]


def run(folder, frames, *options, status=0):
    assert cli.main(["stack", str(frames), "--out", str(folder / "out"), *QUICK, *options]) == status
    return json.loads((folder / "out" / "registration.json").read_text())


def shifts(matrices):
    return torch.as_tensor(matrices)[:, :2, 2].double()


@pytest.fixture
def stack(drift, tmp_path):
    """An OME-TIFF of 12 bits with two channels: the frames, and the frames upside down."""
    frames, truth = drift
    pixels = (4095 * np.stack((frames, 1 - frames), 1)).astype(np.uint16)
    path = tmp_path / "stack.ome.tif"
    metadata = {"axes": "TCYX", "PhysicalSizeX": 0.5, "Channel": {"Name": ["dye", "shadow"]}}
    tifffile.imwrite(path, pixels, ome=True, metadata=metadata)
    return path, pixels, truth


@pytest.mark.parametrize("reference", ["first", "previous", "mean"])
def test_each_reference_finds_the_drift_and_moves_all_channels(stack, tmp_path, reference):
    path, pixels, truth = stack
    result = run(tmp_path, path, "--reference", reference, "--channel", "0")
    found = shifts(result["matrix"])
    if reference == "mean":  # which may lie anywhere between
        found = found - found[:1]
    torch.testing.assert_close(found, shifts(truth), rtol=0, atol=0.15)
    assert [row["frame"] for row in result["frames"]] == list(range(6))
    assert result["good"] is True
    with tifffile.TiffFile(tmp_path / "out" / "aligned.ome.tif") as tiff:
        assert tiff.series[0].axes == "TCYX"
        assert 'PhysicalSizeX="0.5"' in tiff.ome_metadata
        assert 'Name="shadow"' in tiff.ome_metadata
        aligned = tiff.asarray()
    assert aligned.dtype == np.uint16
    assert aligned.shape == pixels.shape
    if reference != "mean":
        difference = np.abs(aligned[1:, :, 8:-8, 14:-14].astype(float) - pixels[:1, :, 8:-8, 14:-14])
        assert difference.mean() < 0.03 * 4095


def test_an_image_is_a_reference_too_and_sets_the_size(stack, drift, tmp_path):
    path, _, truth = stack
    Image.fromarray((255 * drift[0][2, 3:, 4:]).astype(np.uint8)).save(tmp_path / "reference.png")
    reference = str(tmp_path / "reference.png")
    result = run(tmp_path, path, "--reference", reference, "--channel", "0", "--motion", "similarity")
    expected = shifts(truth) - shifts(truth)[2] - torch.tensor([4.0, 3.0])
    centre = torch.tensor([[[48.0, 41.0]]])
    moved = Transform(torch.tensor(result["matrix"])).points(centre) - centre
    torch.testing.assert_close(moved[:, 0].double(), expected, rtol=0, atol=0.15)
    assert result["target_size"] == [80, 93]
    assert tifffile.imread(tmp_path / "out" / "aligned.ome.tif").shape == (6, 2, 80, 93)


def test_a_folder_of_frames_is_taken_in_the_order_of_its_numbers(drift, tmp_path, capsys):
    frames, truth = drift
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in zip((1, 2, 3, 4, 9, 10), frames, strict=True):
        Image.fromarray((255 * frame).astype(np.uint8)).save(folder / f"frame{number}.png")
    (folder / "frame5.png").write_bytes(b"no image")
    Image.fromarray(np.zeros((7, 9), np.uint8)).save(folder / "frame6.png")
    (folder / "log.txt").write_text("")
    result = run(tmp_path, folder, status=1)
    torch.testing.assert_close(shifts(result["matrix"]), shifts(truth), rtol=0, atol=0.15)
    names = [f"frame{number}.png" for number in (1, 2, 3, 4, 9, 10)]
    assert [row["frame"] for row in result["frames"]] == names
    assert sorted(path.name for path in (tmp_path / "out" / "aligned").iterdir()) == sorted(names)
    printed = capsys.readouterr().out
    assert "frame5.png is empty or not an image" in printed
    assert "frame6.png is 9 x 7, 1 channels, uint8, and" in printed
    assert "left out, no images by their names: log.txt" in printed


def test_frames_of_an_older_run_are_removed_and_other_files_are_not(drift, tmp_path):
    folder, aligned = tmp_path / "frames", tmp_path / "out" / "aligned"
    folder.mkdir()
    for number, frame in enumerate(drift[0][:4]):
        Image.fromarray((255 * frame).astype(np.uint8)).save(folder / f"{number}.png")
    tifffile.imwrite(folder / "3.tif", (255 * drift[0][3]).astype(np.uint8))
    run(tmp_path, folder)
    names = ["0.png", "1.png", "2.png", "3.png.png", "3.tif.tif"]
    assert sorted(path.name for path in aligned.iterdir()) == names
    (aligned / "9.png").write_text("mine")
    for name in ("2.png", "3.tif"):
        (folder / name).unlink()
    run(tmp_path, folder, "--overwrite")
    assert sorted(path.name for path in aligned.iterdir()) == ["0.png", "1.png", "3.png", "9.png"]
    registration = tmp_path / "out" / "registration.json"
    for foreign in (["aligned/9.png"], [["aligned/"], {}], ["aligned/"]):
        registration.write_text(json.dumps({"files": foreign, "frames": [{"frame": 9}]}))
        run(tmp_path, folder, "--overwrite")
    for foreign in ("[]", "{"):
        registration.write_text(foreign)
        run(tmp_path, folder, "--overwrite")
    assert sorted(path.name for path in aligned.iterdir()) == ["0.png", "1.png", "3.png", "9.png"]


def test_frames_whose_names_differ_by_the_ending_have_files_of_their_own():
    assert aligned_stems(["a.png", "b.jpg", "b.png", "a.png.tif"]) == ["a", "b.jpg", "b.png", "a.png.tif"]


def test_a_blank_frame_is_told_and_stays_where_the_one_before_is(stack, tmp_path):
    _, pixels, truth = stack
    pixels[3] = 100
    tifffile.imwrite(tmp_path / "blank.tif", pixels[:, 0], photometric="minisblack")
    for reference in ("first", "previous"):
        result = run(tmp_path, tmp_path / "blank.tif", "--reference", reference, "--overwrite", status=1)
        expected = shifts(truth)
        expected[3] = expected[2]
        torch.testing.assert_close(shifts(result["matrix"]), expected, rtol=0, atol=0.15)
        assert [row["good"] for row in result["frames"]] == [True, True, True, False, True, True]
    result = run(tmp_path, tmp_path / "blank.tif", "--smooth", "0.6", "--overwrite", status=1)
    filled = shifts(result["matrix"])[3]
    assert (filled - shifts(truth)[2:5:2].mean(0)).abs().max() < 0.6  # between those beside it
    tifffile.imwrite(tmp_path / "begin.tif", pixels[3:, 0], photometric="minisblack")
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / "begin.tif", "--overwrite")


@pytest.mark.parametrize("motion", ["translation", "similarity", "affine", "homography"])
def test_a_smoothed_drift_is_the_mean_over_time_and_keeps_its_motion(motion):
    rng = np.random.default_rng(0)
    turns = rng.normal(size=(9, 3)) * (0 if motion == "translation" else 0.02, 3, 3)
    scales = np.ones(9) if motion == "translation" else rng.uniform(0.9, 1.1, 9)
    matrices = torch.stack(
        [
            torch.from_numpy(np.asarray(SimilarityTransform(scale=s, rotation=a, translation=(x, y)).params))
            for (a, x, y), s in zip(turns, scales, strict=True)
        ]
    )
    weight = torch.ones(9, dtype=torch.float64)
    weight[4] = 0
    smooth = smooth_matrices(matrices, weight, (37, 52), motion, 1.5)
    for time in range(9):  # a similarity's entries are linear in the corners
        share = torch.tensor([w * np.exp(-((t - time) ** 2) / (2 * 1.5**2)) for t, w in enumerate(weight.tolist())])
        expected = (share[:, None, None] * matrices).sum(0) / share.sum()
        torch.testing.assert_close(smooth[time], expected, rtol=0, atol=1e-6)


def test_a_smoothed_rigid_drift_stays_rigid():
    matrices = torch.stack(
        [torch.from_numpy(EuclideanTransform(rotation=a, translation=(3 * a, 1)).params) for a in (0.1, 0.3, 0.2, 0.4)]
    )
    smooth = smooth_matrices(matrices, torch.ones(4, dtype=torch.float64), (37, 52), "rigid", 1.0)
    turned = smooth[:, :2, :2]
    torch.testing.assert_close(turned @ turned.mT, torch.eye(2, dtype=torch.float64).expand(4, 2, 2))
    assert torch.linalg.det(turned).sub(1).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--channel", "2"], "--channel must be from 0 to 1, got 2"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--smooth", "nan"], "--smooth must be a number of frames, 0 or more, got nan"),
        (["--reference", "nothing.png"], "nothing.png does not exist"),
    ],
)
def test_an_option_outside_its_range_is_named(stack, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, stack[0], *options)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_one_frame_is_no_stack(tmp_path, capsys, drift):
    Image.fromarray((255 * drift[0][0]).astype(np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / "a.png")
    assert "a.png holds one frame: lms-geometry register aligns two images" in capsys.readouterr().err
