"""All subsets of a case from one encoding, against running the network for each of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import MODALITIES, random_network, small_plans, stored_site
from torch import Tensor, nn

from mixmfl.evaluation.subset_dice import all_subsets
from mixmfl.inference.cpu_network import CPUNetwork
from mixmfl.inference.every_subset import segment_subsets, subsets_predictor
from mixmfl.inference.predictor import case_predictor, segment_stored
from mixmfl.inference.sliding_window import predict_volume
from mixmfl.networks.base import SegmentationNet
from mixmfl.networks.prototypes import PrototypeMemory, Prototypes

SUBSETS = all_subsets(MODALITIES)
FORMS: list[dict[str, Any]] = [
    {},
    {"form": "stacked"},
    {"tailored_width": 0.0},
    {"shared_width": 0.0},
    {"decoder_skips": "added"},
    {"compensation_levels": (-1,)},
    {"form": "anchored", "compensation_levels": (-1,)},
]


def network(patch: tuple[int, ...] = (16, 16), **settings: Any) -> SegmentationNet:
    """Return a random network without compensation, unless the settings say otherwise."""
    return random_network(patch, **{"compensation_levels": (), **settings})


def memory_of_deepest() -> PrototypeMemory:
    """Return prototypes at level -1; a network without compensation reads none."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.randn(3, 4, generator=generator)
    return {(name, 2): Prototypes(rows, torch.ones(3)) for name in MODALITIES}


def images_of(patch: tuple[int, ...]) -> Tensor:
    return torch.randn(2, len(MODALITIES), *patch, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("patch", [(16, 16), (8, 16, 12)])
@pytest.mark.parametrize("settings", FORMS)
def test_logits_are_those_of_a_run_per_subset(
    settings: dict[str, Any], patch: tuple[int, ...]
) -> None:
    built, images = network(patch, **settings), images_of(patch)
    memory = memory_of_deepest()
    with torch.inference_mode():
        each = [
            case_predictor(built, memory, subset)(images[:, [MODALITIES.index(m) for m in subset]])
            for subset in SUBSETS
        ]
        plain = subsets_predictor(built, memory, MODALITIES, SUBSETS)(images)
        optimised = subsets_predictor(CPUNetwork(built, torch.float32), memory, MODALITIES, SUBSETS)
        assert torch.allclose(plain, torch.cat(each, dim=1), atol=1e-4)
        assert torch.allclose(optimised(images), plain, atol=1e-4)
        some = [MODALITIES[:1], MODALITIES[:2]]  # of a case without the last modality
        fewer = subsets_predictor(optimised_of(settings, patch), memory, MODALITIES[:2], some)
        expected = torch.cat([each[SUBSETS.index(subset)] for subset in some], dim=1)
        assert torch.allclose(fewer(images[:, :2]), expected, atol=1e-4)


def optimised_of(settings: dict[str, Any], patch: tuple[int, ...]) -> CPUNetwork:
    return CPUNetwork(network(patch, **settings), torch.float32)


@pytest.mark.parametrize("settings", FORMS)
def test_half_precision_gives_the_same_up_to_its_rounding(settings: dict[str, Any]) -> None:
    memory, images = memory_of_deepest(), images_of((16, 16))
    optimised = CPUNetwork(network(**settings), torch.bfloat16)
    with torch.inference_mode():
        together = optimised.subsets_predictor(memory, MODALITIES, SUBSETS)(images)
        each = [
            optimised.predictor(memory, subset)(images[:, [MODALITIES.index(m) for m in subset]])
            for subset in SUBSETS
        ]
    assert together.dtype == torch.float32
    # 8 bits, rounded some ten times on the way, in another order
    apart = (together - torch.cat(each, dim=1)).abs().max()
    assert apart < 10 * 2**-8 * together.abs().max()


def test_masks_are_those_of_a_run_per_subset(tmp_path: Path) -> None:
    plans = small_plans()
    case = stored_site(tmp_path, "north", [("flair", "t2")], plans).training[0]
    built = network(compensation_levels=(-1,))
    memory, subsets = memory_of_deepest(), all_subsets(["flair", "t2"])
    device = torch.device("cpu")
    each = {
        subset: segment_stored(built, memory, case, subset, plans, "2d", device)
        for subset in subsets
    }
    for runner in (built, optimised_of({"compensation_levels": (-1,)}, (16, 16))):
        masks = segment_subsets(runner, memory, case, subsets, plans, "2d", device)
        assert masks.keys() == each.keys()
        for subset, segmented in masks.items():
            mask = segmented.indices
            assert len(np.unique(mask)) > 1
            assert np.mean(mask != each[subset]) < 1e-3  # logits that are nearly equal
            assert not mask[case.labels[:][0] < 0].any()
        assert segment_subsets(runner, memory, case, [], plans, "2d", device) == {}


def test_each_modality_is_encoded_once_for_all_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    built, images = network(), images_of((16, 16))
    seen: list[int] = []
    for encoder in (*built.get_submodule("tailored").children(), built.get_submodule("shared")):
        assert isinstance(encoder, nn.Module)
        encoder.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    predictor = subsets_predictor(built, {}, MODALITIES, SUBSETS)
    with torch.inference_mode():
        predict_volume(
            predictor, images[0][:, None], (16, 16), step=0.5, device=torch.device("cpu")
        )
    assert sum(seen) == 2 * len(MODALITIES)  # by its own encoder and by the shared one
