"""Whether headers of images, in DICOM or beside files, fit one examination on one scanner."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import date, datetime

from mixmfl.core.text import plural

SCANNER = ("MagneticFieldStrength", "Manufacturer", "ManufacturerModelName", "DeviceSerialNumber",
           "StationName", "InstitutionName")  # fmt: skip
"""DICOM's names of the fields that tell scanners apart."""

ONE_NIGHT = 1
"""Days between images of one examination, which may go on after midnight."""

MOST_YEARS = 1
"""Years by which an age may differ within one examination, on a birthday."""

_IF_SO = "if so, give them other cases by --mapping"


def plain_scanner(name: str, value: str) -> str:
    """Return what a field of ``SCANNER`` says, as it is compared; empty where it says nothing.

    A field strength is in half teslas, which some scanners write in gauss; of "Siemens
    Healthineers" it is the first word.
    """
    if name == "MagneticFieldStrength":
        with contextlib.suppress(ValueError):
            tesla = float(value) / (10_000 if float(value) > 100 else 1)
            return f"{round(2 * tesla) / 2:g}" if 0 < tesla < 100 else ""
        return ""
    words = re.findall(r"[a-z0-9]+", value.lower())
    return " ".join(words[:1] if name == "Manufacturer" else words)


def of_other_scanners(
    headers: Iterable[Mapping[str, str]], ages: Iterable[float] = ()
) -> list[str]:
    """Return a warning if original images have several scanners or ages; else nothing.

    Args:
        headers: What the fields of ``SCANNER`` say of each image, by ``plain_scanner``.
        ages: The patient's age in years by each image that has it.
    """
    values: dict[str, set[str]] = defaultdict(set)
    for header in headers:
        for name, value in header.items():
            values[name] |= {value} - {""}
    names = [name for name, different in values.items() if len(different) > 1]
    known = [*ages]
    if known and max(known) - min(known) > MOST_YEARS:
        names.append("PatientAge")
    if not names:
        return []
    return [
        f"by their headers its images differ in {', '.join(names)}, and may be of two examinations "
        f"or patients; {_IF_SO}"
    ]


def on_other_days(days: Mapping[str, str]) -> list[str]:
    """Return a warning if images of one case were acquired more than a night apart; else nothing.

    Archives that merge examinations, and anonymisers, give two of them one StudyInstanceUID.

    Args:
        days: The day of each modality, as ``20190312``; other texts are no day.
    """
    known: dict[str, date] = {}
    for modality, text in days.items():
        with contextlib.suppress(ValueError):
            known[modality] = datetime.strptime(text, "%Y%m%d").date()
    if not known:
        return []
    first, last = min(known, key=lambda each: known[each]), max(known, key=lambda each: known[each])
    apart = (known[last] - known[first]).days
    if apart <= ONE_NIGHT:
        return []
    return [
        f"by their headers {last} was acquired {plural(apart, 'day')} after {first}: they may be "
        f"of two examinations; {_IF_SO}"
    ]
