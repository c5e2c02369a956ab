"""The reader of messages, given what nobody should send; ``make fuzz`` gives it much more."""

import hashlib
import io
import json
import random
import resource
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mixmfl.core.errors import AggregationError
from mixmfl.core.tensor_store import (
    MOST_HEADER_BYTES,
    MOST_TENSORS,
    Stored,
    digest,
    form_of,
    only,
    open_stored,
    pack,
    pieces,
    read_part,
    reader_of,
    write,
)
from mixmfl.federated.messages import Message, StoredMessage, decode, encode, most_reply_bytes

MESSAGE = Message(
    "train",
    {"round": 3, "loss": 0.5, "deep": {"list": [1, None, "word"]}},
    {"decoder.w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor([2**40]), "b": torch.ones(0)},
)
CONTENT = encode(MESSAGE)
FOLDER = Path(tempfile.gettempdir())  # of files without a name

DTYPES = st.sampled_from(["F32", "F64", "I64", "U8", "BOOL", "F4", "F8_E8M0", "C64", "", "nope"])
NUMBERS = st.one_of(
    st.integers(-2, 40),
    st.integers(0, 2**70),
    st.sampled_from([2**31, 2**63, 2**64 - 1]),
    st.none(),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
TENSOR = st.fixed_dictionaries(
    {
        "dtype": DTYPES,
        "shape": st.lists(NUMBERS, max_size=4),
        "data_offsets": st.lists(NUMBERS, max_size=3),
    }
)


def framed(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def inner(header: Any) -> dict[str, Any]:
    text = header if isinstance(header, str) else json.dumps(header)
    return {"__metadata__": {"mixmfl": text}}


def read_or_refuse(content: bytes, *, disk: bool = False) -> bool:
    """Say whether a message was read; any error but ours fails the test.

    With ``disk`` it must go the same way with a file.
    """
    stored = StoredMessage.store(content, FOLDER) if disk else None
    try:
        message = decode(content)
    except AggregationError:
        if stored is not None:
            with pytest.raises(AggregationError):
                stored.open()
        return False
    size = sum(t.numel() * t.element_size() for t in message.tensors.values())
    assert size <= len(content)
    if stored is not None:
        assert digest({**stored.open().tensors}) == digest({**message.tensors})
    return True


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_by_our_error(content: bytes) -> None:
    assert not read_or_refuse(content)
    assert not read_or_refuse(framed(content))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(st.text(max_size=3), st.one_of(TENSOR, JSON), max_size=3),
    st.fixed_dictionaries({"format": st.just(1), "kind": JSON, "record": JSON}),
    st.binary(max_size=64),
)
def test_headers_that_lie_are_refused_by_our_error(
    tensors: dict[str, Any], header: dict[str, Any], body: bytes
) -> None:
    read_or_refuse(framed({**tensors, **inner(header)}, body), disk=True)


def test_another_format_is_named_in_one_short_line() -> None:
    header = {"format": "\x1b[31m\n" * 10_000, "kind": "train", "record": {}}
    with pytest.raises(AggregationError, match=r"a message of format .* is needed") as refused:
        decode(pack({}, header))
    assert len(str(refused.value)) < 300
    assert str(refused.value).isprintable()


def test_two_thousand_messages_with_a_few_bytes_changed_are_read_or_refused() -> None:
    generator = random.Random(0)
    read = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(2_000):
        content = bytearray(CONTENT)
        for _ in range(generator.randint(1, 4)):
            place = generator.randrange(len(content))
            match generator.randrange(4):
                case 0:
                    content[place] = generator.randrange(256)
                case 1:
                    del content[place : place + generator.randint(1, 9)]
                case 2:
                    content[place:place] = generator.randbytes(generator.randint(1, 9))
                case 3:  # a digit, which sizes are made of
                    content[place] = ord(generator.choice("0123456789-eE"))
            if not content:
                content = bytearray(b"\0")
        read += read_or_refuse(bytes(content), disk=number % 20 == 0)
    assert 0 < read < 1_000  # values may change unseen, and most of the rest is refused
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 2e8  # bytes, or else kilobytes


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (framed({**inner({}), "w": None}), "type, shape and place"),
        (struct.pack("<Q", 2**62) + b"{}", "a header of 4611686018427387904 bytes is declared"),
        (struct.pack("<Q", MOST_HEADER_BYTES + 1) + bytes(MOST_HEADER_BYTES + 1), "are read"),
        (framed(b"[" * 100_000), "nested deeper than 32"),
        (framed(inner("[" * 100_000)), "nested deeper than 32"),
        (framed(inner("[" * 40 + "]" * 40)), "nested deeper than 32"),
        (framed(inner('{"kind": NaN}')), "NaN is no JSON number"),
        (framed(inner('{"n": ' + "9" * 5000 + "}")), "damaged"),
        (framed(inner({"format": 1, "kind": [], "record": {}})), "kind or record are none"),
        (framed(inner({"format": 1, "kind": "train", "record": []})), "kind or record are none"),
        (framed(inner({"format": 1, "kind": "train"})), "'record'"),
        (framed({"__metadata__": {"pickle": "x"}}), "was not written by mixmfl"),
        (framed({"__metadata__": {"mixmfl": 3}}), "was not written by mixmfl"),
        (framed([]), "does not declare tensors by name"),
        (
            framed(
                {"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}, **inner({})}
            ),
            "tensors of 4398046511104 bytes are declared, 0 are there",
        ),
        (
            framed(
                {"w": {"dtype": "F32", "shape": [2**62, 0], "data_offsets": [0, 0]}, **inner({})}
            ),
            "type, shape and place are not those of a tensor",
        ),
        (
            framed(
                {
                    "w": {"dtype": "F32", "shape": [0, 2**39, 2**39], "data_offsets": [0, 0]},
                    **inner({}),
                }
            ),
            "type, shape and place are not those of a tensor",
        ),
        (
            framed({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}, **inner({})}, b"x"),
            "type, shape and place are not those of a tensor",
        ),
        (framed({f"w{n}": None for n in range(MOST_TENSORS + 1)}), f"or more than {MOST_TENSORS}"),
        (CONTENT + b"more", "bytes are declared"),
        (b"\x80\x04\x95pickle", "is damaged"),
    ],
)
def test_what_is_declared_is_compared_with_what_is_there(content: bytes, reason: str) -> None:
    with pytest.raises(AggregationError, match=reason):
        decode(content)
    with pytest.raises(AggregationError, match=reason):
        StoredMessage.store(content, FOLDER).open()


