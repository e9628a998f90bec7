"""``register`` on files of all kinds: what comes out is what went in, in the target's frame."""

import json

import numpy as np
import pytest
import tifffile
import torch
from kornia.geometry import warp_perspective
from PIL import Image
from settings import KORNIA_ROUNDING

from lms_geometry import Transform, cli
from lms_geometry.cli.picture import Picture
from lms_geometry.cli.warp import warp_label_picture, warp_picture

QUICK = ["--motion", "translation", "--max-size", "96", "--steps", "30"]
SHIFT = torch.tensor([[1.0, 0.0, -9.0], [0.0, 1.0, 5.0], [0.0, 0.0, 1.0]])


def run(folder, source, target, *options, status=0):
    arguments = ["register", str(source), str(target), "--out", str(folder / "out"), *QUICK, *options]
    assert cli.main(arguments) == status
    return json.loads((folder / "out" / "registration.json").read_text())


def assert_found(result):
    torch.testing.assert_close(torch.tensor(result["matrix"]), SHIFT, rtol=0, atol=0.2)
    assert result["good"] is True


def test_grey_and_colour_are_aligned(grey, tmp_path):
    source, target = ((255 * image).astype(np.uint8) for image in grey)
    Image.fromarray(source).save(tmp_path / "grey.png")
    Image.fromarray(np.dstack((target, target // 2, target // 3))).save(tmp_path / "colour.png")
    assert_found(run(tmp_path, tmp_path / "grey.png", tmp_path / "colour.png"))
    aligned = np.asarray(Image.open(tmp_path / "out" / "aligned.png"))
    assert aligned.shape == target.shape
    assert np.abs(aligned[:-6, :-10].astype(int) - target[:-6, :-10])[6:].mean() < 6


@pytest.mark.parametrize(
    ("dtype", "most"), [(np.uint16, 4095), (np.uint16, 65535), (np.int32, 1e6), (np.float32, 1), (np.float32, 3e4)]
)
def test_numbers_come_out_in_their_type_and_range(grey, tmp_path, dtype, most):
    for name, image in zip(("source.tif", "target.tif"), grey, strict=True):
        tifffile.imwrite(tmp_path / name, (image * most).astype(dtype))
    assert_found(run(tmp_path, tmp_path / "source.tif", tmp_path / "target.tif"))
    aligned = tifffile.imread(tmp_path / "out" / "aligned.tif")
    assert aligned.dtype == dtype
    assert np.abs(aligned / most - grey[1])[6:, :-10].mean() < 0.02
    overlay = np.asarray(Image.open(tmp_path / "out" / "overlay.png"))
    assert 60 < overlay[6:, :-10].mean() < 200
    assert np.ptp(overlay) == 255


def test_what_is_not_a_number_is_left_out_and_stays_so(grey, tmp_path):
    source, target = (image.copy() for image in grey)
    source[30:60, 40:70] = np.nan
    tifffile.imwrite(tmp_path / "source.tif", source)
    tifffile.imwrite(tmp_path / "target.tif", target)
    assert_found(run(tmp_path, tmp_path / "source.tif", tmp_path / "target.tif"))
    aligned = tifffile.imread(tmp_path / "out" / "aligned.tif")
    expected = np.zeros(aligned.shape, bool)
    expected[35:65, 31:61] = True
    assert (np.isnan(aligned) != expected).sum() <= 62  # a pixel along two of the edges


def test_a_stack_is_aligned_frame_by_frame(grey, tmp_path):
    source, target = ((255 * image).astype(np.uint8) for image in grey)
    tifffile.imwrite(tmp_path / "stack.tif", np.stack((target, source, source)), photometric="minisblack")
    Image.fromarray(target).save(tmp_path / "target.png")
    result = run(tmp_path, tmp_path / "stack.tif", tmp_path / "target.png")
    matrices = torch.tensor(result["matrix"])
    expected = torch.stack((torch.eye(3), SHIFT, SHIFT))
    torch.testing.assert_close(matrices, expected, rtol=0, atol=0.2)
    assert tifffile.imread(tmp_path / "out" / "aligned.tif").shape == (3, 89, 101)


def test_what_an_older_run_left_and_the_new_one_does_not_replace_is_removed(grey, tmp_path):
    source, target = ((255 * image).astype(np.uint8) for image in grey)
    Image.fromarray(source).save(tmp_path / "source.png")
    Image.fromarray(target).save(tmp_path / "target.png")
    tifffile.imwrite(tmp_path / "source.tif", source)
    tifffile.imwrite(tmp_path / "stack.tif", np.stack((source, source)), photometric="minisblack")
    out = tmp_path / "out"
    names = {"aligned.png", "overlay.png", "checkerboard.png", "registration.json"}

    def written(source, *options):
        run(tmp_path, tmp_path / source, tmp_path / "target.png", "--min-score", "0", *options)
        return {path.name for path in out.iterdir()}

    assert written("source.png") == names | {"transform.tfm"}
    for name in ("aligned.txt", "aligned.ome.tif"):  # which are not results of the run before
        (out / name).write_text("mine")
    names |= {"aligned.txt", "aligned.ome.tif"}
    homography = ["--motion", "homography", "--overwrite"]
    result = run(tmp_path, tmp_path / "source.png", tmp_path / "target.png", "--min-score", "0", *homography)
    assert "transform.tfm" not in result["files"]
    assert {path.name for path in out.iterdir()} == names
    names = names - {"aligned.png"} | {"aligned.tif"}
    assert written("source.tif", "--overwrite") == names | {"transform.tfm"}
    assert written("stack.tif", "--overwrite") == names - {"checkerboard.png"}
    assert (out / "aligned.ome.tif").read_text() == "mine"
    (out / "transform.tfm").write_text("of a run that was cut short")
    assert written("source.tif", *homography) == names


def test_an_input_among_older_results_is_not_removed(grey, tmp_path):
    for name, image in zip(("source.tif", "target.tif"), grey, strict=True):
        tifffile.imwrite(tmp_path / name, image)
    run(tmp_path, tmp_path / "source.tif", tmp_path / "target.tif")
    out = tmp_path / "out"
    before = (out / "aligned.tif").read_bytes()
    Image.fromarray((255 * grey[0]).astype(np.uint8)).save(tmp_path / "source.png")
    run(tmp_path, tmp_path / "source.png", out / "aligned.tif", "--overwrite")
    assert (out / "aligned.tif").read_bytes() == before
    assert (out / "aligned.png").exists()


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_blank_image_is_an_error_and_not_a_perfect_score(grey, tmp_path, capsys, side):
    Image.fromarray((255 * grey[0]).astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((89, 101), 9, np.uint8)).save(tmp_path / "blank.png")
    files = ["blank.png", "a.png"] if side == "source" else ["a.png", "blank.png"]
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path, *(tmp_path / name for name in files))
    assert stopped.value.code == 2
    assert "blank.png is blank: all its pixels are 9" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_mask_on_either_side_leaves_out_what_it_hides(grey, tmp_path):
    stamp = np.kron(np.random.default_rng(0).integers(0, 2, (14, 17)), np.full((4, 4), 255)).astype(np.uint8)
    for name, image in zip(("source", "target"), grey, strict=True):
        image = (255 * image).astype(np.uint8)
        mask = np.full(image.shape, 255, np.uint8)
        mask[:56, :68] = 0
        image[:56, :68] = stamp  # as a camera puts the date, at one place in both
        Image.fromarray(image).save(tmp_path / f"{name}.png")
        Image.fromarray(mask).save(tmp_path / f"{name}_mask.png")
    masks = [part for side in ("source", "target") for part in (f"--{side}-mask", str(tmp_path / f"{side}_mask.png"))]
    masked = run(tmp_path, tmp_path / "source.png", tmp_path / "target.png", *masks)
    assert_found(masked)
    plain = run(tmp_path, tmp_path / "source.png", tmp_path / "target.png", "--overwrite", "--min-score", "0")
    assert abs(plain["matrix"][0][2]) < 1


def test_a_mask_of_another_size_or_that_hides_all_is_refused(grey, tmp_path, capsys):
    Image.fromarray((255 * grey[0]).astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.ones((7, 9), np.uint8)).save(tmp_path / "small.png")
    Image.fromarray(np.zeros((89, 101), np.uint8)).save(tmp_path / "none.png")
    for name, message in (
        ("small", "must have its image's size, 101 x 89, got 9 x 7"),
        ("none", "wholly hidden by its mask"),
    ):
        with pytest.raises(SystemExit):
            run(tmp_path, tmp_path / "a.png", tmp_path / "a.png", "--source-mask", str(tmp_path / f"{name}.png"))
        assert message in capsys.readouterr().err


def test_a_folder_takes_all_formats_and_names_what_it_leaves_out(grey, tmp_path, capsys):
    folder = tmp_path / "sources"
    folder.mkdir()
    image = Image.fromarray((255 * grey[0]).astype(np.uint8))
    for suffix in ("gif", "jp2", "ppm"):
        image.save(folder / f"a.{suffix}")
    (folder / "notes.txt").write_text("not an image")
    Image.fromarray((255 * grey[1]).astype(np.uint8)).save(tmp_path / "target.png")
    assert (
        cli.main(["register", str(folder), str(tmp_path / "target.png"), "--out", str(tmp_path / "out"), *QUICK]) == 0
    )
    rows = json.loads((tmp_path / "out" / "registrations.json").read_text())
    assert [row["source"].rpartition(".")[2] for row in rows] == ["gif", "jp2", "ppm"]
    for row in rows:
        assert_found(row)
    assert "left out, no images by their names: notes.txt" in capsys.readouterr().out


def test_version_and_device(grey, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("lms-geometry 0.")
    Image.fromarray((255 * grey[0]).astype(np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(SystemExit):
        run(tmp_path, tmp_path / "a.png", tmp_path / "a.png", "--device", "nowhere")
    assert "--device nowhere cannot be used" in capsys.readouterr().err


def test_a_picture_is_warped_as_kornia_does_it_and_labels_by_the_nearest():
    rng = np.random.default_rng(0)
    matrix = torch.tensor([[1.5, -0.3, 2.0], [0.25, 1.4, -3.0], [1e-3, 2e-3, 1.0]], dtype=torch.float64)
    tolerances = {np.uint8: 1.0, np.uint16: 1.0, np.float32: 255 * 1e-5, np.float64: 255 * KORNIA_ROUNDING}
    for dtype, tolerance in tolerances.items():
        pixels = rng.uniform(0, 255, (2, 37, 52)).astype(dtype)
        warped = warp_picture(Picture(pixels), matrix, (41, 33)).pixels
        assert warped.dtype == dtype
        image = torch.from_numpy(pixels.astype(np.float64))[None]
        expected = warp_perspective(image, matrix[None], (41, 33))[0].numpy()
        np.testing.assert_allclose(warped, expected, atol=tolerance)
    labels = rng.integers(0, 2**62, (1, 37, 52))
    warped = warp_label_picture(Picture(labels), matrix, (41, 33)).pixels
    inverse = torch.linalg.inv(matrix)
    for y in range(41):
        for x in range(33):
            a, b, w = (inverse @ torch.tensor([x, y, 1.0], dtype=torch.float64)).tolist()
            column, row = round(a / w), round(b / w)
            inside = 0 <= column < 52 and 0 <= row < 37
            assert warped[0, y, x] == (labels[0, row, column] if inside else 0)


def test_a_picture_that_shrinks_is_averaged_and_transparency_does_not_darken_it():
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 160, 200)).astype(np.float32)
    scale = torch.diag(torch.tensor([0.125, 0.125, 1.0]))
    warped = warp_picture(Picture(pixels), scale, (20, 25)).pixels
    assert warped[:, 2:-2, 2:-2].std() < 20  # of white noise of deviation 74, which bilinear reading keeps
    opaque = np.ones((1, 40, 50), np.float32)
    opaque[:, 10:25, 20:35] = 0
    bright = np.where(opaque > 0, 200, 7).astype(np.uint8)
    half = torch.tensor([[0.5, 0.0, 0.25], [0.0, 0.5, -0.25], [0.0, 0.0, 1.0]])
    shown = warp_picture(Picture(bright, opaque), half, (20, 25))
    assert (shown.pixels[shown.opaque > 0.01] == 200).all()
    assert shown.opaque.min() == 0


@pytest.mark.parametrize(("scale", "kept"), [(1.0, True), (0.5, False)])
def test_the_size_of_a_pixel_is_kept_where_it_is_still_so(tmp_path, scale, kept):
    metadata = {"axes": "YX", "PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
    tifffile.imwrite(tmp_path / "a.ome.tif", np.eye(37, 52, dtype=np.uint16), ome=True, metadata=metadata)
    Transform(torch.diag(torch.tensor([scale, scale, 1.0]))[None]).save(tmp_path / "found.json")
    assert (
        cli.main(["apply", str(tmp_path / "found.json"), str(tmp_path / "a.ome.tif"), "--out", str(tmp_path / "o")])
        == 0
    )
    with tifffile.TiffFile(tmp_path / "o" / "a.ome.tif") as tiff:
        assert ("PhysicalSizeX" in tiff.ome_metadata) == kept


def test_the_masks_of_a_folder_have_the_names_of_its_images(grey, tmp_path):
    for folder in ("sources", "masks"):
        (tmp_path / folder).mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray((255 * grey[0]).astype(np.uint8)).save(tmp_path / "sources" / name)
    Image.fromarray(np.full(grey[0].shape, 255, np.uint8)).save(tmp_path / "masks" / "b.png")
    Image.fromarray((255 * grey[1]).astype(np.uint8)).save(tmp_path / "target.png")
    masks = ["--source-mask", str(tmp_path / "masks")]
    arguments = ["register", str(tmp_path / "sources"), str(tmp_path / "target.png"), "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, *QUICK, *masks]) == 1
    without, masked = json.loads((tmp_path / "out" / "registrations.json").read_text())
    assert without["error"] == f"{tmp_path / 'masks' / 'a.png'} does not exist"
    assert_found(masked)
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--source-mask", str(tmp_path / "target.png")])
