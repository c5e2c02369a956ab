"""What leaves a site is what is listed, and nothing that rests on too few cases."""

import ast
import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from small import of_different_patients
from small_federation import PLANS, SETTINGS, SiteStore

from mixmfl.federated.client.outbound import outbound_fields, outbound_table, outgoing
from mixmfl.federated.client.outbound_preview import preview_outbound
from mixmfl.federated.client.subset_validation import measure_at_site
from mixmfl.federated.client.training import train_at_site, validate_at_site
from mixmfl.federated.messages import SENT, Message, encode
from mixmfl.federated.secure_aggregation.protocol import KINDS as MASKED_KINDS
from mixmfl.federated.server.merge import train_task, validation_task
from mixmfl.federated.server.subset_validation import measure_task
from mixmfl.federated.state import NETWORK_MINIMUM, Minimum, first_state, register
from mixmfl.networks.prototypes import Prototypes, withhold_rare
from mixmfl.planning.fingerprint import (
    Fingerprint,
    fingerprint_case,
    merge_fingerprints,
    withhold_small_counts,
)
from mixmfl.training.privacy_budget import Privacy


def fingerprint_of(*cases: tuple[str, ...], core: int = 1) -> Fingerprint:
    """Return the fingerprint of cases given by their modalities; the first ``core`` have a core."""
    parts = []
    for number, modalities in enumerate(cases):
        labels = np.zeros((8, 20, 20), dtype=int)
        labels[2:4, 5:9, 5:9] = 1
        if number < core:
            labels[3, 6, 6] = 2
        image = np.random.default_rng(number).normal(100, 10, labels.shape)
        box = (slice(0, 8), slice(0, 20), slice(0, 19))
        images = dict.fromkeys(modalities, image)
        parts.append(fingerprint_case(images, labels, (3.0, 1.0, 1.0), box))
    return merge_fingerprints(parts)


def test_all_that_a_site_sends_in_a_run_is_what_the_preview_lists(store: SiteStore) -> None:
    site = store.site("north", [("t1", "t2"), ("t1",)], validation=1)
    registrations = {"north": register(site)}
    state = first_state(PLANS, SETTINGS)
    found = fingerprint_of(("t1", "t2"))
    foretold = preview_outbound(site, found, PLANS, SETTINGS, of_different_patients(found))
    replies = [
        train_at_site(train_task(state, registrations["north"]), site, PLANS, SETTINGS, {})[0],
        validate_at_site(validation_task(state, "north", registrations), site, PLANS, SETTINGS),
        measure_at_site(measure_task(state, "north", registrations), site, PLANS, SETTINGS),
    ]
    for reply in replies:
        want = {(d.name, d.shape) for d in foretold if d.kind == reply.kind}
        assert {(d.name, d.shape) for d in outbound_fields(reply)} == want
        sizes = sum(d.size for d in outbound_fields(reply) if d.shape is not None)
        assert sizes == sum(
            d.size for d in foretold if d.kind == reply.kind and d.shape is not None
        )
        assert sizes <= len(encode(reply))
    told_of = {d.kind for d in foretold}
    assert told_of == set(SENT) - {*MASKED_KINDS, "model"}  # a reply to model says nothing
    table = outbound_table(foretold)
    assert "change of the weights of the encoder of t1" in table
    assert "mean tailored features of t2 by class, level 2" in table
    assert "counts, histograms and sums, no row per case" in table
    assert "p0" not in table  # the name of a case


def test_a_site_with_a_privacy_budget_foretells_neither_loss_nor_prototypes(
    tmp_path: Path, store: SiteStore
) -> None:
    site = store.site("north", [("t1",), ("t1",)])
    mine = dataclasses.replace(site, privacy=Privacy(9.0, 1e-5, 1.0, 1.0, tmp_path / "l.json"))
    one = fingerprint_of(("t1",))
    found = preview_outbound(mine, one, PLANS, SETTINGS, of_different_patients(one))
    names = {d.name for d in found if d.kind == "train"}
    assert {"round", "epsilon", "delta"} <= names
    assert "loss" not in names
    assert not any(name.startswith("memory.") for name in names)


def test_a_message_from_a_site_is_built_in_one_place() -> None:
    """Calls of ``Message`` elsewhere are tasks, which a server sends."""
    root = Path(__file__).parents[3] / "mixmfl"
    built: dict[str, set[str]] = {}
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                calls = [c for c in ast.walk(node) if isinstance(c, ast.Call)]
                if any(ast.unparse(call.func) == "Message" for call in calls):
                    place = file.relative_to(root / "federated").as_posix()
                    built.setdefault(place, set()).add(node.name)
    assert built == {
        "client/outbound.py": {"outgoing"},
        "messages.py": {"_message"},  # reads one that arrived
        "server/comparison.py": {"comparison_tasks"},
        "server/merge.py": {"train_task", "validation_task", "personalization_task"},
        "server/orders.py": {"_join", "train_remotely", "plan_remotely"},
        "server/secure_aggregation.py": {"keys_tasks", "masked_tasks"},
    }


