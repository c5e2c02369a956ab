"""Images of one case on different grids. The head here is a smooth random field in an ellipsoid;
its second sequence is another function of the same field."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from mixmfl.cases import Case, Placing, load_case
from mixmfl.errors import DataError
from mixmfl.grids import (
    STILL,
    Fit,
    Rigid,
    finest,
    fit,
    mirror,
    mutual_information,
    register,
    resample,
)
from mixmfl.image import Grid, difference, write_image, write_labels
from mixmfl.labels import Labels

LPS = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)
SHAPE = (56, 64, 60)
GRID = Grid(SHAPE, (2.0, 2.0, 2.0), (-60.0, -64.0, -56.0), LPS)


def make_head() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    field = ndimage.gaussian_filter(generator.normal(size=SHAPE), 2)
    field /= field.std()
    z, y, x = np.ogrid[-1 : 1 : SHAPE[0] * 1j, -1 : 1 : SHAPE[1] * 1j, -1 : 1 : SHAPE[2] * 1j]
    head = z**2 + y**2 + x**2 < 0.7
    one = np.where(head, 5 + field, 0).astype(np.float32)
    other = np.where(head, 9 - np.abs(field) + 0.3 * field, 0).astype(np.float32)
    return one, other


ONE, OTHER = make_head()


def turn(degrees: float, *shift: float) -> Rigid:
    angle, matrix = math.radians(degrees), np.eye(4)
    matrix[:2, :2] = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    matrix[:3, 3] = shift or (0, 0, 0)
    return Rigid(matrix, 0, 0)


def test_mutual_information_of_a_copy_is_its_entropy_and_of_noise_next_to_none() -> None:
    levels = np.repeat(np.arange(32), 1000)
    assert mutual_information(levels, levels) == pytest.approx(math.log(32), abs=0.02)
    assert mutual_information(levels, -levels) == pytest.approx(math.log(32), abs=0.02)
    noise = np.random.default_rng(0).permutation(levels)
    assert mutual_information(levels, noise) == pytest.approx(31**2 / 2 / len(levels), rel=0.2)


def test_the_reference_is_the_image_with_the_finest_plane() -> None:
    thick = Grid((20, 256, 256), (5.0, 0.5, 0.5), GRID.origin, LPS)
    cube = Grid((180, 240, 240), (1.0, 1.0, 1.0), GRID.origin, LPS)
    sagittal = Grid((256, 256, 20), (0.6, 0.6, 5.0), GRID.origin, LPS)
    assert finest({"t1": cube, "flair": thick, "t2": sagittal}) == "flair"
    longer = dataclasses.replace(cube, shape=(181, 240, 240))
    assert finest({"a": cube, "b": longer, "c": longer}) == "b"


def test_resampling_keeps_places_and_shows_nothing_outside() -> None:
    ramp = np.zeros((4, 5, 6), dtype=np.float32) + np.arange(6, dtype=np.float32)
    grid = Grid((4, 5, 6), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), LPS)  # x = 0, 2, … 10 mm
    onto = Grid((1, 1, 5), (1.0, 1.0, 1.0), (9.0, 2.0, 1.0), LPS)
    assert resample(ramp, grid, onto).ravel().tolist() == [4.5, 5, 0, 0, 0]
    moved = Rigid(np.eye(4), 0, 0)
    moved.matrix[0, 3] = -2.0  # the patient lies 2 mm to the right in the image
    assert resample(ramp, grid, onto, moved).ravel().tolist() == [3.5, 4, 4.5, 5, 0]


def test_images_in_place_fit_and_others_have_their_fault() -> None:
    assert fit(ONE, GRID, OTHER, GRID).fault is None
    mirrored = np.ascontiguousarray(OTHER[:, :, ::-1])
    fault = fit(ONE, GRID, mirrored, GRID).fault
    assert fault is not None
    assert fault.startswith("it fits better mirrored left to right (mutual information")
    near = dataclasses.replace(GRID, origin=(-60.0, -58.0, -56.0))
    fault = fit(ONE, GRID, OTHER, near).fault
    assert fault is not None
    assert fault.startswith("it fits better 6 mm away (mutual information")
    turned = resample(OTHER, GRID, GRID, turn(25, 20, 0, 0))
    fault = fit(ONE, GRID, turned, GRID).fault
    assert fault is not None
    assert "is near that of chance" in fault
    far = dataclasses.replace(GRID, origin=(20.0, -64.0, -56.0))
    share = (ONE[:, :, 40:] != 0).sum() / (ONE != 0).sum()  # 80 mm are 40 voxels
    assert fit(ONE, GRID, OTHER, far).fault == f"it covers {share:.0%} of the head"


def test_images_too_small_to_tell_are_believed() -> None:
    small = Grid((6, 20, 18), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), LPS)
    noise = np.random.default_rng(0).normal(10, 1, (2, 6, 20, 18))
    found = fit(noise[0], small, noise[1], small)
    assert math.isnan(found.similarity)
    assert found.fault is None


def test_registration_finds_how_the_patient_moved() -> None:
    moved = turn(7, 5, -8, 12)
    found = register(ONE, GRID, resample(OTHER, GRID, GRID, moved), GRID)
    middle = np.array([0, 0, 0, 1])  # which is 0 mm from the centre of the grid, but for a voxel
    want = np.linalg.inv(moved.matrix) @ middle
    assert np.allclose((found.matrix @ middle)[:3], want[:3], atol=0.5)
    assert found.angle == pytest.approx(7, abs=0.5)
    assert found.shift_mm == pytest.approx(float(np.linalg.norm(want[:3])), abs=1)


# --- the same through the door that training and prediction share


def write(folder: Path, name: str, image: np.ndarray, grid: Grid) -> Path:
    write_image(folder / f"{name}.nii.gz", image.astype(np.float32), grid)
    return folder / f"{name}.nii.gz"


THICK = Grid((28, 64, 60), (4.0, 2.0, 2.0), (-60.0, -64.0, -55.0), LPS)


def test_a_thick_image_is_resampled_onto_the_fine_one_and_told(tmp_path: Path) -> None:
    thick = resample(OTHER, GRID, THICK)
    files = {"t1": write(tmp_path, "t1", ONE, GRID), "t2": write(tmp_path, "t2", thick, THICK)}
    loaded = load_case(Case("p", files))
    assert loaded.reference == "t1"
    assert difference(loaded.grid, GRID) is None
    assert loaded.images["t2"].shape == SHAPE
    assert np.corrcoef(loaded.images["t2"].ravel(), OTHER.ravel())[0, 1] > 0.97
    (note,) = loaded.notes
    assert note.startswith("t2 was resampled onto the grid of t1 (shape (28, 64, 60) against")
    asked = load_case(Case("p", files), None, Placing(reference="t2"))
    assert difference(asked.grid, THICK) is None


def test_a_label_decides_whose_grid_is_the_reference(tmp_path: Path) -> None:
    thick = resample(OTHER, GRID, THICK)
    files = {"t1": write(tmp_path, "t1", ONE, GRID), "t2": write(tmp_path, "t2", thick, THICK)}
    write_labels(tmp_path / "seg.nii.gz", (thick > 9).astype(np.uint8), THICK)
    labels = Labels({"background": 0, "lesion": 1})
    case = Case("p", files, tmp_path / "seg.nii.gz")
    loaded = load_case(case, labels, Placing(reference="t1"))
    assert loaded.reference == "t2"
    assert loaded.labels is not None
    assert loaded.labels.shape == THICK.shape == loaded.images["t1"].shape


def test_a_part_of_the_head_that_an_image_does_not_show_is_told(tmp_path: Path) -> None:
    slab = Grid((32, 64, 60), (2.0, 2.0, 2.0), (-60.0, -64.0, -32.0), LPS)
    files = {
        "t1": write(tmp_path, "t1", ONE, GRID),
        "t2": write(tmp_path, "t2", OTHER[12:44], slab),
    }
    warnings = load_case(Case("p", files)).warnings
    share = (ONE[12:44] != 0).sum() / (ONE != 0).sum()
    assert share < 0.9
    assert re.fullmatch(r"t2 shows \d+% of the head that t1 shows", warnings[0])
    assert int(warnings[0][9:11]) / 100 == pytest.approx(share, abs=0.02)


def test_a_case_whose_headers_are_wrong_is_refused_and_mended_by_registration(
    tmp_path: Path,
) -> None:
    moved = resample(OTHER, GRID, GRID, turn(6, 10, 0, 8))
    files = {"t1": write(tmp_path, "t1", ONE, GRID), "t2": write(tmp_path, "t2", moved, GRID)}
    with pytest.raises(DataError, match=r"case 'p': t2 does not lie on t1: .* --register"):
        load_case(Case("p", files))
    loaded = load_case(Case("p", files), None, Placing(register=True))
    (note,), (warning,) = loaded.notes, loaded.warnings
    assert warning == f"{note}; look at both"
    assert note.startswith("t2 was registered to t1 (shift 1")
    assert "before and" in note
    inside = (ONE != 0) & (loaded.images["t2"] != 0)
    assert np.corrcoef(moved[inside], OTHER[inside])[0, 1] < 0.3
    assert np.corrcoef(loaded.images["t2"][inside], OTHER[inside])[0, 1] > 0.7


def test_registration_gives_the_same_twice() -> None:
    moved = resample(OTHER, GRID, GRID, turn(3, 4, 0, 0))
    one, other = (register(ONE, GRID, moved, GRID) for _ in range(2))
    assert np.array_equal(one.matrix, other.matrix)


@pytest.mark.parametrize("asked", [False, True])
def test_a_mirrored_image_is_refused_whether_registration_is_asked_for_or_not(
    tmp_path: Path, asked: bool
) -> None:
    files = {
        "t1": write(tmp_path, "t1", ONE, GRID),
        "t2": write(tmp_path, "t2", mirror(OTHER, GRID), GRID),
    }
    with pytest.raises(DataError, match="better mirrored left to right") as refused:
        load_case(Case("p", files), None, Placing(register=asked))
    assert "Convert it again from its source" in str(refused.value)
    assert "--register" not in str(refused.value)


def symmetric_head() -> tuple[np.ndarray, np.ndarray]:
    """Return two sequences of a head whose halves are alike, and that is turned in its grid."""
    field = 2 * ONE + 2 * mirror(ONE, GRID)
    field[ONE != 0] += ONE[ONE != 0]
    field = np.where(ONE != 0, field - field[ONE != 0].mean(), 0) / field[ONE != 0].std()
    one = np.where(ONE != 0, 5 + field, 0)
    other = np.where(ONE != 0, 9 - np.abs(field) + 0.3 * field, 0)
    return resample(one, GRID, GRID, turn(10)), resample(other, GRID, GRID, turn(10))


def test_a_mirrored_image_of_a_moved_patient_is_not_registered(tmp_path: Path) -> None:
    one, other = symmetric_head()
    moved = resample(mirror(other, GRID), GRID, GRID, turn(8, 20, 0, 8))
    files = {"t1": write(tmp_path, "t1", one, GRID), "t2": write(tmp_path, "t2", moved, GRID)}
    with pytest.raises(DataError, match=r"registered it fits better mirrored left to right"):
        load_case(Case("p", files), None, Placing(register=True))
    moved = resample(other, GRID, GRID, turn(8, 20, 0, 8))
    files["t2"] = write(tmp_path, "t2", moved, GRID)
    loaded = load_case(Case("p", files), None, Placing(register=True))
    inside = (one != 0) & (loaded.images["t2"] != 0)
    assert np.corrcoef(loaded.images["t2"][inside], other[inside])[0, 1] > 0.7


def test_no_overlap_at_all_is_refused_by_registration_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere(*_: object) -> None:
        raise RuntimeError("All samples map outside moving image buffer")

    monkeypatch.setattr("SimpleITK.ImageRegistrationMethod.Execute", nowhere)
    with pytest.raises(DataError, match="found no overlap of the images to begin with"):
        register(ONE, GRID, OTHER, GRID)


def test_the_order_of_faults_is_from_the_surest_on() -> None:
    assert Fit(0.4, 0.3, 0.1, 0.1, 0.1).fault == "it covers 40% of the head"
    assert Fit(1.0, 0.05, 0.05, 0.06, 0.06).fault == (
        "its mutual information 0.050 is near that of chance (0.050)"
    )
    assert STILL.shift_mm == 0
