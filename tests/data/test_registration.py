"""Images of one case on different grids. The head here is a smooth random field in an ellipsoid;
its second sequence is another function of the same field."""

import dataclasses
import math
import re
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
from small_head import GRID, LPS, ONE, OTHER, SHAPE

from mixmfl.core.errors import DataError
from mixmfl.data.cases import Case
from mixmfl.data.grid import Grid, grid_difference
from mixmfl.data.image import write_image, write_labels
from mixmfl.data.labels import Labels
from mixmfl.data.load_case import AlignmentOptions, load_case
from mixmfl.data.registration import (
    IDENTITY,
    AlignmentCheck,
    Rigid,
    finest,
    fit,
    mirror,
    mutual_information,
    register,
    resample,
)


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


def test_mutual_information_of_few_cells_is_that_worked_out_by_hand() -> None:
    a, b = np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1])
    assert mutual_information(a, b, bins=2) == pytest.approx(0)
    assert mutual_information(a, a, bins=2) == pytest.approx(math.log(2))
    assert mutual_information(a, 0 * a, bins=2) == 0
    # p(0, 0) = 1/2, p(0, 1) = p(1, 1) = 1/4
    one, other = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    want = math.log(4 / 3) / 2 + math.log(2 / 3) / 4 + math.log(2) / 4
    assert mutual_information(one, other, bins=2) == pytest.approx(want)


def test_a_few_bright_voxels_do_not_leave_all_others_in_one_bin() -> None:
    values = np.arange(400) / 1000  # half a percent of them are two
    assert mutual_information(values, values, bins=2) == pytest.approx(math.log(2))
    values[-2:] = 1e6
    assert mutual_information(values, values, bins=2) < 0.1  # the third reaches into it
    values[-3:-1], values[-1] = 0.397, 1e6
    for either_end in (values, -values):
        found = mutual_information(either_end, either_end, bins=2)
        assert found == pytest.approx(math.log(2), abs=0.02)


def test_the_reference_is_the_image_with_the_finest_plane() -> None:
    thick = Grid((20, 256, 256), (5.0, 0.5, 0.5), GRID.origin, LPS)
    cube = Grid((180, 240, 240), (1.0, 1.0, 1.0), GRID.origin, LPS)
    sagittal = Grid((256, 256, 20), (0.6, 0.6, 5.0), GRID.origin, LPS)
    assert finest({"t1": cube, "flair": thick, "t2": sagittal}) == "flair"
    longer = dataclasses.replace(cube, shape=(181, 240, 240))
    assert finest({"a": cube, "b": longer, "c": longer}) == "b"
    rounded = dataclasses.replace(
        longer, spacing=(1.0002, 1.0002, 1.0002)
    )  # of a header's decimals
    assert finest({"a": cube, "b": rounded}) == "b"
    assert finest({"a": cube, "b": dataclasses.replace(longer, spacing=(1.0, 1.0, 1.001))}) == "b"
    assert finest({"a": cube, "b": dataclasses.replace(longer, spacing=(1.1, 1.1, 1.1))}) == "a"


def test_resampling_keeps_places_and_shows_nothing_outside() -> None:
    ramp = np.zeros((4, 5, 6), dtype=np.float32) + np.arange(6, dtype=np.float32)
    grid = Grid((4, 5, 6), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), LPS)  # x = 0, 2, … 10 mm
    onto = Grid((1, 1, 5), (1.0, 1.0, 1.0), (9.0, 2.0, 1.0), LPS)
    found = resample(ramp.astype(np.float64), grid, onto)
    assert found.ravel().tolist() == [4.5, 5, 0, 0, 0]
    assert found.dtype == np.float32
    coarser = Grid((1, 1, 3), (4.0, 3.0, 1.5), (5.0, 2.0, 1.0), LPS)
    assert resample(ramp, grid, coarser).ravel().tolist() == [2.5, 3.25, 4]
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
    turned = resample(OTHER, GRID, GRID, turn(7, 0, 0, 0))
    fault = fit(ONE, GRID, turned, GRID).fault
    assert fault is not None
    assert fault.startswith("it fits better turned by 8 degrees (mutual information")
    turned = resample(OTHER, GRID, GRID, turn(25, 20, 0, 0))
    fault = fit(ONE, GRID, turned, GRID).fault
    assert fault is not None
    assert "is near that of chance" in fault
    far = dataclasses.replace(GRID, origin=(20.0, -64.0, -56.0))
    share = (ONE[:, :, 40:] != 0).sum() / (ONE != 0).sum()  # 80 mm are 40 voxels
    assert fit(ONE, GRID, OTHER, far).fault == f"it covers {share:.0%} of the head"


