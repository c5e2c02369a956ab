import copy
import dataclasses
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
    ExperimentPlanner,
)
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (  # noqa: E501
    nnUNetPlannerResEncM,
)
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from small import LABELS, small_case, small_plans, with_residual_encoders

from mixmfl.core.errors import DataError, PlansError
from mixmfl.data.labels import Labels
from mixmfl.networks.build import build_outline
from mixmfl.networks.mdmnet import MDMNet
from mixmfl.planning import nnunet_planner, nnunet_plans, nnunet_preprocessing
from mixmfl.planning.federation_plans import make_plans
from mixmfl.planning.fingerprint import fingerprint_case, merge_fingerprints
from mixmfl.planning.nnunet_labels import label_manager
from mixmfl.planning.nonzero import head_mask, nonzero_box
from mixmfl.planning.plans import load_preset
from mixmfl.planning.settings import NetworkSettings, PlannerSettings
from mixmfl.training import nnunet_training

REGIONS = Labels({"background": 0, "whole": (1, 2), "core": 2, "ignore": 3}, (1, 2))


def fingerprints(count: int = 6) -> list[Any]:
    made = []
    for seed in range(count):
        images, labels = small_case(("t1", "t2"), seed, (32, 60 + 4 * seed, 56))
        spacing = (1.0 + 0.5 * (seed % 2), 1.0, 1.0)
        box = nonzero_box(list(images.values()))
        made.append(fingerprint_case(images, labels, spacing, box))
    return made


def test_sites_fingerprints_give_the_plans_of_the_pooled_cases() -> None:
    cases, preset = fingerprints(), load_preset("demo")
    sites = [merge_fingerprints(cases[:1]), merge_fingerprints(cases[1:4]), *cases[4:]]
    pooled = make_plans(merge_fingerprints(cases), LABELS, preset)
    merged = make_plans(merge_fingerprints(sites), LABELS, preset)
    assert merged == pooled


def test_plans_are_those_of_nnunets_own_planner_but_for_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    merged = merge_fingerprints(fingerprints())
    asked = (
        merged,
        ["t1", "t2"],
        LABELS,
        PlannerSettings(8.0, 32, 512, 320, None, "z-score"),
        NetworkSettings("decoupled", 0.5, 0.5, (-1,), 0.1, 2, "concatenated"),
    )
    ours = nnunet_planner.plan(*asked)
    monkeypatch.setattr(nnunet_planner, "_Planner", lambda name, *_: _plain_planner(name))
    theirs = nnunet_planner.plan(*asked)
    for name in ("2d", "3d_fullres"):
        one, other = ours["configurations"][name], theirs["configurations"][name]
        assert list(one["spacing"]) == list(other["spacing"])
        assert list(one["median_image_size_in_voxels"]) == list(
            other["median_image_size_in_voxels"]
        )
        assert one["normalization_schemes"] == other["normalization_schemes"]
        assert one["batch_size"] <= other["batch_size"]
    assert ours["transpose_forward"] == theirs["transpose_forward"]


