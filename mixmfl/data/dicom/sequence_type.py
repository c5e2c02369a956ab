"""The modality of a DICOM series by its header, and the series that are not for segmentation.

Explicit fields of the header decide first, then the words of description and protocol, and last the
times of the sequence. Contradictions stay undecided: a T1 with a contrast agent and one without are
never taken for each other, nor is another contrast taken for one of ours.
"""

import math
import re
from dataclasses import dataclass, replace
from functools import cache

from mixmfl.core.text import plural
from mixmfl.data.contrast_agent import looks_like_agent
from mixmfl.data.dicom.header import Header
from mixmfl.data.dicom.planes import FEWEST_SLICES
from mixmfl.data.dicom.series import Series
from mixmfl.data.modalities import Modalities
from mixmfl.data.sequence_phrases import meaning_of, names_both_echoes, without_accents
from mixmfl.data.sequence_words import Reading, read_words

# modalities by AcquisitionContrast, and the kinds of images that are none of ours
_CONTRASTS = {
    "T1": "t1", "T2": "t2", "PROTON_DENSITY": "pd", "FLUID_ATTENUATED": "flair",
    "T2_STAR": "t2star", "DIFFUSION": "dwi",
}  # fmt: skip
_OTHER_CONTRASTS = {
    "TOF": "angiography", "FLOW_ENCODED": "angiography", "PERFUSION": "perfusion",
    "STIR": "STIR", "TAGGING": "tagging",
}  # fmt: skip
# the modalities that words may refine each of these to
_FINER = {
    "t1": {"t1", "t1c"}, "t2": {"t2", "flair", "dwi", "t2star"}, "pd": {"pd"},
    "flair": {"flair", "t1", "t1c"}, "t2star": {"t2star", "swi"}, "dwi": {"dwi", "adc"},
    "adc": {"adc", "dwi"},
}  # fmt: skip
_COMPONENTS = {
    "PHASE": "phase", "REAL": "real part", "IMAGINARY": "imaginary part", "P": "phase",
    "R": "real part", "I": "imaginary part", "PHASE MAP": "phase", "VELOCITY": "velocity",
}  # fmt: skip
# values of ImageType for computed images, and for images that do not show the body itself
_TYPES = {
    "LOCALIZER": "localiser", "SUBTRACTION": "subtraction", "SUB": "subtraction",
    "SUBTRACT": "subtraction", "MIP": "projection", "MINIP": "projection", "MNIP": "projection",
    "PROJECTION IMAGE": "projection", "MAX_IP": "projection", "MIN_IP": "projection",
    "TOF": "angiography", "ANGIO": "angiography", "ANGIO_TIME": "angiography",
    "FLOW_ENCODED": "angiography", "VELOCITY MAP": "angiography",
    "PERFUSION": "perfusion", "ASL": "perfusion", "CBF": "perfusion", "CBV": "perfusion",
    "RCBF": "perfusion", "RCBV": "perfusion", "RELCBF": "perfusion", "RELCBV": "perfusion",
    "MTT": "perfusion", "TTP": "perfusion", "TMAX": "perfusion", "GBP": "perfusion",
    "FA": "diffusion map", "FRACTIONAL_ANISOTROPY": "diffusion map", "TENSOR": "diffusion map",
    "TENSOR_B0": "diffusion map", "EXP": "diffusion map", "T1 MAP": "map", "T2 MAP": "map",
    "T2_STAR MAP": "map", "R2 MAP": "map", "R2_STAR MAP": "map", "T1_MAP": "map",
    "T2_MAP": "map", "FIELDMAP": "field map", "FIELD_MAP": "field map", "B0": "field map",
    "B0 MAP": "field map", "B1": "field map", "B1 MAP": "field map", "PHASE MAP": "phase",
    "MOSAIC": "mosaic", "SCREEN SAVE": "screen shot", "CSA REPORT": "screen shot",
    "FAT": "fat image", "F": "fat image", "OPP_PHASE": "opposed-phase image",
    "OUT_PHASE": "opposed-phase image", "OP": "opposed-phase image", "SWI_PHASE": "phase",
    "FMRI": "functional", "STDDEV": "map", "FAT_FRACTION": "map", "FATFRACTION": "map",
    "PDFF": "map", "EADC": "diffusion map", "CALC_BVALUE": "diffusion map",
    "M_PCA": "angiography", "P_PCA": "angiography", "PHASE CORR REAL": "real part",
    **{f"R_{kind}": "real part" for kind in ("IR", "SE", "FFE")},
    **{f"I_{kind}": "imaginary part" for kind in ("IR", "SE", "FFE")},
    **{f"P_{kind}": "phase" for kind in ("IR", "SE", "FFE")},
}  # fmt: skip
# of Philips, for what was computed; in an original they may name the sequence
_MAPS = {"T1", "T2", "T2*", "T2_STAR", "R1", "R2", "R2*", "R2_STAR", "PD"}
_REFORMATTED = {"REFORMATTED", "MPR", "CSA MPR", "CURVED MPR"}
_DIFFUSION = {"DIFFUSION", "TRACEW", "TRACE"}
# what people write into the field of the contrast agent if there is none, as words
_NO_AGENT = {
    "na", "none", "no", "non", "not", "nein", "null", "false", "nil", "nativ", "native",
    "plain", "without", "wo", "ohne", "kein", "keine", "keines", "nicht", "sans", "aucun",
    "sin", "ninguno", "ninguna", "senza", "nessuno", "nessun", "zonder", "geen", "niet",
    "sem", "nenhum", "uden", "uten", "utan", "ingen", "ikke", "inte", "bez", "refused",
    "declined", "abgelehnt", "verweigert",
}  # fmt: skip
_NO_VOLUME = re.compile(r"(?<![\d.,])0+(?:[.,]0+)?(?![\d.,])")
# ... and if there is one
_SOME_AGENT = {"y", "yes", "j", "ja", "oui", "si", "true", "iv", "given", "with", "mit"}

