"""Records are read as they are declared, and what is wrong with one is said in a sentence."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from mixmfl.core.declarations import (
    Declared,
    entries,
    needed,
    one_of,
    setting,
    settings_of,
    text,
    within,
)
from mixmfl.core.errors import DataError, MixmflError
from mixmfl.core.records import read_record


@dataclass(frozen=True)
class Inner:
    share: Annotated[float, within(0, 1, above=True)]
    site: Annotated[str, text(10)] = "north"


@dataclass(frozen=True)
class Outer:
    rounds: Annotated[int, within(1, 10)]
    rule: Literal["mean", "median"] = "mean"
    fast: bool = False
    name: Annotated[str, text(5, "[a-z]+", "letters")] = "x"
    levels: Annotated[tuple[Annotated[int, within(-2, 2)], ...], entries(0, 3)] = ()
    pair: tuple[Annotated[int, within(0, 9)], Annotated[float, within(0, 1)]] | None = None
    by_name: Annotated[
        Mapping[Literal["a", "b"], Annotated[float, within(0, 1)]], entries(0, 2)
    ] = field(default_factory=dict)
    sites: Annotated[Sequence[Annotated[str, text(10)]], entries(0, 2)] = ()
    inner: Inner = field(default_factory=lambda: Inner(0.5))
    all_inner: Annotated[Mapping[Annotated[str, text(4)], Inner], entries(0, 2)] = field(
        default_factory=dict
    )
    out: Path | None = None
    folds: Annotated[
        Sequence[Annotated[str, one_of(("2d", "3d"))]], entries(0, 2, distinct=True)
    ] = ()


def refusal(content: Any, **options: Any) -> str:
    with pytest.raises(MixmflError) as caught:
        read_record(Outer, content, "x.json", **options)
    return str(caught.value)


def test_a_record_is_read_with_its_types_and_defaults() -> None:
    assert read_record(Outer, {"rounds": 3}, "x.json") == Outer(3)
    content = {
        "rounds": 3,
        "levels": [1, -2],
        "pair": [1, 1],
        "by_name": {"b": 1},
        "sites": ["north", "Göttingen"],
        "inner": {"share": 1},
        "all_inner": {"n": {"share": 0.5, "site": "n"}},
        "out": "/a/b",
    }
    read = read_record(Outer, content, "x.json")
    assert read.levels == (1, -2)
    assert read.pair == (1, 1.0)
    assert isinstance(read.pair[1], float)
    assert read.by_name == {"b": 1.0}
    assert read.sites == ["north", "Göttingen"]
    assert (read.inner, read.all_inner) == (Inner(1.0), {"n": Inner(0.5, "n")})
    assert read.out == Path("/a/b")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rounds", True, "rounds: is True; it must be a whole number from 1 to 10"),
        ("rounds", 2.0, "rounds: is 2.0; it must be a whole number from 1 to 10"),
        ("rounds", "2", "rounds: is '2'; it must be a whole number from 1 to 10"),
        ("rounds", None, "rounds: is None; it must be a whole number from 1 to 10"),
        ("rounds", 0, "rounds: is 0; it must be a whole number from 1 to 10"),
        ("rounds", 11, "rounds: is 11; it must be a whole number from 1 to 10"),
        ("rounds", 10**400, "it must be a whole number from 1 to 10"),
        ("rule", "max", "rule: is 'max'; it must be mean or median"),
        ("rule", ["mean"], "rule: is ['mean']; it must be mean or median"),
        ("fast", 1, "fast: is 1; it must be true or false"),
        ("name", "", "name: is ''; it must be letters of 1 to 5 characters"),
        ("name", "ab\n", "name: is 'ab\\n'; it must be letters of 1 to 5 characters"),
        ("name", "abcdef", "name: is 'abcdef'; it must be letters of 1 to 5 characters"),
        ("name", "a1", "name: is 'a1'; it must be letters of 1 to 5 characters"),
        ("levels", 3, "levels: a list is needed, not 3"),
        ("levels", "12", "levels: a list is needed, not '12'"),
        ("levels", [1] * 4, "levels: has 4 entries; it must have from 0 to 3"),
        ("levels", [1, 3], "levels: is 3; it must be a whole number from -2 to 2"),
        ("pair", [1], "pair: has 1 entries; it must have 2"),
        ("pair", [1, 2], "pair: is 2; it must be a number from 0 to 1"),
        ("pair", 7, "pair: a list is needed, not 7"),
        ("by_name", [1], "by_name: an object with fields is needed, not [1]"),
        ("by_name", {"c": 1}, "by_name: name: is 'c'; it must be a or b"),
        ("by_name", {"a": float("nan")}, "by_name: a: is nan; it must be a number from 0 to 1"),
        ("by_name", {"a": True}, "by_name: a: is True; it must be a number from 0 to 1"),
        ("sites", ["a\x1b[2J"], "sites: is 'a\\x1b[2J'; it must be printable text of 1 to 10"),
        ("sites", ["a"] * 3, "sites: has 3 entries; it must have from 0 to 2"),
        ("inner", {"share": 0}, "inner: share: is 0; it must be a number above 0 and at most 1"),
        ("inner", {"share": 10**400}, "it must be a number above 0 and at most 1"),
        ("inner", {"share": float("inf")}, "share: is inf; it must be a number above 0"),
        ("inner", {"share": 1, "s": 1}, "inner: unknown fields ['s']"),
        ("inner", {}, "inner: missing fields ['share']"),
        ("inner", 3, "inner: an object with fields is needed, not 3"),
        ("all_inner", {"n": {}}, "all_inner: n: missing fields ['share']"),
        ("all_inner", {"\n": {"share": 1}}, "all_inner: name: is '\\n'; it must be printable"),
        ("out", "a\0b", "out: is 'a\\x00b'; it must be a path of 1 to 4096 characters, or null"),
        ("out", "", "out: is ''; it must be a path of 1 to 4096 characters, or null"),
        ("out", "x" * 4097, "xx'; it must be a path of 1 to 4096 characters, or null"),
        ("folds", ["2d", "4d"], "folds: is '4d'; it must be 2d or 3d"),
        ("folds", ["2d|3d"], "folds: is '2d|3d'; it must be 2d or 3d"),
        ("folds", ["2d", "2d"], "folds: is ['2d', '2d']; each may be named once"),
        ("out", 3, "out: is 3; it must be a path of 1 to 4096 characters, or null"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_needed(name: str, value: Any, message: str) -> None:
    found = refusal({"rounds": 3, name: value})
    assert found.startswith("x.json: ")
    assert message in found
    assert len(found) < 300


def test_unknown_and_missing_fields_are_named() -> None:
    assert refusal({"round": 1}) == ("x.json: unknown fields ['round'], missing fields ['rounds']")
    assert refusal([1]) == "x.json: an object with fields is needed, not [1]"


def test_a_whole_record_has_the_fields_that_have_a_default_too() -> None:
    whole = {**dataclasses.asdict(Outer(1))}
    assert read_record(Outer, whole, "x.json", whole=True) == Outer(1, sites=[], folds=[])
    assert "missing fields ['rule']" in refusal(
        {name: value for name, value in whole.items() if name != "rule"}, whole=True
    )
    assert "inner: missing fields ['site']" in refusal({**whole, "inner": {"share": 1}}, whole=True)


def test_the_error_is_of_the_class_that_the_caller_names() -> None:
    with pytest.raises(DataError, match="share: is 2"):
        read_record(Outer, {"rounds": 1, "inner": {"share": 2}}, "x.json", DataError)


def test_a_number_without_bounds_is_a_mistake_of_the_record() -> None:
    @dataclass(frozen=True)
    class Open:
        rounds: int

    @dataclass(frozen=True)
    class Long:
        rounds: Sequence[bool]

    with pytest.raises(TypeError, match=r"Open.rounds: a number needs bounds; declare them by wi"):
        read_record(Open, {"rounds": 1}, "x.json")
    with pytest.raises(TypeError, match=r"Long.rounds: a list or an object needs bounds"):
        read_record(Long, {"rounds": []}, "x.json")


def test_a_text_has_a_length_and_line_ends_only_where_that_is_declared() -> None:
    @dataclass(frozen=True)
    class Open:
        reason: str = ""

    @dataclass(frozen=True)
    class Texts:
        line: Annotated[str, text(5, least=0)] = ""
        lines: Annotated[str, text(5, least=0, lines=True)] = ""

    with pytest.raises(TypeError, match=r"Open.reason: a text needs a length; declare it by text"):
        read_record(Open, {}, "x.json")
    assert read_record(Texts, {"line": "", "lines": "a\nb"}, "x.json") == Texts("", "a\nb")
    for name, value in (("line", "a\nb"), ("lines", "a\n\x1b"), ("line", "abcdef")):
        with pytest.raises(MixmflError, match=f"{name}: is .*printable text of 0 to 5 characters"):
            read_record(Texts, {name: value}, "x.json")


def test_what_is_declared_of_settings_is_there_in_words() -> None:
    @dataclass(frozen=True)
    class Settings:
        rate: Annotated[float, within(0, 1), setting("mm", "how far")] = 0.5
        rule: Annotated[Literal["a", "b"], setting("word", "which")] = "a"

    assert settings_of(Settings) == [
        Declared("rate", "mm", "a number from 0 to 1", "how far"),
        Declared("rule", "word", "a or b", "which"),
    ]


def test_what_is_needed_is_said_of_every_kind() -> None:
    numbers = Annotated[Mapping[Annotated[str, text(4)], bool], entries(0, 2)]
    assert needed(numbers) == (
        "an object that has by name (printable text of 1 to 4 characters) true or false"
    )
    assert needed(Annotated[Sequence[bool], entries(1, 2)]) == (
        "a list of 1 to 2 entries, each true or false"
    )
    assert needed(tuple[bool, bool]) == "a list of 2 entries, each true or false"
    assert needed(Inner) == "an object with fields"


@pytest.mark.parametrize("name", ["a\u00a0b", "病院\u3000東京", "a\u200bb", "a\u00adb", "a\nb"])
def test_a_folder_may_have_any_name(name: str) -> None:
    read = read_record(Outer, {"rounds": 3, "out": f"/x/{name}"}, "x.json")
    assert read.out == Path("/x", name)
