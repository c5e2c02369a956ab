"""Nothing of one, two or three patients leaves, where the hospital's floors are above that.

Two hospitals differ in these patients alone: what cannot be told apart says nothing of them.
"""

import dataclasses
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from masked_federation import write_keys
from small import of_different_patients
from small_federation import PLANS, SETTINGS, SiteStore, write_work

from mixmfl.core.errors import PrivacyError
from mixmfl.core.records import json_of
from mixmfl.core.text import plural
from mixmfl.data.labels import Labels
from mixmfl.evaluation.small_components import ComponentSums
from mixmfl.federated.client.client import Client
from mixmfl.federated.client.limits import Limits
from mixmfl.federated.client.outbound import outgoing_fingerprint
from mixmfl.federated.client.personalization import Personalised, personalize_at_site
from mixmfl.federated.client.service import ClientService
from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.client.training import train_at_site
from mixmfl.federated.messages import SENT, Message, StoredMessage, encode
from mixmfl.federated.secure_aggregation.identities import simulated_identities
from mixmfl.federated.server.merge import personalization_task, train_task, validation_task
from mixmfl.federated.server.subset_validation import measure_task
from mixmfl.federated.state import Minimum, RunSettings, Site, first_state, register
from mixmfl.networks.parameters import block_of
from mixmfl.planning.fingerprint import (
    Fingerprint,
    count_patients,
    fingerprint_case,
    merge_fingerprints,
)
from mixmfl.planning.preprocessed_case import PreprocessedCase, labels_in, unlabelled
from mixmfl.training.batches import Batches
from mixmfl.training.privacy_budget import Privacy

FEW = (1, 2, 3)
FLOOR = 4

NOTHING, COUNTED, WITHHELD, REFUSED = "of no patient", "a count", "withheld", "not trained"
FIELDS: Mapping[tuple[str, str], str] = {
    ("fingerprint", "fingerprint"): WITHHELD,
    ("fingerprint", "labels"): NOTHING,
    ("preprocess", "cases"): COUNTED,
    ("join", "registration"): COUNTED,
    ("train", "round"): NOTHING,
    ("train", "loss"): REFUSED,
    ("train", "dice_loss"): REFUSED,
    ("train", "epsilon"): NOTHING,
    ("train", "delta"): NOTHING,
    ("validate", "round"): NOTHING,
    ("validate", "dice"): WITHHELD,
    ("measure", "round"): NOTHING,
    ("measure", "subsets"): WITHHELD,
    ("measure", "confidence"): WITHHELD,
    ("measure", "reliability"): WITHHELD,
    ("measure", "components"): WITHHELD,
    ("compare", "round"): NOTHING,
    ("compare", "components"): WITHHELD,
    ("keys", "round"): NOTHING,
    ("keys", "key"): NOTHING,
    ("keys", "certificate"): NOTHING,
    ("keys", "signature"): NOTHING,
    ("masked", "round"): NOTHING,
    ("masked", "epsilon"): NOTHING,
    ("masked", "delta"): NOTHING,
    ("personalize", "dice"): WITHHELD,
    ("personalize", "dice_before"): WITHHELD,
    ("failed", "error"): NOTHING,
    ("failed", "version"): NOTHING,
    ("failed", "refused"): NOTHING,
}
"""What every field says of few patients; a new one is decided upon here, and tested below."""


def test_every_field_that_leaves_is_decided_upon() -> None:
    assert set(FIELDS) == {(kind, field) for kind, fields in SENT.items() for field in fields}
    withheld = {kind for (kind, _), what in FIELDS.items() if what == WITHHELD}
    assert withheld == {
        "fingerprint",
        "validate",
        "measure",
        "compare",
        "personalize",
    }  # tested below; compare in test_comparison
    assert {kind for (kind, _), what in FIELDS.items() if what == REFUSED} == {"train"}


