"""The case of each file: its folder, or what is left of its name in a folder."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from mixmfl.data.folder_roles import label_tree_above
from mixmfl.data.image_files import ImageFile, Key, Parts, lower_words, shape_of, spaced
from mixmfl.data.time_points import begins_with_examination

# folders of what is drawn for radiotherapy
_RADIOTHERAPY = re.compile(r"rt(?:[ _-]?(?:struct(?:ures?)?|ss))?|radiotherapy|contours?")


class CaseKeys:
    """Where cases are, and which case each image is of.

    Args:
        files: All files.
        rests: The part of each image's name that identifies its case.
    """

    def __init__(self, files: Sequence[ImageFile], rests: Mapping[Path, str]) -> None:
        self._rests = rests
        known = [file for file in files if file.reading.is_known]
        rests_at: dict[Parts, set[str]] = defaultdict(set)
        for file in known:
            if file.reading.modality:
                rests_at[file.home].add(self._rest(file))
        # of study1_T1, study2_T1 and gt the label may be of either
        several = {
            home
            for home, rests in rests_at.items()
            if len(rests) > 1 and all(map(begins_with_examination, rests))
        }
        self._case_folders = {file.home for file in known if not self._rest(file)} - several

    def key(self, file: ImageFile) -> Key:
        """Return the case that a file's own place and name tell."""
        tops = (file.home[:length] for length in range(1, len(file.home) + 1))
        top = next((top for top in tops if top in self._case_folders), None)
        rest = self._rest(file)
        return (top, "") if top else (file.place if rest else file.home, rest)

    def _rest(self, file: ImageFile) -> str:
        return self._rests.get(file.path, file.reading.case)


def keys_of_known(files: Sequence[ImageFile], keys: CaseKeys, folder: Path) -> dict[Path, Key]:
    """Return the case of each image and label."""
    key_of = {file.path: keys.key(file) for file in files if file.reading.modality}
    places: dict[Parts, set[str]] = defaultdict(set)  # where cases are, with their rests
    for place, rest in key_of.values():
        places[place].add(rest)
    of_labels = _folders_of_labels_alone(files)
    imaged = {*key_of.values()}
    for file in files:
        if file.reading.is_label:
            is_apart = bool(label_tree_above(file.path, folder)) or file.path.parent in of_labels
            key = _key_of_label(file, keys.key(file), places, is_apart)
            key_of[file.path] = key if key in imaged else _beside_radiotherapy(file, imaged) or key
    return key_of | _labels_called_otherwise(files, key_of)


def _beside_radiotherapy(file: ImageFile, imaged: Collection[Key]) -> Key | None:
    """Return the only case around a folder of radiotherapy with a label: RT/GTV beside MR/T1."""
    depth = next((at for at, p in enumerate(file.home) if _RADIOTHERAPY.fullmatch(p.lower())), 0)
    if not depth:
        return None
    around = [key for key in imaged if key[0][:depth] == file.home[:depth]]
    return around[0] if len(around) == 1 else None


def _folders_of_labels_alone(files: Sequence[ImageFile]) -> set[Path]:
    """Return folders with several labels and no image: one label may be of a site's only case."""
    with_images = {place for file in files if file.reading.modality for place in file.path.parents}
    count = Counter(file.path.parent for file in files if file.reading.is_label)
    return {place for place, labels in count.items() if labels > 1} - with_images


def _key_of_label(
    file: ImageFile, key: Key, places: Mapping[Parts, Collection[str]], is_apart: bool
) -> Key:
    """Return the case of a label, or ``key``, the one that its own place and name tell.

    If it ``is_apart``, in a folder of labels, names alone tell its case.
    """
    place, label_rest = key
    rests = places.get(place, ())
    for rest in (label_rest, file.reading.head, file.stem):
        if rest in rests:
            return place, rest
    begun = [rest for rest in rests if rest and spaced(label_rest).startswith(spaced(rest))]
    if begun:  # p1_consensus_seg is of p1
        return place, max(begun, key=len)
    sessions = [rest for rest in rests if label_rest and rest.startswith(f"{label_rest}_ses-")]
    if len(sessions) == 1:  # BIDS: sub-01_label-lesion_mask of sub-01_ses-1_T1w
        return place, sessions[0]
    if len(rests) == 1 and place and not label_rest:
        return place, next(iter(rests))
    # Bilder/p1_T1 and Masken/p1, where we know of one of these folders alone what it is for
    mine = (*place, label_rest) if label_rest else place
    if rests or not mine:
        return key
    ends = [
        (other, rest)
        for other, found in places.items()
        for rest in found
        if ((*other, rest) if rest else other)[-len(mine) :] == mine
    ]
    if not ends and is_apart:  # Masken/final/p1_final of Bilder/p1/T1
        words = lower_words(label_rest)
        named = [
            ((other, rest), lower_words("_".join(parts[start:])))
            for other, found in places.items()
            for rest in found
            for parts in [[*other, rest] if rest else other]
            for start in range(len(parts))
        ]
        ends = [
            candidate
            for candidate, name in named
            if words[: len(name)] == name and all(map(str.isalpha, words[len(name) :]))
        ]
    return ends[0] if len(ends) == 1 else key


def _labels_called_otherwise(
    files: Sequence[ImageFile], key_of: Mapping[Path, Key]
) -> dict[Path, Key]:
    """Return the case of each label that is the only one in a patient's folder, under another name.

    So ``BraTS20_Training_355/W39_1998.09.19_Segm`` is of that patient, whom the folder and all
    images in it name. What is called as another patient is (``p1/p2_seg``) is not taken.
    """
    in_folder: dict[Parts, list[ImageFile]] = defaultdict(list)
    for file in files:
        in_folder[file.parents].append(file)
    with_image = {key_of[file.path] for file in files if file.reading.modality}
    places_of = Counter(head for _, head in {(file.parents, file.reading.head) for file in files})
    found = {}
    for parents, mine in in_folder.items():
        labels = [file for file in mine if file.reading.is_label]
        keys = {key_of[file.path] for file in mine if file.reading.modality}
        if len(labels) != 1 or len(keys) != 1 or not parents:
            continue
        (label,), (key,) = labels, keys
        own = label.reading.head
        names = {file.reading.head for file in mine if file.reading.modality}
        if (
            key_of[label.path] not in with_image
            and names == {parents[-1]}
            and re.search(r"\d", own)
            and shape_of(own) != shape_of(parents[-1])
            and places_of[own] == 1
        ):
            found[label.path] = key
    return found
