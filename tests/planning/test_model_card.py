"""Where a model comes from: from dataset.json and fingerprints through plans to the model file."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from small import LABELS, MODALITIES, of_different_patients, small_plans

from mixmfl.core.errors import DataError, ModelError, PlansError
from mixmfl.data.dataset_card import DatasetCard, Segment
from mixmfl.federated.state import RunSettings, first_state
from mixmfl.inference.model import TrainedOn
from mixmfl.inference.model_file import load_model, save_model
from mixmfl.inference.origin import NOT_STATED, origin_of
from mixmfl.planning.fingerprint import (
    Fingerprint,
    fingerprint_case,
    merge_fingerprints,
    spacing_ranges,
    withhold_small_counts,
)
from mixmfl.planning.model_card import ALL_SIMULATED, ModelCard, make_card, misuse
from mixmfl.planning.plans import Plans

BOX = (slice(0, 4),) * 3
SAID = DatasetCard(
    name="gliomas",
    description="a <b>study</b>",
    licence="CC0",
    anatomy="brain",
    disease="glioma",
    intended_use="research",
    segments={"core": Segment("108369006", region="12738006")},
)


def site(cases: int, spacing: float, card: DatasetCard) -> Fingerprint:
    image = np.arange(64, dtype=np.float32).reshape(4, 4, 4)
    labels = np.zeros((4, 4, 4), dtype=np.int16)
    one = fingerprint_case({"t1": image}, labels, (spacing, 1.0, 1.0), BOX)
    return merge_fingerprints([one] * cases).with_origin(card)


PATIENTS = site(19, 3.0, DatasetCard(anatomy="brain", subjects="patients"))
PHANTOMS = site(1, 9.0, DatasetCard(anatomy="brain", subjects="simulated"))


def test_what_sites_say_of_their_cases_adds_up_in_the_card() -> None:
    card = make_card(merge_fingerprints([PATIENTS, PHANTOMS]), SAID, LABELS)
    assert card.subjects == {"patients": 19, "simulated": 1}
    assert card.anatomy == {"brain": 20}
    assert card.alarm == "Trained on simulated images, too: 1 case are no patients."
    assert make_card(PHANTOMS, SAID, LABELS).alarm == ALL_SIMULATED
    assert make_card(PATIENTS, SAID, LABELS).alarm == ""
    assert make_card(PATIENTS, DatasetCard(), LABELS).missing == (
        "description", "licence", "disease", "intended_use",
    )  # fmt: skip
    with pytest.raises(PlansError, match="segments: 'core' is no label; these are: lesion"):
        make_card(PATIENTS, SAID, dataclasses.replace(LABELS, declared={"lesion": 1}))


def test_a_code_that_no_dictionary_has_is_refused_in_planning() -> None:
    wrong = dataclasses.replace(SAID, segments={"core": Segment("108369006", region="4711")})
    with pytest.raises(DataError, match="segments: core: region: 4711 is not among the SNOMED"):
        make_card(PATIENTS, wrong, LABELS)


def test_the_spacing_of_a_single_case_in_twenty_is_not_told() -> None:
    assert spacing_ranges(merge_fingerprints([PATIENTS, PHANTOMS]))[0] == (3.0, 3.0, 3.0)
    assert spacing_ranges(merge_fingerprints([PATIENTS, PHANTOMS, PHANTOMS]))[0][2] == 9.0


def test_few_cases_of_other_subjects_are_told_as_the_most() -> None:
    both = merge_fingerprints([PATIENTS, PHANTOMS])
    shown = withhold_small_counts(both, 5, 0, of_different_patients(both))
    assert shown is not None
    assert shown.subjects == {"patients": 20}
    assert withhold_small_counts(both, 1, 0, of_different_patients(both)) == both


def test_the_card_is_in_plans_and_in_the_model_file(tmp_path: Path) -> None:
    card = make_card(PATIENTS, SAID, LABELS)
    plans = dataclasses.replace(small_plans(), card=card)
    assert Plans.from_json(plans.to_json(), "plans") == plans
    file = tmp_path / "m.safetensors"
    state = first_state(plans, RunSettings("2d", 0, 1, 1, 0.01))
    sites = {"t1": 2}
    save_model(file, state, plans, "2d", TrainedOn(dict.fromkeys(MODALITIES, 9), sites))
    origin = origin_of(load_model(file))
    assert origin.facts["planned from"] == "19 cases of patients"
    assert origin.facts["trained on"] == "flair: 9 cases, t1: 9 cases at 2 sites, t2: 9 cases"
    assert origin.facts["voxels"].startswith("Z 3 to 3 mm (median 3), Y 1 to 1")
    assert origin.facts["reference"] == NOT_STATED
    assert (origin.facts["disease"], origin.alarm) == ("glioma", "")
    save_model(file, state, plans, "2d", TrainedOn(dict.fromkeys(MODALITIES, 9), {"pet": 2}))
    with pytest.raises(ModelError, match="modality_sites: unknown fields"):
        load_model(file)


@pytest.mark.parametrize(
    ("change", "needed"),
    [
        ({"subjects": {"robots": 3}}, "it must be patients or simulated or unknown"),
        ({"dataset": {"licence": "a\nb"}}, "printable text of 1 to 1000 characters"),
        ({"dataset": {"licence": "x" * 1001}}, "printable text of 1 to 1000 characters"),
        ({"spacing_mm": [[1, 2, 1e9]]}, "it must be a number from 0.0001 to 1000"),
        ({"owner": "me"}, "unknown fields ['owner']"),
    ],
)
def test_a_card_beyond_its_bounds_is_refused(change: dict[str, object], needed: str) -> None:
    content = json.loads(json.dumps({**small_plans().to_json(), "card": change}))
    with pytest.raises(PlansError, match=r"^plans: card") as refused:
        Plans.from_json(content, "plans")
    assert needed in str(refused.value)


def test_other_parts_of_the_body_and_patients_of_a_phantoms_model_are_misuse() -> None:
    brain = ModelCard(anatomy={"brain": 9}, subjects={"patients": 9})
    assert misuse(brain, {"t2": "PROSTATE"}, "patients") == (
        "t2 shows PROSTATE (by its name, description or BodyPartExamined); the model was made for: "
        "brain"
    )
    assert misuse(brain, {"t2": "HEAD", "t1": ""}, "unknown") == ""
    phantom = ModelCard(subjects={"simulated": 9})
    assert "and the case is of a patient" in misuse(phantom, {}, "patients")
    assert "is not known to be simulated" in misuse(phantom, {}, "unknown")
    assert misuse(phantom, {}, "simulated") == ""
    assert misuse(ModelCard(subjects={"simulated": 9, "patients": 1}), {}, "unknown") == ""
    assert misuse(ModelCard(), {"t1": "KNEE"}, "unknown") == ""
