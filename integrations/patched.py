"""Puts a patch on the modules of a model, and takes it off.

While a patch is on, a module's class is a subclass whose ``forward`` enters the patch. Nothing is stored on the module
itself, so its ``state_dict``, hooks and replicas are what they were, and going back is a change of class.
"""

import copy
import copyreg
import inspect
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol, SupportsIndex

import torch
from torch import nn

from . import _torch_private, call_stack

_LOCK = threading.RLock()
# The modules of torch that define its layers and wrappers, which call a sampler only through modules of the user's.
_NO_SAMPLERS = ("torch.nn.", _torch_private.COMPILED_MODULES)

_COPIED = (
    "a module in training was copied while a patch of linearize() is on it. The copy, such as one that averages the "
    "weights, is a plain module and samples plainly: linearize() the copy too"
)


class Enters(Protocol):
    """A patch that can run a module's ``forward`` inside it."""

    def around(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        """The ``forward`` of the submodule of that name, inside the patch."""


Layer = tuple[Enters, str]


def put_on(patch: Enters, target: nn.Module) -> list[nn.Module]:
    """Put a patch on a module and its submodules, and return which."""
    modules = {name: module for name, module in target.named_modules() if is_users(module)}
    with _LOCK:
        for name, module in modules.items():
            _set_layers(module, (*_layers(module), (patch, name)))
    return list(modules.values())


def take_off(patch: Enters, modules: Iterable[nn.Module]) -> None:
    """Take a patch off modules, whatever patches came after it."""
    with _LOCK:
        for module in modules:
            if any(layer is patch for layer, _ in _layers(module)):
                _set_layers(module, tuple(layer for layer in _layers(module) if layer[0] is not patch))


def patches_on(target: nn.Module) -> Iterator[Enters]:
    """The patches on a module or its submodules, each once."""
    seen = {id(patch): patch for module in target.modules() for patch, _ in _layers(module)}
    yield from seen.values()


def is_users(module: nn.Module) -> bool:
    """Whether a module may call a sampler itself, in Python."""
    if isinstance(module, torch.jit.ScriptModule):
        return False
    plain = _plain_class(module)
    # A module with a parametrized parameter has a class of torch's, which inherits the user's ``forward``.
    owner = next(base for base in plain.__mro__ if "forward" in vars(base))
    return not all(part.__module__.startswith(_NO_SAMPLERS) for part in (plain, owner))


class _Patched:
    """The first base of a patched module's class."""

    _lms_plain: type[nn.Module]

    def __init_subclass__(cls) -> None:
        """Do not call the other bases, which may keep a register of their subclasses: this one is not for it."""

    def __prepare_scriptable__(self) -> nn.Module:
        """Refuse ``torch.jit.script``, which would script the plain ``forward``."""
        raise RuntimeError("a patched module cannot be scripted: remove() its patch before torch.jit.script()")

    def __reduce_ex__(self, protocol: SupportsIndex) -> str | tuple[Any, ...]:
        """Copy and pickle as a module of the plain class."""
        if self.training and sys._getframe(1).f_code is copy.deepcopy.__code__:  # type: ignore[attr-defined]
            warnings.warn(_COPIED, stacklevel=call_stack.user_level())
        reduced = super().__reduce_ex__(protocol)
        if isinstance(reduced, str):
            return reduced
        make, arguments, *rest = reduced
        if make is copyreg.__newobj__:  # type: ignore[attr-defined]
            # This makes the same object. pickle demands of __newobj__ that the class be the object's own.
            make = self._lms_plain.__new__
        return make, tuple(self._lms_plain if value is type(self) else value for value in arguments), *rest


def _layers(module: nn.Module) -> tuple[Layer, ...]:
    """The patches on a module, each with the name of the module in the patch's target."""
    return vars(type(module)).get("_lms_layers", ())


def _plain_class(module: nn.Module) -> type[nn.Module]:
    """The class that a module has without patches."""
    return vars(type(module)).get("_lms_plain", type(module))


def _set_layers(module: nn.Module, layers: tuple[Layer, ...]) -> None:
    plain = _plain_class(module)
    patched = _patched_class(plain, layers) if layers else plain
    object.__setattr__(module, "__class__", patched)


def _patched_class(plain: type[nn.Module], layers: tuple[Layer, ...]) -> type[nn.Module]:
    own = inspect.getattr_static(plain, "forward")
    forward = plain.forward
    if not inspect.isfunction(own):  # a staticmethod, for one, takes no module
        forward = lambda module, *args, **kwargs: own.__get__(module, plain)(*args, **kwargs)  # noqa: E731
    # The inner patch is the one whose target is nearest to the module.
    for patch, name in sorted(layers, key=lambda layer: len(layer[1].split(".")) if layer[1] else 0):
        forward = patch.around(name, forward)
    body = {
        "__module__": plain.__module__,
        "__qualname__": plain.__qualname__,
        "__doc__": plain.__doc__,
        "forward": forward,
        "_lms_layers": layers,
        "_lms_plain": plain,
    }
    # The metaclass may keep a register too, so it is not called.
    return type.__new__(type(plain), plain.__name__, (_Patched, plain), body)