def test_what_is_not_listed_cannot_be_sent() -> None:
    with pytest.raises(ValueError, match=r"a 'train' message with \['case'\]: not listed"):
        outgoing("train", {"round": 0, "loss": 0.1, "case": "p01"})
    with pytest.raises(ValueError, match="a 'validate' message with tensors"):
        outgoing("validate", {"round": 0}, {"image": torch.zeros(1)})
    with pytest.raises(ValueError, match="with a minimum and the number of patients only"):
        outgoing("fingerprint", {"fingerprint": {}, "labels": {}}, minimum=Minimum())
    row = {"memory.t1.0.values": torch.zeros(2, 3), "memory.t1.0.counts": torch.zeros(2)}
    with pytest.raises(ValueError, match="with a minimum and the numbers of patients only"):
        outgoing("train", {"round": 0, "loss": 0.1}, row, minimum=Minimum(5))
    assert {"fingerprint", "join", "train", "validate"} <= SENT.keys()


def test_a_minimum_is_lowered_only_where_both_lower_it() -> None:
    default = NETWORK_MINIMUM
    assert default == Minimum(cases=5, voxels=100)
    assert default.agreed(Minimum(1, 1)) == default
    assert Minimum(1, 1).agreed(default) == default
    assert Minimum(1, 50).agreed(Minimum(3, 10)) == Minimum(3, 50)
    assert Minimum().agreed(Minimum()) == Minimum(0, 0)


def test_a_fingerprint_of_few_cases_is_withheld() -> None:
    four = fingerprint_of(*[("t1",)] * 4)
    behind = of_different_patients(four)
    assert withhold_small_counts(four, 5, 0, behind) is None
    record = {"fingerprint": four.to_json(), "labels": {}}
    sent = outgoing("fingerprint", record, minimum=Minimum(5), patients=behind)
    assert sent.record["fingerprint"] is None
    assert withhold_small_counts(four, 4, 0, behind) is not None
    sent = outgoing("fingerprint", record, minimum=Minimum(4), patients=behind)
    assert sent.record["fingerprint"] == four.to_json()


def test_rare_modalities_are_left_out_of_a_fingerprint() -> None:
    fingerprint = fingerprint_of(*[("t1",)] * 4, ("t1", "t2"))
    behind = of_different_patients(fingerprint)
    kept = withhold_small_counts(fingerprint, 5, 100, behind)
    assert kept is not None
    assert kept.modality_cases == {"t1": 5, "t2": 1}  # which weights need, as registration does
    assert sum(kept.intensities["t1"]) == 160
    assert sum(kept.intensities["t2"]) == 0
    assert Fingerprint.from_json(kept.to_json(), "x") == kept
    fewer = withhold_small_counts(fingerprint, 5, 161, behind)
    assert fewer is not None
    assert sum(fewer.intensities["t1"]) == 0
    assert withhold_small_counts(fingerprint, 0, 0, behind) == fingerprint


def test_prototypes_of_few_cases_or_voxels_are_as_if_never_seen() -> None:
    ones = torch.ones(3, 2)
    memory = {("t1", 0): Prototypes(2 * ones, torch.tensor([500.0, 99.0, 200.0]))}
    cases = {("t1", 0): torch.tensor([9, 5, 4])}
    kept = withhold_rare(memory, 5, 100, cases)["t1", 0]
    assert kept.counts.tolist() == [500, 0, 0]  # class 1 has 99 voxels, class 2 four cases
    assert kept.values[:, 0].tolist() == [2, 0, 0]


def test_a_site_holds_prototypes_back_as_it_and_the_coordinator_agreed(store: SiteStore) -> None:
    site = store.site("north", [("t1", "t2"), ("t1",), ("t1",)])
    task = train_task(first_state(PLANS, SETTINGS), register(site))

    def seen(by_site: Minimum, by_coordinator: int) -> dict[str, bool]:
        asked = dataclasses.replace(SETTINGS, minimum_cases=by_coordinator)
        mine = dataclasses.replace(site, minimum=by_site)
        reply: Message = train_at_site(task, mine, PLANS, asked, {})[0]
        return {m: bool(reply.tensors[f"memory.{m}.2.counts"].any()) for m in ("t1", "t2")}

    assert seen(Minimum(), 0) == {"t1": True, "t2": True}
    assert seen(Minimum(), 2) == {"t1": True, "t2": False}
    assert seen(Minimum(cases=2), 0) == {"t1": True, "t2": False}
    assert seen(Minimum(cases=2), 4) == {"t1": False, "t2": False}
    assert seen(Minimum(voxels=10**6), 0) == {"t1": False, "t2": False}


def test_a_prototype_of_patches_of_few_cases_is_held_back_though_many_have_the_class(
    store: SiteStore,
) -> None:
    site = store.site("north", [("t1",)] * 12)  # in batches of 4
    task = train_task(first_state(PLANS, SETTINGS), register(site))

    def rows(steps: int, cases: int) -> int:
        asked = dataclasses.replace(SETTINGS, local_steps=steps, minimum_cases=cases)
        reply, _ = train_at_site(task, site, PLANS, asked, {})
        return int((reply.tensors["memory.t1.2.counts"] > 0).sum())

    assert rows(1, 5) == 0
    assert rows(1, 0) > 0
    assert rows(12, 5) > 0
