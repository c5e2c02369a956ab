"""From a case's files to its voxels: read, checked, and brought onto one grid."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError
from mixmfl.core.pipeline import reason_of
from mixmfl.core.text import plural
from mixmfl.data import image
from mixmfl.data.cases import Case
from mixmfl.data.image import Grid, Source
from mixmfl.data.label_sets import LabelMap
from mixmfl.data.labels import Labels
from mixmfl.data.registration import FULL_COVERAGE, Fit, finest, fit, mirror, register, resample

_MIRRORED = "Convert it again from its source: which side is left was lost"

FEWEST_VALUES = 8  # that an image has; label files have fewer
SMALLEST_SIZE, LARGEST_SIZE = 2.0**-16, 2.0**40  # of the largest value, to be taken as it is

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class AlignmentOptions:
    """What may be done where the images of a case do not lie on each other.

    Attributes:
        reference: The modality whose grid the others are brought onto, and masks get; empty, or
            where a case lacks it: that with the largest in-plane resolution. A label decides
            before both: it was drawn on the grid that it has.
        register: Whether images whose headers are wrong are registered (rigidly); otherwise such
            a case is refused.
        leave_out: Whether an image that cannot be used, or does not lie on the others, is left
            out with a warning; otherwise the case is refused.
    """

    reference: str = ""
    register: bool = False
    leave_out: bool = False


_AS_HEADERS_SAY = AlignmentOptions()


@dataclass(frozen=True)
class LoadedCase:
    """A case's voxels, checked and in canonical orientation.

    Attributes:
        name: The case's.
        images: ``(Z, Y, X)`` of each modality, finite, sorted by modality.
        labels: ``(Z, Y, X)`` class indices; None without a label file or a description.
        grid: The grid of the reference's file, onto which ``image.from_canonical`` leads back.
        canonical: The grid of these arrays.
        reference: The modality that this grid is of.
        notes: What was done to bring the images together.
        warnings: What is doubtful about that, and which images were left out.
    """

    name: str
    images: dict[str, npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int16] | None
    grid: Grid
    canonical: Grid
    reference: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def load_case(
    case: Case,
    labels: Labels | LabelMap | None = None,
    placing: AlignmentOptions = _AS_HEADERS_SAY,
    worth: Mapping[tuple[str, ...], float] | None = None,
) -> LoadedCase:
    """Read a case, check it, bring it onto one grid, and turn it to canonical orientation.

    Args:
        case: From ``find_cases``.
        labels: What the label file's values mean, of a site with its own values as
            ``label_sets.map_labels`` tells it; without it the label file is not read.
        placing: What to do with images that are not on one grid.
        worth: By modalities (sorted), the Dice that is expected from them. Where images do not
            lie on each other and some are left out, the most that agree are kept, and of equally
            many those worth most.

    Raises:
        DataError: An image holds NaN or the same value everywhere, or does not lie where the
            reference does, and is not to be left out; or no image is left; or the label is on no
            image's grid or holds values not declared.
    """
    arrays, grids, notes, warnings = _read_images(case, placing)
    drawn = case.label if labels is not None else None
    label_grid = _named(case, image.read_grid, drawn) if drawn is not None else None
    reference = choose_reference(case, grids, label_grid, placing.reference)
    if label_grid is not None and image.difference(label_grid, grids[reference]) is not None:
        warnings.append(
            f"the label lies on {reference} by its qform, not by its sform; it was taken to be "
            "drawn on its voxels"
        )
    fits: _Fits = {}
    if placing.leave_out and reference != placing.reference:
        reference = _agreeing_reference(reference, arrays, grids, worth or {}, fits)
    grid = grids[reference]
    images, canonical = {}, grid
    for modality in tuple(arrays):
        if modality != reference:
            try:
                arrays[modality] = _onto_reference(
                    case, modality, reference, arrays, grids, placing, fits, notes, warnings
                )
            except DataError as error:
                if not placing.leave_out:
                    raise
                warnings.append(_left_out(case, modality, error))
                if len(grids) == 2:
                    warnings.append(f"whether {modality} or {reference} is wrong is not known")
                del arrays[modality]
    for modality in tuple(arrays):
        images[modality], canonical = image.to_canonical(arrays.pop(modality), grid)

    indices = None
    if labels is not None and drawn is not None:
        array, _ = _named(case, image.read_labels, drawn)
        try:
            indices = labels.to_indices(image.to_canonical(array, grid)[0])
        except DataError as error:
            raise DataError(
                f"case {case.name!r}: label ({case.label}) {error}. Mend the file, or declare its "
                'values under "labels" in dataset.json'
            ) from None
    return LoadedCase(
        case.name, images, indices, grid, canonical, reference, tuple(notes), tuple(warnings)
    )


def _read_images(
    case: Case, placing: AlignmentOptions
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, Grid], list[str], list[str]]:
    """Read a case's images, and return them, their grids, notes, and warnings."""
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    grids: dict[str, Grid] = {}
    notes: list[str] = []
    warnings: list[str] = []
    for modality, path in case.images.items():
        try:
            array, grid = _named(case, image.read_image, path)
            _check_voxels(case, modality, array)
        except Exception as error:  # whatever it is, it costs this image alone
            is_ours = isinstance(error, DataError)
            if not placing.leave_out or (len(case.images) == 1 and is_ours):
                raise
            warnings.append(_left_out(case, modality, error))
            continue
        arrays[modality], grids[modality] = _background_at_zero(_of_usual_size(array)), grid
        told, doubts = image.doubts(grid)
        notes.extend(f"{modality}: {note}" for note in told)
        warnings.extend(f"{modality}: {doubt}" for doubt in doubts)
    if not arrays:
        raise DataError(
            f"case {case.name!r}: none of its images can be used. {'; '.join(warnings)}"
        )
    return arrays, grids, notes, warnings


