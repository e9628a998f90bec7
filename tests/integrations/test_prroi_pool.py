import sys

import pytest
import torch
import torch.nn.functional as F
from lms_geometry.integrations import prroi_pool
from lms_geometry.integrations.prroi_pool import PrRoIPool2D, prroi_pool2d

N, C, H, W = 2, 3, 11, 14
ROIS = torch.tensor(
    [[0, 8.3, 4.1, 40.7, 29.9], [1, -9.0, 3.0, 20.0, 60.0], [1, 10.2, 10.4, 11.0, 11.1], [0, 0.0, 0.0, 52.0, 40.0]],
    dtype=torch.float64,
)


@pytest.fixture
def features():
    return torch.randn(N, C, H, W, dtype=torch.float64)


def mean_over_bins(features, rois, bins, scale, points=400):
    """The mean of bilinear reads at many points of every bin, which tends to the integral."""
    size, results = torch.tensor([W, H]), []
    for number, *corners in rois.tolist():
        x1, y1, x2, y2 = (scale * corner for corner in corners)
        across = x1 + (torch.arange(bins[1] * points).double() + 0.5) * (x2 - x1) / (bins[1] * points)
        down = y1 + (torch.arange(bins[0] * points).double() + 0.5) * (y2 - y1) / (bins[0] * points)
        at = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)
        read = F.grid_sample(features[int(number)][None], (2 * at + 1)[None] / size - 1, align_corners=False)[0]
        results.append(F.avg_pool2d(read, points))
    return torch.stack(results)


@pytest.mark.parametrize("bins", [(2, 3), (1, 1)])
def test_it_is_the_mean_of_bilinear_reads_at_ever_more_points(features, bins):
    ours = prroi_pool2d(features, ROIS, *bins, 0.25)
    torch.testing.assert_close(ours, mean_over_bins(features, ROIS, bins, 0.25), rtol=0, atol=1e-4)


def test_gradients_for_features_and_boxes_are_exact(features):
    rois = ROIS.clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda image, corners: prroi_pool2d(image, torch.cat((rois[:, :1].detach(), corners), 1), 2, 3, 0.25),
        (features.requires_grad_(), ROIS[:, 1:].clone().requires_grad_()),
    )


def test_an_edge_that_moves_changes_the_value_by_what_lies_on_it(features):
    """The derivative by the right edge of one bin is the mean along that edge less the value, over the width."""
    rois = ROIS[:1].clone().requires_grad_()
    value = prroi_pool2d(features, rois, 1, 1, 1.0)[0, :, 0, 0]
    rois = (ROIS[:1] * torch.tensor([1, 0.25, 0.25, 0.25, 0.25])).requires_grad_()
    value = prroi_pool2d(features, rois, 1, 1, 1.0)[0, 0, 0, 0]
    (gradient,) = torch.autograd.grad(value, rois)
    _, x1, y1, x2, y2 = rois.detach()[0].tolist()
    down = torch.linspace(y1, y2, 20_001).double()
    edge = torch.stack((torch.full_like(down, x2), down), -1)[None, None]
    read = F.grid_sample(features[:1, :1], (2 * edge + 1) / torch.tensor([W, H]) - 1, align_corners=False).mean()
    torch.testing.assert_close(gradient[0, 3], (read - value.detach()) / (x2 - x1), rtol=1e-4, atol=1e-6)


def test_boxes_that_are_empty_turned_inside_out_or_nowhere_are_0_with_a_finite_gradient(features):
    rois = torch.tensor(
        [[0, 5.0, 5, 5, 9], [1, 9, 9, 3, 3], [1, 1e30, 0, 2e30, 5], [0, torch.nan, 0, 5, 5], [0, 0, 0, torch.inf, 5]]
    ).requires_grad_()
    pooled = prroi_pool2d(features.float(), rois, 2, 3, 1.0)
    assert (pooled == 0).all()
    assert torch.autograd.grad(pooled.sum(), rois)[0].isfinite().all()


def test_a_tiny_bin_keeps_its_digits_in_float32(features):
    rois = torch.tensor([[0, 4.3, 5.2, 4.3 + 1e-4, 5.2 + 1e-4]])
    exact = prroi_pool2d(features, rois.double(), 1, 1, 1.0)
    torch.testing.assert_close(prroi_pool2d(features.float(), rois, 1, 1, 1.0).double(), exact, rtol=0, atol=1e-4)


def test_the_module_stands_where_the_package_was(features, monkeypatch):
    name = "ltr.external.PreciseRoIPooling.pytorch.prroi_pool"
    for part in range(1, name.count(".") + 1):
        monkeypatch.setitem(sys.modules, name.rsplit(".", part)[0], type(sys)(name.rsplit(".", part)[0]))
    monkeypatch.setitem(sys.modules, name, prroi_pool)
    from ltr.external.PreciseRoIPooling.pytorch.prroi_pool import PrRoIPool2D as Imported

    module = Imported(2, 3, 1 / 4)
    assert module is not None
    assert torch.equal(module(features, ROIS), prroi_pool2d(features, ROIS, 2, 3, 0.25))
    assert "pooled_height=2, pooled_width=3, spatial_scale=0.25" in repr(module)


def test_order_half_precision_and_no_boxes(features):
    rois = ROIS.flip(0)
    assert torch.equal(prroi_pool2d(features, rois, 2, 3, 0.25), prroi_pool2d(features, ROIS, 2, 3, 0.25).flip(0))
    half = PrRoIPool2D(2, 3, 0.25)(features.half(), ROIS.float())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.double(), prroi_pool2d(features, ROIS, 2, 3, 0.25), rtol=0, atol=2e-3)
    assert prroi_pool2d(features, ROIS[:0], 2, 3, 0.25).shape == (0, C, 2, 3)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"rois": ROIS[:, 1:]}, ValueError, r"rois must have shape \(R, 5\)"),
        ({"rois": ROIS + 5}, ValueError, r"rois\[:, 0\] must be the number of an image, 0 to 1, got"),
        ({"features": torch.rand(3, 4)}, ValueError, r"features must have shape \(N, C, H, W\)"),
        ({"pooled_height": 0}, ValueError, r"pooled_height and pooled_width must be at least 1, got \(0, 3\)"),
        ({"pooled_width": 2.5}, TypeError, r"pooled_width must be an int, got 2\.5"),
    ],
)
def test_bad_arguments_are_named(changed, error, message, features):
    arguments = {"features": features, "rois": ROIS, "pooled_height": 2, "pooled_width": 3, "spatial_scale": 0.25}
    with pytest.raises(error, match=message):
        prroi_pool2d(**arguments | changed)
