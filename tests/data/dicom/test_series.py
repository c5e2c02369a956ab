"""DICOM folders as scanners and archives leave them; files are written by pydicom."""

import csv
import math
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid
from small_dicom import GRID, OBLIQUE, SHAPE, spoil, volume, write_enhanced, write_series

from mixmfl.core.errors import DataError
from mixmfl.data.cases import MappingEntry
from mixmfl.data.dataset_card import Segment
from mixmfl.data.dicom.cases import find_all, find_dicom
from mixmfl.data.dicom.files import quiet
from mixmfl.data.dicom.series import Series, find_series
from mixmfl.data.grid import Grid, grid_difference
from mixmfl.data.image import read_image, read_labels, write_image
from mixmfl.data.load_case import load_case
from mixmfl.data.mapping import mapping_table, read_mapping
from mixmfl.data.modalities import Modalities
from mixmfl.inference.dicom_seg import lab_of, write_parametric_map, write_segmentation

Command = Callable[..., int]
KNOWN = Modalities()


def taken(folder: Path, mapping: Mapping[str, MappingEntry] | None = None) -> dict[str, set[str]]:
    return {case.name: set(case.images) for case in find_dicom(folder, KNOWN, mapping).cases}


def test_slices_become_the_volume_that_they_were_cut_from(tmp_path: Path) -> None:
    voxels = volume()
    write_series(tmp_path / "p1" / "a" / "b", voxels, SeriesDescription="T1 MPRAGE")
    (case,) = find_dicom(tmp_path, KNOWN).cases
    assert (case.name, list(case.images)) == ("p1", ["t1"])
    loaded = load_case(case)
    assert grid_difference(loaded.grid, GRID) is None
    assert np.array_equal(loaded.images["t1"], voxels * 0.5 + 3)  # this grid is canonical
    assert case.notes == ("t1 is series 1 'T1 MPRAGE' (description 'T1 MPRAGE')",)


def test_a_coronal_series_from_back_to_front_keeps_its_places(tmp_path: Path) -> None:
    from mixmfl.data.image import write_image

    coronal = Grid(SHAPE, (2.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 0, -1.0, 0, -1.0, 0))
    write_series(tmp_path / "p1", volume(), coronal, SeriesDescription="T2")
    loaded = load_case(find_dicom(tmp_path, KNOWN).cases[0])
    write_image(tmp_path / "t2.nii.gz", (volume() * 0.5 + 3).astype(np.float32), coronal)
    from mixmfl.data.cases import Case

    twin = load_case(Case("p1", {"t2": tmp_path / "t2.nii.gz"}))
    assert np.array_equal(loaded.images["t2"], twin.images["t2"])
    assert grid_difference(loaded.canonical, twin.canonical) is None


def test_series_of_several_patients_mixed_in_one_folder_are_told_apart(tmp_path: Path) -> None:
    for number, study in enumerate(("1.1", "1.2")):
        for word in ("T1", "T2 FLAIR"):
            folder = tmp_path / "parts" / f"{number}{word}"
            write_series(folder, volume(), study=study, SeriesDescription=word)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, file in enumerate(sorted((tmp_path / "parts").rglob("IM*"))):
        shutil.move(file, mixed / f"{number}.dcm")
    shutil.rmtree(tmp_path / "parts")
    found = taken(tmp_path)
    assert list(found.values()) == [{"t1", "flair"}] * 2
    assert all(name.startswith("study-") for name in found)
    assert "Doe" not in "".join(found)


def test_localisers_derived_images_and_repeated_scans_are_set_aside_and_named(
    tmp_path: Path,
) -> None:
    p, small = tmp_path / "p", volume()[:3]
    write_series(p / "1", small, SeriesNumber=1, SeriesDescription="localizer")
    write_series(p / "2", volume(), SeriesNumber=2, SeriesDescription="flair_tra")
    write_series(p / "3", volume(1), SeriesNumber=3, SeriesDescription="flair_tra")
    write_series(
        p / "4", volume(), SeriesNumber=4, SeriesDescription="t1 MPR cor",
        ImageType=["DERIVED", "SECONDARY", "MPR"],
    )  # fmt: skip
    write_series(p / "5", volume(), SeriesNumber=5, SeriesDescription="SUB_t1")
    write_series(p / "6", small, SeriesNumber=6, SeriesDescription="t2_tra")
    write_series(p / "7", volume(), SeriesNumber=7, SeriesDescription="Report", Modality="OT")
    write_series(p / "8", volume(), SeriesNumber=8, SeriesDescription="???", ScanningSequence="RM")
    (p / "9").mkdir()
    (p / "9" / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM" + b"cut")
    (case,) = find_dicom(tmp_path, KNOWN).cases
    assert set(case.images) == {"flair"}
    assert case.images["flair"].name == "series 3 'flair_tra'"  # the later of equals
    aside = {note.split("'")[0][-2]: note for note in case.notes if note.startswith("set aside")}
    assert aside["1"] == "set aside: series 1 'localizer' (localiser (description 'localizer'))"
    assert aside["2"] == (
        "set aside: series 2 'flair_tra' (another flair; series 3 'flair_tra' is taken)"
    )
    assert "(derived (reformatted))" in aside["4"]
    assert "(subtraction (description 'SUB_t1'))" in aside["5"]
    assert "(only 3 slices)" in aside["6"]
    assert "(is OT, not MR)" in aside["7"]
    assert "not recognised (RM, no times)" in aside["8"]


def test_two_stacks_in_one_series_are_left_out_with_a_warning(tmp_path: Path) -> None:
    write_series(tmp_path / "p" / "t1", volume(), SeriesDescription="t1_se_tra")
    coronal = replace(GRID, direction=(1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, -1.0, 0.0))
    uid = write_series(tmp_path / "p" / "t2", volume(), SeriesDescription="t2_tse")
    write_series(
        tmp_path / "p" / "more", volume(1), coronal, series=uid, SeriesDescription="t2_tse",
        InstanceNumber=lambda z: 30 + z,
    )  # fmt: skip
    (case,) = find_dicom(tmp_path, Modalities()).cases
    assert list(case.images) == ["t1"]
    assert "t2 is left out: series 1 't2_tse' has images in several" in case.warnings[0]


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (60.0, "has 2 stacks of 8 and 8 slices that are 2.00 mm apart, with 46.00 mm between"),
        (9.0, "slices are missing, or two stacks overlap"),
        (18.0, r"4.00 mm behind slice 8, 2.00 mm elsewhere\); slices are missing$"),
    ],
)
def test_two_stacks_of_one_direction_in_one_series_are_refused_for_what_they_are(
    by: float, message: str, tmp_path: Path
) -> None:
    above = replace(GRID, origin=(*GRID.origin[:2], GRID.origin[2] + by))
    uid = write_series(tmp_path / "a", volume())
    write_series(tmp_path / "b", volume(1), above, series=uid)
    (series,) = find_series(tmp_path).series
    with pytest.raises(DataError, match=message):
        series.read()


