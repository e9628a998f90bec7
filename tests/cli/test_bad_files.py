"""Damaged files of all formats: each one's fault is that file's row, and nothing else is lost."""

import io
import json
import os
import random

import numpy as np
import pytest
import tifffile
from camera import photo
from PIL import Image, ImageFile

from lms_geometry import cli
from lms_geometry.cli import images
from lms_geometry.cli.images import open_frames
from lms_geometry.cli.inputs import InputError

QUICK = ["--motion", "translation", "--max-size", "48", "--steps", "4", "--min-score", "0"]


def encoded():
    """Small files of many formats, by their suffixes."""
    rng = np.random.default_rng(0)
    colour = Image.fromarray(rng.integers(0, 255, (21, 27, 3), np.uint8))
    files = {}
    for suffix, name in (
        ("png", "PNG"), ("jpg", "JPEG"), ("gif", "GIF"), ("bmp", "BMP"), ("ppm", "PPM"), ("tif", "TIFF"), ("webp", "WEBP"),
        ("tga", "TGA"), ("jp2", "JPEG2000"), ("pcx", "PCX"), ("ico", "ICO"), ("sgi", "SGI"), ("dds", "DDS"), ("qoi", "QOI"),
        ("avif", "AVIF"), ("icns", "ICNS"),
    ):  # fmt: skip
        file = io.BytesIO()
        (colour.convert("P") if name == "GIF" else colour).save(file, format=name)
        files[suffix] = file.getvalue()
    for suffix, options in (
        ("ome.tif", {"ome": True, "compression": "zlib"}),
        ("tiff", {"imagej": True}),
        ("btf", {"bigtiff": True, "tile": (16, 16)}),
    ):
        file = io.BytesIO()
        pixels = rng.integers(0, 4096, (3, 21, 27), np.uint16)
        tifffile.imwrite(file, pixels, photometric="minisblack", metadata={"axes": "TYX"}, **options)
        files[suffix] = file.getvalue()
    first, *rest = (Image.fromarray(rng.integers(0, 255, (21, 27), np.uint8)) for _ in range(3))
    for suffix, name in (("apng", "PNG"), ("lzw.tif", "TIFF")):
        file = io.BytesIO()
        options = {"compression": "tiff_lzw"} if name == "TIFF" else {}
        first.save(file, format=name, save_all=True, append_images=rest, **options)
        files[suffix] = file.getvalue()
    return files


