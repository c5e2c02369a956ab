"""Folders that are read, of which a person should look at something."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mixmfl.data.cases import FolderCases, find_cases


def found_in(folder: Path, names: str, *, labels_needed: bool = False) -> FolderCases:
    """Make empty files, and find the cases among them."""
    for name in names.split():
        path = folder / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return find_cases(folder, labels_needed=labels_needed)


@pytest.mark.parametrize(
    ("names", "remark"),
    [
        ("p1/T1 p1/FLAIR p1/CD/T2", "p1/CD/T2.nii.gz: lies in the folder 'CD' below the other"),
        ("p1/T1 p1/phantom/T2", "p1/phantom/T2.nii.gz: lies in the folder 'phantom' below"),
        ("p1/T1 p1/T2 p1/FLAIR_old", "p1/FLAIR_old.nii.gz: is called 'old', and the other"),
        ("p1/T1 p1/T2 p1/alter_FLAIR", "p1/alter_FLAIR.nii.gz: is called 'alter', and the"),
        ("p1/T1 p1/T2 p1/FLAIR_neu", "p1/FLAIR_neu.nii.gz: is called 'neu', and the other"),
        ("p1/T1_heute p1/FLAIR_gestern", "p1/FLAIR_gestern.nii.gz: no other image is called"),
    ],
)
def test_an_image_that_may_be_of_another_examination_is_used_with_a_remark(
    names: str, remark: str, tmp_path: Path
) -> None:
    (case,) = found_in(tmp_path, names).cases
    assert len(case.images) == len(names.split())
    assert case.warnings[0].startswith(remark)
    assert case.warnings[0].endswith("; see that it is of the same examination")


@pytest.mark.parametrize(
    "names",
    [
        "p1/T1 p1/FLAIR p1/reg/T2",
        "p1/anat/T1 p1/dwi/DWI",
        "old/p1/T1 old/p1/FLAIR",
        "p1/T1_old p1/FLAIR_old",
        "p1/T1_isovox p1/FLAIR_isovox",
        "p1/T1_isovox p1/FLAIR",
        "p1/AX_T1_5 p1/AX_FLAIR_7",
    ],
)
def test_other_images_have_no_remark(names: str, tmp_path: Path) -> None:
    (case,) = found_in(tmp_path, names).cases
    assert case.warnings == ()


@pytest.mark.parametrize(
    "names",
    [
        "p1/T1_jan19 p1/FLAIR_feb20",
        "p1/T1_12-3-19 p1/FLAIR_1-1-20",
        "p1/T1_C1D1 p1/FLAIR_C3D1",
    ],
)
def test_images_of_other_times_are_no_case_in_any_way_to_write_times(
    names: str, tmp_path: Path
) -> None:
    found = found_in(tmp_path, names)
    assert found.cases == ()
    assert "have other days, times" in found.refused[0].reason


def test_a_label_of_another_day_than_its_images_is_a_question(tmp_path: Path) -> None:
    found = found_in(tmp_path, "p1/T1_2019 p1/FLAIR_2019 p1/seg_2021", labels_needed=True)
    (refused,) = found.refused
    assert "'seg_2021' tells of another day or time than the images beside it" in refused.reason
    names = "p2/T1_2019 p2/FLAIR_2019 p2/seg_2019 p3/T1 p3/seg_20210304"
    found = found_in(tmp_path / "more", names, labels_needed=True)
    assert [case.name for case in found.cases] == ["p2", "p3"]
