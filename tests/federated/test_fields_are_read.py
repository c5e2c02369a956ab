"""What nothing reads is not sent: without any one of its fields a reply is another, or refused.

The kinds of masked rounds are in ``test_secure_aggregation``.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from small import LABELS, of_different_patients, small_case, write_preset
from small_federation import PLANS, SETTINGS, SiteStore

from mixmfl.core.errors import AggregationError, MixmflError
from mixmfl.core.records import json_of
from mixmfl.core.version import __version__
from mixmfl.evaluation.small_components import ComponentSums
from mixmfl.federated.client.client import Client
from mixmfl.federated.client.outbound import outgoing, outgoing_fingerprint
from mixmfl.federated.client.task_checks import check_task
from mixmfl.federated.client.training import outgoing_registration
from mixmfl.federated.flare import controller
from mixmfl.federated.messages import SENT, Message, encode
from mixmfl.federated.secure_aggregation.protocol import KINDS as MASKED_KINDS
from mixmfl.federated.server import orders
from mixmfl.federated.server.comparison import read_compared
from mixmfl.federated.server.merge import (
    merge_round,
    personalization_task,
    read_personal,
    train_task,
    validation_task,
)
from mixmfl.federated.server.subset_validation import measure_task, read_measured
from mixmfl.federated.server.update_checks import check_registration, check_validation
from mixmfl.federated.state import RunSettings, first_state, read_dice, register
from mixmfl.inference.model_folder import CANDIDATES
from mixmfl.planning.federation_plans import make_plans
from mixmfl.planning.fingerprint import Fingerprint, fingerprint_case, merge_fingerprints
from mixmfl.planning.plans import load_preset
from mixmfl.training.privacy_budget import Privacy

Case = tuple[Message, Callable[[Message], Any]]


@pytest.fixture(scope="module")
def cases(store: SiteStore, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Case]:
    """By name: a reply of every kind, and what the server makes of it."""
    site = store.site("north", [("t1", "t2"), ("t1",)], validation=1)
    ledger = tmp_path_factory.mktemp("privacy") / "ledger.json"
    # beyond what its cases need, so that the step is taken whatever it costs
    private = dataclasses.replace(site, privacy=Privacy(1e9, 1e-5, 1.0, 1.0, ledger))
    registrations = {"north": register(site)}
    start = first_state(PLANS, SETTINGS)
    client = Client(site, PLANS, SETTINGS)
    images = {"t1": torch.arange(1.0, 65.0).reshape(4, 4, 4).numpy()}
    box = (slice(0, 4), slice(0, 4), slice(0, 4))
    labels = torch.zeros(4, 4, 4, dtype=torch.int64).numpy()
    fingerprint = fingerprint_case(images, labels, (1.0, 1.0, 1.0), box)

    def merged(reply: Message) -> Any:
        state, shown = merge_round(start, {"north": reply}, registrations, PLANS, SETTINGS)
        if shown.rejected:
            raise MixmflError(shown.rejected["north"])
        return state.weights, shown

    def judged(reply: Message) -> Any:
        check_validation("north", reply, 0, None, PLANS)
        return read_dice(reply)

    def registered(reply: Message) -> Any:
        found = orders.read_registration("north", reply)
        check_registration("north", found, PLANS)
        return found

    train, judge = (
        train_task(start, registrations["north"]),
        validation_task(start, "north", registrations),
    )
    compared = dict.fromkeys(PLANS.labels.foreground, json_of(ComponentSums(1, 0.5, (0.5,) * 4)))
    measure = measure_task(start, "north", registrations)
    personal = personalization_task(start, "north", registrations)
    return {
        "fingerprint": (
            outgoing_fingerprint(
                fingerprint, PLANS.labels, site.minimum, of_different_patients(fingerprint)
            ),
            lambda m: orders.read_statistics("north", m),
        ),
        "preprocess": (
            outgoing("preprocess", {"cases": {"2d": [3, 1]}}),
            lambda m: orders.read_case_counts("north", m, ["2d"]),
        ),
        "join": (outgoing_registration(registrations["north"]), registered),
        "train": (client.handle(train, {}).reply, merged),
        "train, private": (Client(private, PLANS, SETTINGS).handle(train, {}).reply, merged),
        "validate": (client.handle(judge, {}).reply, judged),
        "measure": (
            client.handle(measure, {}).reply,
            lambda m: read_measured("north", m, 0, PLANS),
        ),
        "compare": (
            outgoing("compare", {"round": 0, "components": dict.fromkeys(CANDIDATES, compared)}),
            lambda m: read_compared("north", m, 0, PLANS),
        ),
        "personalize": (
            client.handle(personal, {}).reply,
            lambda m: read_personal("north", m),
        ),
        "failed": (
            outgoing("failed", {"error": "DataError", "version": __version__}),
            controller.failure_in,
        ),
        "refused": (
            outgoing("failed", {"version": __version__, "refused": "rounds 9"}),
            controller.failure_in,
        ),
    }


def result(read: Callable[[Message], Any], reply: Message) -> str:
    try:
        return repr(read(reply))
    except MixmflError as error:
        return f"refused: {error}"


def test_every_kind_that_a_site_sends_is_tried(cases: Mapping[str, Case]) -> None:
    tried = {reply.kind for reply, _ in cases.values()}
    assert tried == set(SENT) - {*MASKED_KINDS, "model"}  # a reply to model has no field
    for kind in tried:
        fields = {
            name for reply, _ in cases.values() if reply.kind == kind for name in reply.record
        }
        assert fields == set(SENT[kind]), kind


def test_without_any_field_a_reply_is_another_or_is_refused(cases: Mapping[str, Case]) -> None:
    fields = 0
    for name, (reply, read) in cases.items():
        whole = result(read, reply)
        assert not whole.startswith("refused"), (name, whole)
        for field in reply.record:
            rest = {key: value for key, value in reply.record.items() if key != field}
            assert result(read, dataclasses.replace(reply, record=rest)) != whole, (name, field)
            fields += 1
    assert fields > 12


def test_without_any_kind_of_tensor_a_reply_is_refused(cases: Mapping[str, Case]) -> None:
    reply, read = cases["train"]
    kinds = {name.split(".")[-1] if name.startswith("memory.") else name.split(".")[0]: name
             for name in reply.tensors}  # fmt: skip
    assert set(kinds) == {
        "tailored", "shared", "fusion", "decoder", "values", "counts"
    }  # fmt: skip
    for kind, name in kinds.items():
        rest = {other: tensor for other, tensor in reply.tensors.items() if other != name}
        found = result(read, dataclasses.replace(reply, tensors=rest))
        assert found.startswith("refused: ") and name in found, kind  # noqa: PT018


def test_every_field_of_a_registration_changes_what_the_server_does(store: SiteStore) -> None:
    registration = register(store.site("a", [("t1", "t2"), ("t1",)], validation=1))
    start = first_state(PLANS, SETTINGS)

    def done(change: Mapping[str, Any]) -> str:
        other = dataclasses.replace(registration, **change)
        tasks = train_task(start, other), validation_task(start, "a", {"a": other})
        return repr([(t.record, sorted(t.tensors), other.weights) for t in tasks]) + str(
            other.labelled
        )

    changes: list[dict[str, Any]] = [
        {"cases": 5},
        {"modality_cases": {"t1": 2}},
        {"validated": []},
        {"labelled": ["lesion"]},
    ]
    for change in changes:
        assert done(change) != done({}), change


def test_every_field_of_a_fingerprint_changes_the_plans(tmp_path: Path) -> None:
    preset = load_preset(str(write_preset(tmp_path / "tiny.json")))
    box = (slice(0, 20), slice(0, 40), slice(0, 36))
    body = merge_fingerprints(
        fingerprint_case(*small_case(("t1", "t2"), seed, (20, 40, 36)), (5.0, 1.0, 1.0), box)
        for seed in range(4)
    )
    slices = dataclasses.replace(body, slices={"Z": 2, "X": 2})  # its axes are those of `stacked`

    def planned(fingerprint: Fingerprint, **change: Any) -> Any:
        return make_plans(dataclasses.replace(fingerprint, **change), LABELS, preset).to_json()

    changes: dict[str, Any] = {
        "cases": 400,
        "modality_cases": {"t1": 4},
        "axes": ({"3x20": 4}, *body.axes[1:]),
        "stacked": ({"3x20": 4}, *body.stacked[1:]),
        "slices": slices.slices,
        "kept_share": {"0.30": 4},
        "heads": {"skull": 4},
        "subjects": {"patients": 4},
        "anatomy": {"brain": 4},
        "intensities": dict.fromkeys(body.intensities, (0,) * 60),
        "typical": {},
    }
    assert changes.keys() == {field.name for field in dataclasses.fields(Fingerprint)}
    for name, value in changes.items():
        assert any(planned(f, **{name: value}) != planned(f) for f in (body, slices)), name


def test_without_any_field_a_task_is_refused(store: SiteStore) -> None:
    registrations = {"north": register(store.site("north", [("t1",), ("t1",)], validation=1))}
    start = first_state(PLANS, SETTINGS)
    tasks = [
        train_task(start, registrations["north"]),
        *(
            make(start, "north", registrations)
            for make in (validation_task, measure_task, personalization_task)
        ),
    ]
    for task in tasks:
        check_task(task)
        for field in task.record:
            rest = {key: value for key, value in task.record.items() if key != field}
            with pytest.raises(AggregationError, match=field):
                check_task(dataclasses.replace(task, record=rest))


def test_every_setting_of_a_run_changes_what_a_site_sends(store: SiteStore) -> None:
    site = store.site("north", [("t1",), ("t1",)])
    start = dataclasses.replace(first_state(PLANS, SETTINGS), round=1)  # rounds count from there on
    task = train_task(start, register(site))

    def sent(**change: Any) -> bytes | str:
        settings = dataclasses.replace(SETTINGS, **change)
        try:
            return encode(Client(site, PLANS, settings).handle(task, {}).reply)
        except MixmflError as error:
            return f"refused: {error}"

    changes: dict[str, Any] = {
        "configuration": "3d_fullres",
        "seed": SETTINGS.seed + 1,
        "rounds": SETTINGS.rounds + 2,
        "local_steps": SETTINGS.local_steps + 1,
        "learning_rate": SETTINGS.learning_rate * 2,
        "minimum_cases": 3,
        "minimum_voxels": 10**6,
        "masked": True,
        "half_updates": False,
    }
    assert changes.keys() == {field.name for field in dataclasses.fields(RunSettings)}
    plain = sent()
    assert isinstance(plain, bytes)
    for name, value in changes.items():
        assert sent(**{name: value}) != plain, name
    assert sent() == plain
