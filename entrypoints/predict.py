"""``mixmfl_predict``: segment a folder of cases, each from its available modalities."""

import argparse
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mixmfl.core import devices
from mixmfl.core.errors import MixmflError, ModelError
from mixmfl.inference.steps import FAST_STEP, STEP

from . import _options, _paths, _runner

if TYPE_CHECKING:
    from mixmfl.data.cases import FolderCases, MappingEntry
    from mixmfl.data.modalities import Modalities
    from mixmfl.inference.model import Model
    from mixmfl.inference.outcomes import Outcome

log = logging.getLogger("mixmfl.predict")

DESCRIPTION = """\
Segment every case of a folder: images in any layout that training reads, or DICOM in any nesting;
or a single image, whose name names its modality. A case needs at least one modality that the model
knows. Images of a case on different grids are resampled onto one of them. An image that cannot be
used, or is not aligned with the others, is left out with a warning; or it is registered
(--register), or the case is refused (--strict). The command writes MASKS/<case>.nii.gz on that
grid, and the result for each case to MASKS/cases.csv. A case that fails does not stop the others.
An existing mask is kept if the same model and settings made it from the same images; otherwise it
is made again; a file that you edited or added is not changed (--overwrite replaces it). The same
command resumes after an interruption.
Exit code 0: all cases were segmented; 1: some failed; 2: nothing could start."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    return _runner.run(_build_parser(), argv, _work)


def _build_parser() -> argparse.ArgumentParser:
    parser = _runner.parser("mixmfl_predict", DESCRIPTION)
    parser.add_argument(
        "-i",
        "--input",
        type=_paths.either("a folder of cases (DICOM in any nesting, or files), or one image"),
        required=True,
        metavar="CASES",
        help="folder of cases, as DICOM in any nesting or files, or one image",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=_paths.new_folder(),
        metavar="MASKS",
        help="folder to write, outside CASES",
    )
    parser.add_argument(
        "-m",
        "--model",
        type=_paths.MODEL,
        nargs="+",
        default=[],
        help="model file, or folder of a run; several, and the folds of a run, are averaged; "
        "default: the model registered last",
    )
    parser.add_argument(
        "--mapping",
        type=_paths.MAPPING,
        metavar="FILE.csv",
        help="table with the modality and case of each DICOM series or image file",
    )
    parser.add_argument(
        "--write-mapping",
        type=_paths.new_file(),
        metavar="FILE.csv",
        help="write that table as recognised, for editing, and predict nothing",
    )
    parser.add_argument(
        "--modalities",
        metavar="A,B",
        help="use only these modalities, if a case has them; default: all",
    )
    parser.add_argument(
        "--step",
        type=float,
        help=f"distance of patches as a share of their size; default: {STEP:g}",
    )
    parser.add_argument(
        "--mirror", action="store_true", help="average over mirrored patches (slower)"
    )
    parser.add_argument(
        "--fast",
        action="store_true",
        help=f"--step {FAST_STEP:g}: fewer patches, in 3-D up to 1.5 times as fast, "
        "for up to half a point of Dice",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace existing files, also those that mixmfl did not write",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="predict although the images show another part of the body than the model was made "
        "for, or are far from those that it was planned for, or the model was trained on simulated "
        "images; each such case has a warning",
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=60,
        metavar="MINUTES",
        help="limit on reading a case and on writing it; one that takes longer fails; default: 60",
    )
    parser.add_argument(
        "--min-expected-dice",
        type=float,
        default=0.0,
        metavar="DICE",
        help="refuse cases with modalities from which one case in ten had a lower Dice, or of "
        "which that is not known",
    )
    parser.add_argument(
        "--dicom-seg",
        action="store_true",
        help="also write masks of DICOM cases as DICOM Segmentation: MASKS/<case>.dcm",
    )
    parser.add_argument(
        "--dicom-sr",
        action="store_true",
        help="also write their volumes as DICOM Structured Report: MASKS/<case>.sr.dcm; this "
        "includes --dicom-seg",
    )
    parser.add_argument(
        "--dicom-seg-fractional",
        action="store_true",
        help="also write their calibrated probabilities as fractional DICOM Segmentation: "
        "MASKS/<case>.fractional.dcm; this includes --dicom-seg",
    )
    parser.add_argument(
        "--uncertainty",
        action="store_true",
        help="also write per label a map of calibrated probability and one of its entropy into "
        "MASKS/uncertainty: NIfTI, and of DICOM cases a DICOM Parametric Map",
    )
    parser.add_argument("--no-report", action="store_true", help="do not write report.html")
    parser.add_argument(
        "--show-patient",
        action="store_true",
        help="show the patient in tables and report, if DICOM files name one, and case names there "
        "that have a word which may be a person's; default: hide them",
    )
    _options.add_alignment(
        parser, "that", "leave the image out, with a warning; with --strict refuse the case"
    )
    _options.add_brains(parser)
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse a case if one of its images cannot be used or is not aligned with the others; "
        "default: leave that image out, with a warning",
    )
    _options.add_alias(parser)
    _options.add_device(parser)
    _runner.add_output(parser)
    return parser


def _work(options: argparse.Namespace) -> int:
    if options.step is None:
        options.step = FAST_STEP if options.fast else STEP
    if not 0 < options.step <= 1:
        raise MixmflError(f"--step {options.step:g}: must be above 0 and at most 1")
    if not 0 <= options.min_expected_dice <= 1:
        raise MixmflError(f"--min-expected-dice {options.min_expected_dice:g}: must be from 0 to 1")
    if not options.limit > 0:
        raise MixmflError(f"--limit {options.limit:g}: minutes above 0 are needed")
    with _runner.output(options) as say:
        return _predict(options, say)


def _predict(options: argparse.Namespace, say: Callable[[str], None]) -> int:
    from mixmfl.core.process_memory import keep_freed_memory
    from mixmfl.data.accounting import aside_table
    from mixmfl.data.cases import describe
    from mixmfl.data.dataset_card import subjects_of
    from mixmfl.data.dicom.cases import describe_rows, find_all
    from mixmfl.data.mapping import read_mapping
    from mixmfl.data.modalities import Modalities
    from mixmfl.inference.default_model import check_registered, registered_model, registered_path
    from mixmfl.inference.model_folder import model_files, notes_of_mean, small_parts_of

    modalities = Modalities().with_aliases(options.alias)
    alignment = replace(_options.alignment(options, modalities), leave_out=not options.strict)
    brains = _options.brains(options)
    mapping = read_mapping(options.mapping, modalities) if options.mapping else None
    if options.write_mapping:
        return _write_mapping(options, modalities, mapping, say)
    _check_out(options)
    # checked first, so that a large archive is not read in vain
    named = options.model or [registered_path(_runner.home())]
    files = [file for path in named for file in model_files(path)]
    try:
        models = _load_models(files, options.device, say)
    except ModelError:
        if not options.model:
            registered_model(_runner.home())  # of a file that was exchanged, that is what to know
        raise
    if not options.model:
        check_registered(_runner.home(), [model.sha256 for model in models])
    found, rows = find_all(options.input, modalities, mapping)
    say(describe(found))
    if rows:
        say(describe_rows(rows))
    from mixmfl.inference.predict_folder import predict_folder
    from mixmfl.inference.prediction_options import OutputOptions, PredictionOptions
    from mixmfl.inference.segmentation import Options

    keep_freed_memory()  # returns what loading freed
    for note in notes_of_mean(named):
        say(note)
    words = [word.strip() for word in (options.modalities or "").split(",")]
    outcomes = predict_folder(
        models,
        found.cases,
        found.refused,
        options.out,
        PredictionOptions(
            only=tuple(modalities.find(word) or word for word in words if word),
            alignment=alignment,
            brains=brains,
            networks=Options(options.step, options.mirror, small_parts_of(named)),
            least_dice=options.min_expected_dice,
            subjects=subjects_of(options.input),
            force=options.force,
        ),
        OutputOptions(
            report=not options.no_report,
            dicom_seg=options.dicom_seg,
            dicom_sr=options.dicom_sr,
            dicom_seg_fractional=options.dicom_seg_fractional,
            uncertainty=options.uncertainty,
            show_patient=options.show_patient,
            overwrite=options.overwrite,
            limit_seconds=60 * options.limit,
            set_aside=aside_table(found.aside, options.input),
        ),
    )
    counts = _follow(outcomes, len(found.cases) + len(found.refused), options.quiet, say)
    _say_results(options, counts, found, say)
    return _runner.SOME_FAILED if counts["failed"] else 0


def _write_mapping(
    options: argparse.Namespace,
    modalities: "Modalities",
    mapping: "Mapping[str, MappingEntry] | None",
    say: Callable[[str], None],
) -> int:
    """Write the table of what the images are taken for, in place of predicting."""
    from mixmfl.core.files import write_text
    from mixmfl.core.text import plural
    from mixmfl.data.dicom.cases import find_all
    from mixmfl.data.mapping import images_told, mapping_table

    if options.write_mapping.exists() and not options.overwrite:
        raise MixmflError(f"{options.write_mapping}: exists already; --overwrite replaces it")
    found, rows = find_all(options.input, modalities, mapping)
    write_text(
        options.write_mapping, mapping_table(rows, options.input, found.records, found.refused)
    )
    images = plural(len(images_told(found.records)), "image file")
    say(f"{options.write_mapping}: {len(rows)} DICOM series, {images}")
    say("edit it, and use it with --mapping")
    return 0


def _check_out(options: argparse.Namespace) -> None:
    """Check that masks go to a folder, and not to where the next run would read them as cases."""
    if options.out is None:
        raise MixmflError("-o MASKS is needed")
    if options.out.resolve().is_relative_to(options.input.resolve()):
        raise MixmflError(
            f"-o {options.out}: lies in {options.input}, where the next run would read masks as "
            "cases; name a folder outside"
        )


def _load_models(files: Sequence[Path], device: str, say: Callable[[str], None]) -> "list[Model]":
    from mixmfl.inference.model_file import load_model

    on = devices.find_device(device)
    models = [load_model(file, on) for file in files]
    for file, model in zip(files, models, strict=True):
        about = [model.configuration, *model.modalities, f"round {model.round}"]
        say(f"model {file}: {', '.join(about)}")
        if alarm := model.plans.card.alarm:
            say(alarm)
    return models


def _follow(
    outcomes: "Iterable[Outcome]", total: int, quiet: bool, say: Callable[[str], None]
) -> dict[str, int]:
    """Have the cases predicted, a line and a step of the bar each, and count them by status."""
    from mixmfl.core.text import MOST_LINE, one_line, printable

    counts = {"done": 0, "kept": 0, "failed": 0}
    todo = total
    limits: set[str] = set()  # said once, for many cases share them
    with _runner.bars(quiet) as report:
        for outcome in outcomes:
            counts[outcome.status] += 1
            # cases without prediction come first, and do not count in the estimated time
            todo -= outcome.seconds == 0
            report("cases", sum(counts.values()) - (total - todo), todo)
            if outcome.status == "failed":
                log.info("%s: FAILED: %s", outcome.name, outcome.reason)
                name = one_line(outcome.name, MOST_LINE)
                print(printable(f"{name}: FAILED: {outcome.reason}"), file=sys.stderr)
            else:
                new = [each for each in outcome.limits if each not in limits]
                limits.update(new)
                say("\n  ".join([_line(outcome), *(new if outcome.status == "done" else [])]))
    return counts


def _say_results(
    options: argparse.Namespace,
    counts: Mapping[str, int],
    found: "FolderCases",
    say: Callable[[str], None],
) -> None:
    """Say how many cases came to what, and where everything is."""
    from mixmfl.core.text import plural

    total = len(found.cases) + len(found.refused)
    summary = [f"{plural(counts['done'], 'mask')} in {options.out}"]
    summary += [f"{counts['kept']} kept unchanged"] if counts["kept"] else []
    summary += [f"{counts['failed']} of {plural(total, 'case')} failed"] if counts["failed"] else []
    say(", ".join(summary))
    say(f"result of each case: {options.out / 'cases.csv'}")
    if found.aside:
        aside = f"{plural(len(found.aside), 'file')} set aside"
        say(f"{aside}, with reasons: {options.out / 'set_aside.csv'}")
    if not options.no_report:
        say(f"report: {options.out / 'report.html'}")


def _line(outcome: "Outcome") -> str:
    """Return the line about a case."""
    from mixmfl.evaluation.mask_quality import in_words
    from mixmfl.evaluation.subset_dice import Expectation, low_in_words

    if outcome.status == "kept":
        return f"{outcome.name}: {outcome.reason}"
    missing = f", without {', '.join(outcome.missing)}" if outcome.missing else ""
    expected = Expectation(outcome.used, outcome.expected)
    dice = ""
    if outcome.expected:
        low = low_in_words(expected.low)
        dice = f", expected Dice {expected.median:.2f} (one in ten {low})"
    if outcome.estimated:
        dice += f", this mask's Dice {in_words(outcome.estimated)}"
    warnings = "".join(f"\n  {warning}" for warning in outcome.warnings)
    return (
        f"{outcome.name}: done from {', '.join(outcome.used)}{missing}{dice} "
        f"({outcome.seconds:.1f} s){warnings}"
    )


if __name__ == "__main__":
    sys.exit(main())
