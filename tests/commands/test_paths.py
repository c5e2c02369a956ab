"""Paths that commands take: whatever is wrong with one is said in a line, before any work."""

import argparse
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from mixmfl.entrypoints import _paths, _runner
from small import write_preset

from mixmfl.core.commands import commands
from mixmfl.core.errors import MixmflError, explain, why
from mixmfl.federated.server.orders import PlanningJob

Command = Callable[..., int]


def all_options(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, argparse.Action]]:
    """Yield every option of every command."""
    parsers: list[argparse.ArgumentParser] = []
    monkeypatch.setattr(_runner, "run", lambda parser, *_: parsers.append(parser))
    for name, command in commands().items():
        command.load()([])
        for action in parsers[-1]._actions:
            yield name, action


def options_with_paths(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, argparse.Action]]:
    """Yield every option of every command that takes a path."""
    for name, action in all_options(monkeypatch):
        assert action.type is not Path, f"{name} {action.dest}: its path is not checked"
        if isinstance(action.type, _paths.PathArgument):
            yield name, action


def test_every_option_of_every_command_says_what_it_is_for(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = [
        f"{name} {action.dest}" for name, action in all_options(monkeypatch) if not action.help
    ]
    assert silent == []


def test_every_path_of_every_command_is_checked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, full, empty = tmp_path / "folder", tmp_path / "full", tmp_path / "empty"
    folder.mkdir()
    full.write_text("x")
    empty.touch()
    taken = []
    for name, action in options_with_paths(monkeypatch):
        kind = action.type
        assert isinstance(kind, _paths.PathArgument)
        taken.append(f"{name} {action.dest}")
        cases = {
            tmp_path / "nowhere": not kind.is_made and f"there is no such {kind.kind}",
            full / "below": f"{full} is a file, and nothing can be made in it"
            if kind.is_made
            else "there is no such",
            folder: kind.kind == "file" and "is a folder, and no file",
            full: kind.kind == "folder" and "is a file, and no folder",
            empty: (kind.kind == "folder" and "is a file, and no folder")
            or (not kind.is_made and "is an empty file"),
        }
        for path, message in cases.items():
            if not message:
                kind.check("--it", path)
                continue
            with pytest.raises(MixmflError) as raised:
                kind.check("--it", path)
            assert str(raised.value).startswith(f"--it {path}: {message}")
            assert str(raised.value).endswith(f"; needed is {kind.what}")
    assert len(taken) > 40
    assert sorted(tmp_path.iterdir()) == [empty, folder, full]  # and nothing was left


def test_a_place_that_takes_no_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(**_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / ".writing-x"))

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(MixmflError, match=r"-o .*masks: nothing can be made in .* \(Read-only"):
        _paths.new_folder().check("-o", tmp_path / "masks")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (_paths.MAPPING, "this user may not read it; ask who owns it"),
        (_paths.new_file(), "this user may not write to it"),
    ],
)
def test_a_file_of_somebody_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: _paths.PathArgument, message: str
) -> None:
    file = tmp_path / "table.csv"
    file.write_text("x")
    monkeypatch.setattr("os.access", lambda *_: False)  # root may do all
    with pytest.raises(MixmflError, match=message):
        kind.check("--mapping", file)


def test_a_name_that_no_disk_takes_is_refused(tmp_path: Path) -> None:
    for kind in (_paths.MODEL, _paths.new_folder()):
        with pytest.raises(MixmflError, match="the name is longer than the disk takes"):
            kind.check("-m", tmp_path / ("x" * 300))


def test_a_command_says_it_in_one_line_and_an_empty_text_is_no_path(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = tmp_path / "nowhere"
    assert command("mixmfl_predict", "-i", cases, "-o", tmp_path / "masks") == 2
    assert capsys.readouterr().err == (
        f"mixmfl_predict: -i {cases}: there is no such file or folder; needed is a folder of "
        "cases (DICOM in any nesting, or files), or one image\n"
    )
    with pytest.raises(SystemExit):
        command("mixmfl_predict", "-i", "", "-o", tmp_path / "masks")
    assert "argument -i/--input: is empty, as a variable of a shell" in capsys.readouterr().err
    assert command("mixmfl_use_model", cases) == 2
    assert f"mixmfl_use_model: MODEL {cases}: there is no such" in capsys.readouterr().err


def test_what_the_system_says_is_put_in_words(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(_: argparse.Namespace) -> int:
        (tmp_path / "no" / "folder").mkdir()
        return 0

    assert _runner.run(_runner.parser("any", ""), [], work) == 2
    printed = capsys.readouterr().err
    assert printed == (
        f"any: {tmp_path / 'no' / 'folder'}: there is no such file or folder, or none can be made "
        "there; check the path\n"
    )
    assert why(OSError(errno.ENOSPC, "No space")).startswith("the disk is full; free space")
    assert explain(OSError(errno.EXDEV, "Cross-device link", "a", None, "b")) == (
        "b: cannot be read or written (Cross-device link)"
    )
    assert explain(OSError("t1: became shorter")) == "t1: became shorter"


def test_a_preset_of_ones_own_is_found_from_the_folder_of_a_job(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[PlanningJob] = []

    def run_jobs(kit: object, job: PlanningJob, **how: object) -> None:
        orders.append(job)
        raise MixmflError("no site is connected")

    engine = SimpleNamespace(
        open_kit=lambda kit, coordinator: kit, site_names=lambda kit: ("north",), run_jobs=run_jobs
    )
    monkeypatch.setattr("mixmfl.entrypoints._runner.network_engine", lambda: engine)
    monkeypatch.chdir(tmp_path)
    write_preset(tmp_path / "mine.json")
    (tmp_path / "kit").mkdir()
    for preset in ("mine.json", "demo"):
        asked = ["--kit", "kit", "-o", "work", "--preset", preset]
        assert command("mixmfl_plan_preprocess", *asked) == 2
    assert [job.preset for job in orders] == [str(tmp_path.resolve() / "mine.json"), "demo"]
