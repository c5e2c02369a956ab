"""A round of the federation, engine-free: what is sent, done at a site, and made of it.

::

    task = train_task(state, registration)                        server
    reply, optimizer_state = train_at_site(task, site, …)         site
    state, diagnostics = merge_round(state, replies, registrations, plans, settings)    server

Messages are plain (see ``wire``); nothing here knows what carries them.
"""

import dataclasses
import logging
import math
import secrets
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mixmfl import __version__
from mixmfl.aggregate import block_weights, changes_between, merge_blocks, select_blocks
from mixmfl.dataset import StoredCase, class_cases
from mixmfl.door import (
    check_norms,
    check_reply,
    reach_of,
    remember_norms,
    usual_norms,
)
from mixmfl.errors import AggregationError, MixmflError, QuorumError
from mixmfl.expected import all_subsets
from mixmfl.fingerprint import Fingerprint
from mixmfl.memory import (
    Memory,
    State,
    memory_from_state,
    memory_to,
    memory_to_state,
    merge_memories,
)
from mixmfl.network import (
    SegmentationNet,
    build_network,
    load_state,
    network_state,
    prototype_sizes,
)
from mixmfl.outgoing import Departure, Minimum, departures, outgoing, outgoing_fingerprint
from mixmfl.plan import Plans
from mixmfl.privacy import Privacy, sampling_rate, spend
from mixmfl.sampling import Batches, PoissonBatches, loader
from mixmfl.train import DiceSum, train_locally, train_privately, validate
from mixmfl.undefined import mean
from mixmfl.usage import keep_freed_memory
from mixmfl.wire import Message

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunSettings:
    """What every participant of a run must know beside the plans.

    Attributes:
        configuration: ``"2d"`` or ``"3d_fullres"``.
        seed: Of the first weights and of every draw.
        rounds: Of the whole run; the learning rate falls over them.
        local_steps: Gradient steps of a site in a round.
        learning_rate: In the first round.
        minimum_cases: That the coordinator asks to be behind a statistic; a site may ask for
            more. See ``outgoing.Minimum``.
        minimum_voxels: Likewise.
        masked: Whether the server learns sums over sites only; see ``masked``.
        half_updates: Whether sites round the changes that they send to half precision; in a
            masked run they do not, for there numbers travel in fixed point.
    """

    configuration: str
    seed: int
    rounds: int
    local_steps: int
    learning_rate: float
    minimum_cases: int = 0
    minimum_voxels: int = 0
    masked: bool = False
    half_updates: bool = True

    @property
    def update_type(self) -> torch.dtype:
        """Return the type of the changes in a training reply."""
        return torch.float16 if self.half_updates and not self.masked else torch.float32


@dataclass(frozen=True)
class Site:
    """A hospital as its own code sees it. Never leaves the house.

    Attributes:
        name: Of the site.
        training: Its training cases.
        validation: Its validation cases, maybe none.
        device: Where it computes.
        workers: Processes that prepare batches; 0: this one does.
        minimum: That the site asks to be behind a statistic; the coordinator may ask for more.
        privacy: What the site demands for its cases; None: no noise is added.
    """

    name: str
    training: tuple[StoredCase, ...]
    validation: tuple[StoredCase, ...]
    device: torch.device
    workers: int = 0
    minimum: Minimum = field(default_factory=Minimum)
    privacy: Privacy | None = None


@dataclass(frozen=True)
class Registration:
    """What the server knows of a site.

    Attributes:
        cases: Training cases.
        modality_cases: How many of them have each modality.
        validated: Modalities that its validation cases have.
        uniform: Whether its word counts as every other site's, whatever the numbers.
        labelled: Labels and regions that it labels, sorted; None: all of the plans'.
    """

    cases: int
    modality_cases: Mapping[str, int]
    validated: Sequence[str] = ()
    uniform: bool = False
    labelled: Sequence[str] | None = None

    @property
    def weights(self) -> dict[str, int]:
        """Return the weight of the site's word per block that it trains."""
        weights = block_weights(self.cases, self.modality_cases)
        return dict.fromkeys(weights, 1) if self.uniform else weights


