"""What became of each case: the table beside the masks, and which masks are ours.

::

    MASKS/cases.json    every outcome, by case; read again by the next run
    MASKS/cases.csv     the same as a table, for people
    MASKS/set_aside.csv files that were set aside, and why they are in no case
"""

import dataclasses
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import DataError
from mixmfl.core.files import read_long_json, sha256, write_json
from mixmfl.core.json_fields import Range, named, shown
from mixmfl.core.records import read_record
from mixmfl.core.spreadsheet import write_table
from mixmfl.core.text import MOST_LINE, one_line, printable
from mixmfl.data.labels import LONGEST_NAME, MOST_LABELS
from mixmfl.data.modalities import MOST_MODALITIES
from mixmfl.evaluation.mask_quality import DiceEstimate
from mixmfl.evaluation.subset_dice import LabelDice
from mixmfl.inference.origin import Origin

FORMAT = "mixmfl cases 3"

Status = Literal["done", "kept", "failed"]

MOST_CASES = 10**6
"""Cases that a folder of masks may tell of."""

_Name = Annotated[str, text(LONGEST_NAME)]
_Names = Annotated[tuple[_Name, ...], entries(0, MOST_MODALITIES)]
_Text = Annotated[str, text(MOST_LINE, least=0, lines=True)]
_Texts = Annotated[tuple[_Text, ...], entries(0, 10_000)]
_Positive = Annotated[float, within(0, 1e12)]


@dataclass(frozen=True)
class Outcome:
    """What became of one case.

    Attributes:
        name: Name of the case.
        status: ``"done"``, ``"kept"`` (its mask existed already) or ``"failed"``.
        reason: Why the case failed or was kept; empty if done.
        used: Modalities that the mask was predicted from.
        missing: Missing modalities: those that the model knows and the case lacks or does not use.
        reference: The modality whose grid the mask has.
        expected: Expected Dice by label or region.
        expected_from: What these rest on, in words.
        estimated: Estimated Dice of this very mask by label or region, where there is one.
        volumes_ml: Volumes of the mask in ml, by label or region.
        volume_ranges_ml: A range of each volume, where probabilities are calibrated.
        removed_ml: Volume of the small parts that were removed, by label, if any were.
        notes: How the images were identified and brought onto one grid.
        warnings: What a reader of this mask must know.
        limits: What is hardly known of any mask by these models from these modalities.
        patient: Name and ID of the patient, where they are to be shown.
        seconds: Time from when the case before was predicted until this mask was written.
        peak_memory_mb: Sum of the peaks of the reading and the predicting process, an upper bound.
        models: SHA-256 of the model files.
        settings: Settings of the prediction, as far as they decide the mask.
        inputs: SHA-256 of what was read, by modality.
        mask_sha256: SHA-256 of the mask that was written last; a mask with this digest is ours.
        files: Files that were written for the case, relative to MASKS.
    """

    name: Annotated[str, text(255)]
    status: Status
    reason: _Text = ""
    used: _Names = ()
    missing: _Names = ()
    reference: _Text = ""
    expected: Annotated[Mapping[_Name, LabelDice], entries(0, MOST_LABELS)] = field(
        default_factory=dict
    )
    expected_from: _Text = ""
    estimated: Annotated[Mapping[_Name, DiceEstimate], entries(0, MOST_LABELS)] = field(
        default_factory=dict
    )
    volumes_ml: Annotated[Mapping[_Name, _Positive], entries(0, MOST_LABELS)] = field(
        default_factory=dict
    )
    volume_ranges_ml: Annotated[
        Mapping[_Name, tuple[_Positive, _Positive]], entries(0, MOST_LABELS)
    ] = field(default_factory=dict)
    removed_ml: Annotated[Mapping[_Name, _Positive], entries(0, MOST_LABELS)] = field(
        default_factory=dict
    )
    notes: _Texts = ()
    warnings: _Texts = ()
    limits: _Texts = ()
    patient: _Text = ""
    seconds: _Positive = 0.0
    peak_memory_mb: _Positive = 0.0
    models: _Names = ()
    settings: Any = field(default_factory=dict)
    inputs: Annotated[Mapping[_Name, _Text], entries(0, MOST_MODALITIES)] = field(
        default_factory=dict
    )
    mask_sha256: _Text = ""
    files: _Texts = ()


