import dataclasses
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from small import MODALITIES, small_plans, stored_site
from small_federation import PLANS, SETTINGS, SiteStore, SmallFederation, write_work
from torch import Tensor

from mixmfl.core.errors import AggregationError
from mixmfl.data.labels import Labels
from mixmfl.federated.aggregation import select_blocks
from mixmfl.federated.client.training import train_at_site, validate_at_site
from mixmfl.federated.messages import Message, decode, encode
from mixmfl.federated.server.merge import (
    merge_round,
    rounded_weights,
    train_task,
    validation_task,
)
from mixmfl.federated.server.run_record import open_run
from mixmfl.federated.state import (
    Registration,
    first_state,
    learning_rate_of,
    mean_dice,
    read_dice,
    register,
)
from mixmfl.networks.build import build_network
from mixmfl.networks.parameters import block_of
from mixmfl.networks.prototypes import PARTS, Prototypes, State, merge_memories, observe
from mixmfl.training.validation import DiceSum


@pytest.fixture(scope="module")
def federation(store: SiteStore) -> SmallFederation:
    return store.federation(
        {"north": [("t1", "t2"), ("t1",)], "south": [("flair",), ("flair", "t1")]},
        validation={"north": 1},
    )


def crossed(message: Message) -> Message:
    """Return the message as it arrives."""
    return decode(encode(message))


def same(one: Prototypes, other: Prototypes) -> bool:
    return all(torch.equal(getattr(one, part), getattr(other, part)) for part in PARTS)


def test_a_site_tells_how_many_training_cases_have_each_modality(
    federation: SmallFederation,
) -> None:
    assert federation.registrations["north"] == Registration(1, {"t1": 1, "t2": 1}, ["t1"])
    assert federation.registrations["south"] == Registration(2, {"flair": 2, "t1": 1}, [])


def test_a_site_is_sent_its_own_blocks_and_the_memory_of_all(federation: SmallFederation) -> None:
    state, _ = federation.round(federation.start)
    task = train_task(state, federation.registrations["north"])
    blocks = {block_of(name) for name in task.tensors if not name.startswith("memory.")}
    assert blocks == {"tailored.t1", "tailored.t2", "shared", "fusion", "decoder"}
    remembered = {name.split(".")[1] for name in task.tensors if name.startswith("memory.")}
    assert remembered == {"t1", "t2", "flair"}
    assert task.record == {"round": 1}


def test_a_reply_holds_the_blocks_the_prototypes_and_the_loss_and_nothing_else(
    federation: SmallFederation,
) -> None:
    _, replies = federation.round(federation.start)
    reply = replies["south"]
    assert set(reply.record) == {"round", "loss", "dice_loss"}
    assert math.isfinite(reply.record["loss"])
    assert -1 <= reply.record["dice_loss"] <= 0
    blocks = {block_of(name) for name in reply.tensors if not name.startswith("memory.")}
    assert blocks == {"tailored.flair", "tailored.t1", "shared", "fusion", "decoder"}
    places = {tuple(n.split(".")[1:3]) for n in reply.tensors if n.startswith("memory.")}
    assert places == {("flair", "2"), ("t1", "2")}


def test_a_round_leaves_encoders_and_prototypes_of_absent_modalities_untouched(
    federation: SmallFederation,
) -> None:
    start = federation.start
    after, _ = federation.only("south").round(start)

    def changed(block: str) -> bool:
        names = [name for name in start.weights if block_of(name) == block]
        return any(not torch.equal(start.weights[n], after.weights[n]) for n in names)

    assert not changed("tailored.t2")
    assert all(changed(b) for b in ("tailored.flair", "tailored.t1", "shared", "decoder", "fusion"))
    assert {modality for modality, _ in after.memory} == {"flair", "t1"}
    assert after.round == 1
    assert start.round == 0


def test_a_site_without_a_modality_has_no_say_in_its_encoder_nor_in_its_prototypes(
    federation: SmallFederation,
) -> None:
    # after a round of all, the memory knows t2, which north alone has
    before, _ = federation.round(federation.start)
    encoder = [name for name in before.weights if block_of(name) == "tailored.t2"]
    assert encoder
    alone, _ = federation.only("south").round(before)
    assert all(torch.equal(alone.weights[name], before.weights[name]) for name in encoder)
    assert same(alone.memory["t2", 2], before.memory["t2", 2])
    assert not same(alone.memory["t1", 2], before.memory["t1", 2])

    together, replies = federation.round(before)
    north = replies["north"].tensors
    for name in encoder:  # north's change is taken as it is
        assert torch.equal(together.weights[name], before.weights[name] + north[name])
    seen = north["memory.t2.2.counts"] > 0
    assert seen.any()
    assert torch.equal(together.memory["t2", 2].values[seen], north["memory.t2.2.values"][seen])


