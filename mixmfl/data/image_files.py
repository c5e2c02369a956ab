"""An image file, what its path says of it, and how names are compared."""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from mixmfl.core.files import files_below
from mixmfl.data.accounting import is_twin, other_format
from mixmfl.data.body_parts import part_in
from mixmfl.data.file_names import FileName, read_name
from mixmfl.data.image import FILE_ENDINGS, ending_of
from mixmfl.data.modalities import Modalities
from mixmfl.data.sequence_phrases import is_sequence_word

Parts = tuple[str, ...]
Key = tuple[Parts, str]
"""What a case is known by: its place, and the rest of the names of its files there."""


@dataclass(frozen=True)
class ImageFile:
    """An image file, and what its own path says.

    Attributes:
        path: The file.
        reading: The reading of its name, or of the folder that is named in its stead.
        parents: The folders it lies in below the one searched, without one that ``reading`` is of.
        place: ``parents`` without those that sort one case's files (``anat``, ``labels``) and those
            that repeat the case's name; filled in once all names are read.
        home: Like ``place``, with the folders that repeat the case's name, too.
    """

    path: Path
    reading: FileName
    parents: Parts
    place: Parts = ()
    home: Parts = ()

    @property
    def stem(self) -> str:
        """The file's name without its ending."""
        return stem_of(self.path)


def images_below(folder: Path) -> list[Path]:
    """Return the images below a folder once, though links lead to a folder or all images in it."""
    files = [file for file in files_below(folder) if file.name.lower().endswith(FILE_ENDINGS)]
    around = {place for file in files for place in file.parents if folder in place.parents}
    top = folder.resolve()
    links = {file for file in files if is_twin(file, top)}
    twins = {place for place in around if is_twin(place, top)}
    own = {file.parent for file in files if file not in links}
    twins |= {file for file in links if file.parent not in own}
    return [file for file in files if twins.isdisjoint((file, *file.parents))] if twins else files


def with_readings(files: Sequence[ImageFile], readings: Mapping[Path, FileName]) -> list[ImageFile]:
    """Return files with other readings of some, by their paths."""
    return [replace(file, reading=readings.get(file.path, file.reading)) for file in files]


def is_unpacked(folder: Path, file: Path) -> bool:
    """Say whether a folder is what a program unpacked an image into: ``T1.nii.gz/T1.nii``."""
    return bool(ending_of(folder)) and stem_of(folder) == stem_of(file)


def stem_of(path: Path) -> str:
    """Return an image's name without its ending."""
    ending = ending_of(path) or other_format(path)
    return composed(path.name[: len(path.name) - len(ending)])


def name_read(file: ImageFile) -> str:
    """Return an image's name without its ending; of ``T2_neck/scan.nii`` with the folder's."""
    folder, stem = file.path.parent.name, file.stem
    return stem if folder in file.parents else f"{folder} {stem}"


def part_behind_patient(path: Path) -> str:
    """Return the part of the body that an image's name or its folder of parts says; else nothing.

    Of ``Hals_T1`` it is nothing, as that is a person; ``MRT HWS/T1`` shows a neck.
    """
    stem, folder = stem_of(path), path.parent.name
    is_of_parts = all(part_in(word) or is_sequence_word(word) for word in lower_words(folder))
    behind = stem[len(read_name(stem, Modalities()).head) :]
    return part_in(behind) or (part_in(folder) if is_of_parts else "")


def names_of(paths: Sequence[Path]) -> str:
    """Return the names of files for a message, sorted."""
    return ", ".join(sorted(path.name for path in paths))


def composed(name: str) -> str:
    """Return a name with each letter and its accent as one character; macOS takes them apart.

    What a browser wrote as ``%20`` is a space. A ``%2F`` stays as it is: a case that is called by
    it would be written into another folder.
    """
    decoded = unquote(name)
    return unicodedata.normalize("NFC", name if "/" in decoded else decoded)


def lower_words(name: str) -> list[str]:
    """Return the words of a name in lower case."""
    return spaced(name).split()


def spaced(name: str) -> str:
    """Return a name's words between spaces, so that ``in`` compares whole words."""
    return f" {' '.join(re.findall(r'[^ _.-]+', name.lower()))} "


def shape_of(name: str) -> str:
    """Return a name without its numbers, as names of one collection are alike."""
    return re.sub(r"\d+", "#", name.lower())
