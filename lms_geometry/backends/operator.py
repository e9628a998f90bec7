"""Three operators, which compilers and transforms see as a whole: sampling, and the gradients for grid and image.

They have no derivatives of their own: ``differentiation.py`` makes that of the first from the other two. An operator
takes plain numbers and strings, so the settings are taken apart here and put together again by name.

The image, and so the value, may be in half precision beside a grid in float32. The slope is in the grid's precision.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lms_geometry import backends
from lms_geometry.backends import eager
from lms_geometry.config import LinearizedSampling, Reading
from lms_geometry.footprint import Placement

_Untyped = Any  # the type of vmap's arguments and of settings one after another

# The settings of a sampling that an operator takes, with their types; the number of samples is that of the noise.
_KNOBS = {"sigma": "float", "jitter": "float", "ridge": "float", "intercept": "bool", "mask_out_of_bounds": "bool"}
_READING = "str mode, str padding_mode, bool align_corners"

library = torch.library.Library("lms_geometry", "DEF")
library.define(
    "linearized_sample(Tensor input, Tensor grid, Tensor? jacobian, Tensor noise, bool whiten, "
    + "".join(f"{kind} {name}, " for name, kind in _KNOBS.items())
    + f"{_READING}) -> (Tensor value, Tensor slope)"
)
library.define("grid_gradient(Tensor gradient, Tensor slope) -> Tensor")
library.define(f"image_gradient(Tensor gradient, Tensor grid, SymInt height, SymInt width, {_READING}) -> Tensor")
_linearized_sample = torch.ops.lms_geometry.linearized_sample.default
grid_gradient = torch.ops.lms_geometry.grid_gradient.default
image_gradient = torch.ops.lms_geometry.image_gradient.default


def linearized_sample(
    input: Tensor, grid: Tensor, placement: Placement, sampling: LinearizedSampling, reading: Reading
) -> tuple[Tensor, Tensor]:
    """As :func:`lms_geometry.backends.eager.sample`, by the backend that serves. The results have no history."""
    noise, jacobian, whiten = placement
    knobs = (getattr(sampling, name) for name in _KNOBS)
    return _linearized_sample(input, grid, jacobian, noise, whiten, *knobs, *reading)


def _sample(
    input: Tensor, grid: Tensor, jacobian: Tensor | None, noise: Tensor, whiten: bool, *others: _Untyped
) -> tuple[Tensor, Tensor]:
    sampling = _sampling(num_samples=noise.shape[-4] + 1, **dict(zip(_KNOBS, others, strict=False)))
    placement, reading = Placement(noise, jacobian, whiten), Reading(*others[len(_KNOBS) :])
    backend, image = chosen(lambda tensor: backends.choose(tensor, reading.mode), input, grid.dtype)
    value, slope = backend.sample(image, grid, placement, sampling, reading)
    for axis, texels in enumerate((input.shape[-1], input.shape[-2])):
        if texels == 1:  # all samples read the same along this axis, and what the fit finds is their noise
            slope[..., axis] = 0
    return value.to(input.dtype), slope


# Settings are validated once, not at every call. To the backends the pattern is in the noise.
_sampling = lru_cache(maxsize=64)(partial(LinearizedSampling, pattern="gaussian", slope="plane"))


def _differentiate_by_grid(gradient: Tensor, slope: Tensor) -> Tensor:
    backend, gradient = chosen(backends.choose_for_gradient, gradient, slope.dtype)
    return backend.grid_gradient(gradient, slope)


def _differentiate_by_image(gradient: Tensor, grid: Tensor, height: int, width: int, *reading: _Untyped) -> Tensor:
    image = gradient.new_zeros(1).expand(*gradient.shape[:2], height, width)
    how = Reading(*reading)
    return backends.choose(image, how.mode).image_gradient(gradient, image, grid, how)


def chosen(
    choose: Callable[[Tensor], ModuleType], tensor: Tensor, dtype: torch.dtype, reference: ModuleType = eager
) -> tuple[ModuleType, Tensor]:
    """The backend for a tensor, and the tensor: as it is where a fused one takes its precision, else in ``dtype``."""
    backend = choose(tensor)
    if backend is reference and tensor.dtype != dtype:
        tensor = tensor.to(dtype)
        backend = choose(tensor)
    return backend, tensor


def _fake_sample(input: Tensor, grid: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    shape = *input.shape[:2], *grid.shape[1:3]
    return input.new_empty(shape), grid.new_empty((*shape, 2))


def _fake_grid_gradient(_: Tensor, slope: Tensor) -> Tensor:
    return slope.new_empty((slope.shape[0], *slope.shape[2:]))


def _fake_image_gradient(gradient: Tensor, _: Tensor, height: int, width: int, *__: object) -> Tensor:
    return gradient.new_empty((*gradient.shape[:2], height, width))


def map_sample(
    run: Callable[..., tuple[Tensor, Tensor]],
    info: _Untyped,
    dims: tuple[int | None, ...],
    input: Tensor,
    grid: Tensor,
    jacobian: Tensor | None,
    noise: Tensor,
    *others: _Untyped,
) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    """A batching rule for ``run``: the mapped axis joins the batch. Noise that has neither stays shared."""
    sizes, noise_dim = (info.batch_size, input.shape[int(dims[0] == 0)]), dims[3]
    if noise_dim is not None and noise.ndim == 5:
        noise, noise_dim = noise.movedim(noise_dim, 0).unsqueeze(1), 0
    results = run(
        _folded(input, dims[0], sizes),
        _folded(grid, dims[1], sizes),
        None if jacobian is None else _folded(jacobian, dims[2], sizes),
        noise if noise.ndim == 4 else _folded(noise, noise_dim, sizes),
        *others,
    )
    return tuple(result.unflatten(0, sizes) for result in results), (0, 0)


def _map_grid_gradient(_: _Untyped, dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
    gradient, slope = (t if d is None else t.movedim(d, 0) for t, d in zip(tensors, dims, strict=True))
    return eager.grid_gradient(gradient, slope), 0


def map_batches(
    run: _Untyped, batched: int, info: _Untyped, dims: tuple[int | None, ...], *inputs: _Untyped
) -> _Untyped:
    """A batching rule for ``run``, whose first ``batched`` arguments are tensors with a batch, or ``None``.

    The mapped axis joins the batch.
    """
    tensors, settings = inputs[:batched], inputs[batched:]
    sizes = info.batch_size, tensors[0].shape[int(dims[0] == 0)]
    tensors = tuple(None if t is None else _folded(t, d, sizes) for t, d in zip(tensors, dims, strict=False))
    results = run(*tensors, *settings)
    if isinstance(results, Tensor):
        return results.unflatten(0, sizes), 0
    return tuple(_unfolded(result, sizes) for result in results), (0,) * len(results)


def _unfolded(tensor: Tensor, sizes: tuple[int, int]) -> Tensor:
    """A result that is missing is empty, and is so for every mapped call."""
    return tensor.unflatten(0, sizes) if tensor.ndim > 1 else tensor.expand(sizes[0], 0)


def _folded(tensor: Tensor, dim: int | None, sizes: tuple[int, int]) -> Tensor:
    """A tensor's mapped axis and batch, of these ``sizes``, as one; the first may be missing, the second 1."""
    tensor = tensor.unsqueeze(0) if dim is None else tensor.movedim(dim, 0)
    return tensor.expand(*sizes, *tensor.shape[2:]).flatten(0, 1)


for _name, _run, _fake, _map in (
    ("linearized_sample", _sample, _fake_sample, partial(map_sample, _linearized_sample)),
    ("grid_gradient", _differentiate_by_grid, _fake_grid_gradient, _map_grid_gradient),
    ("image_gradient", _differentiate_by_image, _fake_image_gradient, partial(map_batches, image_gradient, 2)),
):
    library.impl(_name, _run, "CompositeExplicitAutograd")
    torch.library.register_fake(f"lms_geometry::{_name}", _fake, lib=library)
    torch.library.register_vmap(f"lms_geometry::{_name}", _map, lib=library)
