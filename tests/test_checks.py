"""Errors name the argument, what came, what is wanted, and the way out, which works as it is written."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from lms_geometry import (
    LinearizedSampling,
    draw_noise,
    grid_sample_linearized,
    register,
    roi_align_linearized,
    warp_affine_linearized,
    warp_perspective_linearized,
)
from lms_geometry.checks import check_tensor

M = torch.tensor([[[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]])
COLOUR = np.arange(11 * 13 * 3, dtype=np.uint8).reshape(11, 13, 3)

IMAGES = {
    "8 bits": (torch.from_numpy(COLOUR).permute(2, 0, 1)[None], "divide by 255, as in"),
    "16 bits": (torch.zeros(1, 1, 5, 7, dtype=torch.uint16), "divide by 65535, as in"),
    "bool": (torch.ones(1, 1, 5, 7, dtype=torch.bool), "convert it, as in"),
    "no batch": (torch.rand(3, 11, 13), "add an axis for the batch, as in"),
    "no batch, no channel": (torch.rand(11, 13), "add axes for the batch and the channel, as in"),
    "channels last": (torch.rand(11, 13, 3), "move the channels to the front, as in"),
    "numpy": (COLOUR, "pass"),
    "numpy, grey": (COLOUR[:, :, 0].astype(np.uint16), "pass"),
    "numpy, float": (COLOUR / 255, "pass"),
    "numpy, bool": (COLOUR > 7, "pass"),
    "PIL": (Image.fromarray(COLOUR), "pass"),
    "PIL, grey": (Image.fromarray(COLOUR).convert("L"), "pass"),
}


@pytest.mark.parametrize(("image", "remedy"), IMAGES.values(), ids=IMAGES)
def test_the_way_out_for_an_image_leads_out(image, remedy):
    with pytest.raises((TypeError, ValueError), match=rf"^src must .*, got .*: {remedy} ") as error:
        warp_affine_linearized(image, M, (5, 6))
    (way_out,) = re.findall(rf": {remedy} (.*)$", str(error.value))
    mended = eval(way_out, {"torch": torch, "numpy": np, "src": image})
    out = warp_affine_linearized(mended.float(), M, (5, 6))
    assert out.shape[-2:] == (5, 6)
    assert out.shape[1] in (1, 3)
    assert out.max() <= 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda image: grid_sample_linearized(image, torch.rand(1, 2, 2, 2)),
            "input must have a floating dtype of 16, 32 or 64 bits",
        ),
        (
            lambda image: warp_perspective_linearized(image, torch.eye(3)[None], (5, 6)),
            "src must have a floating dtype of 16, 32 or 64 bits",
        ),
        (
            lambda image: roi_align_linearized(image, [torch.rand(1, 4)], 3),
            "input must have a floating dtype of 16, 32 or 64 bits",
        ),
        (lambda image: register(image, image), "source must have a floating dtype of 16, 32 or 64 bits"),
    ],
)
def test_every_function_says_to_divide_by_255(call, message):
    with pytest.raises(TypeError, match=rf"{message}, got torch\.uint8: divide by 255"):
        call(IMAGES["8 bits"][0])


def test_matrices_and_grids_without_a_batch_axis_are_given_one():
    image = torch.rand(1, 3, 11, 13)
    with pytest.raises(ValueError, match=r"got \(2, 3\): add an axis for the batch, as in M\[None\]"):
        warp_affine_linearized(image, M[0], (5, 6))
    with pytest.raises(ValueError, match=r"got \(4, 5, 2\): add an axis for the batch, as in grid\[None\]"):
        grid_sample_linearized(image, torch.rand(4, 5, 2))
    with pytest.raises(ValueError, match=r"got \(1, 3, 3\): pass M\[\.\.\., :2, :\] if its last row is 0, 0, 1"):
        warp_affine_linearized(image, torch.eye(3)[None], (5, 6))
    with pytest.raises(TypeError, match=r"got a numpy array of float32: pass torch\.from_numpy\(M\)$"):
        warp_affine_linearized(image, M.numpy(), (5, 6))


def test_a_shape_with_no_remedy_gets_none():
    with pytest.raises(ValueError, match=r"M must have shape \(B, 2, 3\), got \(4,\)$"):
        check_tensor("M", torch.rand(4), ("B", 2, 3))
    with pytest.raises(TypeError, match=r"got torch\.complex64$"):
        check_tensor("M", torch.rand(1, 2, 3) * 1j, ("B", 2, 3))


def test_a_presets_name_and_a_preset_that_is_not_called_are_told_how():
    image = torch.rand(1, 1, 5, 5)
    with pytest.raises(TypeError, match=r"None, got 'paper': pass LinearizedSampling\.paper\(\)$"):
        warp_affine_linearized(image, M, (5, 6), sampling="paper")
    for preset in (LinearizedSampling.paper, LinearizedSampling):
        with pytest.raises(
            TypeError, match=rf"got {preset.__qualname__} itself: call it, as in {preset.__qualname__}\(\)"
        ):
            draw_noise(preset, (4, 5))


def test_another_name_lists_what_there_is():
    message = r"got 'default': pass None for the default or LinearizedSampling\.paper\(\)$"
    with pytest.raises(TypeError, match=message):
        warp_affine_linearized(torch.rand(1, 1, 5, 5), M, (5, 6), sampling="default")
