"""Which cases are of one patient."""

import pytest

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
