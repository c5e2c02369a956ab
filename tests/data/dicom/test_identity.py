"""Which DICOM files are of one patient, and of one series, where identifiers do not say it."""

from pathlib import Path
from typing import Any

import pydicom
import pytest
from small_dicom import SHAPE, spoil, volume, write_series

from mixmfl.data.dicom.cases import find_all, find_dicom
from mixmfl.data.dicom.series import find_series
from mixmfl.data.modalities import Modalities

KNOWN = Modalities()
PAIRS = {"flair": ("FLAIR", 2), "t1c": ("T1 KM", 3)}


def write_patients(folder: Path, *, series: str, patients: tuple[str, str], study: str) -> None:
    """Write two patients' FLAIR and T1 with contrast agent, with one identifier for their study."""
    for number, name in enumerate(("p01", "p02")):
        for kind, (text, series_number) in PAIRS.items():
            uid = series.format(number=number, kind=series_number)
            write_series(
                folder / name / kind, volume(number), series=uid, StudyInstanceUID=study,
                patient=patients[number], PatientID=patients[number], SeriesDescription=text,
                SeriesNumber=series_number,
            )  # fmt: skip


@pytest.mark.parametrize("patients", [("A", "B"), ("ANON", "ANON"), ("", "")])
@pytest.mark.parametrize("series", ["1.2.{kind}.{number}", "1.2.{kind}", "1.2", ""])
def test_two_patients_with_one_identifier_never_meet_in_one_case(
    tmp_path: Path, series: str, patients: tuple[str, str]
) -> None:
    write_patients(tmp_path, series=series, patients=patients, study="1.2.3.4")
    found = find_dicom(tmp_path, KNOWN)
    assert [case.name for case in found.cases] == ["p01", "p02"]
    for case in found.cases:
        assert set(case.images) == {"flair", "t1c"}
        for image in case.images.values():
            assert {case.name} == {file.parts[-3] for file in image.files}  # type: ignore[union-attr]
        assert any("StudyInstanceUID is not unique" in text for text in case.warnings)


def test_anonymous_patients_with_one_identifier_and_different_series_are_kept_apart(
    tmp_path: Path,
) -> None:
    kinds = {"p01": ("FLAIR", "T1"), "p02": ("T1 KM",)}
    for number, (patient, texts) in enumerate(kinds.items()):
        for text in texts:
            write_series(tmp_path / patient / text, volume(number), study="1.2.3",
                         patient="", PatientID="ANON", SeriesDescription=text)  # fmt: skip
    found = find_dicom(tmp_path, KNOWN)
    assert {c.name: set(c.images) for c in found.cases} == {"p01": {"flair", "t1"}, "p02": {"t1c"}}


def test_one_patient_spelled_in_several_ways_is_one_case(tmp_path: Path) -> None:
    spelled = (("T1", "Müller^Hans^A", "0004711"), ("T2", "MUELLER HANS", "4711"),
               ("FLAIR", "Muller, Hans^^^Dr", "4711"))  # fmt: skip
    for text, name, number in spelled:
        write_series(tmp_path / "p" / text, volume(), patient=name, PatientID=number,
                     SeriesDescription=text, SpecificCharacterSet="ISO_IR 100")  # fmt: skip
    write_series(tmp_path / "q" / "T1", volume(1), patient="Muller^Hanna", PatientID="4711",
                 SeriesDescription="T1")  # fmt: skip
    found = find_dicom(tmp_path, KNOWN)
    assert {c.name: set(c.images) for c in found.cases} == {"p": {"t1", "t2", "flair"}, "q": {"t1"}}


def test_two_examinations_of_a_patient_with_one_identifier_are_told_apart_by_date(
    tmp_path: Path,
) -> None:
    for place, year, text in (("a", "2019", "T1"), ("a/2", "2019", "T2"), ("b", "2020", "FLAIR")):
        write_series(tmp_path / place, volume(), StudyDate=f"{year}0101", SeriesDescription=text)
    found = find_dicom(tmp_path, KNOWN)
    assert {c.name: set(c.images) for c in found.cases} == {"a": {"t1", "t2"}, "b": {"flair"}}


def test_without_any_identifier_each_folder_is_a_case(tmp_path: Path) -> None:
    write_patients(tmp_path, series="", patients=("", ""), study="")
    assert [case.name for case in find_dicom(tmp_path, KNOWN).cases] == ["p01", "p02"]


def test_one_patient_s_series_in_folders_of_their_own_are_one_case(tmp_path: Path) -> None:
    for name, (text, number) in PAIRS.items():
        write_series(tmp_path / name, volume(), SeriesDescription=text, SeriesNumber=number,
                     PatientID="")  # fmt: skip
    (case,) = find_dicom(tmp_path, KNOWN).cases
    assert set(case.images) == {"flair", "t1c"}
    assert case.warnings == ()


def test_a_header_that_lacks_the_birth_date_is_of_the_same_patient(tmp_path: Path) -> None:
    write_series(
        tmp_path / "p" / "a", volume(), SeriesDescription="T2", PatientBirthDate="19500101"
    )
    write_series(tmp_path / "p" / "b", volume(), SeriesDescription="FLAIR")
    (case,) = find_dicom(tmp_path, KNOWN).cases
    assert set(case.images) == {"flair", "t2"}


