"""Prediction of a folder of cases, each from the modalities that it has.

While one case is predicted the next is read by another process and the last is written by a
thread. A case that fails does not stop the others.
"""

import dataclasses
import functools
import logging
import math
import os
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError, MixmflError, Refused, explain
from mixmfl.core.files import clear_unfinished, exists, write_text
from mixmfl.core.pipeline import PrefetchProcess, WriterThread, reason_of
from mixmfl.core.process_memory import peak_memory_mb, reset_peak
from mixmfl.core.version import __version__
from mixmfl.data.cases import Case
from mixmfl.data.dicom.series import Series
from mixmfl.data.image import Source
from mixmfl.data.image_files import part_behind_patient
from mixmfl.data.labels import Labels
from mixmfl.evaluation.mask_quality import look_closely
from mixmfl.evaluation.subset_dice import Expectation, Expectations, low_in_words
from mixmfl.inference import report, uncertainty
from mixmfl.inference.case_files import CaseFiles, Predicted
from mixmfl.inference.case_preparation import extraction_for, prepare
from mixmfl.inference.case_reader import ReadCase, digests_of, read_case
from mixmfl.inference.dicom_seg import check_available
from mixmfl.inference.model import Model
from mixmfl.inference.outcomes import Outcome
from mixmfl.inference.prediction_options import OutputOptions, PredictionOptions
from mixmfl.inference.report import write_report
from mixmfl.inference.segmentation import check_models_agree, segment
from mixmfl.inference.uncertainty import uncalibrated, unestimated
from mixmfl.planning.brains import BrainExtraction
from mixmfl.planning.model_card import misuse_of_any

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

_AS_USUAL = PredictionOptions()
_MASKS_ONLY = OutputOptions()

_EDITED = (
    "volumes, picture, viewer and DICOM Segmentation shown here are of the mask before it "
    "was edited"
)


@dataclass(frozen=True)
class _Job:
    """A case to predict.

    Attributes:
        case: The case, with the modalities that are used.
        missing: Missing modalities, which the models know and the case does not use.
        expected: Dice that is expected from the modalities that are used.
    """

    case: Case
    missing: tuple[str, ...]
    expected: Expectation


def predict_folder(
    models: Sequence[Model],
    cases: Sequence[Case],
    refused: Sequence[Refused],
    out: Path,
    prediction: PredictionOptions = _AS_USUAL,
    output: OutputOptions = _MASKS_ONLY,
) -> Generator[Outcome, None, None]:
    """Predict every case; a failure is reported, and the other cases continue.

    A mask of an earlier run is kept if the same models and settings made it from the same images,
    and made again if not. A mask that is not as we wrote it is left alone.

    Args:
        models: One model, or several that are averaged; see ``segment``.
        cases: The cases, as ``find_cases`` returns them.
        refused: Cases that ``find_cases`` refused; they are reported as failed.
        out: Folder for the masks: each is written as ``<case>.nii.gz``, on its reference's grid,
            whole or not at all, beside ``cases.json`` and ``cases.csv``.
        prediction: How masks are made, and of which cases.
        output: What is written beside masks and tables, and when.

    Yields:
        What became of each case, as it is known; first those that need no prediction.

    Raises:
        ModelError: The models' labels differ.
        MixmflError: ``case_preparation.extraction_for`` raised it.
        DataError: ``only`` names a modality that no model knows, or ``out`` holds a table that is
            not ours, or a link in place of a folder.
    """
    recipes = [model.recipe for model in models]
    check_models_agree(recipes)
    brains = extraction_for(recipes, prediction.brains)
    prediction = dataclasses.replace(prediction, brains=brains)
    known = sorted({name for model in models for name in model.modalities})
    if unknown := [name for name in prediction.only if name not in known]:
        raise DataError(f"--modalities {','.join(unknown)}: the model knows {', '.join(known)}")
    out.mkdir(parents=True, exist_ok=True)
    for place in (out / report.FOLDER, out / uncertainty.FOLDER):
        if place.is_symlink():
            raise DataError(
                f"{place}: is a link, and files would be written where it leads; remove it, or "
                "name another folder for the masks"
            )
    run = _Run(models, out, prediction, output)
    clear_unfinished(out, below=True)
    if output.as_dicom:
        check_available()
    if output.set_aside:
        # the tables first, so that after an interruption the folder is known as ours
        run.records.write()
        write_text(out / "set_aside.csv", output.set_aside)

    usable = prediction.only or known
    jobs = []
    for item in refused:
        yield run.note(run.failed(item.name, item.reason), write=False)
    for case in cases:
        job = run.job_of(case, known, usable)
        try:
            if not job.case.images:
                raise DataError(
                    f"has {', '.join(case.images)}; the model needs at least one of "
                    f"{', '.join(usable)}"
                )
            job = run.checked(job)
            existing = run.existing(job)
        except Exception as error:  # whatever it is, only this case fails
            yield run.note(run.job_failed(job, reason_of(error)), write=False)
            continue
        if existing is not None:
            yield run.note(existing, write=False)
        else:
            jobs.append(job)
    run.write_tables()  # once for all cases that need no network
    how = prediction.alignment, output.report, run.expectations
    with (
        PrefetchProcess(read_case, how, output.limit_seconds) as reader,
        WriterThread(output.limit_seconds) as writer,
    ):
        yield from _overlapped(run, jobs, reader, writer)
    run.finish()


