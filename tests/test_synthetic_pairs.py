import json

import numpy as np
import pytest
from PIL import Image
from skimage import data

from benchmarks import synthetic_pairs

cv2 = pytest.importorskip("cv2")


@pytest.mark.parametrize("rate", [1, 3])
def test_pairs_hold_the_truth(rate, tmp_path, monkeypatch, capsys):
    photos, out = tmp_path / "photos", tmp_path / "pairs"
    photos.mkdir()
    Image.fromarray(data.chelsea()[:211, 30:340]).save(photos / "cat.png")
    arguments = ["--data", str(photos), "--out", str(out), "--rate", str(rate), "--count", "3"]
    monkeypatch.setattr("sys.argv", ["synthetic_pairs", *arguments])
    synthetic_pairs.main()
    pairs = json.loads((out / "pairs.json").read_text())
    for pair in pairs:
        source, target = (cv2.imread(str(out / pair[side]), 0).astype(float) for side in ("source", "target"))
        size = target.shape[1], target.shape[0]
        assert size == (310 // rate, 211 // rate)
        matrix = np.array(pair["matrix"])
        seen = cv2.warpPerspective(cv2.GaussianBlur(source, (0, 0), 0.4 * rate), matrix, size)
        shown = cv2.warpPerspective(np.ones_like(source), matrix, size) > 0.99
        assert np.corrcoef(seen[shown], target[shown])[0, 1] > 0.6
        shifted = np.roll(target, 5, 1)
        assert np.corrcoef(seen[shown], target[shown])[0, 1] > np.corrcoef(seen[shown], shifted[shown])[0, 1] + 0.05
    with pytest.raises(FileExistsError):
        synthetic_pairs.main()
