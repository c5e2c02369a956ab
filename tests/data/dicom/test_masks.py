"""DICOM segmentations that other tools write, as masks to train on."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian, RLELossless, generate_uid
from small_dicom import GRID, SHAPE, volume, write_series

from mixmfl.core.errors import DataError
from mixmfl.data.dicom.masks import DrawnMask
from mixmfl.data.labels import Labels

LABELS = Labels({"background": 0, "lesion": 1, "core": 4})
MASK = np.zeros(SHAPE, dtype=np.uint8)
MASK[1:-1, 5:14, 4:12] = 1
MASK[2:-2, 8:11, 6:9] = 2


def segmentation(folder: Path, voxels: np.ndarray, kind: str, **options: Any) -> Any:
    """Make highdicom's segmentation of a series with the segments Lesion and Core."""
    hd = pytest.importorskip("highdicom")
    from highdicom.sr.coding import CodedConcept

    write_series(folder / "t1", volume())
    lesion = CodedConcept("52988006", "SCT", "Lesion")
    if kind == "LABELMAP" and not hasattr(hd.seg.SegmentationTypeValues, "LABELMAP"):
        pytest.skip("this highdicom writes no label maps")
    headers: list[Any] = [pydicom.dcmread(file) for file in (folder / "t1").iterdir()]
    headers.sort(key=lambda header: float(header.ImagePositionPatient[2]))
    options.setdefault("transfer_syntax_uid", ExplicitVRLittleEndian)
    return hd.seg.Segmentation(
        headers, voxels, kind,
        [
            hd.seg.SegmentDescription(number, name, lesion, lesion, "MANUAL")
            for number, name in enumerate(("Lesion", "Core"), start=1)
        ],
        generate_uid(), 7, generate_uid(), 1, "Maker", "Model", "1", "1", **options,
    )  # fmt: skip


def read(folder: Path, made: Any) -> np.ndarray:
    made.save_as(folder / "seg.dcm")
    voxels, grid = DrawnMask(folder / "seg.dcm", {"t1": GRID}, LABELS).read()
    assert grid == GRID
    return voxels


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_label_map_holds_its_segments_by_their_numbers(
    tmp_path: Path, kind: str, syntax: str
) -> None:
    if kind == "BINARY" and syntax == RLELossless:
        pytest.skip("DICOM has no packed bits in RLE")
    made = segmentation(tmp_path, MASK, kind, transfer_syntax_uid=syntax)
    np.testing.assert_array_equal(read(tmp_path, made), np.where(MASK == 2, 4, MASK))


@pytest.mark.parametrize("fractions", ["PROBABILITY", "OCCUPANCY"])
@pytest.mark.parametrize("most", [255, 100])
def test_a_fraction_of_a_half_or_more_is_in_the_segment(
    tmp_path: Path, fractions: str, most: int
) -> None:
    shares = np.stack([MASK == 1, MASK == 2], axis=-1) * 0.7
    shares[MASK == 0, 0] = 0.2
    shares[1, 5, 4, 0] = 0.4
    made = segmentation(
        tmp_path, shares, "FRACTIONAL", fractional_type=fractions, max_fractional_value=most
    )
    expected = np.where(MASK == 2, 4, MASK)
    expected[1, 5, 4] = 0
    np.testing.assert_array_equal(read(tmp_path, made), expected)


def test_fractions_that_leave_a_voxel_to_two_labels_are_refused(tmp_path: Path) -> None:
    shares = np.stack([MASK > 0, MASK == 2], axis=-1) * 0.5
    made = segmentation(tmp_path, shares, "FRACTIONAL", max_fractional_value=2)
    with pytest.raises(DataError, match="has voxels in core and lesion and in no other label"):
        read(tmp_path, made)


@pytest.mark.parametrize("damage", ["MaximumFractionalValue", "SegmentationType"])
def test_a_segmentation_that_does_not_say_what_its_numbers_mean_is_refused(
    tmp_path: Path, damage: str
) -> None:
    """Otherwise every voxel, or none, would be in the segment."""
    shares = np.stack([MASK == 1, MASK == 2], axis=-1) * 0.7
    made = segmentation(tmp_path, shares, "FRACTIONAL")
    if damage == "SegmentationType":
        made.SegmentationType = "HEATMAP"
    else:
        del made.MaximumFractionalValue
    with pytest.raises(DataError, match=damage):
        read(tmp_path, made)
