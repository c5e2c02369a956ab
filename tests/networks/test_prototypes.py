import math

import pytest
import torch
from torch import tensor

from mixmfl.networks.prototypes import (
    PARTS,
    Prototypes,
    can_recall,
    classes_at,
    classes_of_each,
    fade,
    memory_from_state,
    memory_to,
    memory_to_state,
    merge_memories,
    merge_prototypes,
    observe,
    recall,
    withhold_rare,
)


def prototypes(values: list[list[float]], counts: list[float]) -> Prototypes:
    return Prototypes(tensor(values), tensor(counts))


def test_prototypes_are_the_mean_feature_of_each_class() -> None:
    tailored = tensor([[[2.0, 4.0, 6.0, 80.0]]])  # (B=1, C=1, P=4)
    observed = observe(tailored, tensor([[0, 0, 1, 9]]), num_classes=3)  # 9: ignored
    assert observed.values.tolist() == [[3.0], [6.0], [0.0]]
    assert observed.counts.tolist() == [2.0, 1.0, 0.0]


def test_the_class_of_a_coarse_voxel_is_that_of_its_first_fine_one() -> None:
    classes = tensor([[[[1, 2, 3, 4], [5, 6, 7, 8]]]])  # (B=1, 1, 2, 4)
    assert classes_at(classes, torch.zeros(1, 3, 5, 1, 2)).tolist() == [[[1, 3]]]
    assert classes_at(classes, torch.zeros(1, 5, 2, 4)).tolist() == classes[0].tolist()


def test_classes_that_are_not_those_of_the_plans_have_no_prototype() -> None:
    features = tensor([[[1.0, 3.0, 50.0, 70.0]]])
    observed = observe(features, tensor([[1, 1, 2, -1]]), num_classes=2)
    assert observed.values.tolist() == [[0.0], [2.0]]
    assert observed.counts.tolist() == [0.0, 2.0]


def test_observing_several_cases_of_several_dimensions_agrees_with_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    tailored = torch.randn(2, 2, 4, 5, 6, generator=generator)
    classes = torch.randint(0, 3, (2, 1, 4, 5, 6), generator=generator)[:, 0]
    observed = observe(tailored, classes[:, None], num_classes=3)
    for index in range(3):
        inside = classes == index
        want = torch.stack([tailored[:, c][inside].mean() for c in range(2)])
        assert torch.allclose(observed.values[index], want, atol=1e-6)
        assert observed.counts[index] == inside.sum()


def test_merging_weighs_by_counts_and_leaves_unseen_classes_zero() -> None:
    merged = merge_prototypes(
        [
            prototypes([[10.0], [1.0], [0.0]], [1.0, 2.0, 0.0]),
            prototypes([[30.0], [0.0], [0.0]], [3.0, 0.0, 0.0]),
        ]
    )
    assert merged.values.tolist() == [[25.0], [1.0], [0.0]]  # (1*10 + 3*30) / 4
    assert merged.counts.tolist() == [4.0, 2.0, 0.0]
    assert {getattr(merged, part).dtype for part in PARTS} == {torch.float32}


def test_fading_makes_later_batches_count_more() -> None:
    old = prototypes([[0.0]], [10.0])
    new = prototypes([[2.0]], [5.0])
    merged = merge_prototypes([fade(old, 0.5), new])
    assert merged.values.item() == pytest.approx(1.0)


def test_a_class_or_modality_that_no_site_saw_this_round_stays_as_it_was() -> None:
    before = {
        ("t1", 2): prototypes([[3.0], [4.0]], [5.0, 6.0]),
        ("t2", 2): prototypes([[9.0], [1.0]], [2.0, 3.0]),
    }
    reply = {("t1", 2): prototypes([[20.0], [0.0]], [1.0, 0.0])}
    after = merge_memories(before, {"north": reply})
    assert after["t1", 2].values.tolist() == [[20.0], [4.0]]
    assert after["t1", 2].counts.tolist() == [1.0, 6.0]
    assert after["t2", 2] is before["t2", 2]


@pytest.mark.parametrize("size", [0.01, 100.0])
def test_recall_does_not_see_the_size_of_features(size: float) -> None:
    def read(scale: float) -> float:
        memory = {
            "t1": prototypes((scale * tensor([[2.0, 0.0], [-2.0, 0.0]])).tolist(), [3.0, 3.0]),
            "t2": prototypes([[1.0], [5.0]], [3.0, 3.0]),
        }
        features = {"t1": (scale * tensor([[[1.0], [1.0]]]), tensor([True]))}
        return recall(features, memory, "t2", 0.5).item()

    # centred values are (±2, 0), so cosines ±1/sqrt(2)
    near, far = math.exp(1 / math.sqrt(2) / 0.5), math.exp(-1 / math.sqrt(2) / 0.5)
    assert read(1.0) == pytest.approx((near * 1.0 + far * 5.0) / (near + far), rel=1e-5)
    assert read(size) == pytest.approx(read(1.0), rel=1e-5)


