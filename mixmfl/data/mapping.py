"""The table of what images and DICOM series were taken for; users can edit and pass it back."""

import csv
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import TextIO

from mixmfl.core.errors import DataError, Refused, why
from mixmfl.core.files import only_files
from mixmfl.core.spreadsheet import check_columns, from_cell, open_table, table
from mixmfl.core.text import can_name_file, quoted
from mixmfl.data.accounting import LABEL, OPEN, FileRecord, inside
from mixmfl.data.cases import MappingEntry
from mixmfl.data.dicom.cases import Row
from mixmfl.data.image import FILE_ENDINGS
from mixmfl.data.image_files import composed
from mixmfl.data.modalities import Modalities

COLUMNS = (
    "case", "modality", "why", "series_number", "description", "protocol", "slices", "folder",
    "series_uid", "file",
)  # fmt: skip

_READ = ("case", "modality", "series_uid", "file")

_LONGEST_LINE = 4096  # characters of the first line that is looked at
_LONGEST_CASE = 200
"""Characters of a case's name, so that names of its files fit on a disk."""


def mapping_table(
    rows: Iterable[Row],
    folder: Path,
    records: Iterable[FileRecord] = (),
    refused: Iterable[Refused] = (),
) -> str:
    """Return the table of all series and image files as CSV, in the form of ``read_mapping``.

    What is a question, as all files of refused cases are, has the modality ``?``, so that a table
    that nobody edited decides nothing.
    """
    refusals = {each.name: each.reason for each in refused}
    lines: list[tuple[object, ...]] = [COLUMNS]
    for row in rows:
        place, header = row.series.files[0].parent, row.series.header
        modality = row.modality or (OPEN if row.is_open else "-")
        about = (row.case, modality, row.why, header.number, header.description)
        where = (inside(place, folder), row.series.uid, "")
        lines.append((*about, header.protocol, row.series.slices, *where))
    for each in images_told(records):
        path = inside(each.path, folder)
        guess = f"{each.modality} by " if each.is_open and each.modality else ""
        modality = OPEN if each.is_open else each.modality or "-"
        asked = f"; {refusals[each.case]}" if each.is_open and each.case in refusals else ""
        about_file = (each.case, modality, f"{guess}{each.why}{asked}")
        lines.append((*about_file, "", "", "", "", "", "", path))
    return table(lines)


def images_told(records: Iterable[FileRecord]) -> list[FileRecord]:
    """Return the records of image files, which belong in the table."""
    return [each for each in records if each.path.name.lower().endswith(FILE_ENDINGS)]


def read_mapping(path: Path, modalities: Modalities) -> dict[str, MappingEntry]:
    """Read case and modality from a table that ``mapping_table`` made and a user edited.

    Only the columns case, modality, series_uid and file are read, and one of the last two is
    enough; modality ``-`` sets a series or file aside, ``label`` makes a file the segmentation,
    ``?`` leaves it as it is recognised, and an empty case keeps the present one.

    Returns:
        The entries, by the series' UID or the file's path below the folder of the cases.

    Raises:
        DataError: The file cannot be read; or a modality is unknown, a case's name is not valid
            as a file's, or a series or file is named twice.
    """
    try:
        with open_table(path, _encoding_of(path)) as file:
            reader = csv.reader(file, delimiter=_separator(file))
            columns = check_columns([name.strip().lower() for name in next(reader, [])])
            places = [columns.index(n) if n in columns else -1 for n in _READ]
            rows = [
                (reader.line_num, [row[at] if 0 <= at < len(row) else "" for at in places])
                for row in reader
                if any(row)  # spreadsheets leave empty lines behind
            ]
    except FileNotFoundError:
        raise DataError(
            f"{path}: there is no such table; mixmfl_predict --write-mapping makes one"
        ) from None
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: cannot be read as a table, for its letters are not in UTF-8; save it as "
            "CSV UTF-8"
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({why(error)})") from None
    if places[0] < 0 or places[1] < 0 or max(places[2:]) < 0 or not rows:
        raise DataError(
            f"{path}: needed is a table with columns case, modality, and series_uid or file; "
            "mixmfl_predict --write-mapping makes one"
        )
    mapping: dict[str, MappingEntry] = {}
    modality_of = cache(partial(_modality, modalities=modalities))
    for number, row in rows:
        case, modality_text, uid, name = (from_cell(text.strip()) for text in row)
        case = composed(case)  # as names of folders are read
        place = f"{path}, line {number}"
        if not (case or modality_text or uid or name):
            continue
        if bool(uid) == bool(name):
            raise DataError(
                f"{place}: series_uid {quoted(uid)} and file {quoted(name)} were found; needed is "
                "one of them"
            )
        modality = modality_of(modality_text, may_be_label=bool(name))
        if modality is None:
            raise DataError(
                f"{place}: {quoted(modality_text)} is no known modality (column modality); known "
                f"are {', '.join(modalities.names)}; - sets it aside, and ? leaves it open"
            )
        if case and not (can_name_file(case) and len(case) <= _LONGEST_CASE):
            raise DataError(
                f"{place}: a file cannot be named after case {quoted(case)} (column case); it may "
                "not begin with a dot nor hold a slash, a backslash or a control character, nor "
                f"have more than {_LONGEST_CASE} characters"
            )
        column, key = ("series_uid", uid) if uid else ("file", _path(name))
        if key in mapping:
            raise DataError(
                f"{place}: {column} {quoted(key)} is given before, in {mapping[key].place}"
            )
        mapping[key] = MappingEntry(case, modality, place, is_file=bool(name))
    return mapping


def _encoding_of(path: Path) -> str:
    """Return how a table is encoded: as Unicode text of a spreadsheet, or in UTF-8."""
    with open(path, "rb", opener=only_files) as file:
        return "utf-16" if file.read(2) in (BOM_UTF16_LE, BOM_UTF16_BE) else "utf-8-sig"


def _separator(file: TextIO) -> str:
    """Return what separates the fields of a table, which is then at the line with its columns.

    Spreadsheets of some countries write semicolons, or tabs, or ``sep=;`` as the first line.
    """
    first = file.readline(_LONGEST_LINE).strip('\r\n"')
    if re.fullmatch("(?i)sep=.", first):
        return first[-1]
    file.seek(0)
    return next((each for each in ";\t" if each in first), ",")


def _modality(text: str, may_be_label: bool, modalities: Modalities) -> str | None:
    """Return the modality of a cell; empty if the row is set aside, None if it is unknown."""
    if text.lower() in ("-", "ignore"):
        return ""
    if text == OPEN:
        return OPEN
    if text.lower() == LABEL and may_be_label:
        return LABEL
    return modalities.find(text) if text else None


def _path(name: str) -> str:
    """Return a path as ``inside`` writes it, from a path by a spreadsheet or Windows."""
    name = name.replace("\\", "/")
    return name.removeprefix("./")
