import cmath

import pytest
import torch

from lms_geometry.registration.motion import (
    PARAMETERS,
    motion_derivative,
    motion_matrix,
    rotated_starts,
    rotation_scale_matrix,
)

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


def test_the_matrix_scales_then_rotates_then_translates():
    angle, scale_x, scale_y, x, y = torch.rand(5, 3, 4, generator=torch.Generator().manual_seed(0))
    found = rotation_scale_matrix(angle, scale_x, scale_y, x, y)
    assert found.shape == (3, 4, 2, 3)
    for i in range(3):
        for j in range(4):
            complex_point = complex(0.3 * scale_x[i, j], -0.7 * scale_y[i, j])  # multiplied by e^(i angle) it turns
            expected = complex_point * cmath.exp(1j * angle[i, j].item()) + complex(x[i, j], y[i, j])
            point = found[i, j] @ torch.tensor([0.3, -0.7, 1.0])
            assert complex(*point) == pytest.approx(expected, abs=1e-6)