def of_cases(seed: int, count: int, spacing: float = 1.0) -> Fingerprint:
    parts = []
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        labels = np.zeros((8, 20, 20), dtype=int)
        labels[2:6, 5:15, 5:15] = 1
        images = {"t1": generator.normal(100, 10, labels.shape)}
        box = (slice(0, 8), slice(0, 20), slice(0, 20))
        parts.append(fingerprint_case(images, labels, (spacing, 1.0, 1.0), box))
    return merge_fingerprints(parts)


def reported(fingerprint: Fingerprint) -> Message:
    behind = of_different_patients(fingerprint)
    return outgoing_fingerprint(fingerprint, PLANS.labels, Minimum(FLOOR), behind)


@pytest.mark.parametrize("few", FEW)
def test_no_statistics_of_a_site_of_few_cases_leave(few: int) -> None:
    messages = [encode(reported(of_cases(seed, few))) for seed in (1, 2)]
    assert messages[0] == messages[1]
    enough = reported(of_cases(1, FLOOR))
    assert enough.record["fingerprint"] is not None


@pytest.mark.parametrize("few", FEW)
def test_of_few_cases_among_many_only_grids_are_counted(few: int) -> None:
    """Spacings, sizes, directions and shares of a crop, each alone: a plan needs the rare ones."""
    usual = of_cases(0, FLOOR)
    records: list[dict[str, Any]] = []
    for odd in (of_cases(1, few), of_cases(2, few, spacing=7.0)):
        renamed = dataclasses.replace(
            odd,
            modality_cases={"t2": few},
            intensities={"t2": odd.intensities["t1"]},
            typical={"t2": odd.typical["t1"]},
            heads={"deepbet": few},
        )
        both = merge_fingerprints([usual, renamed])
        records.append(reported(both).record["fingerprint"])
    differ = {name for name in records[0] if records[0][name] != records[1][name]}
    assert differ == {"axes", "stacked", "slices"}
    assert not any(records[0]["intensities"]["t2"])
    assert set(records[0]["typical"]) == {"t1"}
    assert records[0]["modality_cases"]["t2"] == few  # the aggregation weight
    assert set(records[0]["heads"]) == set(usual.heads)


def test_many_examinations_of_few_patients_are_few() -> None:
    usual, odd = of_cases(0, 1), of_cases(1, 1)
    odd = dataclasses.replace(
        odd,
        modality_cases={"t1": 1, "t2": 1},
        intensities={**odd.intensities, "t2": odd.intensities["t1"]},
        typical={**odd.typical, "t2": odd.typical["t1"]},
        heads={"deepbet": 1},
    )
    several = [(f"p{number}", usual) for number in range(FLOOR)]
    several += [("p0", odd)] * 9
    merged, behind = merge_fingerprints(part for _, part in several), count_patients(several)
    assert (behind.patients, behind.modalities) == (FLOOR, {"t1": FLOOR, "t2": 1})
    labels = Labels({"a": 1, "b": 2})
    left = outgoing_fingerprint(merged, labels, Minimum(FLOOR), behind).record["fingerprint"]
    assert not any(left["intensities"]["t2"])
    assert any(left["intensities"]["t1"])
    assert set(left["typical"]) == {"t1"}
    assert left["heads"] == {"stripped": FLOOR + 9}
    few = count_patients(several[1:-9])
    assert outgoing_fingerprint(merged, labels, Minimum(FLOOR), few).record["fingerprint"] is None


@pytest.mark.parametrize("few", FEW)
def test_no_dice_of_few_validation_cases_leaves(store: SiteStore, few: int) -> None:
    names = ("alpha", "beta")
    one, other = (store.site(name, [("t1",)] * 5, validation=3) for name in names)
    sites = [
        dataclasses.replace(one, validation=who.validation[:few], validation_cases=FLOOR)
        for who in (one, other)
    ]
    registrations = {"alpha": register(sites[0])}
    state = first_state(PLANS, SETTINGS)
    for task in (
        validation_task(state, "alpha", registrations),
        measure_task(state, "alpha", registrations),
        personalization_task(state, "alpha", registrations),
    ):
        replies = [encode(Client(site, PLANS, SETTINGS).handle(task, {}).reply) for site in sites]
        assert replies[0] == replies[1], task.kind
    # the floor is what withholds it
    open_ = [dataclasses.replace(site, validation_cases=few) for site in sites]
    task = validation_task(state, "alpha", registrations)
    seen = [Client(site, PLANS, SETTINGS).handle(task, {}).reply.record for site in open_]
    assert seen[0] != seen[1]


