"""A folder of cases made into a federation: who gets which case, who sees what, what is written."""

import dataclasses
import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mixmfl.core.errors import DataError
from mixmfl.data.cases import Case, FolderCases, find_cases
from mixmfl.data.grid import Grid
from mixmfl.data.image import write_image
from mixmfl.data.labels import Labels
from mixmfl.data.partition import (
    Settings,
    Split,
    assign_cases,
    choose_modalities,
    choose_tests,
    read_partition,
    split_cases,
    write_federation,
)
from mixmfl.data.patients import patient_of
from mixmfl.planning.site_folders import find_sites

Command = Callable[..., int]
Output = pytest.CaptureFixture[str]

ALL = ("flair", "t1", "t1c", "t2")
BRATS_2021 = {"flair": "flair", "t1": "t1", "t1c": "t1ce", "t2": "t2"}
LABELS = {
    "labels": {"background": 0, "whole_tumour": [1, 2, 4], "tumour_core": [1, 4], "enhancing": 4},
    "regions_class_order": [2, 1, 4],
}
GRID = Grid((2, 2, 2), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def case(name: str, modalities: Sequence[str] = ALL) -> Case:
    return Case(name, {m: Path(f"{name}_{m}.nii.gz") for m in modalities}, Path(f"{name}_seg.nii"))


def found(*cases: Case) -> FolderCases:
    return FolderCases(cases, (), "by hand", None, Path("cases"))


def write_brats(folder: Path, name: str, words: Sequence[str]) -> None:
    (folder / name).mkdir(parents=True)
    for number, word in enumerate((*words, "seg")):
        array = np.full(GRID.shape, number, dtype=np.uint8)
        write_image(folder / name / f"{name}_{word}.nii.gz", array, GRID)


@pytest.fixture
def brats(tmp_path: Path) -> Path:
    """Return a download of twelve cases, in FeTS' layout."""
    folder = tmp_path / "brats"
    for number in range(12):
        write_brats(folder, f"FeTS2022_{number:05d}", list(BRATS_2021.values()))
    (folder / "dataset.json").write_text(json.dumps(LABELS))
    return folder


def partition(folder: Path, site_of: Mapping[int, str]) -> Path:
    rows = [f"{site},FeTS2022_{number:05d}" for number, site in site_of.items()]
    file = folder / "partitioning_1.csv"
    file.write_text("\n".join(["Partition_ID,Subject_ID", *rows, ""]))
    return file


def cases_by_folder(federation: Path) -> dict[str, set[str]]:
    return {
        folder.name: {case.name for case in folder.iterdir()}
        for folder in federation.iterdir()
        if folder.is_dir()
    }


# --- who gets which case -----------------------------------------------------------------------


def test_a_partition_says_the_sites_and_what_cannot_be_used_is_reported(
    brats: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    sites = {**dict.fromkeys(range(5), "1"), **dict.fromkeys(range(5, 10), "10"), 10: "3"}
    file = partition(tmp_path, {**sites, 77: "1"})
    out = tmp_path / "federation"
    assert command("mixmfl_split_federation", "-i", brats, "-o", out, "--partition", file) == 1
    folders = cases_by_folder(out)
    assert folders.keys() == {"site_01", "site_01_tests", "site_10", "site_10_tests"}
    assert folders["site_01"] | folders["site_01_tests"] == {f"FeTS2022_0000{n}" for n in range(5)}
    assert len(folders["site_10_tests"]) == 1  # 0.2 of 5
    output = capsys.readouterr()
    assert "left out 1 case: site_03 has 1, fewer than 5 (--least): FeTS2022_00010\n" in output.out
    assert f"left out 1 case: the partition {file} does not name it: FeTS2022_00011\n" in output.out
    assert output.err == ("1 subjects of the partition are not among the cases: FeTS2022_00077\n")


def test_a_refused_case_that_the_partition_names_is_not_called_unknown(
    brats: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    (brats / "FeTS2022_00000" / "FeTS2022_00000_seg.nii.gz").unlink()
    file = partition(tmp_path, dict.fromkeys(range(12), "1"))
    out = tmp_path / "federation"
    options = ("--partition", file, "--setting", "multi-modal")
    assert command("mixmfl_split_federation", "-i", brats, "-o", out, *options) == 1
    output = capsys.readouterr()
    assert "FeTS2022_00000: no label, which training needs" in output.out
    assert not output.err
    assert list(json.loads((out / "split.json").read_text())["refused"]) == ["FeTS2022_00000"]


def test_cases_are_dealt_to_sites_of_unequal_size() -> None:
    site_of = assign_cases({f"p{n}": f"p{n}" for n in range(20)}, sites=4, rng=rng())
    # 20 as 1 : 2 : 3 : 4
    assert Counter(site_of.values()) == {"site_1": 2, "site_2": 4, "site_3": 6, "site_4": 8}


def test_examinations_of_one_patient_stay_together() -> None:
    names = [f"BraTS-GLI-{n // 2:05d}-10{n % 2}" for n in range(20)]
    site_of = assign_cases({name: patient_of(name) for name in names}, sites=3, rng=rng())
    assert all(site_of[a] == site_of[b] for a, b in zip(names[::2], names[1::2], strict=True))


def test_a_patient_never_both_trains_and_tests() -> None:
    cases = [case(f"BraTS-GLI-{n // 2:05d}-10{n % 2}") for n in range(20)]
    for seed in range(10):
        tests = choose_tests(cases, ALL, 0.3, rng(seed))
        assert len(tests) == 6
        assert len({patient_of(name) for name in tests}) == 3


@pytest.mark.parametrize(
    ("cases", "share", "tests"),
    [(10, 0.2, 2), (5, 0.01, 1), (4, 0.01, 0), (10, 0, 0), (2, 0.9, 1), (1, 0.9, 0)],
)
def test_tests_are_a_share_and_at_least_one_of_five(cases: int, share: float, tests: int) -> None:
    own = [case(f"p{n}") for n in range(cases)]
    assert len(choose_tests(own, ALL, share, rng())) == tests


def test_only_complete_cases_test() -> None:
    cases = [case("a"), *(case(name, ("t1", "t2")) for name in "bcdefghij")]
    assert choose_tests(cases, ALL, 0.5, rng()) == {"a"}


def test_the_same_seed_gives_the_same_split_in_any_order_of_cases_and_another_another() -> None:
    cases = [case(f"p{n:02d}") for n in range(60)]
    split = split_cases(found(*cases), Settings())
    assert split_cases(found(*reversed(cases)), Settings()).to_json() == split.to_json()
    other = split_cases(found(*cases), Settings(seed=1))
    for one, another in zip(split.sites, other.sites, strict=True):
        # the tests have draws of their own, so all that a site has is compared
        assert {c.name for c in (*one.train, *one.tests)} != {
            c.name for c in (*another.train, *another.tests)
        }
    assert [site.holds for site in other.sites] != [site.holds for site in split.sites]


def test_the_three_settings_share_sites_and_tests() -> None:
    cases = found(*(case(f"p{n:02d}") for n in range(60)))

    def who(setting: str) -> list[tuple[list[str], list[str]]]:
        sites = split_cases(cases, Settings(setting)).sites
        return [([c.name for c in s.train], [c.name for c in s.tests]) for s in sites]

    assert who("mix-modal") == who("multi-modal") == who("cross-modal")


# --- who sees what -----------------------------------------------------------------------------


@pytest.mark.parametrize("sites", range(3, 16))
def test_in_mix_modal_every_modality_has_two_holders_and_no_site_all(sites: int) -> None:
    names = [f"site_{n:02d}" for n in range(sites)]
    for seed in range(5):
        held = choose_modalities(names, ALL, "mix-modal", {}, rng(seed))
        assert list(held) == names
        assert all(2 <= len(own) < 4 and own == tuple(sorted(own)) for own in held.values())
        assert min(Counter(m for own in held.values() for m in own)[m] for m in ALL) >= 2
        assert len(set(held.values())) == min(sites, 10)  # six pairs and four triples


def test_two_sites_in_mix_modal_hold_all_modalities_between_them() -> None:
    held = choose_modalities(["a", "b"], ALL, "mix-modal", {}, rng())
    assert {m for own in held.values() for m in own} == set(ALL)


def test_what_a_site_is_said_to_hold_counts_and_the_others_make_up_for_it() -> None:
    for seed in range(5):
        held = choose_modalities(["a", "b", "c"], ALL, "mix-modal", {"a": ("t1", "t2")}, rng(seed))
        assert held["a"] == ("t1", "t2")
        assert {"flair", "t1c"} <= set(held["b"]) & set(held["c"])


def test_in_cross_modal_each_site_holds_one_in_turn_and_in_multi_modal_all() -> None:
    names = ["a", "b", "c", "d", "e"]
    held = choose_modalities(names, ALL, "cross-modal", {}, rng())
    assert list(held.values()) == [("flair",), ("t1",), ("t1c",), ("t2",), ("flair",)]
    assert set(choose_modalities(names, ALL, "multi-modal", {}, rng()).values()) == {ALL}


def test_a_case_is_used_with_what_it_has_and_left_out_if_its_site_holds_none_of_it() -> None:
    cases = [*(case(f"p{n}") for n in range(5)), case("some", ("t1", "t1c")), case("none", ("t2",))]
    settings = Settings(sites=1, holds={"site_1": ("flair", "t1")})
    split = split_cases(found(*cases), settings)
    (site,) = split.sites
    seen = {c.name: tuple(c.images) for c in site.train}
    assert seen.pop("some") == ("t1",)
    assert set(seen.values()) == {("flair", "t1")}
    assert split.left_out == {"none": "site_1 holds flair, t1; it has none"}


def test_tests_go_without_a_modality_that_nobody_trains(
    brats: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    out = tmp_path / "federation"
    options = ("--setting", "cross-modal", "--sites", 2, "--least", 4)
    assert command("mixmfl_split_federation", "-i", brats, "-o", out, *options) == 0
    output = capsys.readouterr().out
    assert (
        "t1c, t2: held by no site: it is not trained, and test cases are used without it\n"
        in output
    )
    assert "flair, t1: held by one site only: there is nothing to average it with\n" in output
    (tested, *_) = find_cases(out / "site_2_tests").cases
    assert list(tested.images) == ["flair", "t1"]


# --- what is written ---------------------------------------------------------------------------


def test_a_site_has_links_to_what_it_holds_and_its_tests_have_all(
    brats: Path, tmp_path: Path, command: Command
) -> None:
    out = tmp_path / "federation"
    options = ("--sites", 2, "--least", 4, "--hold", "site_1:T1,t1ce", "--hold", "site_2:t2,flair")
    assert command("mixmfl_split_federation", "-i", brats, "-o", out, *options) == 0
    federation = find_sites(out)
    assert [site.name for site in federation.sites] == ["site_1", "site_2"]
    assert federation.sites[0].labels == Labels.from_dataset_json(LABELS, "LABELS")
    # 4 and 8 cases, of which 0.2 test, rounded
    assert [len(site.found.cases) for site in federation.sites] == [3, 6]
    assert [len(site.found.cases) for site in federation.tests] == [1, 2]
    for site, holds in zip(federation.sites, (["t1", "t1c"], ["flair", "t2"]), strict=True):
        assert all(list(own.images) == holds for own in site.found.cases)
    for site in (*federation.sites, *federation.tests):
        for own in site.found.cases:
            source = brats.resolve() / own.name
            assert isinstance(own.label, Path)
            assert own.label.is_symlink()
            for kind, file in ({**own.files, "seg": own.label}).items():
                word = BRATS_2021.get(kind, kind)
                assert file.readlink() == source / f"{own.name}_{word}.nii.gz"
    for tests in federation.tests:
        assert all(tuple(own.images) == ALL for own in tests.found.cases)


def test_split_json_says_where_every_case_is(brats: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "federation"
    file = partition(tmp_path, dict.fromkeys(range(11), "A"))
    options = ("--partition", file, "--setting", "multi-modal", "--seed", 3)
    assert command("mixmfl_split_federation", "-i", brats, "-o", out, *options) == 0
    record = json.loads((out / "split.json").read_text())
    assert record["cases"] == str(brats.resolve())
    assert record["settings"] == {
        "setting": "multi-modal",
        "partition": str(file.resolve()),
        "sites": 4,
        "holds": {},
        "test_share": 0.2,
        "least": 5,
        "seed": 3,
    }
    folders = cases_by_folder(out)
    assert record["sites"]["A"]["train"].keys() == folders["A"]
    assert record["sites"]["A"]["tests"].keys() == folders["A_tests"]
    assert list(record["left_out"]) == ["FeTS2022_00011"]


def test_links_lead_to_the_files_wherever_the_command_was_run(
    brats: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "current").symlink_to("brats")
    monkeypatch.chdir(tmp_path)
    options = ("--sites", 1, "--setting", "multi-modal")
    assert command("mixmfl_split_federation", "-i", "current", "-o", "out", *options) == 0
    links = [path.readlink() for path in (tmp_path / "out").rglob("*.nii.gz")]
    assert len(links) == 12 * 5
    assert all(brats.resolve() in link.parents for link in links)


def test_copies_stay_when_the_cases_go(brats: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "federation"
    options = ("--sites", 1, "--setting", "multi-modal", "--copy")
    assert command("mixmfl_split_federation", "-i", brats, "-o", out, *options) == 0
    assert not any(path.is_symlink() for path in out.rglob("*"))
    (first, *_) = find_cases(out / "site_1").cases
    source = brats / first.name / f"{first.name}_t1ce.nii.gz"
    assert first.files["t1c"].read_bytes() == source.read_bytes()


def test_names_of_brats_2023_and_numbers_of_nnunet_become_modality_names(tmp_path: Path) -> None:
    newer, numbered = tmp_path / "newer", tmp_path / "numbered"
    (newer / "BraTS-GLI-00000-000").mkdir(parents=True)
    for word in ("t1n", "t1c", "t2w", "t2f", "seg"):
        file = newer / "BraTS-GLI-00000-000" / f"BraTS-GLI-00000-000-{word}.nii.gz"
        write_image(file, np.zeros(GRID.shape, np.uint8), GRID)
    for place in ("imagesTr/p1_0000", "imagesTr/p1_0001", "labelsTr/p1"):
        write_image(numbered / f"{place}.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    described = {"channel_names": {"0": "T1", "1": "T2"}, **LABELS}
    (numbered / "dataset.json").write_text(json.dumps(described))
    for folder, modalities in ((newer, ALL), (numbered, ("t1", "t2"))):
        split = split_cases(find_cases(folder), Settings("multi-modal", sites=1, least=1))
        out = folder.with_suffix(".federation")
        write_federation(out, split, Labels({"background": 0, "lesion": 1}))
        (own,) = find_cases(out / "site_1", labels_needed=True).cases
        assert tuple(own.images) == modalities


def test_nothing_is_half_written(tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    split = split_cases(found(case("a"), case("b")), Settings("multi-modal", sites=1, least=1))
    (site,) = split.sites
    detached = Case("b", {"t1": cases / "b_t1.MHD"}, None)
    split = dataclasses.replace(
        split, sites=(dataclasses.replace(site, train=(site.train[0], detached)),)
    )
    with pytest.raises(DataError, match=r"b_t1\.MHD: is a header.*convert it to one file"):
        write_federation(tmp_path / "federation", split, Labels({"background": 0, "lesion": 1}))
    assert not list(tmp_path.iterdir())


def test_a_file_system_without_links_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    split = split_cases(found(case("a")), Settings("multi-modal", sites=1, least=1))
    with pytest.raises(DataError, match=r"cannot hold links \(Operation not permitted\); --copy"):
        write_federation(tmp_path / "out", split, Labels({"background": 0, "lesion": 1}))


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("out", "says"),
    [
        ("used", "holds mine.txt; nothing is overwritten. Name a new or empty folder"),
        ("used/mine.txt", "is a file, and no folder; needed is a folder"),
        ("brats/federation", "lies among the cases"),
    ],
)
def test_nothing_is_overwritten(
    out: str, says: str, brats: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    options = ("--setting", "multi-modal", "--sites", 1)
    assert command("mixmfl_split_federation", "-i", brats, "-o", tmp_path / out, *options) == 2
    assert says in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "used" / "mine.txt").read_text() == "mine"


def test_an_empty_folder_is_filled(brats: Path, tmp_path: Path, command: Command) -> None:
    (tmp_path / "empty").mkdir()
    out = tmp_path / "link"
    out.symlink_to("empty")
    options = ("--setting", "multi-modal", "--sites", 1)
    assert command("mixmfl_split_federation", "-i", brats, "-o", out, *options) == 0
    assert (tmp_path / "empty" / "split.json").is_file()


def test_labels_are_not_guessed(
    brats: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    (brats / "dataset.json").rename(tmp_path / "labels.json")
    out = tmp_path / "federation"
    arguments = ("mixmfl_split_federation", "-i", brats, "-o", out, "--sites", 1)
    assert command(*arguments, "--setting", "multi-modal") == 2
    output = capsys.readouterr().err
    assert f"{brats}: the meaning of its labels is unknown. Write a dataset.json there" in output
    shown = [json.loads(text) for text in re.findall(r"^  (\{.*?\]\})$", output, re.M | re.S)]
    assert shown[0] == LABELS
    assert Labels.from_dataset_json(shown[1], "message").values == (0, 1, 2, 3)
    assert not out.exists()
    given = ("--setting", "multi-modal", "--labels", tmp_path / "labels.json")
    assert command(*arguments, *given) == 0
    assert json.loads((out / "dataset.json").read_text()) == LABELS


def test_the_label_descriptions_of_the_recipe_are_those_of_the_message() -> None:
    page = (Path(__file__).parents[2] / "docs" / "brats.md").read_text(encoding="utf-8")
    shown = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", page, re.S)]
    assert [Labels.from_dataset_json(each, "docs").values for each in shown] == [
        (0, 1, 2, 4),
        (0, 1, 2, 3),
    ]
    assert shown[0] == LABELS


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--sites", 4), "12 cases dealt to 4 sites give one of them 1, and 5 are needed"),
        (("--sites", 2, "--least", 4, "--hold", "north:t1"), "no site 'north'; these are: site_1"),
        (("--sites", 1, "--hold", "site_1:pd"), "--hold site_1: no case has pd; the cases have"),
        (("--hold", "site_1:t1,what"), "SITE:MODALITY[,MODALITY] is needed"),
        (("--hold", "site_1:t1,T1w"), "SITE:MODALITY[,MODALITY] is needed, each modality once"),
        (("--hold", "site_1:t1", "--hold", "site_1:t2"), "site site_1 is given twice"),
        (("--hold", "site_1:t1", "--setting", "cross-modal"), "in mix-modal, not in cross-modal"),
        (("--partition", __file__, "--sites", 2), "give either --partition"),
        (("--partition", "absent.csv"), "absent.csv: there is no such file"),
        (("--sites", 0), "sites is 0"),
        (("--test-share", 1), "test share is 1.0"),
        (("--test-share", "nan"), "test share is nan"),
        (("--least", 0), "least is 0"),
        (("--seed", -1), "seed is -1"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: Sequence[Any], says: str, brats: Path, tmp_path: Path, command: Command, capsys: Output
) -> None:
    out = tmp_path / "federation"
    assert command("mixmfl_split_federation", "-i", brats, "-o", out, *options) == 2
    assert says in capsys.readouterr().err
    assert not out.exists()


def test_a_folder_without_labels_is_refused(
    tmp_path: Path, command: Command, capsys: Output
) -> None:
    write_image(tmp_path / "in" / "p1_t1.nii.gz", np.zeros(GRID.shape, np.uint8), GRID)
    assert command("mixmfl_split_federation", "-i", tmp_path / "in", "-o", tmp_path / "out") == 2
    assert "holds no case with a label" in capsys.readouterr().err


def split_with(settings: Settings, *cases: Case) -> Split:
    return split_cases(found(*cases), settings)


def test_two_modalities_are_too_few_to_deal_sets_of_them() -> None:
    with pytest.raises(DataError, match=r"only t1, t2: too few .* Choose for site_1 by --hold"):
        split_with(Settings(sites=1, least=1), case("a", ("t1", "t2")))


def test_a_site_whose_cases_have_nothing_that_it_holds_is_refused() -> None:
    settings = Settings(sites=1, least=1, holds={"site_1": ("t2",)}, test_share=0.5)
    with pytest.raises(DataError, match="holds t2, which none of its training cases has"):
        split_with(settings, case("a"), case("b", ("t1",)))


def test_a_partition_into_small_sites_only_is_refused(tmp_path: Path) -> None:
    file = partition(tmp_path, {0: "1", 1: "2"})
    cases = (case("FeTS2022_00000"), case("FeTS2022_00001"))
    with pytest.raises(DataError, match="no site has 5 cases or more"):
        split_with(Settings(partition=file), *cases)


def test_a_partition_of_another_data_set_is_refused(tmp_path: Path) -> None:
    file = partition(tmp_path, {7: "1"})
    with pytest.raises(DataError, match=r"such as 'FeTS2022_00007', and none of the 1 cases in"):
        split_with(Settings(partition=file), case("BraTS2021_00007"))


def test_a_partition_is_read_as_spreadsheets_write_it(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    text = (
        '\ufeffSubject_ID,Institution,Partition_ID\r\n"a ",x, 7\r\n\r\nb,,12\r\na,y,7\r\nc,,UPenn'
    )
    file.write_bytes(text.encode())
    assert read_partition(file) == {"a": "site_07", "b": "site_12", "c": "UPenn"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has the columns of an empty file; needed are Partition_ID and Subject_ID"),
        ("Partition_ID,Patient\n1,a", "has the columns Partition_ID, Patient; needed are"),
        ("Partition_ID,Subject_ID\n", "holds no row"),
        ("Partition_ID,Subject_ID\n1,a\n2,a", "line 3: 'a' is at 'site_2', and before at 'site_1'"),
        ("Partition_ID,Subject_ID\n1", "line 2: Partition_ID is '1', Subject_ID ''"),
        ("Partition_ID,Subject_ID\n../x,a", "line 2: Partition_ID is '../x'"),
        ("Partition_ID,Subject_ID\nA_tests,a", "line 2: Partition_ID is 'A_tests'"),
        ("Partition_ID,Subject_ID\n1,\xe9", "cannot be read as CSV"),
    ],
)
def test_a_damaged_partition_is_refused(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=re.escape(says)):
        read_partition(file)
