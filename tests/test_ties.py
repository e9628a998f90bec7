"""Points where rounding would decide: every backend goes by the same rule, and float32 and float64 agree."""

import pytest
import torch
import torch.nn.functional as F
from backend_cases import PADDING_MODES
from settings import paper

from lms_geometry import (
    LinearizedSampling,
    backends,
    draw_noise,
    grid_sample_linearized,
    homography_warp_linearized,
    warp_perspective_linearized,
)
from lms_geometry.backends import cpu
from lms_geometry.footprint import finite_difference_jacobian, footprint
from lms_geometry.noise import whitened

TRAINING = paper(pattern="whitened", sigma=0.3, jitter=0.0)
needs_cpu = pytest.mark.skipif(cpu.unavailable_reason() is not None, reason="no cpu backend")
every_set = pytest.mark.parametrize("instructions", ["baseline", "avx2", "avx512"])


def results(backend, image, grid, sampling, jacobian=None, noise=None, dtype=torch.float32, **options):
    """Value, and gradients for image and grid."""
    image, grid, jacobian, noise = (None if t is None else t.to(dtype) for t in (image, grid, jacobian, noise))
    image, grid = image.requires_grad_(), grid.detach().requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(backends.VARIABLE, backend)
        out = grid_sample_linearized(image, grid, jacobian=jacobian, noise=noise, sampling=sampling, **options)
        weights = torch.linspace(-1, 2, out.numel()).view(out.shape).to(out)
        return out.detach(), *torch.autograd.grad(out, (image, grid), weights)


@pytest.fixture
def compare(monkeypatch):
    def compare(instructions, *arguments, tolerance=2e-5, **options):
        sets = ("baseline", "avx2", "avx512")
        if sets.index(instructions) > sets.index(cpu._library.instruction_set().decode()):
            pytest.skip(f"this processor has no {instructions}")
        monkeypatch.setattr(cpu, "_instructions", instructions)
        exact = results("eager", *arguments, dtype=torch.float64, **options)
        for backend in ("eager", "cpu"):
            for got, want in zip(results(backend, *arguments, **options), exact, strict=True):
                assert (got - want).abs().max() <= tolerance * want.abs().max().clamp_min(1), backend

    return compare


def identity(height, width):
    return F.affine_grid(torch.eye(2, 3)[None], (1, 1, height, width), align_corners=False)


@needs_cpu
@every_set
@pytest.mark.parametrize("sampling", [LinearizedSampling(), paper(mask_out_of_bounds=False)], ids=["fixed", "drawn"])
def test_at_the_fold_of_a_mirrored_grid_all_take_the_same_difference(instructions, sampling, compare):
    """At the fold the steps to both neighbours are equally long, but for rounding; one points the other way.

    The middle of the image is between texels: on one, the derivative of a bilinear read itself jumps.
    """
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        image, base = torch.rand(1, 2, 14, 18, generator=generator), identity(9, 11)
        turn, scale = 3 * torch.rand(2, generator=generator)
        x, y = scale * base[..., 0].abs(), scale * base[..., 1]
        grid = 0.8 * torch.stack((turn.cos() * x - turn.sin() * y, turn.sin() * x + turn.cos() * y), -1)
        noise = draw_noise(sampling, (9, 11), generator=generator) if sampling.is_drawn else None
        compare(instructions, image, grid, sampling, None, noise)


def test_of_steps_equal_but_for_rounding_the_forward_one_is_taken():
    points = torch.tensor([2.0, 0.0, 2.0 + 2e-4]).view(1, 1, 1, 3).repeat(2, 1, 1, 1)
    jacobian = finite_difference_jacobian(points)[:, 0]
    assert (jacobian[:, 0, 0] == torch.tensor([-2.0, 2.0 + 2e-4, 2.0 + 2e-4])).all()
    longer = finite_difference_jacobian(points * torch.tensor([1.0, 1.0, 1.1]))[:, 0]
    assert (longer[:, 0, 0, 1] == -2).all()


@needs_cpu
@every_set
@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("last", [False, True])
def test_a_row_of_samples_on_the_outermost_row_of_texels_is_inside(instructions, padding_mode, last, compare):
    """An output of one row has no extent across it, so that its samples lie on the row of texels, but for rounding."""
    image = torch.rand(1, 2, 11, 17)
    for across in (False, True):
        for count in (5, 7, 10, 11, 33, 100):
            size = image.shape[-1 - across], image.shape[-2 + across]
            x = identity(1, count)[..., 0] * 0.8
            row = (2 * (size[1] - 1 if last else 0) + 1) / size[1] - 1
            grid = torch.stack((x, torch.full_like(x, row)), -1)
            grid = grid.flip(-1).transpose(1, 2) if across else grid
            noise = draw_noise(TRAINING, grid.shape[1:3])
            compare(instructions, image, grid, TRAINING, None, noise, padding_mode=padding_mode)
            _, _, gradient = results("eager", image, grid, TRAINING, None, noise, padding_mode=padding_mode)
            assert gradient[..., int(across)].abs().max() > 0.1  # not all of the row is masked


