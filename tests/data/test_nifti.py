"""NIfTI as other tools leave it, and as damage leaves it."""

import gzip
import os
import random
import struct
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from mixmfl.core.errors import DataError
from mixmfl.data import image, nifti
from mixmfl.data.grid import from_canonical, grid_difference, to_canonical
from mixmfl.data.grid_doubts import doubts_of_grid

VOXELS = np.random.default_rng(0).integers(1, 900, (6, 5, 4)).astype(np.int16)  # X, Y, Z
AFFINE = np.diag([-2.0, -1.5, 3.0, 1.0])
AFFINE[:3, 3] = 10, 20, -30
DIM, DATATYPE, BITPIX, PIXDIM, VOX_OFFSET = 40, 70, 72, 76, 108
SLOPE, QFORM_CODE, SROW_X = 112, 252, 280


def turned(degrees: float) -> Any:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    rotation = np.eye(4)
    rotation[:2, :2] = (c, -s), (s, c)
    return rotation @ AFFINE


def save(path: Path, voxels: Any, sform: Any, qform: Any, codes: tuple[int, int]) -> Path:
    """Write an image whose sform and qform have these codes."""
    nifti_image = nib.Nifti1Image(voxels, sform)
    nifti_image.set_qform(qform, codes[1])
    nifti_image.set_sform(sform, codes[0])
    nib.save(nifti_image, path)
    return path


@pytest.mark.parametrize(
    "codes", [(2, 1), (1, 0), (0, 1), (0, 0), (4, 4)], ids=lambda codes: f"sform{codes[0]}"
)
def test_a_place_is_nibabel_s_and_that_of_a_mask_is_its_image_s(
    tmp_path: Path, codes: tuple[int, int]
) -> None:
    file = save(tmp_path / "t1.nii.gz", VOXELS, turned(8), AFFINE, codes)
    array, grid = image.read_image(file)
    np.testing.assert_array_equal(array, VOXELS.T)
    theirs = nib.load(file)
    last = np.array(VOXELS.shape) - 1
    direction = np.reshape(grid.direction, (3, 3))
    place = grid.origin + direction @ (last * grid.spacing[::-1])
    np.testing.assert_allclose(place, (theirs.affine @ [*last, 1])[:3] * [-1, -1, 1], atol=1e-4)
    canonical, _ = to_canonical(array, grid)
    for name in ("mask.nii.gz", "mask.nii"):
        image.write_labels(tmp_path / name, from_canonical(canonical > 400, grid), grid)
        mask = nib.load(tmp_path / name)
        np.testing.assert_allclose(mask.affine, theirs.affine, atol=1e-6)
        for form in ("get_sform", "get_qform"):
            (one, code), (other, same) = getattr(mask, form)(True), getattr(theirs, form)(True)
            assert code == same
            assert one is other is None or np.allclose(one, other, atol=1e-6)
        np.testing.assert_array_equal(np.asarray(mask.dataobj), VOXELS > 400)
        assert image.read_grid(tmp_path / name) == grid


def test_a_grid_made_from_that_of_a_file_is_written_as_it_is(tmp_path: Path) -> None:
    array, grid = image.read_image(save(tmp_path / "a.nii", VOXELS, AFFINE, AFFINE, (1, 1)))
    turned_array, canonical = to_canonical(array, grid)
    image.write_image(tmp_path / "b.nii", turned_array, canonical)
    assert grid_difference(image.read_grid(tmp_path / "b.nii"), canonical) is None


