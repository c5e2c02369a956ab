"""Training reads DICOM as prediction does, with masks in NIfTI or as DICOM segmentations."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_dicom import GRID, SHAPE, volume, write_series

from mixmfl.core.errors import DataError
from mixmfl.data.dicom.cases import find_dicom
from mixmfl.data.dicom.series import Series
from mixmfl.data.grid import Grid
from mixmfl.data.image import write_image, write_labels
from mixmfl.data.labels import Labels
from mixmfl.data.load_case import load_case
from mixmfl.data.modalities import Modalities
from mixmfl.inference.dicom_seg import write_segmentation
from mixmfl.planning.site_folders import find_site, origin

Command = Callable[..., int]

LABELS = Labels({"background": 0, "lesion": 1, "core": 4})
REGIONS = Labels({"background": 0, "whole tumour": (1, 4), "core": 4}, (1, 4))
MASK = np.zeros(SHAPE, dtype=np.int16)
MASK[1:-1, 5:14, 4:12] = 1
MASK[2:-2, 8:11, 6:9] = 4


def write_patient(folder: Path, study: str) -> None:
    for seed, kind in enumerate(("T1", "T2")):
        write_series(folder / kind, volume(seed), study=study, SeriesDescription=f"{kind} ax")


def write_site(folder: Path, labels: Labels = LABELS, patients: int = 2) -> Path:
    for number in range(patients):
        write_patient(folder / f"p{number}" / "DICOM", f"1.2.3.{number}")
    (folder / "dataset.json").write_text(json.dumps(labels.to_json()))
    return folder


def write_segments(folder: Path, case: str, segments: dict[str, tuple[int, ...]]) -> None:
    """Draw ``MASK`` on a case's T2, as a DICOM segmentation among its files."""
    pytest.importorskip("highdicom")
    (found,) = (c for c in find_dicom(folder, Modalities()).cases if c.name == case)
    series = found.images["t2"]
    assert isinstance(series, Series)
    write_segmentation(folder / case / "DICOM" / "seg.dcm", series, MASK, segments, "a" * 64)


def indices(folder: Path) -> np.ndarray:
    """Return the class indices of the first case that a site trains on."""
    site = find_site(folder)
    loaded = load_case(site.found.cases[0], site.labels)
    assert loaded.labels is not None
    return loaded.labels


@pytest.mark.parametrize(
    "places",
    [
        ("p0/seg.nii.gz", "p1/DICOM/seg.nii.gz"),
        ("labelsTr/p0.nii.gz", "labelsTr/p1.nii.gz"),
        ("p0_seg.nii.gz", "masks/p1_seg.nii.gz"),
        ("p0/drawn/anna_seg.nii.gz", "p1/DICOM/T1/ben_seg.nii.gz"),
        ("p0/seg.nii.gz", "p1/GTV.nii.gz"),
    ],
)
def test_dicom_cases_are_trained_on_with_masks_in_nifti(
    tmp_path: Path, places: tuple[str, str]
) -> None:
    folder = write_site(tmp_path / "north")
    for place in places:
        write_labels(folder / place, MASK, GRID)
    write_labels(folder / "p1" / "brain_mask.nii.gz", MASK, GRID)  # which is no lesion
    site = find_site(folder)
    assert [case.name for case in site.found.cases] == ["p0", "p1"]
    assert not site.found.refused
    assert {case.label for case in site.found.cases} == {folder / place for place in places}
    assert len(site.rows) == 4
    assert np.array_equal(indices(folder), LABELS.to_indices(MASK))


