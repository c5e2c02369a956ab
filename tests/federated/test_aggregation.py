import math
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, tensor

from mixmfl.core.errors import AggregationError
from mixmfl.core.tensor_store import Stored
from mixmfl.federated.aggregation import (
    PIECE,
    RULES,
    TOGETHER,
    BlockChanges,
    add_changes,
    average,
    changes_between,
    merge_blocks,
    norm_of,
    select_blocks,
    shortening,
)
from mixmfl.federated.messages import Message, StoredMessage
from mixmfl.federated.server.update_norms import norms_of
from mixmfl.federated.state import block_weights
from mixmfl.networks.parameters import block_of
from mixmfl.networks.prototypes import State
from mixmfl.planning.settings import Aggregation


def test_every_parameter_belongs_to_a_block() -> None:
    assert block_of("tailored.t2.stages.0.weight") == "tailored.t2"
    assert block_of("shared.stages.0.weight") == "shared"
    assert block_of("fusion.1.trust") == "fusion"
    assert block_of("decoder.seg_layers.0.bias") == "decoder"


def test_a_site_counts_by_cases_with_the_modality_by_pairs_and_by_cases() -> None:
    weights = block_weights(10, {"t1": 10, "flair": 4, "t2": 0})
    assert weights == {
        "tailored.t1": 10,
        "tailored.flair": 4,
        "shared": 14,
        "encoder": 10,
        "fusion": 10,
        "decoder": 10,
    }
    assert block_weights(10, {"t1": 10, "t2": 1})["tailored.t2"] == 1  # one case is enough


def test_a_site_is_sent_and_sends_only_the_blocks_that_it_uses() -> None:
    state = {"tailored.t1.w": tensor(1), "tailored.t2.w": tensor(2), "decoder.w": tensor(3)}
    assert set(select_blocks(state, block_weights(3, {"t1": 3}))) == {"tailored.t1.w", "decoder.w"}


def test_a_site_without_t2_has_no_say_in_the_t2_encoder() -> None:
    merged = average(
        {
            "north": {"tailored.t1.w": tensor([1.0]), "tailored.t2.w": tensor([8.0])},
            "south": {"tailored.t1.w": tensor([4.0])},
        },
        {"north": {"tailored.t1": 10, "tailored.t2": 3}, "south": {"tailored.t1": 20}},
    )
    assert merged["tailored.t1.w"].item() == pytest.approx(3.0)  # (10*1 + 20*4) / 30
    assert merged["tailored.t2.w"].item() == 8.0


def test_equal_blocks_and_weights_give_the_plain_mean_of_fedavg() -> None:
    states = {
        site: {"decoder.w": tensor([value])} for site, value in (("a", 1.0), ("b", 2.0), ("c", 6.0))
    }
    assert average(states, {site: {"decoder": 5} for site in "abc"})["decoder.w"].item() == 3.0


def test_the_order_of_arrival_does_not_change_a_bit_and_inputs_stay_as_they_are() -> None:
    generator = torch.Generator().manual_seed(0)
    states = {s: {"shared.w": torch.randn(50, generator=generator)} for s in "abcd"}
    before = {s: state["shared.w"].clone() for s, state in states.items()}
    weights = {s: {"shared": i + 1} for i, s in enumerate("abcd")}
    one = average(states, weights)["shared.w"]
    other = average({s: states[s] for s in "dbca"}, weights)["shared.w"]
    assert torch.equal(one, other)
    assert all(torch.equal(before[s], states[s]["shared.w"]) for s in "abcd")


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_weights_stay_in_single_precision_whatever_their_changes_came_in(
    rule: str, kind: torch.dtype, tmp_path: Path
) -> None:
    changes = {
        site: {"shared.w": torch.full((1,), n, dtype=kind)}
        for site, n in (("a", 0.5), ("b", 1.0), ("c", 1.5))
    }
    before = {"shared.w": torch.tensor([4096.25])}  # with 1 added no number of half precision
    weights = {site: {"shared": 1} for site in "abc"}
    stored = {
        s: StoredMessage.pack(Message("train", {}, t), tmp_path).open() for s, t in changes.items()
    }
    for sent in (changes, {site: message.tensors for site, message in stored.items()}):
        found = merge_all(before, sent, weights, rule, usual={"shared": 2.0})["shared.w"]
        assert (found.dtype, found.item()) == (torch.float32, 4097.25)


