"""The mean over an output pixel's area against a hand-written oracle, and its derivatives against the mean's own."""

import math

import oracle
import pytest
import torch
import torch.nn.functional as F

from lms_geometry.area import excess_area, slope_by_jacobian
from lms_geometry.backends import area_operator
from lms_geometry.backends.eager_area import area_gradient, area_image_gradient, area_mean
from lms_geometry.config import Averaging, Reading


def turned(angle, stretch_x, stretch_y, mirrored=False):
    cos, sin = math.cos(angle), math.sin(angle)
    matrix = torch.tensor([[cos, -sin], [sin, cos]]) @ torch.diag(torch.tensor([stretch_x, stretch_y]))
    other = torch.tensor([[math.cos(0.7), -math.sin(0.7)], [math.sin(0.7), math.cos(0.7)]])
    return (matrix @ other @ torch.diag(torch.tensor([1.0, -1.0 if mirrored else 1.0]))).double()


JACOBIANS = {
    "shrinks": turned(0.4, 3.0, 2.5),
    "shrinks, mirrored": turned(0.4, 3.0, 2.5, mirrored=True),
    "shrinks a little": turned(-1.0, 1.5, 1.2),
    "hardly shrinks": turned(2.0, 1.1, 1.05, mirrored=True),
    "shrinks along one axis": turned(0.3, 4.0, 0.6),
    "shrinks along one axis, mirrored": turned(0.3, 4.0, 0.6, mirrored=True),
    "has rank one": turned(1.2, 3.0, 0.0),
    "enlarges": turned(0.9, 0.7, 0.4),
    "is a plain resize": torch.diag(torch.tensor([1.7, 5.3])).double(),
    "is a similarity": turned(0.35, 4.0, 4.0),
    "is a mirrored similarity": turned(0.35, 4.0, 4.0, mirrored=True),
    "is zero": torch.zeros(2, 2).double(),
}


def case(height=17, width=23, h=2, w=3, channels=2):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, channels, height, width, generator=generator).double()
    grid = (torch.rand(2, h, w, 2, generator=generator) * 2.4 - 1.2).double()
    return image, grid


def area_slopes(image, grid, jacobian, averaging, reading):
    return area_operator.area_slopes(image, grid, jacobian, *averaging, *reading)


@pytest.mark.parametrize("jacobian", JACOBIANS.values(), ids=JACOBIANS)
@pytest.mark.parametrize(("padding_mode", "align_corners"), [("zeros", False), ("border", True), ("reflection", False)])
def test_values_and_slopes_are_the_oracles(jacobian, padding_mode, align_corners):
    image, grid = case()
    jacobian = jacobian.view(1, 1, 1, 2, 2)
    how = Averaging(3, 1.0, "edges"), Reading("bilinear", padding_mode, align_corners)
    value, slope, by_jacobian = area_slopes(image, grid, jacobian, *how)
    wanted_value, wanted_slope, wanted_by_jacobian = oracle.area(
        image, grid, jacobian, 3, 1.0, padding_mode, align_corners
    )
    units = torch.tensor([(n - 1) / 2 if align_corners else n / 2 for n in (23, 17)])
    torch.testing.assert_close(value, wanted_value, rtol=0, atol=1e-12)
    torch.testing.assert_close(slope / units, wanted_slope, rtol=0, atol=1e-10)
    torch.testing.assert_close(by_jacobian, wanted_by_jacobian, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [2, 4, 5])
