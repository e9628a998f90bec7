import csv

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.classification.data import SIZE, hold_out, load


def test_a_tenth_of_the_tracks_of_each_class_is_held_out_whole():
    """Tracks are numbered within a class, and classes have 4, 10 or 31 of them, of 7 frames."""
    classes = torch.cat([torch.full((7 * count,), label) for label, count in enumerate((4, 10, 31))])
    tracks = torch.cat([torch.arange(count).repeat_interleave(7) for count in (4, 10, 31)])
    order = torch.randperm(len(tracks), generator=torch.Generator().manual_seed(0))
    tracks, classes = tracks[order], classes[order]
    held_out = hold_out(tracks, classes)
    names = 100 * classes + tracks
    assert not set(names[held_out].tolist()) & set(names[~held_out].tolist())
    assert classes[held_out].bincount().tolist() == [7, 7, 21]


def write_release(folder):
    """Two tracks in each of two classes, and a test set whose answers are in no order of the files."""
    colours = np.random.default_rng(0).integers(0, 255, (2, 2, 3))
    for label in range(2):
        place = folder / f"GTSRB/Final_Training/Images/{label:05}"
        place.mkdir(parents=True)
        for track in range(2):
            for frame in range(3):
                flat = np.broadcast_to(colours[label, track], (31, 27, 3)).astype(np.uint8)
                Image.fromarray(flat).save(place / f"{track:05}_{frame:05}.ppm")
    place = folder / "GTSRB/Final_Test/Images"
    place.mkdir(parents=True)
    for number in range(3):
        Image.fromarray(np.full((20, 33, 3), 50 * number, np.uint8)).save(place / f"{number:05}.ppm")
    with (folder / "GT-final_test.csv").open("w", newline="") as file:
        table = csv.writer(file, delimiter=";")
        table.writerow(["Filename", "Width", "Height", "Roi.X1", "Roi.Y1", "Roi.X2", "Roi.Y2", "ClassId"])
        table.writerows([f"{number:05}.ppm", 33, 20, 0, 0, 0, 0, label] for number, label in ((2, 1), (0, 0), (1, 1)))
    return colours


def test_the_release_of_gtsrb_is_read_with_its_labels_and_tracks(tmp_path):
    colours = write_release(tmp_path)
    data = load("gtsrb", tmp_path)
    for split in (data.train, data.validation):
        assert split.labels.tolist() == [0, 0, 0, 1, 1, 1]  # one track of two
    for split in (data.train, data.validation):
        for image, label in zip(split.pixels, split.labels, strict=True):
            assert image[:, 20, 20].tolist() in colours[label].tolist()
    assert data.validation.pixels.flatten(1).unique(dim=0).shape[0] == 2
    assert data.test.labels.tolist() == [1, 0, 1]
    assert data.test.pixels[:, 0, 9, 9].tolist() == [100, 0, 50]


def test_archives_of_gtsrb_give_the_same_as_its_release(tmp_path):
    write_release(tmp_path)
    train = sorted((tmp_path / "GTSRB/Final_Training").rglob("*.ppm"))
    test = [tmp_path / f"GTSRB/Final_Test/Images/{number:05}.ppm" for number in (2, 0, 1)]
    packed = tmp_path / "packed"
    packed.mkdir()
    for name, files, labels in (("train", train, [0] * 6 + [1] * 6), ("test", test, [1, 0, 1])):
        blobs = [file.read_bytes() for file in files]
        np.savez(
            packed / f"gtsrb_{name}.npz",
            blob=np.frombuffer(b"".join(blobs), np.uint8),
            offsets=np.cumsum([0, *map(len, blobs)]),
            labels=np.array(labels),
            **({"track": np.array([0, 0, 0, 1, 1, 1] * 2, np.uint16)} if name == "train" else {}),
        )
    for split, other in zip(load("gtsrb", packed), load("gtsrb", tmp_path), strict=True):
        assert torch.equal(split.pixels, other.pixels)
        assert torch.equal(split.labels, other.labels)


def test_missing_data_is_named(tmp_path):
    with pytest.raises(SystemExit, match=r"holds neither GTSRB's training images"):
        load("gtsrb", tmp_path)
    with pytest.raises(SystemExit, match=r"mnist\.npz is missing"):
        load("mnist", tmp_path)


def test_digits_lie_differently_on_their_canvas_and_stay_within_it(tmp_path):
    digit = np.zeros((28, 28), np.uint8)
    digit[4:24, 10:18] = 255
    splits = {f"x_{split}": np.stack([digit] * 40) for split in ("train", "test")}
    np.savez(tmp_path / "mnist.npz", **splits, y_train=np.arange(40) % 10, y_test=np.arange(40) % 10)
    data = load("mnist", tmp_path)
    assert data.train.pixels.shape == (36, 1, SIZE, SIZE)
    assert data.train.pixels.flatten(1).unique(dim=0).shape[0] == 36
    edge = data.train.pixels.float()
    edge[..., 2:-2, 2:-2] = 0
    assert edge.sum() < 0.02 * data.train.pixels.float().sum()
