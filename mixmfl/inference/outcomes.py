"""What became of each case: the table beside the masks, and which masks are ours.

::

    MASKS/cases.json    every outcome, by case; read again by the next run
    MASKS/cases.csv     the same as a table, for people
    MASKS/set_aside.csv files that were set aside, and why they are in no case
"""

import csv
import dataclasses
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import DataError
from mixmfl.core.files import read_long_json, replacing, sha256, write_json
from mixmfl.core.json_fields import Range, named, shown
from mixmfl.core.records import read_record
from mixmfl.core.spreadsheet import cell
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
            with replacing(self.folder / "cases.csv") as temporary:
                temporary.write_text(_table(self.outcomes), encoding="utf-8", newline="")


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


def _table(outcomes: Sequence[Outcome]) -> str:
    """Return the outcomes as CSV; lists are joined by +, warnings by a semicolon."""
    regions = [each.volumes_ml for each in outcomes] + [each.expected for each in outcomes]
    names = list(dict.fromkeys(name for each in regions for name in each))
    text = io.StringIO()
    writer = csv.writer(text)
    header = (
        ["case", "status", "reason", "modalities", "missing", "reference"]
        + [f"volume_ml_{name}" for name in names]
        + [
            column
            for name in names
            for column in (f"volume_from_ml_{name}", f"volume_to_ml_{name}")
        ]
        + [f"removed_ml_{name}" for name in names]
        + [
            column
            for name in names
            for column in (f"mask_dice_{name}", f"mask_dice_from_{name}", f"mask_dice_to_{name}")
        ]
        + [
            column
            for name in names
            for column in (f"expected_dice_{name}", f"low_dice_{name}", f"cases_{name}")
        ]
        + [
            "expected_from",
            "seconds",
            "peak_memory_mb",
            "notes",
            "warnings",
            "limits",
            "model_sha256",
        ]
    )
    writer.writerow(map(cell, header))
    for each in outcomes:
        row: list[Any] = [each.name, each.status, each.reason, "+".join(each.used)]
        row += ["+".join(each.missing), each.reference]
        row += [f"{each.volumes_ml[n]:.3f}" if n in each.volumes_ml else "" for n in names]
        for name in names:
            row += [f"{end:.3f}" for end in each.volume_ranges_ml.get(name, ())] or ["", ""]
        for name in names:
            row.append(f"{each.removed_ml.get(name, 0):.3f}" if name in each.volumes_ml else "")
        for name in names:
            mask = each.estimated.get(name)
            row += [f"{n:.3f}" for n in astuple(mask)] if mask else ["", "", ""]
        for name in names:
            dice = each.expected.get(name)
            row += [f"{dice.median:.3f}", f"{dice.low:.3f}", dice.cases] if dice else ["", "", ""]
        row += [each.expected_from, f"{each.seconds:.1f}", f"{each.peak_memory_mb:.0f}"]
        row += ["; ".join(texts) for texts in (each.notes, each.warnings, each.limits)]
        writer.writerow(map(cell, [*row, "+".join(each.models)]))
    return text.getvalue()
