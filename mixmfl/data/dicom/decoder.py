"""Compressed planes are decoded in a process of their own, of which a bad file costs only itself.

The decoders of JPEG, JPEG-LS and JPEG 2000 are GDCM's, in C and C++. Here they have bounded memory
and time. Where they crash, that file is refused and the process is started again for the next. What
comes back is numbers of the announced shape; nothing of it is unpickled.
"""

import atexit
import json
import math
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError
from mixmfl.core.text import one_line

_SECONDS = 300.0
"""How long the planes of one file may take."""

_MEMORY = 2 << 30
"""Bytes of address space that decoding may take beyond four times the planes."""

_TYPES = ("|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<f4", "<f8")

_LONGEST_LINE = 10_000

# not from the current folder, which may hold a module of somebody's
_RUN = (
    "import sys\nsys.path[:] = [place for place in sys.path if place]\n"
    "from mixmfl.data.dicom.decoder import serve\nserve()"
)


class _Decoder:
    """The process that decodes, as seen from this one."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def decode(self, file: Path, name: str, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
        """Return the planes of a file; see ``decode``."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._process is not None
            watch = threading.Timer(_SECONDS, self._process.kill)
            watch.start()
            try:
                return self._ask(file, name, shape)
            except (OSError, EOFError, ValueError, TypeError, KeyError) as error:
                self.end()
                raise DataError(
                    f"{name}: its pixels cannot be read (the process that decodes them ended, took "
                    f"longer than {_SECONDS:g} s or needed more memory than they have: "
                    f"{one_line(error)}). Copy or export it again"
                ) from None
            finally:
                watch.cancel()

    def end(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                with suppress(OSError):  # what was to be sent is lost
                    pipe.close()  # type: ignore[union-attr]
            self._process = None

    def _start(self) -> None:
        self.end()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _RUN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def _ask(self, file: Path, name: str, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        request = {"file": str(file), "name": name, "numbers": math.prod(shape)}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        reply = json.loads(_line(self._process.stdout))
        if "error" in reply:
            raise DataError(one_line(reply["error"], 1000))
        if tuple(reply["shape"]) != shape:
            raise DataError(f"{name}: announces {shape[0]} planes, but holds {reply['shape']}")
        if reply["type"] not in _TYPES:
            raise ValueError("another type")
        planes = np.empty(shape, np.dtype(reply["type"]))
        room = planes.data.cast("B")
        while room:
            count = self._process.stdout.readinto(room)  # type: ignore[attr-defined]
            if not count:
                raise EOFError("no more came")
            room = room[count:]
        return planes


def decode(file: Path, name: str, shape: tuple[int, int, int]) -> npt.NDArray[Any]:
    """Decode the planes of a DICOM file, without rescaling.

    Args:
        file: The DICOM file.
        name: The file's name in messages.
        shape: ``(frames, Y, X)``, as the header announces.

    Raises:
        DataError: They cannot be decoded, or have another shape.
    """
    return _DECODER.decode(file, name, shape)


def serve() -> None:
    """Decode what is asked for on standard input; this is the main function of the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who asks
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # libraries may print
    from mixmfl.data.image import read_frames

    while line := sys.stdin.buffer.readline():
        request = json.loads(line)
        try:
            _bound_memory(_MEMORY + 4 * 8 * request["numbers"])
            planes = read_frames(Path(request["file"]), request["name"])
        except (DataError, MemoryError) as error:
            text = str(error) or f"{request['name']}: needs more memory than its pixels have"
            answers.write(json.dumps({"error": text}).encode() + b"\n")
        else:
            planes = np.ascontiguousarray(planes, planes.dtype.newbyteorder("<"))
            head = {"shape": planes.shape, "type": planes.dtype.str}
            answers.write(json.dumps(head).encode() + b"\n")
            answers.write(planes.data)
        answers.flush()


def _bound_memory(size: int) -> None:
    """Let this process have so many more bytes of address space, where the system can do that."""
    with suppress(ImportError, OSError, ValueError):  # Windows has no such bound
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        most = pages * resource.getpagesize() + size
        resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _line(pipe: IO[bytes]) -> bytes:
    line = pipe.readline(_LONGEST_LINE)
    if not line.endswith(b"\n"):
        raise EOFError("no answer came")
    return line


_DECODER = _Decoder()
atexit.register(_DECODER.end)