# --- on voxels of 3 mm, those of the comparison, places are whole voxels


SAGITTAL = (0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0)  # slices run from right to left
BLOCK = Grid((22, 20, 20), (3.0, 3.0, 3.0), (30.0, -20.0, 7.0), SAGITTAL)
HEAD = (slice(0, 20), slice(5, 15), slice(4, 14))  # 2000 voxels, as many as are needed


def make_block() -> tuple[np.ndarray, np.ndarray]:
    """Return a reference, and an image that fits it mirrored, two voxels aside."""
    generator = np.random.default_rng(0)
    reference = np.zeros(BLOCK.shape, dtype=np.float32)
    reference[HEAD] = generator.integers(1, 9, (20, 10, 10))
    fits = np.where(reference > 0, 10 - reference + generator.normal(0, 0.5, BLOCK.shape), 0)
    fits[18:] = 0
    return reference, np.flip(np.roll(fits, 2, axis=0), axis=0).astype(np.float32).copy()


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    either = (a != 0) | (b != 0)
    return mutual_information(a[either], b[either])


def beside(image: np.ndarray, voxels: int) -> list[np.ndarray]:
    """Return the image moved to either side along each axis; what comes in is empty."""
    wide = np.pad(image, voxels)
    found = []
    for axis in range(3):
        for start in (0, 2 * voxels):
            part = [slice(voxels, voxels + n) for n in image.shape]
            part[axis] = slice(start, start + image.shape[axis])
            found.append(wide[tuple(part)])
    return found


def test_a_fit_is_measured_in_place_displaced_and_mirrored() -> None:
    reference, image = make_block()
    found = fit(reference, BLOCK, image, BLOCK)
    assert found.coverage == 1
    assert found.similarity == pytest.approx(likeness(reference, image))
    chance = [likeness(reference, each) for each in beside(image, 5)]  # 15 mm
    assert found.chance == pytest.approx(sum(chance) / 6)
    assert found.nearby == pytest.approx(max(likeness(reference, s) for s in beside(image, 2)))
    back = np.roll(np.flip(image, 0), -2, axis=0)
    assert found.mirrored == pytest.approx(likeness(reference, back))
    assert found.mirrored > 1
    assert found.is_mirrored


def test_an_image_displaced_shows_what_lies_beyond_the_reference() -> None:
    reference, image = make_block()
    wide = np.random.default_rng(1).normal(5, 1, [n + 12 for n in BLOCK.shape])
    wide[(slice(6, -6),) * 3] = image
    # six voxels of 3 mm more at each side; x, y and z are the axes 0, 1 and 2 of the array
    grid = dataclasses.replace(BLOCK, shape=wide.shape, origin=(12.0, -38.0, -11.0))
    parts = [
        wide[tuple(slice(6 + by, 6 + by + n) for by, n in zip(step, BLOCK.shape, strict=True))]
        for step in np.concatenate([5 * np.eye(3, dtype=int), -5 * np.eye(3, dtype=int)])
    ]
    want = sum(likeness(reference, part) for part in parts) / 6
    found = fit(reference, BLOCK, wide.astype(np.float32), grid)
    assert found.chance == pytest.approx(want)
    emptied = [likeness(reference, each) for each in beside(image, 5)]
    assert found.chance != pytest.approx(sum(emptied) / 6, rel=0.01)


