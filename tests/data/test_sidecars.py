"""JSON files beside images, as dcm2niix writes them."""

import json
from pathlib import Path
from typing import Any

import pytest

from mixmfl.data.cases import Case, find_cases


def case_with(folder: Path, sidecars: dict[str, dict[str, Any]]) -> Case:
    """Make an empty image for each name with its JSON file, and return their case."""
    (folder / "p1").mkdir()
    for name, content in sidecars.items():
        (folder / "p1" / f"{name}.nii.gz").touch()
        (folder / "p1" / f"{name}.json").write_text(json.dumps(content))
    (case,) = find_cases(folder).cases
    return case


@pytest.mark.parametrize(
    ("name", "text", "doubt"),
    [
        ("T1", "t1_mprage_KM", "'t1_mprage_KM', which is t1c, but by its name"),
        ("T1", "SUB_T1", "which is subtraction, but by its name it was taken for t1"),
        ("T2", "T2_tse_HWS", "the JSON file beside it says CSPINE, but a FLAIR is of the head"),
        ("T1c", "t1_mprage", ""),
        ("T2", "T2_tse", ""),
        ("DWI", "DTI_64_dir", ""),
        ("T1", "sag_iso", ""),
    ],
)
def test_a_description_that_contradicts_a_name_is_a_warning(
    name: str, text: str, doubt: str, tmp_path: Path
) -> None:
    case = case_with(tmp_path, {name: {"SeriesDescription": text}, "FLAIR": {}})
    assert len(case.images) == 2
    assert [doubt in warning for warning in case.warnings] == [True] * bool(doubt)


@pytest.mark.parametrize(
    ("name", "one", "other", "doubt"),
    [
        ("Manufacturer", "Siemens", "GE", "differ in Manufacturer,"),
        ("ManufacturersModelName", "Avanto", "Skyra", "differ in ManufacturerModelName,"),
        ("MagneticFieldStrength", 1.5, 3, "differ in MagneticFieldStrength,"),
        ("AcquisitionDateTime", "2019-03-12T10:11:12", "2020-03-12T10:11:12", "366 days after t1"),
        ("MagneticFieldStrength", 2.89, 3, ""),
        ("AcquisitionDateTime", "2019-03-12T23:11:12", "2019-03-13T00:11:12", ""),
    ],
)
def test_other_days_and_scanners_are_a_warning(
    name: str, one: object, other: object, doubt: str, tmp_path: Path
) -> None:
    case = case_with(tmp_path, {"T1": {name: one}, "FLAIR": {name: other}, "T2": {}})
    assert [doubt in warning for warning in case.warnings] == [True] * bool(doubt)


def test_what_is_no_json_of_a_series_says_nothing(tmp_path: Path) -> None:
    case = case_with(tmp_path, {"T1": {"SeriesDescription": ["FLAIR"]}, "FLAIR": {}})
    assert case.warnings == ()