def _overlapped(
    run: "_Run", jobs: Sequence[_Job], reader: PrefetchProcess, writer: WriterThread
) -> Iterator[Outcome]:
    """Read the next case and write the last while this one is predicted."""
    writing: deque[tuple[_Job, float, Future[Outcome]]] = deque()

    def next_written() -> Outcome:
        job, began, future = writing.popleft()
        try:
            return run.note(writer.result(future))
        except Exception as error:  # whatever it is, only this case fails
            return run.note(run.job_failed(job, reason_of(error), time.monotonic() - began))

    if jobs:
        reader.submit(jobs[0].case)
    for number, job in enumerate(jobs, start=1):
        began = time.monotonic()
        failure, read = "", None
        try:
            read = reader.result()
        except MixmflError as error:
            failure = str(error)
        if number < len(jobs):
            reader.submit(jobs[number].case)
        else:
            reader.close()  # its memory is free for the network
        if read is not None:
            try:
                future = writer.submit(run.writer(job, read, began))
                writing.append((job, began, future))
            except Exception as error:  # whatever it is, only this case fails
                failure = reason_of(error)
        del read
        if failure:
            yield run.note(run.job_failed(job, failure, time.monotonic() - began))
        while writing and (len(writing) > 1 or writing[0][2].done()):
            yield next_written()
    while writing:
        yield next_written()


