"""DICOM planes as a volume: their order and grid, or the reason why they are no volume."""

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError
from mixmfl.data.dicom.header import Plane
from mixmfl.data.grid import Grid, check_directions, make_grid
from mixmfl.data.image import MOST_VOXELS

SPACING_TOLERANCE = 0.02  # relative: slices may be so far from evenly spaced
ROUNDED = 0.2  # of a step: no place is farther from where an even one would be, if it was rounded
ASIDE = 0.25  # of a pixel: planes of one stack are no farther aside
AXES_TOLERANCE = 1e-3  # of each cosine: headers differ in the sixth digit
LEAST_STEP = 0.01  # mm; images nearer to each other lie at one place
OTHER_DIRECTION = 0.02  # of a cosine: above it planes look in another direction
FEWEST_SLICES = 5  # of a volume
FARTHEST = 1e4  # mm from the scanner's middle; no table is so long, and places lose their digits
OTHER_TIME = 1.25  # times of a sequence so far apart, as a ratio, are of another sequence
FEWEST_LOST = 4  # steps of a gap between stacks; fewer are of lost slices
WIDE_STEP = 1.5  # of the step and the thickness that headers state, from which slices are missing
WIDE_GAP = 1.9  # of the thickness, where they state no step
MOST_MISPLACED = 0.2  # of the planes of a series may contradict the order of the others
MOST_STRAYS = 0.25  # of a series' planes that may have no place, or another direction
OVERLAP = 1.5  # slices of one acquisition are at most so much thicker than their step


def arrange(planes: Sequence[Plane]) -> tuple[list[int], Grid]:
    """Return the planes' order along the normal of their majority, and the grid of the volume.

    Raises:
        DataError: The planes are no volume; the message does not name the series.
    """
    for name in ("place", "axes", "spacing"):
        if incomplete := next((plane for plane in planes if not getattr(plane, name)), None):
            raise DataError(f"has no place in space ({_named(incomplete)} lacks its {name})")
    if far := next((plane for plane in planes if max(map(abs, plane.place)) > FARTHEST), None):
        place = ", ".join(f"{mm:g}" for mm in far.place)
        raise DataError(f"has no place in space ({_named(far)} is at {place} mm)")
    axes, spacing = _middle(planes, "axes"), _middle(planes, "spacing")
    shape = Counter(plane.shape for plane in planes).most_common(1)[0][0]
    for plane in planes:
        if plane.shape != shape:
            raise DataError(f"its slices differ in size ({_named(plane)} has {plane.shape})")
        if not np.allclose(plane.axes, axes, rtol=0, atol=AXES_TOLERANCE) or not np.allclose(
            plane.spacing, spacing, rtol=1e-3
        ):
            raise DataError(f"its slices differ in direction or spacing ({_named(plane)})")
    if not (spacing > 0).all():
        raise DataError(f"has spacing {tuple(spacing.tolist())} mm; it must be positive")
    if len(planes) * math.prod(shape) > MOST_VOXELS:
        raise DataError(f"has {len(planes) * math.prod(shape)} voxels; at most {MOST_VOXELS}")
    across, down = axes[:3], axes[3:]
    normal = np.cross(across, down)
    heights = np.array(_heights(planes))
    order = [int(index) for index in np.argsort(heights, kind="stable")]
    first, last = planes[order[0]], planes[order[-1]]
    if len(planes) == 1:
        if not first.thickness > 0:
            raise DataError("has one slice, of unknown thickness")
        step, way = first.thickness, normal
    else:
        _check_steps(heights[order])
        between = np.array(last.place) - np.array(first.place)
        length = float(np.linalg.norm(between))
        step, way = length / (len(planes) - 1), between / length
        _check_sides([planes[index] for index in order], way, float(spacing.min()))
    grid = make_grid(
        (len(planes), *shape), (step, *spacing), first.place, np.stack([across, down, way], axis=1)
    )
    check_directions(grid, "its volume")
    return order, grid


def gaps(planes: Sequence[Plane], grid: Grid | None) -> list[str]:
    """Return a warning if a volume's slices are so far apart that every second may be missing."""
    if grid is None or len(planes) < FEWEST_SLICES:
        return []
    step = grid.spacing[0]
    stated, thickness = (float(_middle(planes, name)) for name in ("step", "thickness"))
    if step > WIDE_STEP * max(stated, thickness):  # some scanners state the gap alone
        why = f"{stated:g} mm by SpacingBetweenSlices"
    elif math.isnan(stated) and step > WIDE_GAP * thickness:
        why = f"and are {thickness:g} mm thick"
    else:
        return []
    return [f"has slices that lie {step:g} mm apart, {why}; every second one may be missing"]


