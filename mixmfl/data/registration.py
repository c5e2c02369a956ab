"""Images of one case on different grids: checking their alignment, and bringing them onto one grid.

Headers say where an image lies in the scanner. Mutual information shows whether they are right:
two sequences of one head have much of it in place, less if one is turned by a few degrees, and next
to none if one is displaced by a centimetre and a half or mirrored.

Only this module and ``image`` import SimpleITK.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError
from mixmfl.data import itk as sitk
from mixmfl.data.grid import Grid, affine_lps
from mixmfl.data.image import read_back, to_sitk

Array = npt.NDArray[Any]

LEAST_COVERAGE = 0.5  # of the reference's head, below which an image shows another place
LEAST_OVERLAP = 0.75  # of two heads; in place it was at least 0.94 (76 pairs of real MRI)
FULL_COVERAGE = 0.95  # below it a warning says that a part of the head is not shown
COARSE_MM = 3.0  # voxels on which similarity is measured: enough for it, and quick
DISPLACED_MM = 15.0  # displaced so far, two images of a head share next to nothing
NEARBY_MM = 6.0  # a slip that matters for lesions and that the coarse voxels still show
TURNED_DEGREES = 8.0  # turned so far, a lesion at the brain's surface is a centimetre off
MIRRORED_MM = (-9.0, -6.0, -3.0, 0.0, 3.0, 6.0, 9.0)  # where the mirror plane may lie
BINS = 32
# In place, similarity was at least 1.75 times that of the displaced image, 1.17 times that nearby,
# 1.10 times that of the mirrored and 1.14 times that of the turned one (309 pairs of real MRI).
ABOVE_CHANCE = 1.25
CLEARLY_BETTER = 1.1
TURNED_BETTER = 1.03
FEWEST_POINTS = 2000  # fewer are not conclusive: the histogram has BINS * BINS cells


@dataclass(frozen=True)
class AlignmentCheck:
    """How well an image is aligned with the reference.

    Attributes:
        coverage: Share of the reference's head that lies within the image.
        similarity: Mutual information, nats; NaN where the images are too small for it.
        chance: Mutual information with the image displaced by ``DISPLACED_MM`` along the axes of
            the reference, mean over six directions.
        nearby: Mutual information with the image displaced by ``NEARBY_MM``, the largest of six
            directions.
        mirrored: Mutual information with the image mirrored left to right, the largest over the
            planes of ``MIRRORED_MM``.
        turned: Mutual information with the image turned by ``TURNED_DEGREES`` about the axes of the
            reference through the middle of its head, the largest of six turns; 0 where the
            opposite turn fits better than none, too, as in a round head, whose noise any turn
            averages away.
        overlap: Share of the smaller of the two heads, within what both images show, that lies on
            the other. It tells where background is 0, also of images too small for the rest.
        reversed: Mutual information with the image reversed along another of its own axes, the
            larger of the two.
    """

    coverage: float
    similarity: float
    chance: float
    nearby: float
    mirrored: float
    turned: float
    overlap: float = 1.0
    reversed: float = 0.0

    @property
    def fault(self) -> str | None:
        """Say why the image's header cannot be trusted; None where it can."""
        if self.coverage < LEAST_COVERAGE:
            return f"it covers {self.coverage:.0%} of the head"
        measured = f"mutual information {self.similarity:.3f}"
        if self.is_mirrored:
            return (
                f"it fits better mirrored left to right ({measured}, mirrored {self.mirrored:.3f})"
            )
        if self.is_reversed:
            return (
                f"it fits better reversed along an axis ({measured}, reversed {self.reversed:.3f})"
            )
        if self.nearby > self._clearly_better:
            return (
                f"it fits better {NEARBY_MM:g} mm away ({measured}, displaced {self.nearby:.3f}); "
                "the patient moved, or a header is wrong"
            )
        if self.turned > max(TURNED_BETTER * self.similarity, ABOVE_CHANCE * self.chance):
            return (
                f"it fits better turned by {TURNED_DEGREES:g} degrees ({measured}, turned "
                f"{self.turned:.3f}); the patient moved, or a header is wrong"
            )
        if self.similarity < ABOVE_CHANCE * self.chance:
            return f"its {measured} is near that of chance ({self.chance:.3f})"
        if self.overlap < LEAST_OVERLAP:
            return f"only {self.overlap:.0%} of the smaller of the two heads lies on the other"
        return None

    @property
    def is_mirrored(self) -> bool:
        """Say whether the image fits clearly better mirrored left to right."""
        return self.mirrored > max(self._clearly_better, self.nearby, self.turned)

    @property
    def is_reversed(self) -> bool:
        """Say whether the image fits clearly better upside down, or front to back."""
        return self.reversed > max(self._clearly_better, self.nearby, self.turned, self.mirrored)

    @property
    def _clearly_better(self) -> float:
        """Return the mutual information from which another place is better than this one."""
        return max(CLEARLY_BETTER * self.similarity, ABOVE_CHANCE * self.chance)