def test_sites_that_learnt_the_same_get_just_that_back_whatever_they_weigh(
    federation: SmallFederation,
) -> None:
    start = federation.start
    alone, replies = federation.only("south").round(start)
    registrations = {
        "south": federation.registrations["south"],
        "twin": Registration(7, {"flair": 1, "t1": 6}),
    }
    twins, _ = merge_round(
        start, {"south": replies["south"], "twin": replies["south"]}, registrations, PLANS, SETTINGS
    )
    for name, weight in alone.weights.items():  # but for the rounding of 2/9 and 7/9
        assert torch.allclose(twins.weights[name], weight, rtol=2**-22, atol=1e-9)
    for place, prototypes in alone.memory.items():
        assert torch.equal(twins.memory[place].values, prototypes.values)
        assert torch.equal(twins.memory[place].counts, 2 * prototypes.counts)


def test_sites_prototypes_merge_to_those_of_all_their_voxels_in_one_place() -> None:
    generator = torch.Generator().manual_seed(0)
    tailored = torch.randn(5, 2, 4, 6, generator=generator)
    classes = torch.randint(0, 3, (5, 4, 6), generator=generator)
    by_site = {
        site: {("t1", 2): observe(tailored[cases], classes[cases], 3)}
        for site, cases in (("north", slice(0, 1)), ("south", slice(1, 5)))
    }
    merged, central = merge_memories({}, by_site)["t1", 2], observe(tailored, classes, 3)
    assert torch.allclose(merged.values, central.values, atol=1e-6)
    assert torch.equal(merged.counts, central.counts)


def test_the_merge_is_the_weighted_mean_worked_out_by_hand(federation: SmallFederation) -> None:
    start = federation.start
    after, replies = federation.round(start)

    def of(site: str, name: str) -> Tensor:
        return start.weights[name].double() + replies[site].tensors[name].double()

    name = "decoder.seg_layers.0.bias"  # north 1 case, south 2
    want = (of("north", name) + 2 * of("south", name)) / 3
    assert torch.allclose(after.weights[name].double(), want, atol=1e-7)
    (name, *_) = [n for n in start.weights if n.startswith("shared.")]  # pairs: 2 and 3
    want = (2 * of("north", name) + 3 * of("south", name)) / 5
    assert torch.allclose(after.weights[name].double(), want, atol=1e-7)
    (name, *_) = [n for n in start.weights if n.startswith("tailored.t1.")]  # cases: 1 and 1
    want = (of("north", name) + of("south", name)) / 2
    assert torch.allclose(after.weights[name].double(), want, atol=1e-7)
    counts = [replies[s].tensors["memory.t1.2.counts"] for s in ("north", "south")]
    assert torch.allclose(after.memory["t1", 2].counts, counts[0] + counts[1])


def test_a_reply_tells_how_weights_changed_in_half_the_bytes_unless_asked_for_more(
    federation: SmallFederation,
) -> None:
    single = dataclasses.replace(SETTINGS, half_updates=False)
    start, site = federation.start, federation.sites["south"]
    registration = register(site)
    task = train_task(start, registration)
    (short, _), (long, _) = (
        train_at_site(task, site, PLANS, settings, {}) for settings in (SETTINGS, single)
    )
    own = {n: t for n, t in long.tensors.items() if not n.startswith("memory.")}
    assert all(tensor.dtype == torch.float32 for tensor in own.values())
    for name, change in own.items():
        assert torch.equal(short.tensors[name], change.half())
    remembered = {name: t for name, t in long.tensors.items() if name.startswith("memory.")}
    assert all(torch.equal(short.tensors[name], t) for name, t in remembered.items())
    numbers = sum(tensor.numel() for tensor in own.values())
    assert len(encode(long)) - len(encode(short)) >= 2 * numbers

    # of one site, the server has its weights, but for their rounding
    merged, _ = merge_round(start, {"south": long}, {"south": registration}, PLANS, single)
    for name, change in own.items():
        want = start.weights[name].double() + change.double()
        assert torch.allclose(merged.weights[name].double(), want, rtol=2**-24, atol=0)
    rounded, _ = merge_round(start, {"south": short}, {"south": registration}, PLANS, SETTINGS)
    for name, change in own.items():  # 11 bits of the change, or the least that half can tell
        error = (rounded.weights[name] - merged.weights[name]).abs()
        bound = change.abs() * 2**-11 + 2**-25 + merged.weights[name].abs() * 2**-23
        assert (error <= bound).all()


