"""Which cases are examinations of one patient, so that no patient both trains and validates."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence

from mixmfl.data.body_parts import part_in
from mixmfl.data.folder_roles import is_store, without_stores
from mixmfl.data.image_files import lower_words, shape_of, spaced
from mixmfl.data.sequence_phrases import is_sequence_word, without_accents
from mixmfl.data.sequence_vocabulary import METHODS
from mixmfl.data.time_points import (
    MAY_NAME_EXAMINATION,
    NAMES_EXAMINATION,
    NAMES_PATIENT,
    SIDE,
    begins_with_examination,
    is_day,
    is_examination,
    is_month,
    names_examination,
    names_patient,
    without_day,
)

# before or after something, as all of a name's part
_BEFORE_OR_AFTER = r"pre|post|prae|vor|nach|before|after|avant|apres|prima|dopo"
# a scanner's field strength
_FIELD = r"(?:0[.,]\d{1,2}|1(?:[.,_]5)?|3(?:[.,_]0)?|7(?:[.,_]0)?)[ _]?t(?:esla)?"
# archives that number a patient's examinations (BraTS since 2023, BIDS, UPENN-GBM, UK Biobank,
# ADNI, ATLAS); a word or a day at the end, behind a name that has a number where it is a day, for
# `study_20200101` names no patient
_EXAMINATION = re.compile(
    r"(BraTS-[A-Za-z]+(?:-RT)?-\d+)-\d+|(sub-[^_]+)_ses-.+|(U(?:PENN-|CSD-PT)GBM-\d+)_\d\d|"
    r"(\d{7})_(?:\d{5}_)?\d_\d|.*?(\d{3}_S_\d{4})(?!\d).*|"
    r"(BraTSReg_\d+)_\d\d_\d{4}|((?i:sub|subj|subject|pat|patient|case)[ _-]?\d+)_\d{1,3}|"
    rf"((?i:{NAMES_PATIENT}))(?:-\d{{1,2}}|[ _.-]+(?:[^\W\d]|(?:19|20)\d\d(?!\d)).*)|"
    rf"(.+?)[ _.-]+[\[(]?(?i:{NAMES_EXAMINATION})(?:[] _.)-].*)?|"
    rf"(.*?\d.*?)[ _.-]+(?i:{MAY_NAME_EXAMINATION}|{SIDE}|{_BEFORE_OR_AFTER}|{_FIELD})(?:[ _.-].*)?"
)
_PATIENT_FIRST = re.compile(rf"{NAMES_PATIENT}(?![^\W_])")
_DAY_FIRST = re.compile(
    r"(?:(?:19|20)\d\d[-_.]?\d\d[-_.]?\d\d|\d\d?[-_.]\d\d?[-_.](?:19|20)\d\d)"
    r"[ _.-]+(.*[A-Za-z].*)"
)
_STATE_FIRST = re.compile(
    rf"(?:{NAMES_EXAMINATION}|(?:pre|post|prae|vor|nach)(?:op)?)[ _.-]+(.*\d.*|[^\W\d_]{{3,}}.*)",
    re.IGNORECASE,
)
_NAME_FIRST = re.compile(rf"(\D+)[ _.-]+(?i:{MAY_NAME_EXAMINATION})")
_COUNTED = re.compile(r"(\D*(?!(?:19|20)\d\d[-_])\d{3,})[-_](\d{1,2})")
_SITE = re.compile(
    r"site|cent(?:er|re|ro)|zentrum|klinik|clini|hosp|h[oô]pital|group|grupp|institut|inst|scanner"
)
_YEARLY = re.compile(r"(.*[^\W\d].*)[ _.-]((?:19[89]|20[0-3])\d)")  # Meier_2019, TCGA-01_1998
_NUMBERED = re.compile(r"(.*[^\W\d].*)[ _.-]\d{4}")
_LETTERED = re.compile(r"(.*\d)[ _-]?[a-eA-E]")
_COUNT = re.compile(r"\d{1,2}")
_COUNT_IN_PATIENT = re.compile(r"(?:[a-oq-z][ _-]?)?\d{1,2}", re.IGNORECASE)  # P1/E1
_CONTROLS = re.compile(
    r"(?:healthy[ _-]?)?controls?|hc|healthy|kontrollen|temoins|controles|controlli"
)
# p1_repeat, p1_2, p1R; counts if p1 is there
_FURTHER = re.compile(r"(.*\d)(?:[ _.-]+(?:[a-z]+|\d{1,2})|[a-z])")
# parts of one examination or patient: a field strength, an accession number, a study's UID
_WITHIN = re.compile(
    rf"{_FIELD}|acc(?:ession)?[ _-]?\d+|[12](?:\.\d+){{3,}}|"
    rf"{_BEFORE_OR_AFTER}|"
    r"scanner[ _-]?[a-z0-9]+"
)
_FEW = re.compile(r"[ _.-][tT]?\d{1,2}")
_PADDED = re.compile(r"(?<!\d)0\d{2,3}(?!\d)|[A-Za-z][ _-]?0\d$")  # Brain_001, no accession number
# what file managers call the copy of a folder; "(2)" alone may be a patient's number
_COPY = r"kopie|copy|copie|copia|kopia"
_COPIED = re.compile(
    rf"(?:{_COPY})[ _](?:\(\d+\)[ _])?(?:von|of|de|di|van)[ _](?P<of>.+)"
    rf"|(?P<before>.+?)[ _-]+\(?(?:[a-z]+ )?(?:{_COPY})\)?(?:[ _]?\(?\d+\)?)?"
    r"|(?P<counted>.+?)[ _]?\(\d+\)"
)
# days in a folder where nothing names a person are that person's, unless they are that many
_MOST_EXAMINATIONS = 10


def names_site(text: str) -> bool:
    """Say whether the name of a folder begins with a word for a hospital or a group."""
    return bool(_SITE.match(without_accents(text)))


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
    ``study_20190304`` alone names no patient. ``raw/p1`` and ``archive/p1`` are of one patient, as
    are ``p1`` and ``p1 - Copy`` or ``p1_repeat``, ``p1/head`` and ``p1/spine``, and a few days in a
    folder where nothing names anybody.

    Args:
        places: The folders of each case, and what its files' names say of it.
    """
    parts_of = _parts_of(places)
    firsts = [_NAME_FIRST.fullmatch(parts[-1]) for parts in parts_of.values() if parts]
    people = {match[1] for match in firsts if match}
    patient_at = {
        name: "/".join((*parts[:-1], _person(parts[-1], people))) if parts else ""
        for name, parts in parts_of.items()
    }
    all_parts = set(parts_of.values())
    for name, parts in parts_of.items():  # fsl/p1 beside p1
        of_controls = len(parts) > 1 and _CONTROLS.fullmatch(without_accents(parts[-2]))
        if (
            len(parts) > 1
            and parts[-1:] in all_parts
            and re.search(r"\d", parts[-1])
            and (not of_controls)
        ):
            patient_at[name] = parts[-1]
    unnamed = [
        name
        for name, (folders, rest) in places.items()
        if not patient_at[name] and _is_time(rest or "".join(folders[-1:]))
    ]
    if 1 < len(unnamed) <= _MOST_EXAMINATIONS:
        patient_at |= dict.fromkeys(unnamed, min(unnamed))
    by_writing = {without_accents(patient): patient for patient in patient_at.values()}
    counted = _counted(patient_at.values())
    cases: dict[str, list[str]] = defaultdict(list)
    for name, patient in patient_at.items():
        original = _original_of(without_accents(patient), is_alone=len(parts_of[name]) == 1)
        original = by_writing.get(original, patient)
        cases[counted.get(original, original) or name].append(name)
    return {
        name: patient
        for patient, names in cases.items()
        if len({patient_of(name) for name in names}) > 1
        for name in names
    }


