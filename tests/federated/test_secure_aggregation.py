"""Masked rounds: the server learns sums and nothing else, whoever drops out."""

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from masked_federation import MODALITIES, SETTINGS, SIZES, START, MaskedFederation, asked
from small import small_plans
from small_federation import PLANS, SiteStore, write_work
from small_federation import SETTINGS as OPEN

from mixmfl.core.errors import AggregationError, MixmflError, PlansError, PrivacyError, QuorumError
from mixmfl.core.files import write_json
from mixmfl.core.tensor_store import Stored
from mixmfl.data.labels import Labels
from mixmfl.federated import messages
from mixmfl.federated.client.client import Client, Handled
from mixmfl.federated.client.summed_sites import SummedSites
from mixmfl.federated.client.training import train_at_site
from mixmfl.federated.messages import Message
from mixmfl.federated.secure_aggregation.crypto import (
    agree,
    from_words,
    key_pair,
    key_stream,
    to_words,
)
from mixmfl.federated.secure_aggregation.protocol import KINDS, Participants
from mixmfl.federated.server.beginning import Beginning
from mixmfl.federated.server.checkpoint import load_state_of
from mixmfl.federated.server.merge import merge_round, train_task
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.server.secure_aggregation import (
    BlockSum,
    check_masked,
    check_masked_run,
    gather_participants,
    keys_tasks,
    masked_tasks,
    merge_sums,
    sum_blocks,
    summed_blocks,
)
from mixmfl.federated.simulation import simulate
from mixmfl.federated.state import (
    Registration,
    ServerState,
    Site,
)
from mixmfl.networks.prototypes import PARTS, State
from mixmfl.training.privacy_budget import Privacy

PLAIN = dataclasses.replace(OPEN, half_updates=False)
ONE_ROUND = dataclasses.replace(SETTINGS, rounds=1)


