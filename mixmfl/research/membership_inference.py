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
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score
from torch import Tensor

from mixmfl.core.errors import DataError
from mixmfl.core.files import write_json, write_text
from mixmfl.core.nan import or_none
from mixmfl.core.worker_pool import Report, no_report
from mixmfl.data.label_sets import labels_each
from mixmfl.federated.aggregation import add_changes, select_blocks
from mixmfl.federated.messages import Message
from mixmfl.federated.server.checkpoint import load_state_of
from mixmfl.federated.server.run import Run
from mixmfl.federated.simulation import Callbacks, simulate
from mixmfl.federated.state import RunSettings, ServerState, Site, mean_dice, register
from mixmfl.networks.base import place_modalities
from mixmfl.networks.build import build_network
from mixmfl.networks.parameters import load_state
from mixmfl.networks.prototypes import State
from mixmfl.planning.plans import Plans
from mixmfl.planning.preprocessed_case import PreprocessedCase
from mixmfl.training.batches import seeded, site_number
from mixmfl.training.nnunet_training import PatchChooser
from mixmfl.training.privacy_budget import Privacy
from mixmfl.training.supervision import Compare, Supervision
from mixmfl.training.validation import validate

WATCHED = 3
"""Number of last rounds whose messages the attacker reads."""

PATCHES = 4
"""Number of patches of a case that the attacker computes losses and gradients on."""

RESAMPLES = 2000
"""Number of resamples of the candidates for the confidence interval."""

CLIP = 1.0
"""Norm that a case's gradient is clipped to, with differential privacy."""

DELTA = 1e-3
"""Delta of differential privacy; below 1 / the number of cases of a phantom site."""


@dataclass(frozen=True)
class Protection:
    """A protection of the sites against the attacker.

    Attributes:
        name: Name for the table.
        masked: Whether the server learns sums only.
        noise: Noise multiplier of differential privacy; None: no differential privacy.
    """

    name: str
    masked: bool = False
    noise: float | None = None


PROTECTIONS = (
    Protection("none"),
    Protection("masked", masked=True),
    Protection("clipped, noise 1", noise=1.0),
    Protection("clipped, noise 10", noise=10.0),
)


@dataclass(frozen=True)
class Found:
    """The results of the attacks under one protection.

    Attributes:
        protection: Name of the protection.
        auc: By attack, the probability that a case that trained scores above one that did not; 0.5
            is guessing.
        low: By attack, lower end of the 95% interval of ``auc``, by bootstrap over candidates.
        high: By attack, upper end of that interval.
        dice: Mean Dice of the model on the cases that did not train.
        epsilon: The greatest epsilon of the sites; NaN without differential privacy.
        sent_bytes: Bytes that a site sent in a round, mean.
        received_bytes: Bytes that a site received in a round, mean.
        seconds: Duration of a round at a site, mean; all sites compute on one machine.
    """

    protection: str
    auc: Mapping[str, float]
    low: Mapping[str, float]
    high: Mapping[str, float]
    dice: float
    epsilon: float
    sent_bytes: float
    received_bytes: float
    seconds: float


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


def measure(
    plans: Plans,
    sites: Sequence[Site],
    settings: RunSettings,
    out: Path,
    report: Report = no_report,
    protections: Sequence[Protection] = PROTECTIONS,
) -> str:
    """Attack under every protection, write the results to files, and return them as a table.

    Args:
        plans: Plans of the runs.
        sites: Sites with all their cases, two or more each.
        settings: Settings of the runs.
        out: Folder for attack.json, table.md and the runs; new or empty.
        report: Function that shows progress.
        protections: Protections to measure.

    Raises:
        DataError: ``out`` is not empty, or a site has too few cases.
    """
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out}: is not empty; nothing was written. Name another folder")
    results = []
    for number, protection in enumerate(protections):
        report("attacks", number, len(protections))
        folder = out / "runs" / str(number)
        results.append(attack(plans, sites, settings, protection, folder))
    report("attacks", len(protections), len(protections))
    table = attack_table(results)
    content = {
        "settings": dataclasses.asdict(settings),
        "found": [
            {
                **dataclasses.asdict(item),
                "dice": or_none(item.dice),
                "epsilon": or_none(item.epsilon),
            }
            for item in results
        ],
    }
    write_json(out / "attack.json", content)
    write_text(out / "table.md", table + "\n")
    return table


