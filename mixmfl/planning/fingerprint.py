"""What a site reports: counts, histograms and sums that merge exactly, no row per case."""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any

import numpy as np

from mixmfl.core.declarations import entries, one_of, text, within
from mixmfl.core.errors import PlansError
from mixmfl.core.json_fields import Range, named
from mixmfl.core.records import read_record
from mixmfl.core.text import quoted, shorten
from mixmfl.data.body_parts import ANATOMIES
from mixmfl.data.dataset_card import SUBJECTS, UNKNOWN, DatasetCard
from mixmfl.data.modalities import MOST_MODALITIES, ModalityName
from mixmfl.planning.heads import STATES, STRIPPED
from mixmfl.planning.slices import slice_axis, slices_first
from mixmfl.planning.typical import Typical, describe_image, merge_typical

FORMAT = 5

# Foreground intensities are reported in units of the image's own standard deviation, so that they
# say how a lesion looks in a modality and not which scanner took it.
INTENSITY_EDGES = np.arange(-5.0, 10.01, 0.25)

# Cropped sizes of 16 voxels and more are reported in steps of four: enough for a plan, too coarse
# to recognise one head among many.
SIZE_STEP = 4
SIZE_EXACT_BELOW = 16

SHARE_STEP = 0.05

# what a fingerprint may say at most: far beyond what hospitals have, so that a slip or malice in
# one costs neither memory nor time, nor a plan that nobody can use
MOST_CASES = 10**6
MOST_VOXELS = 10**11  # of a case
MOST_GRIDS = 10_000  # different spacings and sizes of an axis
MOST_SIZE = 8192  # voxels
SPACINGS = (1e-4, 1000.0)  # mm

MOST_ROWS = 20_000
"""Most cases that a planner is given one by one; of more it gets as many, evenly spaced."""

_SHARES = tuple(f"{step * SHARE_STEP:.2f}" for step in range(round(1 / SHARE_STEP) + 1))
_KEY = re.compile(r"([0-9]{1,4}(?:\.[0-9]{1,4})?)x([0-9]{1,5})")
# Where more than one half of the cases are stacks of thick slices, and at least one in ten of
# these stacks has another direction than most, what the cases have in common are slices.
MOST_ARE_STACKS = 0.5
OTHER_DIRECTIONS = 0.1


_DIRECTIONS = "ZYX"

_Count = Annotated[int, within(1, MOST_CASES)]
_Slices = Annotated[str, one_of((*_DIRECTIONS, "none"))]
_Axis = Annotated[Mapping[Annotated[str, text(80)], _Count], entries(1, MOST_GRIDS)]
_BINS = len(INTENSITY_EDGES) - 1
_Histogram = Annotated[
    tuple[Annotated[int, within(0, MOST_CASES * MOST_VOXELS)], ...], entries(_BINS, _BINS)
]


