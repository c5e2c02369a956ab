"""DICOM: which series is which modality of whom, read as images; the one door to pydicom.

A case is an examination (study). Its sequences are recognised from header fields, which people
fill in; so what was taken for what is shown, and can be corrected in a table (``read_mapping``).
"""

import csv
import dataclasses
import hashlib
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.errors import InvalidDicomError
from pydicom.uid import generate_uid

from mixmfl.cases import Case, Found, Refused, find_cases, holds_images
from mixmfl.errors import DataError
from mixmfl.files import sha256
from mixmfl.image import Grid, check_directions, make_grid, read_frames
from mixmfl.modalities import Modalities

FEWEST_SLICES = 5  # a localiser has fewer
SPACING_TOLERANCE = 0.02  # relative: how far slices may be from evenly spaced

_TAGS = [
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Modality",
    "SeriesNumber", "SeriesDescription", "ProtocolName", "SequenceName", "ContrastBolusAgent",
    "ScanningSequence", "EchoTime", "RepetitionTime", "InversionTime", "ImageType",
    "DiffusionBValue", "Rows", "Columns", "PixelSpacing", "ImageOrientationPatient",
    "NumberOfFrames", "SamplesPerPixel", "PatientName", "PatientID",
]  # fmt: skip

_LOCALISER_WORDS = {
    "localizer", "localiser", "loc", "scout", "survey", "3plane", "aahead", "aahscout",
    "smartbrain", "calibration", "cal", "asset", "lokalizer",
}  # fmt: skip
# what is computed from images and is no image of the head itself
_DERIVED_WORDS = {
    "adc": "apparent diffusion coefficient", "fa": "fractional anisotropy", "mip": "projection",
    "minip": "projection", "projection image": "projection", "sub": "subtraction",
    "subtraction": "subtraction", "cbf": "perfusion", "cbv": "perfusion", "mtt": "perfusion",
    "ttp": "perfusion", "rcbv": "perfusion", "tensor": "tensor", "t2 map": "relaxometry",
    "t1 map": "relaxometry", "mpr": "reformatted", "screen save": "screen shot", "mosaic": "mosaic",
    "phase map": "phase", "p": "phase", "fieldmap": "field map",
}  # fmt: skip
_CONTRAST_WORDS = {
    "gd", "gad", "gado", "gadolinium", "km", "ce", "contrast", "post", "postcontrast", "kontrast",
    "gadovist", "dotarem", "c", "+c",
}  # fmt: skip
_NATIVE_WORDS = {"pre", "native", "nativ", "without", "ohne", "sans", "precontrast", "plain", "no"}


@dataclass(frozen=True)
class Header:
    """What the header of a series says, as far as it tells the sequence.

    Attributes:
        modality: DICOM's: ``"MR"``, ``"CT"``, …
        number: Of the series.
        description: SeriesDescription.
        protocol: ProtocolName.
        agent: ContrastBolusAgent.
        scanning: ScanningSequence, such as ``("SE", "IR")``.
        echo_ms: EchoTime; NaN where it is not told, as the next two.
        repetition_ms: RepetitionTime.
        inversion_ms: InversionTime.
        image_type: ImageType, such as ``("ORIGINAL", "PRIMARY", "M")``.
        b_value: DiffusionBValue, s/mm²; NaN where it is not told.
    """

    modality: str = "MR"
    number: int = 0
    description: str = ""
    protocol: str = ""
    agent: str = ""
    scanning: tuple[str, ...] = ()
    echo_ms: float = math.nan
    repetition_ms: float = math.nan
    inversion_ms: float = math.nan
    image_type: tuple[str, ...] = ()
    b_value: float = math.nan

    @property
    def words(self) -> set[str]:
        """Return the single words of description and image type, in lower case."""
        text = " ".join([self.description, *self.image_type[2:]]).lower()
        for sign in "_-./,()*":
            text = text.replace(sign, " ")
        return set(text.split())


