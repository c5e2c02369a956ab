"""The fingerprint of a site: those of its cases, added up."""

import logging
from pathlib import Path

from mixmfl.core.errors import DataError, MixmflError, PlansError, Refused
from mixmfl.core.files import read_json, read_long_json, write_json
from mixmfl.core.worker_pool import Workers
from mixmfl.data.cases import Case
from mixmfl.data.labels import Labels
from mixmfl.data.load_case import AlignmentOptions, load_case
from mixmfl.planning.brains import BrainExtraction
from mixmfl.planning.fingerprint import Fingerprint, fingerprint_case, merge_fingerprints
from mixmfl.planning.nnunet_preprocessing import nonzero_box
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
    record, file = out / "cases.json", out / "fingerprint.json"
    try:
        before = read_long_json(record)
        if before["sources"] == sources:
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
        reasons = "\n".join(f"  {item.name}: {item.reason}" for item in refused)
        raise DataError(f"{site.found.folder}: none of its cases can be used\n{reasons}")
    fingerprint = merge_fingerprints(done.values()).with_origin(site.card)
    write_json(file, fingerprint.to_json())
    write_json(
        record, {"sources": sources, "refused": {item.name: item.reason for item in refused}}
    )
    return fingerprint, refused


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
