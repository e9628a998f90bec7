import json
import math

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.pixel import gradient, path, samplers, value, zone_plate


@pytest.fixture
def folder(tmp_path):
    """A folder with two photos of noise, smooth over a few pixels."""
    generator = torch.Generator().manual_seed(0)
    for name in "ab":
        noise = F.interpolate(torch.rand(1, 3, 33, 37, generator=generator), (132, 148), mode="bicubic").clamp(0, 1)
        Image.fromarray((255 * noise[0].permute(1, 2, 0)).byte().numpy()).save(tmp_path / f"{name}.png")
    return tmp_path


def ramp(height, width, across, down):
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (across * x + down * y).double()[None, None]


def run(module, arguments, folder, monkeypatch):
    out = folder / "out" / "result.json"
    monkeypatch.setattr("sys.argv", ["run", *arguments, "--json", str(out)])
    module.main()
    result = json.loads(out.read_text())
    assert "figure" not in result or (out.parent / result["figure"]["file"]).stat().st_size > 1000
    return result


def test_a_shrinking_warp_covers_as_many_source_pixels_as_it_says():
    image = torch.zeros(2, 1, 31, 43, dtype=torch.float64)
    theta = samplers.shrinking(2.5, 0.3, image, (5, 7))
    (jacobian,) = samplers.pixel_jacobian(theta, (31, 43), (5, 7))[0, 0]
    cos, sin = 2.5 * math.cos(0.3), 2.5 * math.sin(0.3)
    torch.testing.assert_close(jacobian, torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64))
    # The same from the grid itself: the step to the next pixel, in source pixels.
    grid = samplers.affine_grid(theta, (5, 7)) * torch.tensor([43 / 2, 31 / 2], dtype=torch.float64)
    torch.testing.assert_close(grid[0, 2, 4] - grid[0, 2, 3], jacobian[:, 0])
    torch.testing.assert_close(grid[0, 3, 3] - grid[0, 2, 3], jacobian[:, 1])


def test_the_mean_over_a_pixel_of_a_square_is_the_mean_of_the_texels_it_covers():
    image = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = torch.eye(2, 3, dtype=torch.float64)[None]
    mean = samplers.pixel_mean(image, theta, (3, 5))[..., 1:-1, 1:-1]
    # A bilinear read spreads a texel over its neighbours: a tent, whose mean over a texel weighs 1/8, 3/4, 1/8.
    tent = torch.tensor([1 / 8, 3 / 4, 1 / 8], dtype=torch.float64)
    spread = F.conv2d(image.flatten(0, 1)[:, None], (tent[:, None] * tent)[None, None], padding=1).view_as(image)
    torch.testing.assert_close(mean, F.avg_pool2d(spread, 4)[..., 1:-1, 1:-1], atol=2e-4, rtol=0)


@pytest.mark.parametrize("name", [*gradient.COMPARED])
def test_every_sampler_has_the_slope_of_a_plane(name):
    # Away from the border, where a mipmap pads.
    image = ramp(64, 64, 0.3, -0.2)
    theta = samplers.shrinking(4.0, 0.35, image, (5, 5))
    weight = torch.ones(1, 1, 5, 5, dtype=torch.float64)
    found = gradient.matrix_gradient(gradient.COMPARED[name], image, theta, weight, torch.Generator().manual_seed(0))
    expected = 25 * 32 * torch.tensor([0.3, -0.2], dtype=torch.float64)
    torch.testing.assert_close(found[0, [2, 5]], expected, atol=0.4 if name == "paper" else 0.15, rtol=0)


