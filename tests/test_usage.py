import sys

import psutil
import pytest

from mixmfl.usage import give_back_memory


@pytest.mark.skipif(sys.platform != "linux", reason="about the C library of Linux")
def test_memory_that_was_freed_is_given_back_to_the_system() -> None:
    held = [bytearray(100_000) for _ in range(3000)]  # below what the C library maps apart
    del held[1::2]  # whole pages between such as are still in use
    before = psutil.Process().memory_info().rss
    give_back_memory()
    assert before - psutil.Process().memory_info().rss > 100_000_000
    assert len(held) == 1500