# inversion times that darken fluid and fat, and the longest repetition time of a T1 by spin echoes
_DARK_FLUID_MS, _DARK_FAT_MS, _LONGEST_T1_MS = 1200, 400, 2000

_ECHOES = "two echoes"  # in DICOM they are separate images, each with its echo time

_WITHOUT_ALIASES = Modalities()

SILENT = read_words("").why
"""The reason that ``read_words`` gives for a text without any word for a sequence."""


SEVERAL_DIRECTIONS = "images in several directions"
"""The reason why a series is set aside that may be a localiser, or several stacks."""

UNSURE = "not sure"
"""The beginning of a reason why the words or fields of a series leave its modality open."""


@dataclass(frozen=True)
class Recognised:
    """The modality of a series.

    Attributes:
        modality: The modality; empty where it is not known.
        why: The reason for it.
        is_certain: Whether the reason is a field or words; otherwise it is a guess from times.
    """

    modality: str
    why: str
    is_certain: bool = True


def recognise(header: Header, modalities: Modalities) -> Recognised:
    """Return the modality of a series; the module describes the order of the evidence."""
    for place, text in _texts(header):
        if own := _by_alias(text, modalities):
            return Recognised(own, f"{place} {text!r}")
    stated, field = _from_fields(header)
    reading, place = _first_reading(header)
    if not stated and reading.why == SILENT:
        return _from_times(header)
    named = "t1" if reading.unknown else reading.modality  # fields may tell of its agent
    if stated and named and named not in _FINER.get(stated, {stated}):
        return Recognised("", f"{UNSURE}: {field} says {stated}, but {place} says {named}")
    if stated and not named and reading.why != SILENT:
        return Recognised("", f"{UNSURE}: {field} says {stated}; {place}: {reading.why}")
    modality, why = (named, place) if named else (stated, field)
    if (stated, named) == ("adc", "dwi"):  # words name the sequence, and the field its map
        modality, why = stated, field
    if not modality:
        if echo := _echo(header):
            return Recognised(echo, f"{place}, and the echo time of {header.echo_ms:g} ms")
        return Recognised("", f"{UNSURE}: {place}: {reading.why}")
    if modality == "t1" and reading.why == SILENT:
        reading = _reading_of_t1(header)
    if doubt := _contradiction(modality, header) or (not stated and _other_protocol(named, header)):
        return Recognised("", f"{UNSURE}: {why} says {modality}, but {doubt}")
    return _with_agent(modality, why, header, reading)


