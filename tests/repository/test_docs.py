"""README and docs say what is so: their code runs, their links and commands exist."""

import ast
import doctest
import io
import logging
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import generate
import hooks
import pytest
from mixmfl.entrypoints import _runner
from mkdocs.config import load_config
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from small import write_case, write_model, write_site

import mixmfl
from mixmfl.core import commands
from mixmfl.federated.messages import SENT
from mixmfl.federated.state import Registration, RunSettings
from mixmfl.planning.fingerprint import Fingerprint

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
COMMANDS = commands.commands()
NO_COMMANDS = {"mixmfl_version"}  # a key of the model file
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(name: str, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(read(name)) if kind == language]


def shown_commands(name: str) -> list[str]:
    """Return what a page shows as code and starts with one of our commands, one line each."""
    text = read(name).replace("\\\n", " ")
    shown = [line for kind, block in BLOCK.findall(text) for line in block.splitlines()]
    shown += re.findall(r"`([^`\n]+)`", BLOCK.sub("", text))
    stripped = [line.strip() for line in shown]
    return [s for s in stripped if s.startswith("mixmfl_") and s not in NO_COMMANDS]


@cache
def options_of(name: str) -> set[str]:
    shown = io.StringIO()
    with pytest.raises(SystemExit), redirect_stdout(shown):
        COMMANDS[name].load()(["--help"])
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", shown.getvalue()))


def test_the_pages_that_the_readme_leads_to_are_there() -> None:
    expected = {
        "benchmark", "brats", "cards", "changing", "clinic", "commands", "data", "experiments",
        "experiments-phantom",
        "federation", "files", "hospital-it", "limits", "method", "model-file", "network",
        "performance", "plans", "prediction", "privacy", "report", "tutorial",
    }  # fmt: skip
    assert expected <= {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert {"CHANGELOG.md", "CONTRIBUTING.md", "README.md"} <= set(NAMES)


@pytest.mark.filterwarnings("ignore:case 'case'")  # the images are no heads
@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "python")])
def test_the_python_of_a_page_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_what_pages_name(tmp_path)
    for number, code in enumerate(blocks(name, "python"), start=1):
        exec(compile(code, f"{name}, block {number}", "exec"), {})


@pytest.mark.filterwarnings("ignore:case 'case'")
def test_the_python_of_the_package_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_what_pages_name(tmp_path)
    assert doctest.testmod(mixmfl) == (0, 3)


def write_what_pages_name(folder: Path) -> None:
    """Write a model, a case and a federation, as the Python of our pages takes them."""
    write_model(folder / "model.safetensors")
    write_case(folder / "p01", ("T1", "FLAIR"), 0)
    for site, modalities in (("north", ("t1", "t2")), ("south", ("flair",))):
        write_site(folder / "federation" / site, [modalities] * 2)


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "python")])
def test_no_python_of_a_page_is_a_comment_that_nothing_runs(name: str) -> None:
    comments = [
        line.strip("# ")
        for code in blocks(name, "python")
        for line in code.splitlines()
        if line.strip().startswith("#")
    ]
    for comment in comments:
        with pytest.raises(SyntaxError):
            ast.parse(comment)


@pytest.mark.parametrize("name", NAMES)
def test_every_relative_link_leads_somewhere(name: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", read(name)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            there = (ROOT / name).parent / path if path else ROOT / name
            assert there.exists(), target
            if anchor:
                titles = re.findall(r"^#+ (.*)$", there.read_text(encoding="utf-8"), re.MULTILINE)
                slugs = {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}
                assert anchor in slugs, target


@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_page_exists(name: str) -> None:
    named = set(re.findall(r"\bmixmfl_[a-z_]+", read(name)))
    assert named - NO_COMMANDS <= COMMANDS.keys()


@pytest.mark.parametrize("name", [name for name in NAMES if shown_commands(name)])
def test_every_option_shown_with_a_command_exists(name: str) -> None:
    for line in shown_commands(name):
        command, *words = line.partition(" #")[0].split()
        given = {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)}
        assert given <= options_of(command), line


