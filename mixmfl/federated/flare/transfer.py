"""Parcels as FLARE carries them: one end offers a message, the other fetches it in pieces."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from nvflare.apis.signal import Signal
from nvflare.fuel.f3.cellnet.cell import Cell
from nvflare.fuel.f3.cellnet.fqcn import FQCN
from nvflare.fuel.f3.streaming.download_service import (
    Consumer,
    Downloadable,
    DownloadService,
    ProduceRC,
    download_object,
)

from mixmfl.core.errors import AggregationError
from mixmfl.core.files import unlinked_file
from mixmfl.core.process_memory import give_back_memory
from mixmfl.federated.messages import StoredMessage

PARCEL = "parcel"  # in a task and in a result: where the message itself can be fetched
_CHUNK = 4 * 2**20  # bytes that are fetched at once
_ANSWER_SECONDS = 30.0  # for a chunk; FLARE asks three times more
_DAYS = 7 * 86400.0  # a parcel is withdrawn by us; this is when FLARE would


class Download(Downloadable):
    """A parcel that one end of the network may fetch, piece by piece, until it is withdrawn."""

    def __init__(
        self,
        cell: Cell,
        parcel: StoredMessage,
        receiver: str,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        """Args: to whom alone it is given; called before the first piece is."""
        super().__init__(parcel)
        self.parcel = parcel
        self._receiver, self._begun = receiver, begun
        self.taken = False
        self._transaction = DownloadService.new_transaction(cell, _DAYS)
        number = DownloadService.add_object(self._transaction, self)
        self.address = {"from": cell.get_fqcn(), "number": number}

    def produce(self, state: Any, requester: str) -> tuple[str, bytes | None, dict[str, int]]:
        """Return a piece; FLARE calls it."""
        place = state["place"] if state else 0
        if FQCN.split(requester)[0] != self._receiver or type(place) is not int or place < 0:
            raise ValueError(f"{requester} asks for what is not there for it")
        if not self.taken:
            self.taken = True
            self._begun()
        piece = self.parcel.read(place, _CHUNK)
        if not piece:
            return ProduceRC.EOF, None, {}
        return ProduceRC.OK, piece, {"place": place + len(piece)}

    def withdraw(self) -> None:
        """Give it to nobody any more."""
        DownloadService.delete_transaction(self._transaction)


class _Pieces(Consumer):
    """Writes what is fetched to a file, up to a limit."""

    supports_pipelining = True  # the next piece is on its way while this one is written

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        super().__init__()
        self.problem = ""
        self._file, self._most, self._size = file, most_bytes, 0

    def consume(self, ref_id: str, state: dict[str, int], data: Any) -> dict[str, int]:
        """Take a piece; FLARE calls it."""
        self._size += len(data)
        if self._size > self._most:
            raise ValueError(f"more than {self._most} bytes came")
        self._file.write(data)
        return dict(state)

    def download_completed(self, ref_id: str) -> None:
        """Do nothing; FLARE wants it."""

    def download_failed(self, ref_id: str, reason: str) -> None:
        """Remember why."""
        self.problem = reason or "it cannot be fetched"


def fetch(
    cell: Cell, address: Any, sender: str, most_bytes: int, folder: Path, stop: Signal
) -> StoredMessage:
    """Fetch a parcel that the other end offers.

    Args:
        cell: Ours.
        address: As the other end tells it.
        sender: From whom alone it is fetched.
        most_bytes: That it may have.
        folder: On whose disk it comes.
        stop: Ends it early.

    Raises:
        AggregationError: It could not be fetched.
    """

    def write(path: Path) -> None:
        with path.open("wb") as file:
            pieces = _Pieces(file, most_bytes)
            download_object(
                *(source, str(address["number"]), _ANSWER_SECONDS, cell, pieces),
                abort_signal=stop,
            )
        if pieces.problem:
            raise AggregationError(pieces.problem)

    source = str(address.get("from")) if isinstance(address, dict) else ""
    if FQCN.split(source)[0] != sender or "number" not in address:
        raise AggregationError("it does not say where the message can be fetched")
    return StoredMessage(unlinked_file(folder, write))


def free_memory() -> None:
    """Free what is held by circles of references alone, now, and the files of messages with it.

    FLARE's tasks are such circles, and so is what training leaves. Python looks for them rarely
    where little is made anew: messages of several rounds would lie on disk.
    """
    gc.collect()
    give_back_memory()
