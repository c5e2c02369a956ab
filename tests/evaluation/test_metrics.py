import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import ndimage
from scipy.spatial.distance import cdist

from mixmfl.core.errors import DataError
from mixmfl.data import image
from mixmfl.data.grid import Grid
from mixmfl.data.labels import Labels
from mixmfl.evaluation.metrics import (
    Evaluation,
    Score,
    evaluate_folder,
    find_label_description,
    read_descriptions,
    score,
    summarise,
)

Array = npt.NDArray[Any]
Command = Callable[..., int]
EVALUATE = "mixmfl_evaluate"

LESION = Labels({"background": 0, "lesion": 1})
TUMOUR = Labels(
    {"background": 0, "whole tumour": (1, 2, 4), "tumour core": (1, 4), "enhancing tumour": 4},
    (2, 1, 4),
)
DATASET = {"labels": {"background": 0, "lesion": 1}}


def box(shape: tuple[int, int, int], *edges: slice, value: int = 1) -> Array:
    mask = np.zeros(shape, dtype=np.int16)
    mask[edges] = value
    return mask


def grid(shape: tuple[int, ...], spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Grid:
    z, y, x = shape
    return Grid((z, y, x), spacing, (0.0, 0.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))


def surface(mask: Array, spacing: tuple[float, ...]) -> Array:
    """Centres in mm of the voxels with a face towards the outside, found without MONAI."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1, 1:-1].copy()
    for axis in range(3):
        for step in (-1, 1):
            inner &= np.roll(padded, step, axis)[1:-1, 1:-1, 1:-1]
    return np.argwhere(mask & ~inner) * np.array(spacing)


def brute_force_hd95(a: Array, b: Array, spacing: tuple[float, ...]) -> float:
    distances = cdist(surface(a, spacing), surface(b, spacing))
    there, back = distances.min(axis=1), distances.min(axis=0)
    return float(max(np.percentile(there, 95), np.percentile(back, 95)))


def test_equal_masks_have_dice_one_and_no_distance() -> None:
    mask = box((6, 6, 6), slice(1, 4), slice(1, 4), slice(1, 4))
    (found,) = score(mask, mask, LESION, (5.0, 1.0, 2.0))
    # 27 voxels of 10 cubic mm
    assert (found.label, found.dice, found.hd95_mm) == ("lesion", 1.0, 0.0)
    assert found.volume_ml == found.reference_volume_ml == pytest.approx(0.27)


def test_a_cube_moved_by_one_thick_slice_has_the_numbers_computed_by_hand() -> None:
    reference = box((9, 9, 9), slice(2, 6), slice(2, 6), slice(2, 6))
    moved = np.roll(reference, 1, axis=0)
    (found,) = score(moved, reference, LESION, (5.0, 1.0, 1.0))
    assert found.dice == pytest.approx(2 * 48 / (64 + 64))  # three of four slices overlap
    # The 16 voxels of the last slice are 5 mm away: 29 % of the 56 on the surface, so P95 is 5
    assert found.hd95_mm == pytest.approx(5.0)
    assert found.volume_ml == pytest.approx(64 * 5 / 1000)


def test_the_spacing_of_each_axis_is_its_own() -> None:
    reference = box((5, 5, 12), slice(2, 3), slice(2, 3), slice(2, 3))
    for axis, millimetres in enumerate((5.0, 0.5, 3.0)):
        moved = np.roll(reference, 2, axis=axis)
        (found,) = score(moved, reference, LESION, (5.0, 0.5, 3.0))
        assert found.hd95_mm == pytest.approx(2 * millimetres)
        assert found.dice == 0.0


def test_hd95_is_the_95th_percentile_of_the_worse_direction() -> None:
    line = box((1, 1, 60), slice(None), slice(None), slice(0, 20))
    longer = box((1, 1, 60), slice(None), slice(None), slice(0, 41))
    (found,) = score(longer, line, LESION, (1.0, 1.0, 1.0))
    # from the longer line: 20 zeros, then 1 to 21; the 38th of 0 to 40 is 19. Back: all zero
    assert found.hd95_mm == pytest.approx(19.0)


@pytest.mark.parametrize("seed", range(3))
def test_blobs_have_the_distance_that_brute_force_finds(seed: int) -> None:
    random = np.random.default_rng(seed)
    spacing = (3.0, 0.8, 1.1)
    noise = [ndimage.gaussian_filter(random.normal(size=(12, 20, 20)), 2) for _ in range(2)]
    first, second = (each > np.percentile(each, 85) for each in noise)  # some touch the border
    (found,) = score(first.astype(np.int16), second.astype(np.int16), LESION, spacing)
    assert found.hd95_mm == pytest.approx(brute_force_hd95(first, second, spacing), rel=1e-5)
    expected = 2 * (first & second).sum() / (first.sum() + second.sum())
    assert found.dice == pytest.approx(expected, rel=1e-6)


def test_how_much_background_is_around_changes_nothing() -> None:
    reference = box((4, 4, 4), slice(0, 3), slice(0, 3), slice(0, 3))
    prediction = box((4, 4, 4), slice(1, 4), slice(0, 4), slice(2, 4))
    tight = score(prediction, reference, LESION, (2.0, 1.0, 1.0))
    wide = score(np.pad(prediction, 5), np.pad(reference, 5), LESION, (2.0, 1.0, 1.0))
    assert tight == wide


def test_regions_overlap_and_keep_their_order() -> None:
    reference = np.array([[[2, 2, 1, 4]]])
    prediction = np.array([[[0, 2, 1, 1]]])
    whole, core, enhancing = score(prediction, reference, TUMOUR, (10.0, 10.0, 10.0))
    assert (whole.label, core.label, enhancing.label) == tuple(TUMOUR.foreground)
    assert whole.dice == pytest.approx(2 * 3 / (3 + 4))
    assert core.dice == pytest.approx(1.0)  # 1 and 4 are core alike
    assert (whole.volume_ml, whole.reference_volume_ml) == (3.0, 4.0)
    assert enhancing.dice == 0.0


def test_empty_in_both_is_undefined_and_empty_in_one_is_dice_zero() -> None:
    empty, full = np.zeros((3, 3, 3), dtype=np.int16), np.ones((3, 3, 3), dtype=np.int16)
    (both,) = score(empty, empty, LESION, (1.0, 1.0, 1.0))
    assert math.isnan(both.dice)
    assert math.isnan(both.hd95_mm)
    for prediction, reference in ((empty, full), (full, empty)):
        (one,) = score(prediction, reference, LESION, (1.0, 1.0, 1.0))
        assert one.dice == 0.0
        assert math.isnan(one.hd95_mm)


def test_what_the_reference_ignores_counts_in_neither_mask() -> None:
    labels = Labels({"background": 0, "lesion": 1, "ignore": 2})
    reference = np.array([[[1, 1, 0, 2, 2]]])
    prediction = np.array([[[1, 1, 0, 1, 1]]])
    (found,) = score(prediction, reference, labels, (10.0, 10.0, 10.0))
    assert (found.dice, found.hd95_mm, found.volume_ml) == (1.0, 0.0, 2.0)


def test_a_summary_leaves_the_undefined_out_and_counts_them() -> None:
    numbers = [(0.5, 2.0), (0.9, 6.0), (0.0, math.nan), (math.nan, math.nan)]
    scores = {f"p{n}": [Score("lesion", *pair, 0.0, 0.0)] for n, pair in enumerate(numbers)}
    dice, hd95 = summarise(Evaluation(scores, {}))
    assert (dice.cases, dice.undefined, hd95.cases, hd95.undefined) == (3, 1, 2, 2)
    assert dice.mean == pytest.approx(1.4 / 3)
    assert dice.median == 0.5
    assert hd95.mean == 4.0
    assert hd95.std == pytest.approx(math.sqrt(8))


# --- folders ----------------------------------------------------------------------------------

CUBE = box((6, 6, 6), slice(1, 4), slice(1, 4), slice(1, 4))


def write(path: Path, mask: Array, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> None:
    image.write_labels(path, mask, grid(mask.shape, spacing))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return a folder of masks and one of references: p01 is right, p02 one voxel off."""
    masks, reference = tmp_path / "masks", tmp_path / "data" / "labelsTr"
    for name, mask in (("p01", CUBE), ("p02", np.roll(CUBE, 1, axis=2))):
        write(masks / f"{name}.nii.gz", mask)
        write(reference / f"{name}.nii.gz", CUBE)
    (reference.parent / "dataset.json").write_text(json.dumps(DATASET))
    return masks, reference


def test_masks_are_compared_with_the_references_of_the_same_name(
    folders: tuple[Path, Path],
) -> None:
    evaluation = evaluate_folder(*folders, LESION)
    assert not evaluation.failures
    assert [scores[0].dice for scores in evaluation.scores.values()] == [
        1.0,
        pytest.approx(2 / 3),  # two of three slices overlap
    ]


def test_a_reference_in_another_order_of_axes_is_turned(folders: tuple[Path, Path]) -> None:
    turned = Grid(CUBE.shape, (1, 1, 1), (5, 0, 0), (-1, 0, 0, 0, 1, 0, 0, 0, 1))
    image.write_labels(folders[1] / "p02.nii.gz", np.roll(CUBE, 1, axis=2)[..., ::-1], turned)
    evaluation = evaluate_folder(*folders, LESION)
    assert [scores[0].dice for scores in evaluation.scores.values()] == [1.0, 1.0]


def test_references_may_be_the_labels_of_case_folders(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    masks, cases = folders[0], tmp_path / "cases"
    for name in ("p01", "p02"):
        image.write_image(cases / name / "T1.nii.gz", CUBE.astype(np.float32), grid(CUBE.shape))
        write(cases / name / "seg.nii.gz", CUBE)
    evaluation = evaluate_folder(masks, cases, LESION)
    assert list(evaluation.scores) == ["p01", "p02"]
    assert not evaluation.failures


def test_a_bad_case_is_named_and_the_others_go_on(folders: tuple[Path, Path]) -> None:
    masks, reference = folders
    write(masks / "p03.nii.gz", CUBE, spacing=(5.0, 1.0, 1.0))
    write(reference / "p03.nii.gz", CUBE)
    write(masks / "p04.nii.gz", CUBE * 7)
    write(reference / "p04.nii.gz", CUBE)
    write(masks / "p05.nii.gz", CUBE)
    write(reference / "p06.nii.gz", CUBE)
    write(masks / "p07.nii.gz", CUBE)
    write(masks / "p07.nrrd", CUBE)
    evaluation = evaluate_folder(masks, reference, LESION)
    assert list(evaluation.scores) == ["p01", "p02"]
    failures = evaluation.failures
    assert list(failures) == ["p03", "p04", "p05", "p06", "p07"]
    assert "spacing (5.0, 1.0, 1.0) mm against (1.0, 1.0, 1.0) mm" in failures["p03"]
    assert "resample" in failures["p03"]
    assert "holds the label values 7" in failures["p04"]
    assert "has no reference in" in failures["p05"]
    assert "has no mask in" in failures["p06"]
    assert "keep one of them" in failures["p07"]


def test_folders_without_a_common_name_are_refused(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    write(tmp_path / "others" / "q01.nii.gz", CUBE)
    with pytest.raises(DataError, match=r"no mask has a reference: .* holds q01; "):
        evaluate_folder(tmp_path / "others", folders[1], LESION)


def test_a_folder_without_masks_is_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no masks"):
        evaluate_folder(tmp_path / "empty", folders[1], LESION)
    with pytest.raises(DataError, match="there is no such folder"):
        evaluate_folder(tmp_path / "missing", folders[1], LESION)


def test_the_label_description_is_looked_for_by_the_reference_first(
    folders: tuple[Path, Path],
) -> None:
    masks, reference = folders
    (masks / "dataset.json").write_text(json.dumps(DATASET))
    beside = reference.parent / "dataset.json"
    assert find_label_description(masks, reference) == beside
    beside.unlink()
    assert find_label_description(masks, reference) == masks / "dataset.json"
    (masks / "dataset.json").unlink()
    with pytest.raises(DataError, match=r'Write one such as \{"labels": .* name it with --labels'):
        find_label_description(masks, reference)


# --- the command ------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_writes_a_row_per_case_and_region(
    command: Command,
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    masks, reference = folders
    out = tmp_path / "scores.csv"
    write(masks / "p00.nii.gz", CUBE * 0)
    write(reference / "p00.nii.gz", CUBE)
    assert command(EVALUATE, "-i", masks, "-r", reference, "-o", out) == 0
    with out.open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["case", "label", "dice", "hd95_mm", "volume_ml", "reference_volume_ml"],
        ["p00", "lesion", "0", "", "0", "0.027"],
        ["p01", "lesion", "1", "0", "0.027", "0.027"],
        ["p02", "lesion", "0.666667", "1", "0.027", "0.027"],
    ]
    printed = capsys.readouterr().out
    assert "cases: 3 evaluated, 0 not" in printed
    dice, hd95 = (
        line.split("│") for line in printed.splitlines() if "HD95" in line or "Dice" in line
    )
    # Dice 0, 1 and 2/3; HD95 0 and 1, undefined for the empty mask
    assert [cell.strip() for cell in dice[3:8]] == ["0.556", "0.667", "0.509", "3", "0"]
    assert [cell.strip() for cell in hd95[3:8]] == ["0.5", "0.5", "0.7", "2", "1"]


def test_the_command_goes_on_after_a_failure_and_says_so(
    command: Command,
    folders: tuple[Path, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    masks, reference = folders
    (masks / "p02.nii.gz").unlink()
    assert command(EVALUATE, "-i", masks, "-r", reference) == 1
    printed = capsys.readouterr()
    assert "case 'p02': " in printed.err
    assert "cases: 1 evaluated, 1 not" in printed.out


def test_the_command_overwrites_a_table_only_when_told(
    command: Command,
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "scores.csv"
    out.write_text("precious")
    asked = [EVALUATE, "-i", folders[0], "-r", folders[1], "-o", out]
    assert command(*asked) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert command(*asked, "--overwrite") == 0
    assert out.read_text().startswith("case,label")


def test_the_command_takes_a_label_description_by_name(
    command: Command,
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    named = tmp_path / "mine.json"
    asked = [EVALUATE, "-i", folders[0], "-r", folders[1], "--labels", named]
    assert command(*asked) == 2
    assert "there is no such file" in capsys.readouterr().err
    named.write_text(json.dumps({"labels": {"background": 0, "plaque": 1}}))
    assert command(*asked) == 0
    assert "plaque" in capsys.readouterr().out


# --- references of a site that labels some of what the masks have -------------------------------

BOTH = Labels({"background": 0, "tumour": 1, "lesion": 2})


def test_a_label_that_the_reference_does_not_have_gives_no_value(
    folders: tuple[Path, Path],
) -> None:
    masks, reference = folders
    for path in masks.iterdir():
        mask, place = image.read_labels(path)
        mask = 2 * mask  # the lesion is 2 in masks, 1 in the reference
        mask[5, 5, :] = 1  # a tumour, which the reference does not label
        image.write_labels(path, mask, place)
    evaluation = evaluate_folder(masks, reference, BOTH, own=LESION)
    assert not evaluation.failures
    assert [
        [(s.label, round(s.dice, 3)) for s in scores] for scores in evaluation.scores.values()
    ] == [[("lesion", 1.0)], [("lesion", 0.667)]]
    assert [summary.label for summary in summarise(evaluation)] == ["lesion", "lesion"]
    write(reference / "p01.nii.gz", 2 * CUBE)
    (failure,) = evaluate_folder(masks, reference, BOTH, own=LESION).failures.values()
    assert "label values 2, but only 0, 1 are declared" in failure
    assert "named with --reference-labels" in failure


def test_the_site_describes_its_references_and_the_plans_describe_the_masks(
    command: Command,
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    masks, reference = folders
    for path in masks.iterdir():
        mask, place = image.read_labels(path)
        image.write_labels(path, 2 * mask, place)
    plans, own = tmp_path / "plans.json", tmp_path / "own.json"
    plans.write_text(json.dumps({"format": 1, "labels": BOTH.to_json()}))
    asked = [EVALUATE, "-i", masks, "-r", reference, "--labels", plans]
    assert command(*asked) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("labels: lesion (from ")
    assert "of the reference from" in printed
    assert "tumour" not in printed
    own.write_text(json.dumps({"labels": {"background": 0, "growth": 1}}))
    assert command(*asked, "--reference-labels", own) == 2
    assert "labels 'growth' are not among 'tumour', 'lesion'" in capsys.readouterr().err


def test_a_named_description_holds_for_references_that_have_other_labels(tmp_path: Path) -> None:
    named = tmp_path / "regions.json"
    named.write_text(json.dumps(TUMOUR.to_json()))
    (tmp_path / "reference").mkdir()
    file = tmp_path / "reference" / "dataset.json"
    file.write_text(json.dumps({"labels": {"background": 0, "oedema": 2, "necrosis": 1}}))
    assert read_descriptions(tmp_path, file.parent, named)[:2] == (TUMOUR, None)
    file.write_text(json.dumps({"labels": {"0": "background"}}))  # why another is named
    assert read_descriptions(tmp_path, file.parent, named)[:2] == (TUMOUR, None)
