"""Faults in this process: killed between two changes of its files, or no room for a file."""

import os
import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

_CHANGES = ("replace", "rename", "unlink", "rmdir", "mkdir", "link", "symlink")


class KilledError(BaseException):
    """What stands for the end of the process; no handler of errors catches it."""


@dataclass
class Changes:
    """How many changes of files were made or tried, and whether the process was killed."""

    number: int = 0
    killed: bool = False


@contextmanager
def killed_after(most: int) -> Iterator[Changes]:
    """Let the block change files so often and no more: then it ends, as a killed process does.

    What it would tidy up on its way out is not done either.
    """
    made = Changes()

    def limited(change: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            made.number += 1
            if made.number > most:
                made.killed = True
                raise KilledError
            return change(*arguments, **options)

        return call

    with ExitStack() as stack:
        for name in _CHANGES:
            stack.enter_context(patch.object(os, name, limited(getattr(os, name))))
        with suppress(KilledError):
            yield made


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond so many bytes, as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)  # Python ignores the signal, and gets EFBIG
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
