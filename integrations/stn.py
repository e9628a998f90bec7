"""Spatial transformers: ``F.affine_grid`` followed by ``F.grid_sample``.

The matrix that makes the grid gives the exact Jacobian of every output pixel. :func:`linearize` takes finite
differences of the grid instead. They agree but for rounding, cost time for every pixel, and say nothing along an output
axis of one pixel.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lms_geometry.config import LinearizedSampling
from lms_geometry.coordinates import pixels_per_unit, units_per_pixel
from lms_geometry.differentiation import carries_gradient

from . import _torch_private
from .intercept import Patch


def linearize_stn(
    target: nn.Module | None = None,
    *,
    sampling: LinearizedSampling | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int | None = None,
) -> Patch:
    r"""As :func:`linearize`, with the exact Jacobian where a grid comes straight from ``F.affine_grid``.

    For a matrix :math:`\theta`, an image :math:`W \times H` and an output :math:`w \times h` it is

    .. math::
        J = \mathrm{diag}(W / 2, H / 2) \, \theta_{:, :2} \, \mathrm{diag}(2 / w, 2 / h)

    where ``align_corners=True`` has :math:`n - 1` for every length :math:`n`. A grid that was changed after
    ``affine_grid`` made it, or that was made inside a compiled graph, has finite differences. A change made through
    ``grid.data`` goes unnoticed, since torch does not count it: use :func:`linearize` there.

    Args:
        target: the module that holds the pair, or ``None`` for a block.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.
        include: patterns of the only calls to swap; all if ``None``.
        exclude: patterns of calls to leave alone.
        seed: seed of the noise.

    Returns:
        The patch.

    Raises:
        TypeError: as :func:`linearize`.
        ValueError: as :func:`linearize`.

    Example:
        >>> image, theta = torch.rand(2, 3, 20, 30), torch.eye(2, 3).repeat(2, 1, 1).requires_grad_()
        >>> with linearize_stn():
        ...     grid = F.affine_grid(theta, (2, 3, 5, 7), align_corners=False)
        ...     F.grid_sample(image, grid, align_corners=False).shape
        torch.Size([2, 3, 5, 7])
    """
    return _StnPatch(target, sampling, include, exclude, seed)


class _StnPatch(Patch):
    def see(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> object:
        result = func(*args, **kwargs)
        if func is F.affine_grid and isinstance(result, Tensor) and not torch.compiler.is_compiling():
            _remember(result, *args, **kwargs)
        return result

    def jacobian(self, input: Tensor, grid: Tensor, align_corners: bool) -> Tensor | None:
        step, version = getattr(grid, "_lms_step", (None, None))
        if step is None or version is None or version != _torch_private.version(grid) or input.dim() != 4:
            return None
        height, width = input.shape[-2:]
        units = [pixels_per_unit(n, align_corners) for n in (width, height)]
        return step * step.new_tensor(units)[:, None]


def _remember(grid: Tensor, theta: Tensor, size: Sequence[int], align_corners: bool | None = None) -> None:
    """Note on a grid the step in it from one output pixel to the next, ``(B, 1, 1, 2, 2)``, and its version."""
    unused = torch.is_grad_enabled() and not carries_gradient(grid)
    if len(size) != 4 or unused or grid.is_inference():  # a tensor of inference mode has no version
        return
    height, width = size[-2:]
    steps = [units_per_pixel(n, bool(align_corners)) for n in (width, height)]
    step = theta[:, None, None, :, :2] * theta.new_tensor(steps)
    grid._lms_step = step, _torch_private.version(grid)  # type: ignore[attr-defined]
