"""With which sites a site's masked numbers were summed: the same in every round and run.

The server chooses who takes part in a round. Two sums whose sites differ by one tell the numbers
of that one: to the last bit where the round is the same, and else the better the more such sums
there are. So the first sum decides, and what differs from it is refused.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from mixmfl.core.declarations import entries
from mixmfl.core.errors import PrivacyError
from mixmfl.core.files import read_long_json, write_json
from mixmfl.core.records import read_value
from mixmfl.core.text import quoted, shorten
from mixmfl.federated.secure_aggregation.protocol import MOST_BLOCKS, BlockName
from mixmfl.federated.secure_aggregation.signatures import MOST_SITES, SiteName

_Record = Annotated[
    Mapping[BlockName, Annotated[Sequence[SiteName], entries(1, MOST_SITES, distinct=True)]],
    entries(0, 5 * MOST_BLOCKS),  # over all runs
]


class SummedSites:
    """A site's record of the sites that it was summed with, by block."""

    def __init__(self, file: Path | None = None) -> None:
        """Args: file: where the record lasts; None: in memory, as in a simulation."""
        self._file = file
        self._known: Mapping[str, list[str]] = {}

    def agree(self, holders: Mapping[str, tuple[str, ...]]) -> None:
        """Check the sites of a sum, and record those of a block that was not summed before.

        Args:
            holders: Sites by block, sorted.

        Raises:
            PrivacyError: A block was summed over other sites before, or the record is damaged;
                nothing may be sent.
        """
        known = self._read()
        for block, sites in holders.items():
            if (before := known.get(block, list(sites))) != list(sites):
                remedy = (
                    f"If the hospitals agree to that, each removes {self._file}"
                    if self._file
                    else "Start a new run"
                )
                raise PrivacyError(
                    f"{quoted(block)} was summed over {shorten(before)} before, and is asked for "
                    f"over {shorten(list(sites))} now: the difference would be about the numbers "
                    f"of few sites, so nothing is sent. {remedy}"
                )
        self._known = {**known, **{block: list(sites) for block, sites in holders.items()}}
        if self._file and self._known != known:
            write_json(self._file, self._known)

    def _read(self) -> Mapping[str, list[str]]:
        if self._file is None:
            return self._known
        if not self._file.exists():
            return {}
        content = read_long_json(self._file, PrivacyError)
        known: Mapping[str, list[str]] = read_value(_Record, content, str(self._file), PrivacyError)
        return known