def why_set_aside(series: Series) -> str:
    """Say why a series is not for segmentation; empty where it may be."""
    header = series.header
    if header.modality != "MR":
        return f"is {header.modality or 'of no modality'}, not MR"
    if series.orientations > 1:
        return SEVERAL_DIRECTIONS
    types = set(header.image_type)
    if header.angiography:
        return "angiography (AngioFlag, TimeOfFlightContrast or PhaseContrast says so)"
    if other := _OTHER_CONTRASTS.get(header.contrast):
        return f"{other} (AcquisitionContrast {header.contrast})"
    if part := _COMPONENTS.get(header.component):
        return f"{part} (ComplexImageComponent {header.component})"
    if "REFORMATTED" in types or ("DERIVED" in types and types & _REFORMATTED):
        return "derived (reformatted)"
    if "DERIVED" in types and (made := _MAPS & set(header.image_type[2:])):
        return f"map (ImageType {min(made)})"
    # the first two values are the origin, and the third of classic images may be a component
    for value in header.image_type[2:]:
        if value in _TYPES or (value in _COMPONENTS and value == header.image_type[2]):
            return f"{_TYPES.get(value) or _COMPONENTS[value]} (ImageType {value})"
    if {"SECONDARY", "DERIVED"} <= types and "ADC" not in types and not types & _DIFFUSION:
        return "derived (secondary)"
    if series.images_per_place > 1:
        times, weightings = series.moments
        if times > 1:
            return f"dynamic ({times} time points)"
        if weightings > 1:
            return f"diffusion with {weightings} b-values"
        return f"has {series.images_per_place} images of one place"
    if header.times > 1:
        return f"dynamic (one of {header.times} time points)"
    reading, place = _first_reading(header)
    if reading.set_aside:
        return f"{reading.set_aside} ({place})"
    if _is_one_inversion(header):
        return f"one inversion of an MP2RAGE (InversionTime {header.inversion_ms:g} ms)"
    if aside := _from_sequence_name(header.sequence):
        return f"{aside} (SequenceName {header.sequence})"
    if series.slices < FEWEST_SLICES:
        return f"only {plural(series.slices, 'slice')}"
    return ""


def has_agent(header: Header) -> bool:
    """Say whether the header names a contrast agent."""
    return _field_of_agent(header.agent) == "with"


@cache
def _field_of_agent(text: str) -> str:
    """Return what the field of the contrast agent says.

    Returns:
        ``"with"``, ``"without"``, ``"unclear"``, or ``""`` where it says nothing.
    """
    text = without_accents(text).replace("n/a", "na").replace("w/o", "wo").replace("n.a.", "na")
    words = re.findall(r"[^\W\d_]+", text)
    reading = read_words(f"T1 {text}")
    numbers = re.search(r"[1-9]", text)
    names_one = reading.modality == "t1c" or any(map(looks_like_agent, words))
    if text.strip("- .?") in ("", "unknown", "unbekannt"):
        return "unclear" if "?" in text else ""
    if _NO_AGENT & set(words) or words in (["n"], ["f"]) or _says_native(reading):
        return "without"
    if _NO_VOLUME.search(text) and not numbers:
        return "unclear" if any(meaning_of(word) == "agent" for word in words) else "without"
    return "with" if names_one or numbers or _SOME_AGENT & set(words) else "unclear"


def is_silent_on_agent(header: Header) -> bool:
    """Say whether nothing indicates a contrast agent or its lack, as after anonymisation."""
    reading, _ = _first_reading(header)
    return not (header.phase or _field_of_agent(header.agent) or _says_native(reading))


def is_wordless(header: Header) -> bool:
    """Say whether description and protocol name no sequence, as after anonymisation."""
    return _first_reading(header)[0].why == SILENT


def _texts(header: Header) -> list[tuple[str, str]]:
    return [("description", header.description), ("protocol", header.protocol)]


def _first_reading(header: Header) -> tuple[Reading, str]:
    """Return the reading of the first text that names a sequence, and which text that is.

    Where the protocol names a T1 and the description only an agent, both count. A protocol that
    names only an agent is often the protocol of the whole examination.
    """
    for place, text in _texts(header):
        reading = read_words(text)
        if reading.why == SILENT or reading.set_aside == _ECHOES:
            continue
        if place == "protocol" and reading.modality in ("t1", "t1c"):
            agent = read_words(f"T1 {header.description}")
            if agent.modality != "t1" or _says_native(agent):
                return agent, f"description {header.description!r} of protocol {text!r}"
        if (place, reading.modality, read_words(header.protocol).modality) == (
            "description", "t2", "flair",
        ):  # fmt: skip
            return Reading(
                "", f"its protocol {header.protocol!r} names a FLAIR"
            ), f"{place} {text!r}"
        if place == "description" and reading.modality == "t1" and not _says_native(reading):
            protocol = read_words(header.protocol)
            if protocol.modality == "t1c":  # made with it, or once copied from it
                why = f"its protocol {header.protocol!r} names a contrast agent"
                return Reading("", why, "", (header.protocol,)), f"{place} {text!r}"
        return reading, f"{place} {text!r}"
    return read_words(""), "no description"


