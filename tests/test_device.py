"""Every public function on the device and in the type of ``--device`` and ``--dtype``, beside eager float64 on the CPU.

The reference gets the same numbers, rounded to the type, and so do its samples: what differs is the arithmetic alone.
"""

import pytest
import torch
import torch.nn.functional as F
from kornia.geometry import warp_perspective

from lms_geometry import (
    LinearizedGridSample,
    LinearizedHomographyWarper,
    LinearizedRoIAlign,
    LinearizedSampling,
    backends,
    draw_noise,
    grid_sample_linearized,
    homography_warp_linearized,
    register,
    remap_linearized,
    roi_align_linearized,
    warp_affine_linearized,
    warp_perspective_linearized,
)

SAMPLING = LinearizedSampling.paper()
OUTPUT = (6, 5)
# As a share of the largest number of a result.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 8e-2}


def image(batch=2):
    """Smooth, for a gradient in few bits needs neighbours that differ by many of them."""
    coarse = torch.rand(batch, 3, 5, 4, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, (14, 11), mode="bicubic")


def matrices():
    """Normalised, output to image."""
    noise = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(2))
    return torch.eye(3) + torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.1], [0.02, 0.02, 0.0]]) * noise


def grid():
    return F.affine_grid(0.8 * matrices()[:, :2], [2, 3, *OUTPUT], align_corners=False)


def source_to_output(affine):
    """In pixels: the image of 11 x 14 shrunk to 5 x 6, and moved."""
    scale = torch.tensor([[0.5, 0.05, 0.3], [-0.05, 0.45, 0.2], [0.002, 0.001, 1.0]]).repeat(2, 1, 1)
    return scale[:, :2] if affine else scale


def maps():
    x, y = ((grid() + 1) / 2 * torch.tensor([10.0, 13.0])).unbind(-1)
    return x, y


def module(module):
    """A module as a function of what its forward takes, with the noise of the other cases."""
    return lambda *tensors, noise: module(*tensors, noise=noise)


def boxes():
    return torch.tensor([[0.0, 1.0, 2.0, 8.5, 9.0], [1.0, 0.5, 0.0, 6.0, 12.5], [0.0, 3.0, 4.0, 9.0, 11.0]])


# What is called with the tensors that follow it, all of which may take a gradient.
CASES = {
    "grid_sample": (lambda *t, noise: grid_sample_linearized(*t, align_corners=False, **given(noise)), image(), grid()),
    "warp_affine": (
        lambda *t, noise: warp_affine_linearized(*t, OUTPUT, **given(noise)),
        image(),
        source_to_output(affine=True),
    ),
    "warp_perspective": (
        lambda *t, noise: warp_perspective_linearized(*t, OUTPUT, **given(noise)),
        image(),
        source_to_output(affine=False),
    ),
    "homography_warp": (
        lambda *t, noise: homography_warp_linearized(*t, OUTPUT, **given(noise)),
        image(),
        matrices(),
    ),
    "remap": (lambda *t, noise: remap_linearized(*t, align_corners=True, **given(noise)), image(), *maps()),
    "roi_align": (lambda *t, noise: roi_align_linearized(*t, OUTPUT, **given(noise)), image(), boxes()),
    "LinearizedGridSample": (
        module(LinearizedGridSample(align_corners=False, sampling=SAMPLING)),
        image(),
        grid(),
    ),
    "LinearizedHomographyWarper": (
        module(LinearizedHomographyWarper(*OUTPUT, sampling=SAMPLING)),
        image(),
        matrices(),
    ),
    "LinearizedRoIAlign": (module(LinearizedRoIAlign(OUTPUT, 1.0, -1, sampling=SAMPLING)), image(), boxes()),
}


def given(noise):
    return {"sampling": SAMPLING, "noise": noise}


def value_and_gradients(call, tensors, weight, noise):
    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    value = call(*tensors, noise=noise)
    return value, *torch.autograd.grad(value, tensors, weight.to(value))


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradients_are_those_of_eager_in_float64_on_the_cpu(name, device, dtype, monkeypatch):
    call, *tensors = CASES[name]
    tensors = [tensor.to(device, dtype) for tensor in tensors]
    noise = draw_noise(SAMPLING, OUTPUT, device=device, dtype=torch.float32)
    weight = torch.rand(len(tensors[-1]), 3, *OUTPUT, generator=torch.Generator().manual_seed(3)).to(dtype)
    found = value_and_gradients(call, tensors, weight, noise)
    monkeypatch.setenv(backends.VARIABLE, "eager")
    doubles = [tensor.detach().cpu().double() for tensor in tensors]
    expected = value_and_gradients(call, doubles, weight.double(), noise.cpu().double())
    for ours, wanted in zip(found, expected, strict=True):
        assert (ours.device.type, ours.dtype) == (device.type, dtype)
        assert wanted.abs().max() > 0
        error = (ours.detach().cpu().double() - wanted.detach()).abs().max()
        assert error <= TOLERANCES[dtype] * wanted.abs().max()


def test_registration_finds_a_shift(device, dtype):
    source = F.interpolate(image(), (62, 49), mode="bicubic")
    shift = torch.eye(3).repeat(2, 1, 1)
    shift[:, :2, 2] = torch.tensor([-2.0, -3.0])
    target = warp_perspective(source, shift, (62, 49))
    found = register(source.to(device, dtype), target.to(device, dtype), "translation").matrix
    assert found.device.type == device.type
    assert (found.cpu().float() - shift).abs().max() < 0.05
