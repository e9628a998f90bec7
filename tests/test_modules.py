import pytest
import torch
from kornia.geometry import HomographyWarper, ImageRegistrator
from settings import paper, skip_where_old_kornia_differs

from lms_geometry import (
    LinearizedGridSample,
    LinearizedHomographyWarper,
    draw_noise,
    grid_sample_linearized,
    homography_warp_linearized,
)

SAMPLING = paper(num_samples=5)


def test_grid_sample_module_equals_the_function():
    image, grid, noise = torch.rand(2, 3, 9, 11), torch.rand(2, 4, 5, 2), draw_noise(SAMPLING, (4, 5))
    module = LinearizedGridSample("bicubic", "reflection", True, sampling=SAMPLING)
    expected = grid_sample_linearized(image, grid, "bicubic", "reflection", True, sampling=SAMPLING, noise=noise)
    assert torch.equal(module(image, grid, noise=noise), expected)
    assert "reflection" in repr(module)
    assert "num_samples=5" in repr(module)


@pytest.mark.parametrize("normalized_coordinates", [True, False])
def test_homography_warper_equals_the_function_and_kornias(normalized_coordinates):
    skip_where_old_kornia_differs(True, not normalized_coordinates)
    image = torch.rand(2, 3, 9, 11)
    M = torch.eye(3) + 0.02 * torch.randn(2, 3, 3)
    exact = paper(intercept=False)
    options = {"padding_mode": "border", "normalized_coordinates": normalized_coordinates, "align_corners": True}
    theirs, ours = HomographyWarper(4, 5, **options), LinearizedHomographyWarper(4, 5, **options, sampling=exact)
    torch.testing.assert_close(ours(image, M), theirs(image, M), rtol=1e-4, atol=1e-5)
    for homographies in (M, M[:, None]):  # (N, 1, 3, 3), as kornia documents
        torch.testing.assert_close(ours(image, homographies), theirs(image, M), rtol=1e-4, atol=1e-5)
        ours.precompute_warp_grid(homographies)
        theirs.precompute_warp_grid(M)
        torch.testing.assert_close(ours(image), theirs(image), rtol=1e-4, atol=1e-5)
    noise = draw_noise(exact, (4, 5))
    torch.testing.assert_close(
        ours(image, M, noise=noise),
        homography_warp_linearized(
            image, M, (4, 5), "bilinear", "border", True, normalized_coordinates, sampling=exact, noise=noise
        ),
    )


def test_a_warper_shows_its_settings():
    shown = repr(LinearizedHomographyWarper(4, 5, padding_mode="border", sampling=SAMPLING))
    assert "height=4, width=5" in shown
    assert "border" in shown
    assert "num_samples=5" in shown


def test_a_warper_keeps_the_homography_it_was_given():
    image, M, noise = torch.rand(1, 2, 9, 11), torch.eye(3)[None], draw_noise(SAMPLING, (4, 5))
    warper = LinearizedHomographyWarper(4, 5, sampling=SAMPLING)
    warper.precompute_warp_grid(M)
    before = warper(image, noise=noise)
    M[:, 0, 2] = 1
    assert torch.equal(warper(image, noise=noise), before)


def test_a_warper_without_a_homography_says_so():
    with pytest.raises(RuntimeError, match="src_homo_dst must be given"):
        LinearizedHomographyWarper(4, 5)(torch.rand(1, 1, 9, 9))


def test_the_warper_works_in_kornias_registrator():
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    source = (-((x - 0.2) ** 2 + y**2) * 8).exp()[None, None]
    target = (-((x + 0.1) ** 2 + y**2) * 8).exp()[None, None]
    model = ImageRegistrator("translation", pyramid_levels=1, lr=1e-2, num_iterations=100).model
    registrator = ImageRegistrator(
        model, warper=LinearizedHomographyWarper, pyramid_levels=1, lr=1e-2, num_iterations=100, tolerance=0.0
    )
    found = registrator.register(source, target).detach()
    assert abs(found[0, 0, 2].item() - 0.3) < 0.05
