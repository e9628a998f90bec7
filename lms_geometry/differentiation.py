"""How a linearized sample is differentiated (equation 2).

The value of a pixel is ``I_0 + A_1 + A_uv' (T(x) - T(x_i))``. Two things in it carry a derivative: the point ``T(x)``,
whose derivative is the slope ``A_uv``, and the image in ``I_0``, whose derivative is the weights with which the centre
is read. Slope and weights are constants. Forward mode multiplies by them, reverse mode by their transposes.
"""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad

from lms_geometry import _torch_private
from lms_geometry.backends import eager, operator
from lms_geometry.backends.common import usable_points
from lms_geometry.config import LinearizedSampling, Reading
from lms_geometry.footprint import Placement

_Untyped = Any  # the type of autograd's contexts and arguments


def linearized_sample(
    input: Tensor, grid: Tensor, placement: Placement, sampling: LinearizedSampling, reading: Reading
) -> tuple[Tensor, Tensor]:
    """As :func:`lms_geometry.backends.eager.sample`, by the backend that serves; the value can be differentiated."""
    if is_traced():
        return _for_a_compiler(input, grid, placement, sampling, reading)
    if not (carries_gradient(grid) or carries_gradient(input)):
        return operator.linearized_sample(input, grid, placement, sampling, reading)
    noise, jacobian, whiten = placement
    return _Linearized.apply(input, grid, jacobian, noise, whiten, sampling, reading)  # type: ignore[no-untyped-call]


def _for_a_compiler(
    input: Tensor, grid: Tensor, placement: Placement, sampling: LinearizedSampling, reading: Reading
) -> tuple[Tensor, Tensor]:
    """The linear model written out in operators of torch, for a graph, which holds no autograd functions.

    Value and slope are constants. The terms that are added to the value are 0 and carry its derivatives.
    """
    value, slope = operator.linearized_sample(input.detach(), grid.detach(), placement, sampling, reading)
    centre, points = read_centre(input.to(grid.dtype), grid, reading), usable_points(grid)
    shift = (points - points.detach()).unsqueeze(1)
    return (value + (centre - centre.detach()) + (slope * shift).sum(-1)).to(input.dtype), slope


def is_traced() -> bool:
    """Whether the call becomes part of a graph: compiled, exported or of TorchScript."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]


def read_centre(input: Tensor, grid: Tensor, reading: Reading) -> Tensor:
    """What ``F.grid_sample`` reads at points that are constants, in the dtype of ``input``."""
    if is_traced():
        return F.grid_sample(input.to(grid.dtype), usable_points(grid.detach()), *reading).to(input.dtype)
    return _read_centre(input, grid, False, *input.shape[-2:], *reading)


def carries_gradient(tensor: Tensor) -> bool:
    """Whether a derivative for a tensor may be asked for, in reverse or forward mode, also through ``torch.func``."""
    if torch.compiler.is_compiling():
        return _torch_private.transform_is_active() or (torch.is_grad_enabled() and tensor.requires_grad)
    return _torch_private.holds_at_some_level(_has_derivative, tensor)


def _has_derivative(tensor: Tensor) -> bool:
    return (torch.is_grad_enabled() and tensor.requires_grad) or forward_ad.unpack_dual(tensor).tangent is not None


class _Linearized(torch.autograd.Function):
    """Value and slope; the derivative of the value for the image and the grid, in every mode."""

    @staticmethod
    def forward(*inputs: _Untyped) -> tuple[Tensor, Tensor]:
        input, grid, jacobian, noise, whiten, sampling, reading = inputs
        return operator.linearized_sample(input, grid, Placement(noise, jacobian, whiten), sampling, reading)

    @staticmethod
    def setup_context(ctx: _Untyped, inputs: tuple[_Untyped, ...], output: tuple[Tensor, Tensor]) -> None:
        input, grid, *_, ctx.reading = inputs
        ctx.size, ctx.dtype = input.shape[-2:], input.dtype
        ctx.save_for_backward(grid, output[1])
        ctx.save_for_forward(grid, output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: _Untyped, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        by_image = by_grid = None
        if gradient is not None:
            grid, slope = ctx.saved_tensors
            again = torch.is_grad_enabled()  # the gradients may be differentiated in turn, which no operator can
            if ctx.needs_input_grad[0]:
                settings = *ctx.size, *ctx.reading
                by_image = (
                    _read_centre(gradient, grid, True, *settings)
                    if again
                    else operator.image_gradient(gradient, grid, *settings)
                )
            if ctx.needs_input_grad[1]:
                by_grid = (eager if again else operator).grid_gradient(gradient, slope)
        return by_image, by_grid, *[None] * 5

    @staticmethod
    def jvp(ctx: _Untyped, by_image: Tensor | None, by_grid: Tensor | None, *_: None) -> tuple[Tensor | None, None]:
        grid, slope = ctx.saved_tensors
        tangents = []
        if by_image is not None:
            tangents.append(_read_centre(by_image.to(grid.dtype), grid, False, *ctx.size, *ctx.reading))
        if by_grid is not None:
            tangents.append((slope * by_grid.unsqueeze(1)).sum(-1))
        return (sum(tangents[1:], tangents[0]).to(ctx.dtype) if tangents else None), None

    @staticmethod
    def vmap(info: _Untyped, dims: tuple[_Untyped, ...], *inputs: _Untyped) -> tuple[_Untyped, _Untyped]:
        return operator.map_sample(_Linearized.apply, info, dims, *inputs)


class _CentreRead(torch.autograd.Function):
    """Reading the centres, which is linear in the image; or the transpose, which spreads values over an image.

    It is the derivative of :class:`_Linearized` for the image, as a function that has derivatives in turn. (Torch's own
    ``grid_sample`` has no forward mode.)
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(*inputs: _Untyped) -> Tensor:
        values, grid, transposed, height, width, *reading = inputs
        if transposed:
            return operator.image_gradient(values, grid, height, width, *reading)
        return F.grid_sample(values.to(grid.dtype), usable_points(grid), *reading).to(values.dtype)

    @staticmethod
    def setup_context(ctx: _Untyped, inputs: tuple[_Untyped, ...], output: Tensor) -> None:  # noqa: ARG004
        _, grid, ctx.transposed, *ctx.settings = inputs
        ctx.save_for_backward(grid)
        ctx.save_for_forward(grid)

    @staticmethod
    def backward(ctx: _Untyped, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return _read_centre(gradient, *ctx.saved_tensors, not ctx.transposed, *ctx.settings), *[None] * 7

    @staticmethod
    def jvp(ctx: _Untyped, tangent: Tensor, *_: None) -> Tensor:
        return _read_centre(tangent, *ctx.saved_tensors, ctx.transposed, *ctx.settings)


# ``apply`` asks for the signature of ``forward`` at every call: this one is made once, and is the quickest to bind.
_Linearized.forward.__signature__ = inspect.signature(_Linearized.forward)  # type: ignore[attr-defined]


def _read_centre(values: Tensor, grid: Tensor, transposed: bool, *settings: int | str | bool) -> Tensor:
    return _CentreRead.apply(values, grid.detach(), transposed, *settings)  # type: ignore[no-untyped-call]
