"""SNOMED CT codes and their meanings, as DICOM's dictionaries in pydicom have them."""

from collections.abc import Mapping
from functools import cache

from mixmfl.core.errors import DataError


@cache
def _meanings() -> Mapping[str, str]:
    """Return the meaning of each code, of several the shortest, which is the plain one."""
    from pydicom.sr.codedict import codes  # slow, and seldom needed

    meanings: dict[str, str] = {}
    for each in codes.SCT.concepts.values():
        known = meanings.get(each.value, each.meaning)
        meanings[each.value] = min(known, each.meaning, key=lambda text: (len(text), text))
    return meanings


def meaning_of(code: str, source: str) -> str:
    """Return what a SNOMED CT code means.

    Args:
        code: Digits.
        source: Where it is written, for messages.

    Raises:
        DataError: No dictionary has it.
    """
    if meaning := _meanings().get(code):
        return meaning
    raise DataError(
        f"{source}: {code} is not among the SNOMED CT codes of DICOM's dictionaries; look for one "
        "in the context groups of DICOM PS3.16, such as CID 7151 and CID 4031"
    )
