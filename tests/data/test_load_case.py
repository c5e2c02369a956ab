import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pytest

from mixmfl.core.errors import DataError
from mixmfl.data import image
from mixmfl.data.cases import Case, find_cases
from mixmfl.data.grid import Grid, grid_difference
from mixmfl.data.labels import Labels
from mixmfl.data.load_case import AlignmentOptions, load_case

IDENTITY = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
GRID = Grid((3, 4, 5), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
VOLUME = np.arange(60, dtype=np.float32).reshape(GRID.shape)
LESION = Labels({"background": 0, "lesion": 1})


def write_case(
    folder: Path, images: Mapping[str, npt.NDArray[Any]], grids: Mapping[str, Grid] | None = None
) -> Case:
    """Write a case; an array called ``label`` becomes its label."""
    paths = {}
    for name, array in images.items():
        paths[name] = folder / f"{name}.nii.gz"
        image.write_image(paths[name], array, (grids or {}).get(name, GRID))
    label = paths.pop("label", None)
    return Case("p01", paths, label)


def test_a_loaded_case_is_canonical_and_its_labels_are_indices(tmp_path: Path) -> None:
    # stored coronal and upside down: array axes are y, -z, x
    grid = Grid((4, 3, 5), (1, 1, 1), (0, 0, 2), (1, 0, 0, 0, 0, 1, 0, -1, 0))
    stored = np.ascontiguousarray(VOLUME.transpose(1, 0, 2)[:, ::-1])
    label = np.where(stored > 50, 4, 0).astype(np.uint8)
    arrays: dict[str, npt.NDArray[Any]] = {"flair": stored, "t1": -stored, "label": label}
    case = write_case(tmp_path, arrays, dict.fromkeys(arrays, grid))
    loaded = load_case(case, Labels({"background": 0, "lesion": 1, "tumour": 4}))
    assert loaded.name == "p01"
    assert grid_difference(loaded.grid, grid) is None
    assert grid_difference(loaded.canonical, GRID) is None
    np.testing.assert_array_equal(loaded.images["flair"], VOLUME)
    np.testing.assert_array_equal(loaded.images["t1"], -VOLUME)
    assert loaded.images["t1"].dtype == np.float32
    assert loaded.images["t1"].flags.writeable
    assert loaded.labels is not None
    np.testing.assert_array_equal(loaded.labels, np.where(VOLUME > 50, 2, 0))


def test_without_a_description_the_label_is_not_read(tmp_path: Path) -> None:
    case = write_case(tmp_path, {"t1": VOLUME, "label": VOLUME / 2})
    assert load_case(case).labels is None
    assert load_case(write_case(tmp_path, {"t1": VOLUME}), LESION).labels is None


def test_a_label_on_another_grid_is_refused(tmp_path: Path) -> None:
    moved = Grid(GRID.shape, GRID.spacing, (0.0, 0.0, 3.0), IDENTITY)
    case = write_case(tmp_path, {"t1": VOLUME, "label": VOLUME}, {"label": moved})
    with pytest.raises(DataError, match=r"case 'p01': label and t1 differ in origin"):
        load_case(case, LESION)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "SLA"])
def test_a_label_in_another_order_of_axes_is_on_its_image(tmp_path: Path, codes: str) -> None:
    case = write_case(tmp_path, {"t1": VOLUME, "label": (VOLUME > 50).astype(np.uint8)})
    assert case.label is not None
    drawn = nib.load(case.label)
    turn = nib.orientations.ornt_transform(
        nib.io_orientation(drawn.affine), nib.orientations.axcodes2ornt(codes)
    )
    turned = drawn.as_reoriented(turn)
    nib.save(nib.Nifti1Image(np.asarray(turned.dataobj), turned.affine), case.label)
    loaded = load_case(case, LESION)
    assert loaded.labels is not None
    assert np.array_equal(loaded.labels, loaded.images["t1"] > 50)
    assert grid_difference(loaded.grid, GRID) is None  # that of the image's file
    assert loaded.warnings == ()


def test_infinite_values_are_refused_with_their_number(tmp_path: Path) -> None:
    array = VOLUME.copy()
    array[0, 0, :3] = np.nan, np.inf, -np.inf
    case = write_case(tmp_path, {"t1": array})
    with pytest.raises(DataError, match=r"'p01': t1 \(.*t1.nii.gz\) holds 3 voxels of NaN or inf"):
        load_case(case)


