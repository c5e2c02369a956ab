"""Statistics over trainings, with numbers worked out by hand."""

import math

import numpy as np
import pytest

from mixmfl.core.errors import DataError
from mixmfl.research.benchmark.scores import Row
from mixmfl.research.benchmark.statistics import Scores
from mixmfl.research.benchmark.trainings import Trainings, hierarchical_bootstrap, student_interval

OWN = {"north": ("t1",), "south": ("t1", "t2")}
# Dice from t1, t2 and both: two cases in the north, one in the south without t2
OLD: dict[tuple[str, str], dict[tuple[str, ...], float]] = {
    ("north", "p1"): {("t1",): 0.2, ("t2",): 0.4, ("t1", "t2"): 0.6},
    ("north", "p2"): {("t1",): 0.4, ("t2",): 0.6, ("t1", "t2"): 0.5},
    ("south", "p3"): {("t1",): 0.5},
}


def scores(seed: int, **methods: float) -> Scores:
    """Return scores of methods that are so much better than ``OLD`` in every prediction."""
    return Scores(
        [
            Row(method, seed, site, case, subset, "lesion", dice + more, 1.0)
            for method, more in methods.items()
            for (site, case), by_subset in OLD.items()
            for subset, dice in by_subset.items()
        ],
        OWN,
    )


def test_points_are_means_over_subsets_then_cases_then_sites() -> None:
    trainings = Trainings({"A0": scores(0, old=0.0)})
    assert trainings.points("old", "own").mean == pytest.approx((30 + 50) / 2)
    assert trainings.points("old", "subsets").mean == pytest.approx(((40 + 50) / 2 + 50) / 2)
    # the southern case has one modality: nothing of it lacks any
    assert trainings.points("old", "lacking").mean == pytest.approx((30 + 50) / 2)
    assert trainings.points("old", "single").mean == pytest.approx(((30 + 50) / 2 + 50) / 2)
    assert trainings.points("old", "full").mean == pytest.approx(((60 + 50) / 2 + 50) / 2)
    assert trainings.site_points("old", "north").mean == pytest.approx(30)
    assert trainings.subset_points("old", ("t1", "t2")).mean == pytest.approx(55)


def test_differences_are_over_trainings_that_both_methods_did() -> None:
    trainings = Trainings(
        {
            "A0": scores(0, old=0.0, new=0.1),
            "A1": scores(1, old=0.0, new=-0.02),
            "C0": scores(0, old=0.0, new=0.04),
            "C1": scores(1, old=0.0),  # not yet trained
        }
    )
    assert trainings.of("old", "new") == [("A0", 0), ("A1", 1), ("C0", 0)]
    difference = trainings.difference("new", "old", "subsets")
    assert (difference.trainings, difference.better) == (3, 2)
    assert difference.bootstrap.mean == pytest.approx(4)  # (10 - 2 + 4) / 3
    # all cases of a training differ alike, so that only trainings vary: 1 of 27 draws is all -2
    assert difference.bootstrap.low == pytest.approx(-2)
    assert difference.bootstrap.high == pytest.approx(10)
    # Student: standard deviation 6, t(2 degrees of freedom) = 4.3027
    assert difference.student.low == pytest.approx(4 - 4.3027 * 6 / math.sqrt(3), abs=1e-3)
    assert difference.widest.low == difference.student.low
    assert difference.widest.high == difference.student.high


def test_cases_are_drawn_within_their_site_and_trainings_as_a_whole() -> None:
    rng = np.random.default_rng(0)
    one_site = hierarchical_bootstrap([{"north": np.array([0.0, 4.0])}], rng)
    assert (one_site.mean, one_site.low, one_site.high) == (2, 0, 4)  # each end in 1 of 4 draws
    # a site's only case is always drawn: the ends are (0 + 8) / 2 and (4 + 8) / 2
    both = hierarchical_bootstrap([{"north": np.array([0.0, 4.0]), "south": np.array([8.0])}], rng)
    assert (both.mean, both.low, both.high) == (5, 4, 6)
    # sites and trainings count alike, however many cases they have
    many = [{"north": np.zeros(9)}, {"north": np.array([6.0])}]
    trainings = hierarchical_bootstrap(many, rng)
    assert (trainings.mean, trainings.low, trainings.high) == (3, 0, 6)


def test_what_is_not_known_is_left_out() -> None:
    nothing = hierarchical_bootstrap([{}], np.random.default_rng(0))
    assert math.isnan(nothing.mean)
    alone = student_interval([3.0, math.nan])
    assert alone.mean == 3
    assert math.isnan(alone.low)
    one = Trainings({"A0": scores(0, old=0.0, new=0.1)}).difference("new", "old", "own")
    assert one.bootstrap.low == pytest.approx(10)
    assert math.isnan(one.widest.low)  # one training says nothing of others
    with pytest.raises(DataError, match="no trainings to compare"):
        Trainings({})


def test_the_worst_addition_is_over_cases_that_have_both_subsets() -> None:
    worst = Trainings({"A0": scores(0, old=0.0)}).worst_addition("old")
    assert worst is not None
    # t1 to t2: p1 gains 20, p2 loses 10; t2 to t1: they gain 40 and 10, and p3 has no t2
    assert (worst.subset, worst.added) == (("t2",), "t1")
    assert worst.points.mean == pytest.approx((-20 + 10) / 2)
    assert worst.points.low == pytest.approx(-20)
    assert worst.points.high == pytest.approx(10)
    single = [Row("old", 0, "north", "p1", ("t1",), "lesion", 0.5, 1.0)]
    assert Trainings({"A0": Scores(single, OWN)}).worst_addition("old") is None
