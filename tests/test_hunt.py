"""The benchmark that hunts for small signs in photos."""

import io
import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.hunt import __main__ as command
from benchmarks.hunt import gradient, scenes, train
from benchmarks.hunt.network import VIEW, Hunter, view
from benchmarks.hunt.scenes import LARGE, SIDE, SMALL, Material, compose, sides_at

HARD = (1.0, 1.0)


@pytest.fixture
def material():
    """Plain photos, and signs that are white, of two classes."""
    photos = [torch.full((3, SIDE + 3, SIDE + 60), 60 + 20 * number, dtype=torch.uint8) for number in range(3)]
    return Material(photos, torch.full((8, 3, 40, 40), 255, dtype=torch.uint8), torch.arange(8) % 2)


@pytest.fixture
def folders(tmp_path):
    """A folder with signs as archives, and a folder with photos."""
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        photo = Image.fromarray(rng.integers(0, 256, (60, 90, 3), dtype=np.uint8))
        photo.save(tmp_path / "photos" / f"{name}.png")
    image = np.zeros((50, 50, 3), np.uint8)
    image[10:30, 5:45] = 255  # the box, in an image that was 100 x 200 pixels large
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    for split in ("train", "test"):
        np.savez(
            tmp_path / f"gtsrb_{split}.npz",
            blob=np.frombuffer(4 * file.getvalue(), np.uint8),
            offsets=np.arange(5) * len(file.getvalue()),
            labels=np.array([0, 7, 42, 7]),
            size_wh=np.tile(np.array([100, 200], np.uint16), (4, 1)),
            roi_xyxy=np.tile(np.array([10, 40, 90, 120], np.uint16), (4, 1)),
        )
    return tmp_path


def test_a_seed_and_a_number_give_the_same_scene_in_any_batch(material):
    one, some = (compose(material, 3, numbers, 0.2, HARD) for numbers in ([5], [4, 5]))
    assert torch.equal(one.images[0], some.images[1])
    assert torch.equal(one.centres[0], some.centres[1])
    assert not torch.equal(one.centres, compose(material, 4, [5], 0.2, HARD).centres)
    assert not torch.equal(one.images, compose(material, 3, [5], 0.0, HARD).images)


@pytest.mark.parametrize("difficulty", [0.0, 0.5, 1.0])
def test_the_sign_is_where_it_says(material, difficulty):
    made = compose(material, 0, range(200), 0.0, (difficulty, difficulty))
    white = (made.images[:, 0] > 0.99).float()
    places = (2 * torch.arange(SIDE) + 1) / SIDE - 1
    centres = torch.stack([(white.sum(axis) * places).sum(1) / white.sum((1, 2)) for axis in (1, 2)], 1)
    torch.testing.assert_close(centres, made.centres, atol=1e-4, rtol=0)
    torch.testing.assert_close(white.sum((1, 2)), made.sides.float() ** 2)
    assert set(made.labels.tolist()) == {0, 1}


def test_hard_scenes_have_small_signs_anywhere_and_grain(material):
    made = compose(material, 0, range(60), 0.2, HARD)
    assert made.sides.min() >= 16
    assert made.sides.max() <= 40
    assert made.centres.abs().amax(0).min() > 0.7  # half of a sign's side is at least 0.06
    assert made.centres.mean(0).abs().max() < 0.25
    plain = compose(material, 0, range(60), 0.0, HARD).images
    inside = (plain < 0.5).expand_as(plain)
    assert (made.images - plain)[inside].std().item() == pytest.approx(0.2, abs=0.02)


def test_signs_shrink_as_scenes_get_harder():
    assert sides_at(0) == LARGE
    assert sides_at(1) == pytest.approx(SMALL)
    between = [sides_at(step / 10) for step in range(11)]
    assert all(a[0] > b[0] and a[1] > b[1] and b[0] < b[1] for a, b in pairwise(between))


@pytest.mark.parametrize("right", [True, False])
def test_scenes_get_harder_only_for_a_network_that_is_right(material, monkeypatch, right):
    monkeypatch.setattr(train, "RIGHT", -1.0 if right else 1.0)
    _, training = train.train(command.COMPARED["bilinear"], 0.0, 0, 3, material)
    assert training.difficulty == pytest.approx(3 * train.PACE if right else 0.0)


def test_signs_are_cut_out_along_their_boxes_and_photos_fill_the_scene(folders):
    loaded = scenes.load(folders / "photos", folders, "test")
    assert loaded.labels.tolist() == [0, 7, 42, 7]
    assert (loaded.signs[..., 2:-2, 2:-2] == 255).all()  # beyond it the image is black
    assert [tuple(photo.shape) for photo in loaded.photos] == [(3, SIDE, 384)] * 2
    with pytest.raises(SystemExit, match="holds 0 photos"):
        scenes.load(folders / "nothing", folders, "test")


def test_every_sampler_reads_the_same_view_where_it_neither_shrinks_nor_blurs(material):
    down, across = torch.meshgrid(torch.linspace(0, 1, SIDE), torch.linspace(0, 1, SIDE), indexing="ij")
    ramp = (0.6 * down + 0.3 * across).expand(2, 3, SIDE, SIDE)
    place = torch.tensor([[VIEW / SIDE, 0.3, -0.2], [VIEW / SIDE, -0.1, 0.4]])
    expected = view(command.COMPARED["bilinear"], ramp, place, torch.Generator())
    for name, sampler in command.COMPARED.items():
        seen = view(sampler, ramp, place, torch.Generator().manual_seed(0))
        torch.testing.assert_close(seen, expected, atol=2e-3, rtol=0, msg=name)
    # The middle of the view is where the place says.
    assert expected[0, 0].mean().item() == pytest.approx(0.6 * (1 - 0.2) / 2 + 0.3 * (1 + 0.3) / 2, abs=1e-2)


