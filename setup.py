"""The part of the build that pyproject.toml cannot describe: the fused CPU kernel.

It is a plain C library, which has none of Python's functions. It is left out where no compiler is found.
"""

import os
import shlex
import sys
from pathlib import Path
from runpy import run_path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

backends = Path("lms_geometry/backends")
limits = run_path("lms_geometry/limits.py")


class BuildLibrary(build_ext):
    """Builds with the compiler of setuptools, or on Windows with that of the environment variable CC.

    There the one of setuptools is Microsoft's, which has no vector types. CC names one with GNU's options, such as
    ``python -m ziglang cc``.
    """

    def build_extension(self, ext: Extension) -> None:
        """Build a library."""
        if sys.platform != "win32":
            super().build_extension(ext)
            return
        if "CC" not in os.environ:
            raise CompileError("CC names no compiler with GNU's options")
        out = Path(self.get_ext_fullpath(ext.name))
        out.parent.mkdir(parents=True, exist_ok=True)
        macros = [f"-D{name}={value}" for name, value in ext.define_macros]
        compiler = shlex.split(os.environ["CC"])
        self.spawn([*compiler, "-shared", *ext.extra_compile_args, *macros, *ext.sources, "-o", str(out)])


setup(
    ext_modules=[
        Extension(
            "lms_geometry.backends._cpu",
            sources=[str(backends / "_cpu.c")],
            depends=["lms_geometry/limits.py", *map(str, backends.glob("_cpu_*.h"))],
            define_macros=[(name, f"{value!r}f") for name, value in limits.items() if name.isupper()],
            extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math"],
            py_limited_api=True,
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