@pytest.fixture(scope="module")
def whole_run(sites: Mapping[str, Site], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a masked run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    return simulate(PLANS, list(sites.values()), SETTINGS, "all", folder / "run").folder


@pytest.mark.parametrize("labels", [2, 999])
def test_masked_replies_of_a_larger_network_are_taken(
    sites: Mapping[str, Site], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: int
) -> None:
    """One has many weights, one many labels, whose prototypes are in no first task."""
    if labels == 2:  # else what is allowed for prototypes would be enough for the weights
        monkeypatch.setattr(messages, "_REPLY_SLACK", 2**20)
    names = {"background": 0} | {f"label{number}": number for number in range(1, labels + 1)}
    plans = small_plans(labels=Labels(names))
    architecture = plans.configuration("2d")["architecture"]["arch_kwargs"]
    architecture["features_per_stage"] = [4, 32, 320]
    settings = dataclasses.replace(ONE_ROUND, local_steps=1)
    run = simulate(plans, list(sites.values()), settings, "all", tmp_path / "run")
    (row,) = run.history
    for site in row.values():  # a network for which twice the task and a mebibyte are too little
        assert site.sent_bytes > 2 * site.received_bytes + 2**20


def test_two_key_pairs_agree_on_a_secret_per_purpose() -> None:
    (mine, my_public), (theirs, their_public) = key_pair(), key_pair()
    assert agree(mine, their_public, "masks") == agree(theirs, my_public, "masks")
    assert agree(mine, their_public, "masks") != agree(mine, their_public, "shares")
    with pytest.raises(PrivacyError, match="a key that came for masking is none"):
        agree(mine, bytes(32), "masks")  # of small order: everybody would know the secret


def test_numbers_survive_fixed_point_and_add_up_modulo_two_to_the_64() -> None:
    values = np.array([0.5, -0.25, 0.0, 123.456])
    words = to_words(values, 32, 3)
    assert words[:3].tolist() == [2**31, 2**64 - 2**30, 0]
    mask = key_stream(bytes(32), 4)
    assert np.abs(from_words(words + mask - mask, 32) - values).max() <= 2**-33
    assert from_words(to_words(-values, 32, 3) + words, 32).tolist() == [0, 0, 0, 0]
    for bad in (np.nan, np.inf, 2.0**30):
        with pytest.raises(PrivacyError, match=r"NaN, infinite or beyond 3\.58e\+08"):
            to_words(np.array([bad]), 32, 3)


def test_a_key_stream_is_that_of_aes_in_counter_mode() -> None:
    # NIST SP 800-38A F.1.5 encrypts blocks by AES-256; of the all-zero key and block FIPS-197's
    # cipher gives dc95c078a2408989ad48a21492842087
    first = key_stream(bytes(32), 2).astype("<u8").tobytes()
    assert first.hex() == "dc95c078a2408989ad48a21492842087"
    whole = key_stream(bytes(32), 9)
    for start in (0, 1, 2, 5):  # a block of AES is two numbers
        assert key_stream(bytes(32), 4, start).tolist() == whole[start : start + 4].tolist()


def test_no_more_of_a_sum_is_made_than_asked_for() -> None:
    class Counted(Stored):
        def part(self, name: str, start: int, stop: int, room: torch.Tensor) -> torch.Tensor:
            read.append((start, stop))
            return room.copy_(torch.arange(start, stop))

    read: list[tuple[int, int]] = []
    reply = Counted(None, {"masked.x": (((100,), torch.int64), 0)})  # type: ignore[arg-type]
    total = BlockSum("masked.x", (reply, reply), 1, 100)
    assert total.part(7, 10).tolist() == [7, 8, 9]  # twice, with one bit after the point
    assert read == [(7, 10), (7, 10)]


def one_round(
    federation: MaskedFederation, registrations: dict[str, Registration]
) -> tuple[ServerState, Participants, dict[str, Message], dict[str, BlockSum]]:
    """Do a masked round."""
    participants, tasks = asked(federation, registrations)
    replies = federation.ask(tasks)
    for site, reply in replies.items():
        check_masked(site, reply, participants, START, SIZES)
    sums = sum_blocks(participants, replies)
    state, _ = merge_sums(START, participants, replies, sums, registrations, PLANS, SETTINGS)
    return state, participants, replies, sums


def plain_round(sites: Mapping[str, Site], registrations: dict[str, Registration]) -> ServerState:
    """Do the same round in the plain, training the blocks that three or more sites hold."""
    blocks = list(summed_blocks(START.weights, registrations))
    replies = {}
    for name, site in sites.items():
        task = train_task(START, registrations[name])
        task = dataclasses.replace(task, record={**task.record, "blocks": blocks})
        replies[name], _ = train_at_site(task, site, PLANS, PLAIN, {})
    # of what is not trained no change is sent, which the door asks for
    for name, reply in replies.items():
        still = {
            n: torch.zeros_like(t)
            for n, t in train_task(START, registrations[name]).tensors.items()
        }
        replies[name] = dataclasses.replace(reply, tensors={**still, **reply.tensors})
    return merge_round(START, replies, registrations, PLANS, PLAIN)[0]


def furthest(one: ServerState, other: ServerState) -> float:
    assert one.weights.keys() == other.weights.keys()
    return max(float((one.weights[n] - other.weights[n]).abs().max()) for n in one.weights)


def memory_apart(one: ServerState, other: ServerState, places: set[tuple[str, int]]) -> float:
    return max(
        float((getattr(one.memory[p], part) - getattr(other.memory[p], part)).abs().max())
        for p in places
        for part in PARTS
    )


def test_the_sum_is_that_of_plain_aggregation_with_unequal_modalities(
    sites: Mapping[str, Site], registrations: dict[str, Registration]
) -> None:
    masked, participants, _, sums = one_round(MaskedFederation(sites), registrations)
    plain = plain_round(sites, registrations)
    assert furthest(masked, plain) < 1e-6
    assert furthest(masked, START) > 1e-3
    assert set(participants.holders) == {
        "tailored.t1", "tailored.t2", "shared", "fusion", "decoder", "loss",
        "memory.t1.2", "memory.t2.2",
    }  # fmt: skip
    assert participants.holders["tailored.t2"] == ("east", "north", "west")
    assert set(masked.memory) == {("t1", 2), ("t2", 2)}
    assert memory_apart(masked, plain, set(masked.memory)) < 1e-4  # counts of some hundred voxels
    for place, features in masked.memory.items():
        assert float((features.values - plain.memory[place].values).abs().max()) < 1e-6
    assert sums["loss"].whole()[2] == 4


def without(registrations: dict[str, Registration], site: str) -> dict[str, Registration]:
    return {name: registration for name, registration in registrations.items() if name != site}


def test_the_attack_that_a_site_refuses_gives_its_numbers(
    sites: Mapping[str, Site],
    registrations: dict[str, Registration],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Do the same round with and without south: the difference of the sums is what south sent."""
    monkeypatch.setattr(SummedSites, "agree", lambda *_: None)
    federation = MaskedFederation(sites)
    with_south = one_round(federation, registrations)[3]["shared"].whole()
    without_south = one_round(federation, without(registrations, "south"))[3]["shared"].whole()
    task = train_task(START, registrations["south"])
    task = dataclasses.replace(
        task, record={**task.record, "blocks": summed_blocks(START.weights, registrations)}
    )
    reply, _ = train_at_site(task, sites["south"], PLANS, PLAIN, {})
    own = torch.cat([reply.tensors[n].flatten() for n in sorted(reply.tensors) if "shared." in n])
    found = (with_south - without_south) / registrations["south"].weights["shared"]
    assert float(np.abs(found - own.double().numpy()).max()) < 1e-9


@pytest.mark.parametrize("restarted", [False, True])
def test_no_sum_is_made_over_other_sites_than_the_first(
    tmp_path: Path,
    sites: Mapping[str, Site],
    registrations: dict[str, Registration],
    restarted: bool,
) -> None:
    """Neither of the same round nor of the next, nor after the sites restarted."""
    federation = MaskedFederation(sites, tmp_path)
    one_round(federation, registrations)
    if restarted:
        federation.restart()
    for number in (0, 1):
        state = dataclasses.replace(START, round=number)
        _, tasks = asked(federation, without(registrations, "south"), state)
        for site, task in tasks.items():
            with pytest.raises(PrivacyError, match="was summed over east, north, south, west befo"):
                federation.ask({site: task})
        # with all of them the round is repeated, as after a lost one or --resume
        _, tasks = asked(federation, registrations, state)
        assert set(federation.ask(tasks)) == set(registrations)


def test_a_record_that_is_damaged_stops_the_site(
    tmp_path: Path, sites: Mapping[str, Site], registrations: dict[str, Registration]
) -> None:
    federation = MaskedFederation(sites, tmp_path)
    _, tasks = asked(federation, registrations)
    for damaged in ("{", '{"loss": []}', '{"loss": 3}', '{"loss": ["a", 1]}'):
        (tmp_path / "north.json").write_text(damaged)
        with pytest.raises(PrivacyError, match=r"north\.json"):
            federation.ask({"north": tasks["north"]})
        _, tasks = asked(federation, registrations)
    (tmp_path / "north.json").unlink()  # as the hospitals may agree to
    federation.ask({"north": tasks["north"]})


def sum_of(participants: Participants, replies: dict[str, Message]) -> npt.NDArray[np.float64]:
    return sum_blocks(participants, replies)["shared"].whole()


def test_sites_that_were_sent_different_tensors_do_not_add_up(
    sites: Mapping[str, Site], registrations: dict[str, Registration]
) -> None:
    """Else a server that stops the others from learning would see what one site learned."""
    federation = MaskedFederation(sites)
    state, *_, sums = one_round(federation, registrations)
    assert np.abs(sums["shared"].whole()).max() < 10
    for prefix in ("fusion.", "tailored.t1.", "memory.t1.", "tailored.flair."):
        participants, tasks = asked(federation, registrations, state)
        name = next(name for name in tasks["south"].tensors if name.startswith(prefix))
        changed = {**tasks["south"].tensors, name: tasks["south"].tensors[name] + 1e-3}
        tasks["south"] = dataclasses.replace(tasks["south"], tensors=changed)
        summed = np.median(np.abs(sum_of(participants, federation.ask(tasks))))
        # flair is summed by nobody, so that no site knows who else holds it
        assert (summed > 1e6) == (prefix != "tailored.flair."), prefix


def test_sites_that_were_sent_different_participants_do_not_add_up(
    sites: Mapping[str, Site], registrations: dict[str, Registration]
) -> None:
    federation = MaskedFederation(sites)
    participants, tasks = asked(federation, registrations)
    again = MaskedFederation(sites, identities=federation.identities)
    other, _ = asked(again, registrations)
    stranger = dataclasses.replace(
        participants, keys={**participants.keys, "east": other.keys["east"]}
    )
    tasks["north"] = masked_tasks(START, stranger, registrations)["north"]
    replies = federation.ask(tasks)
    apart = dataclasses.replace(participants, holders={"shared": ("south", "west")})
    assert np.median(np.abs(sum_of(apart, replies))) > 1e6
    assert np.median(np.abs(sum_of(participants, replies))) > 1e6


def test_a_site_that_trained_an_earlier_round_otherwise_does_not_add_up(
    sites: Mapping[str, Site], registrations: dict[str, Registration]
) -> None:
    """Else the same round again would give another sum by this site's update alone."""
    federation = MaskedFederation(sites)

    def trained(
        state: ServerState, before: Mapping[str, State], only: str = ""
    ) -> tuple[dict[str, State], float]:
        participants, tasks = asked(federation, registrations, state)
        done = {
            name: federation.clients[name].handle(task, before.get(name, {}))
            for name, task in tasks.items()
            if only in ("", name)
        }
        replies = {name: handled.reply for name, handled in done.items()}
        total = 0.0 if only else float(np.median(np.abs(sum_of(participants, replies))))
        return {name: handled.optimizer for name, handled in done.items()}, total

    first, _ = trained(START, {})
    second = dataclasses.replace(START, round=1)
    assert trained(second, first)[1] < 10
    alone, _ = trained(START, {}, only="south")
    assert trained(second, {**first, **alone})[1] > 1e6


def test_of_fewer_than_all_sites_no_sum_can_be_read(
    sites: Mapping[str, Site], registrations: dict[str, Registration]
) -> None:
    federation = MaskedFederation(sites)
    participants, tasks = asked(federation, registrations)
    replies = federation.ask(tasks)
    for missing in MODALITIES:
        holders = {
            block: tuple(site for site in who if site != missing)
            for block, who in participants.holders.items()
        }
        part = dataclasses.replace(participants, holders=holders)
        assert np.median(np.abs(sum_of(part, replies))) > 1e6, missing


def test_what_a_site_sends_looks_like_noise(
    sites: Mapping[str, Site], registrations: dict[str, Registration]
) -> None:
    federation = MaskedFederation(sites)
    one_round(federation, registrations)
    reply = federation.seen["masked"]["north"]
    assert set(reply.record) == {"round"}  # no loss
    assert all(name.startswith("masked.") for name in reply.tensors)
    bits = np.unpackbits(reply.tensors["masked.decoder"].numpy().view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.01  # of 60,000 bits: five standard deviations
    # the same round again gives another message: keys are new every time
    one_round(federation, registrations)
    again = federation.seen["masked"]["north"].tensors["masked.decoder"]
    assert not (again == reply.tensors["masked.decoder"]).any()
    # and two masked replies, from which a difference could be taken, have nothing in common
    other = federation.seen["masked"]["east"].tensors["masked.decoder"]
    apart = np.abs(from_words((again - other).numpy().view(np.uint64), 32))
    assert np.median(apart) > 1e6


def test_a_site_refuses_what_would_reveal_its_numbers(
    sites: Mapping[str, Site], registrations: dict[str, Registration]
) -> None:
    federation = MaskedFederation(sites)

    def refused(why: str, **changes: Any) -> None:
        _, tasks = asked(federation, registrations)
        task = tasks["north"]
        record = {**task.record, **changes}
        with pytest.raises(PrivacyError, match=why):
            federation.ask({"north": dataclasses.replace(task, record=record)})

    with pytest.raises(PrivacyError, match="the server asked for a plain reply in a run that"):
        federation.ask({"north": train_task(START, registrations["north"])})
    participants, tasks = asked(federation, registrations)
    holders = participants.to_json()["holders"]
    refused("with 2 holders of a block", holders={**holders, "shared": ["north", "south"]})
    others = ["east", "south", "west"]
    refused("not those this site holds", holders={**holders, "shared": others})
    refused("not those this site holds", holders={**holders, "loss": others})
    refused(
        "not those this site holds", holders={**holders, "tailored.flair": sorted(registrations)}
    )
    refused("for which this site has no key", round=5)
    participants, tasks = asked(federation, registrations)
    federation.ask({"north": tasks["north"]})
    with pytest.raises(PrivacyError, match="it uses each once"):
        federation.ask({"north": tasks["north"]})


def test_a_server_refuses_replies_that_do_not_fit(
    sites: Mapping[str, Site], registrations: dict[str, Registration]
) -> None:
    federation = MaskedFederation(sites)
    keys = federation.ask(keys_tasks(0, registrations))
    sent = dict(keys["south"].record)
    for record, message in (
        ({**sent, "key": "no"}, "'south': key: is 'no'; it must be hexadecimal digits of a"),
        ({**sent, "round": 1}, "to round 1; a 'keys' reply to round 0 was asked for"),
        ({"round": 0}, r"site 'south': missing fields \['certificate'"),
    ):
        bad_key = dataclasses.replace(keys["south"], record=record)
        with pytest.raises(AggregationError, match=message):
            gather_participants(START, {**keys, "south": bad_key}, registrations, SIZES)
    participants = gather_participants(START, keys, registrations, SIZES)
    good = federation.ask(masked_tasks(START, participants, registrations))["north"]
    for tensors in (
        {**good.tensors, "masked.shared": good.tensors["masked.shared"][:-1]},
        {**good.tensors, "masked.shared": good.tensors["masked.shared"].double()},
        {**good.tensors, "masked.tailored.flair": good.tensors["masked.shared"]},
        {},
    ):
        bad = dataclasses.replace(good, tensors=tensors)
        with pytest.raises(MixmflError, match="has not the masked blocks that were asked for"):
            check_masked("north", bad, participants, START, SIZES)
    for record, message in (
        ({"round": 1}, "to round 1; a 'masked' reply to round 0 was asked for"),
        ({"round": 0, "epsilon": "x", "delta": 0.1}, "'north': epsilon: is 'x'; it must be a num"),
        ({"round": 0, "loss": 1}, r"site 'north': unknown fields \['loss'\]"),
    ):
        bad = dataclasses.replace(good, record=record)
        with pytest.raises(MixmflError, match=message):
            check_masked("north", bad, participants, START, SIZES)


def plainly(one: BlockSum, numbers: npt.NDArray[np.float64]) -> BlockSum:
    """Return a sum of one site that hides nothing."""
    words = torch.from_numpy(to_words(numbers, one.bits, 1).view(np.int64))
    return dataclasses.replace(one, replies=({one.name: words},))


def test_a_sum_that_cannot_come_of_training_is_left_out(
    sites: Mapping[str, Site], registrations: dict[str, Registration]
) -> None:
    federation = MaskedFederation(sites)
    _, participants, replies, sums = one_round(federation, registrations)
    absurd = {**sums, "shared": plainly(sums["shared"], sums["shared"].whole() + 1e4)}
    state, shown = merge_sums(START, participants, replies, absurd, registrations, PLANS, SETTINGS)
    assert state.round == 1
    assert furthest(state, START) == 0
    assert set(shown.rejected) == set(registrations)
    assert "cannot go further than" in shown.rejected["north"]
    seen = sums["memory.t1.2"]
    total = seen.whole()
    total[:-3] = 2.7e11  # with next to no voxels in each of three classes
    total[-3:] = 2.0**-24
    endless = {**sums, "memory.t1.2": plainly(seen, total)}
    state, shown = merge_sums(START, participants, replies, endless, registrations, PLANS, SETTINGS)
    assert furthest(state, START) == 0
    assert "sent memory.t1.2 with NaN, infinity or a norm beyond 1e19" in shown.rejected["north"]
    fewer = {**sums, "memory.t1.2": plainly(seen, -seen.whole())}
    state, shown = merge_sums(START, participants, replies, fewer, registrations, PLANS, SETTINGS)
    assert furthest(state, START) == 0
    assert shown.rejected["north"] == "the sum of all has a count < 0"


def test_an_encoder_that_too_few_sites_hold_is_not_trained_and_that_is_said(
    tmp_path: Path, sites: Mapping[str, Site], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run = simulate(PLANS, list(sites.values()), ONE_ROUND, "all", tmp_path / "run")
    assert "flair is held by 2 of the 3 sites that a sum needs" in caplog.text
    weights = load_state_of(open_run(run.folder), 1).weights
    for name, tensor in weights.items():
        if name.startswith("tailored."):
            untrained = "flair" in name or name.endswith("conv.bias")  # which a norm cancels
            assert torch.equal(tensor, START.weights[name]) == untrained
    assert len({report.loss for report in run.history[0].values()}) == 1  # the mean of all


def test_with_all_modalities_everywhere_a_masked_run_is_the_plain_run_to_a_millionth(
    tmp_path: Path, store: SiteStore
) -> None:
    three = [store.site(name, [("t1", "t2"), ("t1",)]) for name in ("a", "b", "c")]
    exact = dataclasses.replace(ONE_ROUND, half_updates=False)
    masked = simulate(PLANS, three, exact, "all", tmp_path / "masked")
    open_round = dataclasses.replace(PLAIN, rounds=1)
    plain = simulate(PLANS, three, open_round, "all", tmp_path / "plain")
    one, other = (load_state_of(open_run(run.folder), 1) for run in (masked, plain))
    assert furthest(one, other) < 1e-6
    assert masked.history[0]["a"].loss == pytest.approx(
        sum(report.loss or 0 for report in plain.history[0].values()) / 3, abs=1e-6
    )


def test_a_site_that_fails_or_sends_a_wrong_share_costs_the_masked_round_and_not_the_run(
    tmp_path: Path,
    sites: Mapping[str, Site],
    whole_run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    handle = Client.handle
    fails_in: dict[str, int] = {}

    def fails(client: Client, task: Message, optimizer: State) -> Handled:
        number = task.record["round"] if client.site.name == "south" else None
        if fails_in.get(task.kind, -1) == number:
            raise PrivacyError("the disk is full")
        handled = handle(client, task, optimizer)
        if task.kind == "masked" and fails_in.get("share", -1) == number:
            shorter = {name: tensor[:-1] for name, tensor in handled.reply.tensors.items()}
            reply = dataclasses.replace(handled.reply, tensors=shorter)
            return dataclasses.replace(handled, reply=reply)
        return handled

    monkeypatch.setattr(Client, "handle", fails)
    out, beginning = tmp_path / "run", Beginning()
    full = r"a masked round is a sum over all sites .* south \(the disk is full\)"
    cut = "site 'south' sent a reply to round 1 that has not the masked blocks"
    for kind, message in (("keys", full), ("masked", full), ("share", cut)):
        fails_in[kind] = 1
        with pytest.raises(QuorumError, match=f"round 2: {message}"):
            simulate(PLANS, list(sites.values()), SETTINGS, "all", out, beginning=beginning)
        fails_in.clear()
        beginning = Beginning(resume=True)
    simulate(PLANS, list(sites.values()), SETTINGS, "all", out, beginning=beginning)
    one, other = (load_state_of(open_run(run), 2) for run in (out, whole_run))
    assert furthest(one, other) == 0


def test_private_sites_can_be_masked_too(tmp_path: Path, sites: Mapping[str, Site]) -> None:
    private = [
        dataclasses.replace(s, privacy=Privacy(1e9, 1e-5, 1.0, 1.0, tmp_path / f"{n}.json"))
        for n, s in sites.items()
        if n != "north"
    ]
    run = simulate(PLANS, [*private, sites["north"]], ONE_ROUND, "all", tmp_path / "run")
    (row,) = run.history
    assert row["south"].epsilon is not None
    assert row["north"].epsilon is None
    assert row["south"].loss == row["north"].loss is not None  # of north alone, who tells it


def test_a_run_that_cannot_be_masked_is_refused(registrations: dict[str, Registration]) -> None:
    with pytest.raises(PlansError, match="aggregation is 'median', which compares the sites'"):
        check_masked_run(small_plans(aggregation="median"), registrations)
    two = {name: registrations[name] for name in ("north", "south")}
    with pytest.raises(PlansError, match="2 sites would take part in a masked run; 3 are needed"):
        check_masked_run(PLANS, two)
    some = {n: dataclasses.replace(r, labelled=["lesion"]) for n, r in registrations.items()}
    some["south"] = registrations["south"]
    with pytest.raises(PlansError, match=r"'core' is labelled by south alone: a sum of its"):
        check_masked_run(PLANS, some)
    forgetful = dataclasses.replace(PLANS.network, compensation_levels=())
    check_masked_run(dataclasses.replace(small_plans(), network=forgetful), some)


def test_the_command_trains_masked(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    work = write_work(tmp_path / "work", {name: [("t1",), ("t1", "t2")] for name in "abc"})
    base = ("mixmfl_train_federated", "-i", work, "-c", "2d", "--fold", "all")
    assert command(*base, "-o", tmp_path / "run", "--masked", "--rounds", 1) == 0
    assert open_run(tmp_path / "run").settings.masked
    small_plans(aggregation="trimmed").save(work / "plans.json")
    assert command(*base, "-o", tmp_path / "b", "--masked") == 2
    assert "which compares the sites' updates" in capsys.readouterr().err


def test_without_any_field_a_reply_of_a_masked_round_is_refused(
    sites: Mapping[str, Site], registrations: dict[str, Registration]
) -> None:
    federation = MaskedFederation(sites)
    participants = one_round(federation, registrations)[1]

    def taken(kind: str, reply: Message) -> bool:
        try:
            if kind == "keys":
                keys = {**federation.seen["keys"], "north": reply}
                gather_participants(START, keys, registrations, SIZES)
            else:
                check_masked("north", reply, participants, START, SIZES)
        except AggregationError:
            return False
        return True

    for kind in KINDS:
        reply = federation.seen[kind]["north"]
        assert taken(kind, reply), kind
        for field in reply.record:
            rest = {name: value for name, value in reply.record.items() if name != field}
            assert not taken(kind, dataclasses.replace(reply, record=rest)), (kind, field)


@pytest.mark.parametrize(
    ("sites", "found"),
    [
        ("a", "a list is needed, not 'a'"),
        ([], "has 0 entries; it must have from 1 to 1000"),
        (["a", 1], "is 1; it must be printable text"),
        (["a", "a"], r"is \['a', 'a'\]; each may be named once"),
    ],
)
def test_a_damaged_record_of_the_sites_summed_stops_the_site(
    tmp_path: Path, sites: Any, found: str
) -> None:
    write_json(tmp_path / "summed.json", {"decoder": sites})
    with pytest.raises(PrivacyError, match=rf"summed\.json: decoder: {found}"):
        SummedSites(tmp_path / "summed.json").agree({"decoder": ("a", "b", "c")})
