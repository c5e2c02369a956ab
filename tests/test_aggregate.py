import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, tensor

from mixmfl.aggregate import (
    FEWEST_HOLDERS,
    PIECE,
    average,
    block_of,
    block_weights,
    clip_update,
    merge_blocks,
    select_blocks,
    update_norm,
)
from mixmfl.errors import AggregationError
from mixmfl.memory import State
from mixmfl.plan import CHOICES
from mixmfl.tensors import Stored, only
from mixmfl.wire import Message, Parcel


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


@pytest.mark.parametrize("rule", FEWEST_HOLDERS)
@pytest.mark.parametrize("kind", [torch.float16, torch.float64])
def test_the_type_of_a_tensor_is_kept(rule: str, kind: torch.dtype, tmp_path: Path) -> None:
    states = {
        site: {"shared.w": torch.full((1,), n, dtype=kind)}
        for site, n in (("a", 0.5), ("b", 1.0), ("c", 1.5))
    }
    before = {"shared.w": torch.zeros(1, dtype=kind)}
    weights = {site: {"shared": 1} for site in "abc"}
    stored = {s: Parcel.pack(Message("train", {}, t), tmp_path).open() for s, t in states.items()}
    for sent in (states, {site: message.tensors for site, message in stored.items()}):
        found = merge_blocks(before, sent, weights, rule, 0.2, {"shared": 2.0})["shared.w"]
        assert (found.dtype, found.item()) == (kind, 1.0)


def test_sums_run_in_double_precision() -> None:
    states = {
        site: one("shared.w", value) for site, value in zip("abc", (1e8, 1.0, -1e8), strict=True)
    }
    found = average(states, {site: {"shared": 1} for site in "abc"})
    assert found["shared.w"].item() == pytest.approx(1 / 3)  # in single precision it is 0


def test_a_site_that_has_no_case_for_what_it_sent_has_no_say() -> None:
    states = {"a": one("decoder.w", 2.0), "b": one("decoder.w", 8.0)}
    assert average(states, {"a": {"decoder": 5}, "b": {}})["decoder.w"].item() == 2.0


def test_sites_that_disagree_on_a_shape_are_named() -> None:
    states = {"a": {"decoder.w": torch.zeros(2)}, "b": {"decoder.w": torch.zeros(3)}}
    with pytest.raises(AggregationError, match=r"'b' sent shape \(3,\), site 'a' sent \(2,\)"):
        average(states, {site: {"decoder": 1} for site in "ab"})


def test_a_block_without_a_case_behind_it_is_refused() -> None:
    with pytest.raises(AggregationError, match=r"none of its sites \['a'\] has a training case"):
        average({"a": {"tailored.t2.w": torch.zeros(2)}}, {"a": {"decoder": 3}})


def one(name: str, *values: float) -> State:
    return {name: torch.tensor(values)}


def merged(
    states: dict[str, State], rule: str, usual: dict[str, float] | None = None, share: float = 0.2
) -> list[float]:
    weights = {site: {"shared": 1.0} for site in states}
    before = one("shared.w", 0.0, 0.0)
    found = merge_blocks(before, states, weights, rule, share, usual or {})
    return found["shared.w"].tolist()


