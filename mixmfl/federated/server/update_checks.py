"""The server's checks of what a site sends; what passes them is trusted from here on.

A reply that is not what was asked for, or cannot be the result of training, is refused with a
reason; its site is counted as missing from the round.
"""

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from mixmfl.core.errors import AggregationError
from mixmfl.core.json_fields import is_whole
from mixmfl.core.tensor_store import form_of
from mixmfl.core.text import quoted, shorten
from mixmfl.data.label_sets import known_indices
from mixmfl.federated.aggregation import select_blocks
from mixmfl.federated.messages import SENT, Message
from mixmfl.federated.server.reply_records import (
    PrivateReply,
    QuietReply,
    TrainReply,
    ValidationReply,
    check_round,
    read_reply,
)
from mixmfl.federated.server.update_norms import check_finite, norms_of
from mixmfl.federated.state import Registration, RunSettings
from mixmfl.networks.build import memory_shapes, prototype_sizes
from mixmfl.networks.prototypes import State
from mixmfl.planning.fingerprint import MOST_CASES, Fingerprint
from mixmfl.planning.plans import Plans


def check_answer(site: str, asked: str, reply: Message) -> None:
    """Check that a reply is of the kind that was asked for, and carries only what that may carry.

    Args:
        site: Name of the site that sent the reply.
        asked: The kind of the task.
        reply: The reply to check.

    Raises:
        AggregationError: The reply is of another kind, or carries something else.
    """
    if reply.kind != asked:
        raise AggregationError(
            f"site {site!r} sent a {quoted(reply.kind)} reply to a {asked!r} task"
        )
    if stray := sorted(set(reply.record) - set(SENT[asked])):
        raise AggregationError(
            f"site {site!r} sent what was not asked for: {shorten([quoted(n) for n in stray[:5]])}"
        )
    if reply.tensors and asked not in ("train", "masked"):
        raise AggregationError(
            f"site {site!r} sent {len(reply.tensors)} tensors in a {asked!r} reply, which has none"
        )


def check_registration(
    site: str,
    registration: Registration,
    plans: Plans,
    fingerprint: Fingerprint | None = None,
) -> None:
    """Check a site's registration, which comes before the first round.

    Args:
        site: Name of the site.
        registration: Number of cases, modalities and labels that the site registered.
        plans: Plans of the run.
        fingerprint: The fingerprint that the site sent for planning; None: the server has none.

    Raises:
        AggregationError: Counts that are none or that contradict each other or the fingerprint,
            or modalities that the plans do not know.
    """
    counts = registration.modality_cases
    if not isinstance(counts, Mapping) or not _are_names(registration.validated):
        raise AggregationError(f"site {site!r} registered with something else than counts")
    if not all(_is_count(number) for number in (registration.cases, *counts.values())):
        raise AggregationError(
            f"site {site!r} registered {quoted(registration.cases)} cases, "
            f"{quoted(dict(counts), 200)} by modality; whole numbers up to {MOST_CASES} are needed"
        )
    if strange := sorted({*counts, *registration.validated} - set(plans.modalities)):
        raise AggregationError(
            f"site {site!r} registered {', '.join(map(quoted, strange[:5]))}; the plans know "
            f"{', '.join(plans.modalities)}"
        )
    known_labels = plans.labels.foreground
    if registration.labelled is not None and not (
        _are_names(registration.labelled)
        and registration.labelled
        and set(registration.labelled) <= set(known_labels)
    ):
        raise AggregationError(
            f"site {site!r} registered that it labels {quoted(registration.labelled, 200)}; the "
            f"plans know {', '.join(known_labels)}"
        )
    most = max(counts.values(), default=0)
    if not 0 < most <= registration.cases <= sum(counts.values()):
        raise AggregationError(
            f"site {site!r} registered {registration.cases} training cases, but "
            f"{quoted(dict(counts), 200)} by modality; every case has at least one modality, and "
            "none has one twice"
        )
    if fingerprint is None:
        return
    known = {"cases": fingerprint.cases, **fingerprint.modality_cases}
    for name, number in {"cases": registration.cases, **counts}.items():
        if number > known.get(name, 0):
            raise AggregationError(
                f"site {site!r} registered {number} for {name}, its fingerprint says "
                f"{known.get(name, 0)}"
            )


