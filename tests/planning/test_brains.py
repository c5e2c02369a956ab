import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from skull_head import BRAIN_MM, GRID, RADIUS, brain_tool, write_head

from mixmfl.core.errors import DataError, MixmflError, PlansError
from mixmfl.core.worker_pool import Workers
from mixmfl.data.cases import find_cases
from mixmfl.data.image import read_labels
from mixmfl.data.labels import Labels
from mixmfl.data.load_case import LoadedCase, load_case
from mixmfl.planning import brains
from mixmfl.planning.brains import (
    BrainExtraction,
    agreed_extraction,
    asked_extraction,
    extract_brain,
)
from mixmfl.planning.federation_plans import make_plans
from mixmfl.planning.heads import describe_heads, head_doubt, planned_heads
from mixmfl.planning.plans import Plans, load_preset
from mixmfl.planning.preprocess import preprocess_site
from mixmfl.planning.preprocessed_case import open_case
from mixmfl.planning.site_fingerprint import fingerprint_site
from mixmfl.planning.site_folders import SiteFolder, find_site

LABELS = {"labels": {"background": 0, "lesion": 1}}


def load(folder: Path, stripped: bool = False) -> LoadedCase:
    write_head(folder / "p01", stripped)
    return load_case(find_cases(folder).cases[0], Labels(LABELS["labels"]))


def own(command: str) -> BrainExtraction:
    return asked_extraction(False, command)


# --- what plans say


@pytest.mark.parametrize(
    ("counts", "word"),
    [
        ({"skull": 100}, "skulls"),
        ({"skull": 96, "stripped": 4}, "skulls"),
        ({"skull": 50, "stripped": 50}, "mixed"),
        ({"skull": 4, "stripped": 96}, "stripped"),
        ({"skull": 4, "stripped": 8}, "stripped"),  # a site on a network counts 4 as the others
        ({"skull": 5, "stripped": 8}, "mixed"),
        ({"skull": 2, "stripped": 1}, "skulls"),
        ({"stripped": 99, "deepbet": 1}, "deepbet"),
        ({"own": 3}, "own"),
    ],
)
def test_plans_say_in_one_word_what_the_cases_are_like(counts: dict[str, int], word: str) -> None:
    assert planned_heads(counts) == word


@pytest.mark.parametrize("counts", [{"skull": 1, "deepbet": 99}, {"deepbet": 4, "own": 4}])
def test_sites_that_extract_differently_are_not_planned_for(counts: dict[str, int]) -> None:
    with pytest.raises(PlansError, match="must be the same at all sites, but there are cases "):
        planned_heads(counts)


def test_planning_tells_what_heads_there_are() -> None:
    assert describe_heads({"stripped": 3}) == "heads: without skull (3)"
    assert "with skull (20), without skull (30); --brain-only would" in describe_heads(
        {"stripped": 30, "skull": 20}
    )


def test_what_the_plans_say_is_done_everywhere() -> None:
    nothing, deepbet = BrainExtraction(), BrainExtraction("deepbet")
    mine = BrainExtraction("own", "tool {image} {mask}")
    assert agreed_extraction(["deepbet"], nothing) == deepbet
    assert agreed_extraction(["deepbet", "stripped"], nothing) == deepbet
    assert agreed_extraction(["own"], mine) == mine
    for planned in ("unknown", "stripped"):
        assert agreed_extraction([planned], deepbet) == deepbet
    assert agreed_extraction(["skulls"], nothing) == nothing
    for words, here, message in (
        (["deepbet"], mine, "say that brains are extracted by deepbet"),
        (["own"], nothing, "each place extracts brains by its own command"),
        (["skulls"], deepbet, "made from heads with their skulls"),
        (["skulls", "deepbet"], nothing, "cannot be averaged"),
    ):
        with pytest.raises(PlansError, match=message):
            agreed_extraction(words, here)


def test_a_head_of_the_other_kind_is_said() -> None:
    assert "shows its skull" in head_doubt("skull", "stripped")
    assert "its skull was removed" in head_doubt("stripped", "skulls")
    for state, planned in (
        ("skull", "skulls"), ("skull", "mixed"), ("skull", "unknown"), ("stripped", "stripped"),
        ("deepbet", "deepbet"),
    ):  # fmt: skip
        assert head_doubt(state, planned) == ""


