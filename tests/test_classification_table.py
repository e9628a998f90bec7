"""Table 1 from recorded curves."""

import json

import pytest

from benchmarks.classification import table
from benchmarks.classification.table import errors_after, length_of, trainings

# Points of a curve: step, validation error, test error, mean log2 of the scale.
FALLING = [(2000, 0.3, 0.4, 0.0), (4000, 0.2, 0.25, 0.0), (6000, 0.1, 0.15, 0.0)]
ENDED = [(2000, 0.1, 0.12, 0.0), *((step, 0.2, 0.01, 0.0) for step in range(4000, 22_001, 2000))]


def test_a_network_is_taken_at_its_lowest_validation_error_within_the_steps():
    found = {"default": {0: FALLING, 1: ENDED}}
    assert errors_after(4000, found) == pytest.approx([25.0, 12.0])
    assert errors_after(6000, found) == pytest.approx([15.0, 12.0])


def test_the_padding_is_chosen_by_the_validation_error_not_by_the_test_error():
    better = [(2000, 0.05, 0.5, 0.0)]
    assert errors_after(2000, {"paper": {0: FALLING}, "paper, border padding": {0: better}}) == [50.0]


def test_a_training_that_ended_by_itself_does_not_limit_the_steps():
    assert length_of({0: FALLING, 1: ENDED}) == 6000
    assert length_of({1: ENDED}) == 300_000
    assert errors_after(6000, {"default": {1: ENDED}, "default, border padding": {0: FALLING[:1]}}) == [12.0]


def test_names_are_those_of_one_cell_and_one_sampler():
    trained = {
        "STN 8x, bilinear, seed 0": FALLING,
        "STN 8x, bilinear, border padding, seed 0": FALLING,
        "STN 8x, bilinear, blurred by 0.125 output pixel, seed 0": FALLING,
        "ICSTN 8x, bilinear, seed 0": FALLING,
        "STN 4x, bilinear, seed 0": FALLING,
    }
    names = {name: list(trainings(trained, "STN 8x", kind)) for name, kind in table.SAMPLERS.items()}
    assert names["bilinear"] == ["bilinear", "bilinear, border padding"]
    assert names["pre-blurred"] == ["bilinear, blurred by 0.125 output pixel"]
    assert names["default"] == []


def test_the_longest_curve_of_a_training_counts_and_other_splits_and_sizes_do_not(tmp_path):
    for number, (title, curve) in enumerate(
        {
            "GTSRB, STN at 8x": FALLING,
            "GTSRB, again": FALLING[:1],
            "GTSRB, with an earlier split": ENDED,
            "GTSRB, size middle, STN at 8x": ENDED,
            "MNIST, STN at 8x": ENDED,
        }.items()
    ):
        result = {"title": f"Classification, {title}", "raw": {"STN 8x, default, seed 0": curve}}
        (tmp_path / f"classification_{number}.json").write_text(json.dumps(result))
    curves = table.curves_of(tmp_path)
    assert [tuple(point) for point in curves["STN 8x, default, seed 0"]] == FALLING


def test_samplers_that_were_trained_for_longer_have_a_row_of_their_own(tmp_path, capsys, monkeypatch):
    raw = {
        f"STN 8x, {name}, seed {seed}": curve
        for name, curve in {"default": FALLING, "supersampled 3 x 3": FALLING, "paper": FALLING[:1]}.items()
        for seed in range(2)
    }
    result = {"title": "Classification, GTSRB, STN at 8x", "raw": raw}
    (tmp_path / "classification_stn.json").write_text(json.dumps(result))
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["table"])
    table.main()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()[2:]]
    paper = 2 + list(table.SAMPLERS).index("paper's text")
    assert [row[1] for row in rows] == ["2,000", "*p*", "6,000", "*p*"]
    assert [rows[0][paper], rows[2][paper]] == ["40.0 ± 0.0 (2)", ""]
    assert [row[-2] for row in rows[::2]] == ["40.0 ± 0.0 (2)", "15.0 ± 0.0 (2)"]


def test_every_cell_of_the_recorded_table_follows_from_the_recorded_curves(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["table"])
    table.main()
    printed = capsys.readouterr().out.splitlines()[2:]
    recorded = json.loads((table.RESULTS / "table1.json").read_text())["table"]
    assert printed == ["| " + " | ".join(row) + " |" for row in recorded["rows"]]