def _parts_of(places: Mapping[str, tuple[Sequence[str], str]]) -> dict[str, tuple[str, ...]]:
    """Return the names that may tell the patient of each case.

    Beside an examination lie examinations: ``Huber/Verlauf 1`` and ``Huber/MRT alt``.
    """
    of_folders = [tuple(folders) for folders, rest in places.values() if not rest]
    kinds = _kinds_of_folders(of_folders)
    crowded = _crowded(folders for folders, _ in places.values())
    examined = {folders[:-1] for folders in of_folders if is_examination("".join(folders[-1:]))}
    examined -= crowded
    parts_of = {}
    for name, (folders, rest) in places.items():
        around = tuple(folders[:-1])
        is_beside = not rest and around and around in examined
        parts_of[name] = (
            without_stores(around) if is_beside else _parts_at(folders, rest, kinds, crowded)
        )
    return parts_of


def _kinds_of_folders(all_folders: Iterable[Sequence[str]]) -> set[str]:
    """Return names of folders that come back below several patients: p1/a, p2/a; R1/W12, R2/W12.

    Those with a number do so below numbers only, for patients may be counted at several sites; if
    one of them comes back, R1/W24 is another. A day is no number: Meier/MRI 12-03-2019. If all
    folders with days in a patient's are called alike but for these, they are such, too.
    """
    above: dict[str, set[Sequence[str]]] = defaultdict(set)
    dated: dict[Sequence[str], set[str]] = defaultdict(set)
    bare_of: dict[str, str] = {}
    for folders in all_folders:
        patient, kind = folders[-2:] if len(folders) > 1 else ("", "")
        is_patient = patient and not (is_store(patient) or is_examination(patient))
        bare = bare_of[kind] = without_day(kind)
        is_numbered = bool(re.search(r"\d", bare or kind))
        may_be_patient = is_numbered and (
            names_patient(kind)
            or not re.search(r"[^\W\d]", kind)
            or not re.search(r"\d", patient)
            or names_site(patient)
        )
        if is_patient and not may_be_patient:
            above[bare].add(tuple(folders[:-1]))
            if bare != without_accents(kind):
                dated[tuple(folders[:-1])].add(kind)
    shapes = {shape_of(bare) for bare, places in above.items() if len(places) > 1}
    alike = [names for names in dated.values() if len({bare_of[name] for name in names}) == 1]
    return {
        name for name, bare in bare_of.items() if bare in above and shape_of(bare) in shapes
    } | {name for names in alike if 1 < len(names) <= _MOST_EXAMINATIONS for name in names}