def test_an_empty_image_is_refused(tmp_path: Path) -> None:
    case = write_case(tmp_path, {"t1": np.zeros_like(VOLUME)})
    with pytest.raises(DataError, match=r"'p01': t1 \(.*\) is empty, every voxel is 0. Remove"):
        load_case(case)


def test_values_that_are_wrapped_around_in_16_bits_are_refused(tmp_path: Path) -> None:
    shape = (6, 20, 20)
    grid = Grid(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    bright = np.fromfunction(
        lambda z, y, x: 60000 - 300 * (y - 10) ** 2 - 300 * (x - 10) ** 2, shape
    )
    stored = np.where(bright > 0, bright, 0).astype(np.uint16)
    wrapped = write_case(tmp_path, {"t1": stored.view(np.int16)}, {"t1": grid})
    with pytest.raises(DataError, match=r"'p01': t1 .* has its brightest voxels below 0"):
        load_case(wrapped)
    # an image over the whole range of its type, whose background is the lowest value
    whole_range = (stored.astype(np.int64) * 65535 // stored.max() - 32768).astype(np.int16)
    assert whole_range.min() == -32768
    assert whole_range.max() == 32767
    load_case(write_case(tmp_path, {"t1": whole_range}, {"t1": grid}))


def test_numbers_in_the_other_byte_order_are_refused(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(20), np.add.outer(np.arange(20), np.arange(20))) * 9
    grid = Grid(ramp.shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), IDENTITY)
    for kind in (np.int16, np.uint16):
        load_case(write_case(tmp_path, {"t1": ramp.astype(kind)}, {"t1": grid}))
        swapped = write_case(tmp_path, {"t1": ramp.astype(kind).byteswap()}, {"t1": grid})
        with pytest.raises(DataError, match="is noise as its header says it, and smooth once the"):
            load_case(swapped)
    noise = np.random.default_rng(0).integers(-32000, 32000, ramp.shape).astype(np.int16)
    load_case(write_case(tmp_path, {"t1": noise}, {"t1": grid}))


def test_an_image_of_which_little_is_shown_is_warned_of(tmp_path: Path) -> None:
    few = np.zeros(GRID.shape, np.float32)
    few[1, 1] = 1, 2, 3, 4, 5
    few[0, 0, :3] = 6, 7, 8
    assert load_case(write_case(tmp_path, {"t1": few})).warnings == ()
    large = np.zeros((12, 12, 12), np.float32)
    large[4:7, 4:8, 4:9] = VOLUME
    large[4:7, 6:] = large[4:7, 4] = 0
    grid = Grid(large.shape, GRID.spacing, GRID.origin, IDENTITY)
    (warning,) = load_case(write_case(tmp_path, {"t1": large}, {"t1": grid})).warnings
    assert warning == "t1: shows something in 0.87% of its voxels alone; was it cut out?"


def test_a_label_without_background_is_warned_of(tmp_path: Path) -> None:
    everywhere = np.ones(GRID.shape, np.uint8)
    case = write_case(tmp_path, {"t1": VOLUME, "label": everywhere})
    assert load_case(case, LESION).warnings == (
        "its label marks every voxel, and none as background; look at it",
    )
    everywhere[:2] = 0
    case = write_case(tmp_path, {"t1": VOLUME, "label": everywhere})
    assert load_case(case, LESION).warnings == ()


def test_a_label_value_that_is_not_declared_is_refused(tmp_path: Path) -> None:
    case = write_case(tmp_path, {"t1": VOLUME, "label": (VOLUME > 5) * np.uint8(4)})
    with pytest.raises(
        DataError,
        match=r"case 'p01': label \(.*label.nii.gz\) holds the label values 4, but only 0, 1 are "
        r"declared. Fix the file, or declare",
    ):
        load_case(case, LESION)


def test_an_unreadable_image_is_named_with_its_case(tmp_path: Path) -> None:
    (tmp_path / "t1.nii.gz").touch()
    with pytest.raises(DataError, match=r"case 'p01': .*t1.nii.gz: cannot be read as an image"):
        load_case(Case("p01", {"t1": tmp_path / "t1.nii.gz"}))


def test_a_constant_background_that_is_not_zero_is_brought_to_zero(tmp_path: Path) -> None:
    voxels = np.full((6, 7, 8), -3.5, dtype=np.float32)
    voxels[2:4, 2:5, 3:6] = np.arange(18).reshape(2, 3, 3)
    grid = Grid((6, 7, 8), (1, 1, 1), (0, 0, 0), (1, 0, 0, 0, 1, 0, 0, 0, 1))
    path = tmp_path / "p" / "t1.nii.gz"
    path.parent.mkdir()
    image.write_image(path, voxels, grid)
    loaded = load_case(Case("p", {"t1": path})).images["t1"]
    assert loaded[0, 0, 0] == 0
    assert np.array_equal(loaded, voxels + 3.5)


def test_a_background_at_most_faces_and_what_fills_up_are_brought_to_zero(tmp_path: Path) -> None:
    brain = np.full((10, 10, 10), -1024, dtype=np.float32)
    brain[4:7, 3:7, 3:8] = VOLUME - 30
    expected = np.where(brain == -1024, 0, brain + 1024)
    brain[:2] = brain[:3, 0] = 0  # as resampling fills up
    assert brain[5, 5, 3] == 0  # a voxel of the head
    grid = Grid(brain.shape, GRID.spacing, GRID.origin, IDENTITY)
    found = load_case(write_case(tmp_path, {"t1": brain}, {"t1": grid})).images["t1"]
    assert np.array_equal(found, expected)


def test_an_image_that_cannot_be_used_is_left_out_where_that_is_allowed(tmp_path: Path) -> None:
    case = write_case(
        tmp_path,
        {"flair": VOLUME, "pd": np.full_like(VOLUME, np.nan), "t1": -VOLUME, "t2": VOLUME * 0},
    )
    case.files["t1"].write_bytes(b"")
    loaded = load_case(case, None, AlignmentOptions(leave_out=True))
    assert tuple(loaded.images) == ("flair",)
    pd, t1, t2 = loaded.warnings
    assert pd.startswith("pd was left out: pd (")
    assert "holds 60 voxels of NaN" in pd
    assert t1.startswith("t1 was left out: ")
    assert "t1.nii.gz: cannot be read as an image" in t1
    assert "is empty, every voxel is 0" in t2
    with pytest.raises(DataError, match=r"case 'p01': pd \(.*holds 60 voxels of NaN"):
        load_case(case)
    case.files["flair"].unlink()
    with pytest.raises(DataError, match=r"'p01': none of its images can be used. "):
        load_case(case, None, AlignmentOptions(leave_out=True))


def test_a_reason_that_several_images_of_a_case_have_is_given_once(tmp_path: Path) -> None:
    case = write_case(tmp_path, {"t1": VOLUME, "t2": VOLUME, "pd": 0 * VOLUME})
    for modality in ("t1", "t2"):
        case.files[modality].write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"used. (pd: .*; )?t1, t2: cannot be read") as caught:
        load_case(case, None, AlignmentOptions(leave_out=True))
    assert str(caught.value).count("cannot be read") == 1


