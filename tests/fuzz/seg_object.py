"""A DICOM segmentation of two segments, as highdicom writes it."""

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from small_dicom import GRID, SHAPE, volume, write_series

from mixmfl.data.grid import Grid
from mixmfl.data.labels import Labels

LABELS = Labels({"background": 0, "lesion": 1, "core": 4})


def write_segmentation(folder: Path) -> tuple[Path, Grid, Labels]:
    """Write a segmentation and the series under it; return its file, grid and labels."""
    import highdicom as hd
    from highdicom.sr.coding import CodedConcept

    write_series(folder / "t1", volume())
    mask = np.zeros(SHAPE, dtype=np.uint8)
    mask[1:-1, 5:14, 4:12] = 1
    mask[2:-2, 8:11, 6:9] = 2
    lesion = CodedConcept("52988006", "SCT", "Lesion")
    headers: list[Any] = [pydicom.dcmread(file) for file in (folder / "t1").iterdir()]
    headers.sort(key=lambda header: float(header.ImagePositionPatient[2]))
    made = hd.seg.Segmentation(
        headers, mask, "BINARY",
        [
            hd.seg.SegmentDescription(number, name, lesion, lesion, "MANUAL")
            for number, name in enumerate(("Lesion", "Core"), start=1)
        ],
        generate_uid(), 7, generate_uid(), 1, "Maker", "Model", "1", "1",
        transfer_syntax_uid=ExplicitVRLittleEndian,
    )  # fmt: skip
    made.save_as(folder / "seg.dcm")
    return folder / "seg.dcm", GRID, LABELS