@dataclass(frozen=True)
class Series:
    """A series, or one echo of it: an image (see ``image.Source``).

    Attributes:
        uid: SeriesInstanceUID; with several echoes in the series, ``#`` and the echo time too.
        study: StudyInstanceUID.
        header: Of its first file.
        files: Sorted by path; each instance once.
        orientations: How many its files have.
        pixels: Columns times rows of a slice.
        slices: Frames of all files.
        patient: Name and ID, for who asks for it.
    """

    uid: str
    study: str
    header: Header
    files: tuple[Path, ...] = field(repr=False)
    orientations: int
    pixels: int
    slices: int
    patient: str = field(default="", repr=False)

    def __str__(self) -> str:
        return self.name

    @property
    def name(self) -> str:
        """Return what messages call it."""
        return f"series {self.header.number} {self.header.description!r}"

    @property
    def size(self) -> int:
        """Return how many voxels it has."""
        return self.slices * self.pixels

    def sha256(self) -> str:
        """Return a digest of the content of its files, in whatever order they lie."""
        digests = sorted(sha256(file) for file in self.files)
        return hashlib.sha256("".join(digests).encode()).hexdigest()

    def read(self) -> tuple[npt.NDArray[np.float32], Grid]:
        """Return the voxels ``(Z, Y, X)`` and their grid.

        Raises:
            DataError: A file cannot be read, or the slices are no volume.
        """
        slices = self._planes()
        first = slices[0]
        if any(
            not np.allclose(each.axes, first.axes, atol=1e-3)
            or not np.allclose(each.spacing, first.spacing, rtol=1e-3)
            for each in slices
        ):
            raise DataError(f"{self.name}: its slices differ in direction or spacing")
        normal = np.cross(first.axes[:3], first.axes[3:])
        grid_step, direction = self._step(slices, normal)
        axes = np.stack([first.axes[:3], first.axes[3:], direction], axis=1)
        frames: dict[Path, Any] = {}
        voxels: npt.NDArray[np.float32] | None = None
        for index, each in enumerate(slices):
            if each.file not in frames:
                if each.frame is None:
                    frames.clear()  # one slice per file: none is needed again
                frames[each.file] = read_frames(each.file)
            plane = frames[each.file][each.frame or 0]
            if voxels is None:
                voxels = np.empty((len(slices), *plane.shape), dtype=np.float32)
            if plane.shape != voxels.shape[1:]:
                raise DataError(f"{self.name}: its slices differ in size")
            voxels[index] = plane
        assert voxels is not None
        down, across = first.spacing
        grid = make_grid(voxels.shape, (grid_step, down, across), slices[0].place, axes)
        check_directions(grid, self.name)
        return voxels, grid

    def _planes(self) -> "list[_Slice]":
        """Return the planes in the order of ``read``: along the normal of the first.

        Raises:
            DataError: One of them does not say where it lies.
        """
        try:
            slices = [each for file in self.files for each in _slices(file)]
        except (InvalidDicomError, AttributeError, KeyError, ValueError, IndexError) as error:
            raise DataError(f"{self.name}: has no place in space ({error})") from None
        normal = np.cross(slices[0].axes[:3], slices[0].axes[3:])
        return sorted(slices, key=lambda each: float(normal @ each.place))

    def _step(self, slices: "Sequence[_Slice]", normal: Any) -> tuple[float, Any]:
        """Return the distance of the slices in mm, and the direction in which they follow."""
        if len(slices) == 1:
            if not slices[0].thickness > 0:
                raise DataError(f"{self.name}: has one slice, of unknown thickness")
            return slices[0].thickness, normal
        heights = np.array([float(normal @ each.place) for each in slices])
        gaps = np.diff(heights)
        step = float(np.median(gaps))
        if gaps.min() < 0.01:
            raise DataError(
                f"{self.name}: has several images at one place (time points, b-values or echoes); "
                "one volume is needed"
            )
        if np.abs(gaps - step).max() > SPACING_TOLERANCE * step + 0.01:
            at = int(np.abs(gaps - step).argmax())
            raise DataError(
                f"{self.name}: its slices are not evenly spaced ({gaps[at]:.2f} mm behind slice "
                f"{at + 1}, {step:.2f} mm elsewhere); slices are missing"
            )
        way = slices[-1].place - slices[0].place
        return float(np.linalg.norm(way)) / (len(slices) - 1), way / np.linalg.norm(way)


@dataclass(frozen=True)
class _Slice:
    """A plane: its file, the frame in it (None: the only one), and where it lies, LPS, mm."""

    file: Path
    frame: int | None
    place: Any
    axes: Any
    spacing: tuple[float, float]
    thickness: float


@dataclass(frozen=True)
class Row:
    """What a series was taken for.

    Attributes:
        series: Which.
        case: Its case's name.
        modality: Empty where it is set aside.
        why: What says so.
    """

    series: Series
    case: str
    modality: str
    why: str


