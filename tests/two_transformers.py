"""A model with two transformers, and which of them a patch has swapped."""

import torch
import torch.nn.functional as F
from settings import paper
from torch import nn

# Without the row of ones no value changes, so that gradients alone tell what was swapped.
EXACT = paper(intercept=False)
IMAGE = torch.rand(2, 3, 19, 26, generator=torch.Generator().manual_seed(1))
THETA = torch.tensor([[[0.6, 0.1, 0.1], [-0.2, 0.5, 0.0]], [[0.4, 0.0, -0.3], [0.1, 0.7, 0.2]]])
BASE = F.affine_grid(torch.eye(2, 3)[None], (1, 3, 5, 7), align_corners=False)


class STN(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(THETA.clone())

    def forward(self, image):
        return sample(image, F.affine_grid(self.theta, (2, 3, 5, 7), align_corners=False))


def sample(image, grid):
    return F.grid_sample(image, grid, align_corners=False)


class Model(nn.Module):
    """Two transformers, one of them in a container. ``run`` is how they are called."""

    def __init__(self, run=lambda module, image: module(image)):
        super().__init__()
        self.stn = STN()
        self.heads = nn.ModuleDict({"mask": STN()})
        self.run = run

    def forward(self, image):
        return self.run(self.stn, image) + 2 * self.run(self.heads["mask"], image)


def gradients(model):
    model.zero_grad()
    model(IMAGE).square().sum().backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


PLAIN = gradients(Model())


def swapped(model):
    """Which of the two transformers get another gradient than on their own."""
    return [not torch.equal(a, b) for a, b in zip(gradients(model), PLAIN, strict=True)]


def grid_that_learns(requires_grad=True):
    return (BASE * THETA[0, 0, 0]).repeat(2, 1, 1, 1).requires_grad_(requires_grad)
