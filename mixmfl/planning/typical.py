"""What images of a modality are usually like, and how an image differs from that.

An image is described by numbers that scanners agree on and that normalisation leaves: how many mm
its head measures, where along each axis the head is thick, which grey values it has once they are
standardised, how much these change from voxel to voxel, and where in the head it is brighter than
around. Sites send sums and sums of squares of
these numbers over cases, which merge exactly; from them come a mean and a spread of each number.
``benchmarks/input_checks.py`` measures what the rules find.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mixmfl.core.declarations import entries, within
from mixmfl.core.text import times
from mixmfl.planning.skull import tissue_level

Array = npt.NDArray[Any]

SLABS = 8
"""Parts of a head along each axis, from end to end."""

GREYS = np.linspace(-3, 3, 13)
"""Edges of the ranges of standardised grey values."""

CELLS = 8
"""Cells of a head along each axis, in which its brightness is averaged."""

_EXTENT = slice(0, 3)
_SHAPE = slice(3, 3 + 3 * SLABS)
_CONTRAST = slice(_SHAPE.stop, _SHAPE.stop + len(GREYS) + 1)
_DETAIL = slice(_CONTRAST.stop, _CONTRAST.stop + 3)
_CURVATURE = slice(_DETAIL.stop, _DETAIL.stop + 3)
_HALVES = slice(_CURVATURE.stop, _CURVATURE.stop + 3)
_MAP = slice(_HALVES.stop, _HALVES.stop + CELLS * CELLS * CELLS // 2)
NUMBERS = _MAP.stop
"""Numbers that describe an image, whole thousandths."""

FEWEST_IMAGES = 10
"""Images of a modality behind what is usual, below which nothing is compared."""

SMALLEST_HEAD = 1000  # voxels; a smaller one is not described
THIN = 0.05  # of the largest section: a head begins where a section is larger
HELD = 0.1  # of a cell's voxels show the head, or the cell is left out
_SCALE, _MOST_IMAGES, _MOST_NUMBER = 1000, 10**6, 20_000

# Per part: the least spread of a number, and the distance from the usual above which an image is
# warned of. Twice that, and it is refused. Of 225 images of patients, distances from those of other
# patients were below them in 99 of 100
_RULES: Mapping[str, tuple[slice, float, float]] = {
    "extent": (_EXTENT, 30, 3.0),
    "shape": (_SHAPE, 4, 1.3),
    "contrast": (_CONTRAST, 10, 1.7),
    "detail": (_DETAIL, 50, 2.4),
    "curvature": (_CURVATURE, 50, 2.4),
    "ends": (slice(_HALVES.start, _HALVES.stop - 1), 10, 3.0),
    "sides": (slice(_HALVES.stop - 1, _HALVES.stop), 10, 4.0),
}
_TURNED = 1.6  # times as far as if turned round; twice that, and it is refused
_FAR = 2.0
_HARMLESS = ("curvature",)  # never refused: masks of blurred images were nearly as good

# Between what is usual of the modality that an image is called (0) and of another one (1)
_EXCHANGED = 0.6  # the mean over two images of a case that are called by each other's name
_SURELY = 0.8  # likewise; refused
_MISTAKEN = 0.8  # one image
# Numbers that tell modalities from each other, and the least spread of each
_OF_NAMES = {
    **{kind: _RULES[kind][:2] for kind in ("contrast", "detail", "curvature")},
    "map": (_MAP, 30),
}
_TELLING = np.r_[tuple(part for part, _ in _OF_NAMES.values())]
_LEAST_SPREADS = np.concatenate(
    [np.full(part.stop - part.start, least) for part, least in _OF_NAMES.values()]
)
# Squared distance of the means of two modalities, in spreads, above what chance makes of it: 41 to
# 97 in patients
_LEAST_APART = 20

_Sum = _MOST_IMAGES * _MOST_NUMBER


@dataclass(frozen=True)
class Typical:
    """Sums over the images of one modality, one per case.

    Attributes:
        images: How many images were described.
        sums: Sum of each number.
        squares: Sum of the square of each number.
    """

    images: Annotated[int, within(1, _MOST_IMAGES)]
    sums: Annotated[tuple[Annotated[int, within(-_Sum, _Sum)], ...], entries(NUMBERS, NUMBERS)]
    squares: Annotated[
        tuple[Annotated[int, within(0, _Sum * _MOST_NUMBER)], ...], entries(NUMBERS, NUMBERS)
    ]

    @property
    def is_possible(self) -> bool:
        """Say whether whole numbers within bounds have these sums."""
        return all(
            total**2 <= self.images * square <= (self.images * _MOST_NUMBER) ** 2
            for total, square in zip(self.sums, self.squares, strict=True)
        )


def describe_image(image: Array, spacing: Sequence[float]) -> Typical | None:
    """Return an image's numbers, as the sums over one image; None where it shows too little.

    Args:
        image: ``(Z, Y, X)``, canonical; a removed background is 0.
        spacing: mm, (Z, Y, X).
    """
    head = image > tissue_level(image)
    if head.sum() < SMALLEST_HEAD:
        return None
    extent: list[float] = []
    shape: list[float] = []
    box = []
    for axis in range(3):
        area = head.sum(axis=tuple(other for other in range(3) if other != axis))
        held = np.flatnonzero(area > THIN * area.max())
        first, last = int(held[0]), int(held[-1]) + 1
        box.append(slice(first, last))
        extent.append(math.log((last - first) * spacing[axis]))
        total = np.concatenate([[0], np.cumsum(area[first:last])])
        ends = np.linspace(0, last - first, SLABS + 1)
        shape.extend(np.diff(np.interp(ends, np.arange(len(total)), total)) / total[-1])
    inside, head = image[tuple(box)], head[tuple(box)]
    values = inside[head].astype(np.float64)
    spread = max(float(values.std()), 1e-8)
    standard = (inside - values.mean()) / spread
    ranges = np.digitize(standard[head], GREYS)
    contrast = np.bincount(ranges, minlength=len(GREYS) + 1) / len(values)
    detail, curvature = [], []
    for axis in range(3):
        both = _overlap(head, axis, 1)
        change = np.diff(standard, axis=axis)
        step = _mean_size(change[both])
        detail.append(math.log(step))
        bend = np.diff(change, axis=axis)[_overlap(head, axis, 2)]
        curvature.append(math.log(_mean_size(bend) / step))
    brightness = _brightness(standard, head)
    numbers = np.rint(
        _SCALE * np.array([*extent, *shape, *contrast, *detail, *curvature, *brightness])
    )
    whole = [int(n) for n in np.clip(numbers, -_MOST_NUMBER, _MOST_NUMBER)]
    return Typical(1, tuple(whole), tuple(n * n for n in whole))


def _overlap(head: Array, axis: int, step: int) -> Array:
    """Return where a voxel and the next ``step`` along an axis are all of the head."""
    count, lines = head.shape[axis] - step, np.moveaxis(head, axis, 0)
    parts = [lines[at : at + count] for at in range(step + 1)]
    return np.moveaxis(np.logical_and.reduce(parts), 0, axis)


def _mean_size(values: Array) -> float:
    return max(float(np.abs(values).mean()) if len(values) else 0.0, 1e-6)


def _brightness(standard: Array, head: Array) -> Array:
    """Return how much brighter one half is than the other, by axis, and a map of the head.

    The head's box is cut into ``CELLS`` parts along each axis. Cells are ranked by their mean grey
    value, from -0.5 to 0.5, so that scanners with other grey scales agree. The map has what a cell
    differs from those around it, so that they agree although one side is brighter; it has the means
    of left and right.
    """
    axes = (np.arange(n) * CELLS // n for n in head.shape)
    cell = np.ravel_multi_index(np.meshgrid(*axes, indexing="ij"), (CELLS,) * 3)
    voxels, shown, total = (
        np.bincount(cell.ravel(), weights, CELLS**3).reshape((CELLS,) * 3)
        for weights in (None, head.ravel(), np.where(head, standard, 0).ravel())
    )
    share = shown / np.maximum(voxels, 1)
    held = share > HELD
    rank = np.zeros(share.shape)
    order = np.argsort(np.argsort(total[held] / shown[held], kind="stable"), kind="stable")
    rank[held] = order / max(len(order) - 1, 1) - 0.5
    halves = []
    for axis in range(3):
        parts = zip(np.split(rank, 2, axis), np.split(held, 2, axis), strict=True)
        first, second = (part[seen].mean() if seen.any() else 0.0 for part, seen in parts)
        halves.append(second - first)
    weight = ndimage.gaussian_filter(share, 1, mode="constant")
    around = ndimage.gaussian_filter(rank * share, 1, mode="constant") / np.maximum(weight, 1e-3)
    differs = np.where(held, rank - around, 0)
    folded = (differs + differs[:, :, ::-1])[:, :, : CELLS // 2] / 2
    return np.concatenate([halves, folded.ravel()])


def merge_typical(parts: Iterable[Mapping[str, Typical]]) -> dict[str, Typical]:
    """Add sums up, by modality; in any order they are the same, for all are integers."""
    by_name: dict[str, list[Typical]] = {}
    for part in parts:
        for name, each in part.items():
            by_name.setdefault(name, []).append(each)
    return {
        name: Typical(
            sum(one.images for one in each),
            tuple(map(sum, zip(*(one.sums for one in each), strict=True))),
            tuple(map(sum, zip(*(one.squares for one in each), strict=True))),
        )
        for name, each in sorted(by_name.items())
    }


@dataclass(frozen=True)
class Difference:
    """How an image differs from the usual.

    Attributes:
        kind: ``"extent"``, ``"shape"``, ``"contrast"``, ``"detail"``, ``"curvature"``, ``"ends"``,
            ``"sides"``, ``"up-down"``, ``"front-back"`` or ``"name"``.
        what: It in words.
        is_far: Whether it is so far that a mask would mean nothing.
    """

    kind: str
    what: str
    is_far: bool


def unusual(
    images: Mapping[str, Typical], usual: Mapping[str, Typical], *, names: bool
) -> list[tuple[str, Difference]]:
    """Return how the images of a case differ from the usual, each with its modality.

    Args:
        images: Numbers of the images by modality, from ``describe_image``.
        usual: Sums over the images that a model was planned for, by modality.
        names: Whether names of modalities are judged, too; they are not where extent or shape are
            far from the usual, for half a head looks like anything.
    """
    found = [
        (name, each)
        for name, image in images.items()
        if name in usual
        for each in differences(image, usual[name])
    ]
    is_whole = not any(each.is_far and each.kind in ("extent", "shape") for _, each in found)
    return found + (mistaken(images, usual) if names and is_whole else [])


def differences(image: Typical, usual: Typical) -> list[Difference]:
    """Return how an image differs from the usual of its modality.

    Args:
        image: The image, from ``describe_image``.
        usual: Sums over the images that a model was planned for.
    """
    if usual.images < FEWEST_IMAGES:
        return []
    numbers = np.array(image.sums, dtype=float)
    mean, variance = _mean_and_variance(usual)
    spread = np.sqrt(variance)
    differing = []
    for kind, (part, least, limit) in _RULES.items():
        scores = (numbers[part] - mean[part]) / np.hypot(spread[part], least)
        distance = float(np.sqrt(np.mean(scores**2)))
        if distance > limit:
            measured = f"distance {distance:.2f}, usual below {limit:g}"
            what = f"{_in_words(kind, numbers, mean, scores)} ({measured})"
            is_far = distance > _FAR * limit and kind not in _HARMLESS
            differing.append(Difference(kind, what, is_far))
    for axis, kind in enumerate(("up-down", "front-back")):
        part = slice(_SHAPE.start + axis * SLABS, _SHAPE.start + (axis + 1) * SLABS)
        width = np.hypot(spread[part], _RULES["shape"][1])
        here, turned = (
            float(np.sqrt(np.mean(((each - mean[part]) / width) ** 2)))
            for each in (numbers[part], numbers[part][::-1])
        )
        if here > _TURNED * turned:
            what = f"the head fits the usual one better turned round {kind}"
            measured = f"distance {turned:.1f} instead of {here:.1f}"
            differing.append(
                Difference(kind, f"{what} ({measured})", here > _FAR * _TURNED * turned)
            )
    return differing


def mistaken(
    images: Mapping[str, Typical], usual: Mapping[str, Typical]
) -> list[tuple[str, Difference]]:
    """Return which images of a case look like another modality than the one that they are called.

    An image is placed by its grey values, detail and map on the line between the means of two
    modalities (Fisher 1936, The Use of Multiple Measurements in Taxonomic Problems; numbers are
    taken for independent). What is peculiar to a patient cancels where two images of a case have
    each other's names.

    Args:
        images: Numbers of the images by modality, from ``describe_image``.
        usual: Sums over the images that a model was planned for, by modality.
    """
    known = {
        name: _mean_and_variance(each)
        for name, each in sorted(usual.items())
        if each.images >= FEWEST_IMAGES
    }
    if len(known) < 2:
        return []
    free = {name: usual[name].images - 1 for name in known}
    variance = sum(free[name] * each[1][_TELLING] for name, each in known.items())
    variance = variance / sum(free.values()) + _LEAST_SPREADS**2
    nearer: dict[tuple[str, str], float] = {}
    for name in sorted(set(images) & set(known)):
        for other in known:
            here, there = known[name][0][_TELLING], known[other][0][_TELLING]
            apart = (there - here) / variance
            length = float(apart @ (there - here))
            by_chance = len(apart) * (1 / usual[name].images + 1 / usual[other].images)
            if other != name and length - by_chance > _LEAST_APART:
                image = np.array(images[name].sums, dtype=float)[_TELLING]
                nearer[name, other] = float(apart @ (image - here)) / length
    differing: dict[str, Difference] = {}
    pairs = {
        (name, other): (place + nearer[other, name]) / 2
        for (name, other), place in nearer.items()
        if name < other and (other, name) in nearer
    }
    for pair in sorted(pairs, key=lambda each: -pairs[each]):
        if pairs[pair] > _EXCHANGED and not set(pair) & set(differing):
            measured = f"{pairs[pair]:.2f}, usual below {_EXCHANGED:g}"
            what = f"they look like each other: are their names exchanged? ({measured})"
            differing |= dict.fromkeys(pair, Difference("name", what, pairs[pair] > _SURELY))
    for name in sorted(set(images) - set(differing)):
        places = {other: place for (own, other), place in nearer.items() if own == name}
        other = max(places, key=lambda each: places[each], default="")
        if other and places[other] > _MISTAKEN:
            measured = f"{places[other]:.2f}, usual below {_MISTAKEN:g}"
            what = f"it looks like {other}: is its name right? ({measured})"
            differing[name] = Difference("name", what, False)
    return sorted(differing.items())


def _mean_and_variance(usual: Typical) -> tuple[Array, Array]:
    count = usual.images
    mean = np.array(usual.sums, dtype=float) / count
    variance = np.array(usual.squares, dtype=float) / count - mean**2
    return mean, np.maximum(variance, 0) * count / (count - 1)


def _in_words(kind: str, numbers: Array, mean: Array, scores: Array) -> str:
    if kind == "extent":
        sizes = (np.exp(each[_EXTENT] / _SCALE).round().tolist() for each in (numbers, mean))
        here, usual = map(times, sizes)
        return (
            f"the head measures {here} mm, usually {usual} mm: is part of it missing, or the "
            "spacing wrong?"
        )
    if kind == "shape":
        return "the head has an unusual shape: is part of it missing, or is it turned?"
    if kind == "contrast":
        return "grey values are unusual: are they inverted or cut off, is it another sequence?"
    if kind == "curvature":
        how = "finer" if scores.mean() > 0 else "coarser"
        return f"its detail is {how} than usual: was it filtered or resampled, is it noise?"
    if kind in ("ends", "sides"):
        halves = "left and right half" if kind == "sides" else "front and back, or top and bottom,"
        return f"{halves} differ in brightness more than usual: is there a bias field?"
    how = "noisier" if scores.mean() > 0 else "smoother"
    return f"the image is {how} than usual: did the patient move, or was it filtered?"
