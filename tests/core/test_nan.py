import math

import pytest

from mixmfl.core.nan import defined, deviation, mean, or_nan, or_none

NAN = math.nan


def test_undefined_numbers_count_neither_in_the_mean_nor_in_the_deviation() -> None:
    assert defined([NAN, 2.0, NAN, 4.0]) == [2.0, 4.0]
    assert mean([NAN, 2.0, NAN, 4.0]) == 3.0
    assert deviation([NAN, 2.0, NAN, 4.0]) == pytest.approx(math.sqrt(2))  # both 1 off; n - 1 is 1


def test_of_nothing_there_is_no_mean_and_of_one_number_no_deviation() -> None:
    assert math.isnan(mean([]))
    assert math.isnan(mean([NAN]))
    assert mean([5.0]) == 5.0
    assert math.isnan(deviation([5.0, NAN]))


def test_the_order_of_the_numbers_changes_no_bit_of_their_mean() -> None:
    # added one after the other, the last order gives 0: 1 is lost beside 1e16
    assert mean([1e16, -1e16, 1.0]) == mean([1e16, 1.0, -1e16]) == 1 / 3


def test_an_undefined_number_is_null_in_json_and_comes_back() -> None:
    assert or_none(NAN) is None
    assert or_none(0.0) == 0.0
    assert math.isnan(or_nan(None))
    assert or_nan(0.0) == 0.0
