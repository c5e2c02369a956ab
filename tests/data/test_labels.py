from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixmfl.core.errors import DataError
from mixmfl.core.files import write_json
from mixmfl.data.labels import Labels, read_site_labels

BRATS = {
    "labels": {"background": 0, "whole tumour": [1, 2, 4], "core": [1, 4], "enhancing": [4]},
    "regions_class_order": [2, 1, 4],
}


LESION = Labels({"background": 0, "lesion": 1})


def read(content: dict[str, Any]) -> Labels:
    return Labels.from_dataset_json(content, "north/dataset.json")


def test_plain_labels_with_gaps_become_consecutive_indices_and_back() -> None:
    labels = read({"labels": {"background": 0, "oedema": 2, "necrosis": 1, "enhancing": 4}})
    assert labels.values == (0, 1, 2, 4)
    assert labels.foreground == {"oedema": (2,), "necrosis": (1,), "enhancing": (4,)}
    assert not labels.has_regions
    in_file = np.array([[0, 4], [2, 1]], dtype=np.int32)
    indices = labels.to_indices(in_file)
    assert indices.tolist() == [[0, 3], [2, 1]]
    assert indices.dtype == np.int16
    assert labels.to_values(indices).tolist() == in_file.tolist()


def test_regions_keep_their_values_in_the_order_declared() -> None:
    labels = read(BRATS)
    assert labels.has_regions
    assert labels.values == (0, 1, 2, 4)
    assert labels.foreground == {"whole tumour": (1, 2, 4), "core": (1, 4), "enhancing": (4,)}
    assert labels.regions_class_order == (2, 1, 4)
    assert labels.to_indices(np.array([4, 1, 2, 0])).tolist() == [3, 1, 2, 0]


def test_the_ignore_value_is_the_last_index_and_no_class() -> None:
    labels = read({"labels": {"background": 0, "lesion": 7, "ignore": 3}})
    assert labels.ignore == 3
    assert labels.values == (0, 7)
    assert labels.to_indices(np.array([7, 3, 0])).tolist() == [1, 2, 0]
    assert labels.to_values(np.array([1, 2, 0])).tolist() == [7, 3, 0]
    assert labels.consecutive().declared == {"background": 0, "lesion": 1, "ignore": 2}


def test_the_consecutive_description_is_the_same_in_indices() -> None:
    assert read(BRATS).consecutive().to_json() == {
        "labels": {"background": 0, "whole tumour": [1, 2, 3], "core": [1, 3], "enhancing": 3},
        "regions_class_order": [2, 1, 3],
    }


def test_a_description_survives_json() -> None:
    for content in (BRATS, {"labels": {"background": 0, "lesion": 1, "ignore": 2}}):
        labels = read(content)
        assert read(labels.to_json()) == labels


def test_an_order_without_regions_means_nothing() -> None:
    content = {"labels": {"background": 0, "lesion": 1}, "regions_class_order": [1]}
    assert read(content).regions_class_order is None


@pytest.mark.parametrize("strange", [3, 9, -1, 70000])
def test_an_undeclared_value_is_named(strange: int) -> None:
    with pytest.raises(DataError, match=rf"label values {strange}, but only 0, 1, 2, 4 are"):
        read(BRATS).to_indices(np.array([0, 1, strange]))


def test_many_undeclared_values_are_cut_short() -> None:
    with pytest.raises(DataError, match=r"5, 6, .*, 14, … \(20 in all\)"):
        read(BRATS).to_indices(np.arange(5, 25))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, '"labels" is missing or empty; write it as'),
        ({"labels": []}, '"labels" is missing or empty'),
        ({"labels": {"0": "background", "1": "lesion"}}, "the form before nnU-Net v2"),
        ({"labels": {"lesion": 1}}, '"background" is not declared; it must be declared as 0'),
        ({"labels": {"background": 1, "lesion": 2}}, '"background" is 1; it must be'),
        ({"labels": {"background": 0}}, "names nothing but background"),
        (
            {"labels": {"background": 0, "lesion": 1.5}},
            "lesion: is 1.5; it must be a whole",
        ),
        ({"labels": {"background": 0, "lesion": True}}, "labels: lesion: is True; it must be"),
        (
            {"labels": {"background": 0, "lesion": -1}},
            "a whole number from 0 to 65535",
        ),
        ({"labels": {"background": 0, "lesion": 65536}}, "labels: lesion: is 65536; it must"),
        ({"labels": {"background": 0, "lesion": []}}, "lesion: has 0 entries; it must have from 1"),
        ({"labels": {"background": 0, "lesion": 0}}, r"'lesion' is \[0\]; 0 is background and"),
        ({"labels": {"background": 0, "a": 1, "b": 1}}, "'a' and 'b' both have value 1"),
        ({"labels": {"background": 0, "a": [0, 1]}}, r"label 'a' is \[0, 1\]"),
        ({"labels": {"background": 0, "a": 1, "ignore": [2, 3]}}, "must be a single value"),
        ({"labels": {"background": 0, "a": 1, "ignore": 1}}, "which another label uses"),
        ({"labels": {"background": 0, "a": [1, 2], "b": 2}}, r"such as \[1, 2\]"),
        (
            {"labels": {"background": 0, "whole": [1, 2, 4], "core": [1, 4], "enhancing": 4}},
            r"such as \[2, 1, 4\]",
        ),
        (
            {"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1]},
            r"\"regions_class_order\" is \[1\]; the regions \['a', 'b'\] need one value each",
        ),
        (
            {"labels": {"background": 0, "a": [1, 2], "b": 2}, "regions_class_order": [1, 1]},
            r"paints 1 for region 'b', which holds the values \[2\] only",
        ),
    ],
)
def test_a_faulty_description_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(content)
    assert str(caught.value).startswith("north/dataset.json: ")


