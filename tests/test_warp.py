import warnings
from dataclasses import replace

import kornia.geometry as kornia_geometry
import pytest
import torch
from oracle import pixels_of
from settings import paper, skip_where_old_kornia_differs

from lms_geometry import (
    draw_noise,
    grid_sample_linearized,
    homography_warp_linearized,
    remap_linearized,
    warp_affine_linearized,
    warp_perspective_linearized,
)
from lms_geometry._kornia import normalize_homography
from lms_geometry.footprint import finite_difference_jacobian
from lms_geometry.projection import inverse, project

EXACT = paper(intercept=False)
B, C, H, W, h, w = 3, 2, 17, 23, 7, 11
both_corners = pytest.mark.parametrize("align_corners", [False, True])
modes = pytest.mark.parametrize("mode", ["bilinear", "nearest"])
paddings = pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection"])


def _affine(batch=B, **options):
    return (0.6 * torch.eye(2, 3) + 0.1 * torch.randn(batch, 2, 3)).to(**options)


def _homography(batch=B):
    M = torch.eye(3) + 0.05 * torch.randn(batch, 3, 3)
    M[:, 2, :2] *= 0.05
    return M


class TestValuesWithoutTheInterceptEqualKornia:
    @both_corners
    @modes
    @pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection", "fill"])
    @pytest.mark.parametrize("fill_value", [None, torch.tensor([0.3, 0.7]), torch.tensor([0.5])])
    def test_warp_affine(self, align_corners, mode, padding_mode, fill_value):
        skip_where_old_kornia_differs(align_corners, padding_mode == "fill")
        src, M = torch.rand(B, C, H, W), _affine().requires_grad_()
        arguments = (src, M, (h, w), mode, padding_mode, align_corners, fill_value)
        ours = warp_affine_linearized(*arguments, sampling=EXACT)
        torch.testing.assert_close(ours, kornia_geometry.warp_affine(*arguments), rtol=1e-4, atol=2e-5)

    @both_corners
    @modes
    @pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection", "fill"])
    def test_warp_perspective(self, align_corners, mode, padding_mode):
        skip_where_old_kornia_differs(align_corners, padding_mode == "fill")
        src, M = torch.rand(B, C, H, W), _homography().requires_grad_()
        arguments = (src, M, (h, w), mode, padding_mode, align_corners, torch.rand(B, C, h, w))
        ours = warp_perspective_linearized(*arguments, sampling=EXACT)
        torch.testing.assert_close(ours, kornia_geometry.warp_perspective(*arguments), rtol=1e-4, atol=2e-5)

    @both_corners
    @modes
    @paddings
    @pytest.mark.parametrize(
        ("normalized_coordinates", "normalized_homography"), [(True, True), (False, True), (True, False)]
    )
    def test_homography_warp(self, align_corners, mode, padding_mode, normalized_coordinates, normalized_homography):
        always_bilinear = not normalized_homography and mode != "bilinear"
        skip_where_old_kornia_differs(align_corners, not normalized_coordinates, always_bilinear)
        src, M = torch.rand(B, C, H, W), _homography().requires_grad_()
        arguments = (src, M, (h, w), mode, padding_mode, align_corners, normalized_coordinates, normalized_homography)
        ours = homography_warp_linearized(*arguments, sampling=EXACT)
        torch.testing.assert_close(ours, kornia_geometry.homography_warp(*arguments), rtol=1e-4, atol=2e-5)

    @pytest.mark.parametrize("align_corners", [False, True, None])
    @modes
    @paddings
    @pytest.mark.parametrize("normalized_coordinates", [False, True])
    def test_remap(self, align_corners, mode, padding_mode, normalized_coordinates):
        skip_where_old_kornia_differs(align_corners)
        image, maps = torch.rand(B, C, H, W), 24 * torch.rand(2, B, h, w) - 2
        if normalized_coordinates:
            maps = maps / 12 - 1
        arguments = (image, *maps.requires_grad_(), mode, padding_mode, align_corners, normalized_coordinates)
        ours = remap_linearized(*arguments, sampling=EXACT)
        torch.testing.assert_close(ours, kornia_geometry.remap(*arguments), rtol=1e-4, atol=2e-5)

    def test_an_empty_output(self):
        src, M = torch.rand(B, C, H, W), _affine().requires_grad_()
        for dsize in ((0, w), (h, 0)):
            out = warp_affine_linearized(src, M, dsize)
            assert out.shape == (B, C, *dsize)
            assert torch.autograd.grad(out.sum(), M)[0].shape == M.shape


