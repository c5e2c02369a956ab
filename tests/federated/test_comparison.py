"""Two configurations and their mean, compared on the sites' validation cases."""

import dataclasses
import json
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed import killed_after
from small import both_configurations, small_case, small_plans, stored_site
from small_federation import SETTINGS, Cases

from mixmfl.core.errors import AggregationError, ModelError, PlansError
from mixmfl.core.records import json_of
from mixmfl.data.cases import Case
from mixmfl.data.image import InMemory
from mixmfl.data.load_case import load_case
from mixmfl.evaluation.small_components import ComponentSums, dice_by_share
from mixmfl.federated.client.client import Client
from mixmfl.federated.client.task_checks import check_run_task, check_task, forms_of
from mixmfl.federated.messages import Message, decode, encode
from mixmfl.federated.server.beginning import Beginning
from mixmfl.federated.server.checkpoint import load_state_of
from mixmfl.federated.server.comparison import (
    add_compared,
    comparison_tasks,
    load_comparison,
    read_compared,
    read_compared_sites,
)
from mixmfl.federated.server.coordinator import Answers, Ask, Variation
from mixmfl.federated.server.run import Run, choose_round
from mixmfl.federated.simulation import simulate
from mixmfl.federated.state import BESIDE, Site
from mixmfl.inference.case_preparation import prepare
from mixmfl.inference.model_file import load_model
from mixmfl.inference.segmentation import Options, segment

PLANS = both_configurations()
CASES: Mapping[str, Cases] = {"north": [("t1", "t2")] * 3, "south": [("t1",)] * 2}
ONE_ROUND = dataclasses.replace(SETTINGS, rounds=1)