def test_two_orders_for_one_examination_are_warned_of_and_the_table_joins_them(
    tmp_path: Path,
) -> None:
    frame: dict[str, Any] = {"FrameOfReferenceUID": "1.2.9"}
    first = write_series(tmp_path / "a", volume(), SeriesDescription="FLAIR", **frame)
    second = write_series(
        tmp_path / "b", volume(1), study="1.2.4", SeriesDescription="t1 KM", **frame
    )
    cases = find_dicom(tmp_path, Modalities()).cases
    assert [case.name for case in cases] == ["a", "b"]
    for case, other in zip(cases, ("b", "a"), strict=True):
        assert case.warnings == (
            f"is of the same patient, day and frame of reference as {other}, and may be of one "
            "examination with it; if so, give both one case by --mapping",
        )
    mapping = {first: MappingEntry("p", "flair", ""), second: MappingEntry("p", "t1c", "")}
    (joined,) = find_dicom(tmp_path, Modalities(), mapping).cases
    assert list(joined.images) == ["flair", "t1c"]


def test_images_that_a_converter_left_beside_dicom_are_set_aside(tmp_path: Path) -> None:
    uid = write_series(tmp_path / "p" / "dicom", volume(), SeriesDescription="t1 tra")
    copy = tmp_path / "p" / "nifti" / "t1.nii.gz"
    copy.parent.mkdir()
    write_image(copy, volume().astype(np.float32), GRID)
    found, _ = find_all(tmp_path, Modalities())
    (case,) = found.cases
    assert case.images["t1"].name == "series 1 't1 tra'"
    assert "its DICOM series are taken, and not p/nifti/t1.nii.gz" in case.warnings[0]
    assert [record.why for record in found.aside] == ["another t1; series 1 't1 tra' is taken"]
    chosen = {
        uid: MappingEntry("", "", ""),
        "p/nifti/t1.nii.gz": MappingEntry("", "t1", "", is_file=True),
    }
    found, _ = find_all(tmp_path, Modalities(), chosen)
    assert [case.images["t1"] for case in found.cases] == [copy]


def test_two_echoes_of_one_series_are_two_images(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"SeriesDescription": "dual echo", "RepetitionTime": 3000}
    uid = write_series(tmp_path / "p" / "a", volume(), EchoTime=20, **plain)
    write_series(tmp_path / "p" / "b", volume(1), series=uid, EchoTime=90, **plain)
    assert taken(tmp_path) == {"p": {"pd", "t2"}}


def two_stacks(folder: Path, by: float, **other: Any) -> list[Series]:
    """Write a stack of 4 mm steps and one ``by`` mm above it as one series; return its images."""
    step = replace(GRID, spacing=(4.0, *GRID.spacing[1:]))
    above = replace(step, origin=(*GRID.origin[:2], GRID.origin[2] + by))
    tags: dict[str, Any] = {"series": "1.2.7", "SliceThickness": 4.0, "EchoTime": 90}
    tags["RepetitionTime"] = 5000
    write_series(folder / "a", volume(), step, **{**tags, "AcquisitionNumber": 1})
    write_series(folder / "b", volume(1), above, **{**tags, "AcquisitionNumber": 2, **other})
    return list(find_series(folder).series)


@pytest.mark.parametrize("by", [2.0, 32.0])
@pytest.mark.parametrize(
    "other",
    [
        {"EchoTime": 20},
        {"RepetitionTime": 9000, "InversionTime": 2500},
        {"ContrastBolusAgent": "Gd"},
    ],
)
def test_images_made_in_other_ways_at_places_of_their_own_are_two_volumes(
    tmp_path: Path, by: float, other: dict[str, Any]
) -> None:
    one, two = two_stacks(tmp_path, by, **other)
    assert one.grid is not None
    assert two.grid is not None
    assert one.uid != two.uid
    assert one.grid.shape == two.grid.shape == SHAPE
    assert one.grid.spacing[0] == 4
    agents = {one.header.agent, two.header.agent}
    assert agents == {"", other.get("ContrastBolusAgent", "")}
    read = {series.read()[0].tobytes() for series in (one, two)}
    assert read == {(volume(n) * 0.5 + 3).astype(np.float32).tobytes() for n in (0, 1)}


def test_acquisitions_whose_slices_overlap_are_two_volumes_and_concatenations_one(
    tmp_path: Path,
) -> None:
    assert [series.slices for series in two_stacks(tmp_path / "a", 2.0)] == [8, 8]
    near: dict[str, Any] = {"SliceThickness": 2.0, "EchoTime": 91, "RepetitionTime": 5400}
    write_series(tmp_path / "b", volume(), series="1.2.8", **near,
                 AcquisitionNumber=lambda z: 1 + z % 2)  # fmt: skip
    assert [series.slices for series in find_series(tmp_path / "b").series] == [8]


@pytest.mark.parametrize(
    ("tags", "kept", "words"),
    [
        ({"SpacingBetweenSlices": 2}, slice(0, 16, 2), "lie 4 mm apart, 2 mm by SpacingBetween"),
        (
            {},
            slice(0, 16, 2),
            "lie 4 mm apart, and are 2 mm thick; every second one may be missing",
        ),
        ({"SpacingBetweenSlices": 2}, slice(8, 16), "has image numbers that begin with 9"),
        ({"SliceThickness": 4}, slice(0, 16, 2), ""),
        ({"SpacingBetweenSlices": 1, "SliceThickness": 3}, slice(0, 16, 2), ""),  # the gap alone
    ],
)
def test_half_of_the_slices_is_known_by_their_distance_or_numbers(
    tmp_path: Path, tags: dict[str, Any], kept: slice, words: str
) -> None:
    write_series(tmp_path, np.concatenate([volume(), volume(1)]), InstanceNumber=lambda z: z + 1,
                 SliceLocation=lambda z: 2.0 * z, **tags)  # fmt: skip
    for file in tmp_path.iterdir():
        number = pydicom.dcmread(file, stop_before_pixels=True).InstanceNumber
        if number - 1 not in range(16)[kept]:
            file.unlink()
    (series,) = find_series(tmp_path).series
    assert series.slices == 8
    assert bool(series.warnings) == bool(words)
    assert words in "".join(series.warnings)