def _reading_of_t1(header: Header) -> Reading:
    """Return the reading of the texts about an agent, for a T1 by fields or times."""
    readings = [read_words(f"T1 {text}") for _, text in _texts(header)]
    return next((each for each in readings if each.modality != "t1" or _says_native(each)),
                readings[0])  # fmt: skip


def _echo(header: Header) -> str:
    """Return which of a double echo's images this is, by its time; empty if it is none."""
    if not any(names_both_echoes(text) for _, text in _texts(header)):
        return ""
    modality = "t2" if header.echo_ms >= 60 else "pd" if header.echo_ms <= 45 else ""
    return "" if _contradiction(modality, header) else modality


def _by_alias(text: str, modalities: Modalities) -> str:
    """Return the modality that only a user's alias in the text means; empty if there is none."""
    own = modalities.kinds_in(text) - _WITHOUT_ALIASES.kinds_in(text)
    return own.pop() if len(own) == 1 else ""


def _from_fields(header: Header) -> tuple[str, str]:
    """Return the modality by explicit fields of the header, and the fields' names."""
    types = set(header.image_type)
    if "ADC" in types:
        return "adc", "ImageType ADC"
    if types & {"SWI", "SWI_MAGNITUDE"}:
        return "swi", "ImageType SWI"
    if header.b_value > 0 or types & _DIFFUSION:
        return "dwi", "ImageType or DiffusionBValue"
    if header.contrast in _CONTRASTS:
        return _CONTRASTS[header.contrast], f"AcquisitionContrast {header.contrast}"
    if {"GR", "IR"} <= set(header.scanning) and "MP" in header.variant:
        return "t1", "ScanningSequence GR, IR and SequenceVariant MP"
    return "", ""


def _from_sequence_name(name: str) -> str:
    """Return the kind of an unused image by Siemens' name of its pulse sequence; else empty."""
    plain = name.lower().lstrip("*")
    if plain.startswith("fm2d"):
        return "field map"
    if plain.startswith(("epfid", "ep2d_bold", "ep2d_fid")):
        return "functional or perfusion"
    if plain.startswith(("fl3d", "fl2d")) and ("_v" in plain or "r_t" in plain):
        return "angiography"
    return ""


def _is_one_inversion(header: Header) -> bool:
    """Say whether this is one of the two images that an MP2RAGE's T1 is made of."""
    text = f"{header.description} {header.protocol} {header.sequence}".lower()
    made = "UNI" in header.image_type or re.search(r"(?<![a-z])uni", text)
    return "mp2rage" in text and not made and header.inversion_ms > 0


def _contradiction(modality: str, header: Header) -> str:
    """Say which field or time contradicts a modality; empty where none does."""
    te, ti, kinds = header.echo_ms, header.inversion_ms, set(header.scanning)
    if modality in ("t1", "t1c", "t2", "flair", "pd") and "EP" in kinds:
        return "ScanningSequence says echo planar"
    if (modality in ("t1", "t1c") and te > 60) or (modality == "t2" and te < 30):
        return f"the echo time is {te:g} ms"
    if modality == "flair" and te < 45:
        return f"the echo time is {te:g} ms"
    if modality == "flair" and kinds == {"SE"} and ti == 0:
        return "a spin echo with an inversion time of 0 ms darkens no fluid"
    if (
        "IR" in kinds
        and ti > 0
        and ((modality == "flair" and ti < _DARK_FLUID_MS) or modality in ("t2", "pd"))
    ):
        what = "fluid" if ti >= _DARK_FLUID_MS else "fat" if ti < _DARK_FAT_MS else "something"
        return f"an inversion time of {ti:g} ms darkens {what}"
    if modality in ("t2", "flair") and kinds == {"GR"}:
        return "ScanningSequence says gradient echo"
    if modality in ("t1", "t1c") and kinds == {"SE"} and not ti > 0:
        tr = header.repetition_ms
        return f"the repetition time is {tr:g} ms" if tr > _LONGEST_T1_MS else ""
    if modality == "dwi" and header.b_value == 0:
        return "its b-value is 0"
    return ""