def test_changes_are_rounded_once_and_added_to_what_was_before() -> None:
    before = {"decoder.w": tensor([1.0, 2048.0]), "decoder.b": tensor([5.0])}
    after = {"decoder.w": tensor([1.0 + 2**-20, 2049.0])}
    changes = changes_between(before, after, torch.float16)
    assert changes["decoder.w"].dtype == torch.float16
    assert changes["decoder.w"].tolist() == [2**-20, 1.0]  # of the weights these are no numbers
    moved = add_changes(before, changes)
    assert torch.equal(moved["decoder.w"], after["decoder.w"])
    assert moved["decoder.w"].dtype == torch.float32
    assert list(moved) == ["decoder.w"]


@pytest.mark.parametrize("sites", [1, 3, 4, 5, 32])
@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_the_merged_weights_are_those_of_sums_in_double_precision_but_for_their_rounding(
    kind: torch.dtype, sites: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    before = {"shared.w": 0.05 * torch.randn(PIECE + 9, generator=generator)}
    changes = {
        f"{n:02}": {"shared.w": (1e-3 * torch.randn(PIECE + 9, generator=generator)).to(kind)}
        for n in range(sites)
    }
    weights = {site: {"shared": n} for n, site in enumerate(changes, start=1)}
    total = sum(range(sites + 1))
    want = before["shared.w"].double()
    for site, sent in changes.items():
        want = want + sent["shared.w"].double() * (weights[site]["shared"] / total)
    found = merge_all(before, changes, weights, "mean")["shared.w"].double()
    # of a weight's 24 bits the last, and of the longest change, 5e-3, what sums may lose
    assert ((found - want).abs() <= want.abs() * 2**-24 + 5e-3 * 2**-22).all()


def test_a_site_that_has_no_case_for_what_it_sent_has_no_say() -> None:
    states = {"a": one("decoder.w", 2.0), "b": one("decoder.w", 8.0)}
    assert average(states, {"a": {"decoder": 5}, "b": {}})["decoder.w"].item() == 2.0


def test_sites_that_disagree_on_a_shape_are_named() -> None:
    states = {"a": {"decoder.w": torch.zeros(2)}, "b": {"decoder.w": torch.zeros(3)}}
    with pytest.raises(AggregationError, match=r"'b' sent shape \(3,\) .*, site 'a' sent \(2,\)"):
        average(states, {site: {"decoder": 1} for site in "ab"})
    states["b"]["decoder.w"] = torch.zeros(2).half()  # which would be read from disk as another
    states["c"], weights = states["a"], {site: {"decoder": 1} for site in "abc"}
    for rule in ("mean", "median"):
        with pytest.raises(AggregationError, match=r"'b' sent shape \(2,\) torch.float16, site"):
            merge_all(states["a"], states, weights, rule)


def test_a_block_comes_in_one_type() -> None:
    mixed = {"decoder.b": torch.zeros(2), "decoder.w": torch.zeros(2).half()}
    with pytest.raises(AggregationError, match=r"'a' sent its block in .*float16.*float32"):
        average({"a": mixed}, {"a": {"decoder": 1}})


def test_parameters_of_a_block_that_not_all_sites_sent_are_averaged_over_those_who_did() -> None:
    changes = {
        "a": {**one("decoder.b", 1.0), **one("decoder.w", 2.0, 4.0)},
        "b": {**one("decoder.v", 7.0), **one("decoder.w", 6.0, 8.0)},
    }
    found = average(changes, {"a": {"decoder": 3}, "b": {"decoder": 1}}, {"b": 0.5})
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        "decoder.b": [1.0],
        "decoder.v": [3.5],
        "decoder.w": [2.25, 4.0],  # (3 * 2 + 3) / 4 and (3 * 4 + 4) / 4
    }