def _left_out(case: Case, modality: str, error: Exception) -> str:
    reason = reason_of(error).removeprefix(f"case {case.name!r}: ")
    return f"{modality} was left out: {reason}"


_Fits = dict[tuple[str, str], Fit]


def _fit(
    fits: _Fits,
    arrays: Mapping[str, npt.NDArray[np.float32]],
    grids: Mapping[str, Grid],
    reference: str,
    modality: str,
) -> Fit:
    """Return how an image fits the reference as their headers say; measured once."""
    if (reference, modality) not in fits:
        fits[reference, modality] = fit(
            arrays[reference], grids[reference], arrays[modality], grids[modality]
        )
    return fits[reference, modality]


def _agreeing_reference(
    first: str,
    arrays: Mapping[str, npt.NDArray[np.float32]],
    grids: Mapping[str, Grid],
    worth: Mapping[tuple[str, ...], float],
    fits: _Fits,
) -> str:
    """Return the modality on which most images lie; of equals see ``load_case``, then the first.

    Nothing but the first is looked at where all others lie on it.
    """
    best, most = first, (0, 0.0)
    others = {name: grid for name, grid in grids.items() if name != first}
    candidate = first
    while True:
        agreeing = [
            name
            for name in grids
            if name == candidate or _fit(fits, arrays, grids, candidate, name).fault is None
        ]
        rank = len(agreeing), worth.get(tuple(sorted(agreeing)), 0.0)
        if rank > most:
            best, most = candidate, rank
        if len(agreeing) == len(grids) or not others:
            return best
        candidate = finest(others)
        del others[candidate]


def voxels_of(case: Case) -> int:
    """Return how many voxels the largest image of a case has, from headers alone.

    What cannot be read has none; ``load_case`` says so.
    """

    def voxels(source: Path | Source) -> int:
        try:
            return (
                math.prod(image.read_grid(source).shape)
                if isinstance(source, Path)
                else source.size
            )
        except DataError:
            return 0

    return max(map(voxels, case.images.values()))


def choose_reference(
    case: Case, grids: Mapping[str, Grid], label: Grid | None, wanted: str = ""
) -> str:
    """Return the modality whose grid a case's images are brought onto; see ``AlignmentOptions``.

    Args:
        case: For messages.
        grids: Of the images.
        label: The label's grid, where the case has one.
        wanted: ``AlignmentOptions.reference``.

    Raises:
        DataError: The label is on the grid of none of the images.
    """
    best = wanted if wanted in grids else finest(grids)
    if label is None:
        return best
    order = [best, *(name for name in grids if name != best)]
    differences = {name: image.difference(label, grids[name]) for name in order}
    for name, difference in differences.items():
        if difference is None:
            return name
    for name in order:
        if image.is_on_qform(label, grids[name]):
            return name
    raise DataError(
        f"case {case.name!r}: label and {best} differ in {differences[best]} ({case.label}, "
        f"{case.images[best]}), and no other image is on the label's grid either. Resample the "
        f"label to {best} by nearest neighbour first"
    )