@pytest.mark.parametrize("shear", [1e-4, 5e-4, 9e-4])
def test_nearly_right_angles_are_read_and_a_mask_has_the_affine_of_its_image(
    tmp_path: Path, shear: float
) -> None:
    affine = AFFINE.copy()
    affine[0, 1] += 1.5 * shear
    file = save(tmp_path / "t1.nii.gz", VOXELS, affine, AFFINE, (2, 0))
    _, grid = image.read_image(file)
    direction = np.reshape(grid.direction, (3, 3))
    np.testing.assert_allclose(direction.T @ direction, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(direction, np.diag([1, 1, 1]), atol=shear)
    image.write_labels(tmp_path / "mask.nii.gz", np.ones(grid.shape, dtype=np.uint8), grid)
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii.gz").affine, affine, atol=1e-6)


def test_a_shear_beyond_the_tolerance_is_refused_in_words(tmp_path: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 1] += 1.5 * 2e-3
    file = save(tmp_path / "t1.nii.gz", VOXELS, affine, AFFINE, (2, 1))
    with pytest.raises(DataError, match=r"axes must be at right angles\. Resample it to a grid"):
        image.read_image(file)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f4", "f8"])
def test_every_type_of_number_is_read_in_both_byte_orders(
    tmp_path: Path, kind: str, order: str
) -> None:
    voxels = (VOXELS % 100).astype(kind)
    header = nib.Nifti1Image(voxels, AFFINE, dtype=voxels.dtype).header.as_byteswapped(order)
    header.set_data_offset(352)
    content = voxels.T.astype(np.dtype(f"{order}{kind}")).tobytes()
    (tmp_path / "t1.nii").write_bytes(header.binaryblock + bytes(4) + content)
    array, grid = image.read_image(tmp_path / "t1.nii")
    np.testing.assert_array_equal(array, voxels.T)
    assert array.dtype == np.dtype(np.float32)
    assert grid.spacing == (3.0, 1.5, 2.0)
    np.testing.assert_array_equal(image.read_labels(tmp_path / "t1.nii")[0], voxels.T)


def test_nifti_2_and_one_volume_in_four_dimensions_are_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(VOXELS[..., None], AFFINE), tmp_path / "t1.nii.gz")
    array, grid = image.read_image(tmp_path / "t1.nii.gz")
    np.testing.assert_array_equal(array, VOXELS.T)
    assert grid.shape == (4, 5, 6)


def test_what_a_header_says_beside_it_is_passed_over(tmp_path: Path) -> None:
    nifti_image = nib.Nifti1Image(VOXELS, AFFINE)
    nifti_image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"of 40 bytes" * 4))
    nib.save(nifti_image, tmp_path / "t1.nii.gz")
    np.testing.assert_array_equal(image.read_image(tmp_path / "t1.nii.gz")[0], VOXELS.T)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ([("R", "u1"), ("G", "u1"), ("B", "u1")], "holds colours"),
        ("c8", "holds complex numbers"),
    ],
)
def test_what_has_several_numbers_per_voxel_is_refused(
    tmp_path: Path, kind: Any, words: str
) -> None:
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), dtype=kind), AFFINE), tmp_path / "t1.nii")
    with pytest.raises(DataError, match=f"{words}.*needed is one"):
        image.read_image(tmp_path / "t1.nii")


@pytest.mark.parametrize("slope", [1 / 51, 1 / 255, 0.1])
def test_labels_stored_with_a_scale_are_integers(tmp_path: Path, slope: float) -> None:
    steps = round(1 / slope)
    content = labelled(np.where(VOXELS > 400, steps, 0), slope)
    (tmp_path / "seg.nii").write_bytes(content)
    assert np.unique(np.asarray(nib.load(tmp_path / "seg.nii").dataobj))[-1] != 1.0
    labels, _ = image.read_labels(tmp_path / "seg.nii")
    np.testing.assert_array_equal(labels, VOXELS.T > 400)
    assert labels.dtype == np.int16


def labelled(steps: Any, slope: float) -> bytes:
    nifti_image = nib.Nifti1Image(steps.astype(np.int16), AFFINE)
    content = bytearray(nifti_image.to_bytes())
    struct.pack_into("<ff", content, SLOPE, slope, 0.0)
    return bytes(content)


def test_true_fractions_are_no_labels(tmp_path: Path) -> None:
    for slope, shown in ((0.5, "0.5"), (1.002, "1.00")):
        (tmp_path / "seg.nii").write_bytes(labelled((VOXELS > 400) * 1, slope))
        with pytest.raises(DataError, match=f"holds the value {shown}.*labels must be integers"):
            image.read_labels(tmp_path / "seg.nii")