def test_the_difference_of_two_descriptions_is_named() -> None:
    mine = read({"labels": {"background": 0, "lesion": 1}})
    assert mine.difference(mine) is None
    other = read({"labels": {"background": 0, "lesion": 2}})
    assert mine.difference(other) == "label 'lesion' is 1 against 2"
    more = read({"labels": {"background": 0, "lesion": 1, "ignore": 2}})
    assert mine.difference(more) == "label 'ignore' is not declared against 2"


def test_order_matters_for_regions_alone() -> None:
    one = read({"labels": {"background": 0, "a": 1, "b": 2}})
    two = read({"labels": {"background": 0, "b": 2, "a": 1}})
    assert one.difference(two) is None
    labels = {"background": 0, "core": [1, 4], "whole tumour": [1, 2, 4], "enhancing": 4}
    listed = read({"labels": labels, "regions_class_order": [1, 2, 4]})
    assert "regions are listed as ['whole tumour', 'core'" in str(read(BRATS).difference(listed))
    painted = read({**BRATS, "regions_class_order": [2, 4, 4]})
    assert read(BRATS).difference(painted) == ("regions_class_order is [2, 1, 4] against [2, 4, 4]")


def test_a_site_describes_its_labels_or_the_federation_does(tmp_path: Path) -> None:
    site = tmp_path / "north"
    site.mkdir()
    with pytest.raises(DataError, match=r"north: what do its labels mean\? Needed(.|\n)*\n.*les"):
        read_site_labels(site, tmp_path)
    write_json(tmp_path / "dataset.json", {"Labels": LESION.to_json()})
    with pytest.raises(DataError, match=r'labels mean\? .*/dataset.json: no "labels" in it. Need'):
        read_site_labels(site, tmp_path)
    write_json(tmp_path / "dataset.json", LESION.to_json())
    assert read_site_labels(site, tmp_path) == LESION
    write_json(site / "dataset.json", {"channel_names": {"0": "T1"}})
    assert read_site_labels(site, tmp_path) == LESION
    write_json(site / "dataset.json", {"labels": {"background": 0, "tumour": 1}})
    assert read_site_labels(site, tmp_path) == Labels({"background": 0, "tumour": 1})


def test_a_label_map_gives_other_names_and_makes_several_labels_one() -> None:
    described = {"background": 0, "necrosis": 1, "oedema": 2, "enhancing": 4, "vessel": 5}
    lesion = {**dict.fromkeys(("necrosis", "oedema", "enhancing"), "lesion")}
    labels = read(
        {"labels": described, "label_map": {**lesion, "vessel": "background", "7": "ignore"}}
    )
    assert labels.declared == {"background": 0, "lesion": 1, "ignore": 7}
    assert labels.to_indices(np.array([0, 1, 2, 4, 5, 7])).tolist() == [0, 1, 1, 1, 0, 2]
    with pytest.raises(DataError, match="label values 3, but only 0, 1, 2, 4, 5, 7 are declared"):
        labels.to_indices(np.array([3]))
    assert read(labels.to_json()) == labels


def test_a_label_map_renames_regions() -> None:
    labels = read({**BRATS, "label_map": {"whole tumour": "lesion", "9": "background"}})
    assert list(labels.foreground) == ["lesion", "core", "enhancing"]
    assert labels.regions_class_order == (2, 1, 4)
    assert labels.to_indices(np.array([9, 4])).tolist() == [0, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {**LESION.to_json(), "label_map": ["lesion"]},
            r"label_map: an object .* \['lesion'\]",
        ),
        ({**LESION.to_json(), "label_map": {"lesion": 3}}, "lesion: is 3; it must be printable"),
        ({**LESION.to_json(), "label_map": {"tumour": "x"}}, "names 'tumour', which is neither"),
        ({**LESION.to_json(), "label_map": {"1": "x"}}, "names '1', which is neither"),
        ({**LESION.to_json(), "label_map": {"background": "x"}}, "names 'background', which"),
        ({**LESION.to_json(), "label_map": {"lesion": "background"}}, "leaves no label but"),
        (
            {**LESION.to_json(), "label_map": {"9" * 5000: "x"}},
            "name: is '9999.*must be printable",
        ),
        ({**LESION.to_json(), "label_map": {"9" * 99: "x"}}, "names '9999.*which is neither"),
        (
            {**LESION.to_json(), "label_map": {"7": "a/b"}},
            "it must be printable text without < > /",
        ),
        ({**BRATS, "label_map": {"core": "enhancing"}}, "where there are regions it only gives"),
        ({**BRATS, "label_map": {"core": "ignore"}}, "adds labels to 'ignore'; where there are"),
        ({**BRATS, "label_map": {"9": "core"}}, "reads 9 as 'core', which is a region"),
    ],
)
def test_a_faulty_label_map_is_refused(content: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(content)


def test_a_description_has_no_more_values_than_an_atlas() -> None:
    regions = {str(n): list(range(1 + 20 * n, 21 + 20 * n)) for n in range(1, 52)}
    order = [values[0] for values in regions.values()]
    with pytest.raises(DataError, match="regions have 1020 values; 1000 at most"):
        read({"labels": {"background": 0, **regions}, "regions_class_order": order})


def test_plans_describe_labels_as_a_dataset_json_does() -> None:
    assert read({"format": 1, "labels": BRATS}) == read(BRATS)
