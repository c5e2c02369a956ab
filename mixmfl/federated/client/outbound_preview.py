"""All that will leave a site in a run, listed before anything does."""

import torch

from mixmfl.core.records import json_of
from mixmfl.core.version import __version__
from mixmfl.evaluation.mask_quality import ConfidenceSums
from mixmfl.evaluation.reliability import Reliability
from mixmfl.evaluation.small_components import ComponentSums
from mixmfl.evaluation.subset_dice import BINS, all_subsets
from mixmfl.federated.aggregation import select_blocks
from mixmfl.federated.client.outbound import (
    OutboundField,
    outbound_fields,
    outgoing,
    outgoing_fingerprint,
)
from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.client.training import agreed_minimum, outgoing_registration
from mixmfl.federated.state import Minimum, RunSettings, Site, first_state, register
from mixmfl.inference.model_folder import CANDIDATES
from mixmfl.networks.build import prototype_sizes
from mixmfl.networks.prototypes import memory_to_state
from mixmfl.planning.fingerprint import Fingerprint, PatientCounts
from mixmfl.planning.plans import Plans


def preview_outbound(
    site: Site,
    fingerprint: Fingerprint,
    plans: Plans,
    settings: RunSettings,
    patients: PatientCounts,
) -> list[OutboundField]:
    """Return all that will leave a site in a run, with its sizes, before anything does.

    The list includes replies that only some runs ask for (``measure``, ``compare``,
    ``personalize``) and ``failed``, which replaces any other reply. It is that of a plain run: in a
    masked one the tensors of ``train`` leave as masked numbers of 8 bytes each.

    Args:
        site: The site with its training cases.
        fingerprint: Fingerprint of the site.
        plans: Plans of the run.
        settings: Settings of the run.
        patients: The number of patients whose cases they are.
    """
    registration, minimum = register(site), agreed_minimum(site, settings)
    weights = select_blocks(first_state(plans, settings).weights, registration.weights)
    blocks = {
        n: torch.zeros_like(tensor, dtype=settings.update_type) for n, tensor in weights.items()
    }
    if site.privacy is None:
        memory = {
            (modality, level): size.unseen()
            for level, size in prototype_sizes(plans, settings.configuration).items()
            for modality in registration.modality_cases
        }
        trained = {**blocks, **memory_to_state(memory)}
        record = {"loss": 0.0, "dice_loss": 0.0} if site.sends_loss else {}
    else:
        trained, record = blocks, {"epsilon": 0.0, "delta": site.privacy.delta}
    dice = {name: [0.0, len(site.validation)] for name in plans.labels.foreground}
    counts = {name: [len(site.validation)] + [0] * (BINS - 1) for name in plans.labels.foreground}
    cases = {name: [len(site.training) + len(site.validation), 0] for name in plans.configurations}
    held = {subset for case in site.validation for subset in all_subsets(case.modalities)}
    measured = {"round": 0, "subsets": [[list(subset), counts] for subset in sorted(held)]}
    names = plans.labels.foreground
    sums = dict.fromkeys(names, json_of(ConfidenceSums()))
    right = dict.fromkeys(names, json_of(Reliability()))
    components = dict.fromkeys(names, json_of(ComponentSums()))
    replies = [
        outgoing_fingerprint(fingerprint, plans.labels, minimum, patients),
        outgoing("preprocess", {"cases": cases}),
        outgoing_registration(registration),
        outgoing("train", {"round": 0, **record}, trained, minimum=Minimum(), behind={}),
        outgoing("validate", {"round": 0, "dice": dice}),
        outgoing(
            "measure",
            {**measured, "confidence": sums, "reliability": right, "components": components},
        ),
        outgoing("compare", {"round": 0, "components": dict.fromkeys(CANDIDATES, components)}),
        outgoing("personalize", {"dice": 0.0, "dice_before": 0.0}),
        outgoing("failed", {"error": "MixmflError", "version": __version__}),
    ]
    return [item for message in replies for item in outbound_fields(message)]


def preview_of_site(config: SiteConfig) -> tuple[list[OutboundField], str]:
    """Return all that would leave a site, before anything does.

    Returns:
        The fields that are known now, and a line on what is not known yet.
    """
    config = config.within_policy()
    fingerprint, labels, patients = config.fingerprint()
    planning = outbound_fields(outgoing_fingerprint(fingerprint, labels, config.minimum, patients))
    file = config.work / "plans.json"
    if not file.is_file():
        return planning, (
            "What leaves in a round depends on the plans, which have not arrived yet. Run this "
            "again after mixmfl_plan_preprocess --kit has been run at the coordinator.\n"
        )
    plans = Plans.load(file)
    done = [name for name in plans.configurations if (config.folder / name).is_dir()]
    if not done:
        return planning, "What leaves in a round is known once the cases are preprocessed.\n"
    (configuration, *_) = done
    site = config.open(plans, configuration, "0", 0)
    settings = RunSettings(configuration, 0, 1, 1, 1.0)
    return preview_outbound(site, fingerprint, plans, settings, patients), (
        "The bytes of train are those of changes in half precision. The coordinator may ask for "
        "single precision, which is twice as many, or for masked numbers, four times as many.\n"
    )
