"""The subjects of a BIDS data set that its table of participants excludes."""

import csv
import re
from collections.abc import Mapping
from pathlib import Path

from mixmfl.core.files import read_small

_TABLE = "participants.tsv"
_LONGEST = 4_000_000  # bytes
_EXCLUDED = re.compile(r"exclude[ds]?|excluded?_(?:subject|participant)|exclusion")
_INCLUDED = re.compile(r"include[ds]?|included?_(?:subject|participant)")
_YES = {"yes", "y", "true", "1", "1.0", "x", "excluded", "exclude"}
_NO = {"no", "n", "false", "0", "0.0", "excluded", "exclude"}


def excluded_subjects(folder: Path) -> Mapping[str, str]:
    """Return the subjects that participants.tsv of a data set excludes, each with the reason.

    A column such as ``excluded`` says yes of them, or one such as ``included`` no. What neither
    says, as a reason in words, excludes nobody.
    """
    try:
        content = read_small(folder / _TABLE, _LONGEST)
    except (OSError, ValueError):
        return {}
    lines = content.decode("utf-8-sig", errors="replace").splitlines()
    excluded = {}
    try:
        for row in csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE):
            for column, value in row.items():
                if not (isinstance(column, str) and isinstance(value, str)):
                    continue  # a line of other length
                name, answer = column.strip().casefold(), value.strip().casefold()
                is_out = _EXCLUDED.fullmatch(name) and answer in _YES
                if is_out or (_INCLUDED.fullmatch(name) and answer in _NO):
                    subject = (row.get("participant_id") or "").strip()
                    excluded[subject] = (
                        f"a subject whom {_TABLE} excludes ({column.strip()}: {value.strip()})"
                    )
    except csv.Error:
        return {}
    return excluded