class _Run:
    """What one call of ``predict_folder`` does with single cases."""

    def __init__(
        self,
        models: Sequence[Model],
        out: Path,
        prediction: PredictionOptions,
        output: OutputOptions,
    ) -> None:
        self.models = models
        self.out = out
        self.prediction = prediction
        self.output = output
        self.expectations = Expectations(
            tuple((frozenset(model.modalities), tuple(model.measured.expected)) for model in models)
        )
        self.digests = tuple(model.sha256 for model in models)
        self.files = CaseFiles(models, out, output)
        self.records = self.files.records
        self.settings = _settings(prediction)
        self._case_of: dict[str, str] = {}  # by the file that is written for it
        self._unwritten: OSError | None = None

    def job_of(self, case: Case, known: Sequence[str], usable: Sequence[str]) -> _Job:
        """Return a case with the modalities that are used.

        Args:
            case: The case.
            known: Modalities that the models know.
            usable: Those of them that are to be used.
        """
        images = {name: case.images[name] for name in case.images if name in usable}
        missing = tuple(name for name in known if name not in images)
        notes = case.notes
        if strange := [name for name in case.images if name not in known]:
            names = ", ".join(strange)
            notes = *notes, f"{names}: not used, for the model knows {', '.join(known)} only"
        used = dataclasses.replace(case, images=images, label=None, notes=notes)
        return _Job(used, missing, self.expectations.of(images))

    def renaming_notes(self, case: str) -> list[str]:
        """Return a note for the table where a case has another name on the page."""
        shown = self.files.shown(case)
        return [f"called {shown} on the page"] if self.output.report and shown != case else []

    def checked(self, job: _Job) -> _Job:
        """Return a case that may be predicted, with a warning where that is by ``force`` only.

        Raises:
            DataError: A model was not made for it, or too little is expected of its modalities.
        """
        if reason := _misuse(self.models, job.case.images, self.prediction.subjects):
            if not self.prediction.force:
                raise DataError(f"{reason}. --force predicts it all the same")
            warnings = (*job.case.warnings, f"was predicted by --force although {reason}")
            job = dataclasses.replace(job, case=dataclasses.replace(job.case, warnings=warnings))
        _check_expected(job.expected, self.prediction.least_dice)
        return job

    def existing(self, job: _Job) -> Outcome | None:
        """Return the outcome of a case with nothing to do; None where it is to be predicted.

        Raises:
            DataError: A file that would be written beside the mask is not ours, or another case's.
        """
        overwrite, name = self.output.overwrite, job.case.name
        mask, before = self.files.mask_of(name), self.records[name]
        requested = self.files.requested(job.case)
        for file in requested:
            if (other := self._case_of.setdefault(file.casefold(), name)) != name:
                raise DataError(
                    f"{file} would be of case {other!r}, too, or differ from a file of it in upper "
                    "and lower case alone; rename one of them"
                )
        ours = before.files if before else ()
        foreign = [
            file
            for file in requested[1:]  # the mask is known by its digest
            if not overwrite and file not in ours and os.path.lexists(self.out / file)
        ]
        theirs = (
            f"{foreign[0]} is there and is not ours; --overwrite replaces it" if foreign else ""
        )
        is_there = mask.is_symlink() or mask.exists()  # raise where the name is too long
        if not is_there or (overwrite and not self.records.owns(name, mask)):
            if theirs:
                raise DataError(theirs)
            return None
        if before is not None:  # whether that warning still holds is checked below
            warnings = tuple(each for each in before.warnings if each != _EDITED)
            before = dataclasses.replace(before, warnings=warnings)
        if before is None or not self.records.owns(name, mask):
            reason = f"{mask.name} is there and is not as we wrote it; --overwrite replaces it"
            if before is None or not before.mask_sha256:
                return Outcome(name, "kept", reason)
            return dataclasses.replace(
                before, status="kept", reason=reason, warnings=(*before.warnings, _EDITED)
            )
        if theirs:
            return dataclasses.replace(before, status="kept", reason=theirs)
        same = (before.models, before.settings) == (self.digests, self.settings)
        complete = all((self.out / file).is_file() for file in requested)
        if overwrite or not same or not complete or dict(before.inputs) != digests_of(job.case):
            return None
        reason = "made before by the same model and settings from the same images"
        return dataclasses.replace(before, status="kept", reason=reason)

    def writer(self, job: _Job, read: ReadCase, began: float) -> "functools.partial[Outcome]":
        """Predict a case, and return a function that writes it; its images are freed meanwhile."""
        reset_peak()
        loaded = read.loaded
        used = tuple(loaded.images)
        left_out = tuple(name for name in job.case.images if name not in used)
        expected = self.expectations.of(used) if left_out else job.expected
        _check_expected(expected, self.prediction.least_dice)
        recipes = [model.recipe for model in self.models]
        prepared = prepare(loaded, recipes, self.prediction.brains, self.prediction.force)
        loaded.images.clear()
        asked = self.files.needs_probabilities
        segmented = segment(self.models, prepared, self.prediction.networks, asked)
        estimated = self.models[0].estimates(segmented.confidences)
        peak = read.peak_memory_mb + peak_memory_mb()
        voxel_ml = math.prod(loaded.canonical.spacing) / 1000
        renamed = self.renaming_notes(job.case.name)
        removed_ml = {name: count * voxel_ml for name, count in segmented.removed.items()}
        removed = [
            f"{ml:.2f} ml of {name} were removed: parts below "
            f"{100 * segmented.component_shares[name]:.0f} % of its largest, without which Dice "
            "was higher in validation cases"
            for name, ml in removed_ml.items()
        ]
        volumes = _volumes(segmented.indices, self.files.labels, voxel_ml)
        warnings = [
            *job.case.warnings,
            *loaded.warnings,
            *prepared.doubts,
            *expected.warnings(),
            *look_closely(estimated),
        ]
        if not any(volumes.values()):
            warnings.append("the mask is empty")
        outcome = Outcome(
            job.case.name,
            "done",
            used=used,
            missing=(*job.missing, *left_out),
            reference=loaded.reference,
            expected=expected.dice,
            expected_from=expected.basis(),
            estimated=estimated,
            volumes_ml=volumes,
            volume_ranges_ml=segmented.volume_ranges_ml,
            removed_ml=removed_ml,
            notes=(*job.case.notes, *prepared.notes, *renamed, *removed),
            warnings=tuple(warnings),
            limits=(
                *expected.limits(self.files.labels.foreground),
                *unestimated(self.models),
                *(uncalibrated(self.models) if asked else []),
            ),
            patient=job.case.patient if self.output.show_patient else "",
            peak_memory_mb=peak,
            models=self.digests,
            settings=self.settings,
            inputs=read.inputs,
        )
        # not all of `read`, which may hold images that the models do not know
        shown = {name: image for name, image in read.shown.items() if name in used}
        predicted = Predicted(
            *(job.case, segmented.indices, segmented.probabilities),
            *(loaded.grid, loaded.canonical, shown),
        )
        return functools.partial(self._write, outcome, predicted, began)

    def _write(self, outcome: Outcome, predicted: Predicted, began: float) -> Outcome:
        """Write the files of a case, and record how long all of it took."""
        written = self.files.write(outcome, predicted)
        return dataclasses.replace(written, seconds=time.monotonic() - began)

    def failed(self, name: str, reason: str) -> Outcome:
        """Return the outcome of a case that failed; files of an earlier run stay ours."""
        mask, before = self.files.mask_of(name), self.records[name]
        return Outcome(
            name,
            "failed",
            reason.removeprefix(f"case {name!r}: "),  # it stands beside the name
            warnings=(f"{mask.name} is of an earlier run",) if exists(mask) else (),
            mask_sha256=before.mask_sha256 if before else "",
            files=before.files if before else (),
        )

    def job_failed(self, job: _Job, reason: str, seconds: float = 0.0) -> Outcome:
        """Return the outcome of a failed case whose modalities are known."""
        return dataclasses.replace(
            self.failed(job.case.name, reason),
            used=tuple(job.case.images),
            missing=job.missing,
            expected=job.expected.dice,
            expected_from=job.expected.basis(),
            seconds=seconds,
        )

    def note(self, outcome: Outcome, *, write: bool = True) -> Outcome:
        """Record an outcome in the tables; if they cannot be written now, the run continues."""
        self.records.add(outcome, write=False)
        if write:
            self.write_tables()
        return outcome

    def write_tables(self) -> None:
        """Write the tables; if they cannot be written now, the run continues."""
        try:
            self.records.write()
            self._unwritten = None
        except OSError as error:
            log.warning("%s: the tables could not be written (%s)", self.out, explain(error))
            self._unwritten = error

    def finish(self) -> None:
        """Write the page, and the tables once more where they could not be written before.

        Raises:
            OSError: The tables cannot be written.
        """
        if self.output.report:
            show = self.output.show_patient
            labels, origins = self.files.labels, self.files.origins
            write_report(self.out, self.records.outcomes, labels, origins, show)
        if self._unwritten is not None:
            self.records.write()


