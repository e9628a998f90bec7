"""What a patch did: the table of the calls that it saw, and the code that it cannot see."""

import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import nn

_SHAPES_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a patch does with a call: swap it for the linearized sampler or leave it, with a word on it."""

    swap: bool
    reason: str = ""
    by_pattern: bool = False  # whether it is left because the user's patterns say so

    def __str__(self) -> str:
        if self.swap:
            return f"swapped, {self.reason}" if self.reason else "swapped"
        return f"left: {self.reason}"


@dataclass
class Row:
    """How often a call was made, and the shapes in the order they came."""

    calls: int = 0
    shapes: dict[str, None] = field(default_factory=dict)

    def describe_shapes(self) -> str:
        """The first few shapes."""
        shown = list(self.shapes)[:_SHAPES_SHOWN]
        more = len(self.shapes) - len(shown)
        return "; ".join(shown) + (f"; {more} more" if more else "")


@dataclass
class Table:
    """Counts of calls by call site and outcome. Threads may share one."""

    rows: dict[tuple[str, Outcome], Row] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, site: str, shapes: str, outcome: Outcome) -> None:
        """Count one call."""
        with self.lock:
            row = self.rows.setdefault((site, outcome), Row())
            row.calls += 1
            row.shapes.setdefault(shapes)

    def none_swapped(self) -> bool:
        """Whether there were calls that no pattern of the user's excluded, and none was swapped."""
        with self.lock:
            outcomes = [outcome for _, outcome in self.rows]
        return not any(outcome.swap for outcome in outcomes) and not all(outcome.by_pattern for outcome in outcomes)

    def __str__(self) -> str:
        with self.lock:
            cells = [("calls", "call site", "image, grid", "outcome")]
            cells += [
                (str(r.calls), site, r.describe_shapes(), str(outcome)) for (site, outcome), r in self.rows.items()
            ]
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        return "\n".join(
            f"{calls:>{widths[0]}}  {site:<{widths[1]}}  {shapes:<{widths[2]}}  {outcome}"
            for calls, site, shapes, outcome in cells
        )


def unreachable(target: nn.Module | None) -> Iterator[str]:
    """Sentences on what may sample unseen, in a model and among the functions of all loaded modules."""
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


def _samples(scripted: object) -> bool:
    return "aten::grid_sampler" in str(getattr(scripted, "inlined_graph", ""))
