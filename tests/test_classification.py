import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kornia.filters import gaussian_blur2d

from benchmarks.classification import __main__ as classification
from benchmarks.classification import steps
from benchmarks.classification import train as training
from benchmarks.classification.data import SIZE, Data, Images
from benchmarks.classification.layers import Conv2d
from benchmarks.classification.networks import SCALES, Network
from benchmarks.classification.samplers import SAMPLERS, TRAINING, Sampler, affine_grid
from benchmarks.classification.train import Job, prepare, train

CPU = torch.device("cpu")


def dots(count, seed):
    """Images of a bright square near the left or the right edge, by class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (count,), generator=generator)
    pixels = torch.randint(60, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        top, left = 15, 5 + 30 * label
        image[:, top : top + 9, left : left + 9] += 180
    return Images(pixels, labels)


@pytest.fixture(scope="module")
def data():
    return Data(dots(96, 0), dots(32, 1), dots(40, 2))


def train_one(job, sampler, scale, every, data, path):
    (run,) = train([job], sampler, scale, every, data, [path], CPU)
    return run


def small(steps):
    return replace(SCALES["small"], steps=steps)


def bilinear(image, grid):
    return F.grid_sample(image, grid, align_corners=False)


def weights(run):
    return {name: value[0].clone() for name, value in run.network.state_dict().items()}


def test_a_blurred_image_is_sampled_as_if_it_went_on_in_black():
    pixels = torch.randint(255, (2, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theta = torch.tensor([[[0.6, -0.3, 0.5], [0.3, 0.6, -0.2]]]).repeat(2, 1, 1)  # looks beyond the edge
    grid = F.affine_grid(theta, [2, 1, 13, 13], align_corners=False)

    def expected(sigma):
        margin = 4 * int(sigma) + 4
        canvas = F.pad(pixels / 255, (margin,) * 4)
        canvas = gaussian_blur2d(canvas, (2 * margin + 1,) * 2, (sigma, sigma), border_type="constant")
        return bilinear(canvas, grid * SIZE / canvas.shape[-1])

    for sampler, wanted in (
        (Sampler(blur=0.5), expected(0.5 * SIZE / 13)),
        (Sampler(blurs=(1.0, 4.0)), (expected(1.0) + expected(4.0)) / 2),
    ):
        views = sampler.read(sampler.prepare(pixels, 13).float() / 255, theta, SIZE, 13, torch.Generator())
        torch.testing.assert_close(views, wanted, atol=2e-3, rtol=0)


def test_with_border_padding_a_blurred_image_goes_on_with_its_last_texels():
    pixels = torch.randint(255, (1, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    theta = torch.tensor([[[0.6, -0.3, 0.9], [0.3, 0.6, -0.8]]])  # looks far beyond the edge
    sampler = Sampler(blur=0.25, padding_mode="border")
    views = sampler.read(sampler.prepare(pixels, 13).float() / 255, theta, SIZE, 13, torch.Generator())
    canvas = gaussian_blur2d(F.pad(pixels / 255, (60,) * 4, mode="replicate"), (9, 9), (0.25 * SIZE / 13,) * 2)
    grid = F.affine_grid(theta, [1, 1, 13, 13], align_corners=False)
    torch.testing.assert_close(views, bilinear(canvas, grid * SIZE / canvas.shape[-1]), atol=2e-3, rtol=0)


@pytest.mark.parametrize("width", [0.125, 0.25, 0.5])
def test_narrow_blurs_are_gaussians_too(width):
    """The finest stripes lose by it what the Gaussian's spectrum says."""
    pixels = (torch.arange(SIZE) % 2 * 200).to(torch.uint8).expand(1, 1, SIZE, SIZE)
    canvas = Sampler(blur=width).prepare(pixels, SIZE).float()
    middle = canvas[0, 0, canvas.shape[-1] // 2]
    contrast = middle[20:40].diff().abs().mean().item() / 200
    assert contrast == pytest.approx(math.exp(-((math.pi * width) ** 2) / 2), abs=0.01)


def test_the_grid_of_a_view_is_that_of_torch():
    theta = torch.randn(3, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = F.affine_grid(theta, [3, 1, 7, 7], align_corners=False)
    torch.testing.assert_close(affine_grid(theta, 7), expected)


def test_the_authors_code_gets_the_images_and_the_grid():
    sampler = Sampler(authors=lambda image, grid, generator: bilinear(image, grid))
    canvas, theta = torch.rand(2, 3, SIZE, SIZE), 0.7 * torch.eye(2, 3).repeat(2, 1, 1)
    arguments = (sampler.prepare(canvas, 6), theta, SIZE, 6, torch.Generator())
    assert torch.equal(sampler.read(*arguments), SAMPLERS["bilinear"].read(*arguments))


def test_border_padding_goes_on_with_the_last_texels():
    canvas = torch.zeros(1, 1, SIZE, SIZE)
    canvas[..., -1] = 1.0
    theta = torch.tensor([[[1.0, 0.0, 2.5], [0.0, 1.0, 0.0]]])  # looks to the right of the image
    for name, seen in (("bilinear, border padding", 1.0), ("bilinear", 0.0)):
        views = SAMPLERS[name].read(canvas, theta, SIZE, 5, torch.Generator())
        assert torch.equal(views, torch.full((1, 1, 5, 5), seen))


def test_samples_follow_the_warp_but_not_in_the_released_code():
    """On a disc of brightness r^2 the intercept measures how far the samples spread."""
    x = torch.linspace(-1, 1, SIZE)
    bowl = (0.2 * (x[:, None] ** 2 + x**2)).expand(1, 1, -1, -1)
    intercepts = {}
    for name in (TRAINING, "released code"):
        sampler = replace(SAMPLERS[name], sampling=replace(SAMPLERS[name].sampling, num_samples=200, jitter=0.0))
        for zoom in (0.3, 0.6):
            theta = torch.tensor([[[zoom, 0.0, 0.0], [0.0, zoom, 0.0]]])
            views = sampler.read(bowl, theta, SIZE, 5, torch.Generator().manual_seed(0))
            centre = bilinear(bowl, F.affine_grid(theta, [1, 1, 5, 5], align_corners=False))
            intercepts[name, zoom] = (views - centre)[0, 0, 2, 2].item()
    assert intercepts[TRAINING, 0.6] == pytest.approx(4 * intercepts[TRAINING, 0.3], rel=0.15)
    assert intercepts["released code", 0.6] == pytest.approx(intercepts["released code", 0.3], rel=0.01)


def test_noise_of_each_image_is_its_own_only_where_asked():
    canvas = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    theta = torch.eye(2, 3).repeat(2, 1, 1)
    for name, alike in ((TRAINING, True), (f"{TRAINING}, noise for each image", False)):
        views = SAMPLERS[name].read(canvas, theta, SIZE, 6, torch.Generator().manual_seed(0))
        assert torch.equal(views[0], views[1]) == alike


def test_noise_drawn_once_is_the_same_at_every_step():
    canvas, theta = torch.rand(1, 3, SIZE, SIZE), torch.eye(2, 3)[None]
    for name, alike in ((TRAINING, False), (f"{TRAINING}, noise drawn once", True)):
        first, second = (
            SAMPLERS[name].read(canvas, theta, SIZE, 6, torch.Generator().manual_seed(step)) for step in range(2)
        )
        assert torch.equal(first, second) == alike


def test_sigma_falls_geometrically_to_that_of_the_sampling(data, tmp_path):
    name = "whitened, sigma 1 to 0.3, jitter 0"
    sigmas = [SAMPLERS[name].at(step).sampling.sigma for step in (0, 10_000, 20_000, 50_000)]
    assert sigmas == pytest.approx([1, 0.3**0.5, 0.3, 0.3])
    run = train_one(Job("STN", name, 8, 0), SAMPLERS[name], small(2), 2, data, tmp_path / "run.pt")
    assert run.network.sampler == SAMPLERS[name].at(2)
    assert SAMPLERS[TRAINING].at(7) is SAMPLERS[TRAINING]


def test_the_slope_of_bilinear_comes_with_the_value_of_linearized_sampling():
    canvas = torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    theta = torch.eye(2, 3).repeat(2, 1, 1).mul_(0.7).requires_grad_()

    def read(name):
        view = SAMPLERS[name].read(canvas, theta, SIZE, 6, torch.Generator().manual_seed(0))
        return view, torch.autograd.grad(view.sin().sum(), theta)[0]

    (mixed, gradient), (linearized, _), (plain, _) = map(read, (f"{TRAINING}, slope of bilinear", TRAINING, "bilinear"))
    torch.testing.assert_close(mixed, linearized)
    expected = torch.autograd.grad(
        bilinear(canvas, F.affine_grid(theta, [2, 1, 6, 6], align_corners=False)), theta, linearized.detach().cos()
    )[0]
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(mixed, plain, atol=0.01)


@pytest.mark.parametrize(("size", "last"), [("middle", 128), ("paper", 1024)])
def test_the_localisers_of_the_larger_sizes_have_the_convolutions_of_the_paper(size, last):
    """Two networks side by side, beside each one's layers by hand: C4 C8 P C16 P C32 P C1024, each 7 x 7."""
    network = Network("STN", SCALES[size], SAMPLERS["bilinear"], 6, 3, 43, count=2)
    seen = torch.randn(2, 2, 3, SCALES[size].side, SCALES[size].side, generator=torch.Generator().manual_seed(0))
    convolutions = [layer for layer in network.localise if isinstance(layer, Conv2d)]
    for n in range(2):
        expected = seen[:, n]
        for layer, channels, pools in zip(convolutions, (4, 8, 16, 32, last), (0, 1, 1, 1, 0), strict=True):
            assert layer.weight[n].shape == (channels, expected.shape[1], 7, 7)
            expected = F.conv2d(expected, layer.weight[n], layer.bias[n], padding=3).relu()
            if pools:
                expected = F.max_pool2d(expected, 2)
        torch.testing.assert_close(network.localise[:-4](seen)[:, n], expected)


@pytest.mark.parametrize(("transformer", "sampler"), [("STN", TRAINING), ("ICSTN", "paper")])
def test_a_run_that_was_stopped_ends_with_the_weights_of_one_that_was_not(data, tmp_path, transformer, sampler):
    job = Job(transformer, sampler, 8, 5)
    whole = train_one(job, SAMPLERS[sampler], small(8), 2, data, tmp_path / "whole.pt")
    for last in (4, 8):
        stopped = train_one(job, SAMPLERS[sampler], small(last), 2, data, tmp_path / "stopped.pt")
    ends = [torch.load(tmp_path / f"{name}.pt")["network"] for name in ("whole", "stopped")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    assert weights(whole).keys() == weights(stopped).keys()
    assert all(torch.equal(value, weights(stopped)[name]) for name, value in weights(whole).items())
    assert whole.curve == stopped.curve
    assert [point[0] for point in whole.curve] == [2, 4, 6, 8]


@pytest.mark.parametrize(
    ("transformer", "sampler"), [("STN", TRAINING), ("ICSTN", "supersampled 3 x 3"), ("STN", "paper")]
)
def test_networks_that_are_trained_together_end_as_each_alone(data, tmp_path, transformer, sampler):
    """One of them started before the others, which join it."""
    jobs = [Job(transformer, sampler, 8, seed) for seed in (3, 4, 5)]
    paths = [tmp_path / f"{job.seed}.pt" for job in jobs]
    train_one(jobs[1], SAMPLERS[sampler], small(4), 2, data, paths[1])
    together = train(jobs, SAMPLERS[sampler], small(8), 2, data, paths, CPU)
    for job, path, run in zip(jobs, paths, together, strict=True):
        alone = train_one(job, SAMPLERS[sampler], small(8), 2, data, tmp_path / "alone.pt")
        for name, value in weights(alone).items():
            torch.testing.assert_close(weights(run)[name], value, atol=1e-5, rtol=1e-4)
        # Nothing of the others is in its checkpoint.
        ends = [torch.load(file) for file in (path, tmp_path / "alone.pt")]
        assert [[end[entry] for entry in ("step", "every")] for end in ends] == [[8, 2], [8, 2]]
        for index, moments in ends[1]["optimizer"]["state"].items():
            for name, value in moments.items():
                torch.testing.assert_close(ends[0]["optimizer"]["state"][index][name], value, atol=1e-5, rtol=1e-3)
        assert torch.tensor(run.curve).sub(torch.tensor(alone.curve)).abs().max() < 1e-3
        (tmp_path / "alone.pt").unlink()


def test_a_network_whose_patience_ends_leaves_the_others_to_go_on(data, tmp_path, monkeypatch):
    """The validation error of the first falls at its first evaluation only, the other's every time."""
    evaluations = []

    def evaluate(network, split, seeds):
        if len(split.labels) == len(data.validation.labels):
            evaluations.append(seeds)
        return [(0.5 if seed == 0 else 0.5 / len(evaluations), 0.0) for seed in seeds]

    monkeypatch.setattr(training, "evaluate", evaluate)
    jobs = [Job("STN", "bilinear", 8, seed) for seed in (0, 1)]
    scale = replace(small(12), patience=4)
    runs = train(jobs, SAMPLERS["bilinear"], scale, 2, data, [tmp_path / "0.pt", tmp_path / "1.pt"], CPU)
    assert evaluations == [[0, 1]] * 3 + [[1]] * 3
    assert [run.curve[-1][0] for run in runs] == [6, 12]
    assert [run.best[0] for run in runs] == [2, 12]


def test_a_finished_run_is_not_trained_again(data, tmp_path):
    job, path = Job("STN", "bilinear", 8, 0), tmp_path / "run.pt"
    train_one(job, SAMPLERS["bilinear"], small(2), 2, data, path)
    written = path.stat().st_mtime_ns
    train_one(job, SAMPLERS["bilinear"], small(2), 2, data, path)
    assert path.stat().st_mtime_ns == written
    with pytest.raises(SystemExit, match="is at step 2, beyond 1"):
        train_one(job, SAMPLERS["bilinear"], small(1), 1, data, path)
    with pytest.raises(SystemExit, match="was evaluated every 2 steps, not every 4"):
        train_one(job, SAMPLERS["bilinear"], small(4), 4, data, path)


def test_what_cannot_be_shared_out_is_refused(data, tmp_path, monkeypatch):
    job, path = Job("STN", "bilinear", 8, 0), tmp_path / "run.pt"
    with pytest.raises(SystemExit, match="--steps must be a multiple of --every, got 3 and 2"):
        train_one(job, SAMPLERS["bilinear"], small(3), 2, data, path)
    monkeypatch.setattr(training, "_rank_and_world", lambda: (0, 3))
    with pytest.raises(SystemExit, match="3 processes cannot share a batch of 64 equally"):
        train_one(job, SAMPLERS["bilinear"], small(2), 2, data, path)


def test_training_ends_with_patience_and_keeps_the_best_weights(data, tmp_path):
    """With labels that mean nothing the validation error does not keep falling."""
    shuffled = data._replace(validation=Images(data.validation.pixels, 1 - data.train.labels[:32]))
    scale = replace(small(400), patience=6)
    run = train_one(Job("none", "bilinear", 8, 0), SAMPLERS["bilinear"], scale, 2, shuffled, tmp_path / "run.pt")
    errors = [point[1] for point in run.curve]
    best = errors.index(min(errors))
    assert run.curve[-1][0] == run.curve[best][0] + 6 < 400
    assert run.best == run.curve[best]


def test_an_stn_learns_where_to_look(data, tmp_path):
    run = train_one(Job("STN", TRAINING, 8, 0), SAMPLERS[TRAINING], small(120), 120, data, tmp_path / "run.pt")
    assert run.best[2] < 0.1


def test_a_seed_decides_the_first_weights_and_the_batches(data, tmp_path):
    def trained(seed, steps, path):
        run = train_one(Job("STN", "bilinear", 8, seed), SAMPLERS["bilinear"], small(steps), 2, data, path)
        return weights(run)["classify.1.weight"]

    first = trained(3, 2, tmp_path / "first.pt")
    assert torch.equal(first, trained(3, 2, tmp_path / "again.pt"))
    assert not torch.equal(first, trained(4, 2, tmp_path / "other.pt"))
    for name in ("one", "two"):
        shutil.copy(tmp_path / "first.pt", tmp_path / f"{name}.pt")
    assert not torch.equal(trained(3, 4, tmp_path / "one.pt"), trained(4, 4, tmp_path / "two.pt"))


def test_the_loss_falls_after_a_short_step_against_its_own_gradient(data, tmp_path):
    run = train_one(Job("STN", "bilinear", 4, 0), SAMPLERS["bilinear"], small(40), 40, data, tmp_path / "run.pt")
    split = prepare(data.test, SAMPLERS["bilinear"], SCALES["small"], 12, CPU)
    short, long = steps.share_of_falls(run.network, split, SAMPLERS["bilinear"], (1e-3, 3.0))
    assert short > 0.8
    assert long < 0.7


def test_the_table_of_steps_has_a_row_for_each_slope(tmp_path, monkeypatch, capsys):
    save_digits(tmp_path, torch.Generator().manual_seed(0))
    out = tmp_path / "out.json"
    arguments = [*on_digits(tmp_path, 1), "--every", "1", "--seeds", "0"]
    arguments += ["--runs", str(tmp_path / "runs"), "--json", str(out)]
    monkeypatch.setattr("sys.argv", ["benchmarks/classification/steps.py", *arguments])
    monkeypatch.setattr(steps, "IMAGES", 7)
    steps.main()
    result = json.loads(out.read_text())
    assert [row[:2] for row in result["table"]["rows"]] == [
        [trained_with, slope] for trained_with in steps.TRAINED_WITH for slope in steps.SLOPES
    ]
    assert result["command"].startswith("python -m benchmarks.classification.steps --data DIR --set mnist")


def save_digits(folder, generator):
    """Twenty digits of four classes: blocks in the corners."""
    y = torch.arange(20) % 4
    x = torch.zeros(20, 28, 28, dtype=torch.uint8)
    for image, label in zip(x, y.tolist(), strict=True):
        top, left = 4 + 12 * (label // 2), 4 + 12 * (label % 2)
        image[top : top + 8, left : left + 8] = 200
    np.savez(folder / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)


def on_digits(folder, steps):
    return ["--data", str(folder), "--set", "mnist", "--steps", str(steps)]


def test_the_command_writes_a_table_and_two_pictures_and_resumes(tmp_path, monkeypatch, capsys):
    save_digits(tmp_path, torch.Generator().manual_seed(0))
    out = tmp_path / "out.json"
    arguments = [*on_digits(tmp_path, 2), "--every", "1", "--seeds", "0", "1"]
    arguments += ["--rates", "8", "--transformers", "none", "ICSTN", "--samplers", "bilinear"]
    arguments += [TRAINING, "--runs", str(tmp_path / "runs"), "--json", str(out)]
    monkeypatch.setattr("sys.argv", ["benchmarks/classification/__main__.py", *arguments])
    classification.main()
    result = json.loads(out.read_text())
    rows = result["table"]["rows"]
    assert [row[:2] for row in rows] == [
        ["none", "bilinear"],
        ["ICSTN", "bilinear"],
        ["ICSTN", TRAINING],
        ["ICSTN", f"{TRAINING}, 64 samples when tested"],
        ["ICSTN", f"{TRAINING}, bilinear when tested"],
    ]
    assert all("±" in row[2] for row in rows)
    assert {len(curve) for curve in result["raw"].values()} == {2}
    assert result["command"].startswith("python -m benchmarks.classification --data DIR --set mnist")
    assert f"'{TRAINING}' --json" in result["command"]
    assert (tmp_path / result["figure"]["file"]).exists()
    assert (tmp_path / "out_views.png").exists()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.pt")}
    assert len(written) == 6
    classification.main()
    assert written == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").glob("*.pt")}


def test_with_minutes_cells_take_turns_and_go_on_as_if_never_stopped(tmp_path, monkeypatch, capsys):
    save_digits(tmp_path, torch.Generator().manual_seed(0))
    arguments = ["classification", *on_digits(tmp_path, 6), "--every", "1", "--seeds", "3", "--rates", "8"]
    arguments += ["--transformers", "STN", "--samplers", "bilinear", "default", "supersampled 3 x 3", "--runs"]
    monkeypatch.setattr(classification, "_TURN", 2)

    def run(folder, *more):
        monkeypatch.setattr("sys.argv", [*arguments, str(tmp_path / folder), *more])
        classification.main()
        states = [torch.load(path) for path in sorted((tmp_path / folder).glob("*.pt"))]
        return states, capsys.readouterr().out

    whole, _ = run("whole")
    answers = iter([True] * 7)
    for module in (classification, training):
        monkeypatch.setattr(module, "is_before", lambda deadline: next(answers, False))
    stopped, _ = run("stopped", "--minutes", "1")
    reached = sorted(state["step"] for state in stopped)
    assert reached[0] >= 2
    assert reached[2] - reached[0] <= 2
    assert reached[0] < 6
    for module in (classification, training):
        monkeypatch.setattr(module, "is_before", lambda deadline: True)
    resumed, _ = run("stopped", "--minutes", "1")
    for state, wanted in zip(resumed, whole, strict=True):
        assert state["curve"] == wanted["curve"]
        assert all(torch.equal(value, wanted["network"][name]) for name, value in state["network"].items())


def test_without_time_every_cell_is_still_evaluated_once(tmp_path, monkeypatch, capsys):
    save_digits(tmp_path, torch.Generator().manual_seed(0))
    out = tmp_path / "out.json"
    arguments = ["classification", *on_digits(tmp_path, 4), "--every", "1", "--seeds", "3", "--rates", "8"]
    arguments += ["--transformers", "STN", "--samplers", "bilinear", "default", "--runs", str(tmp_path / "runs")]
    monkeypatch.setattr("sys.argv", [*arguments, "--minutes", "0", "--json", str(out)])
    classification.main()
    assert [row[1] for row in json.loads(out.read_text())["table"]["rows"]] == ["bilinear", "default"]
    assert "after 1 to 1 steps" in json.loads(out.read_text())["what"]


@pytest.mark.slow
def test_two_processes_train_and_go_on_with_the_network_that_one_trains(tmp_path):
    """Each with a folder of its own, as on two machines: only the first one's holds the checkpoint."""
    save_digits(tmp_path, torch.Generator().manual_seed(0))
    arguments = ["-m", "benchmarks.classification", "--data", str(tmp_path), "--set", "mnist", "--every", "2"]
    arguments += ["--seeds", "0", "--rates", "8", "--transformers", "STN", "--samplers", TRAINING]
    one, two = tmp_path / "one", tmp_path / "two"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--no-python"]
    subprocess.run([sys.executable, *arguments, "--steps", "4", "--runs", str(one)], check=True, env=environment)
    for last in ("2", "4"):
        command = shlex.join([sys.executable, *arguments, "--steps", last, "--runs", str(two)])
        subprocess.run([*torchrun, "sh", "-c", f"{command}/$RANK"], check=True, env=environment, timeout=120)
    (path,) = one.glob("*.pt")
    alone, shared = torch.load(path), torch.load(two / "0" / path.name)
    assert shared["step"] == 4
    assert not (two / "1").exists()
    for point, wanted in zip(shared["curve"], alone["curve"], strict=True):
        assert point == pytest.approx(wanted, rel=1e-3)
    for name, value in alone["network"].items():
        torch.testing.assert_close(shared["network"][name], value, atol=1e-4, rtol=1e-3)
