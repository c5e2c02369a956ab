"""Reading of a DICOM header: its sequence, its patient, and the place of its planes."""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mixmfl.core.errors import DataError
from mixmfl.data.body_parts import described_part
from mixmfl.data.contrast_agent import agent_in_name
from mixmfl.data.dicom.elements import (
    MOST_PARTS,
    Values,
    by_frame,
    frames_of,
    integer_in,
    is_yes,
    manufacturer_number,
    number_in,
    numbers_in,
    scale_of,
    text_in,
    texts_in,
    value_of,
)
from mixmfl.data.dicom.files import read_header
from mixmfl.data.dicom.pixel_format import pixel_fault
from mixmfl.data.one_examination import SCANNER, plain_scanner
from mixmfl.data.sequence_phrases import without_accents

MOST_FRAMES = 20_000
"""The frames that a file may have; each has a place, which takes memory before any pixel."""

_NAMES = [
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID",
    "SeriesInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID", "PatientBirthDate",
    "PatientSex", "PatientAge", "PatientWeight", "PatientSize", "PatientIdentityRemoved",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "Modality", "SeriesNumber", "InstanceNumber",
    "AcquisitionNumber", "AcquisitionTime", "SeriesDescription", "ProtocolName", "SequenceName",
    "PulseSequenceName", "BodyPartExamined", "ContrastBolusAgent", "ContrastBolusAgentSequence",
    "ContrastBolusVolume", "ContrastBolusTotalDose", "ContrastBolusStartTime",
    "ContrastBolusIngredient", "ContrastBolusRoute", "ImageComments",
    "AcquisitionContrast", "AngioFlag", "TimeOfFlightContrast", "PhaseContrast",
    "ComplexImageComponent", "ScanningSequence", "SequenceVariant",
    "EchoPulseSequence", "EchoPlanarPulseSequence", "InversionRecovery", "EchoTime",
    "RepetitionTime", "InversionTime", "FlipAngle", "DiffusionBValue", "ImageType",
    "TemporalPositionIdentifier", "NumberOfTemporalPositions", "ImagesInAcquisition",
    "InConcatenationTotalNumber", "NumberOfSlices", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel", "BurnedInAnnotation", "AcquisitionDate", "AcquisitionDateTime", "SeriesDate",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "RealWorldValueMappingSequence", "ModalityLUTSequence",
    "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "SliceLocation",
    "ReconstructionDiameter", "StudyDescription", *SCANNER,
    "ImageOrientationPatient", "ImagePositionPatient", "PatientOrientation",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
_VISIT = ("PatientAge", "PatientWeight", "PatientSize", "StudyDate", "StudyTime", "StudyID",
          "AccessionNumber")  # fmt: skip
DATE = _VISIT.index("StudyDate")
"""The place of the examination's date in ``Instance.visit``."""
_DAYS = ("AcquisitionDate", "AcquisitionDateTime", "SeriesDate")
# what anonymisers write for a name or an ID
_NOBODY = {
    "", "x", "xx", "xxx", "0", "00", "000", "none", "null", "unknown", "removed", "hidden",
    "patient", "name", "no name", "noname", "nn", "n.n", "deidentified", "de-identified",
    "redacted", "unbekannt", "inconnu", "desconocido",
}  # fmt: skip
_GE_SLICES, _PHILIPS_SLICES, _GE_COMPONENT = (0x0021, 0x104F), (0x2001, 0x1018), (0x0043, 0x102F)
_SIEMENS_B, _GE_B, _PHILIPS_B = (0x0019, 0x100C), (0x0043, 0x1039), (0x2001, 0x1003)
_PHILIPS_SCALE = (0x2005, 0x100E)  # of Philips' own floating-point values
_SIEMENS_MOSAIC = (0x0019, 0x100A)  # the slices that lie side by side in one image
_GE_B_FLAG = 1_000_000_000  # GE adds it to a b-value, or more of it
_HIGHEST_B = 20_000  # s/mm²; what is above is no b-value
_CREATORS = [(0x0021, 0x0010), (0x2001, 0x0010), (0x0043, 0x0010), (0x0019, 0x0010),
             (0x2005, 0x0010)]  # fmt: skip
_PRIVATE = [
    _GE_SLICES, _PHILIPS_SLICES, _GE_COMPONENT, _SIEMENS_B, _GE_B, _PHILIPS_B, _SIEMENS_MOSAIC,
    _PHILIPS_SCALE, *_CREATORS,
]  # fmt: skip


@dataclass(frozen=True)
class Header:
    """The fields of a series' header that describe the sequence.

    Attributes:
        modality: DICOM's: ``"MR"``, ``"CT"``, …
        number: SeriesNumber; 0 where it is missing.
        description: SeriesDescription.
        protocol: ProtocolName.
        sequence: SequenceName, or PulseSequenceName of enhanced images.
        body_part: BodyPartExamined.
        agent: ContrastBolusAgent, or the names in ContrastBolusAgentSequence, or what else the
            header has of an agent.
        phase: ``"native"`` or ``"contrast"`` where the header says whether an agent was given
            before; else empty.
        comment: ImageComments where they name an agent that was given; else empty.
        contrast: AcquisitionContrast, such as ``"FLUID_ATTENUATED"``.
        angiography: Whether AngioFlag, TimeOfFlightContrast or PhaseContrast say so.
        component: ComplexImageComponent, such as ``"MAGNITUDE"``.
        scanning: ScanningSequence, such as ``("SE", "IR")``.
        variant: SequenceVariant, such as ``("SK", "MP")``.
        echo_ms: EchoTime; NaN where it is missing.
        repetition_ms: RepetitionTime; NaN where it is missing.
        inversion_ms: InversionTime; NaN where it is missing.
        flip_degrees: FlipAngle; NaN where it is missing.
        image_type: ImageType, such as ``("ORIGINAL", "PRIMARY", "M")``.
        b_value: DiffusionBValue, or the manufacturer's own, s/mm²; NaN where it is missing.
        times: NumberOfTemporalPositions; 0 where it is missing.
        study: StudyDescription.
        age_years: PatientAge; NaN where it is missing.
        scanner: The fields that tell scanners apart, by ``plain_scanner``, in the order of
            ``SCANNER``.
    """

    modality: str = "MR"
    number: int = 0
    description: str = ""
    protocol: str = ""
    sequence: str = ""
    body_part: str = ""
    agent: str = ""
    phase: str = ""
    comment: str = ""
    contrast: str = ""
    angiography: bool = False
    component: str = ""
    scanning: tuple[str, ...] = ()
    variant: tuple[str, ...] = ()
    echo_ms: float = math.nan
    repetition_ms: float = math.nan
    inversion_ms: float = math.nan
    flip_degrees: float = math.nan
    image_type: tuple[str, ...] = ()
    b_value: float = math.nan
    times: int = 0
    study: str = ""
    age_years: float = math.nan
    scanner: tuple[str, ...] = ()

    @property
    def part_by_words(self) -> str:
        """The part of the body that description or protocol name; or empty."""
        return described_part(self.description) or described_part(self.protocol)

    @property
    def shown_part(self) -> str:
        """The part of the body by the words of the series, else by BodyPartExamined; or empty.

        BodyPartExamined often says HEAD for a whole examination.
        """
        return self.part_by_words or self.body_part.upper()


@dataclass(frozen=True, slots=True)
class Plane:
    """One image of a file, and its place.

    Attributes:
        file: The file that holds it.
        frame: Its number in the file; None where the file is one plane.
        place: The place of its first pixel, LPS, mm; empty where it is missing.
        axes: The directions in which columns and rows follow each other, LPS; empty where they
            are missing.
        spacing: Millimetres down and across; empty where it is missing.
        thickness: Thickness of the slice, mm; NaN where it is missing.
        shape: Number of rows and columns.
        variety: Echo time, component and image type, which differ between images at one place.
        physics: Repetition and inversion time, flip angle and scanning sequence, which separate
            series that were thrown together.
        agent: The contrast agent, and whether it was given before.
        acquisition: AcquisitionNumber; empty where it is missing.
        moment: Its number in time, and b-value.
        scale: Slope and intercept; NaN where they are missing; see ``scale_of``.
        unit: What Philips divides a rescaled number by, so that images are comparable; NaN where
            that is not stated.
        step: SpacingBetweenSlices, mm; NaN where it is missing.
        location: SliceLocation, mm; NaN where it is missing.
    """

    file: Path
    frame: int | None
    place: tuple[float, ...]
    axes: tuple[float, ...]
    spacing: tuple[float, ...]
    thickness: float
    shape: tuple[int, int]
    variety: tuple[str, ...]
    physics: tuple[str, ...]
    agent: tuple[str, ...]
    acquisition: str
    moment: tuple[str, ...]
    scale: tuple[float, float]
    unit: float = math.nan
    step: float = math.nan
    location: float = math.nan


@dataclass(frozen=True)
class Instance:
    """The header of one file.

    Attributes:
        file: The file.
        study: StudyInstanceUID; empty where it is missing.
        series: SeriesInstanceUID; empty where it is missing.
        sop: SOPInstanceUID; empty where it is missing.
        patient: ID, name, date of birth and sex, without what differs between two spellings.
        visit: Age, weight, size, date, time, ID and accession number of the examination, which are
            the same in all of its files.
        frame_of_reference: FrameOfReferenceUID; empty where it is missing.
        who: Name and ID as they are written, shown only on request.
        is_anonymous: Whether other patients may have the same ID and name.
        header: The fields that describe the sequence.
        planes: The images of the file.
        pixels: The format of a pixel, which must be the same in all files of a series.
        fault: The reason why the pixels cannot be read; empty where none is known.
        is_compressed: Whether only decoding shows that the pixels can be read.
        number: InstanceNumber; 0 where it is missing.
        slices: The number of slices of its volume, by the scanner; 0 where it is missing.
        images: The number of images of its acquisition; 0 where it is missing.
        diameter: ReconstructionDiameter, mm; NaN where it is missing.
        parts: The number of files that an enhanced image was divided into; 0 where it was not.
        orientation: PatientOrientation, such as ``("L", "P")``; empty where it is missing.
        shows_text: Whether BurnedInAnnotation says that its pixels show text.
        day: The day on which it was acquired, as ``20190312``; empty where it is missing.
    """

    file: Path
    study: str
    series: str
    sop: str
    patient: tuple[str, ...]
    visit: tuple[str, ...]
    frame_of_reference: str
    who: str
    is_anonymous: bool
    header: Header
    planes: tuple[Plane, ...]
    pixels: tuple[str, ...]
    fault: str
    is_compressed: bool
    number: int
    slices: int
    images: int
    diameter: float = math.nan
    parts: int = 0
    orientation: tuple[str, ...] = ()
    shows_text: bool = False
    day: str = ""

    @property
    def person(self) -> str:
        """Return the ID, else the name, as all examinations have it; empty if it tells nobody."""
        return next((text for text in self.patient[:2] if not _is_nobody(text)), "")


def read_instance(file: Path) -> Instance | None:
    """Read a file's header; return None where the file is a list of other files.

    Raises:
        DataError: The file is not DICOM, is damaged, or has more than ``MOST_FRAMES`` frames.
    """
    content, stored = read_header(file, _NAMES, _PRIVATE)
    if content is None:
        return None
    if not any(name in content for name in ("SOPClassUID", "Modality", "Rows")):
        raise DataError("has none of the elements of an image")
    fault = "holds no pixels" if stored is None else pixel_fault(content, stored, file)
    frames = frames_of(content)
    if frames > MOST_FRAMES:
        raise DataError(f"has {frames} frames; at most {MOST_FRAMES} are read")
    values = by_frame(content)
    names = text_in(content, "PatientName"), text_in(content, "PatientID")
    who = " ".join(names).strip()
    is_anonymous = (
        any(name.strip("^ .-").casefold() in _NOBODY for name in names)
        or "anon" in who.casefold()
        or is_yes(content, "PatientIdentityRemoved")
    )
    return Instance(
        file,
        text_in(content, "StudyInstanceUID"),
        text_in(content, "SeriesInstanceUID"),
        text_in(content, "SOPInstanceUID"),
        (
            _plain_id(text_in(content, "PatientID")),
            # a middle name is often left out, and tells people without an ID apart
            _plain_name(text_in(content, "PatientName"), 2 if text_in(content, "PatientID") else 3),
            *(text_in(content, name).casefold() for name in ("PatientBirthDate", "PatientSex")),
        ),
        tuple(text_in(content, name) for name in _VISIT),
        text_in(content, "FrameOfReferenceUID"),
        who,
        is_anonymous,
        _header(values[0]),
        tuple(_planes(content, values, file)),
        tuple(
            text_in(content, name)
            for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
                         "PhotometricInterpretation", "SamplesPerPixel")
        ),
        fault,
        stored is not None and stored.announced is None,
        integer_in(content, "InstanceNumber"),
        max(integer_in(content, _GE_SLICES), integer_in(content, _PHILIPS_SLICES),
            integer_in(content, "NumberOfSlices")),
        integer_in(content, "ImagesInAcquisition"),
        number_in(values[0], "ReconstructionDiameter"),
        integer_in(content, "InConcatenationTotalNumber"),
        texts_in(content, "PatientOrientation"),
        is_yes(content, "BurnedInAnnotation"),
        next(filter(None, (text_in(content, name)[:8] for name in _DAYS)), ""),
    )  # fmt: skip