def of_one_patient(cases: Sequence[PreprocessedCase]) -> tuple[PreprocessedCase, ...]:
    return tuple(dataclasses.replace(case, patient="ab") for case in cases)


MIXED = [("t1",)] * 5 + [("t1", "t2")] * 3 + [("t2",)]


def test_no_dice_of_all_but_one_case_leaves(store: SiteStore) -> None:
    """Else it is the difference to the sum over all: the coordinator chooses the modalities."""
    site = dataclasses.replace(store.site("mixed", MIXED, validation=5), validation_cases=FLOOR)
    state, client = first_state(PLANS, SETTINGS), Client(site, PLANS, SETTINGS)
    registrations = {"mixed": register(site)}

    def sent(task: Message, *modalities: str) -> Mapping[str, Any]:
        record = {**task.record, "modalities": list(modalities)}
        return client.handle(dataclasses.replace(task, record=record), {}).reply.record

    asked = validation_task(state, "mixed", registrations)
    assert sent(asked, "t1", "t2")["dice"]["lesion"][1] == 5
    assert sent(asked, "t1")["dice"]["lesion"] == [0.0, 0]
    measured = measure_task(state, "mixed", registrations)
    assert sent(measured, "t1")["components"]["lesion"] == json_of(ComponentSums())
    copied = personalization_task(state, "mixed", registrations)
    assert sent(copied, "t1") == {"dice": None, "dice_before": None}
    # nor of cases that are examinations of few patients
    few = dataclasses.replace(site, validation=of_one_patient(site.validation))
    client = Client(few, PLANS, SETTINGS)
    assert sent(asked, "t1", "t2")["dice"]["lesion"] == [0.0, 0]
    # nor of a label that few patients have, as these know no other
    others = [
        dataclasses.replace(case, labelled=("background", "lesion")) for case in site.validation
    ]
    label = dataclasses.replace(site, validation=(*of_one_patient(site.validation), *others))
    client = Client(label, PLANS, SETTINGS)
    dice = sent(asked, "t1", "t2")["dice"]
    assert (dice["core"], dice["lesion"][1]) == ([0.0, 0], 10)
    sums = sent(measured, "t1", "t2")
    counts = {
        name: sum(
            found[name]["cases"]
            for found in (sums["confidence"], sums["reliability"], sums["components"])
        )
        for name in ("core", "lesion")
    }
    assert counts["core"] == 0 < counts["lesion"]
    assert not any(any(row["core"]) for _, row in sums["subsets"])
    # nor of a model that was trained without the noise that is asked for
    private = dataclasses.replace(site, privacy=Privacy(8.0, 1e-5, 1.0, 1.0, Path("none")))
    client = Client(private, PLANS, SETTINGS)
    assert sent(copied, "t1", "t2") == {"dice": None, "dice_before": None}