def _check_voxels(case: Case, modality: str, array: npt.NDArray[np.float32]) -> None:
    path = case.images[modality]
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise DataError(
            f"case {case.name!r}: {modality} ({path}) holds {plural(bad, 'voxel')} of NaN or "
            "infinity; needed are finite numbers. Replace them, for example by the background"
        )
    if array.min() == array.max():
        raise DataError(
            f"case {case.name!r}: {modality} ({path}) is empty, every voxel is "
            f"{array.flat[0]:g}. Remove the file if the case lacks this modality"
        )
    if values := _few_values(array):
        raise DataError(
            f"case {case.name!r}: {modality} ({path}) holds only the values "
            f"{', '.join(f'{value:g}' for value in values)}; a label was given as an image. Name "
            "the file as a label, or remove it"
        )


def _few_values(array: npt.NDArray[np.float32]) -> list[float]:
    """Return the values of an image if they are as few as a label's; else none."""
    flat = array.ravel()
    for step in (max(1, flat.size // 100_000), 1):  # a sample tells nearly always
        values = np.unique(flat[::step])
        if len(values) >= FEWEST_VALUES:
            return []
    return [float(value) for value in values]


def _onto_reference(
    case: Case,
    modality: str,
    reference: str,
    arrays: Mapping[str, npt.NDArray[np.float32]],
    grids: Mapping[str, Grid],
    placing: AlignmentOptions,
    fits: _Fits,
    notes: list[str],
    warnings: list[str],
) -> npt.NDArray[np.float32]:
    """Return an image on the reference's grid, checked to show the same place; add what to tell.

    Raises:
        DataError: It does not, and may not be registered, or registering did not help.
    """
    fixed, onto, moving, own = (
        arrays[reference],
        grids[reference],
        arrays[modality],
        grids[modality],
    )
    difference = image.difference(own, onto)
    found = _fit(fits, arrays, grids, reference, modality)
    if found.fault is None:
        if found.coverage < FULL_COVERAGE:
            warnings.append(
                f"{modality} shows {found.coverage:.0%} of the head that {reference} shows"
            )
        if difference is None:
            return moving
        notes.append(f"{modality} was resampled onto the grid of {reference} ({difference})")
        return resample(moving, own, onto)
    where = f"{case.images[modality]}, {case.images[reference]}"
    refused = f"case {case.name!r}: {modality} does not lie on {reference}: {found.fault} ({where})"
    if found.is_mirrored:  # a head is so symmetric that it could be registered all the same
        raise DataError(f"{refused}. {_MIRRORED}")
    if not placing.register:
        raise DataError(f"{refused}. Look at both; --register registers them rigidly")
    moved = register(fixed, onto, moving, own)
    after = fit(fixed, onto, moving, own, moved)
    told = (
        f"shift {moved.shift_mm:.1f} mm, turn {moved.angle:.1f} degrees, mutual information "
        f"{found.similarity:.3f} before and {after.similarity:.3f} after"
    )
    # not "<": without numbers to compare, nothing says that registering helped
    if after.fault is not None or not after.similarity > found.similarity:
        raise DataError(
            f"{refused}, and registering did not mend it "
            f"({told}{'; ' + after.fault if after.fault else ''})"
        )
    # ``after`` knows mirror planes that are those of the grid; the head may have been turned
    other = mirror(moving, own)
    mirrored = fit(fixed, onto, other, own, register(fixed, onto, other, own)).similarity
    if not after.similarity > mirrored:
        raise DataError(
            f"{refused}, and registered it fits better mirrored left to right ({told}, "
            f"{mirrored:.3f} mirrored). {_MIRRORED}"
        )
    done = f"{modality} was registered to {reference} ({told})"
    notes.append(done)
    warnings.append(f"{done}; look at both")
    return resample(moving, own, onto, moved)


def _of_usual_size(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Bring values that single precision cannot square to the size of 1, by a power of two.

    Such are maps in SI units, and what damaged scale factors make. Only their ratios count.
    """
    size = max(abs(float(array.min())), abs(float(array.max())))
    if SMALLEST_SIZE <= size <= LARGEST_SIZE:
        return array
    return np.ldexp(array, -math.frexp(size)[1])


def _background_at_zero(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Shift an image whose background is one value other than 0, as z-scoring leaves it.

    Cropping and normalisation tell the head by its voxels not being 0. An image has such a
    background where all its eight corners hold that very value.
    """
    corners = array[np.ix_(*[(0, -1)] * 3)]
    value = corners.flat[0]
    return array - value if value != 0 and (corners == value).all() else array


def _named(case: Case, read: Callable[[S], T], path: S) -> T:
    """Read a file, and let the error say which case it is of."""
    try:
        return read(path)
    except DataError as error:
        raise DataError(f"case {case.name!r}: {error}") from None