def _is_nobody(plain: str) -> bool:
    return plain in _NOBODY or re.fullmatch(r"anon[^\W\d]*", plain) is not None


def _plain_id(text: str) -> str:
    """Return an ID as two systems write it alike: some fill it up with zeros."""
    text = text.strip("^ ").casefold()
    return text.lstrip("0") or text if text.isdecimal() else text


def _plain_name(text: str, parts: int) -> str:
    """Return a name as "Müller^Hans", "MUELLER HANS" and "Mueller, Hans^^Dr" have it alike.

    Args:
        text: The name.
        parts: How many of its parts count: family, given and middle name, title.
    """
    spoken = " ".join(text.split("^")[:parts])
    words = sorted(re.findall(r"\w+", without_accents(spoken)))
    return re.sub("([aou])e", r"\1", " ".join(words))


def _planes(content: Any, frame_values: list[Values], file: Path) -> Iterator[Plane]:
    shape = integer_in(content, "Rows"), integer_in(content, "Columns")
    frames = frames_of(content)
    is_enhanced = "PerFrameFunctionalGroupsSequence" in content
    if len(frame_values) != frames:  # the places of the frames are unknown
        nowhere = _plane(Values({}), file, 0, shape)
        yield from (dataclasses.replace(nowhere, frame=number) for number in range(frames))
        return
    for number, values in enumerate(frame_values):
        yield _plane(values, file, number if is_enhanced or frames > 1 else None, shape)


