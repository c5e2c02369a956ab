"""Finding files and writing them."""

from pathlib import Path

import pytest

from mixmfl.core.errors import DataError
from mixmfl.core.files import clear_unfinished, files_below, read_json
from mixmfl.core.strict_json import MOST_BYTES


def test_links_to_folders_of_links_have_an_end(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "t1.nii").touch()
    for number in range(1, 30):  # 2^29 ways
        folder = tmp_path / str(number)
        folder.mkdir()
        for link in "ab":
            (folder / link).symlink_to(tmp_path / str(number - 1))
    assert len(list(files_below(tmp_path / "6"))) == 64
    with pytest.raises(
        DataError, match=r"links lead to .*/\d+ in more than 100 ways; .* Remove links"
    ):
        list(files_below(tmp_path / "29"))


def test_folders_in_folders_have_an_end(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 63)
    deep.mkdir(parents=True)
    (deep / "t1.nii").touch()
    assert list(files_below(tmp_path)) == [deep / "t1.nii"]
    (deep / "d").mkdir()
    with pytest.raises(DataError, match="folders in each other, more than 64 deep"):
        list(files_below(tmp_path))


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path) -> None:
    kept, folder = tmp_path / "kept", tmp_path / "folder"
    kept.mkdir()
    folder.mkdir()
    (folder / ".writing-x").symlink_to(kept)
    clear_unfinished(folder)
    assert kept.is_dir()
    assert not list(folder.iterdir())


def test_settings_are_not_read_without_end_and_records_of_many_cases_are(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text('{"cases": [' + "0," * 2**21 + "0]}")
    with pytest.raises(DataError, match=r"policy\.json: .*more than 4194304 bytes of JSON"):
        read_json(file)
    assert len(read_json(file, most_bytes=MOST_BYTES)["cases"]) == 2**21 + 1
