"""Files are read, and written again, as they are: channels, type of numbers, frames, transparency."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from lms_geometry.cli.images import open_frames, read_picture, suffixes, write_pictures
from lms_geometry.cli.inputs import InputError, list_images
from lms_geometry.cli.results import Results

RANDOM = np.random.default_rng(0)


def numbers(shape, dtype):
    """Numbers over the range of a type, or, for floats, about 0."""
    if np.dtype(dtype).kind == "f":
        return RANDOM.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return RANDOM.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def again(path, folder):
    """The file written from what was read of it, and what was read."""
    frames = open_frames(path)
    pictures = [frames[i] for i in range(len(frames))]
    return folder / "out" / write_pictures(Results(folder / "out", [path], False), "a", pictures, len(frames)), pictures


@pytest.mark.parametrize(
    ("mode", "shape", "dtype", "suffix"),
    [
        ("L", (9, 13), np.uint8, ".png"),
        ("I;16", (9, 13), np.uint16, ".png"),
        ("RGB", (9, 13, 3), np.uint8, ".png"),
        ("RGBA", (9, 13, 4), np.uint8, ".png"),
        ("LA", (9, 13, 2), np.uint8, ".png"),
    ],
)
def test_a_picture_comes_out_as_it_went_in(tmp_path, mode, shape, dtype, suffix):
    pixels = numbers(shape, dtype)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    path, (picture,) = again(tmp_path / "a.png", tmp_path)
    assert path.suffix == suffix
    assert len(picture.pixels) == (1 if mode in ("L", "LA", "I;16") else 3)
    with Image.open(path) as image:
        assert image.mode == mode
        assert np.array_equal(np.asarray(image), pixels)


def test_colours_of_16_bits_keep_them(tmp_path):
    cv2 = pytest.importorskip("cv2")
    pixels = numbers((9, 13, 3), np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), pixels[..., ::-1])
    path, _ = again(tmp_path / "a.png", tmp_path)
    assert np.array_equal(tifffile.imread(path), pixels)
    for suffix in ("ppm", "jp2"):
        cv2.imwrite(str(tmp_path / f"b.{suffix}"), numbers((65, 67, 3), np.uint16))
        with pytest.raises(InputError, match=rf"b\.{suffix} has colours of more than 8 bits"):
            read_picture(tmp_path / f"b.{suffix}")


def test_the_profile_of_colours_is_kept_where_they_are(tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = Image.fromarray(numbers((9, 13, 3), np.uint8))
    image.save(tmp_path / "a.png", icc_profile=profile)
    image.convert("CMYK").save(tmp_path / "b.jpg", icc_profile=profile)
    path, _ = again(tmp_path / "a.png", tmp_path)
    with Image.open(path) as written:
        assert written.info["icc_profile"] == profile
    assert read_picture(tmp_path / "b.jpg").layout.icc_profile is None


def test_a_grey_palette_and_a_grey_ppm_have_one_channel(tmp_path):
    grey = numbers((9, 13), np.uint8)
    Image.fromarray(grey).convert("P").save(tmp_path / "a.gif")
    assert np.array_equal(read_picture(tmp_path / "a.gif").pixels, grey[None])
    colour = Image.fromarray(numbers((9, 13, 3), np.uint8)).quantize(7)
    colour.save(tmp_path / "b.png")
    expected = np.asarray(colour.convert("RGB"))
    assert np.array_equal(read_picture(tmp_path / "b.png").pixels.transpose(1, 2, 0), expected)
    deep = numbers((9, 13), np.uint16)
    Image.fromarray(deep).save(tmp_path / "c.pgm")
    read = read_picture(tmp_path / "c.pgm").pixels
    assert read.dtype == np.uint16
    assert np.array_equal(read, deep[None])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("compression", "byteorder"), [(None, "<"), (None, ">"), ("zlib", ">")])
def test_a_tiff_comes_out_as_it_went_in(tmp_path, dtype, compression, byteorder):
    pixels = numbers((9, 13), dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression=compression, byteorder=byteorder)
    path, (picture,) = again(tmp_path / "a.tif", tmp_path)
    assert picture.pixels.dtype == dtype
    assert np.array_equal(tifffile.imread(path), pixels)
    assert tifffile.imread(path).dtype == dtype


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize(
    ("axes", "shape", "count", "channels", "expected"),
    [
        ("TYX", (5, 9, 13), 5, 1, "TYX"),
        ("TZCYX", (4, 2, 3, 9, 13), 4, 6, "TZCYX"),
        ("CTYX", (3, 4, 9, 13), 4, 3, "TCYX"),
        ("ZYX", (5, 9, 13), 5, 1, "ZYX"),
        ("CYX", (5, 9, 13), 1, 5, "CYX"),
        ("TYXS", (4, 9, 13, 3), 4, 3, "TYXS"),
    ],
)
def test_an_ome_tiff_is_a_stack_with_its_axes(tmp_path, compression, axes, shape, count, channels, expected):
    pixels = numbers(shape, np.uint16)
    metadata = {"axes": axes, "PhysicalSizeX": 0.25, "PhysicalSizeXUnit": "µm"}
    if "C" in axes:
        metadata["Channel"] = {"Name": [f"dye {i}" for i in range(shape[axes.index("C")])]}
    photometric = "rgb" if "S" in axes else "minisblack"
    tifffile.imwrite(
        tmp_path / "a.ome.tif", pixels, ome=True, metadata=metadata, compression=compression, photometric=photometric
    )
    path, pictures = again(tmp_path / "a.ome.tif", tmp_path)
    assert path.name == "a.ome.tif"
    assert len(pictures) == count
    assert all(picture.pixels.shape == (channels, 9, 13) for picture in pictures)
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_ome
        assert tiff.series[0].axes == expected
        assert 'PhysicalSizeX="0.25"' in tiff.ome_metadata
        assert tiff.ome_metadata.count('Name="dye') == ("C" in axes) * channels // (2 if "Z" in axes else 1)
        order = [axes.index(axis) for axis in expected]
        assert np.array_equal(tiff.asarray(), pixels.transpose(order))


def test_a_stack_of_imagej_stays_one(tmp_path):
    pixels = numbers((4, 2, 9, 13), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, metadata={"axes": "TCYX"})
    path, pictures = again(tmp_path / "a.tif", tmp_path)
    assert len(pictures) == 4
    with tifffile.TiffFile(path) as tiff:
        assert tiff.is_imagej
        assert tiff.series[0].axes == "TCYX"
        assert np.array_equal(tiff.asarray(), pixels)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_pages_that_tifffile_cannot_unpack_are_read_by_pillow(tmp_path, dtype):
    pixels = numbers((3, 9, 13), dtype)
    first, *rest = map(Image.fromarray, pixels)
    first.save(tmp_path / "a.tif", compression="tiff_lzw", save_all=True, append_images=rest)
    path, pictures = again(tmp_path / "a.tif", tmp_path)
    assert len(pictures) == 3
    assert np.array_equal(tifffile.imread(path), pixels)


def test_colours_of_a_tiff_that_are_stored_otherwise_are_read_by_pillow(tmp_path):
    image = Image.fromarray(numbers((9, 13, 3), np.uint8))
    for mode in ("P", "CMYK", "1"):
        image.convert(mode).save(tmp_path / f"{mode}.tif")
        expected = np.asarray(image.convert(mode).convert("L" if mode == "1" else "RGB"))
        read = read_picture(tmp_path / f"{mode}.tif").pixels
        assert np.array_equal(read.transpose(1, 2, 0).squeeze(), expected), mode


def test_a_transparent_tiff_comes_out_transparent(tmp_path):
    pixels = numbers((9, 13, 4), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extrasamples=["unassalpha"])
    path, (picture,) = again(tmp_path / "a.tif", tmp_path)
    np.testing.assert_allclose(picture.opaque[0], pixels[..., 3] / 65535, atol=1e-6)
    assert picture.pixels.shape == (3, 9, 13)
    written = tifffile.imread(path)
    assert np.array_equal(written[..., :3], pixels[..., :3])
    assert np.abs(written[..., 3].astype(int) - pixels[..., 3]).max() <= 1


@pytest.mark.parametrize("first", [0, 1, 2])
@pytest.mark.parametrize("name", ["a.webp", "a.png", "a.tif", "packed.tif"])
def test_frames_have_an_alpha_channel_if_one_of_them_is_transparent(tmp_path, name, first):
    frames = numbers((3, 9, 13, 4), np.uint8)
    frames[..., 3] = 255
    frames[first, 2:5, :, 3] = 0
    if name.endswith(".tif"):
        packed = {"compression": "zlib"} if name == "packed.tif" else {}
        tifffile.imwrite(tmp_path / name, frames, photometric="rgb", extrasamples=["unassalpha"], **packed)
    else:
        images = [Image.fromarray(frame) for frame in frames]
        images[0].save(tmp_path / name, save_all=True, append_images=images[1:], lossless=True)
    path, _ = again(tmp_path / name, tmp_path)
    written = tifffile.imread(path)
    assert written.shape == frames.shape
    assert np.array_equal(written[..., 3], frames[..., 3])
    shown = frames[..., 3] > 0
    assert np.array_equal(written[shown], frames[shown])


def test_opaque_frames_have_no_alpha_channel(tmp_path):
    frames = numbers((3, 9, 13, 4), np.uint8)
    frames[..., 3] = 255
    tifffile.imwrite(tmp_path / "a.tif", frames, photometric="rgb", extrasamples=["unassalpha"])
    path, _ = again(tmp_path / "a.tif", tmp_path)
    assert np.array_equal(tifffile.imread(path), frames[..., :3])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_and_tiffs_are_read_upright(tmp_path, orientation):
    pixels = numbers((4, 7, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    turned = {
        1: pixels,
        2: np.fliplr(pixels),
        3: np.rot90(pixels, 2),
        4: np.flipud(pixels),
        5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1),
        7: np.rot90(pixels, 2).transpose(1, 0, 2),
        8: np.rot90(pixels),
    }[orientation]
    for name in ("a.png", "a.tif"):
        assert np.array_equal(read_picture(tmp_path / name).pixels.transpose(1, 2, 0), turned), name


def test_a_tiff_of_images_of_unlike_shapes_is_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for size in ((9, 13), (8, 8)):
            writer.write(numbers(size, np.uint8), metadata=None)
    with pytest.raises(InputError, match=r"a\.tif holds 2 sets of images of unlike shapes"):
        open_frames(tmp_path / "a.tif")


def test_an_animation_is_a_stack_and_no_single_picture(tmp_path):
    first, *rest = (Image.fromarray(numbers((9, 13, 3), np.uint8)) for _ in range(3))
    first.save(tmp_path / "a.png", save_all=True, append_images=rest)
    frames = open_frames(tmp_path / "a.png")
    assert len(frames) == 3
    assert np.array_equal(frames[2].pixels.transpose(1, 2, 0), np.asarray(rest[1]))
    with pytest.raises(InputError, match=r"a\.png is a stack of 3 frames: lms-geometry stack aligns such"):
        read_picture(tmp_path / "a.png")


def test_a_png_under_the_name_of_a_tiff_is_read(tmp_path):
    pixels = numbers((9, 13), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", format="PNG")
    assert np.array_equal(read_picture(tmp_path / "a.tif").pixels[0], pixels)


@pytest.mark.parametrize("suffix", [".gif", ".jp2", ".ppm", ".bmp", ".webp", ".tga", ".pgm", ".btf"])
def test_a_folder_lists_all_that_can_be_read_and_names_the_rest(tmp_path, suffix):
    assert suffix in suffixes()
    for name in ("10", "9", "b"):
        (tmp_path / f"{name}{suffix}").touch()
    for name in ("notes.txt", ".hidden.png"):
        (tmp_path / name).touch()
    (tmp_path / "folder.png").mkdir()
    taken, skipped = list_images(tmp_path)
    assert [path.stem for path in taken] == ["9", "10", "b"]
    assert sorted(skipped) == [".hidden.png", "folder.png", "notes.txt"]


def test_a_picture_to_be_compared_is_of_any_range_and_not_blank(tmp_path):
    pixels = numbers((9, 13), np.float32) * 1e6
    pixels[3, 4] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    image, mask = read_picture(tmp_path / "a.tif").comparable()
    most = np.nanmax(np.abs(pixels))
    assert image.abs().max() == 1
    assert image[0, 0, 3, 4] == 0
    assert mask.sum() == 9 * 13 - 1
    assert mask[0, 0, 3, 4] == 0
    shown = torch.from_numpy(pixels)[mask[0, 0] > 0] / most
    torch.testing.assert_close(image[0, 0][mask[0, 0] > 0], shown.float())
    tifffile.imwrite(tmp_path / "b.tif", np.full((9, 13), 7, np.uint8))
    with pytest.raises(InputError, match="is blank: all its pixels are 7"):
        read_picture(tmp_path / "b.tif").comparable()


def test_12_bits_are_shown_by_their_own_range(tmp_path):
    pixels = RANDOM.integers(1000, 4096, (90, 130), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    shown = read_picture(tmp_path / "a.tif").displayed()
    assert shown.shape == (1, 3, 90, 130)
    assert 0.4 < shown.mean() < 0.6
    assert (shown.min(), shown.max()) == (0, 1)
