"""The page beside the masks: a row per case, and the files that it shows and leads to.

::

    MASKS/report.html           all cases, their pictures inside
    MASKS/report/<case>.jpg     three planes, for the next run's page
    MASKS/report/<case>.html    the slices of all its images, to look through

<case> is its name; or a digest of it where it may be a person's (``shown_name``).
"""

import dataclasses
import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.files import replacing, write_text
from mixmfl.core.text import plural
from mixmfl.data.grid import Grid
from mixmfl.data.labels import Labels
from mixmfl.evaluation.html import CaseRow, Section, legend, page
from mixmfl.evaluation.mask_quality import DiceEstimate, in_words
from mixmfl.evaluation.overlay import overlay
from mixmfl.evaluation.subset_dice import LabelDice, low_in_words
from mixmfl.evaluation.viewer import CaseTexts, viewer_page
from mixmfl.inference.origin import Origin
from mixmfl.inference.outcomes import Outcome

Array = npt.NDArray[Any]

FOLDER = "report"
_CASE_WORDS = """
patient patients pat subject subj sub case cases study exam examination session ses visit scan
series image images brain head site fold train training val validation test unseen
brats tcga upenn ucsf pdgm gbm lgg hgg isles wmh adni oasis ixi phantom
"""
WORDS_FOR_CASES = frozenset(_CASE_WORDS.split())
"""Words that number cases rather than name people."""
MOST_VOXELS = 1 << 22  # a larger case is shown coarser, to keep the files small

_UNKNOWN = LabelDice(math.nan, math.nan, 0)
_UNTOLD = DiceEstimate(math.nan, math.nan, math.nan)

INTRODUCTION = """\
A row per case: what its mask rests on, how much of what was found, and three planes through the
largest lesion with the outline of the mask. Radiological convention: the patient's right is on the
left. A click on the planes opens the slices of the case.

This mask's Dice is estimated from how sure the network is of it, by what was measured on validation
cases when the model was trained; in nine masks of ten it lies between the two numbers in brackets.
The range of a volume goes from the voxels with a probability above 90 % to those above 10 %.
Expected Dice is of other patients with the same modalities: their median, and what one in ten did
not reach. Masks must be looked at by someone who can judge them, those of low Dice first."""

SMALL_PARTS = """\
Small parts of a label were removed where its case says so: Dice was higher without such parts in
validation cases of the federation, but here one may be a lesion. The volume and the outline are
without them, and so is what this mask's Dice is estimated of; the range of the volume, expected
Dice and maps of uncertainty are with them."""

RESEARCH_ONLY = "Research use only. No medical device: not for diagnosis or treatment."


def alarms_of(models: Sequence[Origin]) -> tuple[str, ...]:
    """Return what stands in red on every page of masks by these models, each once."""
    return tuple(dict.fromkeys(each.alarm for each in models if each.alarm))


def shown_name(case: str, show_patient: bool = False) -> str:
    """Return what the page and its files call a case.

    That is its name if it is made of digits, of words up to two letters, and of words that number
    cases, such as ``sub-01`` or ``BraTS20_Training_001``. Any other word may be a person's name,
    as in ``Mueller_Anna_1970``: then it is a digest, which tells nobody who it is.

    Args:
        case: Name of the case.
        show_patient: Whether the page may name patients.
    """
    words = re.findall(r"[^\W\d_]{3,}", case.lower())
    if show_patient or WORDS_FOR_CASES.issuperset(words):
        return case
    return f"case-{hashlib.sha256(case.encode()).hexdigest()[:8]}"


def case_files(shown: str) -> tuple[str, str]:
    """Return the picture and the viewer of a case, relative to the folder of the masks."""
    return f"{FOLDER}/{shown}.jpg", f"{FOLDER}/{shown}.html"


def write_case(
    out: Path,
    name: str,
    outcome: Outcome,
    images: Mapping[str, Array],
    mask: Array,
    grid: Grid,
    labels: Labels,
    models: Sequence[Origin],
) -> None:
    """Write the picture and the viewer of a case, each whole or not at all.

    Args:
        out: Folder of the masks.
        name: What the page calls the case; see ``shown_name``.
        outcome: What became of the case.
        images: ``(Z, Y, X)`` by modality, from ``case_reader.for_pages``, canonical.
        mask: ``(Z, Y, X)`` class indices.
        grid: Grid of the image and the mask.
        labels: What the indices mean.
        models: Where each model comes from.
    """
    images, mask, spacing = _cut_down(images, mask, grid)
    picture, viewer = case_files(name)
    regions = labels.consecutive().foreground
    with replacing(out / picture) as temporary:
        temporary.write_bytes(
            overlay(images[outcome.reference], None, mask, spacing, regions, small=True)
        )
    outcome = _renamed(outcome, name)
    texts = CaseTexts(
        name,
        _lines(outcome),
        (*outcome.warnings, *outcome.limits),
        outcome.volumes_ml,
        RESEARCH_ONLY,
        alarms_of(models),
    )
    write_text(out / viewer, viewer_page(images, mask, spacing, regions, texts))


