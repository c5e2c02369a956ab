"""Masks and maps as DICOM objects that name the series they are of, and the masks' volumes.

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


def is_available() -> bool:
    """Say whether highdicom is installed."""
    return find_spec("highdicom") is not None


def check_available() -> None:
    """Check that highdicom is installed.

    Raises:
        MixmflError: highdicom is not installed.
    """
    if not is_available():
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
    fractional: tuple[Path, Mapping[str, Array]] | None = None,
) -> None:
    """Write a DICOM Segmentation, and what else is asked for; each file whole or not at all.

    Where the source has no slice thickness, the distance of its slices is written instead.

    The same mask of the same series by the same model gives the same identifiers.

    Args:
        path: File to write, which ends in ``.dcm``.
        series: The series whose grid the mask is on.
        mask: ``(Z, Y, X)`` on the grid that ``series.read`` returns.
        segments: The values of each segment, by its name; they may overlap.
        model: SHA-256 of the model.
        codes: What the segments are, by their names; one without is a lesion.
        report: Where to write a Structured Report of the volumes, by TID 1500; None: nowhere.
        fractional: Where to write a fractional segmentation, and by segment its probabilities, on
            the grid of the mask; None: nowhere.

    Raises:
        DataError: The series' headers do not allow a segmentation.
    """
    with quiet():
        inside = [np.isin(mask, list(values)) for values in segments.values()]
        segmentation = _segmentation(series, inside, list(segments), model, codes)
        made = {path: segmentation}
        if fractional is not None:
            file, probabilities = fractional
            shares = [probabilities[name] for name in segments]
            made[file] = _segmentation(series, shares, list(segments), model, codes)
        if report is not None:
            made[report] = _report(series, mask, segments, segmentation)
    for file, content in made.items():
        with quiet(), replacing(file) as temporary:
            content.save_as(temporary)


def _segmentation(
    series: Series,
    volumes: Sequence[Array],
    names: Sequence[str],
    model: str,
    codes: Mapping[str, Segment],
) -> Any:
    """Return highdicom's form of a segmentation, binary if the volumes are, else fractional."""
    import highdicom as hd
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentationTypeValues, SegmentDescription
    from highdicom.sr.coding import CodedConcept

    headers, frames = _frames(series, volumes)
    binary = frames.dtype == bool
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
        for number, name in enumerate(names, start=1)
    ]
    content = np.packbits(frames) if binary else frames
    origin = (series.uid, model, content.tobytes().hex())
    try:
        segmentation = hd.seg.Segmentation(
            source_images=headers,
            pixel_array=frames,
            segmentation_type=(
                SegmentationTypeValues.BINARY if binary else SegmentationTypeValues.FRACTIONAL
            ),
            segment_descriptions=described,
            content_label="SEGMENTATION" if binary else "PROBABILITY",
            **_origin(series, 9000 if binary else 9002, model, origin),
            omit_empty_frames=bool(frames.any()),
        )
    except (AttributeError, ValueError, TypeError, KeyError) as error:
        raise DataError(
            f"{series.name}: no DICOM segmentation can be made of it ({error})"
        ) from None
    what = "Segmentation" if binary else "Probabilities"
    segmentation.SeriesDescription = f"{what} of series {series.header.number}"
    return segmentation


def write_parametric_map(
    path: Path, series: Series, quantities: Mapping[str, Array], model: str
) -> None:
    """Write a DICOM Parametric Map, whole or not at all.

    The same maps of the same series by the same model give the same identifiers.

    Args:
        path: File to write, which ends in ``.dcm``.
        series: The series whose grid the maps are on.
        quantities: Numbers from 0 to 1 ``(Z, Y, X)`` on the grid that ``series.read`` returns, by
            what they are.
        model: SHA-256 of the model.

    Raises:
        DataError: The series' headers do not allow a Parametric Map.
    """
    import highdicom as hd
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from highdicom.sr.coding import CodedConcept

    with quiet():
        headers, frames = _frames(series, [each.astype(np.float32) for each in quantities.values()])
        mappings = [
            [
                RealWorldValueMapping(
                    lut_label=f"MAP{number}",
                    lut_explanation=name[:64],
                    unit=CodedConcept("1", "UCUM", "no units"),
                    value_range=(0.0, 1.0),
                    slope=1,
                    intercept=0,
                )
            ]
            for number, name in enumerate(quantities, start=1)
        ]
        origin = ("maps", series.uid, model, frames.tobytes().hex())
        try:
            content = ParametricMap(
                source_images=headers,
                pixel_array=frames,
                contains_recognizable_visual_features=False,
                real_world_value_mappings=mappings,
                voi_lut_transformations=[
                    hd.VOILUTTransformation(window_center=0.5, window_width=1.0)
                ],
                content_label="UNCERTAINTY",
                **_origin(series, 9003, model, origin),
            )
        except (AttributeError, ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{series.name}: no DICOM Parametric Map can be made of it ({error})"
            ) from None
        content.SeriesDescription = f"Uncertainty of series {series.header.number}"
        content.Laterality = ""  # an image that does not say what it shows must have it, if empty
        with replacing(path) as temporary:
            content.save_as(temporary)


def _origin(series: Series, added: int, model: str, made_of: tuple[str, ...]) -> dict[str, Any]:
    """Return what an object says of its origin: who made it, and which object of which series.

    Args:
        series: The series that it is of.
        added: What makes its number of the number of the series.
        model: SHA-256 of the model.
        made_of: What decides its content; the same gives the same identifiers.
    """
    return {
        "series_instance_uid": stable_uid("series", *made_of),
        "series_number": abs(series.header.number) % 10**6 + added,
        "sop_instance_uid": stable_uid("instance", *made_of),
        "instance_number": 1,
        "manufacturer": "mixmfl",
        "manufacturer_model_name": "mixmfl",
        "software_versions": __version__,
        "device_serial_number": model[:16],
        "content_description": "research, not for diagnosis",
    }


def _frames(series: Series, volumes: Sequence[Array]) -> tuple[list[Any], Array]:
    """Return the headers of a series, complete, and volumes in their order of frames.

    Args:
        series: The series.
        volumes: Arrays ``(Z, Y, X)`` of one type, on the grid that ``series.read`` returns.

    Returns:
        The headers, and the volumes as ``(frames, Y, X, volumes)``.

    Raises:
        DataError: The series has no frame of reference.
    """
    headers, order = source_headers(series)
    assert series.grid is not None  # the volumes are on it
    for header in headers:
        for name in _NEEDED:
            if name not in header:
                setattr(header, name, None if name.endswith(("Date", "Time")) else "")
        if not header.get("FrameOfReferenceUID"):
            raise DataError(
                f"{series.name} has no FrameOfReferenceUID, which names its coordinate system; a "
                "DICOM segmentation or map needs one"
            )
        for measures in _measures(header):
            if not measures.get("SliceThickness"):
                measures.SliceThickness = round(series.grid.spacing[0], 6)
    frames = np.empty((*volumes[0].shape, len(volumes)), dtype=volumes[0].dtype)
    for number, volume in enumerate(volumes):
        frames[order, ..., number] = volume
    return list(headers), frames


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
