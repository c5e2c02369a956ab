"""A round of the federation, engine-free: what is sent, done at a site, and made of it.

::

    task = train_task(state, registration, plans, …)       server
    reply, site_state = train_at_site(task, site, …)       site
    state, diagnostics = merge_round(state, replies, …)    server

Messages are plain (see ``wire``); nothing here knows what carries them.
"""

import multiprocessing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from mixmfl.aggregate import average, block_weights, select_blocks
from mixmfl.dataset import StoredCase
from mixmfl.errors import AggregationError
from mixmfl.memory import Memory, State, memory_from_state, memory_to_state, merge_memories
from mixmfl.network import MDMNet, build_network, load_state, network_state
from mixmfl.plan import Plans
from mixmfl.sampling import Batch, Batches
from mixmfl.train import DiceSum, train_locally, validate
from mixmfl.wire import Message


@dataclass(frozen=True)
class RunSettings:
    """What every participant of a run must know beside the plans.

    Attributes:
        configuration: ``"2d"`` or ``"3d_fullres"``.
        seed: Of the first weights and of every draw.
        rounds: Of the whole run; the learning rate falls over them.
        local_steps: Gradient steps of a site in a round.
        learning_rate: In the first round.
    """

    configuration: str
    seed: int
    rounds: int
    local_steps: int
    learning_rate: float


@dataclass(frozen=True)
class Site:
    """A hospital as its own code sees it. Never leaves the house.

    Attributes:
        name: Of the site.
        training: Its training cases.
        validation: Its validation cases, maybe none.
        device: Where it computes.
        workers: Processes that prepare batches; 0: this one does.
    """

    name: str
    training: tuple[StoredCase, ...]
    validation: tuple[StoredCase, ...]
    device: torch.device
    workers: int = 0


@dataclass(frozen=True)
class Registration:
    """What the server knows of a site: how many training cases, and how many have a modality."""

    cases: int
    modality_cases: Mapping[str, int]

    @property
    def weights(self) -> dict[str, int]:
        """Return the weight of the site's word per block that it uses."""
        return block_weights(self.cases, self.modality_cases)


@dataclass(frozen=True)
class ServerState:
    """All that the server must remember from one round to the next.

    Attributes:
        round: Rounds that are done.
        weights: Of the whole network.
        memory: Of the federation.
    """

    round: int
    weights: State
    memory: Memory


@dataclass(frozen=True)
class Diagnostics:
    """What a round showed.

    Attributes:
        loss: Mean training loss by site.
        shares: By block, each contributing site's share of the average.
    """

    loss: Mapping[str, float]
    shares: Mapping[str, Mapping[str, float]]


def register(site: Site) -> Registration:
    """Return what a site tells the server before the first round."""
    held = [modality for case in site.training for modality in case.modalities]
    return Registration(
        len(site.training), {modality: held.count(modality) for modality in sorted(set(held))}
    )


def first_state(plans: Plans, settings: RunSettings) -> ServerState:
    """Return the server's state before the first round."""
    return ServerState(
        0, network_state(build_network(plans, settings.configuration, settings.seed)), {}
    )


def train_task(state: ServerState, registration: Registration) -> Message:
    """Return what a site is sent to train: its own blocks, and the memory of all modalities."""
    return Message("train", {"round": state.round}, _own_blocks(state, registration))


def validation_task(state: ServerState, registration: Registration) -> Message:
    """Return what a site is sent to validate: its own blocks, and the whole memory."""
    return Message("validate", {"round": state.round}, _own_blocks(state, registration))


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
        The reply: the site's blocks, the prototypes of its modalities, its mean loss. And the
        optimiser's moments, which stay at the site.
    """
    round_number = int(task.record["round"])
    network = _site_network(task, site, plans, settings)
    batches = Batches(
        site.training,
        plans,
        settings.configuration,
        (settings.seed, round_number, site.name),
        settings.local_steps,
    )
    weights = register(site).weights
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
    tensors = {
        **select_blocks(network_state(network), weights),
        **memory_to_state(trained.memory),
    }
    reply = Message("train", {"round": round_number, "loss": trained.loss}, tensors)
    return reply, trained.optimizer


def validate_at_site(task: Message, site: Site, plans: Plans, settings: RunSettings) -> Message:
    """Return the summed Dice of the site's validation cases, each with the modalities it has."""
    sums = validate(
        _site_network(task, site, plans, settings),
        {
            p: prototypes.to(site.device)
            for p, prototypes in memory_from_state(task.tensors).items()
        },
        site.validation,
        plans,
        settings.configuration,
        site.device,
    )
    dice = {name: [found.total, found.cases] for name, found in sums.items()}
    return Message("validate", {"round": task.record["round"], "dice": dice}, {})


