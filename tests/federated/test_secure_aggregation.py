"""Masked rounds: the server learns sums and nothing else, whoever drops out."""

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from small import small_plans
from small_federation import PLANS, SiteStore, write_work
from small_federation import SETTINGS as OPEN

from mixmfl.core.errors import AggregationError, MixmflError, PlansError, PrivacyError, QuorumError
from mixmfl.core.tensor_store import Stored
from mixmfl.federated.client.client import Client, Handled
from mixmfl.federated.client.training import train_at_site
from mixmfl.federated.messages import Message, decode, encode
from mixmfl.federated.secure_aggregation.crypto import (
    agree,
    from_words,
    join_secret,
    key_pair,
    key_stream,
    open_sealed,
    seal,
    split_secret,
    to_words,
)
from mixmfl.federated.secure_aggregation.protocol import KINDS, Participants
from mixmfl.federated.server import coordinator
from mixmfl.federated.server.checkpoint import load_state_of, open_run
from mixmfl.federated.server.merge import merge_round, train_task
from mixmfl.federated.server.secure_aggregation import (
    BlockSum,
    _reveals,
    are_shares,
    check_masked,
    check_masked_run,
    gather_participants,
    keys_tasks,
    masked_tasks,
    merge_sums,
    shares_tasks,
    sum_blocks,
    summed_blocks,
    unmask_tasks,
)
from mixmfl.federated.simulation import simulate
from mixmfl.federated.state import (
    Registration,
    ServerState,
    Site,
    first_state,
    register,
)
from mixmfl.networks.build import prototype_sizes
from mixmfl.networks.prototypes import PARTS, State
from mixmfl.training.privacy_budget import Privacy

SETTINGS = dataclasses.replace(OPEN, masked=True)
PLAIN = dataclasses.replace(OPEN, half_updates=False)
SIZES = prototype_sizes(PLANS, "2d")
START = first_state(PLANS, SETTINGS)

# t1 is held by four, t2 by three, flair by two
MODALITIES: dict[str, Sequence[Sequence[str]]] = {
    "east": [("t1", "t2"), ("t1",)],
    "north": [("t1", "t2")],
    "south": [("t1", "flair"), ("flair",), ("t1",)],
    "west": [("t1", "t2", "flair"), ("t2",)],
}


@pytest.fixture(scope="module")
def sites(store: SiteStore) -> Mapping[str, Site]:
    return store.federation(MODALITIES).sites


@pytest.fixture(scope="module")
def told(sites: Mapping[str, Site]) -> dict[str, Registration]:
    return {name: register(site) for name, site in sites.items()}


def test_two_key_pairs_agree_on_a_secret_per_purpose() -> None:
    (mine, my_public), (theirs, their_public) = key_pair(), key_pair()
    assert agree(mine, their_public, "masks") == agree(theirs, my_public, "masks")
    assert agree(mine, their_public, "masks") != agree(mine, their_public, "shares")
    with pytest.raises(PrivacyError, match="a key that came for masking is none"):
        agree(mine, bytes(32), "masks")  # of small order: everybody would know the secret


def test_what_is_sealed_opens_by_the_same_key_only() -> None:
    key, content = bytes(range(32)), {"key": "ab", "seeds": {"shared": "cd"}}
    sealed = seal(key, content)
    assert open_sealed(key, sealed) == content
    assert "seeds" not in bytes.fromhex(sealed).decode("latin-1")
    assert seal(key, content) != sealed
    changed = sealed[:-1] + ("0" if sealed[-1] != "0" else "1")
    for bad in (changed, sealed[:20], "no", 3):
        with pytest.raises(PrivacyError, match="changed on the way"):
            open_sealed(key, bad)  # type: ignore[arg-type]
    with pytest.raises(PrivacyError, match="changed on the way"):
        open_sealed(bytes(32), sealed)


def test_any_three_of_five_shares_give_the_secret_and_two_do_not() -> None:
    secret = bytes([255] * 32)
    shares = dict(enumerate(split_secret(secret, 5, 3), start=1))
    for chosen in ((1, 2, 3), (5, 3, 1), (2, 4, 5), (1, 2, 3, 4, 5)):
        assert join_secret({x: shares[x] for x in chosen}, 3) == secret
    with pytest.raises(PrivacyError, match="2 shares of a secret came, 3 are needed"):
        join_secret({1: shares[1], 2: shares[2]}, 3)
    with pytest.raises(PrivacyError, match="do not belong together"):
        join_secret({1: shares[1], 2: shares[2], 3: shares[4]}, 3)
    # a share alone says nothing: with threshold 2 the line through it hits any secret
    assert split_secret(secret, 2, 2)[0] != split_secret(secret, 2, 2)[0]


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
    seed = bytes(range(32))
    total = BlockSum("masked.x", (reply, reply), ((seed, 1), (seed, -1)), 1, 100)
    assert total.part(7, 10).tolist() == [7, 8, 9]  # twice, with one bit after the point
    assert read == [(7, 10), (7, 10)]


