"""Mutations of bytes, JSON and safetensors: what a hostile or careless hand makes of a good file.

All of them are drawn from a ``random.Random``, so that a seed gives the same mutation again.
"""

import json
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

from hostile import VALUES, Path, places, replaced

NAMES = (
    "../../etc/x", "/etc/x", "..", ".", "a/b", "a\\b", "C:\\x", "con", "", " ", "a" * 300,
    "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "=1+1", "@SUM(A1)", "+1", "-1+1",
    "a\x00b", "a\nb", "a\rb", "\x1b[31mred", "a\u202eb", "\u2066a\u2069", "a\u2028b", "\ud800",
    "\u0301" * 50, "t\uff11", "{0.__class__}", "%s%n", "${x}", "$(id)", "`id`", "; id", "__class__",
    "__init__", "torch.nn.Module", "os.system", "null", "NaN", "T1", "t1", "background", "ignore",
)  # fmt: skip
"""Names and words that mean something to a shell, a page, a table, a path, or to Python."""

NUMBERS = (
    0, -1, 1, 2, 255, 256, 2**15, 2**16, 2**31 - 1, 2**31, 2**32, 2**53, 2**62, 2**63, 2**64,
    10**18, 10**39, -(2**63), 0.1, -0.0, 1e-320, 1e-9, 1e9, 1e38, 1e39, 1e308, -1e308, True, False,
)  # fmt: skip

_RAW = (
    "1e999", "-1e999", "NaN", "-Infinity", "9" * 100_000, "0." + "1" * 100_000, "[" * 50_000,
    '{"a":' * 20_000, "[" * 40 + "]" * 40, '{"a": 1, "a": 2}', '{"": {"": {"": 1}}}', '"\\ud800"',
    "", "{", "\x00", "'a'", "01", "1.", "+1", "0x10", "1_000", "tru", "[1,]", "//", '"\t"',
)  # fmt: skip
"""What stands as it is in place of a value of JSON."""

_HOLE = "@hole@"

_MOST_BYTES = 8 * 2**20
"""Bytes of JSON that a repetition makes at most: more of it would be the mutation's own memory."""


def mutated_json(content: Any, draw: random.Random) -> bytes:
    """Return JSON text in which one to three values are others, are gone, or are too much."""
    content = json.loads(json.dumps(content))
    if draw.random() < 0.12:
        return mutated_bytes(json.dumps(content).encode(), draw)
    raw = ""
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        content, hole = _change(content, draw)
        raw = raw or hole
    text = json.dumps(content, ensure_ascii=draw.random() < 0.5)
    text = text.replace(f'"{_HOLE}"', raw or "null")
    if draw.random() < 0.05:  # an object with a name twice
        name = draw.choice(list(content)) if isinstance(content, dict) and content else "a"
        text = text[:-1] + f", {json.dumps(name)}: {draw.choice(('1', 'null', '[]'))}" + "}"
    return text.encode("utf-8", "surrogatepass")


def _change(content: Any, draw: random.Random) -> tuple[Any, str]:
    """Return JSON with one change, and the text for the hole in it."""
    at = draw.choice(list(places(content)))
    value = _inside(content, at)
    kind = draw.randrange(12)
    if kind == 0:
        return replaced(content, at, draw.choice(VALUES)), ""
    if kind == 1:
        return replaced(content, at, _HOLE), draw.choice(_RAW)
    if kind == 2:
        return replaced(content, at, draw.choice(NAMES)), ""
    if kind == 3 or isinstance(value, int | float):
        return replaced(content, at, _near(value, draw)), ""
    if kind == 4:  # what stands elsewhere in the same file
        return replaced(content, at, _inside(content, draw.choice(list(places(content))))), ""
    if isinstance(value, dict) and value:
        return replaced(content, at, _changed_object(value, draw)), ""
    if isinstance(value, list):
        return replaced(content, at, _changed_list(value, draw)), ""
    if kind == 5:
        deep: Any = value
        for _ in range(draw.choice((1, 5, 31, 200))):
            deep = [deep] if draw.random() < 0.5 else {"a": deep}
        return replaced(content, at, deep), ""
    if isinstance(value, str) and value:
        cut = draw.randrange(len(value))
        made = (
            value[:cut],
            value * _times(value, 2000),
            value + draw.choice(NAMES),
            value.upper(),
            f" {value} ",
        )
        return replaced(content, at, draw.choice(made)), ""
    return replaced(content, at, draw.choice(NUMBERS)), ""


def _near(value: Any, draw: random.Random) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float) or draw.random() < 0.4:
        return draw.choice(NUMBERS)
    return draw.choice(
        (value + 1, value - 1, -value, value * 10, value * 1000, value / 3, 0 * value)
    )


