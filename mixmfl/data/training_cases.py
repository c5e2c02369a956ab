"""The cases that a site trains on: as prediction finds them, each with its mask.

Masks of DICOM cases are NIfTI files, in the case's folder or of its name, or DICOM Segmentation
objects among its series.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from mixmfl.core.errors import Refused
from mixmfl.data.accounting import LABEL
from mixmfl.data.cases import Case, Found, Given, account, find_cases, holds_images
from mixmfl.data.dicom.cases import FoundDicom, Row, combine, find_dicom, split_mapping
from mixmfl.data.dicom.masks import MODALITY, DrawnMask
from mixmfl.data.dicom.series import Series
from mixmfl.data.image import Source
from mixmfl.data.labels import Labels
from mixmfl.data.modalities import Modalities

MAPPING = "mapping.csv"
"""A site's own table of what its files and DICOM series are, in its folder; see ``mapping``."""

_NO_MASK = "no label, which training needs"


def find_training_cases(
    folder: Path,
    modalities: Modalities,
    describe: Callable[[], Labels],
    mapping: Mapping[str, Given] | None = None,
) -> tuple[Found, tuple[Row, ...]]:
    """Find the cases of a folder that have a mask; the others are refused.

    Args:
        folder: Of a site.
        modalities: The words for modalities.
        describe: Returns what the values of its masks mean; asked where there is DICOM.
        mapping: What a user's table says, by DICOM series and by file.

    Returns:
        The cases, and what every DICOM series was taken for.

    Raises:
        DataError: As ``cases.find_all``; or nothing says what the values of masks mean.
    """
    described = [folder / name for name in ("dataset.json", MAPPING)]
    of_files, of_series = split_mapping(mapping)
    dicom = find_dicom(folder, modalities, of_series) if folder.is_dir() else FoundDicom((), (), ())
    if not (dicom.rows or dicom.damaged):
        found = find_cases(folder, modalities, labels_needed=True, mapping=of_files)
        return account(found, described), ()
    found = Found((), (), (), "DICOM", None, folder)
    if holds_images(folder) or of_files:
        found = find_cases(folder, modalities, mapping=of_files)
        found = dataclasses.replace(found, layout=f"DICOM, and {found.layout}")
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
    """Return what a series is taken for in training, where a segmentation is a mask."""
    if row.series.header.modality.upper() != MODALITY or row.why == "mapping":
        return row
    return dataclasses.replace(row, modality=LABEL, why="is a DICOM segmentation")


def _segmentations(case: Case, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.case == case.name and row.modality == LABEL]


def _masks_of(
    case: Case, cases: Sequence[Case], masks: Mapping[str, Path], folder: Path
) -> dict[str, Path]:
    """Return the masks, by the name that they were found by, that are of a DICOM case.

    A mask is of the case whose name it has, or which has a folder of that name; else of the only
    case with images in the nearest folder around it that holds any.
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
    """Return the case's name, and those of the folders that all of its images lie below."""
    levels: dict[int, set[str]] = defaultdict(set)
    for place in _places(case):
        for depth, part in enumerate(place.relative_to(folder).parts):
            levels[depth].add(part)
    return {case.name, *(next(iter(parts)) for parts in levels.values() if len(parts) == 1)}