def test_a_block_without_a_case_behind_it_is_refused() -> None:
    with pytest.raises(AggregationError, match=r"none of its sites \['a'\] has a training case"):
        average({"a": {"tailored.t2.w": torch.zeros(2)}}, {"a": {"decoder": 3}})


def one(name: str, *values: float) -> State:
    return {name: torch.tensor(values)}


def merge_all(
    before: State,
    changes: Mapping[str, Mapping[str, Tensor]],
    weights: Mapping[str, Mapping[str, float]],
    rule: str,
    share: float = 0.2,
    usual: dict[str, float] | None = None,
) -> State:
    norms = {site: norms_of(sent) for site, sent in changes.items()}
    return merge_blocks(before, changes, weights, rule, share, norms, usual or {})


def merged(
    changes: dict[str, State], rule: str, usual: dict[str, float] | None = None, share: float = 0.2
) -> list[float]:
    """Return how far from (10, 20) the weights came."""
    weights = {site: {"shared": 1.0} for site in changes}
    found = merge_all(one("shared.w", 10.0, 20.0), changes, weights, rule, share, usual)
    return (found["shared.w"].double() - tensor([10.0, 20.0])).tolist()


def test_the_coordinate_median_does_not_follow_a_hostile_site() -> None:
    states = {
        "a": one("shared.w", 1.0, 5.0),
        "b": one("shared.w", 2.0, 4.0),
        "c": one("shared.w", 1e9, -1e9),  # in float32 this would drown all others in a mean
    }
    assert merged(states, "median") == [2.0, 4.0]
    states["d"] = one("shared.w", 4.0, 6.0)
    assert merged(states, "median") == [3.0, 4.5]  # means of 2, 4 and of 4, 5
    five = {str(n): one("shared.w", float(n), 0.0) for n in (0, 1, 5, 6, 100)}
    assert merged(five, "median") == [5.0, 0.0]
    assert merged(five, "trimmed") == [4.0, 0.0]  # the mean of 1, 5, 6 is another number


def test_the_trimmed_mean_leaves_out_the_ends() -> None:
    states = {str(n): one("shared.w", float(n), 0.0) for n in (0, 1, 2, 3, 100)}
    assert merged(states, "trimmed") == [2.0, 0.0]  # 1, 2, 3: one of five is cut at each end
    assert merged(states, "trimmed", share=0.5) == [2.0, 0.0]  # two of five: the middle remains
    three = {site: states[site] for site in ("0", "3", "100")}
    assert merged(three, "trimmed") == [3.0, 0.0]  # at least one is cut
    four = {site: states[site] for site in ("0", "1", "3", "100")}
    assert merged(four, "trimmed", share=0.5) == [2.0, 0.0]  # two always remain: 1, 3
    seven = {str(n): one("shared.w", float(n), 0.0) for n in (0, 1, 2, 3, 10, 20, 100)}
    assert merged(seven, "trimmed", share=0.1) == [
        pytest.approx(7.2, rel=1e-6),
        0.0,
    ]  # 1, 2, 3, 10, 20
    assert merged(seven, "trimmed", share=0.3) == [5.0, 0.0]  # 2, 3, 10: two are cut


def test_clipping_shortens_an_update_to_the_usual_norm() -> None:
    states = {"a": one("shared.w", 3.0, 4.0), "b": one("shared.w", 30.0, 40.0)}
    # norms 5 and 50; both updates go the same way, shortened to 5
    assert merged(states, "clipped", {"shared": 5.0}) == [3.0, 4.0]
    # nothing is usual yet: the median of these, 27.5, shortens the longer one to (16.5, 22)
    assert merged(states, "clipped") == [9.75, 13.0]
    assert merged(states, "mean") == [16.5, 22.0]


