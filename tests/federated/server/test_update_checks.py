"""Broken and hostile replies: refused with a reason, and the round goes on without them."""

import dataclasses
import logging
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small import small_plans
from small_federation import PLANS, SETTINGS, SiteStore, SmallFederation

from mixmfl.core.errors import AggregationError
from mixmfl.federated import simulation
from mixmfl.federated.client import client
from mixmfl.federated.client.training import train_at_site
from mixmfl.federated.messages import Message, encode
from mixmfl.federated.server.checkpoint import load_state_of
from mixmfl.federated.server.merge import merge_round
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.server.update_checks import check_registration, check_validation
from mixmfl.federated.server.update_norms import (
    NORM_FACTOR,
    NORM_ROUNDS,
    remember_norms,
    usual_norms,
)
from mixmfl.federated.simulation import simulate
from mixmfl.federated.state import (
    Registration,
    Site,
    first_state,
)
from mixmfl.networks.build import prototype_sizes
from mixmfl.networks.prototypes import PARTS, State
from mixmfl.planning.fingerprint import Fingerprint

Spoil = Callable[[Message], Message]


def with_tensors(reply: Message, **changed: torch.Tensor) -> Message:
    return dataclasses.replace(reply, tensors={**reply.tensors, **changed})


def first_of(reply: Message, start: str) -> str:
    return next(name for name in reply.tensors if name.startswith(start))


@pytest.fixture(scope="module")
def federation(store: SiteStore) -> SmallFederation:
    names, cases = ("east", "north", "south", "west"), [("t1", "t2"), ("t1",)]
    return store.federation(dict.fromkeys(names, cases), validation=1)


def longer(times: float) -> Spoil:
    """Return what makes a reply's changes large, as an attacker or a diverged site would."""

    def spoil(reply: Message) -> Message:
        tensors = {
            n: t if n.startswith("memory.") else t + times * torch.ones_like(t)
            for n, t in reply.tensors.items()
        }
        return dataclasses.replace(reply, tensors=tensors)

    return spoil


SPOILT: dict[str, tuple[Spoil, str]] = {
    "a NaN": (
        lambda r: with_tensors(
            r, **{first_of(r, "shared."): r.tensors[first_of(r, "shared.")] * math.nan}
        ),
        "sent shared with NaN, infinity or",
    ),
    "an infinity": (
        lambda r: with_tensors(
            r, **{first_of(r, "decoder."): r.tensors[first_of(r, "decoder.")] + math.inf}
        ),
        "sent decoder with NaN, infinity or",
    ),
    "a NaN in prototypes": (
        lambda r: with_tensors(
            r, **{"memory.t1.2.values": r.tensors["memory.t1.2.values"] * math.nan}
        ),
        r"sent memory\.t1\.2 with NaN, infinity or",
    ),
    "a count that is NaN": (
        lambda r: with_tensors(r, **{"memory.t1.2.counts": torch.tensor([math.nan, 0, 0])}),
        r"sent memory\.t1\.2\.counts with NaN, infinity or a count < 0",
    ),
    "single precision in a run of half": (
        lambda r: with_tensors(
            r, **{first_of(r, "decoder."): r.tensors[first_of(r, "decoder.")].float()}
        ),
        r"torch\.float32, needed is .* torch\.float16; was it started from the same plans",
    ),
    "weights instead of changes": (
        lambda r: dataclasses.replace(
            r,
            tensors={
                n: t if n.startswith("memory.") else first_state(PLANS, SETTINGS).weights[n].half()
                for n, t in r.tensors.items()
            },
        ),
        "times the median of recent rounds",
    ),
    "another shape": (
        lambda r: with_tensors(
            r, **{first_of(r, "decoder."): r.tensors[first_of(r, "decoder.")][:1]}
        ),
        "was it started from the same plans",
    ),
    "an unknown name": (
        lambda r: with_tensors(r, **{"decoder.unheard_of": torch.zeros(1)}),
        "what it does not hold",
    ),
    "prototypes of another level": (
        lambda r: with_tensors(r, **{f"memory.t1.3.{part}": torch.zeros(3) for part in PARTS}),
        "what it does not hold",
    ),
    "prototypes of another shape": (
        lambda r: with_tensors(r, **{"memory.t1.2.values": torch.zeros(3, 99)}),
        r"memory.t1.2.values as \(3, 99\)",
    ),
    "a second word": (
        lambda r: dataclasses.replace(r, record={**r.record, "also": 1}),
        r"site 'north': unknown fields \['also'\]$",
    ),
    "one of another round, such as a replayed one": (
        lambda r: dataclasses.replace(r, record={**r.record, "round": 1}),
        "sent a 'train' reply to round 1; a 'train' reply to round 0 was asked for",
    ),
    "one of another kind": (
        lambda r: dataclasses.replace(r, kind="validate"),
        "sent a 'validate' reply to round 0; a 'train' reply to round 0 was asked for",
    ),
    "an infinite loss": (
        lambda r: dataclasses.replace(r, record={**r.record, "loss": math.inf}),
        "site 'north': loss: is inf; it must be a number from -1000000000 to 1000000000",
    ),
    "too many voxels": (
        lambda r: with_tensors(r, **{"memory.t1.2.counts": torch.tensor([1e6, 0, 0])}),
        "1000000 voxels; its batches cannot have had more than 122",
    ),
    "a norm beyond the others'": (longer(1.0), "times the median of recent rounds"),
}