@dataclass(frozen=True)
class Rigid:
    """A rigid movement of the patient between two images.

    Attributes:
        matrix: 4x4 matrix from a place in the reference to that in the other image, LPS, mm.
        shift_mm: The distance by which the middle of the reference's grid moves.
        angle: The angle of the rotation in degrees.
    """

    matrix: Array
    shift_mm: float
    angle: float


IDENTITY = Rigid(np.eye(4), 0.0, 0.0)


def finest(grids: Mapping[str, Grid]) -> str:
    """Return the modality with the largest in-plane resolution; of equals the most voxels.

    The plane of a grid is that of its two smallest spacings.
    """

    def order(name: str) -> tuple[float, int, str]:
        a, b, _ = sorted(grids[name].spacing)
        return round(a * b, 3), -math.prod(grids[name].shape), name

    return min(grids, key=order)


def resample(image: Array, grid: Grid, onto: Grid, transform: Rigid = IDENTITY) -> Array:
    """Return an image on another grid, float32, 0 where it shows nothing.

    Interpolation is linear: a spline would ring into the background, whose exact 0 separates it
    from the head.

    Args:
        image: Voxels ``(Z, Y, X)`` on ``grid``.
        grid: The grid of the image.
        onto: The grid of the result.
        transform: The movement of the patient from ``onto``'s image to this one.
    """
    return _resample(to_sitk(image.astype(np.float32, copy=False), grid), onto, transform)


def _resample(image: Any, onto: Grid, transform: Rigid) -> Array:
    itk_transform = sitk.AffineTransform(3)
    itk_transform.SetMatrix(transform.matrix[:3, :3].ravel().tolist())
    itk_transform.SetTranslation(transform.matrix[:3, 3].tolist())
    filter_ = sitk.ResampleImageFilter()
    filter_.SetSize(onto.shape[::-1])
    filter_.SetOutputSpacing(onto.spacing[::-1])
    filter_.SetOutputOrigin(onto.origin)
    filter_.SetOutputDirection(onto.direction)
    filter_.SetInterpolator(sitk.sitkLinear)
    filter_.SetTransform(itk_transform)
    filter_.SetDefaultPixelValue(0.0)
    return read_back(filter_.Execute(image))