class Federation:
    """Sites in this process, asked one after another; some do not answer."""

    def __init__(self, sites: Mapping[str, Site], plans: Any = PLANS) -> None:
        self.sites = sites
        self.clients = {name: Client(site, plans, SETTINGS) for name, site in sites.items()}
        self.seen: dict[str, dict[str, Message]] = {}

    def ask(self, tasks: dict[str, Message], silent: tuple[str, ...] = ()) -> dict[str, Message]:
        replies = {}
        for name, task in tasks.items():
            if name not in silent:
                handled = self.clients[name].handle(decode(encode(task)), {})
                replies[name] = decode(encode(handled.reply))
                self.seen.setdefault(task.kind, {})[name] = replies[name]
        return replies


def one_round(
    federation: Federation,
    told: dict[str, Registration],
    silent: dict[str, tuple[str, ...]] | None = None,
) -> tuple[ServerState, Participants, dict[str, Message], dict[str, Any]]:
    """Do a masked round in which some sites are silent from a step on."""
    quiet = silent or {}
    keys = federation.ask(keys_tasks(0, told), quiet.get("keys", ()))
    roster = gather_participants(START, keys, told, SIZES)
    shared = federation.ask(shares_tasks(roster), quiet.get("shares", ()))
    assert all(are_shares(site, reply, roster) for site, reply in shared.items())
    tasks = masked_tasks(START, roster, shared, told)
    replies = federation.ask(tasks, quiet.get("masked", ()))
    for site, reply in replies.items():
        check_masked(site, reply, roster, shared, START, SIZES)
    reveals = federation.ask(unmask_tasks(roster, replies), quiet.get("unmask", ()))
    sums = sum_blocks(roster, shared, replies, reveals)
    state, _ = merge_sums(START, roster, replies, sums, told, PLANS, SETTINGS)
    return state, roster, replies, sums


def plain_round(sites: Mapping[str, Site], told: dict[str, Registration]) -> ServerState:
    """Do the same round in the plain, training the blocks that three or more sites hold."""
    blocks = list(summed_blocks(START.weights, told))
    replies = {}
    for name, site in sites.items():
        task = train_task(START, told[name])
        task = dataclasses.replace(task, record={**task.record, "blocks": blocks})
        replies[name], _ = train_at_site(task, site, PLANS, PLAIN, {})
    # of what is not trained no change is sent, which the door asks for
    for name, reply in replies.items():
        still = {n: torch.zeros_like(t) for n, t in train_task(START, told[name]).tensors.items()}
        replies[name] = dataclasses.replace(reply, tensors={**still, **reply.tensors})
    return merge_round(START, replies, told, PLANS, PLAIN)[0]


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
    sites: Mapping[str, Site], told: dict[str, Registration]
) -> None:
    masked, roster, _, sums = one_round(Federation(sites), told)
    plain = plain_round(sites, told)
    assert furthest(masked, plain) < 1e-6
    assert furthest(masked, START) > 1e-3
    assert set(roster.holders) == {
        "tailored.t1", "tailored.t2", "shared", "fusion", "decoder", "loss",
        *(f"memory.{modality}.{level}" for modality in ("t1", "t2") for level in (0, 1, 2)),
    }  # fmt: skip
    assert roster.holders["tailored.t2"] == ("east", "north", "west")
    assert set(masked.memory) == {(m, level) for m in ("t1", "t2") for level in (0, 1, 2)}
    assert memory_apart(masked, plain, set(masked.memory)) < 1e-4  # counts of some hundred voxels
    for place, features in masked.memory.items():
        for part in ("values", "spreads"):
            found, wanted = getattr(features, part), getattr(plain.memory[place], part)
            assert float((found - wanted).abs().max()) < 1e-6
    assert sums["loss"].whole()[1] == 4