@dataclass(frozen=True)
class ServerState:
    """All that the server must remember from one round to the next.

    Attributes:
        round: Rounds that are done.
        weights: Of the whole network.
        memory: Of the federation.
        norms: Of updates by block, the medians of the last rounds; see ``door.usual_norms``.
    """

    round: int
    weights: State
    memory: Memory
    norms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnostics:
    """What a round showed.

    Attributes:
        loss: Mean training loss by site that had a part in it; in a masked run that of all.
        rejected: Why the reply of another site was not used.
        epsilon: Of sites that train with differential privacy, epsilon and delta spent by now.
    """

    loss: Mapping[str, float]
    rejected: Mapping[str, str] = field(default_factory=dict)
    epsilon: Mapping[str, tuple[float, float]] = field(default_factory=dict)


def register(site: Site, *, uniform: bool = False) -> Registration:
    """Return what a site tells the server before the first round.

    Args:
        site: Which.
        uniform: Whether every site's word counts the same in this run.
    """
    held = [modality for case in site.training for modality in case.modalities]
    return Registration(
        len(site.training),
        {name: held.count(name) for name in sorted(set(held))},
        sorted({modality for case in site.validation for modality in case.modalities}),
        uniform,
        labelled_by((*site.training, *site.validation)),
    )


def labelled_by(cases: Sequence[StoredCase]) -> list[str] | None:
    """Return the labels and regions that any of the cases labels, sorted; None: all of them."""
    if any(case.labelled is None for case in cases):
        return None
    return sorted({name for case in cases for name in case.labelled or ()})


def outgoing_registration(told: Registration) -> Message:
    """Build what a site answers when it joins a run."""
    record = {"version": __version__, "registration": dataclasses.asdict(told)}
    return outgoing("join", record)


def trained_blocks(task: Message, site: Site) -> dict[str, int]:
    """Return the blocks that a site trains and its weight in each: all, or those that are named.

    In a masked run a block that too few sites hold is named to none, and stays as it was.
    """
    named = task.record.get("blocks")
    weights = register(site).weights
    return {b: w for b, w in weights.items() if named is None or b in named}


def agreed_minimum(site: Site, settings: RunSettings) -> Minimum:
    """Return how many cases and voxels must stand behind what the site sends in this run."""
    return site.minimum.agreed(Minimum(settings.minimum_cases, settings.minimum_voxels))


def departures_of(
    site: Site, fingerprint: Fingerprint, plans: Plans, settings: RunSettings
) -> list[Departure]:
    """Return all that will leave a site in a run, with its sizes, before anything does.

    With what only some runs ask for: ``measure``, ``personalize``; and ``failed``, which takes the
    place of any other. As in a plain run: in a masked one what is listed for ``train`` goes out as
    sums of numbers that hide it, of 8 bytes each.

    Args:
        site: With its training cases.
        fingerprint: Of the site.
        plans: Of the run.
        settings: Of the run.
    """
    told, minimum = register(site), agreed_minimum(site, settings)
    weights = select_blocks(first_state(plans, settings).weights, told.weights)
    blocks = {
        n: torch.zeros_like(tensor, dtype=settings.update_type) for n, tensor in weights.items()
    }
    if site.privacy is None:
        memory = {
            (modality, level): size.unseen()
            for level, size in prototype_sizes(plans, settings.configuration).items()
            for modality in told.modality_cases
        }
        trained, said = {**blocks, **memory_to_state(memory)}, {"loss": 0.0}
    else:
        trained, said = blocks, {"epsilon": 0.0, "delta": site.privacy.delta}
    dice = {name: [0.0, len(site.validation)] for name in plans.labels.foreground}
    cases = {name: [len(site.training) + len(site.validation), 0] for name in plans.configurations}
    held = {subset for case in site.validation for subset in all_subsets(case.modalities)}
    sent = [
        outgoing_fingerprint(fingerprint, plans.labels, minimum),
        outgoing("preprocess", {"version": __version__, "cases": cases}),
        outgoing_registration(told),
        outgoing("train", {"round": 0, **said}, trained),
        outgoing("validate", {"round": 0, "dice": dice}),
        outgoing("measure", {"round": 0, "subsets": [[list(s), dice] for s in sorted(held)]}),
        outgoing("personalize", {"dice": 0.0, "dice_before": 0.0}),
        outgoing("failed", {"task": "train", "error": "MixmflError", "version": __version__}),
    ]
    return [item for message in sent for item in departures(message)]