def fit(
    reference: Array, reference_grid: Grid, image: Array, grid: Grid, transform: Rigid = IDENTITY
) -> AlignmentCheck:
    """Measure how well an image is aligned with the reference by its header and ``transform``.

    Args:
        reference: Voxels ``(Z, Y, X)``, 0 outside the head.
        reference_grid: The grid of the reference.
        image: Voxels ``(Z, Y, X)``, 0 outside the head.
        grid: The grid of the image.
        transform: The movement of the patient from the reference to the image.
    """
    coarse = _coarse(reference_grid)
    fixed = resample(reference, reference_grid, coarse)
    head = fixed != 0
    inside = _inside(coarse, head, grid, transform)
    coverage = float(inside.mean()) if head.any() else 0.0
    # with a rim, so that the image displaced by whole coarse voxels is a part of this
    rim = round(DISPLACED_MM / COARSE_MM)
    moving = to_sitk(image, grid)
    around = _resample(moving, _widened(coarse, rim), transform)

    def displaced(mm: float) -> list[float]:
        by = round(mm / COARSE_MM)
        steps = [sign * by * unit for unit in np.eye(3, dtype=int) for sign in (-1, 1)]
        return [_similarity(fixed, _part(around, rim + step, fixed.shape)) for step in steps]

    here = _part(around, np.full(3, rim), fixed.shape)
    axis = _left_right_axis(coarse)
    mirrored = [np.roll(mirror(here, coarse), round(mm / COARSE_MM), axis) for mm in MIRRORED_MM]
    similarity = _similarity(fixed, here)
    smaller = min(np.count_nonzero(inside), np.count_nonzero(here))
    overlap = float(np.count_nonzero(head & (here != 0)) / smaller) if smaller else 0.0
    left_right = _left_right_axis(grid)
    reversed_ = [
        _similarity(fixed, resample(np.flip(image, along), grid, coarse, transform))
        for along in range(3)
        if along != left_right
    ]
    turned = 0.0
    for pair in _turns(coarse, head):
        both = [_resample(moving, coarse, _after(transform, turn)) for turn in pair]
        worse, better = sorted(_similarity(fixed, each) for each in both)
        turned = max(turned, better) if worse < similarity else turned
    return AlignmentCheck(
        coverage,
        similarity,
        float(np.mean(displaced(DISPLACED_MM))),
        max(displaced(NEARBY_MM)),
        max(_similarity(fixed, each) for each in mirrored),
        turned,
        overlap,
        max(reversed_),
    )


def mutual_information(a: Array, b: Array, bins: int = BINS) -> float:
    """Return the mutual information of two equally long lists of numbers, nats.

    It comes from their joint histogram. The outermost half percent on either side share the last
    bins, so that a few bright voxels do not put all others into one bin.
    """
    cells = []
    for values in (a, b):
        low, high = np.percentile(values, [0.5, 99.5])
        share = (values - low) / max(float(high - low), 1e-12)
        cells.append(np.clip(share * bins, 0, bins - 1).astype(np.intp))
    joint = np.bincount(cells[0] * bins + cells[1], minlength=bins * bins).reshape(bins, bins)
    p = joint / joint.sum()
    independent = p.sum(axis=1, keepdims=True) * p.sum(axis=0, keepdims=True)
    seen = p > 0
    return float((p[seen] * np.log(p[seen] / independent[seen])).sum())