@pytest.mark.parametrize("name", NAMES)
def test_every_option_named_alone_is_one_of_some_command(name: str) -> None:
    known = set().union(*(options_of(command) for command in COMMANDS))
    assert set(re.findall(r"`(--[a-z-]+)\b[^`]*`", BLOCK.sub("", read(name)))) <= known


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "sh")])
def test_every_command_shown_as_a_whole_is_taken_as_it_stands(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[str] = []

    def parse(made: Any, argv: Any, *_: object) -> int:
        made.parse_args(argv)
        parsed.append(made.prog)
        return 0

    monkeypatch.setattr(_runner, "run", parse)
    shown = [
        shlex.split(line.strip(), comments=True)
        for block in blocks(name, "sh")
        for line in block.replace("\\\n", " ").splitlines()
    ]
    ours = [words for words in shown if words and words[0] in COMMANDS]
    for command, *words in ours:
        assert COMMANDS[command].load()(words) == 0, command
    assert len(parsed) == len(ours)


def test_the_readme_names_every_command() -> None:
    # mixmfl_demo is there as `make demo`
    named = set(re.findall(r"\bmixmfl_[a-z_]+", read("README.md"))) | {"mixmfl_demo"}
    assert named == COMMANDS.keys()


@pytest.mark.parametrize("name", NAMES)
def test_every_make_target_of_a_page_exists(name: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE))
    assert {"demo", "test"} <= targets
    code = [line for block in blocks(name, "sh") for line in block.splitlines()]
    code += re.findall(r"`([^`\n]+)`", BLOCK.sub("", read(name)))
    for line in code:
        if line.startswith("make "):
            words = line.partition(" #")[0].split()[1:]
            assert {word for word in words if "=" not in word} <= targets, line


@pytest.mark.parametrize("record", [Fingerprint, Registration, RunSettings])
def test_every_field_that_is_told_is_listed(record: Any) -> None:
    listed = set(re.findall(r"`(\w+)`", read("docs/federation.md")))
    assert {field.name for field in fields(record)} <= listed


def test_every_record_that_is_sent_is_listed() -> None:
    listed = set(re.findall(r"`(\w+)`", read("docs/federation.md")))
    calls = [
        node
        for file in ("mixmfl/federated/server/merge.py",)
        for node in ast.walk(ast.parse(read(file)))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Message"
    ]
    assert len(calls) == 3  # a server's tasks
    for call in calls:
        kind, record, _ = call.args
        assert isinstance(kind, ast.Constant)
        assert isinstance(record, ast.Dict)
        keys = {key.value for key in record.keys if isinstance(key, ast.Constant)}
        assert {kind.value, *keys} <= listed
    for kind_sent, fields_sent in SENT.items():
        assert {kind_sent, *fields_sent} <= listed


@pytest.mark.parametrize(("name", "tables"), [("docs/federation.md", 2), ("docs/plans.md", 4)])
def test_what_a_page_has_from_the_code_is_as_the_code_says(name: str, tables: int) -> None:
    page = read(name)
    assert page.count("<!-- made by docs/generate.py: ") == tables
    assert page.count("<!-- end of ") == tables
    assert generate.filled(page) == page, "run: make tables"


def test_the_site_has_a_page_per_module_and_those_of_the_checkout() -> None:
    """Whether the whole can be built, without a dead link, is what ``make docs`` finds out."""
    config = load_config(str(ROOT / "mkdocs.yml"))
    assert config.strict
    made = config.plugins.on_files(Files([]), config=config)  # by hooks.on_files
    pages = {file.src_uri: file.content_string for file in made}
    assert {"index.md", "contributing.md", "api/index.md", "api/modules.md"} <= pages.keys()
    assert "::: mixmfl.federated.flare\n" in pages["api/federated.flare.md"]  # also packages
    assert "::: mixmfl.federated.flare.job\n" in pages["api/federated.flare.job.md"]
    assert "(federated.flare.job.md) | A FLARE job: " in pages["api/modules.md"]
    assert "](docs/" not in pages["index.md"]
    assert "](tutorial.md" in pages["index.md"]
    link = "[rules](../mixmfl/federated/aggregation.py), [all](../README.md)"
    assert hooks.on_page_markdown(link) == "[rules](api/federated.aggregation.md), [all](index.md)"