def test_residual_encoders_are_planned_as_by_nnunets_planner_in_the_memory_of_ours(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merged = merge_fingerprints(fingerprints())
    preset = load_preset("resenc-m")
    plans = make_plans(merged, LABELS, preset)
    small = dataclasses.replace(preset.planner, memory_gb=1.0)
    tight = make_plans(merged, LABELS, dataclasses.replace(preset, planner=small))

    def theirs(name: str, *_: object) -> Any:
        planner = nnUNetPlannerResEncM(name)
        planner.determine_reader_writer = lambda: dict  # there is no image to find a reader for
        return planner

    monkeypatch.setattr(nnunet_planner, "_ResidualPlanner", theirs)
    asked = (merged, ["t1", "t2"], LABELS, preset.planner, preset.network)
    nnunet = nnunet_planner.plan(*asked)["configurations"]
    for name in ("2d", "3d_fullres"):
        one, other = plans.configuration(name)["architecture"], nnunet[name]["architecture"]
        assert one["network_class_name"] == other["network_class_name"]
        assert one["network_class_name"].endswith(".ResidualEncoderUNet")
        stages = one["arch_kwargs"]["n_stages"]
        assert one["arch_kwargs"]["n_blocks_per_stage"] == [1, 3, 4, 6, 6, 6][:stages]
        for planned, most in ((plans, 8.0), (tight, 1.0)):
            needed = nnunet_planner.training_memory_gb(planned.nnunet, name, 3, preset.network)
            assert 0.4 * most < needed < 1.1 * most, name


def test_the_memory_of_residual_encoders_is_that_of_their_convolutions() -> None:
    plans = with_residual_encoders(small_plans(patch=(16, 16)))
    arch = plans.configuration("2d")["architecture"]["arch_kwargs"]
    arch["features_per_stage"] = [4, 8, 16]  # where channels stay, nnU-Net counts a mean, too
    counted = []
    for shared in (0.0, 1.0):
        network = dataclasses.replace(
            plans.network, tailored_width=1.0, shared_width=shared, compensation_levels=()
        )
        counted.append(nnunet_planner.feature_map_size((16, 16), 3, 3, arch, network))
    built = build_outline(
        dataclasses.replace(
            plans,
            network=dataclasses.replace(network, shared_width=1.0),
        ),
        "2d",
    )
    made: list[int] = []
    for module in built.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(lambda *given: made.append(given[-1][0].numel()))
    assert isinstance(built, MDMNet)
    assert built.shared is not None
    built.shared(torch.empty(1, 1, 16, 16, device="meta"))
    assert counted[1] - counted[0] == 3 * sum(made)


def _plain_planner(name: str) -> Any:
    planner = ExperimentPlanner(name)
    planner.determine_reader_writer = lambda: dict  # there is no image to find a reader for
    return planner


def test_planning_leaves_the_environment_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("nnUNet_raw", "/theirs")
    monkeypatch.delenv("nnUNet_results", raising=False)
    make_plans(merge_fingerprints(fingerprints(2)), LABELS, load_preset("demo"))
    assert os.environ["nnUNet_raw"] == "/theirs"  # noqa: SIM112
    assert "nnUNet_results" not in os.environ


def test_every_modality_is_z_scored_whatever_it_is_called() -> None:
    (fingerprint,) = fingerprints(1)
    renamed = dataclasses.replace(
        fingerprint,
        intensities={
            "ct": fingerprint.intensities["t1"],
            "nonorm": fingerprint.intensities["t2"],
        },
    )
    preset = load_preset("demo")
    plans = nnunet_planner.plan(renamed, ["ct", "nonorm"], LABELS, preset.planner, preset.network)
    for planned in plans["configurations"].values():
        assert planned["normalization_schemes"] == ["ZScoreNormalization"] * 2


def test_more_modalities_get_smaller_patches_or_batches_in_the_same_memory() -> None:
    merged = merge_fingerprints(fingerprints())
    planner = PlannerSettings(1.0, 32, 512, 320, None, "z-score")
    sizes = []
    for settings in (
        NetworkSettings("decoupled", 0.25, 0.25, (-1,), 0.1, 2, "concatenated"),
        NetworkSettings("decoupled", 1, 1, (-1,), 0.1, 2, "concatenated"),
    ):
        plans = nnunet_planner.plan(merged, ["t1", "t2"], LABELS, planner, settings)
        planned = plans["configurations"]["3d_fullres"]
        sizes.append(planned["batch_size"] * np.prod(planned["patch_size"]))
    assert sizes[1] < sizes[0]


def test_a_case_is_scored_within_its_head_whatever_modalities_it_has() -> None:
    plans = small_plans()
    images, labels = small_case(("t1", "t2"), 0)
    for image in images.values():
        image[:, :3] = 0  # outside the head
    one, seg, _ = nnunet_preprocessing.preprocess(
        [images["t2"]], labels, (1, 1, 1), plans.nnunet, "2d", plans.labels
    )
    both, _, _ = nnunet_preprocessing.preprocess(
        [images["t1"], images["t2"]], labels, (1, 1, 1), plans.nnunet, "2d", plans.labels
    )
    assert one.shape == (1, 6, 17, 18)
    assert np.array_equal(one[0], both[1])
    assert one[0].mean() == pytest.approx(0, abs=1e-5)
    assert one[0].std() == pytest.approx(1, abs=1e-5)
    assert np.array_equal(seg[0], labels[:, 3:])


def test_restoring_undoes_cropping_resampling_and_transposing() -> None:
    plans = small_plans()
    images, labels = small_case(("t1",), 0)
    images["t1"][:, :3] = 0
    _, seg, properties = nnunet_preprocessing.preprocess(
        [images["t1"]], labels, (1, 2, 2), plans.nnunet, "2d", plans.labels
    )
    assert seg.shape == (1, 6, 34, 36)  # resampled to 1 mm within the slice
    logits = torch.nn.functional.one_hot(torch.from_numpy(seg[0].clip(0)).long(), 3).movedim(-1, 0)
    makers = [
        nnunet_preprocessing.class_indices_of(plans.labels),
        nnunet_preprocessing.probabilities_of(plans.labels),
    ]
    restored, probabilities = nnunet_preprocessing.restore(
        logits.float() * 20, properties, plans.nnunet, "2d", makers
    )
    assert restored.shape == labels.shape
    assert (restored == labels).mean() > 0.99
    assert probabilities.shape == (3, *labels.shape)
    inside = probabilities.astype(np.float32).sum(axis=0)[:, 3:]
    assert inside == pytest.approx(1, abs=2e-3)


@pytest.mark.parametrize("spacing", [(1, 1, 1), (2, 1.5, 1.25)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
@pytest.mark.parametrize("patch", [(16, 16), (8, 16, 16)])
@pytest.mark.parametrize("described", [LABELS, REGIONS], ids=["labels", "regions"])
def test_cases_are_preprocessed_as_nnunet_preprocesses_them(
    described: Labels, patch: tuple[int, ...], order: tuple[int, ...], spacing: tuple[float, ...]
) -> None:
    plans = small_plans(("t1", "t2"), described, patch)
    turned = {**plans.nnunet, "transpose_forward": list(order)}
    (name,) = plans.configurations
    images, labels = small_case(("t1", "t2"), 0)
    images["t1"][:, :3] = 0
    images["t2"][:, :2] = 0
    images["t2"][:, :, :4] = 0
    labels[:, 2] = 1  # outside the head, but labelled
    manager = PlansManager(turned)
    want, want_seg, want_properties = DefaultPreprocessor(verbose=False).run_case_npy(
        np.stack(list(images.values())), labels[None].astype(np.int16), {"spacing": list(spacing)},
        manager, manager.get_configuration(name), plans.labels.consecutive().to_json(),
    )  # fmt: skip
    found, seg, properties = nnunet_preprocessing.preprocess(
        list(images.values()), labels, spacing, turned, name, plans.labels
    )
    assert np.abs(found - want).max() < 1e-4
    assert np.array_equal(seg, want_seg)
    assert seg.dtype == want_seg.dtype
    assert properties.keys() == want_properties.keys()
    for key, value in properties.pop("class_locations").items():
        assert np.array_equal(value, want_properties["class_locations"][key])
    assert all(list(want_properties[key]) == list(properties[key]) for key in properties)

    together, _, _ = nnunet_preprocessing.preprocess(
        list(images.values()), None, spacing, turned, name, plans.labels
    )
    head = head_mask(list(images.values()))
    given = [partial(images.pop, modality) for modality in ("t1", "t2")]
    one_by_one, mine = nnunet_preprocessing.preprocess_each(given, head, spacing, turned, name)
    assert np.array_equal(one_by_one, together)
    assert mine == properties
    assert not images


def test_a_resampling_that_is_not_nnunets_default_is_refused() -> None:
    plans = small_plans()
    other = copy.deepcopy(dict(plans.nnunet))
    other["configurations"]["2d"]["resampling_fn_data"] = "resample_torch_fornnunet"
    images, labels = small_case(("t1",), 0)
    with pytest.raises(PlansError, match="'resample_torch_fornnunet'; only nnU-Net's default"):
        nnunet_preprocessing.preprocess(
            [images["t1"]], labels, (1, 1, 1), other, "2d", plans.labels
        )


@pytest.mark.parametrize("labels", [LABELS, REGIONS], ids=["labels", "regions"])
def test_classes_are_restored_as_nnunet_restores_them(labels: Labels) -> None:
    from nnunetv2.inference.export_prediction import (
        convert_predicted_logits_to_segmentation_with_correct_shape as peer,
    )
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = small_plans(labels=labels)
    images, _ = small_case(("t1",), 0)
    images["t1"][:, :3] = 0
    data, _, properties = nnunet_preprocessing.preprocess(
        [images["t1"]], None, (1, 1.5, 1.5), plans.nnunet, "2d", labels
    )
    heads = label_manager(labels).num_segmentation_heads
    logits = torch.randn(heads, *data.shape[1:], generator=torch.Generator().manual_seed(0))
    manager = PlansManager(dict(plans.nnunet))
    want = peer(
        logits,
        manager,
        manager.get_configuration("2d"),
        label_manager(labels),
        dict(properties),
        num_threads_torch=1,
    )
    makers = [nnunet_preprocessing.class_indices_of(labels)]
    (found,) = nnunet_preprocessing.restore(logits, properties, plans.nnunet, "2d", makers)
    assert found.shape == (6, 20, 18)
    assert np.array_equal(found, want)


def test_the_loss_is_nnunets_and_halves_per_resolution() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(2, 3, n, n, generator=generator) for n in (16, 8, 4)]
    classes = [torch.randint(0, 3, (2, 1, n, n), generator=generator) for n in (16, 8, 4)]
    single = DC_and_CE_loss({"batch_dice": True, "smooth": 1e-5, "do_bg": False, "ddp": False}, {})
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
    from nnunetv2.utilities.helpers import softmax_helper_dim1

    single.dc = MemoryEfficientSoftDiceLoss(
        softmax_helper_dim1, batch_dice=True, smooth=1e-5, do_bg=False, ddp=False
    )
    want = (2 * single(logits[0], classes[0]) + single(logits[1], classes[1])) / 3
    found = nnunet_training.supervision_loss(LABELS, 3, batch_dice=True)(
        logits, nnunet_training.supervision_targets(classes, LABELS)
    )
    assert found.total.item() == pytest.approx(want.item(), rel=1e-5)
    dice = (2 * single.dc(logits[0], classes[0]) + single.dc(logits[1], classes[1])) / 3
    assert found.dice.item() == pytest.approx(dice.item(), rel=1e-5)


def test_regions_become_channels_and_the_ignored_voxels_the_last_one() -> None:
    (target,) = nnunet_training.supervision_targets([torch.tensor([[[0, 1, 2, 3]]])], REGIONS)
    assert target.tolist() == [
        [
            [False, True, True, False],
            [False, False, True, False],
            [False, False, False, True],
        ]
    ]


def test_ignored_voxels_do_not_count_in_the_loss() -> None:
    compare = nnunet_training.supervision_loss(REGIONS, 1, batch_dice=True)
    logits = torch.randn(1, 2, 4, 4)
    classes = torch.randint(0, 3, (1, 1, 4, 4))
    classes[..., 0] = 3
    changed = logits.clone()
    changed[..., 0] += 5
    targets = nnunet_training.supervision_targets([classes], REGIONS)
    assert compare([logits], targets).total == compare([changed], targets).total


def test_augmentation_does_not_depend_on_how_busy_the_machine_is() -> None:
    composed = nnunet_training.training_transforms((16, 16), ((1, 1), (2, 2), (2, 2)), 2, True)
    blurs = [getattr(t, "transform", t) for t in composed.transforms]
    (blur,) = [t for t in blurs if type(t).__name__ == "GaussianBlurTransform"]
    assert blur.benchmark is False


def test_a_case_that_memory_does_not_hold_once_it_is_resampled_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A header that says 10 mm instead of 1 mm makes a hundred times as many voxels in 2-D."""
    monkeypatch.setattr(nnunet_preprocessing, "available_bytes", lambda: 4 * 3 * 16 * 160 * 160 - 1)
    head = np.ones((16, 16, 16), dtype=bool)
    image = np.random.default_rng(0).normal(size=head.shape).astype(np.float32)
    plans = small_plans(patch=(16, 16)).nnunet
    spacing = plans["configurations"]["2d"]["spacing"]
    wrong = (spacing[0], 10 * spacing[0], 10 * spacing[1])
    with pytest.raises(DataError, match=r"16 x 160 x 160 voxels .* Check the spacing"):
        nnunet_preprocessing.preprocess_each([lambda: image] * 2, head, wrong, plans, "2d")


def head_scores(images: Any, masked: bool = False) -> np.ndarray:
    plans = small_plans(("t1",))
    planned = {
        **plans.configuration("2d"),
        "normalization_schemes": ["HeadNormalization"],
        "use_mask_for_norm": [masked],
    }
    nested = {**plans.nnunet, "configurations": {"2d": planned}}
    nnunet_plans.check_planned(nested, 1, "plans")
    one, _ = nnunet_preprocessing.preprocess_each(
        [lambda: images], head_mask([images]), (1.0, 1.0, 1.0), nested, "2d"
    )
    both, _, _ = nnunet_preprocessing.preprocess(
        [images], np.zeros(images.shape, np.int16), (1.0, 1.0, 1.0), nested, "2d", LABELS
    )
    np.testing.assert_array_equal(one, both)  # training and prediction see the same
    return one[0]


def test_the_heads_normalisation_does_not_depend_on_the_air_around_it() -> None:
    generator = np.random.default_rng(0)
    head = generator.normal(100, 10, (6, 20, 20)).astype(np.float32)
    around = 3 * generator.rayleigh(1, (6, 60, 60)).astype(np.float32)
    little, much = around[:, :30, :30].copy(), around.copy()
    for image in (little, much):
        image[:, 5:25, 5:25] = head
    inside = (slice(None), slice(5, 25), slice(5, 25))
    one, other = head_scores(little)[inside], head_scores(much)[inside]
    np.testing.assert_allclose(one, other, atol=0.02)
    assert abs(float(np.median(one))) < 0.02
    assert float(one.std()) == pytest.approx(1, abs=0.05)
    cut = head_scores(np.where(little > 50, little, 0).astype(np.float32), masked=True)
    np.testing.assert_allclose(cut, one, atol=0.02)


def test_modalities_are_normalised_alike() -> None:
    plans = small_plans(("t1", "t2"))
    plans.configuration("2d")["normalization_schemes"][1] = "HeadNormalization"
    with pytest.raises(PlansError, match="it must be the same for all modalities"):
        nnunet_plans.check_planned(plans.nnunet, 2, "plans")
    plans.configuration("2d")["normalization_schemes"][:] = ["os.system"] * 2
    with pytest.raises(PlansError, match="normalization_schemes"):
        nnunet_plans.check_planned(plans.nnunet, 2, "plans")


def test_a_preset_may_ask_for_the_heads_normalisation() -> None:
    preset = load_preset("demo")
    planner = dataclasses.replace(preset.planner, normalization="head")
    plans = make_plans(
        merge_fingerprints(fingerprints()), LABELS, dataclasses.replace(preset, planner=planner)
    )
    assert plans.configuration("2d")["normalization_schemes"] == ["HeadNormalization"] * 2
