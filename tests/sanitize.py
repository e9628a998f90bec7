"""Build the C kernel with sanitizers, and run its tests, a fuzzer and a test of threads: ``make sanitize``.

The address and the undefined-behaviour sanitizer watch the tests and the fuzzer, in a process of Python that has
GCC's runtime library loaded before all others. The thread sanitizer watches ``threads.c``, which has no Python. Linux
and GCC are needed. Loaded by pytest as a plugin, this module puts the library that was built in the backend's place.
"""

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from runpy import run_path

TESTS = Path(__file__).parent
BACKENDS = TESTS.parent / "lms_geometry" / "backends"
LIBRARY = "LMS_GEOMETRY_SANITIZED"
WATCHED = ("test_ties.py", "test_area_cpu.py", "test_backends.py")
# On texels the last digit of a point decides which side's slope it has, as in torch. This build has other last digits.
UNWATCHED = "not on_texels"
# An error ends the process. Python's own allocations look like leaks.
ENVIRONMENT = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1"}


def build(source, target, *flags):
    limits = run_path(str(TESTS.parent / "lms_geometry" / "limits.py"))
    macros = [f"-D{name}={value!r}f" for name, value in limits.items() if name.isupper()]
    subprocess.run(["gcc", "-g", *flags, *macros, str(source), "-o", str(target), "-lm"], check=True)


def watch(library, *command):
    """Run a command of Python's, in which the backend has the sanitized library."""
    # The runtime looks for the C++ library's way to throw when it starts, so that this library is loaded then.
    names = "libasan.so", "libstdc++.so.6"
    found = (
        subprocess.run(["gcc", f"-print-file-name={n}"], capture_output=True, text=True, check=True) for n in names
    )
    runtime = " ".join(one.stdout.strip() for one in found)
    changes = {"LD_PRELOAD": runtime, LIBRARY: str(library), "PYTHONPATH": str(TESTS)}
    subprocess.run(
        [sys.executable, *command], cwd=TESTS.parent, check=True, env={**os.environ, **ENVIRONMENT, **changes}
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--calls", type=int, default=20_000, help="calls of the fuzzer")
    parser.add_argument(
        "tests", nargs="*", default=[str(TESTS / name) for name in WATCHED], help="what pytest is given"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        threads, library = Path(folder) / "threads", Path(folder) / "_cpu.so"
        build(TESTS / "threads.c", threads, "-pthread", "-fsanitize=thread", "-fno-trapping-math")
        subprocess.run([str(threads)], check=True, env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"})
        sanitizers = "-fsanitize=address,undefined", "-fno-sanitize-recover=all"
        build(BACKENDS / "_cpu.c", library, "-shared", "-fPIC", "-fno-trapping-math", "-fno-math-errno", *sanitizers)
        watch(
            library,
            "-m",
            "pytest",
            "-q",
            "--capture=sys",
            "-p",
            "sanitize",
            "-p",
            "no:cacheprovider",
            "-k",
            UNWATCHED,
            *options.tests,
        )
        watch(library, "-c", f"import sanitize, fuzz, sys; sys.argv[1:] = ['--calls', '{options.calls}']; fuzz.main()")


if os.environ.get(LIBRARY):
    from lms_geometry.backends import cpu

    cpu._library = ctypes.CDLL(os.environ[LIBRARY])
    cpu._library.instruction_set.restype = ctypes.c_char_p

if __name__ == "__main__":
    main()
