"""Folders as hospitals of several countries export them: days, states, words and copies."""

from pathlib import Path

import pytest
from empty_files import found_in
from small_dicom import volume, write_series

from mixmfl.data.cases import account, find_cases
from mixmfl.data.dicom.cases import find_dicom
from mixmfl.data.modalities import Modalities
from mixmfl.data.patients import patient_of
from mixmfl.data.time_points import is_examination


@pytest.mark.parametrize(
    ("folders", "people"),
    [
        ("Garcia/12-mar-2019 Garcia/05-ene-2020", 1),
        ("Rossi/3 maggio 2019\nRossi/4 luglio 2020", 1),
        ("山田/2019年3月12日 山田/2020年6月5日", 1),
        ("Meier/MRT 12.03.19\nMeier/MRT 05.06.20\nKoch/MRT 02.01.19", 2),
        ("Dupont/IRM cérébrale 12-03-2019\nDupont/IRM cérébrale 05-06-2020", 1),
        ("Klinik/Meier 12-03-2019\nKlinik/Koch 05-06-2020", 2),
        ("12-03-2019 Meier\n05-06-2020 Meier\n02-01-2019 Koch", 2),
        ("GBM12_primary GBM12_recurrent GBM13_primary", 2),
        ("P01_3Monate P01_6Monate P02_3Monate", 2),
        ("MS001_acute MS001_chronic MS002_acute", 2),
        ("site1_acute_001 site1_acute_002", 2),
        ("Rossi_01_controllo Rossi_01_basale Bianchi_02_basale", 2),
    ],
)
def test_examinations_of_one_patient_by_days_and_states(
    folders: str, people: int, tmp_path: Path
) -> None:
    each = folders.split("\n") if "\n" in folders else folders.split()
    found = found_in(tmp_path, "\n".join(f"{folder}/{m}" for folder in each for m in ("T1", "T2")))
    assert len(found.cases) == len(each)
    assert len({patient_of(case.name, case.person) for case in found.cases}) == people


@pytest.mark.parametrize("name", ["Maier_2019", "Jansen_2019", "Marburg 2019", "decker2020"])
def test_a_name_that_begins_as_a_month_does_is_none(name: str) -> None:
    assert not is_examination(name)


@pytest.mark.parametrize(
    ("names", "used"),
    [
        ("p1/T2_étoile p1/FLAIR", {"flair": "FLAIR", "t2star": "T2_étoile"}),
        ("p1/T2*WI p1/FLAIR", {"flair": "FLAIR", "t2star": "T2*WI"}),
        ("p1/virtual_T1c p1/T1", {"t1": "T1"}),
        ("p1/pseudo_FLAIR p1/T1", {"t1": "T1"}),
        ("p1/FLAIR_minus_T2 p1/FLAIR", {"flair": "FLAIR"}),
        ("p1/~T1 p1/T1 p1/~$T1", {"t1": "T1"}),
        ("sub-1/anat/sub-1_UNIT1", {"t1": "sub-1_UNIT1"}),
        ("sub-1/anat/sub-1_UNIT1 sub-1/anat/sub-1_T1w", {"t1": "sub-1_T1w"}),
    ],
)
def test_images_that_only_look_like_a_sequence(
    names: str, used: dict[str, str], tmp_path: Path
) -> None:
    (case,) = found_in(tmp_path, names).cases
    assert {m: path.name.removesuffix(".nii.gz") for m, path in case.files.items()} == used


@pytest.mark.parametrize(
    ("mask", "is_label"),
    [
        ("Läsionen", True),
        ("lesiones", True),
        ("máscara_cerebro", False),
        ("masque_cerveau", False),
        ("seg_MedSAM", False),
    ],
)
def test_masks_in_other_languages(mask: str, is_label: bool, tmp_path: Path) -> None:
    found = found_in(tmp_path, f"p1/T1 p1/{mask}", labels_needed=True)
    assert len(found.cases) == is_label


def test_a_link_to_an_image_that_is_read_gives_no_second_patient(tmp_path: Path) -> None:
    found_in(tmp_path, "raw/p1/T1 raw/p2/T1 labels/p1_seg labels/p2_seg")
    for number in (1, 2):
        link = tmp_path / f"todo/p{number}/T1.nii.gz"
        link.parent.mkdir(parents=True)
        link.symlink_to(tmp_path / f"raw/p{number}/T1.nii.gz")
    found = account(find_cases(tmp_path, labels_needed=True))
    assert [case.name for case in found.cases] == ["p1", "p2"]
    assert {each.why for each in found.aside} == {"a link to a file that is read where it lies"}
    # but one beside an image of its own may be there by mistake
    found_in(tmp_path, "todo/p1/T2")
    assert [sorted(case.images) for case in find_cases(tmp_path).cases] == [
        ["t1"], ["t1"], ["t1", "t2"]
    ]  # fmt: skip


def test_a_phantom_among_patients_has_a_warning(tmp_path: Path) -> None:
    found = found_in(tmp_path, "p1/T1 p1/T2 Phantom_ACR/T1 Phantom_ACR/T2")
    warned = {case.name: case.warnings for case in found.cases}
    assert warned == {
        "p1": (),
        "Phantom_ACR": ("its patient is called 'phantom'; see that it is one",),
    }
    write_series(tmp_path / "cd", volume(), patient="QA^Daily", SeriesDescription="T1 tra")
    (case,) = find_dicom(tmp_path / "cd", Modalities()).cases
    assert "its patient is called 'qa'; see that it is one" in case.warnings