def first_state(plans: Plans, settings: RunSettings) -> ServerState:
    """Return the server's state before the first round."""
    return ServerState(
        0, network_state(build_network(plans, settings.configuration, settings.seed)), {}
    )


def train_task(state: ServerState, registration: Registration) -> Message:
    """Return what a site is sent to train: its own blocks, and the memory of all modalities."""
    own = select_blocks(state.weights, registration.weights)
    return Message("train", {"round": state.round}, {**own, **memory_to_state(state.memory)})


def validation_task(
    state: ServerState, site: str, registrations: Mapping[str, Registration]
) -> Message:
    """Return what a site is sent to validate.

    The blocks of the modalities that its validation cases have, as far as any site trains them;
    a validation case may have what no training case of its site has.
    """
    trained = {m for told in registrations.values() for m, n in told.modality_cases.items() if n}
    usable = [m for m in registrations[site].validated if m in trained]
    blocks = block_weights(1, dict.fromkeys(usable, 1))
    tensors = {**select_blocks(state.weights, blocks), **memory_to_state(state.memory)}
    return Message("validate", {"round": state.round, "modalities": usable}, tensors)


def train_at_site(
    task: Message, site: Site, plans: Plans, settings: RunSettings, optimizer_state: State
) -> tuple[Message, State]:
    """Train as the task says.

    Args:
        task: From ``train_task``.
        site: With at least one training case.
        plans: Of the run.
        settings: Of the run.
        optimizer_state: What this function returned in the site's last round, or empty.

    Returns:
        The reply: how the site's blocks changed, the prototypes of its modalities, its mean loss.
        And the optimiser's moments, which stay at the site.

    Raises:
        PrivacyError: The site's privacy budget is spent.
        MixmflError: The loss became NaN or infinite, or the device's memory ran out.
    """
    if site.device.type == "cpu":
        keep_freed_memory()
    if site.privacy is not None:
        return _train_privately(task, site, plans, settings, optimizer_state, site.privacy)
    round_number = int(task.record["round"])
    network = site_network(task, site, plans, settings)
    batches = Batches(
        site.training,
        plans,
        settings.configuration,
        (settings.seed, round_number, site.name),
        settings.local_steps,
    )
    weights = trained_blocks(task, site)
    try:
        trained = train_locally(
            network,
            memory_from_state(task.tensors),
            optimizer_state,
            loader(batches, site.workers),
            plans,
            settings.configuration,
            weights,
            learning_rate_of(round_number, settings),
            site.device,
        )
    except torch.cuda.OutOfMemoryError:
        raise MixmflError(
            f"site {site.name}: the memory of {site.device} ran out; plan again with a preset of "
            "smaller memory_gb, free the device, or train on the CPU by --device cpu"
        ) from None
    tensors = {
        **_changes(task, network, weights, settings),
        **memory_to_state(trained.memory),
    }
    minimum = agreed_minimum(site, settings)
    reply = outgoing(
        "train",
        {"round": round_number, "loss": trained.loss},
        tensors,
        minimum=minimum,
        class_cases=class_cases(site.training) if trained.memory and minimum.cases else {},
    )
    return reply, trained.optimizer


