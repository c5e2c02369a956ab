"""Reading of a DICOM header: its sequence, its patient, and the place of its planes."""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mixmfl.core.errors import DataError
from mixmfl.data.body_parts import described_part
from mixmfl.data.dicom.files import Stored, read_header
from mixmfl.data.image import MOST_VOXELS
from mixmfl.data.sequence_words import without_accents

MOST_FRAMES = 20_000
"""The frames that a file may have; each has a place, which takes memory before any pixel."""

LARGEST_COMPRESSION = 20_000
"""The highest compression of pixels: an empty plane in JPEG 2000 takes some hundred bytes."""

# how pixels may be compressed: RLE, and what GDCM reads of JPEG, JPEG-LS and JPEG 2000
_COMPRESSIONS = {
    f"1.2.840.10008.1.2.{kind}" for kind in ("5", "4.50", "4.51", "4.57", "4.70", "4.80", "4.81",
                                             "4.90", "4.91")
}  # fmt: skip
_LONGEST_TEXT = 200
_MOST_PARTS = 50  # of a value; each image of a file has its own list of them
_NAMES = [
    "SpecificCharacterSet", "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID",
    "SeriesInstanceUID", "FrameOfReferenceUID", "PatientName", "PatientID", "PatientBirthDate",
    "PatientSex", "PatientAge", "PatientWeight", "PatientSize", "PatientIdentityRemoved",
    "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
    "Modality", "SeriesNumber", "InstanceNumber",
    "AcquisitionNumber", "AcquisitionTime", "SeriesDescription", "ProtocolName", "SequenceName",
    "PulseSequenceName", "BodyPartExamined", "ContrastBolusAgent", "ContrastBolusAgentSequence",
    "ContrastBolusVolume", "ContrastBolusTotalDose", "ContrastBolusStartTime",
    "ContrastBolusIngredient", "ContrastBolusRoute",
    "AcquisitionContrast", "AngioFlag", "TimeOfFlightContrast", "PhaseContrast",
    "ComplexImageComponent", "ScanningSequence", "SequenceVariant",
    "EchoPulseSequence", "EchoPlanarPulseSequence", "InversionRecovery", "EchoTime",
    "RepetitionTime", "InversionTime", "FlipAngle", "DiffusionBValue", "ImageType",
    "TemporalPositionIdentifier", "NumberOfTemporalPositions", "ImagesInAcquisition",
    "InConcatenationTotalNumber", "NumberOfSlices", "Rows", "Columns", "NumberOfFrames",
    "SamplesPerPixel",
    "PhotometricInterpretation", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
    "RescaleSlope", "RescaleIntercept", "RealWorldValueMappingSequence", "ModalityLUTSequence",
    "PixelSpacing", "SliceThickness", "SpacingBetweenSlices", "SliceLocation",
    "ReconstructionDiameter",
    "ImageOrientationPatient", "ImagePositionPatient", "PatientOrientation",
    "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence",
]  # fmt: skip
_VISIT = ("PatientAge", "PatientWeight", "PatientSize", "StudyDate", "StudyTime", "StudyID",
          "AccessionNumber")  # fmt: skip
