"""From a case's files to its voxels, which are read, checked and brought onto one grid."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
import numpy.typing as npt

from mixmfl.core.declarations import text
from mixmfl.core.errors import DataError
from mixmfl.core.json_fields import MOST_NAME
from mixmfl.core.pipeline import reason_of
from mixmfl.core.text import each_once, plural
from mixmfl.data import image
from mixmfl.data.cases import Case
from mixmfl.data.content_doubts import doubts_about_content, doubts_about_pairs, some_voxels
from mixmfl.data.grid import Grid, canonical_grid, grid_difference, is_on_qform, to_canonical
from mixmfl.data.grid_doubts import doubts_of_grid
from mixmfl.data.image import Source
from mixmfl.data.label_doubts import doubts_about
from mixmfl.data.label_sets import LabelMap
from mixmfl.data.labels import Labels
from mixmfl.data.registration import (
    FULL_COVERAGE,
    AlignmentCheck,
    finest,
    fit,
    mirror,
    register,
    resample,
)
from mixmfl.data.slice_doubts import doubts_about_slices

_MIRRORED = "Convert it again from its source: which side is left was lost"

FEWEST_VALUES = 8  # of an image; label files have fewer
NEAR_LIMIT = 24000  # an image beyond it on both sides of 0 fills the range of 16 bits
CLEARLY_SMOOTHER = 0.5  # from which a smaller roughness counts
LEAST_SHOWN = 0.02  # of the voxels, below which an image shows less than a head in a large box
SAME_IMAGE = 0.9999  # correlation; of T1 before and after a contrast agent it was up to 0.992
SMALLEST_SIZE, LARGEST_SIZE = 2.0**-16, 2.0**40  # largest values of images that are not rescaled

S = TypeVar("S")
T = TypeVar("T")


@dataclass(frozen=True)
class AlignmentOptions:
    """What to do if the images of a case do not lie on each other.

    Attributes:
        reference: The modality whose grid the other images and the mask get. If it is empty or
            missing in a case, the modality with the largest in-plane resolution is used. A label
            decides before both: the grid is the one that the label was drawn on.
        register: Whether to register images with wrong headers (rigidly); otherwise such a case is
            refused.
        leave_out: Whether to leave out an image that cannot be used, or does not lie on the
            others, with a warning; otherwise the case is refused.
    """

    reference: Annotated[str, text(MOST_NAME, least=0)] = ""
    register: bool = False
    leave_out: bool = False


_AS_HEADERS_SAY = AlignmentOptions()


@dataclass(frozen=True)
class LoadedCase:
    """A case's voxels, checked and in canonical orientation.

    Attributes:
        name: The case's name.
        images: The image ``(Z, Y, X)`` of each modality, finite, sorted by modality.
        labels: Class indices ``(Z, Y, X)``; None without a label file or a description.
        grid: The grid of the reference's file, onto which ``from_canonical`` leads back.
        canonical: The grid of the arrays here.
        reference: The modality whose grid the images have.
        notes: How the images were brought onto one grid.
        warnings: Doubts about that, and the images that were left out.
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
    alignment: AlignmentOptions = _AS_HEADERS_SAY,
    worth: Callable[[Collection[str]], float] = lambda modalities: 0.0,
) -> LoadedCase:
    """Read a case, check it, bring it onto one grid, and turn it to canonical orientation.

    Args:
        case: A case of ``find_cases``.
        labels: The meaning of the label file's values; for a site with its own values a map from
            ``label_sets.map_labels``. Without it the label file is not read.
        alignment: What to do with images that are not on one grid.
        worth: Returns the Dice expected from modalities. Where images do not lie on each other and
            some are left out, the largest set that agrees is used, and of equally large sets the
            one with the highest Dice.

    Raises:
        DataError: An image holds NaN or one value everywhere, or does not lie on the reference,
            and ``alignment`` does not leave it out; or no image remains; or the label is on no
            image's grid or holds undeclared values.
    """
    arrays, grids, notes, warnings = _read_images(case, alignment)
    drawn = case.label if labels is not None else None
    label_grid = _named(case, image.read_grid, drawn) if drawn is not None else None
    reference = choose_reference(case, grids, label_grid, alignment.reference)
    on_qform = label_grid is not None and not _are_same_voxels(label_grid, grids[reference])
    if on_qform:
        warnings.append(
            f"the label lies on {reference} by its qform, not by its sform; it was taken as "
            "drawn on its voxels"
        )
    checks: _Checks = {}
    if alignment.leave_out and reference != alignment.reference:
        reference = _agreeing_reference(reference, arrays, grids, worth, checks)
    grid = grids[reference]
    images, canonical = {}, grid
    for modality in tuple(arrays):
        if modality != reference:
            try:
                arrays[modality] = _onto_reference(
                    case, modality, reference, arrays, grids, alignment, checks, notes, warnings
                )
            except DataError as error:
                if not alignment.leave_out:
                    raise
                warnings.append(_left_out(case, modality, error))
                if len(grids) == 2:
                    warnings.append(f"whether {modality} or {reference} is wrong is not known")
                del arrays[modality]
    for modality in tuple(arrays):
        images[modality], canonical = to_canonical(arrays.pop(modality), grid)
    warnings.extend([*_twins(images), *doubts_about_pairs(images)])

    indices = None
    if labels is not None and drawn is not None:
        array, own = _named(case, image.read_labels, drawn)
        try:
            indices = labels.to_indices(to_canonical(array, grid if on_qform else own)[0])
        except DataError as error:
            raise DataError(
                f"case {case.name!r}: label ({case.label}) {error}. Fix the file, or declare its "
                'values under "labels" in dataset.json'
            ) from None
        warnings.extend(doubts_about(indices, images))
    return LoadedCase(
        case.name, images, indices, grid, canonical, reference, tuple(notes), tuple(warnings)
    )


