"""What pyproject.toml cannot say: packages beside mixmfl/, and the part that is compiled."""

from setuptools import Extension, find_packages, setup

setup(
    packages=[
        *find_packages(include=["mixmfl", "mixmfl.*"]),
        "mixmfl.entrypoints",
        "mixmfl.plans",
    ],
    ext_modules=[
        Extension(
            "mixmfl.networks._norms",
            ["mixmfl/networks/_norms.c"],
            define_macros=[("Py_LIMITED_API", "0x030a0000")],
            extra_compile_args=["-O3", "-Wno-psabi"],
            py_limited_api=True,
            optional=True,  # without a compiler norms.py does without
        ),
        Extension(
            "mixmfl.networks._winograd",
            ["mixmfl/networks/_winograd.c"],
            depends=["mixmfl/networks/_winograd.h"],
            define_macros=[("Py_LIMITED_API", "0x030a0000")],
            extra_compile_args=["-O3", "-Wno-psabi"],
            py_limited_api=True,
            optional=True,  # and so does winograd.py
        ),
        Extension(
            "mixmfl.federated._sums",
            ["mixmfl/federated/_sums.c"],
            define_macros=[("Py_LIMITED_API", "0x030a0000")],
            extra_compile_args=["-O3", "-ffp-contract=off"],
            py_limited_api=True,
            optional=True,  # and so does weighted_sums.py
        ),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
