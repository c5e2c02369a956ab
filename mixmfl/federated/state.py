"""What server and sites both know of a run: settings, registrations, the server's state."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.nan import mean
from mixmfl.core.text import plural
from mixmfl.data.labels import LONGEST_NAME as LONGEST_LABEL
from mixmfl.data.labels import MOST_LABELS
from mixmfl.data.modalities import MOST_MODALITIES, ModalityName
from mixmfl.federated.messages import Message
from mixmfl.inference.model_folder import Configuration
from mixmfl.networks.build import build_network
from mixmfl.networks.parameters import network_state
from mixmfl.networks.prototypes import (
    PrototypeMemory,
    State,
)
from mixmfl.planning.bounds import MOST_LEARNING_RATE, MOST_LOCAL_STEPS, MOST_ROUNDS
from mixmfl.planning.fingerprint import MOST_CASES, MOST_VOXELS
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase
from mixmfl.training.privacy_budget import Privacy
from mixmfl.training.validation import DiceSum

SPLIT = 4
"""How sites split their cases into folds; a run that was begun with another split cannot go on."""

Cases = Annotated[int, within(0, MOST_CASES)]
Voxels = Annotated[int, within(0, MOST_VOXELS)]


def block_weights(cases: int, modality_cases: Mapping[str, int]) -> dict[str, int]:
    """Return a site's aggregation weight for each block that it uses.

    A tailored encoder is weighted by the site's training cases that have the modality, the shared
    encoder by its (case, modality) pairs, and fusion, decoder and a stacked network's encoder by
    its cases.

    Args:
        cases: Training cases of the site.
        modality_cases: How many of them have each modality.
    """
    weights = {
        f"tailored.{name}": count for name, count in sorted(modality_cases.items()) if count > 0
    }
    by_cases = dict.fromkeys(("encoder", "fusion", "decoder"), cases)
    return {**weights, "shared": sum(modality_cases.values()), **by_cases}


NOT_CONNECTED = "is not connected"
"""How the reason begins where a site is missing because it could not be reached."""

REFUSES = "refuses"
"""How the reason begins where a hospital's limits, policy or people forbid a task."""

CASES_PER_SUBSET = 16  # few, for the number of subsets doubles with every modality

MEASURE = "measure"

COMPARE = "compare"
"""The task to measure two configurations and their mean on the same cases and voxels."""

BESIDE = "beside."
"""What the names of the second network's tensors begin with, in a task with two."""


@dataclass(frozen=True)
class Minimum:
    """How many cases and voxels must stand behind a statistic that leaves a site.

    Attributes:
        cases: Fewest cases; 0: any number will do.
        voxels: Fewest voxels; 0: any number will do.
    """

    cases: Cases = 0
    voxels: Voxels = 0

    def agreed(self, other: "Minimum") -> "Minimum":
        """Return what holds where two parties each ask for a minimum: the stricter of each.

        So a minimum is lowered only where both lower it.
        """
        return Minimum(max(self.cases, other.cases), max(self.voxels, other.voxels))


NETWORK_MINIMUM = Minimum(cases=5, voxels=100)
"""The default minimum of a coordinator, and of a site, on a network."""


@dataclass(frozen=True)
class Personal:
    """How well a site's personalised model does.

    Attributes:
        dice: Mean validation Dice of the personalised model; NaN without validation cases.
        dice_before: Mean validation Dice of the global model that it was made from.
    """

    dice: float
    dice_before: float

    @property
    def kept(self) -> bool:
        """Whether the site uses its personalised model: only where that is better."""
        return self.dice > self.dice_before


@dataclass(frozen=True)
class RunSettings:
    """What every participant of a run must know beside the plans.

    Attributes:
        configuration: ``"2d"`` or ``"3d_fullres"``.
        seed: Seed of the first weights and of every draw.
        rounds: Number of rounds; the learning rate falls over them.
        local_steps: Gradient steps of a site in a round.
        learning_rate: Learning rate in the first round.
        minimum_cases: Fewest cases behind a statistic that the coordinator asks for; a site may
            ask for more. See ``Minimum``.
        minimum_voxels: Fewest voxels behind a statistic that the coordinator asks for.
        masked: Whether the server learns sums over sites only; see ``protocol``.
        half_updates: Whether the server rounds the weights that it sends to half precision in
            every round, and sites the changes that they send back; in a masked run sites do
            not, for their numbers travel in fixed point.
    """

    configuration: Configuration
    seed: Annotated[int, within(0, 2**63 - 1)]
    rounds: Annotated[int, within(1, MOST_ROUNDS)]
    local_steps: Annotated[int, within(1, MOST_LOCAL_STEPS)]
    learning_rate: Annotated[float, within(1e-12, MOST_LEARNING_RATE)]
    minimum_cases: Cases = 0
    minimum_voxels: Voxels = 0
    masked: bool = False
    half_updates: bool = True

    @property
    def update_type(self) -> torch.dtype:
        """Return the type of the changes in a training reply."""
        return torch.float16 if self.half_updates and not self.masked else torch.float32


