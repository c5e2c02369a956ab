"""SimpleITK by another name, imported when something of it is first used.

It takes 30 MB, which a process does without that reads and writes NIfTI and moves no image.
"""

from typing import Any


def __getattr__(name: str) -> Any:
    import SimpleITK

    return getattr(SimpleITK, name)
