"""Where a sampler is called from: the call stack, the patterns a user names calls by, and the table of what was seen.

A pattern has one of three forms. ``"stn"`` or ``"backbone.*"`` names submodules, by full name or last part;
``"warp.py"`` or ``"warp.py:31"`` names call sites, ``"flow_to_grid()"`` a function, anywhere on the way to the call.
"""

import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from types import FrameType

import torch
from torch import nn

import lms_geometry

LIBRARY, HERE, _TORCH = (str(Path(file).parent) + os.sep for file in (lms_geometry.__file__, __file__, torch.__file__))
_HIDDEN = (HERE, _TORCH)
_COMPILED = str(Path(_TORCH) / "_dynamo" / "eval_frame.py")
_CHECKPOINT = str(Path(_TORCH) / "utils" / "checkpoint.py")
_INSTALLED = ("site-packages", "dist-packages")
_SHAPES_SHOWN = 3
_NAMES_SHOWN = 20

# Where kornia lays the levels of a pyramid side by side in one image: samples around a point would reach other levels.
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


def call_stack(outermost: FrameType | None, patch: object) -> list[Frame] | None:
    """The Python frames that lead to this call, innermost first, without torch's and without this package's.

    They end where the patch was entered: by a block, or by the first of its modules. What checkpointing will run again
    ends at the checkpoint, so that its calls are told apart in the same way then. ``None`` if the call is part of a
    compiled graph that runs: what to do with it was decided when it was traced.

    Args:
        outermost: the last frame of interest, or ``None``.
        patch: the patch that is asked.
    """
    stack: list[Frame] = []
    end: int | None = None
    for frame in _frames(outermost):
        code = frame.f_code
        if code.co_filename == _COMPILED and stack and all(f.path.startswith("<eval_with_key>") for f in stack):
            return None
        if not code.co_filename.startswith(_HIDDEN):
            stack.append(Frame(code.co_filename, frame.f_lineno or 0, _own_name(code.co_name)))
        elif _enters(frame, patch):
            end = len(stack)
        elif code.co_filename == _CHECKPOINT and end is not None:
            return stack
    return stack[:end]


def in_checkpoint(outermost: FrameType | None, patch: object) -> bool:
    """Whether checkpointing will run this call again, in ``backward()``, and not enter the patch again."""
    for frame in _frames(outermost):
        if _enters(frame, patch):
            return False
        if frame.f_code.co_filename == _CHECKPOINT:
            return True
    return False


def _frames(outermost: FrameType | None) -> Iterator[FrameType]:
    """The frames of the caller and of those that called it, up to the outermost."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = None if frame is outermost else frame.f_back


def _enters(frame: FrameType, patch: object) -> bool:
    """Whether a frame is the ``forward`` of a module that a patch is on."""
    return frame.f_code.co_name == "patched_forward" and frame.f_locals.get("self") is patch


def traced_call_stack() -> list[Frame]:
    """The same while ``torch.compile`` traces, when the frames of the traced code exist only in the tracer."""
    summary = torch._guards.TracingContext.extract_stack()
    frames = [frame for frame in reversed(summary) if not frame.filename.startswith(_HIDDEN)]
    return [Frame(frame.filename, frame.lineno or 0, _own_name(frame.name)) for frame in frames]


def _own_name(function: str) -> str:
    """A function's name: what follows a break of the graph is compiled under another."""
    return re.sub(r"^torch_dynamo_resume_in_(.+)_at_\d+$", r"\1", function)


def caller_trains(outermost: FrameType | None) -> bool:
    """Whether the nearest module in whose method the call was made is in training; outside of any, yes."""
    for frame in _frames(outermost):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            return module.training
    return True


def check_patterns(argument: str, patterns: object, target: nn.Module | None) -> None:
    """Raise unless patterns are a list of patterns, and those of modules name submodules of the target."""
    if patterns is None:
        return
    if isinstance(patterns, str) or not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f"{argument} must be a list of patterns, such as ['stn'], or None, got {patterns!r}")
    names = [] if target is None else [name for name, _ in target.named_modules() if name]
    for pattern in filter(_names_module, patterns):
        if target is None:
            raise ValueError(
                f"{argument} names a submodule, {pattern!r}, but a block has no module to look in: write "
                "linearize(model, ...), or name a call site, 'warp.py:31', or a function, 'warp()'"
            )
        if not any(_matches_module(pattern, name) for name in names):
            named = _submodule(target, pattern)
            for name, module in target.named_modules():
                if module is named:
                    raise ValueError(f"{argument} pattern {pattern!r} is another name of {name!r}: write that")
            shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
            raise ValueError(
                f"{argument} pattern {pattern!r} matches none of the submodules ({shown}). A call site is written "
                "'warp.py:31', a function 'warp()'"
            )


