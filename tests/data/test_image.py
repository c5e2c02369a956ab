import gzip
import itertools
import os
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest
import SimpleITK as sitk  # noqa: N813

from mixmfl.core.errors import DataError
from mixmfl.data import image, text_headers
from mixmfl.data.grid import Grid, from_canonical, grid_difference, make_grid, to_canonical
from mixmfl.data.grid_doubts import doubts_of_grid

Array = npt.NDArray[Any]
IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
GRID = Grid((3, 4, 5), (3.0, 2.0, 1.5), (-20.0, 10.0, 7.0), IDENTITY)
VOLUME = np.arange(60, dtype=np.float32).reshape(GRID.shape)
ORIENTATIONS = [
    list(zip(axes, flips, strict=True))
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((1, -1), repeat=3)
]


def places(array: Array, grid: Grid) -> dict[float, tuple[float, ...]]:
    """Return each voxel's place in mm, by its value."""
    direction = np.reshape(grid.direction, (3, 3))
    found = {}
    for index in np.ndindex(array.shape):
        step = np.multiply(index, grid.spacing)[::-1]
        found[float(array[index])] = tuple(np.round(grid.origin + direction @ step, 6))
    return found


def test_all_48_orientations_of_a_volume_are_one_canonical_volume(tmp_path: Path) -> None:
    assert len(ORIENTATIONS) == 48
    # nibabel turns the volume, so that our own arithmetic is not its own judge; RAS, not LPS
    affine = np.diag([-1.5, -2.0, 3.0, 1.0])
    affine[:3, 3] = (20.0, -10.0, 7.0)
    upright = nib.Nifti1Image(VOLUME.T, affine)
    seen = set()
    for i, orientation in enumerate(ORIENTATIONS):
        path = tmp_path / f"{i}.nii"
        nib.save(upright.as_reoriented(np.array(orientation)), path)
        stored, grid = image.read_image(path)
        seen.add((stored.tobytes(), grid))
        canonical, canonical_grid = to_canonical(stored, grid)
        np.testing.assert_array_equal(canonical, VOLUME)
        assert grid_difference(canonical_grid, GRID) is None
        assert places(canonical, canonical_grid) == places(stored, grid)
        back = from_canonical(canonical, grid)
        assert back.dtype == stored.dtype
        np.testing.assert_array_equal(back, stored)
    assert len(seen) == 48


def test_a_mask_goes_back_to_the_orientation_of_its_image(tmp_path: Path) -> None:
    stored = np.ascontiguousarray(VOLUME.transpose(1, 2, 0)[:, ::-1])  # coronal
    grid = Grid((4, 5, 3), (2.0, 1.5, 3.0), (0, 0, 0), (0, -1, 0, 0, 0, 1, 1, 0, 0))
    canonical, _ = to_canonical(stored, grid)
    np.testing.assert_array_equal(canonical, VOLUME)
    image.write_labels(tmp_path / "mask.nii.gz", from_canonical(canonical > 30, grid), grid)
    mask, mask_grid = image.read_labels(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(mask, stored > 30)
    assert grid_difference(mask_grid, grid) is None


def test_an_oblique_volume_is_turned_to_its_nearest_axes() -> None:
    # coronal, tilted by 20 degrees around the left-right axis, and mirrored
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    direction = (-1.0, 0.0, 0.0, 0.0, s, c, 0.0, -c, s)
    grid = Grid(GRID.shape, GRID.spacing, GRID.origin, direction)
    canonical, canonical_grid = to_canonical(VOLUME, grid)
    # the tilt stays: x is exact, y and z are 20 degrees from theirs
    assert canonical_grid.direction == pytest.approx((1, 0, 0, 0, c, -s, 0, s, c))
    assert canonical_grid.spacing == (2.0, 3.0, 1.5)
    assert places(canonical, canonical_grid) == places(VOLUME, grid)
    np.testing.assert_array_equal(from_canonical(canonical, grid), VOLUME)


@pytest.mark.parametrize("ending", image.WRITTEN_ENDINGS)
def test_an_image_is_read_as_it_was_written(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t1{ending}"
    image.write_image(path, VOLUME, GRID)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    array, grid = image.read_image(path)
    assert array.dtype == np.float32
    assert array.flags.writeable
    np.testing.assert_array_equal(array, VOLUME)
    assert grid == GRID
    assert image.read_grid(path) == GRID


@pytest.mark.parametrize("ending", [".nhdr", ".mhd"])
def test_a_header_with_its_data_beside_it_is_read(tmp_path: Path, ending: str) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(VOLUME), str(tmp_path / f"t1{ending}"))
    np.testing.assert_array_equal(image.read_image(tmp_path / f"t1{ending}")[0], VOLUME)


def test_a_fourth_axis_of_one_entry_is_taken_off(tmp_path: Path) -> None:
    volume = sitk.JoinSeries([sitk.GetImageFromArray(VOLUME)])
    sitk.WriteImage(volume, str(tmp_path / "t1.mha"))
    array, grid = image.read_image(tmp_path / "t1.mha")
    np.testing.assert_array_equal(array, VOLUME)
    assert grid.shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("values", "kind"), [([0, 4], "u1"), ([0, 300], "u2"), ([-1, 4], "i2"), ([False, True], "u1")]
)
def test_labels_are_written_in_the_smallest_type(
    tmp_path: Path, values: list[int], kind: str
) -> None:
    path = tmp_path / "seg.nii.gz"
    grid = Grid((1, 1, 2), (1, 1, 1), (0, 0, 0), IDENTITY)
    image.write_labels(path, np.array(values).reshape(1, 1, 2), grid)
    assert nib.load(path).get_data_dtype() == kind
    labels, _ = image.read_labels(path)
    assert labels.ravel().tolist() == values
    assert labels.dtype == np.int16


