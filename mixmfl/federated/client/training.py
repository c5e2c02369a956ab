"""A round at a site: it trains or validates as the server's task says.

Tasks and replies are ``messages.Message``; this module does not depend on their transport.
"""

import dataclasses
import logging
import secrets
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import torch

from mixmfl.core.errors import MixmflError, PrivacyError
from mixmfl.core.process_memory import keep_freed_memory
from mixmfl.core.tensor_store import Tensors
from mixmfl.core.text import plural, quoted
from mixmfl.data.labels import Labels
from mixmfl.federated.aggregation import changes_between, select_blocks
from mixmfl.federated.client.outbound import outgoing
from mixmfl.federated.messages import Message
from mixmfl.federated.sites import patients_of, rare_labels
from mixmfl.federated.state import (
    Minimum,
    Registration,
    RunSettings,
    Site,
    learning_rate_of,
    register,
)
from mixmfl.networks.base import SegmentationNet
from mixmfl.networks.build import build_network
from mixmfl.networks.parameters import block_of, load_state, network_state
from mixmfl.networks.prototypes import (
    State,
    memory_from_state,
    memory_to,
    memory_to_state,
)
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase, unlabelled
from mixmfl.training.batches import Batches, PoissonBatches, loader
from mixmfl.training.dp_sgd import train_privately
from mixmfl.training.privacy_budget import Privacy, sampling_rate, spend
from mixmfl.training.trainer import BatchLoss, LocalTraining, train_locally
from mixmfl.training.validation import DiceSum, dice_sums, validate

log = logging.getLogger(__name__)


def outgoing_registration(registration: Registration) -> Message:
    """Build a site's reply when it joins a run."""
    return outgoing("join", {"registration": dataclasses.asdict(registration)})


def trained_blocks(task: Message, site: Site) -> dict[str, int]:
    """Return the blocks that a site trains, and its aggregation weight in each.

    These are all blocks that the site holds, or those of them that the task names. In a masked run
    no task names a block that too few sites hold, and the block stays unchanged.
    """
    named = task.record.get("blocks")
    weights = register(site).weights
    return {b: w for b, w in weights.items() if named is None or b in named}


def agreed_minimum(site: Site, settings: RunSettings) -> Minimum:
    """Return how many cases and voxels a statistic that the site sends must rest on."""
    return site.minimum.agreed(Minimum(settings.minimum_cases, settings.minimum_voxels))


def train_at_site(
    task: Message,
    site: Site,
    plans: Plans,
    settings: RunSettings,
    optimizer_state: Tensors,
    loss: BatchLoss | None = None,
) -> tuple[Message, State]:
    """Train as the task says.

    Args:
        task: Task from ``train_task``.
        site: The site, with at least one training case.
        plans: Plans of the run.
        settings: Settings of the run.
        optimizer_state: Optimizer state that this function returned in the site's last round, or
            empty.
        loss: Loss of a batch, for research; None: ``batch_loss``.

    Returns:
        The reply (changes of the site's blocks, prototypes of its modalities, mean loss and its
        Dice part unless the site withholds them), and the optimizer state, which stays at the site.

    Raises:
        PrivacyError: The site's privacy budget is spent, or the round draws too few cases.
        MixmflError: The loss became NaN or infinite, or the device's memory ran out.
    """
    if site.device.type == "cpu":
        keep_freed_memory()
    if site.privacy is not None:
        return _train_privately(task, site, plans, settings, optimizer_state, site.privacy)
    round_number = int(task.record["round"])
    network = site_network(task, site, plans, settings)
    entropy = settings.seed, round_number, site.name
    batches = Batches(site.training, plans, settings.configuration, entropy, settings.local_steps)
    training = dataclasses.replace(_local_training(task, site, plans, settings), loss=loss)
    drawn = batches.cases_drawn() if site.training_cases > 1 and not settings.masked else []
    if drawn:
        _check_drawn(patients_of(drawn), round_number, site)
        batches = batches.with_cases(_without_rare_labels(drawn, round_number, site, plans))
    try:
        trained = train_locally(
            network,
            memory_from_state(task.tensors),
            optimizer_state,
            loader(batches, site.workers),
            training,
        )
    except torch.cuda.OutOfMemoryError:
        raise MixmflError(
            f"site {site.name}: the memory of {site.device} ran out; plan again with a preset of "
            "smaller memory_gb, free the device, or train on the CPU by --device cpu"
        ) from None
    changes = _changes(task, network, training.blocks, settings)
    if drawn:
        changes = _withhold_rare(changes, drawn, round_number, site)
    tensors = {**changes, **memory_to_state(trained.memory)}
    losses = {"loss": trained.loss, "dice_loss": trained.dice_loss} if site.sends_loss else {}
    reply = outgoing(
        "train",
        {"round": round_number, **losses},
        tensors,
        minimum=agreed_minimum(site, settings),
        behind=trained.patients,
    )
    return reply, trained.optimizer


