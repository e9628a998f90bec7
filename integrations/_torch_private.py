"""The names of torch that the integrations use and that are private, or newer than the oldest version they run with.

A version of torch may rename them. So each is looked up when it is needed, and the text beside it says what is done
without it. Where that loses something, :func:`limits` or the row of a call in the report says so.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path
from re import sub
from traceback import FrameSummary
from typing import Any

import torch
from torch import Tensor

from lms_geometry._torch_private import as_constant as as_constant  # the integrations find it here too

_EVAL_FRAME = Path(torch.__file__).parent / "_dynamo" / "eval_frame.py"

# The file whose frames run the graphs that torch.compile made, or None where torch has no such file.
COMPILER_FILE = str(_EVAL_FRAME) if _EVAL_FRAME.is_file() else None

# The modules of torch that define the module which torch.compile wraps around a model. A wrapper from elsewhere is
# patched as a model of the user's would be, which does no harm.
COMPILED_MODULES = "torch._dynamo."


def limits(seeded: bool) -> list[str]:
    """What a patch, with a seed or without, cannot do with this version of torch: a sentence each for the report."""
    lines = []
    if COMPILER_FILE is None:
        lines.append(
            "this version of torch does not tell a graph of torch.compile from one of torch.fx or torch.export: calls "
            "that run in either are left and not counted; linearize the model before it is made into a graph"
        )
    if seeded and _saved_tensor_hooks() is _UNKNOWN:
        lines.append(
            "this version of torch does not say whether checkpoint() will run a call again: every call with a seed "
            "took a number from torch's global generator"
        )
    return lines


_is_exporting = getattr(torch.compiler, "is_exporting", None)


def is_exporting() -> bool:
    """Whether ``torch.export`` makes a graph. Torch before 2.7 does not say, and no is the answer then.

    All that hangs on it is a warning that the graph holds an operator of the library.
    """
    return _is_exporting is not None and _is_exporting()


def no_transforms() -> AbstractContextManager[Any]:
    """Leave the transforms of ``torch.func`` for a while, so that what is drawn is drawn once for all of them.

    Without the name they stay in place. ``vmap`` then raises torch's error for random numbers, which says that its
    argument ``randomness`` allows them.
    """
    try:
        from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    except ImportError:
        return nullcontext()
    return temporarily_clear_interpreter_stack()


def may_run_again() -> bool:
    """Whether hooks on saved tensors are in place, by which checkpointing runs a call again; if unknown, yes."""
    return _saved_tensor_hooks() is not None


_UNKNOWN = object()


def _saved_tensor_hooks() -> object:
    try:
        return torch._C._autograd._top_saved_tensors_default_hooks(False)
    except AttributeError:
        return _UNKNOWN


def traced_frames() -> list[FrameSummary] | None:
    """The frames of the code that ``torch.compile`` traces, which exist in the tracer only, innermost first.

    An empty list means that Python itself runs the code, as in ``torch.export`` with ``strict=False``. ``None`` means
    that torch does not say. A compiled call is then left, since it could be one that the user excluded.
    """
    try:
        return list(reversed(torch._guards.TracingContext.extract_stack()))
    except AttributeError:
        return None


@lru_cache(maxsize=1024)
def own_name(function: str) -> str:
    """The name of a function in its source: torch.compile gives what follows a break of its graph another name.

    Where torch has a new form for that name, the report shows it, and says that a pattern for the function matched no
    call.
    """
    return sub(r"^torch_dynamo_resume_in_(.+)_at_\d+$", r"\1", function)


def version(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place, or ``None`` if torch does not say: it may then have been changed."""
    return getattr(tensor, "_version", None)
