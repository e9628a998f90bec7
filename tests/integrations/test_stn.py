"""The exact Jacobian of affine_grid and grid_sample pairs."""

import pytest
import torch
import torch.nn.functional as F
from lms_geometry.integrations import linearize
from lms_geometry.integrations.stn import linearize_stn
from settings import paper
from torch import nn

from lms_geometry import grid_sample_linearized

THETA = torch.tensor([[[0.6, 0.1, 0.1], [-0.2, 0.5, 0.0]], [[0.4, 0.0, -0.3], [0.1, 0.7, 0.2]]], dtype=torch.float64)
IMAGE = torch.rand(2, 3, 19, 26, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class STN(nn.Module):
    def __init__(self, size, grid_corners=False, sample_corners=False, change=lambda grid: grid):
        super().__init__()
        self.theta = nn.Parameter(THETA.clone())
        self.size, self.corners, self.change = size, (grid_corners, sample_corners), change

    def forward(self, image):
        grid = F.affine_grid(self.theta, (2, 3, *self.size), align_corners=self.corners[0])
        return F.grid_sample(image, self.change(grid), align_corners=self.corners[1])


def value_and_gradient(stn):
    torch.manual_seed(0)
    out = stn(IMAGE)
    return out.detach(), torch.autograd.grad(out.square().sum(), stn.theta)[0]


def jacobian_by_hand(size, grid_corners, sample_corners):
    """How the source pixel moves with the output pixel, differentiated from the definition of both."""

    def source_pixel(output_pixel, theta):
        n = torch.tensor(size[::-1], dtype=torch.float64)
        x = 2 * output_pixel / (n - 1).clamp_min(1) - 1 if grid_corners else (2 * output_pixel + 1) / n - 1
        point = theta[:, :2] @ x + theta[:, 2]
        scale = torch.tensor([26 - sample_corners, 19 - sample_corners], dtype=torch.float64) / 2
        return (point + 1) * scale

    one = torch.ones(2, dtype=torch.float64)
    return torch.stack([torch.func.jacrev(source_pixel)(one, theta) for theta in THETA])[:, None, None]


@pytest.mark.parametrize("size", [(5, 7), (1, 7), (5, 1)])
@pytest.mark.parametrize("grid_corners", [False, True])
@pytest.mark.parametrize("sample_corners", [False, True])
@pytest.mark.filterwarnings("ignore:Since version 1.3.0, affine_grid:UserWarning")
def test_the_jacobian_is_that_of_the_matrix(size, grid_corners, sample_corners):
    stn = STN(size, grid_corners, sample_corners)
    with linearize_stn(stn, sampling=paper()) as patch:
        got = value_and_gradient(stn)
    assert "swapped, exact Jacobian" in patch.report()
    jacobian = jacobian_by_hand(size, grid_corners, sample_corners)
    grid = F.affine_grid(stn.theta, (2, 3, *size), align_corners=grid_corners)
    torch.manual_seed(0)
    want = grid_sample_linearized(IMAGE, grid, align_corners=sample_corners, jacobian=jacobian, sampling=paper())
    torch.testing.assert_close(got[0], want.detach())
    torch.testing.assert_close(got[1], torch.autograd.grad(want.square().sum(), stn.theta)[0])


def test_finite_differences_agree_but_along_an_axis_of_one_pixel():
    for size, agree in (((5, 7), True), ((5, 1), False)):
        stn = STN(size)
        with linearize_stn():
            exact = value_and_gradient(stn)
        with linearize():
            differences = value_and_gradient(stn)
        assert torch.allclose(exact[1], differences[1]) == agree


def test_under_no_grad_the_values_are_those_of_training():
    stn = STN((5, 1))
    with linearize_stn(stn, include=["test_stn.py"]):
        trained_on, _ = value_and_gradient(stn)
        torch.manual_seed(0)
        with torch.no_grad():
            assert torch.equal(stn(IMAGE), trained_on)


@pytest.mark.parametrize(
    "change", [lambda grid: grid.mul_(0.5), lambda grid: grid + 0.1, lambda grid: grid.flip(1), lambda grid: grid.sin()]
)
def test_a_grid_that_was_changed_has_finite_differences(change):
    stn = STN((5, 7), change=change)
    with linearize_stn():
        got = value_and_gradient(stn)
    with linearize():
        want = value_and_gradient(stn)
    assert all(map(torch.equal, got, want))


def test_one_grid_serves_several_images_of_different_size():
    theta = THETA.clone().requires_grad_()
    with linearize_stn(sampling=paper(intercept=False)):
        grid = F.affine_grid(theta, (2, 3, 5, 7), align_corners=False)
        torch.manual_seed(0)
        got = [F.grid_sample(image, grid, align_corners=False).sum() for image in (IMAGE, IMAGE[..., ::3])]
    with linearize(sampling=paper(intercept=False)):
        torch.manual_seed(0)
        want = [F.grid_sample(image, grid, align_corners=False).sum() for image in (IMAGE, IMAGE[..., ::3])]
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(*(torch.autograd.grad(loss, theta, retain_graph=True)[0] for loss in (a, b)))


def test_volumes_and_grids_without_gradient_pass():
    with linearize_stn(sampling=paper()) as patch:
        F.affine_grid(torch.eye(3, 4)[None].requires_grad_(), (1, 1, 2, 3, 4), align_corners=False)
        with torch.inference_mode():
            F.grid_sample(IMAGE, F.affine_grid(THETA, (2, 3, 5, 7), align_corners=False), align_corners=False)
    assert "left: grid carries no gradient" in patch.report()


def test_a_compiled_pair_is_swapped_in_one_graph():
    stn = STN((5, 7))
    with linearize_stn(stn) as patch:
        compiled = torch.compile(stn, fullgraph=True, backend="eager")
        got = value_and_gradient(stn)
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(IMAGE), got[0])
        assert "compiled" in patch.report()
    assert type(stn) is STN
