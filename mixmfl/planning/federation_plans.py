"""One plan for all sites: their fingerprints are gathered, added up, planned from and written.

Fingerprints come from folders here, from files that sites sent, or from sites on a network; what
follows is the same.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mixmfl.core.errors import PlansError, Refused
from mixmfl.core.files import read_json, write_json
from mixmfl.core.worker_pool import Workers
from mixmfl.data.dataset_card import DatasetCard
from mixmfl.data.labels import Labels
from mixmfl.planning.fingerprint import Fingerprint, merge_fingerprints
from mixmfl.planning.heads import planned_heads
from mixmfl.planning.model_card import make_card
from mixmfl.planning.plans import Plans, Preset
from mixmfl.planning.site_fingerprint import fingerprint_site
from mixmfl.planning.site_folders import SiteFolder


@dataclass(frozen=True)
class SiteFingerprint:
    """What was gathered at a site's folder.

    Attributes:
        site: The site.
        file: Where its fingerprint is stored.
        fingerprint: The fingerprint.
        refused: Cases that could not be read.
    """

    site: SiteFolder
    file: Path
    fingerprint: Fingerprint
    refused: Sequence[Refused]


def sites_folder(work: Path) -> Path:
    """Return the folder in WORK with a folder per site that trains."""
    return work / "sites"


def site_folder(work: Path, site: str) -> Path:
    """Return the folder in WORK of a site that trains."""
    return sites_folder(work) / site


def gather_fingerprints(
    sites: Iterable[SiteFolder], work: Path, workers: Workers
) -> Iterator[SiteFingerprint]:
    """Take the fingerprints of sites whose folders are here, one after another.

    Args:
        sites: The sites.
        work: WORK; each site's fingerprint is stored in its folder there.
        workers: Processes that read cases.

    Raises:
        DataError: None of a site's cases could be read.
        MixmflError: What extracts brains is not there.
    """
    for site in sites:
        folder = site_folder(work, site.name)
        fingerprint, refused = fingerprint_site(site, folder, workers)
        yield SiteFingerprint(site, folder / "fingerprint.json", fingerprint, refused)


def read_fingerprints(files: Iterable[Path]) -> list[Fingerprint]:
    """Read fingerprints that sites sent as files.

    Raises:
        PlansError: A file is missing or is no fingerprint.
    """
    return [Fingerprint.from_json(read_json(file, PlansError), str(file)) for file in files]


def kept_plans(work: Path, *, replan: bool) -> Plans | None:
    """Return the plans that WORK has; None where it has none, or they are to be made again.

    Raises:
        PlansError: They are damaged.
    """
    file = work / "plans.json"
    return Plans.load(file) if file.is_file() and not replan else None


def write_plans(
    fingerprints: Iterable[Fingerprint],
    labels: Labels,
    preset: Preset,
    dataset: DatasetCard | None,
    work: Path,
) -> tuple[Plans, Fingerprint]:
    """Make one plan for all sites, and write it and the sum of their fingerprints to WORK.

    ``plans.json`` is written last; one that is there is replaced, see ``kept_plans``.

    Args:
        fingerprints: The sites' fingerprints.
        labels: The federation's labels.
        preset: The settings.
        dataset: What whoever plans says of the data; the model carries it.
        work: The folder to write to.

    Returns:
        The plans, and the sum of the fingerprints.

    Raises:
        PlansError: See ``make_plans``.
    """
    merged = merge_fingerprints(fingerprints)
    plans = make_plans(merged, labels, preset, dataset)
    write_json(work / "fingerprint.json", merged.to_json())
    plans.save(work / "plans.json")
    return plans, merged


def make_plans(
    fingerprint: Fingerprint, labels: Labels, preset: Preset, dataset: DatasetCard | None = None
) -> Plans:
    """Make one plan for all from the merged fingerprint.

    The modalities of the federation are those that any site has, in alphabetical order.

    Args:
        fingerprint: The sum of the sites' fingerprints.
        labels: The federation's labels.
        preset: The settings.
        dataset: What whoever plans says of the data; the model carries it.

    Raises:
        PlansError: Brains were extracted at some sites and not at others, or in two ways; or the
            dataset's card has codes for labels that there are none of.
    """
    from mixmfl.planning import nnunet_planner

    modalities = tuple(sorted(fingerprint.modality_cases))
    heads = planned_heads(fingerprint.heads)
    planned = nnunet_planner.plan(fingerprint, modalities, labels, preset.planner, preset.network)
    card = make_card(fingerprint, dataset or DatasetCard(), labels)
    plans = Plans(modalities, labels, planned, preset.network, preset.training, heads, card)
    return Plans.from_json(plans.to_json(), "the plans made")  # as they will be read: checked
