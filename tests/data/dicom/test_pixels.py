"""DICOM pixels: all that is announced, each plane by its own scale, or refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, RLELossless
from small_dicom import GRID, spoil, volume, write_enhanced, write_series

from mixmfl.core.errors import DataError
from mixmfl.data.dicom.cases import find_dicom
from mixmfl.data.dicom.files import quiet
from mixmfl.data.dicom.header import read_instance
from mixmfl.data.dicom.pixels import read_planes
from mixmfl.data.dicom.series import Series, find_series
from mixmfl.data.modalities import Modalities


def only_series(folder: Path) -> Series:
    (series,) = find_series(folder).series
    return series


def test_pixels_that_are_fewer_than_announced_are_refused(tmp_path: Path) -> None:
    def halve(content: Any) -> None:
        content.PixelData = content.PixelData[: len(content.PixelData) // 2]

    write_series(tmp_path, volume())
    spoil(tmp_path, halve, 3)
    message = r"series 1 '': IM0003: holds 360 bytes of pixels, 720 needed"
    with pytest.raises(DataError, match=message):
        only_series(tmp_path).read()


def test_each_frame_is_scaled_by_its_own_slope(tmp_path: Path) -> None:
    slopes = [(0.5, 1.0, 2.0, 4.0)[z % 4] for z in range(8)]

    def scale(z: int, group: Any) -> None:
        group.PixelValueTransformationSequence[0].RescaleSlope = slopes[z]
        group.PixelValueTransformationSequence[0].RescaleIntercept = z

    write_enhanced(tmp_path, volume(), scale, SeriesDescription="FLAIR")
    voxels, grid = only_series(tmp_path).read()
    assert grid.spacing == pytest.approx(GRID.spacing)
    expected = [plane * slopes[z] + z for z, plane in enumerate(volume())]
    assert np.array_equal(voxels, np.array(expected, dtype=np.float32))


def test_padding_is_background(tmp_path: Path) -> None:
    voxels = volume()
    voxels[:, :, :3], voxels[:, :, 3] = -2000, -1999
    tags: dict[str, Any] = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1999}
    write_series(tmp_path, voxels, **tags)
    read, _ = only_series(tmp_path).read()
    assert not read[:, :, :4].any()
    assert np.array_equal(read[:, :, 4:], voxels[:, :, 4:] * 0.5 + 3)


def test_padding_is_no_brighter_than_the_rest_and_no_number_of_the_head(tmp_path: Path) -> None:
    voxels = volume().clip(0)
    voxels[:, :, :3] = 0
    write_series(tmp_path / "a", voxels, PixelPaddingValue=0, RescaleIntercept="-1024")
    read, _ = only_series(tmp_path / "a").read()
    assert np.array_equal(read, voxels * 0.5 - 1024)  # padding is not above the head
    inside = int(voxels[4, 10, 9])
    assert 0 < inside < voxels.max()
    voxels[:, [0, -1]] = voxels[:, :, [0, -1]] = 0
    write_series(tmp_path / "b", voxels, PixelPaddingValue=inside)
    read, _ = only_series(tmp_path / "b").read()
    assert np.array_equal(read, voxels * 0.5 + 3)  # none is at an edge


def philips_unit(content: Any, slope: float) -> None:
    block = content.private_block(0x2005, "Philips MR Imaging DD 001", create=True)
    block.add_new(0x0E, "FL", 1 / slope)
    content.RescaleSlope = "1"


def real_world_slope(content: Any, slope: float) -> None:
    mapping = Dataset()
    mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = slope, 0.0
    content.RealWorldValueMappingSequence = [mapping]
    del content.RescaleSlope, content.RescaleIntercept


@pytest.mark.parametrize("scale", [philips_unit, real_world_slope])
def test_planes_that_are_scaled_outside_of_rescale_slope_are_comparable(
    tmp_path: Path, scale: Callable[[Any, float], None]
) -> None:
    slopes = np.array([(0.5, 1.0, 2.0, 4.0)[z % 4] for z in range(8)])
    write_series(tmp_path, volume(), InstanceNumber=lambda z: z + 1, RescaleIntercept="0")
    for file in tmp_path.iterdir():
        content = pydicom.dcmread(file)
        scale(content, slopes[content.InstanceNumber - 1])
        content.save_as(file)
    read, _ = only_series(tmp_path).read()
    assert read == pytest.approx(volume() * slopes[:, None, None])


def test_values_that_a_table_gives_are_refused(tmp_path: Path) -> None:
    def table(content: Any) -> None:
        content.ModalityLUTSequence = [Dataset()]
        del content.RescaleSlope, content.RescaleIntercept

    write_series(tmp_path, volume())
    for number in range(8):
        spoil(tmp_path, table, number)
    with pytest.raises(DataError, match=r"by a table \(ModalityLUTSequence\), which is not read"):
        only_series(tmp_path).read()


def test_padding_whose_sign_is_written_otherwise_is_background(tmp_path: Path) -> None:
    voxels = volume()
    voxels[0] = -2000
    write_series(tmp_path, voxels)
    for file in tmp_path.iterdir():
        content = pydicom.dcmread(file)
        content.add_new("PixelPaddingValue", "US", 65536 - 2000)
        content.save_as(file)
    assert not only_series(tmp_path).read()[0][0].any()


def darkest_high(content: Any) -> None:
    content.PhotometricInterpretation = "MONOCHROME1"


def fewer_bits(content: Any) -> None:
    content.BitsStored, content.HighBit = 12, 11


@pytest.mark.parametrize("change", [darkest_high, fewer_bits])
def test_slices_that_store_pixels_in_two_ways_are_refused(
    tmp_path: Path, change: Callable[[Any], None]
) -> None:
    write_series(tmp_path, volume())
    spoil(tmp_path, change, 7)
    with pytest.raises(DataError, match=r"IM0007 stores pixels as 16 .*they cannot be compared"):
        only_series(tmp_path).read()


def test_dark_that_is_stored_as_high_is_turned_round(tmp_path: Path) -> None:
    voxels = abs(volume())
    tags: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}
    write_series(tmp_path, 4095 - voxels, PhotometricInterpretation="MONOCHROME1", **tags)
    assert np.array_equal(only_series(tmp_path).read()[0], voxels * 0.5 + 3)


def test_a_slice_that_is_scaled_otherwise_is_reported(tmp_path: Path) -> None:
    write_series(tmp_path / "p", volume(), SeriesDescription="T2")
    spoil(tmp_path, lambda content: setattr(content, "RescaleSlope", "1.5"))
    (case,) = find_dicom(tmp_path, Modalities()).cases
    assert "another RescaleSlope or RescaleIntercept in 1 image, first IM0002" in case.warnings[0]


def test_a_slice_without_the_slope_of_others_is_refused(tmp_path: Path) -> None:
    write_series(tmp_path, volume())
    spoil(tmp_path, lambda content: delattr(content, "RescaleSlope"))
    with pytest.raises(DataError, match="IM0002 lacks the RescaleSlope that others have"):
        only_series(tmp_path).read()


def test_compressed_pixels_are_those_that_were_compressed(tmp_path: Path) -> None:
    write_series(tmp_path, volume())
    for file in tmp_path.iterdir():
        content = pydicom.dcmread(file)
        content.compress(RLELossless)
        content.save_as(file)
    assert np.array_equal(only_series(tmp_path).read()[0], volume() * 0.5 + 3)


@pytest.mark.parametrize(
    "name",
    ["MR_small_jp2klossless", "MR_small_jpeg_ls_lossless", "MR_small_RLE", "MR_small_bigendian",
     "MR_small_implicit", "MR_small_padded"],
)  # fmt: skip
def test_one_image_in_many_encodings_is_one_image(name: str) -> None:
    """They come with pydicom."""
    first, other = (
        Path(str(get_testdata_file(f"{n}.dcm", download=False))) for n in ("MR_small", name)
    )
    assert np.array_equal(read_planes(other), read_planes(first))


def test_a_cut_compressed_plane_is_refused_not_filled(tmp_path: Path) -> None:
    def cut(content: Any) -> None:
        content.PixelData = pydicom.encaps.encapsulate([b"\xff\xd8" + b"\x01" * 40])
        content.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        content["PixelData"].is_undefined_length = True

    write_series(tmp_path, volume())
    spoil(tmp_path, cut, 1)
    with pytest.raises(DataError, match="IM0001: plane 1 of 1 ends before its end mark"):
        only_series(tmp_path).read()


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ({"NumberOfFrames": 1_000_000}, "has 1000000 frames; at most 20000 are read"),
        ({"NumberOfFrames": 19_000, "Rows": 60_000}, "announces .* voxels; at most"),
        ({"Rows": 60_000, "Columns": 60_000}, "announces 3600000000 voxels; at most"),
    ],
)
def test_more_frames_or_voxels_than_memory_holds_are_refused_by_the_header(
    tmp_path: Path, tags: dict[str, Any], message: str
) -> None:
    write_series(tmp_path, volume()[:5], **tags)
    found = find_series(tmp_path)
    reasons = [each.reason for each in found.damaged] + [each.fault for each in found.series]
    assert reasons
    assert all(re.search(message, reason) for reason in reasons)


def test_files_without_preamble_are_read(tmp_path: Path) -> None:
    write_series(tmp_path / "p" / "a", volume(), SeriesDescription="FLAIR")
    write_series(tmp_path / "p" / "b", volume(1), SeriesDescription="T2", SeriesNumber=2)
    for file in (tmp_path / "p" / "b").iterdir():
        file.write_bytes(file.read_bytes()[132:])
    spoiled = tmp_path / "p" / "a" / "IM0000"
    spoiled.write_bytes(spoiled.read_bytes().replace(b"DICM", b"DIKM", 1))
    (case,) = find_dicom(tmp_path, Modalities()).cases
    assert np.array_equal(case.images["t2"].read()[0], volume(1) * 0.5 + 3)  # type: ignore[union-attr]
    assert np.array_equal(case.images["flair"].read()[0], volume() * 0.5 + 3)  # type: ignore[union-attr]


def test_damaged_files_are_named_and_counted_and_stop_no_other_case(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        write_series(tmp_path / name, volume(), study=f"1.{ord(name)}", SeriesDescription="FLAIR")
    for file in sorted((tmp_path / "a").iterdir())[:2]:
        file.write_bytes(file.read_bytes()[:200])
    for file in (tmp_path / "b").iterdir():
        file.write_bytes(file.read_bytes()[:150])
    found = find_dicom(tmp_path, Modalities())
    assert [case.name for case in found.cases] == ["a", "c"]
    assert "2 files of" in found.cases[0].warnings[-1]
    assert "first IM0000" in found.cases[0].warnings[-1]
    assert [(item.name, item.reason[:7]) for item in found.refused] == [("b", "8 files")]
    assert len(found.damaged) == 10


def test_a_file_that_lost_its_beginning_is_recognised_by_the_names_of_those_beside_it(
    tmp_path: Path,
) -> None:
    write_series(tmp_path / "a", volume(), SeriesDescription="FLAIR")
    (tmp_path / "a" / "IM0000").write_bytes(b"")
    (tmp_path / "a" / "README").write_text("of the archive")
    (only,) = find_series(tmp_path).damaged
    assert (only.path.name, only.reason) == ("IM0000", "does not begin as DICOM does")


def unknown_kind(content: bytes) -> bytes:
    return content.replace(b"\x20\x00\x37\x00DS", b"\x20\x00\x37\x00DZ")


def one_number(content: bytes) -> bytes:
    at = content.index(b"\x20\x00\x37\x00DS") + 8
    return content[:at] + content[at:].replace(b"\\", b" ", 5)


def no_spacing(content: bytes) -> bytes:
    at = content.index(b"\x28\x00\x30\x00DS") + 8
    length = int.from_bytes(content[at - 2 : at], "little")
    return content[:at] + b" " * length + content[at + length :]


@pytest.mark.parametrize("change", [unknown_kind, one_number, no_spacing])
def test_a_header_that_pydicom_cannot_read_costs_its_series_alone(
    tmp_path: Path, change: Callable[[bytes], bytes]
) -> None:
    for number, text in enumerate(("FLAIR", "T2"), start=1):
        write_series(tmp_path / "p" / text, volume(), SeriesDescription=text, SeriesNumber=number)
    write_series(tmp_path / "q", volume(), study="1.9", SeriesDescription="T2")
    file = tmp_path / "p" / "FLAIR" / "IM0003"
    before = file.read_bytes()
    file.write_bytes(change(before))
    assert file.read_bytes() != before
    cases = {case.name: case for case in find_dicom(tmp_path, Modalities()).cases}
    assert set(cases) == {"p", "q"}
    cases["q"].images["t2"].read()  # type: ignore[union-attr]
    cases["p"].images["t2"].read()  # type: ignore[union-attr]
    with pytest.raises(DataError, match=r"series 1 'FLAIR'"):
        cases["p"].images["flair"].read()  # type: ignore[union-attr]


def test_jitter_in_the_sixth_digit_is_no_other_direction(tmp_path: Path) -> None:
    columns = np.reshape(GRID.direction, (3, 3))
    axes = [*columns[:, 0], *columns[:, 1]]
    axes[0] = 0.795  # on the border between two roundings
    axes[1] = -0.6066094
    write_series(
        tmp_path / "p", volume(), SeriesDescription="FLAIR",
        ImageOrientationPatient=lambda z: [round(v + 1e-6 * (-1) ** z, 7) for v in axes],
    )  # fmt: skip
    assert only_series(tmp_path).orientations == 1


def test_a_file_that_announces_more_slices_than_there_are_is_reported(tmp_path: Path) -> None:
    write_series(tmp_path / "a", volume(), SeriesDescription="FLAIR", ImagesInAcquisition=9)
    (case,) = find_dicom(tmp_path, Modalities()).cases
    assert case.warnings == ("flair (series 1 'FLAIR') has 8 images; the scanner made 9",)


def test_a_number_that_is_missing_between_images_is_reported(tmp_path: Path) -> None:
    image = np.concatenate([volume(), volume()])
    write_series(
        tmp_path / "a", image, SeriesDescription="FLAIR", InstanceNumber=lambda z: z + 1 + (z > 14)
    )
    (case,) = find_dicom(tmp_path, Modalities()).cases
    assert case.warnings == ("flair (series 1 'FLAIR') image 16 of its numbers is missing",)


def test_numbers_that_need_more_bits_than_announced_are_refused_and_graphics_cut_off(
    tmp_path: Path,
) -> None:
    twelve: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0}
    voxels = np.abs(volume())
    write_series(tmp_path / "a", voxels + 0x3000, **twelve)
    message = (
        r"IM0000: has numbers of more than 12 bits \(BitsStored\), and no graphics that may lie"
    )
    with pytest.raises(DataError, match=message):
        read_planes(tmp_path / "a" / "IM0000")

    def declare(content: Any) -> None:
        content.add_new(0x60000102, "US", 12)
        content.add_new(0x60020102, "US", 13)

    spoil(tmp_path / "a", declare, 0)
    whole = only_series(tmp_path)
    shown = read_planes(tmp_path / "a" / "IM0000")[0]
    z = next(z for z, (file, _) in enumerate(whole.order) if whole.files[file].name == "IM0000")
    assert np.array_equal(shown, voxels[z] * 0.5 + 3)
    spoil(tmp_path / "a", lambda content: setattr(content, "HighBit", 15), 1)
    with pytest.raises(DataError, match=r"stores 12 of 16 bits up to bit 15 \(HighBit\); needed"):
        read_planes(tmp_path / "a" / "IM0001")


def test_a_sign_and_padding_may_fill_the_bits_above(tmp_path: Path) -> None:
    voxels = np.clip(volume(), 0, 2000) - 7
    voxels[:, 5] = -30000
    signed: dict[str, Any] = {"BitsStored": 12, "HighBit": 11, "PixelPaddingValue": -30000}
    write_series(tmp_path, voxels, **signed)
    read, _ = only_series(tmp_path).read()
    assert np.array_equal(np.delete(read, 5, 1), np.delete(voxels, 5, 1) * 0.5 + 3)


@pytest.mark.parametrize("before", ["1.2", "1." + "2" * 3000])
def test_a_deflated_file_that_unpacks_to_too_much_is_refused_wherever_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    write_series(tmp_path, volume())
    monkeypatch.setattr("mixmfl.data.dicom.files.MOST_BYTES", 1 << 16)
    for file, size in zip(sorted(tmp_path.iterdir())[:2], (1 << 10, 1 << 20), strict=True):
        content = pydicom.dcmread(file)
        with quiet():  # as such a UID is too long
            content.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
            content.file_meta.MediaStorageSOPInstanceUID = UID(before)
            content.PixelData = bytes(size)
            content.save_as(file)
        packed = file.read_bytes()
        # it says that the group is longer, which nobody needs
        length = int.from_bytes(packed[140:144], "little") + 4 * (len(before) > 3)
        file.write_bytes(packed[:140] + length.to_bytes(4, "little") + packed[144:])
    refused = [each for each in find_series(tmp_path).damaged if "unpacks" in each.reason]
    assert [each.path.name for each in refused] == ["IM0001"]
    assert refused[0].reason == "unpacks to more than 65536 bytes"


def test_a_value_of_many_parts_is_not_kept_for_each_image_of_a_file(tmp_path: Path) -> None:
    def no_change(number: int, group: Any) -> None:
        pass

    write_enhanced(tmp_path, volume(), no_change)
    many = ["A"] * 10_000

    def add(content: Any) -> None:
        content.ImageType = content.ScanningSequence = content.ProtocolName = many
        content.ImagePositionPatient = ["1"] * 1000

    spoil(tmp_path, add, 0)
    instance = read_instance(tmp_path / "IM0000")
    assert instance is not None
    assert len(instance.planes) == len(volume())
    for plane in instance.planes:
        assert len(plane.variety[2]) < 200
        assert len(plane.physics) < 60