class TestConventions:
    """Unequal sizes and unequal shifts, so that a swapped axis or direction shows."""

    def test_m_maps_source_to_destination_in_pixels(self):
        src = torch.zeros(1, 1, 9, 13)
        src[0, 0, 3, 5] = 1
        M = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0]]])
        out = warp_affine_linearized(src, M, (6, 11), sampling=EXACT)
        assert out.argmax().item() == 2 * 11 + 7
        to_3x3 = torch.cat((M, torch.tensor([[[0.0, 0.0, 1.0]]])), 1)
        assert warp_perspective_linearized(src, to_3x3, (6, 11), sampling=EXACT).argmax().item() == 2 * 11 + 7

    def test_homography_warp_maps_destination_to_source(self):
        src = torch.zeros(1, 1, 9, 13)
        src[0, 0, 3, 5] = 1
        M = torch.tensor([[[1.0, 0.0, 2.0], [0.0, 1.0, -1.0], [0.0, 0.0, 1.0]]])
        out = homography_warp_linearized(src, M, (9, 13), normalized_coordinates=False, sampling=EXACT)
        assert out.argmax().item() == 4 * 13 + 3

    @both_corners
    @pytest.mark.parametrize("warp", [warp_affine_linearized, warp_perspective_linearized])
    def test_the_gradient_for_m_points_the_way_the_content_moves(self, warp, align_corners):
        """Brightness grows by 2 a pixel to the right and falls by 1 downwards: moving content right darkens a pixel."""
        y, x = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
        src = (2 * x - y)[None, None]
        M = torch.eye(3)[None, : 2 if warp is warp_affine_linearized else 3].clone()
        M[:, 0, 2], M[:, 1, 2] = -20, -10
        M.requires_grad_()
        out = warp(
            src, M, (8, 9), align_corners=align_corners, sampling=replace(EXACT, ridge=1e-6, mask_out_of_bounds=False)
        )
        (gradient,) = torch.autograd.grad(out.mean(), M)
        torch.testing.assert_close(gradient[0, :2, 2], torch.tensor([-2.0, 1.0]), rtol=1e-3, atol=1e-3)


class TestJacobian:
    @both_corners
    @pytest.mark.parametrize("affine", [True, False])
    def test_it_is_the_derivative_of_the_source_point_by_the_output_pixel(self, affine, align_corners):
        M = _homography().double()
        if affine:
            M[:, 2] = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
        matrix, usable = inverse(normalize_homography(M, (H, W), (h, w), align_corners))
        grid, jacobian = project(matrix, usable, (h, w), (H, W), align_corners, affine=affine)
        points = pixels_of(grid, (W, H), align_corners).movedim(-1, 0)
        expected = finite_difference_jacobian(points).movedim((0, 1), (-2, -1))
        torch.testing.assert_close(jacobian.expand_as(expected), expected, rtol=0.05, atol=0.02)
        if affine:
            assert jacobian.shape == (B, 1, 1, 2, 2)
            torch.testing.assert_close(jacobian[:, 0, 0], torch.linalg.inv(M)[:, :2, :2])

    def test_a_warp_equals_sampling_its_grid_with_its_jacobian(self):
        src, M = torch.rand(B, C, H, W), _affine()
        sampling = paper()
        noise = draw_noise(sampling, (h, w))
        matrix = torch.cat((M, torch.tensor([0.0, 0.0, 1.0]).expand(B, 1, 3)), 1)
        y, x = torch.meshgrid(torch.arange(float(h)), torch.arange(float(w)), indexing="ij")
        pixels = torch.einsum("bij,hwj->bhwi", torch.linalg.inv(matrix), torch.stack((x, y, torch.ones_like(x)), -1))
        grid = 2 * pixels[..., :2] / torch.tensor([W - 1, H - 1]) - 1
        expected = grid_sample_linearized(src, grid, align_corners=True, sampling=sampling, noise=noise)
        torch.testing.assert_close(
            warp_affine_linearized(src, M, (h, w), sampling=sampling, noise=noise), expected, rtol=1e-3, atol=1e-3
        )