@dataclass(frozen=True)
class Fingerprint:
    """Statistics of a site's training cases; the sum of two is that of the pooled cases.

    Attributes:
        cases: Number of cases.
        modality_cases: How many cases have each modality.
        axes: For each array axis (Z, Y, X), how many cases have a spacing and a size after
            cropping to the head, as ``"<spacing in mm>x<voxels>"``. Axes are counted apart, so
            which size along Z went with which along X is not reported.
        stacked: Spacings and sizes as in ``axes``, with the axis of the slices first where a case
            has thick ones.
        slices: How many cases have thick slices along ``"Z"``, ``"Y"`` or ``"X"``, and how many
            ``"none"``.
        kept_share: How many cases kept which share of their voxels when cropped, in steps of 0.05.
        intensities: Per modality a histogram over ``INTENSITY_EDGES`` of the foreground voxels'
            intensity, in standard deviations from the mean of the image's non-zero voxels.
            The first and last bin hold what lies beyond.
        heads: How many cases show their ``"skull"``, came ``"stripped"``, or had their brain
            extracted by ``"deepbet"`` or the site's ``"own"`` command.
        subjects: How many cases are of ``"patients"``, ``"simulated"``, or ``"unknown"``.
        anatomy: How many cases show which part of the body, one of ``ANATOMIES`` or
            ``"unknown"``.
        typical: Per modality what its images are usually like.
    """

    cases: _Count
    modality_cases: Annotated[Mapping[ModalityName, _Count], entries(0, MOST_MODALITIES)]
    axes: tuple[_Axis, _Axis, _Axis]
    stacked: tuple[_Axis, _Axis, _Axis]
    slices: Annotated[Mapping[_Slices, _Count], entries(1, 4)]
    kept_share: Annotated[
        Mapping[Annotated[str, one_of(_SHARES)], _Count], entries(1, len(_SHARES))
    ]
    intensities: Annotated[Mapping[ModalityName, _Histogram], entries(0, MOST_MODALITIES)]
    heads: Annotated[Mapping[Annotated[str, one_of(STATES)], _Count], entries(1, len(STATES))]
    subjects: Annotated[
        Mapping[Annotated[str, one_of((*SUBJECTS, UNKNOWN))], _Count],
        entries(1, len(SUBJECTS) + 1),
    ]
    anatomy: Annotated[
        Mapping[Annotated[str, one_of((*ANATOMIES, UNKNOWN))], _Count],
        entries(1, len(ANATOMIES) + 1),
    ]
    typical: Annotated[Mapping[ModalityName, Typical], entries(0, MOST_MODALITIES)]

    def with_origin(self, card: DatasetCard) -> "Fingerprint":
        """Return the fingerprint of a site's cases with what dataset.json says of all of them."""
        return replace(
            self,
            subjects={card.subjects or UNKNOWN: self.cases},
            anatomy={card.anatomy or UNKNOWN: self.cases},
        )

    def to_json(self) -> dict[str, Any]:
        """Return the fingerprint as JSON content, keys in a fixed order."""
        return {"format": FORMAT, **json.loads(json.dumps(asdict(self), sort_keys=True))}

    @classmethod
    def from_json(cls, content: Any, source: str) -> "Fingerprint":
        """Read a fingerprint from a file or a site's message.

        Raises:
            PlansError: Another format, unknown or missing fields, or counts that are no counts.
        """
        named(content, Range(0, math.inf), source)
        if (found := content.get("format")) != FORMAT or isinstance(found, bool):
            raise PlansError(
                f"{source}: fingerprint format {quoted(found)} was found, {FORMAT} is needed; make "
                "it again with this version of mixmfl_plan_preprocess"
            )
        fingerprint = read_record(cls, {n: v for n, v in content.items() if n != "format"}, source)
        if problem := fingerprint._contradiction():
            raise PlansError(
                f"{source}: {problem}; was it edited? Make it again with mixmfl_plan_preprocess "
                "--fingerprint-only"
            )
        return fingerprint

    def _contradiction(self) -> str:
        """Return what cannot be true of any cases, in words; empty where nothing is."""
        for name, axes in (("axes", self.axes), ("stacked", self.stacked)):
            for direction, axis in zip(_DIRECTIONS, axes, strict=True):
                if strange := [key for key in axis if not _is_grid(key)]:
                    return (
                        f"{name} {direction}: {quoted(strange[0])} is no spacing from "
                        f"{SPACINGS[0]:g} to {SPACINGS[1]:g} mm x 1 to {MOST_SIZE} voxels"
                    )
                if sum(axis.values()) != self.cases:
                    return f"{name}: the histograms do not add up to its {self.cases} cases"
        for name, counts in (
            ("slices", self.slices),
            ("kept_share", self.kept_share),
            ("heads", self.heads),
            ("subjects", self.subjects),
            ("anatomy", self.anatomy),
        ):
            if sum(counts.values()) != self.cases:
                return f"{name}: the counts do not add up to its {self.cases} cases"
        if (most := max(self.modality_cases.values(), default=0)) > self.cases:
            return f"modality_cases: {most} of its {self.cases} cases"
        if not self.cases <= sum(self.modality_cases.values()):
            return "modality_cases: fewer than its cases, of which each has a modality"
        if apart := sorted(self.intensities.keys() ^ self.modality_cases.keys()):
            return f"intensities and modality_cases: {shorten(apart)} is in one of them only"
        for name, usual in self.typical.items():
            if usual.images > self.modality_cases.get(name, 0):
                return f"typical: {name}: more images than cases"
            if not usual.is_possible:
                return f"typical: {name}: no images have these sums"
        return self._too_many_voxels()

    def _too_many_voxels(self) -> str:
        """Return which voxels cannot have been there, for images of these sizes; empty if none."""
        # sizes and shares are rounded; an image has what was cropped, over the share that that is
        sizes = [max(_spacing_and_size(key)[1] for key in axis) for axis in self.axes]
        share = min(map(float, self.kept_share)) - SHARE_STEP / 2
        most = math.prod(size + SIZE_STEP for size in sizes) / share if share > 0 else MOST_VOXELS
        for name, number in self.modality_cases.items():
            if sum(self.intensities[name]) > most * number:
                return f"intensities: {name}: more voxels than its {number} cases have"
        return ""


