"""A site's own copy of the model: fine-tuned there, kept there, and only where it is better."""

import dataclasses

import torch

from mixmfl.federated.aggregation import add_changes, select_blocks
from mixmfl.federated.client.training import train_at_site, validate_at_site
from mixmfl.federated.messages import Message
from mixmfl.federated.state import (
    Personal,
    RunSettings,
    Site,
    mean_dice,
    read_dice,
    register,
)
from mixmfl.networks.prototypes import State
from mixmfl.planning.plans import Plans


def personalize_at_site(
    task: Message, site: Site, plans: Plans, settings: RunSettings
) -> tuple[Personal, State]:
    """Fine-tune a copy of the model at a site, for itself; nothing of it is sent.

    ``personal_rounds`` rounds of the run's local steps on all blocks that the site trains; the
    learning rate starts at ``personal_learning_rate`` and falls as a run's does. The copy's
    weights lie between the model's and the fine-tuned ones, which is better than either where
    data are few (Wortsman et al. 2022, Robust fine-tuning of zero-shot models).

    Args:
        task: From ``personalization_task``.
        site: With at least one training case.
        plans: Of the run.
        settings: Of the run.

    Returns:
        What became of it, and the copy's blocks.

    Raises:
        MixmflError: As ``train_at_site``.
    """
    rounds = plans.training.personal_rounds
    own = dataclasses.replace(
        settings,
        rounds=rounds,
        learning_rate=plans.training.personal_learning_rate,
        half_updates=False,  # nothing is sent, so nothing need be rounded
    )
    weights = register(site).weights
    site = dataclasses.replace(site, privacy=None)  # the copy stays here
    tensors, optimizer = {**task.tensors}, State()
    for number in range(rounds):
        step = dataclasses.replace(task, kind="train", record={"round": number}, tensors=tensors)
        reply, optimizer = train_at_site(step, site, plans, own, optimizer)
        changes = select_blocks(reply.tensors, weights)
        tensors = {**tensors, **add_changes(tensors, changes)}
    share = plans.training.personal_share
    copy = {
        name: torch.lerp(task.tensors[name], tensors[name], share)
        for name in select_blocks(task.tensors, weights)
    }
    judge = dataclasses.replace(task, kind="validate")
    before, after = (
        read_dice(validate_at_site(asked, site, plans, settings))
        for asked in (judge, dataclasses.replace(judge, tensors={**task.tensors, **copy}))
    )
    return Personal(mean_dice([after]), mean_dice([before])), copy
