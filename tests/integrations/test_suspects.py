"""Calls that were swapped though they read no image, or not as expected: the report names each, and how to exclude it."""

import re

import pytest
import torch
import torch.nn.functional as F
from lms_geometry.integrations import linearize
from settings import paper
from torch import nn
from two_transformers import IMAGE, grid_that_learns, sample

from lms_geometry import LinearizedSampling


def identity(height, width, batch=2):
    return F.affine_grid(torch.eye(2, 3).repeat(batch, 1, 1), (batch, 1, height, width), align_corners=False)


class Registration(nn.Module):
    """Warps images and composes displacement fields by one line, as networks for registration do."""

    def __init__(self):
        super().__init__()
        self.field = nn.Parameter(0.02 * torch.randn(2, 2, 19, 26))

    def read(self, values, field):
        return sample(values, identity(19, 26) + field.movedim(1, -1))

    def warp_image(self, image):
        return self.read(image, self.field)

    def compose(self):
        return self.field + self.read(self.field, self.field)

    def forward(self, image):
        return self.warp_image(image).mean() + self.compose().square().mean()


def outcome(row):
    """The second column of a row of a report; none in the lines below the table."""
    return re.split(" {2,}", row.strip())[1] if "  " in row.strip() else None


def suspects(patch):
    return [line for line in patch.report().splitlines() if "exclude=[" in line]


def test_a_composed_field_has_a_row_of_its_own_and_a_pattern_that_excludes_it_alone():
    model = Registration()
    patch = linearize(model)
    model(IMAGE)
    rows = [row for row in patch.report().splitlines() if outcome(row) == "swapped"]
    assert [("(2, 3, 19, 26)" in row, "(2, 2, 19, 26)" in row) for row in rows] == [(True, False), (False, True)]
    (told,) = suspects(patch)
    assert "an image of 2 channels may be a displacement field or a map of coordinates" in told
    (pattern,) = re.findall(r"exclude=\['(.*)'\] leaves it plain", told)
    patch.remove()

    with linearize(model, exclude=[pattern]) as patch:
        model(IMAGE)
    image, field = patch.report().splitlines()[1:3]
    assert [outcome(image), outcome(field)] == ["swapped", f"left: excluded by {pattern!r}"]
    assert not suspects(patch)


def test_one_line_that_two_functions_call_has_a_row_for_each():
    def first(grid):
        return sample(IMAGE, grid)

    def second(grid):
        return sample(IMAGE, grid)

    with linearize() as patch:
        for _ in range(2):
            first(grid_that_learns())
        second(grid_that_learns())
    (twice, once) = patch.report().splitlines()[1:]
    assert (twice.split()[0], once.split()[0]) == ("2", "1")
    assert re.search(r"sample\(\) from \S*test_suspects\.py:\d+ first\(\)", twice)
    assert re.search(r"sample\(\) from \S*test_suspects\.py:\d+ second\(\)", once)


def test_calls_that_no_pattern_tells_apart_are_told_what_to_do():
    with linearize() as patch:
        for image in (IMAGE, IMAGE[:, :2]):
            sample(image, grid_that_learns())
    assert "may be a displacement field" in patch.report()
    assert "to leave it plain, call it from a function of its own, and exclude that" in patch.report()


def test_a_map_of_one_channel_that_a_network_predicts_is_suspect_and_a_grey_image_is_not():
    offsets = torch.rand(2, 1, 19, 26, requires_grad=True)
    with linearize() as patch:
        sample(IMAGE[:, :1], grid_that_learns())
    assert not suspects(patch)
    with linearize() as patch:
        sample(offsets, grid_that_learns())
    assert "may be a map of depths, costs or offsets" in patch.report()


