"""The settings of one site, the files in its folder, and how its cases are opened by them."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from mixmfl.core import devices
from mixmfl.core.declarations import LONGEST_PATH, entries, text, within
from mixmfl.core.errors import DataError
from mixmfl.core.files import locked, read_json, write_json
from mixmfl.core.records import read_record
from mixmfl.core.worker_pool import Workers
from mixmfl.data.labels import Labels
from mixmfl.data.load_case import AlignmentOptions
from mixmfl.data.modalities import Modalities
from mixmfl.data.unknown_modalities import check_most_are_known
from mixmfl.federated.client.approval import Approval
from mixmfl.federated.client.audit_log import AuditLog
from mixmfl.federated.client.limits import Limits
from mixmfl.federated.client.own_folds import OwnFolds
from mixmfl.federated.secure_aggregation.identities import KeyFiles
from mixmfl.federated.secure_aggregation.signatures import SiteName
from mixmfl.federated.sites import open_sites
from mixmfl.federated.state import ALIVE, NETWORK_MINIMUM, Minimum, Site
from mixmfl.planning.brains import BrainExtraction
from mixmfl.planning.federation_plans import site_folder
from mixmfl.planning.fingerprint import Fingerprint, PatientCounts
from mixmfl.planning.plans import Plans
from mixmfl.planning.site_fingerprint import fingerprint_site, read_patient_counts
from mixmfl.planning.site_folders import SiteFolder, find_site
from mixmfl.training.privacy_budget import Privacy

_TASK_SECONDS = 60.0
"""Seconds for which an ended job may still be at its last task when the next one begins."""


_MOST_PROCESSES, _MOST_ALIASES = 1024, 1000


@dataclass(frozen=True)
class SiteConfig:
    """The settings of one site. They do not leave it.

    Attributes:
        name: Name of the site, as in its kit.
        data: Folder of the cases.
        work: Folder for preprocessed cases, optimizer states, logs and the finished model.
        device: Device to compute on, in the form of ``--device``.
        workers: Number of processes that prepare batches.
        processes: Number of processes that preprocess.
        aliases: Additional words for modalities, in the form of ``--alias``.
        labels: dataset.json that defines the labels; None: the one in or beside ``data``.
        alignment: What to do with images of a case that are on different grids.
        minimum: Cases and voxels that a statistic must rest on; the policy and the server may ask
            for more.
        privacy: Differential privacy of the cases; None: no noise is added.
        limits: What a coordinator may have done here; the policy may allow less.
        turns: File shared by the sites of one machine, of which one works at a time, so that
            memory suffices for one; None: this site does not wait for others.
        brains: How brains are extracted here, if they are.
        keys: What masked runs are signed with; None: this site takes part in none.
        approval: Who approves of jobs.
        server: Address of the coordinator, for the record of what left.
        syslog: Where that record is sent, too; see ``AuditLog``.
        proxy: ``host:port`` of the HTTP proxy through which the coordinator is reached; None:
            directly.
        proxy_login: File with the name and password for the proxy; None: it asks for none.
    """

    name: SiteName
    data: Path
    work: Path
    device: Annotated[str, text(40)] = "cpu"
    workers: Annotated[int, within(0, _MOST_PROCESSES)] = 0
    processes: Annotated[int, within(1, _MOST_PROCESSES)] = 1
    aliases: Annotated[
        tuple[Annotated[str, text(LONGEST_PATH)], ...], entries(0, _MOST_ALIASES)
    ] = ()
    labels: Path | None = None
    alignment: AlignmentOptions = field(default_factory=AlignmentOptions)
    minimum: Minimum = NETWORK_MINIMUM
    privacy: Privacy | None = None
    turns: Path | None = None
    limits: Limits = field(default_factory=Limits)
    brains: BrainExtraction = field(default_factory=BrainExtraction)
    keys: KeyFiles | None = None
    approval: Approval = field(default_factory=Approval)
    server: Annotated[str, text(300)] = "the coordinator"
    syslog: Annotated[str, text(300)] | None = None
    proxy: Annotated[str, text(300)] | None = None
    proxy_login: Path | None = None

    @property
    def exchange_log(self) -> Path:
        """The log of received and sent messages; it names no case."""
        return self.work / "exchange.log"

    @property
    def problem_log(self) -> Path:
        """The log of failures with their reasons, and of images that were resampled.

        It names cases and files.
        """
        return self.work / "problems.log"

    @property
    def audit_log(self) -> AuditLog:
        """The record of all that left; it names no case."""
        return AuditLog(self.work / "audit.jsonl", self.syslog)

    @property
    def jobs(self) -> Path:
        """The folder of the jobs that the coordinator asked for, and who approved of them."""
        return self.work / "jobs"

    @property
    def health_file(self) -> Path:
        """The empty file that is touched while the command and its client run."""
        return self.work / ALIVE

    @property
    def used_file(self) -> Path:
        """The count of rounds, queries and bytes, over all runs; see ``Limits``."""
        return self.work / "used.json"

    @property
    def folds_file(self) -> Path:
        """The record of the folds into which the cases were dealt; it names cases."""
        return self.work / "folds.json"

    @property
    def summed_file(self) -> Path:
        """The record of the sites that masked numbers of this one were summed with."""
        return self.work / "summed_sites.json"

    def check(self) -> None:
        """Check settings that were just made as they are checked when they are read.

        Raises:
            DataError: One is beyond its bounds.
        """
        read_record(SiteConfig, self._content(), "the settings of this site", DataError, whole=True)

    def save(self, path: Path) -> None:
        """Write the settings as JSON, for the process that answers tasks."""
        write_json(path, self._content())

    def _content(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))

    @classmethod
    def load(cls, path: Path) -> "SiteConfig":
        """Read what ``save`` wrote.

        Raises:
            DataError: The file is damaged, or another version wrote it.
        """
        content = read_json(path)
        try:
            return read_record(cls, content, str(path), DataError, whole=True)
        except DataError as error:
            raise DataError(f"{error}; start mixmfl_site again") from None

    def within_policy(self) -> "SiteConfig":
        """Return these settings with the limits and the minimum that hold under the policy now.

        Raises:
            PrivacyError: The policy cannot be read.
        """
        limits, minimum = self.approval.within(self.limits, self.minimum)
        return dataclasses.replace(self, limits=limits, minimum=minimum)

    def cases(self) -> SiteFolder:
        """Find the site's cases.

        Raises:
            DataError: There is no usable case, no dataset.json defines the labels, or most images
                are of no known modality.
        """
        modalities = Modalities().with_aliases(self.aliases)
        site = find_site(self.data, modalities, self.labels, self.alignment)
        check_most_are_known([site.found], modalities)
        return dataclasses.replace(site, name=self.name, brains=self.brains)

    def fingerprint(self) -> tuple[Fingerprint, Labels, PatientCounts]:
        """Return the statistics of the cases, before anything is withheld.

        Returns:
            The fingerprint, the labels, and of how many patients the cases are.
        """
        site = self.cases()
        with Workers(self.processes) as workers:
            fingerprint, _ = fingerprint_site(site, self.folder, workers)
        return fingerprint, site.labels, read_patient_counts(self.folder)

    def open(self, plans: Plans, configuration: str, fold: str, seed: int) -> Site:
        """Open the preprocessed cases, split into the folds of this hospital; see ``OwnFolds``.

        Raises:
            DataError: There are none, or they were preprocessed with other plans.
            PrivacyError: The record of the folds is damaged.
        """
        split = OwnFolds(self.folds_file, self.problem_log).split
        (site,) = open_sites(self.work, plans, configuration, fold, seed, [self.name], split)
        device = devices.find_device(self.device)
        return self.with_floors(dataclasses.replace(site, device=device, workers=self.workers))

    def with_floors(self, site: Site) -> Site:
        """Return a site with the privacy and the floors of these settings."""
        return dataclasses.replace(
            site,
            minimum=self.minimum,
            privacy=self.privacy,
            validation_cases=self.limits.validation_cases,
            set_cases=self.limits.set_cases,
            training_cases=self.limits.training_cases,
            sends_loss=not self.limits.no_loss,
        )

    @contextmanager
    def working(self) -> Iterator[None]:
        """Hold the locks of a task: no other process writes to ``work``; it is this site's turn.

        Raises:
            DataError: Another job has held the lock for ``_TASK_SECONDS``.
        """
        taken = DataError(
            f"{self.work}: another job has been at work here for {_TASK_SECONDS:g} s, and one is "
            "let in at a time; end it, or give each mixmfl_site a folder of its own by -o"
        )
        with ExitStack() as stack:
            stack.enter_context(locked(self.work / "lock", _TASK_SECONDS, taken))
            if self.turns is not None:
                stack.enter_context(locked(self.turns, -1, taken))
            yield

    @property
    def folder(self) -> Path:
        """The folder of the preprocessed cases."""
        return site_folder(self.work, self.name)