def _plane(values: Values, file: Path, frame: int | None, shape: tuple[int, int]) -> Plane:
    header = _header(values)
    kind = texts_in(values, "FrameType")[2:] or header.image_type[2:]
    return Plane(
        file,
        frame,
        numbers_in(values, "ImagePositionPatient", 3),
        numbers_in(values, "ImageOrientationPatient", 6),
        numbers_in(values, "PixelSpacing", 2),
        number_in(values, "SliceThickness"),
        shape,
        (f"{header.echo_ms:g}", header.component, "\\".join(kind)),
        (f"{header.repetition_ms:g}", f"{header.inversion_ms:g}", f"{header.flip_degrees:g}",
         *header.scanning),
        (header.agent, header.phase),
        text_in(values, "AcquisitionNumber"),
        (text_in(values, "TemporalPositionIndex") or text_in(values, "TemporalPositionIdentifier"),
         f"{header.b_value:g}"),
        scale := scale_of(values),
        # its values are (stored * slope + intercept) / (slope * scale)
        (1.0 if math.isnan(scale[0]) else scale[0])
        * manufacturer_number(values, _PHILIPS_SCALE, "PHILIPS"),
        number_in(values, "SpacingBetweenSlices"),
        number_in(values, "SliceLocation"),
    )  # fmt: skip


