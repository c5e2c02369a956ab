"""The packages, which pyproject.toml cannot say: two of them lie beside mixmfl/, not in it."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["mixmfl", "mixmfl.*"]),
        "mixmfl.entrypoints",
        "mixmfl.plans",
    ]
)