@dataclass(frozen=True)
class PatientCounts:
    """How many patients the cases of a site are of: several examinations of one count once.

    It stays at the site, and decides what of a fingerprint is withheld.

    Attributes:
        patients: Number of patients.
        modalities: How many have a case with each modality.
        typical: How many are behind what the images of each modality are usually like.
        heads: How many have a case of each state, see ``Fingerprint``.
    """

    patients: _Count
    modalities: Annotated[Mapping[ModalityName, _Count], entries(0, MOST_MODALITIES)]
    typical: Annotated[Mapping[ModalityName, _Count], entries(0, MOST_MODALITIES)]
    heads: Annotated[Mapping[Annotated[str, one_of(STATES)], _Count], entries(1, len(STATES))]


def count_patients(cases: Iterable[tuple[str, Fingerprint]]) -> PatientCounts:
    """Return of how many patients cases are.

    Args:
        cases: The patient of each case, and the case's fingerprint.
    """
    parts = list(cases)

    def counted(names: Callable[[Fingerprint], Iterable[str]]) -> dict[str, int]:
        pairs = {(name, patient) for patient, part in parts for name in names(part)}
        return _add([Counter(name for name, _ in pairs)])

    return PatientCounts(
        len({patient for patient, _ in parts}),
        counted(lambda part: part.modality_cases),
        counted(lambda part: part.typical),
        counted(lambda part: part.heads),
    )


def fingerprint_case(
    images: Mapping[str, np.ndarray],
    labels: np.ndarray,
    spacing: tuple[float, float, float],
    cropped: tuple[slice, slice, slice],
    state: str = STRIPPED,
) -> Fingerprint:
    """Return the fingerprint of one case, to be merged before anybody sees it.

    Args:
        images: Per modality ``(Z, Y, X)`` in scanner units.
        labels: ``(Z, Y, X)``, label values as declared.
        spacing: mm, ``(Z, Y, X)``.
        cropped: The box around the non-zero voxels, as preprocessing crops it.
        state: What the case is like, one of ``heads.STATES``.
    """
    sizes = [part.stop - part.start for part in cropped]
    share = float(np.prod(sizes)) / labels.size
    axes = [
        {f"{round(mm, 4):g}x{_coarse(size)}": 1} for mm, size in zip(spacing, sizes, strict=True)
    ]
    along = slice_axis(spacing)
    return Fingerprint(
        cases=1,
        modality_cases=dict.fromkeys(images, 1),
        axes=tuple(axes),  # type: ignore[arg-type]
        stacked=tuple(axes[axis] for axis in slices_first(spacing).order),  # type: ignore[arg-type]
        slices={"none" if along is None else _DIRECTIONS[along]: 1},
        kept_share={f"{round(share / SHARE_STEP) * SHARE_STEP:.2f}": 1},
        intensities={name: _intensities(image, labels) for name, image in images.items()},
        heads={state: 1},
        subjects={UNKNOWN: 1},
        anatomy={UNKNOWN: 1},
        typical={
            name: described
            for name, image in images.items()
            if (described := describe_image(image, spacing)) is not None
        },
    )


