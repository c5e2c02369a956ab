import subprocess
import sys

import pytest

REPEATED = """
import resource, torch
from mixmfl.usage import keep_freed_memory
{}
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.zeros(2**24)
before = faults()
for _ in range(20):
    torch.zeros(2**24)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone can be told")
def test_memory_that_was_freed_is_not_asked_for_again() -> None:
    def faults(call: str) -> int:
        code = [sys.executable, "-c", REPEATED.format(call)]
        return int(subprocess.run(code, capture_output=True, text=True, check=True).stdout)

    assert faults("keep_freed_memory()") < faults("") / 2