def test_a_table_that_is_read_at_a_list_of_points_is_suspect():
    """The position bias of deformable attention: all queries against all keys, each set listed row by row."""
    keys = identity(4, 7).flatten(1, 2) + 0.02 * torch.randn(2, 28, 2)
    queries = identity(5, 6).flatten(1, 2)
    displacements = ((queries[:, :, None] - keys[:, None]) * 0.5).requires_grad_()
    with linearize() as patch:
        sample(torch.rand(2, 8, 9, 13, requires_grad=True), displacements)
    assert "its grid runs back and forth over the image. If it is a list of points" in patch.report()


@pytest.mark.parametrize("angle", [0.0, 0.7, 3.0])
@pytest.mark.parametrize("scale", [0.1, 1.0, 3.0])
def test_the_grid_of_a_warped_image_is_not_suspect(angle, scale):
    cos, sin = scale * torch.tensor(angle).cos(), scale * torch.tensor(angle).sin()
    theta = torch.tensor([[cos, -sin, 0.1], [sin, cos, -0.1]]).repeat(2, 1, 1)
    grid = F.affine_grid(theta, (2, 3, 15, 22), align_corners=False) + 0.01 * scale * torch.randn(2, 15, 22, 2)
    with linearize(sampling=paper(mask_out_of_bounds=False)) as patch:
        sample(IMAGE, grid.requires_grad_())
    assert patch.report().count("\n") == 1


@pytest.mark.parametrize("masked", [True, False])
def test_a_masked_sampling_that_reads_mostly_outside_is_told(masked):
    """A patch that is pasted into a box of a canvas: outside of the box, the canvas reads outside of the patch."""
    canvas = (identity(20, 30) * 4).requires_grad_()
    with linearize(sampling=paper(mask_out_of_bounds=masked)) as patch:
        sample(IMAGE, canvas)
    rows, columns = ([abs(4 * (2 * i + 1 - n) / n) <= 1 for i in range(n)] for n in (20, 30))
    outside = 1 - sum(rows) * sum(columns) / (20 * 30)
    assert (f"{outside:.0%} of its points lie outside of the image" in patch.report()) == masked
    with linearize() as patch:
        sample(IMAGE, (identity(20, 30) * 0.9).requires_grad_())
    assert "outside of the image" not in patch.report()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_grids_where_the_plain_sampler_gives_nan_are_counted(value):
    grid = grid_that_learns().detach()
    broken = grid.clone()
    broken[1, 2, 3, 0] = value
    assert sample(IMAGE, broken).isnan().any()
    with linearize(sampling=paper(intercept=False)) as patch:
        for points in (grid, broken, broken):
            assert sample(IMAGE, points.clone().requires_grad_()).isfinite().all()
    assert "its grid was NaN or infinite somewhere in 2 of 3 calls" in patch.report()


@pytest.mark.parametrize("broken", [False, True])
def test_a_finite_grid_is_not_counted_where_its_sum_overflows_half_precision(broken):
    grid = identity(64, 64, batch=32).abs().half()
    assert not grid.sum().isfinite()
    if broken:
        grid[1, 2, 3] = torch.tensor([torch.inf, -torch.inf])
    with linearize() as patch:
        sample(torch.rand(32, 3, 5, 7).half(), grid.requires_grad_())
    assert ("its grid was NaN or infinite somewhere in 1 of 1 calls" in patch.report()) == broken


def test_tensors_without_values_are_no_reason_to_fail():
    with linearize() as patch:
        torch.vmap(lambda grid: sample(IMAGE[:1], grid[None]))(grid_that_learns())
        sample(IMAGE.to("meta"), grid_that_learns().to("meta"))
        sample(IMAGE, torch.zeros(2, 0, 7, 2, requires_grad=True))
    assert [row.split()[0] for row in patch.report().splitlines()[1:]] == ["1", "2"]


def paste(patch, box, size=(24, 31)):
    """A patch in a box of a canvas of zeros, as networks that draw a scene from boxes do: the box carries a gradient."""
    x0, y0, x1, y1 = box.unbind(-1)
    x, y = torch.linspace(0, 1, size[1]), torch.linspace(0, 1, size[0])
    across = ((x - x0[:, None]) / (x1 - x0)[:, None])[:, None].expand(-1, size[0], -1)
    down = ((y - y0[:, None]) / (y1 - y0)[:, None])[:, :, None].expand(-1, -1, size[1])
    return sample(patch, torch.stack((across, down), -1) * 2 - 1)


