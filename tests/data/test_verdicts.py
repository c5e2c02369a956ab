"""Images and folders that people or tables call bad, or say not to use."""

from pathlib import Path
from typing import Any

import pytest
from small_dicom import volume, write_series

from mixmfl.data.cases import FolderCases
from mixmfl.data.dicom.cases import find_all
from mixmfl.data.modalities import Modalities
from mixmfl.data.verdicts import not_to_use, remark_on

BIDS = "sub-01/ses-1/anat/sub-01_ses-1"


def found_in(folder: Path, names: str) -> FolderCases:
    """Make empty files, and find the cases among them; names without an ending are images."""
    for name in names.split():
        path = folder / (name if "." in name else f"{name}.nii.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return find_all(folder, Modalities())[0]


def write(folder: Path, number: int, text: str, **tags: Any) -> None:
    write_series(
        folder / str(number), volume(number), SeriesNumber=number, SeriesDescription=text, **tags
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("NICHT VERWENDEN.txt", "nicht verwenden"),
        ("T1_do-not-use", "do not use"),
        ("T1 (don't use)", "don t use"),
        ("p1_EXCLUDED", "excluded"),
        ("ne_pas_utiliser", "ne pas utiliser"),
        ("QC_fail", "qc fail"),
        ("Ausschluss", "ausschluss"),
        ("Ausschluss_MS", ""),
        ("exclusion_criteria.docx", ""),
        ("useful", ""),
        ("T1_fail", ""),
    ],
)
def test_words_that_say_not_to_use_something(text: str, words: str) -> None:
    assert not_to_use(text) == words


@pytest.mark.parametrize(
    ("text", "remark"),
    [
        ("FLAIR verwackelt", "is called 'verwackelt'; see that it is good enough"),
        ("NOT FOR DIAGNOSTIC T1", "is called 'not for diagnostic'; see that it is good"),
        ("T1_median", "is called 'median'; see that it is no map"),
        ("T1_lesionfilled", "is called 'lesionfilled'; lesions may be painted over"),
        ("T1_motion_corrected", ""),
        ("T1 contrast media", ""),
        ("T1 Kontrast-Mittel", ""),
        ("SAG T1 todo craneo", ""),
        ("seg_todo", "is called 'todo'"),
        ("T1 mprage sag", ""),
    ],
)
def test_words_against_an_image(text: str, remark: str) -> None:
    assert remark_on(text).startswith(remark)
    assert bool(remark_on(text)) == bool(remark)


@pytest.mark.parametrize(
    "names",
    [
        "p1/T1_nicht_verwenden p1/FLAIR",
        "p1/FLAIR exclude_p2/T1",
        "p1/FLAIR QC_fail/p2/T1",
        "p1/FLAIR ne_pas_utiliser/p2/T1",
        "p1/FLAIR Ausschluss/p2/T1",
    ],
)
def test_what_a_name_says_not_to_use_is_set_aside(names: str, tmp_path: Path) -> None:
    found = found_in(tmp_path, names)
    (case,) = found.cases
    assert [*case.images] == ["flair"]
    assert found.refused == ()
    assert len(found.aside) == 1


@pytest.mark.parametrize("note", ["p2/NICHT_VERWENDEN.txt", "p2/do_not_use.docx"])
def test_a_note_beside_images_is_a_warning(note: str, tmp_path: Path) -> None:
    names = "p1/T1 p1/readme.txt p2/anat/T1 p2/anat/FLAIR"
    clean, noted = found_in(tmp_path, names), found_in(tmp_path, note).cases
    assert not any(case.warnings for case in (*clean.cases, noted[0]))
    (warning,) = noted[1].warnings
    assert warning.startswith(f"{note}: {not_to_use(note)!r} is the name of what lies beside")


