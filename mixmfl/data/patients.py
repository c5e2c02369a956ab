"""Which cases are examinations of one patient, so that no patient both trains and validates."""

import hashlib
import re

TIME_POINT = (
    r"(?:tp|ses|session|visit|time|timepoint|day|week|month|year|fu|followup)[ _.-]?\d+|baseline|"
    r"followup|preop|postop"
)
DAY_OR_TIME = r"(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d(?:[-_.]?\d{2,6})?"
# BraTS since 2023: patient and examination; BIDS: subject and session; a word or a day at the end,
# behind a name that has a number where it is a day, for `study_20200101` names no patient
_EXAMINATION = re.compile(
    r"(BraTS-[A-Za-z]+-\d+)-\d+|(sub-[^_]+)_ses-.+|"
    rf"(.+?)[ _.-]+(?i:{TIME_POINT})(?:[ _.-].*)?|"
    rf"(.*?\d.*?)[ _.-]+{DAY_OR_TIME}(?:[ _.-].*)?"
)


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


def patient_key(person: str) -> str:
    """Return what stands for a DICOM patient in a site's own records, which name nobody."""
    return hashlib.sha256(person.encode()).hexdigest()[:16] if person else ""