def test_recall_ignores_what_all_classes_have_in_common() -> None:
    memory = {
        "t1": prototypes([[100.0, 1.0], [100.0, -1.0]], [3.0, 3.0]),
        "t2": prototypes([[1.0], [5.0]], [3.0, 3.0]),
    }
    features = {"t1": (tensor([[[100.0, 100.0], [0.9, -0.9]]]), tensor([True]))}  # one like each
    assert recall(features, memory, "t2", 0.05)[0, 0].tolist() == pytest.approx([1.0, 5.0])


def test_recall_keeps_the_shape_of_space() -> None:
    memory = {
        "t1": prototypes([[1.0, 2.0], [0.0, 1.0]], [1.0, 1.0]),
        "t2": prototypes([[1.0] * 5, [2.0] * 5], [1.0, 1.0]),
    }
    features = {"t1": (torch.randn(3, 2, 4, 6, 8), tensor([True] * 3))}
    assert recall(features, memory, "t2", 0.1).shape == (3, 5, 4, 6, 8)


def test_votes_are_the_mean_likeness_in_each_modalitys_own_terms() -> None:
    memory = {
        "t1": prototypes([[2.0, 0.0], [-2.0, 0.0]], [3.0, 3.0]),
        "flair": prototypes([[0.0, 7.0], [0.0, 1.0]], [3.0, 3.0]),  # mean (0, 4)
        "t2": prototypes([[1.0, 1.0], [5.0, 9.0]], [3.0, 3.0]),
    }
    here, both = tensor([True, True]), tensor([True, False])  # the second case has no FLAIR
    features = {
        "t1": (tensor([[[1.0], [1.0]], [[1.0], [1.0]]]), here),  # cosines ±1/sqrt(2)
        "flair": (tensor([[[0.0], [3.0]], [[0.0], [3.0]]]), both),  # (0, -1): cosines -1, +1
    }
    recalled = recall(features, memory, "t2", temperature=0.5)

    def mixed(cosine: float) -> list[list[float]]:
        near, far = math.exp(cosine / 0.5), math.exp(-cosine / 0.5)
        return [[(near * 1 + far * 5) / (near + far)], [(near * 1 + far * 9) / (near + far)]]

    votes = [(1 / math.sqrt(2) - 1) / 2, 1 / math.sqrt(2)]
    for case, vote in zip(recalled.tolist(), votes, strict=True):
        assert case == [pytest.approx(row, rel=1e-5) for row in mixed(vote)]


def test_votes_count_only_for_classes_that_both_sides_know() -> None:
    memory = {
        "t1": prototypes([[1.0], [-1.0], [50.0]], [3.0, 3.0, 0.0]),
        "t2": prototypes([[2.0], [999.0], [4.0]], [1.0, 0.0, 1.0]),
    }
    features = {"t1": (tensor([[[0.9, -0.9]]]), tensor([True]))}
    assert recall(features, memory, "t2", 0.1).tolist() == [[[2.0, 2.0]]]
    strangers = {**memory, "t2": prototypes([[2.0]] * 3, [0.0, 0.0, 1.0])}
    assert recall(features, strangers, "t2", 0.1).tolist() == [[[0.0, 0.0]]]
    unknown = {**features, "flair": (tensor([[[7.0, 7.0]]]), tensor([True]))}  # not in the memory
    assert recall(unknown, memory, "t2", 0.1).tolist() == [[[2.0, 2.0]]]
    nobody = {"t1": (features["t1"][0], tensor([False]))}
    assert recall(nobody, memory, "t2", 0.1).tolist() == [[[0.0, 0.0]]]


