"""Readings of names that the names of files and folders beside them decide, or leave open."""

import itertools
import re
from collections import defaultdict
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path

from mixmfl.data.contrast_agent import (
    agent_in,
    agent_in_name,
    may_be_with_agent,
    names_examination_of,
)
from mixmfl.data.file_names import FITS_LABEL, FileName, read_name
from mixmfl.data.folder_roles import ANY_IMAGE, KIND_FOLDERS, is_native_space, is_of_originals
from mixmfl.data.image import may_be_labels
from mixmfl.data.image_files import (
    ImageFile,
    Parts,
    composed,
    lower_words,
    shape_of,
    spaced,
    stem_of,
    with_readings,
)
from mixmfl.data.modalities import LABEL, LABEL_WORDS, Modalities, words_of
from mixmfl.data.sequence_phrases import is_sequence_word, meaning_of, without_accents
from mixmfl.data.sequence_vocabulary import AFTER, ASIDES, KINDS, PROCESSING
from mixmfl.data.sequence_words import read_words

_OTHER_T = re.compile(r"(?<![a-z0-9])t[03-9](?![a-z0-9])")
_T1_OR_T2 = re.compile(r"(?<![a-z0-9])t[12](?![a-z0-9])")
_CT1 = re.compile(r"(?<![a-z0-9])ct1(?![a-z0-9])")
_FL = re.compile(r"(?<![a-z0-9])fla?(?![a-z0-9])", re.IGNORECASE)
_NUMBERED = re.compile(r"p\d+")
_SUB = re.compile(r"(?i)(sub[ _.-]+)(.+)")
_FAT, _OPPOSED, _WATER, _IN_PHASE = (
    "fat image", "opposed-phase image", "water image", "in-phase image",
)  # fmt: skip
_IN_AND_OUT = {"in", "ip", "out", "op"}  # of phase, or of a program
_PARTS_OF_DIXON = {
    **dict.fromkeys(("fat", "f", "fett", "graisse", "grasa", "grasso"), _FAT),
    **dict.fromkeys(("water", "w", "wasser", "eau", "agua", "acqua"), _WATER),
    **dict.fromkeys(("in phase", "inphase", "in", "ip"), _IN_PHASE),
    **dict.fromkeys(("out phase", "out of phase", "outphase", "opp phase", "opposed phase", "opp",
                     "out", "op"), _OPPOSED),
}  # fmt: skip
_BESIDE_CT1 = ("t1", "t1w", "ct", "ct0", "ct2", "ct3", "at1", "st1", "t1c", "t1ce", "t1gd", "t1km")


