"""Torch's bilinear samplers under all their names, what they are called with, and which calls can be swapped."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.autocast import is_autocast
from lms_geometry.checks import MODES, PADDING_MODES
from lms_geometry.differentiation import carries_gradient

SAMPLERS = {
    F.grid_sample,
    torch.grid_sampler,
    torch.grid_sampler_2d,
    torch.grid_sampler_3d,
    torch.ops.aten.grid_sampler,
    torch.ops.aten.grid_sampler.default,
    torch.ops.aten.grid_sampler_2d,
    torch.ops.aten.grid_sampler_2d.default,
}
NO_GRADIENT = "grid carries no gradient"


def arguments(
    func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Tensor, Tensor, str, str, bool | None]:
    """The arguments of a call of a sampler, as ``F.grid_sample`` names them."""
    return (_by_name if func is F.grid_sample else _by_number)(*args, **kwargs)


def unfit(input: Tensor, grid: Tensor, mode: str, padding_mode: str, jacobian: Tensor | None) -> str:
    """Why a call cannot be swapped, if so. A call that torch would refuse is left for torch to refuse."""
    if input.dim() == 5:
        return "5-D, a volume"
    if mode != "bilinear":
        return f"mode {mode!r}"
    valid = input.dim() == grid.dim() == 4 and input.shape[0] == grid.shape[0] and grid.shape[-1] == 2
    same_dtype = input.dtype == grid.dtype or is_autocast(input.device)
    if not (valid and same_dtype and min(input.shape[1:]) > 0 and padding_mode in PADDING_MODES):
        return "not a valid call"
    if jacobian is None and min(grid.shape[1:3]) == 1:
        return "a row of points, which does not tell the footprint of its samples"
    return "" if carries_gradient(grid) else NO_GRADIENT


def _by_name(
    input: Tensor,
    grid: Tensor,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
    align_corners: bool | None = None,
) -> tuple[Tensor, Tensor, str, str, bool | None]:
    """The arguments of ``F.grid_sample``."""
    return input, grid, mode, padding_mode, align_corners


def _by_number(
    input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool
) -> tuple[Tensor, Tensor, str, str, bool | None]:
    """The arguments of ``torch.grid_sampler`` as ``F.grid_sample`` names them."""
    modes, paddings = dict(enumerate(MODES)), dict(enumerate(PADDING_MODES))
    mode, padding = modes.get(interpolation_mode, "unknown"), paddings.get(padding_mode, "unknown")
    return input, grid, mode, padding, align_corners
