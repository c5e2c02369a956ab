"""Where a model comes from, in words for people: on the page, in tables, by ``mixmfl_doctor``."""

from dataclasses import dataclass
from typing import Any

from mixmfl.core.text import plural
from mixmfl.evaluation.small_components import shares_text
from mixmfl.inference.model import Model
from mixmfl.planning.heads import PLANNED_WORDS
from mixmfl.planning.model_card import ModelCard

NOT_STATED = "not stated"
_IN_BRIEF = (
    "disease", "anatomy", "planned from", "trained on", "heads", "licence", "intended use"
)  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Where a model comes from.

    Attributes:
        name: Name of the model's file.
        sha256: SHA-256 of the file.
        alarm: What must stand in red wherever masks of the model are shown; empty: nothing.
        facts: What is known, by a heading each.
    """

    name: str
    sha256: str
    alarm: str
    facts: dict[str, str]

    @property
    def in_brief(self) -> str:
        """What stands on the head of a page: the facts that say whom the model is for."""
        facts = {name: self.facts.get(name, NOT_STATED) for name in _IN_BRIEF}
        stated = [f"{name}: {text}" for name, text in facts.items() if text != NOT_STATED]
        missing = [name for name, text in facts.items() if text == NOT_STATED]
        if missing:
            stated.append(f"{NOT_STATED}: {', '.join(missing)}")
        text = "; ".join(stated)
        return f"{text[0].upper()}{text[1:]}."

    def to_json(self) -> dict[str, Any]:
        """Return JSON content, without the SHA-256."""
        return {"file": self.name, "alarm": self.alarm, "origin": self.facts}


def origin_of(model: Model) -> Origin:
    """Return where a model comes from, as its file says."""
    card = model.plans.card
    dataset = card.dataset
    facts = {
        "description": dataset.description or NOT_STATED,
        "data set": dataset.name or NOT_STATED,
        "reference": dataset.reference or NOT_STATED,
        "anatomy": ", ".join(card.anatomies) or NOT_STATED,
        "disease": dataset.disease or NOT_STATED,
        "planned from": _subjects(card),
        "trained on": _sequences(model),
        "heads": PLANNED_WORDS[model.plans.heads],
        "voxels": _voxels(card),
        "intensity of what was labelled": _intensities(model),
        "validated on": _validation(model),
        "small parts removed": shares_text(model.component_shares) or "of no label",
        "licence": dataset.licence or NOT_STATED,
        "intended use": dataset.intended_use or NOT_STATED,
        "written by": f"mixmfl {model.version}, round {model.round}",
    }
    return Origin(model.name, model.sha256, card.alarm, facts)


def _subjects(card: ModelCard) -> str:
    words = {"patients": "of patients", "simulated": "simulated", "unknown": "of unknown subjects"}
    counted = [f"{plural(number, 'case')} {words[name]}" for name, number in card.subjects.items()]
    return ", ".join(counted) or NOT_STATED


def _validation(model: Model) -> str:
    """Return on how many cases Dice was measured, in the fold or folds that held them back."""
    cases = max((sums.cases for sums in model.measured.components.values()), default=0)
    if not cases:
        return NOT_STATED
    folds = model.trained_on.folds
    how = (
        f"by cross-validation over {plural(len(folds), 'fold')}" if folds else "that were held back"
    )
    return f"{plural(cases, 'case')} {how}"


def _sequences(model: Model) -> str:
    sites = model.trained_on.modality_sites
    return ", ".join(
        f"{name}: {plural(cases, 'case')}"
        + (f" at {plural(sites[name], 'site')}" if name in sites else "")
        for name, cases in model.trained_on.modality_cases.items()
    )


def _voxels(card: ModelCard) -> str:
    ranges = [
        f"{axis} {low:g} to {high:g} mm (median {middle:g})"
        for axis, (low, middle, high) in zip("ZYX", card.spacing_mm, strict=False)
    ]
    return ", ".join(ranges) + ", in nine of ten cases" if ranges else NOT_STATED


def _intensities(model: Model) -> str:
    """Return the range of labelled voxels, in standard deviations from the mean of their image."""
    planned = model.plans.nnunet["foreground_intensity_properties_per_channel"]
    ranges = [
        f"{name} {known['percentile_00_5']:.1f} to {known['percentile_99_5']:.1f}"
        for number, name in enumerate(model.plans.modalities)
        if (known := planned.get(str(number))) and known.get("max", 0) > known.get("min", 0)
    ]
    return ", ".join(ranges) + " standard deviations" if ranges else NOT_STATED
