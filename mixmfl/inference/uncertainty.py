"""Maps to look at: where a label is likely, and where the network does not know.

::

    MASKS/uncertainty/<case>.<label>.probability.nii.gz
    MASKS/uncertainty/<case>.<label>.entropy.nii.gz
    MASKS/uncertainty/<case>.dcm    of a DICOM case all of them, as a Parametric Map

Where probabilities are not calibrated, ``uncalibrated`` stands before ``probability`` and
``entropy``.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixmfl.core.text import plural
from mixmfl.data.cases import Case
from mixmfl.data.dicom.series import Series
from mixmfl.data.image import Grid, write_image
from mixmfl.evaluation.reliability import entropy
from mixmfl.evaluation.subset_dice import FEWEST_CASES
from mixmfl.inference.dicom_seg import is_available, write_parametric_map
from mixmfl.inference.model import Model

FOLDER = "uncertainty"

_DIGITS = 4  # of a map; more are noise, which packs badly


@dataclass(frozen=True)
class Maps:
    """Which maps are written of every case.

    Attributes:
        words: By label or region, what its name is in files.
        calibrated: Labels and regions whose probabilities are calibrated.
    """

    words: Mapping[str, str]
    calibrated: Collection[str]

    @staticmethod
    def of(models: Sequence[Model]) -> "Maps":
        """Return the maps by one model, or by the mean of several."""
        known = models[0].calibrations if len(models) == 1 else ()
        return Maps(_words(models[0].plans.labels.foreground), tuple(known))

    def files(self, case: Case) -> list[str]:
        """Return the files of a case, relative to MASKS."""
        files = [f"{FOLDER}/{case.name}.{end}" for ends in self._ends() for end in ends]
        if is_available() and all(isinstance(each, Series) for each in case.images.values()):
            files.append(f"{FOLDER}/{case.name}.dcm")
        return files

    def write(
        self,
        out: Path,
        case: str,
        probabilities: Mapping[str, npt.NDArray[np.float32]],
        grid: Grid,
    ) -> list[str]:
        """Write the NIfTI maps of a case, each whole or not at all, and return the files.

        Args:
            out: MASKS.
            case: Name of the case.
            probabilities: By label or region ``(Z, Y, X)``, on the grid.
            grid: The grid.

        Raises:
            DataError: A file cannot be written.
        """
        (out / FOLDER).mkdir(exist_ok=True)
        files = []
        for ends, probability in zip(self._ends(), probabilities.values(), strict=True):
            for end, values in zip(ends, _rounded(probability), strict=True):
                files.append(f"{FOLDER}/{case}.{end}")
                write_image(out / files[-1], values, grid)
        return files

    def write_dicom(
        self,
        out: Path,
        case: str,
        series: Series,
        probabilities: Mapping[str, npt.NDArray[np.float32]],
        model: str,
    ) -> list[str]:
        """Write the maps of a DICOM case as one Parametric Map, and return its file.

        Args:
            out: MASKS.
            case: Name of the case.
            series: The series whose grid the maps have.
            probabilities: By label or region ``(Z, Y, X)``, on that grid.
            model: SHA-256 of the model.

        Raises:
            DataError: The file cannot be written, or the series' headers allow no Parametric Map.
        """
        (out / FOLDER).mkdir(exist_ok=True)
        quantities = {}
        for name, probability in probabilities.items():
            prefix = "" if name in self.calibrated else "uncalibrated "
            for what, values in zip(("probability", "entropy"), _rounded(probability), strict=True):
                quantities[f"{prefix}{what} of {name}"] = values
        file = f"{FOLDER}/{case}.dcm"
        write_parametric_map(out / file, series, quantities, model)
        return [file]

    def _ends(self) -> list[tuple[str, str]]:
        """Return by label what follows a case's name in its probability's and entropy's file."""
        prefixes = ("" if name in self.calibrated else "uncalibrated_" for name in self.words)
        return [
            (f"{word}.{prefix}probability.nii.gz", f"{word}.{prefix}entropy.nii.gz")
            for word, prefix in zip(self.words.values(), prefixes, strict=True)
        ]


def _rounded(probability: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], ...]:
    """Return probability and entropy as files have them."""
    return probability.round(_DIGITS), entropy(probability).round(_DIGITS)


def uncalibrated(models: Sequence[Model]) -> list[str]:
    """Return a warning about labels whose probabilities are not calibrated, and why."""
    names = list(models[0].plans.labels.foreground)
    if len(models) > 1:
        why = "those of the mean of several models were never measured"
    else:
        names = [name for name in names if name not in models[0].calibrations]
        known = models[0].reliability
        why = "the model file does not say how often they are right"
        if counts := [known[name].cases for name in names if name in known]:
            why = (
                f"they were measured on {plural(min(counts), 'validation case')}; at least "
                f"{FEWEST_CASES} are needed, with and without the label in them"
            )
    return [f"probabilities of {', '.join(names)} are not calibrated: {why}"] if names else []


def _words(labels: Collection[str]) -> dict[str, str]:
    """Return names of labels as files can have them; numbers, where these would be the same."""
    words = {name: re.sub(r"\W+", "_", name).strip("_") for name in labels}
    if len({word.casefold() for word in words.values()} - {""}) < len(words):
        return {name: f"label{number}" for number, name in enumerate(labels, start=1)}
    return words
