import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mixmfl.core.process_memory import give_back_memory, peak_memory_mb, reset_peak

REPEATED = """
import resource
from mixmfl.core.process_memory import keep_freed_memory
{}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
bytearray(b"x") * 2**26
before = faults()
for _ in range(20):
    bytearray(b"x") * 2**26
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has this setting")
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    def faults(call: str) -> int:
        code = [sys.executable, "-c", REPEATED.format(call)]
        return int(subprocess.run(code, capture_output=True, text=True, check=True).stdout)

    assert faults("keep_freed_memory()") < faults("") / 2


@pytest.mark.skipif(sys.platform != "linux", reason="about the C library of Linux")
def test_memory_that_was_freed_is_given_back_to_the_system() -> None:
    held = [bytearray(100_000) for _ in range(3000)]  # below what the C library maps apart
    del held[1::2]  # whole pages between such as are still in use
    before = psutil.Process().memory_info().rss
    give_back_memory()
    assert before - psutil.Process().memory_info().rss > 100_000_000
    assert len(held) == 1500


@pytest.mark.skipif(sys.platform == "win32", reason="it has no such count")
def test_the_peak_of_memory_is_read_from_the_system_or_else_counted_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "status").write_text("VmPeak:\t   9999 kB\nVmHWM:\t    3072 kB\n")
    monkeypatch.setattr("mixmfl.core.process_memory._STATUS", tmp_path / "status")
    assert peak_memory_mb() == 3
    monkeypatch.setattr("mixmfl.core.process_memory._STATUS", tmp_path / "nothing")  # as on macOS
    monkeypatch.setattr("mixmfl.core.process_memory._CLEAR", tmp_path / "no folder" / "nothing")
    reset_peak()  # it cannot, and says nothing
    now = psutil.Process().memory_info().rss / 2**20
    assert now * 0.9 < peak_memory_mb() < now * 20