def sites_of(work: Path, configuration: str) -> list[Site]:
    return [
        stored_site(work, name, cases, PLANS, configuration, validation=1)
        for name, cases in CASES.items()
    ]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Runs of both configurations, and the sites of the second."""

    flat: Run
    full: Run
    sites: list[Site]

    def tasks(self) -> dict[str, Message]:
        states = (load_state_of(run, choose_round(run, "best")) for run in (self.full, self.flat))
        return comparison_tasks(self.full, self.flat, list(CASES), *states)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("pair")
    flat = simulate(PLANS, sites_of(folder, "2d"), ONE_ROUND, "0", folder / "2d")
    sites = sites_of(folder, "3d_fullres")
    settings = dataclasses.replace(ONE_ROUND, configuration="3d_fullres")
    full = simulate(PLANS, sites, settings, "0", folder / "3d", beside=flat.folder)
    return Pair(flat, full, sites)


def test_what_sites_measure_is_what_prediction_does(pair: Pair) -> None:
    """Segment each validation case by the exported models alone, and by both."""
    models = [load_model(run.folder / "model.safetensors") for run in (pair.flat, pair.full)]
    compared = load_comparison(pair.full, pair.flat)
    assert compared is not None
    as_stored = np.diag([-1.0, -1.0, 1.0, 1.0])  # no axis is turned
    for candidate, used in {"2d": models[:1], "3d_fullres": models[1:], "ensemble": models}.items():
        expected = dict.fromkeys(PLANS.labels.foreground, 0.0)
        for name, cases in CASES.items():
            seed = zlib.crc32(f"{name} {len(cases) - 1}".encode())
            images, truth = small_case(cases[-1], seed, (10, 20, 18))
            sources: dict[str, Any] = {n: InMemory(i.T, as_stored) for n, i in images.items()}
            prepared = prepare(load_case(Case("a", sources)), [model.recipe for model in used])
            mask = segment(used, prepared, Options(step=1.0, small_parts={})).indices
            for label, dice in dice_by_share(mask, truth, PLANS.labels.consecutive()).items():
                expected[label] += dice[0]
        assert expected["core"] + expected["lesion"] > 0
        measured = {label: sums.dice for label, sums in compared[candidate].items()}
        assert measured == pytest.approx(expected, abs=0.01), candidate
        assert {sums.cases for sums in compared[candidate].values()} == {2}


def test_what_was_compared_is_kept_until_a_model_is_another(pair: Pair) -> None:
    file = pair.full.folder / "comparison.json"
    written = file.stat().st_mtime_ns
    again = Beginning(resume=True)
    run = simulate(
        *(PLANS, pair.sites, pair.full.settings, "0", pair.full.folder),
        beginning=again,
        beside=pair.flat.folder,
    )
    assert file.stat().st_mtime_ns == written
    content = json.loads(file.read_text())
    assert content["rounds"] == {"2d": 1, "3d_fullres": 1}
    file.write_text(json.dumps({**content, "rounds": {"2d": 2, "3d_fullres": 1}}))
    assert load_comparison(run, pair.flat) is None
    file.write_text(json.dumps({**content, "components": {"4d": {}}}))
    with pytest.raises(ModelError, match=r"comparison.json: components: .*4d"):
        load_comparison(run, pair.flat)
    file.write_text(json.dumps(content))


def test_a_comparison_without_a_site_is_completed_by_a_resume(pair: Pair, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair.full.folder, tmp_path / "3d"))
    file = folder / "comparison.json"
    whole = json.loads(file.read_text())
    assert list(whole["sites"]) == ["north", "south"]

    def absent(*away: str) -> dict[str, Any]:
        """Resume while sites are away, and return what is recorded."""
        asked: list[str] = []

        def between(_: Run, ask: Ask) -> Ask:
            def here(tasks: Mapping[str, Message]) -> Answers:
                asked.extend(tasks)
                return ask({site: task for site, task in tasks.items() if site not in away})

            return here

        simulate(
            *(PLANS, pair.sites, pair.full.settings, "0", folder),
            beginning=Beginning(resume=True),
            beside=pair.flat.folder,
            variation=Variation(between=between),
        )
        return {"asked": asked, **(json.loads(file.read_text()) if file.is_file() else {})}

    file.unlink()
    assert absent("north", "south") == {"asked": ["north", "south"]}
    part = absent("north")
    assert part["components"] == part["sites"]["south"]
    assert absent("north")["asked"] == ["north"]  # south has answered, and nothing is lost
    assert absent() == {"asked": ["north"], **whole}
    assert absent()["asked"] == []


def test_a_comparison_that_was_killed_is_whole_or_not_there(pair: Pair, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pair.full.folder, tmp_path / "3d"))
    file = folder / "comparison.json"
    whole, changes = json.loads(file.read_text()), 0
    while True:
        file.unlink(missing_ok=True)
        with killed_after(changes) as made:
            simulate(
                *(PLANS, pair.sites, pair.full.settings, "0", folder),
                beginning=Beginning(resume=True),
                beside=pair.flat.folder,
            )
        assert not file.exists() or json.loads(file.read_text()) == whole
        if not made.killed:
            break
        changes += 1
    assert changes > 3
    assert json.loads(file.read_text()) == whole


def answered(pair: Pair, site: Site, task: Message) -> Message:
    """Return what a site replies to a task that it has checked."""
    settings, travelled = pair.full.settings, decode(encode(task))
    check_task(travelled)
    check_run_task(travelled, PLANS, settings, site, forms_of(PLANS, settings))
    return decode(encode(Client(site, PLANS, settings).handle(travelled, {}).reply))


def test_nothing_of_few_patients_leaves(pair: Pair) -> None:
    north = pair.sites[0]
    task = pair.tasks()["north"]
    sent = answered(pair, north, task).record["components"]
    assert {sums["cases"] for by_label in sent.values() for sums in by_label.values()} == {1}
    careful = dataclasses.replace(north, validation_cases=2)
    sent = answered(pair, careful, task).record["components"]
    nothing = json_of(ComponentSums())
    assert all(sums == nothing for by_label in sent.values() for sums in by_label.values())


def test_a_case_of_one_configuration_alone_is_not_compared(pair: Pair, tmp_path: Path) -> None:
    """Its site splits other cases into folds there, and any of them may have trained."""
    task = pair.tasks()["north"]
    cases = CASES["north"]
    site = stored_site(tmp_path, "north", cases, PLANS, "3d_fullres", validation=1)
    for stored in (cases[:2], [*cases[:2], ("t1",)]):
        stored_site(tmp_path, "north", stored, PLANS, "2d")
        reply = answered(pair, site, task)
        compared = read_compared_sites(pair.full, {"north": reply})
        assert add_compared([compared["north"]]) == {"2d": {}, "3d_fullres": {}, "ensemble": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beside": "3d_fullres"}, "beside: '3d_fullres' is the run's own configuration"),
        ({"beside": "4d"}, "beside: is '4d'"),
        ({"round": 7}, "round: is 7"),
        ({"modalities": ["t1", "pet"]}, "modalities"),
    ],
)
def test_a_strange_task_is_refused(pair: Pair, change: dict[str, Any], message: str) -> None:
    task = pair.tasks()["north"]
    strange = dataclasses.replace(task, record={**task.record, **change})
    with pytest.raises(AggregationError, match=message):
        answered(pair, pair.sites[0], strange)


def test_tensors_that_neither_network_has_are_refused(pair: Pair) -> None:
    task = pair.tasks()["north"]
    name = next(name for name in task.tensors if name.startswith(BESIDE))
    own = next(name for name in task.tensors if not name.startswith(BESIDE))
    rest = {key: tensor for key, tensor in task.tensors.items() if key != name}
    for tensors, message in (
        (rest, "is missing"),
        ({**rest, name: task.tensors[own].clone()[None]}, "the run's plans have"),
        ({**task.tensors, "beside.other": task.tensors[own].clone()}, "have no tensor 'other'"),
    ):
        with pytest.raises(AggregationError, match=message):
            answered(pair, pair.sites[0], dataclasses.replace(task, tensors=tensors))


def test_plans_of_one_configuration_compare_nothing(pair: Pair) -> None:
    full, settings = small_plans(patch=(8, 16, 16)), pair.full.settings
    task = pair.tasks()["north"]
    with pytest.raises(PlansError, match="2d"):
        check_run_task(task, full, settings, pair.sites[0], forms_of(full, settings))


def test_sums_that_cannot_be_true_are_left_out(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    replies = {site.name: answered(pair, site, pair.tasks()[site.name]) for site in pair.sites}
    good = replies["north"].record["components"]
    for components, message in (
        ({**good, "2d": {**good["2d"], "core": {**good["2d"]["core"], "dice": 1.5}}}, "no cases"),
        ({name: good[name] for name in ("2d", "3d_fullres")}, "ensemble is missing"),
    ):
        record = {**replies["north"].record, "components": components}
        bad = dataclasses.replace(replies["north"], record=record)
        with pytest.raises(AggregationError, match=message):
            read_compared("north", bad, 1, PLANS)
        caplog.clear()
        compared = read_compared_sites(pair.full, {**replies, "north": bad})
        assert "north: its comparison of configurations is left out" in caplog.text
        assert compared == {"south": read_compared("south", replies["south"], 1, PLANS)}