@pytest.mark.parametrize(
    ("silent", "left"),
    [
        ({"keys": ("south",)}, ("east", "north", "west")),
        ({"shares": ("south",)}, ("east", "north", "west")),
        ({"masked": ("south",)}, ("east", "north", "west")),
        ({"unmask": ("south",)}, ("east", "north", "south", "west")),
    ],
)
def test_a_site_may_drop_out_at_any_step(
    sites: Mapping[str, Site],
    told: dict[str, Registration],
    silent: dict[str, tuple[str, ...]],
    left: tuple[str, ...],
) -> None:
    masked, _, replies, _ = one_round(Federation(sites), told, silent)
    assert tuple(sorted(replies)) == left
    # south alone with west holds flair, which is not summed with or without it
    plain_told = {name: told[name] for name in left}
    blocks = summed_blocks(START.weights, told)
    assert summed_blocks(START.weights, plain_told) == blocks
    assert furthest(masked, plain_round({n: sites[n] for n in left}, plain_told)) < 1e-6


def test_a_block_whose_holders_become_two_stays_hidden_and_as_it_was(
    sites: Mapping[str, Site], told: dict[str, Registration]
) -> None:
    federation = Federation(sites)
    masked, _, replies, sums = one_round(federation, told, {"masked": ("north",)})
    assert "tailored.t2" not in sums
    for name in START.weights:
        if name.startswith("tailored.t2."):
            assert torch.equal(masked.weights[name], START.weights[name])
    assert furthest(masked, START) > 1e-3
    # they sent it, but nobody gave the shares of its own masks
    assert "masked.tailored.t2" in replies["east"].tensors
    for reveal in federation.seen["unmask"].values():
        assert "tailored.t2" not in reveal.record["seeds"]
        assert set(reveal.record["dropped"]) == {"north"}


def test_of_no_site_both_kinds_of_shares_are_given(
    sites: Mapping[str, Site], told: dict[str, Registration]
) -> None:
    federation = Federation(sites)
    one_round(federation, told, {"masked": ("south",)})
    for reveal in federation.seen["unmask"].values():
        kept = {site for shares in reveal.record["seeds"].values() for site in shares}
        assert not kept & set(reveal.record["dropped"])


