"""Folders that are read, of which a person should look at something."""

import gzip
import shutil
from pathlib import Path

import numpy as np
import pytest
from empty_files import found_in

from mixmfl.data.cases import FolderCases, find_cases
from mixmfl.data.file_names import read_name
from mixmfl.data.grid import Grid
from mixmfl.data.image import write_image
from mixmfl.data.modalities import Modalities
from mixmfl.data.patients import patient_of

GRID = Grid((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def people_of(found: FolderCases) -> dict[str, str]:
    """Return the patient of each case."""
    return {case.name: patient_of(case.name, case.person) for case in found.cases}


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
        "p1/T1_wk04 p1/FLAIR_wk12",
        "p1/T1_1997 p1/FLAIR_1998",
        "p7_T1_visit1 p7_FLAIR_visit2 p7_T2_visit3",
        "p1/T1_antes_cirugia p1/FLAIR_despues_de_cirugia",
        "p1/T1_na_operatie p1/FLAIR_voor_operatie",
    ],
)
def test_images_of_other_times_are_no_case_in_any_way_to_write_times(
    names: str, tmp_path: Path
) -> None:
    found = found_in(tmp_path, names)
    assert found.cases == ()
    assert "have other days, times" in found.refused[0].reason


def test_an_image_of_two_cases_has_a_warning_and_makes_one_patient_of_them(tmp_path: Path) -> None:
    names = "p1/T1 p1/FLAIR Meier/T1 Meier/FLAIR Koch/T1 Koch_followup/T1 p1/seg Koch/seg"
    found_in(tmp_path, names)
    for number, name in enumerate(names.split()):
        values = np.arange(8, dtype=np.float32).reshape(GRID.shape) + number
        write_image(tmp_path / f"{name}.nii.gz", values * (name != "Meier/FLAIR"), GRID)
    shutil.copy(tmp_path / "Meier/FLAIR.nii.gz", tmp_path / "p1/T1.nii.gz")  # of nothing
    shutil.copy(tmp_path / "p1/FLAIR.nii.gz", tmp_path / "Koch/T1.nii.gz")
    for empty in ("p1/seg", "Koch/seg"):
        write_image(tmp_path / f"{empty}.nii.gz", np.zeros(GRID.shape, np.float32), GRID)
    found = find_cases(tmp_path)
    warned = {case.name: case.warnings for case in found.cases if case.warnings}
    assert warned == {
        "p1": ("p1/FLAIR.nii.gz: is the same image as Koch/T1.nii.gz of another case; see whose "
               "it is",),
        "Koch": ("Koch/T1.nii.gz: is the same image as p1/FLAIR.nii.gz of another case; see whose "
                 "it is",),
    }  # fmt: skip
    people = people_of(found)
    assert len(set(people.values())) == 2
    assert people["p1"] == people["Koch"] == people["Koch_followup"]


def test_one_mask_of_two_cases_has_a_warning(tmp_path: Path) -> None:
    names = "p1/T1 p1/seg p2/T1 p2/seg p3/T1 p3/seg"
    found_in(tmp_path, names)
    for number, name in enumerate(names.split()):
        values = np.arange(8, dtype=np.float32).reshape(GRID.shape) + number
        write_image(tmp_path / f"{name}.nii.gz", values, GRID)
    shutil.copy(tmp_path / "p1/seg.nii.gz", tmp_path / "p2/seg.nii.gz")
    found = find_cases(tmp_path)
    text = "{}/seg.nii.gz: is the same mask as {}/seg.nii.gz of another case; see whose it is"
    assert [case.warnings for case in found.cases] == [
        (text.format("p1", "p2"),),
        (text.format("p2", "p1"),),
        (),
    ]
    assert len({*people_of(found).values()}) == 3


@pytest.mark.parametrize("name", ["p1/seg_of_pat02", "p1/FLAIR_GBM_02"])
def test_a_file_with_the_name_of_another_case_is_a_question(name: str, tmp_path: Path) -> None:
    names = f"{name} p1/T1 p1/t2_tse_p2_iso pat02/T1 GBM_02/T1 p2/T1"
    found = found_in(tmp_path, names)
    case = next(case for case in found.cases if case.name == "p1")
    assert {*case.images} == {"t1", "t2"}
    (warning,) = case.warnings
    assert "has the name of another case, " in warning