@pytest.mark.parametrize(
    ("first", "planes", "moved_mm", "want"),
    [
        (0, 22, 0, 1.0),
        (6, 5, 0, 5 / 20),  # of the head's planes 0 to 19 it has 6 to 10
        (18, 5, 0, 2 / 20),
        (18, 5, 9, 5 / 20),  # the patient moved by three planes: it has 15 to 19
        (6.5, 5, 0, 4 / 20),  # 7 to 10; those on its very border are outside
        (30, 5, 0, 0.0),
    ],
)
def test_coverage_is_the_share_of_the_head_within_the_image(
    first: float, planes: int, moved_mm: float, want: float
) -> None:
    reference, _ = make_block()
    image = np.ones((planes, 10, 5), dtype=np.float32)  # as wide as the head, in coarser voxels
    grid = Grid(image.shape, (3.0, 6.0, 12.0), (30.0 + 3 * first, -20.0, 7.0), SAGITTAL)
    moved = Rigid(np.eye(4), 0, 0)
    moved.matrix[0, 3] = moved_mm
    found = fit(reference, BLOCK, image, grid, moved)
    assert found.coverage == pytest.approx(want)


def test_a_reference_without_a_head_is_covered_by_nothing() -> None:
    reference, image = make_block()
    assert fit(0 * reference, BLOCK, image, BLOCK).coverage == 0


def test_left_and_right_are_exchanged_whichever_axis_they_are() -> None:
    image = np.arange(24.0).reshape(2, 3, 4)
    coronal = (0.1, 0.9, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1, 0.9)
    for axis, direction in ((2, LPS), (0, SAGITTAL), (1, coronal)):
        grid = Grid((2, 3, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), direction)
        assert np.array_equal(mirror(image, grid), np.flip(image, axis))


def test_images_too_small_to_tell_are_believed() -> None:
    small = Grid((6, 20, 18), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), LPS)
    noise = np.random.default_rng(0).normal(10, 1, (2, 6, 20, 18))
    found = fit(noise[0], small, noise[1], small)
    assert math.isnan(found.similarity)
    assert found.fault is None


def test_small_heads_of_which_one_is_displaced_do_not_lie_on_each_other() -> None:
    head = np.zeros((24, 12, 12))
    head[8:17, 3:9, 3:9] = np.random.default_rng(0).normal(10, 1, (9, 6, 6))
    grid = Grid(head.shape, (6.0, 3.0, 3.0), (0.0, 0.0, 0.0), LPS)
    displaced = dataclasses.replace(grid, origin=(0.0, 0.0, 40.0))
    assert fit(head, grid, head, grid).fault is None
    found = fit(head, grid, head, displaced)
    assert math.isnan(found.similarity)
    assert 14 / 54 < found.overlap < 0.33  # of 54 mm; interpolation gives both a rim
    assert found.fault == "only 32% of the smaller of the two heads lies on the other"
    # what the other image does not show is no head that is missing there
    low = Grid((13, 12, 12), grid.spacing, grid.origin, LPS)
    assert fit(head, grid, head[:13], low).overlap > 0.9


def test_registration_finds_how_the_patient_moved() -> None:
    moved = turn(7, 5, -8, 12)
    image = resample(OTHER, GRID, GRID, moved)
    # both lie 100 mm from where the scanner has its zero
    away = dataclasses.replace(GRID, origin=(40.0, -64.0, -56.0))
    found = register(ONE, away, image, away)
    middle = np.array([100, 0, 0, 1])  # 0 mm from the centre of the grid, but for a voxel
    want = np.linalg.inv(moved.matrix)[:3, 3]
    assert np.allclose((found.matrix @ middle - middle)[:3], want, atol=0.5)
    assert found.angle == pytest.approx(7, abs=0.5)
    assert found.shift_mm == pytest.approx(float(np.linalg.norm(want)), abs=0.5)


def test_images_that_their_headers_place_apart_are_registered_from_their_middles() -> None:
    far = dataclasses.replace(GRID, origin=(240.0, -64.0, -56.0))
    found = register(ONE, GRID, OTHER, far)
    assert found.shift_mm == pytest.approx(300, abs=0.5)
    assert np.allclose(found.matrix[:3, 3], [300, 0, 0], atol=1)
    assert found.angle == pytest.approx(0, abs=0.3)


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
    assert grid_difference(loaded.grid, GRID) is None
    assert loaded.images["t2"].shape == SHAPE
    assert np.corrcoef(loaded.images["t2"].ravel(), OTHER.ravel())[0, 1] > 0.97
    (note,) = loaded.notes
    assert note.startswith("t2 was resampled onto the grid of t1 (shape (28, 64, 60) against")
    asked = load_case(Case("p", files), None, AlignmentOptions(reference="t2"))
    assert grid_difference(asked.grid, THICK) is None