@needs_cpu
@every_set
@pytest.mark.parametrize("limit", [1e4, 1e6, 1e30])
@pytest.mark.parametrize(
    "sampling",
    [
        LinearizedSampling(),
        paper(jitter=0.0, sigma=0.31237, mask_out_of_bounds=False),
        paper(jitter=0.0, sigma=1.7331, mask_out_of_bounds=False),
        paper(jitter=0.0, sigma=0.31237),
    ],
    ids=["fixed", "drawn", "wide", "masked"],
)
def test_a_jacobian_at_its_limit_in_all_entries_has_rank_one(instructions, limit, sampling, compare):
    image, grid = torch.rand(1, 2, 13, 17), 1.6 * torch.rand(1, 5, 7, 2) - 0.8
    noise = draw_noise(sampling, (5, 7)) if sampling.is_drawn else None
    for signs in ([1, 1, 1, 1], [1, -1, 1, -1], [-1, -1, 1, 1], [1, 1, -1, -1]):
        jacobian = limit * torch.tensor(signs).float().view(1, 1, 1, 2, 2)
        compare(instructions, image, grid, sampling, jacobian, noise, tolerance=3e-4, padding_mode="border")


@pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7, 1.0, 3.0])
def test_the_footprint_of_parallel_columns_is_a_line(sigma):
    column = torch.tensor([0.7, -1.9]).view(2, 1, 1, 1, 1)
    factor = footprint(torch.cat((column, 3 * column), 1), sigma, 0.0)
    assert factor[1, 1] == 0


class TestWhitening:
    def test_three_draws_nearly_on_a_line_have_mean_0_and_covariance_1(self):
        for distance in (1e-3, 1e-5, 1e-6):
            along = torch.tensor([-1.0, 0.3, 0.9])
            draws = torch.stack((along, 0.4 * along + distance * torch.tensor([0.5, -1.2, 0.8])), -1)
            white = whitened(draws[:, None, None])[:, 0, 0].double()
            assert white.mean(0).abs().max() < 1e-6
            assert (white.T @ white / 3 - torch.eye(2)).abs().max() < 2e-6

    @needs_cpu
    def test_the_kernel_whitens_as_eager_does(self, compare):
        sampling = paper(num_samples=4, pattern="whitened", mask_out_of_bounds=False)
        image, grid, noise = torch.rand(1, 2, 13, 17), 1.6 * torch.rand(1, 5, 7, 2) - 0.8, torch.randn(3, 5, 7, 2)
        noise[..., 1] = 0.4 * noise[..., 0] + 1e-5 * noise[..., 1]
        given, drawn = ({"noise": whitened(noise)}, {"generator": torch.Generator()})
        kernel = []
        for options in (given, drawn):
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv(backends.VARIABLE, "cpu")
                patch.setattr("lms_geometry.sampling.draw_independent", lambda *_: noise)
                kernel.append(grid_sample_linearized(image, grid, sampling=sampling, **options))
        spread = (kernel[0] - kernel[1]).abs()
        assert spread.median() < 1e-4  # rounding decides where across the line a draw lies, not how far
        assert all(t.isfinite().all() for t in kernel)

    def test_draws_that_are_equal_are_no_reason_for_nan(self):
        for draws in (
            torch.ones(3, 1, 1, 2),
            torch.zeros(7, 1, 1, 2),
            torch.arange(3.0).view(3, 1, 1, 1).expand(-1, -1, -1, 2),
        ):
            assert whitened(draws).isfinite().all()


SCALES = [1e-10, 1e-19, 1e-21, 1e-30, 1e-37, 1e-38, 1e-40, 1e30, 1e38]


@pytest.mark.parametrize("warp", [homography_warp_linearized, warp_perspective_linearized])
@pytest.mark.parametrize("sampling", [None, paper(mask_out_of_bounds=False)], ids=["fixed", "drawn"])
@pytest.mark.parametrize("scale", SCALES)
def test_a_multiple_of_a_homography_is_the_same_warp_and_has_a_finite_gradient(warp, sampling, scale):
    image, M = torch.rand(1, 2, 13, 17), torch.eye(3)[None] + 0.05 * torch.randn(1, 3, 3)
    M[:, 2, :2] *= 0.05
    noise = None if sampling is None else draw_noise(sampling, (7, 11))

    def value_and_gradient(matrix):
        matrix = matrix.detach().requires_grad_()
        out = warp(image, matrix, (7, 11), sampling=sampling, noise=noise)
        return out.detach(), torch.autograd.grad(out.square().sum(), matrix)[0]

    (value, gradient), (plain, by_plain) = value_and_gradient(scale * M), value_and_gradient(M)
    torch.testing.assert_close(value, plain, rtol=0, atol=1e-4 if scale >= 1e-38 else 1e-2)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    if scale >= 1e-19:
        torch.testing.assert_close(gradient.double() * scale, by_plain.double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["eager", pytest.param("cpu", marks=needs_cpu)])
@pytest.mark.parametrize("size", [1e3, 1e10, 1e30])
def test_noise_of_any_size_gives_finite_numbers(name, size):
    sampling = paper(mask_out_of_bounds=False)
    image, grid, noise = torch.rand(1, 2, 13, 17), 1.6 * torch.rand(1, 5, 7, 2) - 0.8, draw_noise(sampling, (5, 7))
    got = results(name, image, grid, sampling, None, size * noise)
    assert all(t.isfinite().all() for t in got)
    for ours, limited in zip(
        got, results(name, image, grid, sampling, None, (size * noise).clamp(-100, 100)), strict=True
    ):
        assert torch.equal(ours, limited)
