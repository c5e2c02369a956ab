"""From a federation's folders to its sites' cases, their fingerprints and their preprocessed cases.

``federation_plans`` makes one plan of the fingerprints in between.
"""

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mixmfl.core.errors import DataError, MixmflError, PlansError, Refused
from mixmfl.core.files import read_json, write_json
from mixmfl.core.json_fields import is_word
from mixmfl.core.strict_json import MOST_BYTES
from mixmfl.core.text import quoted
from mixmfl.core.worker_pool import Workers
from mixmfl.data import image
from mixmfl.data.cases import Case, Found
from mixmfl.data.dataset_card import DatasetCard, find_card
from mixmfl.data.dicom.cases import Row
from mixmfl.data.image import files_of
from mixmfl.data.label_sets import LabelMap, map_labels
from mixmfl.data.labels import Labels, read_site_labels
from mixmfl.data.load_case import AlignmentOptions, LoadedCase, load_case
from mixmfl.data.mapping import read_mapping
from mixmfl.data.modalities import Modalities
from mixmfl.data.patients import patient_key
from mixmfl.data.training_cases import MAPPING, find_training_cases
from mixmfl.data.unknown_modalities import check_most_are_known
from mixmfl.planning import nnunet_preprocessing
from mixmfl.planning.brains import (
    BrainExtraction,
    Extracted,
    agreed_extraction,
    extract_brain,
)
from mixmfl.planning.fingerprint import Fingerprint, fingerprint_case, merge_fingerprints
from mixmfl.planning.heads import NONE, head_doubt
from mixmfl.planning.plans import Plans

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteFolder:
    """A site's cases and what its labels mean.

    Attributes:
        name: Name of the site and of its folder.
        found: Cases of the site, and what was refused.
        labels: What the site's labels mean.
        alignment: What to do with images of a case that are on different grids.
        rows: How every DICOM series was read.
        brains: How brains are extracted here, if they are.
        card: What dataset.json in the folder, or beside it, says of the cases.
    """

    name: str
    found: Found
    labels: Labels
    alignment: AlignmentOptions = field(default_factory=AlignmentOptions)
    rows: tuple[Row, ...] = ()
    brains: BrainExtraction = field(default_factory=BrainExtraction)
    card: DatasetCard = field(default_factory=DatasetCard)


@dataclass(frozen=True)
class FederationFolder:
    """The sites in a federation's folder.

    Attributes:
        sites: Sites that train, in the order of their names.
        tests: Cases that test a training site's models, under that site's name.
        held_out: Names of folders that neither train nor test a site.
    """

    sites: tuple[SiteFolder, ...]
    tests: tuple[SiteFolder, ...]
    held_out: tuple[str, ...]


def find_sites(
    federation: Path,
    modalities: Modalities | None = None,
    labels_file: Path | None = None,
    alignment: AlignmentOptions | None = None,
) -> FederationFolder:
    """Find the training sites of a federation: its folders, without those that do not train.

    ``federation.json`` may name these: ``{"held_out": ["unseen"], "tests": {"north":
    "north_tests"}}``. Folders in ``tests`` hold the test cases of a training site.

    Raises:
        DataError: No site, or one without a usable case or label description.
    """
    if not federation.is_dir():
        raise DataError(
            f"{federation}: there is no such folder; one with a folder per site is needed"
        )
    held_out, tests = _kept_from_training(federation / "federation.json")
    subfolders = {path.name: path for path in sorted(federation.iterdir()) if path.is_dir()}
    for name in (*held_out, *tests.values()):
        if name not in subfolders:  # a slip of the pen would train on what it meant
            raise DataError(
                f"{federation / 'federation.json'}: holds out {name!r}, but there is no such "
                "folder; fix or remove the name"
            )
    excluded = {*held_out, *tests.values()}
    folders = {n: f for n, f in subfolders.items() if not n.startswith(".") and n not in excluded}
    if not folders:
        raise DataError(f"{federation}: holds no folder; one folder per site is needed")
    if strange := sorted(set(tests) - set(folders)):
        raise DataError(
            f"{federation / 'federation.json'}: tests: {strange[0]!r} is no site that trains; "
            f"these are: {', '.join(folders)}"
        )
    sites = [find_site(f, modalities, labels_file, alignment) for f in folders.values()]
    tested = [
        dataclasses.replace(
            find_site(subfolders[folder], modalities, labels_file, alignment), name=site
        )
        for site, folder in sorted(tests.items())
    ]
    return FederationFolder(tuple(sites), tuple(tested), held_out)