def misplaced(planes: Sequence[Plane], values: Sequence[float]) -> list[Plane]:
    """Return the few planes whose rank by a number is not that of their place.

    None are returned where numbers are missing or the same, or more than ``MOST_MISPLACED`` differ.
    """
    heights = _heights(planes)
    if len(heights) < len(planes) or not len(set(values)) == len(planes) == len(set(heights)):
        return []
    ranks = np.argsort(np.argsort(heights))
    by_value = np.argsort(np.argsort(values))
    rising = ranks != by_value
    falling = ranks != len(planes) - 1 - by_value
    differ = np.flatnonzero(min((rising, falling), key=np.count_nonzero)).tolist()
    return [planes[at] for at in differ] if len(differ) <= MOST_MISPLACED * len(planes) else []


def images_per_place(planes: Sequence[Plane]) -> int:
    """Return the largest number of images at one place."""
    return max(Counter(_levels(planes)).values())


def places(planes: Sequence[Plane]) -> int:
    """Return the number of places with images."""
    return len(set(_levels(planes)))


def directions(planes: Sequence[Plane]) -> int:
    """Return the number of different orientations of planes, within ``OTHER_DIRECTION``."""
    distinct: list[tuple[float, ...]] = []
    for axes in {plane.axes for plane in planes if plane.axes}:
        if not any(_look_alike(axes, each) for each in distinct):
            distinct.append(axes)
    return max(1, len(distinct))


def _look_alike(axes: Sequence[float], other: Sequence[float]) -> bool:
    return np.allclose(axes, other, rtol=0, atol=OTHER_DIRECTION)


def without_strays(planes: Sequence[Plane]) -> tuple[list[Plane], list[Plane]]:
    """Return planes that are a volume, and a few others without a place or in another direction.

    A screen shot or the slices of a localiser lie in some series. Where the planes are no volume
    without them either, all are returned as they came.
    """
    axes = Counter(plane.axes for plane in planes if plane.place and plane.axes)
    if not axes:
        return list(planes), []
    usual = axes.most_common(1)[0][0]
    alike = {each for each in axes if _look_alike(each, usual)}
    kept = [plane for plane in planes if plane.place and plane.axes in alike]
    strays = [plane for plane in planes if not (plane.place and plane.axes in alike)]
    if not 0 < len(strays) <= MOST_STRAYS * len(kept) or len(kept) < FEWEST_SLICES:
        return list(planes), []
    try:
        arrange(kept)
    except DataError:  # the strays may be what it lacks
        return list(planes), []
    return kept, strays


def separate(planes: Sequence[Plane]) -> list[tuple[str, list[Plane]]]:
    """Separate the images that one series has of each place, where headers distinguish them.

    Echoes, magnitude and phase, and images before and after a contrast agent, are images of their
    own. Time points and b-values are not: together they are one image, which is no volume. Images
    at places of their own are separated, too, where they were clearly made in other ways.

    Returns:
        A label for each image, empty if there is only one, and its planes.
    """
    if images_per_place(planes) == 1:
        return _separate_places(planes)
    ways: tuple[Callable[[Plane], Hashable], ...] = (
        lambda plane: plane.variety[:1],
        lambda plane: plane.variety[1:],
        lambda plane: plane.variety,
        lambda plane: plane.physics,
        lambda plane: plane.agent,
        lambda plane: (plane.variety, plane.physics, plane.agent),
    )
    for way in ways:
        parts: dict[Hashable, list[Plane]] = defaultdict(list)
        for plane in planes:
            parts[way(plane)].append(plane)
        if len(parts) > 1 and all(images_per_place(part) == 1 for part in parts.values()):
            return [(_label(key), part) for key, part in parts.items()]
    parts = defaultdict(list)
    for plane in planes:
        parts[plane.variety].append(plane)
    if all(len(part) >= FEWEST_SLICES for part in parts.values()):
        return [(_label(key) if len(parts) > 1 else "", part) for key, part in parts.items()]
    return [("", list(planes))]


def _separate_places(planes: Sequence[Plane]) -> list[tuple[str, list[Plane]]]:
    """Separate images at places of their own that are no one volume; see ``separate``.

    Two stacks may lie above each other or between each other's slices, where no place tells.
    """
    times = [[plane.variety[0], *plane.physics[:3]] for plane in planes]
    columns = list(zip(*map(_clusters, zip(*times, strict=True)), strict=True))
    made = [
        (
            *near,
            "+".join(plane.physics[3:]),
            plane.variety[1],
            plane.variety[2].split("\\")[0],
            *plane.agent,
        )
        for near, plane in zip(columns, planes, strict=True)
    ]
    for keys in (made, [(plane.acquisition,) for plane in planes]):
        parts: dict[tuple[str, ...], list[Plane]] = defaultdict(list)
        for key, plane in zip(keys, planes, strict=True):
            parts[key].append(plane)
        if len(parts) == 1 or any(len(part) < FEWEST_SLICES for part in parts.values()):
            continue
        if keys is made or _slices_overlap(planes):
            different = [len(set(values)) > 1 for values in zip(*parts, strict=True)]
            return [
                (_label(tuple(itertools.compress(key, different))), part)
                for key, part in parts.items()
            ]
    return [("", list(planes))]


