"""torch.fx traces models that sample: a call is one node of the graph."""

import inspect

import cpu_torchvision  # noqa: F401
import pytest
import torch
import torch.nn.functional as F
from settings import paper
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import lms_geometry
from lms_geometry import (
    LinearizedGridSample,
    LinearizedHomographyWarper,
    LinearizedRoIAlign,
    LinearizedSampling,
    grid_sample_linearized,
    remap_linearized,
    roi_align_linearized,
    warp_affine_linearized,
)


class Transformer(nn.Module):
    """Features of an image, of which a transformer and boxes read; every kind of call is in it."""

    def __init__(self):
        super().__init__()
        self.features, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3)
        self.theta, self.M = nn.Parameter(torch.eye(2, 3)[None] * 0.7), nn.Parameter(torch.eye(3)[None])
        self.sample, self.warper = LinearizedGridSample(align_corners=False), LinearizedHomographyWarper(6, 7)
        self.align = LinearizedRoIAlign((6, 7), 1.0, 2, sampling=LinearizedSampling(16))

    def forward(self, image, boxes):
        features = self.features(image).relu()
        grid = F.affine_grid(self.theta, (1, 4, 6, 7), align_corners=False)
        seen = grid_sample_linearized(features, grid, align_corners=False) + self.sample(features, grid)
        seen = seen + warp_affine_linearized(features, self.theta, (6, 7)) + self.warper(features, self.M)
        seen = seen + remap_linearized(features, grid[..., 0], map_y=grid[..., 1], normalized_coordinates=True)
        return self.head(seen + self.align(features, boxes) + roi_align_linearized(features, [boxes[:, 1:]], (6, 7)))


INPUTS = torch.rand(1, 3, 17, 23), torch.tensor([[0, 2.0, 3.0, 18.0, 11.0]])


def test_a_traced_model_computes_what_the_model_does():
    model = Transformer()
    graph = fx.symbolic_trace(model)
    called = [node.target.__name__ for node in graph.graph.nodes if "linearized" in str(node.target)]
    names = ["grid_sample", "grid_sample", "warp_affine", "homography_warp", "remap", "roi_align", "roi_align"]
    assert called == [f"{name}_linearized" for name in names]
    assert torch.equal(graph(*INPUTS), model(*INPUTS))
    for plain, traced in zip(
        *(torch.autograd.grad(f(*INPUTS).sum(), list(model.parameters())) for f in (model, graph)), strict=True
    ):
        assert torch.equal(plain, traced)


def test_torchvision_extracts_features_around_a_sampler():
    model = Transformer().eval()
    names, _ = get_graph_node_names(model)
    assert "grid_sample_linearized" in names
    extract = create_feature_extractor(model, ["relu", "head"])
    got = extract(*INPUTS)
    assert torch.equal(got["relu"], model.features(INPUTS[0]).relu())
    assert torch.equal(got["head"], model(*INPUTS))


@pytest.mark.parametrize("name", [n for n in lms_geometry.__all__ if n.endswith(("_linearized", "_and_slope"))])
def test_every_function_keeps_its_name_and_signature(name):
    function = getattr(lms_geometry, name)
    assert (function.__name__, function.__module__.split(".")[0]) == (name, "lms_geometry")
    assert "sampling" in inspect.signature(function).parameters


def test_settings_travel_with_the_graph():
    class Drawn(nn.Module):
        def forward(self, image, grid, noise):
            return grid_sample_linearized(image, grid, sampling=paper(intercept=False), noise=noise)

    graph = fx.symbolic_trace(Drawn())
    image, grid, noise = torch.rand(1, 2, 9, 11), torch.zeros(1, 4, 5, 2), torch.randn(7, 4, 5, 2)
    assert torch.equal(graph(image, grid, noise), Drawn()(image, grid, noise))
