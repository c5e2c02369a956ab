"""Which cases are of one patient."""

from pathlib import Path

import pytest
from small_dicom import volume, write_series

from mixmfl.data.dicom.cases import find_dicom
from mixmfl.data.modalities import Modalities
from mixmfl.data.patients import patient_key, patient_of


@pytest.mark.parametrize(
    ("case", "patient"),
    [
        ("BraTS-GLI-00008-101", "BraTS-GLI-00008"),
        ("sub-01_ses-02", "sub-01"),
        ("sub-01_ses-02_acq-a", "sub-01"),
        ("patient07_baseline", "patient07"),
        ("Mueller_followup", "Mueller"),
        ("p12_tp2", "p12"),
        ("p12 Visit 3", "p12"),
        ("p12_2019-05-07", "p12"),
        ("TCGA-CS-4941_19960909_1", "TCGA-CS-4941"),
        # nothing that tells an examination: the name is the patient's
        ("BraTS2021_00008", "BraTS2021_00008"),
        ("BraTS20_Training_001", "BraTS20_Training_001"),
        ("study_20200101", "study_20200101"),
        ("sub-01", "sub-01"),
        ("p12", "p12"),
        ("baseline", "baseline"),
        ("MSbaseline3", "MSbaseline3"),
    ],
)
def test_names_that_say_which_examination_a_case_is_name_its_patient(
    case: str, patient: str
) -> None:
    assert patient_of(case) == patient


def test_what_stands_for_a_dicom_patient_names_nobody() -> None:
    one, other = patient_key("DOE^JANE 123"), patient_key("DOE^JOHN 124")
    assert one != other
    assert len(one) == len(other) == 16
    assert "DOE" not in one
    assert patient_key("") == ""


@pytest.mark.parametrize(
    ("names", "ids", "people"),
    [
        (("Müller^Hans", "MUELLER^HANS^^DR"), ("4711", "004711 "), 1),
        (("Müller^Hans", "Muller Hans"), ("", ""), 1),
        (("DOE^JANE", "ROE^JANE"), ("4711", "4711"), 1),  # a name that marriage changed
        (("DOE^JANE", "DOE^JANE"), ("4711", "4712"), 2),
        (("ANON", "ANON"), ("P1", "P2"), 2),
        # names that every patient has tell nobody: the cases' names decide
        (("ANONYMOUS", "ANONYMOUS"), ("ANON", "ANON"), 0),
        (("", "removed"), ("0", "none"), 0),
    ],
)
def test_examinations_of_a_dicom_patient_are_known_in_every_spelling(
    tmp_path: Path, names: tuple[str, str], ids: tuple[str, str], people: int
) -> None:
    for number, (name, identifier) in enumerate(zip(names, ids, strict=True)):
        write_series(
            tmp_path / f"day{number}", volume(number), study=f"1.2.{number}", patient=name,
            PatientID=identifier, SeriesDescription="T1", StudyDate=f"2021030{number + 1}",
            SpecificCharacterSet="ISO_IR 100",
        )  # fmt: skip
    cases = find_dicom(tmp_path, Modalities()).cases
    assert len(cases) == 2
    assert len({case.person for case in cases} - {""}) == people
