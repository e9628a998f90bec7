import pytest
import torch
import torch.nn.functional as F

from lms_geometry.registration.similarity import gain_and_bias, residual


def test_what_is_hidden_by_the_masks_counts_with_the_targets_variance():
    warped, target = torch.rand(1, 2, 3, 5, 6), torch.rand(1, 1, 3, 5, 6)
    target_weight = torch.ones(1, 1, 1, 5, 6)
    valid = torch.ones(1, 2, 1, 5, 6)
    valid[:, 1, :, :, :2] = 0
    found = residual(warped, target, valid, target_weight, False, "squared").loss
    squared = (warped - target).square().mean(2)
    torch.testing.assert_close(found[0, 0], squared[0, 0].mean())
    spread = (target - target.mean((3, 4), keepdim=True)).square().mean()
    torch.testing.assert_close(found[0, 1], (squared[0, 1, :, 2:].sum() + 10 * spread) / 30)


def test_hubers_loss_is_squared_near_zero_and_linear_far_away():
    target = torch.zeros(1, 1, 1, 1, 3)
    warped = torch.tensor([0.05, 0.2, 0.8]).view(1, 1, 1, 1, 3)
    valid = torch.ones_like(target)
    found = residual(warped, target, valid, valid, False, "huber", delta=torch.tensor([[0.2]]))
    expected = F.huber_loss(warped, target, delta=0.2, reduction="mean") * 2
    torch.testing.assert_close(found.loss[0, 0], expected)
    torch.testing.assert_close(found.weight.flatten(), torch.tensor([1.0, 1.0, 0.25]))


def test_the_gain_does_not_depend_on_the_units_of_the_images():
    generator = torch.Generator().manual_seed(0)
    image, valid = torch.rand(1, 3, 20, 20, generator=generator), torch.ones(1, 1, 20, 20)
    for unit in (255.0, 0.01, 1e-4, 1e-6):
        gain, _ = gain_and_bias(unit * image[:, None], 2 * unit * image[:, None], valid[:, None])
        assert gain.item() == pytest.approx(2, abs=1e-3)