def test_the_server_keeps_single_precision_of_weights_that_travel_in_half(
    federation: SmallFederation,
) -> None:
    start, registration = federation.start, federation.registrations["south"]
    assert rounded_weights(start, dataclasses.replace(SETTINGS, half_updates=False)) is start
    sent = rounded_weights(start, SETTINGS)
    assert all(torch.equal(sent.weights[n], w.half()) for n, w in start.weights.items())
    task = train_task(sent, registration)
    reply, _ = train_at_site(task, federation.sites["south"], PLANS, SETTINGS, {})
    merged, _ = merge_round(start, {"south": reply}, {"south": registration}, PLANS, SETTINGS)
    for name in select_blocks(start.weights, registration.weights):
        want = start.weights[name] + reply.tensors[name]  # not the rounded weights and the change
        torch.testing.assert_close(merged.weights[name], want, rtol=2**-23, atol=0)

    (name, *_) = start.weights
    large = {**start.weights, name: torch.full_like(start.weights[name], 7e4)}  # inf in half
    whole = rounded_weights(dataclasses.replace(start, weights=large), SETTINGS).weights
    assert torch.equal(whole[name], large[name])
    assert {each.dtype for n, each in whole.items() if n != name} == {torch.float16}


def test_in_a_masked_run_changes_are_masked_in_full_precision() -> None:
    assert SETTINGS.update_type == torch.float16
    assert dataclasses.replace(SETTINGS, half_updates=False).update_type == torch.float32
    assert dataclasses.replace(SETTINGS, masked=True).update_type == torch.float32


def test_the_order_in_which_sites_reply_changes_nothing(federation: SmallFederation) -> None:
    replies = federation.replies
    one, _ = federation.merge(replies)
    other, _ = federation.merge(dict(reversed(replies.items())))
    assert all(torch.equal(one.weights[n], other.weights[n]) for n in one.weights)
    assert all(torch.equal(one.memory[p].values, other.memory[p].values) for p in one.memory)


@pytest.mark.parametrize(
    ("configuration", "patch"), [("2d", (16, 16)), ("3d_fullres", (8, 16, 16))]
)
@pytest.mark.parametrize(
    "labels",
    [
        Labels({"background": 0, "lesion": 1, "ignore": 2}),
        Labels({"background": 0, "whole": (1, 2), "core": 2}, (1, 2)),
        Labels({"background": 0, "whole": (1, 5), "core": 1, "ignore": 7}, (5, 1)),
    ],
)
def test_regions_and_the_ignore_label_train_and_validate(
    tmp_path: Path, labels: Labels, configuration: str, patch: tuple[int, ...]
) -> None:
    plans = small_plans(labels=labels, patch=patch)
    modalities = [("t1",), ("t1", "t2"), ("t2",)]
    site = stored_site(tmp_path, "north", modalities, plans, configuration, validation=1)
    settings = dataclasses.replace(SETTINGS, configuration=configuration)
    state, registration = first_state(plans, settings), register(site)
    reply, _ = train_at_site(train_task(state, registration), site, plans, settings, {})
    state, _ = merge_round(state, {"north": reply}, {"north": registration}, plans, settings)
    assert math.isfinite(reply.record["loss"])
    ((place, prototypes), *_) = state.memory.items()
    assert place[0] == "t1"
    assert len(prototypes.counts) == len(labels.values)  # the ignored voxels are no class
    found = read_dice(
        validate_at_site(
            validation_task(state, "north", {"north": registration}), site, plans, settings
        )
    )
    assert set(found) == set(labels.foreground)


def test_training_lowers_the_loss_and_the_optimiser_is_taken_up_again(
    federation: SmallFederation,
) -> None:
    settings = dataclasses.replace(SETTINGS, local_steps=15, rounds=4)
    south, registrations = federation.sites["south"], federation.registrations
    state, losses = first_state(PLANS, settings), []
    optimizer: State = {}
    for _ in range(3):
        task = train_task(state, registrations["south"])
        reply, optimizer = train_at_site(task, south, PLANS, settings, optimizer)
        losses.append(reply.record["loss"])
        state, _ = merge_round(state, {"south": reply}, registrations, PLANS, settings)
    assert losses[2] < losses[0] - 0.2
    steps = {v.item() for k, v in optimizer.items() if k.endswith(".step") and "decoder" in k}
    assert steps == {45.0}