def test_an_image_that_is_called_bad_is_used_with_a_remark_and_not_beside_a_good_one(
    tmp_path: Path,
) -> None:
    names = "p1/T1_defekt p1/FLAIR p2/T1 p2/T1_wrong p2/avg_FLAIR p2/FLAIR"
    one, two = found_in(tmp_path, names).cases
    assert one.warnings == ("p1/T1_defekt.nii.gz: is called 'defekt'; see that it is good enough",)
    assert {name: path.name for name, path in two.files.items()} == {
        "flair": "FLAIR.nii.gz", "t1": "T1.nii.gz",
    }  # fmt: skip


def test_a_label_that_is_called_unfinished_is_used_with_a_remark(tmp_path: Path) -> None:
    (case,) = found_in(tmp_path, "p1/T1 p1/seg_draft").cases
    assert case.warnings == ("p1/seg_draft.nii.gz: is called 'draft'; see that it is good enough",)


@pytest.mark.parametrize(
    ("column", "value", "text"),
    [
        ("qc", "fail", "is bad by sub-01_ses-1_scans.tsv (qc: fail); see that it is good enough"),
        ("T1_quality", "Poor", "is bad by sub-01_ses-1_scans.tsv (T1_quality: Poor); see that"),
        ("exclude", "yes", "its name says an image that sub-01_ses-1_scans.tsv excludes (exclude"),
        ("usable", "0", "its name says an image that sub-01_ses-1_scans.tsv excludes (usable: 0)"),
        ("qc", "pass", ""),
        ("acq_time", "fail", ""),
    ],
)
def test_the_table_of_scans_is_read(column: str, value: str, text: str, tmp_path: Path) -> None:
    table = tmp_path / "sub-01/ses-1/sub-01_ses-1_scans.tsv"
    table.parent.mkdir(parents=True)
    table.write_text(f"filename\t{column}\nanat/sub-01_ses-1_T1w.nii.gz\t{value}\n")
    found = found_in(tmp_path, f"{BIDS}_T1w {BIDS}_FLAIR")
    (case,) = found.cases
    aside = [each.why for each in found.aside if each.path.name.endswith("T1w.nii.gz")]
    reasons = [*aside, *(warning.partition(": ")[2] for warning in case.warnings)]
    assert [reason.startswith(text) for reason in reasons] == [True] * bool(text)
    assert ("t1" in case.images) != bool(aside)


def test_series_that_are_not_to_be_used_are_set_aside(tmp_path: Path) -> None:
    write(tmp_path / "p1", 1, "T1 tra NICHT VERWENDEN")
    write(tmp_path / "p1", 2, "T1 tra")
    write(tmp_path / "p1", 3, "FLAIR verwackelt")
    write(tmp_path / "p2_excluded", 4, "T1 tra", study="1.2.4")
    found, rows = find_all(tmp_path, Modalities())
    (case,) = found.cases
    assert found.refused == ()
    assert case.warnings == (
        "flair (series 3 'FLAIR verwackelt') is called 'verwackelt'; see that it is good enough",
    )
    aside = {row.series.header.number: row.why for row in rows if not row.modality}
    assert aside == {
        1: "its description says 'nicht verwenden'",
        4: "a series of the folder 'p2_excluded'",
    }


@pytest.mark.parametrize(
    ("one", "other", "is_warned"),
    [
        ("T1 praeop", "FLAIR postop", True),
        ("T1 baseline", "FLAIR follow-up", True),
        ("T1 extern", "FLAIR", True),
        ("T1 month 6", "FLAIR month 12", True),
        ("T1 praeop", "FLAIR vor OP", False),
        ("T1 praeop", "FLAIR", False),
    ],
)
def test_descriptions_of_other_times_are_a_warning(
    one: str, other: str, is_warned: bool, tmp_path: Path
) -> None:
    write(tmp_path, 1, one)
    write(tmp_path, 2, other)
    (case,) = find_all(tmp_path, Modalities())[0].cases
    assert ["states of treatment" in warning for warning in case.warnings] == ([True] * is_warned)


