"""Tensors in a file with a format number and a digest."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mixmfl.core.errors import ModelError, why
from mixmfl.core.files import SelfClosingFile, replacing
from mixmfl.core.json_fields import shown
from mixmfl.core.tensor_store import Tensors, digest, open_stored, write
from mixmfl.networks.prototypes import State

FORMAT = 4


def other_format(path: Path, header: Mapping[str, Any]) -> str:
    """Return what is said of a file of a run whose format is not ``FORMAT``."""
    return (
        f"{path}: format {shown(header.get('format'))} was found, {FORMAT} is needed; resume with "
        "the version of mixmfl that began the run, or start a new one from its model file by --init"
    )


def save_tensors(path: Path, state: Tensors) -> None:
    """Write tensors by name, whole or not at all, with their hash."""
    with replacing(path) as temporary:
        write(temporary, state, {"format": FORMAT, "sha256": digest(state)})


def load_tensors(path: Path, check: Callable[[Tensors], None] = lambda tensors: None) -> State:
    """Read what ``save_tensors`` wrote.

    Args:
        path: The file.
        check: Raises a ``ValueError`` where names, shapes or types are not those that are needed;
            it is asked before any number is read, so that memory grows with no file.

    Raises:
        ModelError: The file is missing, damaged or of another format, or ``check`` refuses it.
    """
    try:
        with SelfClosingFile(path) as file:
            tensors, header = open_stored(file)
            if header.get("format") != FORMAT:
                raise ModelError(other_format(path, header))
            check(tensors)
            state = dict(tensors)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({why(error)})") from None
    if header.get("sha256") != digest(state):
        raise ModelError(f"{path}: is damaged; its numbers are not those that were written")
    return state