def test_images_below_a_folder_of_masks_are_masks_if_another_folder_has_the_patient(
    tmp_path: Path,
) -> None:
    (case,) = found_in(tmp_path, "RAW/p1/T1 RAW/p1/FLAIR SEG/p1/T1").cases
    assert case.files["t1"] == tmp_path / "RAW/p1/T1.nii.gz"
    assert case.label == tmp_path / "SEG/p1/T1.nii.gz"
    names = ["GT/p1/T1", "GT/p1/FLAIR", "AB/p1/T1", "AB/p1/FLAIR"]  # two centres
    for number, name in enumerate(names):
        values = np.arange(8, dtype=np.float32).reshape(GRID.shape) + number + 0.5
        path = tmp_path / f"more/{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, values, GRID)
    assert [len(case.images) for case in find_cases(tmp_path / "more").cases] == [2, 2]


@pytest.mark.parametrize("level", [1, None])
def test_an_image_that_was_packed_again_is_seen_in_two_cases(
    level: int | None, tmp_path: Path
) -> None:
    found_in(tmp_path, "p1/T1 p1/FLAIR p2/FLAIR")
    for number, name in enumerate(("p1/T1", "p1/FLAIR", "p2/FLAIR")):
        values = np.arange(8, dtype=np.float32).reshape(GRID.shape) + number
        write_image(tmp_path / f"{name}.nii.gz", values, GRID)
    content = gzip.decompress((tmp_path / "p1/T1.nii.gz").read_bytes())
    if level is None:
        (tmp_path / "p2/T1.nii").write_bytes(content)
    else:
        (tmp_path / "p2/T1.nii.gz").write_bytes(gzip.compress(content, level))
    found = find_cases(tmp_path)
    assert [len(case.warnings) for case in found.cases] == [1, 1]
    assert len({*people_of(found).values()}) == 1


@pytest.mark.parametrize(
    ("names", "people"),
    [
        ("TCGA-02-0001_1997/T1 TCGA-02-0001_1998/T1", 1),
        ("TCGA-02-0001_1997_T1 TCGA-02-0001_1998_T1 TCGA-02-0006_1996_T1", 2),
        ("Meier_2019/T1 Meier_2020/T1 Koch_2019/T1 Koch_2021/T1", 2),
        ("Meier/Board_2019/T1 Meier/Board_2020/T1 Koch/Board_2020/T1", 2),
        ("p1_3T/T1 p1_1.5T/T1 p2_3T/T1", 2),
        ("0001/T1 0001R/T1 0002/T1", 2),
        ("PAT_2001/T1 PAT_2002/T1 PAT_2003/T1", 3),
        ("MS_2001/T1 MS_1002/T1 HC_2001/T1 HC_1044/T1", 4),
        ("study_2019_001/T1 study_2019_002/T1", 2),
    ],
)
def test_years_field_strengths_and_letters_behind_a_name_are_of_one_patient(
    names: str, people: int, tmp_path: Path
) -> None:
    assert len({*people_of(found_in(tmp_path, names)).values()}) == people


def test_a_file_that_a_uid_names_is_of_its_folder(tmp_path: Path) -> None:
    uid = "1.2.840.113619.2.5.1762583153"
    names = (
        f"S01/20190101/T1w/{uid}.1_T1w S01/20200101/T1w/{uid}.2_T1w S02/20190101/T1w/{uid}.3_T1w"
    )
    found = found_in(tmp_path, names)
    assert [case.name for case in found.cases] == ["S01_20190101", "S01_20200101", "S02"]
    assert len({*people_of(found).values()}) == 2


def test_freesurfers_t1_is_used_if_there_is_no_other(tmp_path: Path) -> None:
    for name in ("bert/mri/T1", "bert/mri/brain", "anna/mri/T1"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"{name}.mgz").touch()
    anna, bert = found_in(tmp_path, "bert/FLAIR anna/FLAIR anna/T1").cases
    assert anna.files["t1"].name == "T1.nii.gz"
    assert bert.files["t1"].name == "T1.mgz"
    assert bert.warnings[0].startswith("bert/mri/T1.mgz: is by FreeSurfer, and the image that it")


def test_numbers_that_labels_have_too_are_patients(tmp_path: Path) -> None:
    kinds = ("T1", "FLAIR", "labels")
    names = " ".join(f"site1/{kind}/{number}" for kind in kinds for number in ("001", "002"))
    found = found_in(tmp_path, names, labels_needed=True)
    assert [case.name for case in found.cases] == ["001", "002"]
    assert {*found.cases[0].images} == {"flair", "t1"}


