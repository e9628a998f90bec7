"""Results never replace an input, another result, or anything outside ``--out``; names cannot order the terminal about."""

import json
import os

import pytest
import torch
from camera import photo

from lms_geometry import Transform, cli
from lms_geometry.cli.console import printable
from lms_geometry.cli.inputs import InputError
from lms_geometry.cli.results import Results

QUICK = ["--motion", "translation", "--max-size", "48", "--steps", "4", "--min-score", "0"]


@pytest.fixture
def folder(tmp_path):
    """A folder ``photos`` with a few pictures, and one of them beside it."""
    (tmp_path / "photos").mkdir()
    for name in ("aligned.png", "b.png"):
        photo().save(tmp_path / "photos" / name)
    photo().save(tmp_path / "target.png")
    return tmp_path


def register(folder, source, *options):
    return cli.main(["register", str(folder / source), str(folder / "target.png"), *QUICK, *options])


def error_of(capsys, folder, source, *options):
    with pytest.raises(SystemExit) as stopped:
        register(folder, source, *options)
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_an_input_is_never_written_over(folder, capsys, overwrite):
    before = (folder / "photos" / "aligned.png").read_bytes()
    error = error_of(capsys, folder, "photos/aligned.png", "--out", str(folder / "photos"), *overwrite)
    assert f"{folder / 'photos' / 'aligned.png'} is an input: choose another --out" in error
    os.link(folder / "target.png", folder / "photos" / "overlay.png")  # another name of the target
    error = error_of(capsys, folder, "photos/b.png", "--out", str(folder / "photos"), *overwrite)
    assert "aligned.png exists already" in error or "overlay.png is an input" in error
    assert (folder / "photos" / "aligned.png").read_bytes() == before
    error = error_of(capsys, folder, "photos", "--out", str(folder / "photos"), *overwrite)
    assert f"{folder / 'photos' / 'aligned.png'} is an input: choose another --out" in error


def test_a_result_that_is_there_is_replaced_only_when_asked(folder, capsys):
    out = folder / "out"
    assert register(folder, "photos/b.png", "--out", str(out)) == 0
    before = (out / "registration.json").read_bytes()
    error = error_of(capsys, folder, "photos/b.png", "--out", str(out))
    assert f"{out / 'aligned.png'} exists already: choose another --out, or replace it by --overwrite" in error
    assert (out / "registration.json").read_bytes() == before
    assert register(folder, "photos/aligned.png", "--out", str(out), "--overwrite") == 0
    assert (out / "registration.json").read_bytes() != before
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]
    assert register(folder, "photos", "--out", str(folder / "all")) == 0
    before = (folder / "all" / "registrations.json").read_bytes()
    assert "registrations.json exists already" in error_of(capsys, folder, "photos", "--out", str(folder / "all"))
    assert register(folder, "photos", "--out", str(folder / "all"), "--overwrite") == 0
    assert json.loads((folder / "all" / "registrations.json").read_bytes()) == json.loads(before)


def test_links_do_not_lead_out_of_the_folder(folder, capsys):
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious.png").write_text("precious")
    out = folder / "out"
    out.mkdir()
    (out / "b.png").symlink_to(elsewhere, target_is_directory=True)
    assert "leads out of" in error_of(capsys, folder, "photos", "--out", str(out), "--overwrite")
    single = folder / "single"
    single.mkdir()
    (single / "overlay.png").symlink_to(elsewhere / "precious.png")
    (single / "checkerboard.png").symlink_to(elsewhere / "new.png")
    assert "overlay.png exists already" in error_of(capsys, folder, "photos/b.png", "--out", str(single))
    assert register(folder, "photos/b.png", "--out", str(single), "--overwrite") == 0
    assert (elsewhere / "precious.png").read_text() == "precious"
    assert [path.name for path in elsewhere.iterdir()] == ["precious.png"]
    assert not (single / "overlay.png").is_symlink()
    (folder / "link").symlink_to(elsewhere)  # the folder itself may be one: the user named it
    assert register(folder, "photos/b.png", "--out", str(folder / "link")) == 0
    assert (elsewhere / "overlay.png").exists()