@dataclass(frozen=True)
class Site:
    """A site's cases and settings, which never leave the site.

    Attributes:
        name: Name of the site.
        training: Training cases.
        validation: Validation cases, maybe none.
        device: Device that computes; the CPU unless another is named.
        workers: Processes that prepare batches; 0: this one does.
        minimum: The minimum that the site asks for; the coordinator may ask for more.
        privacy: What the site demands for its cases; None: no noise is added.
        validation_cases: Fewest cases behind a Dice that the site sends.
        set_cases: Fewest patients with exactly the same modalities whose Dice are in a sum; those
            of rarer sets are not judged.
        training_cases: Fewest cases behind plain weights that the site sends, and with a label
            that they are trained on.
        sends_loss: Whether the site sends the mean loss of a round.
    """

    name: str
    training: tuple[PreprocessedCase, ...]
    validation: tuple[PreprocessedCase, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    workers: int = 0
    minimum: Minimum = field(default_factory=Minimum)
    privacy: Privacy | None = None
    validation_cases: int = 1
    set_cases: int = 1
    training_cases: int = 1
    sends_loss: bool = True


@dataclass(frozen=True)
class Registration:
    """The counts that a site sends the server before the first round.

    Attributes:
        cases: Number of training cases.
        modality_cases: How many of them have each modality.
        validated: Modalities that the site's validation cases have.
        labelled: Labels and regions that the site labels, sorted; None: all of the plans'.
    """

    cases: Cases
    modality_cases: Annotated[Mapping[ModalityName, Cases], entries(0, MOST_MODALITIES)]
    validated: Annotated[Sequence[ModalityName], entries(0, MOST_MODALITIES)] = ()
    labelled: (
        Annotated[Sequence[Annotated[str, text(LONGEST_LABEL)]], entries(0, MOST_LABELS)] | None
    ) = None

    def __str__(self) -> str:
        """Return all of it in words, for people."""
        held = ", ".join(f"{name} {cases}" for name, cases in sorted(self.modality_cases.items()))
        words = [
            f"{plural(self.cases, 'training case')} with {held or 'nothing'}",
            f"validation cases with {', '.join(sorted(self.validated)) or 'nothing'}",
        ]
        if self.labelled is not None:
            words.append(f"labels {', '.join(self.labelled)}")
        return "; ".join(words)

    @property
    def weights(self) -> dict[str, int]:
        """Return the site's aggregation weight for each block that it trains."""
        return block_weights(self.cases, self.modality_cases)


@dataclass(frozen=True)
class ServerState:
    """What the server keeps from one round to the next.

    Attributes:
        round: Rounds that are done.
        weights: Weights of the whole network.
        memory: Prototype memory of the federation.
        norms: Norms of updates by block, the medians of the last rounds; see
            ``update_norms.usual_norms``.
    """

    round: int
    weights: State
    memory: PrototypeMemory
    norms: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnostics:
    """What a round showed.

    Attributes:
        loss: Mean training loss by site that took part; in a masked run the mean of all sites.
        dice_loss: The Dice part of it.
        rejected: Why a reply was not used, or why none came, by site.
        epsilon: Epsilon and delta spent so far, by site that trains with differential privacy.
        norms: Norm of the change of all weights that a site sent; not known in a masked run.
    """

    loss: Mapping[str, float]
    dice_loss: Mapping[str, float]
    rejected: Mapping[str, str]
    epsilon: Mapping[str, tuple[float, float]]
    norms: Mapping[str, float] = field(default_factory=dict)


def register(site: Site) -> Registration:
    """Return the registration that a site sends the server before the first round."""
    held = [modality for case in site.training for modality in case.modalities]
    return Registration(
        len(site.training),
        {name: held.count(name) for name in sorted(set(held))},
        sorted({modality for case in site.validation for modality in case.modalities}),
        labelled_by((*site.training, *site.validation)),
    )


def labelled_by(cases: Sequence[PreprocessedCase]) -> list[str] | None:
    """Return the labels and regions that any of the cases labels, sorted; None: all of them."""
    if any(case.labelled is None for case in cases):
        return None
    return sorted({name for case in cases for name in case.labelled or ()})


def first_state(plans: Plans, settings: RunSettings) -> ServerState:
    """Return the server's state before the first round."""
    return ServerState(
        0, network_state(build_network(plans, settings.configuration, settings.seed)), {}
    )


def mean_dice(sums: Iterable[Mapping[str, DiceSum]]) -> float:
    """Return the mean over labels and regions of their Dice over all cases; NaN without any."""
    by_name: dict[str, list[DiceSum]] = {}
    for part in sums:
        for name, each in part.items():
            by_name.setdefault(name, []).append(each)
    # fsum rounds once, so that the order of sites changes no bit
    return mean(
        math.fsum(each.total for each in parts) / cases
        for parts in by_name.values()
        if (cases := sum(each.cases for each in parts))
    )


def read_dice(reply: Message) -> dict[str, DiceSum]:
    """Return the sums of a validation reply."""
    return {
        name: DiceSum(float(total), int(cases))
        for name, (total, cases) in reply.record["dice"].items()
    }


def tensors_of_both(task: Message) -> tuple[State, State]:
    """Return the tensors of the two networks of a task ``COMPARE``, by their own names."""
    own = {name: each for name, each in task.tensors.items() if not name.startswith(BESIDE)}
    other = {
        name.removeprefix(BESIDE): each
        for name, each in task.tensors.items()
        if name.startswith(BESIDE)
    }
    return own, other


def learning_rate_of(round_number: int, settings: RunSettings) -> float:
    """Return the learning rate of a round, counted from 0: nnU-Net's polynomial, per round."""
    return settings.learning_rate * (1 - round_number / settings.rounds) ** 0.9


ALIVE = "alive"
"""An empty file at a site and at the coordinator, touched every second while they run."""

NETWORK = "network"
"""Name of the folder, in a run or in WORK, for the files of a run over a network."""