@pytest.mark.parametrize("side", [1.0, 2.6])
def test_more_nodes_and_wider_areas_are_the_oracles(count, side):
    image, grid = case()
    jacobian = turned(0.2, 2.2, 1.3).view(1, 1, 1, 2, 2)
    value, slope, by_jacobian = area_slopes(
        image, grid, jacobian, Averaging(count, side, "edges"), Reading("bilinear", "zeros", False)
    )
    wanted = oracle.area(image, grid, jacobian, count, side)
    torch.testing.assert_close(value, wanted[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(slope / torch.tensor([23 / 2, 17 / 2]), wanted[1], rtol=0, atol=1e-10)
    torch.testing.assert_close(by_jacobian, wanted[2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("jacobian", JACOBIANS.values(), ids=JACOBIANS)
def test_gradients_are_sums_of_slopes(jacobian):
    """With a Jacobian for every pixel, one for an image, and one for all."""
    image, grid = case(channels=3)
    how = Averaging(3, 1.0, "edges"), Reading("bilinear", "zeros", False)
    for shape in ((2, 2, 3), (2, 1, 1), (1, 1, 1)):
        given = jacobian.expand(*shape, 2, 2)
        value, slope, by_jacobian = area_slopes(image, grid, given, *how)
        gradient = torch.rand(value.shape, generator=torch.Generator().manual_seed(1)).double()
        by_grid, by_given = area_gradient(gradient, value, image, grid, given, *how)
        torch.testing.assert_close(by_grid, (slope * gradient[..., None]).sum(1))
        wanted = (by_jacobian * gradient[..., None, None]).sum(1)
        torch.testing.assert_close(by_given, wanted.sum_to_size(given.shape))


def test_a_bare_grid_is_differentiated_through_its_finite_differences():
    """Against autograd through differences written out by hand, on a grid with a fold."""
    image, grid = case(h=4, w=5)
    grid = torch.cat((grid, grid.flip(2)), 2)
    how = Averaging(3, 1.0, "edges"), Reading("bilinear", "border", False)
    value = area_mean(image, grid, None, *how)
    gradient = torch.rand(value.shape, generator=torch.Generator().manual_seed(1)).double()
    by_grid, _ = area_gradient(gradient, value, image, grid, None, *how)

    leaf = grid.clone().requires_grad_()
    pixels = (leaf + 1) * torch.tensor([23 / 2, 17 / 2]) - 0.5
    jacobian = torch.zeros(2, 4, 10, 2, 2, dtype=torch.float64)
    for axis, n in ((1, 4), (2, 10)):
        for i in range(n):
            here = pixels.select(axis, i)
            steps = [pixels.select(axis, i + 1) - here] if i + 1 < n else []
            steps += [here - pixels.select(axis, i - 1)] if i > 0 else []
            lengths = torch.stack([s.detach().norm(dim=-1) for s in steps])
            chosen = torch.stack(steps).gather(0, lengths.argmin(0)[None, ..., None].expand(1, -1, -1, 2))[0]
            jacobian[(slice(None), i, slice(None)) if axis == 1 else (slice(None), slice(None), i)][..., 2 - axis] = (
                chosen
            )
    by_point, by_jacobian = area_gradient(gradient, value, image, grid, jacobian.detach(), *how)
    (by_differences,) = torch.autograd.grad(jacobian, leaf, by_jacobian)
    torch.testing.assert_close(value, area_mean(image, grid, jacobian.detach(), *how))
    torch.testing.assert_close(by_grid, by_point + by_differences)


@pytest.mark.parametrize("jacobian", JACOBIANS.values(), ids=JACOBIANS)
def test_the_image_gradient_is_the_adjoint(jacobian):
    image, grid = case()
    given = jacobian.view(1, 1, 1, 2, 2)
    how = Averaging(3, 1.0, "edges"), Reading("bilinear", "reflection", True)
    value = area_mean(image, grid, given, *how)
    gradient = torch.rand(value.shape, generator=torch.Generator().manual_seed(1)).double()
    by_image = area_image_gradient(gradient, image, grid, given, *how)
    torch.testing.assert_close((by_image * image).sum(), (gradient * value).sum())
    probe = torch.rand(image.shape, generator=torch.Generator().manual_seed(2)).double()
    torch.testing.assert_close((by_image * probe).sum(), (gradient * area_mean(probe, grid, given, *how)).sum())


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("one_axis", [False, True])
@pytest.mark.parametrize("row", [8.0, 8.5])
def test_all_is_continuous_where_a_warp_begins_to_shrink(mirrored, one_axis, row):
    """Along a path of scales through 1, in steps of 2e-4, across a ramp of one texel from 0 to 1.

    Row 8 is on a line of texel centres, where the bilinear surface has a kink, so that its own derivative jumps.
    """
    image, grid = case(h=1, w=1)
    image = torch.zeros_like(image)
    image[..., 9:, :] = 1.0
    grid[:] = torch.tensor([0.1, (2 * row + 1) / 17 - 1])
    path = []
    for scale in torch.arange(0.99, 1.05, 2e-4).tolist():
        jacobian = turned(0.5, scale, 0.8 if one_axis else scale, mirrored).view(1, 1, 1, 2, 2)
        found = area_slopes(image, grid, jacobian, Averaging(3, 1.0, "edges"), Reading("bilinear", "zeros", False))
        path.append(torch.cat([t.flatten(1) for t in found], 1))
    path = torch.stack(path)
    assert path.isfinite().all()
    value, slope, by_jacobian = path.split((2, 4, 8), 2)
    assert value.diff(dim=0).abs().max() < 2e-4
    assert slope.abs().max() < 1.001 * 17 / 2
    if row == 8.5:
        assert slope.diff(dim=0).abs().max() < 1e-3 * 17 / 2
    assert by_jacobian.abs().max() < 0.5
    assert by_jacobian.diff(dim=0).abs().max() < 0.01


def test_a_mirrored_or_transposed_image_has_the_mirrored_slopes():
    image, grid = case(17, 17)
    jacobian = turned(0.4, 3.0, 1.6).view(1, 1, 1, 2, 2)
    how = Averaging(3, 1.0, "edges"), Reading("bilinear", "zeros", False)
    value, slope, by_jacobian = area_slopes(image, grid, jacobian, *how)
    swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).double()
    other = area_slopes(image.mT.contiguous(), grid.flip(-1), swap @ jacobian, *how)
    torch.testing.assert_close(other[0], value)
    torch.testing.assert_close(other[1], slope.flip(-1))
    torch.testing.assert_close(other[2], swap @ by_jacobian)


def test_the_slope_by_the_jacobian_does_not_depend_on_which_of_equal_singular_vectors_are_taken():
    edges = torch.rand(2, 2, 1, 1, 1, generator=torch.Generator().manual_seed(0)).double()
    for mirrored in (False, True):
        exact, near = (turned(0.3, 3.0, 3.0 + change, mirrored).view(2, 2, 1, 1, 1) for change in (0.0, 1e-9))
        found = [slope_by_jacobian(excess_area(j, 1.0, 0.0), edges, 1.0) for j in (exact, near)]
        torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_identity_in_float32_is_bilinear_to_the_last_bit():
    image = torch.rand(1, 3, 511, 383, generator=torch.Generator().manual_seed(0))
    for theta in (
        [[1.0, 0, 0], [0, 1, 0]],
        [[0.0, -1, 0], [1, 0, 0]],
        [[-1.0, 0, 0], [0, 1, 0]],
        [[0.8, 0.1, 0.3], [-0.2, 0.7, 0]],
    ):
        matrix = torch.tensor([theta])
        size = (383, 511) if theta[0][0] == 0 else (511, 383)
        grid = F.affine_grid(matrix, (1, 3, *size), align_corners=False)
        value = area_mean(image, grid, None, Averaging(3, 1.0, "edges"), Reading("bilinear", "zeros", False))
        assert torch.equal(value, F.grid_sample(image, grid, align_corners=False))


@pytest.mark.parametrize("estimate", ["edges", "plane"])
@pytest.mark.parametrize("jacobian", JACOBIANS.values(), ids=JACOBIANS)
def test_both_estimates_are_exact_on_a_plane(estimate, jacobian):
    y, x = torch.meshgrid(torch.arange(17.0).double(), torch.arange(23.0).double(), indexing="ij")
    image = (0.3 * x - 0.2 * y + 1)[None, None]
    grid = torch.tensor([0.05, -0.1]).double().view(1, 1, 1, 2)
    how = Averaging(3, 1.0, estimate), Reading("bilinear", "border", False)
    value, slope, by_jacobian = area_slopes(image, grid, jacobian.view(1, 1, 1, 2, 2), *how)
    centre = oracle.pixels_of(grid[0, 0, 0], (23, 17), False)
    torch.testing.assert_close(value.view(()), 0.3 * centre[0] - 0.2 * centre[1] + 1)
    torch.testing.assert_close(slope.view(2) / torch.tensor([23 / 2, 17 / 2]), torch.tensor([0.3, -0.2]).double())
    torch.testing.assert_close(by_jacobian, torch.zeros_like(by_jacobian))


def test_the_plane_is_a_least_squares_fit():
    """Where nothing is narrow, the slope is that of ``torch.linalg.lstsq`` through the nine reads."""
    image, grid = case(h=1, w=1)
    jacobian = turned(0.4, 3.0, 2.5)
    how = Averaging(3, 1.0, "plane"), Reading("bilinear", "zeros", False)
    _, slope, _ = area_slopes(image, grid, jacobian.view(1, 1, 1, 2, 2), *how)
    for b in range(2):
        axes = oracle.area_axes(jacobian)
        offsets = torch.tensor([[x, y] for y in (-1, 0, 1) for x in (-1, 0, 1)]).double() / 3 @ axes.T
        at = oracle.points_of(oracle.pixels_of(grid[b, 0, 0], (23, 17), False) + offsets, (23, 17), False)
        reads = F.grid_sample(image[b : b + 1], at[None, None], align_corners=False)[0, :, 0].T
        design = torch.cat((offsets, torch.ones(9, 1).double()), 1)
        wanted = torch.linalg.lstsq(design, reads).solution[:2].T
        torch.testing.assert_close(slope[b, :, 0, 0] / torch.tensor([23 / 2, 17 / 2]), wanted)