def _changed_object(value: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    name = draw.choice(list(value))
    made = dict(value)
    kind = draw.randrange(6)
    if kind == 0:
        del made[name]
    elif kind == 1:
        made = {draw.choice(NAMES) if n == name else n: each for n, each in value.items()}
    elif kind == 2:
        made[draw.choice(NAMES)] = value[name]
    elif kind == 3:
        times = _times(value[name], draw.choice((3, 40, 5000)))
        made.update({f"m{n}": value[name] for n in range(times)})
    elif kind == 4:
        other = draw.choice(list(value))
        made[name], made[other] = value[other], value[name]
    else:
        made = {}
    return made


def _changed_list(value: list[Any], draw: random.Random) -> list[Any]:
    kind = draw.randrange(6)
    if kind == 0 or not value:
        return [] if value else [draw.choice(NUMBERS)]
    if kind == 1:
        return value[:-1]
    if kind == 2:
        return [*value, draw.choice(value)]
    if kind == 3:
        return value[::-1]
    if kind == 4:
        return value * _times(value, draw.choice((2, 300)))
    return [*value, draw.choice((*NUMBERS, *NAMES))]


def _times(value: Any, wanted: int) -> int:
    """Return how often a value is repeated."""
    return min(wanted, 1 + _MOST_BYTES // len(json.dumps(value)))


def _inside(content: Any, at: Path) -> Any:
    for step in at:
        content = content[step]
    return content


def mutated_bytes(content: bytes, draw: random.Random, most: int = 0) -> bytes:
    """Return bytes that are flipped, overwritten, cut, moved, doubled or followed by others.

    Args:
        content: Good bytes.
        draw: The source of chance.
        most: Bytes at the start in which to change something; 0: anywhere.
    """
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 5))):
        end = min(len(made), most) if most else len(made)
        if not end:
            return bytes(made)
        at, kind = draw.randrange(end), draw.randrange(9)
        if kind <= 1:
            made[at] ^= 1 << draw.randrange(8)
        elif kind == 2:
            made[at : at + 1] = bytes([draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))])
        elif kind == 3:
            form = draw.choice(["<h", "<i", "<q", "<f", "<d", ">h", ">i", ">f"])
            number = draw.choice((0, -1, 1, 2, 7, 127, 32767, -32768))
            if form[1] in "iqfd" and draw.random() < 0.5:
                number = draw.choice((2**31 - 1, -(2**31), 2**30, 10**9))
            word = struct.pack(form, number)
            if form[1] in "fd" and draw.random() < 0.3:
                word = struct.pack(form, draw.choice((float("nan"), float("inf"), 1e38, 1e-38)))
            made[at : at + len(word)] = word
        elif kind == 4:
            del made[at : at + draw.choice((1, 2, 4, 100, len(made)))]
        elif kind == 5:
            made[at:at] = draw.randbytes(draw.choice((1, 2, 4, 100)))
        elif kind == 6:
            length = draw.choice((1, 4, 64, 1000))
            other = draw.randrange(end)
            made[at : at + length] = made[other : other + length]
        elif kind == 7:
            made += draw.choice((b"\0" * 4, draw.randbytes(40), bytes(made[:200])))
        else:
            made[at : at + 64] = b"\xff" * 64
    return bytes(made)


def mutated_safetensors(content: bytes, draw: random.Random) -> bytes:
    """Return safetensors whose length, declarations, places or numbers are not what they were."""
    length = int.from_bytes(content[:8], "little")
    declared, numbers = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in declared if name != "__metadata__"]
    kind = draw.randrange(10)
    if kind == 0 or len(names) < 2:
        return mutated_bytes(content, draw, draw.choice((0, 8, 8 + length)))
    if kind == 1:  # a lie about the header's length
        lie = draw.choice((0, 1, length - 1, length + 8, 2**31, 2**63, 2**64 - 1))
        return lie.to_bytes(8, "little") + content[8:]
    one, other = draw.sample(names, 2)
    first, second = declared[one], declared[other]
    change: Sequence[Callable[[], object]] = (
        lambda: first.update(data_offsets=second["data_offsets"]),  # one lies on the other
        lambda: declared.update({one: second, other: first}),
        lambda: first.update(dtype=draw.choice(("F64", "F16", "I32", "BOOL", "F8_E4M3", "X"))),
        lambda: first.update(shape=draw.choice(
            ([2**40, 0], [0, 2**39, 2**39], [-1, -1], [2**32, 2**32], [0], [1] * 20, [10**39],
             [1.0], "1", None)
        )),
        lambda: first.update(shape=first["shape"][::-1] or [1]),
        lambda: first.update(data_offsets=draw.choice(
            ([0, 2**63], [5, 1], [-4, 0], [0], [0, 1, 2], None, [0.0, 4.0], [0, len(numbers)])
        )),
        lambda: declared.update({draw.choice(NAMES): declared.pop(one)}),
        lambda: declared.pop(one),
        lambda: declared.update({f"t{n}": first for n in range(draw.choice((5, 30_000)))}),
        lambda: first.update(also=1),
        lambda: declared.update(__metadata__=draw.choice(({}, None, [], {"mixmfl": 1}, {"a": 1}))),
    )  # fmt: skip
    if kind == 2:  # numbers that change places, and stay the same ones
        at, to = (draw.randrange(max(1, len(numbers) - 64)) // 4 * 4 for _ in range(2))
        swapped = bytearray(numbers)
        swapped[at : at + 64], swapped[to : to + 64] = numbers[to : to + 64], numbers[at : at + 64]
        numbers = bytes(swapped)
    elif kind == 3:
        text = mutated_json(declared, draw)
        return len(text).to_bytes(8, "little") + text + numbers
    else:
        draw.choice(change)()
    text = json.dumps(declared).encode("utf-8", "surrogatepass")
    return len(text).to_bytes(8, "little") + text + numbers