def write_report(
    out: Path,
    outcomes: Sequence[Outcome],
    labels: Labels,
    models: Sequence[Origin],
    show_patient: bool = False,
) -> Path:
    """Write ``report.html`` and return it.

    Args:
        out: Folder of the masks, with the files of ``write_case``.
        outcomes: What became of each case.
        labels: The labels and regions that were segmented.
        models: Where each model comes from.
        show_patient: Whether cases whose name may be a person's are called by it.
    """
    names = list(labels.foreground)
    shown_names = [shown_name(each.name, show_patient) for each in outcomes]
    renamed = shown_names != [each.name for each in outcomes]
    outcomes = [_renamed(each, name) for each, name in zip(outcomes, shown_names, strict=True)]
    failed = [each for each in outcomes if each.status == "failed"]
    shown = [each for each in outcomes if each.status != "failed"]
    used = [f"Model: {each.name} (sha256 {each.sha256[:12]}…). {each.in_brief}" for each in models]
    counted = f"{plural(len(shown), 'case')} with a mask, {len(failed)} without."
    if renamed:
        counted += (
            " Cases whose names may be those of persons are called by a digest here; cases.csv "
            "has both names, and --show-patient shows them."
        )
    sections = []
    if shown:
        rows = [_row(out, each, names) for each in shown]
        key = legend(labels.consecutive().foreground, reference=False)
        columns = ("ml", "this mask's Dice", "expected Dice")
        limits = Counter(text for each in shown for text in each.limits)
        known = [f"{plural(count, 'case')}: {text}" for text, count in limits.items()]
        sections.append(Section("Masks", warnings=known, legend=key, cases=rows, columns=columns))
    if failed:
        rows = [CaseRow(each.name, each.status, [each.reason], each.warnings) for each in failed]
        sections.append(Section("Without a mask", cases=rows))
    for each in models:
        sections.append(Section(f"Where {each.name} comes from", facts=each.facts))
    paragraphs = [counted, *used, INTRODUCTION]
    if any(each.removed_ml for each in shown):
        paragraphs.append(SMALL_PARTS)
    text = page(
        "Segmentation",
        "\n\n".join(paragraphs),
        sections,
        notice=RESEARCH_ONLY,
        alarms=alarms_of(models),
    )
    write_text(out / "report.html", text)
    return out / "report.html"


def _renamed(outcome: Outcome, shown: str) -> Outcome:
    """Return an outcome under another name, which replaces the name in its texts too."""
    if shown == outcome.name:
        return outcome

    def rename(texts: Sequence[str]) -> tuple[str, ...]:
        return tuple(text.replace(outcome.name, shown) for text in texts)

    return dataclasses.replace(
        outcome,
        name=shown,
        reason=outcome.reason.replace(outcome.name, shown),
        notes=rename(outcome.notes),
        warnings=rename(outcome.warnings),
    )


def _lines(outcome: Outcome) -> list[str]:
    """Return what is known of a case, one paragraph each."""
    used = f"From {', '.join(outcome.used)}" if outcome.used else outcome.reason
    missing = f"; without {', '.join(outcome.missing)}" if outcome.missing else ""
    lines = [f"{used}{missing}."]
    if outcome.patient:
        lines.insert(0, outcome.patient)
    if outcome.reference:
        lines.append(f"On the grid of {outcome.reference}.")
    if outcome.volume_ranges_ml:
        ranges = (f"{n} {a:.1f} to {b:.1f} ml" for n, (a, b) in outcome.volume_ranges_ml.items())
        lines.append(f"Range of the volume, by calibrated probabilities: {', '.join(ranges)}.")
        larger = [n for n, (_, b) in outcome.volume_ranges_ml.items() if outcome.volumes_ml[n] > b]
        if larger:
            lines.append(
                f"The mask is larger than that: {', '.join(larger)}. Of what is beyond it, fewer "
                "than one voxel in ten was right in validation cases."
            )
    if outcome.estimated:
        lines.append(f"This mask's Dice, estimated: {in_words(outcome.estimated)}.")
    if outcome.expected_from:
        dice = ", ".join(
            f"{name} {each.median:.2f}, of one in ten {low_in_words(each.low)}"
            for name, each in outcome.expected.items()
        )
        lines.append(f"Expected Dice of other patients: {dice} ({outcome.expected_from}).")
    return [*lines, *outcome.notes]


def _row(out: Path, outcome: Outcome, names: Sequence[str]) -> CaseRow:
    picture, viewer = (out / file for file in case_files(outcome.name))
    numbers = {
        name: (outcome.volumes_ml[name], mask.dice, each.median)
        for name in names
        for each in (outcome.expected.get(name, _UNKNOWN),)
        for mask in (outcome.estimated.get(name, _UNTOLD),)
        if name in outcome.volumes_ml
    }
    return CaseRow(
        outcome.name,
        outcome.status,
        _lines(outcome),
        outcome.warnings,
        numbers,
        # a link may lead to any file of the user's, whose bytes would be in the page
        picture.read_bytes() if picture.is_file() and not picture.is_symlink() else None,
        f"{FOLDER}/{viewer.name}" if viewer.is_file() else "",
        min((each.dice for each in outcome.estimated.values()), default=math.nan),
    )


def _cut_down(
    images: Mapping[str, Array], mask: Array, grid: Grid
) -> tuple[dict[str, Array], Array, tuple[float, ...]]:
    """Return a case without what lies around the head, and coarser where it is still large.

    Returns:
        Its images, its mask, and the spacing (mm) of both.
    """
    box, shown = [], np.logical_or.reduce([mask != 0, *(image != 0 for image in images.values())])
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        occupied = np.flatnonzero(shown.any(axis=others))
        first, last = (
            (int(occupied[0]), int(occupied[-1])) if len(occupied) else (0, mask.shape[axis] - 1)
        )
        box.append((max(first - 2, 0), min(last + 3, mask.shape[axis])))
    step = 1
    while math.prod(-(-(b - a) // step) for a, b in box) > MOST_VOXELS:
        step += 1
    cut = tuple(slice(a, b, step) for a, b in box)
    return (
        {name: image[cut] for name, image in images.items()},
        mask[cut],
        tuple(mm * step for mm in grid.spacing),
    )