@dataclass(frozen=True)
class Given:
    """What a user's table says of a series.

    Attributes:
        case: Its case's name; empty where that stays as it is.
        modality: Empty where it is set aside.
        place: The table and the line, for messages.
    """

    case: str
    modality: str
    place: str


@dataclass(frozen=True)
class FoundDicom:
    """The DICOM files of a folder.

    Attributes:
        cases: Sorted by name.
        refused: Studies that cannot be used.
        rows: Every series, those set aside too.
    """

    cases: tuple[Case, ...]
    refused: tuple[Refused, ...]
    rows: tuple[Row, ...]


def find_dicom(
    folder: Path,
    modalities: Modalities,
    mapping: Mapping[str, Given] | None = None,
) -> FoundDicom:
    """Find the cases of a folder among its DICOM files, whatever their names and nesting.

    Args:
        folder: To look through, also below.
        modalities: The words for modalities.
        mapping: By series, what a user gave it; see ``read_mapping``.

    Raises:
        DataError: The mapping names a series that is not there.
    """
    series = _find_series(folder)
    known = {each.uid for each in series}
    for uid, given in (mapping or {}).items():
        if uid not in known:
            raise DataError(
                f"{given.place}: no series of {folder} has series_uid {uid!r}; mend or remove the "
                "line"
            )
    names = _name_cases(series, folder)
    rows = []
    for each in series:
        if mapping is not None and each.uid in mapping:
            given = mapping[each.uid]
            rows.append(Row(each, given.case or names[each.study], given.modality, "mapping"))
            continue
        aside = _set_aside(each)
        modality, why = ("", aside) if aside else recognise(each.header, modalities)
        rows.append(Row(each, names[each.study], modality, why))
    cases, refused, told = [], [], []
    for name in sorted({row.case for row in rows}):
        mine = [row for row in rows if row.case == name]
        try:
            kept = _without_duplicates(mine)
        except DataError as error:
            refused.append(Refused(name, str(error)))
            told += mine
            continue
        told += kept
        images = {row.modality: row.series for row in kept if row.modality}
        notes = [f"{row.modality} is {row.series.name} ({row.why})" for row in kept if row.modality]
        notes += [f"set aside: {row.series.name} ({row.why})" for row in kept if not row.modality]
        if images:
            patient = kept[0].series.patient
            cases.append(Case(name, dict(sorted(images.items())), None, tuple(notes), patient))
        else:
            reasons = "; ".join(f"{row.series.name}: {row.why}" for row in kept)
            refused.append(Refused(name, f"no series of a known modality: {reasons}"))
    return FoundDicom(tuple(cases), tuple(refused), tuple(told))


def find_all(
    folder: Path,
    modalities: Modalities,
    mapping: Mapping[str, Given] | None = None,
) -> tuple[Found, tuple[Row, ...]]:
    """Find the cases of a folder among DICOM files and in all layouts of ``cases.find_cases``.

    Returns:
        The cases, and what every DICOM series was taken for.

    Raises:
        DataError: As ``find_cases``, where there is no DICOM series either; or the mapping names
            a series that is not there.
    """
    dicom = find_dicom(folder, modalities, mapping) if folder.is_dir() else None
    if dicom is None or not dicom.rows:
        return find_cases(folder, modalities), ()
    found = Found((), (), (), "DICOM", None, folder)
    if holds_images(folder):
        found = find_cases(folder, modalities)
        found = dataclasses.replace(found, layout=f"DICOM, and {found.layout}")
    counts = Counter(each.name for each in (*found.cases, *dicom.cases))
    reasons: dict[str, list[str]] = defaultdict(list)
    for item in (*found.refused, *dicom.refused):
        reasons[item.name].append(item.reason)
    for name in (name for name, count in counts.items() if count > 1):
        reasons[name].append("is the name of DICOM and of other files; rename one")
    cases = []
    for case in (*found.cases, *dicom.cases):
        if counts[case.name] == 1:  # beside it there may be files of its name that are no case
            notes = [f"set aside: {reason}" for reason in reasons.pop(case.name, ())]
            cases.append(dataclasses.replace(case, notes=(*case.notes, *notes)))
    refused = [Refused(name, "; ".join(reasons[name])) for name in sorted(reasons)]
    return dataclasses.replace(
        found,
        cases=tuple(sorted(cases, key=lambda case: case.name)),
        refused=tuple(refused),
    ), dicom.rows