@pytest.mark.parametrize(
    ("one", "other", "doubt"),
    [
        ({"Manufacturer": "SIEMENS"}, {"Manufacturer": "GE"}, "differ in Manufacturer,"),
        ({"DeviceSerialNumber": "1"}, {"DeviceSerialNumber": "2"}, "differ in DeviceSerialNumber,"),
        ({"MagneticFieldStrength": 3}, {"MagneticFieldStrength": 1.5}, "MagneticFieldStrength,"),
        ({"PatientAge": "050Y"}, {"PatientAge": "054Y"}, "differ in PatientAge,"),
        ({"StudyDescription": "Kopf praeop"}, {"StudyDescription": "Kopf postop"}, "treatment"),
        ({"StudyDescription": "Month 6"}, {"StudyDescription": "Month 12"}, "'Month 12'"),
        ({"Manufacturer": "SIEMENS"}, {"Manufacturer": "Siemens Healthineers"}, ""),
        ({"MagneticFieldStrength": 3}, {"MagneticFieldStrength": 2.89362}, ""),
        ({"MagneticFieldStrength": 15000}, {"MagneticFieldStrength": 1.5}, ""),
        ({"PatientAge": "024M"}, {"PatientAge": "002Y"}, ""),
        ({"StudyDescription": "MRT Kopf"}, {"StudyDescription": "MRT Schaedel"}, ""),
        ({"StationName": "MR1"}, {"StationName": "WS", "ImageType": ["DERIVED", "PRIMARY"]}, ""),
    ],
)
def test_several_scanners_ages_or_states_in_one_examination_are_a_warning(
    one: dict[str, Any], other: dict[str, Any], doubt: str, tmp_path: Path
) -> None:
    write(tmp_path, 1, "T1", **one)
    write(tmp_path, 2, "FLAIR", **other)
    (case,) = find_all(tmp_path, Modalities())[0].cases
    assert len(case.images) == 2
    assert [doubt in warning for warning in case.warnings] == [True] * bool(doubt)


@pytest.mark.parametrize("text", ["NeuroQuant FLAIR", "icobrain ms FLAIR", "FLAIR+Lesion",
                                  "AI-Rad Companion FLAIR", "FLAIR AI Results"])  # fmt: skip
def test_what_a_program_made_of_a_series_is_not_used(text: str, tmp_path: Path) -> None:
    write(tmp_path, 1, "FLAIR tra")
    write(tmp_path, 2, text)
    write(tmp_path, 3, "T1 Deep Resolve Boost")  # as the scanner reconstructs it
    found, rows = find_all(tmp_path, Modalities())
    assert [(row.series.header.number, row.modality) for row in rows] == [
        (1, "flair"), (2, ""), (3, "t1"),
    ]  # fmt: skip
    assert found.cases[0].warnings == ()


def test_an_image_of_two_dicom_patients_may_be_scaled(tmp_path: Path) -> None:
    for factor, patient in ((1, "A"), (2, "B")):
        write_series(
            tmp_path / patient, volume(1) * factor, SeriesDescription="T1", study=f"1.2.{factor}",
            patient=patient, PatientID=patient, RescaleIntercept="0",
        )  # fmt: skip
    one, two = find_all(tmp_path, Modalities())[0].cases
    assert one.person == two.person


def test_one_image_of_two_dicom_patients_has_a_warning_and_makes_one_of_them(
    tmp_path: Path,
) -> None:
    for number, patient in enumerate(("A", "B", "C")):
        for series in (1, 2):
            voxels = volume(series + 2 * (patient == "C"))
            write_series(
                tmp_path / patient / str(series), voxels, SeriesNumber=series,
                SeriesDescription=("T1", "FLAIR")[series - 1], study=f"1.2.{number}",
                patient=patient, PatientID=patient,
            )  # fmt: skip
    one, two, three = find_all(tmp_path, Modalities())[0].cases
    assert one.person == two.person != three.person
    assert (
        "series 1 'T1' of A: is the same image as series 1 'T1' of B of another" in one.warnings[1]
    )
    assert len(two.warnings) == 2
    assert three.warnings == ()