class Records:
    """The outcomes of all runs into one folder; safe to use from several threads."""

    def __init__(
        self, folder: Path, *, overwrite: bool = False, origins: Sequence[Origin] = ()
    ) -> None:
        """Read the records of earlier runs.

        Args:
            folder: Folder of the masks.
            overwrite: Whether tables and pages that are not ours are replaced.
            origins: Where the models of this run come from, for ``cases.json``.

        Raises:
            DataError: The folder has a table or a page that is not ours.
        """
        self.folder = folder
        self.origins = origins
        self._lock = threading.RLock()  # add writes while it holds it
        self._outcomes: dict[str, Outcome] = {}
        record = folder / "cases.json"
        try:
            if record.exists():
                self._outcomes = _read(record)
            for name in (
                () if record.exists() else ("cases.csv", "set_aside.csv", "report.html", "report")
            ):
                if (folder / name).exists():
                    raise DataError(f"{folder / name}: is not ours")
        except DataError as error:
            if not overwrite:
                raise DataError(
                    f"{error}; it would be replaced. Name another folder for the masks, or give "
                    "--overwrite"
                ) from None

    def __getitem__(self, name: str) -> Outcome | None:
        return self._outcomes.get(name)

    @property
    def outcomes(self) -> list[Outcome]:
        """Return all outcomes, sorted by case."""
        return [self._outcomes[name] for name in sorted(self._outcomes)]

    def owns(self, name: str, mask: Path) -> bool:
        """Return whether a mask is unchanged since we wrote it."""
        before = self[name]
        return bool(before and before.mask_sha256 and before.mask_sha256 == sha256(mask))

    def claim(self, name: str, digest: str, files: Sequence[str]) -> None:
        """Record, before a mask is moved to its path, that it and its files will be ours."""
        before = self[name] or Outcome(name, "failed", "was interrupted")
        self.add(
            dataclasses.replace(
                before,
                mask_sha256=digest,
                settings={},
                inputs={},
                files=tuple(dict.fromkeys((*before.files, *files))),
            )
        )

    def add(self, outcome: Outcome, *, write: bool = True) -> None:
        """Record an outcome, and write the tables again.

        Args:
            outcome: What came of a case.
            write: Whether to write the tables now, which takes the longer the more cases there are.

        Raises:
            OSError: The tables cannot be written; the outcome is recorded all the same.
        """
        outcome = _as_text(outcome)
        with self._lock:
            self._outcomes[outcome.name] = outcome
            if write:
                self.write()

    def write(self) -> None:
        """Write the tables, each whole or not at all.

        Raises:
            OSError: The tables cannot be written.
        """
        with self._lock:
            content = {
                "format": FORMAT,
                "models": {each.sha256: each.to_json() for each in self.origins},
                "cases": {each.name: _to_json(each) for each in self.outcomes},
            }
            write_json(self.folder / "cases.json", content)
            write_table(self.folder / "cases.csv", _rows(self.outcomes))


def _as_text(outcome: Outcome) -> Outcome:
    """Return an outcome that can be written as text; names of files may hold any bytes."""
    return dataclasses.replace(
        outcome,
        name=one_line(outcome.name, 255),
        reason=_shown(outcome.reason),
        notes=tuple(map(_shown, outcome.notes)),
        warnings=tuple(map(_shown, outcome.warnings)),
        limits=tuple(map(_shown, outcome.limits)),
        patient=_shown(outcome.patient),
    )


def _shown(words: str) -> str:
    return printable(words)[:MOST_LINE]


def _to_json(outcome: Outcome) -> dict[str, Any]:
    content = dataclasses.asdict(outcome)
    del content["name"]
    return content


def _read(path: Path) -> dict[str, Outcome]:
    content = read_long_json(path)
    if content.get("format") != FORMAT:
        raise DataError(f"{path}: has format {shown(content.get('format'))}; {FORMAT!r} is needed")
    cases = named(content.get("cases"), Range(0, MOST_CASES), f"{path}: cases", DataError)
    return {
        name: read_record(
            Outcome,
            {**named(record, Range(0, 100), f"{path}: {one_line(name)}", DataError), "name": name},
            f"{path}: {one_line(name)}",
            DataError,
        )
        for name, record in cases.items()
    }


def _rows(outcomes: Sequence[Outcome]) -> Iterator[list[object]]:
    """Yield the names of the table's columns, and then the row of each outcome."""
    regions = [each.volumes_ml for each in outcomes] + [each.expected for each in outcomes]
    names = list(dict.fromkeys(name for each in regions for name in each))
    yield [column for column, _ in _row(Outcome("", "failed"), names)]
    for each in outcomes:
        yield [value for _, value in _row(each, names)]


def _row(outcome: Outcome, names: Sequence[str]) -> list[tuple[str, Any]]:
    """Return the columns of an outcome with its values, lists joined by +, texts by a semicolon.

    Args:
        outcome: The outcome.
        names: Labels and regions of all outcomes.
    """
    row: list[tuple[str, Any]] = [
        ("case", outcome.name),
        ("status", outcome.status),
        ("reason", outcome.reason),
        ("modalities", "+".join(outcome.used)),
        ("missing", "+".join(outcome.missing)),
        ("reference", outcome.reference),
    ]
    volumes = outcome.volumes_ml
    for name in names:
        row.append((f"volume_ml_{name}", f"{volumes[name]:.3f}" if name in volumes else ""))
    for name in names:
        low, high = [f"{n:.3f}" for n in outcome.volume_ranges_ml.get(name, ())] or ["", ""]
        row += [(f"volume_from_ml_{name}", low), (f"volume_to_ml_{name}", high)]
    for name in names:
        removed = f"{outcome.removed_ml.get(name, 0):.3f}" if name in volumes else ""
        row.append((f"removed_ml_{name}", removed))
    for name in names:
        mask = outcome.estimated.get(name)
        dice, low, high = [f"{n:.3f}" for n in astuple(mask)] if mask else ["", "", ""]
        row.append((f"mask_dice_{name}", dice))
        row += [(f"mask_dice_from_{name}", low), (f"mask_dice_to_{name}", high)]
    for name in names:
        other = outcome.expected.get(name)
        row.append((f"expected_dice_{name}", f"{other.median:.3f}" if other else ""))
        row.append((f"low_dice_{name}", f"{other.low:.3f}" if other else ""))
        row.append((f"cases_{name}", other.cases if other else ""))
    return [
        *row,
        ("expected_from", outcome.expected_from),
        ("seconds", f"{outcome.seconds:.1f}"),
        ("peak_memory_mb", f"{outcome.peak_memory_mb:.0f}"),
        ("notes", "; ".join(outcome.notes)),
        ("warnings", "; ".join(outcome.warnings)),
        ("limits", "; ".join(outcome.limits)),
        ("model_sha256", "+".join(outcome.models)),
    ]