def merge_round(
    state: ServerState,
    replies: Mapping[str, Message],
    registrations: Mapping[str, Registration],
) -> tuple[ServerState, Diagnostics]:
    """Return the server's next state, and what the round showed.

    Blocks and prototypes that nobody sent stay as they were. The state given is left as it is.

    Args:
        state: That the replies were trained from.
        replies: By site, at least one; a site that did not reply is left out.
        registrations: By site.

    Raises:
        AggregationError: No reply; a reply to another round, from an unknown site, or with
            tensors that its site has no business to send.
    """
    if not replies:
        raise AggregationError(f"round {state.round + 1}: no site replied")
    weights, blocks, memories = {}, {}, {}
    for site in sorted(replies):
        reply = replies[site]
        if site not in registrations:
            raise AggregationError(f"site {site!r} replied but never registered")
        if reply.kind != "train" or reply.record.get("round") != state.round:
            raise AggregationError(
                f"site {site!r} sent a {reply.kind!r} reply to round {reply.record.get('round')}; "
                f"a 'train' reply to round {state.round} was asked for"
            )
        weights[site] = registrations[site].weights
        memories[site] = memory_from_state(reply.tensors)
        blocks[site] = select_blocks(reply.tensors, weights[site])
        stray = {name for name in reply.tensors if not name.startswith("memory.")}
        stray -= blocks[site].keys() & state.weights.keys()
        stray |= {
            f"memory.{modality}"
            for modality, _ in memories[site]
            if f"tailored.{modality}" not in weights[site]
        }
        if stray:
            raise AggregationError(f"site {site!r} sent what it does not hold: {sorted(stray)[:5]}")
    merged = ServerState(
        state.round + 1,
        {**state.weights, **average(blocks, weights)},
        merge_memories(state.memory, memories),
    )
    loss = {site: float(replies[site].record["loss"]) for site in sorted(replies)}
    return merged, Diagnostics(loss, _shares(weights))


def mean_dice(sums: Iterable[Mapping[str, DiceSum]]) -> float:
    """Return the mean over labels and regions of their Dice over all cases; NaN without any."""
    totals: dict[str, DiceSum] = {}
    for part in sums:
        for name, found in part.items():
            before = totals.get(name, DiceSum(0.0, 0))
            totals[name] = DiceSum(before.total + found.total, before.cases + found.cases)
    means = [found.total / found.cases for found in totals.values() if found.cases]
    return sum(means) / len(means) if means else float("nan")


def read_dice(reply: Message) -> dict[str, DiceSum]:
    """Return the sums of a validation reply."""
    return {
        name: DiceSum(float(total), int(cases))
        for name, (total, cases) in reply.record["dice"].items()
    }


def learning_rate_of(round_number: int, settings: RunSettings) -> float:
    """Return the learning rate of a round, counted from 0: nnU-Net's polynomial, per round."""
    return settings.learning_rate * (1 - round_number / settings.rounds) ** 0.9


def _own_blocks(state: ServerState, registration: Registration) -> State:
    own = select_blocks(state.weights, registration.weights)
    return {**own, **memory_to_state(state.memory)}


def _site_network(task: Message, site: Site, plans: Plans, settings: RunSettings) -> MDMNet:
    # encoders of modalities that the site never has keep their first random weights: nothing
    # runs them, and they are neither trained nor sent
    network = build_network(plans, settings.configuration, settings.seed)
    load_state(network, {n: t for n, t in task.tensors.items() if not n.startswith("memory.")})
    return network.to(site.device)


def loader(batches: Batches, workers: int) -> Iterable[Batch]:
    """Return the batches, prepared by ``workers`` processes or here: the same either way."""
    if not workers:
        return DataLoader(batches, batch_size=None)
    # not fork, the default: a forked process can hang in the threads that torch left behind
    method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    if method == "forkserver":
        context.set_forkserver_preload(["mixmfl.sampling"])  # importing it takes seconds
    return DataLoader(
        batches, batch_size=None, num_workers=workers, multiprocessing_context=context
    )


def _shares(weights: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    blocks = sorted({block for own in weights.values() for block in own})
    totals = {block: sum(own.get(block, 0) for own in weights.values()) for block in blocks}
    return {
        block: {site: own[block] / totals[block] for site, own in weights.items() if block in own}
        for block in blocks
    }
