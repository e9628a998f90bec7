"""Pictures of a warp show what the sampler does: the points are those it reads, the planes those it returns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from kornia.geometry import warp_affine

from lms_geometry import LinearizedSampling, grid_sample_linearized, warp_affine_linearized
from lms_geometry.plot import plot_gradient_field, plot_samples

SIZE, DSIZE = (61, 83), (9, 11)
M = torch.tensor([[[0.13, 0.03, -1.0], [-0.02, 0.14, 1.5]]])


@pytest.fixture(scope="module")
def image():
    """Blobs, in colour, some pixels wide."""
    noise = torch.rand(1, 3, 11, 15, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, SIZE, mode="bicubic", align_corners=False).clamp(0, 1)


def dots(figure, label):
    (line,) = [line for line in figure.axes[1].get_lines() if line.get_label() == label]
    return torch.from_numpy(np.stack(line.get_data(), -1)).float()


def read(image, points):
    """Bilinear reads of the mean of the channels at source pixels ``(n, 2)``."""
    grid = (2 * points + 1) / torch.tensor([SIZE[1], SIZE[0]]) - 1
    return F.grid_sample(image.mean(1, keepdim=True), grid[None, None], align_corners=False).flatten()


def test_the_mean_of_the_reads_for_the_value_is_the_samplers_value(image):
    figure = plot_samples(image, M, DSIZE, pixel=(3, 5))
    expected = warp_affine_linearized(image, M, DSIZE)[0, :, 3, 5].mean()
    reads = dots(figure, "reads for the value")
    assert len(reads) == 9
    torch.testing.assert_close(read(image, reads).mean(), expected, atol=1e-5, rtol=0)


def test_the_reads_for_the_slope_lie_on_the_edges_and_give_the_samplers_slope(image):
    figure = plot_samples(image, M, DSIZE, pixel=(3, 5))
    reads = dots(figure, "and its slope")
    J = torch.linalg.inv(M[0, :, :2])
    centre = dots(figure, "reads for the value").mean(0)
    within = (reads - centre) @ torch.linalg.inv(J).T
    torch.testing.assert_close(within.abs().max(1).values, torch.full((16,), 0.5), atol=1e-4, rtol=0)
    # By hand: differences between the means of opposite edges, per source pixel.
    values = read(image, reads)
    right, left = (values[(within[:, 0] - side).abs() < 1e-3].mean() for side in (0.5, -0.5))
    bottom, top = (values[(within[:, 1] - side).abs() < 1e-3].mean() for side in (0.5, -0.5))
    slope = torch.linalg.solve(J.T, torch.stack((right - left, bottom - top)))
    labels = [line.get_label() for line in figure.axes[-1].get_lines()]
    assert labels[-1] == f"this sampler, {slope[0]:+.3f}"


def test_the_plane_is_the_samplers_value_and_slope(image):
    figure = plot_samples(image, M, DSIZE, pixel=(3, 5))
    cut = figure.axes[-1].get_lines()[-1]
    offset, height = (torch.from_numpy(np.asarray(part)) for part in cut.get_data())
    value = warp_affine_linearized(image, M, DSIZE)[0, :, 3, 5].mean()
    torch.testing.assert_close(height[len(height) // 2], value, atol=1e-4, rtol=0)
    assert offset[len(offset) // 2].abs() < 1e-5


def test_drawn_samples_are_those_that_the_sampler_draws(image):
    paper = LinearizedSampling.paper()
    generator = torch.Generator().manual_seed(3)
    reads = dots(plot_samples(image, M, DSIZE, sampling=paper, generator=generator), "reads for the value")
    assert reads.shape == (8, 2)
    offsets = torch.stack(
        [
            dots(plot_samples(image, M, DSIZE, sampling=paper, generator=generator), "reads for the value")[1:]
            - reads[0]
            for _ in range(12)
        ]
    ).flatten(0, 1)
    J = torch.linalg.inv(M[0, :, :2])
    spread = (J @ J.T + torch.eye(2)).diagonal().sqrt()
    torch.testing.assert_close(offsets.std(0), spread, atol=0, rtol=0.3)


def test_a_grid_and_a_matrix_of_one_warp_give_one_picture(image):
    M3 = torch.cat((M, torch.tensor([[[0.0, 0.0, 1.0]]])), 1)
    to_pixels = torch.linalg.inv(M3)
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    points = torch.stack((x, y, torch.ones_like(x)), -1) @ to_pixels[0].T
    grid = (2 * points[None, ..., :2] + 1) / torch.tensor([SIZE[1], SIZE[0]]) - 1
    expected = dots(plot_samples(image, M, DSIZE), "reads for the value")
    for figure in (plot_samples(image, grid), plot_samples(image, M3, DSIZE)):
        torch.testing.assert_close(dots(figure, "reads for the value"), expected, atol=1e-3, rtol=0)


def test_where_nothing_shrinks_one_point_is_read(image):
    figure = plot_samples(image, torch.eye(2, 3)[None], SIZE, pixel=(20, 30))
    torch.testing.assert_close(dots(figure, "reads for the value"), torch.tensor([[30.0, 20.0]]), atol=1e-4, rtol=0)


def test_the_arrows_are_the_descent_that_autograd_gives(image):
    target = warp_affine(image, M, DSIZE) + 0.1
    figure = plot_gradient_field(image, M, DSIZE, target=target, points=4, reach=0.2)
    assert [axes.get_title().splitlines()[0] for axes in figure.axes[:2]] == ["bilinear", "lms_geometry"]
    for axes, warp in zip(figure.axes, (warp_affine, warp_affine_linearized), strict=False):
        quiver = axes.collections[0]
        for index in (0, 6, 13):
            move = torch.tensor([quiver.X[index], quiver.Y[index]], requires_grad=True)
            # To look further right in the source is to move the source to the left.
            moved = torch.cat((M[:, :, :2], M[:, :, 2:] - (M[:, :, :2] @ move[:, None])), 2)
            loss = (warp(image, moved.float(), DSIZE) - target).square().mean()
            (gradient,) = torch.autograd.grad(loss, move)
            arrow = torch.tensor([quiver.U[index], quiver.V[index]])
            torch.testing.assert_close(arrow, -F.normalize(gradient, dim=0), atol=1e-2, rtol=0, check_dtype=False)


def test_the_title_counts_the_arrows_within_45_degrees(image):
    figure = plot_gradient_field(
        image, M, DSIZE, samplings={"sharp": LinearizedSampling(), "flat": "bilinear"}, points=6
    )
    for axes in figure.axes[:2]:
        quiver = axes.collections[0]
        move, arrow = np.stack((quiver.X, quiver.Y), -1), np.stack((quiver.U, quiver.V), -1)
        cosine = -(move * arrow).sum(-1) / np.linalg.norm(move, axis=-1)
        assert axes.get_title().splitlines()[1] == f"{(cosine > 0.5**0.5).mean():.0%} lead back"


def test_a_figure_shows_itself_in_a_notebook(image):
    png = plot_gradient_field(image, M, DSIZE, points=2)._repr_png_()
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda image: plot_samples(image, M), "dsize must be the output's"),
        (lambda image: plot_samples(image[0], M, DSIZE), r"add an axis for the batch, as in image\[None\]"),
        (lambda image: plot_samples(image, M, DSIZE, pixel=(9, 0)), "pixel must be .* within the output's 9 x 11"),
        (
            lambda image: plot_gradient_field(image[0], M, DSIZE),
            r"source must have shape \(1, C, H, W\), got .* as in source\[None\]",
        ),
        (lambda image: plot_gradient_field(image, M, DSIZE, reach=0), "reach must be above 0"),
        (lambda image: plot_gradient_field(image, M, DSIZE, points=1), "points must be an int of at least 2"),
        (lambda image: plot_gradient_field(image, M, DSIZE, target=image), r"target must have shape \(1, 3, 9, 11\)"),
    ],
)
def test_bad_arguments_are_named(call, message, image):
    with pytest.raises(ValueError, match=message):
        call(image)


def shown(image, warp, dsize, target):
    """What both pictures show, as numbers: fixed points, drawn samples, and arrows of both."""
    paper, seed = LinearizedSampling.paper(), torch.Generator().manual_seed(3)
    pictures = [plot_samples(image, warp, dsize, sampling=s, generator=g) for s, g in ((None, None), (paper, seed))]
    samplings = {"bilinear": "bilinear", "fixed": LinearizedSampling(), "drawn": paper}
    for given in (None, target):
        seed = torch.Generator().manual_seed(3)
        field = plot_gradient_field(image, warp, dsize, target=given, samplings=samplings, points=3, generator=seed)
        arrows = [np.stack((panel.collections[0].U, panel.collections[0].V)) for panel in field.axes[:3]]
        pictures.append(np.stack(arrows))
    lines = [line.get_data() for figure in pictures[:2] for axes in figure.axes for line in axes.get_lines()]
    return [*map(np.stack, lines), *pictures[2:]]


@pytest.mark.parametrize("as_grid", [False, True], ids=["matrix", "grid"])
def test_pictures_are_the_same_whatever_torchs_defaults_and_the_dtype_of_the_input(image, as_grid):
    theta = torch.tensor([[[0.8, 0.1, 0.0], [-0.1, 0.7, 0.1]]])
    warp, dsize = (F.affine_grid(theta, (1, 3, *DSIZE), align_corners=False), None) if as_grid else (M, DSIZE)
    target = warp_affine(image, M, DSIZE)
    expected = shown(image, warp, dsize, target)
    try:
        torch.set_default_dtype(torch.float64)
        by_dtype = shown(image, warp, dsize, target)
        by_input = shown(image.double(), warp.double(), dsize, target.double())
        torch.set_default_dtype(torch.float32)
        torch.set_default_device("meta")  # on which nothing can be drawn
        by_device = shown(image, warp, dsize, target)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for found in (by_dtype, by_input, by_device):
        for got, want in zip(found, expected, strict=True):
            np.testing.assert_allclose(got, want, atol=1e-4)


def test_drawing_leaves_the_callers_gradients_alone(image):
    grid = F.affine_grid(torch.eye(2, 3)[None], (1, 3, *DSIZE), align_corners=False).requires_grad_()
    plot_samples(image, grid)
    plot_gradient_field(image, grid, points=2)
    assert grid.grad is None
    with torch.no_grad():
        plot_gradient_field(image, grid, points=2)
    assert grid_sample_linearized(image, grid).requires_grad
