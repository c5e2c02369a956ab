"""The version that is installed, and those with which it may be in one federation."""

import re
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("mixmfl")
except PackageNotFoundError:  # a checkout that was never installed
    __version__ = "0+unknown"

_NUMBERS = re.compile(r"(\d{1,9}\.\d{1,9})\.\d{1,9}")


def works_with(other: object) -> bool:
    """Say whether a coordinator and a hospital may differ by this version.

    Versions that differ in the last of three numbers have the same messages, plans and numbers, so
    that places can be updated one after another.

    Args:
        other: The version of the other place, as it says.
    """
    if other == __version__:
        return True
    here, there = _NUMBERS.fullmatch(__version__), _NUMBERS.fullmatch(str(other))
    return here is not None and there is not None and here[1] == there[1]