@pytest.mark.parametrize("name", ["SliceLocation", "InstanceNumber"])
def test_slices_with_exchanged_places_are_known_by_their_numbers(tmp_path: Path, name: str) -> None:
    def place(z: int, exchanged: tuple[int, int]) -> list[float]:
        at = exchanged[1 - exchanged.index(z)] if z in exchanged else z
        return [float(mm) for mm in np.array(GRID.origin) + np.array([0, 0, 2.0]) * at]

    voxels = np.concatenate([volume(), volume(1)])
    tags: dict[str, Any] = {"InstanceNumber": 1, name: lambda z: 16 - z}
    for folder, pair in (("a", (3, 11)), ("b", (3, 3))):
        tags["ImagePositionPatient"] = lambda z, p=pair: place(z, p)
        write_series(tmp_path / folder, voxels, **tags)
    (series,) = find_series(tmp_path / "a").series
    (warning,) = series.warnings
    assert warning.startswith(f"has 2 images whose place contradicts the order by {name}, first IM")
    (series,) = find_series(tmp_path / "b").series
    assert not series.warnings


def test_places_that_were_rounded_are_even_and_planes_aside_are_no_volume(tmp_path: Path) -> None:
    flat = replace(GRID, spacing=(5.5, 1.0, 1.25), origin=(0.0, 0.0, 0.0))

    def place(z: int, aside: float = 0) -> list[float]:
        return [aside, 0, float(round(5.5 * z))]

    write_series(tmp_path / "a", volume(), flat, ImagePositionPatient=place)
    (series,) = find_series(tmp_path / "a").series
    assert series.grid is not None
    assert series.grid.spacing[0] == pytest.approx(5.5, rel=0.03)
    write_series(tmp_path / "b", volume(), flat,
                 ImagePositionPatient=lambda z: place(z, 0.4 * (z == 4)))  # fmt: skip
    (series,) = find_series(tmp_path / "b").series
    with pytest.raises(DataError, match=r"not lie above each other \(IM000\d lies 0.40 mm aside\)"):
        series.read()


def test_a_series_whose_every_image_was_renamed_is_one(tmp_path: Path) -> None:
    write_series(tmp_path, volume(), SeriesInstanceUID=lambda z: f"1.2.8.{z}", SeriesNumber=4)
    (series,) = find_series(tmp_path).series
    assert np.array_equal(series.read()[0], volume() * 0.5 + 3)


def test_a_series_under_two_patients_or_examinations_is_refused_in_both(tmp_path: Path) -> None:
    voxels, grid = np.concatenate([volume(), volume(1)]), replace(GRID, shape=(16, 20, 18))
    write_series(tmp_path, voxels, grid, PatientID=lambda z: f"p{z % 2}", SeriesDescription="T2")
    one, two = find_series(tmp_path).series
    for series in (one, two):
        with pytest.raises(DataError, match="has 8 images, and 8 more of its SeriesInstanceUID"):
            series.read()
    found = find_dicom(tmp_path, KNOWN)
    assert len(found.cases) == 2


def test_b_values_and_mosaics_are_known_by_what_manufacturers_write(tmp_path: Path) -> None:
    owners = {"SIEMENS MR HEADER": (0x0019, 0x100C, "IS", "0"),
              "GEMS_PARM_01": (0x0043, 0x1039, "IS", ["1000000800", "8", "0", "0"]),
              "Philips Imaging DD 001": (0x2001, 0x1003, "FL", 1000.0),
              "of somebody else": (0x0019, 0x100C, "IS", "700")}  # fmt: skip
    for number, (creator, (group, element, kind, value)) in enumerate(owners.items()):
        write_series(tmp_path / str(number), volume()[:1], SeriesNumber=number, patient=str(number))
        own = [((group, 0x10), "LO", creator), ((group, element), kind, value)]

        def add(content: Any, own: list[Any] = own) -> None:
            for each in own:
                content.add_new(*each)

        spoil(tmp_path / str(number), add, 0)
    spoil(tmp_path / "0", lambda content: content.add_new((0x0019, 0x100A), "US", 25), 0)
    headers = [series.header for series in find_series(tmp_path).series]
    headers.sort(key=lambda header: header.number)
    assert [header.b_value for header in headers[:3]] == [0, 800, 1000]
    assert math.isnan(headers[3].b_value)
    assert ["MOSAIC" in header.image_type for header in headers] == [True, False, False, False]


def test_an_agent_is_known_by_its_ingredient_and_doubted_by_its_route_alone(tmp_path: Path) -> None:
    tags: dict[str, Any] = {"SeriesDescription": "T1 tra"}
    write_series(tmp_path / "a", volume(), ContrastBolusIngredient="GADOLINIUM", **tags)
    write_series(tmp_path / "b", volume(), ContrastBolusRoute="IV", study="1.2.4", **tags)
    native: dict[str, Any] = {
        "ContrastBolusRoute": "IV",
        "ContrastBolusVolume": 0,
        "patient": "Roe",
    }
    write_series(tmp_path / "c", volume(), **tags, **native, study="1.2.5")
    found = find_dicom(tmp_path, KNOWN)
    assert {case.name: set(case.images) for case in found.cases} == {"a": {"t1c"}, "c": {"t1"}}
    assert "the contrast agent 'of unknown name'" in found.refused[0].reason


def test_images_that_were_sent_again_into_another_folder_count_once(tmp_path: Path) -> None:
    """An archive gives each of them a new identifier."""
    write_series(tmp_path, volume() + 9, SeriesDescription="T2")
    for folder in "ab":
        write_series(tmp_path / folder, volume(), series="1.2.7", SeriesDescription="FLAIR")
    found = find_dicom(tmp_path, KNOWN)
    (case,) = found.cases
    assert read_image(case.images["flair"])[0].shape == SHAPE
    assert len(found.copies) == len(volume())


def test_a_part_of_a_divided_enhanced_image_is_warned_of(tmp_path: Path) -> None:
    half = {"SeriesDescription": "FLAIR", "InConcatenationTotalNumber": 2}
    write_enhanced(tmp_path, volume(), lambda frame, group: None, **half)
    (case,) = find_dicom(tmp_path, KNOWN).cases
    assert case.warnings == (
        "flair (series 1 'FLAIR') has 1 of 2 files of its concatenation; it lacks slices or images",
    )


