"""Personalisation: a site fine-tunes the global model, and keeps the result where it is better."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch

from mixmfl.federated.aggregation import add_changes, select_blocks
from mixmfl.federated.client.training import judged_cases, sum_dice, train_at_site
from mixmfl.federated.messages import Message
from mixmfl.federated.sites import patients_of
from mixmfl.federated.state import (
    Personal,
    RunSettings,
    Site,
    mean_dice,
    register,
)
from mixmfl.networks.prototypes import State
from mixmfl.planning.plans import Plans
from mixmfl.training.validation import are_enough


@dataclass(frozen=True)
class Personalised:
    """A site's personalised model.

    Attributes:
        result: The Dice before and after; they stay at the site.
        sent: The Dice that may be sent: of labels that enough validation cases have; NaN where the
            model rests on too few training cases, or should have had noise.
        blocks: The blocks of the model.
    """

    result: Personal
    sent: Personal
    blocks: State


def personalize_at_site(
    task: Message,
    site: Site,
    plans: Plans,
    settings: RunSettings,
    step: Callable[[], None] = lambda: None,
) -> Personalised:
    """Fine-tune the global model at a site, for that site; its weights are not sent.

    The site trains ``personal_rounds`` rounds of the run's local steps on all of its blocks; the
    learning rate starts at ``personal_learning_rate`` and falls as in a run. The personalised
    weights are interpolated between the global and the fine-tuned ones, which is better than either
    where data are few (Wortsman et al. 2022, Robust fine-tuning of zero-shot models).

    Its Dice is sent, so it rests on as many patients as weights that are sent, in a masked run too.
    Where it cannot, or should have noise, it is made without that, and its Dice is not sent.

    Args:
        task: Task from ``personalization_task``.
        site: The site, with at least one training case.
        plans: Plans of the run.
        settings: Settings of the run.
        step: Called after every round.

    Raises:
        MixmflError: The loss became NaN or infinite, or the device's memory ran out.
    """
    rounds = plans.training.personal_rounds
    personal_settings = dataclasses.replace(
        settings,
        rounds=rounds,
        learning_rate=plans.training.personal_learning_rate,
        half_updates=False,  # nothing is sent, so nothing need be rounded
        masked=False,
    )
    weights = register(site).weights
    fewest = site.validation_cases
    withheld = (
        site.privacy is not None
        or patients_of(site.training) < site.training_cases
        or not judged_cases(site, task.record["modalities"], plans.labels)
    )
    site = dataclasses.replace(
        site,
        privacy=None,
        validation_cases=1 if withheld else fewest,  # what stays at the site needs no floor
        training_cases=1 if withheld else site.training_cases,
    )
    tensors, optimizer = {**task.tensors}, State()
    for number in range(rounds):
        trains = dataclasses.replace(task, kind="train", record={"round": number}, tensors=tensors)
        reply, optimizer = train_at_site(trains, site, plans, personal_settings, optimizer)
        changes = select_blocks(reply.tensors, weights)
        tensors = {**tensors, **add_changes(tensors, changes)}
        step()
    share = plans.training.personal_share
    personalised = {
        name: torch.lerp(task.tensors[name], tensors[name], share)
        for name in select_blocks(task.tensors, weights)
    }
    own = dataclasses.replace(task, tensors={**task.tensors, **personalised})
    before, after = (sum_dice(judged, site, plans, settings) for judged in (task, own))
    enough = {
        name for name, dice in before.items() if not withheld and are_enough(dice.patients, fewest)
    }
    both = [{n: dice for n, dice in sums.items() if n in enough} for sums in (after, before)]
    return Personalised(
        Personal(mean_dice([after]), mean_dice([before])),
        Personal(*(mean_dice([sums]) for sums in both)),
        personalised,
    )
