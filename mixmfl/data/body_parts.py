"""Parts of the body: the words for a model's anatomy, and what DICOM's BodyPartExamined names.

Two words may mean the same examination (a prostate is examined as PELVIS), so that each stands for
the regions of the body that it lies in, and words agree where they share one.
"""

import itertools
import re
from collections.abc import Collection, Mapping

from mixmfl.data.sequence_phrases import without_accents
from mixmfl.data.sequence_vocabulary import PARTS_OF_BODY

_REGIONS: Mapping[str, str] = {
    "head": "BRAIN HEAD SKULL NEURO CEREBRUM SCHAEDEL HEADNECK ORBIT EYE EAR IAC PITUITARY SELLA "
    "FACE SINUS JAW TMJ",
    "neck": "NECK HEADNECK THYROID LARYNX PHARYNX CSPINE",
    "cervical spine": "SPINE WHOLESPINE CSPINE CTSPINE",
    "thoracic spine": "SPINE WHOLESPINE TSPINE CTSPINE TLSPINE",
    "lumbar spine": "SPINE WHOLESPINE LSPINE LSSPINE TLSPINE",
    "sacrum": "SPINE WHOLESPINE SSPINE LSSPINE COCCYX SACRUM",
    "chest": "CHEST THORAX LUNG HEART CARDIAC BREAST MEDIASTINUM STERNUM RIB TSPINE",
    "abdomen": "ABDOMEN ABDOMENPELVIS LIVER PANCREAS KIDNEY SPLEEN ADRENAL STOMACH BOWEL COLON "
    "GALLBLADDER BILEDUCT LSPINE LSSPINE",
    "pelvis": "PELVIS ABDOMENPELVIS PROSTATE BLADDER RECTUM UTERUS OVARY CERVIX VAGINA TESTIS "
    "SCROTUM PENIS ANUS HIP SACRUM SSPINE LSSPINE COCCYX",
    "arm": "ARM UPPERARM FOREARM SHOULDER ELBOW WRIST HAND FINGER THUMB HUMERUS CLAVICLE SCAPULA "
    "EXTREMITY UPPEREXTREMITY",
    "leg": "LEG UPPERLEG LOWERLEG THIGH CALF KNEE ANKLE FOOT TOE FEMUR HIP EXTREMITY "
    "LOWEREXTREMITY",
}
_WHOLE = ("WHOLEBODY", "BODY")

REGIONS_OF: Mapping[str, frozenset[str]] = {
    word: frozenset(region for region, words in _REGIONS.items() if word in words.split())
    for word in " ".join(_REGIONS.values()).split()
} | dict.fromkeys(_WHOLE, frozenset(_REGIONS))
"""The regions that each word of BodyPartExamined lies in."""

ANATOMIES = tuple(sorted({word.lower() for word in REGIONS_OF}))
"""Words for the anatomy that a data set shows."""


def regions(body_part: str) -> frozenset[str]:
    """Return the regions that a BodyPartExamined names; none where no word of it is known."""
    whole = re.sub(r"[^A-Z]", "", body_part.upper())
    words = [whole] if whole in REGIONS_OF else re.findall(r"[A-Z]+", body_part.upper())
    return frozenset().union(*(REGIONS_OF.get(word, frozenset()) for word in words))


def described_part(description: str) -> str:
    """Return the part of the body that words of a series name, as BodyPartExamined would; or none.

    The head goes before others, of which an examination of it may show some, too (HEAD/NECK).
    """
    text = re.sub(r"(?<![a-z0-9])([ctl])[ _.-]+(?=spine)", r"\1", without_accents(description))
    words = set(re.findall("[a-z]+", text))
    parts = (part for part, named in PARTS_OF_BODY.items() if words.intersection(named.split()))
    return next(parts, "")


def is_elsewhere(body_part: str, anatomies: Collection[str]) -> bool:
    """Say whether an image surely shows another region than a model was made for.

    Args:
        body_part: BodyPartExamined of the image; where it is not known, nothing is sure.
        anatomies: Words of ``ANATOMIES``; none: the model does not say.
    """
    own = frozenset().union(*(regions(anatomy) for anatomy in anatomies))
    seen = regions(body_part)
    return bool(own and seen and not own & seen)


def part_in(name: str) -> str:
    """Return the part of the body that the name of a file or folder says; empty without any."""
    words = (word for word in re.findall("[A-Z]+", name.upper()) if word in REGIONS_OF)
    return described_part(name) or next(words, "")


def what_shows_head(parts: Collection[str], modalities: Collection[str]) -> str:
    """Say which images of an examination are of the head, beside which others are set aside.

    Args:
        parts: The parts of the body that images say they show; those that say none are empty.
        modalities: The modalities of the images; a FLAIR is made of heads.
    """
    if any("head" in regions(part) for part in parts):
        return "others are of the head"
    return "a FLAIR is of the head" if "flair" in modalities else ""


def is_besides_head(part: str) -> bool:
    """Say whether a part of the body is known and surely is not the head."""
    return bool(regions(part)) and "head" not in regions(part)


def is_of_spine(part: str) -> bool:
    """Say whether a part of the body is the spine or neck, as are examined together with heads."""
    seen = regions(part)
    return bool(seen) and seen <= {"neck", "sacrum", *(r for r in _REGIONS if r.endswith("spine"))}


def differ(parts: Collection[str]) -> bool:
    """Say whether two parts of the body have no region in common: the upper and lower spine."""
    known = {regions(part) for part in parts} - {frozenset()}
    return any(one.isdisjoint(other) for one, other in itertools.combinations(known, 2))
