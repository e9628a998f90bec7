import math

import torch

from lms_geometry.registration.metrics import corner_error


def test_corner_error_is_the_mean_distance_of_four_corners():
    truth = torch.eye(3)[None]
    found = torch.tensor([[[1.0, 0.0, 0.3], [0.0, 1.0, 0.4], [0.0, 0.0, 1.0]]])
    torch.testing.assert_close(corner_error(found, truth), torch.tensor([0.5]))
    found = torch.tensor([[[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    torch.testing.assert_close(corner_error(found, truth), torch.tensor([1.0]))
    found = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]]])
    torch.testing.assert_close(corner_error(found, truth), torch.tensor([0.5**0.5]))


def test_in_pixels_the_corners_are_the_centres_of_the_outermost_pixels():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.eye(3) + 0.01 * torch.rand(2, 4, 5, 3, 3, generator=generator)
    height, width = 7, 11
    found = corner_error(first, second, (height, width))
    assert found.shape == (4, 5)
    for i in range(4):
        for j in range(5):
            distances = []
            for x, y in ((0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)):
                (a, b, c), (d, e, f) = ((m[i, j] @ torch.tensor([x, y, 1.0])).tolist() for m in (first, second))
                distances.append(math.hypot(a / c - d / f, b / c - e / f))
            assert math.isclose(found[i, j].item(), sum(distances) / 4, rel_tol=1e-4)
