import pytest
import torch
from oracle import pixels_of, points_of

from lms_geometry.coordinates import outermost_centre, pixels_per_unit, to_grid, to_pixels, units_per_pixel

sizes = pytest.mark.parametrize("size", [(17, 13), (2, 5)])
both_corners = pytest.mark.parametrize("align_corners", [False, True])


@sizes
@both_corners
def test_points_are_converted_as_the_oracle_does(size, align_corners):
    points = 3 * torch.randn(4, 2, dtype=torch.float64)
    axes = list(zip(points.unbind(-1), size, strict=True))
    pixels = torch.stack([to_pixels(x, n, align_corners) for x, n in axes], -1)
    grid = torch.stack([to_grid(x, n, align_corners) for x, n in axes], -1)
    torch.testing.assert_close(pixels, pixels_of(points, size, align_corners))
    torch.testing.assert_close(grid, points_of(points, size, align_corners))


@sizes
@both_corners
def test_steps_and_the_outermost_centres_are_those_of_the_points(size, align_corners):
    for n in size:
        assert to_pixels(1.25, n, align_corners) - to_pixels(0.25, n, align_corners) == pixels_per_unit(
            n, align_corners
        )
        assert pixels_per_unit(n, align_corners) * units_per_pixel(n, align_corners) == pytest.approx(1)
        assert to_grid(n - 1.0, n, align_corners) == pytest.approx(outermost_centre(n, align_corners))


def test_an_axis_of_one_texel_has_a_finite_step():
    assert units_per_pixel(1, align_corners=True) == 2
