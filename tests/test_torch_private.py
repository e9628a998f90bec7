"""The library without each of the private names of torch that it uses."""

import importlib
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lms_geometry.integrations import linearize
from settings import paper
from torch import nn

import lms_geometry
from lms_geometry import _torch_private, draw_noise, grid_sample_linearized

EXACT = paper(intercept=False)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.theta = nn.Parameter(torch.eye(2, 3).repeat(2, 1, 1))

    def forward(self, image):
        grid = F.affine_grid(self.theta, (2, 3, 5, 7), align_corners=False)
        return F.grid_sample(image, grid, align_corners=False)


def sample_train_and_patch():
    """What a user does, in every mode of differentiation, as numbers."""
    torch.manual_seed(0)
    image, grid = torch.rand(2, 3, 9, 11), torch.rand(2, 5, 7, 2) - 0.5
    noise, direction = draw_noise(EXACT, (5, 7)), torch.randn(2, 5, 7, 2)
    results = [grid_sample_linearized(image, grid, sampling=sampling, noise=noise) for sampling in (paper(), EXACT)]

    def warp(points, picture=image):
        return grid_sample_linearized(picture, points, sampling=EXACT, noise=noise)

    results += torch.func.jvp(warp, (grid,), (direction,))
    results.append(torch.func.grad(lambda points: warp(points).square().sum())(grid))
    one = torch.func.vmap(lambda points, picture: warp(points[None], picture[None])[0])
    results += torch.func.jvp(one, (grid, image), (direction, torch.ones_like(image)))
    model = Model()
    with linearize(model, sampling=EXACT, seed=1) as patch:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model(image).square().mean().backward()
        optimizer.step()
    assert "swapped" in patch.report()
    return [*results, model.theta.detach()]


@pytest.mark.parametrize("names", [*((name,) for name in _torch_private.NAMES), _torch_private.NAMES])
def test_without_a_name_all_derivatives_are_the_same(names, monkeypatch):
    expected = sample_train_and_patch()
    with monkeypatch.context() as patch:
        for name in names:
            owner, _, attribute = name.removeprefix("torch.").rpartition(".")
            patch.delattr(attrgetter(owner)(torch), attribute)
        importlib.reload(_torch_private)
    try:
        got = sample_train_and_patch()
    finally:
        importlib.reload(_torch_private)
    assert all(map(torch.equal, got, expected))


IMPORT = """
import torch, kornia
from operator import attrgetter
names = {names}
held = []
for name in names:
    owner, _, attribute = name.removeprefix("torch.").rpartition(".")
    owner = attrgetter(owner)(torch)
    held.append((owner, attribute, getattr(owner, attribute)))
    delattr(owner, attribute)
import lms_geometry, lms_geometry.integrations
for owner, attribute, value in held:  # torch itself needs them
    setattr(owner, attribute, value)
assert lms_geometry._torch_private.transform_is_active()
image, grid = torch.rand(1, 2, 9, 11), torch.rand(1, 5, 7, 2, requires_grad=True)
lms_geometry.grid_sample_linearized(image, grid).sum().backward()
assert grid.grad.abs().sum() > 0
"""


def test_without_all_of_the_names_the_library_can_be_imported():
    subprocess.run([sys.executable, "-c", IMPORT.format(names=_torch_private.NAMES)], check=True, timeout=300)


def test_no_other_file_of_the_package_has_a_private_name_of_torch():
    private = re.compile(r"torch(\.\w+)*\._(?!_)|from torch(\.\w+)* import _|_dynamo|_functorch|_AutoDispatch")
    found = {file.name for file in Path(lms_geometry.__file__).parent.rglob("*.py") if private.search(file.read_text())}
    assert found == {"_torch_private.py"}  # an installed package has the integrations' too
