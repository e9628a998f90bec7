import pytest
import torch

from lms_geometry.motions import PARAMETERS, motion_derivative, motion_matrix, turned

DSIZE = (7, 9)


@pytest.mark.parametrize("motion", PARAMETERS)
def test_the_derivative_of_a_motion_is_that_of_autograd(motion):
    generator = torch.Generator().manual_seed(1)
    parameters = 0.2 * torch.randn(2, len(PARAMETERS[motion]), generator=generator, dtype=torch.float64)
    found = motion_derivative(motion, parameters, DSIZE)
    for row, derivative in zip(parameters, found, strict=True):
        expected = torch.autograd.functional.jacobian(lambda p: motion_matrix(motion, p[None], DSIZE)[0], row)
        torch.testing.assert_close(derivative, expected.permute(2, 0, 1))


def test_starts_are_turns_by_eighths_and_translations_have_none():
    assert turned("affine", 5, torch.zeros(1))[:, 2].rad2deg().tolist() == pytest.approx([0, 45, -45, 90, -90])
    assert (turned("translation", 3, torch.zeros(1)) == 0).all()