def _check_drawn(patients: int, round_number: int, site: Site) -> None:
    """Check that enough patients are behind the weights that a round would send.

    Raises:
        PrivacyError: There are fewer: the coordinator chose few steps.
    """
    if patients < site.training_cases:
        raise PrivacyError(
            f"the steps of round {round_number + 1} draw training cases of "
            f"{plural(patients, 'patient')}, and weights that are sent must rest on "
            f"{site.training_cases} or more (--min-training-cases). The coordinator must ask for "
            "more --local-steps"
        )


def _without_rare_labels(
    drawn: Collection[PreprocessedCase], round_number: int, site: Site, plans: Plans
) -> Sequence[PreprocessedCase]:
    """Return a site's training cases as if it did not label what few of the patients drawn have.

    So these voxels are learnt neither as that label nor as background.

    Raises:
        PrivacyError: No label is left.
    """
    rare = rare_labels(drawn, plans.labels, site.training_cases)
    if not rare:
        return site.training
    log.warning(
        "round %d draws few patients with label %s: it is not trained (--min-training-cases)",
        round_number + 1, ", ".join(map(quoted, rare)),
    )  # fmt: skip
    left = [unlabelled(case, rare, plans.labels) for case in site.training]
    if not all(case.labelled for case in left):
        raise PrivacyError(
            f"fewer than {site.training_cases} of the patients whose training cases round "
            f"{round_number + 1} draws have any label, and weights that are sent must rest on as "
            "many (--min-training-cases)"
        )
    return left


def _withhold_rare(
    changes: State, drawn: Collection[PreprocessedCase], round_number: int, site: Site
) -> State:
    """Return changes that are zero in encoders of modalities that few of the patients drawn have.

    This holds where none of them has the modality, too: the optimizer may keep to the direction of
    an earlier round.
    """
    rare = [
        name
        for name in register(site).modality_cases
        if patients_of(case for case in drawn if name in case.modalities) < site.training_cases
    ]
    if rare:
        log.warning(
            "round %d draws few patients with %s: what changed in these encoders is not sent "
            "(--min-training-cases)", round_number + 1, ", ".join(rare),
        )  # fmt: skip
    blocks = {f"tailored.{name}" for name in rare}
    return {
        name: torch.zeros_like(change) if block_of(name) in blocks else change
        for name, change in changes.items()
    }


def _train_privately(
    task: Message,
    site: Site,
    plans: Plans,
    settings: RunSettings,
    optimizer_state: Tensors,
    privacy: Privacy,
) -> tuple[Message, State]:
    """Train with differential privacy; the reply has neither loss nor prototypes."""
    round_number = int(task.record["round"])
    size = int(plans.configuration(settings.configuration)["batch_size"])
    rate = sampling_rate(size, len(site.training))
    epsilon = spend(privacy, rate, settings.local_steps)
    network = site_network(task, site, plans, settings)
    # not the run's seed: with it the server could remove the noise and see which cases were drawn
    entropy = secrets.randbits(128), round_number, site.name
    training = _local_training(task, site, plans, settings)
    drawn = Batches(site.training, plans, settings.configuration, entropy, settings.local_steps)
    optimizer = train_privately(
        network,
        memory_from_state(task.tensors),
        optimizer_state,
        loader(PoissonBatches(drawn, rate), site.workers),
        training,
        privacy,
        rate * len(site.training),
        np.random.default_rng(),  # of the system's randomness, 128 bits
    )
    record = {"round": round_number, "epsilon": epsilon, "delta": privacy.delta}
    return outgoing("train", record, _changes(task, network, training.blocks, settings)), optimizer