@pytest.mark.parametrize("ending", image.WRITTEN_ENDINGS)
def test_nan_is_not_hidden_by_reading(tmp_path: Path, ending: str) -> None:
    image.write_image(tmp_path / f"t1{ending}", np.where(VOLUME == 7, np.nan, VOLUME), GRID)
    array, _ = image.read_image(tmp_path / f"t1{ending}")
    np.testing.assert_array_equal(array, np.where(VOLUME == 7, np.nan, VOLUME))


def test_the_scale_of_a_nifti_file_is_applied(tmp_path: Path) -> None:
    header = nib.Nifti1Image(VOLUME.T.astype("i2"), np.eye(4)).header.as_byteswapped(">")
    header.set_data_offset(352)
    header["scl_slope"], header["scl_inter"] = 0.5, -3
    content = header.binaryblock + bytes(4) + VOLUME.astype(">i2").tobytes()
    (tmp_path / "t1.nii").write_bytes(content)
    np.testing.assert_array_equal(image.read_image(tmp_path / "t1.nii")[0], VOLUME * 0.5 - 3)


def test_integers_stored_as_floats_are_labels_and_fractions_are_not(tmp_path: Path) -> None:
    path = tmp_path / "seg.nii.gz"
    image.write_image(path, VOLUME, GRID)
    assert image.read_labels(path)[0].dtype == np.int16
    image.write_image(path, VOLUME * 1000, GRID)
    assert image.read_labels(path)[0].dtype == np.int32
    image.write_image(path, VOLUME / 2, GRID)
    with pytest.raises(DataError, match=r"seg.nii.gz: holds the value 0.5; labels must be integ"):
        image.read_labels(path)
    image.write_image(path, np.where(VOLUME == 1, np.nan, 0), GRID)
    with pytest.raises(DataError, match=r"holds NaN or infinity; labels must be int.*Replace"):
        image.read_labels(path)
    image.write_image(path, VOLUME * 1e9, GRID)
    with pytest.raises(DataError, match="labels have 32 bits at most"):
        image.read_labels(path)


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its name must end in \.nii\.gz, \.nii, \.nrrd or \.mha"):
        image.write_labels(tmp_path / "seg.png", VOLUME, GRID)
    with pytest.raises(DataError, match="labels from 0 to 590000 do not fit into 16 bits"):
        image.write_labels(tmp_path / "seg.nii.gz", VOLUME * 10000, GRID)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", [".mha", ".nii.gz"])
