"""Messages as FLARE carries them: one end offers a message, the other fetches it in pieces."""

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

MESSAGE = "message"  # key in a task and in a result: where the message can be fetched
_CHUNK = 4 * 2**20  # bytes of one piece
_ANSWER_SECONDS = 30.0  # per piece; FLARE asks up to three times again
_DAYS = 7 * 86400.0  # we withdraw messages ourselves; FLARE would after this time


class Download(Downloadable):
    """A message that one end of the network may fetch in pieces, until it is withdrawn."""

    def __init__(
        self,
        cell: Cell,
        stored: StoredMessage,
        receiver: str,
        begun: Callable[[], None] = lambda: None,
    ) -> None:
        """Offer a message.

        Args:
            cell: This process's end of FLARE's network.
            stored: The message.
            receiver: Name of the only end that may fetch it.
            begun: Called before the first piece is given; none is given while it raises.
        """
        super().__init__(stored)
        self.stored = stored
        self._receiver, self._begun = receiver, begun
        self.taken = False
        self._transaction = DownloadService.new_transaction(cell, _DAYS)
        number = DownloadService.add_object(self._transaction, self)
        self.address = {"from": cell.get_fqcn(), "number": number}

    def produce(self, state: Any, requester: str) -> tuple[str, bytes | None, dict[str, int]]:
        """Return the next piece; FLARE calls this."""
        position = state["place"] if state else 0
        if FQCN.split(requester)[0] != self._receiver or type(position) is not int or position < 0:
            raise ValueError(f"{requester} asks for what is not there for it")
        if not self.taken:
            self._begun()  # where it raises nothing is given, now and when it is asked for again
            self.taken = True
        piece = self.stored.read(position, _CHUNK)
        if not piece:
            return ProduceRC.EOF, None, {}
        return ProduceRC.OK, piece, {"place": position + len(piece)}

    def withdraw(self) -> None:
        """Stop offering the message."""
        DownloadService.delete_transaction(self._transaction)


class _Pieces(Consumer):
    """A consumer that writes fetched pieces to a file, up to a limit.

    All pieces but the last are full, else an endless row of empty ones would stay below the limit.
    """

    supports_pipelining = True  # the next piece is on its way while this one is written

    def __init__(self, file: BinaryIO, most_bytes: int) -> None:
        super().__init__()
        self.problem = ""
        self._file, self._most, self._size, self._ended = file, most_bytes, 0, False

    def consume(self, ref_id: str, state: dict[str, int], data: Any) -> dict[str, int]:
        """Write a piece; FLARE calls this."""
        if self._ended:
            raise ValueError("a piece came after one that was not full")
        self._ended = len(data) < _CHUNK
        self._size += len(data)
        if self._size > self._most:
            raise ValueError(f"more than {self._most} bytes came")
        self._file.write(data)
        return dict(state)

    def download_completed(self, ref_id: str) -> None:
        """Do nothing; FLARE requires it."""

    def download_failed(self, ref_id: str, reason: str) -> None:
        """Store the reason."""
        self.problem = reason or "it cannot be fetched"


def fetch(
    cell: Cell, address: Any, sender: str, most_bytes: int, folder: Path, stop: Signal
) -> StoredMessage:
    """Fetch a message that the other end offers.

    Args:
        cell: This process's end of FLARE's network.
        address: The ``Download.address`` that the other end sent.
        sender: Name of the only end from which the message is fetched.
        most_bytes: Largest size that is accepted.
        folder: Folder on whose disk the message is stored.
        stop: Stops fetching when it is triggered.

    Raises:
        AggregationError: The message could not be fetched.
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
    """Collect reference cycles now, and with them the files of messages.

    FLARE's tasks are such cycles, and so is what training leaves. Python collects them rarely where
    few objects are created: messages of several rounds would lie on disk.
    """
    gc.collect()
    give_back_memory()
