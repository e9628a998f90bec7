"""Calls on the symbols with which ``torch.fx`` traces a program."""

from collections.abc import Callable, Iterable
from functools import wraps
from itertools import chain
from typing import ParamSpec, TypeVar, cast

from torch.fx import Proxy

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


def one_node(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """Make a call of ``function`` one node of a graph that ``torch.fx`` traces, as calls of torch's functions are.

    A symbol stands for any tensor, so that what the function asks of its arguments has no answer while it is traced.
    """

    @wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        for proxy in _proxies(chain(args, kwargs.values())):
            return cast(_Result, proxy.tracer.create_proxy("call_function", call, args, kwargs))
        return function(*args, **kwargs)

    return call


def _proxies(arguments: Iterable[object]) -> Iterable[Proxy]:
    """The symbols among arguments, also inside of lists, such as boxes by image."""
    for argument in arguments:
        if isinstance(argument, Proxy):
            yield argument
        elif isinstance(argument, (list, tuple)):
            yield from _proxies(argument)