def attack_table(results: Sequence[Found]) -> str:
    """Return the results as a table in Markdown."""
    attacks = list(results[0].auc)
    heads = ["protection", *(f"AUC by {name}" for name in attacks), "epsilon", "Dice"]
    heads += ["sent MB", "received MB", "seconds"]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for item in results:
        areas = [f"{item.auc[a]:.2f} ({item.low[a]:.2f} to {item.high[a]:.2f})" for a in attacks]
        epsilon = "" if math.isnan(item.epsilon) else f"{item.epsilon:.3g}"
        sizes = [f"{size / 1e6:.2f}" for size in (item.sent_bytes, item.received_bytes)]
        cells = [item.protection, *areas, epsilon, f"{item.dice:.3f}", *sizes]
        lines.append([*cells, f"{item.seconds:.2f}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def attack(
    plans: Plans,
    sites: Sequence[Site],
    settings: RunSettings,
    protection: Protection,
    folder: Path,
) -> Found:
    """Train under a protection, and attack what was sent.

    Args:
        plans: Plans of the run.
        sites: Sites with all their cases.
        settings: Settings of the run; its seed also decides which cases train.
        protection: Protection to train under.
        folder: New folder for the run and the ledgers.
    """
    halves = {site.name: split_candidates(site, settings.seed) for site in sites}
    training = [_protected(member, protection, folder) for member, _ in halves.values()]
    settings = dataclasses.replace(settings, masked=protection.masked)
    run, state, observations = observe_run(plans, training, settings, folder / "run")
    scores: dict[str, list[npt.NDArray[np.float64]]] = {}
    for member, others in halves.values():
        candidates = (*member.training, *others)
        for name, values in _scores(observations[member.name], candidates, plans, settings).items():
            spread = max(float(values.std()), 1e-12)  # sites differ in how their losses lie
            scores.setdefault(name, []).append((values - values.mean()) / spread)
    truth = np.concatenate(
        [np.r_[np.ones(len(m.training)), np.zeros(len(others))] for m, others in halves.values()]
    ).astype(bool)
    network = build_network(plans, settings.configuration, settings.seed)
    load_state(network, state.weights)
    network.to(sites[0].device)
    dice = mean_dice(
        validate(
            network,
            state.memory,
            others,
            plans.modalities,
            plans,
            settings.configuration,
            member.device,
        )
        for member, others in halves.values()
    )
    rows = [row for by_site in run.history for row in by_site.values()]
    joined = {name: np.concatenate(values) for name, values in scores.items()}
    intervals = {name: interval(values, truth, settings.seed) for name, values in joined.items()}
    return Found(
        protection.name,
        {name: float(roc_auc_score(truth, values)) for name, values in joined.items()},
        {name: low for name, (low, _) in intervals.items()},
        {name: high for name, (_, high) in intervals.items()},
        dice,
        max((row.epsilon for row in rows if row.epsilon is not None), default=float("nan")),
        float(np.mean([row.sent_bytes for row in rows])),
        float(np.mean([row.received_bytes for row in rows])),
        float(np.mean([row.seconds for row in rows])),
    )


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


def _protected(site: Site, protection: Protection, folder: Path) -> Site:
    if protection.noise is None:
        return site
    ledger = folder / "privacy" / f"{site.name}.json"
    return dataclasses.replace(
        site, privacy=Privacy(math.inf, DELTA, protection.noise, CLIP, ledger)
    )


def _scores(
    observations: Sequence[Observation],
    cases: Sequence[PreprocessedCase],
    plans: Plans,
    settings: RunSettings,
) -> dict[str, npt.NDArray[np.float64]]:
    """Return by attack the score of each case for having trained, mean over observations."""
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
