from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import MODALITIES, small_plans, stored_site

from mixmfl.plan import Plans
from mixmfl.rounds import loader
from mixmfl.sampling import Batch, Batches, choose_modalities


def batches(folder: Path, plans: Plans, configuration: str = "2d", **change: Any) -> Batches:
    site = stored_site(folder, "north", [("t1", "t2"), ("t1",)], plans, configuration)
    return Batches(
        site.training,
        plans,
        configuration,
        change.get("entropy", (0, 0, "north")),
        change.get("steps", 4),
    )


def same(one: Batch, other: Batch) -> bool:
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.present, other.present)
        and all(torch.equal(a, b) for a, b in zip(one.classes, other.classes, strict=True))
    )


@pytest.mark.parametrize(
    ("configuration", "patch"), [("2d", (16, 16)), ("3d_fullres", (8, 16, 16))]
)
def test_a_batch_has_the_planned_shapes_and_only_modalities_that_cases_have(
    tmp_path: Path, configuration: str, patch: tuple[int, ...]
) -> None:
    found = batches(tmp_path, small_plans(patch=patch), configuration)
    for step in range(4):
        batch = found[step]
        assert batch.images.shape == (4, 3, *patch)
        half = tuple(n // 2 for n in patch)
        assert [tuple(c.shape) for c in batch.classes] == [(4, 1, *patch), (4, 1, *half)]
        assert not batch.present[:, MODALITIES.index("flair")].any()
        assert batch.present.any(dim=1).all()
        assert (batch.images[~batch.present] == 0).all()
        assert batch.images[batch.present].abs().sum() > 0
        assert set(batch.classes[0].flatten().tolist()) <= {0, 1, 2}


def test_a_batch_depends_on_seed_round_site_and_step_and_on_nothing_else(tmp_path: Path) -> None:
    plans = small_plans()
    found = batches(tmp_path, plans)
    np.random.seed(1)
    torch.manual_seed(1)
    last = found[3]
    first = found[0]
    assert same(first, found[0])
    assert same(last, batches(tmp_path, plans)[3])
    assert not same(first, found[1])
    for entropy in ((1, 0, "north"), (0, 1, "north"), (0, 0, "south")):
        assert not same(first, batches(tmp_path, plans, entropy=entropy)[0])


def test_sampling_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    found = batches(tmp_path, small_plans())
    np.random.seed(1)
    torch.manual_seed(1)
    expected = np.random.random(), torch.rand(1)
    np.random.seed(1)
    torch.manual_seed(1)
    found[0]
    assert (np.random.random(), torch.rand(1)) == expected


def test_processes_that_prepare_batches_change_nothing(tmp_path: Path) -> None:
    found = batches(tmp_path, small_plans())
    alone, with_help = list(loader(found, 0)), list(loader(found, 1))
    assert len(alone) == 4
    assert all(same(a, b) for a, b in zip(alone, with_help, strict=True))


def test_a_third_of_the_batch_is_centred_on_foreground(tmp_path: Path) -> None:
    plans = small_plans(foreground_share=0.5, modality_dropping=0.0)
    found = batches(tmp_path, plans, steps=30)
    wanted: list[bool] = []
    original = found.chooser.box

    def spy(shape: Any, foreground: bool, locations: Any) -> Any:
        wanted.append(foreground)
        return original(shape, foreground, locations)

    found.chooser.box = spy  # type: ignore[method-assign]
    for step in range(30):
        batch = found[step]
        assert (batch.classes[0][2:] > 0).flatten(1).any(dim=1).all()
    assert wanted == [False, False, True, True] * 30


def test_every_subset_that_a_case_can_form_is_shown_equally_often() -> None:
    generator = np.random.default_rng(0)
    names = ("a", "b", "c")
    shown = Counter(choose_modalities(names, 0.5, generator) for _ in range(12000))
    assert len(shown) == 7
    assert shown[names] == pytest.approx(6000, rel=0.05)
    for subset in set(shown) - {names}:
        assert shown[subset] == pytest.approx(1000, rel=0.15)


def test_a_single_modality_is_never_dropped() -> None:
    generator = np.random.default_rng(0)
    assert all(choose_modalities(("t1",), 1.0, generator) == ("t1",) for _ in range(50))
    assert ("t1", "t2") not in {choose_modalities(("t1", "t2"), 1.0, generator) for _ in range(50)}
