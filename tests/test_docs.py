"""README and docs say what is so: their code runs, their links and commands exist."""

import ast
import re
from dataclasses import fields
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from mixmfl.fingerprint import Fingerprint
from mixmfl.outgoing import SENT
from mixmfl.plan import NetworkSettings, PlannerSettings, TrainingSettings
from mixmfl.rounds import Registration, RunSettings

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
COMMANDS = {
    found.name: found
    for found in entry_points(group="console_scripts")
    if found.value.startswith("mixmfl.")
}
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


def options_of(name: str, capsys: pytest.CaptureFixture[str]) -> set[str]:
    with pytest.raises(SystemExit):
        COMMANDS[name].load()(["--help"])
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", capsys.readouterr().out))


def test_the_pages_that_the_readme_leads_to_are_there() -> None:
    expected = {
        "benchmark", "brats", "clinic", "commands", "data", "federation", "files", "method",
        "network", "performance", "plans", "privacy",
    }  # fmt: skip
    assert expected <= {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert {"CHANGELOG.md", "CONTRIBUTING.md", "README.md"} <= set(NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if blocks(name, "python")])
def test_the_python_of_a_page_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, code in enumerate(blocks(name, "python"), start=1):
        exec(compile(code, f"{name}, block {number}", "exec"), {})


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
def test_every_option_shown_with_a_command_exists(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for line in shown_commands(name):
        command, *words = line.partition(" #")[0].split()
        given = {word for word in words if re.fullmatch(r"--?[a-z][a-z-]*", word)}
        assert given <= options_of(command, capsys), line


@pytest.mark.parametrize("name", NAMES)
def test_every_option_named_alone_is_one_of_some_command(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    known = set().union(*(options_of(command, capsys) for command in COMMANDS))
    assert set(re.findall(r"`(--[a-z-]+)\b[^`]*`", BLOCK.sub("", read(name)))) <= known


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


@pytest.mark.parametrize("settings", [PlannerSettings, NetworkSettings, TrainingSettings])
def test_every_setting_of_a_preset_is_explained(settings: Any) -> None:
    rows = set(re.findall(r"^\| `(\w+)` \|", read("docs/plans.md"), re.MULTILINE))
    assert {field.name for field in fields(settings)} <= rows


@pytest.mark.parametrize("told", [Fingerprint, Registration, RunSettings])
def test_every_field_that_is_told_is_listed(told: Any) -> None:
    listed = set(re.findall(r"`(\w+)`", read("docs/federation.md")))
    assert {field.name for field in fields(told)} <= listed


def test_every_record_that_is_sent_is_listed() -> None:
    listed = set(re.findall(r"`(\w+)`", read("docs/federation.md")))
    calls = [
        node
        for node in ast.walk(ast.parse(read("mixmfl/rounds.py")))
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


def test_every_environment_variable_is_listed() -> None:
    sources = [*(ROOT / "mixmfl").glob("*.py"), *(ROOT / "entrypoints").glob("*.py")]
    sources += (ROOT / "tests").glob("*.py")
    named = {n for source in sources for n in re.findall(r"\"(MIXMFL_\w+)\"", source.read_text())}
    assert "MIXMFL_HOME" in named
    assert named <= set(re.findall(r"`(\w+)`", read("docs/commands.md")))