def find_site(
    folder: Path,
    modalities: Modalities | None = None,
    labels_file: Path | None = None,
    alignment: AlignmentOptions | None = None,
    mapping: Path | None = None,
) -> SiteFolder:
    """Find the training cases of one site.

    Labels are described by ``labels_file``, else by dataset.json in the folder or beside it. What
    DICOM series are may be corrected in a table, ``mapping``, else mapping.csv in the folder.

    Raises:
        DataError: There is no usable case, or nothing says what its labels mean.
    """
    known = modalities or Modalities()
    if mapping is None and (folder / MAPPING).is_file():
        mapping = folder / MAPPING
    corrections = read_mapping(mapping, known) if mapping else None
    found, rows = find_training_cases(
        folder, known, partial(_labels_of, folder, labels_file), corrections
    )
    if not found.cases:
        if not rows:
            check_most_are_known([found], known)
        reasons = "\n".join(f"  {refused.name}: {refused.reason}" for refused in found.refused[:20])
        raise DataError(f"{folder}: holds no case that can be trained on\n{reasons}")
    labels = _labels_of(folder, labels_file)
    return SiteFolder(
        folder.absolute().name,  # not resolve(): a link is named by itself, not by its target
        found,
        labels,
        alignment or AlignmentOptions(),
        rows,
        card=find_card(folder),
    )


def _labels_of(folder: Path, labels_file: Path | None) -> Labels:
    if labels_file is not None:
        return Labels.load(labels_file)
    return read_site_labels(folder, folder.absolute().parent)


