"""What pyproject.toml cannot say: the fused CPU kernel, which is left out where no compiler is found."""

from setuptools import Extension, setup

HEADERS = ("_cpu_kernel", "_cpu_area", "_cpu_area_geometry", "_cpu_area_kernel")

setup(
    ext_modules=[
        Extension(
            "lms_geometry.backends._cpu",
            sources=["lms_geometry/backends/_cpu.c"],
            depends=[f"lms_geometry/backends/{name}.h" for name in HEADERS],
            extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
