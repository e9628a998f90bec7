"""Finds bilinear samplers while code runs, and swaps them for the linearized one."""

import contextlib
import functools
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from lms_geometry.checks import check_sampling
from lms_geometry.config import LinearizedSampling
from lms_geometry.sampling import grid_sample_linearized

from . import _torch_private, call_stack, calls, modes, patched, patterns, report
from .draws import Draws
from .report import Outcome


def linearize(
    target: nn.Module | None = None,
    *,
    sampling: LinearizedSampling | None = None,
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    seed: int | None = None,
) -> "Patch":
    """Give code that samples with ``F.grid_sample`` the linearized gradient, without a change to that code.

    Without a target the patch is a block: it holds inside ``with linearize():``, in that thread and, under ``asyncio``,
    in that task. With a target it holds wherever that module runs, also in the threads of ``DataParallel``, until
    ``patch.remove()`` or the end of a ``with`` block.

    A call is swapped if it is bilinear, its image is 4-D, and its grid carries a gradient and is two or more points
    high and wide. Any other call runs as it is, bit for bit; :meth:`Patch.report` says why.

    Convention:
        - a pattern ``"stn"`` or ``"backbone.*"`` names submodules of the target, by full name or last part;
          ``"warp.py"`` or ``"warp.py:31"`` names a call site; ``"flow_to_grid()"`` names a function. A call matches if
          the module, site or function is anywhere on the way to it; inside ``torch.compile`` or ``checkpoint()``, a
          site or function must lie within the compiled or checkpointed part. ``exclude`` wins over ``include``
        - a model must be evaluated on the values that it was trained on. So under ``no_grad`` fixed points, which the
          sampling as it comes has, are swapped in wherever the same line did not have a grid without gradient before;
          drawn samples only where ``include`` names the call, whether or not its grid carries a gradient
        - the footprint of a sample comes from its neighbours in the grid. Exclude lists of points that are folded into
          a grid, as in deformable attention: they look like any other grid, but their neighbours are anywhere
        - a block in a generator also holds between its values, in the code that asks for them
        - where two patches meet, the inner one decides and reports. A second ``linearize`` of the same module takes the
          place of the first
        - with ``sampling.intercept=False`` a module in ``eval()`` or under ``no_grad`` runs as if there were no patch:
          its values are the same
        - a copy of a patched module, by ``deepcopy``, ``pickle`` or ``torch.save``, is a plain module. A module that
          was saved whole needs ``weights_only=False`` to load
        - ``checkpoint()`` runs its part again in ``backward()``, where only the patches of modules inside that part
          hold. So a patch on a module swaps the calls of a checkpointed submodule, and leaves those of a checkpointed
          function; a block leaves both. Reentrant checkpointing computes its first pass without gradients, so that no
          call tells whether its grid will carry one: all that no pattern excludes are swapped, in both passes and with
          the same noise, which takes checkpointing's ``preserve_rng_state=True``

    Args:
        target: the module, or ``None`` for a block.
        sampling: settings of the method; :class:`LinearizedSampling` as it comes if ``None``.
        include: patterns of the only calls to swap; all if ``None``.
        exclude: patterns of calls to leave alone.
        seed: for drawn samples, the seed of the noise, which is then the same in every run and leaves torch's global
            generator alone. Only under hooks on saved tensors, such as checkpointing's, each call takes one number from
            that generator. A compiled graph takes no seed. If ``None``, noise comes from the global generator.

    Returns:
        The :class:`Patch`.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if the target is TorchScript, which cannot be reached, a pattern names none of its submodules, or a
            seed is given for fixed points.

    Example:
        >>> import torch.nn.functional as F
        >>> image, theta = torch.rand(2, 3, 20, 30), torch.eye(2, 3).repeat(2, 1, 1).requires_grad_()
        >>> with linearize() as patch:
        ...     grid = F.affine_grid(theta, (2, 3, 5, 7), align_corners=False)
        ...     out = F.grid_sample(image, grid, align_corners=False)
        >>> out.shape, "swapped" in patch.report()
        (torch.Size([2, 3, 5, 7]), True)
    """
    return Patch(target, sampling, include, exclude, seed)


