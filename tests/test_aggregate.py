import pytest
import torch
from torch import tensor

from mixmfl.aggregate import average, block_of, block_weights, select_blocks
from mixmfl.errors import AggregationError


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


def test_the_type_of_a_tensor_is_kept() -> None:
    states = {"a": {"shared.w": torch.ones(2, dtype=torch.float16)}}
    assert average(states, {"a": {"shared": 1}})["shared.w"].dtype == torch.float16


def test_sites_that_disagree_on_a_shape_are_named() -> None:
    states = {"a": {"decoder.w": torch.zeros(2)}, "b": {"decoder.w": torch.zeros(3)}}
    with pytest.raises(AggregationError, match=r"'b' sent shape \(3,\), site 'a' sent \(2,\)"):
        average(states, {site: {"decoder": 1} for site in "ab"})


def test_a_block_without_a_case_behind_it_is_refused() -> None:
    with pytest.raises(AggregationError, match=r"none of its sites \['a'\] has a training case"):
        average({"a": {"tailored.t2.w": torch.zeros(2)}}, {"a": {"decoder": 3}})