def test_a_label_decides_whose_grid_is_the_reference(tmp_path: Path) -> None:
    thick = resample(OTHER, GRID, THICK)
    files = {"t1": write(tmp_path, "t1", ONE, GRID), "t2": write(tmp_path, "t2", thick, THICK)}
    write_labels(tmp_path / "seg.nii.gz", (thick > 9).astype(np.uint8), THICK)
    labels = Labels({"background": 0, "lesion": 1})
    case = Case("p", files, tmp_path / "seg.nii.gz")
    loaded = load_case(case, labels, AlignmentOptions(reference="t1"))
    assert loaded.reference == "t2"
    assert loaded.labels is not None
    assert loaded.labels.shape == THICK.shape == loaded.images["t1"].shape


def test_a_part_of_the_head_that_an_image_does_not_show_is_reported(tmp_path: Path) -> None:
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


def test_a_case_whose_headers_are_wrong_is_refused_and_fixed_by_registration(
    tmp_path: Path,
) -> None:
    moved = resample(OTHER, GRID, GRID, turn(6, 10, 0, 8))
    files = {"t1": write(tmp_path, "t1", ONE, GRID), "t2": write(tmp_path, "t2", moved, GRID)}
    with pytest.raises(DataError, match=r"case 'p': t2 does not lie on t1: .* --register"):
        load_case(Case("p", files))
    loaded = load_case(Case("p", files), None, AlignmentOptions(register=True))
    (note,), (warning,) = loaded.notes, loaded.warnings
    assert warning == f"{note}; look at both"
    assert note.startswith("t2 was registered to t1 (shift 1")
    assert "before and" in note
    inside = (ONE != 0) & (loaded.images["t2"] != 0)
    assert np.corrcoef(moved[inside], OTHER[inside])[0, 1] < 0.3
    assert np.corrcoef(loaded.images["t2"][inside], OTHER[inside])[0, 1] > 0.7


MOVED = turn(6, 10, 0, 8)
THIRD = np.where(ONE != 0, 3 + 0.5 * np.abs(OTHER - 9), 0).astype(np.float32)


def three(folder: Path, moved: str) -> dict[str, Path]:
    """Write three images of a head of which one lies elsewhere."""
    images = {"flair": THIRD, "t1": ONE, "t2": OTHER}
    images[moved] = resample(images[moved], GRID, GRID, MOVED)
    return {name: write(folder, name, image, GRID) for name, image in images.items()}


@pytest.mark.parametrize("moved", ["flair", "t1", "t2"])
def test_of_three_images_the_odd_one_is_left_out_also_where_it_would_be_the_reference(
    tmp_path: Path, moved: str
) -> None:
    files = three(tmp_path, moved)
    loaded = load_case(Case("p", files), None, AlignmentOptions(leave_out=True))
    assert loaded.images.keys() == {"flair", "t1", "t2"} - {moved}
    assert loaded.reference != moved
    (warning,) = loaded.warnings
    assert warning.startswith(f"{moved} was left out: {moved} does not lie on ")
    with pytest.raises(DataError, match=r"case 'p': \w+ does not lie on flair"):
        load_case(Case("p", files))


def test_a_reference_that_was_asked_for_is_kept(tmp_path: Path) -> None:
    files = three(tmp_path, "t1")
    loaded = load_case(Case("p", files), None, AlignmentOptions("t1", leave_out=True))
    assert (loaded.reference, *loaded.images) == ("t1", "t1")
    assert len(loaded.warnings) == 2


def test_of_two_images_the_one_is_kept_from_which_more_is_expected(tmp_path: Path) -> None:
    files = {n: f for n, f in three(tmp_path, "t2").items() if n != "flair"}
    drop = AlignmentOptions(leave_out=True)
    kinds: list[tuple[dict[tuple[str, ...], float], str, str]] = [
        ({("t1",): 0.4, ("t2",): 0.7}, "t2", "t1"),
        ({("t1",): 0.7, ("t2",): 0.4, ("t1", "t2"): 0.9}, "t1", "t2"),
        ({}, "t1", "t2"),
    ]
    for dice, kept, other in kinds:

        def worth(names: Collection[str], dice: dict[tuple[str, ...], float] = dice) -> float:
            return dice.get(tuple(sorted(names)), 0.0)

        loaded = load_case(Case("p", files), None, drop, worth)
        assert tuple(loaded.images) == (kept,)
        first, second = loaded.warnings
        assert first.startswith(f"{other} was left out: {other} does not lie on {kept}: ")
        assert second == f"whether {other} or {kept} is wrong is not known"