def _header(values: Any) -> Header:
    number = number_in(values, "SeriesNumber")
    component = text_in(values, "ComplexImageComponent").upper()
    raw = integer_in(values, _GE_COMPONENT)
    if not component and 0 < raw < 4:
        component = ("PHASE", "REAL", "IMAGINARY")[raw - 1]
    scanning = texts_in(values, "ScanningSequence")
    if not scanning:
        pulse = text_in(values, "EchoPulseSequence").upper()
        scanning = tuple(
            short
            for short, is_so in (
                ("SE", pulse in ("SPIN", "BOTH")),
                ("GR", pulse in ("GRADIENT", "BOTH")),
                ("IR", is_yes(values, "InversionRecovery")),
                ("EP", is_yes(values, "EchoPlanarPulseSequence")),
            )
            if is_so
        )
    echo = number_in(values, "EffectiveEchoTime")
    inversion = number_in(values, "InversionTime")
    return Header(
        text_in(values, "Modality"),
        int(number) if math.isfinite(number) and abs(number) < 2**31 else 0,
        text_in(values, "SeriesDescription"),
        text_in(values, "ProtocolName"),
        text_in(values, "SequenceName") or text_in(values, "PulseSequenceName"),
        text_in(values, "BodyPartExamined"),
        _agent(values),
        _phase(values),
        _comment_on_agent(values),
        text_in(values, "AcquisitionContrast").upper(),
        any(
            is_yes(values, name) for name in ("AngioFlag", "TimeOfFlightContrast", "PhaseContrast")
        ),
        component,
        scanning,
        texts_in(values, "SequenceVariant"),
        number_in(values, "EchoTime") if math.isnan(echo) else echo,
        number_in(values, "RepetitionTime"),
        number_in(values, "InversionTimes") if math.isnan(inversion) else inversion,
        number_in(values, "FlipAngle"),
        (
            *texts_in(values, "ImageType"),
            *(["MOSAIC"] if manufacturer_number(values, _SIEMENS_MOSAIC, "SIEMENS") > 1 else []),
        ),
        _b_value(values),
        integer_in(values, "NumberOfTemporalPositions"),
        text_in(values, "StudyDescription"),
        _years(text_in(values, "PatientAge")),
        tuple(plain_scanner(name, text_in(values, name)) for name in SCANNER),
    )