def test_a_modality_has_no_vote_on_a_class_that_it_has_not_seen() -> None:
    memory = {
        "t1": prototypes([[1.0], [-1.0]], [1.0, 1.0]),
        "flair": prototypes([[5.0], [0.0]], [3.0, 0.0]),
        "t2": prototypes([[2.0], [4.0]], [1.0, 1.0]),
    }
    here = tensor([True])
    features = {"t1": (tensor([[[0.9]]]), here), "flair": (tensor([[[7.0]]]), here)}
    # T1's cosines are 1 and -1; that of FLAIR's only class is 0, for it is FLAIR's mean, too
    near, far = math.exp((1 + 0) / 2 / 0.5), math.exp(-1 / 0.5)
    recalled = recall(features, memory, "t2", temperature=0.5)
    assert recalled.item() == pytest.approx((near * 2 + far * 4) / (near + far))


def test_votes_have_finite_gradients_where_nothing_is_known_and_where_a_slice_is_blank() -> None:
    memory = {
        "t1": prototypes([[1.0], [-1.0]], [3.0, 3.0]),
        "t2": prototypes([[2.0], [4.0]], [1.0, 1.0]),
    }
    features = torch.zeros(2, 1, 3, requires_grad=True)
    read = recall({"t1": (features, tensor([True, False]))}, memory, "t2", 0.1)
    assert (read[1] == 0).all()  # a case without an available modality
    (gradient,) = torch.autograd.grad(read.sum(), features)
    assert gradient.isfinite().all()
    assert gradient.abs().max() < 1e5


def test_rows_that_rest_on_few_cases_or_voxels_are_withheld() -> None:
    memory = {("t1", 2): prototypes([[1.0], [2.0], [3.0], [4.0]], [99.0, 10.0, 9.0, 99.0])}
    behind = {("t1", 2): torch.tensor([2, 3, 3, 0])}
    released = withhold_rare(memory, 3, 10, behind)["t1", 2]
    assert released.values.tolist() == [[0.0], [2.0], [0.0], [0.0]]
    assert released.counts.tolist() == [0, 10, 0, 0]


def test_rows_of_which_nobody_counted_the_cases_are_withheld() -> None:
    memory = {("t1", 2): prototypes([[1.0]], [99.0])}
    behind = {("t1", 1): torch.tensor([9])}
    assert withhold_rare(memory, 1, 0, behind)["t1", 2].counts.tolist() == [0]


def test_each_patch_is_asked_for_its_classes() -> None:
    classes = torch.tensor([[[0, 2], [2, -1]], [[5, 1], [1, 1]]])
    assert classes_of_each(classes, 3).tolist() == [[True, False, True], [False, True, False]]


def test_a_memory_moves_with_all_that_it_has() -> None:
    memory = {("t1", 2): prototypes([[3.0], [4.0]], [5.0, 6.0])}
    (moved,) = memory_to(memory, torch.device("meta")).values()
    for part in PARTS:
        assert getattr(moved, part).device.type == "meta"
        assert getattr(moved, part).shape == getattr(memory["t1", 2], part).shape


def test_an_empty_memory_recalls_nothing() -> None:
    memory = {("t1", 1): prototypes([[0.0]], [0.0])}
    assert not can_recall(memory, "t1", 1)
    assert not can_recall(memory, "t2", 1)
    assert can_recall({("t1", 1): prototypes([[0.0]], [1.0])}, "t1", 1)


def test_a_memory_survives_its_form_as_named_tensors() -> None:
    memory = {
        ("t2_star", 4): prototypes([[2.0]], [3.0]),
        ("t1", 0): prototypes([[5.0]], [6.0]),
    }
    state = {**memory_to_state(memory), "decoder.w": tensor(0)}
    back = memory_from_state(state)
    assert set(back) == set(memory)
    for place in memory:
        for part in PARTS:
            assert getattr(back[place], part).tolist() == getattr(memory[place], part).tolist()


def test_levelled_no_site_weighs_more_than_the_median_site() -> None:
    def memory_of(value: float, *counts: float) -> dict[tuple[str, int], Prototypes]:
        rows = torch.full((2, 1), value)
        return {("t1", 0): Prototypes(rows, torch.tensor(counts, dtype=torch.float32))}

    replies = {
        "a": memory_of(1.0, 10, 1),
        "b": memory_of(3.0, 10, 40),
        "c": memory_of(100.0, 1e6, 0),
    }
    plain = merge_memories({}, replies)["t1", 0]
    assert plain.values[0].item() == pytest.approx(100, abs=0.01)
    levelled = merge_memories({}, replies, levelled=True)["t1", 0]
    # each at most the median of the sites that saw it: 10 of three, 20.5 of two
    assert levelled.counts.tolist() == [30, 21.5]
    assert levelled.values[0].item() == pytest.approx(104 / 3)
    assert levelled.values[1].item() == pytest.approx((1 * 1 + 20.5 * 3) / 21.5)
