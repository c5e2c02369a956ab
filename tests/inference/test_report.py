"""The page beside the masks."""

import base64
import dataclasses
import hashlib
import re
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_dicom import volume, write_series

from mixmfl.data.grid import Grid
from mixmfl.data.labels import Labels
from mixmfl.evaluation.mask_quality import DiceEstimate
from mixmfl.evaluation.subset_dice import LabelDice
from mixmfl.inference import report
from mixmfl.inference.case_reader import for_pages
from mixmfl.inference.origin import Origin
from mixmfl.inference.outcomes import Outcome
from mixmfl.inference.report import shown_name, write_case, write_report

Command = Callable[..., int]
LABELS = Labels({"background": 0, "lesion": 2, "core": 4})
ORIGIN = Origin("m.safetensors", "ab" * 32, "no <patients>", {"licence": "<b>mine</b>"})
GRID = Grid((30, 40, 36), (2.0, 1.5, 1.5), (10.0, 20.0, 30.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))


def small_head() -> tuple[np.ndarray, np.ndarray]:
    image = np.zeros(GRID.shape, dtype=np.float32)
    image[5:25, 6:34, 6:30] = np.random.default_rng(0).normal(300, 40, (20, 28, 24))
    mask = np.zeros(GRID.shape, dtype=np.uint8)
    mask[10:16, 12:20, 9:14] = 1  # small x is the patient's right
    mask[12:14, 14:17, 10:12] = 2
    return image, mask


def test_grey_values_keep_background_apart_from_dark_tissue() -> None:
    image = np.array([[[0, 0, -50, 10, 20, 30, 1000]]], dtype=np.float32)
    shown = for_pages(image)
    assert shown[0, 0, :2].tolist() == [0, 0]
    assert shown[0, 0, 2] == 1
    assert shown[0, 0, -1] == 255
    assert not for_pages(np.zeros((2, 2, 2))).any()


def test_what_is_cut_down_for_a_page_stays_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    image, mask = small_head()
    monkeypatch.setattr(report, "MOST_VOXELS", 4000)
    images, less, spacing = report._cut_down({"t1": image, "t2": 0 * image}, mask, GRID)
    assert images["t1"].size <= 4000
    assert spacing == tuple(2 * mm for mm in GRID.spacing)
    # two voxels around the head, and in its place
    assert np.array_equal(less, mask[3:27:2, 4:36:2, 4:32:2])
    assert np.array_equal(images["t1"], image[3:27:2, 4:36:2, 4:32:2])
    assert images["t2"].shape == less.shape


def outcomes(count: int) -> list[Outcome]:
    return [
        Outcome(
            f"case <{n}>", "done", used=("t1",), missing=("t2",), reference="t1",
            expected={"lesion": LabelDice(0.83, 0.5, 4)}, expected_from="4 cases",
            volumes_ml={"lesion": 12.5, "core": 0.0}, removed_ml={"lesion": 0.25},
            warnings=("the mask is <small>",), limits=("<never> measured",),
            files=(f"case <{n}>.nii.gz",),
        )
        for n in range(count)
    ]  # fmt: skip


