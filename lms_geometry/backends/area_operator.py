"""Operators for the mean over an output pixel's area, which compilers and transforms see as a whole.

``area_mean`` has no derivative of its own: ``area_differentiation.py`` makes it from the three others.
``area_mean_in_graph`` is the same operator with its reverse mode registered, for compiled and exported graphs, which
hold no autograd functions.

The image, and so the value, may be in half precision beside a grid in float32. The slopes are in the grid's precision.
"""

from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lms_geometry import backends
from lms_geometry.backends import eager_area
from lms_geometry.backends.operator import chosen, library, map_batches
from lms_geometry.config import Averaging, Reading

_Untyped = Any  # what vmap and autograd hand over

_HOW = "int nodes, float side, str estimate, str mode, str padding_mode, bool align_corners"
library.define(f"area_mean(Tensor input, Tensor grid, Tensor? jacobian, {_HOW}) -> Tensor")
library.define(f"area_mean_in_graph(Tensor input, Tensor grid, Tensor? jacobian, {_HOW}) -> Tensor")
library.define(
    f"area_gradient(Tensor gradient, Tensor value, Tensor input, Tensor grid, Tensor? jacobian, {_HOW}) "
    "-> (Tensor by_grid, Tensor by_jacobian)"
)
library.define(
    f"area_image_gradient(Tensor gradient, Tensor grid, Tensor? jacobian, SymInt height, SymInt width, {_HOW}) "
    "-> Tensor"
)
library.define(
    f"area_slopes(Tensor input, Tensor grid, Tensor? jacobian, {_HOW}) "
    "-> (Tensor value, Tensor slope, Tensor by_jacobian)"
)
area_mean = torch.ops.lms_geometry.area_mean.default
area_mean_in_graph = torch.ops.lms_geometry.area_mean_in_graph.default
area_gradient = torch.ops.lms_geometry.area_gradient.default
area_image_gradient = torch.ops.lms_geometry.area_image_gradient.default
area_slopes = torch.ops.lms_geometry.area_slopes.default


def _mean(input: Tensor, grid: Tensor, jacobian: Tensor | None, *how: _Untyped) -> Tensor:
    backend, image = _readable(input, grid, how)
    return backend.area_mean(image, grid, jacobian, *_settings(how)).to(input.dtype)


def _gradient(
    gradient: Tensor, value: Tensor, input: Tensor, grid: Tensor, jacobian: Tensor | None, *how: _Untyped
) -> tuple[Tensor, Tensor]:
    backend, image = _readable(input, grid, how)
    gradient, value = gradient.to(image.dtype), value.to(image.dtype)
    by_grid, by_jacobian = backend.area_gradient(gradient, value, image, grid, jacobian, *_settings(how))
    return by_grid, grid.new_empty(0) if by_jacobian is None else by_jacobian


def _image_gradient(
    gradient: Tensor, grid: Tensor, jacobian: Tensor | None, height: int, width: int, *how: _Untyped
) -> Tensor:
    image = gradient.new_zeros(1).expand(*gradient.shape[:2], height, width)
    backend, image = _readable(image, grid, how)
    by_image = backend.area_image_gradient(gradient.to(image.dtype), image, grid, jacobian, *_settings(how))
    return by_image.to(gradient.dtype)


def _slopes(input: Tensor, grid: Tensor, jacobian: Tensor | None, *how: _Untyped) -> tuple[Tensor, Tensor, Tensor]:
    if jacobian is None:
        jacobian = eager_area.jacobian_of(grid, (input.shape[-1], input.shape[-2]), how[-1])
    backend, image = _readable(input, grid, how)
    value, slope, by_jacobian = backend.area_slopes(image, grid, jacobian, *_settings(how))
    return value.to(input.dtype), slope, by_jacobian


def _readable(input: Tensor, grid: Tensor, how: tuple[_Untyped, ...]) -> tuple[ModuleType, Tensor]:
    """The backend, and the image in a precision that it takes."""
    return chosen(lambda image: backends.choose_for_area(image, *_settings(how)), input, grid.dtype, eager_area)


def _settings(how: tuple[_Untyped, ...]) -> tuple[Averaging, Reading]:
    nodes, side, estimate, mode, padding_mode, align_corners = how
    averaging = Averaging(nodes=nodes, side=side, estimate=estimate)
    return averaging, Reading(mode=mode, padding_mode=padding_mode, align_corners=align_corners)


def _fake_mean(input: Tensor, grid: Tensor, *_: object) -> Tensor:
    return input.new_empty((*input.shape[:2], *grid.shape[1:3]))


def _fake_gradient(
    gradient: Tensor, _: Tensor, __: Tensor, grid: Tensor, jacobian: Tensor | None, *___: object
) -> tuple[Tensor, Tensor]:
    by_jacobian = grid.new_empty(0) if jacobian is None else jacobian.new_empty(jacobian.shape)
    return grid.new_empty((gradient.shape[0], *grid.shape[1:])), by_jacobian


def _fake_image_gradient(gradient: Tensor, _: Tensor, __: object, height: int, width: int, *___: object) -> Tensor:
    return gradient.new_empty((*gradient.shape[:2], height, width))


def _fake_slopes(input: Tensor, grid: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    shape = *input.shape[:2], *grid.shape[1:3]
    return input.new_empty(shape), grid.new_empty((*shape, 2)), grid.new_empty((*shape, 2, 2))


def _setup_context(ctx: _Untyped, inputs: tuple[_Untyped, ...], output: Tensor) -> None:
    input, grid, jacobian, *ctx.how = inputs
    ctx.save_for_backward(input, grid, jacobian, output)


def _backward(ctx: _Untyped, gradient: Tensor) -> tuple[Tensor | None, ...]:
    input, grid, jacobian, value = ctx.saved_tensors
    by_image = by_grid = by_jacobian = None
    if ctx.needs_input_grad[0]:
        by_image = area_image_gradient(gradient, grid, jacobian, *input.shape[-2:], *ctx.how)
    if any(ctx.needs_input_grad[1:3]):
        by_grid, by_jacobian = area_gradient(gradient, value, input, grid, jacobian, *ctx.how)
    return by_image, by_grid, by_jacobian if jacobian is not None else None, *[None] * 6


for _name, _run, _fake, _operator, _batched in (
    ("area_mean", _mean, _fake_mean, area_mean, 3),
    ("area_mean_in_graph", _mean, _fake_mean, area_mean_in_graph, 3),
    ("area_gradient", _gradient, _fake_gradient, area_gradient, 5),
    ("area_image_gradient", _image_gradient, _fake_image_gradient, area_image_gradient, 3),
    ("area_slopes", _slopes, _fake_slopes, area_slopes, 3),
):
    library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lms_geometry::{_name}", _fake, lib=library)
    torch.library.register_vmap(
        f"lms_geometry::{_name}",
        partial(map_batches, _operator, _batched),
        lib=library,
    )
torch.library.register_autograd(
    "lms_geometry::area_mean_in_graph", _backward, setup_context=_setup_context, lib=library
)
