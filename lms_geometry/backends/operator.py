"""The one operator, ``lms_geometry::linearized_sample``, which compilers and transforms see as a whole.

It differentiates by itself in plain reverse mode. A registered operator has no forward mode: there, and inside other
transforms, sampling.py writes out the linear model (2) with the operator's two results as constants.

The image, and so the value, may be in half precision beside a grid in float32. The slope is in the grid's precision.
"""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lms_geometry import backends
from lms_geometry.backends import eager
from lms_geometry.config import LinearizedSampling

_Setting = float | bool | str
_Untyped = Any  # what autograd and vmap hand over

_library = torch.library.Library("lms_geometry", "DEF")
_library.define(
    "linearized_sample(Tensor input, Tensor grid, Tensor? jacobian, Tensor noise, bool whiten, float sigma, "
    "float jitter, float ridge, bool intercept, bool mask_out_of_bounds, str mode, str padding_mode, "
    "bool align_corners) -> (Tensor value, Tensor slope)"
)
_library.define("grid_gradient(Tensor gradient, Tensor slope) -> Tensor")
_library.define(
    "image_gradient(Tensor gradient, Tensor input, Tensor grid, str mode, str padding_mode, bool align_corners) "
    "-> Tensor"
)
_linearized_sample = torch.ops.lms_geometry.linearized_sample.default
_grid_gradient = torch.ops.lms_geometry.grid_gradient.default
_image_gradient = torch.ops.lms_geometry.image_gradient.default


