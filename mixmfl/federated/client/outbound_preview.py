"""All that will leave a site in a run, listed before anything does."""

import logging

import torch

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
from mixmfl.federated.client.training import agreed_minimum, outgoing_registration
from mixmfl.federated.state import Minimum, RunSettings, Site, first_state, register
from mixmfl.networks.build import prototype_sizes
from mixmfl.networks.prototypes import memory_to_state
from mixmfl.planning.fingerprint import Fingerprint, PatientCounts
from mixmfl.planning.plans import Plans

log = logging.getLogger(__name__)


def preview_outbound(
    site: Site,
    fingerprint: Fingerprint,
    plans: Plans,
    settings: RunSettings,
    patients: PatientCounts,
) -> list[OutboundField]:
    """Return all that will leave a site in a run, with its sizes, before anything does.

    The list includes replies that only some runs ask for (``measure``, ``personalize``) and
    ``failed``, which replaces any other reply. It is that of a plain run: in a masked one the
    tensors of ``train`` leave as masked numbers of 8 bytes each.

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
        trained, record = {**blocks, **memory_to_state(memory)}, {"loss": 0.0, "dice_loss": 0.0}
    else:
        trained, record = blocks, {"epsilon": 0.0, "delta": site.privacy.delta}
    dice = {name: [0.0, len(site.validation)] for name in plans.labels.foreground}
    counts = {name: [len(site.validation)] + [0] * (BINS - 1) for name in plans.labels.foreground}
    cases = {name: [len(site.training) + len(site.validation), 0] for name in plans.configurations}
    held = {subset for case in site.validation for subset in all_subsets(case.modalities)}
    measured = {"round": 0, "subsets": [[list(subset), counts] for subset in sorted(held)]}
    names = plans.labels.foreground
    sums = dict.fromkeys(names, ConfidenceSums().to_json())
    right = dict.fromkeys(names, Reliability().to_json())
    components = dict.fromkeys(names, ComponentSums().to_json())
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
        outgoing("personalize", {"dice": 0.0, "dice_before": 0.0}),
        outgoing("failed", {"error": "MixmflError", "version": __version__}),
    ]
    return [item for message in replies for item in outbound_fields(message)]
