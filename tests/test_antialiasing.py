import math

import pytest
import torch
import torch.nn.functional as F

from benchmarks import antialiasing, samplers
from benchmarks.classification.data import SIZE
from benchmarks.classification.samplers import SAMPLERS


def photo(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def warp(angle=0.4, scale_x=1.3, scale_y=0.7, x=0.2, y=-0.1):
    cos, sin = math.cos(angle), math.sin(angle)
    rows = (cos * scale_x, -sin * scale_y, x), (sin * scale_x, cos * scale_y, y)
    return torch.tensor([rows], dtype=torch.float64)


def affine_grid(theta, height, width):
    return F.affine_grid(theta, [len(theta), 1, height, width], align_corners=False)


def read_by_hand(texture, x, y, padding_mode):
    """The bilinear value at (x, y), in texels from the centre of the first, of one channel."""
    height, width = texture.shape
    left, top, value = math.floor(x), math.floor(y), 0.0
    for column, row in ((left, top), (left + 1, top), (left, top + 1), (left + 1, top + 1)):
        weight = (1 - abs(x - column)) * (1 - abs(y - row))
        if padding_mode == "border":
            column, row = min(max(column, 0), width - 1), min(max(row, 0), height - 1)
        if 0 <= column < width and 0 <= row < height:
            value += weight * texture[row, column].item()
    return value


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_supersampling_is_the_mean_of_reads_within_each_output_pixel(count, padding_mode):
    image, (height, width) = photo(1, 1, 13, 17), (4, 5)
    found = antialiasing.supersampled(image, affine_grid(warp(), height, width), count, padding_mode)[0, 0]
    for row in range(height):
        for column in range(width):
            reads = []
            for i in range(count * count):
                across, down = column + (i % count + 0.5) / count, row + (i // count + 0.5) / count
                place = torch.tensor([2 * across / width - 1, 2 * down / height - 1, 1.0], dtype=torch.float64)
                x, y = (warp()[0] @ place).tolist()
                reads.append(read_by_hand(image[0, 0], (x + 1) * 17 / 2 - 0.5, (y + 1) * 13 / 2 - 0.5, padding_mode))
            assert found[row, column].item() == pytest.approx(sum(reads) / len(reads), abs=1e-12)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_dense_grid_of_an_affine_warp_is_that_of_an_output_as_many_times_as_large(count):
    theta = torch.cat((warp(), warp(-1.0, 0.5, 2.0)))
    found = antialiasing.denser(affine_grid(theta, 5, 7), count)
    torch.testing.assert_close(found, affine_grid(theta, 5 * count, 7 * count))


def test_the_dense_grid_of_another_transform_is_near_the_transform_itself():
    def bend(grid):
        return grid + 0.05 * (2 * grid.flip(-1)).sin()

    identity = torch.eye(2, 3, dtype=torch.float64)[None]
    found = antialiasing.denser(bend(affine_grid(identity, 20, 30)), 3)
    torch.testing.assert_close(found, bend(affine_grid(identity, 60, 90)), atol=5e-4, rtol=0)


@pytest.mark.parametrize("sample", [lambda i, g: antialiasing.supersampled(i, g, 3), antialiasing.mipmapped])
def test_gradients_are_derivatives_of_the_value(sample):
    """The mipmap's too, where the warp does not change the level: for a translation."""
    image, theta = photo(1, 2, 9, 11).requires_grad_(), warp(0.3, 1.1, 1.2)

    def read(image, shift):
        return sample(image, affine_grid(torch.cat((theta[:, :, :2], shift), 2), 3, 4))

    torch.autograd.gradcheck(read, (image, theta[:, :, 2:].clone().requires_grad_()))


def test_the_level_of_a_mipmap_is_a_constant_to_differentiation():
    """A texture of stripes has another value on another level, but at its centre no slope along its own axis."""
    image = photo(1, 1, 1, 64).expand(1, 1, 64, 64)
    theta = warp(0.0, 0.5, 0.77, 0.0, 0.0).requires_grad_()
    antialiasing.mipmapped(image, affine_grid(theta, 5, 7)).sum().backward()
    assert theta.grad[0, 1, 1].abs() < 1e-12  # the scale along the stripes decides the level
    assert theta.grad[0, 0, 0].abs() > 1e-2


@pytest.mark.parametrize("padding_mode", ["zeros", "border"])
def test_the_identity_reads_the_image_itself(padding_mode):
    image = photo(2, 3, 9, 13)
    grid = affine_grid(torch.eye(2, 3, dtype=torch.float64).repeat(2, 1, 1), 9, 13)
    torch.testing.assert_close(antialiasing.mipmapped(image, grid, padding_mode), image)
    torch.testing.assert_close(antialiasing.supersampled(image, grid, 1, padding_mode), image)
    # Where nothing shrinks the mipmap is bilinear sampling.
    closer = affine_grid(warp(0.4, 0.5, 0.3).repeat(2, 1, 1), 9, 13)
    expected = F.grid_sample(image, closer, padding_mode=padding_mode, align_corners=False)
    torch.testing.assert_close(antialiasing.mipmapped(image, closer, padding_mode), expected)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_whole_level_is_the_mean_of_boxes(level):
    image, side = photo(2, 3, 24, 40), 2**level
    grid = affine_grid(torch.eye(2, 3, dtype=torch.float64).repeat(2, 1, 1), 24 // side, 40 // side)
    boxes = image.unflatten(3, (-1, side)).unflatten(2, (-1, side)).mean((3, 5))
    torch.testing.assert_close(antialiasing.mipmapped(image, grid), boxes)


@pytest.mark.parametrize(("scale", "bias", "lower"), [(3.0, 0.0, 1), (3.0, -1.0, 0), (6.5, 0.0, 2), (6.5, -1.0, 1)])
def test_two_levels_are_blended_by_the_longer_side_of_the_footprint(scale, bias, lower):
    image = photo(1, 1, 32, 32)
    # An output pixel covers `scale` source pixels one way and 1.7 the other, turned.
    theta = warp(0.4, 1.7 * 5 / 32, scale * 5 / 32, 0.05, -0.03)
    found = antialiasing.mipmapped(image, affine_grid(theta, 5, 5), bias=bias)
    reads = []
    for level in (lower, lower + 1):
        side = 2**level
        texture = image.unflatten(3, (-1, side)).unflatten(2, (-1, side)).mean((3, 5))
        reads.append(F.grid_sample(texture, affine_grid(theta, 5, 5), align_corners=False))
    share = math.log2(scale) + bias - lower
    torch.testing.assert_close(found, (1 - share) * reads[0] + share * reads[1])


@pytest.mark.parametrize(("padding_mode", "outside"), [("zeros", 0.0), ("border", 0.5)])
def test_an_odd_side_is_padded_as_reads_outside_are(padding_mode, outside):
    image = torch.full((1, 1, 5, 7), 0.5, dtype=torch.float64)
    levels = antialiasing.mipmap(image, padding_mode)
    assert [tuple(level.shape[-2:]) for level in levels] == [(5, 7), (3, 4), (2, 2), (1, 1)]
    assert levels[1][0, 0, 0].tolist() == [0.5, 0.5, 0.5, (0.5 + outside) / 2]
    assert levels[3].item() == pytest.approx((35 * 0.5 + 29 * outside) / 64)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (65, 71)])
def test_a_ramp_is_the_same_on_all_levels(height, width):
    """So the levels lie where they should on one another, also those that were padded."""
    ramp = (torch.arange(width) + 2.0 * torch.arange(height)[:, None]).double().expand(1, 1, height, width)
    grid = affine_grid(warp(0.3, 0.3, 0.3, 0.05, 0.05), 4, 5)  # so far inside that no read sees the padding
    expected = F.grid_sample(ramp, grid, align_corners=False)
    for bias in (0.0, 1.0, 1.5):
        torch.testing.assert_close(antialiasing.mipmapped(ramp, grid, bias=bias), expected)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("supersampled 3 x 3", lambda image, grid: antialiasing.supersampled(image, grid, 3)),
        ("supersampled 2 x 2, border padding", lambda image, grid: antialiasing.supersampled(image, grid, 2, "border")),
        ("mipmap", antialiasing.mipmapped),
        ("mipmap, border padding", lambda image, grid: antialiasing.mipmapped(image, grid, "border")),
        ("mipmap, one level finer", lambda image, grid: antialiasing.mipmapped(image, grid, bias=-1)),
    ],
)
def test_classification_reads_its_views_so(name, expected):
    pixels, theta = (255 * photo(1, 3, SIZE, SIZE)).byte(), warp().float()
    canvas = SAMPLERS[name].prepare(pixels, 13).float() / 255
    views = SAMPLERS[name].read(canvas, theta, SIZE, 13, torch.Generator())
    torch.testing.assert_close(views, expected(canvas, affine_grid(theta, 13, 13)))


def test_the_experiments_read_so_whether_images_or_warps_are_one():
    images, warps = photo(2, 1, 32, 40), torch.cat((warp(), warp(0.1)))
    for sampler, expected in (
        (samplers.supersampled(3, "border"), antialiasing.supersampled(images, affine_grid(warps, 5, 6), 3, "border")),
        (samplers.mipmapped(-1.0), antialiasing.mipmapped(images, affine_grid(warps, 5, 6), bias=-1)),
    ):
        torch.testing.assert_close(sampler(images)(warps, (5, 6), 0.0, torch.Generator()), expected)
        one = sampler(images[:1])(warps, (5, 6), 0.0, torch.Generator())
        torch.testing.assert_close(one[:1], expected[:1])
