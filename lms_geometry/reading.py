"""Reading an image at points, differentiable for the image in every mode.

``F.grid_sample`` has no forward mode. But reading is linear in the image. So its forward derivative is the same read of
the tangent, and its backward is the adjoint, which spreads values over the image.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.backends.eager import image_gradient

_Untyped = Any  # what autograd hands over


def read(input: Tensor, points: Tensor, mode: str, padding_mode: str, align_corners: bool) -> Tensor:
    """``F.grid_sample`` at points that carry no gradient."""
    height, width = input.shape[-2:]
    return _apply(input, points, False, height, width, mode, padding_mode, align_corners)


class _Reading(torch.autograd.Function):
    """Reading an image of a size, or the adjoint, which spreads values over one."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        values: Tensor,
        points: Tensor,
        adjoint: bool,
        height: int,
        width: int,
        mode: str,
        padding_mode: str,
        align_corners: bool,
    ) -> Tensor:
        if not adjoint:
            return F.grid_sample(values, points, mode, padding_mode, align_corners)
        image = values.new_zeros(1).expand(*values.shape[:2], height, width)
        return image_gradient(values, image, points, mode, padding_mode, align_corners)

    @staticmethod
    def setup_context(ctx: _Untyped, inputs: tuple[_Untyped, ...], output: Tensor) -> None:  # noqa: ARG004
        _, points, ctx.adjoint, *ctx.settings = inputs
        ctx.save_for_backward(points)
        ctx.save_for_forward(points)

    @staticmethod
    def backward(ctx: _Untyped, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _apply(gradient, *ctx.saved_tensors, not ctx.adjoint, *ctx.settings), *[None] * 7

    @staticmethod
    def jvp(ctx: _Untyped, tangent: Tensor, *_: None) -> Tensor:
        return _apply(tangent, *ctx.saved_tensors, ctx.adjoint, *ctx.settings)


_apply: Callable[..., Tensor] = _Reading.apply