class Patch:
    """What :func:`linearize` returns: a context manager that can be asked what it saw, and removed.

    Adapters that know the Jacobian of a grid override :meth:`jacobian`, and :meth:`see` to learn it.
    """

    def __init__(
        self,
        target: nn.Module | None,
        sampling: LinearizedSampling | None,
        include: Sequence[str] | None,
        exclude: Sequence[str] | None,
        seed: int | None,
    ) -> None:
        _check(target, sampling, include, exclude, seed)
        self.sampling = LinearizedSampling() if sampling is None else sampling
        self._target = target
        self._include, self._exclude = None if include is None else tuple(include), tuple(exclude or ())
        self._matched: set[str] = set()
        self._table = report.Table()
        self._thread = _Thread()
        self._mode = modes.Mode(self, is_block=target is None)
        self._draw = Draws(seed)
        # A compiler cannot trace the Python stack, by which a call is judged, so it takes the answer as a constant.
        self._is_swapped = _torch_private.as_constant(lambda *call: self._judge(*call))
        self._lines_without_gradient: set[tuple[call_stack.Frame, ...]] = set()
        self._skipped_runs = False
        self._entered = target is not None
        self._removed = ""
        if target is not None:
            for patch in patched.patches_on(target):
                if isinstance(patch, Patch) and patch._target is target:
                    patch._take_off("another linearize() of the same module took its place")
            self._patched = patched.put_on(self, target)

    def report(self) -> str:
        """A table of the calls seen: how often, where from, shapes, swapped or left alone and why; and what is unseen.

        A call in a compiled graph is counted when the graph is compiled, not when it runs, without its shapes.
        """
        lines = list(self._table.lines(self.sampling.mask_out_of_bounds))
        if self._table.none_swapped():
            lines.append(report.NONE_SWAPPED)
        if self._skipped_runs:
            lines.append(report.SKIPPED_RUNS)
        elif not lines:
            lines.append(report.NOTHING_SEEN if self._entered else report.NOT_ENTERED)
        if calls := self._mode.calls_elsewhere:
            lines.append(f"{calls} calls were made by other tasks than the one that entered the block, and left")
        lines += [f"pattern {pattern!r} matched no call" for pattern in self._unmatched()]
        lines += report.unreachable(self._target)
        lines += _torch_private.limits(self._draw.seeded)
        return "\n".join(lines)

    def remove(self) -> None:
        """Take the patch off its module, which is then as it was.

        Raises:
            RuntimeError: if it is off already, or is a block's.

        Warns:
            UserWarning: if a pattern matched no call, or if there were calls and none was linearized.
        """
        if self._target is None:
            raise RuntimeError("a block's patch ends with its block: there is nothing to remove")
        if self._removed:
            raise RuntimeError(f"this patch is off already: {self._removed}")
        self._take_off("it was removed")
        if self._table.none_swapped():
            warnings.warn(f"{report.NONE_SWAPPED}. patch.report() lists the calls", stacklevel=2)
        self._warn_of_unmatched()

    def __enter__(self) -> Self:
        if self._removed:
            raise RuntimeError(f"this patch is off: {self._removed}. Call linearize() again")
        if self._target is None:
            block = sys._getframe(1)
            while block.f_code.co_filename == contextlib.__file__ and block.f_back:  # ExitStack.enter_context()
                block = block.f_back
            self._entered = True
            self._thread.blocks.append(block)
            modes.enter_block(self._mode)
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *_: object) -> None:
        if self._target is None:
            modes.leave_block(self._mode)
            self._thread.blocks.pop()
        elif self._removed:
            return
        else:
            self._take_off("its block ended")
        if exc_type is None:
            self._warn_of_unmatched()

    def jacobian(self, input: Tensor, grid: Tensor, align_corners: bool) -> Tensor | None:  # noqa: ARG002
        """The Jacobian that ``grid_sample_linearized`` takes, or ``None`` for finite differences."""
        return None

    def see(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> object:
        """Make a call of torch that samples nothing."""
        return func(*args, **kwargs)

    def sample(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """Make a call of a sampler, swapped or as it is."""
        call = calls.read_call(func, args, kwargs)
        if not (isinstance(call.input, Tensor) and isinstance(call.grid, Tensor)):  # a proxy of torch.fx, or a mistake
            return func(*args, **kwargs)
        jacobian = self.jacobian(call.input, call.grid, bool(call.align_corners))
        # A compiled graph is used again where these arguments are the same, so they hold all that decides.
        if not self._is_swapped(
            self._include,
            self._exclude,
            self.sampling.intercept,
            self.sampling.is_drawn,
            self._draw.seeded,
            calls.skip_reason(call, jacobian),
            jacobian is not None,
            tuple(self._thread.running),
            None if torch.compiler.is_compiling() else call,
        ):
            return func(*args, **kwargs)
        noise = None
        if self.sampling.is_drawn:
            noise = self._draw(self.sampling, call.grid, runs_again=self._thread.reentrant)
        sampled = grid_sample_linearized(*call, sampling=self.sampling, jacobian=jacobian, noise=noise)
        return sampled.contiguous()

    def run_backward(self, func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> object:
        """Make a call that runs checkpointed modules again, outside of the mode: they enter it anew."""
        running, self._thread.running = self._thread.running, []
        try:
            return func(*args, **kwargs)
        finally:
            self._thread.running = running

    def around(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The ``forward`` of the submodule of that name, inside the patch."""

        @functools.wraps(forward)
        def patched_forward(module: nn.Module, *args: object, **kwargs: object) -> object:
            running = self._thread.running
            # Once the patch is removed, only a copy that some code made in its own way comes here.
            if self._removed or (not running and self._skips_run(module)):
                return forward(module, *args, **kwargs)
            running.append((name, module.training))
            try:
                if len(running) > 1:
                    return forward(module, *args, **kwargs)
                with self._mode:
                    return forward(module, *args, **kwargs)
            finally:
                running.pop()

        return patched_forward

    def _skips_run(self, module: nn.Module) -> bool:
        """Whether a run of a module needs no look: no gradient is asked for, and values would not change."""
        idle = not self.sampling.intercept and not (module.training and torch.is_grad_enabled())
        if idle and not torch.compiler.is_compiling():
            self._skipped_runs = True
        return idle

    def _judge(
        self,
        include: Sequence[str] | None,
        exclude: Sequence[str],
        intercept: bool,
        is_drawn: bool,
        seeded: bool,
        skip_reason: str,
        exact: bool,
        running: Sequence[tuple[str, bool]],
        call: calls.Call | None,
    ) -> bool:
        """Decide by its origin, and by what is known of it, whether a call is swapped; count it.

        The call itself is ``None`` while it is compiled, since its tensors are then no constants.
        """
        block = self._thread.blocks[-1] if self._thread.blocks else None
        traced = _torch_private.traced_frames() if call is None else []
        stack = call_stack.find(block, self, traced or ())
        if stack is None or stack.in_library:
            return False
        modules = [name for name, _ in running if name]
        included = patterns.matching(include or (), stack.frames, modules)
        excluded = patterns.matching(exclude, stack.frames, modules)
        self._matched.update(included, excluded)
        self._thread.reentrant = stack.reentrant
        if skip_reason == calls.NO_GRADIENT and stack.reentrant:
            skip_reason = "" if intercept else _FIRST_PASS
        if skip_reason == calls.NO_GRADIENT:
            line = stack.frames[:1]
            if torch.is_grad_enabled():
                self._lines_without_gradient.add(line)
            evaluates = not (is_drawn or torch.is_grad_enabled() or line in self._lines_without_gradient)
            if intercept and (included or evaluates):
                skip_reason = ""  # a model is evaluated on such values as it was trained on
        outcome = Outcome(True, "exact Jacobian" if exact else "")
        if traced is None:
            outcome = Outcome(False, "this version of torch does not say where compiled code makes a call")
        elif stack.checkpointed:
            outcome = Outcome(False, "inside checkpoint(), which would run it again without this patch")
        elif skip_reason:
            outcome = Outcome(False, skip_reason)
        elif excluded:
            outcome = Outcome(False, f"excluded by {excluded[0]!r}", by_pattern=True)
        elif include is not None and not included:
            outcome = Outcome(False, "not included", by_pattern=True)
        elif stack.samples_packed_image:
            outcome = Outcome(False, "a pyramid packed into one image, see lms_geometry.integrations.kornia")
        elif not intercept and not (running[-1][1] if running else call_stack.trains(block)):
            outcome = Outcome(False, "eval() without intercept, same value")
        if outcome.swap and call is None and seeded:
            raise RuntimeError(_SEED_IN_GRAPH)
        self._table.add(stack.frames, modules, call, outcome)
        if outcome.swap and call is not None and call.align_corners is None:
            call_stack.warn(_ALIGN_CORNERS, stack.frames)
        if outcome.swap and (_torch_private.is_exporting() or torch.jit.is_tracing()):  # type: ignore[attr-defined, no-untyped-call]
            call_stack.warn(_IN_GRAPH, stack.frames)
        return outcome.swap

    def _take_off(self, why: str) -> None:
        patched.take_off(self, self._patched)
        self._removed = why

    def _unmatched(self) -> list[str]:
        return [pattern for pattern in (*(self._include or ()), *self._exclude) if pattern not in self._matched]

    def _warn_of_unmatched(self) -> None:
        if unmatched := self._unmatched():
            warnings.warn(f"{unmatched} matched no call: patch.report() shows the calls there were", stacklevel=3)


# The warning of F.grid_sample itself.
_ALIGN_CORNERS = (
    "Default grid_sample and affine_grid behavior has changed to align_corners=False since 1.3.0. Please specify "
    "align_corners=True if the old behavior is desired. See the documentation of grid_sample for details."
)
_IN_GRAPH = (
    "a call that linearize() swapped is being traced or exported. The graph holds an operator of lms_geometry instead "
    "of grid_sample from now on, and a program that loads it must import lms_geometry first. To have a graph that "
    "samples plainly, remove the patch before"
)
_FIRST_PASS = "reentrant checkpointing, or its first pass, without a gradient: the same value"
_SEED_IN_GRAPH = (
    "linearize(seed=...) cannot be used with torch.compile or torch.export, since a graph holds no generator: leave "
    "the seed out and call torch.manual_seed()"
)


class _Thread(threading.local):
    """The modules of a patch that run in one thread, by name and whether in training, and its blocks there.

    ``reentrant`` says of the latest call whether reentrant checkpointing makes it.
    """

    def __init__(self) -> None:
        self.running: list[tuple[str, bool]] = []
        self.blocks: list[FrameType] = []
        self.reentrant = False


def _check(target: object, sampling: object, include: object, exclude: object, seed: object) -> None:
    if target is not None and not isinstance(target, nn.Module):
        raise TypeError(
            f"target must be a torch.nn.Module or None, got {type(target).__name__}: for other code use the block "
            "`with linearize():`, for one function replace(module, 'name', adapter)"
        )
    if isinstance(target, torch.jit.ScriptModule):
        raise ValueError(
            "target must not be TorchScript, whose samplers cannot be reached: linearize the Python module it was made "
            "from, or replace(module, 'name', adapter) what calls it"
        )
    check_sampling(sampling)
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise TypeError(f"seed must be an int or None, got {seed!r}")
    if seed is not None and not check_sampling(sampling).is_drawn:
        raise ValueError(
            f"seed must be None for a sampling with fixed points, which draws nothing, got {seed}: leave it out, or "
            "pass a sampling that draws, such as LinearizedSampling.paper()"
        )
    patterns.check_patterns("include", include, target)
    patterns.check_patterns("exclude", exclude, target)
