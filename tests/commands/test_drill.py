"""A folder as the archive left it: spoilt cases of many kinds beside good ones, by the command.

The good ones are all predicted, each bad one has its reason in one line, nothing hangs.
"""

import contextlib
import csv
import gzip
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from small import small_case

from mixmfl.data.grid import Grid
from mixmfl.data.image import read_labels, write_image

Command = Callable[..., int]
SHAPE = (6, 20, 18)
GRID = Grid(SHAPE, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
DIM, PIXDIM, SROW, QUATERN = 40, 76, 280, 256  # offsets in a NIfTI-1 header


def voxels(seed: int = 0) -> np.ndarray:
    image = small_case(("t1",), seed, SHAPE)[0]["t1"]
    image[:, :2] = 0  # outside the head
    return image


def good(folder: Path, name: str = "t1") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_image(folder / f"{name}.nii.gz", voxels(), GRID)
    return folder / f"{name}.nii.gz"


def with_voxels(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        folder.mkdir()
        nib.save(nib.Nifti1Image(change(voxels()).T, np.eye(4)), folder / "t1.nii.gz")

    return make


def with_bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Change the file as it is packed."""

    def make(folder: Path) -> None:
        file = good(folder)
        file.write_bytes(change(file.read_bytes()))

    return make


def with_header(offset: int, form: str, *values: Any) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        file = good(folder)
        content = bytearray(gzip.decompress(file.read_bytes()))
        struct.pack_into(form, content, offset, *values)
        file.write_bytes(gzip.compress(bytes(content)))

    return make


def with_value(value: float) -> Callable[[Path], None]:
    def change(image: np.ndarray) -> np.ndarray:
        image[2, 9, 9] = value
        return image

    return with_voxels(change)


def colour(folder: Path) -> None:
    folder.mkdir()
    image = sitk.GetImageFromArray(np.zeros((*SHAPE, 3), dtype=np.uint8), isVector=True)
    sitk.WriteImage(image, str(folder / "t1.mha"))


def sheared(folder: Path) -> None:
    folder.mkdir()
    affine = np.eye(4)
    affine[0, 1] = 0.4
    nib.save(nib.Nifti1Image(voxels().T, affine), folder / "t1.nii.gz")


def thin(folder: Path) -> None:
    folder.mkdir()
    image = nib.Nifti1Image(voxels()[:, :, :1].T, np.diag([0.2, 1, 1, 1]))
    nib.save(image, folder / "t1.nii.gz")


def bomb(folder: Path) -> None:
    file = good(folder)
    content = gzip.decompress(file.read_bytes())
    with gzip.open(file, "wb", compresslevel=1) as packed:
        packed.write(content)
        for _ in range(40):
            packed.write(bytes(1 << 20))


def two_of_one(folder: Path) -> None:
    good(folder)
    write_image(good(folder / "again", "T1w"), voxels(1), GRID)


def elsewhere(folder: Path) -> None:
    """Two images of one patient that do not overlap."""
    good(folder)
    moved = Grid(SHAPE, GRID.spacing, (300.0, 0.0, 0.0), GRID.direction)
    write_image(folder / "t2.nii.gz", voxels(1), moved)


def nrrd_cut(folder: Path) -> None:
    folder.mkdir()
    write_image(folder / "t1.nrrd", voxels(), GRID)
    content = (folder / "t1.nrrd").read_bytes()
    (folder / "t1.nrrd").write_bytes(content[: len(content) // 2])


def detached(folder: Path) -> None:
    """A MetaImage header whose voxels were not copied along."""
    folder.mkdir()
    sitk.WriteImage(sitk.GetImageFromArray(voxels()), str(folder / "t1.mhd"))
    (folder / "t1.raw").unlink()


def link_to_nowhere(folder: Path) -> None:
    folder.mkdir()
    (folder / "t1.nii.gz").symlink_to(folder / "gone.nii.gz")


def unreadable(folder: Path) -> None:
    """A file that gives an error when it is read, also to root."""
    folder.mkdir()
    (folder / "t1.nii").symlink_to("/proc/self/mem")


def is_folder(folder: Path) -> None:
    (folder / "t1.nii.gz").mkdir(parents=True)
    good(folder, "t2").rename(folder / "t1.nii.gz" / "t2.nii.gz")
    (folder / "t1.nii.gz" / "t2.nii.gz").write_bytes(b"")


Spoil = Callable[[Path], None]
SPOILT: dict[str, tuple[Spoil, str]] = {
    "truncated gzip": (with_bytes(lambda b: b[: len(b) // 2]), "incomplete or damaged"),
    "gzip without its end": (with_bytes(lambda b: b[:-6]), "incomplete or damaged"),
    "gzip with a flipped bit": (
        with_bytes(lambda b: b[:2000] + bytes([b[2000] ^ 16]) + b[2001:]), "opy or export it again"
    ),
    "wrong magic": (with_bytes(lambda b: b"PK\x03\x04" + b[4:]), "cannot be read as an image"),
    "a text file": (with_bytes(lambda b: b"see the PACS\n" * 99), "cannot be read as an image"),
    "no bytes": (with_bytes(lambda b: b""), "cannot be read as an image"),
    "header only": (
        with_bytes(lambda b: gzip.compress(gzip.decompress(b)[:352])), "is incomplete (352 bytes"
    ),
    "4-D": (with_voxels(lambda v: np.stack([v, v])), "is 4-dimensional"),
    "2-D": (with_voxels(lambda v: v[3]), "is 2-dimensional"),
    "one thin slice": (thin, "the head is 1 voxels of 0.2 mm thick along X"),
    "all zero": (with_voxels(lambda v: 0 * v), "is empty, every voxel is 0"),
    "constant": (with_voxels(lambda v: 0 * v + 7), "is empty, every voxel is 7"),
    "label given as image": (
        with_voxels(lambda v: np.uint8(2) * (v > 8) + (v > 10)), "a label was given as an image"
    ),
    "NaN": (with_value(np.nan), "holds 1 voxel of NaN or infinity"),
    "Inf": (with_value(np.inf), "holds 1 voxel of NaN or infinity"),
    "too large for single precision": (
        with_voxels(lambda v: v.astype(np.float64) * 1e300), "of NaN or infinity"
    ),
    "negative spacing": (with_header(PIXDIM + 8, "<f", -1.0), "must be positive and finite"),
    "zero spacing": (with_header(PIXDIM + 4, "<f", 0.0), "must be positive and finite"),
    "NaN spacing": (with_header(PIXDIM + 12, "<f", np.nan), "must be positive and finite"),
    "NaN place": (with_header(QUATERN, "<f", np.nan), "is not finite"),
    "not at right angles": (sheared, "its axes must be at right angles. Resample it"),
    "huge dims without data": (
        with_header(DIM + 2, "<3h", 32000, 32000, 32000), "promises 32768000000000 voxels"
    ),
    "negative dims": (with_header(DIM + 2, "<h", -5), "cannot be read as an image"),
    "unknown number type": (with_header(70, "<h", 9999), "cannot be read as an image"),
    "colour": (colour, "numbers per voxel (colour, vector or complex)"),
    "gzip bomb": (bomb, "goes on behind its last voxel"),
    "duplicate modality": (two_of_one, "2 files for t1"),
    "images that do not overlap": (elsewhere, "it covers 0% of the head"),
    "cut NRRD": (nrrd_cut, "its stream of voxels has no end"),
    "header without its voxels": (detached, "says that its voxels are in 't1.raw'"),
    "link to nowhere": (link_to_nowhere, "there is no such file"),
    "file that cannot be read": (unreadable, "unreadable"),
    "folder named as a file": (is_folder, "cannot be read as an image"),
    "unknown sequence": (lambda f: good(f, "localizer").touch(), "no known modality"),
    "no image": (lambda f: good(f, "seg").touch(), "no known modality"),
}  # fmt: skip
LEFT_OUT = "images that do not overlap"

GOOD: dict[str, Spoil] = {
    "first": lambda f: good(f).touch(),
    "Müller, 2. Aufnahme (次)": lambda f: good(f).touch(),
    "sixteen bits": with_voxels(lambda v: (v * 100).astype(np.int16)),
    "double precision": with_voxels(lambda v: v.astype(np.float64)),
    "one slice": with_voxels(lambda v: v[3:4]),
    "unsigned": with_voxels(lambda v: (v * 3000).astype(np.uint16)),
    "last": lambda f: good(f).touch(),
}


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "cases.csv").open(newline="", encoding="utf-8") as file:
        return {row["case"]: row for row in csv.DictReader(file)}


@contextlib.contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail, and not hang, where something takes longer."""

    def late(*_: object) -> None:
        raise AssertionError(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("reading_process")
def test_spoilt_cases_have_their_reasons_and_the_good_ones_their_masks(
    model: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(SPOILT) >= 30
    cases, out = tmp_path / "cases", tmp_path / "masks"
    cases.mkdir()
    for name, (spoil, _) in SPOILT.items():
        spoil(cases / name)
    for name, make in GOOD.items():
        make(cases / name)
    good(cases / "2021" / "twice")  # two patients of one name in nested folders
    good(cases / "2022" / "twice")
    (cases / "circle").mkdir()
    (cases / "circle" / "back").symlink_to(cases)
    (cases / "circle" / "own").symlink_to(cases / "circle" / "own")
    (cases / "empty").mkdir()
    os.mkfifo(cases / "first" / "pipe.nii.gz")  # reading it would wait for ever
    with at_most(500):
        assert command("mixmfl_predict", "-i", cases, "-o", out, "-m", model) == 1
    printed = capsys.readouterr()
    assert "Traceback" not in printed.out + printed.err
    rows = table(out)
    masks = {mask.name.removesuffix(".nii.gz") for mask in out.glob("*.nii.gz")}
    wanted = {*GOOD, "2021", "2022"}
    for name in wanted:
        assert rows[name]["status"] == "done", rows[name]["reason"]
        shape = (1, *SHAPE[1:]) if name == "one slice" else SHAPE
        assert read_labels(out / f"{name}.nii.gz")[0].shape == shape
    assert masks == {*wanted, LEFT_OUT}
    for name, (_, message) in SPOILT.items():
        row = rows[name]
        if name == LEFT_OUT:  # the other image of the case is sound
            assert (row["status"], row["modalities"]) == ("done", "t1")
            assert "t2 was left out: " in row["warnings"]
            assert message in row["warnings"]
            continue
        if name == "file that cannot be read":
            assert row["status"] == "failed"
            continue
        assert row["status"] == "failed", name
        assert message in row["reason"], (name, row["reason"])
        assert "\n" not in row["reason"]
    assert rows.keys() == {*SPOILT, *wanted}
    assert f"{len(SPOILT) - 1} of {len(rows)} cases failed" in printed.out
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    shutil.move(cases / LEFT_OUT, chosen)
    strict = ["mixmfl_predict", "-i", chosen, "-o", tmp_path / "strict", "-m", model, "--strict"]
    assert command(*strict) == 1
    row = table(tmp_path / "strict")[LEFT_OUT]
    assert row["status"] == "failed"
    assert SPOILT[LEFT_OUT][1] in row["reason"]


def test_a_file_without_permission_costs_its_case_alone(
    model: Path, tmp_path: Path, command: Command
) -> None:
    good(tmp_path / "cases" / "a")
    closed = good(tmp_path / "cases" / "b")
    closed.chmod(0)
    if os.access(closed, os.R_OK):
        pytest.skip("this user (root) may read everything")
    assert command("mixmfl_predict", "-i", tmp_path / "cases", "-o", tmp_path, "-m", model) == 1
    assert table(tmp_path)["a"]["status"] == "done"
    assert "ermission" in table(tmp_path)["b"]["reason"]


@pytest.mark.parametrize("place", ["/proc/masks", "file/masks"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_done(
    model: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    good(tmp_path / "cases" / "a")
    (tmp_path / "file").touch()
    out = tmp_path / place  # an absolute one stays what it is
    assert command("mixmfl_predict", "-i", tmp_path / "cases", "-o", out, "-m", model) == 2
    assert place.removesuffix("/masks") in capsys.readouterr().err


def test_an_empty_folder_is_told(
    model: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cases").mkdir()
    out = tmp_path / "masks"
    assert command("mixmfl_predict", "-i", tmp_path / "cases", "-o", out, "-m", model) == 2
    assert "holds no image" in capsys.readouterr().err


# the command, taking so long for a case that it is interrupted before the last
SLOWLY = """
import signal, sys, time
from importlib.metadata import entry_points
from mixmfl.inference import predict_folder
signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a job that a shell began with &
quick = predict_folder.segment
predict_folder.segment = lambda *arguments: time.sleep(1) or quick(*arguments)
(command,) = entry_points(group="console_scripts", name="mixmfl_predict")
sys.exit(command.load()(sys.argv[1:]))
"""


def test_a_signal_to_end_says_how_to_resume_and_leaves_whole_files(
    model: Path, tmp_path: Path
) -> None:
    cases, out = tmp_path / "cases", tmp_path / "masks"
    for case in range(9):
        good(cases / f"p{case}")
    argv = ["-i", str(cases), "-o", str(out), "-m", str(model)]
    running = subprocess.Popen(
        [sys.executable, "-c", SLOWLY, *argv],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    watch = threading.Timer(400, running.kill)
    watch.start()
    try:
        assert running.stdout is not None
        for line in running.stdout:
            if line.startswith("p0: done"):
                break
        os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all its processes
        _, err = running.communicate(timeout=300)
    finally:
        watch.cancel()
        running.kill()
    assert running.returncode == 130
    assert "interrupted; completed work is kept: run the same command again to continue\n" in err
    assert "Traceback" not in err
    masks = list(out.glob("*.nii.gz"))
    assert masks
    assert all(read_labels(mask)[0].shape == SHAPE for mask in masks)
    assert not list(out.glob(".writing-*"))
    outcomes = json.loads((out / "cases.json").read_text())["cases"]
    assert {name for name, each in outcomes.items() if each["status"] == "done"} <= {
        mask.name.removesuffix(".nii.gz") for mask in masks
    }
