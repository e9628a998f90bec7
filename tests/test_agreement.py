"""The agreement of gradients, which scores and compares results, and the verdict on them."""

import numpy as np
import pytest
import torch
from skimage import data

from lms_geometry import register
from lms_geometry.registration.agreement import agreement, vector_field
from lms_geometry.registration.phase import shift_correlation


def _photo(size=(60, 75)):
    image = torch.from_numpy(data.astronaut()[40:400:6, 60:510:6].copy()).permute(2, 0, 1)[None].float() / 255
    return image[..., : size[0], : size[1]]


def _agree(first, second, **options):
    whole = torch.ones_like(first[:, :1])
    return agreement(first, second, whole, whole, **options).mean.item()


def test_it_is_1_for_equal_images_in_any_light_and_unit_and_low_for_others():
    photo = _photo()
    vignette = 1 - 0.5 * torch.linspace(-1, 1, 75).square()
    assert _agree(photo, photo) == pytest.approx(1, abs=1e-3)
    assert _agree(photo, 0.4 * photo * vignette + 7) > 0.9
    assert _agree(photo, 1 - photo) == pytest.approx(1, abs=1e-3)  # a negative
    for unit in (255.0, 1e-5, 1e-10):
        assert _agree(unit * photo, unit * photo) == pytest.approx(1, abs=1e-3)
    assert _agree(photo, photo.flip(-1)) < 0.3
    assert _agree(photo, torch.rand(1, 3, 60, 75, generator=torch.Generator().manual_seed(0))) < 0.2
    assert _agree(photo, torch.full_like(photo, 0.3)) < 0.1


def test_a_hidden_part_costs_its_share():
    photo = _photo()
    hidden = photo.clone()
    hidden[..., :30, :37] = 0.5
    assert 0.6 < _agree(photo, hidden) < 0.95


def test_doubled_angles_do_not_see_which_side_is_brighter():
    photo = _photo()
    one_by_one = torch.where(torch.arange(75) < 37, photo, 1 - photo)  # half of it is reversed
    assert _agree(photo, one_by_one, doubled=True) > 0.9 > 0.5 > _agree(photo, one_by_one)


def test_the_correlation_at_every_shift_is_that_of_the_shifted_images():
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.rand(1, 1, 11, 13, generator=generator) for _ in range(2))
    whole = torch.ones_like(first)
    found, negative = shift_correlation(first, whole, second, whole, signs=(1, -1))[:, 0]
    fields = [vector_field(image)[0].numpy() for image in (first, second)]
    for dy, dx in ((0, 0), (2, -3), (-4, 1)):
        rows, columns = slice(max(0, -dy), 11 - max(0, dy)), slice(max(0, -dx), 13 - max(0, dx))
        a = fields[0][:, rows.start + dy : rows.stop + dy, columns.start + dx : columns.stop + dx]
        b = fields[1][:, rows, columns]
        share = b[0].size / (11 * 13)
        similarity, chance = (a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()), 0.05 / np.sqrt(share)
        assert found[dy % 22, dx % 26].item() == pytest.approx(similarity - chance, abs=1e-3)
        assert negative[dy % 22, dx % 26].item() == pytest.approx(-similarity - chance, abs=1e-3)


def _two_valued(inside):
    return 0.2 + 0.6 * inside[None, None].float().expand(1, 3, -1, -1)


def test_what_is_ambiguous_is_not_called_good_and_a_photo_is():
    y, x = torch.meshgrid(torch.arange(90), torch.arange(110), indexing="ij")
    disc, moved = (_two_valued((x - a) ** 2 + (y - b) ** 2 < 24**2) for a, b in ((45, 40), (58, 47)))
    board = _two_valued((x // 8 + y // 8) % 2 == 0)
    blank = torch.full((1, 3, 90, 110), 0.5)
    noise = torch.rand(2, 3, 90, 110, generator=torch.Generator().manual_seed(2))
    photo = torch.from_numpy(data.astronaut()[40:400:4, 60:500:4].copy()).permute(2, 0, 1)[None].float() / 255
    sources = torch.cat((disc, board, blank, noise[:1], photo))
    targets = torch.cat((moved, board.roll(5, -1), blank, noise[1:], 0.8 * photo))
    found = register(sources, targets, "similarity")
    assert found.good.tolist() == [False, False, False, False, True]
    assert found.score[4] > 0.99
    assert found.score[2] == 0