def test_two_hundred_cases_make_a_page_that_a_browser_shows(tmp_path: Path) -> None:
    image, mask = small_head()
    dark = np.where(image != 0, 1, 0).astype(np.uint8)
    images = {"t1": for_pages(image), "t2 <b>": dark}
    (first,) = outcomes(1)
    write_case(tmp_path, "case <0>", first, images, mask, GRID, LABELS, [ORIGIN])
    for number in range(1, 200):
        for ending in ("jpg", "html"):
            source = tmp_path / "report" / f"case <0>.{ending}"
            (tmp_path / "report" / f"case <{number}>.{ending}").hardlink_to(source)
    failed = Outcome("bad", "failed", "t1.nii.gz: is <damaged>")
    page = write_report(tmp_path, [*outcomes(200), failed], LABELS, [ORIGIN])
    text = page.read_text()
    assert len(text) < 200 * 60_000
    assert text.count('<article class="case" id="part') == 201
    assert text.count('loading="lazy"') == 200
    assert "200 cases with a mask, 1 without. Cases whose names" in text
    head = text[: text.index("<main>")]  # whom the model is for is known before any mask is seen
    assert (
        "Model: m.safetensors (sha256 abababababab…). Licence: &lt;b&gt;mine&lt;/b&gt;; not" in head
    )
    assert "not stated: disease, anatomy, planned from, trained on, heads, intended use" in head
    assert "case &lt;7&gt;" in text
    assert text.count("200 cases: &lt;never&gt; measured") == 1  # not beside each case
    assert text.count("&lt;never&gt;") == 1
    assert "Small parts of a label were removed where its case says so" in text
    assert '<p class="alarm" role="alert">no &lt;patients&gt;</p>' in text
    assert "<dt>licence</dt><dd>&lt;b&gt;mine&lt;/b&gt;</dd>" in text
    assert text.index(report.RESEARCH_ONLY) < text.index("<h1>")
    assert "is &lt;damaged&gt;" in text
    assert 'href="report/case%20%3C7%3E.html"' in text
    assert re.findall(r'(?:src|href)="(?!data:|#|report/)', text) == []  # nothing from elsewhere
    assert "http" not in re.sub(r"http-equiv", "", text)
    viewer = (tmp_path / "report" / "case <0>.html").read_text()
    assert re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="http', viewer) == []
    assert "case &lt;0&gt;</title>" in viewer
    assert "<figcaption>t2 &lt;b&gt;</figcaption>" in viewer
    assert "the mask is &lt;small&gt;" in viewer
    assert "&lt;never&gt; measured" in viewer
    assert 'lesion <span class="volume">12.50 ml</span>' in viewer
    assert viewer.index(report.RESEARCH_ONLY) < viewer.index("<h1>")
    for content in (text, viewer):  # the browser runs this script and no other
        script = content.rpartition("<script>")[2].partition("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in content
    assert text.count(' id="part1-') == 200
    assert '<a href="#part1-200"><bdi>case &lt;199&gt;</bdi></a>' in text
    assert "case <" not in viewer
    assert "no &lt;patients&gt;</p>" in viewer

    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("the page is well; no Chromium is here to show it")
    for name, target in (("page", page), ("viewer", tmp_path / "report" / "case <0>.html")):
        shot = tmp_path / f"{name}.png"
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}",
             "--virtual-time-budget=5000", "--window-size=1200,700", target.as_uri()],
            check=True, timeout=120, capture_output=True,
        )  # fmt: skip
        from matplotlib.image import imread

        seen = imread(shot)[..., :3]
        assert struct.unpack(">II", shot.read_bytes()[16:24]) == (1200, 700)
        blue = (seen[..., 2] > 0.6) & (seen[..., 0] < 0.55) & (seen[..., 1] > 0.5)
        assert blue.sum() > 50, name  # the lesion's colour
    # in the axial plane of both images, the right of the patient is on the left
    rows, across = np.nonzero(blue)
    panels = rows > rows.max() / 3  # not in the legend
    for side in (0, 600):
        inside = panels & (across >= side) & (across < side + 600)
        assert inside.sum() > 20
        assert across[inside].mean() - side < 280

    keys = "".join(
        f"document.dispatchEvent(new KeyboardEvent('keydown', {{key: '{key}'}}));"
        for key in ("c", "Home", "ArrowRight", "PageUp")
    )
    driven = tmp_path / "driven.html"
    ready = "document.getElementById('place').textContent"  # keys count once the slices are read
    script = (
        "<script>const waits = setInterval(() => "
        f"{{ if ({ready}) {{ clearInterval(waits); {keys} }} }}, 50)</script>"
    )
    driven.write_text(re.sub(r"'sha256-[^']*'", "'unsafe-inline'", viewer) + script)
    dom = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
         f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000", driven.as_uri()],
        check=True, timeout=120, capture_output=True, text=True,
    ).stdout  # fmt: skip
    assert '<span id="place">coronal 12 / 32</span>' in dom


def test_the_list_of_many_cases_begins_with_those_of_the_lowest_dice(tmp_path: Path) -> None:
    cases = [
        dataclasses.replace(
            case,
            estimated={"lesion": DiceEstimate(0.9 - 0.1 * n, 0.0, 1.0)} if n else {},
            volume_ranges_ml={"lesion": (1.0, 15.0 - n)},
        )
        for n, case in enumerate(outcomes(6))
    ]
    text = write_report(tmp_path, cases, LABELS, [ORIGIN]).read_text()
    assert "All 6 cases, those of the lowest estimated Dice first" in text
    listed = re.findall(
        r'<li><a href="#part1-(\d)"><bdi>case &lt;\d&gt;</bdi></a>( [.0-9]+)? ', text
    )
    assert listed == [("6", " 0.40"), ("5", " 0.50"), ("4", " 0.60"), ("3", " 0.70"),
                      ("2", " 0.80"), ("1", "")]  # fmt: skip
    assert text.count("The mask is larger than that: lesion. Of what is beyond it, fewer") == 3
    text = write_report(tmp_path, outcomes(6), LABELS, [ORIGIN]).read_text()
    assert "<summary>All 6 cases</summary>" in text
    assert re.findall(r'<li><a href="#part1-(\d)">', text) == list("123456")