def _read_images(
    case: Case, alignment: AlignmentOptions
) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, Grid], list[str], list[str]]:
    """Read a case's images, and return them, their grids, notes, and warnings."""
    arrays: dict[str, npt.NDArray[np.float32]] = {}
    grids: dict[str, Grid] = {}
    notes: list[tuple[str, str]] = []
    doubtful: list[tuple[str, str]] = []
    warnings: list[str] = []
    unusable: dict[str, Exception] = {}
    for modality, path in case.images.items():
        try:
            array, grid = _named(case, image.read_image, path)
            _check_voxels(case, modality, array)
        except Exception as error:  # any failure costs this image alone
            is_ours = isinstance(error, DataError)
            if not alignment.leave_out or (len(case.images) == 1 and is_ours):
                raise
            warnings.append(_left_out(case, modality, error))
            unusable[modality] = error
            continue
        array = _background_at_zero(_of_usual_size(array))
        arrays[modality], grids[modality] = array, grid
        alignment_notes, doubts = doubts_of_grid(grid)
        doubts += [*doubts_about_slices(array, grid), *doubts_about_content(array, grid)]
        if (shown := np.count_nonzero(array) / array.size) < LEAST_SHOWN:
            doubts.append(f"shows something in {shown:.2%} of its voxels alone; was it cut out?")
        notes.extend((modality, note) for note in alignment_notes)
        doubtful.extend((modality, doubt) for doubt in doubts)
    if not arrays:
        why = _each_reason_once(case, unusable)
        raise DataError(f"case {case.name!r}: none of its images can be used. {why}")
    return arrays, grids, each_once(notes), [*warnings, *each_once(doubtful)]


def _left_out(case: Case, modality: str, error: Exception) -> str:
    return f"{modality} was left out: {_reason(case, error)}"


def _reason(case: Case, error: Exception) -> str:
    return reason_of(error).removeprefix(f"case {case.name!r}: ")


def _each_reason_once(case: Case, unusable: Mapping[str, Exception]) -> str:
    """Return why images cannot be used; those that have a reason in common are named together."""
    alike: dict[str, list[str]] = {}
    for modality, error in unusable.items():
        reason = _reason(case, error).removeprefix(f"{case.images[modality]}: ")
        alike.setdefault(reason, []).append(modality)
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in alike.items())


def _twins(images: Mapping[str, npt.NDArray[np.float32]]) -> list[str]:
    """Return a warning for each two modalities that are one image, maybe on another scale."""
    few = some_voxels(images.values())
    with np.errstate(divide="ignore", invalid="ignore"):  # of one value alone; it is like no other
        alike = np.atleast_2d(np.corrcoef(few)) > SAME_IMAGE
    return [
        f"{one} and {other} are the same image: one of them has a wrong name"
        for (i, one), (j, other) in combinations(enumerate(images), 2)
        if alike[i, j]
    ]


_Checks = dict[tuple[str, str], AlignmentCheck]


def _check_alignment(
    checks: _Checks,
    arrays: Mapping[str, npt.NDArray[np.float32]],
    grids: Mapping[str, Grid],
    reference: str,
    modality: str,
) -> AlignmentCheck:
    """Return how well an image fits the reference by their headers, measured once."""
    if (reference, modality) not in checks:
        checks[reference, modality] = fit(
            arrays[reference], grids[reference], arrays[modality], grids[modality]
        )
    return checks[reference, modality]


