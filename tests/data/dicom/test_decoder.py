"""Compressed planes are decoded by a process that a bad file cannot take others with."""

from pathlib import Path
from typing import IO, Any

import numpy as np
import pydicom
import pytest
from pydicom.data import get_testdata_file

from mixmfl.core.errors import DataError
from mixmfl.data.dicom import decoder
from mixmfl.data.dicom.pixels import read_planes

COMPRESSED, PLAIN = (
    Path(str(get_testdata_file(f"{name}.dcm", download=False)))
    for name in ("MR_small_jp2klossless", "MR_small")
)


def test_a_file_at_which_the_decoder_ends_is_refused_and_the_next_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert np.array_equal(read_planes(COMPRESSED), read_planes(PLAIN))
    first = decoder._DECODER._process
    assert first is not None

    def ended(answers: IO[bytes]) -> bytes:
        """End the process, as a library does that fails at a file."""
        first.kill()
        first.wait()
        return answers.read()

    with monkeypatch.context() as patch:
        patch.setattr(decoder, "_line", ended)
        with pytest.raises(DataError, match=r"jp2klossless\.dcm: its pixels cannot be read"):
            read_planes(COMPRESSED)
    assert np.array_equal(read_planes(COMPRESSED), read_planes(PLAIN))
    assert decoder._DECODER._process is not first


def waiting() -> IO[bytes]:
    """Return where the process answers that nobody has asked for anything."""
    process = decoder._DECODER._process
    assert process is not None
    assert process.stdout is not None
    return process.stdout


def test_a_decoder_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder, "_SECONDS", 1e-6)
    # nothing is asked, so that no answer comes
    monkeypatch.setattr(decoder._DECODER, "_ask", lambda *_: decoder._line(waiting()))
    with pytest.raises(DataError, match=r"took longer than 1e-06 s"):
        read_planes(COMPRESSED)


def test_planes_that_are_larger_than_the_header_says_are_refused_within_its_memory(
    tmp_path: Path,
) -> None:
    """A stream of JPEG 2000 says again how large its image is: here a hundred thousand squared."""
    content = pydicom.dcmread(COMPRESSED)
    stream = bytearray(next(pydicom.encaps.generate_frames(content.PixelData, number_of_frames=1)))
    at = stream.index(b"\xff\x51") + 6  # where its size is said, of the image and of its tiles
    for place in (at, at + 4, at + 16, at + 20):
        stream[place : place + 4] = (100_000).to_bytes(4, "big")
    content.PixelData = pydicom.encaps.encapsulate([bytes(stream)])
    content.save_as(tmp_path / "large.dcm")
    with pytest.raises(DataError, match=r"large\.dcm: "):
        read_planes(tmp_path / "large.dcm")


def test_what_is_no_answer_of_the_decoder_is_no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[Any] = [b"[]\n", b"{}\n", b'{"shape": [1, 64, 64], "type": "O"}\n', b"\xff\n"]
    for answer in answers:
        monkeypatch.setattr(decoder, "_line", lambda _, line=answer: line)
        with pytest.raises(DataError, match="its pixels cannot be read"):
            read_planes(COMPRESSED)
