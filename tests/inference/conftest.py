"""Tests of prediction read cases in this process.

The process of its own takes longer to start than the tests take; ``test_pipeline`` and the tests of
commands have it.
"""

from functools import partial
from typing import Any

import pytest

from mixmfl.core.errors import MixmflError
from mixmfl.core.pipeline import PrefetchProcess, reason_of


class ReaderHere(PrefetchProcess):
    """A reader that works when its answer is asked for."""

    def ask(self, job: Any) -> None:
        self._read = partial(self.function, lambda: None, self.constant, job)

    def answer(self) -> Any:
        try:
            return self._read()
        except Exception as error:
            raise MixmflError(reason_of(error)) from None


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixmfl.inference.predict_folder.PrefetchProcess", ReaderHere)
