"""Attacks on what sites send, with and without protection, in one table.

Half of every site's cases train. ``membership_inference`` guesses which cases these were, and
``reconstruction`` seeks their images.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

from mixmfl.core.errors import DataError
from mixmfl.core.files import write_json, write_text
from mixmfl.core.nan import or_none
from mixmfl.core.worker_pool import Report, no_report
from mixmfl.federated.state import RunSettings, Site, mean_dice
from mixmfl.networks.build import build_network
from mixmfl.networks.parameters import load_state
from mixmfl.planning.plans import Plans
from mixmfl.research.benchmark.tables import table
from mixmfl.research.membership_inference import (
    interval,
    member_scores,
    observe_run,
    split_candidates,
)
from mixmfl.research.reconstruction import Likeness, reconstruct
from mixmfl.training.privacy_budget import Privacy
from mixmfl.training.validation import validate

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
class AttackResult:
    """What attacks came to under one protection.

    Attributes:
        protection: Name of the protection.
        auc: By attack, the probability that a case that trained scores above one that did not; 0.5
            is guessing.
        low: By attack, lower end of the 95% interval of ``auc``, by bootstrap over candidates.
        high: By attack, upper end of that interval.
        likeness: How like the patches that were reconstructed are to those that trained, and to
            others; None: it was not tried.
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
    likeness: Likeness | None
    dice: float
    epsilon: float
    sent_bytes: float
    received_bytes: float
    seconds: float


def measure(
    plans: Plans,
    sites: Sequence[Site],
    settings: RunSettings,
    out: Path,
    report: Report = no_report,
    protections: Sequence[Protection] = PROTECTIONS,
    iterations: int = 0,
) -> str:
    """Attack under every protection, write the results to files, and return them as a table.

    Args:
        plans: Plans of the runs.
        sites: Sites with all their cases, two or more each.
        settings: Settings of the runs.
        out: Folder for attack.json, table.md and the runs; new or empty.
        report: Function that shows progress.
        protections: Protections to measure.
        iterations: Iterations in which a patch is reconstructed; 0: none is.

    Raises:
        DataError: ``out`` is not empty, or a site has too few cases.
    """
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out}: is not empty; nothing was written. Name another folder")
    results = []
    for number, protection in enumerate(protections):
        report("attacks", number, len(protections))
        folder = out / "runs" / str(number)
        results.append(attack(plans, sites, settings, protection, folder, iterations))
    report("attacks", len(protections), len(protections))
    text = attack_table(results)
    content = {
        "settings": dataclasses.asdict(settings),
        "results": [
            {
                **dataclasses.asdict(item),
                "dice": or_none(item.dice),
                "epsilon": or_none(item.epsilon),
            }
            for item in results
        ],
    }
    write_json(out / "attack.json", content)
    write_text(out / "table.md", text + "\n")
    return text


def attack_table(results: Sequence[AttackResult]) -> str:
    """Return the results as a table in Markdown."""
    attacks = list(results[0].auc)
    areas_of = [f"AUC by {name}" for name in attacks]
    heads = ["protection", *areas_of, "likeness (to others)", "epsilon", "Dice"]
    heads += ["sent MB", "received MB", "seconds"]
    rows = []
    for item in results:
        areas = [f"{item.auc[a]:.2f} ({item.low[a]:.2f} to {item.high[a]:.2f})" for a in attacks]
        epsilon = "" if math.isnan(item.epsilon) else f"{item.epsilon:.3g}"
        sizes = [f"{size / 1e6:.2f}" for size in (item.sent_bytes, item.received_bytes)]
        like = item.likeness
        likeness = f"{like.trained:.2f} ({like.others:.2f})" if like else ""
        cells = [item.protection, *areas, likeness, epsilon, f"{item.dice:.3f}", *sizes]
        rows.append([*cells, f"{item.seconds:.2f}"])
    return table(heads, rows)


def attack(
    plans: Plans,
    sites: Sequence[Site],
    settings: RunSettings,
    protection: Protection,
    folder: Path,
    iterations: int,
) -> AttackResult:
    """Train under a protection, and attack what was sent.

    Args:
        plans: Plans of the run.
        sites: Sites with all their cases.
        settings: Settings of the run; its seed also decides which cases train.
        protection: Protection to train under.
        folder: New folder for the run and the ledgers.
        iterations: Iterations in which a patch is reconstructed; 0: none is.
    """
    halves = {}
    for site in sites:
        member, others = split_candidates(site, settings.seed)
        halves[site.name] = _protected(member, protection, folder), others
    settings = dataclasses.replace(settings, masked=protection.masked)
    run, state, observations = observe_run(
        plans, [member for member, _ in halves.values()], settings, folder / "run"
    )
    scores: dict[str, list[npt.NDArray[np.float64]]] = {}
    for member, others in halves.values():
        candidates = (*member.training, *others)
        for name, values in member_scores(
            observations[member.name], candidates, plans, settings
        ).items():
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
    return AttackResult(
        protection.name,
        {name: float(roc_auc_score(truth, values)) for name, values in joined.items()},
        {name: low for name, (low, _) in intervals.items()},
        {name: high for name, (_, high) in intervals.items()},
        reconstruct(plans, halves, settings, iterations) if iterations else None,
        dice,
        max((row.epsilon for row in rows if row.epsilon is not None), default=float("nan")),
        float(np.mean([row.sent_bytes for row in rows])),
        float(np.mean([row.received_bytes for row in rows])),
        float(np.mean([row.seconds for row in rows])),
    )


def _protected(site: Site, protection: Protection, folder: Path) -> Site:
    if protection.noise is None:
        return site
    ledger = folder / "privacy" / f"{site.name}.json"
    return dataclasses.replace(
        site, privacy=Privacy(math.inf, DELTA, protection.noise, CLIP, ledger)
    )
