"""A hospital deals its cases into folds once, whatever folds and seeds a coordinator asks for."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from small import stored_site
from small_federation import PLANS

from mixmfl.core.errors import PrivacyError
from mixmfl.federated.client.own_folds import OwnFolds
from mixmfl.federated.client.site_config import SiteConfig
from mixmfl.federated.sites import Split, split_fold
from mixmfl.inference.model_folder import FOLD_COUNT

CASES = {f"p{number}": ("t1",) for number in range(12)}


@pytest.fixture
def own(tmp_path: Path) -> OwnFolds:
    return OwnFolds(tmp_path / "folds.json", tmp_path / "problems.log")


def split(
    own: OwnFolds,
    cases: Mapping[str, tuple[str, ...]],
    fold: object,
    seed: int = 0,
    patients: Mapping[str, str] = MappingProxyType({}),
) -> Split:
    return own.split(cases, str(fold), seed, "north", patients)


def test_validation_cases_of_two_orders_are_equal_or_have_none_in_common(own: OwnFolds) -> None:
    """So no difference of two sums of Dice is about fewer cases than a fold has."""
    orders = list(itertools.product(range(FOLD_COUNT), range(6)))
    held = {frozenset(split(own, CASES, fold, seed)[1]) for fold, seed in orders}
    assert len(held) == FOLD_COUNT
    assert frozenset().union(*held) == CASES.keys()
    assert sum(map(len, held)) == len(CASES)


@pytest.mark.parametrize("fold", ["0", "3", "all"])
def test_the_first_order_splits_as_a_simulation_does(own: OwnFolds, fold: str) -> None:
    assert split(own, CASES, fold, 7) == split_fold(CASES, fold, 7, "north")
    assert split(own, CASES, fold, 7) == split_fold(CASES, fold, 7, "north")


def test_where_every_case_trains_no_folds_are_dealt(own: OwnFolds, tmp_path: Path) -> None:
    assert split(own, CASES, "all") == (tuple(sorted(CASES)), ())
    assert not (tmp_path / "folds.json").exists()


def test_a_case_that_came_later_trains_and_never_validates(own: OwnFolds, tmp_path: Path) -> None:
    before = [split(own, CASES, fold)[1] for fold in range(FOLD_COUNT)]
    more = {**CASES, "p12": ("t1",)}
    for fold, held in enumerate(before):
        training, validation = split(own, more, fold)
        assert validation == held
        assert {*training} == more.keys() - {*held}
    note = (tmp_path / "problems.log").read_text().splitlines()[-1]
    assert "1 case came later and validate in no fold. To deal again, which lets a" in note
    assert note.endswith("remove that file")


def test_a_later_examination_of_a_patient_who_validates_does_not_train(own: OwnFolds) -> None:
    held = split(own, CASES, 0)[1]
    more = {**CASES, "new": ("t1",)}
    patients = {held[0]: "Doe", "new": "Doe"}
    training, validation = split(own, more, 0, patients=patients)
    assert validation == held
    assert "new" not in training
    assert "new" in split(own, more, 1, patients=patients)[0]


def test_a_fold_that_lost_a_case_validates_none(own: OwnFolds, tmp_path: Path) -> None:
    """Such as one that preprocessing refused because the coordinator planned so."""
    before = [split(own, CASES, fold)[1] for fold in range(FOLD_COUNT)]
    lost = before[0][0]
    fewer = {name: has for name, has in CASES.items() if name != lost}
    training, validation = split(own, fewer, 0)
    assert validation == ()
    assert {*training} == CASES.keys() - {*before[0]}
    assert "fold 0 lost 1 case and validates none" in (tmp_path / "problems.log").read_text()
    assert split(own, fewer, 1)[1] == before[1]


@pytest.mark.parametrize("damaged", ["{", '{"p1": 5}', '{"p1": "0"}', "[]"])
def test_a_damaged_record_is_refused_and_stays(own: OwnFolds, tmp_path: Path, damaged: str) -> None:
    (tmp_path / "folds.json").write_text(damaged)
    with pytest.raises(PrivacyError, match=r"folds\.json"):
        split(own, CASES, 0)
    assert (tmp_path / "folds.json").read_text() == damaged


def test_a_hospital_opens_the_same_folds_whatever_seed_is_asked_for(tmp_path: Path) -> None:
    stored_site(tmp_path, "north", [("t1",)] * 6, PLANS)
    config = SiteConfig("north", tmp_path / "nothing", tmp_path)
    held = {
        tuple(case.name for case in config.open(PLANS, "2d", "0", seed).validation)
        for seed in range(6)
    }
    assert len(held) == 1
