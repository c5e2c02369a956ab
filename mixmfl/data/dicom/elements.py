"""Values of the elements in a DICOM header, whatever is written there.

An element that is missing or damaged has the value of none: empty text, NaN or 0. In an enhanced
image the values of a frame go before those of the whole file.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

_LONGEST_TEXT = 200
MOST_PARTS = 50
"""The parts of a value that are read; each image of a file has its own list of them."""


def frames_of(content: Any) -> int:
    """Return how many images a file announces."""
    return max(1, integer_in(content, "NumberOfFrames"))


def by_frame(content: Any) -> list["Values"]:
    """Return the header values of each image of a file: its own, else those of all images."""
    shared, *own = _groups(content)
    if not own:
        return [Values(content)]
    return [Values(content, frame, shared) for frame in own]


class Values:
    """The elements of a header by name; those of a frame go before those of the file."""

    def __init__(self, content: Any, *groups: Mapping[str, Any]) -> None:
        self._content = content
        self._groups = groups

    def get(self, name: Any, default: Any = None) -> Any:
        """Return the value of an element by its keyword or tag; ``default`` where there is none."""
        for group in self._groups:
            if name in group:
                return group[name].value
        return self._content.get(name, default)


def _groups(content: Any) -> list[dict[str, Any]]:
    """Return the functional groups of an enhanced image: the shared one, then one per frame."""
    shared = content.get("SharedFunctionalGroupsSequence") or ()
    own = content.get("PerFrameFunctionalGroupsSequence") or ()
    return [_flat(shared[0]) if shared else {}, *map(_flat, own)]


def _flat(group: Any) -> dict[str, Any]:
    elements: dict[str, Any] = {}
    for sequence in group:
        if sequence.VR == "SQ" and sequence.value:
            for element in sequence.value[0]:
                elements.setdefault(element.keyword or element.tag, element)
    return elements


def manufacturer_number(values: Any, tag: tuple[int, int], creator: str) -> float:
    """Return a manufacturer's own element as a number; NaN where it is not of ``creator``."""
    if creator not in text_in(values, (tag[0], tag[1] >> 8)).upper():
        return math.nan
    value = value_of(values, tag)
    if isinstance(value, bytes):  # its type was lost
        try:
            return float(value.decode("ascii").strip("\0 ").split("\\")[0])
        except ValueError:
            return math.nan
    return number_in(values, tag)


def value_of(values: Any, name: Any) -> Any:
    """Return a value as pydicom gives it; None where it is missing or cannot be read."""
    try:
        value = values.get(name)
        return getattr(value, "value", value) if isinstance(name, tuple) else value
    except Exception:  # of pydicom, for a value that a flipped bit damaged
        return None


def text_in(values: Any, name: Any) -> str:
    """Return a value as printable text on one line; empty where it is missing."""
    value = value_of(values, name)
    most = 4 * _LONGEST_TEXT
    several = () if value is None else (value[:most],) if isinstance(value, str | bytes) else value
    parts = several if isinstance(several, Sequence) and not isinstance(several, str) else [several]
    text = "".join(
        sign if sign.isprintable() else " "
        for sign in " ".join(str(part)[:most] for part in islice(parts, MOST_PARTS))[:most]
    )
    return " ".join(text.split())[:_LONGEST_TEXT]


def texts_in(values: Any, name: str) -> tuple[str, ...]:
    """Return each of several values as text in upper case; none where they are missing."""
    value = value_of(values, name)
    if value is None or isinstance(value, str):
        return tuple(text_in(values, name).upper().split("\\")) if value else ()
    try:
        return tuple(str(part)[:_LONGEST_TEXT].upper() for part in islice(value, MOST_PARTS))
    except TypeError:
        return ()


def is_yes(values: Any, name: str) -> bool:
    """Return whether a value is ``"Y"`` or ``"YES"``."""
    return text_in(values, name).upper() in ("Y", "YES")


def number_in(values: Any, name: Any) -> float:
    """Return a value as a finite number; ``math.nan`` itself where it is none."""
    value = value_of(values, name)
    try:
        if isinstance(value, bytes):
            return float(int.from_bytes(value[:4], "little"))
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = value[0]
        number = float(value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def integer_in(values: Any, name: Any) -> int:
    """Return a value as an integer; 0 where it is missing."""
    number = number_in(values, name)
    return 0 if math.isnan(number) else int(number)


def numbers_in(values: Any, name: str, count: int) -> tuple[float, ...]:
    """Return ``count`` finite numbers; none of them where one is missing, or there are more."""
    value = value_of(values, name)
    try:
        numbers = tuple(float(part) for part in islice(value, count + 1))
    except (TypeError, ValueError, OverflowError):
        return ()
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else ()


def scale_of(values: Any) -> tuple[float, float]:
    """Return slope and intercept of an image, of real-world values where it has no RescaleSlope.

    Where an element is missing, its number is NaN.
    """
    scale = number_in(values, "RescaleSlope"), number_in(values, "RescaleIntercept")
    if not math.isnan(scale[0]):
        return scale
    mappings = value_of(values, "RealWorldValueMappingSequence")  # flat in an enhanced image
    own = mappings[0] if mappings else values
    slope = number_in(own, "RealWorldValueSlope")
    return scale if math.isnan(slope) else (slope, number_in(own, "RealWorldValueIntercept"))