def test_plans_may_name_every_rule_and_no_other() -> None:
    assert sorted(get_args(Aggregation)) == sorted(RULES)


def test_a_change_is_shortened_to_what_is_allowed_and_never_made_longer() -> None:
    assert shortening(norm=5.0, most=2.5) == 0.5
    assert shortening(norm=5.0, most=5.0) == 1.0
    assert shortening(norm=0.0, most=5.0) == 1.0
    assert shortening(norm=0.0, most=0.0) == 1.0


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_the_norm_of_changes_is_that_of_all_their_tensors(kind: torch.dtype) -> None:
    changes = {"shared.w": torch.full((PIECE + 1,), 2.0), "shared.b": tensor([1.0])}
    want = math.sqrt(4 * (PIECE + 1) + 1)
    assert norm_of({n: t.to(kind) for n, t in changes.items()}) == pytest.approx(want, rel=1e-6)
    assert norm_of({"shared.w": tensor([3.0, 0.0, 4.0]).to(kind)}) == 5.0
    assert norm_of({}) == 0.0
    for strange in (math.nan, math.inf, -math.inf):
        changes["shared.w"][PIECE] = strange
        assert not math.isfinite(norm_of({n: t.to(kind) for n, t in changes.items()}))


def test_what_is_shortened_is_the_change_of_each_block_by_the_norm_of_all_its_tensors() -> None:
    before = {**one("shared.w", 1.0, 1.0), **one("shared.b", 1.0), **one("decoder.w", 1.0)}
    sent = {**one("shared.w", 2.0, 3.0), **one("shared.b", 6.0), **one("decoder.w", 7.0)}
    usual = {"shared": 3.5, "decoder": 7.0}  # of 7 in each block
    found = merge_all(before, {"a": sent}, {"a": {"shared": 1, "decoder": 1}}, "clipped", 0, usual)
    assert {name: t.tolist() for name, t in found.items()} == {
        "shared.w": [2.0, 2.5],
        "shared.b": [4.0],
        "decoder.w": [8.0],
    }


def test_clipped_updates_are_weighed_by_cases() -> None:
    changes = {"a": one("shared.w", 3.0, 4.0), "b": one("shared.w", 0.0, 50.0)}
    weights = {"a": {"shared": 3}, "b": {"shared": 1}}
    before = one("shared.w", 0.0, 0.0)
    found = merge_all(before, changes, weights, "clipped", 0.2, {"shared": 5})
    assert found["shared.w"].tolist() == [2.25, 4.25]  # (3 (3, 4) + (0, 5)) / 4


@pytest.mark.parametrize("rule", ["median", "trimmed"])
def test_with_fewer_holders_than_a_rule_needs_updates_are_clipped(rule: str) -> None:
    assert RULES[rule].fewest_holders == 3
    states = {"a": one("shared.w", 3.0, 4.0), "b": one("shared.w", 30.0, 40.0)}
    assert merged(states, rule, {"shared": 5.0}) == [3.0, 4.0]


def test_holders_are_counted_per_block_and_robust_rules_weigh_all_alike() -> None:
    states = {site: one("shared.w", float(n)) for n, site in enumerate("abc")}
    states["a"] |= one("tailored.t2.w", 10.0)
    before = {**one("shared.w", 0.0), **one("tailored.t2.w", 0.0)}
    weights: dict[str, dict[str, float]] = {
        "a": {"shared": 1e6, "tailored.t2": 1},
        "b": {"shared": 1},
        "c": {"shared": 1},
    }
    found = merge_all(before, states, weights, "median", 0.2, {"tailored.t2": 4.0})
    assert found["shared.w"].item() == 1.0
    assert found["tailored.t2.w"].item() == 4.0  # a single holder, clipped