def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    path = tmp_path / f"t1{ending}"
    image.write_image(path, VOLUME, GRID)

    def fail(volume: Any, name: str, **options: Any) -> None:
        Path(name).write_text("half")
        raise RuntimeError("Exception thrown: ITK ERROR: NiftiImageIO(0x5f): disk full")

    def fail_too(place: Path, *_: Any) -> None:
        place.write_text("half")
        raise OSError(28, "disk full")

    monkeypatch.setattr(sitk, "WriteImage", fail)
    monkeypatch.setattr("mixmfl.data.nifti.write", fail_too)
    with pytest.raises(DataError, match=rf"t1{ending}: cannot be written \(disk full\)"):
        image.write_image(path, -VOLUME, GRID)
    np.testing.assert_array_equal(image.read_image(path)[0], VOLUME)
    assert list(tmp_path.iterdir()) == [path]


def test_writing_the_same_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nii.gz"):
        image.write_image(tmp_path / name, VOLUME, GRID)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize(("side", "words"), [(0.1, "6.4 x 0.3 x 0.3 mm"), (10, "640 x 610 x 610")])
def test_an_image_of_no_size_of_people_is_doubted(side: float, words: str) -> None:
    shape = (64, 3, 3) if side < 1 else (64, 61, 61)
    grid = Grid(shape, (side,) * 3, (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    notes, (warning,) = doubts_of_grid(grid)
    assert notes == []
    assert warning.startswith(f"it is {words}")
    assert "does its header count in millimetres?" in warning
    assert doubts_of_grid(replace(grid, spacing=(1.0, 1.0, 1.0))) == ([], [])


@pytest.mark.parametrize(
    ("name", "lines", "words"),
    [
        ("a.mha", ("TransformMatrix",), "does not say where it lies; ITK's default was taken"),
        (
            "a.mha",
            ("TransformMatrix", "ElementSpacing"),
            "how large its voxels are or where it lie",
        ),
        ("a.nrrd", ("space",), "how large its voxels are or where it lies; ITK's default was"),
        ("a.mha", ("Offset",), ""),
    ],
)
def test_a_header_of_another_format_without_a_place_is_doubted(
    tmp_path: Path, name: str, lines: tuple[str, ...], words: str
) -> None:
    path = tmp_path / name
    flat = Grid((3, 4, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    image.write_image(path, np.arange(60, dtype=np.int16).reshape(3, 4, 5), flat)
    assert doubts_of_grid(image.read_grid(path)) == ([], [])
    kept = [
        line
        for line in path.read_bytes().split(b"\n")
        if not line.startswith(tuple(each.encode() for each in lines))
    ]
    path.write_bytes(b"\n".join(kept))
    _, warnings = doubts_of_grid(image.read_grid(path))
    assert len(warnings) == bool(words)
    assert words in "".join(warnings)


def test_grids_are_one_within_tolerance() -> None:
    near = Grid(GRID.shape, (3.002, 2.0, 1.5), (-20.01, 10.0, 7.0), (1.0, 5e-4, *IDENTITY[2:]))
    assert grid_difference(GRID, near) is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            Grid((3, 4, 6), *(GRID.spacing, GRID.origin, IDENTITY)),
            "shape (3, 4, 5) against (3, 4, 6)",
        ),
        (
            Grid(GRID.shape, (3.0, 2.0, 1.0), GRID.origin, IDENTITY),
            "spacing (3.0, 2.0, 1.5) mm against (3.0, 2.0, 1.0) mm",
        ),
        (
            Grid(GRID.shape, GRID.spacing, (-20.0, 10.0, 7.1), IDENTITY),
            "origin (-20.0, 10.0, 7.0) mm against (-20.0, 10.0, 7.1) mm",
        ),
        (
            Grid(GRID.shape, GRID.spacing, GRID.origin, (-1.0, *IDENTITY[1:])),
            "direction (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0) against (-1.0, ",
        ),
    ],
)
def test_the_difference_of_two_grids_is_named(other: Grid, words: str) -> None:
    assert str(grid_difference(GRID, other)).startswith(words)


def of_header(**fields: Any) -> Callable[[Path], None]:
    """Return a writer of a NIfTI whose header has some fields overwritten."""

    def write(path: Path) -> None:
        volume = nib.Nifti1Image(VOLUME.T, np.eye(4))
        for name, (index, value) in fields.items():
            volume.header[name][index] = value
        path.write_bytes(volume.header.binaryblock + bytes(4) + VOLUME.tobytes())

    return write


def of_itk(make: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda path: sitk.WriteImage(make(sitk.GetImageFromArray(VOLUME)), str(path))


def cut(path: Path) -> None:
    """Write an image that lacks its last 40 voxels."""
    whole = path.with_name(f"whole-{path.name}")
    image.write_image(whole, VOLUME, GRID)
    content = whole.read_bytes()
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(gzip.decompress(content)[:-160]))
    else:
        path.write_bytes(content[:-160])


def halve(path: Path) -> None:
    image.write_image(path, VOLUME, GRID)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def break_gzip(path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(32, 32, 32))
    sitk.WriteImage(sitk.GetImageFromArray(noise), str(path))
    content = bytearray(path.read_bytes())
    content[-8:-4] = struct.pack("<I", 1)  # the checksum
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "write", "message"),
    [
        ("t1.nii", lambda path: None, "there is no such file"),
        (
            "t1.png",
            lambda path: path.touch(),
            "is no image we read; its name must end in .* or .mhd",
        ),
        ("t1.nii.gz", lambda path: path.touch(), r"cannot be read as an image \(it is empty\)"),
        (
            "t1.nii.gz",
            lambda path: path.write_bytes(gzip.compress(gzip.compress(b"no" * 400))),
            r"cannot be read as an image \(it is packed by gzip twice\)\. Needed is a whole",
        ),
        (
            "t1.nii",
            lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
            "cannot be read as an image .it is a pointer of Git LFS",
        ),
        ("t1.nii", lambda path: path.write_bytes(b"no" * 400), "cannot be read as an image"),
        ("t1.nii.gz", lambda path: path.write_bytes(b"\x1f\x8b" * 400), "is incomplete or damaged"),
        # in a short file igzip meets the end before the header is read; ITK would fill in zeros
        ("t1.nii.gz", halve, "is incomplete or damaged .*end-of-stream"),
        ("t1.mha", lambda path: path.write_bytes(b"no" * 400), "cannot be read as an image"),
        (
            "t1.nii",
            of_itk(lambda volume: volume[:, :, 0]),
            "is 2-dimensional, 5 x 4 voxels; needed",
        ),
        (
            "t1.nii.gz",
            of_itk(lambda volume: sitk.JoinSeries([volume, volume])),
            "is 4-dimensional, 5 x 4 x 3 x 2 voxels; needed is one three-dimensional volume",
        ),
        (
            "t1.nrrd",
            of_itk(lambda volume: sitk.Compose([volume] * 3)),
            "has 3 numbers per voxel",
        ),
        ("t1.nii", of_header(pixdim=(3, 0)), r"has spacing \(0.0, 1.0, 1.0\) mm; it must be"),
        ("t1.nii", of_header(pixdim=(1, np.nan)), r"has spacing \(1.0, 1.0, nan\) mm"),
        ("t1.nii", of_header(pixdim=(2, -1)), r"has spacing \(1.0, -1.0, 1.0\) mm"),
        ("t1.nii", of_header(sform_code=(..., 1), srow_x=(3, np.nan)), "its sform is not finite"),
        ("t1.nii", of_header(qform_code=(..., 1), qoffset_x=(..., np.inf)), "its qform is not fin"),
        (
            "t1.nii",
            of_header(scl_slope=(..., 1), scl_inter=(..., np.nan)),
            "is incomplete or damaged",
        ),
        ("t1.nii", of_header(dim=(slice(1, 4), 30000)), "promises 27000000000000 voxels, but at"),
        ("t1.nii", cut, r"is incomplete \(432 bytes found, 592 needed\)"),
        ("t1.nii.gz", cut, r"is incomplete \(432 bytes found, 592 needed\)"),
        ("t1.nrrd", cut, r"is incomplete or damaged \(its stream of voxels has no end\)"),
        ("t1.mha", cut, "cannot be read as an image"),
        ("t1.nii.gz", break_gzip, "is incomplete or damaged"),
    ],
)
def test_a_broken_image_is_refused_by_name(
    tmp_path: Path, name: str, write: Callable[[Path], None], message: str
) -> None:
    write(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name}: {message}"):
        image.read_image(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ElementSpacing = 1 0 1", r"has spacing \(1.0, 0.0, 1.0\) mm; it must be positive"),
        ("TransformMatrix = 1 0 0 0.3 1 0 0 0 1", "axes must be at right angles"),
    ],
)
def test_a_broken_grid_is_refused(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "t1.mha"
    image.write_image(path, VOLUME, Grid(GRID.shape, (1, 1, 1), (0, 0, 0), IDENTITY))
    key = line.split(" = ")[0].encode()
    lines = path.read_bytes().split(b"\n")
    assert any(entry.startswith(key) for entry in lines)
    path.write_bytes(b"\n".join(line.encode() if x.startswith(key) else x for x in lines))
    with pytest.raises(DataError, match=message):
        image.read_grid(path)


def test_warnings_of_itk_stay_quiet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "t1.nii"
    of_header(sform_code=(..., 1), srow_x=(0, 2.0))(path)  # ITK warns about this scale
    np.testing.assert_array_equal(image.read_image(path)[0], VOLUME)
    assert capfd.readouterr().err == ""
    assert sitk.ProcessObject.GetGlobalWarningDisplay()


@pytest.mark.parametrize(
    "name", ["../voxels.raw", "{elsewhere}", "pipe", "LIST", "v%03d.raw 1 2 1"]
)
@pytest.mark.parametrize("ending", [".nhdr", ".nrrd", ".mhd", ".mha"])
def test_voxels_lie_beside_their_header_and_nowhere_else(
    tmp_path: Path, name: str, ending: str
) -> None:
    (tmp_path / "voxels.raw").write_bytes(bytes(8))
    folder = tmp_path / "case"
    folder.mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "LIST").write_bytes(bytes(8))  # what a list names may lie anywhere
    name = name.format(elsewhere=tmp_path / "voxels.raw")
    if "r" in ending:
        text = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
        text += f"space directions: (1,0,0) (0,1,0) (0,0,1)\ndata file: {name}\n\n"
    else:
        text = f"ObjectType = Image\n{_META}ElementDataFile = {name}\n"
    (folder / f"t1{ending}").write_text(text)
    with pytest.raises(DataError, match="needed is one file in the same folder"):
        image.read_image(folder / f"t1{ending}")


_NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n"
_META = "BinaryData = True\nNDims = 3\nDimSize = 2 2 2\nElementType = MET_UCHAR\n"


@pytest.mark.parametrize(
    ("ending", "header", "why"),
    [
        (".nrrd", f"{_NRRD}content: x\rdata file: {{elsewhere}}\n\n", "needed is one file in"),
        (".mha", f"{_META}elementdatafile = LOCAL\n{{pad}}", "its header has no end"),
        (".mhd", f"{_META}elementdatafile = t1.mhd\n{{pad}}", "its header has no end"),
        (".mha", f"{_META}Comment: a\nNDims = 3\nElementDataFile = LOCAL\n", "has 'NDims' twice"),
        (".nrrd", _NRRD + "sizes: 2 2 2\n\n", "has 'sizes' twice"),
        (".nrrd", _NRRD + "endianness little\n\n", "has the line 'endianness little'"),
        (".nrrd", _NRRD.replace("raw", "hex") + "\n", "has encoding 'hex'; raw and gzip are read"),
        (".nrrd", _NRRD.replace("uchar", "block") + "\n", "has type 'block'"),
        (".nrrd", _NRRD.replace("uchar", "short") + "\n", "has endian ''; little or big is"),
        (".nrrd", _NRRD + "line skip: 1\n\n", "and no lines"),
        (".nrrd", _NRRD + 'space units: "m" "m" "m"\n\n', "needed are mm, not m"),
        (".nrrd", _NRRD + "space directions: (1,0) (0,1) (1,1)\n\n", "vectors of three numbers"),
        (".nrrd", _NRRD + "spacings: 1 1 1e-300\n\n", "must be positive and finite"),
        (
            ".nrrd",
            _NRRD + "space directions: (1e300,0,0) (0,1,0) (0,0,1)\n\n",
            "must be positive and finite",
        ),
        (".nrrd", _NRRD + "spacings: 1 1\n\n", "needed are 3 numbers"),
        (".mha", f"{_META[18:]}BinaryData = False\nElementDataFile = LOCAL\n", "as text are not"),
        (".mha", f"{_META}HeaderSize = 9\nElementDataFile = LOCAL\n", "has HeaderSize '9'"),
        (".mha", f"{_META}HeaderSize = x\nElementDataFile = LOCAL\n", "a whole number is needed"),
        (
            ".mha",
            f"{_META}BinaryDataByteOrderMSB = maybe\nElementDataFile = LOCAL\n",
            "BinaryDataByteOrderMSB 'maybe'; True or False is needed",
        ),
        (
            ".mha",
            f"{_META}ElementToIntensityFunctionSlope = 2\nElementDataFile = LOCAL\n",
            "ITK does not scale by it",
        ),
        (".mha", f"{_META}TransformMatrix = 1 0\nElementDataFile = LOCAL\n", "are 9 numbers"),
        (".mha", f"{_META}Offset = 0 0 nan\nElementDataFile = LOCAL\n", "place is not finite"),
        (".mha", f"{_META}ElementType = MET_X\nElementDataFile = LOCAL\n", "'ElementType' twice"),
    ],
)
def test_a_header_of_text_is_read_to_its_end_and_no_further(
    tmp_path: Path, ending: str, header: str, why: str
) -> None:
    elsewhere, path = tmp_path / "voxels.raw", tmp_path / "case" / f"t1{ending}"
    path.parent.mkdir()
    elsewhere.write_bytes(bytes(8))
    pad = "Comment = pad\n" * 80_000 + f"ElementDataFile = {elsewhere}\n"
    path.write_bytes(header.format(elsewhere=elsewhere, pad=pad).encode() + bytes(8))
    with pytest.raises(DataError, match=why):
        image.read_image(path)