def test_registration_gives_the_same_twice() -> None:
    moved = resample(OTHER, GRID, GRID, turn(3, 4, 0, 0))
    middle = Grid((28, 32, 30), GRID.spacing, (-30.0, -32.0, -28.0), LPS)  # it is quicker
    cut = (slice(14, 42), slice(16, 48), slice(15, 45))
    one, other = (register(ONE[cut], middle, moved[cut], middle) for _ in range(2))
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
        load_case(Case("p", files), None, AlignmentOptions(register=asked))
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


@pytest.mark.parametrize("axis", [0, 1])
def test_an_image_reversed_along_another_axis_is_refused(tmp_path: Path, axis: int) -> None:
    reversed_ = np.ascontiguousarray(np.flip(OTHER, axis))
    files = {"t1": write(tmp_path, "t1", ONE, GRID), "t2": write(tmp_path, "t2", reversed_, GRID)}
    with pytest.raises(DataError, match="it fits better reversed along an axis") as refused:
        load_case(Case("p01", files, None), alignment=AlignmentOptions(register=True))
    assert "Convert it again from its source: the order of slices was lost" in str(refused.value)


def test_a_mirrored_image_of_a_moved_patient_is_not_registered(tmp_path: Path) -> None:
    one, other = symmetric_head()
    moved = resample(mirror(other, GRID), GRID, GRID, turn(4, 20, 0, 8))
    files = {"t1": write(tmp_path, "t1", one, GRID), "t2": write(tmp_path, "t2", moved, GRID)}
    with pytest.raises(DataError, match=r"registered it fits better mirrored left to right"):
        load_case(Case("p", files), None, AlignmentOptions(register=True))
    moved = resample(other, GRID, GRID, turn(4, 20, 0, 8))
    files["t2"] = write(tmp_path, "t2", moved, GRID)
    loaded = load_case(Case("p", files), None, AlignmentOptions(register=True))
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
    assert AlignmentCheck(0.4, 0.3, 0.1, 0.1, 0.1, 0.1).fault == "it covers 40% of the head"
    assert AlignmentCheck(1.0, 0.05, 0.05, 0.06, 0.06, 0.06).fault == (
        "its mutual information 0.050 is near that of chance (0.050)"
    )
    assert AlignmentCheck(1.0, 0.1, 0.4, 0.51, 0.51, 0.51).fault == (
        "it fits better 6 mm away (mutual information 0.100, displaced 0.510); "
        "the patient moved, or a header is wrong"
    )
    assert AlignmentCheck(1.0, 0.1, 0.4, 0.4, 0.51, 0.4).fault == (
        "it fits better mirrored left to right (mutual information 0.100, mirrored 0.510)"
    )
    assert IDENTITY.shift_mm == 0


def test_what_is_as_good_as_it_must_be_has_no_fault() -> None:
    # another place is better from 1.1 times 0.5 on; 0.5 itself is 1.25 times the chance of 0.4
    just = AlignmentCheck(0.5, 0.5, 0.4, 0.55, 0.55, 0.515)
    assert just.fault is None
    assert "displaced" in str(dataclasses.replace(just, nearby=0.551).fault)
    assert "mirrored" in str(dataclasses.replace(just, mirrored=0.551).fault)
    assert "reversed" in str(dataclasses.replace(just, reversed=0.56).fault)
    assert "reversed" not in str(dataclasses.replace(just, reversed=0.6, nearby=0.6).fault)
    assert "turned" in str(dataclasses.replace(just, turned=0.516).fault)  # from 1.03 times 0.5 on
    assert "turned" in str(dataclasses.replace(just, turned=0.6, mirrored=0.6).fault)
    assert "displaced" in str(dataclasses.replace(just, nearby=0.6, mirrored=0.6).fault)
    assert "chance" in str(dataclasses.replace(just, chance=0.41).fault)
    assert "covers" in str(dataclasses.replace(just, coverage=0.49).fault)
