"""Replaces an attribute by name, and puts it back: for samplers that :func:`linearize` cannot see."""

import difflib
import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from torch import nn
from typing_extensions import Self

from . import call_stack

_ABSENT = object()
_LOCK = threading.Lock()


def replace(owner: object, name: str, adapter: object) -> "Replacement":
    """Replace ``owner.name`` by ``adapter``, until ``remove()`` or to the end of a ``with`` block.

    For samplers that :func:`linearize` cannot see: bilinear code of one's own, TorchScript, a compiled extension. The
    adapter takes the arguments of the function that it replaces. On a class, the adapter of a method also takes
    ``self``, and that of a classmethod takes no class; on an object, neither. The replacement holds in all threads.

    Args:
        owner: a Python module, class or object, the one through which the sampler is called:
            ``import warp; replace(warp, "sample", adapter)``.
        name: name of the attribute of ``owner``.
        adapter: the function to put there.

    Returns:
        The :class:`Replacement`.

    Raises:
        TypeError: if ``owner`` is a string, the adapter is not callable, or the attribute does not give back what is
            assigned to it.
        AttributeError: if ``owner`` has no such attribute.

    Warns:
        UserWarning: if other modules bound the function by ``from ... import``: they keep it.

    Example:
        >>> import torch, types
        >>> from lms_geometry import grid_sample_linearized
        >>> warp = types.SimpleNamespace(sample=lambda image, grid: image)
        >>> with replace(warp, "sample", grid_sample_linearized):
        ...     warp.sample(torch.rand(1, 3, 20, 30), torch.zeros(1, 5, 7, 2)).shape
        torch.Size([1, 3, 5, 7])
    """
    return Replacement((owner, name, adapter))


class Replacement:
    """Attributes replaced, ``(owner, name, adapter)`` each, until :meth:`Replacement.remove`; all of them or none."""

    def __init__(self, *replaced: tuple[object, str, object]) -> None:
        for owner, name, adapter in replaced:
            _check(owner, name, adapter)
        _warn_of_other_bindings(replaced)
        self._removed = False
        self._replaced: list[tuple[object, str, object, object]] = []
        with _LOCK:
            try:
                for owner, name, adapter in replaced:
                    own, seen, put = _own(owner, name), getattr(owner, name), _bound_alike(owner, name, adapter)
                    setattr(owner, name, put)
                    # A slot, and what a property sets, is no entry of the object's own, so that what was seen there is
                    # set again.
                    original = own if _own(owner, name) is put else seen
                    self._replaced.append((owner, name, put, original))
                    if not _holds(owner, name, put):
                        raise TypeError(
                            f"{_describe(owner)}.{name} cannot be replaced: it does not give back what is assigned to "
                            "it. Replace the attribute that it is made from"
                        )
            except BaseException:
                self._put_back()
                raise

    def remove(self) -> None:
        """Put back what was there.

        Raises:
            RuntimeError: if it was put back already, or was replaced once more since.
        """
        if self._removed:
            raise RuntimeError("this replacement was removed already")
        with _LOCK:
            for owner, name, put, _ in self._replaced:
                if not _holds(owner, name, put):
                    raise RuntimeError(f"{_describe(owner)}.{name} was replaced again since: remove that one first")
            self._put_back()
        self._removed = True

    def __enter__(self) -> Self:
        if self._removed:
            raise RuntimeError("this replacement was removed: call replace() again")
        return self

    def __exit__(self, *_: object) -> None:
        if not self._removed:
            self.remove()

    def _put_back(self) -> None:
        for owner, name, _, original in reversed(self._replaced):
            # An attribute that was only inherited shows again when the one that hides it is deleted.
            delattr(owner, name) if original is _ABSENT else setattr(owner, name, original)


class GuardedReplacement(Replacement):
    """A :class:`Replacement` whose adapters, once it is removed, only call what was there: some code may keep them."""

    def __init__(self, *replaced: tuple[object, str, Callable[..., Any]]) -> None:
        super().__init__(*((owner, name, self._guarded(owner, name, adapter)) for owner, name, adapter in replaced))

    def _guarded(self, owner: object, name: str, adapter: Callable[..., Any]) -> Callable[..., Any]:
        original: Any = getattr(owner, name, None)  # an owner without it is refused later

        def guarded(*args: object, **kwargs: object) -> object:
            return (original if self._removed else adapter)(*args, **kwargs)

        return guarded


def _holds(owner: object, name: str, put: object) -> bool:
    """Whether an attribute is still what was put there."""
    return _own(owner, name) is put or getattr(owner, name, _ABSENT) is put


def _own(owner: object, name: str) -> object:
    """The attribute that an object itself holds, inherited ones left out; a descriptor is returned as it is."""
    children = owner._modules if isinstance(owner, nn.Module) else {}
    return children.get(name, getattr(owner, "__dict__", {}).get(name, _ABSENT))


def _bound_alike(owner: object, name: str, adapter: object) -> object:
    """The adapter, wrapped so that a class calls it without ``self`` where it called the original so."""
    takes_no_self = isinstance(inspect.getattr_static(owner, name, None), (staticmethod, classmethod))
    return staticmethod(adapter) if inspect.isclass(owner) and takes_no_self else adapter  # type: ignore[arg-type]


def _check(owner: object, name: str, adapter: object) -> None:
    if isinstance(owner, str):
        raise TypeError(f"owner must be the object itself, got its name {owner!r}: import it and pass it")
    if not callable(adapter):
        raise TypeError(f"adapter must be callable, got {type(adapter).__name__}")
    if not hasattr(owner, name):
        close = difflib.get_close_matches(name, dir(owner))
        raise AttributeError(
            f"{_describe(owner)} has no attribute {name!r}"
            + (f"; did you mean {' or '.join(map(repr, close))}?" if close else "")
            + ". Give the module that calls the sampler, and the name it calls it by"
        )


def _warn_of_other_bindings(replaced: Sequence[tuple[object, str, object]]) -> None:
    """Warn before anything is replaced, so that nothing is when warnings are errors."""
    replaced = [place for place in replaced if isinstance(place[0], ModuleType)]
    originals = {id(_own(owner, name)) for owner, name, _ in replaced if _is_code(_own(owner, name))}
    known = {(id(owner), name) for owner, name, _ in replaced}
    # An adapter may call the original by a name in its own module, which is then meant to stay.
    called = {
        (adapter.__globals__.get("__name__"), used)
        for _, _, adapter in replaced
        if inspect.isfunction(adapter)
        for used in adapter.__code__.co_names
    }
    modules = {id(module): (module_name, module) for module_name, module in reversed(sys.modules.items())}
    for module_name, module in modules.values():
        for name, value in list(getattr(module, "__dict__", {}).items()):
            if id(value) in originals and (id(module), name) not in known and (module_name, name) not in called:
                warnings.warn(
                    f"{module_name}.{name} held the same as {', '.join(f'{_describe(o)}.{n}' for o, n, _ in replaced)} "
                    "and was not replaced: replace it too if the sampler is called by that name",
                    stacklevel=call_stack.user_level(),
                )


def _is_code(value: object) -> bool:
    return inspect.isroutine(value) or inspect.isclass(value)


def _describe(owner: object) -> str:
    return getattr(owner, "__name__", type(owner).__name__)
