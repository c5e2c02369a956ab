import io
import itertools
import math
import re
from html.parser import HTMLParser
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import matplotlib
import numpy as np
import numpy.typing as npt
import pytest
from jinja2 import UndefinedError
from PIL import Image

from mixmfl.evaluation.html import (
    CaseRow,
    HeatTable,
    Picture,
    Section,
    legend,
    luminance,
    page,
    shade,
)
from mixmfl.evaluation.overlay import PALETTE, lesion_planes, overlay
from mixmfl.evaluation.viewer import CaseTexts, viewer_page

Array = npt.NDArray[Any]

REGIONS = {"whole tumour": (1, 2), "enhancing tumour": (2,)}
TEMPLATES = files("mixmfl.evaluation") / "templates"
NASTY = 'north <script>alert("1")</script> & Søn'
CUBE = (10, 20, 30)  # edges and corners (Z, Y, X) of the lesion that the pictures show


def head(background: float = -3.0) -> Array:
    """Return a z-scored "head": a box of noise."""
    image = np.full((40, 50, 60), background)
    image[4:36, 4:46, 4:56] = np.random.default_rng(0).normal(size=(32, 42, 52))
    return image


def lesion(z: int, y: int, x: int, size: int = 8) -> Array:
    labels = np.zeros((40, 50, 60), dtype=np.int16)
    labels[z : z + size, y : y + size, x : x + size] = 1
    return labels


def pixels(png: bytes) -> Array:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"), dtype=int)


def places_of(colour: str, png: bytes) -> Array:
    """Return (row, column) of the pixels that have nearly this colour."""
    wanted = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return np.argwhere(np.abs(pixels(png) - wanted).max(axis=2) < 40)


# --- pictures ---------------------------------------------------------------------------------


def test_the_planes_go_through_the_largest_lesion_where_it_is_widest() -> None:
    lesions = np.zeros((20, 20, 20), dtype=bool)
    lesions[2:5, 2:5, 2:5] = True  # 27 voxels, in slices that hold more lesions all in all
    lesions[2:5, 2:5, 7:10] = True
    lesions[2:5, 7:10, 2:5] = True
    lesions[10:17, 12, 15] = True
    lesions[14, 9:16, 12:19] = True  # 49 + 6, widest in slice 14
    assert lesion_planes(lesions) == (14, 12, 15)


def test_of_equally_wide_slices_the_middle_one_is_shown() -> None:
    lesions = np.zeros((20, 20, 20), dtype=bool)
    lesions[4:9, 5:12, 6:9] = True
    assert lesion_planes(lesions) == (6, 8, 7)


def test_without_a_lesion_the_centre_is_shown() -> None:
    assert lesion_planes(np.zeros((20, 30, 41), dtype=bool)) == (10, 15, 20)


def test_the_picture_is_a_png_and_changes_with_the_prediction() -> None:
    draw = [
        overlay(head(), lesion(*CUBE), prediction, (1.0, 1.0, 1.0), REGIONS)
        for prediction in (None, lesion(*CUBE), lesion(12, 20, 30), lesion(12, 20, 30))
    ]
    assert all(png.startswith(b"\x89PNG") for png in draw)
    assert pixels(draw[0]).shape[1] == 1200
    assert len(set(draw)) == 3
    assert draw[2] == draw[3]  # equal input, equal bytes, whatever the version of matplotlib
    assert b"atplotlib" not in draw[2]


def test_each_region_of_the_prediction_has_its_colour_and_the_reference_has_another() -> None:
    prediction = lesion(*CUBE)
    prediction[12:16, 22:26, 32:36] = 2
    spacing = (1.0, 1.0, 1.0)
    both = overlay(head(), None, prediction, spacing, REGIONS)
    assert len(places_of(PALETTE[0], both)) > 100
    assert len(places_of(PALETTE[1], both)) > 100
    outer = overlay(head(), None, lesion(*CUBE), spacing, REGIONS)
    assert len(places_of(PALETTE[1], outer)) == 0
    reference = overlay(head(), prediction, None, spacing, REGIONS)
    assert len(places_of(PALETTE[0], reference)) == 0


def test_the_patients_right_is_on_the_left_and_the_head_is_up() -> None:
    # X runs right to left, Y to the back, Z upwards: this lesion is right, in front and high
    prediction = lesion(28, 6, 6, size=6)
    png = overlay(head(), None, prediction, (1.0, 1.0, 1.0), REGIONS)
    row, column = places_of(PALETTE[0], png).T
    height, width = pixels(png).shape[:2]
    edges = [0, width * 60 / 168, width * 120 / 168, width]  # planes 56, 56, 46 mm wide, gaps 5 mm
    for start, stop in itertools.pairwise(edges):
        inside = (column >= start) & (column < stop)
        assert inside.sum() > 20
        assert column[inside].max() < (start + stop) / 2
        assert row[inside].max() < height / 2


def test_no_setting_of_the_users_turns_a_picture_over() -> None:
    image, mask = head(), lesion(*CUBE)

    def drawn() -> tuple[bytes, str]:
        grey = np.clip(40 * image + 130, 0, 255).astype(np.uint8)
        texts = CaseTexts("p1", (), (), {}, "", ())
        return (
            overlay(image, None, mask, (1, 1, 1), REGIONS),
            viewer_page({"t1": grey}, mask, (1, 1, 1), REGIONS, texts),
        )

    usual = drawn()
    with matplotlib.rc_context({"image.origin": "lower"}):  # as a matplotlibrc may have it
        assert drawn() == usual