def test_the_coordinate_median_does_not_follow_a_hostile_site() -> None:
    states = {
        "a": one("shared.w", 1.0, 5.0),
        "b": one("shared.w", 2.0, 4.0),
        "c": one("shared.w", 1e9, -1e9),
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
    assert merged(seven, "trimmed", share=0.1) == [pytest.approx(7.2), 0.0]  # 1, 2, 3, 10, 20
    assert merged(seven, "trimmed", share=0.3) == [5.0, 0.0]  # 2, 3, 10: two are cut


def test_clipping_shortens_an_update_to_the_usual_norm() -> None:
    states = {"a": one("shared.w", 3.0, 4.0), "b": one("shared.w", 30.0, 40.0)}
    # norms 5 and 50; both updates go the same way, shortened to 5
    assert merged(states, "clipped", {"shared": 5.0}) == [3.0, 4.0]
    # nothing is usual yet: the median of these, 27.5, shortens the longer one to (16.5, 22)
    assert merged(states, "clipped") == [9.75, 13.0]
    assert merged(states, "mean") == [16.5, 22.0]


def test_plans_may_name_every_rule_and_no_other() -> None:
    assert CHOICES["aggregation"] == tuple(FEWEST_HOLDERS)


def test_an_update_is_measured_and_shortened_from_where_it_began() -> None:
    before = one("shared.w", 10.0, 10.0)
    after = one("shared.w", 13.0, 14.0)
    assert update_norm(before, after) == 5.0
    assert clip_update(before, after, norm=5.0, most=2.5)["shared.w"].tolist() == [11.5, 12.0]
    assert clip_update(before, after, norm=5.0, most=5.0) is after


def test_the_length_of_an_update_is_that_of_all_its_tensors_in_double_precision() -> None:
    after = {"shared.w": torch.full((PIECE + 1,), 2e30), "shared.b": tensor([1e30])}
    before = {name: torch.zeros_like(t) for name, t in after.items()}
    want = 1e30 * math.sqrt(4 * (PIECE + 1) + 1)  # the squares are beyond single precision
    assert update_norm(before, after) == pytest.approx(want, rel=1e-6)


def test_a_shortened_update_has_the_tensors_of_the_update_and_of_no_other() -> None:
    before = {**one("shared.w", 0.0, 0.0), **one("shared.b", 1.0), **one("decoder.w", 5.0)}
    after = {"shared.w": torch.tensor([3.0, 4.0]), "shared.b": torch.tensor([1.0])}
    short = clip_update(before, after, norm=5.0, most=1.0)
    assert list(short) == ["shared.w", "shared.b"]
    assert len(short) == 2
    assert "decoder.w" not in short
    narrowed = only(short, {"shared.w", "decoder.w"})
    assert list(narrowed) == ["shared.w"]
    assert narrowed["shared.w"].tolist() == pytest.approx([0.6, 0.8])


def test_clipped_updates_are_weighed_by_cases() -> None:
    states = {"a": one("shared.w", 3.0, 4.0), "b": one("shared.w", 0.0, 50.0)}
    weights = {"a": {"shared": 3}, "b": {"shared": 1}}
    found = merge_blocks(one("shared.w", 0.0, 0.0), states, weights, "clipped", 0.2, {"shared": 5})
    assert found["shared.w"].tolist() == [2.25, 4.25]  # (3 (3, 4) + (0, 5)) / 4


@pytest.mark.parametrize("rule", ["median", "trimmed"])
def test_with_fewer_holders_than_a_rule_needs_updates_are_clipped(rule: str) -> None:
    assert FEWEST_HOLDERS[rule] == 3
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
    found = merge_blocks(before, states, weights, "median", 0.2, {"tailored.t2": 4.0})
    assert found["shared.w"].item() == 1.0
    assert found["tailored.t2.w"].item() == 4.0  # a single holder, clipped


def test_the_mean_is_that_of_average_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    states = {
        site: {"shared.w": torch.randn(50, generator=generator), "decoder.w": torch.ones(1) / 3}
        for site in "abc"
    }
    weights = {site: {"shared": n, "decoder": 7} for n, site in enumerate("abc", start=1)}
    before = {name: torch.zeros_like(t) for name, t in states["a"].items()}
    found, want = merge_blocks(before, states, weights, "mean", 0.2, {}), average(states, weights)
    assert all(torch.equal(found[name], want[name]) for name in want)


@pytest.mark.parametrize("rule", FEWEST_HOLDERS)
def test_states_on_disk_merge_to_the_bits_of_those_in_memory_a_piece_at_a_time(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"shared.w": (2, PIECE + 5), "shared.b": (), "decoder.w": (7,)}
    before = {n: torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    states = {
        site: {n: t + number * torch.randn(t.shape, generator=generator) for n, t in before.items()}
        for number, site in enumerate("abcd", start=1)
    }
    weights = {site: {"shared": n, "decoder": 3} for n, site in enumerate("abcd", start=1)}
    usual = {"shared": 100.0}
    want = merge_blocks(before, states, weights, rule, 0.2, usual)
    longest = []

    def part(self: Stored, name: str, start: int, stop: int, room: Tensor) -> Tensor:
        longest.append(stop - start)
        return read(self, name, start, stop, room)

    read = Stored.part
    monkeypatch.setattr(Stored, "part", part)
    stored = {s: Parcel.pack(Message("train", {}, t), tmp_path).open() for s, t in states.items()}
    tensors = {site: message.tensors for site, message in stored.items()}
    found = merge_blocks(before, tensors, weights, rule, 0.2, usual)
    assert all(torch.equal(found[name], want[name]) for name in shapes)
    assert max(longest) == PIECE
    longest.clear()
    monkeypatch.setattr("mixmfl.aggregate.PIECE", 1000)
    monkeypatch.setattr("mixmfl.aggregate.MOST_NUMBERS", 2000)
    found = merge_blocks(before, tensors, weights, rule, 0.2, usual)
    assert all(torch.equal(found[name], want[name]) for name in shapes)
    assert max(longest) == (1000 if rule in ("mean", "clipped") else 500)  # of four sites' 2000


def test_the_mean_by_pieces_is_that_of_whole_tensors_to_the_bit() -> None:
    generator = torch.Generator().manual_seed(0)
    states = {s: {"shared.w": torch.randn(3 * PIECE + 7, generator=generator)} for s in "abc"}
    weights = {"a": {"shared": 3}, "b": {"shared": 10}, "c": {"shared": 4}}
    whole = torch.zeros(3 * PIECE + 7, dtype=torch.float64)
    for site in "abc":
        whole.add_(states[site]["shared.w"], alpha=weights[site]["shared"] / 17)
    assert torch.equal(average(states, weights)["shared.w"], whole.float())