def test_a_rule_sees_the_sites_that_hold_the_block_alone() -> None:
    changes = {
        "north": {"tailored.t1.w": tensor([1.0])},
        "south": {"tailored.t1.w": tensor([3.0]), "tailored.t2.w": tensor([5.0])},
    }
    weights = {site: block_weights(2, {"t1": 2, "t2": 2}) for site in changes}
    norms = {site: norms_of(sent) for site, sent in changes.items()}

    def longest(block: BlockChanges) -> State:
        assert block.weights.keys() == block.norms.keys() == block.changes.keys()
        return dict(block.changes[max(block.weights, key=lambda site: block.norms[site])])

    before = {"tailored.t1.w": tensor([0.0]), "tailored.t2.w": tensor([0.0])}
    after = merge_blocks(before, changes, weights, "mean", 0.2, norms, {}, longest)
    assert {name: value.item() for name, value in after.items()} == {
        "tailored.t1.w": 3.0,
        "tailored.t2.w": 5.0,
    }


def test_the_mean_is_that_of_average_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    states = {
        site: {"shared.w": torch.randn(50, generator=generator), "decoder.w": torch.ones(1) / 3}
        for site in "abc"
    }
    weights = {site: {"shared": n, "decoder": 7} for n, site in enumerate("abc", start=1)}
    before = {name: torch.zeros_like(t) for name, t in states["a"].items()}
    found, want = merge_all(before, states, weights, "mean"), average(states, weights)
    assert all(torch.equal(found[name], want[name]) for name in want)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_changes_on_disk_merge_to_the_bits_of_those_in_memory_a_piece_at_a_time(
    rule: str, kind: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"shared.w": (2, PIECE + 5), "shared.b": (), "decoder.w": (7,)}
    before = {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    changes = {
        site: {
            n: (number * torch.randn(t.shape, generator=generator)).to(kind)
            for n, t in before.items()
        }
        for number, site in enumerate("abcdef", start=1)
    }
    weights = {site: {"shared": n, "decoder": 3} for n, site in enumerate("abcdef", start=1)}
    usual = {"shared": 100.0}
    want = merge_all(before, changes, weights, rule, 0.2, usual)
    longest = []

    def part(self: Stored, name: str, start: int, stop: int, room: Tensor) -> Tensor:
        longest.append(stop - start)
        return read(self, name, start, stop, room)

    read = Stored.part
    monkeypatch.setattr(Stored, "part", part)
    stored = {
        s: StoredMessage.pack(Message("train", {}, t), tmp_path).open() for s, t in changes.items()
    }
    tensors = {site: message.tensors for site, message in stored.items()}
    assert len(tensors) > TOGETHER
    found = merge_all(before, tensors, weights, rule, 0.2, usual)
    assert all(torch.equal(found[name], want[name]) for name in shapes)
    assert max(longest) == PIECE
    norms = {site: norms_of(sent) for site, sent in changes.items()}
    longest.clear()
    monkeypatch.setattr("mixmfl.federated.aggregation.PIECE", 1000)
    monkeypatch.setattr("mixmfl.federated.aggregation.MOST_NUMBERS", 3000)
    found = merge_blocks(before, tensors, weights, rule, 0.2, norms, usual)
    assert all(torch.equal(found[name], want[name]) for name in shapes)
    assert max(longest) == (1000 if rule in ("mean", "clipped") else 500)  # of six sites' 3000


@pytest.mark.parametrize("kind", [torch.float16, torch.float32])
def test_sums_do_not_depend_on_the_number_of_threads(kind: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    changes = {
        site: {"shared.w": torch.randn(3 * PIECE + 7, generator=generator).to(kind)}
        for site in "abcdefg"
    }
    weights = {site: {"shared": n} for n, site in enumerate(changes, start=1)}
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(average(changes, weights)["shared.w"])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
