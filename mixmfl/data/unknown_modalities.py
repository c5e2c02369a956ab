"""A check for images of unknown modality: too many of them stop the planning."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mixmfl.core.errors import DataError
from mixmfl.core.files import absolute, files_below
from mixmfl.data.cases import FolderCases
from mixmfl.data.file_names import read_name
from mixmfl.data.image import ending_of
from mixmfl.data.labels import read_dataset_json
from mixmfl.data.modalities import OTHER_WORDS, Modalities

_CHANNEL = re.compile(r"(.+)_(\d{4})")
_WORDS_SHOWN = 4


def check_most_are_known(found: Sequence[FolderCases], modalities: Modalities) -> None:
    """Check that most images of a federation have a known modality.

    Args:
        found: The cases of each site.
        modalities: The known modalities, with the user's aliases.

    Raises:
        DataError: There are more images of unknown than of known modality.
    """
    word_of = {file: word for site in found for file, word in _images(site, modalities)}
    unknown = {file: word for file, word in word_of.items() if word is not None}
    known = len(word_of) - len(unknown)
    if len(unknown) <= known:
        return
    words = Counter(word for word in unknown.values() if word)
    common = [
        (word, n) for word, n in words.most_common(_WORDS_SHOWN) if n > 1 or len(unknown) == 1
    ]
    listed = ", ".join(f"{word!r} in {n}" for word, n in common) or "no word is in several of them"
    aliases = " ".join(f"--alias {_name(word)}={word}" for word, _ in common)
    first = next((file for file, word in unknown.items() if common and word == common[0][0]), None)
    raise DataError(
        f"{len(unknown)} images are of no modality that is known ({listed}; such as "
        f"{first or next(iter(unknown))}), and {known} are. "
        + (
            f"Give {aliases} to train with them, with names of your own before the = if you like"
            if aliases
            else "Name them after their modality, and give --alias NAME=WORD"
        )
        + "; or move them out of the folder"
    )


def _images(found: FolderCases, modalities: Modalities) -> Iterable[tuple[Path, str | None]]:
    """Yield a folder's images, each with None or, if its modality is unknown, its likely word."""
    images = {file for case in found.cases for file in case.files.values()}
    labels = {case.label for case in found.cases}
    channels = {
        str(number): str(name)
        for place in (found.folder, absolute(found.folder).parent)
        for name_of_all in ("channel_names", "modality")
        for number, name in _pairs(read_dataset_json(place).get(name_of_all))
    }
    for file in files_below(found.folder):
        ending = ending_of(file)
        folders = file.relative_to(found.folder).parts[:-1]
        if not ending or file in labels or "derivatives" in folders:
            continue
        stem = file.name[: -len(ending)]
        channel = _CHANNEL.fullmatch(stem)
        if channel and str(int(channel[2])) in channels:
            word = channels[str(int(channel[2]))].lower()
            yield file, None if modalities.find(word) else word
        elif file in images or _names_modality(stem, modalities):
            yield file, None
        elif not any(_is_known(part, modalities) for part in (stem, *folders[-1:])):
            yield file, _last_word(stem)


def _pairs(written: object) -> Iterable[tuple[str, object]]:
    return written.items() if isinstance(written, dict) else ()


def _names_modality(stem: str, modalities: Modalities) -> bool:
    file_name = read_name(stem, modalities)
    return file_name.modality is not None or bool(file_name.doubt)  # in doubt it fits several


def _is_known(name: str, modalities: Modalities) -> bool:
    """Say whether a name is that of a modality, a label, or another known kind of file."""
    spaced = f" {' '.join(re.findall(r'[^ _.-]+', name.lower()))} "
    if any(f" {word} " in spaced for word in OTHER_WORDS):
        return True
    file_name = read_name(name, modalities)
    return file_name.is_known or bool(file_name.aside or file_name.doubt)


def _last_word(stem: str) -> str:
    """Return the last word of a name that is no number; it is rarely part of the case's name."""
    words = re.findall(r"[^ _.-]+", stem.lower())
    return next((word for word in reversed(words) if not word.isdecimal()), "")


def _name(word: str) -> str:
    """Return a valid modality name made from a word of file names."""
    name = re.sub(r"[^a-z0-9]+", "_", word).strip("_")
    return name if name[:1].isalpha() else f"m{name}"
