import pytest
import torch

from lms_geometry.registration.motion import PARAMETERS, motion_derivative, motion_matrix, rotated_starts

DSIZE = (7, 9)


@pytest.mark.parametrize("motion", PARAMETERS)
def test_the_derivative_of_a_motion_is_its_finite_difference(motion):
    generator = torch.Generator().manual_seed(1)
    parameters = 0.2 * torch.randn(2, len(PARAMETERS[motion]), generator=generator, dtype=torch.float64)
    steps = 1e-6 * torch.eye(len(PARAMETERS[motion]), dtype=torch.float64)
    ahead, behind = (
        torch.stack([motion_matrix(motion, parameters + sign * step, DSIZE) for step in steps], 1) for sign in (1, -1)
    )
    torch.testing.assert_close(motion_derivative(motion, parameters, DSIZE), (ahead - behind) / 2e-6)


def test_starts_are_rotations_by_eighths_and_translations_have_none():
    assert rotated_starts("affine", 5, torch.zeros(1))[:, 2].rad2deg().tolist() == pytest.approx([0, 45, -45, 90, -90])
    assert (rotated_starts("translation", 3, torch.zeros(1)) == 0).all()