def _clusters(values: Sequence[str]) -> list[str]:
    """Return for each number the least of those near it; neighbours are within ``OTHER_TIME``."""
    least: dict[str, str] = {}
    before, first = math.inf, ""
    for text in sorted(set(values), key=lambda text: (text == "nan", float(text))):
        number = float(text)
        if not number <= OTHER_TIME * before or not first:
            first = text
        before, least[text] = number, first
    return [least[text] for text in values]


def _slices_overlap(planes: Sequence[Plane]) -> bool:
    """Say whether slices are much thicker than their step, as those of two acquisitions are."""
    try:
        _, grid = arrange(planes)
    except DataError:
        return False
    return float(np.median([plane.thickness for plane in planes])) > OVERLAP * grid.spacing[0]


def _label(key: Hashable) -> str:
    """Return a short name for the values that distinguish an image."""
    if isinstance(key, tuple):
        return "/".join(filter(None, map(_label, key)))
    return "" if key in ("", "nan") else str(key).replace("\\", " ")


def _levels(planes: Sequence[Plane]) -> list[int]:
    """Return the number of each plane's place along the normal; negative without a place."""
    placed = [index for index, plane in enumerate(planes) if plane.place and plane.axes]
    levels = [-1 - index for index in range(len(planes))]
    if not placed:
        return levels
    heights = np.array(_heights([planes[index] for index in placed]))
    order, level = np.argsort(heights, kind="stable"), 0
    for before, at in zip([order[0], *order], order, strict=False):
        level += bool(heights[at] - heights[before] >= LEAST_STEP)
        levels[placed[at]] = level
    return levels


def _heights(planes: Sequence[Plane]) -> list[float]:
    """Return the place of each plane along the normal; empty where one has no place."""
    if not all(plane.place and plane.axes for plane in planes):
        return []
    axes = _middle(planes, "axes")
    normal = np.cross(axes[:3], axes[3:])
    return [float(normal @ np.array(plane.place)) for plane in planes]


def _middle(planes: Sequence[Plane], name: str) -> npt.NDArray[np.float64]:
    """Return the median of an attribute over all planes, which one damaged plane cannot change."""
    return np.median([getattr(plane, name) for plane in planes], axis=0).astype(float)


def _check_sides(planes: Sequence[Plane], way: npt.NDArray[np.float64], pixel: float) -> None:
    """Check that no plane lies aside of the line from the first to the last one."""
    apart = np.array([plane.place for plane in planes]) - np.array(planes[0].place)
    aside = np.linalg.norm(apart - np.outer(apart @ way, way), axis=1)
    if aside.max() > ASIDE * pixel:
        far = int(aside.argmax())
        raise DataError(
            f"its slices do not lie above each other ({_named(planes[far])} lies {aside[far]:.2f} "
            "mm aside); its parts were made in two places"
        )


def _check_steps(heights: npt.NDArray[np.float64]) -> None:
    steps = np.diff(heights)
    step = float(np.median(steps))
    if steps.min() < LEAST_STEP:
        raise DataError(
            "has several images at one place (time points, b-values or echoes); one volume is "
            "needed"
        )
    even = np.linspace(heights[0], heights[-1], len(heights))
    # as of whole millimetres
    is_rounded = np.abs(heights - even).max() <= ROUNDED * (even[1] - even[0])
    tolerance = SPACING_TOLERANCE * step + 0.01
    if np.abs(steps - step).max() > tolerance and not is_rounded:
        if stacks := _stacks(steps, step, tolerance):
            counts = f"{', '.join(map(str, stacks[:-1]))} and {stacks[-1]}"
            raise DataError(
                f"has {len(stacks)} stacks of {counts} slices that are {step:.2f} mm apart, with "
                f"{steps.max():.2f} mm between stacks; store each stack as a series of its own, "
                "or, if slices are missing, export it again"
            )
        at = int(np.abs(steps - step).argmax())
        is_denser = bool(steps.min() < step - tolerance)
        raise DataError(
            f"its slices are not evenly spaced ({steps[at]:.2f} mm behind slice {at + 1}, "
            f"{step:.2f} mm elsewhere); slices are missing"
            f"{', or two stacks overlap' * is_denser}"
        )


def _stacks(steps: npt.NDArray[np.float64], step: float, tolerance: float) -> list[int]:
    """Return the slices of each stack where wide gaps alone part even ones; else nothing.

    A gap of a few steps is of slices that were lost.

    Args:
        steps: Distances of neighbours, in mm.
        step: The usual one.
        tolerance: The most that even ones differ from it.
    """
    is_gap = steps > FEWEST_LOST * step
    bounds = [-1, *np.flatnonzero(is_gap), len(steps)]
    counts = [int(after - before) for before, after in itertools.pairwise(bounds)]
    is_even = np.abs(steps[~is_gap] - step).max() <= tolerance
    return counts if len(counts) > 1 and is_even and min(counts) >= FEWEST_SLICES else []


def _named(plane: Plane) -> str:
    return plane.file.name if plane.frame is None else f"frame {plane.frame + 1}"
