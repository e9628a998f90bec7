"""The names of torch that are private, or newer than the oldest version that the package runs with.

Each has a safe answer for a torch without it. No other file of the package has such names, but for
``integrations/_torch_private.py``.

``torch.func`` wraps a tensor once for each transform around a call, and no public function tells whether one of these
transforms takes a derivative. Where a name is gone, the answer is that one does: then samples are drawn that nobody
may need, but no derivative is lost.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

_Untyped = Any  # torch gives its private names no types that last

NAMES = (
    "torch._C._are_functorch_transforms_active",
    "torch._C._functorch.get_unwrapped",
    "torch._C._functorch.is_batchedtensor",
    "torch._C._functorch.maybe_current_level",
    "torch._C._functorch.maybe_get_level",
    "torch._functorch.pyfunctorch.temporarily_pop_interpreter_stack",
)


def _find(path: str) -> _Untyped:
    """The object of a dotted name, or ``None`` if torch has no such name."""
    try:
        return reduce(getattr, path.split(".")[1:], torch)
    except AttributeError:
        return None


_FOUND = tuple(map(_find, NAMES))
_transform_is_active, _unwrapped, _is_batched, _current_level, _level, _outside_innermost = _FOUND

transform_is_active: Callable[[], bool] = _transform_is_active or (lambda: True)


def holds_at_some_level(condition: Callable[[Tensor], bool], tensor: Tensor) -> bool:
    """Whether a condition holds for a tensor as the innermost transform sees it, or as one further out does."""
    if not transform_is_active():
        return condition(tensor)
    if None in _FOUND:
        return True
    if not _is_batched(tensor) and condition(tensor):  # vmap's wrapper has no derivative; what it wraps may have one
        return True
    if _level(tensor) == _current_level():
        tensor = _unwrapped(tensor)
    with _outside_innermost():
        return holds_at_some_level(condition, tensor)


def as_constant(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a function whose result torch.compile is to take as a constant instead of tracing the function.

    The public ``torch.compiler.assume_constant_result`` sets the same mark, but imports the compiler first, which takes
    a second or more. A version of torch that does not know the mark ends its graph at the call: the result is the same
    and slower, and ``fullgraph=True`` raises an error.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@as_constant
def has_autocast(device_type: str) -> bool:
    """Whether a type of device has autocast. Torch before 2.11 cannot compile the question."""
    return torch.amp.is_autocast_available(device_type)
