"""Which cases are examinations of one patient, so that no patient both trains and validates."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from mixmfl.data.folder_roles import without_stores
from mixmfl.data.sequence_words import without_accents
from mixmfl.data.time_points import (
    MAY_NAME_EXAMINATION,
    NAMES_EXAMINATION,
    is_examination,
    is_month,
)

_SIDE = "left|right|links|rechts|gauche|droite"
# archives that number a patient's examinations (BraTS since 2023, BIDS, UPENN-GBM, UK Biobank,
# ADNI); a word or a day at the end, behind a name that has a number where it is a day, for
# `study_20200101` names no patient
_EXAMINATION = re.compile(
    r"(BraTS-[A-Za-z]+(?:-RT)?-\d+)-\d+|(sub-[^_]+)_ses-.+|(UPENN-GBM-\d+)_\d\d|"
    r"(\d{7})_\d{5}_\d_\d|.*?(\d{3}_S_\d{4})(?!\d).*|"
    rf"(.+?)[ _.-]+(?i:{NAMES_EXAMINATION})(?:[ _.-].*)?|"
    rf"(.*?\d.*?)[ _.-]+(?i:{MAY_NAME_EXAMINATION}|{_SIDE})(?:[ _.-].*)?"
)
_DAY_FIRST = re.compile(r"(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d[ _.-]+(.*[A-Za-z].*)")
_NAME_FIRST = re.compile(rf"(\D+)[ _.-]+(?i:{MAY_NAME_EXAMINATION})")
_FEW = re.compile(r"[ _.-]\d{1,2}")
# what file managers call the copy of a folder; "(2)" alone may be a patient's number
_COPY = r"kopie|copy|copie|copia|kopia"
_COPIED = re.compile(
    rf"(?:{_COPY})[ _](?:\(\d+\)[ _])?(?:von|of|de|di|van)[ _](?P<of>.+)"
    rf"|(?P<before>.+?)[ _-]+\(?(?:[a-z]+ )?(?:{_COPY})\)?(?:[ _]?\(?\d+\)?)?"
    r"|(?P<counted>.+?)[ _]?\(\d+\)"
)
# days in a folder where nothing names a person are that person's, unless they are that many
_MOST_EXAMINATIONS = 10


def patient_of(case: str, known: str = "") -> str:
    """Return the patient of a case.

    Args:
        case: Name of the case. Where it says which examination it is, the rest is the patient.
        known: What else tells the patient, such as DICOM files; it goes before the name.
    """
    if known:
        return known
    match = _EXAMINATION.fullmatch(case)
    return next(filter(None, match.groups())) if match else case


def patients_by_place(places: Mapping[str, tuple[Sequence[str], str]]) -> dict[str, str]:
    """Return the patient of each case whose folders, or other cases, tell more than its name.

    So ``Mueller/2019`` and ``Mueller/2020`` are of one patient, and ``training01_02`` in the folder
    ``training01`` is of that one. ``Mueller_20190304`` is of Mueller if there is somebody else:
    ``study_20190304`` alone names no patient. ``raw/p1`` and ``archive/p1`` are of one patient, and
    so are ``p1`` and ``p1 - Copy``, and a few days in a folder where nothing names anybody.

    Args:
        places: The folders of each case, and what its files' names say of it.
    """
    people = {match[1] for _, rest in places.values() if (match := _NAME_FIRST.fullmatch(rest))}
    patient_at = {
        name: _patient_at(folders, rest, people if len(people) > 1 else ())
        for name, (folders, rest) in places.items()
    }
    unnamed = [name for name, patient in patient_at.items() if not patient]
    if 1 < len(unnamed) <= _MOST_EXAMINATIONS:
        patient_at |= dict.fromkeys(unnamed, min(unnamed))
    by_writing = {without_accents(patient): patient for patient in patient_at.values()}
    cases: dict[str, list[str]] = defaultdict(list)
    for name, patient in patient_at.items():
        match = _COPIED.fullmatch(without_accents(patient))
        original = next(filter(None, match.groups()), "") if match else ""
        cases[by_writing.get(original, patient) or name].append(name)
    return {
        name: patient
        for patient, names in cases.items()
        if len({patient_of(name) for name in names}) > 1
        for name in names
    }


def _patient_at(folders: Sequence[str], rest: str, people: Collection[str]) -> str:
    if not rest or is_examination(rest):
        named = tuple(
            part
            for depth, part in enumerate(folders)
            if not is_examination(part) and not (depth and is_month(part))
        )
        *above, last = without_stores(named) or ("",)
        return "_".join((*above, patient_of(last)))
    for folder in folders:
        if (
            rest.startswith(folder)
            and re.search(r"\d", folder)
            and _FEW.fullmatch(rest[len(folder) :])
        ):
            return folder
    if (match := _NAME_FIRST.fullmatch(rest)) and match[1] in people:
        return match[1]
    match = _DAY_FIRST.fullmatch(rest)
    return patient_of(match[1] if match else rest)


def patient_key(person: str) -> str:
    """Return what stands for a DICOM patient in a site's own records, which name nobody."""
    return hashlib.sha256(person.encode()).hexdigest()[:16] if person else ""
