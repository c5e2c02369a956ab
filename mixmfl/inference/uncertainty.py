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
from mixmfl.data.grid import Grid
from mixmfl.data.image import write_image
from mixmfl.evaluation.mask_quality import ConfidenceSums
from mixmfl.evaluation.reliability import Reliability, entropy
from mixmfl.evaluation.subset_dice import FEWEST_CASES
from mixmfl.inference.dicom_seg import is_available, write_parametric_map
from mixmfl.inference.model import Model

FOLDER = "uncertainty"

_DIGITS = 4  # of a map; more are noise, which packs badly


@dataclass(frozen=True)
class Map:
    """A map of one case.

    Attributes:
        quantity: What it shows, such as ``"uncalibrated entropy of lesion"``.
        end: What follows the case's name in the map's file.
        values: Numbers from 0 to 1 ``(Z, Y, X)``, rounded as files have them.
    """

    quantity: str
    end: str
    values: npt.NDArray[np.float32]


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
        files = [f"{FOLDER}/{case.name}.{end}" for _, end in self._names()]
        if is_available() and all(isinstance(each, Series) for each in case.images.values()):
            files.append(f"{FOLDER}/{case.name}.dcm")
        return files

    def draw(self, probabilities: Mapping[str, npt.NDArray[np.float32]]) -> list[Map]:
        """Return the maps of a case.

        Args:
            probabilities: By label or region ``(Z, Y, X)``, on the grid of the mask.
        """
        values = [
            each.round(_DIGITS)
            for probability in probabilities.values()
            for each in (probability, entropy(probability))
        ]
        return [Map(*names, of) for names, of in zip(self._names(), values, strict=True)]

    def _names(self) -> list[tuple[str, str]]:
        """Return quantity and end of file of each map: by label, probability before entropy."""
        names = []
        for label, word in self.words.items():
            for what in ("probability", "entropy"):
                shown = what if label in self.calibrated else f"uncalibrated {what}"
                end = f"{word}.{shown.replace(' ', '_')}.nii.gz"
                names.append((f"{shown} of {label}", end))
        return names


def write_maps(out: Path, case: str, maps: Sequence[Map], grid: Grid) -> list[str]:
    """Write the maps of a case as NIfTI, each file whole or not at all, and return the files.

    Args:
        out: MASKS.
        case: Name of the case.
        maps: The maps.
        grid: Their grid.

    Raises:
        DataError: A file cannot be written.
    """
    (out / FOLDER).mkdir(exist_ok=True)
    files = [f"{FOLDER}/{case}.{each.end}" for each in maps]
    for file, each in zip(files, maps, strict=True):
        write_image(out / file, each.values, grid)
    return files


def write_maps_as_dicom(
    out: Path, case: str, maps: Sequence[Map], series: Series, model: str
) -> list[str]:
    """Write the maps of a DICOM case as one Parametric Map, and return its file.

    Args:
        out: MASKS.
        case: Name of the case.
        maps: The maps.
        series: The series whose grid they have.
        model: SHA-256 of the model.

    Raises:
        DataError: The file cannot be written, or the series' headers allow no Parametric Map.
    """
    (out / FOLDER).mkdir(exist_ok=True)
    file = f"{FOLDER}/{case}.dcm"
    write_parametric_map(out / file, series, {each.quantity: each.values for each in maps}, model)
    return [file]


def unestimated(models: Sequence[Model]) -> list[str]:
    """Return a warning about labels whose Dice is estimated of no mask, and why."""
    usable = models[0].estimates(dict.fromkeys(models[0].plans.labels.foreground, 1.0))
    needed = "and in them Dice must rise with confidence"
    names, why = _lacking(models, usable, models[0].measured.confidence, needed)
    return [f"this mask's Dice is not estimated, of {names}: {why}"] if names else []


def uncalibrated(models: Sequence[Model]) -> list[str]:
    """Return a warning about labels whose probabilities are not calibrated, and why."""
    needed = "with and without the label in them"
    names, why = _lacking(models, models[0].calibrations, models[0].measured.reliability, needed)
    return [f"probabilities of {names} are not calibrated: {why}"] if names else []


def _lacking(
    models: Sequence[Model],
    usable: Collection[str],
    measured: Mapping[str, Reliability | ConfidenceSums],
    needed: str,
) -> tuple[str, str]:
    """Return for which labels a measurement on validation cases is not usable, and why.

    Args:
        models: Those that predict together.
        usable: Labels for which that of the first model is usable.
        measured: What was measured of the first model, by label.
        needed: What it needs, beside enough cases.
    """
    names = list(models[0].plans.labels.foreground)
    if len(models) > 1:
        return ", ".join(names), "the mean of several models was never measured"
    names = [name for name in names if name not in usable]
    why = "the model file does not say what was measured"
    if counts := [measured[name].cases for name in names if name in measured]:
        cases = plural(min(counts), "validation case")
        why = f"measured on {cases}; at least {FEWEST_CASES} are needed, {needed}"
    return ", ".join(names), why


def _words(labels: Collection[str]) -> dict[str, str]:
    """Return names of labels as files can have them; numbers, where these would be the same."""
    words = {name: re.sub(r"\W+", "_", name).strip("_") for name in labels}
    if len({word.casefold() for word in words.values()} - {""}) < len(words):
        return {name: f"label{number}" for number, name in enumerate(labels, start=1)}
    return words
