"""JSON from anybody: it is read within limits, or refused with a reason in words.

Python's own reader accepts infinite numbers, a name twice, and nesting and digits until it
fails. Files (``files.read_json``), messages and headers of tensors are all read here.
"""

import json
import math
import re
from typing import Any, NoReturn

MOST_BYTES = 128 * 2**20
"""The bytes that a record may have which grows with cases or rounds; one of 10,000 rounds of 50
sites has some 100 MB, and what is read of it takes 1 GB of memory."""

MOST_BYTES_SETTINGS = 4 * 2**20
"""The bytes that any other file may have."""

MOST_VALUES = 10_000_000
"""The values that one text may have; each takes up to some 80 bytes of memory."""

MOST_DEPTH = 32
"""The depth of objects and lists in one another that is read; plans have 7."""

MOST_DIGITS = 40
"""The digits that a whole number may have: so it becomes a float without overflow."""

_LONGEST_NUMBER = 1000  # characters; a float to its last digit has fewer
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def parse_json(content: bytes | str, most_bytes: int = MOST_BYTES) -> Any:
    """Read JSON text in UTF-8, with or without a byte order mark.

    Args:
        content: The text.
        most_bytes: The bytes that the text may have.

    Raises:
        ValueError: The text is no JSON, or beyond the limits of this module.
    """
    if len(content) > most_bytes:
        raise ValueError(f"more than {most_bytes} bytes of JSON are not read")
    text = content.decode("utf-8-sig") if isinstance(content, bytes) else content
    if sum(map(text.count, ",[{")) > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES} values of JSON are not read")
    try:
        parsed = json.loads(
            text,
            parse_int=_whole,
            parse_float=_real,
            parse_constant=_no_number,
            object_pairs_hook=_unique,
        )
    except RecursionError:
        raise _too_deep() from None
    _check_depth(parsed)
    if _SURROGATE.search(text) and not _is_text(parsed):
        raise ValueError("it holds half of a character (a lone surrogate)")
    return parsed


def _whole(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"a whole number of {len(digits)} characters; at most {MOST_DIGITS}")
    return int(digits)


def _real(digits: str) -> float:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(digits)} characters; at most {_LONGEST_NUMBER}")
    if not math.isfinite(number := float(digits)):
        raise ValueError(f"the number {digits[:40]} is beyond what a float can hold")
    return number


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has {twice[:40]!r} twice")
    return entries


def _check_depth(content: Any) -> None:
    level = [content] if isinstance(content, dict | list) else []
    for _ in range(MOST_DEPTH):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(f"JSON is nested deeper than {MOST_DEPTH}")


def _is_text(content: Any) -> bool:
    """Say whether all strings in the content can be written as UTF-8."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