def _kept_from_training(file: Path) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the folders held out, and the folder of test cases by site."""
    if not os.path.lexists(file):  # a link to nothing must not let all folders train
        return (), {}
    content = read_json(file)
    held_out, tests = content.get("held_out", []), content.get("tests", {})
    if (
        not set(content) <= {"held_out", "tests"}
        or not isinstance(held_out, list)
        or not isinstance(tests, dict)
        or not all(is_word(name, 255) for name in (*held_out, *tests.values()))
    ):
        raise DataError(
            f'{file}: holds {quoted(content, 200)}; {{"held_out": ["folder", …], "tests": '
            '{"site": "folder", …}} is what it may hold'
        )
    return tuple(held_out), tests


# --- fingerprints ------------------------------------------------------------------------------


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
        before = read_json(record, most_bytes=MOST_BYTES)
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
            _brain_files(case, site, site.brains, out),
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
    files: "_Brain",
) -> Fingerprint:
    from mixmfl.planning.nnunet_preprocessing import nonzero_box

    extracted = _extract(load_case(case, labels, alignment), brains, files)
    loaded = extracted.case
    assert loaded.labels is not None  # only cases with a label are taken for training
    return fingerprint_case(
        loaded.images,
        labels.to_values(loaded.labels),
        loaded.canonical.spacing,
        nonzero_box(list(loaded.images.values())),
        extracted.state,
    )


# --- brains ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Brain:
    """The files with a case's brain, which is found once and used by every later step.

    Attributes:
        folder: Folder of the site's brains.
        name: Name of the case.
        origin: Digest of the case and of what extracts its brain.
    """

    folder: Path
    name: str
    origin: str

    @property
    def mask(self) -> Path:
        """The brain, on the grid of the case's reference."""
        return self.folder / f"{self.name}.nii.gz"

    @property
    def record(self) -> Path:
        """What it was made from."""
        return self.folder / f"{self.name}.json"

    def read(self, grid: image.Grid) -> Any:
        """Return the brain on the canonical grid; None where there is none of this case."""
        try:
            if read_json(self.record, most_bytes=MOST_BYTES).get("origin") != self.origin:
                return None
            stored, own = image.read_labels(self.mask)
        except DataError:
            return None
        same = image.difference(own, grid) is None
        return image.to_canonical(stored, grid)[0] > 0 if same else None

    def write(self, brain: Any, grid: image.Grid) -> None:
        """Write the brain, its record last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record.unlink(missing_ok=True)
        image.write_labels(self.mask, image.from_canonical(brain.astype(np.uint8), grid), grid)
        write_json(self.record, {"origin": self.origin})


def _brain_files(case: Case, site: SiteFolder, brains: BrainExtraction, out: Path) -> _Brain:
    extracting = dataclasses.replace(site, brains=brains)
    return _Brain(out / "brains", case.name, origin(case, extracting))


def _extract(loaded: LoadedCase, brains: BrainExtraction, files: _Brain) -> Extracted:
    if brains.tool == NONE:
        return extract_brain(loaded, brains)
    known = files.read(loaded.grid)
    extracted = extract_brain(loaded, brains, known)
    if known is None and extracted.brain is not None:
        files.write(extracted.brain, loaded.grid)
    return extracted


# --- preprocessing -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Preprocessed:
    """The result of preprocessing a site.

    Attributes:
        done: Cases preprocessed now.
        kept: Cases that were stored already, whole and made from the same files and plans.
        refused: Cases that could not be used, and why.
        notes: How images were brought onto one grid, by case of ``done`` that needed it.
    """

    done: tuple[str, ...]
    kept: tuple[str, ...]
    refused: tuple[Refused, ...]
    notes: Mapping[str, tuple[str, ...]]


def check_site(site: SiteFolder, plans: Plans, what: str = "site") -> LabelMap:
    """Check that plans fit a site's cases; ``what`` is the site's kind in messages.

    Returns:
        What its label values are in the plans.

    Raises:
        PlansError: The plans do not know the site's labels or modalities.
    """
    try:
        mapped = map_labels(site.labels, plans.labels)
    except DataError as error:
        raise PlansError(f"{what} {site.name}: its labels do not fit the plans: {error}") from None
    held = {modality for case in site.found.cases for modality in case.images}
    if strange := sorted(held - set(plans.modalities)):
        raise PlansError(
            f"{what} {site.name}: has {', '.join(strange)}, but the plans know only "
            f"{', '.join(plans.modalities)}; plan again with a site that trains these, or remove "
            "these images"
        )
    return mapped


def preprocess_site(
    site: SiteFolder,
    plans: Plans,
    configuration: str,
    out: Path,
    workers: Workers,
) -> Preprocessed:
    """Preprocess a site's cases for one configuration, leaving those alone that are done.

    Args:
        site: The site's cases.
        plans: Plans of the federation.
        configuration: ``"2d"`` or ``"3d_fullres"``.
        out: The site's folder in WORK; cases come into its folder ``configuration``.
        workers: Processes that preprocess cases.

    Raises:
        PlansError: The plans do not fit the site's modalities or labels; see ``check_site``.
        MixmflError: The plans say that brains are extracted, and the tool is not there.
    """
    from mixmfl.planning import preprocessed_case

    mapped = check_site(site, plans)
    folder = out / configuration
    folder.mkdir(parents=True, exist_ok=True)
    brains = agreed_extraction([plans.heads], site.brains)
    brains.check()
    site = dataclasses.replace(site, brains=brains)
    planned = plans.preprocessing(configuration)
    origins = {case.name: origin(case, site, planned) for case in site.found.cases}
    kept = [
        name
        for name, made_from in origins.items()
        if preprocessed_case.is_stored(folder, name, made_from)
    ]
    jobs = {
        case.name: (
            _preprocess_job,
            case,
            mapped,
            plans,
            configuration,
            site.alignment,
            brains,
            _brain_files(case, site, brains, out),
            folder,
            origins[case.name],
        )
        for case in site.found.cases
        if case.name not in kept
    }
    done, refused = workers.run(jobs, f"{site.name}: {configuration}")
    for stale in set(preprocessed_case.case_names(folder)) - set(kept) - set(done):
        # its files are gone or changed beyond use: it must not be trained on
        (folder / f"{stale}.json").unlink()
    notes = {name: note for name, note in done.items() if note}
    return Preprocessed(tuple(sorted(done)), tuple(kept), tuple(refused), notes)


def _preprocess_job(
    case: Case,
    mapped: LabelMap,
    plans: Plans,
    configuration: str,
    alignment: AlignmentOptions,
    brains: BrainExtraction,
    files: _Brain,
    folder: Path,
    made_from: str,
) -> tuple[str, ...]:
    from mixmfl.planning import preprocessed_case

    extracted = _extract(load_case(case, mapped, alignment), brains, files)
    loaded, doubt = extracted.case, head_doubt(extracted.state, plans.heads)
    names = [name for name in plans.modalities if name in loaded.images]
    images, labels, properties = nnunet_preprocessing.preprocess(
        [loaded.images[name] for name in names],
        loaded.labels,
        loaded.canonical.spacing,
        plans.nnunet,
        configuration,
        plans.labels,
        mapped.labelled,
    )
    preprocessed_case.save_case(
        folder,
        case.name,
        names,
        images,
        labels,
        properties,
        nnunet_preprocessing.preprocessed_spacing(
            loaded.canonical.spacing, plans.nnunet, configuration
        ),
        plans.configuration(configuration)["patch_size"],
        made_from,
        plans.preprocessing(configuration),
        mapped.labelled,
        patient_key(case.person),
    )
    return (*loaded.notes, *loaded.warnings, *([doubt] if doubt else []))


def origin(case: Case, site: SiteFolder, planned: str = "") -> str:
    """Return a digest of what a case is made from: its files' names, sizes and times, and plans."""
    sources = {**case.images, "label": case.label}
    parts: list[Any] = [planned, site.labels.to_json()]
    if site.alignment != AlignmentOptions():
        parts.append(dataclasses.asdict(site.alignment))
    if site.brains.tool != NONE:
        parts.append(dataclasses.asdict(site.brains))
    for kind, source in sorted(sources.items()):
        files = files_of(source) if isinstance(source, Path) else getattr(source, "files", ())
        for file in files:
            if file.exists():  # a broken link is refused when it is read
                status = file.stat()
                parts.append([kind, str(file.resolve()), status.st_size, status.st_mtime_ns])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