def test_an_image_on_which_a_library_fails_is_left_out_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = write_case(tmp_path, {"t1": VOLUME, "t2": -VOLUME})
    read = image.read_image

    def fails(path: Path) -> Any:
        if path.name == "t1.nii.gz":
            raise ZeroDivisionError("in a library")
        return read(path)

    monkeypatch.setattr(image, "read_image", fails)
    (warning,) = load_case(case, None, AlignmentOptions(leave_out=True)).warnings
    assert warning == "t1 was left out: ZeroDivisionError: in a library"


@pytest.mark.parametrize("scale", [1e-12, 1e30])
def test_values_of_any_size_are_the_same_image_once_they_are_z_scored(
    tmp_path: Path, scale: float
) -> None:
    as_it_is = load_case(write_case(tmp_path / "a", {"t1": VOLUME})).images["t1"]
    assert np.array_equal(as_it_is, VOLUME)
    scaled = VOLUME * np.float32(scale)
    found = load_case(write_case(tmp_path / "b", {"t1": scaled})).images["t1"]
    assert 0.5 <= found.max() <= 1
    assert found * (VOLUME.max() / found.max()) == pytest.approx(VOLUME, rel=1e-6)


def test_a_label_on_an_image_s_qform_is_drawn_on_its_voxels(tmp_path: Path) -> None:
    moved = np.eye(4)
    moved[:3, 3] = 5, 2, 1
    nifti_image = nib.Nifti1Image(VOLUME.T, moved)
    nifti_image.set_qform(np.eye(4), 1)
    nifti_image.set_sform(moved, 2)
    nib.save(nifti_image, tmp_path / "t1.nii")
    label = (VOLUME > 50).astype(np.uint8)
    for place, warned in ((moved, 0), (np.eye(4), 1), (moved @ moved, None)):
        nib.save(nib.Nifti1Image(label.T, place), tmp_path / "seg.nii")
        case = Case("p01", {"t1": tmp_path / "t1.nii"}, tmp_path / "seg.nii")
        if warned is None:
            with pytest.raises(DataError, match="label and t1 differ in origin"):
                load_case(case, LESION)
            continue
        loaded = load_case(case, LESION)
        assert loaded.labels is not None
        assert np.array_equal(loaded.labels, loaded.images["t1"] > 50)
        assert len(loaded.warnings) == warned
        assert all("by its qform, not by its sform" in warning for warning in loaded.warnings)