def test_the_prototypes_of_the_small_plan_have_the_sizes_worked_out_by_hand() -> None:
    # patch 16 x 16, strides 1, 2, 2: 4 x 4 voxels at the deepest level; 8 channels at half width
    size = prototype_sizes(PLANS, "2d")[2]
    assert (size.rows, size.tailored, size.voxels) == (3, 4, 16)
    # 4 patches of 16 voxels in each of 2 steps, the first counting 0.9: the 122 told above
    assert pytest.approx(121.6) == 1.9 * 4 * 16


@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_reply_counts_as_absent_and_the_round_is_that_of_the_others(
    what: str,
    federation: SmallFederation,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spoil, reason = SPOILT[what]
    replies = federation.replies
    others = {name: reply for name, reply in replies.items() if name != "north"}
    want, _ = federation.merge(others)
    with caplog.at_level(logging.WARNING):
        got, shown = federation.merge({**replies, "north": spoil(replies["north"])})
    assert all(torch.equal(got.weights[name], want.weights[name]) for name in want.weights)
    assert got.norms == want.norms
    assert set(shown.loss) == {"east", "south", "west"}
    assert set(shown.rejected) == {"north"}
    with pytest.raises(AggregationError, match=reason):
        raise AggregationError(shown.rejected["north"])
    assert "round 1: north: reply rejected: site 'north'" in caplog.text


def test_honest_replies_pass(federation: SmallFederation) -> None:
    state, shown = federation.merge(federation.replies)
    assert not shown.rejected
    assert set(state.norms) == {
        *("tailored.t1", "tailored.t2", "shared", "fusion", "decoder"),
        *("memory.t1.2", "memory.t2.2"),
    }
    assert all(len(found) == 1 and found[0] > 0 for found in state.norms.values())


def test_a_single_site_cannot_go_further_than_its_optimiser_even_in_the_first_round(
    federation: SmallFederation,
) -> None:
    federation.merge({"north": federation.replies["north"]})
    # two steps at 0.01, each at most 7.27 learning rates: 0.145 per parameter
    federation.merge({"north": longer(0.1)(federation.replies["north"])})
    with pytest.raises(AggregationError, match="cannot go further than"):
        federation.merge({"north": longer(0.2)(federation.replies["north"])})


def test_fewer_replies_than_the_quorum_end_the_round(federation: SmallFederation) -> None:
    two = {name: federation.replies[name] for name in ("north", "south")}
    federation.merge(two, quorum=2)
    with pytest.raises(AggregationError, match="2 replies can be used, 3 are needed"):
        federation.merge(two, quorum=3)


def test_what_is_no_message_is_told_as_the_reason(federation: SmallFederation) -> None:
    _, shown = federation.merge(
        {"south": federation.replies["south"]},
        refused={"north": "a message of 3 bytes is damaged"},
    )
    assert shown.rejected == {"north": "a message of 3 bytes is damaged"}


def test_the_usual_norm_is_the_median_of_recent_rounds_medians() -> None:
    here = {"a": {"shared": 5.0}, "b": {"shared": 7.0}, "c": {"shared": 90.0}}
    assert usual_norms({}, here) == {"shared": 7.0}
    assert usual_norms({"shared": (1.0, 3.0, 2.0)}, here) == {"shared": 2.0}
    two = {"a": {"shared": 5.0}, "b": {"shared": 70.0}}
    assert usual_norms({}, two) == {}  # of two nobody can say which is usual
    assert usual_norms({"shared": (0.0, 0.0)}, here) == {}
    recent: dict[str, tuple[float, ...]] = {}
    for number in range(NORM_ROUNDS + 2):
        recent = remember_norms(recent, [{"shared": float(number)}, {"shared": number + 2.0}])
    assert recent == {"shared": (3.0, 4.0, 5.0, 6.0, 7.0)}
    assert remember_norms(recent, []) == recent
    assert NORM_FACTOR == 10


def test_norms_are_remembered_across_a_restart(tmp_path: Path, store: SiteStore) -> None:
    plans = small_plans(keep_every=2)
    site = store.site("north", [("t1", "t2"), ("t1",)])
    settings = dataclasses.replace(SETTINGS, rounds=3)
    run = simulate(plans, [site], settings, "all", tmp_path / "run")
    state = load_state_of(open_run(run.folder), 3)
    assert {len(found) for found in state.norms.values()} == {3}
    assert not any(name.startswith("norms.") for name in state.weights)


def test_a_run_goes_on_without_a_site_that_sends_nonsense_and_says_so(
    tmp_path: Path, federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hostile(task: Message, site: Site, *rest: object) -> tuple[Message, State]:
        reply, optimizer = train_at_site(task, site, *rest)  # type: ignore[arg-type]
        return (longer(1e3)(reply) if site.name == "north" else reply), optimizer

    monkeypatch.setattr(client, "train_at_site", hostile)
    run = simulate(PLANS, list(federation.sites.values()), SETTINGS, "0", tmp_path / "run")
    for reports in open_run(run.folder).history:
        assert reports["north"].loss is None
        assert "times the median of recent rounds" in reports["north"].absent
        assert reports["south"].loss is not None
        assert not reports["south"].absent
    assert "times the median" in (run.folder / "progress.csv").read_text()


def test_a_message_that_is_damaged_or_too_long_counts_as_no_reply(
    tmp_path: Path, federation: SmallFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def carried(message: Message) -> bytes:
        content = encode(message)
        if message.kind == "train" and "loss" in message.record:
            trained.append(1)
            if len(trained) == 1:
                return content[:-1]
            if len(trained) == 2:
                large = {**message.tensors, "more": torch.zeros(2 * 10**7)}
                return encode(dataclasses.replace(message, tensors=large))
        return content

    trained: list[int] = []
    monkeypatch.setattr(simulation, "encode", carried)
    run = simulate(PLANS, list(federation.sites.values()), SETTINGS, "0", tmp_path / "run")
    first, second = run.history
    assert "is damaged" in first["east"].absent
    assert "bytes came, at most" in first["north"].absent
    assert not first["south"].absent
    assert not any(report.absent for report in second.values())


def fingerprint(cases: int, **modalities: int) -> Fingerprint:
    return Fingerprint(cases, modalities, ({}, {}, {}), ({}, {}, {}), {}, {}, {}, {}, {}, {}, {})


@pytest.mark.parametrize(
    ("registration", "message"),
    [
        (Registration(0, {}), "registered 0 training cases"),
        (Registration(3, {"t1": 4}), "registered 3 training cases, but {'t1': 4}"),
        (Registration(3, {"t1": 1, "t2": 1}), "every case has at least one modality"),
        (Registration(3, {"pd": 3}), "registered 'pd'; the plans know flair, t1, t2"),
        (Registration(3, {"t1": 3}, ["pd"]), "registered 'pd'"),
        (Registration(2, {"t1": -2}), "whole numbers up to"),
        (Registration(10**9, {"t1": 10**9}), "whole numbers up to"),
        (Registration(2, {"t1": 2.0}), "whole numbers up to"),  # type: ignore[dict-item]
        (Registration(2, ["t1"]), "something else than counts"),  # type: ignore[arg-type]
        (
            Registration(2, {"t1": 2}, labelled=["stroke"]),
            r"it labels \['stroke'\]; the plans know",
        ),
        (Registration(2, {"t1": 2}, labelled=[]), r"it labels \[\]; the plans know lesion, core"),
        (Registration(2, {"t1": 2}, labelled="core"), "it labels 'core'; the plans know"),
        (Registration(9, {"t1": 9}), "registered 9 for cases, its fingerprint says 8"),
        (Registration(8, {"t1": 8, "t2": 4}), "registered 4 for t2, its fingerprint says 3"),
    ],
)
def test_a_registration_that_cannot_be_true_is_refused(
    registration: Registration, message: str
) -> None:
    with pytest.raises(AggregationError, match=message):
        check_registration("north", registration, PLANS, fingerprint(8, t1=8, t2=3))


def test_a_site_speaks_only_of_classes_that_it_registered(
    federation: SmallFederation,
) -> None:
    registrations = federation.registrations
    changed = {
        **registrations,
        "north": dataclasses.replace(registrations["north"], labelled=["lesion"]),
    }
    _, found = merge_round(federation.start, federation.replies, changed, PLANS, SETTINGS)
    assert found.rejected.keys() == {"north"}
    assert "of classes that it does not label; it registered lesion" in found.rejected["north"]
    dice = {"lesion": [0.5, 1], "core": [0.5, 1]}
    reply = Message("validate", {"round": 1, "dice": dice}, {})
    check_validation("north", reply, 1, 3, PLANS, ["core", "lesion"])
    with pytest.raises(AggregationError, match="sent Dice of core, which it does not label"):
        check_validation("north", reply, 1, 3, PLANS, ["lesion"])


def test_a_registration_within_its_fingerprint_is_taken() -> None:
    check_registration("north", Registration(6, {"t1": 6, "t2": 1}, ["t2"]), PLANS)
    check_registration("north", Registration(6, {"t1": 6}), PLANS, fingerprint(8, t1=8, t2=3))


NO_SUMS = "site 'north' sent Dice that are no sums over its cases"


@pytest.mark.parametrize(
    ("dice", "message"),
    [
        ({}, NO_SUMS),
        ({"core": [2.5, 2]}, NO_SUMS),
        ({"core": [1.0, 7]}, NO_SUMS),
        ({"core": [-0.1, 2]}, "site 'north': dice: core: is -0.1; it must be a number from 0"),
        ({"core": [math.nan, 2]}, "dice: core: is nan; it must be a number from 0"),
        ({"core": [1.0, 1.5]}, "dice: core: is 1.5; it must be a whole number from 0"),
        ({"core": "many"}, "dice: core: a list is needed, not 'many'"),
    ],
)
def test_dice_that_cannot_be_true_are_refused(dice: dict[str, object], message: str) -> None:
    good = Message("validate", {"round": 1, "dice": {"lesion": [1.5, 2], "core": [0, 0]}}, {})
    check_validation("north", good, 1, 3, PLANS)
    bad = Message("validate", {"round": 1, "dice": {"lesion": [0.5, 1], **dice}}, {})
    with pytest.raises(AggregationError, match=message):
        check_validation("north", bad, 1, 3, PLANS)
    with pytest.raises(AggregationError, match="a 'validate' reply to round 2 was asked for"):
        check_validation("north", good, 2, 3, PLANS)
