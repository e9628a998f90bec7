import json
import shutil

import numpy as np
import pytest
import torch
from kornia.filters import gaussian_blur2d
from kornia.geometry.conversions import convert_affinematrix_to_homography
from PIL import Image
from settings import paper
from skimage import data

from benchmarks import (
    ablation,
    alignment,
    gradients,
    patterns,
    peers,
    problems,
    results,
    roofline,
    runs,
    samplers,
    scaling,
    speed,
    speed_warps,
)
from benchmarks.datasets import load_images
from benchmarks.photos import load_photos
from lms_geometry import backends, draw_noise
from lms_geometry.backends import cpu
from lms_geometry.registration.metrics import corner_error


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


@pytest.mark.slow
def test_speed_has_a_line_for_each_size_and_a_column_for_each_sampler_and_backend(release, tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "CASES", ((2, 3, 9, 11, 4, 5, 1.5, False), (2, 4, 9, 11, 4, 5, 1.0, True)))
    monkeypatch.setenv(backends.VARIABLE, "")  # set in the runs
    threads = str(torch.get_num_threads())
    out = tmp_path / "speed.json"
    monkeypatch.setattr(
        "sys.argv",
        ["speed", "--rounds", "2", "--threads", threads, "--authors", str(release), "--json", str(out)],
    )
    speed.main()
    result = json.loads(out.read_text())
    fused = [] if cpu.unavailable_reason() else ["default, cpu", "paper, cpu", "whitened, cpu"]
    names = [
        "multi-scale (1, 5, 10)",
        *(f"supersampled {n} x {n}" for n in (2, 3, 4)),
        "mipmap",
        "authors' code",
        "default, eager",
        "paper, eager",
        "whitened, eager",
        *fused,
    ]
    assert result["table"]["columns"] == ["B,C,H,W,h,w x covered", "bilinear, ms", *names]
    assert [row[0] for row in result["table"]["rows"]] == ["2,3,9,11,4,5 x 1.5", "2,4,9,11,4,5 x 1 image gradient too"]
    assert [row["sampler"] for row in result["raw"]] == 2 * ["bilinear", *names]
    assert result["raw"][0]["both_ratio"] == pytest.approx([1, 1, 1])
    assert result["raw"][0]["memory_ratio"] == 1
    assert "--authors RELEASE --json" in result["command"]


