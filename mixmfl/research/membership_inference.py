"""Membership inference from what sites send, with and without protection.

Half of every site's cases train. The attacker sees what the server sees, has all cases, and decides
for each whether it trained. Two scores are known from the literature. Loss: a case that trained has
its loss lowered more by a site's training (after Yeom et al. 2018, Privacy Risk in Machine
Learning). Gradient: its gradient lies more along what the site sent (after Melis et al. 2019,
Exploiting Unintended Feature Leakage in Collaborative Learning, and Li et al. 2023, Effective
Passive Membership Inference Attacks in Federated Learning).
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from scipy.stats import mannwhitneyu
from torch import Tensor

from mixmfl.core.errors import DataError
from mixmfl.data.label_sets import labels_each
from mixmfl.federated.aggregation import add_changes, select_blocks
from mixmfl.federated.messages import Message
from mixmfl.federated.server.checkpoint import load_state_of
from mixmfl.federated.server.run import Run
from mixmfl.federated.simulation import Callbacks, simulate
from mixmfl.federated.state import RunSettings, ServerState, Site, register
from mixmfl.networks.base import place_modalities
from mixmfl.networks.build import build_network
from mixmfl.networks.parameters import load_state
from mixmfl.networks.prototypes import State
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase
from mixmfl.training.batches import seeded, site_number
from mixmfl.training.nnunet_training import PatchChooser
from mixmfl.training.supervision import Compare, Supervision

WATCHED = 3
"""Number of last rounds whose messages the attacker reads."""

PATCHES = 4
"""Number of patches of a case that the attacker computes losses and gradients on."""

RESAMPLES = 2000
"""Number of resamples of the candidates for the confidence interval."""


@dataclass(frozen=True)
class Observation:
    """The weights of one site before and after one round, as the attacker sees them."""

    before: State
    after: State


def split_candidates(site: Site, seed: int) -> tuple[Site, tuple[PreprocessedCase, ...]]:
    """Return a site that trains on a random half of its cases, and the other half.

    Raises:
        DataError: The site has fewer than two cases.
    """
    cases = sorted((*site.training, *site.validation), key=lambda case: case.name)
    if len(cases) < 2:
        raise DataError(f"site {site.name}: {len(cases)} case cannot be split; two are needed")
    np.random.default_rng([seed, site_number(site.name)]).shuffle(cases)
    half = len(cases) // 2
    members, others = tuple(cases[:half]), tuple(cases[half : 2 * half])
    return dataclasses.replace(site, training=members, validation=()), others


def observe_run(
    plans: Plans, sites: Sequence[Site], settings: RunSettings, folder: Path
) -> tuple[Run, ServerState, dict[str, list[Observation]]]:
    """Train, and return by site what the server saw of it in the last rounds.

    In a masked run the server sees only how the weights that it sends moved; all sites share them.
    """
    before: dict[str, list[State]] = {site.name: [] for site in sites}
    after: dict[str, list[State]] = {site.name: [] for site in sites}
    weights = {site.name: register(site).weights for site in sites}

    def weights_of(task: Message) -> State:
        return {name: tensor.float() for name, tensor in task.tensors.items()}

    def listen(site: str, task: Message, reply: Message) -> None:
        if task.kind == "train":
            before[site].append(weights_of(task))
            changes = select_blocks(reply.tensors, weights[site])
            after[site].append(add_changes(before[site][-1], changes))
        elif task.kind == "masked":
            after[site] += [weights_of(task)] if before[site] else []
            before[site].append(weights_of(task))

    run = simulate(plans, sites, settings, "all", folder, callbacks=Callbacks(after_task=listen))
    state = load_state_of(run, settings.rounds)
    observations = {}
    for site in before:
        seen = [*after[site], state.weights] if settings.masked else after[site]
        pairs = list(zip(before[site], seen, strict=True))[-WATCHED:]
        observations[site] = [Observation(*pair) for pair in pairs]
    return run, state, observations


def member_scores(
    observations: Sequence[Observation],
    cases: Sequence[PreprocessedCase],
    plans: Plans,
    settings: RunSettings,
) -> dict[str, npt.NDArray[np.float64]]:
    """Return by attack the score of each case for having trained, mean over observations.

    Args:
        observations: What the attacker saw of the site of these cases.
        cases: Candidates, those that trained and others.
        plans: Plans of the run.
        settings: Settings of the run.
    """
    network = build_network(plans, settings.configuration, settings.seed).eval()
    network.decoder.deep_supervision = False
    patches = [_patches(case, plans, settings) for case in cases]
    parameters = dict(network.named_parameters())
    loss = np.zeros((len(observations), len(cases)))
    gradient = np.zeros_like(loss)
    for row, observation in enumerate(observations):
        both = parameters.keys() & observation.before.keys() & observation.after.keys()
        moved = {name: observation.before[name] - observation.after[name] for name in sorted(both)}
        trained = [parameters[name] for name in moved]
        length = _norm(moved.values())
        load_state(network, {name: observation.before[name] for name in moved})
        for column, (images, present, compare) in enumerate(patches):
            value = compare([network(images, present, {})]).total
            gradients = torch.autograd.grad(value, trained, allow_unused=True)
            pairs = [(g, moved[n]) for n, g in zip(moved, gradients, strict=True) if g is not None]
            along = sum(float((g.double() * step.double()).sum()) for g, step in pairs)
            gradient[row, column] = along / max(_norm(g for g, _ in pairs) * length, 1e-12)
            loss[row, column] = float(value.detach())
        load_state(network, {name: observation.after[name] for name in moved})
        with torch.no_grad():
            for column, (images, present, compare) in enumerate(patches):
                loss[row, column] -= float(compare([network(images, present, {})]).total)
    return {"loss": loss.mean(axis=0), "gradient": gradient.mean(axis=0)}


def _middle(place: Sequence[int], size: int) -> list[int]:
    start = place[0] + (place[1] - place[0] - size) // 2
    return [start, start + size]


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.sqrt(sum(float(tensor.double().square().sum()) for tensor in tensors))


def _patches(
    case: PreprocessedCase, plans: Plans, settings: RunSettings
) -> tuple[Tensor, Tensor, Compare]:
    """Return patches of a case on foreground, not augmented: images, present, and loss function."""
    planned = plans.configuration(settings.configuration)
    chooser = PatchChooser(tuple(planned["patch_size"]), plans.labels)
    generator = np.random.default_rng([settings.seed, site_number(case.name)])
    shape = [1] * (3 - len(planned["patch_size"])) + list(planned["patch_size"])
    images, classes = [], []
    with seeded(generator):
        for _ in range(PATCHES):
            box = chooser.box(case.images.shape[1:], True, case.class_locations)
            # augmentation would cut a patch from the middle of the larger one that it is given
            box = [_middle(place, size) for place, size in zip(box, shape, strict=True)]
            images.append(torch.from_numpy(crop_and_pad_nd(case.images, box, 0)).float())
            classes.append(torch.from_numpy(crop_and_pad_nd(case.labels, box, -1)))
    stacked, labels = torch.stack(images), torch.stack(classes)
    if len(planned["patch_size"]) == 2:  # the box is one slice thick
        stacked, labels = stacked[:, :, 0], labels[:, :, 0]
    placed, present = place_modalities(stacked, case.modalities, plans.modalities)
    labelled = torch.tensor([labels_each(plans.labels, case.labelled)] * len(labels))
    supervision = Supervision(plans.labels, 1, batch_dice=False)
    compare = supervision.prepare([labels.clamp(min=0)], labelled)
    return placed, present, compare


def interval(
    scores: npt.NDArray[np.float64], truth: npt.NDArray[np.bool_], seed: int
) -> tuple[float, float]:
    """Return the 95% interval of the area under the curve, by bootstrap over candidates."""
    generator = np.random.default_rng(seed)
    members, others = scores[truth], scores[~truth]
    draws = [
        (generator.choice(members, len(members)), generator.choice(others, len(others)))
        for _ in range(RESAMPLES)
    ]
    # U over the number of pairs is the area under the curve, and one call counts it for all draws
    pairs = mannwhitneyu(*map(np.stack, zip(*draws, strict=True)), axis=1, method="asymptotic")
    areas = pairs.statistic / (len(members) * len(others))
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)