def test_a_site_of_five_cases_with_tiny_lesions_learns_to_find_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tiny_lesion(
        modalities: Sequence[str], seed: int, shape: Sequence[int]
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        generator = np.random.default_rng(seed)
        labels = np.zeros(shape, dtype=np.int16)
        z, y, x = (int(generator.integers(3, n - 6)) for n in shape)
        labels[z : z + 2, y : y + 2, x : x + 2] = 1  # 8 of 3600 voxels
        noise = generator.normal(10, 1, (len(modalities), *shape))
        bright = (noise + 20 * labels).astype(np.float32)
        return dict(zip(modalities, bright, strict=True)), labels

    monkeypatch.setattr(small, "small_case", tiny_lesion)
    plans = small_plans(labels=Labels({"background": 0, "lesion": 1}))
    site = stored_site(tmp_path, "north", [("t1", "t2")] * 7, plans, validation=2)
    assert len(site.training) == 5
    settings = dataclasses.replace(SETTINGS, rounds=3, local_steps=30)
    state, registrations, optimizer = (
        first_state(plans, settings),
        {"north": register(site)},
        State(),
    )
    for _ in range(settings.rounds):
        task = train_task(state, registrations["north"])
        reply, optimizer = train_at_site(task, site, plans, settings, optimizer)
        state, _ = merge_round(state, {"north": reply}, registrations, plans, settings)
    judged = validate_at_site(validation_task(state, "north", registrations), site, plans, settings)
    # nothing everywhere has a Dice of 0, the lesion everywhere one of 2 * 8 / (8 + 3600)
    assert mean_dice([read_dice(judged)]) > 0.5


def test_validation_adds_up_dice_of_the_cases_that_have_a_label(
    federation: SmallFederation,
) -> None:
    registrations = {"north": federation.registrations["north"]}
    task = crossed(validation_task(federation.start, "north", registrations))
    found = read_dice(crossed(validate_at_site(task, federation.sites["north"], PLANS, SETTINGS)))
    assert set(found) == {"lesion", "core"}
    assert all(item.cases == 1 and 0 <= item.total <= 1 for item in found.values())


def test_validation_uses_what_any_site_trained_and_only_that(store: SiteStore) -> None:
    # north validates on a case with all three modalities, but trains t1 alone; nobody trains t2
    federation = store.federation(
        {"north": [("t1",), MODALITIES], "south": [("flair",)]}, validation={"north": 1}
    )
    north = federation.sites["north"]
    task = validation_task(federation.start, "north", federation.registrations)
    assert task.record["modalities"] == ["flair", "t1"]
    blocks = {block_of(name) for name in task.tensors}
    assert blocks == {"tailored.flair", "tailored.t1", "shared", "fusion", "decoder"}
    found = read_dice(validate_at_site(task, north, PLANS, SETTINGS))
    assert found["lesion"].cases == 1
    # its own random first weights, of t2 and of the blocks it was not sent, must not matter
    other = validate_at_site(task, north, PLANS, dataclasses.replace(SETTINGS, seed=9))
    assert read_dice(other) == found
    nothing = dataclasses.replace(task, record={**task.record, "modalities": ["pd"]})
    left_out = read_dice(validate_at_site(nothing, north, PLANS, SETTINGS))
    assert left_out["lesion"].cases == 0


def test_mean_dice_is_over_labels_of_the_mean_over_cases() -> None:
    north = {"lesion": DiceSum(1.5, 2), "core": DiceSum(0.0, 0)}
    south = {"lesion": DiceSum(0.3, 1), "core": DiceSum(0.4, 1)}
    assert mean_dice([north, south]) == pytest.approx((1.8 / 3 + 0.4) / 2)
    assert math.isnan(mean_dice([{"core": DiceSum(0.0, 0)}]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_cpu_trains_in_the_type_that_is_its_fastest_and_learns_the_same(
    federation: SmallFederation, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    state = federation.start
    task = train_task(state, federation.registrations["north"])
    settings = dataclasses.replace(SETTINGS, half_updates=False)
    seen: set[torch.dtype] = set()

    def trained(kind: torch.dtype) -> tuple[Message, State]:
        monkeypatch.setattr("mixmfl.core.devices.best_dtype", lambda: kind)
        network = build_network(PLANS, "2d", 0)
        monkeypatch.setattr("mixmfl.federated.client.training.build_network", lambda *_: network)
        conv = network.decoder.seg_layers[-1]
        conv.register_forward_hook(lambda _, __, output: seen.add(output.dtype))
        return train_at_site(task, federation.sites["north"], PLANS, settings, {})

    plain, optimizer = trained(torch.float32)
    seen.clear()
    found, others = trained(dtype)
    assert seen == {dtype}
    assert found.record["loss"] == pytest.approx(plain.record["loss"], rel=0.02)
    one, other = (
        torch.cat([reply.tensors[name].flatten() for name in sorted(plain.tensors)])
        for reply in (plain, found)
    )
    assert one.dtype == other.dtype == torch.float32
    assert torch.cosine_similarity(one, other, dim=0) > 0.9
    assert others.keys() == optimizer.keys()  # no scale of the gradients


def test_the_learning_rate_falls_as_nnunets() -> None:
    settings = dataclasses.replace(SETTINGS, rounds=10, learning_rate=0.1)
    assert learning_rate_of(0, settings) == pytest.approx(0.1)
    assert learning_rate_of(5, settings) == pytest.approx(0.1 * 0.5**0.9)


def test_weights_travel_in_single_precision_both_ways_where_asked(
    tmp_path: Path, command: Callable[..., int]
) -> None:
    work = write_work(tmp_path / "work", {"north": [("t1",), ("t1", "t2")]})
    sent, received = {}, {}
    for name, more in (("half", []), ("single", ["--updates", "single"])):
        out = tmp_path / name
        base = ("mixmfl_train_federated", "-i", work, "-o", out, "-c", "2d")
        assert command(*base, "--fold", "all", "--rounds", 1, "--local-steps", 1, *more) == 0
        run = open_run(out)
        assert run.settings.half_updates == (name == "half")
        sent[name] = run.history[0]["north"].sent_bytes
        received[name] = run.history[0]["north"].received_bytes
    weights = first_state(PLANS, SETTINGS).weights
    numbers = sum(tensor.numel() for name, tensor in weights.items() if "flair" not in name)
    assert sent["single"] - sent["half"] == pytest.approx(2 * numbers, rel=0.05)
    assert received["single"] - received["half"] == pytest.approx(2 * numbers, rel=0.05)


def test_replies_that_do_not_belong_are_refused(federation: SmallFederation) -> None:
    good = federation.replies["north"]
    with pytest.raises(AggregationError, match="no site replied"):
        federation.merge({})
    with pytest.raises(AggregationError, match="'east' replied but never registered"):
        federation.merge({"east": good})
    late = dataclasses.replace(good, record={**good.record, "round": 5})
    with pytest.raises(AggregationError, match="reply to round 5; a 'train' reply to round 0"):
        federation.merge({"north": late})
    name = next(name for name in good.tensors if name.startswith("shared."))
    for spoilt, message in (
        (good.tensors[name] * math.nan, "'north' sent shared with NaN, infinity or"),
        (good.tensors[name][:1], "was it started from the same plans"),
        (good.tensors[name].float(), "torch.float32, needed is"),
        (None, "'north' did not send shared"),
    ):
        tensors = {n: t for n, t in good.tensors.items() if n != name}
        if spoilt is not None:
            tensors[name] = spoilt
        with pytest.raises(AggregationError, match=message):
            federation.merge({"north": dataclasses.replace(good, tensors=tensors)})
    fewer = {**good.tensors, "memory.t1.2.counts": -good.tensors["memory.t1.2.counts"]}
    with pytest.raises(AggregationError, match="or a count < 0"):
        federation.merge({"north": dataclasses.replace(good, tensors=fewer)})
    without = dataclasses.replace(good, record={"round": 0, "loss": 0.5})  # both, or neither
    with pytest.raises(AggregationError, match=r"'north': missing fields \['dice_loss'\]"):
        federation.merge({"north": without})
    for stray in ("tailored.flair.x", "decoder.unheard_of", "nonsense", "memory.flair.2.values"):
        tensors = dict(good.tensors)
        if stray.startswith("memory."):
            for part in PARTS:
                tensors[f"memory.flair.2.{part}"] = torch.zeros(1)
        else:
            tensors[stray] = torch.zeros(1)
        with pytest.raises(AggregationError, match="'north' sent what it does not hold"):
            federation.merge({"north": dataclasses.replace(good, tensors=tensors)})


def test_a_message_survives_the_wire_and_a_damaged_one_is_refused() -> None:
    message = Message("train", {"round": 3, "loss": 0.5}, {"decoder.w": torch.arange(4.0)})
    content = encode(message)
    back = decode(content)
    assert (back.kind, back.record) == (message.kind, message.record)
    assert torch.equal(back.tensors["decoder.w"], message.tensors["decoder.w"])
    for damaged in (content[:-3], b"", b"\x80\x04pickle", content[:20]):
        with pytest.raises(AggregationError, match="is damaged"):
            decode(damaged)
    with pytest.raises(AggregationError, match="format 9 came, 5 is needed"):
        decode(content.replace(b'"format\\": 5', b'"format\\": 9'))
