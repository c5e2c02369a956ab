"""The loss on masks: nnU-Net's, of cases that label every class, or some of them only.

What a case does not label is unknown there. So its loss is nnU-Net's of that case's own labels,
and the network's logits are first made what a network of these alone would have given.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixmfl.data.label_sets import known_indices
from mixmfl.data.labels import Labels
from mixmfl.training.nnunet_training import supervision_loss, supervision_targets

Compare = Callable[[Any], Tensor]
"""From the logits of every supervised resolution, a list, finest first, to a batch's loss."""


@dataclass(frozen=True)
class Supervision:
    """What a network's masks are compared with, and how.

    Attributes:
        labels: Of the plans.
        outputs: Supervised resolutions of the network.
        batch_dice: Whether Dice is of the whole batch, as nnU-Net plans it.
    """

    labels: Labels
    outputs: int
    batch_dice: bool

    def prepare(self, classes: Sequence[Tensor], labelled: Tensor | None = None) -> Compare:
        """Return the loss of a batch as a function of the network's logits.

        Args:
            classes: Class indices ``(B, 1, *P)`` per resolution, finest first.
            labelled: ``(B, N)`` bool on the CPU, whether a case labels each of the plans' labels or
                regions; None: all do. Cases that label the same are compared together.
        """
        if labelled is None or bool(labelled.all()):
            whole = supervision_loss(self.labels, self.outputs, self.batch_dice)
            targets = supervision_targets(classes, self.labels)
            return lambda logits: whole(logits, targets)
        parts = []
        for told in sorted({tuple(row) for row in labelled.tolist()}):
            known = torch.tensor(told)
            rows = (labelled == known).all(dim=1).nonzero()[:, 0]
            taken = [item[rows.to(item.device)] for item in classes]
            parts.append((rows, known, self.prepare_part(taken, known)))

        def compare(logits: Sequence[Tensor]) -> Tensor:
            found = [
                len(rows)
                * part([merge_unlabelled(x[rows.to(x.device)], known, self.labels) for x in logits])
                for rows, known, part in parts
            ]
            return torch.stack(found).sum() / len(labelled)

        return compare

    def prepare_part(self, classes: Sequence[Tensor], known: Tensor) -> Compare:
        """Return the loss of cases that all label the same, of what ``merge_unlabelled`` gives."""
        own = self.labels.only(_names(self.labels, known.tolist()))
        part = supervision_loss(self.labels, self.outputs, self.batch_dice, own)
        if self.labels.has_regions:
            ignored = [True] if self.labels.ignore is not None else []  # the last channel
            kept = torch.tensor([*known.tolist(), *ignored])
            targets = [t[:, kept.to(t.device)] for t in supervision_targets(classes, self.labels)]
        else:
            index = own.index_of_value
            table = torch.tensor([index.get(v, 0) for v in self.labels.index_of_value])
            targets = [table.to(item.device)[item.long()] for item in classes]
        return lambda logits: part(logits, targets)


def merge_unlabelled(logits: Tensor, known: Tensor, labels: Labels) -> Tensor:
    """Return the logits of a network that only knows some of the classes.

    A voxel that a case labels as background may be of any class that the case does not label. With
    the softmax probabilities p of all classes and the labelled ones L, its probability is

        q_0 = p_0 + sum of p_u over u not in L,        q_c = p_c for c in L,

    and Dice and cross-entropy are those of q: the marginal loss of Shi et al. 2021 (Marginal loss
    and exclusion loss for partially supervised multi-organ segmentation), a label-set loss in the
    sense of Fidon et al. 2021 (Label-set loss functions for partial supervision). Since q is the
    softmax of

        z_0 = log(exp(x_0) + sum of exp(x_u)),         z_c = x_c,

    where x are the logits, nnU-Net's own loss takes z. With regions each channel is judged by
    itself; those of L are kept, and the others are in no loss.

    Args:
        logits: ``(B, heads, *P)``; the heads are background and the plans' labels by value, or
            the plans' regions.
        known: ``(N,)`` bool: whether each of the plans' labels or regions is labelled.
        labels: Of the plans.

    Returns:
        ``(B, 1 + |L|, *P)``, background first and then L; with regions ``(B, |L|, *P)``.
    """
    if labels.has_regions:
        return logits[:, known.to(logits.device)]
    kept = set(labels.only(_names(labels, known.tolist())).values) - {0}
    shown = torch.tensor([value in kept for value in labels.values], device=logits.device)
    background = logits[:, ~shown].logsumexp(dim=1, keepdim=True)
    return torch.cat([background, logits[:, shown]], dim=1)


def known_classes(classes: Tensor, labels: Labels, labelled: Tensor | None) -> Tensor:
    """Return class indices with -1 where a case cannot tell which class a voxel is of.

    Args:
        classes: ``(B, 1, *P)`` class indices of the plans.
        labels: Of the plans.
        labelled: ``(B, N)`` bool on the CPU, as in ``Supervision.prepare``.
    """
    if labelled is None or bool(labelled.all()):
        return classes
    told = []
    for row, here in zip(classes, labelled.tolist(), strict=True):
        known = known_indices(labels, _names(labels, here))
        sure = torch.tensor([*known, False, False], device=row.device)  # the ignore label, and -1
        told.append(torch.where(sure[row.long()], row, -1))
    return torch.stack(told)


def _names(labels: Labels, here: Sequence[bool]) -> list[str]:
    return [name for name, one in zip(labels.foreground, here, strict=True) if one]
