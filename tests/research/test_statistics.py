"""What a benchmark's scores come to, by numbers that can be worked out by hand."""

import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mixmfl.core.errors import DataError
from mixmfl.research.benchmark.plots import draw_sites, draw_subsets
from mixmfl.research.benchmark.records import Cost
from mixmfl.research.benchmark.scores import Row
from mixmfl.research.benchmark.statistics import (
    KINDS,
    Estimate,
    Interval,
    Kind,
    Scores,
    bootstrap,
)
from mixmfl.research.benchmark.tables import markdown

NAN = math.nan
OWN = {"north": ("t1",), "south": ("t1", "t2")}


def rows(
    method: str,
    dice: Mapping[str, Mapping[str, float]],
    *,
    seed: int = 0,
    region: str = "lesion",
    hd95: float = 2.0,
) -> list[Row]:
    """Return rows of Dice by case and subset; a case's first letter is its site's."""
    sites = {site[0]: site for site in ("north", "south", "east")}
    return [
        Row(method, seed, sites[case[0]], case, tuple(subset.split("+")), region, value, hd95)
        for case, by_subset in dice.items()
        for subset, value in by_subset.items()
    ]


# one case in the north, two in the south; own modalities: t1 there, t1+t2 here
MDM = {
    "n1": {"t1": 0.6, "t2": 0.5, "t1+t2": 0.7},
    "s1": {"t1": 0.2, "t2": 0.3, "t1+t2": 0.4},
    "s2": {"t1": 0.4, "t2": 0.1, "t1+t2": 0.8},
}


def lowered(dice: Mapping[str, Mapping[str, float]], by: float) -> dict[str, dict[str, float]]:
    return {case: {s: value - by for s, value in each.items()} for case, each in dice.items()}


def several(count: int = 3) -> list[Row]:
    """Return two methods, the second with a single seed."""
    scored = [
        row for seed in range(count) for row in rows("mdm", lowered(MDM, seed / 100), seed=seed)
    ]
    return scored + rows("fedavg", lowered(MDM, 0.1))


def about(number: float) -> object:
    return pytest.approx(number, nan_ok=True)


# --- means --------------------------------------------------------------------------------------


def test_every_site_counts_the_same_on_own_modalities() -> None:
    scores = Scores(rows("mdm", MDM), OWN)
    assert scores.site_points("mdm", "north").mean == about(60)  # n1 from t1
    assert scores.site_points("mdm", "south").mean == about(60)  # (40 + 80) / 2, from t1+t2
    assert scores.points("mdm", "own").mean == about(60)
    better = {**MDM, "n1": {**MDM["n1"], "t1": 0.9}}
    assert Scores(rows("mdm", better), OWN).points("mdm", "own").mean == about(75)  # (90 + 60) / 2


def test_every_site_counts_the_same_from_every_subset() -> None:
    scores = Scores(rows("mdm", MDM), OWN)
    assert scores.subsets == (("t1",), ("t2",), ("t1", "t2"))
    assert scores.subset_points("mdm", ("t1",)).mean == about(45)  # 60, (20 + 40) / 2
    assert scores.subset_points("mdm", ("t2",)).mean == about(35)  # 50, (30 + 10) / 2
    assert scores.subset_points("mdm", ("t1", "t2")).mean == about(65)  # 70, (40 + 80) / 2
    assert scores.points("mdm", "subsets").mean == about(145 / 3)  # (45 + 35 + 65) / 3
    assert scores.points("mdm", "subsets", "lesion").mean == about(145 / 3)


def test_a_site_without_a_subset_is_left_out_of_that_subset_alone() -> None:
    scored = rows("mdm", {"n1": {"t1": 0.6, "t2": 0.2}, "s1": {"t1": 1.0}})
    scores = Scores(scored, OWN)
    assert scores.points("mdm", "subsets").mean == about(50)  # t1: (60 + 100) / 2, t2: 20


def test_a_region_with_nothing_to_find_is_left_out_of_a_cases_points() -> None:
    scored = rows("mdm", {"n1": {"t1": 0.6}, "n2": {"t1": 0.4}}, region="whole")
    scored += rows("mdm", {"n1": {"t1": 0.2}, "n2": {"t1": NAN}}, region="core")
    scores = Scores(scored, OWN)
    assert scores.points("mdm", "own").mean == about(40)  # n1: (60 + 20) / 2, n2: 40 alone
    assert scores.points("mdm", "own", "whole").mean == about(50)
    assert scores.points("mdm", "own", "core").mean == about(20)
    assert scores.points("mdm", "subsets", "core").mean == about(20)


