"""The folders of a federation: which sites there are, and which cases each of them has."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from mixmfl.core.errors import DataError, NoImageError
from mixmfl.core.files import absolute, json_digest, read_json, sha256
from mixmfl.core.json_fields import is_word
from mixmfl.core.text import can_name_file, quoted
from mixmfl.data.cases import Case, FolderCases
from mixmfl.data.channel_numbers import only_data_set
from mixmfl.data.dataset_card import DatasetCard, find_card
from mixmfl.data.dicom.cases import Row
from mixmfl.data.image import files_of
from mixmfl.data.image_files import images_below
from mixmfl.data.labels import Labels, read_dataset_json, read_site_labels
from mixmfl.data.load_case import AlignmentOptions
from mixmfl.data.mapping import read_mapping
from mixmfl.data.modalities import Modalities
from mixmfl.data.training_cases import MAPPING, find_training_cases
from mixmfl.data.unknown_modalities import check_most_are_known
from mixmfl.planning.brains import BrainExtraction
from mixmfl.planning.heads import NONE

_LONGEST_NAME = 80


@dataclass(frozen=True)
class SiteFolder:
    """A site's cases and what its labels mean.

    Attributes:
        name: Name of the site and of its folder.
        found: Cases of the site, and what was refused.
        labels: What the site's labels mean.
        alignment: What to do with images of a case that are on different grids.
        rows: How every DICOM series was read.
        card: What dataset.json in the folder, or beside it, says of the cases.
        brains: How brains are extracted here, if they are.
    """

    name: str
    found: FolderCases
    labels: Labels
    alignment: AlignmentOptions
    rows: tuple[Row, ...]
    card: DatasetCard
    brains: BrainExtraction = field(default_factory=BrainExtraction)


@dataclass(frozen=True)
class FederationFolder:
    """The sites in a federation's folder.

    Attributes:
        sites: Sites that train, in the order of their names.
        tests: Cases that test a training site's models, under that site's name.
        held_out: Names of folders that neither train nor test a site.
    """

    sites: tuple[SiteFolder, ...]
    tests: tuple[SiteFolder, ...]
    held_out: tuple[str, ...]


def find_sites(
    federation: Path,
    modalities: Modalities | None = None,
    labels_file: Path | None = None,
    alignment: AlignmentOptions | None = None,
) -> FederationFolder:
    """Find the training sites of a federation: its folders, without those that do not train.

    ``federation.json`` may name these: ``{"held_out": ["unseen"], "tests": {"north":
    "north_tests"}}``. Folders in ``tests`` hold the test cases of a training site.

    Raises:
        DataError: No site, or one without a usable case or label description.
    """
    if not federation.is_dir():
        raise DataError(
            f"{federation}: there is no such folder; one with a folder per site is needed"
        )
    held_out, tests = _kept_from_training(federation / "federation.json")
    subfolders = {path.name: path for path in sorted(federation.iterdir()) if path.is_dir()}
    for name in (*held_out, *tests.values()):
        if name not in subfolders:  # a slip of the pen would train on what it meant
            raise DataError(
                f"{federation / 'federation.json'}: holds out {name!r}, but there is no such "
                "folder; fix or remove the name"
            )
    excluded = {*held_out, *tests.values()}
    folders = {n: f for n, f in subfolders.items() if not n.startswith(".") and n not in excluded}
    if not folders:
        raise DataError(f"{federation}: holds no folder; one folder per site is needed")
    if strange := sorted(set(tests) - set(folders)):
        raise DataError(
            f"{federation / 'federation.json'}: tests: {strange[0]!r} is no site that trains; "
            f"these are: {', '.join(folders)}"
        )
    sites = []
    for name, folder in folders.items():
        try:
            sites.append(find_site(folder, modalities, labels_file, alignment))
        except NoImageError as error:
            listed = json.dumps({"held_out": [*held_out, name]})
            raise DataError(
                f"{error}\nEvery folder in {federation} is read as a site. Move this one away if "
                f"it is none, or name it in {federation / 'federation.json'}: {listed}"
            ) from None
    tested = [
        dataclasses.replace(
            find_site(subfolders[folder], modalities, labels_file, alignment), name=site
        )
        for site, folder in sorted(tests.items())
    ]
    return FederationFolder(tuple(sites), tuple(tested), held_out)


def find_site(
    folder: Path,
    modalities: Modalities | None = None,
    labels_file: Path | None = None,
    alignment: AlignmentOptions | None = None,
    mapping: Path | None = None,
) -> SiteFolder:
    """Find the training cases of one site.

    Labels are described by ``labels_file``, else by dataset.json in the folder or beside it. What
    DICOM series are may be corrected in a table, ``mapping``, else mapping.csv in the folder.

    Raises:
        DataError: There is no usable case, nothing says what its labels mean, or the folder has a
            name that no site has.
    """
    check_site_name(folder)
    known = modalities or Modalities()
    if mapping is None and (folder / MAPPING).is_file():
        mapping = folder / MAPPING
    corrections = read_mapping(mapping, known) if mapping else None
    labels_of = cache(partial(_labels_of, folder, labels_file))  # it may list the whole folder
    found, rows = find_training_cases(folder, known, labels_of, corrections)
    if not found.cases:
        if not rows:
            check_most_are_known([found], known)
        reasons = "\n".join(f"  {refused.name}: {refused.reason}" for refused in found.refused[:20])
        raise DataError(f"{folder}: holds no case that can be trained on\n{reasons}")
    return SiteFolder(
        absolute(folder).name,  # not resolve(): a link is named by itself, not by its target
        found,
        labels_of(),
        alignment or AlignmentOptions(),
        rows,
        find_card(folder),
    )


def check_site_name(folder: Path) -> None:
    """Check that a site can have the name of its folder, which terminals and files show.

    Raises:
        DataError: It cannot.
    """
    name = absolute(folder).name
    if len(name) > _LONGEST_NAME or not can_name_file(name):
        raise DataError(
            f"{quoted(name)}: is a folder of a site, and so the site's name; needed are 1 to "
            f"{_LONGEST_NAME} printable characters. Rename the folder"
        )


def _labels_of(folder: Path, labels_file: Path | None) -> Labels:
    if labels_file is not None:
        return Labels.load(labels_file)
    described = folder if read_dataset_json(folder) else only_data_set(folder, images_below(folder))
    return read_site_labels(described, absolute(folder).parent)


def _kept_from_training(file: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the folders held out, and the folder of test cases by site."""
    if not os.path.lexists(file):  # a link to nothing must not let all folders train
        return (), {}
    content = read_json(file)
    held_out, tests = content.get("held_out", []), content.get("tests", {})
    if (
        not set(content) <= {"held_out", "tests"}
        or not isinstance(held_out, list)
        or not isinstance(tests, dict)
        or not all(is_word(name, 255) for name in (*held_out, *tests.values()))
    ):
        raise DataError(
            f'{file}: holds {quoted(content, 200)}; {{"held_out": ["folder", …], "tests": '
            '{"site": "folder", …}} is what it may hold'
        )
    return tuple(held_out), tests


def origin(case: Case, site: SiteFolder, planned: str = "") -> str:
    """Return a digest of what a case is made from: its files' names, sizes and times, and plans."""
    parts: list[Any] = [planned, site.labels.to_json()]
    if site.alignment != AlignmentOptions():
        parts.append(dataclasses.asdict(site.alignment))
    if site.brains.tool != NONE:
        parts.append(dataclasses.asdict(site.brains))
    for kind, file in _files(case):
        if file.exists():  # a broken link is refused when it is read
            status = file.stat()
            parts.append([kind, str(file.resolve()), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def content(case: Case) -> str:
    """Return a digest of the bytes of a case's files, wherever these lie."""
    return json_digest(sorted([kind, sha256(file)] for kind, file in _files(case)))


def _files(case: Case) -> Iterator[tuple[str, Path]]:
    """Give each file of a case, with the modality or ``"label"`` that it belongs to."""
    for kind, source in sorted({**case.images, "label": case.label}.items()):
        files = files_of(source) if isinstance(source, Path) else getattr(source, "files", ())
        yield from ((kind, file) for file in files)
