"""``apply``: what was found moves other images, labels and points, at full size."""

import csv
import json

import numpy as np
import pytest
import tifffile
import torch
from kornia.geometry import warp_perspective
from PIL import Image

from lms_geometry import Transform, cli

SIZE, TARGET = (37, 52), (43, 61)
# It enlarges everywhere, so that the mean over the area of a pixel is what kornia reads.
MATRIX = torch.tensor([[[1.3, -0.2, 3.0], [0.15, 1.25, -4.0], [1e-4, 2e-4, 1.0]]], dtype=torch.float64)


@pytest.fixture
def found(tmp_path):
    Transform(MATRIX, SIZE, TARGET).save(tmp_path / "registration.json")
    return tmp_path / "registration.json"


def run(transform, *arguments, status=0):
    out = transform.parent / "applied"
    assert cli.main(["apply", str(transform), *map(str, arguments), "--out", str(out)]) == status
    return out


def numbers(shape, dtype):
    return np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def expected(pixels, matrix=MATRIX, size=TARGET):
    return warp_perspective(torch.from_numpy(pixels.astype(np.float64))[None, None], matrix, size)[0, 0].numpy()


def test_an_image_is_warped_at_full_size_in_its_own_type(found, tmp_path):
    pixels = numbers(SIZE, np.uint16)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    warped = np.asarray(Image.open(run(found, tmp_path / "a.png") / "a.png"))
    assert warped.dtype == np.uint16
    np.testing.assert_allclose(warped, expected(pixels), atol=1.5)


def test_labels_keep_their_numbers_and_their_palette(found, tmp_path):
    labels = numbers(SIZE, np.uint8) // 80
    image = Image.fromarray(labels)
    image.putpalette([0, 0, 0, 200, 10, 20, 30, 220, 40, 50, 60, 240])
    image.save(tmp_path / "labels.png")
    wide = numbers(SIZE, np.uint32)
    tifffile.imwrite(tmp_path / "wide.tif", wide)
    out = run(found, "--labels", tmp_path / "labels.png", tmp_path / "wide.tif")
    inverse = torch.linalg.inv(MATRIX[0]).numpy()
    y, x = np.mgrid[: TARGET[0], : TARGET[1]]
    column, row, depth = np.einsum("ij,jyx->iyx", inverse, np.stack((x, y, np.ones_like(x))))
    column, row = np.rint(column / depth).astype(int), np.rint(row / depth).astype(int)
    inside = (column >= 0) & (column < SIZE[1]) & (row >= 0) & (row < SIZE[0])
    places = np.where(inside, row, 0), np.where(inside, column, 0)
    with Image.open(out / "labels.png") as written:
        assert written.mode == "P"
        assert written.getpalette()[:12] == [0, 0, 0, 200, 10, 20, 30, 220, 40, 50, 60, 240]
        assert np.array_equal(np.asarray(written), np.where(inside, labels[places], 0))
    assert np.array_equal(tifffile.imread(out / "wide.tif"), np.where(inside, wide[places], 0))


