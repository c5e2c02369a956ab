"""The cases that a site trains on: the same cases as for prediction, each with its mask.

Masks of DICOM cases are NIfTI files, in the case's folder or with its name, or DICOM Segmentation
objects among its series.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mixmfl.core.errors import Refused
from mixmfl.data.accounting import LABEL
from mixmfl.data.cases import Case, FolderCases, MappingEntry, account, find_cases
from mixmfl.data.dicom.cases import (
    DicomCases,
    Row,
    combine,
    find_dicom,
    find_files_beside,
    split_mapping,
)
from mixmfl.data.dicom.masks import MODALITY, DrawnMask
from mixmfl.data.dicom.series import Series
from mixmfl.data.image import Source
from mixmfl.data.labels import Labels
from mixmfl.data.modalities import Modalities

MAPPING = "mapping.csv"
"""The file in a site's folder with its own table of files and DICOM series; see ``mapping``."""

_NO_MASK = "no label, which training needs"


def find_training_cases(
    folder: Path,
    modalities: Modalities,
    describe: Callable[[], Labels],
    mapping: Mapping[str, MappingEntry] | None = None,
) -> tuple[FolderCases, tuple[Row, ...]]:
    """Find the cases of a folder that have a mask; refuse the others.

    Args:
        folder: The folder of a site.
        modalities: The words for modalities.
        describe: A function that returns the meaning of mask values; called if there is DICOM.
        mapping: The entries of a user's table, by DICOM series and by file.

    Returns:
        The cases, and the use of every DICOM series.

    Raises:
        DataError: The cases cannot be found (see ``dicom.cases.find_all``), or the meaning of mask
            values is not described.
    """
    described = [folder / name for name in ("dataset.json", MAPPING)]
    of_files, of_series = split_mapping(mapping)
    dicom = find_dicom(folder, modalities, of_series) if folder.is_dir() else DicomCases((), (), ())
    if not (dicom.rows or dicom.damaged):
        found = find_cases(folder, modalities, labels_needed=True, mapping=of_files)
        return account(found, described), ()
    found = find_files_beside(folder, modalities, of_files)
    labels, cases, why = describe(), [], {}
    taken: set[str] = set()
    rows = tuple(_as_mask(row) for row in dicom.rows)
    for case in dicom.cases:
        files = _masks_of(case, dicom.cases, found.masks, folder)
        taken |= files.keys()
        drawn = [_drawn(row.series, case, labels) for row in _segmentations(case, rows)]
        masks: list[Path | Source] = [*files.values(), *drawn]
        cases.append(dataclasses.replace(case, label=masks[0] if len(masks) == 1 else None))
        if len(masks) > 1:
            names = ", ".join(mask.name for mask in masks)
            why[case.name] = f"{len(masks)} masks: {names}; keep one of them"
    unused = tuple(item for item in found.refused if item.name not in taken)
    both = combine(
        dataclasses.replace(found, refused=unused),
        dataclasses.replace(dicom, cases=tuple(cases), rows=rows),
        described,
    )
    refused = [Refused(c.name, why.get(c.name, _NO_MASK)) for c in both.cases if not c.label]
    return dataclasses.replace(
        both,
        cases=tuple(case for case in both.cases if case.label),
        refused=tuple(sorted((*both.refused, *refused), key=lambda item: item.name)),
    ), rows


def _drawn(series: Series, case: Case, labels: Labels) -> DrawnMask:
    grids = {
        name: image.grid
        for name, image in case.images.items()
        if isinstance(image, Series) and image.grid is not None
    }
    return DrawnMask(series.files[0], grids, labels)


def _as_mask(row: Row) -> Row:
    """Return the row of a series in training, where a segmentation is a mask."""
    if row.series.header.modality.upper() != MODALITY or row.given:
        return row
    return dataclasses.replace(row, modality=LABEL, why="is a DICOM segmentation")


def _segmentations(case: Case, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.case == case.name and row.modality == LABEL]


def _masks_of(
    case: Case, cases: Sequence[Case], masks: Mapping[str, Path], folder: Path
) -> dict[str, Path]:
    """Return the masks of a DICOM case, by the names under which they were found.

    A mask belongs to the case that has its name, or a folder with its name; else to the only case
    with images in the nearest folder around it that holds any.
    """
    mine = {}
    for name, file in masks.items():
        owners = [each.name for each in cases if name in _names(each, folder)]
        around = [place for place in file.parents if place != folder and folder in place.parents]
        while not owners and around:
            place = around.pop(0)
            owners = [e.name for e in cases if any(p.is_relative_to(place) for p in _places(e))]
        if owners == [case.name]:
            mine[name] = file
    return mine


def _places(case: Case) -> set[Path]:
    """Return the folders that a case's images lie in."""
    return {file.parent for image in case.images.values() for file in getattr(image, "files", ())}


def _names(case: Case, folder: Path) -> set[str]:
    """Return the case's name, and the names of the folders that contain all of its images."""
    levels: dict[int, set[str]] = defaultdict(set)
    for place in _places(case):
        for depth, part in enumerate(place.relative_to(folder).parts):
            levels[depth].add(part)
    return {case.name, *(next(iter(parts)) for parts in levels.values() if len(parts) == 1)}
