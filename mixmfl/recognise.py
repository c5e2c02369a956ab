"""Which modality a DICOM series is, by what its header says, and which are none to segment."""

from mixmfl.dicom import Header, Series
from mixmfl.modalities import Modalities

FEWEST_SLICES = 5  # a localiser has fewer

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


def why_set_aside(series: Series) -> str:
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