def test_every_page_is_in_the_menu_once() -> None:
    pages = [page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").glob("*.md")]
    assert len(pages) > 20
    menu = in_menu(load_config(str(ROOT / "mkdocs.yml")).nav)
    assert sorted(menu) == sorted([*pages, *hooks.PROJECT.values()])


def in_menu(entry: Any) -> list[str]:
    """Return the pages that an entry of the menu leads to."""
    if isinstance(entry, str):
        return [entry]
    parts = entry.values() if isinstance(entry, dict) else entry
    return [page for part in parts for page in in_menu(part)]


def test_a_page_that_would_fetch_from_elsewhere_is_an_error() -> None:
    inside = '<link href="style.css"><img src="a.png"><a href="https://arxiv.org">paper</a>'
    assert hooks.on_post_page(inside) == inside
    for outside in (
        '<script src="https://unpkg.com/x"></script>',
        '<link rel="stylesheet" href="//fonts.example.org/css">',
        '<img alt="badge" src="http://example.org/badge.svg">',
    ):
        with pytest.raises(PluginError, match="the page would fetch from elsewhere"):
            hooks.on_post_page(inside + outside)


SAY = {
    r"\banew\b": "again",
    r"\bat hand\b": "available",
    r"\babsent\b": "missing (a modality), left out (a site)",
    r"\bown cop(?:y|ies)\b": "personalised model",
    r"\bmodels? of all\b": "global model",
    r"\boptimiser": "optimizer",
    r"\bmend(?:s|ed)?\b": "fix",
    r"\b(?:is|are|was|were) told\b": "is reported, is shown",
    r"\bsecond look\b": "modality-dropout view",
    r"\bembedded federation\b": "simulation",
    r"\bhave a say\b|\bhas a say\b|\bno say\b": "aggregation weight",
    r"\bleaves? the house\b|\bin the house\b": "leaves the site, at the site",
    r"\bgo(?:es)? on with\b": "resume",
}
"""Words that a reader of the field would have to learn, and what to write."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("CHANGELOG.md",)])
def test_pages_use_the_words_of_the_field(name: str) -> None:
    prose = re.sub(r"`[^`]*`", "", BLOCK.sub("", read(name)))
    assert prose.strip()
    for pattern, better in SAY.items():
        if re.search(pattern, prose, re.IGNORECASE):
            lines = [s for s in prose.splitlines() if re.search(pattern, s, re.IGNORECASE)]
            raise AssertionError(f"{name}: {lines}; write: {better}")


@pytest.mark.parametrize("walk", read("docs/architecture.md").split("## The walk of ")[1:])
def test_a_walk_enters_no_room_twice_and_names_files_that_are_there(walk: str) -> None:
    steps = re.split(r"^\d+\. ", walk, flags=re.MULTILINE)[1:]
    rooms = [re.split("[`/]", step, maxsplit=2)[1] for step in steps]
    assert len(rooms) > 4
    assert len(set(rooms)) == len(rooms)
    for room, step in zip(rooms, steps, strict=True):
        files = re.findall(r"`([\w/]+\.py)`", step)
        assert files, room
        for file in files:
            places = (ROOT / file, ROOT / "mixmfl" / room / file)
            assert any(place.is_file() for place in places), file


PLACE = re.compile(r"`(mixmfl/[\w/]+\.py)`, `([\w.]+)`(?: \| `([^|]+)` \|)?")


def test_every_place_in_the_code_that_a_recipe_names_is_there() -> None:
    places = PLACE.findall(read("docs/changing.md"))
    assert len(places) > 10
    for file, symbol, line in places:
        source = read(file)
        scope: list[ast.stmt] = ast.parse(source).body
        for part in symbol.split("."):
            named = {name: node for node in scope for name in names_of(node)}
            assert part in named, f"{file}: {symbol}"
            scope = getattr(named[part], "body", [])
        text = ast.get_source_segment(source, named[part]) or ""
        assert not line or text.count(line) == 1, f"{file}: {symbol}: {line}"


def names_of(node: ast.stmt) -> list[str]:
    """Return what a statement defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    targets = getattr(node, "targets", [getattr(node, "target", None)])
    return [target.id for target in targets if isinstance(target, ast.Name)]


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path: Path, home: Path) -> None:
    page = read("docs/tutorial.md")
    script = "\n".join(re.findall(r"<!-- run by a test -->\n```sh\n(.*?)```", page, re.DOTALL))
    assert script.count("mixmfl_") == 7
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", "-euc", script], cwd=tmp_path, env={**os.environ, "PATH": path}, check=True
    )
    assert (tmp_path / "masks" / "report.html").is_file()