DATE = _VISIT.index("StudyDate")
"""The place of the examination's date in ``Instance.visit``."""
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
    """

    modality: str = "MR"
    number: int = 0
    description: str = ""
    protocol: str = ""
    sequence: str = ""
    body_part: str = ""
    agent: str = ""
    phase: str = ""
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
    names = _text(content, "PatientName"), _text(content, "PatientID")
    who = " ".join(names).strip()
    is_anonymous = (
        any(name.strip("^ .-").casefold() in _NOBODY for name in names)
        or "anon" in who.casefold()
        or _is_yes(content, "PatientIdentityRemoved")
    )
    return Instance(
        file,
        _text(content, "StudyInstanceUID"),
        _text(content, "SeriesInstanceUID"),
        _text(content, "SOPInstanceUID"),
        (
            _plain_id(_text(content, "PatientID")),
            # a middle name is often left out, and tells people without an ID apart
            _plain_name(_text(content, "PatientName"), 2 if _text(content, "PatientID") else 3),
            *(_text(content, name).casefold() for name in ("PatientBirthDate", "PatientSex")),
        ),
        tuple(_text(content, name) for name in _VISIT),
        _text(content, "FrameOfReferenceUID"),
        who,
        is_anonymous,
        _header(values[0]),
        tuple(_planes(content, values, file)),
        tuple(
            _text(content, name)
            for name in ("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation",
                         "PhotometricInterpretation", "SamplesPerPixel")
        ),
        fault,
        stored is not None and stored.announced is None,
        _whole(content, "InstanceNumber"),
        max(_whole(content, _GE_SLICES), _whole(content, _PHILIPS_SLICES),
            _whole(content, "NumberOfSlices")),
        _whole(content, "ImagesInAcquisition"),
        number_in(values[0], "ReconstructionDiameter"),
        _whole(content, "InConcatenationTotalNumber"),
        _several(content, "PatientOrientation"),
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


def frames_of(content: Any) -> int:
    """Return how many images a file announces."""
    return max(1, _whole(content, "NumberOfFrames"))


def pixel_fault(content: Any, stored: Stored, file: Path) -> str:
    """Say why the pixels of a file do not fit its header; empty where they do.

    Args:
        content: The header of the file.
        stored: How many bytes of pixels there are.
        file: The file, for messages.
    """
    rows, columns, frames = (
        _whole(content, "Rows"),
        _whole(content, "Columns"),
        frames_of(content),
    )
    samples = _whole(content, "SamplesPerPixel") or 1
    bits, used = _whole(content, "BitsAllocated"), _whole(content, "BitsStored")
    kind = _text(content, "PhotometricInterpretation")
    if rows < 1 or columns < 1:
        return f"{file.name}: says {rows} rows and {columns} columns"
    if rows * columns * frames > MOST_VOXELS:
        return f"{file.name}: announces {rows * columns * frames} voxels; at most {MOST_VOXELS}"
    if samples != 1 or kind not in ("MONOCHROME2", "MONOCHROME1", ""):
        return f"{file.name}: is in colour ({kind}); needed is one number per pixel"
    if bits not in (8, 16, 32, 64) or not 1 <= used <= bits:
        return f"{file.name}: says {used} of {bits} bits per pixel; needed are 1 to 8, 16 or 32"
    if "ModalityLUTSequence" in content and "RescaleSlope" not in content:
        return f"{file.name}: stores its values by a table (ModalityLUTSequence), which is not read"
    needed = rows * columns * frames * bits // 8
    if stored.announced is None:  # compressed
        syntax = content.file_meta.get("TransferSyntaxUID") or ""
        if syntax not in _COMPRESSIONS:
            name = getattr(syntax, "name", "") or "no known syntax"
            return (
                f"{file.name}: is compressed as {name!r}, which is not read; export it without "
                "compression"
            )
        if stored.found is not None and needed > stored.found * LARGEST_COMPRESSION:
            return f"{file.name}: announces {needed} bytes of pixels, and has {stored.found}"
        return ""
    held = stored.announced if stored.found is None else min(stored.announced, stored.found)
    if held < needed:
        return f"{file.name}: holds {held} bytes of pixels, {needed} needed"
    return ""


def by_frame(content: Any) -> list["_Values"]:
    """Return the header values of each image of a file: its own, else those of all images."""
    shared, *own = _groups(content)
    if not own:
        return [_Values(content)]
    return [_Values(content, frame, shared) for frame in own]


class _Values:
    """The elements of a header by name; those of a frame go before those of the file."""

    def __init__(self, content: Any, *groups: Mapping[str, Any]) -> None:
        self._content = content
        self._groups = groups

    def get(self, name: Any, default: Any = None) -> Any:
        for group in self._groups:
            if name in group:
                return group[name].value
        return self._content.get(name, default)


def _groups(content: Any) -> list[dict[str, Any]]:
    """Return the functional groups of an enhanced image: the shared one, then one per frame."""
    shared = content.get("SharedFunctionalGroupsSequence") or ()
    own = content.get("PerFrameFunctionalGroupsSequence") or ()
    return [_flat(shared[0]) if shared else {}, *map(_flat, own)]


def _flat(group: Any) -> dict[str, Any]:
    elements: dict[str, Any] = {}
    for sequence in group:
        if sequence.VR == "SQ" and sequence.value:
            for element in sequence.value[0]:
                elements.setdefault(element.keyword or element.tag, element)
    return elements


def _planes(content: Any, frame_values: list["_Values"], file: Path) -> Iterator[Plane]:
    shape = _whole(content, "Rows"), _whole(content, "Columns")
    frames = frames_of(content)
    is_enhanced = "PerFrameFunctionalGroupsSequence" in content
    if len(frame_values) != frames:  # the places of the frames are unknown
        nowhere = _plane(_Values({}), file, 0, shape)
        yield from (dataclasses.replace(nowhere, frame=number) for number in range(frames))
        return
    for number, values in enumerate(frame_values):
        yield _plane(values, file, number if is_enhanced or frames > 1 else None, shape)


def _plane(values: "_Values", file: Path, frame: int | None, shape: tuple[int, int]) -> Plane:
    header = _header(values)
    kind = _several(values, "FrameType")[2:] or header.image_type[2:]
    return Plane(
        file,
        frame,
        _numbers(values, "ImagePositionPatient", 3),
        _numbers(values, "ImageOrientationPatient", 6),
        _numbers(values, "PixelSpacing", 2),
        number_in(values, "SliceThickness"),
        shape,
        (f"{header.echo_ms:g}", header.component, "\\".join(kind)),
        (f"{header.repetition_ms:g}", f"{header.inversion_ms:g}", f"{header.flip_degrees:g}",
         *header.scanning),
        (header.agent, header.phase),
        _text(values, "AcquisitionNumber"),
        (_text(values, "TemporalPositionIndex") or _text(values, "TemporalPositionIdentifier"),
         f"{header.b_value:g}"),
        scale := scale_of(values),
        # its values are (stored * slope + intercept) / (slope * scale)
        (1.0 if math.isnan(scale[0]) else scale[0]) * _own(values, _PHILIPS_SCALE, "PHILIPS"),
        number_in(values, "SpacingBetweenSlices"),
        number_in(values, "SliceLocation"),
    )  # fmt: skip


def scale_of(values: Any) -> tuple[float, float]:
    """Return slope and intercept of an image, of real-world values where it has no RescaleSlope.

    Where an element is missing, its number is NaN.
    """
    scale = number_in(values, "RescaleSlope"), number_in(values, "RescaleIntercept")
    if not math.isnan(scale[0]):
        return scale
    mappings = _value(values, "RealWorldValueMappingSequence")  # flat in an enhanced image
    own = mappings[0] if mappings else values
    slope = number_in(own, "RealWorldValueSlope")
    return scale if math.isnan(slope) else (slope, number_in(own, "RealWorldValueIntercept"))


def _header(values: Any) -> Header:
    number = number_in(values, "SeriesNumber")
    component = _text(values, "ComplexImageComponent").upper()
    raw = _whole(values, _GE_COMPONENT)
    if not component and 0 < raw < 4:
        component = ("PHASE", "REAL", "IMAGINARY")[raw - 1]
    scanning = _several(values, "ScanningSequence")
    if not scanning:
        pulse = _text(values, "EchoPulseSequence").upper()
        scanning = tuple(
            short
            for short, is_so in (
                ("SE", pulse in ("SPIN", "BOTH")),
                ("GR", pulse in ("GRADIENT", "BOTH")),
                ("IR", _is_yes(values, "InversionRecovery")),
                ("EP", _is_yes(values, "EchoPlanarPulseSequence")),
            )
            if is_so
        )
    echo = number_in(values, "EffectiveEchoTime")
    inversion = number_in(values, "InversionTime")
    return Header(
        _text(values, "Modality"),
        int(number) if math.isfinite(number) and abs(number) < 2**31 else 0,
        _text(values, "SeriesDescription"),
        _text(values, "ProtocolName"),
        _text(values, "SequenceName") or _text(values, "PulseSequenceName"),
        _text(values, "BodyPartExamined"),
        _agent(values),
        _phase(values),
        _text(values, "AcquisitionContrast").upper(),
        any(
            _is_yes(values, name) for name in ("AngioFlag", "TimeOfFlightContrast", "PhaseContrast")
        ),
        component,
        scanning,
        _several(values, "SequenceVariant"),
        number_in(values, "EchoTime") if math.isnan(echo) else echo,
        number_in(values, "RepetitionTime"),
        number_in(values, "InversionTimes") if math.isnan(inversion) else inversion,
        number_in(values, "FlipAngle"),
        (
            *_several(values, "ImageType"),
            *(["MOSAIC"] if _own(values, _SIEMENS_MOSAIC, "SIEMENS") > 1 else []),
        ),
        _b_value(values),
        _whole(values, "NumberOfTemporalPositions"),
    )


def _b_value(values: Any) -> float:
    """Return the b-value of a diffusion sequence; NaN where no field has it."""
    b_value = number_in(values, "DiffusionBValue")
    for tag, creator in ((_SIEMENS_B, "SIEMENS"), (_GE_B, "GEMS"), (_PHILIPS_B, "PHILIPS")):
        if math.isnan(b_value):
            b_value = _own(values, tag, creator) % _GE_B_FLAG
    return b_value if b_value <= _HIGHEST_B else math.nan


def _own(values: Any, tag: tuple[int, int], creator: str) -> float:
    """Return a manufacturer's own element as a number; NaN where it is not of ``creator``."""
    if creator not in _text(values, (tag[0], tag[1] >> 8)).upper():
        return math.nan
    value = _value(values, tag)
    if isinstance(value, bytes):  # its type was lost
        try:
            return float(value.decode("ascii").strip("\0 ").split("\\")[0])
        except ValueError:
            return math.nan
    return number_in(values, tag)


