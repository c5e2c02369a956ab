"""The fingerprint of a site: those of its cases, added up."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from mixmfl.core.errors import DataError, MixmflError, PlansError, Refused
from mixmfl.core.files import read_json, read_long_json, write_json
from mixmfl.core.records import read_record
from mixmfl.core.worker_pool import Workers
from mixmfl.data.cases import Case
from mixmfl.data.labels import Labels
from mixmfl.data.load_case import AlignmentOptions, load_case
from mixmfl.data.patients import patient_key, patient_of
from mixmfl.planning.brains import BrainExtraction
from mixmfl.planning.fingerprint import (
    Fingerprint,
    PatientCounts,
    count_patients,
    fingerprint_case,
    merge_fingerprints,
)
from mixmfl.planning.nonzero import nonzero_box
from mixmfl.planning.site_folders import SiteFolder, origin
from mixmfl.planning.stored_brains import StoredBrain, extract_once, stored_brain

log = logging.getLogger(__name__)


def fingerprint_site(
    site: SiteFolder, out: Path, workers: Workers
) -> tuple[Fingerprint, list[Refused]]:
    """Take a site's fingerprint, or read the one that is there if its cases are unchanged.

    ``out/fingerprint.json`` is what the site reports; ``out/cases.json`` stays at the site.

    Args:
        site: The site's cases.
        out: The site's folder in WORK.
        workers: Processes that read cases.

    Returns:
        The fingerprint, and the cases that could not be read.

    Raises:
        DataError: None of its cases could be read.
        MixmflError: What extracts brains is not there.
    """
    site.brains.check()
    sources = {case.name: origin(case, site) for case in site.found.cases}
    record, file = _record_in(out), out / "fingerprint.json"
    try:
        before = read_long_json(record)
        if before["sources"] == sources:
            _counts_in(before, record)
            refused = [Refused(name, reason) for name, reason in before["refused"].items()]
            known = Fingerprint.from_json(read_json(file, PlansError), str(file))
            fingerprint = known.with_origin(site.card)  # it may be said since
            write_json(file, fingerprint.to_json())
            return fingerprint, refused
    except (MixmflError, KeyError, AttributeError) as reason:
        log.info("%s: is taken again (%s)", file, reason)
    jobs = {
        case.name: (
            _fingerprint_job,
            case,
            site.labels,
            site.alignment,
            site.brains,
            stored_brain(case, site, out),
        )
        for case in site.found.cases
    }
    done, refused = workers.run(jobs, f"{site.name}: fingerprint")
    if not done:
        lines = "\n".join(f"  {item.name}: {item.reason}" for item in refused)
        raise DataError(f"{site.found.folder}: none of its cases can be used\n{lines}")
    fingerprint = merge_fingerprints(done.values()).with_origin(site.card)
    write_json(file, fingerprint.to_json())
    people = {case.name: patient_key(case.person) for case in site.found.cases}
    counts = count_patients((patient_of(name, people[name]), part) for name, part in done.items())
    reasons = {item.name: item.reason for item in refused}
    write_json(
        record, {"sources": sources, "refused": reasons, "patients": dataclasses.asdict(counts)}
    )
    return fingerprint, refused


def read_patient_counts(out: Path) -> PatientCounts:
    """Return of how many patients the cases behind a fingerprint in ``out`` are.

    Raises:
        DataError: ``fingerprint_site`` has not written it, or the file is damaged.
    """
    return _counts_in(read_long_json(_record_in(out)), _record_in(out))


def _record_in(out: Path) -> Path:
    return out / "cases.json"


def _counts_in(record: dict[str, Any], file: Path) -> PatientCounts:
    return read_record(PatientCounts, record.get("patients"), f"{file}: patients", DataError)


def _fingerprint_job(
    case: Case,
    labels: Labels,
    alignment: AlignmentOptions,
    brains: BrainExtraction,
    files: StoredBrain,
) -> Fingerprint:
    extracted = extract_once(load_case(case, labels, alignment), brains, files)
    loaded = extracted.case
    assert loaded.labels is not None  # only cases with a label are taken for training
    return fingerprint_case(
        loaded.images,
        labels.to_values(loaded.labels),
        loaded.canonical.spacing,
        nonzero_box(list(loaded.images.values())),
        extracted.state,
    )
