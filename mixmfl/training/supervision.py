"""The loss on masks: nnU-Net's, for cases that label all classes or only some of them.

Where a case does not label a class, that class is unknown. The loss is therefore nnU-Net's on the
case's own labels, and the logits are first converted to those of a network with these labels only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mixmfl.data.label_sets import known_indices
from mixmfl.data.labels import Labels
from mixmfl.training.nnunet_training import Loss, supervision_loss, supervision_targets

Compare = Callable[[Any], Loss]
"""Takes the list of logits per supervised resolution, finest first; returns a batch's loss."""


@dataclass(frozen=True)
class Supervision:
    """The settings of the loss on masks.

    Attributes:
        labels: Labels of the plans.
        outputs: Number of supervised resolutions of the network.
        batch_dice: Whether Dice is computed over the whole batch, as nnU-Net plans it.
    """

    labels: Labels
    outputs: int
    batch_dice: bool

    def prepare(self, classes: Sequence[Tensor], labelled: Tensor | None = None) -> Compare:
        """Return the loss of a batch as a function of the network's logits.

        Args:
            classes: Class indices ``(B, 1, *P)`` per resolution, finest first.
            labelled: ``(B, N)`` bool on the CPU, whether a case labels each of the plans' labels or
                regions; None: all cases label all. Cases with the same labels form one loss.
        """
        if labelled is None or bool(labelled.all()):
            whole = supervision_loss(self.labels, self.outputs, self.batch_dice)
            targets = supervision_targets(classes, self.labels)
            return lambda logits: whole(logits, targets)
        parts = []
        for row in sorted({tuple(row) for row in labelled.tolist()}):
            known = torch.tensor(row)
            rows = (labelled == known).all(dim=1).nonzero()[:, 0]
            classes_of_part = [item[rows.to(item.device)] for item in classes]
            parts.append((rows, known, self.prepare_part(classes_of_part, known)))

        def compare(logits: Sequence[Tensor]) -> Loss:
            total, dice = [], []
            for rows, known, part in parts:
                loss = part(
                    [merge_unlabelled(x[rows.to(x.device)], known, self.labels) for x in logits]
                )
                total.append(len(rows) * loss.total)
                dice.append(len(rows) * loss.dice)
            return Loss(
                torch.stack(total).sum() / len(labelled), torch.stack(dice).sum() / len(labelled)
            )

        return compare

    def prepare_part(self, classes: Sequence[Tensor], known: Tensor) -> Compare:
        """Return the loss of cases with the same labels, on the logits of ``merge_unlabelled``."""
        own = self.labels.only(_names(self.labels, known.tolist()))
        part = supervision_loss(self.labels, self.outputs, self.batch_dice, own)
        if self.labels.has_regions:
            ignored = [True] if self.labels.ignore is not None else []  # the last channel
            channels = torch.tensor([*known.tolist(), *ignored])
            targets = [
                t[:, channels.to(t.device)] for t in supervision_targets(classes, self.labels)
            ]
        else:
            index = own.index_of_value
            table = torch.tensor([index.get(v, 0) for v in self.labels.index_of_value])
            targets = [table.to(item.device)[item.long()] for item in classes]
        return lambda logits: part(logits, targets)


def merge_unlabelled(logits: Tensor, known: Tensor, labels: Labels) -> Tensor:
    """Convert logits of all classes to those of a network that has only the labelled ones.

    A voxel that a case labels as background may be of any class that the case does not label. With
    the softmax probabilities p of all classes and the labelled ones L, its probability is

        q_0 = p_0 + sum of p_u over u not in L,        q_c = p_c for c in L,

    and Dice and cross-entropy are those of q: the marginal loss of Shi et al. 2021 (Marginal loss
    and exclusion loss for partially supervised multi-organ segmentation), a label-set loss in the
    sense of Fidon et al. 2021 (Label-set loss functions for partial supervision). Since q is the
    softmax of

        z_0 = log(exp(x_0) + sum of exp(x_u)),         z_c = x_c,

    where x are the logits, nnU-Net's own loss takes z. With regions each channel has its own
    loss; those of L are kept, and the others contribute none.

    Args:
        logits: ``(B, heads, *P)``; the heads are background and the plans' labels by value, or
            the plans' regions.
        known: ``(N,)`` bool: whether each of the plans' labels or regions is labelled.
        labels: Labels of the plans.

    Returns:
        ``(B, 1 + |L|, *P)``, background first and then L; with regions ``(B, |L|, *P)``.
    """
    if labels.has_regions:
        return logits[:, known.to(logits.device)]
    labelled = set(labels.only(_names(labels, known.tolist())).values) - {0}
    channels = torch.tensor([value in labelled for value in labels.values], device=logits.device)
    background = logits[:, ~channels].logsumexp(dim=1, keepdim=True)
    return torch.cat([background, logits[:, channels]], dim=1)


def known_classes(classes: Tensor, labels: Labels, labelled: Tensor | None) -> Tensor:
    """Return class indices with -1 where a case's labels do not determine the class of a voxel.

    Args:
        classes: ``(B, 1, *P)`` class indices of the plans.
        labels: Labels of the plans.
        labelled: ``(B, N)`` bool on the CPU, whether a case labels each of the plans' labels or
            regions; None: all cases label all.
    """
    if labelled is None or bool(labelled.all()):
        return classes
    result = []
    for row, flags in zip(classes, labelled.tolist(), strict=True):
        known = known_indices(labels, _names(labels, flags))
        table = torch.tensor([*known, False, False], device=row.device)  # the ignore label, and -1
        result.append(torch.where(table[row.long()], row, -1))
    return torch.stack(result)


def _names(labels: Labels, labelled: Sequence[bool]) -> list[str]:
    return [name for name, flag in zip(labels.foreground, labelled, strict=True) if flag]