def _agent(values: Any) -> str:
    """Return the contrast agent's name, with its volume if that is 0, or all that is known."""
    agent = (
        _text(values, "ContrastBolusAgent")
        or " ".join(
            _text(item, "CodeMeaning") or _text(item, "CodeValue") or "agent"
            for item in islice(_value(values, "ContrastBolusAgentSequence") or (), _MOST_PARTS)
        )
        or _text(values, "ContrastBolusIngredient")
    )
    amounts = [number_in(values, f"ContrastBolus{name}") for name in ("Volume", "TotalDose")]
    if not agent and (given := [amount for amount in amounts if amount > 0]):
        return f"{given[0]:g} ml"
    if not agent and 0 not in amounts and _text(values, "ContrastBolusRoute"):
        return "of unknown name"  # how it is given may be the protocol's own
    return f"{agent} 0 ml" if agent and 0 in amounts and not max(amounts) > 0 else agent


def _phase(values: Any) -> str:
    """Return ``"native"`` or ``"contrast"``, for images before or after an agent; else empty."""
    administered = _text(values, "ContrastBolusAgentAdministered").upper()
    phase = _text(values, "ContrastBolusAgentPhase").upper()
    if administered == "NO" or phase.startswith("PRE"):
        return "native"
    if administered == "YES" or phase.startswith(("POST", "IMMEDIATE", "DELAYED")):
        return "contrast"
    start, acquired = _text(values, "ContrastBolusStartTime"), _text(values, "AcquisitionTime")
    if len(start) >= 6 and len(acquired) >= 6 and (start[:6] + acquired[:6]).isdigit():
        hours = [int(time[:2]) + int(time[2:4]) / 60 + int(time[4:6]) / 3600
                 for time in (start, acquired)]  # fmt: skip
        later = (hours[1] - hours[0] + 12) % 24 - 12  # midnight may lie between them
        return "native" if later < 0 else "contrast"
    return ""


