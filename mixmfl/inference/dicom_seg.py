"""Masks as DICOM Segmentation objects that name the series they were drawn on.

The only module that sees highdicom, which is an extra of the package.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError, MixmflError
from mixmfl.core.files import replacing
from mixmfl.core.version import __version__
from mixmfl.data.dicom.files import quiet
from mixmfl.data.dicom.series import Series, source_headers, stable_uid

Array = npt.NDArray[Any]

# attributes that a series must have for a valid segmentation; they may be empty
_NEEDED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip


def check_available() -> None:
    """Check that highdicom is installed.

    Raises:
        MixmflError: highdicom is not installed.
    """
    if find_spec("highdicom") is None:
        raise MixmflError(
            "--dicom-seg: needs highdicom, which is not installed; install it by "
            "pip install 'mixmfl[dicom-seg]'"
        )


def write_segmentation(
    path: Path, series: Series, mask: Array, segments: Mapping[str, Sequence[int]], model: str
) -> None:
    """Write a DICOM Segmentation, whole or not at all.

    Where the source has no slice thickness, the distance of its slices is written instead.

    The same mask of the same series by the same model gives the same identifiers.

    Args:
        path: File to write, which ends in ``.dcm``.
        series: The series whose grid the mask is on.
        mask: ``(Z, Y, X)`` on the grid that ``series.read`` returns.
        segments: The values of each segment, by its name; they may overlap.
        model: SHA-256 of the model.

    Raises:
        DataError: The series' headers do not allow a segmentation.
    """
    with quiet():
        segmentation = _segmentation(series, mask, segments, model)
    with quiet(), replacing(path) as temporary:
        segmentation.save_as(temporary)


def _segmentation(
    series: Series, mask: Array, segments: Mapping[str, Sequence[int]], model: str
) -> Any:
    """Return highdicom's form of a segmentation; see ``write_segmentation``."""
    import highdicom as hd
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
    from highdicom.sr.coding import CodedConcept

    headers, order = source_headers(series)
    assert series.grid is not None  # a mask is on it
    for header in headers:
        for name in _NEEDED:
            if name not in header:
                setattr(header, name, None if name.endswith(("Date", "Time")) else "")
        if not header.get("FrameOfReferenceUID"):
            raise DataError(
                f"{series.name} has no FrameOfReferenceUID, which names its coordinate system; a "
                "DICOM segmentation needs one"
            )
        for measures in _measures(header):
            if not measures.get("SliceThickness"):
                measures.SliceThickness = round(series.grid.spacing[0], 6)
    frames = np.empty((*mask.shape, len(segments)), dtype=bool)
    for number, values in enumerate(segments.values()):
        frames[order, ..., number] = np.isin(mask, list(values))
    algorithm = hd.AlgorithmIdentificationSequence(
        name="mixmfl",
        version=__version__,
        family=CodedConcept("123109", "DCM", "Artificial Intelligence"),
        parameters={"model_sha256": model},
    )
    described = [
        SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=CodedConcept(
                "49755003", "SCT", "Morphologically Abnormal Structure"
            ),
            segmented_property_type=CodedConcept("52988006", "SCT", "Lesion"),
            algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, name in enumerate(segments, start=1)
    ]
    origin = (series.uid, model, np.packbits(frames).tobytes().hex())
    try:
        segmentation = hd.seg.Segmentation(
            source_images=headers,
            pixel_array=frames,
            segmentation_type=SegmentationTypeValues.BINARY,
            segment_descriptions=described,
            series_instance_uid=stable_uid("series", *origin),
            series_number=abs(series.header.number) % 10**6 + 9000,
            sop_instance_uid=stable_uid("instance", *origin),
            instance_number=1,
            manufacturer="mixmfl",
            manufacturer_model_name="mixmfl",
            software_versions=__version__,
            device_serial_number=model[:16],
            content_label="SEGMENTATION",
            content_description="research, not for diagnosis",
            omit_empty_frames=bool(frames.any()),
        )
    except (AttributeError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{series.name}: no DICOM segmentation can be made of it ({error})"
        ) from None
    segmentation.SeriesDescription = f"Segmentation of series {series.header.number}"
    return segmentation


def _measures(header: Any) -> list[Any]:
    """Return the parts of a header that hold a slice thickness: itself, or its frames' parts."""
    if "PerFrameFunctionalGroupsSequence" not in header:
        return [header]
    groups = [
        *header.get("SharedFunctionalGroupsSequence", ()),
        *header.PerFrameFunctionalGroupsSequence,
    ]
    return [group.PixelMeasuresSequence[0] for group in groups if "PixelMeasuresSequence" in group]