def test_what_a_site_sends_looks_like_noise(
    sites: Mapping[str, Site], told: dict[str, Registration]
) -> None:
    federation = Federation(sites)
    one_round(federation, told)
    reply = federation.seen["masked"]["north"]
    assert set(reply.record) == {"round"}  # no loss
    assert all(name.startswith("masked.") for name in reply.tensors)
    bits = np.unpackbits(reply.tensors["masked.decoder"].numpy().view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.01  # of 60,000 bits: five standard deviations
    # the same round again gives another message: keys are new every time
    one_round(federation, told)
    again = federation.seen["masked"]["north"].tensors["masked.decoder"]
    assert not (again == reply.tensors["masked.decoder"]).any()
    # and two masked replies, from which a difference could be taken, have nothing in common
    other = federation.seen["masked"]["east"].tensors["masked.decoder"]
    assert float(np.abs(from_words((again - other).numpy().view(np.uint64), 32)).min()) > 1


def test_a_site_refuses_what_would_reveal_its_numbers(
    sites: Mapping[str, Site], told: dict[str, Registration]
) -> None:
    federation = Federation(sites)
    roster = gather_participants(START, federation.ask(keys_tasks(0, told)), told, SIZES)
    good = shares_tasks(roster)["north"]

    def refused(task: Message, why: str) -> None:
        with pytest.raises(PrivacyError, match=why):
            federation.ask({"north": task})

    refused(train_task(START, told["north"]), "the server asked for a plain reply in a run that")
    low = dataclasses.replace(good, record={**good.record, "threshold": 2})
    refused(low, "2 of 4 shares to reveal a secret")
    two = {**good.record["holders"], "shared": ["north", "south"]}
    few = dataclasses.replace(good, record={**good.record, "holders": two})
    refused(few, "with 2 holders of a block")
    refused(unmask_tasks(roster, told)["north"], "which would reveal more than their sum")
    shared = federation.ask(shares_tasks(roster))
    refused(good, "shares its secrets once per round")
    tasks = masked_tasks(START, roster, shared, told)
    spoilt = {**tasks["north"].record["sealed"], "south": "00" * 40}
    record = {**tasks["north"].record, "sealed": spoilt}
    refused(dataclasses.replace(tasks["north"], record=record), "changed on the way")
    federation.ask(tasks)
    refused(tasks["north"], "sends its masked reply once per round")
    for replied in (["north", "south"], ["east", "south", "west"], [*told, "stranger"]):
        task = Message("unmask", {"round": 0, "replied": replied}, {})
        refused(task, "which would reveal more than their sum")
    federation.ask(unmask_tasks(roster, told))
    refused(unmask_tasks(roster, told)["north"], "which has no keys here")  # they are forgotten
    late = Message("masked", {**tasks["north"].record, "round": 5}, tasks["north"].tensors)
    refused(late, "task for round 5, which has no keys here")


def test_a_server_refuses_replies_that_do_not_fit(
    sites: Mapping[str, Site], told: dict[str, Registration]
) -> None:
    federation = Federation(sites)
    keys = federation.ask(keys_tasks(0, told))
    bad_key = dataclasses.replace(keys["south"], record={"round": 0, "seal": "no", "mask": "no"})
    assert "south" not in gather_participants(START, {**keys, "south": bad_key}, told, SIZES).keys
    with pytest.raises(QuorumError, match="2 sites sent keys; a masked round needs 3"):
        gather_participants(START, {name: keys[name] for name in ("east", "west")}, told, SIZES)
    roster = gather_participants(START, keys, told, SIZES)
    shared = federation.ask(shares_tasks(roster))
    fewer = {"round": 0, "sealed": {"east": "00"}}
    assert not are_shares("north", dataclasses.replace(shared["north"], record=fewer), roster)
    replies = federation.ask(masked_tasks(START, roster, shared, told))
    good = replies["north"]
    for tensors in (
        {**good.tensors, "masked.shared": good.tensors["masked.shared"][:-1]},
        {**good.tensors, "masked.shared": good.tensors["masked.shared"].double()},
        {**good.tensors, "masked.tailored.flair": good.tensors["masked.shared"]},
        {},
    ):
        bad = dataclasses.replace(good, tensors=tensors)
        with pytest.raises(MixmflError, match="has not the masked blocks that were asked for"):
            check_masked("north", bad, roster, shared, START, SIZES)
    for record in (
        {"round": 1},
        {"round": 0, "epsilon": "x", "delta": 0.1},
        {"round": 0, "loss": 1},
    ):
        bad = dataclasses.replace(good, record=record)
        with pytest.raises(MixmflError, match="has not the masked blocks that were asked for"):
            check_masked("north", bad, roster, shared, START, SIZES)
    reveals = federation.ask(unmask_tasks(roster, replies))
    with pytest.raises(QuorumError, match="2 sites helped to unmask the sum, 3 are needed"):
        sum_blocks(roster, shared, replies, {n: reveals[n] for n in ("east", "west")})
    junk = {n: dataclasses.replace(r, record={**r.record, "seeds": 3}) for n, r in reveals.items()}
    with pytest.raises(QuorumError, match="0 sites helped"):
        sum_blocks(roster, shared, replies, junk)


def plainly(one: BlockSum, numbers: npt.NDArray[np.float64]) -> BlockSum:
    """Return a sum of one site that hides nothing."""
    words = torch.from_numpy(to_words(numbers, one.bits, 1).view(np.int64))
    return dataclasses.replace(one, replies=({one.name: words},), masks=())


def test_a_sum_that_cannot_come_of_training_is_left_out(
    sites: Mapping[str, Site], told: dict[str, Registration]
) -> None:
    federation = Federation(sites)
    _, roster, replies, sums = one_round(federation, told)
    absurd = {**sums, "shared": plainly(sums["shared"], sums["shared"].whole() + 1e4)}
    state, shown = merge_sums(START, roster, replies, absurd, told, PLANS, SETTINGS)
    assert state.round == 1
    assert furthest(state, START) == 0
    assert set(shown.rejected) == set(told)
    assert "cannot go further than" in shown.rejected["north"]
    seen = sums["memory.t1.2"]
    total = seen.whole()
    total[:-3] = 2.7e11  # with next to no voxels in each of three classes
    total[-3:] = 2.0**-24
    endless = {**sums, "memory.t1.2": plainly(seen, total)}
    state, shown = merge_sums(START, roster, replies, endless, told, PLANS, SETTINGS)
    assert furthest(state, START) == 0
    assert "sent memory.t1.2 with NaN, infinity or a norm beyond 1e19" in shown.rejected["north"]
    fewer = {**sums, "memory.t1.2": plainly(seen, -seen.whole())}
    state, shown = merge_sums(START, roster, replies, fewer, told, PLANS, SETTINGS)
    assert furthest(state, START) == 0
    assert shown.rejected["north"] == "the sum of all has a count < 0"


def test_an_encoder_that_too_few_sites_hold_is_not_trained_and_that_is_said(
    tmp_path: Path, sites: Mapping[str, Site], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        run = simulate(PLANS, list(sites.values()), SETTINGS, "all", tmp_path / "run")
    assert "flair is held by 2 of the 3 sites that a sum needs" in caplog.text
    weights = load_state_of(open_run(run.folder), 2).weights
    for name, tensor in weights.items():
        if name.startswith("tailored."):
            assert torch.equal(tensor, START.weights[name]) == ("flair" in name)
    assert len({told.loss for told in run.history[0].values()}) == 1  # the mean of all


def test_with_all_modalities_everywhere_a_masked_run_is_the_plain_run_to_a_millionth(
    tmp_path: Path, store: SiteStore
) -> None:
    plans = small_plans(keep_every=1)
    three = [store.site(name, [("t1", "t2"), ("t1",)]) for name in ("a", "b", "c")]
    masked = simulate(plans, three, SETTINGS, "all", tmp_path / "masked")
    plain = simulate(plans, three, PLAIN, "all", tmp_path / "plain")
    one, other = (load_state_of(open_run(run.folder), 1) for run in (masked, plain))
    assert furthest(one, other) < 1e-6
    assert masked.history[0]["a"].loss == pytest.approx(
        sum(told.loss or 0 for told in plain.history[0].values()) / 3, abs=1e-6
    )


def test_a_masked_run_goes_on_without_a_site_that_fails(
    tmp_path: Path, sites: Mapping[str, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    handle = Client.handle

    def fails(client: Client, task: Message, optimizer: State) -> Handled:
        if task.kind == "masked" and client.site.name == "south":
            raise PrivacyError("the privacy budget is spent")
        return handle(client, task, optimizer)

    monkeypatch.setattr(Client, "handle", fails)
    run = simulate(PLANS, list(sites.values()), SETTINGS, "all", tmp_path / "run")
    for row in run.history:
        assert row["south"].absent == "the privacy budget is spent"
        assert not row["north"].absent


def test_private_sites_can_be_masked_too(tmp_path: Path, sites: Mapping[str, Site]) -> None:
    private = [
        dataclasses.replace(s, privacy=Privacy(1e9, 1e-5, 1.0, 1.0, tmp_path / f"{n}.json"))
        for n, s in sites.items()
        if n != "north"
    ]
    run = simulate(PLANS, [*private, sites["north"]], SETTINGS, "all", tmp_path / "run")
    (row, _) = run.history
    assert row["south"].epsilon is not None
    assert row["north"].epsilon is None
    assert row["south"].loss == row["north"].loss is not None  # of north alone, who tells it


def test_a_run_that_cannot_be_masked_is_refused(told: dict[str, Registration]) -> None:
    with pytest.raises(PlansError, match="aggregation is 'median', which compares the sites'"):
        check_masked_run(small_plans(aggregation="median"), told)
    two = {name: told[name] for name in ("north", "south")}
    with pytest.raises(PlansError, match="2 sites would take part in a masked run; 3 are needed"):
        check_masked_run(PLANS, two)
    some = {n: dataclasses.replace(r, labelled=["lesion"]) for n, r in told.items()}
    some["south"] = told["south"]
    with pytest.raises(PlansError, match=r"'core' is labelled by south alone: a sum of its"):
        check_masked_run(PLANS, some)
    forgetful = dataclasses.replace(PLANS.network, compensation_levels=())
    check_masked_run(dataclasses.replace(small_plans(imagining=0.0), network=forgetful), some)


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


def test_a_sum_that_cannot_be_unmasked_is_another_try_and_not_the_end(
    tmp_path: Path, sites: Mapping[str, Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PrivacyError("shares of a secret do not belong together")

    monkeypatch.setattr(coordinator, "sum_blocks", fail)
    with pytest.raises(QuorumError, match="round 1: the sum cannot be unmasked: shares of a"):
        simulate(PLANS, list(sites.values()), SETTINGS, "0", tmp_path / "run")


def test_without_any_field_a_reply_of_a_masked_round_is_refused(
    sites: Mapping[str, Site], told: dict[str, Registration]
) -> None:
    federation = Federation(sites)
    roster = one_round(federation, told)[1]
    shared = federation.seen["shares"]

    def taken(kind: str, reply: Message) -> bool:
        if kind == "keys":
            keys = {**federation.seen["keys"], "north": reply}
            return "north" in gather_participants(START, keys, told, SIZES).keys
        if kind == "shares":
            return are_shares("north", reply, roster)
        if kind == "unmask":
            return _reveals(reply, roster)
        try:
            check_masked("north", reply, roster, shared, START, SIZES)
        except AggregationError:
            return False
        return True

    for kind in KINDS:
        reply = federation.seen[kind]["north"]
        assert taken(kind, reply), kind
        for field in reply.record:
            rest = {name: value for name, value in reply.record.items() if name != field}
            assert not taken(kind, dataclasses.replace(reply, record=rest)), (kind, field)
