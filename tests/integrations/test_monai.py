"""MONAI's AffineTransform, unmodified."""

import pytest
import torch
from lms_geometry.integrations import linearize
from lms_geometry.integrations.stn import linearize_stn
from two_transformers import EXACT, IMAGE, THETA

pytest.importorskip("monai", reason="monai is not installed", exc_type=ImportError)
from monai.data import MetaTensor
from monai.networks.layers import AffineTransform


def value_and_gradient(transform, image=IMAGE):
    theta = THETA.clone().requires_grad_()
    torch.manual_seed(0)
    out = transform(image, theta)
    return out.detach(), torch.autograd.grad(out.square().sum(), theta)[0]


@pytest.mark.parametrize("adapter", [linearize, linearize_stn])
@pytest.mark.parametrize("align_corners", [True, False])
def test_values_stay_and_the_gradient_changes(adapter, align_corners):
    transform = AffineTransform((5, 7), normalized=True, align_corners=align_corners, padding_mode="border")
    plain = value_and_gradient(transform)
    patch = adapter(transform, sampling=EXACT)
    linearized = value_and_gradient(transform)
    assert torch.equal(linearized[0], plain[0])
    assert not torch.allclose(linearized[1], plain[1], rtol=0.1)
    assert "monai/networks/layers/spatial_transforms.py" in patch.report()
    patch.remove()
    assert type(transform) is AffineTransform
    assert torch.equal(value_and_gradient(transform)[1], plain[1])


def test_a_tensor_with_metadata_stays_one():
    transform = AffineTransform((5, 7), normalized=True)
    with linearize(sampling=EXACT):
        out, _ = value_and_gradient(transform, MetaTensor(IMAGE, meta={"spacing": 2}))
    assert type(out) is MetaTensor
    assert out.meta["spacing"] == 2


def test_a_volume_is_left_alone():
    transform = AffineTransform((3, 4, 5), normalized=True)
    with linearize(transform) as patch:
        transform(torch.rand(1, 1, 6, 7, 8), torch.eye(3, 4)[None].requires_grad_())
    assert "left: 5-D, a volume" in patch.report()