def _train_privately(
    task: Message,
    site: Site,
    plans: Plans,
    settings: RunSettings,
    optimizer_state: State,
    privacy: Privacy,
) -> tuple[Message, State]:
    """Train as ``train_at_site`` does, with differential privacy: neither loss nor prototypes."""
    round_number = int(task.record["round"])
    size = int(plans.configuration(settings.configuration)["batch_size"])
    rate = sampling_rate(size, len(site.training))
    epsilon = spend(privacy, rate, settings.local_steps)
    network = site_network(task, site, plans, settings)
    # the run's seed is known to the server, who could undo the noise and know who was drawn
    entropy = secrets.randbits(128), round_number, site.name
    weights = trained_blocks(task, site)
    drawn = Batches(site.training, plans, settings.configuration, entropy, settings.local_steps)
    moments = train_privately(
        network,
        memory_from_state(task.tensors),
        optimizer_state,
        loader(PoissonBatches(drawn, rate), site.workers),
        plans,
        settings.configuration,
        weights,
        learning_rate_of(round_number, settings),
        site.device,
        privacy,
        rate * len(site.training),
        torch.Generator().manual_seed(secrets.randbits(63)),
    )
    record = {"round": round_number, "epsilon": epsilon, "delta": privacy.delta}
    return outgoing("train", record, _changes(task, network, weights, settings)), moments


def _changes(
    task: Message, network: SegmentationNet, blocks: Collection[str], settings: RunSettings
) -> State:
    """Return how the blocks changed since the task."""
    after = {**select_blocks(network_state(network), blocks)}
    return changes_between(task.tensors, after, settings.update_type)


def validate_at_site(task: Message, site: Site, plans: Plans, settings: RunSettings) -> Message:
    """Return the summed Dice of the site's validation cases.

    Each is predicted from the modalities that it has and that the task names; a case with none
    of these is left out.
    """
    sums = validate(
        site_network(task, site, plans, settings),
        memory_to(memory_from_state(task.tensors), site.device),
        site.validation,
        task.record["modalities"],
        plans,
        settings.configuration,
        site.device,
    )
    dice = {name: [found.total, found.cases] for name, found in sums.items()}
    return outgoing("validate", {"round": task.record["round"], "dice": dice})


def perform(
    task: Message, site: Site, plans: Plans, settings: RunSettings, optimizer_state: State
) -> tuple[Message, State]:
    """Do what a task of a round asks of a site, ``train`` or ``validate``.

    Returns:
        The reply, and the optimiser's moments after training, else nothing.

    Raises:
        AggregationError: The task is of another kind.
        MixmflError: As ``train_at_site``.
    """
    if task.kind == "train":
        return train_at_site(task, site, plans, settings, optimizer_state)
    if task.kind == "validate":
        return validate_at_site(task, site, plans, settings), {}
    raise AggregationError(f"a task {task.kind!r} came; a round has 'train' and 'validate'")