def merge_fingerprints(fingerprints: Iterable[Fingerprint]) -> Fingerprint:
    """Add fingerprints up; any grouping or order gives the same result, for all are integers.

    Raises:
        PlansError: There is none to merge, or there are too many modalities.
    """
    parts = list(fingerprints)
    if not parts:
        raise PlansError("no fingerprint to merge: at least one site with one case is needed")
    found = {name for part in parts for name in part.modality_cases}
    if len(found) > MOST_MODALITIES:
        raise PlansError(
            f"the sites have {len(found)} modalities, such as {shorten(sorted(found))}; at most "
            f"{MOST_MODALITIES} can be planned for. Leave out sites, or rename modalities (--alias)"
        )
    histograms: dict[str, np.ndarray] = {}
    for part in parts:
        for name, histogram in part.intensities.items():
            histograms[name] = histograms.get(name, 0) + np.asarray(histogram, dtype=object)
    return Fingerprint(
        cases=sum(part.cases for part in parts),
        modality_cases=_add(part.modality_cases for part in parts),
        axes=tuple(_add(part.axes[axis] for part in parts) for axis in range(3)),  # type: ignore[arg-type]
        stacked=tuple(_add(part.stacked[axis] for part in parts) for axis in range(3)),  # type: ignore[arg-type]
        slices=_add(part.slices for part in parts),
        kept_share=_add(part.kept_share for part in parts),
        intensities={name: tuple(histograms[name].tolist()) for name in sorted(histograms)},
        heads=_add(part.heads for part in parts),
        subjects=_add(part.subjects for part in parts),
        anatomy=_add(part.anatomy for part in parts),
        typical=merge_typical(part.typical for part in parts),
    )


def withhold_small_counts(
    fingerprint: Fingerprint, cases: int, voxels: int, behind: PatientCounts
) -> Fingerprint | None:
    """Return what may be reported of a fingerprint where statistics must rest on enough cases.

    With fewer cases than the minimum that is nothing. Otherwise the histogram of a modality that
    fewer patients or voxels have is empty. Heads, subjects and anatomies of which there are fewer
    are counted as the most frequent ones. Spacings and sizes stay as they are: a plan needs the
    rare ones too.

    Args:
        fingerprint: Fingerprint of the site.
        cases: Fewest cases, of as many patients, behind a statistic.
        voxels: Fewest voxels behind a histogram.
        behind: The number of patients whose cases they are.
    """
    if behind.patients < cases:
        return None
    return replace(
        fingerprint,
        heads=_few_as_usual(fingerprint.heads, behind.heads, cases),
        subjects=_few_as_usual(fingerprint.subjects, fingerprint.subjects, cases),
        anatomy=_few_as_usual(fingerprint.anatomy, fingerprint.anatomy, cases),
        intensities={
            name: histogram
            if behind.modalities[name] >= cases and sum(histogram) >= voxels
            else (0,) * len(histogram)
            for name, histogram in fingerprint.intensities.items()
        },
        typical={n: each for n, each in fingerprint.typical.items() if behind.typical[n] >= cases},
    )


def _few_as_usual(
    counts: Mapping[str, int], behind: Mapping[str, int], fewest: int
) -> dict[str, int]:
    """Return counts in which those with fewer than ``fewest`` behind join that with most."""
    usual = max(sorted(counts), key=lambda name: behind[name])
    changed: Counter[str] = Counter()
    for name, number in counts.items():
        changed[name if behind[name] >= fewest else usual] += number
    return _add([changed])


def spacing_ranges(fingerprint: Fingerprint) -> list[tuple[float, float, float]]:
    """Return for Z, Y and X the spacing (mm) that 5, 50 and 95 of a hundred cases do not exceed.

    Not the extremes, for these are those of single cases.
    """
    ranges = []
    for axis in fingerprint.axes:
        counted: Counter[float] = Counter()
        for key, number in axis.items():
            counted[_spacing_and_size(key)[0]] += number
        spacings = sorted(counted)
        share = np.cumsum([counted[mm] for mm in spacings]) / fingerprint.cases
        at = np.searchsorted(share, (0.05, 0.5, 0.95)).tolist()
        low, middle, high = (spacings[min(place, len(spacings) - 1)] for place in at)
        ranges.append((low, middle, high))
    return ranges


def is_stacks(fingerprint: Fingerprint) -> bool:
    """Say whether the cases are stacks of slices in different directions.

    Medians along the body's axes would be those of no case then: stacks of 12 mm along Z, Y and X
    would all be planned with the 0.7 mm that most of them have along each.
    """
    along = [fingerprint.slices.get(direction, 0) for direction in _DIRECTIONS]
    others = sum(along) - max(along)
    return sum(along) > MOST_ARE_STACKS * fingerprint.cases and others >= OTHER_DIRECTIONS * sum(
        along
    )


