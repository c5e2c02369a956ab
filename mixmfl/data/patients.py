"""Which cases are examinations of one patient, so that no patient both trains and validates."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

from mixmfl.data.time_points import MAY_NAME_EXAMINATION, NAMES_EXAMINATION, is_examination

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
    ``study_20190304`` alone names no patient.

    Args:
        places: The folders of each case, and what its files' names say of it.
    """
    people = {match[1] for _, rest in places.values() if (match := _NAME_FIRST.fullmatch(rest))}
    cases: dict[str, list[str]] = defaultdict(list)
    for name, (folders, rest) in places.items():
        cases[_patient_at(folders, rest, people if len(people) > 1 else ()) or name].append(name)
    return {
        name: patient
        for patient, names in cases.items()
        if len({patient_of(name) for name in names}) > 1
        for name in names
    }


def _patient_at(folders: Sequence[str], rest: str, people: Collection[str]) -> str:
    if not rest or is_examination(rest):
        *above, last = [part for part in folders if not is_examination(part)] or [""]
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
