"""How the mean over an output pixel's area is differentiated: by the image, by the source point and by the Jacobian.

The value is linear in the image; its derivative is the mean itself, and in reverse mode the adjoint. The slopes by the
point and by the Jacobian (``area.py``) are constants: a second derivative passes through the gradient, not the slopes.
Without a Jacobian the pixel's axes are finite differences of the grid, and carry their derivative to the grid.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lms_geometry import _torch_private
from lms_geometry.backends import area_operator as operator
from lms_geometry.backends import eager_area
from lms_geometry.backends.operator import map_batches
from lms_geometry.config import Averaging, Reading
from lms_geometry.differentiation import carries_gradient, is_traced

_Untyped = Any  # what autograd hands over


def area_mean(input: Tensor, grid: Tensor, jacobian: Tensor | None, averaging: Averaging, reading: Reading) -> Tensor:
    """As :func:`lms_geometry.backends.eager_area.area_mean`, by the backend that serves, and differentiable."""
    if torch.onnx.is_in_onnx_export():  # An exported graph holds standard operators only.
        return eager_area.area_mean(input.to(grid.dtype), grid, jacobian, averaging, reading).to(input.dtype)
    if is_traced():
        if _torch_private.transform_is_active():
            return _written_out(input, grid, jacobian, averaging, reading)
        return operator.area_mean_in_graph(input, grid, jacobian, *averaging, *reading)
    if not any(map(carries_gradient, (input, grid) if jacobian is None else (input, grid, jacobian))):
        return operator.area_mean(input, grid, jacobian, *averaging, *reading)
    return _mean(input, grid, jacobian, averaging, reading)


def _written_out(
    input: Tensor, grid: Tensor, jacobian: Tensor | None, averaging: Averaging, reading: Reading
) -> Tensor:
    """The linear model in operators of torch, for a transform inside a graph. The terms added to the value are 0."""
    if jacobian is None:
        jacobian = eager_area.jacobian_of(grid, (input.shape[-1], input.shape[-2]), reading.align_corners)
    constants = grid.detach(), jacobian.detach()
    value, slope, by_jacobian = operator.area_slopes(input.detach(), *constants, *averaging, *reading)
    change = operator.area_mean_in_graph(input, *constants, *averaging, *reading) - value
    change = change + (slope * (grid - grid.detach()).nan_to_num().unsqueeze(1)).sum(-1)
    change = change + (by_jacobian * (jacobian - jacobian.detach()).nan_to_num().unsqueeze(1)).sum((-2, -1))
    return value + change.to(value.dtype)


class _AreaMean(torch.autograd.Function):
    """The mean and its derivatives, in every mode."""

    @staticmethod
    def forward(input: Tensor, grid: Tensor, jacobian: Tensor | None, averaging: Averaging, reading: Reading) -> Tensor:
        return operator.area_mean(input, grid, jacobian, *averaging, *reading)

    @staticmethod
    def setup_context(ctx: _Untyped, inputs: tuple[_Untyped, ...], output: Tensor) -> None:
        input, grid, jacobian, ctx.averaging, ctx.reading = inputs
        ctx.save_for_backward(input, grid, jacobian, output)
        ctx.save_for_forward(input, grid, jacobian)

    @staticmethod
    def backward(ctx: _Untyped, gradient: Tensor) -> tuple[Tensor | None, ...]:
        input, grid, jacobian, value = ctx.saved_tensors
        how = *ctx.averaging, *ctx.reading
        by_image = by_grid = by_jacobian = None
        if ctx.needs_input_grad[0]:
            by_image = _adjoint(gradient, grid, jacobian, input.shape[-2:], ctx.averaging, ctx.reading)
        if any(ctx.needs_input_grad[1:3]):
            if torch.is_grad_enabled():  # The gradient may be differentiated in turn; the operator cannot be.
                by_grid, by_jacobian = _by_slopes(gradient, input, grid, jacobian, ctx.averaging, ctx.reading)
            else:
                by_grid, by_jacobian = operator.area_gradient(gradient, value, input, grid, jacobian, *how)
        return by_image, by_grid, None if jacobian is None else by_jacobian, None, None

    @staticmethod
    def jvp(
        ctx: _Untyped, by_image: Tensor | None, by_grid: Tensor | None, by_jacobian: Tensor | None, *_: None
    ) -> Tensor | None:
        input, grid, jacobian = ctx.saved_tensors
        how = *ctx.averaging, *ctx.reading
        tangents = []
        if by_image is not None:
            tangents.append(_mean(by_image, grid, jacobian, ctx.averaging, ctx.reading))
        if by_grid is not None or by_jacobian is not None:
            _, slope, slope_by_jacobian = operator.area_slopes(input.detach(), grid, jacobian, *how)
            if by_grid is not None:
                tangents.append((slope * by_grid.unsqueeze(1)).sum(-1))
            if by_grid is not None and jacobian is None:
                size = input.shape[-1], input.shape[-2]
                by_jacobian = eager_area.jacobian_of(grid, size, ctx.reading.align_corners, by_grid)
            if by_jacobian is not None:
                tangents.append((slope_by_jacobian * by_jacobian.unsqueeze(1)).sum((-2, -1)))
        return sum(tangents[1:], tangents[0]).to(input.dtype) if tangents else None

    @staticmethod
    def vmap(info: _Untyped, dims: tuple[_Untyped, ...], *inputs: _Untyped) -> _Untyped:
        return map_batches(_AreaMean.apply, 3, info, dims, *inputs)


class _AreaAdjoint(torch.autograd.Function):
    """The adjoint of the mean: it spreads a gradient for the values over an image. Linear in its first argument."""

    @staticmethod
    def forward(
        gradient: Tensor,
        grid: Tensor,
        jacobian: Tensor | None,
        size: tuple[int, int],
        averaging: Averaging,
        reading: Reading,
    ) -> Tensor:
        return operator.area_image_gradient(gradient, grid, jacobian, *size, *averaging, *reading)

    @staticmethod
    def setup_context(ctx: _Untyped, inputs: tuple[_Untyped, ...], output: Tensor) -> None:  # noqa: ARG004
        _, grid, jacobian, *ctx.settings = inputs
        ctx.save_for_backward(grid, jacobian)
        ctx.save_for_forward(grid, jacobian)

    @staticmethod
    def backward(ctx: _Untyped, gradient: Tensor) -> tuple[Tensor | None, ...]:
        grid, jacobian = (None if t is None else t.detach() for t in ctx.saved_tensors)
        return _mean(gradient, grid, jacobian, *ctx.settings[1:]), *[None] * 5

    @staticmethod
    def jvp(ctx: _Untyped, tangent: Tensor, *_: None) -> Tensor:
        return _adjoint(tangent, *ctx.saved_tensors, *ctx.settings)

    @staticmethod
    def vmap(info: _Untyped, dims: tuple[_Untyped, ...], *inputs: _Untyped) -> _Untyped:
        return map_batches(_AreaAdjoint.apply, 3, info, dims, *inputs)


def _by_slopes(
    gradient: Tensor,
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    averaging: Averaging,
    reading: Reading,
) -> tuple[Tensor, Tensor | None]:
    """What ``area_gradient`` returns, as a function of the gradient that autograd can follow."""
    constants = (None if t is None else t.detach() for t in (input, grid, jacobian))
    _, slope, by_jacobian = operator.area_slopes(*constants, *averaging, *reading)
    by_grid = (slope * gradient.unsqueeze(-1)).sum(1)
    by_jacobian = (by_jacobian * gradient[..., None, None]).sum(1)
    if jacobian is not None:
        return by_grid, by_jacobian.sum_to_size(jacobian.shape)
    size = input.shape[-1], input.shape[-2]
    through = eager_area.gradient_through_differences(grid.detach(), by_jacobian, size, reading.align_corners)
    return by_grid + through, None


# ``apply`` asks for the signature of ``forward`` at every call: this one is made once, and is the quickest to bind.
_AreaMean.forward.__signature__ = inspect.signature(lambda *_: None)  # type: ignore[attr-defined]
_AreaAdjoint.forward.__signature__ = inspect.signature(lambda *_: None)  # type: ignore[attr-defined]

_mean: Callable[..., Tensor] = _AreaMean.apply
_adjoint: Callable[..., Tensor] = _AreaAdjoint.apply
