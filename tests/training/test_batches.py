import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import MODALITIES, small_plans, stored_site

from mixmfl.planning.plans import Plans
from mixmfl.training.batches import (
    Batch,
    Batches,
    PoissonBatches,
    choose_modalities,
    loader,
    seed_of,
    seeded,
    site_number,
)


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


def test_a_step_is_one_of_the_round(tmp_path: Path) -> None:
    found = batches(tmp_path, small_plans())
    assert len(found) == 4
    for drawn in (found, PoissonBatches(found, 0.5)):
        for step in (-1, 4):
            with pytest.raises(IndexError, match=str(step)):
                drawn[step]


def test_seeds_tell_sites_apart_by_name_and_steps_apart_by_number(tmp_path: Path) -> None:
    assert site_number("123456789") == 0xCBF43926  # the check value of CRC-32
    assert seed_of(5, 6, "123456789", 7) == [5, 6, 0xCBF43926, 7]
    found = batches(tmp_path, small_plans(), steps=30)
    assert len({float(found[step].images.sum()) for step in range(30)}) == 30


def draw() -> tuple[float, float, float]:
    return random.random(), np.random.random(), torch.rand(1).item()


def test_sampling_leaves_the_global_generators_alone(tmp_path: Path) -> None:
    found = batches(tmp_path, small_plans())
    drawn = []
    for use in (lambda: None, lambda: found[0]):
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        use()
        drawn.append(draw())
    assert drawn[0] == drawn[1]


def test_within_a_step_the_global_generators_are_those_of_the_step() -> None:
    drawn = []
    for number in (7, 7, 8):
        with seeded(np.random.default_rng(number)):
            drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[1], drawn[2], strict=True))


def test_a_batch_moves_with_all_that_it_has(tmp_path: Path) -> None:
    here = batches(tmp_path, small_plans())[0]
    there = here.to(torch.device("meta"))
    moved = [there.images, there.present, there.shown, *there.classes]
    assert {tensor.device.type for tensor in moved} == {"meta"}
    assert there.images.shape == here.images.shape
    assert there.shown.shape == here.shown.shape
    assert len(there.classes) == len(here.classes)


def test_every_case_of_a_site_is_drawn_equally_often(tmp_path: Path) -> None:
    found = batches(tmp_path, small_plans(), steps=50)
    with_t2 = [found[step].present[:, MODALITIES.index("t2")] for step in range(50)]
    # 200 draws from two cases, of which one has T2
    assert torch.cat(with_t2).sum().item() == pytest.approx(100, abs=20)


def test_beyond_the_image_a_patch_is_empty_and_outside_of_the_head(tmp_path: Path) -> None:
    # the stored cases are of 10 x 20 x 18 voxels: most of such a patch lies beyond them
    found = batches(tmp_path, small_plans(patch=(64, 64)), steps=4)
    for step in range(4):
        batch = found[step]
        outside = (batch.classes[0] == 0).expand(-1, 3, -1, -1)
        assert outside.float().mean() > 0.7
        # within the head z-scored noise is nowhere exactly 0
        assert (batch.images == 0).float().mean() > 0.7
        assert (batch.images[:, MODALITIES.index("t1")] != 0).any()


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


def test_for_privacy_cases_are_drawn_each_by_itself(tmp_path: Path) -> None:
    plans = small_plans(foreground_share=1.0)
    found = batches(tmp_path, plans, steps=40)
    drawn = PoissonBatches(found, 0.5)
    assert len(drawn) == 40
    sizes = Counter(len(drawn[step]) for step in range(40))
    # of two cases, each with probability 1/2: none in a quarter of the steps, both in another
    assert sizes.keys() == {0, 1, 2}
    assert sizes[1] == pytest.approx(20, abs=8)
    both, again = (PoissonBatches(found, 1.0)[0] for _ in range(2))
    assert all(same(one, other) for one, other in zip(both, again, strict=True))
    assert [len(batch.images) for batch in both] == [1, 1]
    # (flair, t1, t2)
    assert [batch.present.tolist() for batch in both] == [
        [[False, True, True]],
        [[False, True, False]],
    ]
    # every patch is centred on foreground, as the plans have it
    assert all((batch.classes[0] > 0).any() for step in range(9) for batch in drawn[step])


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
