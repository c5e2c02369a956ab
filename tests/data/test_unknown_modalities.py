from collections.abc import Callable
from pathlib import Path

import pytest
from small import write_case

from mixmfl.core.errors import DataError
from mixmfl.core.files import write_json
from mixmfl.data.cases import find_cases
from mixmfl.data.modalities import Modalities
from mixmfl.data.unknown_modalities import check_most_are_known
from mixmfl.planning.site_folders import find_site


def hearts(folder: Path, names: tuple[str, ...], cases: int = 2) -> None:
    """Make files that are found by their names alone; nobody opens them."""
    for number in range(cases):
        for name in (*names, "seg"):
            file = folder / f"p{number}" / f"{name}.nii.gz"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()


def check(folder: Path, *aliases: str) -> None:
    modalities = Modalities().with_aliases(aliases)
    check_most_are_known([find_cases(folder, modalities)], modalities)


def test_images_that_are_mostly_unknown_stop_and_the_aliases_are_named(tmp_path: Path) -> None:
    hearts(tmp_path, ("T2", "LGE", "view-SA"))
    with pytest.raises(
        DataError,
        match=r"4 images are of no modality that is known \('lge' in 2, 'sa' in 2; such as "
        r".*p0/LGE\.nii\.gz\), and 2 are\. Give --alias lge=lge --alias sa=sa to train",
    ):
        check(tmp_path)
    check(tmp_path, "lge=lge", "sa=sa")
    check(tmp_path, "de=lge")  # no longer more than half


def test_a_minority_and_what_is_known_to_be_no_image_stop_nothing(tmp_path: Path) -> None:
    hearts(tmp_path, ("T1", "T2", "LGE", "brain_mask", "T1_bet", "T2_bet", "bet_mask"))
    for name in ("tissues", "warps", "priors"):
        for number in range(2):
            file = tmp_path / f"p{number}" / "derivatives" / f"{name}.nii.gz"
            file.parent.mkdir(exist_ok=True)
            file.touch()
    check(tmp_path)


def test_a_site_of_unknown_images_alone_says_which_alias_takes_them(tmp_path: Path) -> None:
    for number in range(12):
        (tmp_path / f"patient{number:03}_frame01.nii.gz").touch()
    with pytest.raises(DataError, match=r"'frame01' in 12; .* Give --alias frame01=frame01 to"):
        find_site(tmp_path)


def test_channels_of_unknown_names_are_called_by_these(tmp_path: Path) -> None:
    (tmp_path / "imagesTr").mkdir()
    for case in ("a", "b"):
        for number in range(3):
            (tmp_path / "imagesTr" / f"{case}_{number:04}.nii.gz").touch()
    write_json(tmp_path / "dataset.json", {"channel_names": {"0": "T2", "1": "LGE", "2": "bSSFP"}})
    with pytest.raises(DataError, match=r"--alias bssfp=bssfp --alias lge=lge|--alias lge=lge --a"):
        check(tmp_path)
    check(tmp_path, "lge=lge", "cine=bssfp")


def test_names_without_a_common_word_are_to_be_renamed(tmp_path: Path) -> None:
    for name in ("anna", "berta", "carla"):
        (tmp_path / f"{name}.nii").touch()
    with pytest.raises(DataError, match=r"no word is in several .* Name them after their modality"):
        check(tmp_path)


def test_planning_stops(
    tmp_path: Path, command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    write_case(tmp_path / "data" / "north" / "p1", ("t1",), 0)
    for word in ("lge", "sax"):
        (tmp_path / "data" / "north" / "p1" / f"{word}.nii.gz").touch()
    write_json(tmp_path / "data" / "dataset.json", {"labels": {"background": 0, "lesion": 1}})
    data, work = tmp_path / "data", tmp_path / "work"
    assert command("mixmfl_plan_preprocess", "-i", data, "-o", work) == 2
    assert "2 images are of no modality that is known" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()
