"""The sampler as it comes: ``grid_sample`` where nothing shrinks, and the mean over the pixel's area where something does."""

import math

import pytest
import torch
import torch.nn.functional as F

from lms_geometry import (
    LinearizedSampling,
    draw_noise,
    grid_sample_linearized,
    grid_sample_value_and_slope,
    homography_warp_linearized,
    remap_linearized,
    roi_align_linearized,
    warp_affine_linearized,
    warp_perspective_linearized,
)

SIZE = 21, 34
# View to image, normalised, of warps that shrink nowhere; the view has the image's size, or its transpose.
STILL = {
    "identity": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    "quarter turn": [[0.0, -1.0, 0.0], [1.0, 0.0, 0.0]],
    "half turn": [[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]],
    "flip": [[-1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    "whole pixels": [[1.0, 0.0, 2 * 3 / 34], [0.0, 1.0, -2 * 5 / 21]],
    "enlarged": [[0.7, 0.1, 0.3], [-0.05, 0.6, -0.4]],
    "thin": [[0.9, 0.0, 0.0], [0.0, 1e-3, 0.2]],
    "a point": [[0.0, 0.0, 0.2], [0.0, 0.0, -0.3]],
}
HOW = [(padding, corners) for padding in ("zeros", "border", "reflection") for corners in (False, True)]


def image(channels=3, batch=2, size=SIZE, dtype=torch.float32):
    return torch.rand(batch, channels, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def grid_of(theta, align_corners, batch=2, size=SIZE):
    size = size[::-1] if theta[0, 0] == 0 and theta[1, 0] != 0 else size
    return F.affine_grid(theta.expand(batch, 2, 3), (batch, 1, *size), align_corners=align_corners)


def gradients(sample, *leaves):
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    out = sample(*leaves)
    weight = torch.rand(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return out.detach(), torch.autograd.grad(out, leaves, weight)


@pytest.fixture(params=["eager", "cpu"])
def backend(request, monkeypatch):
    monkeypatch.setenv("LMS_GEOMETRY_BACKEND", request.param)


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize(("padding_mode", "align_corners"), HOW)
@pytest.mark.parametrize("theta", STILL.values(), ids=STILL)
def test_where_nothing_shrinks_it_is_grid_sample(theta, padding_mode, align_corners):
    """The value to the last bit; the gradients for image, grid and matrix to rounding."""
    theta, how = torch.tensor(theta), {"padding_mode": padding_mode, "align_corners": align_corners}
    ours, found = gradients(lambda i, g: grid_sample_linearized(i, g, **how), image(), grid_of(theta, align_corners))
    plain, wanted = gradients(lambda i, g: F.grid_sample(i, g, **how), image(), grid_of(theta, align_corners))
    assert torch.equal(ours, plain)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * want.abs().max().item())

    def by_matrix(sample):
        return gradients(lambda t: sample(image(), grid_of(t, align_corners), **how), theta)[1][0]

    matrix = by_matrix(grid_sample_linearized), by_matrix(F.grid_sample)
    torch.testing.assert_close(*matrix, rtol=1e-5, atol=1e-5 * matrix[1].abs().max().item())


@pytest.mark.parametrize("shrunk", [1.0, 3.0])
def test_nothing_is_drawn(shrunk):
    """The global generator is left as it was, and no generator and no noise is taken."""
    M = torch.tensor([[[1 / shrunk, 0.0, 0.0], [0.0, 1 / shrunk, 0.0]]], requires_grad=True)
    before = torch.get_rng_state()
    warp_affine_linearized(image(), M, (9, 11)).sum().backward()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "call",
    [
        lambda **draws: grid_sample_linearized(image(), torch.zeros(2, 3, 3, 2), **draws),
        lambda **draws: grid_sample_value_and_slope(image(), torch.zeros(2, 3, 3, 2), **draws),
        lambda **draws: warp_affine_linearized(image(), torch.eye(2, 3)[None], (3, 3), **draws),
        lambda **draws: warp_perspective_linearized(image(), torch.eye(3)[None], (3, 3), **draws),
        lambda **draws: homography_warp_linearized(image(), torch.eye(3)[None], (3, 3), **draws),
        lambda **draws: remap_linearized(image(), torch.zeros(1, 3, 3), torch.zeros(1, 3, 3), **draws),
        lambda **draws: roi_align_linearized(image(), torch.zeros(1, 5), (3, 3), **draws),
    ],
)
@pytest.mark.parametrize("name", ["noise", "generator"])
def test_noise_and_a_generator_are_refused(call, name):
    draws = {"noise": torch.zeros(8, 3, 3, 2), "generator": torch.Generator()}
    with pytest.raises(ValueError, match=rf"{name} must be None for a sampling with fixed points"):
        call(**{name: draws[name]})
    call()


def test_noise_cannot_be_drawn_for_fixed_points():
    with pytest.raises(ValueError, match="fixed points"):
        draw_noise(LinearizedSampling(), (3, 3))


@pytest.mark.parametrize("shrunk", [1.0, 1.3, 4.0])
def test_the_image_gradient_is_exact(shrunk):
    theta = torch.tensor([[[shrunk, 0.2, 0.1], [-0.1, shrunk, 0.0]]]).double()
    grid = F.affine_grid(theta, (1, 1, 3, 4), align_corners=False)
    leaf = image(2, 1, (7, 9), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda i: grid_sample_linearized(i, grid), leaf)
    assert torch.autograd.gradgradcheck(lambda i: grid_sample_linearized(i, grid), leaf)


def smooth_image():
    """Waves of 7 to 20 source pixels: within one output pixel of a strong shrink they go up and down."""
    y, x = torch.meshgrid(torch.arange(96.0).double(), torch.arange(80.0).double(), indexing="ij")
    waves = [(x / 3 + y / 7).sin(), (x / 5 - y / 2.5).cos(), (x / 1.3).sin() * (y / 1.7).cos()]
    return torch.stack(waves)[None]


@pytest.mark.parametrize("turn", [0.0, 0.35])
@pytest.mark.parametrize("shrunk", [2, 4, 8])
def test_value_and_matrix_gradient_are_those_of_the_mean_over_the_pixel(shrunk, turn):
    """Against supersampling with 24 x 24 reads a pixel, and its finite differences."""
    size = 80 // shrunk, 72 // shrunk
    theta = torch.tensor([[[math.cos(turn), -math.sin(turn), 0.03], [math.sin(turn), math.cos(turn), -0.05]]]).double()
    theta[:, :, :2] *= 0.8
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(40, 1, 3, *size, generator=generator).double()

    def supersampled(theta):
        grid = F.affine_grid(theta, (1, 1, 24 * size[0], 24 * size[1]), align_corners=False)
        return F.avg_pool2d(F.grid_sample(smooth_image(), grid, align_corners=False), 24)

    def averaged(theta):
        return grid_sample_linearized(smooth_image(), F.affine_grid(theta, (1, 1, *size), align_corners=False))

    bilinear = F.grid_sample(
        smooth_image(), F.affine_grid(theta, (1, 1, *size), align_corners=False), align_corners=False
    )
    error = (averaged(theta) - supersampled(theta)).square().mean().sqrt()
    assert error < 0.25 * (bilinear - supersampled(theta)).square().mean().sqrt()
    leaf = theta.clone().requires_grad_()
    found = torch.stack([torch.autograd.grad(averaged(leaf), leaf, w)[0] for w in weight])
    step = 1e-4
    for entry in range(6):
        change = torch.zeros(1, 2, 3).double()
        change.view(-1)[entry] = step
        rate = (supersampled(theta + change) - supersampled(theta - change)) / (2 * step)
        wanted = (weight * rate).flatten(1).sum(1)
        assert F.cosine_similarity(found.view(40, 6)[:, entry], wanted, dim=0) > 0.98


def test_a_pasted_box_keeps_its_gradient():
    """A patch is pasted into a canvas by a warp that enlarges its outside: most points read the padding."""
    patch = image(3, 1, (8, 8)) + 1
    box = torch.tensor([0.2, 0.3, 0.6, 0.8])

    def by_box(sample):
        def paste(box):
            x0, y0, x1, y1 = box
            y, x = torch.meshgrid(torch.linspace(0, 1, 32), torch.linspace(0, 1, 32), indexing="ij")
            grid = torch.stack(((x - x0) / (x1 - x0), (y - y0) / (y1 - y0)), -1)[None] * 2 - 1
            return sample(patch, grid, align_corners=False)

        return gradients(paste, box)[1][0]

    assert F.cosine_similarity(by_box(grid_sample_linearized), by_box(F.grid_sample), dim=0) > 0.95


def test_a_composed_displacement_field_gives_the_plain_loss():
    """The difference of two samples of a field over 1e-3, as a loss on its derivative has it."""
    generator = torch.Generator().manual_seed(0)
    field = 0.05 * F.interpolate(torch.randn(1, 2, 5, 6, generator=generator), (47, 60), mode="bicubic")
    base = F.affine_grid(torch.eye(2, 3)[None], (1, 1, 47, 60), align_corners=False)
    moved = base + field.permute(0, 2, 3, 1)
    losses = []
    for sample in (grid_sample_linearized, F.grid_sample):
        here, there = (
            sample(field, moved + shift, padding_mode="border", align_corners=False) for shift in (0.0, 1e-3)
        )
        losses.append(((there - here) / 1e-3).square().mean())
    assert abs(losses[0] / losses[1] - 1) < 0.01


def test_half_precision_and_shared_batches():
    theta = torch.tensor([[[2.5, 0.3, 0.1], [-0.2, 2.0, 0.0]]])
    grid = F.affine_grid(theta, (1, 1, 7, 9), align_corners=False)
    wanted = grid_sample_linearized(image(), grid.expand(2, -1, -1, -1))
    assert torch.equal(grid_sample_linearized(image(), grid), wanted)
    half = grid_sample_linearized(image().half(), grid.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), wanted, rtol=0, atol=0.05)
    mixed = grid_sample_linearized(image().bfloat16(), grid)
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.float(), wanted, rtol=0, atol=0.01)