def test_long_comments_of_a_nrrd_header_are_read(tmp_path: Path) -> None:
    path = tmp_path / "t1.nrrd"
    text = f"{_NRRD}spacings: 1 1 1\n# {'c' * 2000}\nSegment0_Tags:={'v' * 2000}\n\n"
    path.write_bytes(text.encode() + bytes(8))
    assert image.read_image(path)[0].shape == (2, 2, 2)


@pytest.mark.parametrize(
    "lines",
    [
        "NDims = 1000000\nDimSize = 2 2 2",  # which ends ITK's process
        "NDims = 3\nDimSize = 2 2",
        "NDims = 3",
        "NDims = 3\nNDims = 3\nDimSize = 2 2 2",
    ],
)
def test_a_header_whose_axes_are_not_those_of_its_size_is_not_read(
    tmp_path: Path, lines: str
) -> None:
    path = tmp_path / "t1.mha"
    text = f"BinaryData = True\n{lines}\nElementType = MET_UCHAR\nElementDataFile = LOCAL\n"
    path.write_bytes(text.encode() + bytes(8))
    with pytest.raises(
        DataError, match=r"its header has (DimSize .*as axes, 2 to 5|'NDims' twice)"
    ):
        image.read_image(path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ending", text_headers.ENDINGS)
def test_headers_of_text_mean_what_itk_makes_of_them(
    tmp_path: Path, ending: str, compressed: bool
) -> None:
    draw = np.random.default_rng(0)
    for kind in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "f4", "f8"):
        volume = sitk.GetImageFromArray((100 * draw.random((3, 4, 5))).astype(kind))
        turned, _ = np.linalg.qr(draw.normal(size=(3, 3)))
        volume.SetDirection(turned.ravel())
        volume.SetSpacing((1.25, 2.0, 3.5))
        volume.SetOrigin((-3.0, 4.5, 6.0))
        path = tmp_path / f"{kind}{ending}"
        sitk.WriteImage(volume, str(path), useCompression=compressed)
        array, grid = image.read_image(path)
        np.testing.assert_array_equal(array, sitk.GetArrayFromImage(volume).astype(np.float32))
        theirs = make_grid((3, 4, 5), (3.5, 2.0, 1.25), (-3.0, 4.5, 6.0), turned)
        assert grid_difference(grid, theirs) is None
        assert not grid.unstated


