"""What `deploy/` names is there: packages, commands, their options, and folders of the docs."""

import re
import runpy
import shutil
import subprocess
from importlib.metadata import entry_points, requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
LOCKED = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (DEPLOY / "requirements.lock").read_text(), re.M))


def test_every_dependency_is_locked_in_a_version_that_fits_and_by_hash() -> None:
    extras = ("", "network", "privacy", "dicom-seg")
    needed = [Requirement(line) for line in requires("mixmfl") or ()]
    here = [
        r for r in needed if not r.marker or any(r.marker.evaluate({"extra": e}) for e in extras)
    ]
    assert len(here) > 20
    for each in here:
        version = LOCKED[canonicalize_name(each.name)]
        assert each.specifier.contains(version), f"{each} is locked at {version}: make lock"
    text = (DEPLOY / "requirements.lock").read_text()
    for block in re.split(r"\n(?=[a-z0-9-]+==)", text)[1:]:
        assert "--hash=sha256:" in block, block[:80]


def options_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    (found,) = entry_points(group="console_scripts", name=command)
    with pytest.raises(SystemExit):
        found.load()(["--help"])
    return capsys.readouterr().out


def commands() -> list[list[str]]:
    """Return the commands that units and the trial start, word by word."""
    found = [
        re.findall(r"^ExecStart=(.+)$", unit.read_text(), re.MULTILINE)[0].split() for unit in UNITS
    ]
    trial: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    found += [service["command"] for service in trial["services"].values()]
    return found


def test_commands_and_their_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(commands()) == 6
    for name, *words in commands():
        shown = options_of(Path(name).name, capsys)
        for option in (word for word in words if word.startswith("-")):
            assert re.search(rf"(^|[\s,]){re.escape(option)}\b", shown), f"{name} {option}"


def test_services_have_no_rights_and_a_read_only_root() -> None:
    trial: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name, service in trial["services"].items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["user"].split(":")[0] != "0", name
    assert trial["networks"]["federation"]["internal"]
    text = (DEPLOY / "Dockerfile").read_text()
    last = text[text.rindex("\nFROM") :]
    assert re.search(r"^USER 10001", last, re.MULTILINE)
    assert "apt-get" not in text
    assert "--require-hashes" in text
    assert "--no-index" in text


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_systemd_takes_the_units(unit: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    shown = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    lines = [
        line
        for line in shown.stderr.splitlines()
        if unit.name in line and "is not executable" not in line
    ]
    assert not lines, lines


def test_wheels_are_listed_with_their_hashes(tmp_path: Path) -> None:
    (tmp_path / "a_b-1.2+cpu-py3-none-any.whl").write_bytes(b"x")
    (tmp_path / "c.tar.gz").write_bytes(b"y")
    lines = runpy.run_path(str(DEPLOY / "list_wheels.py"))["lines"](tmp_path)
    digest = "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    assert lines == [f"a_b==1.2+cpu --hash=sha256:{digest}"]