def test_thick_slices_are_drawn_as_thick_as_they_are() -> None:
    prediction = np.zeros((10, 50, 60), dtype=np.int16)
    prediction[4:6, 20:30, 20:30] = 1  # 10 x 10 x 10 mm
    image = np.zeros((10, 50, 60))
    image[1:9, 5:45, 5:55] = 1.0
    png = overlay(image, None, prediction, (5.0, 1.0, 1.0), REGIONS)
    row, column = places_of(PALETTE[0], png).T
    coronal = (column > 450) & (column < 800)
    across, down = np.ptp(column[coronal]), np.ptp(row[coronal])
    assert across == pytest.approx(down, rel=0.1)


def test_the_background_is_black_and_cut_away_whatever_its_value() -> None:
    expected = overlay(head(), None, None, (1.0, 1.0, 1.0), REGIONS)
    for background in (0.0, -7.0, 9.0):
        image = np.pad(head(background), 10, constant_values=background)
        assert overlay(image, None, None, (1.0, 1.0, 1.0), REGIONS) == expected
    assert (pixels(expected)[-4:].max(axis=2) < 60).mean() > 0.8  # the margin below the head


def test_a_single_slice_is_drawn_alone() -> None:
    png = overlay(head()[20:21], None, lesion(*CUBE)[12:13], (1.0, 1.0, 1.0), REGIONS)
    assert len(places_of(PALETTE[0], png)) > 50
    # 56 mm wide and 46 mm high, as cut out, with a line for the name
    assert 46 / 56 < len(pixels(png)) / 1200 < 50 / 56


def test_voxels_that_nobody_labelled_are_no_lesion() -> None:
    reference = lesion(*CUBE)
    reference[0:9] = 3  # the ignore index
    marked = overlay(head(), reference, None, (1.0, 1.0, 1.0), REGIONS)
    assert marked == overlay(head(), lesion(*CUBE), None, (1.0, 1.0, 1.0), REGIONS)


# --- text -------------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects what a page loads and what it shows; complains about unclosed elements."""

    VOID = frozenset({"meta", "img", "rect", "path", "br"})

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def sample() -> str:
    picture = Picture(NASTY, overlay(head(), None, None, (1.0, 1.0, 1.0), REGIONS))
    heat = HeatTable([("t1",), ("t1", NASTY)], ["t1", NASTY], [NASTY], [[0.25], [math.nan]])
    case = CaseRow(NASTY, NASTY, [NASTY], [NASTY], {NASTY: [1]}, b"", NASTY)
    return page(
        NASTY,
        f"{NASTY}\n\nA second paragraph.",
        [
            Section(NASTY, NASTY, heat, pictures=[picture]),
            Section("Cases", legend=legend([NASTY]), cases=[case], columns=[NASTY]),
        ],
    )


def test_nothing_is_loaded_from_elsewhere() -> None:
    reader = Reader()
    reader.feed(sample())
    assert not reader.open
    assert reader.loads
    inside = ("data:image/png;base64,", "data:image/jpeg;base64,", "#part", quote(NASTY))
    assert all(load.startswith(inside) for load in reader.loads)
    assert not {"link", "iframe", "object", "base"} & reader.seen
    assert not re.search(r"https?:|url\(|@import", sample())
    assert "default-src 'none'" in sample()


def test_names_are_escaped_wherever_they_show() -> None:
    text = sample()
    assert text.count("<script") == 1  # the page's own, which its policy names by digest
    assert re.search(r"script-src &#39;sha256-|script-src 'sha256-", text)
    assert text.count("&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt; &amp; Søn") == 20


def test_no_template_switches_escaping_off() -> None:
    texts = [file.read_text(encoding="utf-8") for file in TEMPLATES.iterdir()]
    assert len(texts) == 8
    for text in texts:
        tags = re.findall(r"\{\{.*?\}\}|\{%.*?%\}", text)
        assert not [tag for tag in tags if re.search(r"\bsafe\b|autoescape|markup", tag)]


def test_nothing_is_left_out_in_silence() -> None:
    with pytest.raises(UndefinedError, match="has no attribute 'title'"):
        page("", "", [Picture("no section", b"")])  # type: ignore[list-item]


def test_the_heat_table_shows_subsets_numbers_and_their_mean() -> None:
    table = HeatTable(
        [("t1",), ("t1", "t2")], ["t1", "t2"], ["core", "whole"], [[0.25, 0.5], [math.nan, 0.75]]
    )
    text = page("", "", [Section("", table=table)])
    rows = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    assert [re.findall(r'aria-label="(\w+)"', row) for row in rows[1:3]] == [
        ["given", "withheld"],
        ["given", "given"],
    ]
    numbers = [re.findall(r">(\d\.\d{3}|&ndash;)<", row) for row in rows]
    assert numbers == [[], ["0.250", "0.500"], ["&ndash;", "0.750"], ["0.250", "0.625"]]


def test_every_shade_keeps_its_number_readable() -> None:
    values = [step / 50 for step in range(-5, 56)]
    table = HeatTable([("t1",)], ["t1"], [str(n) for n in range(len(values))], [values])
    text = page("", "", [Section("", table=table)])
    cells = re.findall(r"background:#(\w{6});color:#(0{3}|f{3})", text)
    assert len(cells) == 2 * len(values)
    for back, ink in cells:
        red, green, blue = (int(back[start : start + 2], 16) for start in (0, 2, 4))
        lightness = luminance((red, green, blue))
        contrast = (lightness + 0.05) / 0.05 if ink == "000" else 1.05 / (lightness + 0.05)
        assert contrast >= 4.5  # WCAG 2, level AA


def test_shades_darken_steadily() -> None:
    steps = [luminance(shade(step / 20)) for step in range(21)]
    assert steps == sorted(steps, reverse=True)
    assert len(set(steps)) == 21
