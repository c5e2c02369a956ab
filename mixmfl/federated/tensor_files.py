"""Tensors in a file with a format number and a digest."""

from pathlib import Path

from mixmfl.core.errors import ModelError, why
from mixmfl.core.files import replacing
from mixmfl.core.tensor_store import Tensors, digest, read, write
from mixmfl.networks.prototypes import State

FORMAT = 4


def save_tensors(path: Path, state: Tensors) -> None:
    """Write tensors by name, whole or not at all, with their hash."""
    with replacing(path) as temporary:
        write(temporary, state, {"format": FORMAT, "sha256": digest(state)})


def load_tensors(path: Path) -> State:
    """Read what ``save_tensors`` wrote.

    Raises:
        ModelError: The file is missing or damaged.
    """
    try:
        state, header = read(path)
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({why(error)})") from None
    if header.get("sha256") != digest(state):
        raise ModelError(f"{path}: is damaged; its numbers are not those that were written")
    return state