def _agreeing_reference(
    first: str,
    arrays: Mapping[str, npt.NDArray[np.float32]],
    grids: Mapping[str, Grid],
    worth: Callable[[Collection[str]], float],
    checks: _Checks,
) -> str:
    """Return the modality on which most images lie; ``load_case`` describes how ties are decided.

    Only the first candidate is checked if all images lie on it.
    """
    best, most = first, (0, 0.0)
    others = {name: grid for name, grid in grids.items() if name != first}
    candidate = first
    while True:
        agreeing = [
            name
            for name in grids
            if name == candidate
            or _check_alignment(checks, arrays, grids, candidate, name).fault is None
        ]
        rank = len(agreeing), worth(agreeing)
        if rank > most:
            best, most = candidate, rank
        if len(agreeing) == len(grids) or not others:
            return best
        candidate = finest(others)
        del others[candidate]


def voxels_of(case: Case) -> int:
    """Return how many voxels the largest image of a case has, from headers alone.

    An image that cannot be read counts 0; ``load_case`` reports it.
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
    case: Case, grids: Mapping[str, Grid], label: Grid | None, preferred: str = ""
) -> str:
    """Return the modality whose grid a case's images are brought onto; see ``AlignmentOptions``.

    Args:
        case: The case, for messages.
        grids: The grids of the images, by modality.
        label: The label's grid, if the case has one.
        preferred: ``AlignmentOptions.reference``.

    Raises:
        DataError: The label is on the grid of no image.
    """
    best = preferred if preferred in grids else finest(grids)
    if label is None:
        return best
    order = [best, *(name for name in grids if name != best)]
    for name in order:
        if _are_same_voxels(label, grids[name]):
            return name
    for name in order:
        if is_on_qform(label, grids[name]):
            return name
    differs = grid_difference(label, grids[best])
    raise DataError(
        f"case {case.name!r}: label and {best} differ in {differs} ({case.label}, "
        f"{case.images[best]}), and no other image is on the label's grid either. Resample the "
        f"label to {best} by nearest neighbour first"
    )


def _are_same_voxels(label: Grid, grid: Grid) -> bool:
    """Say whether two grids have the same voxels, in whatever order of axes."""
    both = map(canonical_grid, (label, grid))
    return grid_difference(*both) is None


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
    if _is_swapped(array):
        raise DataError(
            f"case {case.name!r}: {modality} ({path}) is noise as its header says it, and smooth "
            "once the two bytes of each number are exchanged: it was stored in the other byte "
            "order. Export it again"
        )
    if _is_wrapped(array):
        raise DataError(
            f"case {case.name!r}: {modality} ({path}) has its brightest voxels below 0: numbers "
            "above 32767 were stored in 16 bits with a sign. Export it again, in another number "
            "type"
        )
    if values := _few_values(array):
        raise DataError(
            f"case {case.name!r}: {modality} ({path}) holds only the values "
            f"{', '.join(f'{value:g}' for value in values)}; a label was given as an image. Name "
            "the file as a label, or remove it"
        )


def _is_swapped(array: npt.NDArray[np.float32]) -> bool:
    """Say whether whole numbers of 16 bits are clearly smoother with their bytes exchanged."""
    low, high = float(array.min()), float(array.max())
    kind = np.int16 if low < 0 else np.uint16
    limits = np.iinfo(kind)
    if high - low < NEAR_LIMIT or low < limits.min or high > limits.max:
        return False
    whole = array.astype(kind)
    if not np.array_equal(whole, array):
        return False
    swapped = whole.byteswap()

    def roughness(values: npt.NDArray[Any]) -> float:
        steps = sum(float(np.abs(np.diff(values.astype(float), axis=a)).mean()) for a in (1, 2))
        return steps / max(float(values.std()), 1e-9)

    return roughness(swapped) < CLEARLY_SMOOTHER * roughness(whole)


def _is_wrapped(array: npt.NDArray[np.float32]) -> bool:
    """Say whether an image is one of 16 bits without a sign that was stored with one.

    It fills the range of the type, and is smoother where its negative values are read without
    the sign.
    """
    low, high = float(array.min()), float(array.max())
    if not (-(2**15) <= low < -NEAR_LIMIT and NEAR_LIMIT < high < 2**15):
        return False
    unwrapped = np.where(array < 0, array + 2**16, array)

    def roughness(values: npt.NDArray[np.float32]) -> float:
        return sum(float(np.abs(np.diff(values, axis=axis)).sum(dtype=float)) for axis in (1, 2))

    return roughness(unwrapped) < roughness(array)


def _few_values(array: npt.NDArray[np.float32]) -> list[float]:
    """Return the values of an image if they are as few as a label's; else none."""
    flat = array.ravel()
    for step in (max(1, flat.size // 100_000), 1):  # a sample decides nearly always
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
    alignment: AlignmentOptions,
    checks: _Checks,
    notes: list[str],
    warnings: list[str],
) -> npt.NDArray[np.float32]:
    """Return an image on the reference's grid, and add notes and warnings about it.

    Raises:
        DataError: The image does not show the reference's place, and may not be registered or
            registration did not help.
    """
    fixed, onto, moving, own = (
        arrays[reference],
        grids[reference],
        arrays[modality],
        grids[modality],
    )
    difference = grid_difference(own, onto)
    before = _check_alignment(checks, arrays, grids, reference, modality)
    if before.fault is None:
        if before.coverage < FULL_COVERAGE:
            warnings.append(
                f"{modality} shows {before.coverage:.0%} of the head that {reference} shows"
            )
        if difference is None:
            return moving
        notes.append(f"{modality} was resampled onto the grid of {reference} ({difference})")
        return resample(moving, own, onto)
    where = f"{case.images[modality]}, {case.images[reference]}"
    refused = (
        f"case {case.name!r}: {modality} does not lie on {reference}: {before.fault} ({where})"
    )
    if before.is_mirrored:  # a head is so symmetric that it could be registered all the same
        raise DataError(f"{refused}. {_MIRRORED}")
    if before.is_reversed:
        raise DataError(
            f"{refused}. Convert it again from its source: the order of slices was lost"
        )
    if not alignment.register:
        raise DataError(f"{refused}. Look at both; --register registers them rigidly")
    transform = register(fixed, onto, moving, own)
    after = fit(fixed, onto, moving, own, transform)
    measured = (
        f"shift {transform.shift_mm:.1f} mm, turn {transform.angle:.1f} degrees, mutual "
        f"information {before.similarity:.3f} before and {after.similarity:.3f} after"
    )
    # not "<": NaN must not count as an improvement
    if after.fault is not None or not after.similarity > before.similarity:
        raise DataError(
            f"{refused}, and registration did not fix it "
            f"({measured}{'; ' + after.fault if after.fault else ''})"
        )
    # ``after`` knows mirror planes that are those of the grid; the head may have been turned
    other = mirror(moving, own)
    mirrored = fit(fixed, onto, other, own, register(fixed, onto, other, own)).similarity
    if not after.similarity > mirrored:
        raise DataError(
            f"{refused}, and registered it fits better mirrored left to right ({measured}, "
            f"{mirrored:.3f} mirrored). {_MIRRORED}"
        )
    done = f"{modality} was registered to {reference} ({measured})"
    notes.append(done)
    warnings.append(f"{done}; look at both")
    return resample(moving, own, onto, transform)


def _of_usual_size(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scale values that single precision cannot square to about 1, by a power of two.

    Such values come from maps in SI units and damaged scale factors. Only their ratios count.
    """
    size = max(abs(float(array.min())), abs(float(array.max())))
    if SMALLEST_SIZE <= size <= LARGEST_SIZE:
        return array
    return np.ldexp(array, -math.frexp(size)[1])


def _background_at_zero(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Shift an image whose background is one value other than 0, as z-scoring leaves it.

    Cropping and normalisation take voxels other than 0 for the head. An image has such a
    background if all its eight corners hold the same value, or half of its outermost voxels do.
    Voxels of 0 at its edge are then background, too: resampling fills with them.
    """
    corners = array[np.ix_(*[(0, -1)] * 3)]
    value = corners.flat[0]
    if (corners == value).all():
        return array - value if value != 0 else array
    values, counts = np.unique(_outermost(array), return_counts=True)
    value = values[counts.argmax()]
    if value == 0 or 2 * counts.max() < counts.sum():
        return array
    from scipy import ndimage  # slow to import, and seldom needed

    parts, _ = ndimage.label(array == 0)
    filled = np.isin(parts, np.setdiff1d(_outermost(parts), [0]))
    return np.where(filled, np.float32(0), array - value)


def _outermost(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return the voxels of an array's six faces; those at edges more than once."""
    return np.concatenate([np.take(array, at, axis).ravel() for axis in range(3) for at in (0, -1)])


def _named(case: Case, read: Callable[[S], T], path: S) -> T:
    """Read a file, and put the case's name before any error."""
    try:
        return read(path)
    except DataError as error:
        raise DataError(f"case {case.name!r}: {error}") from None