def read_variables() -> set[str]:
    """Return the environment variables that our code names, but those it only hands to others."""
    found = set()
    for source in [*(ROOT / "mixmfl").rglob("*.py"), *(ROOT / "entrypoints").glob("*.py")]:
        code = source.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(code)) if "environ" in code else ():
            asked: list[ast.expr] = []
            if isinstance(node, ast.Call) and "os.environ" in ast.unparse(node.func):
                asked = node.args[:1]
            elif isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
                asked = [node.slice]
            found |= {str(a.value) for a in asked if isinstance(a, ast.Constant)}
    return found


def test_environment_variables_and_their_page_agree() -> None:
    _, _, page = read("docs/commands.md").partition("## Environment variables")
    rows = set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE))
    mentioned = set(re.findall(r"`([A-Z_]+)`", page))
    named = read_variables()
    assert {"MIXMFL_HOME", "OMP_NUM_THREADS", "XDG_CONFIG_HOME"} <= named <= mentioned
    # what tests read, and what rich does
    assert rows <= named | {"MIXMFL_TEST_DATA", "NO_COLOR", "FORCE_COLOR"}


def test_exit_codes_and_their_page_agree() -> None:
    rows = set(re.findall(r"^\| (\d+) \|", read("docs/commands.md"), re.MULTILINE))
    codes = {0, _runner.SOME_FAILED, _runner.NOTHING_COULD_START, _runner.INTERRUPTED}
    assert {int(row) for row in rows} == codes
    for source in sorted((ROOT / "entrypoints").glob("*.py")):
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Return) and isinstance(node.value, ast.Constant):
                returned = node.value.value
                assert not isinstance(returned, int) or returned in codes, source


def test_log_levels_and_their_page_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert re.findall(r"^\| `([A-Z]+)`", read("docs/commands.md"), re.MULTILINE)[:3] == [
        "WARNING", "INFO", "DEBUG",
    ]  # fmt: skip

    def work(options: Any) -> int:
        with _runner.output(options):
            for level in (logging.DEBUG, logging.INFO, logging.WARNING):
                logging.getLogger("mixmfl.any").log(level, "level %d", level)
        return 0

    def shown(*argv: str) -> list[str]:
        made = _runner.parser("any", "")
        _runner.add_output(made)
        logging.getLogger().handlers.clear()
        assert _runner.run(made, argv, work) == 0
        return re.findall(r"level \d+", capsys.readouterr().err)

    assert shown() == ["level 30"]
    assert shown("--verbose") == ["level 10", "level 20", "level 30"]
    assert shown("--log", str(tmp_path / "log")) == ["level 30"]
    assert re.findall(r"level \d+", (tmp_path / "log").read_text()) == ["level 20", "level 30"]
