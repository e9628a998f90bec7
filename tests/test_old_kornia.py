"""What stands for the functions of kornia 0.9 under an older kornia, compared with kornia 0.9 itself."""

import importlib

import pytest
import torch
from kornia.geometry import conversions
from settings import KORNIA_TAKES_FLAG

from lms_geometry import _kornia

pytestmark = pytest.mark.skipif(not KORNIA_TAKES_FLAG, reason="this kornia is an old one itself")
both_corners = pytest.mark.parametrize("align_corners", [False, True])


@pytest.fixture(scope="module")
def old():
    """The module as an older kornia leaves it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversions, "normal_transform_pixel", lambda height, width: None)
        functions = dict(vars(importlib.reload(_kornia)))
    importlib.reload(_kornia)
    return functions


@both_corners
@pytest.mark.parametrize("size", [(7, 11), (1, 5), (4, 1)])
def test_coordinates(old, size, align_corners):
    for name in ("create_meshgrid", "normal_transform_pixel"):
        assert old[name] is not getattr(_kornia, name)
        options = {"dtype": torch.float64, "align_corners": align_corners}
        torch.testing.assert_close(old[name](*size, **options), getattr(_kornia, name)(*size, **options))
    pixels = old["create_meshgrid"](*size, False, align_corners=align_corners)
    assert torch.equal(pixels, _kornia.create_meshgrid(*size, False))


@both_corners
def test_homographies(old, align_corners):
    matrix = torch.eye(3, dtype=torch.float64) + 0.1 * torch.randn(3, 3, 3, dtype=torch.float64)
    for name in ("normalize_homography", "denormalize_homography"):
        arguments = matrix, (7, 11), (5, 3), align_corners
        torch.testing.assert_close(old[name](*arguments), getattr(_kornia, name)(*arguments))


@both_corners
def test_homography_warp(old, align_corners):
    image, matrix = torch.rand(3, 2, 9, 13), torch.eye(3) + 0.1 * torch.randn(3, 3, 3)
    arguments = image, matrix, (5, 7), "bilinear", "border", align_corners
    torch.testing.assert_close(old["homography_warp"](*arguments), _kornia.homography_warp(*arguments))
    identity = old["homography_warp"](image, torch.eye(3).repeat(3, 1, 1), (9, 13), align_corners=align_corners)
    torch.testing.assert_close(identity, image)
