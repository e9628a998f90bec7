"""The threads that do the jobs of the C library: torch's own where they can be had, else threads of Python's.

Torch's are the better ones, because the two then never compete for cores. Every OpenMP library but Microsoft's and
Intel's for Windows starts them by ``GOMP_parallel``. Without it, for example on Windows, threads of Python's are kept
here; ctypes releases the interpreter's lock during a call, so they run side by side.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ctypes import byref, c_uint
from functools import cache
from pathlib import Path

import torch

# The fewest reads for which waking another thread saves time.
_READS_A_THREAD = 1 << 15


def threads_for(reads: int) -> int:
    """The number of threads that are worth waking."""
    return 1 if _forked else max(1, min(torch.get_num_threads(), reads // _READS_A_THREAD))


def run(function: "ctypes._NamedFuncPointer", job: ctypes.Structure, threads: int) -> None:
    """Do a job on a number of threads, each of which takes parts of it until none is left."""
    if threads == 1:
        function(byref(job))
    elif _team is not None:
        _team(function, byref(job), c_uint(threads), c_uint(0))
    else:
        others = [_pool().submit(function, byref(job)) for _ in range(threads - 1)]
        function(byref(job))
        for other in others:
            other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="lms_geometry")


def _find_team() -> "ctypes._NamedFuncPointer | None":
    """``GOMP_parallel`` of the OpenMP library that torch has loaded."""
    if torch.backends.openmp.is_available() and sys.platform != "win32":
        for library in _loaded_libraries():
            if hasattr(library, "GOMP_parallel"):
                return library.GOMP_parallel
    return None


def _loaded_libraries() -> Iterator[ctypes.CDLL]:
    """All that the process shows, and torch's own OpenMP, which on macOS it does not show.

    A library that is not loaded yet is left: a second OpenMP beside torch's would have threads of its own.
    """
    yield ctypes.CDLL(None)
    for path in (Path(torch.__file__).parent / "lib").glob("*omp*"):
        try:
            yield ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_LAZY)
        except OSError:
            continue


def _note_fork() -> None:
    """Remember that this process is a fork: it has none of its parent's threads, for which OpenMP would wait."""
    global _forked
    _forked = True


_team = _find_team()
_forked = False
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