def linearized_sample(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    noise: Tensor,
    whiten: bool,
    sampling: LinearizedSampling,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    """As :func:`lms_geometry.backends.eager.sample`, by the backend that serves, and differentiable."""
    return _linearized_sample(
        input,
        grid,
        jacobian,
        noise,
        whiten,
        sampling.sigma,
        sampling.jitter,
        sampling.ridge,
        sampling.intercept,
        sampling.mask_out_of_bounds,
        mode,
        padding_mode,
        align_corners,
    )


def _sample(
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    noise: Tensor,
    whiten: bool,
    sigma: float,
    jitter: float,
    ridge: float,
    intercept: bool,
    mask_out_of_bounds: bool,
    mode: str,
    padding_mode: str,
    align_corners: bool,
) -> tuple[Tensor, Tensor]:
    sampling = LinearizedSampling(noise.shape[-4] + 1, sigma, jitter, ridge, intercept, mask_out_of_bounds)
    backend, image = _choose(input, mode, grid.dtype)
    value, slope = backend.sample(image, grid, jacobian, noise, whiten, sampling, mode, padding_mode, align_corners)
    return value.to(input.dtype), slope


def _differentiate_by_grid(gradient: Tensor, slope: Tensor) -> Tensor:
    backend, gradient = _choose(gradient, "bilinear", slope.dtype)
    return backend.grid_gradient(gradient, slope)


def _differentiate_by_image(
    gradient: Tensor, input: Tensor, grid: Tensor, mode: str, padding_mode: str, align_corners: bool
) -> Tensor:
    return backends.choose(input, mode).image_gradient(gradient, input, grid, mode, padding_mode, align_corners)


def _choose(input: Tensor, mode: str, dtype: torch.dtype) -> tuple[ModuleType, Tensor]:
    """The backend for an image, and the image: as it is where a backend reads its precision, else in ``dtype``."""
    backend = backends.choose(input, mode)
    if backend is eager and input.dtype != dtype:
        input = input.to(dtype)
        backend = backends.choose(input, mode)
    return backend, input


class _Differentiable(torch.autograd.Function):
    """The operator and its derivative. ``torch.library.register_autograd`` does it too, in 40 microseconds per call."""

    @staticmethod
    def forward(ctx: _Untyped, input: Tensor, grid: Tensor, *others: Tensor | _Setting | None) -> tuple[Tensor, Tensor]:
        value, slope = _below_autograd(input, grid, *others)
        ctx.settings = others[-3:]
        ctx.save_for_backward(slope, *((input, grid) if ctx.needs_input_grad[0] else ()))
        ctx.mark_non_differentiable(slope)
        ctx.set_materialize_grads(False)
        return value, slope

    @staticmethod
    def backward(ctx: _Untyped, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        by_image = by_grid = None
        if gradient is not None:
            slope, *read = ctx.saved_tensors
            again = torch.is_grad_enabled()  # the gradients may be differentiated in turn
            if ctx.needs_input_grad[0]:  # as in (2), the weights of the centre are constants
                read = [tensor.detach() for tensor in read]
                by_image = (eager.image_gradient if again else _image_gradient)(gradient, *read, *ctx.settings)
            if ctx.needs_input_grad[1]:
                by_grid = (eager.grid_gradient if again else _grid_gradient)(gradient, slope)
        return by_image, by_grid, *[None] * 11


def _with_autograd(input: Tensor, grid: Tensor, *others: Tensor | _Setting | None) -> tuple[Tensor, Tensor]:
    if torch.is_grad_enabled() and (input.requires_grad or grid.requires_grad):
        return _Differentiable.apply(input, grid, *others)  # type: ignore[no-untyped-call]
    return _below_autograd(input, grid, *others)


def _below_autograd(*arguments: Tensor | _Setting | None) -> tuple[Tensor, Tensor]:
    with torch._C._AutoDispatchBelowAutograd():
        return _linearized_sample(*arguments)


def _fake_sample(input: Tensor, grid: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    shape = *input.shape[:2], *grid.shape[1:3]
    return input.new_empty(shape), grid.new_empty((*shape, 2))


def _fake_grid_gradient(_: Tensor, slope: Tensor) -> Tensor:
    return slope.new_empty((slope.shape[0], *slope.shape[2:]))


def _fake_image_gradient(_: Tensor, input: Tensor, *__: object) -> Tensor:
    return input.new_empty(input.shape)


def _map_sample(
    info: _Untyped,
    dims: tuple[int | None, ...],
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    noise: Tensor,
    *settings: _Setting,
) -> tuple[list[Tensor], list[int]]:
    """The mapped axis joins the batch. Noise that has neither stays shared."""
    sizes, noise_dim = (info.batch_size, input.shape[int(dims[0] == 0)]), dims[3]
    if noise_dim is not None and noise.ndim == 5:
        noise, noise_dim = noise.movedim(noise_dim, 0).unsqueeze(1), 0
    results = _linearized_sample(
        _folded(input, dims[0], sizes),
        _folded(grid, dims[1], sizes),
        None if jacobian is None else _folded(jacobian, dims[2], sizes),
        noise if noise.ndim == 4 else _folded(noise, noise_dim, sizes),
        *settings,
    )
    return [r.unflatten(0, sizes) for r in results], [0, 0]


def _map_grid_gradient(_: _Untyped, dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
    gradient, slope = (t if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True))
    return eager.grid_gradient(gradient, slope), 0


def _map_image_gradient(
    info: _Untyped, dims: tuple[int | None, ...], gradient: Tensor, input: Tensor, grid: Tensor, *settings: _Setting
) -> tuple[Tensor, int]:
    sizes = info.batch_size, gradient.shape[int(dims[0] == 0)]
    tensors = (_folded(t, d, sizes) for t, d in zip((gradient, input, grid), dims, strict=False))
    return _image_gradient(*tensors, *settings).unflatten(0, sizes), 0


def _folded(tensor: Tensor, dim: int | None, sizes: tuple[int, int]) -> Tensor:
    """A tensor's mapped axis and batch, of these ``sizes``, as one; the first may be missing, the second 1."""
    tensor = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
    return tensor.expand(*sizes, *tensor.shape[2:]).flatten(0, 1)


for _name, _run, _fake, _map in (
    ("linearized_sample", _sample, _fake_sample, _map_sample),
    ("grid_gradient", _differentiate_by_grid, _fake_grid_gradient, _map_grid_gradient),
    ("image_gradient", _differentiate_by_image, _fake_image_gradient, _map_image_gradient),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lms_geometry::{_name}", _fake, lib=_library)
    torch.library.register_vmap(f"lms_geometry::{_name}", _map, lib=_library)
_library.impl("linearized_sample", _with_autograd, "Autograd")