def test_a_case_that_lacks_a_modality_of_its_site_is_judged_by_what_it_has() -> None:
    scores = Scores(
        rows("mdm", {"s1": {"t1": 0.2, "t2": 0.3, "t1+t2": 0.4}, "s2": {"t2": 0.1}}), OWN
    )
    assert scores.site_points("mdm", "south").mean == about(25)  # s1 from t1+t2, s2 from t2
    assert scores.subset_points("mdm", ("t2",)).mean == about(20)
    assert scores.missing == {"mdm": 0}  # nobody predicted s2 from t1


def test_the_deviation_over_seeds_is_that_of_the_whole_number() -> None:
    # 60, 70 and 80 on own modalities; single cases differ by more, in opposite directions
    scored = [
        row
        for seed, (north, south) in enumerate([(0.2, 1.0), (1.0, 0.4), (0.7, 0.9)])
        for row in rows("mdm", {"n1": {"t1": north}, "s1": {"t1+t2": south}}, seed=seed)
    ]
    scores = Scores(scored, OWN)
    assert scores.points("mdm", "own") == Estimate(about(70), about(10))  # type: ignore[arg-type]
    assert scores.site_points("mdm", "north").std == about(
        math.sqrt((130**2 + 110**2 + 20**2) / 18)
    )
    one = Scores(scored[:2], OWN).points("mdm", "own")
    assert one == Estimate(about(60), about(NAN))  # type: ignore[arg-type]


def test_hd95_is_averaged_where_defined_and_counted_where_not() -> None:
    scored = rows("mdm", {"n1": {"t1": 0.5}}, hd95=4.0)
    scored += rows("mdm", {"n2": {"t1": 0.5}}, hd95=8.0)
    scored += rows("mdm", {"n3": {"t1": 0.0}}, hd95=NAN)  # missed
    scored += rows("mdm", {"n4": {"t1": NAN}}, hd95=NAN)  # nothing to find, and nothing found
    scored += rows("mdm", {"n1": {"t2": 0.5}}, hd95=10.0)
    scores = Scores(scored, OWN)
    assert scores.hd95("mdm", "own").mm.mean == about(6)
    assert scores.hd95("mdm", "own").undefined == about(1 / 3)
    assert scores.hd95("mdm", "subsets").mm.mean == about(8)  # t1: 6, t2: 10
    assert scores.hd95("mdm", "subsets", "lesion").undefined == about(1 / 6)  # t1: 1/3, t2: none
    scored += rows("mdm", {"s1": {"t1": 0.5}}, hd95=16.0)  # counts as much as the north's four
    for kind in KINDS:
        both = Scores([row for row in scored if row.modalities == ("t1",)], OWN).hd95("mdm", kind)
        assert both.mm.mean == about(11)  # (6 + 16) / 2
        assert both.undefined == about(1 / 6)  # (1/3 + 0) / 2


def test_the_largest_loss_says_which_modality_was_added_to_what() -> None:
    mean = {
        "t1": 0.5,
        "t2": 0.3,
        "t3": 0.1,
        "t1+t2": 0.46,
        "t1+t3": 0.6,
        "t2+t3": 0.29,
        "t1+t2+t3": 0.55,
    }
    loss = Scores(rows("mdm", {"n1": mean}), OWN).largest_loss("mdm")
    assert loss is not None  # t3 to t1+t2 gains 9, t2 to t1+t3 costs 60 - 55, t2 to t1 50 - 46
    assert astuple(loss) == (about(5), ("t1", "t3"), "t2")


def test_every_site_counts_the_same_in_a_loss() -> None:
    dice = {"n1": {"t1": 0.9, "t1+t2": 0.6}}
    dice |= {case: {"t1": 0.5, "t1+t2": 0.7} for case in ("s1", "s2", "s3")}
    loss = Scores(rows("mdm", dice), OWN).largest_loss("mdm")
    assert loss is not None
    assert loss.points == about(5)  # the north loses 30, the south gains 20


def test_a_loss_compares_only_cases_that_have_both_subsets() -> None:
    # alone n2 is hard; it has no t2, and must not make adding t2 look like a gain
    scores = Scores(rows("mdm", {"n1": {"t1": 0.8, "t1+t2": 0.7}, "n2": {"t1": 0.1}}), OWN)
    loss = scores.largest_loss("mdm")
    assert loss is not None
    assert loss.points == about(10)
    assert Scores(rows("mdm", {"n1": {"t1": 0.8}}), OWN).largest_loss("mdm") is None