def _crowded(all_folders: Iterable[Sequence[str]]) -> set[tuple[str, ...]]:
    """Return the folders that hold more of V1, Brain_1 or their like than a person's would."""
    within: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for folders in all_folders:
        for depth, part in enumerate(folders):
            if (is_examination(part) or part_in(part)) and not is_day(part):
                within[tuple(folders[:depth])].add(part)
    return {folder for folder, parts in within.items() if len(parts) > _MOST_EXAMINATIONS}


def _parts_at(
    folders: Sequence[str], rest: str, kinds: Collection[str], crowded: Collection[tuple[str, ...]]
) -> tuple[str, ...]:
    """Return the names of folders and files that may tell the patient of a case, the last most."""
    # p1/T1_1 and p1/T1_2 are of p1, perhaps
    is_count = bool(_COUNT.fullmatch(rest) and folders and re.search(r"\d", folders[-1]))
    if not rest or begins_with_examination(rest) or is_count:
        named = tuple(
            part
            for depth, part in enumerate(folders)
            if (
                tuple(folders[:depth]) in crowded
                or not (is_examination(part) or (len(folders) > 1 and _is_within(part, depth)))
            )
            and not (depth and (part in kinds or _is_count(folders, depth)))
            and not (depth and _goes_on(part, folders[depth - 1]))
        )
        patients = [depth for depth, part in enumerate(named) if names_patient(part)]
        named = named[: patients[-1] + 1] if patients else named  # p1/Entlassung
        # preop_Meier beside postop_Meier
        return without_stores(named) or ((rest,) if rest and not is_examination(rest) else ())
    for folder in folders:
        if (
            rest.startswith(folder)
            and re.search(r"\d", folder)
            and _FEW.fullmatch(rest[len(folder) :])
        ):
            return (folder,)
    for folder in folders[:-1]:
        if _is_named_in(rest, folder, folders):
            return (folder,)
    if not _PATIENT_FIRST.match(without_accents(rest)) and names_patient("".join(folders[-1:])):
        return tuple(folders[-1:])
    sites = (part for part in folders if names_site(part))
    return (*(part for part in sites if not _WITHIN.fullmatch(part.lower())), rest)


def _is_count(folders: Sequence[str], depth: int) -> bool:
    """Say whether a folder counts the examinations of the patient that the one around it names."""
    around = folders[depth - 1]
    return bool(_COUNT_IN_PATIENT.fullmatch(folders[depth]) and names_patient(around))


def _is_named_in(rest: str, folder: str, folders: Sequence[str]) -> bool:
    """Say whether a name has that of the patient's folder in it: 12/2010/I7/AIBL_12_T1_br_I7.

    A number behind it that no folder has would be the patient's, as in Study2_001.
    """
    if not re.search(r"\d", folder) or names_site(folder):
        return False
    before, name, behind = spaced(rest).partition(spaced(folder))
    others = {word for each in folders for word in spaced(each).split()}
    around = before + "".join(word for word in behind.split()[:1] if word not in others)
    return bool(name) and not is_examination(folder) and not re.search(r"\d", around)