def matches(pattern: str, stack: Sequence[Frame], modules: Iterable[str]) -> bool:
    """Whether a pattern names a call with this stack, made while these modules ran."""
    if pattern.endswith("()"):
        return any(fnmatchcase(frame.function, pattern[:-2]) for frame in stack)
    if _names_module(pattern):
        return any(_matches_module(pattern, name) for name in modules)
    file, _, line = pattern.partition(":")
    return any(
        fnmatchcase("/" + Path(frame.path).as_posix(), f"*/{file}") and line in ("", str(frame.line)) for frame in stack
    )


def samples_packed_image(stack: Sequence[Frame]) -> bool:
    """Whether the image sampled is a pyramid packed into one image."""
    caller = next((frame for frame in stack if frame.function not in _PACKED_HELPERS), None)
    return caller is not None and any(
        Path(caller.path).as_posix().endswith(file) and caller.function == function for file, function in _PACKED
    )


def unreachable(target: nn.Module | None) -> Iterator[str]:
    """Lines on what may sample unseen, in a model and among the functions of all loaded modules."""
    scripted = "."
    for name, module in () if target is None else target.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            if not name.startswith(scripted) and _samples(module):
                yield f"cannot be seen: submodule {name!r} is TorchScript; use the Python module it was made from"
                scripted = name + "."
        elif "forward" in vars(module) and not type(module).__module__.startswith("torch."):
            what = f"submodule {name!r}" if name else "the module"
            yield (
                f"may not be seen when called on its own: {what} has a forward of its own set on it; linearize() "
                "before that is set, or use a block"
            )
    for module_name, python_module in sorted(sys.modules.items()):
        if module_name.partition(".")[0] not in ("torch", "__mp_main__"):
            for name, value in list(getattr(python_module, "__dict__", {}).items()):
                if issubclass(type(value), torch.jit.ScriptFunction) and _samples(value):
                    yield (
                        f"cannot be seen: function {module_name}.{name} is TorchScript; if it runs here, it keeps its "
                        f"own gradient: replace({module_name}, {name!r}, adapter)"
                    )


def _submodule(target: nn.Module, name: str) -> nn.Module | None:
    try:
        return target.get_submodule(name)
    except AttributeError:
        return None


def _names_module(pattern: str) -> bool:
    return not pattern.endswith("()") and not re.search(r"\.py(:\d+)?$", pattern)


def _matches_module(pattern: str, name: str) -> bool:
    """Whether a pattern names a submodule or one that it is part of."""
    parts = name.split(".")
    owners = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return any(fnmatchcase(owner, pattern) or fnmatchcase(owner.rpartition(".")[2], pattern) for owner in owners)


def _samples(scripted: object) -> bool:
    return "aten::grid_sampler" in str(getattr(scripted, "inlined_graph", ""))


@dataclass
class Table:
    """Counts of calls by call site, module and outcome. Threads may share one."""

    rows: dict[tuple[str, str], "Row"] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, stack: Sequence[Frame], module: str, shapes: str, outcome: str) -> None:
        """Count one call."""
        site = str(stack[0]) if stack else "<unknown>"
        if stack and _installed(stack[0].path):
            caller = next((frame for frame in stack if not _installed(frame.path)), None)
            site += f" from {caller}" if caller else ""
        site += f" in {module!r}" if module else ""
        with self.lock:
            row = self.rows.setdefault((site, outcome), Row())
            row.calls += 1
            row.shapes.setdefault(shapes)

    def __str__(self) -> str:
        with self.lock:
            cells = [
                (str(row.calls), site, row.describe_shapes(), outcome) for (site, outcome), row in self.rows.items()
            ]
        cells.insert(0, ("calls", "call site", "image, grid", "outcome"))
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        return "\n".join(
            f"{calls:>{widths[0]}}  {site:<{widths[1]}}  {shapes:<{widths[2]}}  {outcome}"
            for calls, site, shapes, outcome in cells
        )


@dataclass
class Row:
    """How often, and the shapes in the order they came."""

    calls: int = 0
    shapes: dict[str, None] = field(default_factory=dict)

    def describe_shapes(self) -> str:
        """The first few shapes."""
        shown = list(self.shapes)[:_SHAPES_SHOWN]
        more = len(self.shapes) - len(shown)
        return "; ".join(shown) + (f"; {more} more" if more else "")


def _installed(path: str) -> bool:
    return any(part in _INSTALLED for part in Path(path).parts)


@lru_cache(maxsize=1024)
def _short(path: str) -> str:
    """A path as seen from where Python found it."""
    found = (root or str(Path.cwd()) for root in sys.path)
    roots = [Path(root) for root in found if path.startswith(root.rstrip(os.sep) + os.sep)]
    return Path(path).relative_to(max(roots, key=lambda root: len(root.parts))).as_posix() if roots else path