def describe_rows(rows: Sequence[Row]) -> str:
    """Return what was set aside, and what the sequences were recognised by."""
    aside = [row for row in rows if not row.modality]
    end = ":" if aside else ""
    lines = [f"recognised {len(rows) - len(aside)} DICOM series, set aside {len(aside)}{end}"]
    lines += [f"  {row.case}: {row.series.name}: {row.why}" for row in aside]
    return "\n".join(lines)


def recognise(header: Header, modalities: Modalities) -> tuple[str, str]:
    """Return the modality of a series, empty where it is not known, and what says so.

    First the words of the description, then those of the protocol, then the times of the
    sequence. A contrast agent makes a T1 a contrast-enhanced T1.
    """
    modality, why = "", ""
    for place, text in (("description", header.description), ("protocol", header.protocol)):
        if modality := _from_words(modalities.kinds_in(text)):
            why = f"{place} {text!r}"
            break
    else:
        modality, why = _from_physics(header)
    if modality == "t1" and not header.words & _NATIVE_WORDS:
        if header.agent.strip() and header.agent.strip().lower() not in ("none", "no", "0", "n"):
            return "t1c", f"{why}, contrast agent {header.agent!r}"
        if header.words & _CONTRAST_WORDS:
            return "t1c", f"{why}, which names a contrast agent"
    return modality, why


def _from_words(kinds: set[str]) -> str:
    """Return the modality that the words of a text mean together; empty where they do not."""
    if "adc" in kinds:
        return "adc"
    if kinds == {"t2", "flair"}:
        return "flair"
    if kinds == {"t1", "flair"}:  # an inversion that darkens fluid in a T1, not a FLAIR
        return "t1"
    if kinds in ({"pd", "t2"}, {"t2", "dwi"}):
        return "" if "pd" in kinds else "dwi"
    return next(iter(kinds)) if len(kinds) == 1 else ""


def _from_physics(header: Header) -> tuple[str, str]:
    """Return the modality that echo, repetition and inversion time mean, and these times."""
    te, tr, ti = header.echo_ms, header.repetition_ms, header.inversion_ms
    kinds = set(header.scanning)
    why = f"{'+'.join(header.scanning) or 'unknown sequence'}, TE {te:g}, TR {tr:g}, TI {ti:g} ms"
    found = ""
    if header.b_value > 0 or "DIFFUSION" in header.image_type:
        found = "dwi"
    elif te >= 60 and 1500 <= ti <= 3500:
        found = "flair"
    elif te <= 30 and 400 <= ti <= 1400:
        found = "t1"
    elif "GR" in kinds and te >= 14:
        found = "t2star"
    elif ("GR" in kinds and te <= 10 and tr <= 3000) or ("SE" in kinds and te <= 30 and tr <= 1200):
        found = "t1"
    elif "SE" in kinds and te >= 60 and tr >= 1800:
        found = "t2"
    elif "SE" in kinds and te <= 45 and tr >= 1800:
        found = "pd"
    return found, why if found else f"not recognised ({why})"


def _set_aside(series: Series) -> str:
    """Say why a series is no image to segment; empty where it may be one."""
    header, words = series.header, series.header.words
    if header.modality != "MR":
        return f"is {header.modality or 'of no modality'}, not MR"
    types = {part.upper() for part in header.image_type}
    if "LOCALIZER" in types or words & _LOCALISER_WORDS or series.orientations > 1:
        return "localiser" if series.orientations == 1 else "images in several directions"
    derived = [meaning for word, meaning in _DERIVED_WORDS.items() if set(word.split()) <= words]
    if derived and derived[0] != "apparent diffusion coefficient":
        return f"derived ({derived[0]})"
    if "SECONDARY" in types and "DERIVED" in types:
        return "derived (secondary)"
    if series.slices < FEWEST_SLICES:
        return f"only {series.slices} slices"
    return ""


def _without_duplicates(rows: Sequence[Row]) -> list[Row]:
    """Keep one series per modality: original before derived, more voxels, later.

    Raises:
        DataError: The user gave one modality to two series.
    """
    by_modality: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_modality[row.modality].append(row)
    kept = by_modality.pop("", [])
    for modality, mine in sorted(by_modality.items()):
        given = [row for row in mine if row.why == "mapping"]
        if len(given) > 1:
            names = ", ".join(row.series.name for row in given)
            raise DataError(f"the mapping gives {modality} to {len(given)} series: {names}")
        best = given[0] if given else max(mine, key=_rank)
        kept.append(best)
        kept += [
            Row(row.series, row.case, "", f"another {modality}; {best.series.name} is taken")
            for row in mine
            if row is not best
        ]
    return sorted(kept, key=lambda row: (row.series.header.number, row.series.uid))


