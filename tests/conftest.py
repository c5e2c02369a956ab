"""What tests share: commands as users run them, a home of their own, and small federations."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from importlib.metadata import EntryPoint, entry_points
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from small import write_model
from small_federation import SiteStore

from mixmfl.core.errors import MixmflError
from mixmfl.core.pipeline import PrefetchProcess, reason_of
from mixmfl.federated.server import coordinator
from mixmfl.networks import norms

# what tests compute is too small for several threads, which would only wait for each other
torch.set_num_threads(1)
# where MONAI finds jsonschema, that builds a grammar of addresses with this, which takes seconds
sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]


def pytest_collection_finish() -> None:
    """Have Python not look for garbage in what was imported: it takes a third of a second."""
    gc.freeze()


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield folders that are not there yet: pytest takes longer to find names for its own."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def home(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep the user's registered model out of reach of tests."""
    folder = next(homes)
    folder.mkdir()
    monkeypatch.setenv("MIXMFL_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a small model's file, which tests only read."""
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(autouse=True, scope="session")
def undrawn() -> Iterator[None]:
    """Leave out the picture of every run; ``test_simulation`` has a run that is drawn."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coordinator, "draw_progress", lambda run, path: None)
        yield


class ReaderHere(PrefetchProcess):
    """A reader that works when its result is asked for."""

    def submit(self, job: Any) -> None:
        self._read = partial(self.function, lambda: None, self.constant, job)

    def result(self) -> Any:
        try:
            return self._read()
        except Exception as error:
            raise MixmflError(reason_of(error)) from None


@pytest.fixture(autouse=True)
def read_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have cases read in this process: one of its own takes longer to start than most tests."""
    monkeypatch.setattr("mixmfl.inference.predict_folder.PrefetchProcess", ReaderHere)


@pytest.fixture
def reading_process(monkeypatch: pytest.MonkeyPatch, read_here: None) -> None:
    """Have cases read in a process of its own, as users have it."""
    monkeypatch.setattr("mixmfl.inference.predict_folder.PrefetchProcess", PrefetchProcess)


@pytest.fixture(params=["compiled", "torch"])
def norm_part(request: pytest.FixtureRequest) -> Iterator[str]:
    """Have norms computed by the compiled part, then by torch; say by which."""
    if request.param == "compiled" and not norms.compiled():
        pytest.skip("the compiled part is not installed: no compiler was found")
    with norms.by_torch() if request.param == "torch" else nullcontext():
        yield request.param


@pytest.fixture
def command() -> Callable[..., int]:
    """Run a command as users do: by its entry point."""

    def run(name: str, *arguments: object) -> int:
        return entry_point(name).load()([str(argument) for argument in arguments])

    return run


@cache
def entry_point(name: str) -> EntryPoint:
    """Find a command; looking through all installed packages takes long."""
    (found,) = entry_points(group="console_scripts", name=name)
    return found


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> SiteStore:
    """Return what stores the cases of small federations, once for all tests."""
    return SiteStore(tmp_path_factory.mktemp("sites"))


@pytest.fixture(scope="session")
def real_mri() -> Path:
    """Return the folder of real MRI that ``MIXMFL_TEST_DATA`` names."""
    folder = os.environ.get("MIXMFL_TEST_DATA")
    if not folder:
        pytest.skip("MIXMFL_TEST_DATA names no folder with ms_mni/ and brats2015/")
    return Path(folder)