# --- one case


def test_what_is_no_brain_becomes_0_in_every_image(tmp_path: Path) -> None:
    case = load(tmp_path)
    found = extract_brain(case, own(brain_tool(tmp_path)))
    assert found.state == "own"
    brain = RADIUS < BRAIN_MM
    for image in found.case.images.values():
        assert (image[~brain] == 0).all()
        assert (image[brain] > 0).all()
    assert "the brain was extracted by own from t1 (" in found.case.notes[-1]


def test_a_case_without_its_skull_is_left_as_it_is(tmp_path: Path) -> None:
    case = load(tmp_path, stripped=True)
    before = {name: image.copy() for name, image in case.images.items()}
    found = extract_brain(case, own(brain_tool(tmp_path, "raise SystemExit('was run')")))
    assert found.state == "stripped"
    for name, image in found.case.images.items():
        np.testing.assert_array_equal(image, before[name])


def test_deepbet_sees_the_best_image_and_gets_a_margin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = load(tmp_path)
    seen = []

    def run(shown: nib.Nifti1Image) -> tuple[object, nib.Nifti1Image, float]:
        seen.append(np.asarray(shown.dataobj).T)
        inner = (RADIUS < BRAIN_MM - 4).T.astype(np.uint8)
        return None, nib.Nifti1Image(inner, shown.affine), 0.0

    monkeypatch.setattr(brains, "_deepbet", lambda: SimpleNamespace(run=run))
    t1 = case.images["t1"].copy()
    found = extract_brain(case, BrainExtraction("deepbet"))
    np.testing.assert_array_equal(seen[0], t1)  # deepbet was made for it
    assert found.brain is not None
    assert (found.brain & (RADIUS >= BRAIN_MM - 4)).sum() > 0  # 4 mm around it
    assert not (found.brain & (RADIUS > BRAIN_MM + 0.1)).any()


def _raise_assertion(_: object) -> None:
    raise AssertionError("Not enough foreground to calculate bounding box")


def test_a_head_in_which_no_brain_is_found_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(brains, "_deepbet", lambda: SimpleNamespace(run=_raise_assertion))
    with pytest.raises(DataError, match="case 'p01': brain extraction found no brain in it"):
        extract_brain(load(tmp_path), BrainExtraction("deepbet"))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("brain[:] = False", "found no brain in it"),
        ("brain = ~brain", "of what is labelled lies outside the brain"),
        ("sys.exit('no licence')", r"failed \(exit code 1\): no licence"),
        ("sys.exit(0)", r"failed \(it wrote no {mask}\): no output"),
        ("affine[0, 0] = 1",
         r"not on the grid of its image \(spacing"),
    ],
)  # fmt: skip
def test_a_command_that_fails_costs_its_case(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(DataError, match=f"case 'p01': .*{message}"):
        extract_brain(load(tmp_path), own(brain_tool(tmp_path, body)))


def test_the_command_runs_without_a_shell_and_names_no_case(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    body = f"open({str(log)!r}, 'w').write(repr(sys.argv))"
    extract_brain(load(tmp_path), own(brain_tool(tmp_path, body) + " '$HOME; true'"))
    assert "$HOME; true" in log.read_text()
    assert "p01" not in log.read_text()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("python -m tool {image}", r"must contain \{image\}.* and \{mask\}"),
        ("mixmfl-no-such-tool {image} {mask}", "there is no program 'mixmfl-no-such-tool'"),
        ("python 'tool {image} {mask}", "No closing quotation"),
        ("  ", "is empty"),
    ],
)
def test_a_command_that_cannot_be_run_is_refused_at_once(command: str, message: str) -> None:
    with pytest.raises(MixmflError, match=message):
        asked_extraction(False, command)


def test_one_way_of_extraction_is_asked_for() -> None:
    with pytest.raises(MixmflError, match="give one of them"):
        asked_extraction(True, "tool {image} {mask}")


def test_without_deepbet_the_message_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brains, "find_spec", lambda name: None)
    with pytest.raises(MixmflError, match=r"pip install 'mixmfl\[brain\]'"):
        BrainExtraction("deepbet").check()
    BrainExtraction().check()