def grids(fingerprint: Fingerprint) -> tuple[np.ndarray, np.ndarray]:
    """Return spacings (mm) and sizes (voxels), each ``(cases, 3)``.

    The axes are Z, Y, X, or where the cases are stacks (``is_stacks``) the slices' axis and the
    two others.

    Every axis has the spacings and sizes of the real cases, each size beside its spacing, but
    sorted for itself: a row is no case. Medians and percentiles per axis, which is all that
    nnU-Net's planner takes, are those of the cases. Of more than ``MOST_ROWS`` cases there are so
    many rows, evenly spaced, whatever number of cases is claimed.
    """
    columns = []
    for axis in fingerprint.stacked if is_stacks(fingerprint) else fingerprint.axes:
        pairs = sorted((_spacing_and_size(key), n) for key, n in axis.items())
        ends = np.cumsum([n for _, n in pairs])
        places = np.searchsorted(ends, _places(int(ends[-1])), side="right")
        columns.append(np.array([pair for pair, _ in pairs], dtype=float)[places])
    table = np.array(columns)  # (3, cases, 2)
    return table[:, :, 0].T, table[:, :, 1].T.astype(int)


def _places(cases: int) -> np.ndarray:
    """Return which of so many cases in a row are given to the planner, counted from 0."""
    if cases <= MOST_ROWS:
        return np.arange(cases)
    return np.rint(np.linspace(0, cases - 1, MOST_ROWS)).astype(np.int64)


def median_kept_share(fingerprint: Fingerprint) -> float:
    """Return the median share of voxels that cropping keeps."""
    counted = sorted((float(key), n) for key, n in fingerprint.kept_share.items())
    ends = np.cumsum([n for _, n in counted])
    middle = np.array([(ends[-1] - 1) // 2, ends[-1] // 2])
    return float(np.mean([counted[at][0] for at in np.searchsorted(ends, middle, side="right")]))


def intensity_properties(histogram: tuple[int, ...]) -> dict[str, float]:
    """Return nnU-Net's description of foreground intensities, read off a histogram.

    In standard deviations, to the accuracy of half a bin. Zeros where no foreground was seen.
    """
    middles = (INTENSITY_EDGES[:-1] + INTENSITY_EDGES[1:]) / 2
    counts = np.array(histogram, dtype=float)
    names = ("mean", "std", "median", "min", "max", "percentile_00_5", "percentile_99_5")
    if not counts.sum():
        return dict.fromkeys(names, 0.0)
    share = np.cumsum(counts) / counts.sum()
    mean = float(np.average(middles, weights=counts))
    std = float(np.sqrt(np.average((middles - mean) ** 2, weights=counts)))
    seen = middles[counts > 0]
    at = [float(middles[np.searchsorted(share, part)]) for part in (0.5, 0.005, 0.995)]
    return dict(
        zip(names, (mean, std, at[0], float(seen[0]), float(seen[-1]), at[1], at[2]), strict=True)
    )


def _intensities(image: np.ndarray, labels: np.ndarray) -> tuple[int, ...]:
    inside = image[image != 0]
    spread = max(float(inside.std(dtype=np.float64)), 1e-8)
    score = (image[labels > 0] - inside.mean(dtype=np.float64)) / spread
    clipped = np.clip(score, INTENSITY_EDGES[0], INTENSITY_EDGES[-1])
    return tuple(int(n) for n in np.histogram(clipped, INTENSITY_EDGES)[0])


def _coarse(size: int) -> int:
    return size if size < SIZE_EXACT_BELOW else SIZE_STEP * round(size / SIZE_STEP)


def _spacing_and_size(key: str) -> tuple[float, int]:
    spacing, size = key.split("x")
    return float(spacing), int(size)


def _is_grid(key: str) -> bool:
    """Say whether a key of ``Fingerprint.axes`` is a spacing and a size within bounds."""
    if not _KEY.fullmatch(key):
        return False
    spacing, size = _spacing_and_size(key)
    return SPACINGS[0] <= spacing <= SPACINGS[1] and 1 <= size <= MOST_SIZE


def _add(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return {key: total[key] for key in sorted(total)}