def test_a_folder_or_a_file_in_the_way_is_named(folder, capsys):
    (folder / "file").write_text("here first")
    error = error_of(capsys, folder, "photos/b.png", "--out", str(folder / "file" / "deeper"))
    assert f"{folder / 'file'} is a file, not a folder: choose another --out" in error
    (folder / "out" / "overlay.png").mkdir(parents=True)
    error = error_of(capsys, folder, "photos/b.png", "--out", str(folder / "out"), "--overwrite")
    assert "overlay.png is a folder: choose another --out" in error


def test_a_file_is_there_once_it_is_whole(tmp_path):
    Results(tmp_path, [], overwrite=False).write_text("a.txt", "old")
    results = Results(tmp_path, [], overwrite=True)

    def write_half():
        with results.open("a.txt") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
    with pytest.raises(InputError, match="leads out of"):
        results.check("../a.txt")
    results.write_json("a.json", {"score": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"score": None}


def test_a_run_does_not_replace_its_own_results(folder, capsys):
    (folder / "more").mkdir()
    for name in ("photos/x.png", "more/x.png", "photos/y.png", "photos/y.bmp"):
        photo().save(folder / name)
    Transform(torch.eye(3)[None]).save(folder / "found.json")
    images = [
        str(folder / name) for name in ("photos/x.png", "more/x.png", "photos/y.png", "photos/y.bmp", "more/x.png")
    ]
    out = folder / "out"
    for _ in range(2):  # an older result is replaced
        assert cli.main(["apply", str(folder / "found.json"), *images, "--out", str(out), "--overwrite"]) == 1
        printed = capsys.readouterr().out
        for name in ("x.png", "y.png"):
            way_out = "rename one of its inputs, or choose another --out for it"
            assert f"FAILED: {out / name} is a result of this run already: {way_out}" in printed
            assert f"{folder / 'photos' / name} -> {out / name}" in printed
        assert printed.count("FAILED") == 3


def test_a_result_is_the_same_by_all_its_names(tmp_path):
    results = Results(tmp_path, [], overwrite=True)
    results.write_text("a/b.txt", "first")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    for name in ("a/b.txt", "./a/b.txt", "a/../a/b.txt", "link/b.txt"):
        with pytest.raises(InputError, match="is a result of this run already"):
            results.write_text(name, "second")
    results.remove("a/b.txt")
    assert (tmp_path / "a" / "b.txt").read_text() == "first"


def test_names_reach_the_terminal_without_escape_sequences(folder, capsys):
    name = "evil\x1b]0;owned\x07\x9b31m\u202e.png"
    (folder / "photos" / name).write_bytes(b"no image")
    undecodable = os.fsdecode(b"\xff\xfe.png")
    (folder / "photos" / undecodable).write_bytes(b"no image")
    (folder / "photos" / "skipped\x1b[2J").write_bytes(b"")
    assert register(folder, "photos", "--out", str(folder / "out")) == 1
    printed = capsys.readouterr()
    for text in (printed.out, printed.err.replace("\r", "").replace("\x1b[A", "")):
        assert not set(text) & {"\x1b", "\x07", "\x9b", "\u202e", "\udcff"}
    assert "evil\\x1b]0;owned\\x07\\x9b31m\\u202e.png" in printed.out
    assert "\\udcff\\udcfe.png" in printed.out
    assert "skipped\\x1b[2J" in printed.out
    error = error_of(capsys, folder, f"photos/{name}", "--out", str(folder / "other"))
    assert "\x1b" not in error
    with pytest.raises(SystemExit):
        cli.main(["register", "a", "b", "--nothing\x1b[31m"])
    assert "\x1b" not in capsys.readouterr().err


def test_printable_text_is_left_as_it_is():
    assert printable("Größe 図 a b") == "Größe 図 a b"
    assert printable("a\ngood.png: good\r") == "a\\ngood.png: good\\r"


def test_the_demo_does_not_replace_a_picture(tmp_path, capsys):
    (tmp_path / "demo.png").write_text("mine")
    with pytest.raises(SystemExit):
        cli.main(["demo", "--out", str(tmp_path)])
    assert "demo.png exists already" in capsys.readouterr().err
    assert (tmp_path / "demo.png").read_text() == "mine"