def test_no_weights_of_a_round_that_draws_few_cases_leave(
    store: SiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The coordinator chooses the steps, and each step draws four cases."""
    site = store.site("mixed", MIXED)
    task = train_task(first_state(PLANS, SETTINGS), register(site))
    one_step = dataclasses.replace(SETTINGS, local_steps=1)
    few = dataclasses.replace(site, training_cases=5)
    with pytest.raises(PrivacyError, match=r"of round 1 draw training cases of [34] patients, and"):
        train_at_site(task, few, PLANS, one_step, {})
    one = dataclasses.replace(few, training=of_one_patient(site.training))
    with pytest.raises(PrivacyError, match="of round 1 draw training cases of 1 patient, and"):
        train_at_site(task, one, PLANS, SETTINGS, {})
    reply, _ = train_at_site(task, few, PLANS, SETTINGS, {})  # of two steps
    changed = {block_of(n) for n, t in reply.tensors.items() if t.any() and "memory" not in n}
    assert "decoder" in changed
    assert "tailored.t2" not in changed  # which fewer have
    assert "round 1 draws few patients with t2: what changed in these" in caplog.text
    reply, _ = train_at_site(task, site, PLANS, SETTINGS, {})
    assert any(tensor.any() for n, tensor in reply.tensors.items() if n.startswith("tailored.t2"))


def test_a_hospital_may_keep_its_loss(store: SiteStore, tmp_path: Path) -> None:
    """At a learning rate of nearly nothing, losses of many rounds are sums over chosen cases."""
    federation = store.federation({"alpha": [("t1",)] * 3, "beta": [("t1",)] * 3})
    config = SiteConfig("alpha", tmp_path, tmp_path, limits=Limits(no_loss=True))
    quiet = dataclasses.replace(
        federation,
        sites={**federation.sites, "alpha": config.with_floors(federation.sites["alpha"])},
    )
    assert {n for n, reply in quiet.replies.items() if "loss" in reply.record} == {"beta"}
    state, shown = quiet.merge(quiet.replies)
    assert not shown.rejected
    assert shown.loss.keys() == shown.dice_loss.keys() == {"beta"}
    assert encode(Message("", {}, state.weights)) == encode(
        Message("", {}, federation.merge(federation.replies)[0].weights)
    )


def test_unless_a_hospital_says_otherwise_no_dice_of_few_and_no_weights_of_one_leave() -> None:
    limits = Limits()
    assert (limits.validation_cases, limits.set_cases, limits.training_cases) == (5, 2, 2)
    assert "Dice leaves over 5 validation cases or more" in Limits().describe_floors()


def test_a_prototype_of_the_last_batch_is_of_its_patients(store: SiteStore) -> None:
    """The coordinator's plans choose how much of earlier batches is left."""
    site = store.site("alpha", [("t1",)] * 8)
    held = dataclasses.replace(site, minimum=Minimum(5))  # a batch has four
    task = train_task(first_state(PLANS, SETTINGS), register(site))
    several = dataclasses.replace(SETTINGS, local_steps=6)
    for decay, leave in ((1, True), (0.9, True), (0.01, False), (0, False)):
        training = dataclasses.replace(PLANS.training, memory_decay=decay)
        plans = dataclasses.replace(PLANS, training=training)
        reply, _ = train_at_site(task, held, plans, several, {})
        rows = [t.any() for n, t in reply.tensors.items() if n.startswith("memory.")]
        assert rows
        assert any(rows) == leave, decay


def with_core(case: PreprocessedCase, place: int | None) -> PreprocessedCase:
    """Return a case whose core is somewhere else, or nowhere."""
    labels = case.labels[:]
    labels[labels == 2] = 1
    places = {1: case.class_locations[1], 2: case.class_locations[2][:0]}
    if place is not None:
        labels[0, place, 2:5, 2:5] = 2
        places[2] = np.argwhere(labels == 2)
    return dataclasses.replace(case, labels=labels, class_locations=places)


def test_a_label_that_few_patients_have_is_not_trained(
    store: SiteStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither as itself nor as background: two sites that differ in it send the same weights."""
    whole = store.site("alpha", [("t1",)] * 5)
    task = train_task(first_state(PLANS, SETTINGS), register(whole))
    several = dataclasses.replace(SETTINGS, local_steps=8)

    def sent(floor: int, *places: int | None) -> Message:
        cases = tuple(map(with_core, whole.training, places))
        site = dataclasses.replace(whole, training=cases, training_cases=floor)
        return train_at_site(task, site, PLANS, several, {})[0]

    def weights(reply: Message) -> bytes:
        plain = {n: tensor for n, tensor in reply.tensors.items() if "memory" not in n}
        return encode(dataclasses.replace(reply, tensors=plain))

    none = (None,) * 3
    here, there = (sent(FLOOR, 1, place, *none) for place in (2, 7))
    assert weights(here) == weights(there)
    cores = [t[2].any() for n, t in here.tensors.items() if n.endswith("counts")]
    assert cores
    assert not any(cores)
    assert "few patients with label 'core': it is not trained (--min-training" in caplog.text
    # the floor is what hides it
    assert weights(sent(2, 1, 2, *none)) != weights(sent(2, 1, 7, *none))
    many = [sent(FLOOR, 1, 2, 3, place, None) for place in (2, 7)]
    assert weights(many[0]) != weights(many[1])
    # a site that labels nothing else has nothing to train
    alone = [with_core(case, None) for case in whole.training]
    alone[1:] = [
        dataclasses.replace(case, class_locations={1: case.class_locations[1][:0]})
        for case in alone[1:]
    ]
    only = tuple(unlabelled(case, ["core"], PLANS.labels) for case in alone)
    site = dataclasses.replace(whole, training=only, training_cases=2)
    with pytest.raises(PrivacyError, match="of the patients whose training cases round 1 draws"):
        train_at_site(task, site, PLANS, several, {})


@pytest.mark.parametrize("masked", [False, True])
def test_a_personalised_model_whose_dice_leaves_is_of_no_fewer_patients(
    store: SiteStore, masked: bool
) -> None:
    """The coordinator chooses its rounds and steps, and learns how good it is."""
    whole = store.site("alpha", [("t1",)] * 9, validation=4)
    settings = dataclasses.replace(SETTINGS, masked=masked, local_steps=8)
    task = personalization_task(first_state(PLANS, SETTINGS), "alpha", {"alpha": register(whole)})

    def made(settings: RunSettings, floor: int, *places: int | None) -> Personalised:
        cases = map(with_core, whole.training, places)
        site = dataclasses.replace(
            whole, training=tuple(cases), training_cases=floor, validation_cases=FLOOR
        )
        return personalize_at_site(task, site, PLANS, settings)

    none = (None,) * 4
    here, there = (made(settings, FLOOR, place, *none) for place in (1, 7))
    assert here.sent == there.sent
    assert here.sent.dice != here.sent.dice_before
    assert made(settings, 1, 1, *none).sent != made(settings, 1, 7, *none).sent
    few = dataclasses.replace(settings, local_steps=1)  # which draws four
    with pytest.raises(PrivacyError, match=r"draw training cases of [34] patients"):
        made(few, 5, 1, *none)
    # where there are too few, it is for the site alone
    alone = made(few, 6, 1, *none)
    assert np.isnan([alone.sent.dice, alone.sent.dice_before]).all()
    assert np.isfinite(alone.result.dice)


def test_batches_are_built_once_in_a_round_of_a_site_with_a_floor(
    store: SiteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = dataclasses.replace(store.site("alpha", [("t1",)] * 5), training_cases=2)
    task = train_task(first_state(PLANS, SETTINGS), register(site))
    built: list[Batches] = []

    def build(*arguments: Any) -> Batches:
        built.append(Batches(*arguments))
        return built[-1]

    monkeypatch.setattr("mixmfl.federated.client.training.Batches", build)
    train_at_site(task, site, PLANS, SETTINGS, {})
    assert len(built) == 1


def test_a_case_keeps_what_it_labels_in_another_process(store: SiteStore) -> None:
    """Else the processes that prepare batches would train what is not to be trained."""
    (case,) = store.site("alpha", [("t1",)]).training
    for one in (case, unlabelled(case, ["core"], PLANS.labels)):
        there = pickle.loads(pickle.dumps(one))
        assert there.labelled == one.labelled
        assert there.class_locations.keys() == one.class_locations.keys()
    assert labels_in(there, PLANS.labels) == {"lesion"}


def test_no_dice_of_a_label_leaves_that_few_references_have(store: SiteStore) -> None:
    """A mask with the label in every case has Dice 0 where no reference has it."""
    whole = store.site("alpha", [("t1",)] * 6, validation=5)
    cases = map(with_core, whole.validation, (1, 2, None, None, None))
    site = dataclasses.replace(whole, validation=tuple(cases), validation_cases=3)
    state, registrations = first_state(PLANS, SETTINGS), {"alpha": register(site)}
    tasks = [f(state, "alpha", registrations) for f in (validation_task, measure_task)]

    def cases_of(site: Site, label: str) -> list[int]:
        validated, measured = (Client(site, PLANS, SETTINGS).handle(t, {}).reply for t in tasks)
        sums = ("confidence", "reliability", "components")
        return [
            validated.record["dice"][label][1],
            sum(sum(row[label]) for _, row in measured.record["subsets"]),
            *(measured.record[name][label]["cases"] for name in sums),
        ]

    without = dataclasses.replace(site, validation_cases=1)
    assert min(cases_of(without, "core")) > 2  # the mask has it in cases whose reference has not
    assert cases_of(site, "core") == [0] * 5
    assert min(cases_of(site, "lesion")) == 5


ALL_BUT = Limits().validation_cases


def measured(store: SiteStore, cases: Sequence[tuple[str, ...]], *changes: int) -> Message:
    """Return what a site with the default floor sends that was asked to measure its cases."""
    whole = store.site("alpha", [("t1", "t2"), *cases], validation=len(cases))
    of_core = [with_core(case, 1 + n % 6) for n, case in enumerate(whole.validation)]
    for number in changes:
        of_core[number] = with_core(of_core[number], None)
    site = dataclasses.replace(whole, validation=tuple(of_core), validation_cases=ALL_BUT)
    task = measure_task(first_state(PLANS, SETTINGS), "alpha", {"alpha": register(site)})
    return Client(site, PLANS, SETTINGS).handle(task, {}).reply


BOTH, T1 = ("t1", "t2"), ("t1",)


def subsets_sent(reply: Message, label: str) -> list[list[str]]:
    return [subset for subset, counts in reply.record["subsets"] if any(counts[label])]


def test_no_dice_by_subset_leaves_that_is_of_all_but_few(store: SiteStore) -> None:
    """Else the sum over all, which leaves, tells the Dice of the rest by difference."""
    few = measured(store, [BOTH] * ALL_BUT + [T1] * (ALL_BUT - 1))
    many = measured(store, [BOTH] * ALL_BUT + [T1] * ALL_BUT)
    for label in ("lesion", "core"):
        assert subsets_sent(few, label) == [["t1"]]
        assert subsets_sent(many, label) == [["t1"], ["t1", "t2"], ["t2"]]
    assert few.record["components"]["lesion"]["cases"] == 2 * ALL_BUT - 1
    # of the patients who have the label: the others have Dice 0
    core = measured(store, [BOTH] * ALL_BUT + [T1] * ALL_BUT, -1)
    assert subsets_sent(core, "core") == [["t1"]]
    assert len(subsets_sent(core, "lesion")) == 3


def test_no_dice_leaves_of_a_set_of_modalities_that_few_have(store: SiteStore) -> None:
    """Weights can be made that find a label only where just these modalities are there."""

    def sent(cases: Sequence[tuple[str, ...]], *without_core: int) -> list[Message]:
        whole = store.site("alpha", [BOTH, BOTH, *cases], validation=len(cases))
        held = [
            with_core(c, None if n in without_core else 3) for n, c in enumerate(whole.validation)
        ]
        site = dataclasses.replace(
            whole, validation=tuple(held), validation_cases=ALL_BUT, set_cases=Limits().set_cases
        )
        state, registrations = first_state(PLANS, SETTINGS), {"alpha": register(site)}
        tasks = [f(state, "alpha", registrations) for f in (validation_task, measure_task)]
        return [Client(site, PLANS, SETTINGS).handle(task, {}).reply for task in tasks]

    of_one, of_none = sent([BOTH] * 5 + [T1]), sent([BOTH] * 5)
    assert of_one[0].record["dice"]["lesion"] == of_none[0].record["dice"]["lesion"]
    assert of_one[1].record == of_none[1].record
    for cases, without_core, expected in (
        ([BOTH] * 5 + [T1] * 2, (), {"lesion": 7, "core": 7}),
        ([BOTH] * 5 + [T1] * 2, (6,), {"lesion": 7, "core": 5}),  # one of a set has the label
        ([BOTH] * 5 + [T1], (), {"lesion": 5, "core": 5}),
    ):
        validated, measured = sent(cases, *without_core)
        assert {n: number for n, (_, number) in validated.record["dice"].items()} == expected
        components = measured.record["components"]
        assert {n: sums["cases"] for n, sums in components.items()} == expected


@pytest.mark.parametrize(("cases", "of"), [(16, 16), (17, 12), (20, 15), (21, 16)])
def test_those_who_are_not_measured_are_enough_or_none(
    store: SiteStore, cases: int, of: int
) -> None:
    reply = measured(store, [T1] * cases)
    assert reply.record["components"]["lesion"]["cases"] == of
    assert sum(reply.record["subsets"][0][1]["lesion"]) == of


@pytest.mark.parametrize("few", FEW)
def test_no_weights_of_few_training_cases_leave_unless_hidden(tmp_path: Path, few: int) -> None:
    """Neither of all, nor of a modality that few have; with masks or noise they do."""
    rare: list[tuple[str, ...]] = [("t1",)] * FLOOR + [("t1", "t2")] * few
    cases: Mapping[str, list[tuple[str, ...]]] = {"few": [("t1",)] * few, "rare": rare}
    write_work(tmp_path, cases)
    keys = write_keys(tmp_path / "keys", simulated_identities(["few"])["few"])
    record = {"run": "abc", "plans": PLANS.to_json(), "fold": "all"}

    def joins(name: str, masked: bool = False, **changes: Any) -> str:
        (tmp_path / "runs" / "abc" / "joined.json").unlink(missing_ok=True)
        limits = Limits(training_cases=FLOOR)
        config = SiteConfig(name, tmp_path, tmp_path, keys=keys, limits=limits)
        settings = dataclasses.asdict(dataclasses.replace(SETTINGS, masked=masked))
        task = encode(Message("join", {**record, "settings": settings}, {}))
        service = ClientService(dataclasses.replace(config, **changes))
        return service.answer(StoredMessage.store(task, tmp_path)).open().kind

    assert [joins("few"), joins("rare")] == ["failed", "failed"]
    problems = (tmp_path / "problems.log").read_text()
    patients = f"training cases of {plural(few, 'patient')}"
    assert f"{patients} have all modalities, and weights that are sent must" in problems
    assert f"{patients} have t2, and weights that are sent must rest on 4" in problems
    assert joins("few", masked=True) == "join"
    privacy = Privacy(8.0, 1e-5, 1.0, 1.0, tmp_path / "ledger.json")
    assert joins("few", privacy=privacy) == "join"
    assert joins("rare", limits=Limits(training_cases=few)) == "join"


@pytest.mark.parametrize("few", FEW)
def test_no_prototype_of_a_class_in_few_cases_leaves(store: SiteStore, few: int) -> None:
    site: Site = store.site("alpha", [("t1", "t2")] * few)
    task = train_task(first_state(PLANS, SETTINGS), register(site))
    held = dataclasses.replace(site, minimum=Minimum(FLOOR))
    reply, _ = train_at_site(task, held, PLANS, SETTINGS, {})
    rows = {n: tensor for n, tensor in reply.tensors.items() if n.startswith("memory.")}
    assert rows
    assert not any(tensor.any() for tensor in rows.values())
    many = store.site("alpha", [("t1", "t2")] * FLOOR)
    many = dataclasses.replace(
        many, minimum=Minimum(few), training=of_one_patient(many.training)[:FLOOR]
    )
    reply, _ = train_at_site(task, many, PLANS, SETTINGS, {})
    of_one = [tensor.any() for n, tensor in reply.tensors.items() if n.startswith("memory.")]
    assert any(of_one) == (few == 1)
    with pytest.raises(PrivacyError, match=f"of {plural(few, 'patient')} have all modal"):
        Limits(training_cases=FLOOR).check_cases(site.training)
