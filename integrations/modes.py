"""The mode by which a patch sees the calls of torch, and the blocks that are open.

A :class:`torch.overrides.TorchFunctionMode` sees every call of ``F.grid_sample``, by whatever name it is called. A
block enters the mode of its patch in one thread; a patch on a module enters it wherever the module runs.
"""

import threading
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import _torch_private, calls

if TYPE_CHECKING:
    from .intercept import Patch

# A tuple: torch before 2.8 cannot compile the look-up of a function in a set.
_BACKWARD = (Tensor.backward, torch.autograd.backward, torch.autograd.grad)


class Mode(TorchFunctionMode):
    """Hands each call to a patch, by what it does: run a backward pass, sample, or anything else.

    Attributes:
        calls_elsewhere: the number of samplings that other tasks made while the block of the patch was open.
    """

    def __init__(self, patch: "Patch", is_block: bool) -> None:
        super().__init__()
        self.patch = patch
        self.is_block = is_block
        self.calls_elsewhere = 0
        self.holds_here = _torch_private.as_constant(lambda: self._holds_here())

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in _BACKWARD:
            return self.patch.run_backward(func, args, kwargs)
        if func not in calls.SAMPLERS:
            return self.patch.see(func, args, kwargs)
        if _DECIDING.now or (self.is_block and not self.holds_here()):
            return func(*args, **kwargs)
        _DECIDING.now = True
        try:
            return self.patch.sample(func, args, kwargs)
        finally:
            _DECIDING.now = False

    def _holds_here(self) -> bool:
        """Whether the code that runs is part of the block, and not another task of its thread."""
        holds = self in _BLOCKS.get()
        self.calls_elsewhere += not holds
        return holds


class _Deciding(threading.local):
    """Whether a patch is making a call in this thread. The patches further out are then not asked."""

    def __init__(self) -> None:
        self.now = False


class _Open(threading.local):
    """The modes of the blocks that are open in this thread, in the order of torch's stack."""

    def __init__(self) -> None:
        self.modes: list[Mode] = []


_DECIDING = _Deciding()
_OPEN = _Open()
# The blocks that the running code is in: a task of asyncio has those that were open where it was made, and its own.
_BLOCKS: ContextVar[tuple[Mode, ...]] = ContextVar("blocks", default=())


def enter_block(mode: Mode) -> None:
    """Put a mode on the stack of this thread, and its block around the code of this task."""
    _BLOCKS.set((*_BLOCKS.get(), mode))
    _OPEN.modes.append(mode)
    mode.__enter__()  # type: ignore[no-untyped-call]


def leave_block(mode: Mode) -> None:
    """Take a mode off the stack. Blocks of other tasks that were entered later lie above it and stay."""
    blocks = list(_BLOCKS.get())
    if mode in blocks:  # a block may be left in another context than it was entered in
        blocks.remove(mode)
    _BLOCKS.set(tuple(blocks))
    above = []
    while (top := _OPEN.modes.pop()) is not mode:
        top.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        above.append(top)
    mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
    for top in reversed(above):
        _OPEN.modes.append(top)
        top.__enter__()  # type: ignore[no-untyped-call]