def _rank(row: Row) -> tuple[bool, int, int, str]:
    series = row.series
    original = "DERIVED" not in {part.upper() for part in series.header.image_type}
    return original, series.slices * series.pixels, series.header.number, series.uid


def source_headers(series: Series) -> tuple[list[Any], list[int]]:
    """Return pydicom's headers of a series, as a segmentation of it refers to them.

    Returns:
        The headers, without pixels: one per slice, sorted, or the one of an enhanced image; and
        for each plane of ``Series.read`` its number among all frames of these.
    """
    planes = series._planes()
    if planes[0].frame is None:
        found = [pydicom.dcmread(each.file, stop_before_pixels=True) for each in planes]
        return found, list(range(len(planes)))
    order = [each.frame or 0 for each in planes]
    return [pydicom.dcmread(planes[0].file, stop_before_pixels=True)], order


def stable_uid(*parts: str) -> str:
    """Return a UID that is the same for the same parts."""
    return str(generate_uid(entropy_srcs=list(parts)))


# --- the table that people can edit ------------------------------------------------------------

COLUMNS = (
    "case", "modality", "why", "series_number", "description", "protocol", "slices", "folder",
    "series_uid",
)  # fmt: skip


def mapping_table(rows: Iterable[Row], folder: Path) -> str:
    """Return the table of all series as CSV, for ``read_mapping``."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        place, header = row.series.files[0].parent, row.series.header
        inside = place.relative_to(folder) if place.is_relative_to(folder) else place
        told = (row.case, row.modality or "-", row.why, header.number, header.description)
        writer.writerow((*told, header.protocol, row.series.slices, inside, row.series.uid))
    return text.getvalue()


def read_mapping(path: Path, modalities: Modalities) -> dict[str, Given]:
    """Read case and modality by series from a table that ``mapping_table`` made and a user edited.

    Only the columns case, modality and series_uid are looked at; modality ``-`` sets a series
    aside, and an empty case leaves it where it was.

    Raises:
        DataError: The file cannot be read; or a modality is not known, a case's name is not fit
            for a file's, or a series is named twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            start = file.read(4096)
            file.seek(0)
            # spreadsheets of some countries write semicolons
            reader = csv.DictReader(file, delimiter=";" if ";" in start.split("\n")[0] else ",")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from None
    if not rows or not {"case", "modality", "series_uid"} <= set(rows[0][1]):
        raise DataError(
            f"{path}: needed is a table with columns case, modality and series_uid; "
            "mixmfl_predict --write-mapping makes one"
        )
    mapping: dict[str, Given] = {}
    for number, row in rows:
        case, told, uid = ((row[name] or "").strip() for name in ("case", "modality", "series_uid"))
        place = f"{path}, line {number}"
        if not (case or told or uid):  # spreadsheets leave such lines behind
            continue
        modality = "" if told == "-" else modalities.find(told) if told else None
        if modality is None:
            raise DataError(
                f"{place}: {told!r} is no known modality; known are "
                f"{', '.join(modalities.names)}, and - sets a series aside"
            )
        if case.startswith(".") or set(case) & set("/\\") or not case.isprintable():
            raise DataError(
                f"{place}: a file cannot be named after case {case!r}; it may not begin with a dot "
                "nor hold a slash, a backslash or a control character"
            )
        if uid in mapping:
            raise DataError(f"{place}: series_uid {uid!r} is given before, in {mapping[uid].place}")
        mapping[uid] = Given(case, modality, place)
    return mapping


# --- files -------------------------------------------------------------------------------------


def _find_series(folder: Path) -> list[Series]:
    """Return all series below a folder, sorted; files that are no DICOM are passed over."""
    groups: dict[tuple[str, str], dict[str, tuple[Path, Any]]] = defaultdict(dict)
    for file in _files(folder):
        try:
            content = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            key = str(content.StudyInstanceUID), str(content.SeriesInstanceUID)
            groups[key].setdefault(str(content.SOPInstanceUID), (file, content))
        except (InvalidDicomError, OSError, AttributeError, ValueError, KeyError, EOFError):
            continue  # no image: a DICOMDIR, say, or a damaged file, whose slice will be missed
    series = []
    for (study, uid), members in groups.items():
        echoes = Counter(_number(content, "EchoTime") for _, content in members.values())
        split = len(echoes) > 1 and len(set(echoes.values())) == 1
        parts: dict[float, list[tuple[Path, Any]]] = defaultdict(list)
        for file, content in members.values():
            parts[_number(content, "EchoTime") if split else 0.0].append((file, content))
        for echo, part in parts.items():
            series.append(_series(f"{uid}#{echo:g}" if split else uid, study, part))
    return sorted(series, key=lambda each: (each.study, each.header.number, each.uid))