def mutated(content, rng):
    """The content with some bytes changed, dropped or repeated, mostly near the beginning, where headers are."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 2, 4, 16))):
        place = rng.randrange(min(len(content), rng.choice((64, 512, len(content)))))
        action = rng.randrange(5)
        if action == 0:
            content[place] = rng.randrange(256)
        elif action == 1:
            content[place] ^= 1 << rng.randrange(8)
        elif action == 2:
            del content[place : place + rng.randrange(1, 64)]
        elif action == 3:
            content[place:place] = content[place : place + rng.randrange(1, 64)]
        else:
            content[place : place + 4] = rng.choice((b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff"))
        if len(content) < 2:
            break
    return bytes(content)


def read_all(path):
    """Read the first frames of a file, and say whether it could be done."""
    try:
        frames = open_frames(path)
        pictures = [frames[index] for index in range(min(len(frames), 3))]
    except InputError as error:
        return str(error)
    for picture in pictures:
        assert picture.pixels.ndim == 3
        assert picture.pixels.dtype.kind in "uif"
        assert picture.opaque is None or picture.opaque.shape == (1, *picture.size)
        assert picture.displayed().isfinite().all()
    return None


def test_a_mutated_file_is_read_or_its_fault_is_named(tmp_path):
    rng = random.Random(0)
    refused = 0
    for suffix, content in encoded().items():
        path = tmp_path / f"a.{suffix}"
        for _ in range(int(os.environ.get("MUTATED_FILES", "24"))):
            path.write_bytes(mutated(content, rng))
            fault = read_all(path)
            assert fault is None or fault.startswith(str(path))
            refused += fault is not None
    assert refused > 50


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_pages_that_run_in_a_circle_do_not_hang(tmp_path, compression):
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(0).integers(0, 255, (3, 21, 27), np.uint8)
    tifffile.imwrite(path, pixels, photometric="minisblack", metadata=None, compression=compression)
    with tifffile.TiffFile(path) as tiff:
        first, last = tiff.pages[0].offset, tiff.pages[2]
        after_last = last.offset + 2 + 12 * len(last.tags)
    content = bytearray(path.read_bytes())
    assert content[after_last : after_last + 4] == bytes(4)
    content[after_last : after_last + 4] = first.to_bytes(4, "little")
    path.write_bytes(content)
    read_all(path)


@pytest.mark.parametrize(
    "fault",
    [ValueError, NotImplementedError, RuntimeError, KeyError, IndexError, ZeroDivisionError, MemoryError, OSError],
)
def test_whatever_a_decoder_raises_is_that_files_row(tmp_path, monkeypatch, fault):
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in ("a.png", "b.png", "c.png"):
        photo().save(folder / name)
    load = ImageFile.ImageFile.load

    def failing(self):
        if getattr(self, "filename", "").endswith("b.png"):
            raise fault("deep inside")
        return load(self)

    monkeypatch.setattr(ImageFile.ImageFile, "load", failing)
    target = tmp_path / "target.png"
    photo().save(target)
    assert cli.main(["register", str(folder), str(target), "--out", str(tmp_path / "out"), *QUICK]) == 1
    rows = json.loads((tmp_path / "out" / "registrations.json").read_text())
    assert [row["good"] for row in rows] == [True, False, True]
    assert f"{folder / 'b.png'} cannot be read" in rows[1]["error"]
    assert "deep inside" in rows[1]["error"]


def test_a_fault_of_aligning_is_that_files_row(tmp_path, monkeypatch):
    folder = tmp_path / "sources"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        photo().save(folder / name)
    photo().save(tmp_path / "target.png")
    writing = images.write_pictures
    calls = []

    def full(results, stem, *rest):
        calls.append(stem)
        if stem == "a.png/overlay":
            raise OSError(28, "No space left on device")
        return writing(results, stem, *rest)

    monkeypatch.setattr("lms_geometry.cli.register.write_pictures", full)
    arguments = ["register", str(folder), str(tmp_path / "target.png"), "--out", str(tmp_path / "out"), *QUICK]
    assert cli.main(arguments) == 1
    rows = json.loads((tmp_path / "out" / "registrations.json").read_text())
    assert "No space left on device" in rows[0]["error"]
    assert rows[1]["good"] is True


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_does_not_hang(tmp_path, capsys):
    folder = tmp_path / "sources"
    folder.mkdir()
    os.mkfifo(folder / "a.png")
    (folder / "b.png").symlink_to(folder / "nothing.png")
    photo().save(tmp_path / "target.png")
    arguments = ["register", str(folder), str(tmp_path / "target.png"), "--out", str(tmp_path / "out"), *QUICK]
    assert cli.main(arguments) == 1
    pipe, link = json.loads((tmp_path / "out" / "registrations.json").read_text())
    assert pipe["error"] == f"{folder / 'a.png'} cannot be read: it is not a regular file"
    assert link["error"] == f"{folder / 'b.png'} does not exist"
    for command in (
        ["register", str(folder / "a.png"), str(tmp_path / "target.png")],
        ["register", str(tmp_path / "target.png"), str(folder / "a.png")],
        ["stack", str(folder / "a.png")],
        ["pairs", str(folder / "a.png")],
        ["apply", str(folder / "a.png"), str(tmp_path / "target.png")],
    ):
        with pytest.raises(SystemExit) as stopped:
            cli.main([*command, "--out", str(tmp_path / "other")])
        assert stopped.value.code == 2
        assert "it is not a regular file" in capsys.readouterr().err
