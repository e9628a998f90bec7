"""Where a sampler is called from: the Python frames that lead to the call."""

import copy
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from traceback import FrameSummary
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.fx import GraphModule

import lms_geometry

from . import _torch_private

LIBRARY, _HERE, _TORCH = (str(Path(file).parent) + os.sep for file in (lms_geometry.__file__, __file__, torch.__file__))
_HIDDEN = (_HERE, _TORCH)
_CHECKPOINT = torch.utils.checkpoint.__file__
# The two passes of reentrant checkpointing.
_REENTRANT = {getattr(torch.utils.checkpoint.CheckpointFunction, name).__code__ for name in ("forward", "backward")}

# The warnings that were given, as the module warnings notes them.
_WARNED: dict[Any, Any] = {}

# The functions of kornia that sample an image in which the levels of a pyramid lie side by side: samples around a point
# of one level would reach into another. The helpers are called by them.
_PACKED = (
    ("kornia/feature/laf.py", "extract_patches_from_pyramid"),
    ("kornia/feature/sift/scale_space.py", "_sample_gradients"),
)
_PACKED_HELPERS = ("_sample_patches", "_grid_sample_patches")


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a call stack."""

    path: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{_short(self.path)}:{self.line} {self.function}()"

    @property
    def installed(self) -> bool:
        """Whether the line is in an installed package, and not in code of the user's own."""
        return _is_installed(self.path)


@dataclass(frozen=True, slots=True)
class CallStack:
    """The frames that lead to a call, innermost first, without those of torch and of the integrations.

    They end where the patch was entered, by a block or by the first of its modules.
    """

    frames: tuple[Frame, ...]
    checkpointed: bool
    """Whether ``checkpoint()`` will run the call again, in ``backward()``, without entering the patch again."""
    reentrant: bool = False
    """Whether reentrant checkpointing runs the call twice inside of the patch, the first time without gradients."""

    @property
    def in_library(self) -> bool:
        """Whether the library itself makes the call."""
        return bool(self.frames) and self.frames[0].path.startswith(LIBRARY)

    @property
    def samples_packed_image(self) -> bool:
        """Whether the image that is sampled is a pyramid packed into one image."""
        caller = next((frame for frame in self.frames if frame.function not in _PACKED_HELPERS), None)
        return caller is not None and any(
            Path(caller.path).as_posix().endswith(file) and caller.function == function for file, function in _PACKED
        )


def find(outermost: FrameType | None, patch: object, traced: Sequence[FrameSummary]) -> CallStack | None:
    """The call stack of a call that is being made, or ``None`` if a compiled graph makes it.

    What to do with such a call was decided when the graph was traced. Where ``checkpoint()`` will run a call again
    inside of the patch, the frames end at the checkpoint, so that patterns match alike both times.

    Args:
        outermost: the last frame of interest, or ``None``.
        patch: the patch that is asked.
        traced: the frames of the code that ``torch.compile`` traces, if it does. They take the place of Python's.
    """
    frames: list[Frame] = []
    generated = checkpointed = reentrant = False
    entered: int | None = None
    for frame in _frames(outermost):
        code = frame.f_code
        if generated and not traced and _torch_private.COMPILER_FILE in (None, code.co_filename):
            return None
        if not code.co_filename.startswith(_HIDDEN):
            generated = (generated or not frames) and _is_generated(frame)
            frames.append(Frame(code.co_filename, frame.f_lineno or 0, _torch_private.own_name(code.co_name)))
        elif _enters(frame, patch):
            entered = len(frames)
        elif code.co_filename == _CHECKPOINT:
            if entered is not None:
                entered, reentrant = None, code in _REENTRANT
                break
            checkpointed = True
    shown = [frame for frame in traced if not frame.filename.startswith(_HIDDEN)]
    if shown:
        frames = [Frame(f.filename, f.lineno or 0, _torch_private.own_name(f.name)) for f in shown]
        entered = None
    return CallStack(tuple(frames[:entered]), checkpointed, reentrant)


def user_level() -> int:
    """The ``stacklevel`` with which the caller's ``warnings.warn`` names the user's line."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_code.co_filename.startswith((*_HIDDEN, copy.__file__)):
        frame, level = frame.f_back, level + 1
    return level


def warn(message: str, frames: Sequence[Frame]) -> None:
    """Warn as if by the line that makes a call, and once for each line."""
    path, line = (frames[0].path, frames[0].line) if frames else ("<unknown>", 0)
    warnings.warn_explicit(message, UserWarning, path, line, registry=_WARNED)


def trains(outermost: FrameType | None) -> bool:
    """Whether the nearest module in whose method a call is made is in training; outside of any module, yes."""
    for frame in _frames(outermost):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            return module.training
    return True


def _frames(outermost: FrameType | None) -> Iterator[FrameType]:
    """The frames of the caller and of those that called it, up to the outermost."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = None if frame is outermost else frame.f_back


def _enters(frame: FrameType, patch: object) -> bool:
    """Whether a frame is the ``forward`` of a module that a patch is on."""
    return frame.f_code.co_name == "patched_forward" and frame.f_locals.get("self") is patch


def _is_generated(frame: FrameType) -> bool:
    """Whether a frame runs code that torch generated for a graph."""
    return frame.f_code.co_filename.startswith("<") and isinstance(frame.f_locals.get("self"), GraphModule)


@lru_cache(maxsize=1024)
def _is_installed(path: str) -> bool:
    return any(part in ("site-packages", "dist-packages") for part in Path(path).parts)


@lru_cache(maxsize=1024)
def _short(path: str) -> str:
    """A path as seen from the folder of ``sys.path`` that it lies in."""
    found = (root or str(Path.cwd()) for root in sys.path)
    roots = [Path(root) for root in found if path.startswith(root.rstrip(os.sep) + os.sep)]
    return Path(path).relative_to(max(roots, key=lambda root: len(root.parts))).as_posix() if roots else path