def _files(folder: Path, above: tuple[Path, ...] = ()) -> Iterable[Path]:
    """Yield the DICOM files below, sorted, through links but not in circles."""
    real = folder.resolve()
    if real in above:
        return
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _files(entry, (*above, real))
        elif entry.is_file() and _has_magic(entry):
            yield entry


def _has_magic(file: Path) -> bool:
    try:
        with file.open("rb") as opened:
            return opened.read(132)[128:] == b"DICM"
    except OSError:
        return False


def _series(uid: str, study: str, members: Sequence[tuple[Path, Any]]) -> Series:
    members = sorted(members, key=lambda member: member[0])
    contents = [content for _, content in members]
    first = contents[0]
    directions = {
        tuple(round(float(part), 2) for part in content.get("ImageOrientationPatient") or ())
        for content in contents
    }
    patient = f"{first.get('PatientName', '')} {first.get('PatientID', '')}".strip()
    return Series(
        uid,
        study,
        _header(first),
        tuple(file for file, _ in members),
        max(1, len(directions)),
        int(first.get("Rows") or 0) * int(first.get("Columns") or 0),
        sum(int(content.get("NumberOfFrames") or 1) for content in contents),
        patient,
    )


def _header(content: Any) -> Header:
    def text(name: str) -> str:
        return " ".join(str(content.get(name) or "").split())

    def several(name: str) -> tuple[str, ...]:
        value = content.get(name) or ()
        return (value,) if isinstance(value, str) else tuple(map(str, value))

    number = _number(content, "SeriesNumber")
    return Header(
        text("Modality"),
        0 if math.isnan(number) else int(number),
        text("SeriesDescription"),
        text("ProtocolName"),
        text("ContrastBolusAgent"),
        several("ScanningSequence"),
        _number(content, "EchoTime"),
        _number(content, "RepetitionTime"),
        _number(content, "InversionTime"),
        several("ImageType"),
        _number(content, "DiffusionBValue"),
    )


def _number(content: Any, name: str) -> float:
    try:
        return float(content.get(name))
    except (TypeError, ValueError):
        return math.nan


def _slices(file: Path) -> list[_Slice]:
    """Return the planes of a file: one, or those of an enhanced multi-frame image."""
    content = pydicom.dcmread(file, stop_before_pixels=True)
    if "PerFrameFunctionalGroupsSequence" not in content:
        return [_slice(file, None, content, content, content)]
    shared = content.SharedFunctionalGroupsSequence[0]
    found = []
    for number, frame in enumerate(content.PerFrameFunctionalGroupsSequence):

        def part(name: str, frame: Any = frame) -> Any:
            return (frame if name in frame else shared)[name][0]

        found.append(
            _slice(
                file,
                number,
                part("PlanePositionSequence"),
                part("PlaneOrientationSequence"),
                part("PixelMeasuresSequence"),
            )
        )
    return found


def _slice(file: Path, frame: int | None, place: Any, axes: Any, pixels: Any) -> _Slice:
    down, across = (float(mm) for mm in pixels.PixelSpacing)
    return _Slice(
        file,
        frame,
        np.array(place.ImagePositionPatient, dtype=float),
        np.array(axes.ImageOrientationPatient, dtype=float),
        (down, across),
        _number(pixels, "SliceThickness"),
    )


def _name_cases(series: Sequence[Series], folder: Path) -> dict[str, str]:
    """Return a name for each study: that of its own folder, else one made from its UID.

    Names of patients are in no name.
    """
    tops: dict[str, set[str]] = defaultdict(set)
    for each in series:
        for file in each.files:
            parts = file.relative_to(folder).parts
            tops[each.study].add(parts[0] if len(parts) > 1 else "")
    owners = Counter(top for found in tops.values() for top in found)
    names = {}
    for study, found in tops.items():
        (top, *others) = sorted(found)
        if not others and top and owners[top] == 1:
            names[study] = top
        elif len(tops) == 1:
            names[study] = folder.resolve().name
        else:
            names[study] = f"study-{hashlib.sha256(study.encode()).hexdigest()[:8]}"
    return names