def merge_round(
    state: ServerState,
    replies: Mapping[str, Message],
    registrations: Mapping[str, Registration],
    plans: Plans,
    settings: RunSettings,
    *,
    refused: Mapping[str, str] | None = None,
    quorum: int = 1,
) -> tuple[ServerState, Diagnostics]:
    """Return the server's next state, and what the round showed.

    A reply that does not pass the door (see ``door``) is left out, as if its site were absent.
    Blocks and prototypes that nobody sent stay as they were. The state given is left as it is.

    Args:
        state: That the replies were trained from.
        replies: By site; a site that did not reply is left out.
        registrations: By site.
        plans: Of the run.
        settings: Of the run.
        refused: By site, why no message came from it at all.
        quorum: Sites that must have a part in the round.

    Raises:
        QuorumError: Fewer than ``quorum`` replies can be used.
    """
    accepted, norms, rejected = _pass_door(state, replies, registrations, plans, settings)
    rejected = {**(refused or {}), **rejected}
    for site, reason in sorted(rejected.items()):
        log.warning("round %d: %s: reply rejected: %s", state.round + 1, site, reason)
    if len(accepted) < max(quorum, 1):
        reasons = "; ".join(reason for _, reason in sorted(rejected.items())) or "no site replied"
        raise QuorumError(
            f"round {state.round + 1}: {len(accepted)} replies can be used, {max(quorum, 1)} are "
            f"needed: {reasons}"
        )
    weights = {site: registrations[site].weights for site in accepted}
    changes = {site: select_blocks(accepted[site].tensors, weights[site]) for site in accepted}
    merged = ServerState(
        state.round + 1,
        {
            **state.weights,
            **merge_blocks(
                state.weights,
                changes,
                weights,
                plans.training.aggregation,
                plans.training.trimming,
                norms,
                usual_norms(state.norms, norms),
            ),
        },
        merge_memories(
            state.memory,
            {site: memory_from_state(reply.tensors) for site, reply in accepted.items()},
            plans.training.aggregation != "mean",
        ),
        remember_norms(state.norms, norms.values()),
    )
    told = {site: reply.record for site, reply in accepted.items()}
    return merged, Diagnostics(
        {site: float(record["loss"]) for site, record in told.items() if "loss" in record},
        rejected,
        {s: (float(r["epsilon"]), float(r["delta"])) for s, r in told.items() if "epsilon" in r},
    )


def _pass_door(
    state: ServerState,
    replies: Mapping[str, Message],
    registrations: Mapping[str, Registration],
    plans: Plans,
    settings: RunSettings,
) -> tuple[dict[str, Message], dict[str, dict[str, float]], dict[str, str]]:
    """Return the replies that can be used and their norms, by site; and why others cannot."""
    rejected, sound = {}, {}
    for site in sorted(replies):
        try:
            if site not in registrations:
                raise AggregationError(f"site {site!r} replied but never registered")
            reply, told = replies[site], registrations[site]
            sound[site] = check_reply(
                site, reply, state.round, state.weights, told, plans, settings
            )
        except AggregationError as error:
            rejected[site] = str(error)
    usual = usual_norms(state.norms, sound)
    pace = settings.local_steps, learning_rate_of(state.round, settings)
    reach = reach_of(state.weights, *pace, plans.training.weight_decay)
    for site in list(sound):
        try:
            check_norms(site, sound[site], usual, reach, *pace)
        except AggregationError as error:
            rejected[site] = str(error)
            del sound[site]
    return {site: replies[site] for site in sound}, sound, rejected


def mean_dice(sums: Iterable[Mapping[str, DiceSum]]) -> float:
    """Return the mean over labels and regions of their Dice over all cases; NaN without any."""
    found: dict[str, list[DiceSum]] = {}
    for part in sums:
        for name, each in part.items():
            found.setdefault(name, []).append(each)
    # fsum rounds once, so that the order of sites changes no bit
    return mean(
        math.fsum(each.total for each in parts) / cases
        for parts in found.values()
        if (cases := sum(each.cases for each in parts))
    )


def read_dice(reply: Message) -> dict[str, DiceSum]:
    """Return the sums of a validation reply."""
    return {
        name: DiceSum(float(total), int(cases))
        for name, (total, cases) in reply.record["dice"].items()
    }


def learning_rate_of(round_number: int, settings: RunSettings) -> float:
    """Return the learning rate of a round, counted from 0: nnU-Net's polynomial, per round."""
    return settings.learning_rate * (1 - round_number / settings.rounds) ** 0.9


def site_network(task: Message, site: Site, plans: Plans, settings: RunSettings) -> SegmentationNet:
    """Return the network of a task, on the site's device."""
    # encoders that the task does not bring keep their first random weights: nothing runs them
    network = build_network(plans, settings.configuration, settings.seed)
    load_state(network, {n: t for n, t in task.tensors.items() if not n.startswith("memory.")})
    return network.to(site.device)
