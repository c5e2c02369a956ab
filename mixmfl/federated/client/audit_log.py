"""The record of all that left a site: lines are only added, and each has the digest of the last.

Whoever has the digest of a line can tell later whether anything before it was changed or removed.
"""

import hashlib
import io
import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from logging.handlers import SysLogHandler
from pathlib import Path
from typing import Any

from mixmfl.core.errors import DataError, PrivacyError
from mixmfl.core.files import SelfClosingFile, locked, only_files
from mixmfl.core.json_fields import is_whole
from mixmfl.core.strict_json import parse_json
from mixmfl.core.text import one_line

_MOST_BYTES = 10**18  # of a message

BEFORE_THE_FIRST = "0" * 64
"""What the first line has for the digest of the one before it."""

_LOCK_SECONDS = 30.0
_LONGEST_LINE = 2_000_000  # bytes, of which the names of a job's labels may be 1,200,000


@dataclass(frozen=True)
class AuditLog:
    """A site's record of what left it.

    Attributes:
        file: Where it lasts: a JSON object per line.
        syslog: Where each line is sent, too: ``host:port``, or the path of a socket; None:
            nowhere.
    """

    file: Path
    syslog: str | None = None

    def add(self, what: str, **fields: Any) -> None:
        """Add a line, on disk when this returns.

        Args:
            what: What happened, such as ``"sent"``.
            fields: What else is known of it.

        Raises:
            PrivacyError: It cannot be recorded, or is longer than what is read back; then it must
                not happen.
        """
        self.file.parent.mkdir(parents=True, exist_ok=True)
        busy = PrivacyError(
            f"{self.file}: another process has been writing to it for {_LOCK_SECONDS:g} s"
        )
        with locked(self.file.with_name(f"{self.file.name}.lock"), _LOCK_SECONDS, busy):
            number, previous = self._last()
            now = datetime.now(timezone.utc).isoformat(timespec="seconds")
            entry = {"number": number + 1, "time": now, "what": what, **fields}
            line = json.dumps({**entry, "previous": previous}).encode()
            if len(line) >= _LONGEST_LINE:
                raise PrivacyError(
                    f"{self.file}: what is to be recorded of {one_line(what)} has {len(line)} "
                    f"bytes; {_LONGEST_LINE} at most, and nothing leaves without a record"
                )
            try:
                self._tell(f"{line.decode()} sha256 {_digest(line)}")
                end = os.open(self.file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
                with os.fdopen(end, "ab", buffering=0) as file:
                    self._append(file, line + b"\n")
            except OSError as error:
                where = f"{self.file}{f' or syslog {self.syslog}' if self.syslog else ''}"
                raise PrivacyError(
                    f"{where}: cannot be written ({error}), and nothing leaves without a record"
                ) from None

    @staticmethod
    def _append(file: io.FileIO, line: bytes) -> None:
        """Add a line to the file on disk, or nothing, as where the disk is full in the middle."""
        size = os.fstat(file.fileno()).st_size
        try:
            if file.write(line) < len(line):
                raise OSError("the disk is full")
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)
            raise

    def _last(self) -> tuple[int, str]:
        """Return the number of the last line, and its digest."""
        if not self.file.exists():
            return 0, BEFORE_THE_FIRST
        with SelfClosingFile(self.file) as file:
            file.seek(max(0, self.file.stat().st_size - _LONGEST_LINE))
            line, rest = [b"", *(file.read() or b"").split(b"\n")][-2:]
        number = _fields(line).get("number")
        if rest or type(number) is not int:
            raise PrivacyError(
                f"{self.file}: its last line is cut off or damaged, so nothing leaves. Keep the "
                "file under another name; the next line then begins another"
            )
        return number, _digest(line)

    def _tell(self, text: str) -> None:
        if self.syslog is None:
            return
        handler = _Strict(address=address_of(self.syslog))
        try:
            handler.emit(logging.LogRecord("mixmfl", logging.INFO, "", 0, text, None, None))
        finally:
            handler.close()


@dataclass(frozen=True)
class Verified:
    """A record that is whole.

    Attributes:
        lines: Number of lines.
        begin: Time of the first line.
        end: Time of the last line.
        sent: Number of messages that left.
        sent_bytes: Their bytes.
        head: Digest of the last line; two records that end in the same are the same.
    """

    lines: int
    begin: str
    end: str
    sent: int
    sent_bytes: int
    head: str


def verify_log(file: Path) -> Verified:
    """Check that no line of a record was changed, removed or put in between.

    Only the digest of the last line shows whether lines are missing at the end, so compare it with
    what is known from elsewhere.

    Raises:
        DataError: One was, or the file cannot be read.
    """
    previous, count, sent, times = BEFORE_THE_FIRST, 0, list[int](), list[str]()
    for count, line in enumerate(_lines(file), start=1):
        entry = _fields(line.removesuffix(b"\n"))
        if not line.endswith(b"\n") or entry.get("number") != count:
            raise DataError(f"{file}: line {count} is damaged or is not the one of this number")
        if entry.get("previous") != previous:
            raise DataError(
                f"{file}: line {count} was not written after line {count - 1} as it is now: one of "
                "them was changed, removed or put in"
            )
        previous = _digest(line.removesuffix(b"\n"))
        times.append(one_line(entry.get("time")))
        if entry.get("what") == "sent":
            size: Any = entry.get("bytes")
            if not is_whole(size, 0, _MOST_BYTES):
                raise DataError(f"{file}: line {count} has no number of bytes that were sent")
            sent.append(size)
    if not count:
        raise DataError(f"{file}: is empty")
    return Verified(count, times[0], times[-1], len(sent), sum(sent), previous)


def address_of(syslog: str) -> str | tuple[str, int]:
    """Return the address of a syslog as Python's handler takes it.

    Raises:
        DataError: It is neither ``host:port`` nor a path.
    """
    host, _, port = syslog.rpartition(":")
    if syslog.startswith("/"):
        return syslog
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise DataError(f"--syslog {syslog}: host:port is needed, or a socket such as /dev/log")
    return host, int(port)


class _Strict(SysLogHandler):
    """A handler that does not pass over what it cannot send."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  (logging's name)
        """Raise what was just caught."""
        raise


def _lines(file: Path) -> Iterator[bytes]:
    try:
        with open(file, "rb", opener=only_files) as opened:
            while line := opened.readline(_LONGEST_LINE):
                yield line
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None


def _fields(line: bytes) -> dict[str, Any]:
    try:
        entry = parse_json(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()
