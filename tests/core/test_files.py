"""Finding files and writing them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mixmfl.core.errors import DataError
from mixmfl.core.files import (
    SelfClosingFile,
    clear_unfinished,
    files_below,
    read_json,
    read_long_json,
    read_small,
    replacing,
    sha256,
)


def test_links_to_folders_of_links_have_an_end(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "t1.nii").touch()
    for number in range(1, 30):  # 2^29 ways
        folder = tmp_path / str(number)
        folder.mkdir()
        for link in "ab":
            (folder / link).symlink_to(tmp_path / str(number - 1))
    assert len(list(files_below(tmp_path / "6"))) == 64
    with pytest.raises(
        DataError, match=r"links lead to .*/\d+ in more than 100 ways; .* Remove links"
    ):
        list(files_below(tmp_path / "29"))


def test_folders_in_folders_have_an_end(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 63)
    deep.mkdir(parents=True)
    (deep / "t1.nii").touch()
    assert list(files_below(tmp_path)) == [deep / "t1.nii"]
    (deep / "d").mkdir()
    with pytest.raises(DataError, match="has more than 64 folders inside each other"):
        list(files_below(tmp_path))


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    kept, folder = tmp_path / "kept", tmp_path / "folder"
    kept.mkdir()
    folder.mkdir()
    (folder / ".writing-x").symlink_to(kept)
    clear_unfinished(folder)
    assert kept.is_dir()
    assert not list(folder.iterdir())


_WRITES_FOR_EVER = """
import sys, time
from pathlib import Path
from mixmfl.core.files import read_long_json, replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("begun", flush=True)
    time.sleep(60)
"""


@contextmanager
def writer(path: Path) -> Iterator["subprocess.Popen[str]"]:
    """Run a process that has written half of a file, and is killed in the end."""
    command = [sys.executable, "-c", _WRITES_FOR_EVER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        yield process
        process.send_signal(signal.SIGKILL)


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks there")
def test_what_a_killed_process_left_half_written_goes_with_the_next_of_that_name(
    tmp_path: Path,
) -> None:
    models, kept = tmp_path / "models", tmp_path / "models" / ".writing-a-novel"
    kept.mkdir(parents=True)  # a user's, in a folder of the user
    model = models / "model.safetensors"
    with writer(model):
        other = model.with_name("other.safetensors")
        for path in (model, other):  # the writer lives, or writes another file
            with replacing(path) as temporary:
                temporary.write_text("whole")
        assert len(list(models.glob(".writing-*"))) == 2
    with replacing(other) as temporary:
        temporary.write_text("whole")
    assert len(list(models.glob(".writing-*"))) == 2
    with replacing(model) as temporary:
        temporary.write_text("again")
    assert model.read_text() == "again"
    assert list(models.glob(".writing-*")) == [kept]


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no locks there")
def test_a_folder_of_ours_is_cleared_of_what_nobody_writes_any_more(tmp_path: Path) -> None:
    (tmp_path / ".writing-a").write_text("half")
    (tmp_path / "site").mkdir()
    with writer(tmp_path / "site" / "file"):
        clear_unfinished(tmp_path, below=True)
        assert [path.name for path in tmp_path.iterdir()] == ["site"]
        assert len(list((tmp_path / "site").iterdir())) == 1
    clear_unfinished(tmp_path)
    assert len(list((tmp_path / "site").iterdir())) == 1
    clear_unfinished(tmp_path, below=True)
    assert not list((tmp_path / "site").iterdir())


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe_or_a_device_in_place_of_a_file_blocks_nobody(tmp_path: Path) -> None:
    pipe, device = tmp_path / "policy.json", tmp_path / "zero.json"
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    for path in (pipe, device):
        with pytest.raises(DataError, match=r"json: cannot be read as JSON \(.*pipe or a device"):
            read_json(path)
        for use in (sha256, read_small, SelfClosingFile):
            with pytest.raises(OSError, match="it is a pipe or a device, and a file is needed"):
                use(path)


def test_settings_are_not_read_without_end_and_records_of_many_cases_are(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text('{"cases": [' + "0," * 2**21 + "0]}")
    with pytest.raises(DataError, match=r"policy\.json: .*more than 4194304 bytes"):
        read_json(file)
    assert len(read_long_json(file)["cases"]) == 2**21 + 1