def test_what_is_preprocessed_from_dicom_is_what_its_twin_in_nifti_gives(
    tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    from mixmfl.planning.preprocessed_case import open_case

    north = write_site(tmp_path / "federation" / "north")
    write_labels(north / "p0" / "seg.nii.gz", MASK, GRID)
    write_segments(north, "p1", {"lesion": (1,), "core": (4,)})
    for number in range(2):
        case = tmp_path / "federation" / "south" / f"p{number}"
        for seed, kind in enumerate(("t1", "t2")):
            write_image(case / f"{kind}.nii.gz", (volume(seed) * 0.5 + 3).astype(np.float32), GRID)
        write_labels(case / "seg.nii.gz", MASK, GRID)
    shutil.copy(north / "dataset.json", tmp_path / "federation" / "south")
    work = tmp_path / "work"
    assert command(
        "mixmfl_plan_preprocess", "-i", tmp_path / "federation", "-o", work, "-c", "2d", "-n", 1,
        "--preset", "demo",
    ) == 0  # fmt: skip
    output = capsys.readouterr().out
    assert "site north: " in output
    assert "t1: series 1 'T1 ax', t2: series 1 'T2 ax', label: seg.dcm" in output
    assert "recognised 5 DICOM series, set aside 0" in output
    assert "what do its labels mean" not in output
    fingerprints = [
        (work / "sites" / s / "fingerprint.json").read_text() for s in ("north", "south")
    ]
    assert fingerprints[0] == fingerprints[1]
    for name in ("p0", "p1"):
        here, there = (open_case(work / "sites" / s / "2d", name) for s in ("north", "south"))
        assert np.array_equal(here.images[:], there.images[:])
        assert np.array_equal(here.labels[:], there.labels[:])


def test_segments_that_overlap_are_regions(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "north", REGIONS, patients=1)
    write_segments(folder, "p0", {"Whole-Tumour": (1, 4), "core": (4,)})
    assert np.array_equal(indices(folder), REGIONS.to_indices(MASK))
    (folder / "dataset.json").write_text(
        json.dumps({"labels": {"background": 0, "whole tumour": 1, "core": 4}})
    )
    with pytest.raises(DataError, match="has voxels in core and whole tumour and in no other"):
        indices(folder)


def test_a_segment_is_called_as_the_label_map_says(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "north", patients=1)
    write_segments(folder, "p0", {"Herd": (1,), "core": (4,)})
    with pytest.raises(DataError, match=r"segment 'Herd', which is not among the labels lesion, c"):
        indices(folder)
    (folder / "dataset.json").write_text(
        json.dumps(
            {
                "labels": {"background": 0, "Herd": 1, "core": 4},
                "label_map": {"Herd": "lesion", "core": "background"},
            }
        )
    )
    assert np.array_equal(indices(folder), (MASK == 1).astype(int))


def test_a_segmentation_on_no_images_grid_is_refused(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "north", patients=1)
    write_segments(folder, "p0", {"lesion": (1,), "core": (4,)})
    shutil.rmtree(folder / "p0" / "DICOM" / "T1")
    shutil.rmtree(folder / "p0" / "DICOM" / "T2")
    moved = Grid(GRID.shape, GRID.spacing, (-10.0, 4.0, 7.7), GRID.direction)
    write_series(
        folder / "p0" / "DICOM" / "T2", volume(), moved, study="1.2.3.0", SeriesDescription="T2"
    )
    with pytest.raises(DataError, match=r"does not lie on the grid of t2\. Masks are never resam"):
        indices(folder)


def test_a_damaged_segmentation_costs_its_case_alone(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "north", patients=1)
    write_segments(folder, "p0", {"lesion": (1,), "core": (4,)})
    file = folder / "p0" / "DICOM" / "seg.dcm"
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"seg\.dcm: cannot be read as a DICOM segmentation"):
        indices(folder)


def test_a_case_without_a_mask_or_with_two_is_refused_and_the_others_go_on(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "north", patients=3)
    write_labels(folder / "p0" / "seg.nii.gz", MASK, GRID)
    write_labels(folder / "p1" / "seg.nii.gz", MASK, GRID)
    write_segments(folder, "p1", {"lesion": (1,), "core": (4,)})
    write_labels(folder / "labelsTr" / "p9.nii.gz", MASK, GRID)
    site = find_site(folder)
    assert [case.name for case in site.found.cases] == ["p0"]
    refused = {item.name: item.reason for item in site.found.refused}
    assert refused["p1"] == "2 masks: seg.nii.gz, seg.dcm; keep one of them"
    assert refused["p2"] == "no label, which training needs"
    assert "no known modality, only labelsTr/p9.nii.gz" in refused["p9"]


def test_a_sites_own_table_says_what_its_series_are(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "north", patients=1)
    uid = write_series(
        folder / "p0" / "DICOM" / "x", volume(3), study="1.2.3.0", SeriesDescription="x"
    )
    write_labels(folder / "p0" / "seg.nii.gz", MASK, GRID)
    assert list(find_site(folder).found.cases[0].images) == ["t1", "t2"]
    table = f"case,modality,series_uid\n,flair,{uid}\n"
    (folder / "mapping.csv").write_text(table)
    assert list(find_site(folder).found.cases[0].images) == ["flair", "t1", "t2"]
    other = tmp_path / "other.csv"
    other.write_text(table.replace("flair", "pd"))
    assert list(find_site(folder, mapping=other).found.cases[0].images) == ["pd", "t1", "t2"]


def test_a_case_is_preprocessed_again_when_one_of_its_dicom_files_changed(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "north", patients=1)
    write_labels(folder / "p0" / "seg.nii.gz", MASK, GRID)
    before = find_site(folder)
    first = origin(before.found.cases[0], before)
    after = find_site(folder)
    assert origin(after.found.cases[0], after) == first
    file = next((folder / "p0" / "DICOM" / "T1").iterdir())
    file.write_bytes(file.read_bytes())
    assert origin(after.found.cases[0], after) != first


def test_a_patient_in_dicom_and_in_nifti_is_asked_about(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "north")
    write_labels(folder / "p1" / "seg.nii.gz", MASK, GRID)
    write_image(folder / "p0" / "t1.nii.gz", volume().astype(np.float32), GRID)
    write_labels(folder / "p0" / "seg.nii.gz", MASK, GRID)
    site = find_site(folder)
    assert [case.name for case in site.found.cases] == ["p1"]
    (refused,) = site.found.refused
    assert "is the name of DICOM and of other files; rename one, or set one aside" in refused.reason


def test_a_sites_own_table_may_name_a_mask(tmp_path: Path) -> None:
    folder = write_site(tmp_path / "north", patients=1)
    write_labels(folder / "p0" / "drawing.nii.gz", MASK, GRID)
    with pytest.raises(DataError, match="holds no case that can be trained on"):
        find_site(folder)
    (folder / "mapping.csv").write_text("case,modality,file\np0,label,p0/drawing.nii.gz\n")
    assert find_site(folder).found.cases[0].label == folder / "p0" / "drawing.nii.gz"