def check_reply(
    site: str,
    reply: Message,
    round_number: int,
    weights: State,
    registration: Registration,
    plans: Plans,
    settings: RunSettings,
) -> dict[str, float]:
    """Check that a training reply is what its site was asked for, and can be true.

    Args:
        site: Name of the site that sent the reply.
        reply: The reply to check.
        round_number: Round that was asked for, counted from 0.
        weights: Network weights at the start of the round.
        registration: What the site registered before the first round.
        plans: Plans of the run.
        settings: Settings of the run.

    Returns:
        The norms of the reply's tensors; see ``norms_of``.

    Raises:
        AggregationError: The reply is not what was asked for, or cannot be true.
    """
    check_round(site, "train", reply, round_number)
    with_loss = TrainReply if "loss" in reply.record else QuietReply
    read_reply(PrivateReply if "epsilon" in reply.record else with_loss, site, reply)
    own = select_blocks(weights, registration.weights)
    held = [name for name, cases in registration.modality_cases.items() if cases > 0]
    shapes = memory_shapes(held, prototype_sizes(plans, settings.configuration))
    places = {name.rpartition(".")[0] for name in reply.tensors if name.startswith("memory.")}
    remembered = {n: shape for n, shape in shapes.items() if n.rpartition(".")[0] in places}
    if missing := sorted((own.keys() | remembered.keys()) - reply.tensors.keys()):
        raise AggregationError(f"site {site!r} did not send {', '.join(missing[:5])}")
    if stray := sorted(reply.tensors.keys() - own.keys() - remembered.keys()):
        names = shorten([quoted(name) for name in stray[:5]])
        raise AggregationError(f"site {site!r} sent what it does not hold: {names}")
    for name in reply.tensors:
        needed = (
            (tuple(own[name].shape), settings.update_type)
            if name in own
            else (shapes[name], torch.float32)
        )
        if (form := form_of(reply.tensors, name)) != needed:
            raise AggregationError(
                f"site {site!r} sent {name} as {form[0]} {form[1]}, needed is {needed[0]} "
                f"{needed[1]}; was it started from the same plans, and settings of the run?"
            )
    _check_counts(site, reply.tensors, registration, plans, settings)
    norms = norms_of(reply.tensors)
    check_finite(site, norms)
    return norms


def check_validation(
    site: str,
    reply: Message,
    round_number: int,
    cases: int | None,
    plans: Plans,
    labelled: Collection[str] | None = None,
) -> None:
    """Check that a validation reply is what its site was asked for, and can be true.

    Args:
        site: Name of the site that sent the reply.
        reply: The reply to check.
        round_number: Round that was asked for.
        cases: Number of validation cases at the site; None: it is not known.
        plans: Plans of the run.
        labelled: The labels and regions that the site registered; None: all of the plans'.

    Raises:
        AggregationError: The reply is not what was asked for, or cannot be true.
    """
    check_round(site, "validate", reply, round_number)
    check_sums(site, read_reply(ValidationReply, site, reply).dice, cases, plans, labelled)


def check_sums(
    site: str,
    dice: Mapping[str, tuple[float, int]],
    cases: int | None,
    plans: Plans,
    labelled: Collection[str] | None,
) -> None:
    """Check that sums of Dice can be those of a site; see ``check_validation``.

    Raises:
        AggregationError: They cannot be true.
    """
    most = MOST_CASES if cases is None else cases
    if dice.keys() != plans.labels.foreground.keys() or not all(
        total <= number <= most for total, number in dice.values()
    ):
        raise AggregationError(
            f"site {site!r} sent Dice that are no sums over its cases: {quoted(dict(dice), 200)}"
        )
    check_labelled(site, "Dice of", [name for name, (_, n) in dice.items() if n], labelled)


def check_labelled(
    site: str, what: str, names: Collection[str], labelled: Collection[str] | None
) -> None:
    """Check that a site sent numbers of labels or regions that it registered.

    Args:
        site: Name of the site.
        what: What it sent of them, for the message, such as ``"Dice of"``.
        names: The labels or regions with numbers.
        labelled: What the site registered; None: all of the plans'.

    Raises:
        AggregationError: It does not label one of them.
    """
    if labelled is not None and (strange := [name for name in names if name not in labelled]):
        raise AggregationError(
            f"site {site!r} sent {what} {', '.join(strange)}, which it does not label"
        )


def _check_counts(
    site: str,
    tensors: Mapping[str, Tensor],
    registration: Registration,
    plans: Plans,
    settings: RunSettings,
) -> None:
    """Check that prototypes claim no more voxels than the round's batches can have had.

    A class that the site does not label must have no voxels.
    """
    known = torch.tensor(known_indices(plans.labels, registration.labelled))
    planned = plans.configuration(settings.configuration)
    decay = plans.training.memory_decay
    weight = float(sum(decay**step for step in range(settings.local_steps)))
    for level, size in prototype_sizes(plans, settings.configuration).items():
        most = weight * planned["batch_size"] * size.voxels
        of_level = f".{level}.counts"
        for name in (n for n in tensors if n.startswith("memory.") and n.endswith(of_level)):
            counts = tensors[name].double()
            if not (torch.isfinite(counts) & (counts >= 0)).all():
                raise AggregationError(
                    f"site {site!r} sent {name} with NaN, infinity or a count < 0"
                )
            if counts[~known].any():
                raise AggregationError(
                    f"site {site!r} sent {name} of classes that it does not label; it "
                    f"registered {', '.join(registration.labelled or ())}"
                )
            claimed = float(counts.sum())
            if claimed > 1.01 * most:  # for rounding
                raise AggregationError(
                    f"site {site!r} sent {name} for {claimed:.0f} voxels; its batches cannot "
                    f"have had more than {most:.0f}"
                )


def _is_count(number: Any) -> bool:
    return is_whole(number, 0, MOST_CASES)


def _are_names(names: Any) -> bool:
    return (
        isinstance(names, list | tuple)
        and all(isinstance(name, str) for name in names)
        and len(set(names)) == len(names)
    )
