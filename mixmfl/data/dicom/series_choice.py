"""The choice between several series that fit one modality.

A user's table decides first. Then series are preferred, in this order, that can be read, that are
recognised for certain, that are no T1 later than one without a contrast agent by its header, that
are original and not derived, that show most of the body, that have most voxels, that are corrected
for distortion, that are axial, and that GE does not call the unfiltered ones. The same images under
new identifiers count once. Of one protocol's repetitions the last is taken, with a warning.
Otherwise the modality is left out, and the user must decide; so it is where a series and another
are parts of one acquisition.
"""

import math
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

import numpy as np

from mixmfl.core.errors import DataError
from mixmfl.data.dicom.sequence_type import is_silent_on_agent, is_wordless
from mixmfl.data.dicom.series import Series
from mixmfl.data.sequence_words import is_in_phase, shows_water

MOST_BODY = 0.6
"""The share of the largest field of view below which a series shows a part of the body only."""

MOST_VOXELS = 0.8
"""The share of the most voxels from which two series count as equally large."""

PART = 0.05
"""The share of a step or pixel by which parts of one acquisition may miss each other's grid."""

YOU_DECIDE = "--mapping decides"
"""The end of a reason why a series is left out until the user says what it is."""

_CORRECTED = {"DIS2D", "DIS3D"}
_REFORMATTED = re.compile(r"(?i)reform(at)?|rfmt|reconstructed|umgerechnet")


@dataclass(frozen=True)
class Choice:
    """The result of a choice.

    Attributes:
        taken: The chosen series; None where the user must decide.
        reasons: For each other series, in order, why it is not taken.
        warning: A warning to the user; empty where there is none.
    """

    taken: Series | None
    reasons: tuple[tuple[Series, str], ...]
    warning: str = ""


def choose(
    modality: str, candidates: Sequence[Series], guessed: Set[int], *, is_agent_named: bool = False
) -> Choice:
    """Choose the series of a modality by the rules of the module.

    Args:
        modality: The modality.
        candidates: The series that fit it.
        guessed: The ``id`` of those that times alone say to fit.
        is_agent_named: Whether the examination's headers tell its T1 with a contrast agent, so
            that one which they do not is before it.
    """
    if len(candidates) == 1:
        return Choice(candidates[0], ())
    faults = {id(each): each.fault for each in candidates}
    readable = [each for each in candidates if not faults[id(each)]]

    def best() -> tuple[Series | None, list[Series], str]:
        return _best(modality, readable or candidates, guessed, is_agent_named)

    taken, rivals, warning = best()
    while taken is not None and readable and taken.is_compressed:
        try:
            taken.read()
        except DataError as error:
            faults[id(taken)] = str(error).removeprefix(f"{taken.name}: ")
            readable = [each for each in candidates if not faults[id(each)]]
            taken, rivals, warning = best()
        else:
            break
    if taken is not None:
        parts = [each for each in readable if _are_parts(taken, each)]
        if parts:
            rivals, taken = [taken, *parts], None
            warning = (
                f"{modality} is left out: {_names(rivals)} are alike and fill each other's gaps or "
                f"follow on each other, like parts of one acquisition; {YOU_DECIDE}"
            )
        elif modality == "t1" and not is_agent_named:
            taken, rivals, warning = _before_agent(taken, readable, rivals, warning)
    warnings = [warning] if warning else []
    reasons = []
    for each in candidates:
        if each is taken:
            continue
        if fault := faults[id(each)]:
            reason = f"another {modality}, which cannot be read: {fault}"
            if readable:
                warnings.append(f"{each.name} is no {modality}: it cannot be read ({fault})")
        elif taken is None and each in rivals:
            others = _names([r for r in rivals if r is not each])
            reason = f"fits {modality} as well as {others}; {YOU_DECIDE}"
        else:
            after = taken.name if taken is not None else "a better one"
            reason = f"another {modality}; {after} is taken"
        reasons.append((each, reason))
    return Choice(taken, tuple(reasons), "; ".join(warnings))


def _best(
    modality: str, candidates: Sequence[Series], guessed: Set[int], is_agent_named: bool
) -> tuple[Series | None, list[Series], str]:
    """Return the best series or None, the equally good ones, and a warning or nothing."""
    left = list(candidates)
    largest = max(_extent(each) for each in left)
    natives = (each.header for each in left if modality == "t1" and not is_agent_named)
    last_native = max(
        (header.number for header in natives if not is_silent_on_agent(header)), default=math.inf
    )
    for is_better in (
        lambda each: id(each) not in guessed,
        lambda each: each.header.number <= last_native,
        lambda each: not _is_derived(each),
        lambda each: _extent(each) >= MOST_BODY * largest,
    ):
        left = _narrowed(left, is_better)
    most = max(each.size for each in left)
    others = left
    for is_better in (
        lambda each: each.size >= MOST_VOXELS * most,
        lambda each: bool(_CORRECTED & set(each.header.image_type)),
        _is_axial,
        lambda each: not any(_is_worse_twin(each, other) for other in others),
    ):
        left = _narrowed(left, is_better)
    left = _without_copies(left)
    if len(left) == 1:
        return left[0], left, ""
    names = _names(left)
    if len({_protocol(each) for each in left}) > 1:
        return None, left, f"{modality} is left out: {names} fit it equally well; {YOU_DECIDE}"
    if modality == "t1" and any(is_silent_on_agent(each.header) for each in left):
        why = "the later may be after a contrast agent"
        return None, left, f"{modality} is left out: {names} are alike, and {why}; {YOU_DECIDE}"
    order = {each.header.number for each in left}
    if len(order) < len(left) or 0 in order:
        why = "their numbers do not say which is the last"
        return None, left, f"{modality} is left out: {names} are alike, and {why}; {YOU_DECIDE}"
    last = max(left, key=lambda each: each.header.number)
    return last, left, f"{modality} was made more than once, as {names}; the last is taken"