def register(reference: Array, reference_grid: Grid, image: Array, grid: Grid) -> Rigid:
    """Find the rigid movement by which an image fits the reference best.

    SimpleITK's Mattes mutual information is maximised over three resolutions, from the place by
    the headers and from coinciding centres of mass; the better result is taken.

    Args:
        reference: Voxels ``(Z, Y, X)``, 0 outside the head.
        reference_grid: The grid of the reference.
        image: Voxels ``(Z, Y, X)``, 0 outside the head.
        grid: The grid of the image.

    Raises:
        DataError: The images do not overlap at either start.
    """
    fixed, moving = (
        sitk.Normalize(to_sitk(resample(voxels, whole, _coarse(whole, 2.0)), _coarse(whole, 2.0)))
        for voxels, whole in ((reference, reference_grid), (image, grid))
    )
    results = []
    for moments in (False, True):
        start = sitk.Euler3DTransform()
        if moments:
            centred = sitk.CenteredTransformInitializerFilter.MOMENTS
            start = sitk.Euler3DTransform(
                sitk.CenteredTransformInitializer(
                    to_sitk(np.abs(reference), reference_grid), to_sitk(np.abs(image), grid),
                    start, centred,
                )
            )  # fmt: skip
        else:
            start.SetCenter(_centre(reference_grid).tolist())
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(BINS)
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(0.25, 1)  # the seed; without one, the clock
        method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, 200)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([4, 2, 0])
        method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
        method.SetInterpolator(sitk.sitkLinear)
        method.SetInitialTransform(start, True)
        try:
            with _one_thread():
                method.Execute(fixed, moving)
        except RuntimeError:  # this start has no overlap
            continue
        results.append((method.GetMetricValue(), start))
    if not results:
        raise DataError("registration found no overlap of the images to begin with")
    best = min(results, key=lambda item: item[0])[1]
    rotation = np.reshape(best.GetMatrix(), (3, 3))
    centre = np.array(best.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = centre + np.array(best.GetTranslation()) - rotation @ centre
    middle = np.append(_centre(reference_grid), 1)
    shift = float(np.linalg.norm((matrix @ middle - middle)[:3]))
    angle = math.degrees(math.acos(min(max((np.trace(rotation) - 1) / 2, -1.0), 1.0)))
    return Rigid(matrix, shift, angle)


def mirror(image: Array, grid: Grid) -> Array:
    """Return an image ``(Z, Y, X)`` with left and right exchanged, on the same grid."""
    return np.ascontiguousarray(np.flip(image, _left_right_axis(grid)))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Let ITK use one thread: with several, the order of sums changes the last digits."""
    before = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before)


def _similarity(a: Array, b: Array) -> float:
    either = (a != 0) | (b != 0)
    if np.count_nonzero(either) < FEWEST_POINTS:
        return math.nan  # compares false with everything, so that nothing is concluded
    return mutual_information(a[either], b[either])


def _turns(grid: Grid, head: Array) -> Iterator[tuple[Array, Array]]:
    """Yield the turns by ``TURNED_DEGREES``, 4x4, LPS, mm, both ways about each axis of a grid.

    Args:
        grid: The grid.
        head: Whether a voxel of it shows the head, through whose middle the axes go.
    """
    where = np.argwhere(head) if head.any() else np.array(grid.shape)[None] / 2
    middle = (affine_lps(grid) @ [*where.mean(axis=0)[::-1], 1])[:3]
    sine, cosine = (f(math.radians(TURNED_DEGREES)) for f in (math.sin, math.cos))
    for x, y, z in np.reshape(grid.direction, (3, 3)).T:
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        one_way, other_way = np.eye(4), np.eye(4)
        for turn, way in ((one_way, -sine), (other_way, sine)):
            turn[:3, :3] += way * cross + (1 - cosine) * cross @ cross  # Rodrigues' formula
            turn[:3, 3] = middle - turn[:3, :3] @ middle
        yield one_way, other_way


def _after(transform: Rigid, turn: Array) -> Rigid:
    """Return the movement of the patient by ``transform``, after a turn of the reference."""
    return Rigid(transform.matrix @ turn, transform.shift_mm, transform.angle)


def _coarse(grid: Grid, mm: float = COARSE_MM) -> Grid:
    z, y, x = (
        max(1, round(n * step / mm)) for n, step in zip(grid.shape, grid.spacing, strict=True)
    )
    return Grid((z, y, x), (mm, mm, mm), grid.origin, grid.direction)


def _widened(grid: Grid, rim: int) -> Grid:
    """Return the grid with ``rim`` more voxels on each of its sides."""
    z, y, x = (n + 2 * rim for n in grid.shape)
    first = affine_lps(grid) @ [-rim, -rim, -rim, 1]
    origin = (float(first[0]), float(first[1]), float(first[2]))
    return Grid((z, y, x), grid.spacing, origin, grid.direction)


def _part(array: Array, start: Array, shape: tuple[int, ...]) -> Array:
    """Return the part of an array of a shape that begins at an index."""
    return array[tuple(slice(at, at + n) for at, n in zip(start, shape, strict=True))]


def _centre(grid: Grid) -> Array:
    middle = [(n - 1) / 2 for n in grid.shape[::-1]]
    return (affine_lps(grid) @ [*middle, 1])[:3]


def _inside(points: Grid, chosen: Array, grid: Grid, transform: Rigid) -> Array:
    """Return for each chosen voxel of ``points`` whether it lies within ``grid``."""
    index = np.argwhere(chosen)[:, ::-1]  # x, y, z
    to_index = np.linalg.inv(affine_lps(grid)) @ transform.matrix @ affine_lps(points)
    positions = index @ to_index[:3, :3].T + to_index[:3, 3]
    size = np.array(grid.shape[::-1])
    within = (positions > -0.5) & (positions < size - 0.5)
    return np.all(within, axis=1)


def _left_right_axis(grid: Grid) -> int:
    """Return the array axis that runs most from left to right."""
    return 2 - int(np.abs(np.reshape(grid.direction, (3, 3))[0]).argmax())