def test_a_header_without_a_place_is_told_and_one_with_two_is_noted(tmp_path: Path) -> None:
    moved = np.diag([1.0, 1.0, 1.0, 1.0])
    moved[0, 3] = 5
    for codes, pixdim in (((0, 0), 1), ((2, 1), 1), ((2, 0), 1.5)):
        nifti_image = nib.Nifti1Image(VOLUME.T, moved)
        nifti_image.set_qform(np.eye(4), codes[1])
        nifti_image.set_sform(moved, codes[0])
        nifti_image.header["pixdim"][3] = pixdim
        nib.save(nifti_image, tmp_path / f"{codes[0]}{codes[1]}.nii")
    load = {n: load_case(Case("p", {"t1": tmp_path / f"{n}.nii"})) for n in ("00", "21", "20")}
    (warning,) = load["00"].warnings
    assert warning.startswith("t1: its header does not say where it lies (sform and qform have")
    assert load["21"].notes == ("t1: its sform differs from its qform; the sform was taken",)
    assert load["21"].warnings == ()
    (warning,) = load["20"].warnings
    assert "has voxels of 1 x 1 x 1 mm, by its pixdim of 1.5 x 1 x 1 mm" in warning
    assert load["20"].grid.spacing == (1.0, 1.0, 1.0)
    mirrored = nib.Nifti1Image(VOLUME.T, np.eye(4))
    mirrored.set_sform(np.diag([-1, 1, 1, 1]), 1)
    mirrored.set_qform(np.eye(4), 1)
    nib.save(mirrored, tmp_path / "mirrored.nii")
    loaded = load_case(Case("p", {"t1": tmp_path / "mirrored.nii"}))
    (warning,) = loaded.warnings
    assert warning.startswith("t1: its sform and its qform are mirror images of each other; the")
    assert loaded.notes == ()


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["ms_mni", "brats2015"])
def test_real_cases_are_found_and_canonical(folder: str) -> None:
    data = os.environ.get("MIXMFL_TEST_DATA")
    if not data or not (Path(data) / folder).is_dir():
        pytest.skip(f"needs real MRI: MIXMFL_TEST_DATA names no folder with {folder}")
    found = find_cases(Path(data) / folder, labels_needed=True)
    assert found.cases
    assert found.refused == ()
    loaded = load_case(found.cases[0], Labels({"background": 0, "a": 1, "b": 2, "c": 3, "d": 4}))
    assert np.diag(np.reshape(loaded.canonical.direction, (3, 3))).tolist() == [1, 1, 1]
    assert loaded.labels is not None
    assert loaded.labels.any()


def test_one_image_under_two_names_is_warned_of(tmp_path: Path) -> None:
    chosen = np.random.default_rng(3)
    brain = chosen.normal(100, 20, GRID.shape).astype(np.float32)
    other = brain + chosen.normal(0, 2, GRID.shape).astype(np.float32)
    case = write_case(tmp_path, {"flair": brain, "t1": 3 * brain + 1, "t1c": other})
    (warning,) = load_case(case).warnings
    assert warning == "flair and t1 are the same image: one of them has a wrong name"