def _without_copies(candidates: Sequence[Series]) -> list[Series]:
    """Return the series that differ: an archive may give the same images new identifiers."""
    different: list[Series] = []
    for each in candidates:
        if not any(_are_same(each, other) for other in different):
            different.append(each)
    return different


def _are_same(one: Series, other: Series) -> bool:
    """Say whether two series of one protocol have the same voxels at the same place."""
    if one.grid is None or one.grid != other.grid or _protocol(one) != _protocol(other):
        return False
    try:
        return bool(np.array_equal(one.read()[0], other.read()[0]))
    except DataError:
        return False


def _before_agent(
    taken: Series, candidates: Sequence[Series], rivals: list[Series], warning: str
) -> tuple[Series | None, list[Series], str]:
    """Doubt a T1 after another one, between which a contrast agent may have been given.

    Returns:
        The T1, or None if its header has no word that could say so; its rivals, and a warning.
    """
    earlier = [
        each
        for each in candidates
        if each is not taken
        and not _is_derived(each)
        and not _is_worse_twin(each, taken)
        and each.header.number <= taken.header.number
        and is_silent_on_agent(each.header)
    ]
    if not earlier or not is_silent_on_agent(taken.header):
        return taken, rivals, warning
    doubt = (
        f"{taken.name} was made after {_names(earlier)}, and nothing says whether a "
        "contrast agent was given before it"
    )
    if is_wordless(taken.header):
        return None, [taken, *earlier], f"t1 is left out: {doubt}; {YOU_DECIDE}"
    return taken, rivals, f"{warning}; {doubt}" if warning else f"t1: {doubt}; look at it"


def _are_parts(one: Series, other: Series) -> bool:
    """Say whether two series are stacks of one acquisition: between each other's slices, or on it.

    They have one protocol, and the same pixels and step.
    """
    a, b = one.grid, other.grid
    if one is other or a is None or b is None or _protocol(one)[:-1] != _protocol(other)[:-1]:
        return False
    if a.shape[1:] != b.shape[1:] or not (
        np.allclose(a.spacing, b.spacing, rtol=PART)
        and np.allclose(a.direction, b.direction, rtol=0, atol=1e-3)
    ):
        return False
    apart = np.subtract(b.origin, a.origin) @ np.reshape(a.direction, (3, 3))
    x, y, z = np.abs(apart / np.array(a.spacing)[::-1])
    slices = a.shape[0] if apart[2] > 0 else b.shape[0]
    is_between = z < slices and abs(z % 1 - 0.5) < PART
    return max(x, y) < PART and (is_between or abs(z - slices) < PART)


def _names(candidates: Sequence[Series]) -> str:
    return " and ".join(each.name for each in candidates)


def _narrowed(candidates: list[Series], is_better: Callable[[Series], bool]) -> list[Series]:
    return [each for each in candidates if is_better(each)] or candidates


def _is_derived(series: Series) -> bool:
    """Say whether ImageType, or the description, says that images were computed from others."""
    header = series.header
    return "DERIVED" in header.image_type or bool(_REFORMATTED.search(header.description))


def _is_worse_twin(one: Series, other: Series) -> bool:
    """Say whether scanners store one with the other, better image: in phase, or unfiltered."""
    is_of_dixon = _is_in_phase(one) and _is_water(other)
    return is_of_dixon or one.header.description in _unfiltered(other.header.description)


def _is_in_phase(series: Series) -> bool:
    """Say whether ImageType, or the end of the description, says the in-phase image of a Dixon."""
    types = set(series.header.image_type)
    return bool({"IP", "IN_PHASE"} & types or is_in_phase(series.header.description))


def _is_water(series: Series) -> bool:
    """Say whether ImageType, or the description, says the water image of a Dixon."""
    types = set(series.header.image_type)
    return bool({"W", "WATER"} & types or shows_water(series.header.description))


def _unfiltered(description: str) -> tuple[str, ...]:
    """Return how GE and Siemens call the image that they stored as this one, too, but filtered."""
    names = f"ORIG {description}", re.sub(r"UNI[-_]DEN$", "UNI_Images", description)
    return tuple(name for name in names if name != description)


def _extent(series: Series) -> float:
    """Return the volume of the field of view in mm³; 0 without a grid."""
    if series.grid is None:
        return 0.0
    return float(np.prod(np.multiply(series.grid.shape, series.grid.spacing)))


def _is_axial(series: Series) -> bool:
    """Say whether the slices' normal is nearest to the axis from foot to head."""
    if series.grid is None:
        return False
    across = np.abs(np.reshape(series.grid.direction, (3, 3))[:, 2])
    return int(across.argmax()) == 2


def _protocol(series: Series) -> tuple[object, ...]:
    """Return the values that repetitions of one protocol share."""
    header, grid = series.header, series.grid
    times = (header.echo_ms, header.repetition_ms, header.inversion_ms, header.flip_degrees)
    return (
        header.description,
        header.protocol,
        header.agent,
        header.scanning,
        header.image_type,
        tuple(f"{time:.3g}" for time in times),
        grid and (grid.shape, tuple(round(step, 2) for step in grid.spacing)),
    )