def test_a_pasted_patch_loses_its_gradient_under_a_mask_only_and_the_report_says_so():
    patch, box = torch.ones(1, 1, 8, 8), torch.tensor([[0.3, 0.35, 0.7, 0.75]])
    target = paste(patch, box + 0.03)

    def gradient(sampling):
        moved = box.clone().requires_grad_()
        with linearize(sampling=sampling) as linear:
            torch.autograd.backward((paste(patch, moved) - target).square().sum())
        return moved.grad, linear.report()

    moved = box.clone().requires_grad_()
    (plain,) = torch.autograd.grad((paste(patch, moved) - target).square().sum(), moved)
    masked, told = gradient(paper(pattern="whitened", sigma=0.3, jitter=0.0))
    assert masked.norm() < 0.1 * plain.norm()
    assert "the mask leaves the samples there out of the fit" in told
    for sampling in (LinearizedSampling(), paper(sigma=0.3, mask_out_of_bounds=False)):
        whole, told = gradient(sampling)
        assert F.cosine_similarity(whole, plain) > 0.8
        assert "the mask" not in told


def test_code_that_samples_by_gather_is_told_of_with_the_way_to_replace_it():
    """Bilinear weights and an index of one's own, beside a plain call without a gradient."""

    class Gathers(nn.Module):
        def __init__(self):
            super().__init__()
            self.shift = nn.Parameter(torch.tensor(0.3))

        def forward(self, image):
            base = sample(image, grid_that_learns(False))
            column = torch.arange(image.shape[-1] - 1)
            return base.mean() + ((1 - self.shift) * image[..., column] + self.shift * image[..., column + 1]).mean()

    model = Gathers()
    patch = linearize(model, sampling=paper(), exclude=[])
    model(IMAGE).backward()
    wanted = (
        "Code that samples in another way, by gather, by indexing or in a compiled extension, is not seen and needs"
    )
    assert wanted in patch.report()
    with pytest.warns(UserWarning, match="no call was linearized"):
        patch.remove()


class Rectifier(nn.Module):
    """Predicts a coarse map of offsets, reads it at every pixel, and warps the image by what it read."""

    def __init__(self):
        super().__init__()
        self.offsets = nn.Parameter(0.1 * torch.randn(2, 1, 5, 9))

    def read_offsets(self):
        return sample(self.offsets, identity(19, 26).requires_grad_())

    def forward(self, image):
        down = self.read_offsets()[:, 0]
        return sample(image, identity(19, 26) + torch.stack((torch.zeros_like(down), down), -1))


def test_offsets_that_are_read_from_a_coarse_map_are_suspect_and_can_be_excluded():
    model = Rectifier()
    patch = linearize(model, sampling=paper())
    model(IMAGE).mean().backward()
    (told,) = suspects(patch)
    assert "may be a map of depths, costs or offsets: exclude=[" in told
    (pattern,) = re.findall(r"exclude=\['(.*)'\] leaves it plain", told)
    patch.remove()
    with linearize(model, sampling=paper(), exclude=[pattern]) as patch:
        model(IMAGE).mean().backward()
    rows = patch.report().splitlines()[1:3]
    assert [outcome(row) for row in rows] == [f"left: excluded by {pattern!r}", "swapped"]


def test_a_box_without_a_width_stays_visible_where_the_plain_sampler_gives_nan():
    box = torch.tensor([[0.3, 0.3, 0.3, 0.7]]).requires_grad_()
    with linearize(sampling=paper(intercept=False)) as patch:
        paste(torch.ones(1, 1, 8, 8), box)
    assert "its grid was NaN or infinite somewhere in 1 of 1 calls" in patch.report()
