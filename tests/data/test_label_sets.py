"""Sites that label different classes, or the same with other values."""

import numpy as np
import pytest

from mixmfl.core.errors import DataError
from mixmfl.data.label_sets import (
    agree_on_labels,
    describe_sets,
    known_indices,
    labels_each,
    map_labels,
)
from mixmfl.data.labels import Labels

LESION = Labels({"background": 0, "lesion": 1})
STROKE = Labels({"background": 0, "stroke": 1})
BRATS = Labels(
    {"background": 0, "whole tumour": (1, 2, 4), "core": (1, 4), "enhancing": 4}, (2, 1, 4)
)


def read(own: Labels, federation: Labels, values: list[int]) -> list[int]:
    """Return which of the federation's values the site's values are."""
    indices = map_labels(own, federation).to_indices(np.array(values))
    return [int(value) for value in federation.to_values(indices)]


def test_sites_that_label_the_same_keep_their_description() -> None:
    other = Labels({"background": 0, "lesion": 1}, read_as={5: 0})
    assert agree_on_labels({"north": other, "south": LESION}) == LESION
    assert agree_on_labels({"north": BRATS, "south": BRATS}) == BRATS
    same = map_labels(BRATS, BRATS)
    assert same.labelled is None
    assert same.index_of == {0: 0, 1: 1, 2: 2, 4: 3}
    assert describe_sets({"north": BRATS}, BRATS) == []


def test_the_union_has_every_name_once_and_keeps_values_that_are_free() -> None:
    sites = {
        "east": Labels({"background": 0, "tumour": 4, "stroke": 2}),
        "north": Labels({"background": 0, "tumour": 1}),
        "south": Labels({"background": 0, "haemorrhage": 4, "ignore": 9}),
    }
    union = agree_on_labels(sites)
    assert union.declared == {
        "background": 0, "tumour": 4, "stroke": 2, "haemorrhage": 1, "ignore": 9
    }  # fmt: skip
    assert read(sites["north"], union, [0, 1]) == [0, 4]
    assert read(sites["south"], union, [0, 4, 9]) == [0, 1, 9]
    assert map_labels(sites["east"], union).labelled == ("tumour", "stroke")
    lines = describe_sets(sites, union)
    assert lines[1] == "  tumour (4): east as 4; north as 1"


def test_sites_that_swapped_two_values_are_brought_together_by_names() -> None:
    north = Labels({"background": 0, "oedema": 1, "core": 2})
    south = Labels({"background": 0, "core": 1, "oedema": 2})
    union = agree_on_labels({"north": north, "south": south})
    assert union == north
    assert read(south, union, [0, 1, 2]) == [0, 2, 1]
    assert map_labels(south, union).labelled is None


def test_a_site_that_labels_one_region_is_read_as_the_least_that_it_can_be() -> None:
    whole = Labels({"background": 0, "whole tumour": 1})
    union = agree_on_labels({"north": BRATS, "south": whole})
    assert union == BRATS
    assert read(whole, union, [0, 1]) == [0, 2]  # 2 is in the whole tumour alone
    assert map_labels(whole, union).labelled == ("whole tumour",)
    assert labels_each(union, ("whole tumour",)) == [True, False, False]


def test_classes_that_a_site_cannot_tell_apart_are_not_known_there() -> None:
    assert known_indices(BRATS, ("whole tumour",)) == (True, False, False, False)
    assert known_indices(BRATS, ("whole tumour", "core")) == (True, False, True, False)
    assert known_indices(BRATS, None) == (True,) * 4
    plain = Labels({"background": 0, "tumour": 1, "stroke": 2})
    assert known_indices(plain, ("stroke",)) == (True, False, True)


def test_regions_of_one_site_and_a_label_of_another_make_regions() -> None:
    union = agree_on_labels({"north": BRATS, "south": STROKE})
    assert union.declared == {
        "background": 0, "whole tumour": (1, 2, 4), "core": (1, 4), "enhancing": 4, "stroke": 3
    }  # fmt: skip
    assert union.regions_class_order == (2, 1, 4, 3)
    assert read(STROKE, union, [0, 1]) == [0, 3]
    assert read(BRATS, union, [0, 1, 2, 4]) == [0, 1, 2, 4]


def test_what_the_federation_says_decides_how_sites_regions_overlap() -> None:
    sites = {
        "north": Labels({"background": 0, "core": 1}),
        "south": Labels({"background": 0, "whole": 1}),
    }
    apart = agree_on_labels(sites)
    assert apart.declared == {"background": 0, "core": 1, "whole": 2}
    described = Labels({"background": 0, "whole": (1, 2), "core": 2}, (1, 2))
    assert agree_on_labels(sites, described) == described
    assert read(sites["north"], described, [0, 1]) == [0, 2]
    assert read(sites["south"], described, [0, 1]) == [0, 1]


def test_values_that_mean_one_class_are_one_class_of_the_union() -> None:
    sites = {"north": Labels({"background": 0, "lesion": (1, 2, 4)}, (1,)), "south": LESION}
    union = agree_on_labels({**sites, "west": STROKE})
    assert union.declared == {"background": 0, "lesion": 1, "stroke": 2}
    assert read(sites["north"], union, [0, 1, 2, 4]) == [0, 1, 1, 1]


def test_names_that_differ_in_spelling_alone_are_asked_about() -> None:
    with pytest.raises(DataError, match=r"north labels 'Whole-tumour', site south 'whole tumour'"):
        agree_on_labels(
            {
                "north": Labels({"background": 0, "Whole-tumour": 1}),
                "south": Labels({"background": 0, "whole tumour": 1, "core": 2}),
            }
        )


def test_labels_that_the_federation_does_not_know_are_named() -> None:
    with pytest.raises(DataError, match="labels 'stroke' are not among 'lesion'; if one of these"):
        map_labels(STROKE, LESION)
    ignoring = Labels({"background": 0, "lesion": 1, "ignore": 2})
    with pytest.raises(DataError, match="ignores the value 2, and 'ignore' is declared for no"):
        map_labels(ignoring, LESION)
    apart = Labels({"background": 0, "whole": (1, 2), "core": 2}, (1, 2))
    alone = Labels({"background": 0, "core": 1, "whole": 2})
    with pytest.raises(DataError, match="value 1 is in core and in no other of core, whole"):
        map_labels(alone, apart)


def test_the_largest_descriptions_are_brought_together_in_a_moment() -> None:
    regions = {f"r{n}": tuple(range(1, 1001)) for n in range(1000)}
    large = Labels({"background": 0, **regions}, tuple(1 for _ in regions))
    union = agree_on_labels({"north": large, "south": LESION, "west": STROKE})
    assert len(union.foreground) == 1002
    assert read(STROKE, union, [0, 1]) == [0, 3]


def test_a_value_that_no_site_declares_is_refused() -> None:
    with pytest.raises(DataError, match="label values 2, but only 0, 1 are declared"):
        map_labels(STROKE, Labels({"background": 0, "lesion": 1, "stroke": 2})).to_indices(
            np.array([2])
        )
