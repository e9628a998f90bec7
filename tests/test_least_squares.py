import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import fit_pixel

from lms_geometry.least_squares import Moments, solve_slope


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 12), ridge=st.floats(1e-4, 1), reach=st.floats(0.1, 50))
def test_the_slope_solves_the_normal_equations(seed, count, ridge, reach):
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    differences = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    factor = torch.tensor([[reach, 0.0], [0.3 * reach, 1.0]], dtype=torch.float64)
    expected = fit_pixel(draws @ factor.T, differences, ridge, intercept=False)
    second, cross = draws.T @ draws, draws.T @ differences
    slope = solve_slope(
        second[..., None, None, None], cross[:, None, :, None, None], factor[..., None, None, None], ridge
    )
    torch.testing.assert_close(slope[:, 0, :, 0, 0], expected, rtol=1e-6, atol=1e-9)


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


@given(seed=st.integers(0, 2**32 - 1), reach=st.floats(0, 1e4))
def test_one_sample_in_float32_gives_a_bounded_slope(seed, reach):
    draw = torch.randn(2, generator=torch.Generator().manual_seed(seed))
    factor = torch.tensor([[reach, 0.0], [-reach, 1.0]])
    second, cross = draw * draw[:, None], draw
    slope = solve_slope(
        second[..., None, None, None], cross[:, None, None, None, None], factor[..., None, None, None], 1e-3
    )
    assert slope.isfinite().all()
    assert slope.abs().max() < 1e3
