import json
import shutil

import pytest
import torch
from PIL import Image
from skimage import data

from benchmarks import alignment, gradients, roofline, scaling, speed
from benchmarks.photos import load_photos
from lms_geometry import backends
from lms_geometry.backends import cpu


@pytest.fixture
def release(tmp_path):
    """A folder that stands for the authors' release."""
    (tmp_path / "warp").mkdir()
    (tmp_path / "warp" / "linearized.py").write_text(
        "import torch\n\ndef grid_sample(input, grid, mode, padding_mode):\n"
        "    assert mode == 'linearized'\n"
        "    return torch.nn.functional.grid_sample(input, grid, 'bilinear', padding_mode)\n"
    )
    return tmp_path


def test_speed_has_a_line_for_each_size_and_a_column_for_each_sampler_and_backend(release, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "CASES", ((2, 3, 9, 11, 4, 5, False), (2, 4, 9, 11, 4, 5, True)))
    monkeypatch.setenv(backends.VARIABLE, "")  # set in the runs
    threads = str(torch.get_num_threads())
    out = tmp_path / "speed.json"
    monkeypatch.setattr(
        "sys.argv",
        ["speed", "--rounds", "2", "--threads", threads, "--authors", str(release), "--json", str(out)],
    )
    speed.main()
    result = json.loads(out.read_text())
    fused = [] if cpu.missing() else ["paper, cpu", "whitened, cpu"]
    names = ["multi-scale (1, 5, 10)", "authors' code", "paper, eager", "whitened, eager", *fused]
    assert result["table"]["columns"] == ["B,C,H,W,h,w", "bilinear, ms", *names]
    assert [row[0] for row in result["table"]["rows"]] == ["2,3,9,11,4,5", "2,4,9,11,4,5 image gradient too"]
    assert [row["sampler"] for row in result["raw"]] == 2 * ["bilinear", *names]
    assert result["raw"][0]["both_ratio"] == pytest.approx([1, 1, 1])
    assert result["raw"][0]["memory_ratio"] == 1
    assert "--authors RELEASE --json" in result["command"]


def test_without_the_authors_release_speed_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["speed", "--authors", str(tmp_path)])
    with pytest.raises(SystemExit, match=r"warp/linearized\.py is missing"):
        speed.main()


def test_scaling_gives_an_exponent_for_each_quantity_and_draws_the_times(tmp_path, monkeypatch):
    monkeypatch.setattr(
        scaling, "RANGES", {"B": (1, 2, 4), "C": (1, 3, 5), "output pixels": (4, 9, 25), "K": (4, 5, 6)}
    )
    monkeypatch.setattr(
        scaling,
        "measure",
        lambda case, samplers, *_: [
            {"sampler": name, "both_best_ms": float(case[0] * case[1] ** 2 * case[4])} for name in samplers
        ],
    )
    out = tmp_path / "scaling.json"
    threads = str(torch.get_num_threads())
    monkeypatch.setattr("sys.argv", ["scaling", "--rounds", "2", "--threads", threads, "--json", str(out)])
    scaling.main()
    result = json.loads(out.read_text())
    assert [row[:2] for row in result["table"]["rows"]] == [
        ["B", "1.00"],
        ["C", "2.00"],
        ["output pixels", "0.50"],
        ["K", "0.00"],
    ]
    assert (tmp_path / result["figure"]["file"]).stat().st_size > 1000


def test_roofline_counts_what_must_move_and_load(tmp_path, monkeypatch):
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")
    case = (2, 5, 9, 11, 3, 7, True)
    image, value, grid, noise = 2 * 5 * 9 * 11, 2 * 5 * 3 * 7, 2 * 3 * 7 * 2, 7 * 3 * 7 * 2
    assert roofline.bytes_moved(case) == 4 * (3 * image + 6 * value + 3 * grid + noise)
    assert roofline.texels_loaded(case) == 2 * 3 * 7 * 8 * 4 * 2  # five channels take two loads
    monkeypatch.setattr(roofline, "CASES", (case,))
    monkeypatch.setenv(backends.VARIABLE, "")
    out = tmp_path / "roofline.json"
    threads = str(torch.get_num_threads())
    monkeypatch.setattr("sys.argv", ["roofline", "--rounds", "2", "--threads", threads, "--json", str(out)])
    roofline.main()
    (figures,) = json.loads(out.read_text())["raw"]
    assert figures["bytes"] == roofline.bytes_moved(case)
    assert min(figures["move_ms"], figures["load_ms"]) > 0


def test_peak_memory_counts_what_is_held_at_once():
    def run(count):
        kept = [torch.zeros(1000, 250) for _ in range(count)]
        torch.zeros(1000, 1000)
        del kept

    assert speed._peak_memory(run, 3, torch.device("cpu")) == 3_000_000 + 4_000_000


@pytest.fixture
def folder_of_photos(tmp_path):
    for name in ("chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(data, name)()).save(tmp_path / f"{name}.png")
    return tmp_path


def test_gradients_prefers_linearized_samples_to_bilinear(folder_of_photos, tmp_path, monkeypatch):
    samplers = {name: gradients._samplers()[name] for name in ("bilinear", "whitened, mask off")}
    monkeypatch.setattr(gradients, "_samplers", lambda: samplers)
    monkeypatch.setattr(gradients, "RATES", (8,))
    out = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["gradients", "--data", str(folder_of_photos), "--photos", "2", "--json", str(out)])
    gradients.main()
    shares = json.loads(out.read_text())["raw"]
    assert shares["whitened, mask off"]["8"] > shares["bilinear"]["8"] + 0.2


def test_alignment_writes_a_corner_error_for_each_problem(folder_of_photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(alignment, "SAMPLERS", {name: {**o, "steps": 5} for name, o in alignment.SAMPLERS.items()})
    monkeypatch.setattr(alignment, "RATES", (8,))
    out = tmp_path / "out.json"
    monkeypatch.setattr("sys.argv", ["alignment", "--data", str(folder_of_photos), "--photos", "3", "--json", str(out)])
    alignment.main()
    errors = json.loads(out.read_text())["raw"]
    assert {name: len(by_rate["8"]) for name, by_rate in errors.items()} == dict.fromkeys(alignment.SAMPLERS, 3)
    assert "| bilinear |" in capsys.readouterr().out


def test_drawn_warps_have_the_spread_of_the_paper_and_no_outliers():
    warps = alignment.draw_warps(4000, seed=0)
    log2_scales = warps[:, :2, :2].norm(dim=1).log2()
    assert log2_scales.std().item() == pytest.approx(0.5**0.5 * 0.88, rel=0.05)  # clipping at 2 takes 12 %
    assert log2_scales.abs().max() <= 2 * 0.5**0.5 + 1e-5
    assert warps[:, :2, 2].abs().max() <= 0.4 + 1e-6
    assert torch.equal(warps, alignment.draw_warps(4000, seed=0))


def test_a_folder_with_too_few_photos_is_named(folder_of_photos):
    with pytest.raises(SystemExit, match="holds 3 photos of at least 128 pixels a side, 4 are needed"):
        load_photos(folder_of_photos, 4, 128)
