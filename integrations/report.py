"""The report of a patch: a table of the calls that it saw, what may be wrong with them, and code that it cannot see."""

import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .call_stack import Frame
from .calls import Call
from .patterns import matching

NOTHING_SEEN = (
    "no call of F.grid_sample was seen. Was the code run? A module's patch sees what its forward does, a block what "
    "its own thread does, both a compiled graph only when it is compiled. A sampler of other make needs "
    "replace(module, 'name', adapter)"
)
NONE_SWAPPED = (
    "no call was linearized: every call that was seen was left as it is. Code that samples in another way, by gather, "
    "by indexing or in a compiled extension, is not seen and needs replace(module, 'name', adapter)"
)
NOT_ENTERED = "no call was seen, since the block was never entered: write `with linearize() as patch:`"
SKIPPED_RUNS = (
    "runs in eval() or under no_grad were not looked at: without intercept they are sampled plainly, which gives the "
    "same values"
)
_SHAPES_SHOWN = 3
# The length of the way along a row of the grid, over the diagonal of the box that it stays in. Along a row of an image
# that is warped it is about 1; a list of points, or of lines of points, exceeds this.
_BACK_AND_FORTH = 4.0


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
    """Calls by one line, for one calling function, in one module, with one number of channels and one outcome."""

    frames: Sequence[Frame]
    modules: Sequence[str]
    outcome: Outcome
    calls: int = 0
    shapes: dict[str, None] = field(default_factory=dict)
    suspicion: str = ""
    # The number of swapped calls that were looked at and, for each device, of those whose grid was finite. The latter
    # stays on the device, so that nothing waits for it.
    looked_at: int = 0
    finite: dict[torch.device, Tensor] = field(default_factory=dict)
    # The share of points outside of the image, in the calls numbered 1, 2, 4, 8 and so on.
    outside: list[Tensor] = field(default_factory=list)

    @property
    def caller(self) -> Frame | None:
        """The line that first called the function that samples; for one in a package, the first line of the user's."""
        above = self.frames[1:]
        if self.frames and self.frames[0].installed:
            return next((frame for frame in above if not frame.installed), None)
        return above[0] if above else None

    def look(self, call: Call) -> None:
        """Take note of what the arguments of a swapped call say of it."""
        grid = call.grid.detach()
        if not _can_be_read(grid):
            return
        self.looked_at += 1
        # Zero times NaN or infinity is NaN. A sum of the values themselves overflows in half precision.
        self.finite[grid.device] = self.finite.get(grid.device, 0) + (0 * grid).sum().isfinite()
        if self.looked_at == 1:
            self.suspicion = _suspicion(call.input, grid)
        if self.looked_at & (self.looked_at - 1) == 0:
            self.outside.append((grid.abs() > 1).any(-1).float().mean())

    def faults(self, masked: bool) -> Iterator[str]:
        """Sentences on calls that were swapped but do not read an image as the linearized sampler expects."""
        if self.suspicion:
            yield self.suspicion
        if broken := self.looked_at - sum(int(finite) for finite in self.finite.values()):
            yield (
                f"its grid was NaN or infinite somewhere in {broken} of {self.looked_at} calls. The values there are "
                "those of the padding, where F.grid_sample with zero padding gives NaN"
            )
        outside = sum(map(float, self.outside)) / max(len(self.outside), 1)
        if masked and outside > 0.5:
            yield (
                f"{outside:.0%} of its points lie outside of the image, and the mask leaves the samples there out of "
                "the fit. The border of the image then gives no gradient, as where a patch is pasted into a canvas: "
                "use mask_out_of_bounds=False"
            )


