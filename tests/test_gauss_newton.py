import pytest
import torch
import torch.nn.functional as F
from kornia.geometry import homography_warp

from lms_geometry import LinearizedSampling
from lms_geometry.agreement import agreement, fit_gain, residual
from lms_geometry.gauss_newton import Problem, _normal_equations, _step
from lms_geometry.motions import PARAMETERS, motion_derivative, motion_matrix, turned

SIZE, DSIZE = (17, 23), (7, 9)


def _problem(motion, photometric=False, overlap=False, batch=2):
    generator = torch.Generator().manual_seed(3)
    source = torch.rand(batch, 2, *SIZE, generator=generator, dtype=torch.float64)
    target = torch.rand(batch, 2, *DSIZE, generator=generator, dtype=torch.float64)
    start = torch.eye(3, dtype=torch.float64).repeat(batch, 1, 1)
    start[:, 0, 1], start[:, 2, 0] = 0.1, 0.05
    source_mask = torch.ones_like(source[:, :1]) if overlap else None
    mask = torch.ones_like(target[:, :1])
    return Problem(source, target, start, DSIZE, motion, source_mask, mask, photometric, "squared")


def _some_parameters(motion, batch=2, starts=3):
    generator = torch.Generator().manual_seed(1)
    return 0.2 * torch.randn(batch, starts, len(PARAMETERS[motion]), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("motion", PARAMETERS)
def test_the_derivative_of_a_motion_is_that_of_autograd(motion):
    parameters = _some_parameters(motion)[:, 0]
    found = motion_derivative(motion, parameters, DSIZE)
    for row, derivative in zip(parameters, found, strict=True):
        expected = torch.autograd.functional.jacobian(lambda p: motion_matrix(motion, p[None], DSIZE)[0], row)
        torch.testing.assert_close(derivative, expected.permute(2, 0, 1))


@pytest.mark.parametrize("photometric", [False, True])
@pytest.mark.parametrize("motion", PARAMETERS)
def test_the_normal_equations_are_those_of_the_residuals_jacobian(motion, photometric):
    """Written out with autograd's Jacobian of each start's residual; the gain and the bias are two more columns."""
    problem, parameters = _problem(motion, photometric), _some_parameters(motion)
    found = _normal_equations(problem, parameters, "bilinear", None)
    for b in range(2):
        for n in range(3):

            def moved(p, b=b):
                matrix = problem.start[b : b + 1] @ motion_matrix(motion, p[None], DSIZE)
                return homography_warp(problem.source[b : b + 1], matrix, DSIZE).flatten()

            value, target = moved(parameters[b, n]), problem.target[b].flatten()
            jacobian = torch.autograd.functional.jacobian(moved, parameters[b, n])
            gain, bias = 1.0, 0.0
            columns = jacobian
            if photometric:
                ones = torch.stack((value, torch.ones_like(value)), 1)
                gain, bias = torch.linalg.lstsq(ones, target[:, None]).solution[:, 0].clamp(min=0.2)
                bias = (target - gain * value).mean()
                columns = torch.cat((gain * jacobian, ones), 1)
            difference = gain * value + bias - target
            matrix, gradient = columns.T @ columns, columns.T @ difference
            p = len(parameters[b, n])
            if photometric:
                own = torch.linalg.inv(matrix[p:, p:])
                matrix = matrix[:p, :p] - matrix[:p, p:] @ own @ matrix[p:, :p]
            torch.testing.assert_close(found.matrix[b, n], matrix, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.gradient[b, n], gradient[:p], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(found.loss[b, n], difference.square().mean(), rtol=1e-5, atol=1e-8)


def test_on_a_plane_one_step_of_linearized_sampling_finds_the_translation():
    y, x = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in (60, 60)), indexing="ij")
    source = torch.stack((0.02 * x, 0.01 * y))[None]
    start = torch.eye(3, dtype=torch.float64)[None]
    middle = torch.diag(torch.tensor([0.3, 0.3, 1.0], dtype=torch.float64))[None]
    wanted = torch.tensor([[[0.04, -0.06]]], dtype=torch.float64)
    target = homography_warp(source, start @ middle @ motion_matrix("translation", wanted[0], (6, 6)), (6, 6))
    mask = torch.ones_like(target[:, :1])
    problem = Problem(source, target, start @ middle, (6, 6), "translation", None, mask, False, "squared")
    sampling = LinearizedSampling(pattern="whitened", intercept=False, sigma=0.5)
    now = _normal_equations(problem, torch.zeros_like(wanted), sampling, torch.Generator().manual_seed(0))
    step = -torch.linalg.solve(now.matrix, now.gradient)
    torch.testing.assert_close(step, wanted, rtol=1e-3, atol=1e-4)