def test_values_that_are_not_known_are_dashes(tmp_path: Path) -> None:
    (one,) = outcomes(1)
    text = write_report(tmp_path, [one], LABELS, []).read_text()
    assert "12.50" in text
    assert "0.83" in text
    # the expected Dice of the core, and the Dice of this mask for both labels
    assert text.count('<abbr title="undefined">') == 3


def test_the_patient_is_named_only_where_that_is_asked_for(
    model: Path, tmp_path: Path, command: Command
) -> None:
    write_series(tmp_path / "cases" / "p7", volume(), SeriesDescription="T1")
    asked = ["-i", tmp_path / "cases", "-m", model]
    assert command("mixmfl_predict", *asked, "-o", tmp_path / "a") == 0
    assert command("mixmfl_predict", *asked, "-o", tmp_path / "b", "--show-patient") == 0
    for folder, named in (("a", False), ("b", True)):
        written = [
            f for f in (tmp_path / folder).rglob("*") if f.suffix in (".html", ".csv", ".json")
        ]
        assert len(written) == 5
        assert any(b"Doe" in file.read_bytes() for file in written) == named
    page = (tmp_path / "a" / "report.html").read_text()
    assert 'href="report/p7.html"' in page
    assert command("mixmfl_predict", *asked, "-o", tmp_path / "c", "--no-report") == 0
    assert not (tmp_path / "c" / "report.html").exists()


def test_pictures_that_cannot_be_made_cost_no_mask(
    model: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AttributeError("another version")

    monkeypatch.setattr("mixmfl.inference.case_files.write_case", fail)
    write_series(tmp_path / "cases" / "p7", volume(), SeriesDescription="T1")
    out = tmp_path / "masks"
    assert command("mixmfl_predict", "-i", tmp_path / "cases", "-m", model, "-o", out) == 0
    assert (out / "p7.nii.gz").is_file()
    assert (
        "its pictures could not be made: AttributeError: another" in (out / "cases.csv").read_text()
    )


def test_a_link_in_place_of_a_picture_brings_no_other_file_into_the_page(tmp_path: Path) -> None:
    (case,) = outcomes(1)
    secret = tmp_path / "secret.txt"
    secret.write_text("a letter to my doctor")
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "case <0>.jpg").symlink_to(secret)
    page = write_report(tmp_path, [case], LABELS, [ORIGIN]).read_text()
    assert base64.b64encode(secret.read_bytes()).decode() not in page
    assert "case &lt;0&gt;" in page


def test_pages_of_someone_else_are_not_replaced(
    model: Path, tmp_path: Path, command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    write_series(tmp_path / "cases" / "p7", volume(), SeriesDescription="T1")
    out = tmp_path / "masks"
    out.mkdir()
    (out / "report.html").write_text("mine")
    assert command("mixmfl_predict", "-i", tmp_path / "cases", "-m", model, "-o", out) == 2
    assert "report.html: is not ours" in capsys.readouterr().err
    assert (out / "report.html").read_text() == "mine"


def test_a_folder_named_after_a_person_names_nobody_on_the_page(tmp_path: Path) -> None:
    shown = shown_name("Mueller_Anna")
    assert shown.startswith("case-")
    assert shown == shown_name("Mueller_Anna") != shown_name("Mueller_Berta")
    plain = [
        "p01",
        "sub-01_ses-2",
        "BraTS20_Training_001",
        "TCGA-CS-4941",
        "0007",
        "a",
        "phantom01",
    ]
    assert [shown_name(name) for name in plain] == plain
    for name in ("Mueller_Anna_1970", "sub-anna7", "MÜLLER^ANNA", "patient Lee 3"):
        assert shown_name(name).startswith("case-")
        assert shown_name(name, show_patient=True) == name
    outcome = Outcome(
        "Mueller_Anna",
        "done",
        used=("t1",),
        notes=("t1 is Mueller_Anna/T1.nii.gz",),
        warnings=("Mueller_Anna/T2.mgz: is not read",),
    )
    failed = Outcome("Schmidt", "failed", "Schmidt/t1.nii.gz: is damaged")
    text = write_report(tmp_path, [outcome, failed], LABELS, []).read_text()
    assert "Mueller" not in text
    assert "Schmidt" not in text
    assert f"{shown}/T2.mgz: is not read" in text
    assert "--show-patient shows them" in text
    asked = write_report(tmp_path, [outcome, failed], LABELS, [], show_patient=True).read_text()
    assert "Mueller_Anna" in asked
    assert "--show-patient shows" not in asked
