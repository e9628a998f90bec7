"""Patches with the sampling as it comes: nothing is drawn, and a model is evaluated on what it was trained on."""

import pytest
import torch
import torch.nn.functional as F
from lms_geometry.integrations import linearize
from lms_geometry.integrations.stn import linearize_stn
from torch import nn

from lms_geometry import LinearizedSampling, grid_sample_linearized

IMAGE = torch.rand(2, 3, 23, 31, generator=torch.Generator().manual_seed(0))
THETA = torch.tensor([[[2.0, 0.3, 0.1], [-0.2, 1.7, 0.0]]]).repeat(2, 1, 1)


def grid_of(theta):
    return F.affine_grid(theta, (2, 3, 7, 9), align_corners=False)


class Model(nn.Module):
    """Reads its image through a warp that it learns, and through one that is fixed."""

    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(THETA.clone())

    def forward(self, image):
        learned = F.grid_sample(image, grid_of(self.theta), align_corners=False)
        fixed = F.grid_sample(image, grid_of(THETA), align_corners=False)
        return learned, fixed


def test_a_patch_draws_nothing_and_swaps_where_the_grid_carries_a_gradient():
    model, before = Model(), torch.get_rng_state()
    with linearize(model) as patch:
        learned, fixed = model(IMAGE)
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(learned, grid_sample_linearized(IMAGE, grid_of(THETA)), rtol=0, atol=0)
    assert torch.equal(fixed, F.grid_sample(IMAGE, grid_of(THETA), align_corners=False))
    assert "grid carries no gradient" in patch.report()


@pytest.mark.parametrize("evaluates", [torch.no_grad, torch.inference_mode])
def test_a_model_is_evaluated_on_what_it_was_trained_on(evaluates):
    model = Model()
    with linearize(model):
        trained = model(IMAGE)
        model.eval()
        with evaluates():
            evaluated = model(IMAGE)
    for got, want in zip(evaluated, trained, strict=True):
        assert torch.equal(got, want)


def test_drawn_samples_are_swapped_under_no_grad_only_where_include_names_the_call():
    model = Model()
    with linearize(model, sampling=LinearizedSampling.paper()):
        model(IMAGE)
        with torch.no_grad():
            learned, _ = model(IMAGE)
    assert torch.equal(learned, F.grid_sample(IMAGE, grid_of(THETA), align_corners=False))


def test_a_seed_is_refused():
    with pytest.raises(ValueError, match="seed must be None for a sampling with fixed points"):
        linearize(seed=0)
    linearize(sampling=LinearizedSampling.paper(), seed=0)


def test_a_pair_of_affine_grid_and_grid_sample_has_the_exact_jacobian_and_its_gradient():
    """An enlarged grid of one row has no neighbours to take differences from."""
    theta = THETA.clone().requires_grad_()

    def by_theta(theta):
        grid = F.affine_grid(theta, (2, 3, 1, 1), align_corners=False)
        return F.grid_sample(IMAGE, grid, align_corners=False).square().sum()

    with linearize_stn():
        (found,) = torch.autograd.grad(by_theta(theta), theta)
    jacobian = theta[:, None, None, :, :2] * torch.tensor([2.0, 2.0]) * torch.tensor([31 / 2, 23 / 2])[:, None]
    grid = F.affine_grid(theta, (2, 3, 1, 1), align_corners=False)
    out = grid_sample_linearized(IMAGE, grid, jacobian=jacobian).square().sum()
    (wanted,) = torch.autograd.grad(out, theta)
    torch.testing.assert_close(found, wanted)
    assert (found[:, :, :2].abs() > 0).all()