def test_points_move_with_the_image_and_back(found, tmp_path):
    (tmp_path / "points.csv").write_text('\ufeffname, X ,y\nleft eye,10,12.5\n\n"nose, tip",-3,40\n', encoding="utf-8")
    out = run(found, tmp_path / "points.csv")
    head, *rows = csv.reader((out / "points.csv").read_text().splitlines())
    assert head == ["name", " X ", "y"]
    assert [row[0] for row in rows] == ["left eye", "nose, tip"]
    for (_, x, y), point in zip(rows, ([10, 12.5, 1], [-3, 40, 1]), strict=True):
        a, b, w = (MATRIX[0] @ torch.tensor(point, dtype=torch.float64)).tolist()
        assert (float(x), float(y)) == pytest.approx((a / w, b / w), abs=1e-5)
    (out / "points.csv").rename(tmp_path / "moved.csv")
    run(found, "--inverse", tmp_path / "moved.csv")
    back = list(csv.reader((out / "moved.csv").read_text().splitlines()))
    assert [tuple(map(float, row[1:])) for row in back[1:]] == [
        pytest.approx((10, 12.5), abs=1e-5),
        pytest.approx((-3, 40), abs=1e-5),
    ]
    (tmp_path / "bare.csv").write_text("10,12.5,a\n")
    assert (run(found, tmp_path / "bare.csv") / "bare.csv").read_text().endswith(",a\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("a,b\n1,2\n", "must have columns x and y, got a, b"),
        ("x,y\n1,2\n1\n", "line 3: x and y must be finite numbers, got 1"),
        ("x,y\n1,nan\n", "line 2: x and y must be finite numbers"),
        (b"x,y\n\xff,1\n", "is not a CSV file in UTF-8"),
    ],
)
def test_points_that_cannot_be_read_are_named_and_the_rest_is_done(found, tmp_path, capsys, text, message):
    (tmp_path / "bad.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    Image.fromarray(numbers(SIZE, np.uint8)).save(tmp_path / "a.png")
    out = run(found, tmp_path / "bad.csv", tmp_path / "a.png", status=1)
    printed = capsys.readouterr().out
    assert f"{tmp_path / 'bad.csv'}" in printed
    assert message in printed
    assert [path.name for path in out.iterdir()] == ["a.png"]


def test_a_file_of_itks_is_applied_and_takes_its_size_from_another_image(tmp_path):
    pixels = numbers(SIZE, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(numbers(TARGET, np.uint8)).save(tmp_path / "like.png")
    affine = MATRIX.clone()
    affine[:, 2, :2] = 0
    Transform(affine).save(tmp_path / "found.tfm")
    warped = np.asarray(
        Image.open(run(tmp_path / "found.tfm", tmp_path / "a.png", "--like", tmp_path / "like.png") / "a.png")
    )
    np.testing.assert_allclose(warped, expected(pixels, affine), atol=1.5)
    own = np.asarray(Image.open(run(tmp_path / "found.tfm", tmp_path / "a.png", "--overwrite") / "a.png"))
    np.testing.assert_allclose(own, expected(pixels, affine, SIZE), atol=1.5)


def test_frames_move_by_their_own_matrices_or_all_by_one(found, tmp_path):
    shifts = torch.eye(3, dtype=torch.float64).repeat(3, 1, 1)
    shifts[:, 0, 2] = torch.tensor([0.0, 2.0, -5.0])
    Transform(shifts, SIZE, SIZE).save(tmp_path / "frames.json")
    pixels = numbers((3, *SIZE), np.uint16)
    tifffile.imwrite(tmp_path / "dye.tif", pixels, photometric="minisblack")
    warped = tifffile.imread(run(tmp_path / "frames.json", tmp_path / "dye.tif") / "dye.tif")
    assert np.array_equal(warped[0], pixels[0])
    assert np.array_equal(warped[1][:, 2:], pixels[1][:, :-2])
    assert np.array_equal(warped[2][:, :-5], pixels[2][:, 5:])
    warped = tifffile.imread(run(found, tmp_path / "dye.tif", "--overwrite") / "dye.tif")
    np.testing.assert_allclose(warped[2], expected(pixels[2]), atol=1.5)
    (tmp_path / "tracks.csv").write_text("frame,x,y\n2,10,4\n0,10,4\n")
    moved = (run(tmp_path / "frames.json", tmp_path / "tracks.csv") / "tracks.csv").read_text()
    assert moved == "frame,x,y\n2,5.0,4.0\n0,10.0,4.0\n"
    (tmp_path / "tracks.csv").write_text("frame,x,y\n3,10,4\n")
    run(tmp_path / "frames.json", tmp_path / "tracks.csv", "--overwrite", status=1)


def test_frames_that_are_partly_transparent_are_so_beyond_their_edge_too(tmp_path):
    shift = torch.eye(3, dtype=torch.float64)[None]
    shift[:, 0, 2] = 5
    Transform(shift, SIZE, SIZE).save(tmp_path / "found.json")
    frames = numbers((3, *SIZE, 4), np.uint8)
    frames[..., 3] = 255
    frames[1, 2:9, :, 3] = 0
    images = [Image.fromarray(frame) for frame in frames]
    images[0].save(tmp_path / "a.webp", save_all=True, append_images=images[1:], lossless=True)
    opaque = tifffile.imread(run(tmp_path / "found.json", tmp_path / "a.webp") / "a.tif")[..., 3]
    assert np.array_equal(opaque[:, :, 5:], frames[:, :, :-5, 3])
    assert not opaque[:, :, :4].any()


def test_an_image_of_another_frame_is_refused_and_nothing_is_replaced(found, tmp_path, capsys):
    Image.fromarray(numbers(TARGET, np.uint8)).save(tmp_path / "a.png")
    run(found, tmp_path / "a.png", status=1)
    assert "a.png is 61 x 43, and the transform is for 52 x 37" in capsys.readouterr().out
    run(found, tmp_path / "a.png", "--inverse")
    run(found, tmp_path / "a.png", "--inverse", status=1)
    assert "exists already" in capsys.readouterr().out
    assert (
        cli.main(["apply", str(found), str(tmp_path / "a.png"), "--inverse", "--out", str(tmp_path), "--overwrite"])
        == 1
    )
    assert "a.png is an input" in capsys.readouterr().out


def test_a_file_that_holds_no_transform_is_named(tmp_path, capsys):
    (tmp_path / "bad.json").write_text(json.dumps({"matrix": None}))
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "bad.json", tmp_path / "a.png")
    assert stopped.value.code == 2
    assert "bad.json holds no transform: matrix must be 3 x 3 numbers" in capsys.readouterr().err
