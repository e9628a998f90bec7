import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lms_geometry.footprint import finite_difference_jacobian, footprint, place


def _pixel_grid(h, w, dtype=torch.float64):
    y, x = torch.meshgrid(torch.arange(h, dtype=dtype), torch.arange(w, dtype=dtype), indexing="ij")
    return x, y


@given(seed=st.integers(0, 2**32 - 1), sigma=st.floats(0, 20), jitter=st.floats(0, 5))
def test_the_footprint_is_the_lower_cholesky_factor(seed, sigma, jitter):
    jacobian = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factor = footprint(jacobian, sigma, jitter).permute(2, 3, 4, 0, 1)
    J = jacobian.permute(2, 3, 4, 0, 1)
    covariance = sigma**2 * J @ J.mT + jitter**2 * torch.eye(2, dtype=torch.float64)
    torch.testing.assert_close(factor @ factor.mT, covariance, rtol=1e-9, atol=1e-12)
    assert (factor[..., 0, 1] == 0).all()
    assert (factor.diagonal(dim1=-2, dim2=-1) >= 0).all()


@pytest.mark.parametrize(
    "jacobian", [[[0, 0], [0, 0]], [[2, 0], [0, 0]], [[0, 0], [0, 3]], [[1, 2], [2, 4]], [[0, 0], [1, 1]]]
)
@pytest.mark.parametrize("jitter", [0.0, 1.0])
def test_a_singular_jacobian_has_a_finite_footprint(jacobian, jitter):
    jacobian = torch.tensor(jacobian, dtype=torch.float32)
    factor = footprint(jacobian[..., None, None, None], 1.5, jitter)[..., 0, 0, 0]
    torch.testing.assert_close(factor @ factor.T, 2.25 * jacobian @ jacobian.T + jitter**2 * torch.eye(2))


def test_samples_are_distributed_as_the_two_gaussians_of_the_paper():
    sigma, jitter, J = 1.3, 0.8, torch.tensor([[3.0, -1.0], [0.5, 0.2]])
    n, m = torch.randn(2, 2, 200_000)
    by_the_paper = sigma * J @ n + jitter * m
    factor = footprint(J[..., None, None, None], sigma, jitter)
    ours = place(torch.zeros(2, 1, 1, 1), factor, torch.randn(2, 1, 1, 200_000)).reshape(2, -1)
    torch.testing.assert_close(ours.cov(), by_the_paper.cov(), rtol=0.02, atol=0.02)


def test_the_jacobian_of_an_affine_grid_is_its_matrix():
    x, y = _pixel_grid(5, 7)
    points = torch.stack((2 * x - y + 4, 0.5 * x + 3 * y))[:, None]
    jacobian = finite_difference_jacobian(points)
    expected = torch.tensor([[2.0, -1.0], [0.5, 3.0]], dtype=torch.float64)
    torch.testing.assert_close(jacobian, expected[..., None, None, None].expand(2, 2, 1, 5, 7))


def test_the_jacobian_of_a_projective_grid_is_near_the_analytic_one():
    x, y = _pixel_grid(31, 41)
    depth = 1 + 0.002 * x - 0.001 * y
    px, py = (3 * x + y) / depth, (2 * y - x) / depth
    analytic = torch.stack(
        (
            torch.stack(((3 - px * 0.002) / depth, (1 + px * 0.001) / depth)),
            torch.stack(((-1 - py * 0.002) / depth, (2 + py * 0.001) / depth)),
        )
    )
    found = finite_difference_jacobian(torch.stack((px, py))[:, None])[:, :, 0]
    assert (found - analytic).abs().max() < 0.02


def test_the_seams_of_a_folded_grid_do_not_show():
    x, y = _pixel_grid(4, 6)
    patches = [torch.stack((2 * x + shift, 2 * y - 3 * shift)) for shift in (0, 100, -250)]
    folded = finite_difference_jacobian(torch.cat(patches, 1)[:, None])
    alone = finite_difference_jacobian(torch.stack(patches, 1)[:, :1])
    torch.testing.assert_close(folded[:, :, 0], torch.cat([alone[:, :, 0]] * 3, 2))


@pytest.mark.parametrize("size", [(1, 6), (6, 1), (1, 1)])
def test_an_axis_without_neighbours_has_derivative_0(size):
    x, y = _pixel_grid(*size)
    jacobian = finite_difference_jacobian(torch.stack((5 * x, 5 * y))[:, None])
    expected = torch.diag(torch.tensor([5.0 * (size[1] > 1), 5.0 * (size[0] > 1)], dtype=torch.float64))
    torch.testing.assert_close(jacobian, expected[..., None, None, None].expand(2, 2, 1, *size))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30])
def test_a_point_that_is_nowhere_does_not_widen_its_neighbours(bad):
    x, y = _pixel_grid(5, 7, torch.float32)
    points = torch.stack((2 * x, 3 * y))[:, None]
    points[:, 0, 2, 3] = bad
    factor = footprint(finite_difference_jacobian(points), 1.0, 1.0)
    others = torch.ones(5, 7, dtype=torch.bool)
    others[2, 3] = False
    assert factor.isfinite().all()
    torch.testing.assert_close(factor[0, 0, 0][others], torch.full((34,), 5.0).sqrt())
    torch.testing.assert_close(factor[1, 1, 0][others], torch.full((34,), 10.0).sqrt())
