import json
import sys

import numpy as np
import pytest
from PIL import Image
from skimage import data

from benchmarks import registration_pairs


@pytest.fixture
def folder(tmp_path):
    """A pair with landmarks, one with a matrix, and one whose truth is another."""
    photo = data.coffee()[::2, ::2]
    source, target = photo[:, :220], photo[10:, 25:245]
    for name, image in (("source", source), ("target", target)):
        Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / f"{name}.png")
    files = {"source": "source.png", "target": "target.png"}
    matrix = [[1, 0, -25], [0, 1, -10], [0, 0, 1]]
    points = [[30.0, 20.0], [80.0, 60.0], [50.0, 90.0]]
    pairs = [
        {"name": "landmarks", **files, "source_points": points, "target_points": [[x - 25, y - 10] for x, y in points]},
        {"name": "matrix", **files, "matrix": matrix},
        {"name": "wrong", **files, "matrix": [[1, 0, 40], [0, 1, 30], [0, 0, 1]]},
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    return tmp_path


def test_a_folder_of_pairs_is_measured_and_wrong_verdicts_are_counted(folder, tmp_path, monkeypatch, capsys):
    few = {"register": registration_pairs._ours(starts=("phase",))}
    monkeypatch.setattr(registration_pairs, "methods", lambda threads: few)
    out = tmp_path / "result.json"
    monkeypatch.setattr("sys.argv", ["x", "--data", str(folder), "--json", str(out), "--threads", "1"])
    registration_pairs.main()
    result = json.loads(out.read_text())
    (row,) = result["table"]["rows"]
    cells = dict(zip(result["table"]["columns"], row, strict=True))
    assert (cells["1 %"], cells["0.3 %"], cells["good"], cells["wrong"]) == ("2", "2", "3", "1")
    assert "| register |" in capsys.readouterr().out


def test_peers_that_are_not_installed_are_left_out_and_those_that_are_find_the_shift(folder, monkeypatch):
    pytest.importorskip("cv2")
    for module in ("SimpleITK", "pystackreg"):
        monkeypatch.setitem(sys.modules, module, None)
    methods = registration_pairs.methods(1)
    assert not any("SimpleITK" in name or "pystackreg" in name for name in methods)
    pair = json.loads((folder / "pairs.json").read_text())[0]
    for name in ("OpenCV SIFT and MAGSAC", "SIFT, then ECC", "OpenCV ORB and MAGSAC"):
        assert registration_pairs.measure(methods[name], folder, pair)["error"] < 0.01
