"""Several models: which files a folder stands for, their mean, and small components."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from small import MODALITIES, small_case, small_plans

from mixmfl.core.errors import ModelError
from mixmfl.data.cases import Case
from mixmfl.data.image import InMemory
from mixmfl.data.load_case import LoadedCase, load_case
from mixmfl.evaluation.mask_quality import Measured
from mixmfl.evaluation.small_components import ComponentSums, remove_small
from mixmfl.federated.state import RunSettings, first_state
from mixmfl.inference.case_preparation import prepare
from mixmfl.inference.confidence import confidences
from mixmfl.inference.model import Model, TrainedOn
from mixmfl.inference.model_file import load_model, save_model
from mixmfl.inference.model_folder import (
    describe_model,
    fold_folder,
    folder_notes,
    model_file,
    model_files,
    notes_of_mean,
)
from mixmfl.inference.segmentation import Options, predict_case, segment
from mixmfl.inference.sliding_window import predict_volume
from mixmfl.inference.steps import STEP
from mixmfl.planning.nnunet_preprocessing import class_indices_of, probabilities_of, restore

GAINS = {
    "lesion": ComponentSums(9, 5.0, (5.0, 5.1, 5.2, 6.0)),
    "core": ComponentSums(9, 5.0, (5.0, 4.9, 4.8, 4.7)),
}


def save(file: Path, seed: int, measured: Measured | None = None) -> Model:
    plans = small_plans()
    state = first_state(plans, RunSettings("2d", seed, 1, 1, 0.01))
    file.parent.mkdir(parents=True, exist_ok=True)
    save_model(file, state, plans, "2d", TrainedOn(dict.fromkeys(MODALITIES, 1)), measured)
    return load_model(file)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Model]:
    folder = tmp_path_factory.mktemp("models")
    return [save(folder / f"{seed}.safetensors", seed) for seed in (0, 1, 2)]


@pytest.fixture
def case() -> LoadedCase:
    images, _ = small_case(["t1", "t2"], 0)
    sources = {name: InMemory(image.T, np.eye(4)) for name, image in images.items()}
    return load_case(Case("a", dict(sources)))


def logits_of(model: Model, images: np.ndarray) -> torch.Tensor:
    return predict_volume(
        model.predictor(("t1", "t2")),
        torch.from_numpy(images),
        model.plans.configuration("2d")["patch_size"],
        step=STEP,
        device=model.device,
        dtype=torch.float16,
    )


def test_folds_are_averaged_in_their_logits_and_share_their_input(
    models: list[Model], case: LoadedCase
) -> None:
    prepared = prepare(case, [model.recipe for model in models])
    assert all(each is prepared.inputs[0] for each in prepared.inputs)
    assert not case.images  # they are freed
    shared = prepared.inputs[0]
    mean = torch.stack([logits_of(model, shared.images).float() for model in models]).mean(dim=0)
    plans = models[0].plans
    makers = [class_indices_of(plans.labels)]
    (expected,) = restore(mean.half(), shared.properties, plans.nnunet, "2d", makers)
    assert prepared.head is not None
    expected[~prepared.head] = 0
    assert len(np.unique(expected)) > 1
    found = segment(models, prepared, Options())
    assert np.array_equal(found.indices, expected)
    assert found.confidences == {}


def test_how_sure_a_model_is_counts_no_voxel_that_the_mask_leaves_out(
    models: list[Model], case: LoadedCase
) -> None:
    for image in case.images.values():
        image[:, : image.shape[1] // 2, : image.shape[2] // 2] = 0  # no part of the head
    prepared = prepare(case, [models[0].recipe])
    images, labels = prepared.inputs[0].images, models[0].plans.labels
    inside = np.any(images != 0, axis=0)
    logits = logits_of(models[0], images)
    found = segment(models[:1], prepared, Options()).confidences
    expected = confidences(logits, labels, inside)  # as sites measure it, a patch at a time
    assert found == pytest.approx(expected, rel=1e-6)
    assert found != confidences(logits, labels)  # for it finds labels outside, too


def test_models_of_other_plans_are_averaged_in_probabilities_each_fold_for_itself(
    models: list[Model], case: LoadedCase
) -> None:
    other = dataclasses.replace(models[2], trained_on=TrainedOn({"t1": 1, "t2": 1}))
    mixed = [models[0], other, models[1]]
    prepared = prepare(case, [model.recipe for model in mixed])
    assert prepared.inputs[0] is prepared.inputs[2]
    assert prepared.inputs[1] is not prepared.inputs[0]
    plans, images = models[0].plans, prepared.inputs[0].images
    logits = [logits_of(model, images) for model in mixed]
    folds = ((logits[0].float() + logits[2]) / 2).half()
    properties, makers = prepared.inputs[0].properties, [probabilities_of(plans.labels)]
    parts = [
        restore(each, properties, plans.nnunet, "2d", makers)[0] for each in (folds, logits[1])
    ]
    expected = (2 * parts[0] + parts[1]).argmax(axis=0)
    assert prepared.head is not None
    expected[~prepared.head] = 0
    assert np.array_equal(segment(mixed, prepared, Options()).indices, expected)


@pytest.mark.filterwarnings("ignore:case 'a'. .* its background was not removed")
def test_a_label_loses_its_small_parts_where_all_models_say_so(
    tmp_path: Path, models: list[Model], case: LoadedCase
) -> None:
    plain = predict_case([models[0]], case)
    decided = save(tmp_path / "m.safetensors", 0, Measured(components=GAINS))
    assert decided.component_shares == {"lesion": 0.2}
    expected, removed = remove_small(plain, decided.plans.labels, {"lesion": 0.2})
    assert removed["lesion"] > 0
    assert np.array_equal(predict_case([decided], case), expected)
    together = [decided, models[0]]  # the second says nothing of it
    prepared = prepare(dataclasses.replace(case, images=dict(case.images)), [decided.recipe] * 2)
    assert segment(together, prepared, Options()).removed == {}


def test_a_folder_stands_for_the_models_in_it(tmp_path: Path) -> None:
    run = tmp_path / "run"
    for none in (run, tmp_path / ("a" * 300 + "run")):  # longer than a disk takes
        with pytest.raises(ModelError, match=r"run: there is no such model file or run"):
            model_files(none)
    files = [run / f"fold_{fold}" / "model.safetensors" for fold in ("0", "1", "all")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    with pytest.raises(ModelError, match=r"holds no model.safetensors"):
        model_files(run)
    assert model_files(files[0]) == [files[0]]
    assert model_files(files[0].parent) == [files[0]]

    folds = ["0", "1", "all"]
    record: dict[str, object] = {"configuration": "2d", "folds": folds, "rounds": {}}
    (run / "cross_validation.json").write_text(json.dumps(record))
    with pytest.raises(ModelError, match=r"not all of its folds \(0, 1, all\) are trained"):
        model_files(run)
    (run / "cross_validation.json").write_text(json.dumps({**record, "rounds": {"0": 1}}))
    assert model_files(run) == files[:2]  # that of all cases is no part of the mean
    assert describe_model(run) == f"{run}, the mean of 2 models"
    assert model_file(run / "fold_1") == files[1]
    with pytest.raises(ModelError, match=r"run: holds 2 models, and one model is needed"):
        load_model(run)
    alone = {"configuration": "2d", "folds": ["all"], "rounds": {"all": 1}}
    (run / "cross_validation.json").write_text(json.dumps(alone))
    assert model_files(run) == files[2:]  # else prediction would take the registered model
    (run / "cross_validation.json").write_text(json.dumps({**record, "rounds": {"0": 1}}))
    files[1].unlink()
    with pytest.raises(ModelError, match="not all of its folds"):
        model_files(run)
    files[1].touch()

    run = run.rename(tmp_path / "2d")
    compared = {"configurations": ["2d", "3d_fullres"]}
    (tmp_path / "configurations.json").write_text(json.dumps({**compared, "best": None}))
    with pytest.raises(ModelError, match="no configuration was chosen yet"):
        model_files(tmp_path)
    (tmp_path / "configurations.json").write_text(json.dumps({**compared, "best": "2d"}))
    assert model_files(tmp_path) == model_files(run)


def test_what_must_be_known_of_folds_is_said(tmp_path: Path) -> None:
    files = [fold_folder(tmp_path, fold) / "model.safetensors" for fold in ("0", "1")]
    for file in files:
        file.parent.mkdir(parents=True)
        file.touch()
    assert folder_notes(files[0]) == []  # of no run in folds
    record: dict[str, object] = {"configuration": "2d", "folds": ["0", "1"], "rounds": {}}
    (tmp_path / "cross_validation.json").write_text(json.dumps(record))
    for named in (files[0], files[0].parent):
        (note,) = folder_notes(named)
        assert note.startswith(f"{named}: is one of the folds 0, 1, not all of which are trained.")
        assert "is written again with what all of them measured" in note
    record |= {"rounds": {"0": 3, "1": 9}, "lengths": {"0": 10, "1": 10}}
    (tmp_path / "cross_validation.json").write_text(json.dumps(record))
    assert folder_notes(files[0]) == folder_notes(tmp_path) == []
    record["lengths"] = {"0": 10, "1": 20}
    (tmp_path / "cross_validation.json").write_text(json.dumps(record))
    for several in ([tmp_path], files, [files[0].parent, files[1]]):
        (note,) = notes_of_mean(several)
        assert "unequal numbers of rounds: fold 0 for 10, fold 1 for 20." in note
    assert notes_of_mean(files[:1]) == notes_of_mean([*files[:1], *files[:1]]) == []
    assert "--resume --fold FOLD --rounds 20 trains a shorter one on" in note


@pytest.mark.parametrize(
    "changes",
    [
        {"folds": ["0", "../../elsewhere"]},
        {"folds": ["0", "a" * 5000]},
        {"folds": ["0", "\x1b[31m"]},
        {"folds": ["0"] * 100},
        {"folds": []},
        {"lengths": {"0": [3], "1": [4]}},
        {"lengths": {"0": 3, "1": "4"}},
        {"rounds": "done"},
    ],
)
def test_a_record_of_folds_names_folds_alone(tmp_path: Path, changes: dict[str, object]) -> None:
    record = {"configuration": "2d", "folds": ["0", "1"], "rounds": {"0": 1, "1": 1}, **changes}
    (tmp_path / "cross_validation.json").write_text(json.dumps(record))
    for read in (model_files, folder_notes, describe_model):
        with pytest.raises(ModelError, match=r"cross_validation.json: (folds|lengths|rounds)") as e:
            read(tmp_path)
        assert len(str(e.value)) < 500


def test_the_best_of_several_configurations_is_one_of_them(tmp_path: Path) -> None:
    for best in ("/etc", "a" * 5000, 1):
        content = {"configurations": ["2d"], "best": best}
        (tmp_path / "configurations.json").write_text(json.dumps(content))
        with pytest.raises(ModelError, match=r"configurations.json: best: is"):
            model_files(tmp_path)
