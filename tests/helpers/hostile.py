"""What a careless or hostile hand could have written in place of a value, wherever that is."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from mixmfl.planning.fingerprint import (
    INTENSITY_EDGES,
    MOST_ROWS,
    Fingerprint,
    grids,
    intensity_properties,
    median_kept_share,
    merge_fingerprints,
)

NESTED: Any = 0
for _ in range(20):
    NESTED = [NESTED]

VALUES: tuple[Any, ...] = (
    10**18, 10**39, -1, 0, 0.5, 1e308, -1e308, True, None, "", "1", "t1", "../../x",
    "<script>", "a\nb\x1b[31m", "=1+1", "t\uff11", "x" * 3000, [], [[]], {}, {"a": {}},
    {"../x": 1}, [1, "a", None], NESTED, ["t1", "t1"], list(range(300)),
)  # fmt: skip
"""Of these none is what a field needs, but where it is by chance."""

TEXTS = (
    "1e999", "-1e999", "NaN", "Infinity", "9" * 100_000, "1." + "0" * 100_000, "[" * 100_000,
    '{"a":' * 100_000, '{"a": 1, "a": 2}', r'"\ud800"', r'{"\udfff": 1}', "", "nul", "{", "\x00",
    "[" + "1," * 10_000_000 + "1]",
)  # fmt: skip
"""Texts in place of a value of JSON, each of which must be refused as a whole."""

BINS = len(INTENSITY_EDGES) - 1

Path = tuple[str | int, ...]


def places(content: Any, at: Path = ()) -> Iterator[Path]:
    """Yield the place of every value in JSON; of a list that of its first and last."""
    yield at
    inside: list[tuple[str | int, Any]] = []
    if isinstance(content, dict):
        inside = list(content.items())
    elif isinstance(content, list | tuple):
        inside = [(n, content[n]) for n in sorted({0, len(content) - 1} if content else ())]
    for name, value in inside:
        yield from places(value, (*at, name))


def replaced(content: Any, at: Path, value: Any) -> Any:
    """Return JSON with another value at a place."""
    if not at:
        return value
    made = json.loads(json.dumps(content))
    inner = made
    for step in at[:-1]:
        inner = inner[step]
    inner[at[-1]] = value
    return made


def spoilt(content: Any) -> Iterator[tuple[Path, Any]]:
    """Yield the place and the whole of JSON in which one value is another, or gone, or too much."""
    content = json.loads(json.dumps(content))
    for at in places(content):
        for value in VALUES:
            yield at, replaced(content, at, value)
        inner = content
        for step in at:
            inner = inner[step]
        if isinstance(inner, dict):
            yield at, replaced(content, at, {**inner, "also": 1})
            yield at, replaced(content, at, {**inner, **{f"m{n}": 1 for n in range(2001)}})
            for name in inner:
                yield at, replaced(content, at, {n: v for n, v in inner.items() if n != name})


def fingerprint(cases: int = 4, **modality_cases: int) -> dict[str, Any]:
    """Return a good fingerprint as JSON."""
    counted = modality_cases or {"t1": cases, "t2": 1}
    return {
        "format": 5,
        "cases": cases,
        "modality_cases": counted,
        "axes": [{"1x20": cases - 1, "0.9375x128": 1}] * 3,
        "stacked": [{"1x20": cases - 1, "0.9375x128": 1}] * 3,
        "slices": {"none": cases},
        "kept_share": {"0.55": cases},
        "heads": {"stripped": cases},
        "subjects": {"patients": cases},
        "anatomy": {"brain": cases},
        "intensities": {name: [0] * (BINS - 1) + [50] for name in counted},
        "typical": {},
    }


def use_fingerprint(content: Any) -> None:
    """Do with a fingerprint what planning does."""
    mine = Fingerprint.from_json(content, "site north")
    other = Fingerprint.from_json(fingerprint(), "site south")
    merged = merge_fingerprints([mine, other])
    spacings, sizes = grids(merged)
    assert spacings.shape == sizes.shape == (min(merged.cases, MOST_ROWS), 3)
    assert 0 <= median_kept_share(merged) <= 1
    for name in merged.modality_cases:
        assert np.isfinite(list(intensity_properties(merged.intensities[name]).values())).all()
