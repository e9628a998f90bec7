"""The names of torch's bilinear sampler, the arguments of a call, and the calls that can be swapped."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lms_geometry.autocast import is_autocast
from lms_geometry.checks import MODES, PADDING_MODES
from lms_geometry.differentiation import carries_gradient

SAMPLERS = (
    F.grid_sample,
    torch.grid_sampler,
    torch.grid_sampler_2d,
    torch.grid_sampler_3d,
    torch.ops.aten.grid_sampler,
    torch.ops.aten.grid_sampler.default,
    torch.ops.aten.grid_sampler_2d,
    torch.ops.aten.grid_sampler_2d.default,
)
NO_GRADIENT = "grid carries no gradient"


class Call(NamedTuple):
    """The arguments of a call of a sampler, as ``F.grid_sample`` names them."""

    input: Tensor
    grid: Tensor
    mode: str = "bilinear"
    padding_mode: str = "zeros"
    align_corners: bool | None = None


def read_call(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """The arguments of a call of any of the samplers."""
    return (Call if func is F.grid_sample else _by_number)(*args, **kwargs)


def skip_reason(call: Call, jacobian: Tensor | None) -> str:
    """Why a call cannot be swapped, or an empty string. A call that torch would refuse is left for torch to refuse."""
    input, grid = call.input, call.grid
    if input.dim() == 5:
        return "5-D, a volume"
    if call.mode != "bilinear":
        return f"mode {call.mode!r}"
    valid = input.dim() == grid.dim() == 4 and input.shape[0] == grid.shape[0] and grid.shape[-1] == 2
    same_dtype = input.dtype == grid.dtype or is_autocast(input.device)
    if not (valid and same_dtype and min(input.shape[2:]) > 0 and call.padding_mode in PADDING_MODES):
        return "torch refuses the call"
    if jacobian is None and min(grid.shape[1:3]) == 1:
        return "a row of points, which does not tell the footprint of its samples"
    return "" if carries_gradient(grid) else NO_GRADIENT


def _by_number(input: Tensor, grid: Tensor, interpolation_mode: int, padding_mode: int, align_corners: bool) -> Call:
    """The arguments of ``torch.grid_sampler``, which has numbers for the choices."""
    modes, paddings = dict(enumerate(MODES)), dict(enumerate(PADDING_MODES))
    mode, padding = modes.get(interpolation_mode, "unknown"), paddings.get(padding_mode, "unknown")
    return Call(input, grid, mode, padding, align_corners)
