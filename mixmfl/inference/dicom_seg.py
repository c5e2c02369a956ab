"""Masks as DICOM Segmentation objects that name the series they were drawn on, and their volumes.

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
from mixmfl.data.dataset_card import Segment
from mixmfl.data.dicom.codes import meaning_of
from mixmfl.data.dicom.files import quiet
from mixmfl.data.dicom.series import Series, source_headers, stable_uid
from mixmfl.evaluation.overlay import PALETTE

Array = npt.NDArray[Any]

# attributes that a series must have for a valid segmentation; they may be empty
_NEEDED = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate",
    "StudyTime", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip

_LESION = Segment("52988006")
_NO_CODES: Mapping[str, Segment] = {}

_TO_D50 = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])


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
    path: Path,
    series: Series,
    mask: Array,
    segments: Mapping[str, Sequence[int]],
    model: str,
    codes: Mapping[str, Segment] = _NO_CODES,
    report: Path | None = None,
) -> None:
    """Write a DICOM Segmentation, and a Structured Report of its volumes; each whole or not at all.

    Where the source has no slice thickness, the distance of its slices is written instead.

    The same mask of the same series by the same model gives the same identifiers.

    Args:
        path: File to write, which ends in ``.dcm``.
        series: The series whose grid the mask is on.
        mask: ``(Z, Y, X)`` on the grid that ``series.read`` returns.
        segments: The values of each segment, by its name; they may overlap.
        model: SHA-256 of the model.
        codes: What the segments are, by their names; one without is a lesion.
        report: Where to write the report, by TID 1500; None: none is written.

    Raises:
        DataError: The series' headers do not allow a segmentation.
    """
    with quiet():
        segmentation = _segmentation(series, mask, segments, model, codes)
        made = {path: segmentation}
        if report is not None:
            made[report] = _report(series, mask, segments, segmentation)
    for file, content in made.items():
        with quiet(), replacing(file) as temporary:
            content.save_as(temporary)


def _segmentation(
    series: Series,
    mask: Array,
    segments: Mapping[str, Sequence[int]],
    model: str,
    codes: Mapping[str, Segment],
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
            segmented_property_category=_concept(codes.get(name, _LESION).category),
            segmented_property_type=_concept(codes.get(name, _LESION).type),
            anatomic_regions=(
                [_concept(region)] if (region := codes.get(name, _LESION).region) else None
            ),
            display_color=hd.color.CIELabColor(*lab_of(PALETTE[(number - 1) % len(PALETTE)])),
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


def _report(
    series: Series, mask: Array, segments: Mapping[str, Sequence[int]], segmentation: Any
) -> Any:
    """Return a Structured Report with the volume of every segment, by TID 1500."""
    from highdicom import sr
    from highdicom.sr.coding import CodedConcept

    assert series.grid is not None  # a mask is on it
    voxel_ml = float(np.prod(series.grid.spacing)) / 1000
    source = sr.SourceSeriesForSegmentation(series.uid)
    groups = []
    for described, values in zip(segmentation.SegmentSequence, segments.values(), strict=True):
        number = int(described.SegmentNumber)
        regions = described.get("AnatomicRegionSequence", ())
        groups.append(
            sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
                tracking_identifier=sr.TrackingIdentifier(
                    stable_uid("tracking", segmentation.SOPInstanceUID, str(number)),
                    described.SegmentLabel,
                ),
                referenced_segment=sr.ReferencedSegment(
                    segmentation.SOPClassUID,
                    segmentation.SOPInstanceUID,
                    number,
                    source_series=source,
                ),
                finding_category=described.segmented_property_category,
                finding_type=described.segmented_property_type,
                finding_sites=[sr.FindingSite(CodedConcept.from_dataset(r)) for r in regions],
                measurements=[
                    sr.Measurement(
                        CodedConcept("118565006", "SCT", "Volume"),
                        round(float(np.isin(mask, list(values)).sum()) * voxel_ml, 3),
                        CodedConcept("cm3", "UCUM", "cubic centimeter"),
                    )
                ],
            )
        )
    device = sr.ObserverContext(
        CodedConcept("121007", "DCM", "Device"),
        sr.DeviceObserverIdentifyingAttributes(
            stable_uid("device", segmentation.DeviceSerialNumber),
            name="mixmfl, research software, not for diagnosis",
            manufacturer_name="mixmfl",
            model_name="mixmfl",
            serial_number=segmentation.DeviceSerialNumber,
        ),
    )
    content = sr.MeasurementReport(
        sr.ObservationContext(observer_device_context=device),
        CodedConcept("113091000", "SCT", "Magnetic resonance imaging"),
        imaging_measurements=groups,
        title=CodedConcept("126000", "DCM", "Imaging Measurement Report"),
    )
    report = sr.Comprehensive3DSR(
        evidence=[segmentation, *source_headers(series)[0]],
        content=content[0],
        series_instance_uid=stable_uid("report series", segmentation.SOPInstanceUID),
        series_number=segmentation.SeriesNumber + 1,
        sop_instance_uid=stable_uid("report", segmentation.SOPInstanceUID),
        instance_number=1,
        manufacturer="mixmfl",
    )
    report.SeriesDescription = f"Volumes in series {series.header.number}"
    return report


def _concept(code: str) -> Any:
    from highdicom.sr.coding import CodedConcept

    return CodedConcept(code, "SCT", meaning_of(code, "segments")[:64])


def lab_of(colour: str) -> tuple[float, float, float]:
    """Return CIELab of an sRGB colour ``"#rrggbb"``, white D50, as DICOM has it (PS3.3 C.10.7.1.1).

    The matrix is that of sRGB's ICC profile, which is adapted to D50.
    """
    parts = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    x, y, z = _TO_D50 @ linear / _TO_D50.sum(axis=1)
    fx, fy, fz = (
        float(np.cbrt(each)) if each > 216 / 24389 else each * 841 / 108 + 4 / 29
        for each in (x, y, z)
    )
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def _measures(header: Any) -> list[Any]:
    """Return the parts of a header that hold a slice thickness: itself, or its frames' parts."""
    if "PerFrameFunctionalGroupsSequence" not in header:
        return [header]
    groups = [
        *header.get("SharedFunctionalGroupsSequence", ()),
        *header.PerFrameFunctionalGroupsSequence,
    ]
    return [group.PixelMeasuresSequence[0] for group in groups if "PixelMeasuresSequence" in group]