@dataclass
class Table:
    """The rows of a report. Threads may share one."""

    rows: dict[tuple[object, ...], Row] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, frames: Sequence[Frame], modules: Sequence[str], call: Call | None, outcome: Outcome) -> None:
        """Count one call, whose arguments are ``None`` while it is compiled."""
        traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        row = Row(frames, modules, outcome)
        channels = call.input.shape[1] if call and not traced and call.input.dim() > 1 else None
        shapes = "traced" if traced else f"{tuple(call.input.shape)}, {tuple(call.grid.shape)}" if call else "compiled"
        caller = (above := row.caller) and (above.path, above.function)
        with self.lock:
            row = self.rows.setdefault((frames[:1], caller, tuple(modules[-1:]), channels, outcome), row)
            row.calls += 1
            row.shapes.setdefault(shapes)
            if call and outcome.swap and not traced:
                row.look(call)

    def none_swapped(self) -> bool:
        """Whether there were calls that no pattern of the user's excluded, and none was swapped."""
        with self.lock:
            outcomes = [row.outcome for row in self.rows.values()]
        return not any(outcome.swap for outcome in outcomes) and not all(outcome.by_pattern for outcome in outcomes)

    def lines(self, masked: bool) -> Iterator[str]:
        """The table, and below it a sentence for each fault of a row, with a pattern that excludes the row."""
        with self.lock:
            rows = list(self.rows.values())
        # The outcome comes first: it is what is looked for, and a narrow window cuts the end of a line.
        cells = [("calls", "outcome", "call site", "image, grid")]
        cells += [(str(r.calls), str(r.outcome), self._site(r, rows), _describe_shapes(r)) for r in rows]
        widths = [max(len(row[i]) for row in cells) for i in range(3)]
        for calls, outcome, site, shapes in cells if rows else ():
            yield f"{calls:>{widths[0]}}  {outcome:<{widths[1]}}  {site:<{widths[2]}}  {shapes}"
        for row in rows:
            for fault in row.faults(masked):
                yield f"{self._site(row, rows)}: {fault}{_hint(row, rows) if fault is row.suspicion else ''}"

    @staticmethod
    def _site(row: Row, rows: Sequence[Row]) -> str:
        """The line that samples. Its caller is named if the line is in a package or has several callers."""
        site = str(row.frames[0]) if row.frames else "<unknown>"
        callers = {other.caller for other in rows if other.frames[:1] == row.frames[:1]}
        if row.caller and (row.frames[0].installed or len(callers) > 1):
            site += f" from {row.caller}"
        return site + (f" in {row.modules[-1]!r}" if row.modules else "")


def _suspicion(input: Tensor, grid: Tensor) -> str:
    """Why the image of a call may be no image, or an empty string."""
    channels = input.shape[1]
    if any(_runs_back_and_forth(grid, axis) for axis in (1, 2)):
        return (
            "its grid runs back and forth over the image. If it is a list of points, whose neighbours are anywhere, "
            "the footprints of its samples mean nothing: "
        )
    if channels == 2:
        return "an image of 2 channels may be a displacement field or a map of coordinates, which sampling blurs: "
    if channels == 1 and input.requires_grad:
        return "an image of 1 channel that carries a gradient may be a map of depths, costs or offsets: "
    return ""


def _runs_back_and_forth(grid: Tensor, axis: int) -> bool:
    if grid.shape[axis] < 2 or grid.numel() == 0:
        return False
    way = grid.diff(dim=axis).norm(dim=-1).sum(axis)
    box = (grid.amax(axis) - grid.amin(axis)).norm(dim=-1)
    return bool((way / box).nanmedian() > _BACK_AND_FORTH)


def _hint(row: Row, rows: Sequence[Row]) -> str:
    """How to exclude a row by a pattern that matches no other row that is swapped."""
    others = [other for other in rows if other is not row and other.outcome.swap]
    lines = [f"{Path(frame.path).name}:{frame.line}" for frame in row.frames]
    functions = [f"{frame.function}()" for frame in row.frames if frame.function.isidentifier()]
    for pattern in (*reversed(row.modules), *lines, *functions):
        if not any(matching([pattern], other.frames, other.modules) for other in others):
            return f"exclude=[{pattern!r}] leaves it plain"
    return "to leave it plain, call it from a function of its own, and exclude that"


def _can_be_read(tensor: Tensor) -> bool:
    """Whether a tensor has values that can be read, which it has not inside ``torch.func`` or on the meta device."""
    if type(tensor) is not Tensor or tensor.is_meta or tensor.numel() == 0:
        return False
    try:
        tensor.data_ptr()
    except RuntimeError:
        return False
    return True


def _describe_shapes(row: Row) -> str:
    """The first few shapes, in the order they came."""
    shown = list(row.shapes)[:_SHAPES_SHOWN]
    more = len(row.shapes) - len(shown)
    return "; ".join(shown) + (f"; {more} more" if more else "")


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