@pytest.mark.parametrize("places", [((0, 4), (0, 4)), ((0, 4), (5, 9)), ((2, 6), (6, 10))])
def test_tensors_that_overlap_or_leave_gaps_are_refused(
    places: tuple[tuple[int, int], ...],
) -> None:
    header = {
        str(number): {"dtype": "F32", "shape": [1], "data_offsets": list(place)}
        for number, place in enumerate(places)
    }
    content = framed({**header, **inner({})}, bytes(10))
    for read in (decode, lambda content: StoredMessage.store(content, FOLDER).open()):
        with pytest.raises(AggregationError, match=r"begins at byte \d, not where the last ended"):
            read(content)


def test_a_parcel_holds_the_bytes_of_the_message_and_leaves_no_file_behind(tmp_path: Path) -> None:
    stored = StoredMessage.pack(MESSAGE, tmp_path / "new")
    assert stored.read(0, stored.size + 1) == CONTENT
    assert stored.read(7, 5) == CONTENT[7:12]
    assert stored.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert not list((tmp_path / "new").iterdir())
    tensors = stored.open().tensors
    del stored  # who holds the tensors holds the file
    assert torch.equal(tensors["decoder.w"], MESSAGE.tensors["decoder.w"])
    assert torch.equal(only(tensors, {"n"})["n"], torch.tensor([2**40]))
    with pytest.raises(AggregationError, match="bytes came, at most 10 are needed for it"):
        StoredMessage.store(CONTENT, tmp_path).open(10)


def test_a_part_of_a_stored_tensor_is_read_without_the_rest() -> None:
    tensors = StoredMessage.store(CONTENT, FOLDER).open().tensors
    room = torch.full((4,), -1.0)
    assert read_part(tensors, "decoder.w", 2, 5, room).tolist() == [2.0, 3.0, 4.0]
    assert room.tolist() == [2.0, 3.0, 4.0, -1.0]
    assert form_of(tensors, "decoder.w") == ((2, 3), torch.float32)


