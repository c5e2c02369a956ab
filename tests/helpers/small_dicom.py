"""DICOM series of simulated voxels, as pydicom writes them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import (
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    generate_uid,
)
from small import small_case

from mixmfl.data.grid import Grid

SHAPE = (8, 20, 18)
OBLIQUE = (0.8, -0.6, 0.0, 0.6, 0.8, 0.0, 0.0, 0.0, 1.0)  # columns: directions of x, y, z
GRID = Grid(SHAPE, (2.0, 1.0, 1.25), (-10.0, 4.0, 7.0), OBLIQUE)


def write_series(
    folder: Path,
    voxels: np.ndarray,
    grid: Grid = GRID,
    *,
    study: str = "1.2.3",
    series: str = "",
    patient: str = "Doe^Jane",
    **tags: Any,
) -> str:
    """Write whole numbers as one file per slice; return the series' UID.

    A tag that is a function is given the number of the slice; one that is None is left out.
    """
    folder.mkdir(parents=True, exist_ok=True)
    series = series or generate_uid()
    columns = np.reshape(grid.direction, (3, 3))
    order = np.random.default_rng(0).permutation(len(voxels))  # no order of names can be trusted
    for name, z in enumerate(order):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID = MRImageStorage
        meta.MediaStorageSOPInstanceUID = generate_uid()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        made = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        made.SOPClassUID, made.SOPInstanceUID = MRImageStorage, meta.MediaStorageSOPInstanceUID
        made.StudyInstanceUID, made.SeriesInstanceUID = study, series
        made.FrameOfReferenceUID = study + ".9"
        made.Modality, made.SeriesNumber, made.InstanceNumber = "MR", 1, name + 1
        made.PatientName, made.PatientID = patient, "4711"
        made.PatientBirthDate, made.PatientSex, made.AccessionNumber = "", "", ""
        made.StudyID, made.StudyDate, made.StudyTime = "", "20210312", "101010"
        made.ReferringPhysicianName, made.Manufacturer = "", "Maker"
        made.ImageType = ["ORIGINAL", "PRIMARY", "M"]
        made.ScanningSequence, made.SequenceVariant, made.MRAcquisitionType = "SE", "SK", "2D"
        made.ImageOrientationPatient = [*columns[:, 0], *columns[:, 1]]
        place = np.array(grid.origin) + columns[:, 2] * grid.spacing[0] * z
        made.ImagePositionPatient = [round(float(mm), 6) for mm in place]
        made.PixelSpacing = [grid.spacing[1], grid.spacing[2]]
        made.SliceThickness = grid.spacing[0]
        made.Rows, made.Columns = voxels.shape[1:]
        made.SamplesPerPixel, made.PhotometricInterpretation = 1, "MONOCHROME2"
        made.BitsAllocated, made.BitsStored, made.HighBit, made.PixelRepresentation = 16, 16, 15, 1
        made.RescaleSlope, made.RescaleIntercept = "0.5", "3"
        made.PixelData = voxels[z].astype("<i2").tobytes()
        for tag, value in tags.items():
            if value is None:
                delattr(made, tag)
            else:
                setattr(made, tag, value(int(z)) if callable(value) else value)
        made.save_as(folder / f"IM{name:04}", enforce_file_format=True)
    return series


def volume(seed: int = 0) -> np.ndarray:
    image = small_case(("t1",), seed, SHAPE)[0]["t1"] * 50
    image[:, :2] = -6  # which is rescaled to 0: outside the head
    return image.round().astype(np.int16)


def spoil(folder: Path, change: Callable[[Any], None], number: int = 2) -> None:
    """Change one file of a folder, by its number in the order of names."""
    file = sorted(folder.rglob("IM*"))[number]
    content = pydicom.dcmread(file)
    change(content)
    content.save_as(file)


def write_enhanced(
    folder: Path, voxels: np.ndarray, change: Callable[[int, Any], None], **tags: Any
) -> None:
    """Write whole numbers as one multi-frame file; ``change`` is given each frame's group."""
    write_series(folder, voxels[:1], **tags)
    file = folder / "IM0000"
    made: Any = pydicom.dcmread(file)
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = EnhancedMRImageStorage
    axes, measures, shared, groups = Dataset(), Dataset(), Dataset(), []
    axes.ImageOrientationPatient = made.ImageOrientationPatient
    measures.PixelSpacing, measures.SliceThickness = made.PixelSpacing, made.SliceThickness
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [axes], [measures]
    normal = np.reshape(GRID.direction, (3, 3))[:, 2]
    for z in range(len(voxels)):
        place, values, group = Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient = [
            round(float(mm), 6) for mm in np.array(GRID.origin) + normal * GRID.spacing[0] * z
        ]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, 0, "US"
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [place], [values]
        change(z, group)
        groups.append(group)
    made.SharedFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence = [shared], groups
    for tag in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing",
                "SliceThickness", "RescaleSlope", "RescaleIntercept"):  # fmt: skip
        delattr(made, tag)
    made.NumberOfFrames = len(voxels)
    made.PixelData = voxels.astype("<i2").tobytes()
    made.save_as(file)
