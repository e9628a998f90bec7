"""What pyproject.toml cannot say: the fused CPU kernel, which is left out where no compiler is found."""

from pathlib import Path

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "lms_geometry.backends._cpu",
            sources=["lms_geometry/backends/_cpu.c"],
            depends=[str(header) for header in Path("lms_geometry/backends").glob("_cpu*.h")],
            extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
