import json

import pytest
import torch

from benchmarks import speed


def test_speed_writes_a_row_for_each_sampler_and_size(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "CASES", ((2, 3, 9, 11, 4, 5, False), (2, 4, 9, 11, 4, 5, True)))
    monkeypatch.setattr(
        "sys.argv",
        ["speed", "--rounds", "2", "--threads", str(torch.get_num_threads()), "--json", str(tmp_path / "speed.json")],
    )
    speed.main()
    result = json.loads((tmp_path / "speed.json").read_text())
    names = [row["sampler"] for row in result["rows"]]
    assert (
        names[:4] == names[4:8] == ["bilinear", "multi-scale (1, 5, 10)", "linearized, paper", "linearized, whitened"]
    )
    assert len(names) == 13
    bilinear = result["rows"][0]
    assert bilinear["both_ratio"] == pytest.approx([1, 1, 1])
    assert bilinear["memory_ratio"] == 1
    assert capsys.readouterr().out.count("\n| 2,") == 13


def test_peak_memory_counts_what_is_held_at_once():
    def run(count):
        kept = [torch.zeros(1000, 250) for _ in range(count)]
        torch.zeros(1000, 1000)
        del kept

    assert speed._peak_memory(run, 3, torch.device("cpu")) == 3_000_000 + 4_000_000
