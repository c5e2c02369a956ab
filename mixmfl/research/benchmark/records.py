"""The fields of a benchmark's JSON files and of a study's splits: types and bounds."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json, write_json
from mixmfl.core.records import read_record, read_value
from mixmfl.data.modalities import MOST_MODALITIES, ModalityName
from mixmfl.planning.bounds import MOST_LEARNING_RATE, MOST_ROUNDS
from mixmfl.planning.fingerprint import MOST_CASES

_MOST_SITES, _MOST_RUNS = 1000, 10_000

Name = Annotated[str, text(255)]
_Share = Annotated[float, within(0, 1)]
_Names = Annotated[tuple[Name, ...], entries(0, MOST_CASES, distinct=True)]


@dataclass(frozen=True)
class Cost:
    """The cost of one training, which ``cost.json`` has; it lies in the folder of method and seed.

    Attributes:
        method: Name of the method.
        seed: Seed of the training.
        sent_bytes: Bytes that a site sent in the whole training, mean over sites; None: it sent no
            updates, but images.
        seconds: Duration of the whole training, with the one learning rate that was chosen.
        learning_rates: The learning rate of each run of the training, by the run's name.
        dice: Mean validation Dice of each run by validated round, which is written as text.
    """

    method: Name
    seed: Annotated[int, within(0, 2**63 - 1)]
    sent_bytes: Annotated[float, within(0, 1e18)] | None
    seconds: Annotated[float, within(0, 1e12)]
    learning_rates: Annotated[
        Mapping[Name, Annotated[float, within(0, MOST_LEARNING_RATE)]], entries(0, _MOST_RUNS)
    ]
    dice: Annotated[
        Mapping[Name, Annotated[Mapping[Name, _Share], entries(0, MOST_ROUNDS)]],
        entries(0, _MOST_RUNS),
    ]


@dataclass(frozen=True)
class Splits:
    """The file ``splits.json`` of a study.

    Attributes:
        modality_sets: Modalities in any words that a site trains on, by the set's name, then by
            site.
        test_folds: Names of the test patients, by fold, then by site.
    """

    modality_sets: Annotated[
        Mapping[Name, Annotated[Mapping[Name, _Names], entries(1, _MOST_SITES)]],
        entries(1, _MOST_RUNS),
    ]
    test_folds: Annotated[
        tuple[Annotated[Mapping[Name, _Names], entries(0, _MOST_SITES)], ...],
        entries(1, _MOST_RUNS),
    ]


_Own = Annotated[
    Mapping[Name, Annotated[tuple[ModalityName, ...], entries(0, MOST_MODALITIES, distinct=True)]],
    entries(1, _MOST_SITES),
]


def write_cost(file: Path, cost: Cost, described: Any) -> None:
    """Write ``cost.json``, with the method as it is described."""
    content = {**dataclasses.asdict(cost), "method": described}
    del content["seed"]
    write_json(file, content)


def read_cost(file: Path, method: str, seed: int) -> Cost:
    """Read the ``cost.json`` of a method and seed.

    Raises:
        DataError: A field is unknown, missing or wrong.
    """
    content = {**read_json(file), "method": method, "seed": seed}
    return read_record(Cost, content, str(file), DataError)


def description_in(file: Path) -> Any:
    """Return the method of a ``cost.json`` as it was described, to be compared alone."""
    return read_json(file).get("method")


def read_own(file: Path) -> Mapping[str, tuple[str, ...]]:
    """Read each site's own modalities in ``benchmark.json``.

    Raises:
        DataError: They are missing or wrong.
    """
    own: Mapping[str, tuple[str, ...]] = read_value(
        _Own, read_json(file).get("own"), f"{file}: own", DataError
    )
    return own