def whole() -> bytes:
    nifti_image = nib.Nifti1Image(VOXELS, AFFINE)
    nifti_image.set_qform(AFFINE, 1)
    return bytes(nifti_image.to_bytes())


@pytest.mark.parametrize(
    ("offset", "form", "value", "words"),
    [
        (VOX_OFFSET, "<f", 344, "its vox_offset is 344"),
        (VOX_OFFSET, "<f", 352.5, "its vox_offset is 352.5"),
        (VOX_OFFSET, "<f", np.nan, "its vox_offset is nan"),
        (VOX_OFFSET, "<f", 368, r"is incomplete \(592 bytes found, 608 needed\)"),
        (VOX_OFFSET, "<f", 1e30, "is incomplete|promises"),
        (BITPIX, "<h", 32, "have 32 bits by bitpix, and are int16 by datatype"),
        (DATATYPE, "<h", 2, "have 16 bits by bitpix, and are uint8 by datatype"),
        (DATATYPE, "<h", 1, "holds single bits"),
        (DATATYPE, "<h", 1536, "holds numbers of 128 bits"),
        (DATATYPE, "<h", 0, "NIfTI has no number type 0"),
        (DIM + 2, "<h", 5, r"goes on behind its last voxel \(byte 552\)"),
        (DIM + 6, "<h", 3, "goes on behind its last voxel"),
        (DIM + 6, "<h", 5, "is incomplete"),
        (DIM + 4, "<h", 0, "its header has 6 x 0 x 4 voxels"),
        (DIM, "<h", 0, "cannot be read as an image"),
        (QFORM_CODE + 2, "<h", 257, "its sform_code is 257; 0 to 5 are known"),
        (0, "<i", 349, "its sizeof_hdr is 349"),
        (PIXDIM + 12, "<f", -3, "must be positive and finite"),
        (SROW_X, "<f", 0, "must be positive and finite"),
        (SROW_X, "<f", 350, "has 4 x 5 x 6 voxels of 3 x 1.5 x 350 mm; from 0.001 to 100 mm are"),
        (SROW_X, "<f", 1e-5, "Does its header count in millimetres"),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(
    tmp_path: Path, offset: int, form: str, value: float, words: str
) -> None:
    content = bytearray(whole())
    struct.pack_into(form, content, offset, value)
    (tmp_path / "t1.nii").write_bytes(content)
    (tmp_path / "t1.nii.gz").write_bytes(gzip.compress(content))
    for name in ("t1.nii", "t1.nii.gz"):
        with pytest.raises(DataError, match=f"{name}: .*({words})"):
            image.read_image(tmp_path / name)


def test_an_offset_of_0_is_that_of_the_standard_and_the_voxels_must_fill_the_file(
    tmp_path: Path,
) -> None:
    content = bytearray(whole())
    struct.pack_into("<f", content, VOX_OFFSET, 0)
    (tmp_path / "t1.nii").write_bytes(content)
    np.testing.assert_array_equal(image.read_image(tmp_path / "t1.nii")[0], VOXELS.T)
    (tmp_path / "t1.nii").write_bytes(content[:348] + content[352:])  # as ITK would read it
    with pytest.raises(DataError, match=r"is incomplete \(588 bytes found, 592 needed\)"):
        image.read_image(tmp_path / "t1.nii")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
def test_nobody_waits_for_a_pipe_that_took_the_place_of_a_file(tmp_path: Path) -> None:
    """A pipe may do so after the file was found."""
    os.mkfifo(tmp_path / "t1.nii")
    with pytest.raises(DataError, match="it is a pipe or a device, and a file is needed"):
        nifti.read_header(tmp_path / "t1.nii")


def test_a_packed_file_whose_own_header_has_no_end_is_refused(tmp_path: Path) -> None:
    packed = gzip.compress(whole())
    named = packed[:3] + b"\x08" + packed[4:10]  # the name of what was packed follows
    (tmp_path / "t1.nii.gz").write_bytes(named + b"a" * (1 << 20) + b"\0" + packed[10:])
    with pytest.raises(DataError, match=r"t1.nii.gz: is incomplete or damaged \(Gzip header"):
        image.read_image(tmp_path / "t1.nii.gz")


def test_a_qform_of_a_damaged_header_is_refused_where_it_is_what_counts(tmp_path: Path) -> None:
    for offset, value, words in ((256, 1.5, "no rotation"), (PIXDIM, 7, r"its pixdim\[0\] is 7")):
        content = bytearray(save(tmp_path / "t1.nii", VOXELS, AFFINE, AFFINE, (0, 1)).read_bytes())
        struct.pack_into("<f", content, offset, value)
        (tmp_path / "t1.nii").write_bytes(content)
        with pytest.raises(DataError, match=words):
            image.read_image(tmp_path / "t1.nii")


def test_an_image_of_more_than_three_metres_is_refused(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.ones((3, 3, 40), np.uint8), np.diag([1, 1, 99, 1])),
             tmp_path / "t1.nii")  # fmt: skip
    with pytest.raises(DataError, match="and is 3960 mm long; 1 to 3000 mm are believed"):
        image.read_image(tmp_path / "t1.nii")


def test_what_would_unpack_to_more_than_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((2500, 2500, 1600))  # 10 GB
    header.set_zooms((1, 1, 1))
    header["magic"], header["vox_offset"] = b"n+1", 352
    packed = gzip.compress(header.binaryblock + bytes(4) + bytes(1 << 20))
    (tmp_path / "bomb.nii.gz").write_bytes(packed + bytes(1 << 24))
    began = time.monotonic()
    with pytest.raises(DataError, match="promises 10000000000 voxels, but at most 1073741824"):
        image.read_image(tmp_path / "bomb.nii.gz")
    assert time.monotonic() - began < 60
    monkeypatch.setattr("mixmfl.data.nifti.available_bytes", lambda: 100)
    (tmp_path / "t1.nii").write_bytes(whole())
    with pytest.raises(DataError, match=r"its voxels take 0\.0 GB; 0\.0 GB of memory are free"):
        image.read_image(tmp_path / "t1.nii")


def test_damage_is_refused_or_changes_nothing_but_what_the_header_alone_says(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Bits, fields, sizes and ends at random: never another exception, a hang, or other voxels."""
    chosen, sound = random.Random(5), whole()
    outcomes: Counter[str] = Counter()
    began = time.monotonic()
    for number in range(300):
        content = bytearray(sound)
        if number % 3 == 0:
            content[chosen.randrange(348)] ^= 1 << chosen.randrange(8)
        elif number % 3 == 1:
            at = chosen.randrange(0, 344, 2)
            content[at : at + 4] = chosen.randbytes(4)
        else:
            end = chosen.randrange(-600, 600)
            content = content + chosen.randbytes(end) if end > 0 else content[:end]
        content[SLOPE : SLOPE + 8] = sound[SLOPE : SLOPE + 8]  # any scale may be meant
        file = tmp_path / chosen.choice(["t1.nii", "t1.nii.gz"])
        file.write_bytes(gzip.compress(content, 1) if file.suffix == ".gz" else content)
        try:
            array, _ = image.read_image(file)
        except DataError:
            outcomes["refused"] += 1
            continue
        assert np.array_equal(array, VOXELS.T)
        outcomes["read"] += 1
    assert min(outcomes.values()) > 50
    assert time.monotonic() - began < 120
    assert capfd.readouterr() == ("", "")


def test_a_header_that_counts_in_micrometres_is_doubted(tmp_path: Path) -> None:
    stored = nib.Nifti1Image(np.ones((9, 8, 7), np.int16), np.diag([5.0, 5, 5, 1]))
    stored.header.set_xyzt_units("micron")
    nib.save(stored, tmp_path / "flair.nii")
    (warning,) = doubts_of_grid(image.read_grid(tmp_path / "flair.nii"))[1]
    assert "counts in micrometres" in warning