def with_time_points(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Leave a name undecided whose T1 or T2 is a time point, as in p1_T1_FLAIR beside p1_T0_FLAIR.

    There is no T0 and no T3 among the sequences, so such a name beside it shows what is counted.
    """

    def patterns(file: ImageFile, counted: re.Pattern[str]) -> set[tuple[Path, str]]:
        stem, folder = file.stem.lower(), file.path.parent
        return {
            (
                folder.parent if folder.name.lower() == each[0] else folder,
                f"{stem[: each.start()]}#{stem[each.end() :]}",
            )
            for each in counted.finditer(stem)
        }

    times = {each for file in files for each in patterns(file, _OTHER_T)}
    # T1/P5_T1_FLAIR beside T2/P5_T2_FLAIR: of two times, or two kinds of FLAIR
    counted: dict[tuple[Path, str], set[Path]] = defaultdict(set)
    for file in files:
        speaks = file.reading.modality or file.reading.doubt
        if speaks and _T1_OR_T2.fullmatch(file.path.parent.name.lower()):
            for pattern in patterns(file, _T1_OR_T2):
                if any(meaning_of(word) in KINDS for word in words_of(pattern[1])):
                    counted[pattern].add(file.path.parent)
    times |= {pattern for pattern, folders in counted.items() if len(folders) > 1}

    def has_time_before(file: ImageFile) -> bool:
        """Say whether another sequence follows the patient and the time: P1/T1/P1_T1_FLAIR."""
        folder = file.path.parent
        before, name = f"{folder.parent.name}_t1_".lower(), file.stem.lower()
        following = read_words(name.removeprefix(before)).modality
        is_in_folder = folder.name.lower() == "t1" and name.startswith(before)
        return is_in_folder and following not in ("", file.reading.modality)

    doubt = (
        "has a T1 or T2 that may be a time point, as its folders say, or another name with a T0, "
        "T2 or T3 in its place"
    )
    read = {
        file.path: replace(file.reading, modality=None, doubt=doubt)
        for file in files
        if file.reading.modality and (times & patterns(file, _T1_OR_T2) or has_time_before(file))
    }
    return with_readings(files, read)


def with_names_of_folders(files: Sequence[ImageFile], modalities: Modalities) -> list[ImageFile]:
    """Read names without the time point that the folder and all names in it begin with.

    So ``P1_T1_FLAIR``, ``P1_T1_T1`` and ``P1_T1_T2`` in the folder ``T1`` are of the first time.
    """
    in_folder: dict[Path, list[ImageFile]] = defaultdict(list)
    for file in files:
        if re.fullmatch(r"t\d", file.path.parent.name.lower()):
            in_folder[file.path.parent].append(file)
    read: dict[Path, FileName] = {}
    for folder, mine in in_folder.items():
        begin = re.compile(rf"(?i)((?:.*?[ _.-])?{folder.name})[ _.-]+(.+)")
        parts = [begin.fullmatch(file.stem) for file in mine]
        apart = {
            file.path: (part[1], read_name(part[2], modalities))
            for file, part in zip(mine, parts, strict=True)
            if part
        }
        cases = {case for case, _ in apart.values()}
        kinds = {reading.modality for _, reading in apart.values()} - {None}
        if len(apart) == len(mine) and len(cases) == 1 and len(kinds) > 2:
            read |= {path: replace(r, case=case, head=case) for path, (case, r) in apart.items()}
    return with_readings(files, read)


def with_ct1(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Read CT1 beside T1 as a T1 with contrast agent, as tools for gliomas call it.

    Beside CT or CT2 it may be a computed tomography, and beside AT1 or ST1 a coronal T1. Where one
    patient's is beside T1, so are those of the same name without a T1 beside them.
    """
    names = {(file.path.parent, file.stem.lower()) for file in files}

    def beside(file: ImageFile) -> set[str]:
        parts = _CT1.split(file.stem.lower())
        if not file.reading.doubt or len(parts) != 2:
            return {"no CT1"}
        return {each for each in _BESIDE_CT1 if (file.path.parent, each.join(parts)) in names}

    others = {file.path: beside(file) for file in files}
    is_t1c = {path for path, found in others.items() if found and found <= {"t1", "t1w"}}
    folders = {path.parent for path in is_t1c}  # CT1_reg beside CT1, while T1 is not moved
    names_of_t1c = {shape_of(stem_of(path)) for path in is_t1c}
    is_t1c |= {
        path
        for path, found in others.items()
        if not found
        and (not folders.isdisjoint(path.parents) or shape_of(stem_of(path)) in names_of_t1c)
    }
    read = {
        file.path: replace(file.reading, modality="t1c", doubt="")
        for file in files
        if file.path in is_t1c
    }
    return with_readings(files, read)


def with_short_flair(files: Sequence[ImageFile], modalities: Modalities) -> list[ImageFile]:
    """Read FL and FLA beside T1 of the same name as FLAIR, as pipelines for gliomas write it."""
    names = {(file.path.parent, file.stem.lower()) for file in files}
    read = {}
    for file in files:
        parts = _FL.split(file.stem.lower())
        beside = {(file.path.parent, t1.join(parts)) for t1 in ("t1", "t1w", "t1n")}
        is_open = not (file.reading.is_known or file.reading.aside)
        if len(parts) == 2 and is_open and names & beside:
            read[file.path] = read_name(_FL.sub("flair", file.stem), modalities)
    return with_readings(files, read)


def with_labels_before(files: Sequence[ImageFile], modalities: Modalities) -> list[ImageFile]:
    """Read a name as a label's if without the words that say label it is an image's.

    So ``seg_T1`` is beside ``T1``, ``p1-SEG-tumor-T1`` beside ``p1-T1``, and ``mask_001_T1`` beside
    ``001_T1`` or ``img_001_T1``, while ``lesion_001_T1`` by itself is of a patient. ``seg_001`` is
    of ``img_001_T1``, too. A name with a number may be in another folder if its first word says
    label, and if the first such file there has not the values of an image: ``control/001_T1``
    beside ``lesion/lesion_001_T1``.
    """
    images = {
        (place, spaced(_without_first(name, ANY_IMAGE | {"image"}))): file
        for file in files
        if file.reading.modality
        for name in (file.stem, file.reading.head)
        for place in (file.path.parent, None)
    }
    label_words = set(LABEL_WORDS)
    holding_labels: dict[Path, bool] = {}

    def image_of(file: ImageFile) -> ImageFile | None:
        stem, folder = file.stem.lower(), file.path.parent
        if file.reading.is_bids or file.reading.aside:
            return None
        rest = _without_first(stem, label_words)
        if rest == stem:
            rests = _without_labels(stem, modalities) if file.reading.doubt else ()
            return next((images[folder, each] for each in rests if (folder, each) in images), None)
        if beside := images.get((folder, spaced(rest))):
            return beside
        own = read_name(rest, modalities)
        elsewhere = images.get((None, spaced(rest)))
        if not (elsewhere and re.search(r"\d", own.head or own.case)):
            return None
        if file.reading.modality and folder not in holding_labels:
            holding_labels[folder] = may_be_labels(file.path)
        return elsewhere if holding_labels.get(folder, True) else None

    read = {
        file.path: FileName(image.reading.case, is_label=True, head=image.reading.head)
        for file in files
        if (image := image_of(file))
    }
    return with_readings(files, read)


def with_numbered_patients(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Read p2 to p4 behind a sequence as patients where a name beside it has p1 or p5.

    By themselves, or behind another number (``p1_t1_mprage_sag_p2_iso``), they are what Siemens
    writes for parallel imaging.
    """

    def numbered(file: ImageFile) -> list[str]:
        return [word for word in lower_words(file.stem) if _NUMBERED.fullmatch(word)]

    counted = {
        file.path.parent
        for file in files
        if any(not is_sequence_word(word) for word in numbered(file))
    }
    read = {}
    for file in files:
        reading = file.reading
        lost = [word for word in numbered(file) if word not in lower_words(reading.case)]
        is_unnamed = not (reading.is_bids or re.search(r"\d", reading.case))
        if lost and file.path.parent in counted and reading.is_known and is_unnamed:
            case = "_".join(filter(None, (reading.case, *lost)))
            read[file.path] = replace(reading, case=case)
    return with_readings(files, read)


def with_techniques_before(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Read short words for a technique before a sequence as about it where the rest is a patient.

    So ``p1_IR_T1`` beside ``p1_FLAIR`` is of p1, and ``MT_T1`` beside ``FLAIR`` is one with
    magnetisation transfer, while ``p1_IR_FLAIR`` beside ``p1_FLAIR`` may be of a patient with
    these initials.
    """
    kinds: dict[tuple[Path, str], set[str | None]] = defaultdict(set)
    for file in files:
        if file.reading.modality and not file.reading.is_bids:
            kinds[file.path.parent, file.reading.head].add(file.reading.modality)

    def read(file: ImageFile) -> FileName:
        reading, folder = file.reading, file.path.parent
        words = words_of(reading.head)
        while reading.modality and words and _is_of_technique(words[-1]):
            base = reading.head[: reading.head.rindex(words.pop())].rstrip(" _-.")
            mine, others = kinds[folder, reading.head], kinds.get((folder, base), set())
            if others and mine.isdisjoint(others):
                meant = read_words(file.stem[len(base) :])
                case = (base + reading.case[len(reading.head) :]).lstrip("_")
                named = replace(reading, case=case, head=base)
                return named.set_aside(meant.set_aside) if meant.set_aside else named
        return reading

    return [replace(file, reading=read(file)) for file in files]


def _is_of_technique(word: str) -> bool:
    about = meaning_of(word) in ("technique", "orientation", "beside", *ASIDES)
    return about and not re.search(r"\d", word)  # p2_FLAIR beside T1


def with_patients_called_as_labels(
    files: Sequence[ImageFile], modalities: Modalities
) -> list[ImageFile]:
    """Read a number behind a word for a label as a patient's if several sequences begin with it.

    So ``lesion01_T1`` beside ``lesion01_FLAIR`` is of the patient ``lesion01``.
    """
    readings: dict[tuple[Path, str], dict[Path, FileName]] = defaultdict(dict)
    for file in files:
        words = words_of(file.stem)
        if file.reading.doubt.startswith(FITS_LABEL) and words[0][-1].isdecimal():
            first, reading = words[0], read_name("_".join(words[1:]), modalities)
            if reading.modality and not reading.case:
                named = replace(reading, case=first, head=first)
                readings[file.path.parent, first][file.path] = named
    read = {
        path: reading
        for mine in readings.values()
        if len({each.modality for each in mine.values()}) > 1
        for path, reading in mine.items()
    }
    return with_readings(files, read)


def with_subjects(files: Sequence[ImageFile], modalities: Modalities) -> list[ImageFile]:
    """Read Sub before a name as a subject's if a sequence that is not subtracted has both.

    So ``Sub_Anna_T1`` is beside ``Sub_Anna_FLAIR``; beside ``Anna_T1`` it is a subtraction.
    """
    stems = {(file.path.parent, file.stem) for file in files}
    readings: dict[tuple[Path, str], dict[Path, FileName]] = defaultdict(dict)
    for file in files:
        match = _SUB.fullmatch(file.stem)
        if match and file.reading.aside == "subtraction":
            reading = read_name(match[2], modalities)
            if reading.modality and reading.head and (file.path.parent, match[2]) not in stems:
                case, head = match[1] + reading.case, match[1] + reading.head
                named = replace(reading, case=case, head=head)
                readings[file.path.parent, head.lower()][file.path] = named
    read = {
        path: reading
        for mine in readings.values()
        if not {each.modality for each in mine.values()} <= {"t1", "t1c"}
        for path, reading in mine.items()
    }
    return with_readings(files, read)


def with_parts_of_dixon(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Read ``FAT/T1`` beside ``WATER/T1`` as parts of one Dixon, of which the water image is used.

    A folder ``FAT`` by itself may be a patient's if others beside it hold an image of that name;
    without them its image is undecided.
    """
    beside: dict[tuple[Parts, str], dict[str, str]] = defaultdict(dict)
    for file in files:
        if file.parents and file.reading.modality and not file.reading.is_bids:
            name = spaced(file.parents[-1]).strip()
            image = file.parents[:-1], shape_of(file.stem)
            beside[image][name] = _PARTS_OF_DIXON.get(name, "")
    read = []
    for file in files:
        above, name = file.parents[:-1], spaced("".join(file.parents[-1:])).strip()
        folders = beside.get((above, shape_of(file.stem)), {})
        parts = {each for each in folders.values() if each}
        spoken = {each for each, part in folders.items() if part} - _IN_AND_OUT
        is_dixon = len(parts) > 1 and bool(spoken)
        is_alone = len(folders) == 1 and bool(above) and len(name) > 2 and bool(spoken)
        part, reading = folders.get(name, ""), file.reading
        if part and reading.modality and (is_dixon or is_alone):
            if is_dixon and (part in (_FAT, _OPPOSED) or (part == _IN_PHASE and _WATER in parts)):
                reading = reading.set_aside(f"{part} of a Dixon, by its folder")
            elif part in (_FAT, _OPPOSED):
                doubt = f"says {reading.modality}, and its folder {file.parents[-1]!r} a {part}"
                reading = replace(reading, modality=None, doubt=doubt)
            file = replace(file, reading=reading, parents=above)
        read.append(file)
    return read


def _without_labels(stem: str, modalities: Modalities) -> list[str]:
    """Return a name without the words that say label, and with ever fewer of those behind them.

    So ``P1-SEG-tumor_residual-MR-T1``, of ReMIND, is of ``P1-T1``.
    """
    words = words_of(stem)
    spoken = [each for each in modalities.matches(words) if each.kind == LABEL]
    if not spoken:
        return []
    before, behind = words[: spoken[0].start], range(spoken[-1].stop, len(words))
    return [spaced(" ".join(before + words[stop:])) for stop in behind]


def _without_first(stem: str, words: Set[str]) -> str:
    """Return a name without its first word if that is one of some words, in lower case."""
    parts = re.split(r"[ _.-]+", stem.lower(), maxsplit=1)
    return parts[-1] if parts[0] in words else stem.lower()


def called_as_agents(files: Sequence[ImageFile], modalities: Modalities) -> set[Parts]:
    """Return the folders that a word for an agent names, and that may be a patient's: Gado, KM.

    Beside them lie folders without such a word that hold an image of the same bare name.
    """
    names: dict[Parts, set[str]] = defaultdict(set)
    for file in files:
        if file.parents and file.reading.modality and not file.reading.case:
            names[file.parents].add(file.stem.lower())

    def is_of_agent(part: str) -> bool:
        return agent_in(part) in ("with", "without") and not is_native_space(part)

    others: dict[Parts, set[str]] = defaultdict(set)
    for parents, stems in names.items():
        sorts = parents[-1].lower() in KIND_FOLDERS or is_of_originals(parents[-1])
        made = all(word in PROCESSING for word in lower_words(parents[-1]))
        is_known = read_name(parents[-1], modalities).is_known
        if not (sorts or made or is_known or agent_in(parents[-1])):
            others[parents[:-1]] |= stems
    return {
        parents
        for parents, stems in names.items()
        if is_of_agent(parents[-1]) and stems & others[parents[:-1]]
    }


def with_words_of_patients(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Decide on a T1 with a short unknown word that comes back with other sequences.

    So "abc" of ``T1_abc`` beside ``FLAIR_abc`` is about the patient, not about a contrast agent.
    """
    others: dict[Parts, set[str]] = defaultdict(set)
    for file in files:
        if file.reading.modality not in (None, "t1", "t1c"):
            others[file.home].update(lower_words(without_accents(file.stem)))

    def around(file: ImageFile) -> set[str]:
        above = file.home[:-1]  # of a folder per image
        return others[file.home] | (others[above] if above else set())

    read = {
        file.path: replace(file.reading, modality="t1", doubt="", unknown=())
        for file in files
        if file.reading.unknown and around(file).issuperset(file.reading.unknown)
    }
    return with_readings(files, read)


def with_agent_of_folder(
    files: Sequence[ImageFile], folder: Path, people: Set[Parts]
) -> list[ImageFile]:
    """Read what a folder says of the contrast agent of a T1 whose own name does not say it.

    So ``post_contrast/T1.nii.gz`` is a T1 with contrast agent; ``post/T1.nii.gz`` is undecided, as
    it may be after surgery, unless a T1 with contrast agent lies beside it. So is one in a folder
    that names a whole examination with an agent, such as ``MRI brain with contrast``.
    """
    with_agent = {
        place for file in files if file.reading.modality == "t1c" for place in file.path.parents
    }
    without = {file.path.parent for file in files if file.reading.modality == "t1"}
    refined = []
    for file in files:
        around = itertools.takewhile(lambda place: place != folder, file.path.parents)
        spoken = ((place, agent) for place in around if (agent := _agent_of(place)))
        place, agent = next(spoken, (file.path.parent, ""))
        part = composed(place.name)
        if agent == "with" and place != file.path.parent:  # it may have another reason
            agent = "unclear"
        if file.parents in people:
            agent = "unclear"
        reading = file.reading
        own = agent_in_name(file.stem)
        doubt = f"says {reading.modality}, and the folder {part!r} tells of a contrast agent"
        if reading.is_bids or reading.modality not in ("t1", "t1c"):
            pass
        elif reading.modality == "t1c":
            # beside a T1, "pre" is before surgery
            is_state = lower_words(part)[-1:] == ["pre"] and file.path.parent in without
            if agent == "without" and not (is_native_space(part) or is_state):
                reading = replace(reading, modality=None, doubt=f"{doubt} to come")
        elif agent == "with" and own != "without":
            reading = replace(reading, modality="t1c")
        elif (agent == "with") or (
            agent == "unclear" and own != "without" and place not in with_agent
        ):
            reading = replace(reading, modality=None, doubt=doubt)
        refined.append(replace(file, reading=reading))
    return refined


def _agent_of(folder: Path) -> str:
    """Return what a folder's name says of the agent of the images in it, as ``agent_in`` does."""
    name = composed(folder.name)
    agent = agent_in(name)
    if agent == "with" and names_examination_of(name):
        return "unclear"
    return agent or "unclear" * may_be_with_agent(name)


def with_agents_alone(files: Sequence[ImageFile], folder: Path) -> list[ImageFile]:
    """Leave a name undecided that has words for an agent and no sequence behind the patient's.

    So ``p1_POST`` in the folder ``p1`` or beside ``p1_T1``, while ``p1_CT_KM`` is something else.
    """
    doubt = "tells of a contrast agent, and not of which sequence"
    own = folder.resolve().name
    around: dict[Path, set[str]] = defaultdict(lambda: set(ANY_IMAGE))
    for file in files:
        known = file.reading.head if file.reading.is_known else ""
        for name in (known, own, *file.path.parent.relative_to(folder).parts):
            around[file.path.parent].update(lower_words(name))

    def is_silent(file: ImageFile) -> bool:
        reading = file.reading
        is_of_patient = around[file.path.parent].issuperset(lower_words(reading.head))
        is_open = not (reading.is_known or reading.aside or reading.doubt or reading.is_bids)
        return is_open and is_of_patient

    read = {
        file.path: replace(file.reading, doubt=doubt)
        for file in files
        if is_silent(file) and any(map(agent_in, words_of(file.stem)[-1:]))
    }
    return with_readings(files, read)


def with_patients_called_as_agents(files: Sequence[ImageFile]) -> list[ImageFile]:
    """Leave a T1 undecided whose word for an agent all other sequences of its case have, too.

    So ``Gado`` of ``T1_Gado`` beside ``FLAIR_Gado`` may be a patient, whom it then names.
    """
    by_case: dict[tuple[Parts, str], list[ImageFile]] = defaultdict(list)
    for file in files:
        if file.reading.modality and not file.reading.is_bids:
            by_case[file.home, file.reading.case].append(file)
    patient_of: dict[Path, str] = {}
    for mine in by_case.values():
        words = [dict.fromkeys(lower_words(file.stem)) for file in mine]
        kinds = {file.reading.modality for file in mine}
        shared = [word for word in words[0] if all(word in each for each in words)]
        names = [word for word in shared if agent_in(word) == "with"]
        signs = any(each.keys() & AFTER for each in words)
        is_open = "t1c" in kinds and len(kinds) > 1 and "t1" not in kinds
        if is_open and len(names) == 1 and not signs:
            patient_of.update({file.path: names[0] for file in mine})
    read = {}
    for file in files:
        if name := patient_of.get(file.path):
            reading = read[file.path] = replace(file.reading, case=name, head=name)
            if reading.modality == "t1c":
                doubt = f"has {name!r}, as all names beside it: a contrast agent, or the patient"
                read[file.path] = replace(reading, modality=None, doubt=doubt)
    return with_readings(files, read)
