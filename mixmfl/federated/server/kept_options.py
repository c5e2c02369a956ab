"""What was asked of a run on the command line, ``RUN/options.json``, for when it is resumed.

``run.json`` has what a run was begun with. This record also has options that are of every command,
and what was asked of a fold that was not reached before a kill.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from mixmfl.core.declarations import LONGEST_PATH, entries, text
from mixmfl.core.errors import ModelError
from mixmfl.core.files import read_json, write_json
from mixmfl.core.json_fields import MOST_NAME
from mixmfl.core.records import read_record
from mixmfl.federated.server.changes import CHANGEABLE
from mixmfl.federated.server.run_record import holds_run

OPTIONS_FILE = "options.json"

_OF_START = "init", "alias"

KEPT = (
    *_OF_START,
    *(*CHANGEABLE, "stop_when_flat", "sites", "seed", "personalize"),
    *("minimum_cases", "minimum_voxels", "masked", "updates"),
    *("dp_epsilon", "dp_delta", "dp_noise", "dp_clip"),
    *("deadline", "quorum", "track", "validate_subsets"),
)
"""Names of the options that a run keeps. The others say where and on what it is trained."""

Words = Mapping[
    Annotated[str, text(MOST_NAME)],
    Annotated[tuple[Annotated[str, text(LONGEST_PATH)], ...], entries(1, 10_000)],
]
"""By the name of an option what is written on the command line for it."""


@dataclass(frozen=True)
class _Record:
    """What ``options.json`` says.

    Attributes:
        options: The options that were named.
    """

    options: Annotated[Words, entries(0, len(KEPT))]


def holds_options(folder: Path) -> bool:
    """Say whether options of a run are kept in its folder; it may not have begun."""
    return (folder / OPTIONS_FILE).is_file()


def keep_options(folder: Path, options: Words) -> None:
    """Write what ``kept_options`` reads."""
    write_json(folder / OPTIONS_FILE, dataclasses.asdict(_Record(options)))


def kept_options(folder: Path, *, other: bool = False) -> Words:
    """Return the options that commands before named for a run.

    Args:
        folder: Folder of the run. Where nothing is kept, the result is empty.
        other: Whether they are for another fold, which is to begin as this one did. A run that has
            begun needs no first weights.

    Raises:
        ModelError: The file is damaged.
    """
    file = folder / OPTIONS_FILE
    if not file.is_file():
        return {}
    record = read_record(_Record, read_json(file, ModelError), str(file), ModelError)
    if strange := sorted(record.options.keys() - {*KEPT}):
        raise ModelError(f"{file}: {strange[0]} is no option of a run; remove the file")
    gone = {*_OF_START} if holds_run(folder) and not other else set()
    return {name: words for name, words in record.options.items() if name not in gone}
