"""Masks, offsets, units, and where the search starts, as ``register`` shows them."""

from dataclasses import replace

import pytest
import torch
from kornia.geometry import warp_perspective
from scenes import DSIZE, MOTIONS, SIZE, about_centre, corner_error, draw_scene, overlapping_crops

from lms_geometry import Adam, GaussNewton, register


@pytest.mark.parametrize("hidden", [0.7, -9999.0, -3.4e38, torch.nan, torch.inf])
@pytest.mark.parametrize("solver", [GaussNewton(), Adam()], ids=["gauss-newton", "adam"])
def test_what_a_mask_hides_in_the_target_does_not_matter(solver, hidden):
    truth = about_centre(*MOTIONS["similarity"], SIZE, DSIZE)
    source = draw_scene(SIZE)
    target = warp_perspective(source, truth[None], DSIZE)
    mask = torch.ones(1, 1, *DSIZE)
    mask[..., :10, :12] = 0
    options = {"target_mask": mask, "solver": replace(solver, steps=60), "fit_gain_bias": True}
    first = register(source, target, "similarity", **options)
    spoilt = torch.where(mask > 0, target, torch.tensor(hidden))
    second = register(source, spoilt, "similarity", **options)
    torch.testing.assert_close(first.matrix, second.matrix)
    torch.testing.assert_close(first.score, second.score)
    if isinstance(solver, GaussNewton):
        assert corner_error(first.matrix, truth, DSIZE).item() < 0.1


@pytest.mark.parametrize("overlap_only", [False, True])
@pytest.mark.parametrize("mask", ["even", "soft"])
def test_a_target_mask_between_0_and_1_weighs_pixels_and_leaves_their_values(mask, overlap_only):
    truth = about_centre(*MOTIONS["similarity"], SIZE, DSIZE)
    source = draw_scene(SIZE)
    target = warp_perspective(source, truth[None], DSIZE)
    rows, columns = (torch.hann_window(n + 2, periodic=False)[1:-1] for n in DSIZE)
    weight = torch.full((1, 1, *DSIZE), 0.4) if mask == "even" else (rows[:, None] * columns)[None, None]
    options = {"target_mask": weight, "overlap_only": overlap_only}
    found = register(source, target, "similarity", **options)
    assert corner_error(found.matrix, truth, DSIZE).item() < 0.01
    assert found.score.item() > 0.999


def test_only_the_ratios_of_the_targets_weights_matter():
    source, target, truth = overlapping_crops()
    weight = torch.linspace(0.5, 1, 150).expand(1, 1, 140, 150)
    found = [register(source, target, "affine", overlap_only=True, target_mask=w * weight) for w in (1.0, 0.25)]
    assert (found[0].matrix - truth).abs().max() < 0.1
    torch.testing.assert_close(found[1].matrix, found[0].matrix, rtol=1e-4, atol=1e-4)


def test_parts_of_little_weight_do_not_stop_the_finish():
    source, target, truth = overlapping_crops()
    weight = torch.full((1, 1, 140, 150), 0.1)
    weight[..., 70, 75] = 1.0
    found = register(source, target, "affine", overlap_only=True, target_mask=weight)
    assert (found.matrix - truth).abs().max() < 0.1


def test_only_the_overlap_of_two_crops_of_one_scene_is_compared():
    scene = draw_scene((96, 120), 5) + 0.4
    truth = torch.tensor([[[1.0, 0.0, -20.0], [0.0, 1.0, -12.0], [0.0, 0.0, 1.0]]])
    source, target = scene[..., :80, :96], scene[..., 12:92, 20:116]
    found = register(source, target, "translation", overlap_only=True)
    assert (found.matrix - truth).abs().max() < 0.05
    without = register(source, target, "translation")
    assert (without.matrix - truth).abs().max() > 0.5


@pytest.mark.parametrize("solver", [GaussNewton(), Adam()], ids=["gauss-newton", "adam"])
def test_where_only_the_overlap_counts_an_offset_of_both_images_does_not_matter(solver):
    truth = about_centre(*MOTIONS["similarity"], SIZE, DSIZE)
    source = draw_scene(SIZE).double() + 0.4
    target = warp_perspective(source, truth[None].double(), DSIZE, padding_mode="border")
    first, second = (
        register(
            source + offset,
            target + offset,
            "similarity",
            overlap_only=True,
            solver=solver,
            generator=torch.Generator().manual_seed(0),
        )
        for offset in (0.0, 1000.0)
    )
    torch.testing.assert_close(first.matrix, second.matrix, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(first.score, second.score, rtol=0, atol=0.01)


def test_the_units_of_the_images_do_not_matter_nor_a_gain_that_is_fitted():
    truth = about_centre(*MOTIONS["similarity"], SIZE, DSIZE)
    source = draw_scene(SIZE)
    target = warp_perspective(source, truth[None], DSIZE)
    target[..., 6:14, 8:17] = torch.tensor([0.9, 0.1, 0.4])[:, None, None]
    options = {"loss": "huber", "fit_gain_bias": True}
    found = [
        register(s * source, t * target, "similarity", **options)
        for s, t in ((1, 1), (1e-3, 1e-3), (255, 0.05), (1e-18, 1e-18))
    ]
    assert corner_error(found[0].matrix, truth, DSIZE).item() < 0.5
    for other in found[1:]:
        torch.testing.assert_close(other.matrix, found[0].matrix, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(other.score, found[0].score, rtol=0, atol=1e-3)


def test_a_similarity_keeps_the_sources_proportions_where_the_target_has_others():
    source = draw_scene((72, 96), 2)
    truth = torch.tensor([[0.9, 0.05, -10.0], [-0.05, 0.9, 4.0], [0.0, 0.0, 1.0]])
    target = warp_perspective(source, truth[None], (70, 60))
    found = register(source, target, "similarity")
    torch.testing.assert_close(found.matrix[0], truth, rtol=0.01, atol=0.1)
    linear = found.path[0, 0, :2, :2]
    assert linear[0, 0] == pytest.approx(linear[1, 1].item())
    assert linear.det() == pytest.approx(70 * 60 / (72 * 96), rel=1e-4)
    affine = register(source, target, solver=GaussNewton(steps=1)).path[0, 0]
    torch.testing.assert_close(affine[:2, :2], torch.diag(torch.tensor([60 / 96, 70 / 72])))


def test_the_source_mask_hides_a_part_of_the_source():
    truth = about_centre(*MOTIONS["similarity"], SIZE, DSIZE)
    source = draw_scene(SIZE)
    target = warp_perspective(source, truth[None], DSIZE)
    mask = torch.ones(1, 1, *SIZE)
    mask[..., 20:40, 30:55] = 0
    for hidden in (1.0, torch.nan):
        spoilt = torch.where(mask > 0, source, torch.tensor(hidden))
        found = register(spoilt, target, "similarity", source_mask=mask)
        assert corner_error(found.matrix, truth, DSIZE).item() < 0.5
