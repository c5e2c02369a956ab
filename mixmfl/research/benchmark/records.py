"""The fields of a benchmark's JSON files and of a study's splits: types and bounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json
from mixmfl.core.records import read_record, read_value
from mixmfl.data.modalities import MOST_MODALITIES, ModalityName
from mixmfl.planning.bounds import MOST_LEARNING_RATE, MOST_ROUNDS
from mixmfl.planning.fingerprint import MOST_CASES
from mixmfl.research.recall_quality import RecallQuality

_MOST_SITES, _MOST_RUNS = 1000, 10_000

Name = Annotated[str, text(255)]
_Share = Annotated[float, within(0, 1)]
_Names = Annotated[tuple[Name, ...], entries(0, MOST_CASES, distinct=True)]


@dataclass(frozen=True)
class CostRecord:
    """The file ``cost.json``.

    Attributes:
        sent_bytes: See ``Cost``; None: no site sent updates.
        seconds: See ``Cost``.
        method: The method as it was described, which is only compared.
        learning_rates: See ``Cost``.
        dice: See ``Cost``.
    """

    sent_bytes: Annotated[float, within(0, 1e18)] | None
    seconds: Annotated[float, within(0, 1e12)]
    method: Any
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


@dataclass(frozen=True)
class _Memory:
    """The file ``memory.json``."""

    recall: Annotated[tuple[RecallQuality, ...], entries(0, _MOST_RUNS)]


_Own = Annotated[
    Mapping[Name, Annotated[tuple[ModalityName, ...], entries(0, MOST_MODALITIES, distinct=True)]],
    entries(1, _MOST_SITES),
]


def read_cost(file: Path) -> CostRecord:
    """Read ``cost.json``.

    Raises:
        DataError: A field is unknown, missing or wrong.
    """
    return read_record(CostRecord, read_json(file), str(file), DataError)


def read_memory(file: Path) -> tuple[RecallQuality, ...]:
    """Read ``memory.json``.

    Raises:
        DataError: A field is unknown, missing or wrong.
    """
    return read_record(_Memory, read_json(file), str(file), DataError).recall


def read_own(file: Path) -> Mapping[str, tuple[str, ...]]:
    """Read each site's own modalities in ``benchmark.json``.

    Raises:
        DataError: They are missing or wrong.
    """
    own: Mapping[str, tuple[str, ...]] = read_value(
        _Own, read_json(file).get("own"), f"{file}: own", DataError
    )
    return own
