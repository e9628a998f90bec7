"""The fused CPU backend of the mean over a pixel's area, beside eager's."""

import pytest
import torch
import torch.nn.functional as F
from backend_cases import PADDING_MODES
from hypothesis import example, given
from hypothesis import strategies as st

from lms_geometry.backends import cpu

if cpu.unavailable_reason():
    pytest.skip("the C library is not built", allow_module_level=True)

from lms_geometry.backends import cpu_area, cpu_threads, eager_area
from lms_geometry.config import Averaging, Reading

JACOBIANS = (None, "pixel", "image", "one", "row", "column", "batch of one")
KINDS = ("affine", "free", "folded", "mirrored", "plain", "mixed", "one axis")
sizes = st.tuples(*(st.integers(low, high) for low, high in ((1, 5), (1, 9), (2, 13), (2, 13), (1, 11), (1, 13))))


def case(seed, size, kind, jacobian, scale):
    """An image, a grid that shrinks by about `scale`, and Jacobians of the same scale."""
    B, C, H, W, h, w = size
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(B, C, H, W, generator=generator)
    turn = torch.eye(2, 3) + 0.3 * torch.randn(B, 2, 3, generator=generator)
    # Output pixels per source pixel, so that a step of the grid is about `scale` source pixels.
    turn[:, :, :2] *= scale * torch.tensor([w / W, h / H])
    if kind == "mirrored":
        turn[:, 0] *= -1
    if kind == "plain":
        turn[:, :, :2] *= 0.6 / (scale * turn[:, :, :2].norm(dim=(1, 2), keepdim=True).clamp_min(0.6))
    if kind == "one axis":
        turn[:, :, 1] *= 0.5 / scale
    grid = F.affine_grid(turn, [B, C, h, w], align_corners=False)
    if kind == "folded":  # two views, one above the other
        grid = torch.cat((grid[:, : h // 2], grid[:, : h - h // 2] * 0.7), 1)
    if kind == "mixed":  # shrinks more and more
        grid = grid * torch.linspace(0, 1.5, w).unsqueeze(-1)
    # Of two equal steps to the neighbours rounding chooses one, which then gets the gradient. So none are equal.
    wobble = 0.6 if kind == "free" else 0.1
    grid = grid + wobble * torch.randn(grid.shape, generator=generator) / max(H, W)
    shapes = {
        "pixel": (B, h, w),
        "image": (B, 1, 1),
        "one": (1, 1, 1),
        "row": (B, h, 1),
        "column": (1, 1, w),
        "batch of one": (1, h, w),
    }
    given_one = None if jacobian is None else scale * torch.randn(*shapes[jacobian], 2, 2, generator=generator)
    return image, grid, given_one, torch.randn(B, C, h, w, generator=generator)


def run(backend, arguments, settings):
    """Value, and the gradients for image, grid and Jacobian."""
    image, grid, jacobian, weight = arguments
    value = backend.area_mean(image, grid, jacobian, *settings)
    by_image = backend.area_image_gradient(weight, image, grid, jacobian, *settings)
    return value, by_image, *backend.area_gradient(weight, value, image, grid, jacobian, *settings)


def run_all(backend, arguments, settings):
    """The same, and where a Jacobian is given the slopes of every channel by point and by Jacobian."""
    image, grid, jacobian, _ = arguments
    results = run(backend, arguments, settings)
    return results if jacobian is None else (*results, *backend.area_slopes(image, grid, jacobian, *settings)[1:])


def assert_agree(arguments, settings):
    """The same numbers as eager's, to 1e-5 of the largest, and to what float32 costs eager."""
    doubled = [None if t is None else t.double() for t in arguments]
    got, eagers, exact = (
        run_all(cpu_area, arguments, settings),
        run_all(eager_area, arguments, settings),
        run_all(eager_area, doubled, settings),
    )
    for ours, theirs, true in zip(got, eagers, exact, strict=True):
        if theirs is None:
            assert ours is None
            continue
        assert ours.shape == theirs.shape
        assert ours.dtype == torch.float32
        assert ours.isfinite().all()
        largest = true.abs().max().clamp_min(1)
        assert (ours - true).abs().max() <= 1e-5 * largest + 8 * (theirs - true).abs().max()


def settings_of(count=3, side=1.0, padding_mode="zeros", align_corners=False):
    return Averaging(count, side, "edges"), Reading("bilinear", padding_mode, align_corners)


@given(
    st.integers(0, 2**32),
    sizes,
    st.sampled_from(KINDS),
    st.sampled_from(JACOBIANS),
    st.sampled_from([0.7, 1.1, 1.5, 2.0, 4.0]),
    st.sampled_from([2, 3, 4, 5]),
    st.sampled_from([1.0, 2.0]),
    st.sampled_from(PADDING_MODES),
    st.booleans(),
)
@example(0, (2, 3, 13, 17, 11, 9), "affine", None, 1.5, 3, 1.0, "zeros", False)  # one window holds all nodes
@example(0, (2, 3, 13, 17, 11, 9), "affine", None, 4.0, 3, 1.0, "reflection", True)
@example(0, (1, 64, 7, 9, 5, 8), "mixed", None, 2.0, 3, 1.0, "border", False)
@example(0, (1, 1, 2, 3, 1, 7), "free", None, 2.0, 3, 1.0, "zeros", False)
@example(0, (2, 2, 5, 7, 40, 3), "free", None, 1.5, 3, 1.0, "zeros", False)  # several pieces of an image
def test_numbers_are_those_of_eager(seed, size, kind, jacobian, scale, count, side, padding_mode, align_corners):
    arguments = case(seed, size, kind, jacobian, scale)
    assert_agree(arguments, settings_of(count, side, padding_mode, align_corners))


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize(
    "matrix",
    [
        [[0.0, 0.0], [0.0, 0.0]],
        [[3.0, 6.0], [1.0, 2.0]],  # of rank one
        [[-2.0, 0.0], [0.0, 1.5]],
        [[0.0, 1.0005], [1.0005, 0.0]],
        [[1.0006, 0.0], [0.0, 1e-20]],
        [[2.0, 0.0], [0.0, 2.0]],  # equal stretches
        [[2.0, 0.0], [0.0, -2.0]],
        [[2.0, 0.001], [0.0, -2.0]],
        [[1e-30, 0.0], [0.0, 1e-30]],
    ],
)
def test_odd_jacobians(matrix, padding_mode):
    image, grid, _, weight = case(0, (2, 3, 9, 11, 5, 7), "free", None, 1.0)
    assert_agree(
        (image, grid, torch.tensor(matrix).expand(2, 1, 1, 2, 2), weight), settings_of(padding_mode=padding_mode)
    )


def test_a_shear_whose_axes_are_no_longer_than_a_pixel_shrinks_nevertheless():
    image, _, _, weight = case(0, (2, 3, 13, 17, 11, 9), "affine", None, 1.0)
    y, x = torch.meshgrid(torch.arange(11.0), torch.arange(9.0), indexing="ij")
    points = torch.stack((0.9 * x + 0.8 * y, 0.1 * y + 4.0), -1) + 0.01 * torch.rand(2, 11, 9, 2)  # in source pixels
    grid = (2 * points + 1) / torch.tensor([17, 13]) - 1
    assert not torch.equal(
        cpu_area.area_mean(image, grid, None, *settings_of()), F.grid_sample(image, grid, align_corners=False)
    )
    assert_agree((image, grid, None, weight), settings_of())


@pytest.mark.parametrize("entry", [3e4, 1e30, float("inf"), float("-inf"), float("nan")])
def test_a_derivative_that_is_huge_or_no_number(entry):
    image, grid, jacobian, weight = case(0, (2, 3, 9, 11, 5, 7), "free", "pixel", 1.5)
    jacobian[0, 2, 3, 0, 1] = entry
    for padding_mode in ("zeros", "border"):  # reflection of a point that far is all rounding
        assert_agree((image, grid, jacobian, weight), settings_of(padding_mode=padding_mode))


@pytest.mark.parametrize("jacobian", [None, "pixel", "image"])
@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("entry", [1e6, -1e30, float("inf"), float("-inf"), float("nan")])
def test_a_point_that_is_far_outside_or_no_number(entry, scale, jacobian):
    image, grid, given_one, weight = case(0, (2, 3, 9, 11, 5, 7), "free", jacobian, scale)
    grid[0, 2, 3, 1] = entry
    for padding_mode in ("zeros", "border"):
        assert_agree((image, grid, given_one, weight), settings_of(padding_mode=padding_mode))
        by_grid = run(cpu_area, (image, grid, given_one, weight), settings_of(padding_mode=padding_mode))[2]
        assert by_grid[0, 2, 3, 1] == 0
    run(cpu_area, (image, grid, given_one, weight), settings_of(padding_mode="reflection"))


@pytest.mark.parametrize("jacobian", [None, "pixel", "image"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_torchs_default_dtype_does_not_matter(dtype, jacobian):
    """The kernels write float32 into memory that is made for it."""
    arguments = case(0, (2, 3, 9, 11, 5, 7), "free", jacobian, 2.0)
    expected = run_all(cpu_area, arguments, settings_of())
    torch.set_default_dtype(dtype)
    try:
        got = run_all(cpu_area, arguments, settings_of())
    finally:
        torch.set_default_dtype(torch.float32)
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours is None) is (theirs is None)
        assert ours is None or torch.equal(ours, theirs)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("align_corners", [False, True])
def test_pixels_without_area_have_the_value_of_grid_sample_to_the_last_bit(padding_mode, align_corners):
    image, grid, _, _ = case(0, (3, 4, 13, 17, 23, 19), "free", None, 1.0)
    settings = settings_of(padding_mode=padding_mode, align_corners=align_corners)
    plain = F.grid_sample(image, grid, "bilinear", padding_mode, align_corners)
    jacobian = torch.eye(2).expand(3, 23, 19, 2, 2).clone()
    assert torch.equal(cpu_area.area_mean(image, grid, jacobian, *settings), plain)
    jacobian[:, ::2, ::3] *= 2
    value = cpu_area.area_mean(image, grid, jacobian, *settings)
    same = torch.ones(23, 19, dtype=torch.bool)
    same[::2, ::3] = False
    assert torch.equal(value[..., same], plain[..., same])
    assert not torch.equal(value[..., ~same], plain[..., ~same])


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
def test_gradients_on_texels_are_those_of_grid_sample_beside_pixels_with_area(padding_mode):
    """At a texel the bilinear derivative jumps, so that a rounding error in a coordinate would show."""
    image = torch.rand(2, 3, 12, 17)
    grid = F.affine_grid(torch.eye(2, 3).expand(2, 2, 3), [2, 3, 12, 17], align_corners=False).clone()
    jacobian = torch.eye(2).expand(2, 12, 17, 2, 2).clone()
    jacobian[1, 3, 4] *= 2
    weight = torch.rand(2, 3, 12, 17)
    by_grid = run(cpu_area, (image, grid, jacobian, weight), settings_of(padding_mode=padding_mode))[2]
    how = (0, PADDING_MODES.index(padding_mode), False, (False, True))
    expected = torch.ops.aten.grid_sampler_2d_backward(weight, image, grid, *how)[1]
    by_grid[1, 3, 4] = expected[1, 3, 4]
    torch.testing.assert_close(by_grid, expected, atol=1e-5 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("jacobian", [None, "image", "pixel"])
def test_a_warp_that_shrinks_nowhere_is_left_to_torch(jacobian, monkeypatch):
    image, grid, given_one, weight = case(0, (2, 3, 13, 17, 11, 9), "plain", jacobian, 1.0)
    if given_one is not None:
        given_one = given_one / given_one.norm(dim=(-2, -1), keepdim=True).clamp_min(1)
    kernels = []
    monkeypatch.setattr(cpu_area, "run", lambda kernel, *rest: (kernels.append(kernel), cpu.run(kernel, *rest)))
    value, by_image, by_grid, by_jacobian = run(cpu_area, (image, grid, given_one, weight), settings_of())
    assert set(kernels) == {"area_search"}
    assert torch.equal(value, F.grid_sample(image, grid, align_corners=False))
    how = (0, 0, False, (True, True))
    expected = torch.ops.aten.grid_sampler_2d_backward(weight, image, grid, *how)
    assert torch.equal(by_image, expected[0])
    assert torch.equal(by_grid, expected[1])
    assert by_jacobian is None or not by_jacobian.any()


@pytest.mark.parametrize("jacobian", [None, "image", "pixel"])
@pytest.mark.parametrize("channels", [1, 3, 64])
def test_the_number_of_threads_changes_no_bit(channels, jacobian, monkeypatch):
    monkeypatch.setattr(cpu_threads, "_READS_A_THREAD", 1)
    arguments = case(0, (3, channels, 21, 33, 50, 21), "mixed", jacobian, 2.0)
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run_all(cpu_area, arguments, settings_of()))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert one is two is None or torch.equal(one, two)


@pytest.mark.parametrize("scale", [0.5, 1.5, 4.0])
def test_layouts_change_nothing(scale):
    image, grid, jacobian, weight = case(0, (3, 9, 13, 17, 11, 7), "free", "pixel", scale)
    image, grid, jacobian = (
        image[:1].expand(3, -1, -1, -1),
        grid[:1].expand(3, -1, -1, -1),
        jacobian[:1].expand(3, *[-1] * 4),
    )
    expected = run(cpu_area, [t.contiguous() for t in (image, grid, jacobian, weight)], settings_of())
    laid_out = (
        image,
        grid.transpose(1, 2).contiguous().transpose(1, 2),
        jacobian.transpose(-1, -2).contiguous().transpose(-1, -2),
        weight.contiguous(memory_format=torch.channels_last),
    )
    channels_last = (image.contiguous(memory_format=torch.channels_last), grid, jacobian, weight)
    for arguments in ((image, grid, jacobian, weight), laid_out, channels_last):
        for ours, theirs in zip(run(cpu_area, arguments, settings_of()), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_equal_steps_give_the_matrix_of_an_affine_warp_its_gradient():
    """Which of two equal steps gets a pixel's gradient is up to rounding, but not what arrives at the matrix."""
    theta = 2 * torch.eye(2, 3) + 0.3 * torch.randn(2, 2, 3)
    image, weight = torch.rand(2, 3, 13, 17), torch.rand(2, 3, 13, 17)

    def by_matrix(backend, dtype):
        matrix = theta.to(dtype).requires_grad_()
        grid = F.affine_grid(matrix, [2, 3, 13, 17], align_corners=False)
        arguments = (image.to(dtype), grid.detach(), None, weight.to(dtype))
        return torch.autograd.grad(grid, matrix, run(backend, arguments, settings_of())[2])[0].double()

    expected = by_matrix(eager_area, torch.float64)
    assert (by_matrix(cpu_area, torch.float32) - expected).abs().max() <= 2e-5 * expected.abs().max()


def affine_grid(scale, size, output):
    """Two turned, sheared views of an image of `size`, in which a step of the grid is about `scale` source pixels."""
    (H, W), (h, w) = size, output
    turn = torch.tensor([[0.9, 0.3], [-0.2, 1.1]]) * scale * torch.tensor([w / W, h / H])
    theta = torch.stack([torch.cat((turn, torch.tensor([[a], [b]])), 1) for a, b in ((0.1, -0.2), (-0.3, 0.05))])
    return F.affine_grid(theta, [2, 3, h, w], align_corners=False)


@pytest.mark.parametrize("padding_mode", PADDING_MODES)
@pytest.mark.parametrize("output", [(11, 17), (1, 130), (130, 1), (40, 3), (7, 48)])
@pytest.mark.parametrize("scale", [0.5, 1.02, 1.5, 4.0])
def test_pixels_of_an_affine_grid_share_their_areas(scale, output, padding_mode):
    """Of two equal steps rounding takes one for the smaller, and gives it the gradient, so that only sums compare."""
    image, weight = torch.rand(2, 3, 23, 19), torch.rand(2, 3, *output)
    grid, settings = affine_grid(scale, (23, 19), output), settings_of(padding_mode=padding_mode)

    def results(backend, dtype):
        arguments = image.to(dtype), grid.to(dtype), None, weight.to(dtype)
        value, by_image, by_grid, _ = run(backend, arguments, settings)
        moments = [(by_grid * factor).sum((1, 2)) for factor in (1, grid, grid.flip(-1))]
        # Along an axis without extent the gradient is the bilinear one, which jumps at texels.
        return (value, by_image, *moments) if scale > 1 and min(output) > 1 else (value, by_image)

    exact = results(eager_area, torch.float64)
    for ours, theirs, true in zip(
        results(cpu_area, torch.float32), results(eager_area, torch.float32), exact, strict=True
    ):
        largest = true.abs().max().clamp_min(1)
        assert (ours - true).abs().max() <= 3e-5 * largest + 8 * (theirs - true).abs().max()


@pytest.mark.parametrize("scale", [0.5, 1.5])
@pytest.mark.parametrize("place", [(0, 0), (0, 40), (9, 3), (9, 59), (13, 60), (25, 0), (25, 60)])
def test_one_point_off_an_affine_grid_has_an_area_of_its_own(scale, place):
    image, weight = torch.rand(2, 3, 23, 19), torch.rand(2, 3, 26, 61)
    grid = affine_grid(scale, (23, 19), (26, 61))
    grid[(1, *place)] += torch.tensor([0.12, -0.07])
    settings = settings_of()
    expected = run(eager_area, (image.double(), grid.double(), None, weight.double()), settings)
    for ours, true in zip(run(cpu_area, (image, grid, None, weight), settings)[:2], expected, strict=False):
        torch.testing.assert_close(ours.double(), true, atol=1e-5 * float(true.abs().max().clamp_min(1)), rtol=0)


@pytest.mark.parametrize("along", [1, 2])
@pytest.mark.parametrize("gap", [0.3, 3.0])
def test_a_view_within_a_view_keeps_its_areas(gap, along):
    """A block of 48 pixels begins at the seam. The step over the seam, if shorter, is the Jacobian on both sides."""
    output, seam, length = ((60, 24), 30, 20) if along == 1 else ((30, 150), 72, 60)
    image, weight, grid = torch.rand(2, 3, 70, 200), torch.rand(2, 3, *output), affine_grid(1.5, (70, 200), output)
    step = grid.diff(dim=along)[:, :1, :1]
    grid.narrow(along, seam, length).add_((gap - 1) * step)
    expected = run(eager_area, (image.double(), grid.double(), None, weight.double()), settings_of())
    for ours, true in zip(run(cpu_area, (image, grid, None, weight), settings_of())[:2], expected, strict=False):
        torch.testing.assert_close(ours.double(), true, atol=3e-4 * float(true.abs().max().clamp_min(1)), rtol=0)


@pytest.mark.parametrize("size", [(0, 3, 5, 7, 3, 2), (2, 0, 5, 7, 3, 2), (2, 3, 5, 7, 0, 2), (2, 3, 5, 7, 3, 0)])
def test_nothing_to_sample(size):
    B, C, H, W, h, w = size
    arguments = (torch.rand(B, C, H, W), torch.rand(B, h, w, 2), torch.rand(B, 1, 1, 2, 2), torch.rand(B, C, h, w))
    for ours, theirs in zip(run(cpu_area, arguments, settings_of()), arguments[-1:] + arguments[:3], strict=True):
        assert ours.shape == theirs.shape
        assert not ours.any()
    _, slope, by_jacobian = cpu_area.area_slopes(*arguments[:3], *settings_of())
    assert slope.shape == (B, C, h, w, 2)
    assert by_jacobian.shape == (B, C, h, w, 2, 2)
