"""Which series of an examination is taken for which modality, and which is a question."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import RLELossless
from small_dicom import GRID, OBLIQUE, SHAPE, spoil, volume, write_series

from mixmfl.data.cases import Case, MappingEntry
from mixmfl.data.dicom.cases import find_dicom
from mixmfl.data.grid import Grid
from mixmfl.data.modalities import Modalities

CORONAL = Grid(SHAPE, GRID.spacing, (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 0, -1.0, 0, -1.0, 0))


def finer() -> tuple[np.ndarray, Grid]:
    """Return the same head with twice the voxels each way in the plane."""
    grid = Grid((8, 40, 36), (2.0, 0.5, 0.625), GRID.origin, OBLIQUE)
    return volume().repeat(2, 1).repeat(2, 2), grid


def only_case(folder: Path) -> Case:
    (case,) = find_dicom(folder, Modalities()).cases
    return case


def numbers(case: Case) -> dict[str, int]:
    """Return the number of the series that was taken for each modality."""
    return {name: series.header.number for name, series in case.images.items()}  # type: ignore[union-attr]


def write(folder: Path, number: int, text: str, *image: Any, **tags: Any) -> None:
    voxels, grid = image or (volume(number), GRID)
    write_series(
        folder / "p" / str(number), voxels, grid, SeriesNumber=number, SeriesDescription=text,
        **tags,
    )  # fmt: skip


def test_an_angiography_is_no_t1_though_it_has_most_voxels(tmp_path: Path) -> None:
    angio = {"ScanningSequence": "GR", "EchoTime": 3.6, "RepetitionTime": 22}
    write(tmp_path, 3, "t1_se_tra")
    write(tmp_path, 5, "TOF_3D_multi-slab", *finer(), AngioFlag="Y", **angio)
    write(tmp_path, 6, "multi-slab", *finer(), AngioFlag="N", **angio)
    case = only_case(tmp_path)
    assert numbers(case) == {"t1": 3}
    assert any("series 5" in note and "(angiography" in note for note in case.notes)
    assert any("series 6" in note and "(not recognised" in note for note in case.notes)


def test_what_is_recognised_by_words_goes_before_what_times_suggest(tmp_path: Path) -> None:
    write(tmp_path, 3, "T2 tra")
    write(tmp_path, 4, "head", *finer(), EchoTime=100, RepetitionTime=4000)
    assert numbers(only_case(tmp_path)) == {"t2": 3}


def test_a_dynamic_series_does_not_displace_the_one_that_can_be_read(tmp_path: Path) -> None:
    write(tmp_path, 9, "t1_mprage_KM", ContrastBolusAgent="Gadovist")
    for time in range(3):
        write_series(
            tmp_path / "p" / f"dyn{time}", volume(time), series="1.2.8", SeriesNumber=8,
            SeriesDescription="t1_vibe KM", TemporalPositionIdentifier=time + 1,
            NumberOfTemporalPositions=3, InstanceNumber=lambda z: z + 1,
        )  # fmt: skip
    case = only_case(tmp_path)
    assert numbers(case) == {"t1c": 9}
    assert "set aside: series 8 't1_vibe KM' (dynamic (3 time points))" in case.notes


def test_where_the_best_cannot_be_read_the_next_is_taken_and_said(tmp_path: Path) -> None:
    write(tmp_path, 2, "FLAIR")
    write(tmp_path, 3, "FLAIR 3D", *finer())
    spoil(tmp_path / "p" / "3", lambda content: setattr(content, "PixelData", b"\0" * 200))
    case = only_case(tmp_path)
    assert numbers(case) == {"flair": 2}
    assert len(case.warnings) == 1
    assert case.warnings[0].startswith("series 3 'FLAIR 3D' is no flair: it cannot be read (IM0002")


def test_a_compressed_series_that_cannot_be_decoded_is_not_taken_before_another(
    tmp_path: Path,
) -> None:
    write(tmp_path, 2, "FLAIR")
    write(tmp_path, 3, "FLAIR 3D", *finer())
    for file in (tmp_path / "p" / "3").iterdir():
        content: Any = pydicom.dcmread(file)
        content.compress(RLELossless)
        content.PixelData = content.PixelData[:-60] + b"\0" * 60
        content.save_as(file)
    case = only_case(tmp_path)
    assert numbers(case) == {"flair": 2}
    assert "series 3 'FLAIR 3D' is no flair: it cannot be read" in case.warnings[0]


@pytest.mark.parametrize(
    ("one", "other", "days"),
    [
        ({"AcquisitionDate": "20200101"}, {"AcquisitionDate": "20210101"}, "366 days after t1"),
        ({"SeriesDate": "20200101", "StudyDate": ""}, {"SeriesDate": "20200103"}, "2 days after"),
        ({"AcquisitionDate": "20200101"}, {"AcquisitionDateTime": "20200102001500"}, ""),
        ({"AcquisitionDate": "20200101"}, {"AcquisitionDate": ""}, ""),
        ({"AcquisitionDate": "20200101"}, {}, ""),
    ],
)
def test_images_of_one_study_that_were_acquired_on_other_days_have_a_warning(
    one: dict[str, str], other: dict[str, str], days: str, tmp_path: Path
) -> None:
    write(tmp_path, 2, "T1", **one)
    write(tmp_path, 3, "FLAIR", **{"StudyDate": one.get("StudyDate", "20210312"), **other})
    case = only_case(tmp_path)
    assert set(case.images) == {"t1", "flair"}
    assert [days in warning for warning in case.warnings] == [True] * bool(days)


def test_alike_repetitions_take_the_last_with_a_warning(tmp_path: Path) -> None:
    write(tmp_path, 2, "FLAIR")
    write(tmp_path, 4, "FLAIR")
    case = only_case(tmp_path)
    assert numbers(case) == {"flair": 4}
    assert case.warnings == (
        "flair was made more than once, as series 2 'FLAIR' and series 4 'FLAIR'; the last is "
        "taken",
    )


@pytest.mark.parametrize("number", [0, 4])
def test_alike_series_whose_numbers_do_not_order_them_are_a_question(
    tmp_path: Path, number: int
) -> None:
    write(tmp_path, 1, "T2")
    for seed, folder in enumerate("ab"):
        write_series(tmp_path / "p" / folder, volume(seed), SeriesNumber=number,
                     SeriesDescription="FLAIR")  # fmt: skip
    case = only_case(tmp_path)
    assert numbers(case) == {"t2": 1}
    assert "are alike, and their numbers do not say which is the last" in case.warnings[0]


def test_the_same_images_under_new_identifiers_count_once(tmp_path: Path) -> None:
    write(tmp_path, 1, "T2")
    for folder in "ab":
        write_series(tmp_path / "p" / folder, volume(), SeriesNumber=4, SeriesDescription="FLAIR")
    case = only_case(tmp_path)
    assert (numbers(case), case.warnings) == ({"flair": 4, "t2": 1}, ())


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("Sag CUBE T1", "ORIG Sag CUBE T1"),
        ("t1_mp2rage_sag_UNI-DEN", "t1_mp2rage_sag_UNI_Images"),
        ("t1_vibe_dixon_tra_W", "t1_vibe_dixon_tra_in"),
        ("WATER: Ax LAVA-Flex", "InPhase: Ax LAVA-Flex"),
    ],
)
def test_of_two_images_of_one_acquisition_that_a_vendor_stores_the_better_is_taken(
    tmp_path: Path, text: str, other: str
) -> None:
    write(tmp_path, 4, other)
    write(tmp_path, 5, text)
    case = only_case(tmp_path)
    assert (numbers(case), case.warnings) == ({"t1": 5}, ())


def test_a_width_that_is_not_the_scanners_is_told(tmp_path: Path) -> None:
    write(tmp_path, 1, "FLAIR", ReconstructionDiameter=24)
    assert only_case(tmp_path).warnings == ()
    write(tmp_path, 1, "FLAIR", ReconstructionDiameter=240)  # PixelSpacing is of another matrix
    assert "22.5 mm wide by PixelSpacing and 240 mm by" in only_case(tmp_path).warnings[0]


@pytest.mark.parametrize(("count", "by"), [(8, 1.0), (8, -15.0), (8, 16.0), (5, 16.0)])
def test_parts_of_one_acquisition_are_no_repetition_and_none_is_taken(
    tmp_path: Path, count: int, by: float
) -> None:
    above = Grid((count, *SHAPE[1:]), GRID.spacing, (-10.0, 4.0, 7.0 + by), OBLIQUE)
    write(tmp_path, 1, "T2")
    write(tmp_path, 2, "FLAIR")
    write(tmp_path, 4, "FLAIR", volume()[:count], above)
    case = only_case(tmp_path)
    assert numbers(case) == {"t2": 1}
    assert "fill each other's gaps or follow on each other, like parts" in case.warnings[0]


def test_a_t1_after_another_is_taken_with_a_warning_and_without_words_a_question(
    tmp_path: Path,
) -> None:
    doubt = "series 7 't1_mprage_sag' was made after series 2 't1_se_tra', and nothing says whether"
    write(tmp_path / "a", 2, "t1_se_tra")
    write(tmp_path / "a", 7, "t1_mprage_sag", *finer())
    case = only_case(tmp_path / "a")
    assert numbers(case) == {"t1": 7}
    assert doubt in case.warnings[0]
    write(tmp_path / "a", 9, "t1_mprage_sag KM", *finer())
    assert only_case(tmp_path / "a").warnings == ()
    times = {"EchoTime": 9, "RepetitionTime": 500}
    write(tmp_path / "b", 1, "T2")
    write(tmp_path / "b", 2, "t1_se_tra", **times)
    write(tmp_path / "b", 7, "", *finer(), ScanningSequence=["GR", "IR"], SequenceVariant="MP")
    case = only_case(tmp_path / "b")
    assert numbers(case) == {"t2": 1}
    assert "t1 is left out: series 7 '' was made after series 2" in case.warnings[0]


def test_images_in_several_frames_of_reference_are_a_warning(tmp_path: Path) -> None:
    warning = "its images have 2 frames of reference (flair, t2; t1)"
    write(tmp_path, 1, "T2")
    write(tmp_path, 2, "FLAIR")
    write(tmp_path, 3, "T1", FrameOfReferenceUID="1.2.88")
    assert only_case(tmp_path).warnings[0].startswith(warning)
    write(tmp_path / "other", 1, "T2", FrameOfReferenceUID="1.2.89")  # each has its own: no news
    write(tmp_path / "other", 2, "T1", FrameOfReferenceUID="1.2.90")
    assert only_case(tmp_path / "other").warnings == ()


def test_the_magnitude_of_an_swi_is_no_swi(tmp_path: Path) -> None:
    write(tmp_path, 1, "Mag_Images", ProtocolName="t2_swi_tra")
    write(tmp_path, 4, "SWI_Images", ProtocolName="t2_swi_tra")
    assert numbers(only_case(tmp_path)) == {"swi": 4}


def test_two_alike_t1_of_which_one_may_be_after_an_agent_are_a_question(tmp_path: Path) -> None:
    write(tmp_path, 1, "FLAIR")
    write(tmp_path, 2, "t1_mprage_sag")
    write(tmp_path, 7, "t1_mprage_sag")
    case = only_case(tmp_path)
    assert numbers(case) == {"flair": 1}
    assert "t1 is left out: series 2 't1_mprage_sag' and series 7" in case.warnings[0]
    assert "the later may be after a contrast agent; --mapping decides" in case.warnings[0]


def test_different_series_that_fit_equally_well_are_a_question(tmp_path: Path) -> None:
    write(tmp_path, 1, "FLAIR")
    write(tmp_path, 2, "t2_tse_tra")
    write(tmp_path, 3, "t2_tse_tra_fs")
    case = only_case(tmp_path)
    assert numbers(case) == {"flair": 1}
    assert case.warnings == (
        "t2 is left out: series 2 't2_tse_tra' and series 3 't2_tse_tra_fs' fit it equally well; "
        "--mapping decides",
    )
    assert any("fits t2 as well as series 3 't2_tse_tra_fs'" in note for note in case.notes)


def test_axial_goes_before_coronal_and_the_whole_head_before_a_finer_part(tmp_path: Path) -> None:
    write(tmp_path, 2, "t2_tse_tra")
    write(tmp_path, 3, "t2_tse_cor", volume(), CORONAL)
    part = volume()[:, :10, :9].repeat(4, 1).repeat(4, 2)
    write(
        tmp_path, 4, "t2_tse_tra", part, Grid((8, 40, 36), (2.0, 0.25, 0.3), GRID.origin, OBLIQUE)
    )
    assert numbers(only_case(tmp_path)) == {"t2": 2}


def test_other_parts_of_the_body_are_set_aside_beside_a_head(tmp_path: Path) -> None:
    write(tmp_path, 2, "T2 sag", *finer(), BodyPartExamined="CSPINE")
    write(tmp_path, 3, "T2 tra", BodyPartExamined="HEAD")
    case = only_case(tmp_path)
    assert numbers(case) == {"t2": 3}
    assert "set aside: series 2 'T2 sag' (is of CSPINE; others are of the head)" in case.notes


def test_a_table_does_not_hide_why_a_series_was_set_aside(tmp_path: Path) -> None:
    write(tmp_path, 1, "T1 ax", BodyPartExamined="HEAD")
    write(tmp_path, 2, "T2 sag", BodyPartExamined="KNEE")
    uid = find_dicom(tmp_path, Modalities()).rows[1].series.uid
    for modality, why in (("", "mapping; else t2 ("), ("t1c", "mapping; else t2 ("), ("t2", "")):
        mapping = {uid: MappingEntry("", modality, "table, line 2", is_file=False)}
        (row,) = (r for r in find_dicom(tmp_path, Modalities(), mapping).rows if r.given)
        assert row.modality == modality
        assert row.why.startswith(why or "mapping; is of KNEE")
        assert row.why.endswith("; is of KNEE, others are of the head")


def test_words_tell_another_part_of_the_body_where_the_header_does_not(tmp_path: Path) -> None:
    write(tmp_path, 1, "AX FLAIR")
    write(tmp_path, 2, "SAG T1 C-SPINE", *finer(), BodyPartExamined="HEAD")
    write(tmp_path, 3, "AX T1")
    case = only_case(tmp_path)
    assert numbers(case) == {"flair": 1, "t1": 3}
    note = "set aside: series 2 'SAG T1 C-SPINE' (is of CSPINE; a FLAIR is of the head)"
    assert note in case.notes
    write(tmp_path, 3, "AX T1 Kopf/Hals", BodyPartExamined="NECK")
    write(tmp_path, 4, "AX T2", BodyPartExamined="TESTA")  # not known, so not surely elsewhere
    write(tmp_path, 5, "T2 sag HWS", *finer(), ProtocolName="Kopf HWS", BodyPartExamined="HEAD")
    assert numbers(only_case(tmp_path)) == {"flair": 1, "t1": 3, "t2": 4}


def test_a_part_of_the_body_that_the_flair_has_in_its_header_too_is_doubted(tmp_path: Path) -> None:
    write(tmp_path, 1, "AX FLAIR", BodyPartExamined="PELVIS")
    write(tmp_path, 2, "AX T1", BodyPartExamined="PELVIS")
    case = only_case(tmp_path)
    assert numbers(case) == {"flair": 1, "t1": 2}
    (warning,) = case.warnings
    assert "'AX FLAIR' HEAD, series 2 'AX T1' PELVIS), but these series lie at one place" in warning


@pytest.mark.parametrize("away", [0, 300])
def test_a_part_of_the_body_by_header_alone_is_a_question_where_the_head_is(
    tmp_path: Path, away: float
) -> None:
    below = Grid(GRID.shape, GRID.spacing, (-10.0, 4.0, 7.0 - away), GRID.direction)
    write(tmp_path, 1, "AX FLAIR", BodyPartExamined="HEAD")
    write(tmp_path, 2, "AX T1", volume(2), below, BodyPartExamined="PELVIS")
    case = only_case(tmp_path)
    assert numbers(case) == {"flair": 1}
    why = "BodyPartExamined says PELVIS, but it lies where the head does; --mapping decides"
    assert [why in warning for warning in case.warnings] == ([] if away else [True])


def test_a_t1_later_than_the_one_without_an_agent_may_have_it(tmp_path: Path) -> None:
    write(tmp_path, 2, "AX T1 NONCON")
    write(tmp_path, 3, "SAG 3D T1", *finer())
    assert numbers(only_case(tmp_path)) == {"t1": 2}
    write(tmp_path, 4, "AX T1 POST")  # so that the one before says by silence that it has none
    assert numbers(only_case(tmp_path)) == {"t1": 3, "t1c": 4}


def test_images_of_two_levels_of_the_spine_are_a_question(tmp_path: Path) -> None:
    write(tmp_path, 1, "SAG T1 LUMBAR")
    write(tmp_path, 2, "SAG T2 C-SPINE")
    write(tmp_path, 3, "AX STIR")
    found = find_dicom(tmp_path, Modalities())
    assert not found.cases
    (refused,) = found.refused
    listed = "(series 1 'SAG T1 LUMBAR' LSPINE, series 2 'SAG T2 C-SPINE' CSPINE)"
    assert f"the parts of the body that headers name differ {listed}; --mapping" in refused.reason
    write(tmp_path, 2, "SAG T2 SPINE")  # the whole of it, lumbar spine included
    assert numbers(only_case(tmp_path)) == {"t1": 1, "t2": 2}


def test_an_agent_that_every_series_names_tells_no_t1_from_a_t1c(tmp_path: Path) -> None:
    for number, text in enumerate(("AX T2", "AX FLAIR", "AX T1", "SAG T1 POST"), start=1):
        write(tmp_path, number, text, ContrastBolusAgent="Gadovist")
    case = only_case(tmp_path)
    assert numbers(case) == {"flair": 2, "t1c": 4, "t2": 1}
    assert any("every series of the examination names the contrast" in text for text in case.notes)
    write(tmp_path, 5, "DWI")  # without an agent: so the field was filled in series by series
    write(tmp_path, 4, "")
    assert numbers(only_case(tmp_path))["t1c"] == 3


def test_a_series_whose_words_leave_it_open_is_a_question(tmp_path: Path) -> None:
    write(tmp_path, 1, "AX FLAIR")
    write(tmp_path, 2, "AX T1 p.i.")
    case = only_case(tmp_path)
    assert numbers(case) == {"flair": 1}
    (warning,) = case.warnings
    assert warning.startswith("series 2 'AX T1 p.i.' is not used, not sure: description")
    assert warning.endswith("'p', 'i' may tell of a contrast agent; --mapping decides")


def test_an_agent_that_every_series_names_decides_on_no_unknown_word(tmp_path: Path) -> None:
    for number, text in enumerate(("AX T2", "AX T1 xyz"), start=1):
        write(tmp_path, number, text, ContrastBolusAgent="Gadovist")
    assert numbers(only_case(tmp_path)) == {"t2": 1}
    write(tmp_path, 3, "DWI")  # without an agent: so the field was filled in series by series
    assert numbers(only_case(tmp_path))["t1c"] == 2


def test_an_original_goes_before_what_was_reformatted(tmp_path: Path) -> None:
    write(tmp_path, 1, "T1 MPRAGE", volume(), CORONAL)
    write(tmp_path, 2, "T1 MPRAGE ax reformat")
    assert numbers(only_case(tmp_path)) == {"t1": 1}


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"ComplexImageComponent": "PHASE"}, "phase (ComplexImageComponent PHASE)"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "P", "ND"]}, "phase (ImageType P)"),
        ({"AcquisitionContrast": "TOF"}, "angiography (AcquisitionContrast TOF)"),
        ({"ImageType": ["DERIVED", "PRIMARY", "MPR"]}, "derived (reformatted)"),
        ({"ImageType": ["DERIVED", "PRIMARY", "MIP"]}, "projection (ImageType MIP)"),
        ({"ImageType": ["DERIVED", "SECONDARY"]}, "derived (secondary)"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "FAT"]}, "fat image (ImageType FAT)"),
        ({"SequenceName": "*fm2d2r"}, "field map (SequenceName *fm2d2r)"),
        ({"SequenceName": "*fl3d1r_t70"}, "angiography (SequenceName *fl3d1r_t70)"),
        ({"SeriesDescription": "t1_sub"}, "subtraction (description 't1_sub')"),
        ({"SeriesDescription": "(5-3) T1 post"}, "subtraction (description '(5-3) T1 post')"),
        ({"ImageType": ["DERIVED", "PRIMARY", "T1", "T1"]}, "map (ImageType T1)"),
        (
            {"ImageType": ["DERIVED", "PRIMARY", "DIXON", "FAT_FRACTION"]},
            "map (ImageType FAT_FRACTION)",
        ),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "R_IR", "R", "IR"]}, "real part (ImageType R_IR)"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M_PCA", "M"]}, "angiography (ImageType M_PCA)"),
    ],
)
def test_what_is_none_to_segment_is_known_for_what_it_is(
    tmp_path: Path, tags: dict[str, Any], reason: str
) -> None:
    write_series(tmp_path / "p", volume(), **{"SeriesDescription": "t1", **tags})
    (refused,) = find_dicom(tmp_path, Modalities()).refused
    assert refused.reason.endswith(f": {reason}")


def test_the_inversions_of_an_mp2rage_are_not_its_t1(tmp_path: Path) -> None:
    for number, inversion in enumerate((700, 2500), start=1):
        write(tmp_path, number, "t1_mp2rage_sag", InversionTime=inversion)
    write(tmp_path, 3, "t1_mp2rage_sag", ImageType=["DERIVED", "PRIMARY", "M", "ND", "UNI"])
    case = only_case(tmp_path)
    assert numbers(case) == {"t1": 3}
    assert "one inversion of an MP2RAGE (InversionTime 2500 ms)" in " ".join(case.notes)


def test_an_agent_of_no_volume_is_a_question(tmp_path: Path) -> None:
    write(tmp_path, 1, "AX FLAIR")
    write(tmp_path, 2, "AX T1", ContrastBolusAgent="Gadovist", ContrastBolusVolume=0)
    case = only_case(tmp_path)
    assert numbers(case) == {"flair": 1}
    assert "the contrast agent 'Gadovist 0 ml'" in case.warnings[0]
    write(tmp_path, 2, "AX T1", ContrastBolusVolume=7.5)  # of an agent without a name
    assert numbers(only_case(tmp_path)) == {"flair": 1, "t1c": 2}


def test_an_agent_is_known_by_its_code(tmp_path: Path) -> None:
    agent = pydicom.Dataset()
    agent.CodeValue, agent.CodeMeaning = "C-B0326", "Gadobutrol"
    write(tmp_path, 1, "AX T1")
    write(tmp_path, 2, "AX T1", ContrastBolusAgentSequence=[agent])
    case = only_case(tmp_path)
    assert numbers(case) == {"t1": 1, "t1c": 2}
    assert "Gadobutrol" in " ".join(case.notes)


@pytest.mark.parametrize(
    ("start", "acquired", "modality"),
    [("235500", "000510", "t1c"), ("000500", "235510", "t1"), ("102000", "101900.5", "t1")],
)
def test_midnight_may_lie_between_an_injection_and_an_image(
    tmp_path: Path, start: str, acquired: str, modality: str
) -> None:
    write(tmp_path, 1, "AX T1", ContrastBolusStartTime=start, AcquisitionTime=acquired)
    assert numbers(only_case(tmp_path)) == {modality: 1}


def test_mprage_and_parallel_imaging_are_originals(tmp_path: Path) -> None:
    inverted = {"ScanningSequence": ["GR", "IR"], "EchoTime": 2.9, "InversionTime": 900}
    write(tmp_path, 1, "t1_mpr_ns_sag_p2_iso", RepetitionTime=1900, **inverted)
    write(tmp_path, 2, "Ax T2 FLAIR ASSET")
    assert numbers(only_case(tmp_path)) == {"t1": 1, "flair": 2}


def test_magnitude_and_phase_of_one_series_are_told_apart(tmp_path: Path) -> None:
    for number, component in enumerate(("MAGNITUDE", "PHASE")):
        write_series(
            tmp_path / "p" / component, volume(number), series="1.2.5", SeriesDescription="T2",
            ComplexImageComponent=component,
        )  # fmt: skip
    case = only_case(tmp_path)
    assert np.array_equal(case.images["t2"].read()[0], volume() * 0.5 + 3)  # type: ignore[union-attr]
    assert any("phase (ComplexImageComponent PHASE)" in note for note in case.notes)
