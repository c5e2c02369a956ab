"""The loss of cases that label only some of the classes."""

from math import log

import pytest
import torch
from torch import Tensor, tensor
from torch.nn import functional

from mixmfl.data.labels import Labels
from mixmfl.training.nnunet_training import supervision_loss, supervision_targets
from mixmfl.training.supervision import Supervision, known_classes, merge_unlabelled

TWO = Labels({"background": 0, "tumour": 1, "stroke": 2})
REGIONS = Labels({"background": 0, "whole": (1, 2), "core": 2, "stroke": 3}, (1, 2, 3))
TUMOUR_ALONE = tensor([True, False])


def one_voxel(*odds: float) -> Tensor:
    """Return logits ``(1, heads, 1, 1)`` whose probabilities are as the odds."""
    return tensor([log(odd) for odd in odds]).reshape(1, -1, 1, 1).requires_grad_()


def patches(heads: int, cases: int = 2, seed: int = 0) -> list[Tensor]:
    """Return random logits at two resolutions."""
    generator = torch.Generator().manual_seed(seed)
    sizes = (8, 4)
    return [torch.randn(cases, heads, n, n, generator=generator).requires_grad_() for n in sizes]


def masks(highest: int, cases: int = 2) -> list[Tensor]:
    """Return random class indices at two resolutions."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, highest + 1, (cases, 1, n, n), generator=generator) for n in (8, 4)]


def test_background_is_the_sum_of_background_and_of_what_is_not_labelled() -> None:
    merged = merge_unlabelled(one_voxel(1, 2, 3), TUMOUR_ALONE, TWO)
    probabilities = merged.softmax(dim=1).flatten().tolist()
    assert probabilities == pytest.approx([4 / 6, 2 / 6])  # background with stroke, and tumour


def test_a_background_voxel_does_not_speak_against_what_may_hide_in_it() -> None:
    logits, background = one_voxel(1, 2, 3), torch.zeros(1, 1, 1, dtype=torch.long)
    merged = merge_unlabelled(logits, TUMOUR_ALONE, TWO)
    functional.cross_entropy(merged, background).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    # p_k - p_k / q_0 of background and stroke, p_k of tumour, where q_0 = 4/6
    assert logits.grad.flatten().tolist() == pytest.approx([1 / 6 - 1 / 4, 2 / 6, 3 / 6 - 3 / 4])
    plain = one_voxel(1, 2, 3)
    functional.cross_entropy(plain, background).backward()  # type: ignore[no-untyped-call]
    assert plain.grad is not None
    assert plain.grad.flatten().tolist() == pytest.approx([1 / 6 - 1, 2 / 6, 3 / 6])


@pytest.mark.parametrize("batch_dice", [True, False])
def test_the_whole_loss_leaves_the_odds_of_what_may_hide_as_they_are(batch_dice: bool) -> None:
    logits, classes = patches(3), masks(1)
    compare = Supervision(TWO, 2, batch_dice).prepare(classes, TUMOUR_ALONE.repeat(2, 1))
    compare(logits).total.backward()  # type: ignore[no-untyped-call]
    probabilities, grad = logits[0].detach().softmax(dim=1), logits[0].grad
    assert grad is not None
    odds = probabilities[:, 2] / probabilities[:, 0]
    torch.testing.assert_close(grad[:, 2], grad[:, 0] * odds, rtol=1e-4, atol=1e-8)


def test_it_is_the_loss_of_a_network_that_has_these_classes_alone() -> None:
    labels = Labels({"background": 0, "a": 1, "b": 2, "c": 3, "ignore": 9})
    logits, classes = patches(4), [torch.where(x == 1, 3, x) for x in masks(4)]  # a is not labelled
    known = tensor([[False, True, True]] * 2)
    found = Supervision(labels, 2, batch_dice=False).prepare(classes, known)(logits)
    own = Labels({"background": 0, "b": 1, "c": 2, "ignore": 3})
    merged = [
        torch.cat([(x[:, :1].exp() + x[:, 1:2].exp()).log(), x[:, 2:]], dim=1) for x in logits
    ]
    table = tensor([0, 0, 1, 2, 3])  # of the plans' indices, in its own
    targets = supervision_targets([table[item] for item in classes], own)
    alone = supervision_loss(own, 2, batch_dice=False)(merged, targets)
    torch.testing.assert_close(found.total, alone.total)


@pytest.mark.parametrize("labels", [TWO, REGIONS])
def test_cases_that_label_everything_have_nnunets_loss_bit_for_bit(labels: Labels) -> None:
    heads = len(labels.foreground) + (not labels.has_regions)
    logits, classes = patches(heads), masks(len(labels.values) - 1)
    expected = supervision_loss(labels, 2, True)(logits, supervision_targets(classes, labels))
    supervision = Supervision(labels, 2, batch_dice=True)
    everything = torch.ones(2, len(labels.foreground), dtype=torch.bool)
    assert supervision.prepare(classes)(logits) == expected
    assert supervision.prepare(classes, everything)(logits) == expected


def test_a_region_that_is_not_labelled_is_in_no_loss() -> None:
    logits, classes = patches(3), masks(2)
    known = tensor([[True, False, True]] * 2)  # not the core
    compare = Supervision(REGIONS, 2, batch_dice=False).prepare(classes, known)
    loss = compare(logits).total
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits[0].grad is not None
    assert not logits[0].grad[:, 1].any()
    assert logits[0].grad[:, 0].any()
    assert logits[0].grad[:, 2].any()
    for item in classes:
        item[item == 2] = 1  # what the case cannot tell makes no difference
    changed = Supervision(REGIONS, 2, batch_dice=False).prepare(classes, known)(logits).total
    assert changed.item() == loss.item()


def test_cases_that_label_different_classes_are_compared_each_by_what_it_labels() -> None:
    supervision = Supervision(TWO, 2, batch_dice=False)
    logits, classes = patches(3, cases=3), masks(1, cases=3)
    known = tensor([[True, False], [True, True], [True, False]])
    together = supervision.prepare(classes, known)(logits)
    parts = [
        supervision.prepare([x[row : row + 1] for x in classes], known[row : row + 1])(
            [x[row : row + 1] for x in logits]
        )
        for row in range(3)
    ]
    for name in ("total", "dice"):
        mean = torch.stack([getattr(part, name) for part in parts]).mean()
        torch.testing.assert_close(getattr(together, name), mean)


def test_a_voxel_whose_class_a_case_cannot_tell_is_of_no_known_class() -> None:
    classes = tensor([0, 1, 2, 3, -1]).reshape(1, 1, 5)
    whole = tensor([[True, False, False]])
    assert known_classes(classes, REGIONS, whole).flatten().tolist() == [0, -1, -1, -1, -1]
    assert known_classes(classes, REGIONS, None) is classes
    ignoring = Labels({"background": 0, "tumour": 1, "stroke": 2, "ignore": 7})
    found = known_classes(classes, ignoring, tensor([[True, False]]))
    assert found.flatten().tolist() == [0, 1, -1, -1, -1]