def test_files_that_were_copied_twice_count_once(tmp_path: Path) -> None:
    write_series(tmp_path / "p" / "a", volume(), SeriesDescription="T1")
    shutil.copytree(tmp_path / "p" / "a", tmp_path / "p" / "copy")
    (case,) = find_dicom(tmp_path, KNOWN).cases
    assert load_case(case).images["t1"].shape == SHAPE


def without_place(content: Any) -> None:
    del content.ImagePositionPatient


def far_away(content: Any) -> None:
    content.ImagePositionPatient = [1e10, 0, 0]


def wider(content: Any) -> None:
    content.PixelSpacing = [2, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_place, r"series 1 'T1': has no place in space"),
        (far_away, r"has no place in space \(IM0002 is at 1e\+10, 0, 0 mm\)"),
        (wider, "its slices differ in direction or spacing"),
    ],
)
def test_slices_that_are_no_volume_are_refused(
    tmp_path: Path, change: Callable[[Any], None], message: str
) -> None:
    write_series(tmp_path / "p", volume(), SeriesDescription="T1")
    spoil(tmp_path, change)
    (case,) = find_dicom(tmp_path, KNOWN).cases  # only reading can tell
    with pytest.raises(DataError, match=message):
        load_case(case)


def test_missing_repeated_and_cut_slices_are_told(tmp_path: Path) -> None:
    for number, name in enumerate(("gap", "time", "cut")):
        write_series(tmp_path / name, volume(), study=f"1.{number}", SeriesDescription="T1")
    places = {
        float(pydicom.dcmread(file).ImagePositionPatient[2]): file
        for file in (tmp_path / "gap").iterdir()
    }
    places[13.0].unlink()
    again = tmp_path / "time" / "again"
    first = pydicom.dcmread(next(iter((tmp_path / "time").iterdir())))
    write_series(
        again, volume(1), study="1.1", series=first.SeriesInstanceUID, SeriesDescription="T1"
    )
    file = next(iter((tmp_path / "cut").iterdir()))
    file.write_bytes(file.read_bytes()[:-300])
    found = find_dicom(tmp_path, KNOWN)
    cases = {case.name: case for case in found.cases}
    with pytest.raises(DataError, match=r"not evenly spaced \(4.00 mm behind slice 3, 2.00 mm"):
        load_case(cases["gap"])
    (refused,) = found.refused
    assert (refused.name, "has 2 images of one place" in refused.reason) == ("time", True)
    with pytest.raises(DataError, match=r"holds 420 bytes of pixels, 720 needed"):
        load_case(cases["cut"])


def test_series_that_are_a_question_stay_one_in_a_table_that_nobody_edited(tmp_path: Path) -> None:
    folder, table = tmp_path / "cases", tmp_path / "mapping.csv"
    for number, text in enumerate(("T1 xyz", "FLAIR", "T2 tra", "T2 tra REPEAT", "scout"), 1):
        write_series(folder / "x" / str(number), volume(number), SeriesDescription=text,
                     SeriesNumber=number)  # fmt: skip
    found = find_dicom(folder, KNOWN)
    table.write_text(mapping_table(found.rows, folder))
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert [row["modality"] for row in rows] == ["?", "flair", "?", "?", "-"]
    again = find_dicom(folder, KNOWN, read_mapping(table, KNOWN))
    assert [case.warnings for case in again.cases] == [case.warnings for case in found.cases]
    (unsure,) = [row["series_uid"] for row in rows if row["series_number"] == "1"]
    table.write_text(f"case,modality,series_uid\ny,?,{unsure}\n")
    assert [
        each.name for each in find_dicom(folder, KNOWN, read_mapping(table, KNOWN)).refused
    ] == ["y"]


def test_a_row_with_a_case_of_dicom_in_other_capitals_is_refused(tmp_path: Path) -> None:
    uid = write_series(tmp_path / "P1" / "1", volume(), SeriesDescription="T1")
    mapping = {uid: MappingEntry("p1", "t1", "table, line 2")}
    with pytest.raises(DataError, match="line 2: case 'p1' differs from 'P1' in upper and lower"):
        find_dicom(tmp_path, KNOWN, mapping)


def test_a_mapping_that_a_user_edited_decides(tmp_path: Path) -> None:
    folder = tmp_path / "cases"
    one = write_series(folder / "x" / "1", volume(), SeriesDescription="weird", SeriesNumber=1)
    two = write_series(folder / "x" / "2", volume(), SeriesDescription="T1", SeriesNumber=2)
    three = write_series(folder / "x" / "3", volume(), SeriesDescription="T2", SeriesNumber=3)
    table = mapping_table(find_dicom(folder, KNOWN).rows, folder)
    rows = list(csv.DictReader(table.splitlines()))
    assert [(row["modality"], row["folder"]) for row in rows] == [
        ("-", "x/1"), ("t1", "x/2"), ("t2", "x/3")
    ]  # fmt: skip
    edited = tmp_path / "mapping.csv"
    text = "case;modality;series_uid\n"  # as some spreadsheets write it
    edited.write_text(f"{text}ward 7;T1ce;{one}\nward 7;-;{two}\n;flair;{three}\n", "utf-8-sig")
    mapping = read_mapping(edited, KNOWN)
    assert taken(folder, mapping) == {"ward 7": {"t1c"}, "x": {"flair"}}
    edited.write_text(f"{text}a;t1;{one}\na;t1;{two}\n")
    found = find_dicom(folder, KNOWN, read_mapping(edited, KNOWN))
    assert "the mapping gives t1 to 2 series" in found.refused[0].reason
    for content, message in (
        (f"{text}a;t7;{one}\n", "line 2: 't7' is no known modality"),
        (f"{text}\na;t1;{one}\na;;{two}\n", "line 4: '' is no known modality"),
        (f"{text}a;t1;{one}\na;t2;{one}\n", "line 3: series_uid .* is given before, in .* line 2"),
        (f"{text}../../evil;t1;{one}\n", r"line 2: a file cannot be named after case '../../evil'"),
        (f"{text}..;t1;{one}\n", "line 2: a file cannot be named after case"),
        (f"{text}a\\b;t1;{one}\n", "line 2: a file cannot be named after case"),
        (f"{text}a\0b;t1;{one}\n", "line 2: a file cannot be named after case|as a table"),
        ("a,b\n1,2\n", "needed is a table with columns"),
        ("case,modality,file,case\na,t1,b,c\n", "it has the column 'case' twice"),
        (f"case,modality,file{',x' * 998}\na,t1,b\n", "1001 columns, and at most 1000"),
        (f"case,modality,file\na,{'t1 ' * 400},b\n", "is no known modality"),
        ("", "needed is a table"),
    ):
        edited.write_text(content)
        with pytest.raises(DataError, match=message):
            read_mapping(edited, KNOWN)
    with pytest.raises(DataError, match=r"nowhere\.csv: there is no such table; mixmfl_pre"):
        read_mapping(tmp_path / "nowhere.csv", KNOWN)
    with pytest.raises(DataError, match=r"cannot be read as a table \(is a folder"):
        read_mapping(tmp_path, KNOWN)
    edited.write_text(f"{text};t1;{one}\n;;\n;t2;{two}9\n")  # an empty line, and a slip
    with pytest.raises(DataError, match=rf"mapping.csv, line 4: no series of .* '{two}9'"):
        find_dicom(folder, KNOWN, read_mapping(edited, KNOWN))