def _value(values: Any, name: Any) -> Any:
    """Return a value as pydicom gives it; None where it is missing or cannot be read."""
    try:
        value = values.get(name)
        return getattr(value, "value", value) if isinstance(name, tuple) else value
    except Exception:  # of pydicom, for a value that a flipped bit damaged
        return None


def _text(values: Any, name: Any) -> str:
    value = _value(values, name)
    most = 4 * _LONGEST_TEXT
    several = () if value is None else (value[:most],) if isinstance(value, str | bytes) else value
    parts = several if isinstance(several, Sequence) and not isinstance(several, str) else [several]
    text = "".join(
        sign if sign.isprintable() else " "
        for sign in " ".join(str(part)[:most] for part in islice(parts, _MOST_PARTS))[:most]
    )
    return " ".join(text.split())[:_LONGEST_TEXT]


def _several(values: Any, name: str) -> tuple[str, ...]:
    value = _value(values, name)
    if value is None or isinstance(value, str):
        return tuple(_text(values, name).upper().split("\\")) if value else ()
    try:
        return tuple(str(part)[:_LONGEST_TEXT].upper() for part in islice(value, _MOST_PARTS))
    except TypeError:
        return ()


def _is_yes(values: Any, name: str) -> bool:
    return _text(values, name).upper() in ("Y", "YES")


def number_in(values: Any, name: Any) -> float:
    """Return a value as a finite number; ``math.nan`` itself where it is none."""
    value = _value(values, name)
    try:
        if isinstance(value, bytes):
            return float(int.from_bytes(value[:4], "little"))
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = value[0]
        number = float(value)
    except (TypeError, ValueError, IndexError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def _whole(values: Any, name: Any) -> int:
    number = number_in(values, name)
    return 0 if math.isnan(number) else int(number)


def _numbers(values: Any, name: str, count: int) -> tuple[float, ...]:
    value = _value(values, name)
    try:
        numbers = tuple(float(part) for part in islice(value, count + 1))
    except (TypeError, ValueError, OverflowError):
        return ()
    return numbers if len(numbers) == count and all(map(math.isfinite, numbers)) else ()
