"""Training, export and prediction that are killed between any two changes of their files.

Each is run again as a user would, and then has made the same files as one that nobody disturbed.
"""

import shutil
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import pytest
from killed import killed_after
from small import write_case
from small_federation import PLANS, SiteStore

from mixmfl.data.cases import find_cases
from mixmfl.federated.server.beginning import Beginning
from mixmfl.federated.server.export import export_model
from mixmfl.federated.server.run_record import holds_run
from mixmfl.federated.simulation import simulate
from mixmfl.federated.state import RunSettings
from mixmfl.inference.model_file import load_model
from mixmfl.inference.predict_folder import predict_folder

SETTINGS = RunSettings("2d", seed=0, rounds=3, local_steps=1, learning_rate=1e-2)
Job = Callable[[Path], object]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run."""
    folder = tmp_path_factory.mktemp("run")
    return _train(SiteStore(folder / "store"), folder / "run")


def _train(store: SiteStore, out: Path) -> Path:
    sites = [store.site("north", [("t1", "t2"), ("t1",)], 1)]
    simulate(PLANS, sites, SETTINGS, "0", out, beginning=Beginning(resume=holds_run(out)))
    return out


def _predict(run: Path, cases: Path, out: Path) -> None:
    model = load_model(run / "model.safetensors")
    list(predict_folder([model], find_cases(cases).cases, (), out))


def _made(out: Path, endings: tuple[str, ...]) -> dict[str, bytes | None]:
    """Return the files in a folder, with the content of those that must be the same bytes."""
    return {
        str(file.relative_to(out)): file.read_bytes() if file.name.endswith(endings) else None
        for file in out.rglob("*")
        if file.is_file()
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["training", "export", "prediction"])
def test_what_is_killed_and_run_again_has_made_the_same(
    name: str, run: Path, store: SiteStore, tmp_path: Path
) -> None:
    for number in range(2):
        write_case(tmp_path / "cases" / f"p{number}", ("t1", "t2"), number)
    jobs: dict[str, Job] = {
        "training": partial(_train, store),
        "export": lambda out: export_model(run, "best", out / "model.safetensors"),
        "prediction": partial(_predict, run, tmp_path / "cases"),
    }
    job, bytes_of = jobs[name], (".safetensors", ".nii.gz")
    whole = tmp_path / "whole"
    job(whole)
    expected = _made(whole, bytes_of)
    assert any(content for content in expected.values())
    for most in count():
        out = tmp_path / "out"
        with killed_after(most) as made:
            job(out)
        job(out)
        assert _made(out, bytes_of) == expected, f"killed after {most} changes"
        shutil.rmtree(out)
        if not made.killed:
            break
    assert most > {"training": 60, "export": 2, "prediction": 10}[name]