def _other_protocol(named: str, header: Header) -> str:
    """Say that the protocol names another weighting than the words do, if no time decides.

    A T2 in the protocol of a FLAIR is none.
    """
    weightings = {"t1": "t1", "t1c": "t1", "t2": "t2", "flair": "flair", "pd": "pd"}
    protocol = read_words(header.protocol).modality
    by_words, by_protocol = weightings.get(named), weightings.get(protocol)
    alike = by_words == by_protocol or (by_words, by_protocol) == ("flair", "t2")
    if alike or not by_words or not by_protocol:
        return ""
    times = _from_times(replace(header, description="", protocol="")).modality
    if weightings.get(times) == by_words:
        return ""
    return f"its protocol {header.protocol!r} names {protocol}"


def _with_agent(modality: str, why: str, header: Header, reading: Reading) -> Recognised:
    """Decide between a T1 with a contrast agent and one without; keep other modalities."""
    if modality not in ("t1", "t1c"):
        return Recognised(modality, why)
    phase = header.phase or ("contrast" if has_agent(header) else "")
    if reading.modality not in ("t1", "t1c") and not (reading.unknown and phase):
        return Recognised("", f"{UNSURE}: {why} says a T1, but {reading.why}")
    modality = reading.modality
    field = _field_of_agent(header.agent)
    if modality == "t1c":
        if header.phase == "native":
            return Recognised("", f"{UNSURE}: {why} names a contrast agent, given later")
        if field == "without":
            return Recognised(
                "", f"{UNSURE}: {why} names a contrast agent, the header {header.agent!r}"
            )
        return Recognised("t1c", f"{why}, which names a contrast agent")
    if _says_native(reading):
        if header.phase == "contrast":
            return Recognised("", f"{UNSURE}: {why} says none, but a contrast agent was given")
        return Recognised("t1", why)
    if header.phase == "native":
        return Recognised("t1", f"{why}, before the contrast agent")
    if header.phase == "contrast" or field == "with":
        return Recognised("t1c", f"{why}, contrast agent {header.agent!r}")
    if field == "unclear":
        return Recognised("", f"{UNSURE}: {why} says a T1, and the contrast agent {header.agent!r}")
    if header.comment:
        return Recognised("", f"{UNSURE}: {why} says a T1, and ImageComments {header.comment!r}")
    return Recognised("t1", why)


def _says_native(reading: Reading) -> bool:
    return reading.modality == "t1" and "without contrast agent" in reading.why


def _from_times(header: Header) -> Recognised:
    """Return the modality by echo, repetition and inversion time.

    A gradient echo with a short repetition time is a T1 or an angiography: it stays undecided.
    """
    te, tr, ti = header.echo_ms, header.repetition_ms, header.inversion_ms
    kinds = set(header.scanning)
    times = [
        f"{word} {ms:g} ms"
        for word, ms in (("TE", te), ("TR", tr), ("TI", ti))
        if math.isfinite(ms)
    ]
    sequence = "+".join(header.scanning) or "unknown sequence"
    why = ", ".join([sequence, *(times or ["no times"])])
    inverts, spin, gradient = ti > 0 or "IR" in kinds, "SE" in kinds, "GR" in kinds
    modality = ""
    if "EP" in kinds or kinds & {"RM"}:
        pass
    elif te >= 60 and 1500 <= ti <= 3500:
        modality = "flair"
    elif te <= 30 and 400 <= ti <= 1400:
        modality = "t1"
    elif inverts:
        pass
    elif gradient and not spin:
        if te >= 14:
            modality = "t2star"
        elif te <= 10 and 50 <= tr <= 3000:
            modality = "t1"
    elif spin and te <= 30 and tr <= 1200:
        modality = "t1"
    elif spin and te >= 60 and tr >= 1800:
        modality = "t2"
    elif spin and te <= 45 and tr >= 1800:
        modality = "pd"
    if not modality:
        return Recognised("", f"not recognised ({why})", is_certain=False)
    if modality == "flair" and any("dir" in re.findall("[a-z]+", text.lower()) for _, text in
                                   _texts(header)):  # fmt: skip
        why = f"{UNSURE}: {why} say flair, but 'dir' may be a double inversion"
        return Recognised("", why, is_certain=False)
    decided = _with_agent(modality, why, header, _reading_of_t1(header))
    return Recognised(decided.modality, decided.why, is_certain=False)