def test_the_localiser_learns_through_the_sampler_alone():
    torch.manual_seed(0)
    for name, sampler in command.COMPARED.items():
        network = Hunter(sampler).eval()
        photos = torch.rand(1, 3, SIDE, SIDE)
        scores, place = network(photos, torch.Generator().manual_seed(0))
        assert torch.equal(place, network.localise(photos))
        scores.square().sum().backward()
        assert network.localise.heat.weight.grad.abs().max() > 0, name


def test_a_sign_looks_the_same_to_the_localiser_wherever_it_is():
    features = Hunter(command.COMPARED["default"]).eval().localise.features
    photo = torch.zeros(1, 3, SIDE, SIDE)
    photo[..., 96:112, 80:96] = 1
    here, there = features(photo), features(photo.roll((32, 48), (2, 3)))
    assert here.std() > 0
    # By two and three cells, away from the edges.
    torch.testing.assert_close(there[..., 7:12, 7:12], here[..., 5:10, 4:9])


def test_a_view_has_found_the_sign_within_a_quarter_of_its_side(material):
    made = compose(material, 0, [0], 0.0, HARD)
    quarter = made.sides.item() / 4 * 2 / SIDE
    for share, expected in ((0.99, True), (1.01, False)):
        place = torch.cat((torch.tensor([[0.2]]), made.centres + torch.tensor([[share * quarter, 0.0]])), 1)
        assert train.is_found(place, made).item() is expected


def test_the_command_writes_a_table_and_a_figure_and_resumes(folders, monkeypatch, capsys):
    monkeypatch.setattr(train, "TESTED", 50)
    monkeypatch.setattr(command, "TESTED", 50)
    out, photos = folders / "hunt.json", str(folders / "photos")
    arguments = ["--data", str(folders), "--photos", photos, photos, "--seeds", "0", "1", "--grains", "0.2"]
    arguments += ["--samplers", "default", "bilinear", "--steps", "3", "--finished", str(folders / "hunt.jsonl")]
    monkeypatch.setattr("sys.argv", ["benchmarks/hunt/__main__.py", *arguments, "--json", str(out)])
    command.main()
    result = json.loads(out.read_text())
    assert [row[:2] for row in result["table"]["rows"]] == [["0.2", "default"], ["0.2", "bilinear"]]
    assert all("±" in cell for row in result["table"]["rows"] for cell in row[2:8])
    assert result["command"].startswith("python -m benchmarks.hunt --data DIR --photos TRAIN TEST --seeds 0 1")
    assert (folders / result["figure"]["file"]).stat().st_size > 10_000
    assert [value["difficulty"] for value in result["raw"]["default, grain 0.2"]] == [0, 0]
    monkeypatch.setattr(command, "train", None)  # nothing is trained again
    command.main()
    assert json.loads(out.read_text())["raw"] == result["raw"]


def test_a_training_is_that_of_its_seed(material):
    def weights(seed):
        network, _ = train.train(command.COMPARED["paper"], 0.1, seed, 2, material)
        return torch.cat([weight.detach().flatten() for weight in network.parameters()])

    first = weights(3)
    assert torch.equal(first, weights(3))
    assert not torch.equal(first, weights(4))


def test_the_gradient_of_a_classifier_that_likes_white_in_the_middle_points_to_the_white_sign(material):
    edge, sampler = torch.linspace(-1, 1, VIEW), command.COMPARED["default"]
    window = (-2 * (edge[:, None] ** 2 + edge**2)).exp()
    network = SimpleNamespace(
        classify=lambda views: torch.stack((0 * views.sum((1, 2, 3)), (views * window).mean((1, 2, 3))), 1)
    )
    white = material._replace(labels=torch.ones(8, dtype=torch.long))
    assert gradient.cosine(network, sampler, 0.6, 0.0, white) > 0.9
    black = material._replace(labels=torch.zeros(8, dtype=torch.long))
    assert gradient.cosine(network, sampler, 0.6, 0.0, black) < -0.9


def test_the_table_of_gradients_has_a_row_for_every_sampler(folders, monkeypatch, capsys):
    monkeypatch.setattr(gradient, "COUNT", 10)
    photos, out = str(folders / "photos"), folders / "gradient.json"
    arguments = ["--data", str(folders), "--photos", photos, photos, "--grains", "0.1", "--steps", "2"]
    arguments += ["--finished", str(folders / "hunt.jsonl"), "--json", str(out)]
    monkeypatch.setattr("sys.argv", ["benchmarks/hunt/gradient.py", *arguments])
    gradient.main()
    result = json.loads(out.read_text())
    assert [row[1] for row in result["table"]["rows"]] == list(command.COMPARED)
    assert result["table"]["columns"][-1] == "16 to 40 px, 1.3x"
    assert result["command"].startswith("python -m benchmarks.hunt.gradient --data DIR --photos TRAIN TEST")
