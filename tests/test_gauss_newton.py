import pytest
import torch
from settings import paper

from lms_geometry._kornia import homography_warp
from lms_geometry.registration.gauss_newton import _normal_equations, _step
from lms_geometry.registration.motion import PARAMETERS, motion_matrix
from lms_geometry.registration.problem import Problem

SIZE, DSIZE = (17, 23), (7, 9)


def _problem(motion, fit_gain_bias=False, overlap_only=False, batch=2):
    generator = torch.Generator().manual_seed(3)
    source = torch.rand(batch, 2, *SIZE, generator=generator, dtype=torch.float64)
    target = torch.rand(batch, 2, *DSIZE, generator=generator, dtype=torch.float64)
    start = torch.eye(3, dtype=torch.float64).repeat(batch, 1, 1)
    start[:, 0, 1], start[:, 2, 0] = 0.1, 0.05
    source_mask = torch.ones_like(source[:, :1]) if overlap_only else None
    mask = torch.ones_like(target[:, :1])
    return Problem(source, target, start, DSIZE, motion, source_mask, mask, fit_gain_bias, "squared")


def _some_parameters(motion, batch=2, starts=3):
    generator = torch.Generator().manual_seed(1)
    return 0.2 * torch.randn(batch, starts, len(PARAMETERS[motion]), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("fit_gain_bias", [False, True])
@pytest.mark.parametrize("motion", PARAMETERS)
def test_the_normal_equations_are_those_of_the_residuals_jacobian(motion, fit_gain_bias):
    """Written out with autograd's Jacobian of each start's residual; the gain and the bias are two more columns."""
    problem, parameters = _problem(motion, fit_gain_bias), _some_parameters(motion)
    found = _normal_equations(problem, parameters, "bilinear", None)
    for b in range(2):
        for n in range(3):

            def warped(p, b=b):
                matrix = problem.start[b : b + 1] @ motion_matrix(motion, p[None], DSIZE)
                return homography_warp(problem.source[b : b + 1], matrix, DSIZE).flatten()

            value, target = warped(parameters[b, n]), problem.target[b].flatten()
            jacobian = torch.autograd.functional.jacobian(warped, parameters[b, n])
            gain, bias = 1.0, 0.0
            columns = jacobian
            if fit_gain_bias:
                ones = torch.stack((value, torch.ones_like(value)), 1)
                gain, bias = torch.linalg.lstsq(ones, target[:, None]).solution[:, 0]
                gain = gain.sign() * gain.abs().clamp(min=0.2)  # a negative one inverts the contrast
                bias = (target - gain * value).mean()
                columns = torch.cat((gain * jacobian, ones), 1)
            difference = gain * value + bias - target
            matrix, gradient = columns.T @ columns, columns.T @ difference
            p = len(parameters[b, n])
            if fit_gain_bias:
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
    sampling = paper(pattern="whitened", intercept=False, sigma=0.5)
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