def test_series_that_were_given_one_identifier_are_told_apart_by_their_numbers(
    tmp_path: Path,
) -> None:
    for number, text in enumerate(("FLAIR", "T2"), start=1):
        write_series(
            tmp_path / "all" / text, volume(), series="1.2.9", SeriesDescription=text,
            SeriesNumber=number,
        )  # fmt: skip
    found = find_series(tmp_path).series
    assert [series.name for series in found] == ["series 1 'FLAIR'", "series 2 'T2'"]
    assert len({series.uid for series in found}) == 2
    assert all(series.slices == SHAPE[0] for series in found)


def test_a_slice_with_another_identifier_is_told_beside_its_series(tmp_path: Path) -> None:
    for name, tag in (("p", "PatientID"), ("q", "SeriesInstanceUID"), ("r", "StudyInstanceUID")):
        write_series(tmp_path / name, volume(), study=f"1.2.{ord(name)}",
                     SeriesDescription="FLAIR")  # fmt: skip
        heights = {
            float(str(content.ImagePositionPatient[2])): number
            for number, content in enumerate(headers(tmp_path / name))
        }

        def change(content: Any, tag: str = tag) -> None:
            setattr(content, tag, "1.2.99")

        spoil(tmp_path / name, change, heights[max(heights)])
    cases = find_dicom(tmp_path, KNOWN).cases
    assert [case.name for case in cases] == ["p", "q", "r"]
    for case in cases:
        assert case.images["flair"].read()[0].shape[0] == SHAPE[0] - 1  # type: ignore[union-attr]
        assert any("may lack slices: 1 file beside it" in text for text in case.warnings)


def headers(folder: Path) -> list[Any]:
    return [pydicom.dcmread(file) for file in sorted(folder.rglob("IM*"))]


@pytest.mark.parametrize(
    "differing",
    [
        ("PatientAge", "040Y", "061Y"),
        ("PatientWeight", "70", "90"),
        ("StudyDate", "20200101", "20210505"),
        ("StudyTime", "101010", "111111"),
        ("AccessionNumber", "17", "18"),
        ("FrameOfReferenceUID", "1.2.8", "1.2.9"),
    ],
    ids=lambda differing: str(differing[0]),
)
@pytest.mark.parametrize("nobody", ["", "0", "ANON1", "Unknown"])
def test_anonymous_patients_are_told_apart_by_their_examination(
    tmp_path: Path, differing: tuple[str, str, str], nobody: str
) -> None:
    tag, *values = differing
    tags: dict[str, Any]
    for place, value, (text, number) in zip(("a", "b"), values, PAIRS.values(), strict=True):
        tags = {tag: value, "SeriesDescription": text, "SeriesNumber": number}
        write_series(
            tmp_path / place, volume(number), study="1.2.3", patient=nobody, PatientID=nobody,
            **tags,
        )  # fmt: skip
    found = find_dicom(tmp_path, KNOWN)
    assert {c.name: set(c.images) for c in found.cases} == {"a": {"flair"}, "b": {"t1c"}}


def test_where_nothing_tells_anonymous_patients_from_series_the_user_is_asked(
    tmp_path: Path,
) -> None:
    for folder, places in (("people", ("meier", "huber")), ("series", ("S002", "T1 KM"))):
        for place, (text, number) in zip(places, PAIRS.values(), strict=True):
            write_series(
                tmp_path / folder / place, volume(number), study="1.2.3", patient="", PatientID="",
                SeriesDescription=text, SeriesNumber=number,
            )  # fmt: skip
    (case,) = find_dicom(tmp_path / "people", KNOWN).cases
    assert "are they of one patient? If not, give them other cases by --mapping" in case.warnings[0]
    (case,) = find_dicom(tmp_path / "series", KNOWN).cases
    assert case.warnings == ()
    # two examinations with one frame of reference each, but named as series are
    write_series(
        tmp_path / "series" / "301", volume(5), study="1.2.3", patient="", PatientID="",
        SeriesDescription="T2", SeriesNumber=301, FrameOfReferenceUID="1.2.7",
    )  # fmt: skip
    (case,) = find_dicom(tmp_path / "series", KNOWN).cases
    assert set(case.images) == {"flair", "t1c", "t2"}


def test_a_file_that_an_archive_holds_twice_counts_once_and_is_told(tmp_path: Path) -> None:
    write_series(tmp_path / "p", volume(), SeriesDescription="FLAIR")
    content: Any = pydicom.dcmread(tmp_path / "p" / "IM0003")
    content.SOPInstanceUID = content.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.5"
    content.save_as(tmp_path / "p" / "again.dcm")
    found, _ = find_all(tmp_path, KNOWN)
    assert [set(case.images) for case in found.cases] == [{"flair"}]
    assert [(each.path.name, each.why) for each in found.aside] == [
        ("again.dcm", "a copy of another file of its series")
    ]


@pytest.mark.parametrize(
    ("patient", "frame", "cases"),
    [("4711", "1.2.9", 1), ("4711", "1.2.{}", 3), ("ANON", "1.2.9", 3)],
)
def test_a_date_per_series_is_one_examination_of_a_named_patient_in_one_frame_of_reference(
    tmp_path: Path, patient: str, frame: str, cases: int
) -> None:
    for number, text in enumerate(("T1", "T2", "FLAIR"), 1):
        write_series(
            tmp_path / str(number), volume(number), SeriesNumber=number, SeriesDescription=text,
            StudyDate=f"20210{number}01", FrameOfReferenceUID=frame.format(number),
            PatientID=patient,
        )  # fmt: skip
    found = find_dicom(tmp_path, KNOWN)
    assert len(found.cases) == cases
    assert any("a StudyDate each" in text for text in found.cases[0].warnings) == (cases == 1)
