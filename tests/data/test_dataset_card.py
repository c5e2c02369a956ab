"""Where a data set comes from, as its dataset.json says."""

import json
from pathlib import Path

import pytest

from mixmfl.core.errors import DataError
from mixmfl.data.body_parts import ANATOMIES, is_elsewhere, regions
from mixmfl.data.dataset_card import (
    MOST_TEXT,
    DatasetCard,
    Segment,
    find_card,
    read_card,
    subjects_of,
)


def test_the_fields_of_nnunet_are_read_as_people_write_them() -> None:
    card = read_card(
        {
            "labels": {"background": 0},
            "description": "Gliomas,\n  before surgery",
            "reference": ["a paper", "another"],
            "license": "CC-BY-SA 4.0",
            "name": "",
            "Anatomy": "left alone",
        },
        "dataset.json",
    )
    assert card == DatasetCard(
        description="Gliomas, before surgery",
        reference="a paper; another",
        licence="CC-BY-SA 4.0",
    )
    nobody = {"licence": "Whoever converted this dataset was lazy and didn't look it up!"}
    assert read_card(nobody, "dataset.json").licence is None


def test_long_and_unprintable_text_is_one_short_line() -> None:
    card = read_card({"description": "a\x1b[2J" + "b" * 5000}, "dataset.json")
    assert card.description is not None
    assert card.description.startswith("a\\x1b[2Jbbb")
    assert len(card.description) == MOST_TEXT


@pytest.mark.parametrize(
    ("content", "needed"),
    [
        ({"subjects": "phantoms"}, "'phantoms'; it must be patients or simulated"),
        ({"anatomy": "soul"}, "anatomy: is 'soul'; it must be abdomen or"),
        ({"licence": 4}, "licence: is 4; text is needed"),
        (
            {"segments": {"core": {"type": "Neoplasm"}}},
            "core: type: is 'Neoplasm'; it must be a SN",
        ),
        ({"segments": {"core": {"kind": "1"}}}, "unknown fields ['kind']"),
    ],
)
def test_a_wrong_field_is_named_with_what_is_needed(
    content: dict[str, object], needed: str
) -> None:
    with pytest.raises(DataError, match=r"^north/dataset.json") as refused:
        read_card(content, "north/dataset.json")
    assert needed in str(refused.value)


def test_a_site_says_more_than_the_federation_beside_it(tmp_path: Path) -> None:
    site = tmp_path / "north"
    site.mkdir()
    about = {"anatomy": "Brain", "disease": "glioma", "subjects": "patients"}
    (tmp_path / "dataset.json").write_text(json.dumps(about))
    (site / "dataset.json").write_text(
        json.dumps({"disease": "metastasis", "segments": {"core": {"type": "108369006"}}})
    )
    segments = {"core": Segment("108369006")}
    assert find_card(site) == DatasetCard(
        anatomy="brain", disease="metastasis", subjects="patients", segments=segments
    )


def test_what_cases_are_of_is_said_at_most_three_folders_up(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c" / "d"
    deep.mkdir(parents=True)
    (tmp_path / "dataset.json").write_text('{"subjects": "simulated"}')
    assert subjects_of(deep.parent) == "simulated"
    assert subjects_of(deep) == "unknown"


def test_what_lies_in_a_folder_that_a_path_leaves_again_says_nothing(tmp_path: Path) -> None:
    for name in ("here", "cases"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "dataset.json").write_text('{"subjects": "simulated"}')
    assert subjects_of(tmp_path / "here" / ".." / "cases") == "unknown"


def test_parts_of_the_body_agree_where_they_share_a_region() -> None:
    assert is_elsewhere("PROSTATE", ["brain"])
    assert is_elsewhere("breast", ["brain", "head"])
    assert not is_elsewhere("PELVIS", ["prostate"])
    assert not is_elsewhere("HEAD/NECK", ["brain"])
    assert not is_elsewhere("WHOLEBODY", ["liver"])
    assert not is_elsewhere("Kopf", ["prostate"])  # not known, so not surely elsewhere
    assert not is_elsewhere("BRAIN", [])
    assert all(map(regions, ANATOMIES))
