"""Figures of recorded results, drawn again from the results alone."""

import json
from itertools import pairwise

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import figures, redraw


@pytest.mark.parametrize(
    "name", ["alignment", "registration", "ablation", "collapse", "scaling", "classification_stn_2x"]
)
def test_a_recorded_figure_is_drawn(name, tmp_path, monkeypatch):
    result = redraw.RESULTS / f"{name}.json"
    (tmp_path / result.name).write_text(result.read_text())
    monkeypatch.setattr(redraw, "RESULTS", tmp_path)
    monkeypatch.setattr("sys.argv", ["redraw", name])
    redraw.main()
    with Image.open(tmp_path / json.loads(result.read_text())["figure"]["file"]) as picture:
        assert picture.width > 600
        assert len(set(picture.convert("RGB").resize((90, 60)).get_flattened_data())) > 30


def test_recall_is_counted_from_the_recorded_errors(monkeypatch, tmp_path):
    drawn = {}
    monkeypatch.setattr(redraw.registration, "draw", lambda recalls, times, path: drawn.update(recalls))
    raw = {"A, 4x": "0.010 0.500", "A, 4x, noise": "0.001 0.019", "seconds": {"A": 1.0}}
    redraw.DRAWINGS["registration"](raw, tmp_path / "x.png")
    assert drawn == {"A": {"4x": 0.5, "4x, noise": 1.0}}


def test_labels_at_the_ends_of_lines_keep_apart_and_in_order():
    with mpl.rc_context():
        axes = Figure().subplots()
        ends = (0.5, 0.51, 0.52, 0.9)
        lines = [axes.plot([0, 1], [0, end], label=str(end))[0] for end in ends]
        figures.label_ends(axes, lines, 0.1)
    places = {text.get_text(): text.get_position()[1] for text in axes.texts}
    assert list(places) == sorted(places)
    heights = list(places.values())
    assert min(b - a for a, b in pairwise(heights)) > 0.099
    assert heights[-1] == 0.9


def test_looks_of_unnamed_lines_differ():
    looks = {(look["color"], look["marker"]) for look in map(figures.number_look, range(40))}
    assert len(looks) == 40
