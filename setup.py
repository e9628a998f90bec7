"""The part of the build that pyproject.toml cannot describe: the fused CPU kernel.

It is left out where no compiler is found.
"""

from pathlib import Path
from runpy import run_path

from setuptools import Extension, setup

backends = Path("lms_geometry/backends")
limits = run_path("lms_geometry/limits.py")

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
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
