"""Questions about cases that folders and names leave open, and files that lie at a wrong place."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mixmfl.data.accounting import inside
from mixmfl.data.body_parts import is_besides_head, is_of_spine, part_in, what_shows_head
from mixmfl.data.file_names import field_strength_in
from mixmfl.data.folder_roles import ANY_IMAGE, may_be_name
from mixmfl.data.image_files import (
    ImageFile,
    Key,
    Parts,
    composed,
    lower_words,
    name_read,
    names_of,
    part_behind_patient,
    shape_of,
    spaced,
)
from mixmfl.data.modalities import anatomy_in
from mixmfl.data.sequence_phrases import is_sequence_word, without_accents
from mixmfl.data.sequence_vocabulary import HARMLESS
from mixmfl.data.series_numbers import ask_whose_numbers
from mixmfl.data.time_points import (
    age_in,
    are_of_other_times,
    is_earlier_examination,
    is_examination,
    is_of_another_state,
    time_in,
)
from mixmfl.data.verdicts import remark_on

_TWO_FOLDERS = (
    "has files in {}, folders whose names differ in how their letters are stored alone, and which "
    "may be of two patients; put the files of one patient into one folder, and rename the other"
)

_WHOSE_IMAGE = (
    "{} lies beside several cases and is named by its kind alone; put it into the folder of its "
    "case, or say by --mapping which case it is of"
)


def questions_about(
    files: Sequence[ImageFile],
    key_of: Mapping[Path, Key],
    name_of: Mapping[Key, str],
    unclear: Mapping[Path, str],
    folder: Path,
) -> dict[str, tuple[str, ...]]:
    """Return the reasons why cases cannot be used, by the case's name.

    Args:
        files: All images and labels.
        key_of: The case of each.
        name_of: The name of each case.
        unclear: Questions about single images.
        folder: The folder that was searched.
    """
    faults: dict[str, list[str]] = defaultdict(list)
    for name, count in Counter(name_of.values()).items():
        if count > 1:
            its_files = [path for path, key in key_of.items() if name_of[key] == name]
            listed = ", ".join(inside(path, folder) for path in its_files)
            faults[name].append(f"is the name of {count} cases: {listed}; rename one")
    for one, others in _written_alike(name_of.values()).items():
        faults[one].append(
            f"differs from {others} in capitals, leading zeros or signs alone, and may be of one "
            "patient with it; rename one"
        )
    for key, question in _of_folders_called_alike(key_of, folder).items():
        faults[name_of[key]].append(question)
    asked = dict(unclear)
    at_top = [path for path, key in key_of.items() if key == ((), "") and path.parent == folder]
    if len(at_top) == 1 and len(name_of) > 2:
        asked.setdefault(at_top[0], _WHOSE_IMAGE.format(names_of(at_top)))
    nobodys = _of_no_patient(files, key_of, folder)
    asked |= dict.fromkeys(nobodys, ask_whose_numbers(nobodys))
    for name, question in sorted({(name_of[key_of[path]], text) for path, text in asked.items()}):
        faults[name].append(question)
    return {name: tuple(texts) for name, texts in faults.items()}


def misplaced(files: Sequence[ImageFile], key_of: Mapping[Path, Key]) -> dict[Path, str]:
    """Return doubts about files whose names tell of another case than the place they lie at."""
    cases = {spaced(rest or place[-1]) for place, rest in key_of.values() if rest or place}
    doubts: dict[Path, str] = {}
    kinds_at = defaultdict(set)
    for file in files:
        kinds_at[file.home].add(file.reading.modality or "")
    for file in files:
        place, rest = key_of[file.path]
        head = file.reading.head
        if file.reading.is_bids:
            if other := _other_entity(file):
                doubts[file.path] = f"is of another folder than {other!r}, in which it lies"
            continue
        beside = set() if rest else kinds_at[place]
        below = file.home[len(place) :] if any(beside) else ()
        is_new = (file.reading.modality or "") not in beside
        times = (p for p in below if is_examination(p) or (is_new and is_earlier_examination(p)))
        if time := next(times, ""):
            doubts[file.path] = (
                f"lies in the folder {time!r}, which may be of another examination than the images "
                "beside that folder"
            )
        if is_of_another_state(file.stem, file.parents):
            doubts[file.path] = "says another state of treatment than the folder it lies in"
        if place and not rest and head and spaced(head) in cases - {spaced(place[-1])}:
            doubts[file.path] = f"begins with {head!r}, the name of another case"
        elif other := next((part for part in file.home if _is_numbered_alike(head, part)), ""):
            doubts[file.path] = f"begins with {head!r}, and lies in the folder {other!r}"
        elif place and not rest and (other := _other_named(file, place, cases)):
            doubts[file.path] = f"has the name of another case, {other!r}, in it"
    return doubts


def _other_named(file: ImageFile, place: Parts, cases: Collection[str]) -> str:
    """Return the name of another case in a file's, or nothing: p1/seg_of_pat02.

    It has a number, and is neither a word for sequences, as p2 is, nor a time; a name that folders
    around have is none, nor is one behind that of the file's own case.
    """
    words = lower_words(file.stem)
    if spaced(place[-1]) in spaced(file.stem):
        return ""
    named = (
        " ".join(words[start:stop])
        for start in range(len(words))
        for stop in range(start + 1, len(words) + 1)
    )
    around = " ".join(map(spaced, place))
    return next(
        (
            name
            for name in named
            if f" {name} " in cases
            and f" {name} " not in around
            and re.search(r"[^\W\d].*\d", name)
            and not (is_sequence_word(name) or is_examination(name))
        ),
        "",
    )


def of_doubtful_times(files: Sequence[ImageFile], key_of: Mapping[Path, Key]) -> dict[Path, str]:
    """Return doubts about images of a case whose names tell an examination, and the others none.

    So is ``FLAIR_previous`` beside ``T1`` and ``T2``, and a label ``seg_followup``. Of
    ``T1_baseline``, ``T2_baseline`` and ``FLAIR`` it is the one without.
    """
    doubts: dict[Path, str] = {}
    of_images: dict[Key, str] = {}
    for key, images in _images_by_case(files, key_of).items():
        names = {image.path: " ".join((*image.parents, image.stem)) for image in images}
        times = {path: time_in(name) for path, name in names.items()}
        timed = [path for path, time in times.items() if time]
        silent = [path for path, time in times.items() if not time]
        if timed and silent:
            few = silent if len(silent) < len(timed) else timed
            time = repr(times[timed[0]])
            mine, others = (time, "none") if few is timed else ("none", time)
            why = f"tells of another examination ({mine}) than the names beside it ({others})"
            doubts |= dict.fromkeys(few, why)
        of_images[key] = without_accents(" ".join(names.values()))
    for file in files:
        if not file.reading.is_label or file.reading.is_bids:
            continue
        stem, beside = file.stem, of_images.get(key_of[file.path], "")
        time = time_in(stem)
        if beside and time and time not in beside:
            doubts[file.path] = f"tells of an examination ({time!r}) that no image beside it does"
        elif beside and are_of_other_times([stem, beside]):
            doubts[file.path] = "tells of another day or time than the images beside it"
    return doubts


def remarks_about(files: Sequence[ImageFile], key_of: Mapping[Path, Key]) -> dict[Path, str]:
    """Return remarks about images that are used, and may be of another examination, bad or changed.

    They lie in a folder below the other images (``p1/CD/T2``), are called older or newer than
    these (``FLAIR_old``), or have a word each that we do not know (``T1_heute``, ``T2_gestern``).
    Others are called bad (``T1_motion``).
    """
    images_of = _images_by_case(files, key_of)
    remarks: dict[Path, str] = {}
    for (place, rest), images in images_of.items():
        below = {image.path: image.home[len(place) :] for image in images}
        if not rest and not all(below.values()):
            for path, folders in below.items():
                if folders:
                    remarks[path] = f"lies in the folder {folders[0]!r} below the other images"
        ages = {image.path: age_in(image.stem) for image in images}
        if not all(ages.values()):
            for path, age in ages.items():
                if age:
                    remarks[path] = f"is called {age!r}, and the other images are not"
        fields = {image.path: field_strength_in(image.stem) for image in images}
        if len({*fields.values()} - {""}) > 1:
            for path, field in fields.items():
                if field:
                    remarks[path] = f"is called {field!r}, and others of another field strength"
        unknown = [_unknown_words(image) for image in images]
        if (
            len(images) > 1
            and sum(map(len, unknown)) == len(set().union(*unknown))
            and all(unknown)
        ):
            for image, mine in zip(images, unknown, strict=True):
                remarks[image.path] = f"no other image is called {' '.join(sorted(mine))!r}"
    see = "see that it is of the same examination"
    images = [file for file in files if file.reading.modality]
    own = {f.path: remark_on(f.stem[len(f.reading.head) :]) for f in images}
    own |= {path: f"{text}; {see}" for path, text in remarks.items()}
    labels = [file for file in files if file.reading.is_label]
    return own | _remarks_about_labels(labels, key_of, images_of)


def _remarks_about_labels(
    labels: Sequence[ImageFile],
    key_of: Mapping[Path, Key],
    images_of: Mapping[Key, Sequence[ImageFile]],
) -> dict[Path, str]:
    """Return remarks about labels by the words of theirs that no image of their case has.

    They were changed (``seg_dilated``), or mark a part of the body (``thalamus_mask``).
    """
    remarks: dict[Path, str] = {}
    for label in labels:
        key = key_of[label.path]
        beside = (image.stem for image in images_of.get(key, ()))
        known = lower_words(" ".join((*key[0], key[1], *beside)))
        words = lower_words(" ".join((*label.parents[len(key[0]) :], label.stem)))
        words = [word for word in words if word not in known]
        if remark := remark_on(" ".join(words)):
            remarks[label.path] = remark
        elif part := anatomy_in(words):
            remarks[label.path] = (
                f"is called {part!r}, a part of the body and no lesion; see that it is what "
                "dataset.json says of its values"
            )
    return remarks


def _images_by_case(
    files: Sequence[ImageFile], key_of: Mapping[Path, Key]
) -> Mapping[Key, list[ImageFile]]:
    """Return the images of each case; those that BIDS names tell their examination by that."""
    images_of: dict[Key, list[ImageFile]] = defaultdict(list)
    for file in files:
        if file.reading.modality and not file.reading.is_bids:
            images_of[key_of[file.path]].append(file)
    return images_of


def _unknown_words(image: ImageFile) -> set[str]:
    """Return the words of letters behind a sequence that we do not know, and no folder has."""
    behind = lower_words(image.reading.case[len(image.reading.head) :])
    around = {word for part in image.path.parent.parts for word in lower_words(part)}
    return {w for w in behind if w.isalpha() and not (w in HARMLESS | around or part_in(w))}


def brought_to_other_states(files: Sequence[ImageFile]) -> dict[Path, str]:
    """Return files of another state of treatment that were registered to that of their folder.

    So is ``midRT/2_preRT_T2_registered``, each with the reason why it is not used.
    """
    return {
        file.path: "another state of treatment, registered to that of its folder"
        for file in files
        if file.reading.processing and is_of_another_state(file.stem, file.parents)
    }


def of_other_parts(files: Sequence[ImageFile], key_of: Mapping[Path, Key]) -> dict[Path, str]:
    """Return images of other parts of the body in examinations of the head, each with the reason.

    So is ``T2_spine`` beside ``T1_brain`` or a FLAIR. A part that all names have may be of a
    patient's name.
    """
    images_of: dict[Key, list[ImageFile]] = defaultdict(list)
    for file in files:
        if file.reading.modality:
            images_of[key_of[file.path]].append(file)
    why: dict[Path, str] = {}
    for images in images_of.values():
        parts = [part_in(name_read(image)) for image in images]
        modalities = [
            image.reading.modality or ""
            for part, image in zip(parts, images, strict=True)
            if not part
        ]
        if shown := what_shows_head(parts, modalities):
            why |= {
                image.path: f"{part}; {shown}"
                for part, image in zip(parts, images, strict=True)
                if is_besides_head(part)
            }
    return why


def of_doubtful_parts(files: Sequence[ImageFile], key_of: Mapping[Path, Key]) -> dict[Path, str]:
    """Return doubts about images of the spine or neck in cases whose other images say no part.

    So is ``T2_spine`` beside ``T1`` and ``T1c``, which may be of the head.
    """
    parts_of: dict[Key, dict[Path, str]] = defaultdict(dict)
    for file in files:
        if file.reading.modality:
            parts_of[key_of[file.path]][file.path] = part_behind_patient(file.path)
    return {
        path: f"says {part}, and names beside it say no part of the body"
        for parts in parts_of.values()
        if not all(parts.values()) and all(is_of_spine(part) for part in parts.values() if part)
        for path, part in parts.items()
        if part
    }


def _other_entity(file: ImageFile) -> str:
    """Return the folder of a subject or session in which a file of another one lies, in BIDS."""
    own = file.reading.head.split("_")
    named = [part for part in file.parents if part.startswith(("sub-", "ses-")) and "_" not in part]
    return next((p for p in named if p not in own and any(o[:4] == p[:4] for o in own)), "")


def _written_alike(names: Collection[str]) -> dict[str, str]:
    """Return the names that a file system or a person may take for others of them, with these."""
    alike: dict[str, set[str]] = defaultdict(set)
    for name in names:
        plain = _without_zeros(name.casefold())
        alike[" ".join(lower_words(plain)) or plain].add(name)
    return {
        name: ", ".join(sorted(group - {name}))
        for group in alike.values()
        for name in group
        if len(group) > 1
    }


def _of_folders_called_alike(key_of: Mapping[Path, Key], folder: Path) -> dict[Key, str]:
    """Return questions about cases that lie in two folders beside each other of one name.

    Their names are the same to a reader: an accent is stored in two ways, or ``%20`` is a space.
    """
    stored: dict[tuple[Key, Path, str], set[str]] = defaultdict(set)
    for path, key in key_of.items():
        for place in path.relative_to(folder).parents:
            if place.name:
                stored[key, place.parent, composed(place.name)].add(place.name)
    return {
        key: _TWO_FOLDERS.format(" and ".join(map(ascii, sorted(names))))
        for (key, _, _), names in stored.items()
        if len(names) > 1
    }


def _is_numbered_alike(name: str, other: str) -> bool:
    """Say whether two names differ in their numbers alone, as those of patients do: p1 and p2."""
    name, other = (_without_zeros(each.casefold()) for each in (name, other))
    words = set(re.findall(r"[a-z]+", name))
    return (
        name != other
        and shape_of(name) == shape_of(other)
        and not words <= ANY_IMAGE  # ser_3 in ser_2
    )


def _without_zeros(name: str) -> str:
    return re.sub(r"(?<!\d)0+(?=\d)", "", name)


def _of_no_patient(
    files: Sequence[ImageFile], key_of: Mapping[Path, Key], folder: Path
) -> list[Path]:
    """Return files that folders for sequences make one case, and whose names may be patients'."""
    named = [
        file
        for file in files
        if key_of[file.path] == ((), "")
        and file.path.parent != folder
        and len(file.parents) + 1 < len(file.path.relative_to(folder).parts)
    ]
    stems = {file.stem for file in named}
    asked = len(stems) > 1 and all(map(may_be_name, stems))
    return [file.path for file in named] if asked else []
