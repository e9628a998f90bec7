"""Networks side by side are those of the paper, which this file builds one by one from the layers of torch."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.classification.data import SIZE
from benchmarks.classification.layers import Conv2d
from benchmarks.classification.networks import SCALES, Network, similarity
from benchmarks.classification.samplers import SAMPLERS, Sampler


class ByHand(nn.Module):
    """A small network, with its layers named as in `Network`."""

    def __init__(self, transformer, view):
        super().__init__()
        self.transformer, self.view = transformer, view
        self.classify = nn.Sequential(nn.Flatten(), nn.Linear(3 * view**2, 128), nn.ReLU(), nn.Linear(128, 4))
        if transformer != "none":
            features = nn.Conv2d(3, 8, 7, stride=3), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten()
            self.localise = nn.Sequential(*features, nn.Linear(144, 48), nn.ReLU(), nn.Linear(48, 4))

    def look(self, canvas, warp):
        grid = F.affine_grid(warp[:, :2], [len(warp), 3, self.view, self.view], align_corners=False)
        return F.grid_sample(canvas, grid, align_corners=False)

    def forward(self, canvas, seen):
        warp = torch.eye(3).to(canvas).repeat(len(canvas), 1, 1)
        if self.transformer == "STN":
            warp = similarity(self.localise(seen))
        if self.transformer == "ICSTN":
            for _ in range(4):
                seen = F.interpolate(self.look(canvas, warp), (25, 25), mode="bilinear")
                warp = warp @ similarity(self.localise(seen))
        return self.classify(self.look(canvas, warp)), warp


@pytest.mark.parametrize("view", [6, 12, 25, 50])
@pytest.mark.parametrize("transformer", ["none", "STN", "ICSTN"])
def test_networks_side_by_side_are_what_they_are_one_by_one(transformer, view):
    """At a view of 6 and 12 the ICSTN resizes and convolves by one matrix, at 25 and 50 in two steps."""
    network = Network(transformer, SCALES["small"], SAMPLERS["bilinear"], view, 3, 4, count=2).double()
    for parameter in network.localise[7:].parameters():  # the last layer starts at 0
        nn.init.normal_(parameter, std=0.02)
    canvas, seen = torch.rand(5, 2, 3, SIZE, SIZE).double(), torch.rand(5, 2, 3, 25, 25).double()
    scores, warp = network(canvas, seen, [torch.Generator(), torch.Generator()])
    weight = torch.rand_like(scores)
    (scores * weight).sum().backward()
    for number in range(2):
        alone = ByHand(transformer, view).double()
        alone.load_state_dict({name: value[number] for name, value in network.state_dict().items()})
        expected, expected_warp = alone(canvas[:, number], seen[:, number])
        torch.testing.assert_close(scores[:, number], expected)
        torch.testing.assert_close(warp[:, number], expected_warp)
        (expected * weight[:, number]).sum().backward()
        gradients = dict(network.named_parameters())
        for name, parameter in alone.named_parameters():
            torch.testing.assert_close(gradients[name].grad[number], parameter.grad, atol=1e-5, rtol=1e-5)


def test_random_samples_of_a_network_are_those_of_its_own_generator():
    network = Network("none", SCALES["small"], SAMPLERS["paper"], 6, 3, 4, count=2)
    canvas = torch.rand(5, 2, 3, SIZE, SIZE)
    views = network._look(canvas, torch.eye(3).expand(5, 2, 3, 3), [torch.Generator().manual_seed(n) for n in (7, 8)])
    for number, seed in enumerate((7, 8)):
        generator = torch.Generator().manual_seed(seed)
        alone = SAMPLERS["paper"].read(canvas[:, number], torch.eye(2, 3).expand(5, 2, 3), SIZE, 6, generator)
        torch.testing.assert_close(views[:, number], alone)


def test_a_network_starts_with_the_weights_of_the_layers_of_torch():
    torch.manual_seed(3)
    network = Network("none", SCALES["small"], SAMPLERS["bilinear"], 6, 3, 4)
    torch.manual_seed(3)
    for name, layer in (("classify.1", nn.Linear(108, 128)), ("classify.3", nn.Linear(128, 4))):
        assert torch.equal(network.get_parameter(f"{name}.weight")[0], layer.weight)
        assert torch.equal(network.get_parameter(f"{name}.bias")[0], layer.bias)


@pytest.mark.parametrize("padding", [0, 2])
def test_a_convolution_behind_a_linear_map_is_one_matrix(padding):
    layer = Conv2d(3, 2, 5, 3, stride=2, padding=padding).double()
    units = torch.rand(16, 9, 9).double()
    images = torch.rand(4, 3, 2, 4, 4).double()
    mapped = torch.einsum("bncu, uhw -> bnchw", images.flatten(3), units)
    torch.testing.assert_close(layer.behind(layer.patches(units))(images), layer(mapped))


@pytest.mark.parametrize("size", ["small", "paper"])
@pytest.mark.parametrize("transformer", ["STN", "ICSTN"])
def test_training_starts_at_the_whole_image(size, transformer):
    network = Network(transformer, SCALES[size], SAMPLERS["bilinear"], 12, 3, 4)
    seen = torch.rand(2, 1, 3, SCALES[size].side, SCALES[size].side)
    scores, warp = network(torch.rand(2, 1, 3, SIZE, SIZE), seen, [torch.Generator()])
    assert scores.shape == (2, 1, 4)
    assert torch.equal(warp, torch.eye(3).expand(2, 1, 3, 3))


def test_the_localiser_of_the_paper_has_its_layers():
    network = Network("STN", SCALES["paper"], Sampler(), 6, 3, 4)
    names = [
        f"C{layer.weight.shape[1]}" if isinstance(layer, Conv2d) else "P"
        for layer in network.localise
        if isinstance(layer, Conv2d | nn.MaxPool3d)
    ]
    assert " ".join(names) == "C4 C8 P C16 P C32 P C1024"
    assert {layer.weight.shape[-2:] for layer in network.localise if isinstance(layer, Conv2d)} == {(7, 7)}
    assert [network.localise[place].weight.shape[1] for place in (-3, -1)] == [48, 4]
    # Pooling halves the sides of the images and leaves their channels and the networks alone.
    assert network.localise[:5](torch.rand(2, 1, 3, 50, 50)).shape == (2, 1, 8, 25, 25)