def _volumes(indices: Array, labels: Labels, voxel_ml: float) -> dict[str, float]:
    """Return the volume in ml of each label or region of class indices."""
    counts = np.bincount(indices.ravel(), minlength=len(labels.values))
    regions = labels.consecutive().foreground
    return {name: float(counts[list(of)].sum()) * voxel_ml for name, of in regions.items()}


def _misuse(models: Sequence[Model], images: Mapping[str, Path | Source], subjects: str) -> str:
    """Return why one of the models was not made for a case; see ``model_card.misuse``."""
    parts = {
        name: image.header.shown_part if isinstance(image, Series) else part_behind_patient(image)
        for name, image in images.items()
        if isinstance(image, Series | Path)
    }
    return misuse_of_any((model.plans.card for model in models), parts, subjects)


def _settings(prediction: PredictionOptions) -> dict[str, Any]:
    """Return all that decides a mask beside models and images, as JSON content."""
    brains = prediction.brains
    return {
        "mixmfl_version": __version__,
        **dataclasses.asdict(prediction.alignment),
        **dataclasses.asdict(prediction.networks),
        **({} if brains == BrainExtraction() else {"brains": dataclasses.asdict(brains)}),
    }


def _check_expected(expected: Expectation, least_dice: float) -> None:
    if not least_dice:
        return
    names = "+".join(expected.modalities)
    if not expected.is_known:
        few = f", {expected.fewest} of the label with fewest" if len(expected.dice) > 1 else ""
        raise DataError(
            f"--min-expected-dice: Dice from {names} is not known for this model "
            f"({expected.basis() or 'never measured'}{few})"
        )
    if expected.low < least_dice:
        raise DataError(
            f"--min-expected-dice {least_dice:g}: one case in ten has a Dice "
            f"{low_in_words(expected.low)} from {names} (mean over labels; {expected.basis()})"
        )