def test_points_that_are_not_finite_read_the_padding_and_get_no_gradient():
    grid = F.affine_grid(torch.tensor([[[3.0, 0, 0], [0, 3.0, 0]]]), (1, 1, 5, 6), align_corners=False).clone()
    grid[0, 1, 2], grid[0, 3, 4, 0], grid[0, 4, 0] = math.nan, math.inf, 1e30
    value, (by_grid,) = gradients(lambda g: grid_sample_linearized(image(2, 1), g), grid)
    assert value.isfinite().all()
    assert by_grid.isfinite().all()
    assert (value[0, :, 1, 2] == 0).all()
    assert (by_grid[0, 1, 2] == 0).all()


def test_without_the_intercept_the_value_is_bilinear_and_the_gradient_that_of_the_mean():
    theta = torch.tensor([[[2.5, 0.3, 0.1], [-0.2, 2.0, 0.0]]])
    grid = grid_of(theta[0], False, size=(7, 9))
    exact = LinearizedSampling(intercept=False)
    value, (by_image, by_grid) = gradients(lambda i, g: grid_sample_linearized(i, g, sampling=exact), image(), grid)
    plain, (by_plain_image, _) = gradients(lambda i, g: F.grid_sample(i, g, align_corners=False), image(), grid)
    _, (_, by_averaged_grid) = gradients(grid_sample_linearized, image(), grid)
    assert torch.equal(value, plain)
    torch.testing.assert_close(by_image, by_plain_image)
    torch.testing.assert_close(by_grid, by_averaged_grid)
    assert torch.equal(grid_sample_value_and_slope(image(), grid, sampling=exact)[0], plain)