def test_of_images_with_and_without_the_skull_all_are_alike(tmp_path: Path) -> None:
    (case,) = found_in(tmp_path, "p1_T1 p1_T1_unstripped p1_T1GD").cases
    assert case.files["t1"].name == "p1_T1.nii.gz"
    (case,) = found_in(tmp_path / "all", "p1_T1 p1_T1_unstripped p1_T2 p1_T2_unstripped").cases
    assert case.files["t1"].name == "p1_T1_unstripped.nii.gz"


@pytest.mark.parametrize(
    "name", ["lesion_mask_inverted", "exclusion_mask", "NAWM_mask", "T1_AI_seg"]
)
def test_a_mask_of_what_is_no_lesion_or_by_a_program_is_no_label(name: str, tmp_path: Path) -> None:
    found = found_in(tmp_path, f"p1/T1 p1/{name}", labels_needed=True)
    assert found.refused[0].reason.startswith("no label, which training needs")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("AAL_in_T1", "has 'in' before a sequence, so that it may be another image on its grid"),
        ("CT_to_T1", "has 'to' before a sequence"),
        ("SPECT_to_T1", "has 'spect' before the space of a sequence"),
        ("CT_T1space", "has 'ct' before the space of a sequence"),
        ("T2_脂肪抑制", "'脂肪抑制' may tell of another sequence"),
        ("T1增强", "'增强' may tell of a contrast agent"),
        ("T1_ilacli", "'ilacli' may tell of a contrast agent"),
        ("T1_zouei", "'zouei' may tell of a contrast agent"),
    ],
)
def test_an_image_that_may_be_another_than_its_name_says_is_a_question(
    name: str, says: str, tmp_path: Path
) -> None:
    (case,) = found_in(tmp_path, f"p1/{name} p1/FLAIR").cases
    assert set(case.images) == {"flair"}
    assert says in case.warnings[0]


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("T2_水抑制", "flair"),
        ("T2压水", "flair"),
        ("T2_轴位", "t2"),
        ("p1_reg_T1", "t1"),
        ("FLAIR_in_T1", "flair"),
        ("p1_T1space", "t1"),
        ("p1_month6_arm_1_t1", "t1"),
        ("SynthMR_T2", None),
        ("ADC_lt_620", None),
        ("ADC<620", None),
        ("T1(1)", "t1"),
        ("sub-01_hemi-L_T2w", None),
        ("20190312_101112t2tirmtradarkfluids005a1001", "flair"),
        ("PD+T2_tra_e2", "t2"),
    ],
)
def test_names_in_other_scripts_of_trials_and_of_maps_are_read(
    name: str, modality: str | None
) -> None:
    assert read_name(name, Modalities()).modality == modality


def test_subjects_that_participants_tsv_excludes_are_set_aside(tmp_path: Path) -> None:
    names = " ".join(f"sub-0{number}/anat/sub-0{number}_T1w" for number in range(1, 6))
    found_in(tmp_path, names)
    table = tmp_path / "participants.tsv"
    table.write_text(
        "participant_id\texcluded\tIncluded\texclusion_reason\n"
        "sub-01\tno\tyes\tmotion\nsub-02\tYES\tyes\t\nsub-03\tn/a\t0\t\nsub-04\n"
        "sub-05\t0\t1\tM\xfcller\textra\n",
        encoding="latin-1",
    )
    found = find_cases(tmp_path)
    assert [case.name for case in found.cases] == ["sub-01", "sub-04", "sub-05"]
    assert found.refused == ()
    assert {each.path.parts[-3]: each.why for each in found.aside} == {
        "sub-02": "its name says a subject whom participants.tsv excludes (excluded: YES)",
        "sub-03": "its name says a subject whom participants.tsv excludes (Included: 0)",
    }
    table.unlink()
    table.mkdir()
    assert len(find_cases(tmp_path).cases) == 5


def test_a_label_of_another_day_than_its_images_is_a_question(tmp_path: Path) -> None:
    found = found_in(tmp_path, "p1/T1_2019 p1/FLAIR_2019 p1/seg_2021", labels_needed=True)
    (refused,) = found.refused
    assert "'seg_2021' tells of another day or time than the images beside it" in refused.reason
    names = "p2/T1_2019 p2/FLAIR_2019 p2/seg_2019 p3/T1 p3/seg_20210304"
    found = found_in(tmp_path / "more", names, labels_needed=True)
    assert [case.name for case in found.cases] == ["p2", "p3"]