def test_the_warps_have_a_line_for_each_size_and_a_column_for_each_function(tmp_path, monkeypatch):
    monkeypatch.setattr(speed_warps, "CASES", ((2, 9, 9), (1, 12, 3)))
    out, threads = tmp_path / "warps.json", str(torch.get_num_threads())
    monkeypatch.setattr("sys.argv", ["speed_warps", "--rounds", "2", "--threads", threads, "--json", str(out)])
    speed_warps.main()
    result = json.loads(out.read_text())
    assert result["table"]["columns"][1:] == ["warp_affine", "warp_perspective", "homography_warp"]
    assert [row[0] for row in result["table"]["rows"]] == ["2, 9, 9", "1, 12, 3"]
    assert [len(row["ratio"]) for row in result["raw"]] == 6 * [2]
    ratio, milliseconds = (result["raw"][0][entry] for entry in ("ratio", "kornia_ms"))
    assert result["table"]["rows"][0][1] == f"{sum(ratio) / 2:.1f} ({milliseconds:.1f} ms)"


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
    case = (2, 5, 9, 11, 3, 7, 1.0, True)
    image, value, grid = 2 * 5 * 9 * 11, 2 * 5 * 3 * 7, 2 * 3 * 7 * 2
    assert roofline.bytes_moved(case) == 4 * (4 * image + 2 * value + 3 * grid)
    assert roofline.texels_loaded(case) == 2 * 3 * 7 * 3 * (3 + 2) * (1 + 2) * 2  # five channels take two loads
    nowhere = (2, 5, 9, 11, 3, 7, 0.3, False)
    assert roofline.texels_loaded(nowhere) == 2 * 3 * 7 * 2 * 4 * 2
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
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("chelsea", "coffee", "rocket"):
        Image.fromarray(getattr(data, name)()).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a benchmark as its command would, and gives what it wrote."""

    def run(benchmark, *arguments):
        out = tmp_path / "result.json"
        arguments = [*map(str, arguments), "--json", str(out), "--finished", str(tmp_path / "finished.jsonl")]
        monkeypatch.setattr("sys.argv", [benchmark.__name__, *arguments])
        benchmark.main()
        result = json.loads(out.read_text())
        with Image.open(tmp_path / result["figure"]["file"]) as figure:
            assert figure.width > 200
        return result

    return run


def test_gradients_prefers_linearized_samples_to_bilinear(folder_of_photos, run):
    result = run(gradients, "--data", folder_of_photos, "--count", 2, "--rates", 8)
    shares = {row[0]: float(row[1].split(",")[0]) for row in result["table"]["rows"]}
    assert list(shares) == list(gradients.SAMPLERS)
    assert shares["whitened, mask off"] > shares["bilinear"] + 0.2
    assert "DIR" in result["command"]
    assert str(folder_of_photos) not in json.dumps(result)


def test_other_photos_are_measured_anew(folder_of_photos, tmp_path, run, monkeypatch):
    monkeypatch.setattr(gradients, "POINTS", 4)
    others = tmp_path / "others"
    others.mkdir()
    shutil.copy(folder_of_photos / "rocket.png", others)
    first, other = (
        run(gradients, "--data", folder, "--count", 1, "--rates", 8) for folder in (folder_of_photos, others)
    )
    assert first["raw"] != other["raw"]


def test_the_command_of_a_result_names_no_place(tmp_path, monkeypatch):
    arguments = [
        "--data=/home/me/photos",
        "--authors",
        "/home/me/release",
        "--json",
        "/home/me/x.json",
        "--runs=/tmp/r",
    ]
    monkeypatch.setattr("sys.argv", ["/home/me/benchmarks/lms/benchmarks/classification/__main__.py", *arguments])
    results.report(tmp_path / "x.json", "", "", [], [], None)
    assert json.loads((tmp_path / "x.json").read_text())["command"] == (
        "python -m benchmarks.classification --data DIR --authors RELEASE --json benchmarks/results/x.json"
    )


def test_gradients_of_a_round_bump_point_to_the_truth():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 40), torch.linspace(-1, 1, 40), indexing="ij")
    bump = (-(x**2 + y**2) * 8).exp()[None, None]
    angles, shifts, _ = gradients.angles_to_truth(samplers.bilinear(bump), bump, 2, 0)
    assert shifts.shape == (100, 2)
    # Farther away it leaves the image, and the way out lowers the error too.
    assert angles[shifts.norm(dim=1) < 0.6].max() < 5


def test_alignment_gives_the_recall_of_each_sampler(folder_of_photos, run, capsys):
    arguments = ("--data", folder_of_photos, "--count", 3, "--rates", 8, "--steps", 5, "--draws", 2)
    rows = run(alignment, *arguments)["table"]["rows"]
    names = [*alignment.SAMPLERS, alignment.REGISTER]
    assert [row[:2] for row in rows] == [[s, name] for s in problems.SCALES for name in names]
    assert "bilinear" in capsys.readouterr().out


def test_ablation_gives_a_row_for_each_variant(folder_of_photos, run, monkeypatch):
    one_each = {"settings": {g: dict(list(s.items())[-2:]) for g, s in ablation.STUDIES["settings"].items()}}
    monkeypatch.setattr(ablation, "STUDIES", ablation.STUDIES | one_each)
    monkeypatch.setattr(gradients, "POINTS", 4)
    arguments = ("--data", folder_of_photos, "--count", 2, "--fields", 1, "--steps", 2)
    result = run(ablation, *arguments)
    groups = ablation.STUDIES["settings"]
    assert [row[:2] for row in result["table"]["rows"]] == [[g, name] for g in groups for name in groups[g]]
    assert len(result["table"]["columns"]) == 6
    result = run(ablation, *arguments, "--study", "collapse")
    assert len(result["table"]["rows"]) == 10


def test_finished_cells_are_not_measured_again(tmp_path):
    finished, jobs, measured = tmp_path / "some" / "finished.jsonl", [{"rate": 8}, {"rate": 4}], []
    images = torch.zeros(1, 3, 2, 2)

    def measure(job):
        measured.append(job["rate"])
        if len(measured) == 2:
            raise KeyboardInterrupt
        return [job["rate"] / 2]

    with pytest.raises(KeyboardInterrupt):
        runs.run_cells(jobs, measure, images, finished, "test")
    assert runs.run_cells(jobs, measure, images, finished, "test") == [[4], [2]]
    assert measured == [8, 4, 4]
    # A job with anything else in it is another job.
    assert runs.run_cells([{"rate": 8, "seed": 1}], measure, images, finished, "test") == [[4]]


def test_descent_finds_a_warp_that_a_small_step_reaches():
    photo = torch.rand(2, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    photo = torch.nn.functional.interpolate(photo, (32, 40), mode="bicubic")
    truth = problems.to_warps(torch.tensor([[0.1, 0.05, -0.1, 0.05, 0.0], [-0.1, 0.0, 0.1, 0.0, -0.05]]))
    target = problems.make_targets(photo, truth, (16, 20))
    for sampler in (samplers.bilinear, alignment.SAMPLERS["whitened, mask off, 5 to 0.125"]):
        found = problems.descend(sampler, photo, target, torch.Generator().manual_seed(0), 100)
        errors = corner_error(*map(convert_affinematrix_to_homography, (found, truth)))
        assert errors.max() < 0.01


def test_drawn_warps_have_the_spread_of_the_paper_and_no_outliers():
    warps = problems.draw_warps(4000, 2**0.5, seed=0)
    log2_scales = warps[:, :2, :2].norm(dim=1).log2()
    assert log2_scales.std().item() == pytest.approx(2**0.5 * 0.96, rel=0.05)  # clipping at 2 takes 4 %
    assert log2_scales.abs().max() <= 2 * 2**0.5 + 1e-5
    assert warps[:, :2, 2].abs().max() <= 0.4 + 1e-6
    assert torch.equal(warps, problems.draw_warps(4000, 2**0.5, seed=0))


def test_blur_on_a_canvas_of_zeros_is_a_convolution_with_a_gaussian():
    image = torch.rand(1, 2, 17, 23, generator=torch.Generator().manual_seed(0))
    smooth, enlarged = peers.blurred(image, 1.5)
    margin = (smooth.shape[-1] - 23) // 2
    torch.testing.assert_close(enlarged, torch.tensor([smooth.shape[-1] / 23, smooth.shape[-2] / 17]))
    offsets = torch.arange(-margin, margin + 1)
    kernel = (-(offsets**2) / (2 * 1.5**2)).exp()
    kernel = kernel / kernel.sum()
    canvas = torch.nn.functional.pad(image, (2 * margin,) * 4).flatten(0, 1)[:, None]
    expected = torch.nn.functional.conv2d(canvas, (kernel[:, None] * kernel)[None, None])[:, 0]
    torch.testing.assert_close(smooth[0], expected, atol=0.01, rtol=0)


def test_multi_scale_sampling_is_the_mean_over_three_blurred_images():
    image = torch.rand(1, 2, 23, 23, generator=torch.Generator().manual_seed(0))
    warps = torch.tensor([[[0.9, -0.6, 0.5], [0.6, 0.9, -0.2]]])  # looks beyond the edge
    canvas = torch.nn.functional.pad(image, (46,) * 4)
    views = [
        samplers.bilinear(gaussian_blur2d(canvas, (6 * int(sigma) + 1,) * 2, (sigma, sigma)))(warps / 5, (7, 7))
        for sigma in (1.0, 5.0, 10.0)
    ]
    found = samplers.multi_scale(image)(warps, (7, 7))
    torch.testing.assert_close(found, torch.stack(views).mean(0), atol=5e-3, rtol=0)


@pytest.mark.parametrize("place", [patterns.antithetic, patterns.ring, patterns.two_rings, patterns.spiral])
@pytest.mark.parametrize("count", [4, 8, 9])
def test_patterns_have_mean_0_and_variance_1(place, count):
    noise = place(paper(num_samples=count), (60, 70), torch.Generator().manual_seed(0))
    assert noise.shape == (count - 1, 60, 70, 2)
    assert noise.mean((0, 1, 2)).abs().max() < 0.03
    covariance = torch.einsum("khwi,khwj->ij", noise, noise) / noise[..., 0].numel()
    torch.testing.assert_close(covariance, torch.eye(2), atol=0.04, rtol=0)


def test_quasi_random_samples_are_normal():
    noise = patterns.quasi_random(paper(), (60, 70), torch.Generator().manual_seed(0))
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    assert (noise.abs() < 1).float().mean().item() == pytest.approx(0.683, abs=0.01)


def test_released_settings_spread_samples_as_the_authors_do():
    image = torch.rand(1, 2, 33, 47, generator=torch.Generator().manual_seed(0))
    image = torch.nn.functional.interpolate(image, scale_factor=3, mode="bicubic")
    warps = problems.to_warps(torch.tensor([[0.4, -0.3, 0.5, 0.1, -0.1]])).requires_grad_()
    value = samplers.released(image)(warps, (9, 11), 0.0, torch.Generator().manual_seed(0))
    # Rotating and scaling change neither spread: it is that of a plain resize.
    generator, grid = torch.Generator().manual_seed(0), torch.nn.functional.affine_grid(warps, (1, 2, 9, 11), False)
    noise = draw_noise(samplers.RELEASED, (9, 11), generator=generator)
    spread = ((torch.tensor([141 / 11, 99 / 9]) * 0.25) ** 2 + 1).sqrt() * 2 / torch.tensor([141.0, 99.0])
    reads = [torch.nn.functional.grid_sample(image, grid + z * spread, align_corners=False) for z in noise]
    centre = torch.nn.functional.grid_sample(image, grid, align_corners=False)
    rows = torch.cat((noise * spread * torch.tensor([141.0, 99.0]) / 2, torch.ones(7, 9, 11, 1)), -1).movedim(0, 2)
    differences = torch.stack([read - centre for read in reads])[:, 0].permute(2, 3, 0, 1)
    normal = rows.mT @ rows + 1e-3 * torch.eye(3)
    fit = torch.linalg.solve(normal.double(), (rows.mT @ differences).double())
    torch.testing.assert_close(value, (centre + fit[:, :, 2].permute(2, 0, 1)).float(), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        "scale space, 4 to 0",
        "whitened, mask off, 5 to 0.125",
        "the same on a matched pyramid",
        "default, 8 to a pixel",
        "default, plane, 8 to a pixel",
    ],
)
def test_annealed_samplers_start_blurred_and_end_at_the_bilinear_value(name):
    image = torch.rand(1, 2, 32, 32, generator=torch.Generator().manual_seed(0))
    warps = problems.to_warps(torch.tensor([[0.3, 0.2, -0.3, 0.1, 0.05]]))
    read = alignment.SAMPLERS[name](image)
    exact = samplers.bilinear(image)(warps, (8, 8), 0.0, torch.Generator())
    first, last = (read(warps, (8, 8), progress, torch.Generator().manual_seed(0)) for progress in (0.0, 0.75))
    torch.testing.assert_close(last, exact)
    assert first.var() < exact.var()


def test_the_default_annealed_ends_with_the_slope_of_the_mean_over_the_pixel():
    image = torch.rand(1, 2, 41, 33, generator=torch.Generator().manual_seed(0))
    warps = problems.to_warps(torch.tensor([[0.3, 0.2, -0.3, 0.1, 0.05]])).requires_grad_()
    weights = torch.randn(1, 2, 7, 9, generator=torch.Generator().manual_seed(1))
    by_warps = [
        torch.autograd.grad((read(warps, (7, 9), 1.0, torch.Generator()) * weights).sum(), warps)[0]
        for read in (alignment.SAMPLERS[name](image) for name in ("default, 8 to a pixel", "default", "bilinear"))
    ]
    torch.testing.assert_close(by_warps[0], by_warps[1])
    assert not torch.allclose(by_warps[0], by_warps[2], rtol=0.1)


@pytest.mark.parametrize("name", ["default", "default, plane, sigma = 4"])
def test_samplers_with_fixed_points_leave_the_generator_alone(name):
    image = torch.rand(1, 2, 41, 33, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    state = generator.get_state()
    read = gradients.SAMPLERS[name](image)
    warps = torch.tensor([[[0.9, -0.6, 0.5], [0.6, 0.9, -0.2]]])
    assert torch.equal(read(warps, (7, 9), 0.0, generator), read(warps, (7, 9), 0.0, generator))
    assert torch.equal(generator.get_state(), state)


def test_the_field_of_the_default_is_that_of_the_mean_over_the_pixel():
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    image = ((x * 0.9).sin() + (y * 0.7).cos() + (-((x - 20) ** 2 + (y - 26) ** 2) / 80).exp())[None, None]
    _, _, dense = gradients.angles_to_truth(samplers.supersampled(24)(image), image, 6, 0)
    _, _, found = gradients.angles_to_truth(samplers.linearized(samplers.DEFAULT)(image), image, 6, 0)
    assert torch.nn.functional.cosine_similarity(found, dense, dim=-1).median() > 0.98


def test_authors_sampler_is_read_from_their_folder_and_leaves_the_global_generator_alone(tmp_path):
    (tmp_path / "warp").mkdir()
    (tmp_path / "warp" / "linearized.py").write_text(
        "import torch\ndef grid_sample(input, grid, mode, padding_mode):\n"
        "    return torch.rand(()) * torch.nn.functional.grid_sample(input, grid, padding_mode=padding_mode)\n"
    )
    read = samplers.authors(tmp_path)(torch.ones(1, 1, 8, 8))
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first, second = (
        read(torch.eye(2, 3)[None], (4, 4), 0.0, torch.Generator().manual_seed(seed)).mean() for seed in (1, 2)
    )
    assert first != second
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(SystemExit, match=r"linearized\.py is missing"):
        samplers.authors(tmp_path / "warp")


def test_a_folder_with_too_few_photos_is_named(folder_of_photos):
    with pytest.raises(SystemExit, match="holds 3 photos of at least 128 pixels a side, 4 are needed"):
        load_photos(folder_of_photos, 4, 128)


def test_signs_are_read_from_the_official_files_and_from_an_archive(tmp_path):
    generator = np.random.default_rng(0)
    pictures = [Image.fromarray(generator.integers(0, 256, (h, 41, 3), dtype=np.uint8)) for h in (30, 60)]
    for number, picture in enumerate(pictures):
        picture.save(tmp_path / f"0000{number}.ppm")
    files = load_images("gtsrb", tmp_path, 2)
    assert files.shape == (2, 3, 50, 50)
    encoded = [(tmp_path / f"0000{number}.ppm").read_bytes() for number in range(2)]
    np.savez(
        tmp_path / "test.npz",
        blob=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        offsets=np.cumsum([0, *map(len, encoded)]),
    )
    for number in range(2):
        (tmp_path / f"0000{number}.ppm").unlink()
    assert torch.equal(load_images("gtsrb", tmp_path, 2), files)
    with pytest.raises(SystemExit, match="holds 2 traffic signs, 3 are needed"):
        load_images("gtsrb", tmp_path, 3)


def test_digits_are_the_first_of_the_test_set(tmp_path):
    with pytest.raises(SystemExit, match=r"mnist\.npz is missing"):
        load_images("mnist", tmp_path, 2)
    digits = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "mnist.npz", x_test=digits)
    found = load_images("mnist", tmp_path, 2)
    assert found.shape == (2, 1, 28, 28)
    assert found[1, 0, 5, 7].item() == pytest.approx(digits[1, 5, 7] / 255)