def test_a_mapping_writes_nothing_outside_the_folder_of_the_masks(
    model: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    uid = write_series(tmp_path / "cases" / "a", volume(), SeriesDescription="T1")
    table = tmp_path / "mapping.csv"
    table.write_text(f"case,modality,series_uid\n../evil,t1,{uid}\n")
    before = sorted(tmp_path.rglob("*"))
    asked = ["-i", tmp_path / "cases", "-o", tmp_path / "masks", "-m", model, "--mapping", table]
    assert command("mixmfl_predict", *asked) == 2
    assert "line 2: a file cannot be named after case '../evil'" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_dicom_beside_other_files_is_found_and_a_name_of_both_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", volume(), study="1.1", SeriesDescription="T1")
    write_series(tmp_path / "b", volume(), study="1.2", SeriesDescription="T1")
    for name in ("b", "c"):
        (tmp_path / name).mkdir(exist_ok=True)
        write_image(tmp_path / name / "t2.nii.gz", volume().astype(np.float32), GRID)
    found, rows = find_all(tmp_path, KNOWN)
    assert [case.name for case in found.cases] == ["a", "c"]
    (refused,) = found.refused
    assert refused.name == "b"
    assert "rename one, or set one aside by --mapping" in refused.reason
    assert len(rows) == 2
    write_image(tmp_path / "a" / "a.nii.gz", volume().astype(np.float32), GRID)  # a mask, maybe
    write_series(tmp_path / "d", volume(), study="1.3", SeriesDescription="localizer")
    write_image(tmp_path / "d" / "d.nii.gz", volume().astype(np.float32), GRID)
    found, _ = find_all(tmp_path, KNOWN)
    assert [case.name for case in found.cases] == ["a", "c"]
    assert found.cases[0].notes[-1].startswith("set aside: no known modality, only a/a.nii.gz")
    assert [item.name for item in found.refused] == ["b", "d"]  # each once, with all reasons
    assert "only d/d.nii.gz" in found.refused[1].reason
    assert "no series of a known modality" in found.refused[1].reason


def test_a_dicom_case_gets_the_mask_of_its_nifti_twin(
    model: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    dicom, nifti = tmp_path / "dicom", tmp_path / "nifti"
    for number, word in enumerate(("T1", "T2 FLAIR")):
        tags: dict[str, Any] = {"SeriesDescription": word, "SeriesNumber": number}
        write_series(dicom / "p" / str(number), volume(number), **tags)
        (nifti / "p").mkdir(parents=True, exist_ok=True)
        stored = (volume(number) * 0.5 + 3).astype(np.float32)
        write_image(nifti / "p" / f"{word.split()[-1]}.nii.gz", stored, GRID)
    table = tmp_path / "mapping.csv"
    assert command("mixmfl_predict", "-i", dicom, "--write-mapping", table) == 0
    assert command("mixmfl_predict", "-i", dicom, "--write-mapping", table) == 2
    asked = ["-i", dicom, "-m", model, "--mapping", table]
    assert command("mixmfl_predict", *asked, "-o", tmp_path / "a") == 0
    output = capsys.readouterr().out
    assert "p -> flair: series 1 'T2 FLAIR', t1: series 0 'T1'" in output
    assert "recognised 2 DICOM series, set aside 0\n" in output
    assert "1 mask in" in output
    assert command("mixmfl_predict", "-i", nifti, "-m", model, "-o", tmp_path / "b") == 0
    (one, grid), (other, other_grid) = (read_labels(tmp_path / x / "p.nii.gz") for x in "ab")
    assert grid_difference(grid, other_grid) is None
    assert np.array_equal(one, other)
    assert "p: made before by the same model" not in capsys.readouterr().out
    assert command("mixmfl_predict", *asked, "-o", tmp_path / "a") == 0
    assert "p: made before by the same model" in capsys.readouterr().out
    assert "Doe" not in (tmp_path / "a" / "cases.json").read_text()


def test_no_output_names_the_patient_of_a_case_that_is_refused(
    model: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    cases, out, log = tmp_path / "cases", tmp_path / "masks", tmp_path / "run.log"
    far = Grid(SHAPE, GRID.spacing, (500.0, 4.0, 7.0), OBLIQUE)
    for number, (word, grid) in enumerate((("t1_mprage", GRID), ("t2 tra", far))):
        tags: dict[str, Any] = {"SeriesDescription": word, "SeriesNumber": number}
        write_series(
            cases / "p" / str(number), volume(number), grid, patient="Muster^Erika", **tags
        )
    asked = ["-i", cases, "-m", model, "-o", out, "--log", log, "--dicom-seg", "--strict"]
    assert command("mixmfl_predict", *asked) == 1
    output = capsys.readouterr()
    assert "covers 0% of the head (series 1 't2 tra', series 0 't1_mprage')" in output.err
    written = [file for file in (log, *out.rglob("*")) if file.is_file()]
    assert {"run.log", "cases.csv", "cases.json", "report.html"} <= {f.name for f in written}
    for text in (output.out, output.err, *(file.read_text() for file in written)):
        assert "Muster" not in text
        assert "IM0000" not in text  # nor lists all its files
    (case,) = find_dicom(cases, KNOWN).cases
    assert "Muster" not in repr(case)


# --- masks as DICOM Segmentation


def accepted(file: Path) -> None:
    """Let dciodvfy judge a file; without it (Debian: dicom3tools) the test is skipped."""
    program = shutil.which("dciodvfy")
    if program is None:
        pytest.skip("dciodvfy is not installed; on Debian it is in dicom3tools")
    judged = subprocess.run([program, file], capture_output=True, text=True, timeout=60)
    errors = [line for line in judged.stderr.splitlines() if line.startswith("Error")]
    assert errors == []


SEGMENTS = {"whole": (1, 4), "core": (4,)}


def small_mask() -> np.ndarray:
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[2:6, 5:12, 4:10] = 1
    mask[3:5, 6:9, 5:8] = 4
    return mask


def test_a_segmentation_names_its_series_and_gives_the_mask_back(tmp_path: Path) -> None:
    import highdicom as hd

    uid = write_series(tmp_path / "p", volume(), SeriesDescription="T1")
    (case,) = find_dicom(tmp_path, KNOWN).cases
    series = case.images["t1"]
    assert isinstance(series, Series)
    mask, file = small_mask(), tmp_path / "p.dcm"
    write_segmentation(file, series, mask, SEGMENTS, "ab" * 32)
    content = pydicom.dcmread(file)
    assert content.Modality == "SEG"
    assert content.PatientName == "Doe^Jane"
    assert content.StudyInstanceUID == "1.2.3"
    (named,) = content.ReferencedSeriesSequence
    assert named.SeriesInstanceUID == uid
    assert len(named.ReferencedInstanceSequence) == len(mask)
    assert [each.SegmentLabel for each in content.SegmentSequence] == ["whole", "core"]
    # frame by frame back to the places of the source, by a reader of its own
    heights = {
        str(pydicom.dcmread(f).SOPInstanceUID): float(pydicom.dcmread(f).ImagePositionPatient[2])
        for f in (tmp_path / "p").iterdir()
    }
    uids = sorted(heights, key=lambda each: heights[each])
    read = hd.seg.segread(file).get_pixels_by_source_instance(uids, ignore_spatial_locations=True)
    assert np.array_equal(read[..., 0] > 0, mask > 0)
    assert np.array_equal(read[..., 1] > 0, mask == 4)
    again = tmp_path / "again.dcm"
    write_segmentation(again, series, mask, SEGMENTS, "ab" * 32)
    assert pydicom.dcmread(again).SOPInstanceUID == content.SOPInstanceUID
    accepted(file)


def test_segments_have_the_codes_of_dataset_json_and_colours_and_a_report_their_volumes(
    tmp_path: Path,
) -> None:
    import highdicom as hd

    write_series(tmp_path / "p", volume(), SeriesDescription="T1")
    series = find_dicom(tmp_path, KNOWN).cases[0].images["t1"]
    assert isinstance(series, Series)
    mask, file, report = small_mask(), tmp_path / "p.dcm", tmp_path / "p.sr.dcm"
    segments = {**SEGMENTS, "empty": (9,)}
    codes = {"core": Segment("108369006", region="12738006")}
    write_segmentation(file, series, mask, segments, "ab" * 32, codes, report)
    content = pydicom.dcmread(file)
    kinds = {
        each.SegmentLabel: each.SegmentedPropertyTypeCodeSequence[0].CodeMeaning
        for each in content.SegmentSequence
    }
    assert kinds == {"whole": "Lesion", "core": "Tumor", "empty": "Lesion"}
    core = content.SegmentSequence[1]
    assert core.AnatomicRegionSequence[0].CodeMeaning == "Brain"
    colours = {tuple(each.RecommendedDisplayCIELabValue) for each in content.SegmentSequence}
    assert len(colours) == 3

    groups = hd.sr.srread(report).content.get_volumetric_roi_measurement_groups()
    ml = float(np.prod(GRID.spacing)) / 1000
    found = {
        group.tracking_identifier: float(group.get_measurements()[0].value) for group in groups
    }
    assert found == {
        "whole": pytest.approx((mask > 0).sum() * ml, abs=1e-3),
        "core": pytest.approx((mask == 4).sum() * ml, abs=1e-3),
        "empty": 0,
    }
    assert groups[1].finding_type.meaning == "Tumor"
    assert groups[1].finding_sites[0].value.meaning == "Brain"
    accepted(file)
    accepted(report)


@pytest.mark.parametrize(
    ("colour", "lab"),
    [("#ffffff", (100, 0, 0)), ("#000000", (0, 0, 0)), ("#ff0000", (54.29, 80.8, 69.9))],
)
def test_colours_are_converted_as_an_icc_profile_does(colour: str, lab: tuple[float, ...]) -> None:
    assert lab_of(colour) == pytest.approx(lab, abs=0.1)


def test_an_enhanced_image_is_read_as_the_series_that_it_was_made_of(tmp_path: Path) -> None:
    from highdicom.legacy import LegacyConvertedEnhancedMRImage

    write_series(tmp_path / "plain", volume(), SeriesDescription="T1", PatientPosition="HFS")
    parts = [pydicom.dcmread(file) for file in sorted((tmp_path / "plain").iterdir())]
    enhanced = LegacyConvertedEnhancedMRImage(parts, generate_uid(), 5, generate_uid(), 1)
    enhanced.SeriesDescription = "T1"
    (tmp_path / "enhanced").mkdir()
    enhanced.save_as(tmp_path / "enhanced" / "one.dcm")
    (case,) = find_dicom(tmp_path / "enhanced", KNOWN).cases
    series = case.images["t1"]
    assert isinstance(series, Series)
    voxels, grid = series.read()
    want, other_grid = find_dicom(tmp_path / "plain", KNOWN).cases[0].images["t1"].read()  # type: ignore[union-attr]
    assert grid_difference(grid, other_grid) is None
    assert np.array_equal(voxels, want)
    file = tmp_path / "p.dcm"
    write_segmentation(file, series, small_mask(), SEGMENTS, "ab" * 32)
    seen = {at: int(plane.sum()) for at, plane in by_height(pydicom.dcmread(file)).items()}
    mask = small_mask()
    assert seen == {
        (number, 7 + 2 * z): int(np.isin(mask[z], values).sum())
        for number, values in enumerate(SEGMENTS.values(), start=1)
        for z in range(len(mask))
        if np.isin(mask[z], values).any()
    }
    accepted(file)


def test_without_slice_thickness_the_distance_of_slices_is_taken(tmp_path: Path) -> None:
    write_series(tmp_path / "p", volume(), SeriesDescription="T1", SliceThickness=None)
    series = find_dicom(tmp_path, KNOWN).cases[0].images["t1"]
    assert isinstance(series, Series)
    write_segmentation(tmp_path / "p.dcm", series, small_mask(), SEGMENTS, "ab" * 32)
    shared = pydicom.dcmread(tmp_path / "p.dcm").SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].SliceThickness == GRID.spacing[0]


def test_an_empty_mask_is_a_legal_segmentation(tmp_path: Path) -> None:
    write_series(tmp_path / "p", volume(), SeriesDescription="T1")
    series = find_dicom(tmp_path, KNOWN).cases[0].images["t1"]
    assert isinstance(series, Series)
    file = tmp_path / "p.dcm"
    write_segmentation(file, series, 0 * small_mask(), SEGMENTS, "ab" * 32)
    assert not pydicom.dcmread(file).pixel_array.any()
    accepted(file)


def test_a_segmentation_that_cannot_be_made_costs_no_mask_and_warnings_are_few(
    model: Path, tmp_path: Path, command: Command, capfd: pytest.CaptureFixture[str]
) -> None:
    cases, out = tmp_path / "cases", tmp_path / "masks"
    write_series(cases / "a", volume(), study="1.1", SeriesDescription="T1",
                 FrameOfReferenceUID=None)  # fmt: skip
    with quiet():  # pydicom, which warns of what many anonymisers write
        write_series(cases / "b", volume(), study="1.2.03.4", series="1.2.0840.01",
                     SeriesDescription="T1")  # fmt: skip
    asked = ["-i", cases, "-m", model, "-o", out, "--no-report", "--dicom-sr", "--uncertainty"]
    assert command("mixmfl_predict", *asked) == 0
    output = "".join(capfd.readouterr())
    assert len(output.splitlines()) < 20
    assert "pydicom" not in output
    missing = "series 1 'T1' has no FrameOfReferenceUID"
    kinds = "DICOM segmentation, Structured Report, Parametric Map"
    assert f"not made: {kinds}; {missing}" in output
    assert sorted(file.name for file in out.glob("?.*")) == [
        "a.nii.gz", "b.dcm", "b.nii.gz", "b.sr.dcm",
    ]  # fmt: skip
    maps = [file.name for file in (out / "uncertainty").iterdir()]
    assert len([name for name in maps if name.startswith("a.")]) == 4  # two of both labels
    assert [name for name in maps if name.endswith(".dcm")] == ["b.dcm"]


def test_the_command_writes_segmentations_of_dicom_cases_only(
    model: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cases, out = tmp_path / "cases", tmp_path / "masks"
    write_series(cases / "a", volume(), SeriesDescription="T1")
    (cases / "b").mkdir()
    write_image(cases / "b" / "t1.nii.gz", volume().astype(np.float32), GRID)
    asked = ["-i", cases, "-m", model, "-o", out, "--no-report"]
    assert command("mixmfl_predict", *asked) == 0
    (out / "a.dcm").write_bytes(b"mine")
    assert command("mixmfl_predict", *asked, "--dicom-seg") == 0
    assert "a: a.dcm is there and is not ours" in capsys.readouterr().out
    (out / "a.dcm").unlink()
    assert command("mixmfl_predict", *asked, "--dicom-seg") == 0
    assert "1 mask in" in capsys.readouterr().out  # b had nothing to be done
    assert pydicom.dcmread(out / "a.dcm").Modality == "SEG"
    assert not (out / "b.dcm").exists()
    assert command("mixmfl_predict", *asked, "--dicom-sr") == 0  # which is asked for later
    assert "1 mask in" in capsys.readouterr().out
    assert pydicom.dcmread(out / "a.sr.dcm").Modality == "SR"
    assert command("mixmfl_predict", *asked, "--dicom-seg-fractional", "--uncertainty") == 0
    assert "are not calibrated: the model file does not say" in capsys.readouterr().out
    assert pydicom.dcmread(out / "a.fractional.dcm").SegmentationType == "FRACTIONAL"
    maps = sorted(file.name for file in (out / "uncertainty").iterdir())
    assert maps[:2] == [
        "a.core.uncalibrated_entropy.nii.gz",
        "a.core.uncalibrated_probability.nii.gz",
    ]
    assert maps[2] == "a.dcm"
    assert len(maps) == 9  # b is no DICOM case
    first, *_ = pydicom.dcmread(out / "uncertainty" / "a.dcm").PerFrameFunctionalGroupsSequence
    named = first.RealWorldValueMappingSequence[0].LUTExplanation
    assert named == "uncalibrated probability of lesion"
    assert command("mixmfl_predict", *asked, "--dicom-seg-fractional", "--uncertainty") == 0
    assert "0 masks in" in capsys.readouterr().out  # all of it is there
    monkeypatch.setattr("mixmfl.inference.dicom_seg.find_spec", lambda name: None)
    assert command("mixmfl_predict", *asked, "--dicom-seg") == 2
    assert "pip install 'mixmfl[dicom-seg]'" in capsys.readouterr().err


def test_each_image_of_an_enhanced_file_has_its_own_kind(tmp_path: Path) -> None:
    """Otherwise the fat image is taken for a T1, as the water image is."""
    kinds = ("FAT", "WATER")
    normal = np.reshape(GRID.direction, (3, 3))[:, 2]

    def change(frame: int, group: Any) -> None:
        kind, place = pydicom.Dataset(), pydicom.Dataset()
        kind.FrameType = ["DERIVED", "PRIMARY", "DIXON", kinds[frame % 2]]
        place.ImagePositionPatient = [
            float(mm) for mm in np.array(GRID.origin) + normal * GRID.spacing[0] * (frame // 2)
        ]
        group.MRImageFrameTypeSequence, group.PlanePositionSequence = [kind], [place]

    voxels = np.repeat(volume(), 2, axis=0)
    write_enhanced(tmp_path / "p", voxels, change, SeriesDescription="t1 dixon",
                   ImageType=["DERIVED", "PRIMARY", "DIXON", "NONE"])  # fmt: skip
    (case,) = find_dicom(tmp_path, KNOWN).cases
    assert "fat image (ImageType FAT)" in case.notes[1]
    assert set(case.images) == {"t1"}


def test_each_echo_of_an_enhanced_file_has_its_own_time(tmp_path: Path) -> None:
    """Otherwise both echoes are taken for the first one."""
    voxels = np.repeat(volume(), 2, axis=0)
    voxels[1::2] += 7
    normal = np.reshape(GRID.direction, (3, 3))[:, 2]

    def change(frame: int, group: Any) -> None:
        echo, place = pydicom.Dataset(), pydicom.Dataset()
        echo.EffectiveEchoTime = (15.0, 95.0)[frame % 2]
        place.ImagePositionPatient = [
            float(mm) for mm in np.array(GRID.origin) + normal * GRID.spacing[0] * (frame // 2)
        ]
        group.MREchoSequence, group.PlanePositionSequence = [echo], [place]

    write_enhanced(
        tmp_path / "p", voxels, change, SeriesDescription="PDT2W_TSE", ScanningSequence=None
    )
    (case,) = find_dicom(tmp_path, KNOWN).cases
    assert set(case.images) == {"pd", "t2"}
    one, two = (read_image(case.images[name])[0] for name in ("pd", "t2"))
    np.testing.assert_array_equal(two, one + 7)


def test_probabilities_are_a_fractional_segmentation_beside_the_mask(tmp_path: Path) -> None:
    write_series(tmp_path / "p", volume(), SeriesDescription="T1")
    series = find_dicom(tmp_path, KNOWN).cases[0].images["t1"]
    assert isinstance(series, Series)
    shares = {
        name: np.random.default_rng(number).random(SHAPE, dtype=np.float32) * (volume() > -6)
        for number, name in enumerate(SEGMENTS)
    }
    file, fractional = tmp_path / "p.dcm", tmp_path / "p.fractional.dcm"
    write_segmentation(
        file, series, small_mask(), SEGMENTS, "ab" * 32, fractional=(fractional, shares)
    )
    content = pydicom.dcmread(fractional)
    assert (content.SegmentationType, content.SegmentationFractionalType) == (
        "FRACTIONAL",
        "PROBABILITY",
    )
    assert content.SeriesInstanceUID != pydicom.dcmread(file).SeriesInstanceUID
    assert content.SeriesDescription == "Probabilities of series 1"
    found = by_height(content)
    for number, share in enumerate(shares.values(), start=1):
        for z, plane in enumerate(share):
            read = found[number, 7 + 2 * z] / content.MaximumFractionalValue
            assert read == pytest.approx(plane, abs=0.5 / 255 + 1e-6)
    accepted(file)
    accepted(fractional)


def test_maps_are_a_parametric_map_of_all_quantities(tmp_path: Path) -> None:
    write_series(tmp_path / "p", volume(), SeriesDescription="T1", SliceThickness=None)
    series = find_dicom(tmp_path, KNOWN).cases[0].images["t1"]
    assert isinstance(series, Series)
    maps = {
        name: np.random.default_rng(number).random(SHAPE, dtype=np.float32)
        for number, name in enumerate(("probability of whole", "entropy of whole"))
    }
    file, again = tmp_path / "p.dcm", tmp_path / "again.dcm"
    write_parametric_map(file, series, maps, "ab" * 32)
    write_parametric_map(again, series, maps, "ab" * 32)
    content = pydicom.dcmread(file)
    assert content.SOPInstanceUID == pydicom.dcmread(again).SOPInstanceUID
    assert content.ContentQualification == "RESEARCH"
    named = {}
    for group, plane in zip(
        content.PerFrameFunctionalGroupsSequence, content.pixel_array, strict=True
    ):
        height = float(group.PlanePositionSequence[0].ImagePositionPatient[2])
        what = group.RealWorldValueMappingSequence[0].LUTExplanation
        named[what, round((height - 7) / 2)] = plane
    assert len(named) == 2 * SHAPE[0]
    for (what, z), plane in named.items():
        assert np.array_equal(plane, maps[what][z])
    accepted(file)


def by_height(content: Any) -> dict[tuple[int, float], np.ndarray]:
    """Return the frames of a segmentation by the number of their segment, and their height."""
    return {
        (
            int(each.SegmentIdentificationSequence[0].ReferencedSegmentNumber),
            round(float(each.PlanePositionSequence[0].ImagePositionPatient[2]), 3),
        ): plane
        for each, plane in zip(
            content.PerFrameFunctionalGroupsSequence, content.pixel_array, strict=True
        )
    }


def test_no_memory_grows_with_the_number_of_an_image(tmp_path: Path) -> None:
    far = 3_000_000
    write_series(
        tmp_path / "s", volume(), SeriesDescription="T1", InstanceNumber=lambda n: 1 + n * far
    )
    tracemalloc.start()
    try:
        found, _ = find_all(tmp_path, Modalities())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found.cases) == 1
    assert peak < 50e6


@pytest.mark.parametrize(
    "change",
    [
        lambda image: delattr(image, "ImagePositionPatient"),
        lambda image: setattr(image, "ImageOrientationPatient", [0, 0, 1, 0, 1, 0]),
    ],
)
def test_a_screen_shot_or_a_localiser_in_a_series_is_left_out_with_a_warning(
    tmp_path: Path, change: Callable[[Any], None]
) -> None:
    uid = write_series(tmp_path, volume(), SeriesDescription="T1")
    write_series(tmp_path / "more", volume(3)[:1], series=uid, SeriesDescription="T1",
                 InstanceNumber=99)  # fmt: skip
    spoil(tmp_path / "more", change, 0)
    found = find_dicom(tmp_path, Modalities())
    (case,) = found.cases
    assert read_image(case.images["t1"])[0].shape == SHAPE
    assert "t1 (series 1 'T1') has 1 image without a place or in another" in case.warnings[0]
    assert [row.why for row in found.rows if not row.modality] == ["only 1 slice"]


@pytest.mark.parametrize(("says", "is_doubted"), [("YES", True), ("NO", False), ("", False)])
def test_text_that_is_burned_into_pixels_is_told(
    tmp_path: Path, says: str, is_doubted: bool
) -> None:
    write_series(tmp_path, volume(), SeriesDescription="T1", BurnedInAnnotation=says)
    (case,) = find_dicom(tmp_path, Modalities()).cases
    said_so = [text for text in case.warnings if "has text in the pixels of" in text]
    assert len(said_so) == is_doubted


@pytest.mark.parametrize("way", [["L", "P"], ["RF", "P"], ["L", "AF"], ["P", "R"], ["", ""], ["L"]])
def test_an_orientation_in_words_against_the_numbers_is_doubted(
    tmp_path: Path, way: list[str]
) -> None:
    write_series(tmp_path, volume(), SeriesDescription="T1", PatientOrientation=way)
    (series,) = find_series(tmp_path).series
    doubt = f"has PatientOrientation {' '.join(way)}, and ImageOrientationPatient the opposite"
    is_doubted = way in (["RF", "P"], ["L", "AF"])
    assert [text.startswith(doubt) for text in series.warnings] == [True] * is_doubted