def _local_training(
    task: Message, site: Site, plans: Plans, settings: RunSettings
) -> LocalTraining:
    """Return how a site trains in the round of a task."""
    return LocalTraining(
        plans,
        settings.configuration,
        trained_blocks(task, site),
        learning_rate_of(int(task.record["round"]), settings),
        site.device,
        settled=task.record.get("settled", ()),
    )


def _changes(
    task: Message, network: SegmentationNet, blocks: Collection[str], settings: RunSettings
) -> State:
    """Return how the blocks changed from the weights of the task."""
    after = {**select_blocks(network_state(network), blocks)}
    return changes_between(task.tensors, after, settings.update_type)


def judged_cases(
    site: Site, modalities: Collection[str], labels: Labels
) -> tuple[PreprocessedCase, ...]:
    """Return the validation cases whose Dice is summed: those with any of some modalities.

    Where the site has a floor, these are all or none, and none of fewer patients: from the sums
    over all cases and over all but one, a server would know the Dice of that one. Which cases
    can be among them does not depend on the task; see ``_without_rare_sets``.
    """
    held, floor = site.validation, site.validation_cases
    if floor > 1:
        held = _without_rare_sets(site.validation, labels, site.set_cases)
    judged = tuple(case for case in held if {*case.modalities} & {*modalities})
    left_out = len(held) - len(judged)
    return () if floor > 1 and (left_out or patients_of(judged) < floor) else judged


def _without_rare_sets(
    cases: Collection[PreprocessedCase], labels: Labels, fewest: int
) -> tuple[PreprocessedCase, ...]:
    """Return cases without those labels that few patients with exactly the same modalities have.

    Weights can be made that find a label only where these modalities and no others are there: a
    sum over all cases is then of those few, whose images nobody need know. A case without any
    other label is left out.
    """
    sets: dict[frozenset[str], list[PreprocessedCase]] = defaultdict(list)
    for case in cases:
        sets[frozenset(case.modalities)].append(case)
    judged = list[PreprocessedCase]()
    for case in cases:
        alike = sets[frozenset(case.modalities)]
        rare = rare_labels(alike, labels, fewest)
        left = unlabelled(case, rare, labels) if rare else case
        if patients_of(alike) >= fewest and left.labelled != ():
            judged.append(left)
    return tuple(judged)


def validate_at_site(task: Message, site: Site, plans: Plans, settings: RunSettings) -> Message:
    """Return the summed Dice of the site's validation cases; see ``sum_dice``."""
    dice = dice_sums(sum_dice(task, site, plans, settings), site.validation_cases)
    return outgoing("validate", {"round": task.record["round"], "dice": dice})


def sum_dice(task: Message, site: Site, plans: Plans, settings: RunSettings) -> dict[str, DiceSum]:
    """Return the Dice of the weights of a task, before anything is withheld.

    Each case is predicted from those of its modalities that the task names; see ``judged_cases``
    for cases with none of these.
    """
    return validate(
        site_network(task, site, plans, settings),
        memory_to(memory_from_state(task.tensors), site.device),
        judged_cases(site, task.record["modalities"], plans.labels),
        task.record["modalities"],
        plans,
        settings.configuration,
        site.device,
    )


def site_network(task: Message, site: Site, plans: Plans, settings: RunSettings) -> SegmentationNet:
    """Return the network of a task, on the site's device."""
    # encoders that are not in the task keep their random initial weights: they are not used
    network = build_network(plans, settings.configuration, settings.seed)
    load_state(network, {n: t for n, t in task.tensors.items() if not n.startswith("memory.")})
    return network.to(site.device)