def test_the_order_of_rows_and_of_modalities_changes_no_number() -> None:
    scored = several()
    turned = [replace(row, modalities=row.modalities[::-1]) for row in scored[::-1]]
    first, second = Scores(scored, OWN), Scores(turned, OWN)
    assert (first.methods, second.methods) == (("mdm", "fedavg"), ("fedavg", "mdm"))
    for kind in KINDS:
        assert first.points("mdm", kind).mean == about(second.points("mdm", kind).mean)
        both = [scores.difference("mdm", "fedavg", kind).mean for scores in (first, second)]
        assert both[0] == about(both[1])
    assert first.subsets[:2] == (("t1",), ("t2",))
    assert second.subsets[:2] == (("t2",), ("t1",))  # as the fullest subset orders them


@pytest.mark.parametrize(
    ("scored", "message"),
    [
        ([], "there are no scores to compare"),
        (rows("mdm", MDM) * 2, "mdm, seed 0: lesion of case 'n1' from t1 has two scores"),
        (
            [replace(row, site="east") for row in rows("mdm", MDM)],
            "scores are of the sites east; known sites are north, south",
        ),
    ],
)
def test_scores_that_make_no_sense_are_refused(scored: Sequence[Row], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Scores(scored, OWN)


# --- differences --------------------------------------------------------------------------------


def test_a_difference_that_all_cases_share_is_certain() -> None:
    scores = Scores(rows("mdm", MDM) + rows("fedavg", lowered(MDM, 0.1)), OWN)
    for kind in KINDS:
        assert astuple(scores.difference("mdm", "fedavg", kind)) == (about(10),) * 3
        assert astuple(scores.difference("fedavg", "mdm", kind)) == (about(-10),) * 3


def against_nothing(*sites: Sequence[float], kind: Kind = "own") -> Interval:
    """Return the difference to a method that finds nothing, from the Dice of each site's cases."""
    names = ("north", "south", "east")[: len(sites)]
    dice = {
        f"{name[0]}{n}": {"t1": value}
        for name, values in zip(names, sites, strict=True)
        for n, value in enumerate(values)
    }
    scored = rows("mdm", dice) + rows("none", {case: {"t1": 0.0} for case in dice})
    return Scores(scored, dict.fromkeys(names, ("t1",))).difference("mdm", "none", kind)


@pytest.mark.parametrize("kind", KINDS)
def test_the_interval_is_the_one_worked_out_by_hand(kind: Kind) -> None:
    # of two cases, both draws are the first in a quarter of the resamples: beyond both tails
    assert against_nothing([0, 1], kind=kind) == Interval(50, 0, 100)
    # two such sites: all four draws are 0 in 1/16 = 6 % of the resamples, still beyond 2.5 %
    assert astuple(against_nothing([0, 1], [0, 0.4], kind=kind)) == (about(35), 0, about(70))
    # three: in 1/64 = 1.6 %, and then the smallest case alone is 1 once, so that the end is 1/6
    interval = against_nothing([0, 1], [0, 1], [0, 1], kind=kind)
    assert astuple(interval) == (about(50), about(100 / 6), about(500 / 6))


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_site_has_no_more_weight_than_a_small_one(kind: Kind) -> None:
    assert against_nothing([0.0] * 30, [0.5, 0.5], kind=kind) == Interval(25, 25, 25)


def test_the_interval_of_one_site_is_that_of_scipy() -> None:
    cases = np.random.default_rng(5).exponential(size=25)
    ours = bootstrap(lambda draws: draws @ cases / 25, [25], np.random.default_rng(0))
    theirs = stats.bootstrap(
        (cases,), np.mean, method="percentile", n_resamples=10_000, random_state=1
    ).confidence_interval
    assert ours.mean == about(cases.mean())
    # a tenth of the standard error, which is 0.2; ends of 10,000 resamples differ by less
    assert [ours.low, ours.high] == pytest.approx([theirs.low, theirs.high], abs=0.02)


def test_where_nothing_can_be_drawn_the_interval_has_no_ends() -> None:
    assert astuple(against_nothing([0.3], [0.5])) == (about(40), about(NAN), about(NAN))
    apart = rows("mdm", {"n1": {"t1": 0.3}}) + rows("none", {"n2": {"t1": 0.5}})
    for kind in KINDS:
        assert astuple(Scores(apart, OWN).difference("mdm", "none", kind)) == (about(NAN),) * 3


def test_a_draw_of_which_nothing_is_known_is_left_out() -> None:
    # s1 is empty and one method finds nothing there, the other too much; drawn twice, with
    # probability 1/4, the site says nothing of the first
    empty = {"s1": {"t1": NAN}, "s2": {"t1": 0.5}}
    scored = rows("mdm", empty) + rows("local", {"s1": {"t1": 0.0}, "s2": {"t1": 0.5}})
    # s1 and s2: 50 - 25; s2 twice: 50 - 50
    assert Scores(scored, OWN).difference("mdm", "local", "own") == Interval(25, 0, 25)


def test_only_seeds_and_predictions_of_both_methods_are_compared() -> None:
    scored = rows("mdm", {"n1": {"t1": 0.5}, "n2": {"t1": 0.9}}, seed=0)
    scored += rows("mdm", {"n1": {"t1": 0.9}, "n2": {"t1": 0.9}}, seed=1)
    scored += rows("local", {"n1": {"t1": 0.4}}, seed=0)
    scores = Scores(scored, OWN)
    assert scores.seeds == {"mdm": (0, 1), "local": (0,)}
    assert scores.missing == {"mdm": 0, "local": 1}
    for kind in KINDS:
        points, sites = scores.paired("mdm", "local", kind)
        assert points.tolist() == [[[[about(50)]]], [[[about(40)]]]]  # n1 and seed 0 alone
        assert sites.tolist() == [0]
        assert scores.difference("mdm", "local", kind).mean == about(10)


def test_a_difference_is_averaged_over_seeds_and_subsets() -> None:
    base = {"n1": {"t1": 0.5, "t2": 0.5}}
    scored = rows("mdm", {"n1": {"t1": 0.6, "t2": 0.9}}, seed=0)
    scored += rows("mdm", {"n1": {"t1": 0.7, "t2": 0.5}}, seed=1)
    scored += rows("local", base, seed=0) + rows("local", base, seed=1)
    scores = Scores(scored, OWN)
    assert scores.difference("mdm", "local", "own").mean == about(15)
    assert scores.difference("mdm", "local", "subsets").mean == about(17.5)  # 10, 40, 20, 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_difference_is_that_of_the_summarys_numbers(kind: Kind) -> None:
    # whatever is lacking: sites of unequal size, modalities, something to find
    rng = np.random.default_rng(0)
    dice = {case: dict(MDM["n1"]) for case in ("n1", "s1", "s2", "s3", "e1", "e2")}
    dice |= {"s4": {"t1": 0.0}, "e3": {"t2": 0.0}}
    scored = [
        replace(row, dice=NAN if rng.random() < 0.2 else rng.random())
        for method in ("mdm", "local")
        for seed in range(3)
        for region in ("whole", "core")
        for row in rows(method, dice, seed=seed, region=region)
    ]
    scores = Scores(scored, {**OWN, "east": ("t1", "t2")})
    ours, theirs = (scores.points(method, kind).mean for method in ("mdm", "local"))
    assert scores.difference("mdm", "local", kind).mean == pytest.approx(ours - theirs, rel=1e-12)


def test_what_is_found_where_there_is_nothing_counts_against_a_method() -> None:
    # n2 has no lesion: one method finds none there and is not judged, the other has 0
    scored = rows("mdm", {"n1": {"t1": 0.5}, "n2": {"t1": NAN}})
    scored += rows("local", {"n1": {"t1": 0.5}, "n2": {"t1": 0.0}})
    scores = Scores(scored, OWN)
    for kind in KINDS:
        assert scores.points("mdm", kind).mean == about(50)
        assert scores.points("local", kind).mean == about(25)
        assert scores.difference("mdm", "local", kind).mean == about(25)


# --- page and plots -----------------------------------------------------------------------------


def test_the_page_has_the_numbers() -> None:
    costs = [Cost("mdm", seed, 2e6, 100 + seed, {}, {}) for seed in (0, 1)]
    page = markdown(Scores(several(2), OWN), costs, "mdm", "Benchmark", "On *phantoms*.")
    lines = page.splitlines()
    assert lines[:3] == ["# Benchmark", "", "On *phantoms*."]
    # seeds 0 and 1 differ by one point, so the deviation is sqrt(1/2)
    own, every, full = "59.5 ± 0.7", "47.8 ± 0.7", "64.5 ± 0.7"
    assert f"| mdm | {own} | {own} | {own} | {every} | {full} | 2.0 ± 0.0 | 2.0 | 100 |" in lines
    assert "| fedavg | 50.0 | 50.0 | 50.0 | 38.3 | 55.0 | 2.0 | - | - |" in lines
    assert "| fedavg | -10.0 [-10.0, -10.0] | -10.0 [-10.0, -10.0] | 3 | 1 |" in lines
    assert "| t1 | 44.5 ± 0.7 | 35.0 |" in lines
    assert "| mean | 47.8 ± 0.7 | 38.3 |" in lines
    assert "- mdm: nothing; the smallest gain is 20.0 points (t2 added to t1)" in lines
    for words in (
        "north has t1, 1 case; south has t1+t2, 2 cases",
        "± is the standard deviation over seeds 0, 1, left out where there is one seed",
        "**fedavg has only seed 0.**",
        "A region that neither reference nor prediction has is left out",
        "over the cases of a site, then over sites, then over subsets; beside it from all",
    ):
        assert words in page


def test_the_page_tells_what_costs_is_undefined_or_missing() -> None:
    scored = rows("mdm", {"n1": {"t1": 0.8, "t1+t2": 0.7}}) + rows(
        "local", {"n1": {"t1": 0.0}}, hd95=NAN
    )
    page = markdown(Scores(scored, OWN), [], "mdm", "A", "B")
    assert "- mdm: 10.0 points (t2 added to t1)" in page
    assert "**local lacks 1 prediction that others have; its means leave them out.**" in page
    assert "| local | 0.0 | 0.0 | 0.0 | - | - (100.0 %) | - | - |" in page
    assert "| local | -80.0 [-, -] | -80.0 [-, -] | 1 | 1 |" in page
    alone = markdown(Scores(rows("mdm", {"n1": {"t1": 0.8}}), OWN), [], "mdm", "A", "B")
    assert "There is no other method than mdm." in alone
    assert "- mdm: no two subsets differ by one modality" in alone


def test_a_difference_that_rounds_to_nothing_has_no_minus() -> None:
    scores = Scores(rows("mdm", MDM) + rows("local", lowered(MDM, 0.0001)), OWN)
    page = markdown(scores, [], "mdm", "A", "B")
    assert "| local | +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] | 3 | 1 |" in page


def test_all_tables_of_the_page_are_whole() -> None:
    named = [replace(row, method=f"{row.method}|x") for row in several()]
    lines = markdown(Scores(named, OWN), [], "mdm|x", "A", "B").splitlines()
    tables = [n for n, line in enumerate(lines) if line.startswith("| --- |")]
    assert len(tables) == 5
    for n in tables:
        assert lines[n - 2] == ""
        body = lines[n - 1 : lines.index("", n)]
        assert len({line.replace(r"\|", "").count("|") for line in body}) == 1


def test_a_reference_without_scores_is_refused() -> None:
    with pytest.raises(
        DataError, match="no scores of 'union' to compare with, only of mdm, fedavg"
    ):
        markdown(Scores(several(), OWN), [], "union", "A", "B")


@pytest.mark.parametrize("draw", [draw_subsets, draw_sites])
def test_plots_are_written_whole_and_the_same_each_time(tmp_path: Path, draw: object) -> None:
    assert callable(draw)
    long = [replace(row, method="a name that needs room") for row in rows("mdm", MDM)]
    missing = rows("local", {"n1": {"t1": NAN}})
    scores = Scores([*several(), *long, *missing], OWN)
    contents = []
    for path in (tmp_path / "new" / "plot.png", tmp_path / "new" / "again.png"):
        draw(scores, path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert b"Software" not in contents[0]  # the version of matplotlib would be there
    assert contents[0].startswith(b"\x89PNG")
    assert contents[0].endswith(b"IEND\xaeB`\x82")
    assert sorted(file.name for file in (tmp_path / "new").iterdir()) == ["again.png", "plot.png"]


def test_a_plot_that_fails_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, path: Path, **settings: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    path = tmp_path / "plot.png"
    path.write_bytes(b"old")
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    for draw in (draw_subsets, draw_sites):
        with pytest.raises(OSError, match="disk full"):
            draw(Scores(several(), OWN), path)
    assert path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("statistics", "torch matplotlib"),
        ("tables", "torch matplotlib"),
        ("plots", "torch matplotlib.pyplot"),
    ],
)
def test_importing_does_without_what_is_not_needed(module: str, unwanted: str) -> None:
    name = f"mixmfl.research.benchmark.{module}"
    code = f"import sys, {name}; print(*set({unwanted.split()}) & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
