"""The table of what DICOM series were taken for, which people can edit and give back."""

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from mixmfl.dicom_cases import Given, Row
from mixmfl.errors import DataError
from mixmfl.modalities import Modalities
from mixmfl.spreadsheet import cell, from_cell

COLUMNS = (
    "case", "modality", "why", "series_number", "description", "protocol", "slices", "folder",
    "series_uid",
)  # fmt: skip


def mapping_table(rows: Iterable[Row], folder: Path) -> str:
    """Return the table of all series as CSV, for ``read_mapping``."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for row in rows:
        place, header = row.series.files[0].parent, row.series.header
        inside = place.relative_to(folder) if place.is_relative_to(folder) else place
        told = (row.case, row.modality or "-", row.why, header.number, header.description)
        place_of = (header.protocol, row.series.slices, str(inside), row.series.uid)
        writer.writerow(map(cell, (*told, *place_of)))
    return text.getvalue()


def read_mapping(path: Path, modalities: Modalities) -> dict[str, Given]:
    """Read case and modality by series from a table that ``mapping_table`` made and a user edited.

    Only the columns case, modality and series_uid are looked at; modality ``-`` sets a series
    aside, and an empty case leaves it where it was.

    Raises:
        DataError: The file cannot be read; or a modality is not known, a case's name is not fit
            for a file's, or a series is named twice.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            start = file.read(4096)
            file.seek(0)
            # spreadsheets of some countries write semicolons
            reader = csv.DictReader(file, delimiter=";" if ";" in start.split("\n")[0] else ",")
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error})") from None
    if not rows or not {"case", "modality", "series_uid"} <= set(rows[0][1]):
        raise DataError(
            f"{path}: needed is a table with columns case, modality and series_uid; "
            "mixmfl_predict --write-mapping makes one"
        )
    mapping: dict[str, Given] = {}
    for number, row in rows:
        case, told, uid = (
            from_cell((row[name] or "").strip()) for name in ("case", "modality", "series_uid")
        )
        place = f"{path}, line {number}"
        if not (case or told or uid):  # spreadsheets leave such lines behind
            continue
        modality = "" if told == "-" else modalities.find(told) if told else None
        if modality is None:
            raise DataError(
                f"{place}: {told!r} is no known modality; known are "
                f"{', '.join(modalities.names)}, and - sets a series aside"
            )
        if case.startswith(".") or set(case) & set("/\\") or not case.isprintable():
            raise DataError(
                f"{place}: a file cannot be named after case {case!r}; it may not begin with a dot "
                "nor hold a slash, a backslash or a control character"
            )
        if uid in mapping:
            raise DataError(f"{place}: series_uid {uid!r} is given before, in {mapping[uid].place}")
        mapping[uid] = Given(case, modality, place)
    return mapping