def test_a_file_of_tensors_can_be_read_by_whom_other_new_files_can(tmp_path: Path) -> None:
    write(tmp_path / "tensors", MESSAGE.tensors, {})
    (tmp_path / "other").touch()
    modes = {(tmp_path / name).stat().st_mode for name in ("tensors", "other")}
    assert len(modes) == 1


def test_a_message_beyond_its_limit_is_not_looked_at() -> None:
    with pytest.raises(AggregationError, match="bytes came, at most 10 are needed for it"):
        decode(b"no message at all", 10)
    task = encode(Message("train", {"round": 0}, {"w": torch.zeros(10)}))
    assert most_reply_bytes(len(task)) == 4 * len(task) + 2**26


NAMES = ["a", "b", "c", "d"]


def several(kind: torch.dtype) -> dict[str, torch.Tensor]:
    """Return four tensors that hold 0 to 11, one behind the other."""
    numbers = torch.arange(12.0).to(kind)
    shapes = {"a": (2, 3), "b": (), "c": (0,), "d": (5,)}
    parts = torch.split(numbers, [6, 1, 0, 5])
    return {name: part.reshape(shapes[name]) for name, part in zip(NAMES, parts, strict=True)}


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_tensors_are_read_as_one_wherever_a_piece_begins_and_ends(
    kind: torch.dtype, tmp_path: Path
) -> None:
    tensors = several(kind)
    write(tmp_path / "file", tensors, {})
    with io.FileIO(tmp_path / "file") as file:
        stored, _ = open_stored(file)
        for source in (tensors, stored):
            read = reader_of(source, NAMES)
            for start in range(12):
                for stop in range(start, 13):
                    room = torch.full((12,), -1.0, dtype=kind)
                    want = list(range(start, stop))
                    assert read(start, stop, room).tolist() == want
                    assert room[: stop - start].tolist() == want  # it came where it was asked to
            for most in (1, 4, 5, 12, 100):
                found = [part.tolist() for part in pieces(source, NAMES, most)]
                assert max(map(len, found)) == min(most, 12)
                assert [number for part in found for number in part] == list(range(12))
            assert list(pieces(source, [], 5)) == []
            assert list(pieces(source, ["c"], 5)) == []
            assert [part.tolist() for part in pieces(source, ["d", "b"], 4)] == [
                [7, 8, 9, 10],
                [11, 6],
            ]


def test_many_tensors_that_lie_in_order_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "file", several(torch.float16), {})
    asked: list[tuple[int, int]] = []
    part = Stored.part

    def counted(self: Stored, name: str, start: int, stop: int, room: torch.Tensor) -> torch.Tensor:
        asked.append((start, stop))
        return part(self, name, start, stop, room)

    monkeypatch.setattr(Stored, "part", counted)
    with io.FileIO(tmp_path / "file") as file:
        stored, _ = open_stored(file)
        room = torch.empty(12, dtype=torch.float16)
        reader_of(stored, NAMES)(1, 12, room)
        assert asked == [(1, 12)]
        asked.clear()
        assert reader_of(stored, ["d", "a"])(3, 8, room).tolist() == [10, 11, 0, 1, 2]
        assert asked == [(3, 5), (0, 3)]
        asked.clear()
        assert reader_of(stored, ["a", "d"])(4, 8, room).tolist() == [4, 5, 7, 8]
        assert asked == [(4, 6), (0, 2)]  # b lies between them


@pytest.mark.parametrize("version", [5.0, True, "5", None, 4, [5]])
def test_a_message_of_another_format_is_refused(tmp_path: Path, version: Any) -> None:
    content = pack({}, {"format": version, "kind": "train", "record": {}})
    with pytest.raises(AggregationError, match=r"a message of format .* came, 5 is needed"):
        decode(content)
    with pytest.raises(AggregationError, match=r"a message of format .* came, 5 is needed"):
        StoredMessage.store(content, tmp_path).open()
    assert decode(pack({}, {"format": 5, "kind": "train", "record": {}})).kind == "train"