@pytest.mark.parametrize(
    ("lines", "signs"),
    [
        ("space: right-anterior-superior", (-1, -1, 1)),
        ("space: LAS", (1, -1, 1)),
        ("space dimension: 3", (1, 1, 1)),
    ],
)
def test_the_space_of_a_nrrd_is_turned_to_ours(
    tmp_path: Path, lines: str, signs: tuple[int, int, int]
) -> None:
    path = tmp_path / "t1.nrrd"
    text = f"{_NRRD}{lines}\nspace directions: (0,2,0) (3,0,0) (0,0,-4)\nspace origin: (5,6,7)\n\n"
    path.write_bytes(text.encode() + bytes(range(8)))
    array, grid = image.read_image(path)
    theirs = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(array, sitk.GetArrayFromImage(theirs))
    assert grid.spacing == (4.0, 3.0, 2.0)
    assert grid.origin == theirs.GetOrigin() == tuple(np.multiply(signs, (5.0, 6.0, 7.0)))
    assert grid.direction == theirs.GetDirection()
    assert bool(grid.unstated) == ("dimension" in lines)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
@pytest.mark.parametrize("compressed", [False, True])
def test_bytes_behind_the_voxels_tell_of_another_size_or_type(
    tmp_path: Path, ending: str, compressed: bool
) -> None:
    path = tmp_path / f"t1{ending}"
    sitk.WriteImage(sitk.GetImageFromArray(VOLUME), str(path), useCompression=compressed)
    content, whole = path.read_bytes(), b"5 4 3"
    assert content.count(whole) == 1
    path.write_bytes(content.replace(whole, b"5 4 2"))
    with pytest.raises(DataError, match="goes on behind its last voxel"):
        image.read_image(path)
    path.write_bytes(content.replace(whole, b"5 4 4"))
    with pytest.raises(DataError, match="is incomplete"):
        image.read_image(path)


