"""The files of a predicted case: its mask, and beside it DICOM objects, maps and pictures."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from mixmfl.core.files import replacing, sha256
from mixmfl.core.pipeline import reason_of
from mixmfl.data.cases import Case
from mixmfl.data.dicom.series import Series
from mixmfl.data.grid import Grid, from_canonical
from mixmfl.data.image import Source, write_labels
from mixmfl.inference.dicom_seg import is_available, write_segmentation
from mixmfl.inference.model import Model
from mixmfl.inference.origin import origin_of
from mixmfl.inference.outcomes import Outcome, Records
from mixmfl.inference.prediction_options import OutputOptions
from mixmfl.inference.report import case_files, shown_name, write_case
from mixmfl.inference.uncertainty import Maps, write_maps, write_maps_as_dicom

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Predicted:
    """A case and what was predicted of it.

    Attributes:
        case: The case.
        indices: Class indices ``(Z, Y, X)`` on the canonical grid.
        probabilities: By label or region ``(Z, Y, X)``, there; empty unless they are written.
        grid: The grid of the reference image, which files have.
        canonical: The canonical grid.
        shown: By modality, the grey values of the pictures; empty: none are drawn.
    """

    case: Case
    indices: Array
    probabilities: Mapping[str, Array]
    grid: Grid
    canonical: Grid
    shown: Mapping[str, Array]


class CaseFiles:
    """Writes the files of cases into a folder, and knows their names."""

    def __init__(self, models: Sequence[Model], out: Path, output: OutputOptions) -> None:
        """Take the models, the folder, and what is written beside masks."""
        self.out = out
        self.output = output
        self.origins = [origin_of(model) for model in models]
        self.labels = models[0].plans.labels
        self.records = Records(out, overwrite=output.overwrite, origins=self.origins)
        self._digests = "+".join(model.sha256 for model in models)
        self._codes = models[0].plans.card.dataset.segments
        self._maps = Maps.of(models) if output.uncertainty else None

    @property
    def needs_probabilities(self) -> bool:
        """Whether a file has probabilities in it."""
        return self._maps is not None or self.output.dicom_seg_fractional

    def mask_of(self, name: str) -> Path:
        """Return the path of a case's mask."""
        return self.out / f"{name}.nii.gz"

    def shown(self, case: str) -> str:
        """Return the name of a case on the page."""
        return shown_name(case, self.output.show_patient)

    def requested(self, case: Case) -> tuple[str, ...]:
        """Return the files that are to be written for a case, relative to the folder."""
        files = [self.mask_of(case.name).name]
        if self.output.report:
            files += case_files(self.shown(case.name))
        if self.output.as_dicom and all(isinstance(i, Series) for i in case.images.values()):
            files += self._dicom_files(case.name)
        if self._maps:
            files += self._maps.files(case)
        return tuple(files)

    def write(self, outcome: Outcome, predicted: Predicted) -> Outcome:
        """Write the files of a case, each whole or not at all.

        Args:
            outcome: What is known of the case.
            predicted: The case and what was predicted of it.

        Returns:
            The outcome, with the files, and a warning for each that could not be made.

        Raises:
            OSError: The mask cannot be written.
        """
        case, mask = predicted.case, self.mask_of(predicted.case.name)
        values = from_canonical(self.labels.to_values(predicted.indices), predicted.grid)
        with replacing(mask) as temporary:
            write_labels(temporary, values, predicted.grid)
            digest = sha256(temporary)
            self.records.claim(case.name, digest, self.requested(case))
        beside, warnings = self._write_beside(predicted, case.images[outcome.reference], values)
        files = [mask.name, *beside]
        outcome = dataclasses.replace(
            outcome, mask_sha256=digest, warnings=(*outcome.warnings, *warnings)
        )
        if predicted.shown:
            try:
                files += self._draw(outcome, predicted)
            except Exception as error:  # the mask is written, and is what matters
                warning = f"its pictures could not be made: {reason_of(error)}"
                outcome = dataclasses.replace(outcome, warnings=(*outcome.warnings, warning))
        return dataclasses.replace(outcome, files=tuple(files))

    def _write_beside(
        self, predicted: Predicted, source: Path | Source, values: Array
    ) -> tuple[list[str], list[str]]:
        """Write DICOM objects and maps of a case; return the files, and a warning per failure."""
        name, grid = predicted.case.name, predicted.grid
        shares = {
            label: from_canonical(each, grid) for label, each in predicted.probabilities.items()
        }
        files: list[str] = []
        failed: dict[str, list[str]] = {}

        def make(what: Sequence[str], write: Callable[[], list[str]]) -> None:
            try:
                files.extend(write())
            except Exception as error:  # the mask is written, and is what matters
                failed.setdefault(reason_of(error), []).extend(what)

        if self.output.as_dicom and isinstance(source, Series):
            kinds = self.output.dicom_kinds
            make(kinds, lambda: self._write_dicom(name, source, values, shares))
        if self._maps:
            maps = self._maps.draw(shares)
            make(("maps",), lambda: write_maps(self.out, name, maps, grid))
            if isinstance(source, Series) and is_available():
                make(
                    ("Parametric Map",),
                    lambda: write_maps_as_dicom(self.out, name, maps, source, self._digests),
                )
        return files, [f"not made: {', '.join(what)}; {why}" for why, what in failed.items()]

    def _dicom_files(self, case: str) -> list[str]:
        """Return the DICOM files of a case: the segmentation, volumes, and probabilities."""
        ends = [".dcm"]
        ends += [".sr.dcm"] if self.output.dicom_sr else []
        ends += [".fractional.dcm"] if self.output.dicom_seg_fractional else []
        return [f"{case}{end}" for end in ends]

    def _write_dicom(
        self, name: str, source: Series, values: Array, shares: Mapping[str, Array]
    ) -> list[str]:
        """Write a case's segmentation as DICOM, with what goes beside it, and return the files."""
        first, *beside = (self.out / file for file in self._dicom_files(name))
        write_segmentation(
            first,
            source,
            values,
            self.labels.foreground,
            self._digests,
            self._codes,
            beside[0] if self.output.dicom_sr else None,
            (beside[-1], shares) if self.output.dicom_seg_fractional else None,
        )
        return [file.name for file in (first, *beside)]

    def _draw(self, outcome: Outcome, predicted: Predicted) -> list[str]:
        """Draw a case for the page, and return the files."""
        name = self.shown(predicted.case.name)
        write_case(
            self.out,
            name,
            outcome,
            predicted.shown,
            predicted.indices,
            predicted.canonical,
            self.labels,
            self.origins,
        )
        return [*case_files(name)]
