"""kornia, unmodified: registration and patches of local affine frames."""

import kornia
import pytest
import torch
from kornia.feature import extract_patches_from_pyramid, extract_patches_simple, laf
from kornia.geometry import ImageRegistrator, pyrdown
from kornia.geometry.transform.image_registrator import Similarity
from lms_geometry.integrations import linearize
from lms_geometry.integrations.kornia import linearize_lafs, linearize_registrator
from settings import KORNIA_TAKES_FLAG, paper

from lms_geometry import LinearizedHomographyWarper, draw_noise, grid_sample_linearized

EXACT = paper(intercept=False)


def blob(x, y, size=(26, 34)):
    rows, columns = torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij")
    return (-((columns - x) ** 2 + (rows - y) ** 2) / 20).exp()[None, None]


def registrator(**kwargs):
    return ImageRegistrator(lr=0.04, num_iterations=25, pyramid_levels=1, tolerance=0, **kwargs)


@pytest.mark.parametrize("named", [True, False])
def test_a_registrator_with_a_linearized_warper_finds_the_shift(named):
    if named:
        found = registrator(model_type="translation")
        original = found.warper
        patch = linearize_registrator(found, sampling=paper(mask_out_of_bounds=False))
    else:
        found = registrator(model_type=Similarity(False, False, True), warper=LinearizedHomographyWarper)
    matrix = found.register(blob(20, 11), blob(16, 13))
    pixels = matrix[0, :2, 2].detach() * torch.tensor([34, 26]) / 2
    torch.testing.assert_close(pixels, torch.tensor([4.0, -2.0]), rtol=0, atol=0.5)
    if named:
        patch.remove()
        assert found.warper is original


def test_a_registrator_in_a_block_is_swapped_as_it_is():
    with linearize() as patch:
        registrator(model_type="homography").register(blob(20, 11), blob(16, 13))
    assert "swapped" in patch.report()


def test_a_registrator_that_is_none_is_refused():
    with pytest.raises(TypeError, match="registrator must be a kornia ImageRegistrator, got Identity"):
        linearize_registrator(torch.nn.Identity())
    found = registrator(model_type="translation")
    original = found.warper
    with pytest.raises(TypeError, match="sampling must be a LinearizedSampling or None, got 'paper'"):
        linearize_registrator(found, sampling="paper")
    assert found.warper is original


# Local affine frames

IMAGE = torch.rand(2, 3, 45, 61, generator=torch.Generator().manual_seed(1))
# Of each image, a frame of every level: 5 pixels across 4, 13 and 40 pixels; the last reaches out of the image.
FRAMES = torch.tensor(
    [
        [[[2.0, 0.3, 20.0], [-0.2, 2.0, 15.0]], [[6.0, 1.0, 30.0], [0.0, 7.0, 22.0]], [[19.0, 4.0, 31.0], [3.0, 21.0, 40.0]]],
        [[[9.0, 0.0, 3.0], [1.0, 9.0, 4.0]], [[2.0, 1.0, 50.0], [-1.0, 2.0, 30.0]], [[17.0, 0.0, 22.0], [0.0, 18.0, 20.0]]],
    ]
)  # fmt: skip
needs_kornia = pytest.mark.skipif(not KORNIA_TAKES_FLAG, reason="kornia before 0.9 samples patches by other functions")
EXTRACTORS = [extract_patches_simple, extract_patches_from_pyramid]


def gradient(extract, image, size=5):
    frames = FRAMES.clone().requires_grad_()
    out = extract(image, frames, PS=size)
    return torch.autograd.grad((out * torch.linspace(1, 2, out[0].numel()).view_as(out[0])).sum(), frames)[0]


@needs_kornia
@pytest.mark.parametrize("extract", EXTRACTORS)
@pytest.mark.parametrize("size", [1, 5, 8])
def test_patches_are_those_of_kornia(extract, size):
    want = extract(IMAGE, FRAMES, PS=size)
    with linearize_lafs(sampling=EXACT):
        got = extract(IMAGE, FRAMES.clone().requires_grad_(), PS=size)
    torch.testing.assert_close(got.detach(), want, rtol=0, atol=1e-5)


@needs_kornia
@pytest.mark.parametrize("extract", EXTRACTORS)
def test_the_gradient_is_the_true_one_on_a_plane(extract):
    rows, columns = torch.meshgrid(torch.arange(45.0), torch.arange(61.0), indexing="ij")
    plane = (0.3 * columns - 0.2 * rows).expand(2, 1, -1, -1)
    inside = torch.tensor([[0, 0], [0, 1], [1, 1]])
    with linearize_lafs(sampling=paper(intercept=False, sigma=0.1, jitter=0.2, ridge=1e-6, mask_out_of_bounds=False)):
        got = gradient(extract, plane)
    want = gradient(extract, plane)
    for b, n in inside.tolist():
        torch.testing.assert_close(got[b, n], want[b, n], rtol=2e-3, atol=2e-3)


