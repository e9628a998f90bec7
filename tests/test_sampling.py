"""What the sampler promises: the properties of the method, and agreement with the float64 oracle."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from oracle import linearized, pixels_of, points_of, value_and_slopes
from settings import paper

from lms_geometry import draw_noise, grid_sample_linearized, grid_sample_value_and_slope

PAPER = paper()
WHITENED = paper(pattern="whitened", mask_out_of_bounds=False)
SETTINGS = {
    "paper": PAPER,
    "mask off": replace(PAPER, mask_out_of_bounds=False),
    "no intercept": replace(PAPER, intercept=False),
    "mask and intercept off": replace(PAPER, mask_out_of_bounds=False, intercept=False),
    "whitened": WHITENED,
    "whitened, masked": replace(WHITENED, mask_out_of_bounds=True),
    "whitened, no intercept": replace(WHITENED, intercept=False),
    "3 samples": replace(PAPER, num_samples=3),
    "4 whitened samples": replace(WHITENED, num_samples=4),
    "no jitter": replace(PAPER, jitter=0.0),
    "jitter alone": replace(PAPER, sigma=0.0),
    "wide": replace(PAPER, sigma=4.0, num_samples=16),
}
settings = pytest.mark.parametrize("sampling", SETTINGS.values(), ids=SETTINGS)
both_corners = pytest.mark.parametrize("align_corners", [False, True])


def _affine_grid(theta, batch, size, dtype=torch.float32, align_corners=False):
    theta = torch.tensor(theta, dtype=dtype).expand(batch, 2, 3)
    return F.affine_grid(theta, (batch, 1, *size), align_corners=align_corners)


def _plane(size, slope_x, slope_y, dtype=torch.float32):
    y, x = torch.meshgrid(torch.arange(size[0], dtype=dtype), torch.arange(size[1], dtype=dtype), indexing="ij")
    return (0.3 + slope_x * x + slope_y * y)[None, None]


@settings
@both_corners
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_values_and_slopes_equal_the_float64_oracle(sampling, align_corners, padding_mode):
    image = torch.rand(2, 3, 13, 17)
    grid = _affine_grid([[[0.9, 0.5, 0.3], [-0.4, 1.1, -0.2]]], 2, (5, 7)) + 0.02 * torch.randn(2, 5, 7, 2)
    jacobian = torch.randn(2, 5, 7, 2, 2)
    noise = draw_noise(sampling, (5, 7))

    def sample(points):
        return grid_sample_linearized(
            image,
            points,
            padding_mode=padding_mode,
            align_corners=align_corners,
            sampling=sampling,
            jacobian=jacobian,
            noise=noise,
        )

    value, slope = value_and_slopes(sample, grid, (17, 13), align_corners)
    expected_value, expected_slope, kept = linearized(
        image, grid, jacobian, noise, sampling, padding_mode, align_corners
    )
    torch.testing.assert_close(value.double(), expected_value, rtol=1e-4, atol=1e-4)
    # A fit to fewer samples than unknowns is held by the ridge alone, whose 1e-3 leaves float32 three digits.
    determined = kept >= (3 if sampling.intercept else 2)
    error = (slope.double() - expected_slope).abs().amax((1, 4)) / (1 + expected_slope.abs().amax((1, 4)))
    assert (error[determined] < 2e-3).all()
    assert error.max() < 2e-2
    if sampling.mask_out_of_bounds and sampling.num_samples == 8:
        assert set(range(1, 8)) & set(kept.unique().tolist())
        assert (kept == 0).any()


@settings
def test_in_float64_the_oracle_is_met_to_the_last_digits(sampling):
    image = torch.rand(1, 2, 9, 11, dtype=torch.float64)
    grid = _affine_grid([[[1.2, 0.5, 0.3], [-0.4, 1.3, -0.2]]], 1, (6, 5), torch.float64)
    jacobian = torch.randn(1, 6, 5, 2, 2, dtype=torch.float64)
    noise = draw_noise(sampling, (6, 5), dtype=torch.float64)

    def sample(points):
        return grid_sample_linearized(image, points, sampling=sampling, jacobian=jacobian, noise=noise)

    value, slope = value_and_slopes(sample, grid, (11, 9))
    expected_value, expected_slope, _ = linearized(image, grid, jacobian, noise, sampling)
    torch.testing.assert_close(value, expected_value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope, expected_slope, rtol=1e-7, atol=1e-9)


@settings
@both_corners
def test_value_and_slope_equal_the_float64_oracle(sampling, align_corners):
    image = torch.rand(2, 3, 13, 17, dtype=torch.float64)
    grid = _affine_grid([[[0.9, 0.5, 0.3], [-0.4, 1.1, -0.2]]], 2, (5, 7), torch.float64)
    jacobian, noise = torch.randn(2, 5, 7, 2, 2).double(), draw_noise(sampling, (5, 7), dtype=torch.float64)
    value, slope = grid_sample_value_and_slope(
        image, grid, align_corners=align_corners, sampling=sampling, jacobian=jacobian, noise=noise
    )
    expected_value, expected_slope, _ = linearized(image, grid, jacobian, noise, sampling, align_corners=align_corners)
    units = torch.tensor([(n - 1) / 2 if align_corners else n / 2 for n in (17, 13)], dtype=torch.float64)
    torch.testing.assert_close(value, expected_value, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(slope, expected_slope * units, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_and_slope_have_no_history_and_are_what_autograd_sees(dtype):
    image = torch.rand(1, 2, 9, 11).to(dtype).requires_grad_()
    grid = (0.5 * torch.randn(3, 4, 5, 2)).requires_grad_()
    generator = torch.Generator().manual_seed(3)
    value, slope = grid_sample_value_and_slope(
        image, grid, padding_mode="border", sampling=paper(), generator=generator
    )
    plain = grid_sample_linearized(
        image, grid, padding_mode="border", sampling=paper(), generator=generator.manual_seed(3)
    )
    assert not value.requires_grad
    assert not slope.requires_grad
    assert slope.dtype == torch.float32
    assert torch.equal(value, plain)
    for channel in range(2):
        (gradient,) = torch.autograd.grad(plain[:, channel].float().sum(), grid, retain_graph=True)
        torch.testing.assert_close(slope[:, channel], gradient)


@given(seed=st.integers(0, 2**32 - 1), slope_x=st.floats(-2, 2), slope_y=st.floats(-2, 2))
@both_corners
def test_slope_and_value_are_exact_on_a_plane(align_corners, seed, slope_x, slope_y):
    image = _plane((40, 53), slope_x, slope_y)
    grid = _affine_grid([[[0.3, 0.1, 0.1], [-0.1, 0.25, -0.2]]], 1, (5, 7), align_corners=align_corners)
    generator = torch.Generator().manual_seed(seed)
    sampling = replace(PAPER, ridge=1e-6, mask_out_of_bounds=False)

    def sample(points):
        return grid_sample_linearized(
            image, points, align_corners=align_corners, sampling=sampling, generator=generator
        )

    value, slope = value_and_slopes(sample, grid, (53, 40), align_corners)
    plain = F.grid_sample(image, grid, align_corners=align_corners)
    scale = 1 + abs(slope_x) + abs(slope_y)
    assert (value - plain).abs().max() < 1e-2 * scale
    assert (slope[..., 0] - slope_x).abs().max() < 1e-2 * scale
    assert (slope[..., 1] - slope_y).abs().max() < 1e-2 * scale


@given(seed=st.integers(0, 2**32 - 1), level=st.floats(-100, 100, allow_subnormal=False))
def test_slope_is_zero_on_a_constant_image_even_at_its_border(seed, level):
    grid = _affine_grid([[[1.5, 0.2, 0.1], [-0.1, 1.4, -0.2]]], 1, (6, 7))
    inside = (grid.abs() < 1 - 1 / 9).all(-1)[0]
    image = torch.full((1, 2, 9, 9), level)
    generator = torch.Generator().manual_seed(seed)
    value, slope = value_and_slopes(
        lambda p: grid_sample_linearized(image, p, sampling=paper(), generator=generator), grid, (9, 9)
    )
    assert slope[:, :, inside].abs().max() <= 2e-5 * abs(level)
    torch.testing.assert_close(value[:, :, inside], torch.full_like(value[:, :, inside], level))


@settings
def test_the_result_is_linear_in_the_image(sampling):
    first, second = torch.rand(2, 2, 3, 11, 9, dtype=torch.float64)
    grid = _affine_grid([[[1.1, 0.3, 0.0], [0.2, 0.8, 0.3]]], 2, (5, 6), torch.float64)
    noise = draw_noise(sampling, (5, 6), dtype=torch.float64)

    def both(image):
        return value_and_slopes(
            lambda p: grid_sample_linearized(image, p, sampling=sampling, noise=noise), grid, (9, 11)
        )

    for mixed, a, b in zip(both(2 * first - 3 * second), both(first), both(second), strict=True):
        torch.testing.assert_close(mixed, 2 * a - 3 * b)


@settings
def test_permuting_channels_or_batch_permutes_the_result(sampling):
    image = torch.rand(3, 4, 11, 9)
    grid = _affine_grid([[[1.1, 0.3, 0.0], [0.2, 0.8, 0.3]]], 3, (5, 6)) + 0.05 * torch.randn(3, 5, 6, 2)
    noise = draw_noise(sampling, (5, 6))
    channels, batch = [2, 0, 3, 1], [1, 2, 0]

    def both(image, grid):
        return value_and_slopes(
            lambda p: grid_sample_linearized(image, p, sampling=sampling, noise=noise), grid, (9, 11)
        )

    for got, plain in zip(both(image[batch][:, channels], grid[batch]), both(image, grid), strict=True):
        torch.testing.assert_close(got, plain[batch][:, channels], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("intercept", [True, False])
def test_slope_is_zero_and_the_value_bilinear_when_every_sample_is_out_of_bounds(intercept):
    image = torch.rand(1, 2, 8, 9)
    grid = torch.full((1, 3, 4, 2), 50.0)
    sampling = replace(PAPER, intercept=intercept)
    for padding_mode in ("zeros", "border", "reflection"):
        value, slope = value_and_slopes(
            lambda p, mode=padding_mode: grid_sample_linearized(image, p, padding_mode=mode, sampling=sampling),
            grid,
            (9, 8),
        )
        assert (slope == 0).all()
        assert torch.equal(value, F.grid_sample(image, grid, padding_mode=padding_mode, align_corners=False))


def test_only_auxiliary_samples_are_masked():
    """A pixel whose own centre is outside still fits the samples that fell inside (section 6.1)."""
    image = _plane((20, 20), 0.5, 0.0)
    grid = points_of(torch.tensor([[[[-0.6, 10.0]]]], dtype=torch.float64), (20, 20), False).float()
    jacobian = 4 * torch.eye(2).expand(1, 1, 1, 2, 2)
    sampling = replace(PAPER, num_samples=200)
    _, slope = value_and_slopes(
        lambda p: grid_sample_linearized(image, p, padding_mode="border", sampling=sampling, jacobian=jacobian),
        grid,
        (20, 20),
    )
    assert (slope[0, 0, 0, 0] - torch.tensor([0.5, 0.0])).abs().max() < 0.02


def test_texels_beyond_every_kept_sample_do_not_matter():
    image, grid = torch.rand(1, 2, 40, 40), _affine_grid([[[0.1, 0.0, -0.5], [0.0, 0.1, -0.5]]], 1, (4, 5))
    noise = draw_noise(PAPER, (4, 5))
    jacobian = torch.eye(2).expand(1, 1, 1, 2, 2)
    pixels = pixels_of(grid, (40, 40), False)
    reach = noise.abs().amax() * 2**0.5 + 2
    low, high = (pixels.amin((0, 1, 2)) - reach).floor().int(), (pixels.amax((0, 1, 2)) + reach).ceil().int()
    other = torch.full_like(image, 1e6)
    window = (..., slice(max(low[1], 0), high[1]), slice(max(low[0], 0), high[0]))
    other[window] = image[window]
    assert (other == 1e6).any()

    def both(source):
        return value_and_slopes(
            lambda p: grid_sample_linearized(source, p, sampling=paper(), noise=noise, jacobian=jacobian),
            grid,
            (40, 40),
        )

    for got, plain in zip(both(other), both(image), strict=True):
        assert torch.equal(got, plain)


def test_the_value_of_a_masked_sample_never_matters():
    """Samples outside read the padding: with the mask, zeros and border padding give the same fit."""
    image, grid = torch.rand(1, 2, 9, 9) + 5, _affine_grid([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], 1, (9, 9)) * 0.9
    noise = draw_noise(PAPER, (9, 9))
    results = [
        value_and_slopes(
            lambda p, mode=mode: grid_sample_linearized(image, p, padding_mode=mode, sampling=paper(), noise=noise),
            grid,
            (9, 9),
        )
        for mode in ("zeros", "border", "reflection")
    ]
    inside = (grid.abs() <= 1 - 1 / 9).all(-1)[0]
    for value, slope in results[1:]:
        torch.testing.assert_close(value[..., inside], results[0][0][..., inside])
        torch.testing.assert_close(slope[:, :, inside], results[0][1][:, :, inside])


@given(
    seed=st.integers(0, 2**32 - 1),
    spread=st.floats(0, 1e6),
    level=st.sampled_from([0.0, 1.0, 1e-6, 1e6]),
    size=st.tuples(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
)
@pytest.mark.parametrize("sampling", [PAPER, WHITENED], ids=["paper", "whitened"])
def test_finite_input_gives_finite_output_and_gradients(sampling, seed, spread, level, size):
    generator = torch.Generator().manual_seed(seed)
    H, W, h, w = size
    image = (level * torch.randn(2, 2, H, W, generator=generator)).requires_grad_()
    grid = (spread * torch.randn(2, h, w, 2, generator=generator)).requires_grad_()
    out = grid_sample_linearized(image, grid, sampling=sampling, generator=generator)
    gradients = torch.autograd.grad(out.sum(), (image, grid))
    assert all(t.isfinite().all() for t in (out, *gradients))


@both_corners
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e30, -3e38])
def test_a_point_that_is_nowhere_is_padding_with_gradient_0(bad, padding_mode, align_corners):
    image = torch.rand(1, 2, 8, 9)
    grid = _affine_grid([[[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]], 1, (5, 6), align_corners=align_corners).clone()
    grid[0, 2, 3, 0] = bad
    grid.requires_grad_()
    out = grid_sample_linearized(image, grid, padding_mode=padding_mode, align_corners=align_corners, sampling=WHITENED)
    (gradient,) = torch.autograd.grad(out.sum(), grid)
    assert out.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient[0, 2, 3, 0] == 0
    others = torch.ones(5, 6, dtype=torch.bool)
    others[2, 3] = False
    assert (gradient[0][others] != 0).all()
    if padding_mode == "zeros":
        assert (out[0, :, 2, 3] == 0).all()


def test_slopes_approach_the_gradient_of_the_blurred_image_as_samples_grow():
    torch.manual_seed(1)
    sigma = 2.0
    x = torch.arange(-12.0, 13.0)
    kernel = (-x.square() / (2 * sigma**2)).exp()
    kernel /= kernel.sum()
    image = torch.rand(1, 1, 61, 67)
    blurred = F.conv2d(
        F.conv2d(image, kernel.view(1, 1, 1, -1), padding=(0, 12)), kernel.view(1, 1, -1, 1), padding=(12, 0)
    )
    expected = torch.stack(torch.gradient(blurred[0, 0], dim=(1, 0)), -1)[16:45:4, 16:50:4]
    pixels = torch.stack(torch.meshgrid(torch.arange(16.0, 50, 4), torch.arange(16.0, 45, 4), indexing="xy"), -1)
    grid = points_of(pixels[None].double(), (67, 61), False).float()
    errors = {}
    for num_samples in (8, 64, 2048):
        sampling = replace(WHITENED, num_samples=num_samples, sigma=0.0, jitter=sigma)
        _, slope = value_and_slopes(lambda p, s=sampling: grid_sample_linearized(image, p, sampling=s), grid, (67, 61))
        errors[num_samples] = ((slope[0, 0] - expected).norm() / expected.norm()).item()
    assert errors[2048] < 0.35 < errors[64] < errors[8]


def test_the_gradient_for_the_image_is_that_of_the_centre():
    image = torch.rand(2, 3, 11, 9, requires_grad=True)
    grid = _affine_grid([[[1.1, 0.3, 0.0], [0.2, 0.8, 0.3]]], 2, (5, 6))
    weight = torch.randn(2, 3, 5, 6)
    (ours,) = torch.autograd.grad((grid_sample_linearized(image, grid, sampling=paper()) * weight).sum(), image)
    (plain,) = torch.autograd.grad((F.grid_sample(image, grid, align_corners=False) * weight).sum(), image)
    torch.testing.assert_close(ours, plain)


def test_unrelated_points_have_the_slopes_of_the_image_if_the_jacobian_is_given():
    image = F.interpolate(torch.rand(1, 1, 16, 16), (128, 128), mode="bicubic")
    points = (torch.rand(1, 2000, 1, 2) * 1.8 - 0.9).requires_grad_()
    (bilinear,) = torch.autograd.grad(F.grid_sample(image, points, align_corners=False).sum(), points)
    out = grid_sample_linearized(image, points, jacobian=torch.eye(2).view(1, 1, 1, 2, 2), sampling=paper())
    (slope,) = torch.autograd.grad(out.sum(), points)
    assert F.cosine_similarity(slope.flatten(), bilinear.flatten(), dim=0) > 0.9


@pytest.mark.parametrize(("size", "across"), [((1, 1), (0, 1)), ((1, 5), (1,)), ((5, 1), (0,))])
def test_without_jitter_an_output_of_one_pixel_along_an_axis_has_a_slope_there_only_from_a_jacobian(size, across):
    image = _plane((40, 40), 0.5, 0.3)
    grid = _affine_grid([[[0.3, 0.0, 0.1], [0.0, 0.3, 0.1]]], 1, size)
    for jacobian in (None, torch.eye(2).view(1, 1, 1, 2, 2)):
        _, slope = value_and_slopes(
            lambda p, j=jacobian: grid_sample_linearized(
                image, p, sampling=paper(pattern="whitened", sigma=0.3, jitter=0.0), jacobian=j
            ),
            grid,
            (40, 40),
        )
        for axis in across:
            assert (slope[..., axis] != 0).all() == (jacobian is not None)
            assert (slope[..., axis] == 0).all() == (jacobian is None)


@both_corners
@pytest.mark.parametrize("mode", ["bilinear", "nearest", "bicubic"])
@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])
def test_without_the_intercept_the_value_is_that_of_grid_sample(mode, padding_mode, align_corners):
    image = torch.rand(2, 3, 11, 9)
    grid = (1.3 * torch.randn(2, 5, 6, 2)).requires_grad_()
    sampling = replace(PAPER, intercept=False)
    ours = grid_sample_linearized(image, grid, mode, padding_mode, align_corners, sampling=sampling)
    torch.testing.assert_close(ours, F.grid_sample(image, grid, mode, padding_mode, align_corners))
    assert torch.autograd.grad(ours.sum(), grid)[0].abs().sum() > 0


def test_align_corners_none_means_false():
    image, grid = torch.rand(1, 2, 7, 8), torch.rand(1, 3, 4, 2)
    noise = draw_noise(PAPER, (3, 4))
    assert torch.equal(
        grid_sample_linearized(image, grid, sampling=paper(), noise=noise),
        grid_sample_linearized(image, grid, align_corners=False, sampling=paper(), noise=noise),
    )


def test_the_same_seed_gives_the_same_result_and_leaves_the_global_generator_alone():
    image, grid = torch.rand(1, 2, 7, 8), torch.rand(1, 3, 4, 2)
    state = torch.get_rng_state()
    first, second = (
        grid_sample_linearized(image, grid, sampling=paper(), generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, grid_sample_linearized(image, grid))


def test_either_batch_may_be_shared():
    images, grids = torch.rand(3, 2, 9, 8), torch.rand(3, 4, 5, 2)
    noise = draw_noise(PAPER, (4, 5))
    torch.testing.assert_close(
        grid_sample_linearized(images[:1], grids, sampling=paper(), noise=noise),
        grid_sample_linearized(images[:1].repeat(3, 1, 1, 1), grids, sampling=paper(), noise=noise),
    )
    torch.testing.assert_close(
        grid_sample_linearized(images, grids[:1], sampling=paper(), noise=noise),
        grid_sample_linearized(images, grids[:1].repeat(3, 1, 1, 1), sampling=paper(), noise=noise),
    )


def test_noise_may_differ_over_the_batch():
    image, grid = torch.rand(2, 2, 9, 8), torch.rand(2, 4, 5, 2)
    noise = torch.stack([draw_noise(PAPER, (4, 5)) for _ in range(2)])
    together = grid_sample_linearized(image, grid, sampling=paper(), noise=noise)
    for b in range(2):
        torch.testing.assert_close(
            together[b : b + 1],
            grid_sample_linearized(image[b : b + 1], grid[b : b + 1], sampling=paper(), noise=noise[b]),
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    image, grid = torch.rand(1, 2, 256, 256).to(dtype), (2 * torch.rand(1, 5, 6, 2) - 1).to(dtype)
    noise = draw_noise(PAPER, (5, 6))
    half = grid_sample_linearized(image, grid.requires_grad_(), sampling=paper(), noise=noise)
    assert half.dtype == dtype
    torch.testing.assert_close(
        half, grid_sample_linearized(image.float(), grid.float(), sampling=paper(), noise=noise).to(dtype)
    )
    assert torch.autograd.grad(half.float().sum(), grid)[0].dtype == dtype
    beside = grid_sample_linearized(image, grid.float(), sampling=paper(), noise=noise)
    assert beside.dtype == dtype
    assert torch.equal(beside, half)
    with pytest.raises(TypeError, match=r"grid must have input's dtype torch.float32"):
        grid_sample_linearized(image.float(), grid, sampling=paper(), noise=noise)


def test_memory_formats_do_not_change_the_result():
    image, grid = torch.rand(2, 6, 9, 8), torch.rand(2, 4, 5, 2)
    noise = draw_noise(PAPER, (4, 5))
    expected = grid_sample_linearized(image, grid, sampling=paper(), noise=noise)
    planar = grid.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0)
    for other_image, other_grid in (
        (image.contiguous(memory_format=torch.channels_last), grid),
        (image, planar),
        (torch.cat((image, image), 1)[:, :6], torch.cat((grid, grid), 2)[:, :, :5]),
        (image.mT.contiguous().mT, grid.transpose(1, 2).contiguous().transpose(1, 2)),
    ):
        torch.testing.assert_close(
            grid_sample_linearized(other_image, other_grid, sampling=paper(), noise=noise), expected
        )
    assert expected.is_contiguous()


@pytest.mark.parametrize("shape", [(0, 3, 5, 6, 4, 7), (2, 3, 5, 6, 0, 7), (2, 3, 5, 6, 4, 0)])
def test_empty_batches_and_outputs_are_empty(shape):
    B, C, H, W, h, w = shape
    image, grid = torch.rand(B, C, H, W, requires_grad=True), torch.zeros(B, h, w, 2, requires_grad=True)
    out = grid_sample_linearized(image, grid)
    assert out.shape == (B, C, h, w)
    assert all(
        g.shape == t.shape for g, t in zip(torch.autograd.grad(out.sum(), (image, grid)), (image, grid), strict=True)
    )


@both_corners
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("size", [(1, 9), (9, 1), (1, 1)])
def test_an_image_axis_of_one_texel_has_no_slope_and_leaves_the_other_its_own(size, mask, align_corners):
    """The image is no plane, so that without a mask the fit of one axis leaves noise along the other."""
    image = _plane(size, 0.5, 0.5) + 0.1 * torch.rand(1, 1, *size)
    grid = torch.zeros(1, 3, 4, 2)
    sampling = replace(paper(), mask_out_of_bounds=mask)
    _, slope = value_and_slopes(
        lambda p: grid_sample_linearized(image, p, align_corners=align_corners, sampling=sampling),
        grid,
        (size[1], size[0]),
        False,
    )
    for axis, length in enumerate((size[1], size[0])):
        assert (slope[..., axis].abs().max() > 0.1) == (length > 1)


def test_no_tensor_grows_with_the_number_of_samples():
    """Sampling 40 times instead of 5 keeps no more: the largest tensor alive is no larger."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(tensor, torch.Tensor):
                    self.size = max(self.size, tensor.untyped_storage().nbytes())
            return out

    image, grid = torch.rand(4, 16, 32, 33), torch.rand(4, 20, 21, 2, requires_grad=True)
    sizes = []
    for num_samples in (5, 40):
        with Largest() as largest:
            grid_sample_linearized(image, grid, sampling=replace(PAPER, num_samples=num_samples)).sum().backward()
        sizes.append(largest.size)
    assert sizes[0] == sizes[1]