def test_a_step_is_finite_and_short_whatever_the_system():
    matrix = torch.stack((torch.zeros(3, 3), torch.eye(3) * 1e-20, torch.full((3, 3), 1.0)))
    gradient = torch.tensor([[0.0, 0, 0], [1, 1, 1], [5, -5, 5]])
    step = _step(matrix, gradient, 1e-2)
    assert step.isfinite().all()
    assert (step.norm(dim=-1) <= 0.2 + 1e-6).all()
    assert step[0].abs().max() == 0


def test_starts_are_turns_by_eighths_and_translations_have_none():
    assert turned("affine", 5, torch.zeros(1))[:, 2].rad2deg().tolist() == pytest.approx([0, 45, -45, 90, -90])
    assert (turned("translation", 3, torch.zeros(1)) == 0).all()


def test_what_is_hidden_by_the_masks_counts_with_the_targets_variance():
    moved, target = torch.rand(1, 2, 3, 5, 6), torch.rand(1, 1, 3, 5, 6)
    wanted = torch.ones(1, 1, 1, 5, 6)
    seen = torch.ones(1, 2, 1, 5, 6)
    seen[:, 1, :, :, :2] = 0
    found = residual(moved, target, seen, wanted, False, "squared").loss
    squared = (moved - target).square().mean(2)
    torch.testing.assert_close(found[0, 0], squared[0, 0].mean())
    spread = (target - target.mean((3, 4), keepdim=True)).square().mean()
    torch.testing.assert_close(found[0, 1], (squared[0, 1, :, 2:].sum() + 10 * spread) / 30)


def test_hubers_loss_is_squared_near_zero_and_linear_far_away():
    target = torch.zeros(1, 1, 1, 1, 3)
    moved = torch.tensor([0.05, 0.2, 0.8]).view(1, 1, 1, 1, 3)
    seen = torch.ones_like(target)
    found = residual(moved, target, seen, seen, False, "huber", delta=torch.tensor([[0.2]]))
    expected = F.huber_loss(moved, target, delta=0.2, reduction="mean") * 2
    torch.testing.assert_close(found.loss[0, 0], expected)
    torch.testing.assert_close(found.weight.flatten(), torch.tensor([1.0, 1.0, 0.25]))


def test_the_score_is_that_of_correlation_and_ignores_light_and_a_hidden_patch():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 20, 20, generator=generator)
    seen = torch.ones(1, 1, 20, 20)
    assert agreement(image, 0.5 * image + 0.3, seen).item() > 0.999
    hidden = image.clone()
    hidden[..., :8, :8] = 1
    assert agreement(image, hidden, seen).item() > 0.95
    assert agreement(image, torch.rand(1, 3, 20, 20, generator=generator), seen).item() < 0.3
    assert agreement(image, image, seen * 0).item() == 0


def test_a_tint_that_two_images_share_is_no_agreement():
    generator = torch.Generator().manual_seed(0)
    tint, seen = torch.tensor([0.9, 0.3, 0.2]).view(1, 3, 1, 1), torch.ones(1, 1, 20, 20)
    first, second = (tint + 0.1 * torch.randn(1, 1, 20, 20, generator=generator) for _ in range(2))
    assert agreement(first, second, seen).item() < 0.5
    assert agreement(first, first, seen).item() > 0.99


def test_the_score_and_the_gain_do_not_depend_on_the_units_of_the_images():
    generator = torch.Generator().manual_seed(0)
    image, seen = torch.rand(1, 3, 20, 20, generator=generator), torch.ones(1, 1, 20, 20)
    for unit in (255.0, 0.01, 1e-4, 1e-6):
        assert agreement(unit * image, unit * image, seen).item() == pytest.approx(1, abs=1e-3)
        gain, _ = fit_gain(unit * image[:, None], 2 * unit * image[:, None], seen[:, None])
        assert gain.item() == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize("level", [0.0, 1e-3, 0.3, 1.0, 255.0])
def test_blank_images_have_a_low_score(level):
    blank, image = torch.full((1, 3, 20, 20), level), torch.rand(1, 3, 20, 20)
    for pair in ((blank, blank), (blank, image), (image, blank)):
        assert 0 <= agreement(*pair, torch.ones(1, 1, 20, 20)).item() < 0.01
