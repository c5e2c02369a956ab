"""Words that a reader would have to learn first stay out of the code; CONTRIBUTING.md has ours."""

import ast
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = sorted(
    file
    for folder in ("mixmfl", "entrypoints", "benchmarks", "docs", "tests")
    for file in (ROOT / folder).rglob("*.py")
)

NAMES = {
    *("House", "Departure", "Parcel", "Offered", "Leg", "Sight", "Ahead", "Behind", "QuickNet"),
    *("Placing", "StoredCase", "Roster", "Nameless", "PlanOrders", "TrainOrders", "Told", "Held"),
    *(
        "overhear",
        "patiently",
        "attending",
        "let_go",
        "specialise",
        "adopt_state",
        "imagine",
        "imagining",
    ),
    *("train_embedded", "deal_cases", "told", "tells", "said", "roster", "parcel"),
}

FRAGMENT = re.compile(
    r"\b([Ll]ikewise|[Aa]s there|[Aa]s above)\.|^\s*\w+: (Of|That) [\w` ]+[.;,]"
    r"|^\s*\w+: As for "
    r"|^\s*\w+: The same (of|for|after|with|without) |\A(Of|As|The same) ",
    re.MULTILINE,
)
"""Docstrings that need the line above them."""


DIALECT = re.compile(
    r"\btold\b(?! apart)|\bat hand\b|\bown cop(?:y|ies)\b|\bmodels? of all\b|\bgo(?:es)? on with\b"
    r"|\banew\b|\bmend(?:s|ed)?\b|\bno say\b|\bha(?:s|ve) a say\b|\bimagin(?:e|es|ed|ing)\b"
    r"|\bthe house\b|\boptimiser|\bembedded federation\b",
    re.IGNORECASE,
)
"""Words in docstrings and messages for which the field has others."""


@lru_cache(maxsize=1)  # a module is looked through three times
def nodes_of(code: str) -> list[ast.AST]:
    """Return all nodes of a module."""
    return list(ast.walk(ast.parse(code)))


def names_in(code: str) -> Iterator[str]:
    """Yield the names that a module defines, assigns or takes as arguments."""
    for node in nodes_of(code):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg


def fragments_in(code: str) -> Iterator[str]:
    """Yield what in a module's docstrings is no sentence that stands by itself."""
    for node in nodes_of(code):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            for found in FRAGMENT.finditer(ast.get_docstring(node) or ""):
                yield found.group().strip()


def dialect_in(code: str) -> Iterator[str]:
    """Yield what in a module's docstrings and messages is no word of the field."""
    for node in nodes_of(code):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from (found.group() for found in DIALECT.finditer(node.value))


@pytest.mark.parametrize("file", CODE, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_names_and_docstrings_need_no_dialect(file: Path) -> None:
    code = file.read_text(encoding="utf-8")
    assert sorted(NAMES.intersection(names_in(code))) == []
    assert list(fragments_in(code)) == []
    if "tests" not in file.relative_to(ROOT).parts:  # which name the words that they refuse
        assert list(dialect_in(code)) == []


def test_the_rule_finds_what_it_is_for() -> None:
    code = 'def f(told):\n    """Do it.\n\n    Args:\n        told: Of the run.\n    """\n'
    assert NAMES.intersection(names_in(code)) == {"told"}
    assert list(fragments_in(code)) == ["told: Of the run."]
    assert list(dialect_in(code.replace("Do it", "It is told, not told apart"))) == ["told", "told"]
    assert list(fragments_in(code.replace("Of the run", "That is read"))) == ["told: That is read."]
    assert list(fragments_in('"""Likewise."""')) == ["Likewise."]
    assert list(fragments_in(code.replace("Of the run", "Seconds; likewise"))) == ["likewise."]
    assert list(fragments_in(code.replace("Of the run", "As for ``g``"))) == ["told: As for"]
    assert list(fragments_in('"""The same for planes."""')) == ["The same"]
    assert list(fragments_in(code.replace("Of the run", "The same of the run"))) == [
        "told: The same of"
    ]
