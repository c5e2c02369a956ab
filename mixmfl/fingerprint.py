"""What a site tells about its data: counts and histograms that merge exactly, no row per case."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from mixmfl.errors import PlansError
from mixmfl.slices import slice_axis, slices_first

FORMAT = 2

# Foreground intensities are told in units of the image's own standard deviation, so that they
# say how a lesion looks in a modality and not which scanner took it.
INTENSITY_EDGES = np.arange(-5.0, 10.01, 0.25)

# Cropped sizes of 16 voxels and more are told in steps of four: enough for a plan, too coarse
# to recognise one head among many.
SIZE_STEP = 4
SIZE_EXACT_BELOW = 16

SHARE_STEP = 0.05

# Where more than one half of the cases are stacks of thick slices, and at least one in ten of
# these stacks has another direction than most, what the cases have in common are slices.
MOST_ARE_STACKS = 0.5
OTHER_DIRECTIONS = 0.1


_DIRECTIONS = "ZYX"


@dataclass(frozen=True)
class Fingerprint:
    """Statistics of a site's training cases; the sum of two is that of the pooled cases.

    Attributes:
        cases: Number of cases.
        modality_cases: How many cases have each modality.
        label_cases: How many cases have at least one voxel of each label value.
        label_voxels: Voxels of each label value over all cases.
        axes: For each array axis (Z, Y, X), how many cases have a spacing and a size after
            cropping to the head, as ``"<spacing in mm>x<voxels>"``. Axes are counted apart, so
            which size along Z went with which along X is not told.
        kept_share: How many cases kept which share of their voxels when cropped, in steps of 0.05.
        intensities: Per modality a histogram over ``INTENSITY_EDGES`` of the foreground voxels'
            intensity, in standard deviations from the mean of the image's non-zero voxels.
            The first and last bin hold what lies beyond.
        stacked: As ``axes``, with the axis of the slices first, where a case has thick ones.
        slices: How many cases have thick slices along ``"Z"``, ``"Y"`` or ``"X"``, and how many
            ``"none"``.
    """

    cases: int
    modality_cases: Mapping[str, int]
    label_cases: Mapping[str, int]
    label_voxels: Mapping[str, int]
    axes: tuple[Mapping[str, int], Mapping[str, int], Mapping[str, int]]
    kept_share: Mapping[str, int]
    intensities: Mapping[str, tuple[int, ...]]
    stacked: tuple[Mapping[str, int], Mapping[str, int], Mapping[str, int]]
    slices: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """Return the fingerprint as JSON content, keys in a fixed order."""
        content: dict[str, Any] = {"format": FORMAT}
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Mapping):
                value = {key: value[key] for key in sorted(value)}
            elif field.name in ("axes", "stacked"):
                value = [{key: axis[key] for key in sorted(axis)} for axis in value]
            content[field.name] = value
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any], source: str) -> "Fingerprint":
        """Check and take what a file or a site gave.

        Raises:
            PlansError: Another format, unknown or missing fields, or counts that are no counts.
        """
        if content.get("format") != FORMAT:
            raise PlansError(
                f"{source}: fingerprint format {content.get('format')!r} was found, {FORMAT} is "
                "needed; make it again with this version of mixmfl_plan_preprocess"
            )
        names = {field.name for field in fields(cls)}
        given = set(content) - {"format"}
        if given != names:
            raise PlansError(
                f"{source}: a fingerprint has the fields {sorted(names)}; missing "
                f"{sorted(names - given)}, unknown {sorted(given - names)}"
            )
        try:
            made = cls(
                cases=_count(content["cases"]),
                modality_cases=_counts(content["modality_cases"]),
                label_cases=_counts(content["label_cases"]),
                label_voxels=_counts(content["label_voxels"]),
                axes=tuple(_counts(axis) for axis in content["axes"]),  # type: ignore[arg-type]
                stacked=tuple(_counts(axis) for axis in content["stacked"]),  # type: ignore[arg-type]
                slices=_counts(content["slices"]),
                kept_share=_counts(content["kept_share"]),
                intensities={
                    name: tuple(_count(n) for n in histogram)
                    for name, histogram in content["intensities"].items()
                },
            )
            counted = (*made.axes, *made.stacked, made.slices, made.kept_share)
            sizes = [sum(histogram.values()) for histogram in counted]
            bins = {len(histogram) for histogram in made.intensities.values()}
            for axis in (*made.axes, *made.stacked):
                for key in axis:
                    _spacing_and_size(key)
            if strange := set(made.slices) - {*_DIRECTIONS, "none"}:
                raise ValueError(f"slices along {min(strange)!r}")
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise PlansError(f"{source}: not a fingerprint ({error})") from None
        if (
            {len(made.axes), len(made.stacked)} != {3}
            or set(sizes) != {made.cases}
            or bins - {len(INTENSITY_EDGES) - 1}
        ):
            raise PlansError(
                f"{source}: the histograms do not add up to its {made.cases} cases; was the file "
                "edited? Make it again with mixmfl_plan_preprocess --fingerprint-only"
            )
        return made


def fingerprint_case(
    images: Mapping[str, np.ndarray],
    labels: np.ndarray,
    spacing: tuple[float, float, float],
    cropped: tuple[slice, slice, slice],
) -> Fingerprint:
    """Return the fingerprint of one case, to be merged before anybody sees it.

    Args:
        images: Per modality ``(Z, Y, X)`` in scanner units.
        labels: ``(Z, Y, X)``, label values as declared.
        spacing: mm, ``(Z, Y, X)``.
        cropped: The box around the non-zero voxels, as preprocessing crops it.
    """
    values, voxels = np.unique(labels, return_counts=True)
    sizes = [part.stop - part.start for part in cropped]
    share = float(np.prod(sizes)) / labels.size
    axes = [
        {f"{round(mm, 4):g}x{_coarse(size)}": 1} for mm, size in zip(spacing, sizes, strict=True)
    ]
    along = slice_axis(spacing)
    return Fingerprint(
        cases=1,
        modality_cases=dict.fromkeys(images, 1),
        label_cases={str(value): 1 for value in values},
        label_voxels={str(value): int(n) for value, n in zip(values, voxels, strict=True)},
        axes=tuple(axes),  # type: ignore[arg-type]
        stacked=tuple(axes[axis] for axis in slices_first(spacing).order),  # type: ignore[arg-type]
        slices={"none" if along is None else _DIRECTIONS[along]: 1},
        kept_share={f"{round(share / SHARE_STEP) * SHARE_STEP:.2f}": 1},
        intensities={name: _intensities(image, labels) for name, image in images.items()},
    )


def merge_fingerprints(fingerprints: Iterable[Fingerprint]) -> Fingerprint:
    """Add fingerprints up; any grouping or order gives the same result, for all are integers.

    Raises:
        PlansError: There is none to merge.
    """
    parts = list(fingerprints)
    if not parts:
        raise PlansError("no fingerprint to merge: at least one site with one case is needed")
    histograms: dict[str, np.ndarray] = {}
    for part in parts:
        for name, histogram in part.intensities.items():
            histograms[name] = histograms.get(name, 0) + np.asarray(histogram, dtype=object)
    return Fingerprint(
        cases=sum(part.cases for part in parts),
        modality_cases=_add(part.modality_cases for part in parts),
        label_cases=_add(part.label_cases for part in parts),
        label_voxels=_add(part.label_voxels for part in parts),
        axes=tuple(_add(part.axes[axis] for part in parts) for axis in range(3)),  # type: ignore[arg-type]
        stacked=tuple(_add(part.stacked[axis] for part in parts) for axis in range(3)),  # type: ignore[arg-type]
        slices=_add(part.slices for part in parts),
        kept_share=_add(part.kept_share for part in parts),
        intensities={name: tuple(histograms[name].tolist()) for name in sorted(histograms)},
    )


def withhold_small_counts(fingerprint: Fingerprint, cases: int, voxels: int) -> Fingerprint | None:
    """Return what may be told of a fingerprint where statistics must rest on enough cases.

    Nothing, of fewer cases than the minimum. Else a label that fewer cases or voxels have is not
    counted, and of a modality that fewer cases have the histogram is empty. Spacings and sizes
    stay as they are: a plan needs the rare ones too.

    Args:
        fingerprint: Of the site.
        cases: At least.
        voxels: At least, of a label and of a histogram.
    """
    if fingerprint.cases < cases:
        return None
    labels = {
        label
        for label, number in fingerprint.label_cases.items()
        if number >= cases and fingerprint.label_voxels[label] >= voxels
    }
    return replace(
        fingerprint,
        label_cases={k: n for k, n in fingerprint.label_cases.items() if k in labels},
        label_voxels={k: n for k, n in fingerprint.label_voxels.items() if k in labels},
        intensities={
            name: histogram
            if fingerprint.modality_cases[name] >= cases and sum(histogram) >= voxels
            else (0,) * len(histogram)
            for name, histogram in fingerprint.intensities.items()
        },
    )


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
    nnU-Net's planner takes, are those of the cases.
    """
    columns = []
    for axis in fingerprint.stacked if is_stacks(fingerprint) else fingerprint.axes:
        pairs = sorted((_spacing_and_size(key), n) for key, n in axis.items())
        columns.append([pair for pair, n in pairs for _ in range(n)])
    table = np.array(columns, dtype=float)  # (3, cases, 2)
    return table[:, :, 0].T, table[:, :, 1].T.astype(int)


def median_kept_share(fingerprint: Fingerprint) -> float:
    """Return the median share of voxels that cropping keeps."""
    shares = [float(key) for key, n in fingerprint.kept_share.items() for _ in range(n)]
    return float(np.median(shares))


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
    if not (np.isfinite(float(spacing)) and float(spacing) > 0 and int(size) > 0):
        raise ValueError(f"spacing and size {key!r} must be above zero")
    return float(spacing), int(size)


def _add(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return {key: total[key] for key in sorted(total)}


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _counts(value: Any) -> dict[str, int]:
    return {str(key): _count(n) for key, n in value.items()}