def test_finite_differences_are_those_of_the_mean_of_a_plane():
    image = ramp(33, 65, 0.3, -0.2)
    theta = samplers.shrinking(3.0, 0.2, image, (4, 5))
    weights = torch.rand(2, 1, 1, 4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = gradient.finite_differences(image, theta, (4, 5), weights)
    x, y = samplers.affine_grid(torch.eye(2, 3, dtype=torch.float64)[None], (4, 5)).unbind(-1)
    view = torch.stack((x, y, torch.ones_like(x)), -1)[0]
    by_view = torch.einsum("dhw, hwk -> dk", weights[:, 0, 0], view)
    expected = torch.cat((0.3 * 65 / 2 * by_view, -0.2 * 33 / 2 * by_view), 1)
    torch.testing.assert_close(found[:, 0], expected, atol=1e-4, rtol=1e-5)  # torch's base grid is float32


def test_the_gradient_of_a_loss_has_six_cosines_for_each_sampler(folder, monkeypatch):
    monkeypatch.setattr(gradient, "RATES", (4, 8))
    finished = str(folder / "finished.jsonl")
    arguments = ["--data", str(folder), "--count", "2", "--draws", "2", "--finished", finished]
    result = run(gradient, arguments, folder, monkeypatch)
    rows = result["table"]["rows"]
    assert [row[:2] for row in rows] == [[f"{rate}x", name] for rate in (4, 8) for name in gradient.COMPARED]
    assert all(len(row) == len(result["table"]["columns"]) == 8 for row in rows)
    cosines = [[float(cosine) for cosine in draw.split()] for draw in result["raw"]["8x, 0.35, bilinear"]]
    assert torch.tensor(cosines).shape == (2, 6)
    assert torch.tensor(cosines).abs().max() <= 1


def test_values_are_far_from_the_mean_for_bilinear_and_near_for_many_reads(folder, monkeypatch):
    monkeypatch.setattr(value, "RATES", (2.0, 8.0))
    result = run(value, ["--data", str(folder), "--count", "2"], folder, monkeypatch)
    distances = {name: list(found.values()) for name, found in result["raw"]["distances"].items()}
    assert all(a < b for a, b in zip(distances["supersampled 4 x 4"], distances["bilinear"], strict=True))
    assert [row[0] for row in result["table"]["rows"]] == [*samplers.SAMPLERS]


def test_of_rings_that_are_too_fine_a_bilinear_read_leaves_most_and_grey_has_none(folder, monkeypatch):
    assert zone_plate.aliasing(torch.full((1, 1, zone_plate.VIEW, zone_plate.VIEW), 0.5)) == 0
    plate = zone_plate.zone_plate(zone_plate.SIDE)
    first = (zone_plate.SIDE - zone_plate.VIEW) // 2
    inside = plate[..., first : first + zone_plate.VIEW, first : first + zone_plate.VIEW]
    assert inside.min() >= 0
    assert inside.max() <= 1
    result = run(zone_plate, [], folder, monkeypatch)
    left = {row[0]: float(row[1].split()[0]) for row in result["table"]["rows"]}
    assert left[zone_plate.MEAN] < left["supersampled 3 x 3"] < left["bilinear"]


def test_along_a_path_the_derivatives_are_those_of_the_value(folder, monkeypatch):
    photo = ramp(40, 40, 0.1, 0.05).square()
    scales = torch.linspace(2.0, 2.1, 21, dtype=torch.float64)
    monkeypatch.setattr(path, "PIXELS", 5)
    found = path.along_path(path.SAMPLERS["mean over the pixel"], photo, scales, 2, 0.3)
    rise = (found["value"][2:] - found["value"][:-2]) / (scales[2] - scales[0])
    torch.testing.assert_close(found["by the scale"][1:-1], rise, atol=2e-2, rtol=5e-2)

    monkeypatch.setattr(path, "STEPS", 5)
    result = run(path, ["--data", str(folder), "--photo", "1"], folder, monkeypatch)
    assert [row[0] for row in result["table"]["rows"]] == [*path.SAMPLERS]
    assert len(result["raw"]) == 9 * len(path.SAMPLERS)
    assert all(len(curve.split()) == 5 for curve in result["raw"].values())
