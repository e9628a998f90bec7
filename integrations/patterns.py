"""The patterns by which a user names calls.

``"stn"`` or ``"backbone.*"`` names submodules, by full name or last part; ``"warp.py"`` or ``"warp.py:31"`` names call
sites; ``"flow_to_grid()"`` names a function. A pattern matches a call if it matches anything on the way to the call.
"""

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from .call_stack import Frame

_NAMES_SHOWN = 20


def check_patterns(argument: str, patterns: object, target: nn.Module | None) -> None:
    """Raise unless patterns are a list of patterns, and those of modules name submodules of the target."""
    if patterns is None:
        return
    if isinstance(patterns, str) or not isinstance(patterns, Sequence) or not all(isinstance(p, str) for p in patterns):
        raise TypeError(f"{argument} must be a list of patterns, such as ['stn'], or None, got {patterns!r}")
    modules = {} if target is None else dict(target.named_modules())
    for pattern in filter(_names_module, patterns):
        if target is None:
            raise ValueError(
                f"{argument} names a submodule, {pattern!r}, but a block has no module to look in: write "
                "linearize(model, ...), or name a call site, 'warp.py:31', or a function, 'warp()'"
            )
        if any(name and _matches_module(pattern, name) for name in modules):
            continue
        # A module that a model holds under two names is listed under the first.
        every_name = dict(target.named_modules(remove_duplicate=False))
        for name, module in modules.items():
            if module is every_name.get(pattern):
                raise ValueError(f"{argument} pattern {pattern!r} is another name of {name!r}: write that")
        names = list(filter(None, modules))
        shown = ", ".join(names[:_NAMES_SHOWN]) + (", ..." if len(names) > _NAMES_SHOWN else "")
        raise ValueError(
            f"{argument} pattern {pattern!r} matches none of the submodules ({shown}). A call site is written "
            "'warp.py:31', a function 'warp()'"
        )


def matching(patterns: Iterable[str], frames: Sequence[Frame], modules: Iterable[str]) -> list[str]:
    """Those of the patterns that name a call with this call stack, made while these modules ran."""
    return [pattern for pattern in patterns if _matches(pattern, frames, modules)]


def _matches(pattern: str, frames: Sequence[Frame], modules: Iterable[str]) -> bool:
    if pattern.endswith("()"):
        return any(fnmatchcase(frame.function, pattern[:-2]) for frame in frames)
    if _names_module(pattern):
        return any(_matches_module(pattern, name) for name in modules)
    file, _, line = pattern.partition(":")
    return any(
        fnmatchcase("/" + Path(frame.path).as_posix(), f"*/{file}") and line in ("", str(frame.line))
        for frame in frames
    )


def _names_module(pattern: str) -> bool:
    return not pattern.endswith("()") and not re.search(r"\.py(:\d+)?$", pattern)


def _matches_module(pattern: str, name: str) -> bool:
    """Whether a pattern names a submodule or one that it is part of."""
    parts = name.split(".")
    owners = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return any(fnmatchcase(owner, pattern) or fnmatchcase(owner.rpartition(".")[2], pattern) for owner in owners)
