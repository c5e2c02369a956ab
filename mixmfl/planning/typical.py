"""What images of a modality are usually like, and how an image differs from that.

An image is described by numbers that scanners agree on and that normalisation leaves: how many mm
its head measures, where along each axis the head is thick, which grey values it has once they are
standardised, and how much these change from voxel to voxel. Sites send sums and sums of squares of
these numbers over cases, which merge exactly; from them come a mean and a spread of each number.
``benchmarks/input_checks.py`` measures what the rules find.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.declarations import entries, within
from mixmfl.planning.skull import tissue_level

Array = npt.NDArray[Any]

SLABS = 8
"""Parts of a head along each axis, from end to end."""

GREYS = np.linspace(-3, 3, 13)
"""Edges of the ranges of standardised grey values."""

_EXTENT = slice(0, 3)
_SHAPE = slice(3, 3 + 3 * SLABS)
_CONTRAST = slice(_SHAPE.stop, _SHAPE.stop + len(GREYS) + 1)
_DETAIL = slice(_CONTRAST.stop, _CONTRAST.stop + 3)
NUMBERS = _DETAIL.stop
"""Numbers that describe an image, whole thousandths."""

FEWEST_IMAGES = 10
"""Images of a modality behind what is usual, below which nothing is compared."""

SMALLEST_HEAD = 1000  # voxels; a smaller one is not described
THIN = 0.05  # of the largest section: a head begins where a section is larger
_SCALE, _MOST_IMAGES, _MOST_NUMBER = 1000, 10**6, 20_000

# Per part: the least spread of a number, and the distance from the usual above which an image is
# warned of. Twice that, and it is refused. Of 225 images of patients, distances from those of other
# patients were below them in 99 of 100
_RULES: Mapping[str, tuple[slice, float, float]] = {
    "extent": (_EXTENT, 30, 3.0),
    "shape": (_SHAPE, 4, 1.3),
    "contrast": (_CONTRAST, 10, 1.7),
    "detail": (_DETAIL, 50, 2.4),
}
_TURNED = 1.6  # times as far as if turned round; twice that, and it is refused
_FAR = 2.0

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

    def to_json(self) -> dict[str, Any]:
        """Return JSON content."""
        return {"images": self.images, "sums": list(self.sums), "squares": list(self.squares)}


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
    ranges = np.digitize((values - values.mean()) / spread, GREYS)
    contrast = np.bincount(ranges, minlength=len(GREYS) + 1) / len(values)
    detail = []
    for axis in range(3):
        both = np.take(head, range(1, head.shape[axis]), axis)
        both = both & np.take(head, range(head.shape[axis] - 1), axis)
        change = np.abs(np.diff(inside, axis=axis))[both]
        detail.append(math.log(max(float(change.mean()) / spread if len(change) else 0.0, 1e-6)))
    numbers = np.rint(_SCALE * np.array([*extent, *shape, *contrast, *detail]))
    whole = [int(n) for n in np.clip(numbers, -_MOST_NUMBER, _MOST_NUMBER)]
    return Typical(1, tuple(whole), tuple(n * n for n in whole))


def merge_typical(parts: Iterable[Mapping[str, Typical]]) -> dict[str, Typical]:
    """Add sums up, by modality; in any order they are the same, for all are integers."""
    found: dict[str, list[Typical]] = {}
    for part in parts:
        for name, each in part.items():
            found.setdefault(name, []).append(each)
    return {
        name: Typical(
            sum(one.images for one in each),
            tuple(map(sum, zip(*(one.sums for one in each), strict=True))),
            tuple(map(sum, zip(*(one.squares for one in each), strict=True))),
        )
        for name, each in sorted(found.items())
    }


@dataclass(frozen=True)
class Difference:
    """How an image differs from the usual.

    Attributes:
        kind: ``"extent"``, ``"shape"``, ``"contrast"``, ``"detail"``, ``"up-down"`` or
            ``"front-back"``.
        what: It in words.
        is_far: Whether it is so far that a mask would mean nothing.
    """

    kind: str
    what: str
    is_far: bool


def differences(image: Typical, usual: Typical) -> list[Difference]:
    """Return how an image differs from the usual of its modality.

    Args:
        image: The image, from ``describe_image``.
        usual: Sums over the images that a model was planned for.
    """
    if usual.images < FEWEST_IMAGES:
        return []
    numbers, count = np.array(image.sums, dtype=float), usual.images
    mean = np.array(usual.sums, dtype=float) / count
    spread = np.array(usual.squares, dtype=float) / count - mean**2
    spread = np.sqrt(np.maximum(spread, 0) * count / (count - 1))
    found = []
    for kind, (part, least, limit) in _RULES.items():
        scores = (numbers - mean)[part] / np.hypot(spread[part], least)
        distance = float(np.sqrt(np.mean(scores**2)))
        if distance > limit:
            measured = f"distance {distance:.1f}, usual below {limit:g}"
            what = f"{_in_words(kind, numbers, mean, scores)} ({measured})"
            found.append(Difference(kind, what, distance > _FAR * limit))
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
            found.append(Difference(kind, f"{what} ({measured})", here > _FAR * _TURNED * turned))
    return found


def _in_words(kind: str, numbers: Array, mean: Array, scores: Array) -> str:
    if kind == "extent":
        sizes = (np.exp(each[_EXTENT] / _SCALE).round() for each in (numbers, mean))
        here, usual = (" x ".join(f"{mm:g}" for mm in each) for each in sizes)
        return (
            f"the head measures {here} mm, usually {usual} mm: is part of it missing, or the "
            "spacing wrong?"
        )
    if kind == "shape":
        return "the head has an unusual shape: is part of it missing, or is it turned?"
    if kind == "contrast":
        return "grey values are unusual: are they inverted or cut off, is it another sequence?"
    how = "noisier" if scores.mean() > 0 else "smoother"
    return f"the image is {how} than usual: did the patient move, or was it filtered?"