@pytest.mark.parametrize("skip", ["byte skip: 5", "byte skip: -1"])
def test_bytes_before_the_voxels_of_a_nrrd_are_skipped(tmp_path: Path, skip: str) -> None:
    path = tmp_path / "t1.nhdr"
    path.write_text(f"{_NRRD}{skip}\nspacings: 1 1 1\ndata file: t1.raw\n")
    (tmp_path / "t1.raw").write_bytes(b"abcde" + bytes(range(8)))
    assert image.read_image(path)[0].ravel().tolist() == list(range(8))


def test_many_keys_in_a_header_take_no_time(tmp_path: Path) -> None:
    path = tmp_path / "t1.nrrd"
    keys = "".join(f"k{number}:=v\n" for number in range(80_000))
    path.write_bytes(f"{_NRRD}{keys}\n".encode() + bytes(8))
    began = time.process_time()
    assert image.read_image(path)[0].shape == (2, 2, 2)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("ending", [".mha", ".mhd", ".nrrd"])
def test_empty_lines_in_a_header_take_no_time(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t1{ending}"
    path.write_bytes(b"NRRD0004\n" + b" \n" * 100_000 + b"\n\n")
    began = time.process_time()
    with pytest.raises(DataError, match="cannot be read as an image"):
        image.read_image(path)
    assert time.process_time() - began < 5


@pytest.mark.filterwarnings("error")
def test_an_axis_without_a_direction_is_refused_and_nothing_is_divided_by_it(
    tmp_path: Path,
) -> None:
    path = tmp_path / "t1.mgh"
    nib.MGHImage(VOLUME.T, np.eye(4)).to_filename(str(path))
    content = bytearray(path.read_bytes())
    content[42:54] = bytes(12)  # the direction of x
    path.write_bytes(content)
    with pytest.raises(DataError, match="axes must be at right angles"):
        image.read_image(path)
