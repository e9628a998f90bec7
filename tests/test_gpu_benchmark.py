"""``benchmarks.gpu`` at a tiny size on the CPU: every part runs, and a wrong kernel shows."""

import json
import sys

import pytest
import torch

from benchmarks import gpu, gpu_cases
from lms_geometry import backends
from lms_geometry.backends import cpu_area

CPU = torch.device("cpu")


def test_it_checks_trains_and_measures(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv(backends.VARIABLE, "eager")
    monkeypatch.setattr(gpu_cases, "KINDS", 3)
    monkeypatch.setattr(gpu.Clock, "left", lambda self, share=1.0: float(share == 1))
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "cpu", "--json", str(tmp_path / "gpu.json")])
    with pytest.raises(SystemExit, match="0"):
        gpu.main()
    table = capsys.readouterr().out
    assert "mean, float32, 1 cases" in table
    assert "compiled | differs by" in table
    assert "WRONG" not in table
    raw = json.loads((tmp_path / "gpu.json").read_text())["raw"]
    assert {row["layout"] for row in raw["speed"]} == {"float32", "bfloat16", "channels last"}


@pytest.mark.skipif(backends.unavailable_reason("cpu") is not None, reason="the C library is not built")
def test_a_wrong_kernel_shows(monkeypatch):
    seeds = [0, gpu_cases.KINDS, 2 * gpu_cases.KINDS]  # of which one may be a case whose value is not the mean
    for name, errors in (gpu_cases.compare(seed, "cpu", CPU) for seed in seeds):
        assert name == "mean, float32"
        assert max(errors.values()) < 1
    right = cpu_area.area_mean
    monkeypatch.setattr(cpu_area, "area_mean", lambda *arguments: right(*arguments) * 1.0005)
    assert max(gpu_cases.compare(seed, "cpu", CPU)[1]["value"] for seed in seeds) > 1


def test_a_command_that_fails_or_takes_too_long_is_told(tmp_path):
    rows, raw = [], {}
    assert gpu.add_command(rows, raw, "one", [sys.executable, "-c", "raise SystemExit('no')"], 60)
    assert not gpu.add_command(rows, raw, "two", [sys.executable, "-c", "import time; time.sleep(99)"], 5)
    assert not gpu.add_command(rows, raw, "three", None, 60)
    assert [row[2].split(":")[0] for row in rows] == ["WRONG", "not done", "not done"]
