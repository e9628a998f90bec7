import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import fit_pixel

from lms_geometry.least_squares import Moments, solve_slope


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12), ridge=st.floats(1e-4, 1), reach=st.floats(0.1, 50))
def test_the_slope_solves_the_normal_equations(seed, count, ridge, reach):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    differences = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    factor = torch.tensor([[reach, 0.0], [0.3 * reach, 1.0]], dtype=torch.float64)
    expected = fit_pixel(draws @ factor.T, differences, ridge, intercept=False)
    moments = Moments(*kept(draws), ridge, intercept=False)
    for draw, difference in zip(draws, differences, strict=True):
        moments.add(draw.view(2, 1, 1, 1), torch.ones(1, 1, 1).double(), difference.view(1, 3, 1, 1))
    slope, _ = moments.solve(factor[..., None, None, None])
    torch.testing.assert_close(slope[:, 0, :, 0, 0], expected, rtol=1e-6, atol=1e-9)


def kept(draws):
    """Draws, and the weights with which all of them are in the fit."""
    return [draw.view(2, 1, 1, 1) for draw in draws], [draws.new_ones(1, 1, 1)] * len(draws)


@given(seed=st.integers(0, 2**32 - 1), ridge=st.floats(1e-4, 1), reach=st.floats(0.1, 50))
def test_the_slope_along_the_draws_is_that_of_the_source_sent_through_the_footprint(seed, ridge, reach):
    generator = torch.Generator().manual_seed(seed)
    second = torch.rand(2, 1, 1, 1, generator=generator, dtype=torch.float64)
    cross = torch.randn(2, 1, 3, 1, 1, generator=generator, dtype=torch.float64)
    factor = torch.tensor([[reach, 0.0], [0.3 * reach, 1.0]], dtype=torch.float64)
    entries = [factor[i, j].view(1, 1, 1) for i, j in ((0, 0), (1, 0), (1, 1))]
    slope, by_draw = solve_slope(second, cross, entries, ridge)
    normal = factor @ second.flatten().diag() @ factor.T + ridge * torch.eye(2, dtype=torch.float64)
    expected = torch.linalg.solve(normal, factor @ cross.view(2, 3))
    torch.testing.assert_close(slope.view(2, 3), expected, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(by_draw.view(2, 3), factor.T @ expected, rtol=1e-7, atol=1e-9)


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12), ridge=st.floats(1e-4, 1), intercept=st.booleans())
def test_moments_give_the_slope_and_the_intercept_of_the_samples_in_the_fit(seed, count, ridge, intercept):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(count, 2, 1, 1, 1, generator=generator, dtype=torch.float64)
    weights = (torch.rand(count, 1, 1, 1, generator=generator) < 0.7).double()
    differences = torch.randn(count, 1, 3, 1, 1, generator=generator, dtype=torch.float64)
    factor = torch.tensor([[1.7, 0.0], [0.4, 0.9]], dtype=torch.float64)
    moments = Moments(draws.unbind(), weights.unbind(), ridge, intercept)
    for sample in zip(draws, weights, differences, strict=True):
        moments.add(*sample)
    slope, level = moments.solve(factor[..., None, None, None])
    kept = weights.flatten() > 0
    expected = fit_pixel(draws.flatten(1)[kept] @ factor.T, differences.flatten(1)[kept], ridge, intercept)
    torch.testing.assert_close(slope.flatten(1), expected[:2], rtol=1e-6, atol=1e-9)
    assert (level is None) != intercept
    if intercept:
        torch.testing.assert_close(level.flatten(), expected[2], rtol=1e-6, atol=1e-9)


@given(
    seed=st.integers(0, 2**32 - 1),
    reach=st.floats(0, 1e4),
    count=st.integers(1, 3),
    ridge=st.sampled_from([1e-4, 1e-3]),
)
def test_few_samples_in_float32_lose_few_digits(seed, reach, count, ridge):
    """Off by 1e-7 over the ridge, whatever the footprint; with one sample by float32's own rounding."""
    generator = torch.Generator().manual_seed(seed)
    draws, differences = torch.randn(count, 2, generator=generator), torch.randn(count, 1, generator=generator)
    factor = torch.tensor([[reach, 0.0], [-reach, 1.0]])

    def fit(dtype):
        moments = Moments(*kept(draws.to(dtype)), ridge, intercept=True)
        for draw, difference in zip(draws.to(dtype), differences.to(dtype), strict=True):
            moments.add(draw.view(2, 1, 1, 1), draw.new_ones(1, 1, 1), difference.view(1, 1, 1, 1))
        return moments.solve(factor.to(dtype)[..., None, None, None])

    (slope, level), (exact_slope, exact_level) = fit(torch.float32), fit(torch.float64)
    cost = 1e-6 if count == 1 else 3e-6 / ridge
    assert (level - exact_level).abs() <= cost
    assert slope.isfinite().all()
    if count == 1:
        torch.testing.assert_close(slope.double(), exact_slope, rtol=1e-5, atol=1e-9)


def test_the_numbers_of_one_sample_left_are_those_of_the_formula():
    """With one draw z and difference d, A_uv = L z d / (|L z|^2 + 1 + ridge), whatever the ridge."""
    draw, difference = torch.tensor([0.7, -1.3]), torch.tensor(0.8)
    for ridge in (1e-9, 1e-7, 1e-3, 0.5):
        moments = Moments(*kept(draw[None]), ridge, intercept=True)
        moments.add(draw.view(2, 1, 1, 1), torch.ones(1, 1, 1), difference.view(1, 1, 1, 1))
        slope, level = moments.solve(torch.eye(2)[..., None, None, None])
        denominator = draw @ draw + 1 + ridge
        torch.testing.assert_close(slope.flatten(), draw * difference / denominator, rtol=1e-6, atol=0)
        torch.testing.assert_close(level.flatten(), (difference / denominator)[None], rtol=1e-6, atol=0)