@pytest.mark.parametrize("warp", [warp_affine_linearized, warp_perspective_linearized, homography_warp_linearized])
def test_either_batch_may_be_shared(warp):
    noise = draw_noise(paper(), (h, w))
    src, M = torch.rand(B, C, H, W), _affine() if warp is warp_affine_linearized else _homography()
    for a, b in ((src[:1], M), (src, M[:1])):
        expected = warp(
            a.expand(B, -1, -1, -1), b.expand(B, -1, -1).contiguous(), (h, w), sampling=paper(), noise=noise
        )
        torch.testing.assert_close(warp(a, b, (h, w), sampling=paper(), noise=noise), expected)


@pytest.mark.parametrize("warp", [warp_affine_linearized, warp_perspective_linearized, homography_warp_linearized])
def test_one_image_and_no_matrix_give_an_empty_batch(warp):
    rows = 2 if warp is warp_affine_linearized else 3
    assert warp(torch.rand(1, C, H, W), torch.empty(0, rows, 3), (h, w)).shape == (0, C, h, w)
    assert warp(torch.rand(0, C, H, W), torch.rand(1, rows, 3), (h, w)).shape == (0, C, h, w)


def test_maps_may_be_shared():
    image, maps = torch.rand(B, C, H, W), 15 * torch.rand(2, B, h, w)
    noise = draw_noise(paper(), (h, w))
    for arguments in ((image[:1], *maps), (image, *maps[:, :1]), (image, maps[0], maps[1, :1])):
        expanded = [t.expand(B, *t.shape[1:]) for t in arguments]
        torch.testing.assert_close(
            remap_linearized(*arguments, sampling=paper(), noise=noise),
            remap_linearized(*expanded, sampling=paper(), noise=noise),
        )


@pytest.mark.parametrize("padding_mode", ["zeros", "border", "reflection", "fill"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("bad", [0.0, torch.nan, torch.inf, -torch.inf, 1e30])
def test_a_matrix_without_an_inverse_puts_its_image_outside_with_gradient_0(bad, intercept, padding_mode):
    src, fill = torch.rand(2, C, H, W), torch.tensor([0.25, 0.75])
    sampling = paper(intercept=intercept)
    for warp, good in ((warp_affine_linearized, _affine(2)), (warp_perspective_linearized, _homography(2))):
        M = good.clone()
        M[1] = bad
        M.requires_grad_()
        out = warp(src, M, (h, w), padding_mode=padding_mode, fill_value=fill, sampling=sampling)
        (gradient,) = torch.autograd.grad(out.square().sum(), M)
        assert out.isfinite().all()
        assert gradient.isfinite().all()
        assert (gradient[1] == 0).all()
        assert gradient[0].abs().sum() > 0
        if padding_mode == "zeros":
            assert (out[1] == 0).all()
        if padding_mode == "fill":
            assert torch.equal(out[1], fill[:, None, None].expand(C, h, w))


def test_a_non_finite_destination_to_source_matrix_puts_its_image_outside():
    M = _homography(2)
    M[1, 0, 0] = torch.nan
    M.requires_grad_()
    out = homography_warp_linearized(torch.rand(2, C, H, W), M, (h, w))
    (gradient,) = torch.autograd.grad(out.sum(), M)
    assert (out[1] == 0).all()
    assert (gradient[1] == 0).all()
    assert gradient.isfinite().all()


def test_points_on_a_horizon_are_outside():
    """The depth 1 - x/5 of the output pixel x is 0 at x = 5."""
    M = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [-0.2, 0.0, 1.0]]], requires_grad=True)
    out = homography_warp_linearized(torch.rand(1, C, H, W), M, (h, w), normalized_coordinates=False)
    (gradient,) = torch.autograd.grad(out.sum(), M)
    assert (out[..., 5] == 0).all()
    assert out.isfinite().all()
    assert gradient.isfinite().all()


def test_a_multiple_of_a_homography_is_the_same_warp():
    src, M = torch.rand(B, C, H, W), _homography()
    noise = draw_noise(paper(), (h, w))
    for scale in (-3.0, 1e-12, 1e12):
        torch.testing.assert_close(
            warp_perspective_linearized(src, scale * M, (h, w), sampling=paper(), noise=noise),
            warp_perspective_linearized(src, M, (h, w), sampling=paper(), noise=noise),
            rtol=1e-3,
            atol=1e-4,
        )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_images_take_a_float32_matrix_and_lose_nothing_in_the_grid(dtype):
    src, M = torch.rand(1, 1, 300, 300), torch.tensor([[[1.0, 0.0, 0.3], [0.0, 1.0, -0.6]]])
    half = warp_affine_linearized(src.to(dtype), M, (300, 300), sampling=EXACT)
    assert half.dtype == dtype
    torch.testing.assert_close(
        half.float(), warp_affine_linearized(src, M, (300, 300), sampling=EXACT), rtol=0, atol=0.01
    )