def _goes_on(part: str, around: str) -> bool:
    """Say whether a folder's name is that of the patient around it with an examination behind."""
    rest = part[len(around) :] if part.startswith(around) and re.search(r"\d", around) else ""
    return rest[:1] in (" ", "_", "-", ".") and not re.search(r"\d", rest)


def _is_within(part: str, depth: int) -> bool:
    """Say whether the name of a folder surely names no patient; the topmost may with a number.

    Deeper ones may if it is padded with zeros: ``TCIA/Prostate3T-01-0001``.
    """
    if _WITHIN.fullmatch(without_accents(part)):
        return True
    may_be_patient = (_PADDED if depth else re.compile(r"\d")).search(part)
    is_of_body = bool(part_in(part)) and all(map(_may_be_of_body, lower_words(part)))
    return not may_be_patient and (is_month(part) or is_of_body)


def _may_be_of_body(word: str) -> bool:
    """Say whether a word beside one for a part of the body is about the image: no first name."""
    return bool(part_in(word)) or is_sequence_word(word) or word in METHODS


def _is_time(name: str) -> bool:
    """Say whether a name surely is a day or a time point: scan_001 may be of another patient."""
    return is_day(name) or names_examination(name)


def _person(name: str, people: Collection[str]) -> str:
    if (match := _NAME_FIRST.fullmatch(name)) and len(people) > 1:
        return match[1]
    match = _DAY_FIRST.fullmatch(name) or _STATE_FIRST.fullmatch(name)
    return patient_of(match[1] if match else name)


def _original_of(patient: str, is_alone: bool) -> str:
    """Return the patient whose copy, or whose further examination, a name may be of.

    Args:
        patient: The name.
        is_alone: Whether it is that of one folder or file: ``Ward3/Meier`` is not of ``Ward3``.
    """
    for pattern in (_COPIED, _FURTHER) if is_alone else (_COPIED,):
        if match := pattern.fullmatch(patient):
            return next(filter(None, match.groups()))
    return ""


def _counted(patients: Iterable[str]) -> dict[str, str]:
    """Return the patients whose examinations are counted: 0001_01 and 0001_02; S1A and S1B.

    So are Meier_2019 and Meier_2020, if there is somebody else or a number in the patient's name.
    """
    numbers: dict[str, set[str]] = defaultdict(set)
    counts: dict[str, set[str]] = defaultdict(set)
    letters: dict[str, set[str]] = defaultdict(set)
    years: dict[str, set[str]] = defaultdict(set)
    others: set[str] = set()  # MS_1999 beside MS_1001 has a number of its own
    for patient in patients:
        if match := _NUMBERED.fullmatch(patient):
            is_year = _YEARLY.fullmatch(patient) and not names_patient(patient.split("/")[-1])
            years[match[1]].add(patient)
            others |= {match[1]} if not is_year else set()
        if match := _COUNTED.fullmatch(patient):
            numbers[match[1]].add(patient)
            counts[match[1]].add(match[2])
        if match := _LETTERED.fullmatch(patient):
            letters[match[1]].add(patient)
    most = max(map(len, counts.values()), default=0)
    # 101_01, 101_02 and 102_01 may be of a trial's sites, if not all have as many
    may_be_sites = any(len(re.sub(r"\D", "", base)) < 4 for base in numbers) and (
        len({*map(frozenset, counts.values())}) > 1
    )
    # 0002_01 and 0002_02, of which one patient alone is here
    is_lone = len(numbers) == 1 and not any(map(_may_be_lone, numbers))
    if is_lone or not 1 < most <= _MOST_EXAMINATIONS or may_be_sites:
        numbers.clear()
    years = {base: names for base, names in years.items() if base not in others}
    numbers |= {
        base: names
        for base, names in years.items()
        if len(names) <= _MOST_EXAMINATIONS and (len(years) > 1 or re.search(r"[\d/]", base))
    }
    numbers |= {base: names for base, names in letters.items() if len(names) > 1}
    return {name: base for base, names in numbers.items() for name in names}


def _may_be_lone(base: str) -> bool:
    return len(re.sub(r"\D", "", base)) > 3 and not names_site(base)


def patient_key(person: str) -> str:
    """Return what stands for a DICOM patient in a site's own records, which name nobody."""
    return hashlib.sha256(person.encode()).hexdigest()[:16] if person else ""
