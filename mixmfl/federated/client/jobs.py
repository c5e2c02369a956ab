"""What a hospital is shown of a job before it approves of it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from mixmfl.core.files import json_digest
from mixmfl.core.text import one_line, shorten
from mixmfl.federated.client.approval import Job
from mixmfl.federated.messages import SENT
from mixmfl.federated.secure_aggregation.protocol import KINDS as MASKED_KINDS
from mixmfl.federated.state import COMPARE, MEASURE, Minimum, RunSettings
from mixmfl.planning.plans import Plans, settings_digest
from mixmfl.training.privacy_budget import Privacy, epsilon_of, read_ledger


def planning_job(record: Mapping[str, Any], minimum: Minimum) -> Job:
    """Return the job of sending statistics.

    Args:
        record: The task ``fingerprint``.
        minimum: What the statistics will rest on.
    """
    facts = {
        "job": "statistics for a plan",
        "leaves": _leaving(["fingerprint"]),
        "withheld": _withheld(minimum),
    }
    return Job(json_digest({"job": "fingerprint", "minimum": list(record["minimum"])}), facts)


def preprocessing_job(record: Mapping[str, Any], plans: Plans) -> Job:
    """Return the job of preprocessing the cases.

    Args:
        record: The task ``preprocess``.
        plans: The plans in it.
    """
    asked = {name: record[name] for name in ("plans", "configurations")}
    plans_digest = json_digest(asked["plans"])
    preset = settings_digest(plans)
    facts = {
        "job": f"preprocessing for a model for {_of_plans(plans)}",
        "leaves": _leaving(["preprocess"]),
        "plans": plans_digest,
        "preset": preset,
    }
    digest = json_digest({"job": "preprocess", **asked})
    return Job(digest, _lines(facts), plans=plans_digest, preset=preset)


def training_job(
    record: Mapping[str, Any],
    plans: Plans,
    settings: RunSettings,
    minimum: Minimum,
    privacy: Privacy | None,
    used: str,
    begun: datetime,
) -> Job:
    """Return the job of taking part in a run.

    Args:
        record: The task ``join``.
        plans: Plans of the run.
        settings: Settings of the run.
        minimum: The minimum that the site asks for.
        privacy: The privacy that the site requires; None: no noise.
        used: What was used of the site's limits, in words.
        begun: When the site first joined the run.

    Raises:
        PrivacyError: The ledger is damaged.
    """
    asked = {name: record[name] for name in ("run", "plans", "settings", "fold")}
    plans_digest = json_digest(asked["plans"])
    trained = MASKED_KINDS if settings.masked else ("train",)
    preset = settings_digest(plans)
    least = minimum.agreed(Minimum(settings.minimum_cases, settings.minimum_voxels))
    facts = {
        "job": f"training of a model for {_of_plans(plans)}",
        "run": str(record["run"]),
        "rounds": f"{settings.rounds} of {settings.local_steps} steps, learning rate "
        f"{settings.learning_rate:g}, {settings.configuration}, fold {record['fold']}",
        "personalised": f"at most {plans.training.personal_rounds} rounds of as many steps, "
        f"learning rate {plans.training.personal_learning_rate:g}, whose weights stay here",
        "masked": "yes, the coordinator learns sums over all sites" if settings.masked else "no",
        "leaves": _leaving(["join", *trained, "validate", MEASURE, COMPARE, "personalize"]),
        "withheld": _withheld(least),
        "privacy": _privacy(privacy),
        "used": used,
        "plans": plans_digest,
        "preset": preset,
    }
    return Job(
        json_digest({"job": "join", **asked}),
        _lines(facts),
        settings.rounds,
        settings.masked,
        plans_digest,
        None if privacy is None else privacy.epsilon,
        preset,
        begun,
    )


def _of_plans(plans: Plans) -> str:
    labels = shorten(list(plans.labels.foreground), 20)
    return f"{labels} from {shorten(plans.modalities, 20)}"


def _lines(facts: Mapping[str, str]) -> dict[str, str]:
    return {name: one_line(fact, 1000) for name, fact in facts.items()}


def _leaving(kinds: Sequence[str]) -> str:
    """Return which fields leave, by kind of message."""
    tensors = {"train": ["changes of weights", "prototypes"], "masked": ["masked numbers"]}
    parts = {kind: [*SENT[kind], *tensors.get(kind, [])] for kind in kinds}
    return "; ".join(f"{kind}: {', '.join(fields)}" for kind, fields in parts.items())


def _withheld(minimum: Minimum) -> str:
    return f"statistics of fewer than {minimum.cases} cases or {minimum.voxels} voxels"


def _privacy(privacy: Privacy | None) -> str:
    if privacy is None:
        return "no noise is added"
    spent = epsilon_of(read_ledger(privacy.ledger), privacy.delta)
    return f"epsilon {spent:.3g} of {privacy.epsilon:g} is spent, at delta {privacy.delta:g}"