@pytest.mark.parametrize("function", [warp_affine_linearized, warp_perspective_linearized])
def test_autocast_does_not_coarsen_the_grid(function):
    src, M = torch.rand(1, 1, 300, 300), _affine(1) if function is warp_affine_linearized else _homography(1)
    plain = function(src, M, (50, 60), sampling=EXACT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(function(src, M, (50, 60), sampling=EXACT), plain)


@pytest.mark.parametrize("warp", [warp_affine_linearized, warp_perspective_linearized, homography_warp_linearized])
def test_meta_tensors_give_shapes(warp):
    src = torch.rand(2, C, H, W, device="meta")
    M = torch.rand(2, 2 if warp is warp_affine_linearized else 3, 3, device="meta", requires_grad=True)
    out = warp(src, M, (h, w))
    assert (out.device.type, out.shape) == ("meta", (2, C, h, w))
    assert torch.autograd.grad(out.sum(), M)[0].shape == M.shape


SRC, AFFINE, SQUARE = torch.rand(2, 3, 8, 9), torch.eye(2, 3).repeat(2, 1, 1), torch.eye(3).repeat(2, 1, 1)
MAP = torch.zeros(2, 4, 5)


def test_a_size_may_come_from_a_traced_shape():
    def warp(src):
        return warp_affine_linearized(src, AFFINE, src.shape[-2:], sampling=EXACT)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated, and warns of every check
        traced = torch.jit.trace(warp, (SRC,), check_trace=False)
    torch.testing.assert_close(traced(SRC), warp(SRC))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: warp_affine_linearized([1], AFFINE, (4, 5)), TypeError, "src must be a tensor, got list"),
        (lambda: warp_affine_linearized(SRC.int(), AFFINE, (4, 5)), TypeError, r"src must have a floating dtype of 16, 32 or 64 bits, got torch\.int32"),
        (lambda: warp_affine_linearized(SRC[0], AFFINE, (4, 5)), ValueError, r"src must have shape \(B, C, H, W\), got \(3, 8, 9\)"),
        (lambda: warp_affine_linearized(SRC, SQUARE, (4, 5)), ValueError, r"M must have shape \(B, 2, 3\), got \(2, 3, 3\)"),
        (lambda: warp_affine_linearized(SRC, AFFINE[0], (4, 5)), ValueError, r"M must have shape \(B, 2, 3\), got \(2, 3\)"),
        (lambda: warp_affine_linearized(SRC, AFFINE.int(), (4, 5)), TypeError, r"M must have a floating dtype of 16, 32 or 64 bits, got torch\.int32"),
        (lambda: warp_affine_linearized(SRC, AFFINE[:1].repeat(3, 1, 1), (4, 5)), ValueError, "M must have batch size 1 or src's 2, got 3"),
        (lambda: warp_affine_linearized(SRC, AFFINE.to("meta"), (4, 5)), ValueError, "M must be on src's device cpu, got meta"),
        (lambda: warp_affine_linearized(SRC, AFFINE, (4, -5)), ValueError, r"dsize must be \(height, width\), both ints of at least 0, got \(4, -5\)"),
        (lambda: warp_affine_linearized(SRC, AFFINE, (4.5, 5)), ValueError, r"dsize must be .* both ints of at least 0, got \(4\.5, 5\)"),
        (lambda: warp_affine_linearized(SRC, AFFINE, ("4", "5")), ValueError, r"dsize must be .* both ints of at least 0, got \('4', '5'\)"),
        (lambda: warp_affine_linearized(SRC, AFFINE, 4), ValueError, r"dsize must be \(height, width\), both ints of at least 0, got 4"),
        (lambda: warp_affine_linearized(SRC, AFFINE, (4, 5), "cubic"), ValueError, r"mode must be one of .* got 'cubic'"),
        (lambda: warp_affine_linearized(SRC, AFFINE, (4, 5), padding_mode="wrap"), ValueError, r"padding_mode must be one of .*'fill'\), got 'wrap'"),
        (lambda: warp_affine_linearized(SRC, AFFINE, (4, 5), padding_mode="fill", fill_value=0.5), TypeError, "fill_value must be a tensor or None, got float"),
        (lambda: warp_affine_linearized(SRC, AFFINE, (4, 5), padding_mode="fill", fill_value=torch.zeros(4)), ValueError, r"fill_value must have shape .* got \(4,\)"),
        (lambda: warp_perspective_linearized(SRC, AFFINE, (4, 5)), ValueError, r"M must have shape \(B, 3, 3\), got \(2, 2, 3\)"),
        (lambda: homography_warp_linearized(SRC, AFFINE, (4, 5)), ValueError, r"src_homo_dst must have shape \(B, 3, 3\), got \(2, 2, 3\)"),
        (lambda: homography_warp_linearized(SRC, SQUARE, (4, 5), padding_mode="fill"), ValueError, "padding_mode must be one of .* got 'fill'"),
        (lambda: remap_linearized(SRC, MAP, MAP[:, :3]), ValueError, r"map_y must have shape \(B, 4, 5\), got \(2, 3, 5\)"),
        (lambda: remap_linearized(SRC, MAP[0], MAP), ValueError, r"map_x must have shape \(B, h, w\), got \(4, 5\)"),
        (lambda: warp_affine_linearized(SRC, AFFINE, (4, 5), sampling={}), TypeError, "sampling must be a LinearizedSampling or None, got dict"),
        (lambda: warp_affine_linearized(SRC, AFFINE, (4, 5), sampling=paper(), noise=torch.zeros(7, 5, 4, 2)), ValueError, r"noise must have shape \(7, 4, 5, 2\), got \(7, 5, 4, 2\)"),
        (lambda: warp_affine_linearized(SRC, AFFINE, (4, 5), sampling=paper(), noise=torch.zeros(3, 7, 4, 5, 2)), ValueError, r"noise must have shape \(2, 7, 4, 5, 2\), got \(3, 7, 4, 5, 2\)"),
        (lambda: warp_affine_linearized(SRC, AFFINE, (4, 5), sampling=paper(), noise=torch.zeros(7, 4, 5, 2, device="meta")), ValueError, "noise must be on src's device cpu, got meta"),
        (lambda: warp_affine_linearized(SRC[:, :, :0], AFFINE, (4, 5)), ValueError, r"src must have at least one texel, got \(2, 3, 0, 9\)"),
        (lambda: homography_warp_linearized(SRC[0], SQUARE, (4, 5), normalized_homography=False), ValueError, r"patch_src must have shape \(B, C, H, W\), got \(3, 8, 9\)"),
        (lambda: homography_warp_linearized(SRC, SQUARE.to("meta"), (4, 5), normalized_homography=False), ValueError, "src_homo_dst must be on patch_src's device cpu, got meta"),
        (lambda: remap_linearized(SRC, MAP, MAP, sampling=paper(), noise=torch.zeros(7, 4, 5, 2, device="meta")), ValueError, "noise must be on image's device cpu, got meta"),
        (lambda: remap_linearized(SRC, MAP, MAP[:1].repeat(3, 1, 1)), ValueError, "map_y must have batch size 1 or map_x's 2, got 3"),
        (lambda: grid_sample_linearized(SRC, MAP), ValueError, r"grid must have shape \(B, h, w, 2\), got \(2, 4, 5\)"),
        (lambda: grid_sample_linearized(SRC, torch.zeros(2, 4, 5, 2).double()), TypeError, r"grid must have input's dtype torch\.float32, got torch\.float64"),
        (lambda: grid_sample_linearized(SRC, torch.zeros(2, 4, 5, 2), jacobian=torch.zeros(2, 5, 4, 2, 2)), ValueError, r"jacobian must have shape \(2, 4, 5, 2, 2\), or 1 .* got \(2, 5, 4, 2, 2\)"),
        (lambda: grid_sample_linearized(SRC[:, :, :0], torch.zeros(2, 4, 5, 2)), ValueError, r"input must have at least one texel, got \(2, 3, 0, 9\)"),
        (lambda: grid_sample_linearized(SRC, torch.zeros(2, 4, 5, 2), sampling=paper(), generator=3), TypeError, "generator must be a torch.Generator or None, got int"),
    ],
)  # fmt: skip
def test_bad_arguments_are_named_with_what_came_and_what_is_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call()