def _years(age: str) -> float:
    """Return an age in years, of which ``024M`` is two; NaN if it is no age."""
    match = re.fullmatch(r"(\d{1,3})([DWMY]?)", age.upper())
    per_year = {"D": 365.25, "W": 52.2, "M": 12.0}
    return int(match[1]) / per_year.get(match[2], 1.0) if match else math.nan


def _b_value(values: Any) -> float:
    """Return the b-value of a diffusion sequence; NaN where no field has it."""
    b_value = number_in(values, "DiffusionBValue")
    for tag, creator in ((_SIEMENS_B, "SIEMENS"), (_GE_B, "GEMS"), (_PHILIPS_B, "PHILIPS")):
        if math.isnan(b_value):
            b_value = manufacturer_number(values, tag, creator) % _GE_B_FLAG
    return b_value if b_value <= _HIGHEST_B else math.nan


def _agent(values: Any) -> str:
    """Return the contrast agent's name, with its volume if that is 0, or all that is known."""
    agent = (
        text_in(values, "ContrastBolusAgent")
        or " ".join(
            text_in(item, "CodeMeaning") or text_in(item, "CodeValue") or "agent"
            for item in islice(value_of(values, "ContrastBolusAgentSequence") or (), MOST_PARTS)
        )
        or text_in(values, "ContrastBolusIngredient")
    )
    amounts = [number_in(values, f"ContrastBolus{name}") for name in ("Volume", "TotalDose")]
    if not agent and (given := [amount for amount in amounts if amount > 0]):
        return f"{given[0]:g} ml"
    if not agent and 0 not in amounts and text_in(values, "ContrastBolusRoute"):
        return "of unknown name"  # how it is given may be the protocol's own
    return f"{agent} 0 ml" if agent and 0 in amounts and not max(amounts) > 0 else agent


def _comment_on_agent(values: Any) -> str:
    """Return ImageComments where they say that an agent was given; else nothing."""
    comment = text_in(values, "ImageComments")
    return comment if agent_in_name(comment) == "with" else ""


def _phase(values: Any) -> str:
    """Return ``"native"`` or ``"contrast"``, for images before or after an agent; else empty."""
    administered = text_in(values, "ContrastBolusAgentAdministered").upper()
    phase = text_in(values, "ContrastBolusAgentPhase").upper()
    if administered == "NO" or phase.startswith("PRE"):
        return "native"
    if administered == "YES" or phase.startswith(("POST", "IMMEDIATE", "DELAYED")):
        return "contrast"
    start, acquired = text_in(values, "ContrastBolusStartTime"), text_in(values, "AcquisitionTime")
    if len(start) >= 6 and len(acquired) >= 6 and (start[:6] + acquired[:6]).isdigit():
        hours = [int(time[:2]) + int(time[2:4]) / 60 + int(time[4:6]) / 3600
                 for time in (start, acquired)]  # fmt: skip
        later = (hours[1] - hours[0] + 12) % 24 - 12  # midnight may lie between them
        return "native" if later < 0 else "contrast"
    return ""