@needs_kornia
def test_samples_stay_within_the_level_of_their_patch():
    """Compared with patches taken one at a time, each from the level of its own."""
    size, levels = 5, [IMAGE]
    while min(levels[-1].shape[-2:]) // 2 >= size:
        levels.append(pyrdown(levels[-1]))
    assert len(levels) == 4
    frames = FRAMES.clone().requires_grad_()
    with linearize_lafs(sampling=paper(), generator=torch.Generator().manual_seed(3)):
        got = extract_patches_from_pyramid(IMAGE, frames, PS=size)
    got_gradient = torch.autograd.grad(got.square().sum(), frames)[0]

    generator, sampling = torch.Generator().manual_seed(3), paper()
    scale = 2 * FRAMES[..., :2].det().abs().sqrt() / size
    which = scale.log2().floor().clamp(0, len(levels) - 1).long()
    assert set(which.flatten().tolist()) == {0, 1, 2}
    u = (2 * torch.arange(float(size)) + 1) / size - 1
    local = torch.stack(torch.meshgrid(u, u, indexing="xy"), -1)
    total = 0
    for n, level in enumerate(levels):
        noise = draw_noise(sampling, (3 * size, size), generator=generator).unflatten(1, (3, size))
        for b, k in (which == n).nonzero().tolist():
            frame = frames[b, k]
            pixels = local @ frame[:, :2].T + frame[:, 2]
            grid = (2 * pixels + 1) / torch.tensor([61.0, 45.0]) - 1
            shrink = torch.tensor([level.shape[-1] / 61, level.shape[-2] / 45])
            patch = grid_sample_linearized(
                level[b : b + 1],
                grid[None],
                padding_mode="border",
                jacobian=(frame.detach()[:, :2] * 2 / size * shrink[:, None])[None, None, None],
                sampling=paper(),
                noise=noise[:, k],
            )
            torch.testing.assert_close(got[b, k], patch[0], rtol=1e-4, atol=1e-4)
            total = total + patch.square().sum()
    torch.testing.assert_close(got_gradient, torch.autograd.grad(total, frames)[0], rtol=1e-3, atol=1e-3)


@needs_kornia
@pytest.mark.parametrize("extract", EXTRACTORS)
def test_frames_without_gradient_are_left_to_kornia_but_for_the_packing(extract):
    image = IMAGE.clone().requires_grad_()
    with linearize_lafs():
        got = extract(image, FRAMES, PS=5)
    torch.testing.assert_close(got, extract(image, FRAMES, PS=5), rtol=0, atol=1e-5)
    if extract is extract_patches_simple:
        assert torch.equal(got, extract(image, FRAMES, PS=5))


@needs_kornia
def test_removing_leaves_kornia_as_it_was():
    before = dict(vars(laf))
    with pytest.raises(ZeroDivisionError), linearize_lafs():
        raise ZeroDivisionError
    assert vars(laf).keys() == before.keys()
    assert all(vars(laf)[name] is value for name, value in before.items())


@needs_kornia
def test_what_was_bound_meanwhile_is_kornias_once_the_patch_is_off(monkeypatch):
    plain = gradient(extract_patches_from_pyramid, IMAGE)
    with linearize_lafs():
        kept = laf._sample_patches, laf._pyramid_atlas_fits
        assert not torch.equal(gradient(extract_patches_from_pyramid, IMAGE), plain)
    for name, function in zip(("_sample_patches", "_pyramid_atlas_fits"), kept, strict=True):
        assert function is not getattr(laf, name)
        monkeypatch.setattr(laf, name, function)
    assert kept[1](0)
    assert torch.equal(gradient(extract_patches_from_pyramid, IMAGE), plain)


@needs_kornia
def test_bad_settings_are_refused_when_the_patch_is_made():
    before = dict(vars(laf))
    with pytest.raises(ValueError, match="generator must be None for a sampling with fixed points"):
        linearize_lafs(generator=torch.Generator())
    with pytest.raises(TypeError, match="sampling must be a LinearizedSampling or None, got 'paper'"):
        linearize_lafs(sampling="paper")
    assert all(vars(laf)[name] is value for name, value in before.items())


@needs_kornia
def test_another_kornia_is_refused_with_a_way_out(monkeypatch):
    monkeypatch.delattr(laf, "_pyramid_atlas_fits")
    with pytest.raises(RuntimeError, match=rf"kornia {kornia.__version__} has no .*_pyramid_atlas_fits.*use linearize"):
        linearize_lafs()


@pytest.mark.skipif(KORNIA_TAKES_FLAG, reason="this kornia has the functions")
def test_an_older_kornia_is_refused():
    with pytest.raises(RuntimeError, match=r"by which kornia 0\.9 samples patches: use linearize"):
        linearize_lafs()
