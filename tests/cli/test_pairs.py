"""``pairs``: many pairs of a table, in runs that go on where they ended, and by the workers of Ray."""

import csv
import json
import sys

import numpy as np
import pytest
from PIL import Image

from lms_geometry import cli
from lms_geometry.cli import pairs as pairs_module
from lms_geometry.cli.pairs import COLUMNS, align_rows

QUICK = ["--motion", "translation", "--max-size", "96", "--steps", "30"]
SETTINGS = {"motion": "translation", "max_size": 96, "steps": 30}


@pytest.fixture
def table(drift, tmp_path):
    """A table of pairs of two sizes, with one damaged file, one that is missing, and a pair with a mask."""
    frames, truth = drift
    folder = tmp_path / "images"
    folder.mkdir()
    for index, frame in enumerate(frames):
        pixels = (255 * frame).astype(np.uint8)
        Image.fromarray(pixels if index < 4 else pixels[:71, :90]).save(folder / f"{index}.png")
    Image.fromarray(np.full((83, 97), 255, np.uint8)).save(folder / "mask.png")
    (folder / "bad.png").write_bytes(b"no image")
    rows = [
        "name,source,target,source_mask",
        "one,images/1.png,images/0.png,",
        "small,images/5.png,images/4.png,",
        "bad,images/bad.png,images/0.png,",
        "masked,images/2.png,images/0.png,images/mask.png",
        "missing,images/1.png,images/nothing.png,",
        "two,images/3.png,images/0.png,",
    ]
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n")
    expected = {"one": (1, 0), "small": (5, 4), "masked": (2, 0), "two": (3, 0)}
    shifts = {name: (truth[a] - truth[b])[:2, 2].tolist() for name, (a, b) in expected.items()}
    return tmp_path / "pairs.csv", shifts


def run(path, *options, status=1):
    out = path.parent / "out"
    assert cli.main(["pairs", str(path), "--out", str(out), *QUICK, *options]) == status
    with (out / "results.csv").open(newline="") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def assert_found(rows, shifts):
    for name, shift in shifts.items():
        assert [float(rows[name]["m13"]), float(rows[name]["m23"])] == pytest.approx(shift, abs=0.15), name
        assert rows[name]["good"] == "True"
        assert rows[name]["error"] == ""
    assert "bad.png is empty or not an image" in rows["bad"]["error"]
    assert "nothing.png does not exist" in rows["missing"]["error"]
    assert rows["bad"]["m11"] == ""


@pytest.mark.parametrize("batch", ["1", "4"])
def test_each_pair_gets_its_row_and_a_bad_file_is_listed(table, capsys, batch):
    path, shifts = table
    rows = run(path, "--batch", batch)
    assert len(rows) == 6
    assert_found(rows, shifts)
    printed = capsys.readouterr().out
    assert "bad: FAILED: " in printed
    assert "4 of 6 pairs are good" in printed


def test_pairs_of_equal_shapes_are_aligned_at_once(table, monkeypatch):
    sizes = []
    align = pairs_module.align
    monkeypatch.setattr(
        pairs_module, "align", lambda sources, *rest: sizes.append(len(sources)) or align(sources, *rest)
    )
    run(table[0], "--batch", "6")
    assert sorted(sizes) == [1, 3]