def test_deepbet_itself_gives_a_mask_on_the_cases_grid(tmp_path: Path) -> None:
    pytest.importorskip("deepbet")
    mask = brains._by_deepbet(load(tmp_path), "t1", "")
    assert (mask.shape, mask.dtype) == (GRID.shape, np.dtype(bool))


# --- a site


def site(folder: Path, command: str = "") -> SiteFolder:
    for number in range(3):
        write_head(folder / f"p{number}", seed=number)
    write_head(folder / "stripped", stripped=True, seed=7)
    (folder / "dataset.json").write_text(json.dumps(LABELS))
    return dataclasses.replace(find_site(folder), brains=own(command))


def plan(asked: SiteFolder, out: Path) -> tuple[Plans, dict[str, int]]:
    with Workers() as workers:
        fingerprint, refused = fingerprint_site(asked, out, workers)
    assert not refused
    return make_plans(fingerprint, asked.labels, load_preset("demo")), dict(fingerprint.heads)


def test_a_sites_brains_are_found_once_and_kept_on_the_cases_grid(tmp_path: Path) -> None:
    calls = tmp_path / "calls.txt"
    command = brain_tool(tmp_path, f"open({str(calls)!r}, 'a').write('x')")
    asked, out = site(tmp_path / "site", command), tmp_path / "out"
    plans, heads = plan(asked, out)
    assert heads == {"own": 3, "stripped": 1}
    assert plans.heads == "own"
    assert Plans.from_json(plans.to_json(), "plans") == plans
    assert command not in json.dumps(plans.to_json())
    assert plans.configuration("2d")["use_mask_for_norm"] == [True, True]
    brain, grid = read_labels(out / "brains" / "p0.nii.gz")
    assert grid == dataclasses.replace(GRID, place=grid.place)
    np.testing.assert_array_equal(brain > 0, RADIUS < BRAIN_MM)
    with Workers() as workers:
        result = preprocess_site(asked, plans, "2d", out, workers)
    assert len(result.done) == 4
    assert calls.read_text() == "xxx"  # once per case with a skull
    stored = open_case(out / "2d", "p0")
    assert (np.asarray(stored.labels[:]) < 0).any()  # cropped to the brain, the corners outside
    assert "found before by own" in result.notes["p0"][0]
    with Workers() as workers:
        assert len(preprocess_site(asked, plans, "2d", out, workers).kept) == 4


def test_a_site_without_the_command_is_refused(tmp_path: Path) -> None:
    asked, out = site(tmp_path / "site", brain_tool(tmp_path)), tmp_path / "out"
    plans, _ = plan(asked, out)
    without = dataclasses.replace(asked, brains=BrainExtraction())
    with Workers() as workers, pytest.raises(PlansError, match="by its own command"):
        preprocess_site(without, plans, "2d", out, workers)


def test_a_case_whose_extraction_fails_is_refused_alone(tmp_path: Path) -> None:
    body = "sys.exit('not this one') if image[0, 0, 0] == image[-1, -1, -1] else None"
    asked, out = site(tmp_path / "site", brain_tool(tmp_path, body)), tmp_path / "out"
    file = tmp_path / "site" / "p1" / "t1.nii.gz"
    loaded = nib.load(file)
    voxels = loaded.get_fdata(dtype=np.float32)
    voxels[0, 0, 0] = voxels[-1, -1, -1] = 5.0
    nib.save(nib.Nifti1Image(voxels, loaded.affine), file)
    with Workers() as workers:
        fingerprint, refused = fingerprint_site(asked, out, workers)
    assert [item.name for item in refused] == ["p1"]
    assert "not this one" in refused[0].reason
    assert fingerprint.cases == 3


def test_a_skull_at_a_site_of_stripped_brains_is_noted(tmp_path: Path) -> None:
    folder, out = tmp_path / "site", tmp_path / "out"
    for number in range(2):
        write_head(folder / f"p{number}", stripped=True, seed=number)
    (folder / "dataset.json").write_text(json.dumps(LABELS))
    plans, heads = plan(find_site(folder), out)
    assert (plans.heads, heads) == ("stripped", {"stripped": 2})
    write_head(folder / "late", seed=5)
    with Workers() as workers:
        result = preprocess_site(find_site(folder), plans, "2d", out, workers)
    assert "it shows its skull" in result.notes["late"][-1]