def test_a_run_that_was_cut_short_goes_on_where_it_ended(table, monkeypatch, capsys):
    path, shifts = table
    align = pairs_module.align
    calls = []

    def interrupted(sources, *rest):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(sources[0].name)
        return align(sources, *rest)

    monkeypatch.setattr(pairs_module, "align", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(path)
    results = path.parent / "out" / "results.csv"
    with results.open("a") as file:
        file.write("two,images/3.png,ima")  # and a row that was not written whole
    with pytest.raises(SystemExit):
        run(path)
    assert "results.csv exists already" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(path, "--resume", "--motion", "similarity")
    assert "was begun with other settings" in capsys.readouterr().err
    calls.clear()
    monkeypatch.setattr(pairs_module, "align", lambda s, *rest: calls.append(s[0].name) or align(s, *rest))
    rows = run(path, "--resume")
    assert [name.rpartition("/")[2] for name in calls] == ["2.png", "3.png"]
    assert_found(rows, shifts)
    assert len(rows) == 6
    assert results.read_text().count("\n") == 7
    (path.parent / "images" / "bad.png").write_bytes((path.parent / "images" / "1.png").read_bytes())
    rows = run(path, "--resume")
    assert rows["bad"]["good"] == "True"  # what failed is tried again
    calls.clear()
    path.write_text(path.read_text().replace("two,images/3.png,", "two,images/4.png,"))
    run(path, "--resume")  # and so is what has another file
    assert [name.rpartition("/")[2] for name in calls] == ["4.png"]


def test_only_the_results_of_an_earlier_run_are_resumed(table, capsys):
    path, shifts = table
    out = path.parent / "out"
    out.mkdir()
    results, settings = out / "results.csv", out / "settings.json"

    def refused(*options):
        with pytest.raises(SystemExit) as stopped:
            run(path, *options)
        assert stopped.value.code == 2
        return capsys.readouterr().err

    results.write_text("my,own,table\n")
    for foreign in (None, "no JSON", "[]", '{"theme": "dark"}'):
        if foreign is not None:
            settings.write_text(foreign)
        error = refused("--resume")
        assert f"{results} cannot be resumed, as settings.json beside it is missing or not that of" in error
        assert "choose another --out, or replace it by --overwrite" in error
        assert results.read_text() == "my,own,table\n"
        assert foreign is None or settings.read_text() == foreign
    results.unlink()
    assert f"{settings} exists already" in refused("--resume")
    results.write_text("my,own,table\n")
    assert_found(run(path, "--resume", "--overwrite"), shifts)
    results.write_text("my,own,table\n")
    assert f"{results} cannot be resumed, as its columns are not those" in refused("--resume")
    assert results.read_text() == "my,own,table\n"
    results.unlink()
    assert_found(run(path, "--resume"), shifts)  # a run that ended before it had a table
    settings.unlink()
    assert_found(run(path, "--resume", "--overwrite"), shifts)


def test_images_of_each_pair_are_written_on_request(table):
    path, _ = table
    run(path, "--images")
    out = path.parent / "out"
    assert (out / "small" / "overlay.png").exists()
    assert json.loads((out / "one" / "registration.json").read_text())["good"] is True
    assert not (out / "bad").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "must have columns source and target, got a, b"),
        ("source,target\na.png\n", "row 1: a source and a target are wanted, got a.png"),
        ("name,source,target\na,b,c\na,d,e\n", "names several pairs a"),
        ("name,source,target\n./a,b,c\na,d,e\n", "names several pairs ./a, a: give each a name, and so a folder"),
        ("source,target\n", "holds no pairs"),
    ],
)
def test_a_table_that_names_no_pairs_is_refused(tmp_path, capsys, text, message):
    (tmp_path / "pairs.csv").write_text(text)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["pairs", str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "out")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_name_does_not_lead_out_of_the_folder(table):
    path, _ = table
    path.write_text("name,source,target\n../escaped,images/1.png,images/0.png\nfine,images/1.png,images/0.png\n")
    rows = run(path, "--images")
    assert "leads out of" in rows["../escaped"]["error"]
    assert rows["fine"]["good"] == "True"
    assert not (path.parent / "escaped").exists()


def columns_of(path):
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: np.array([str(path.parent / row[name]) if row[name] and name != "name" else row[name] for row in rows])
        for name in rows[0]
    }


def test_rows_of_an_engine_are_aligned_in_their_order(table):
    path, shifts = table
    found = align_rows(columns_of(path), **SETTINGS)
    assert tuple(found) == COLUMNS
    assert found["name"].tolist() == ["one", "small", "bad", "masked", "missing", "two"]
    assert found["good"].tolist() == [True, True, False, True, False, True]
    for name, shift in shifts.items():
        index = found["name"].tolist().index(name)
        assert [found["m13"][index], found["m23"][index]] == pytest.approx(shift, abs=0.15)
    assert np.isnan(found["score"][2])
    assert "bad.png is empty" in found["error"][2]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_workers_of_ray_find_what_one_process_finds(table):
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    path, _ = table
    columns = columns_of(path)
    rows = [dict(zip(columns, map(str, cells), strict=True)) for cells in zip(*columns.values(), strict=True)]
    environment = {"PYTHONPATH": ":".join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", runtime_env={"env_vars": environment})
    try:
        table = ray.data.from_items(rows).repartition(3)
        done = table.map_batches(align_rows, batch_size=2, fn_kwargs=SETTINGS, num_cpus=1, concurrency=2).take_all()
    finally:
        ray.shutdown()
    alone = align_rows(columns, **SETTINGS)
    together = {row["name"]: row for row in done}
    assert len(done) == 6
    for index, name in enumerate(alone["name"]):
        assert together[name]["good"] == alone["good"][index]
        assert together[name]["error"] == alone["error"][index]
        for column in ("m13", "m23"):
            assert together[name][column] == pytest.approx(alone[column][index], abs=0.15, nan_ok=True)
