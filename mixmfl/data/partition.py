"""Splitting one collection of cases into a federation: which site gets which case and modality.

``split_cases`` decides from names, settings and a seed alone; ``write_federation`` makes folders
of links for ``mixmfl_plan_preprocess``, and ``split.json``, which records the split.
"""

import csv
import dataclasses
import itertools
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mixmfl.core.errors import DataError, why
from mixmfl.core.files import replacing, write_json
from mixmfl.core.json_fields import is_word
from mixmfl.core.spreadsheet import check_columns, open_table
from mixmfl.core.text import one_line, quoted
from mixmfl.data.cases import Case, FolderCases
from mixmfl.data.image import DETACHED, ending_of
from mixmfl.data.labels import Labels
from mixmfl.data.patients import patient_of

SETTINGS = ("mix-modal", "multi-modal", "cross-modal")
COLUMNS = ("Partition_ID", "Subject_ID")  # of the file that FeTS ships
TESTED_FROM = 5  # a site with this many cases has at least one test case
HOLDERS = 2  # sites that a modality should have: with one there is nothing to average
SHUFFLES = 1000  # tries to find modality sets in which every modality has its holders
SPLIT = "split.json"  # in a federation's folder: who went where

_SITE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_TESTS = "_tests"
# independent random draws: the site of a case does not depend on the sites' modalities
_DEAL, _MODALITIES, _TEST = range(3)


def check_setting(setting: str) -> None:
    """Check that a setting is one of ``SETTINGS``.

    Raises:
        DataError: The setting is unknown.
    """
    if setting not in SETTINGS:
        raise DataError(f"setting {setting!r}: there are {', '.join(SETTINGS)}")


def tests_folder(site: str) -> str:
    """Return the name of the folder of a site's test cases."""
    return site + _TESTS


@dataclass(frozen=True)
class Settings:
    """Settings that, with the cases' names and modalities, decide a split.

    Attributes:
        setting: ``"mix-modal"``: sites hold different sets of modalities; ``"multi-modal"``: all
            hold all; ``"cross-modal"``: each holds one.
        partition: CSV with the site of each case, in FeTS' form; None deals cases at random.
        sites: Number of sites to deal cases to; ignored with a partition.
        holds: Mix-modal only: the modalities of some sites; those of the others are drawn.
        test_share: Share of test cases among each site's cases, in [0, 1).
        least: The cases that a site needs; a site with fewer is left out.
        seed: Seed of all random numbers.

    Raises:
        DataError: A value is out of range.
    """

    setting: str = SETTINGS[0]
    partition: Path | None = None
    sites: int = 4
    holds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    test_share: float = 0.2
    least: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        check_setting(self.setting)
        if self.holds and self.setting != "mix-modal":
            raise DataError(f"what a site holds can be chosen in mix-modal, not in {self.setting}")
        if self.sites < 1:
            raise DataError(f"sites is {self.sites}; at least 1 is needed")
        if not 0 <= self.test_share < 1:  # NaN is refused, too
            raise DataError(f"test share is {self.test_share}; it must be from 0 to less than 1")
        if self.least < 1:
            raise DataError(f"least is {self.least}; a site needs at least 1 case")
        if self.seed < 0:
            raise DataError(f"seed is {self.seed}; it must be 0 or more")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as ``split.json`` records them."""
        partition = None if self.partition is None else str(self.partition.resolve())
        return dataclasses.asdict(self) | {"partition": partition}


@dataclass(frozen=True)
class Site:
    """The cases and modalities of a site.

    Attributes:
        name: The name of its folder.
        holds: The modalities that its training cases may have, sorted.
        train: Its training cases, with these modalities only.
        tests: Its test cases, with all modalities that any site trains on.
    """

    name: str
    holds: tuple[str, ...]
    train: tuple[Case, ...]
    tests: tuple[Case, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the site as ``split.json`` records it."""
        return {
            "holds": list(self.holds),
            "train": {case.name: list(case.images) for case in self.train},
            "tests": {case.name: list(case.images) for case in self.tests},
        }


@dataclass(frozen=True)
class Split:
    """The site of each case, and the cases without a site.

    Attributes:
        source: The folder of the cases.
        settings: The settings of the split.
        modalities: All modalities of the cases at a site, sorted; some may be held by no site.
        sites: The sites, sorted by name.
        left_out: The reason why a usable case is at no site, by the case's name.
        refused: The reason why a case cannot be used, by the case's name.
        unknown: Subjects of the partition without any files here, sorted.
    """

    source: Path
    settings: Settings
    modalities: tuple[str, ...]
    sites: tuple[Site, ...]
    left_out: Mapping[str, str]
    refused: Mapping[str, str]
    unknown: tuple[str, ...]

    @property
    def holders(self) -> dict[str, int]:
        """The number of sites that hold each modality."""
        held = Counter(modality for site in self.sites for modality in site.holds)
        return {modality: held[modality] for modality in self.modalities}

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``split.json``."""
        return {
            "what": "which case went where; written by mixmfl_split_federation",
            "cases": str(self.source.resolve()),
            "settings": self.settings.to_json(),
            "sites": {site.name: site.to_json() for site in self.sites},
            "left_out": dict(self.left_out),
            "refused": dict(self.refused),
            "unknown": list(self.unknown),
        }


def split_cases(found: FolderCases, settings: Settings) -> Split:
    """Decide the site and the modalities of each case, and which cases are for testing.

    The same seed gives the same sites and test cases in all three settings.

    Args:
        found: Cases with labels.
        settings: The settings of the split.

    Raises:
        DataError: The partition cannot be used, or a site would have too few cases.
    """
    site_of = _site_of_cases(found, settings)
    members: dict[str, list[Case]] = defaultdict(list)
    left_out = {}
    for case in sorted(found.cases, key=lambda case: case.name):
        if case.name in site_of:
            members[site_of[case.name]].append(case)
        else:
            left_out[case.name] = f"the partition {settings.partition} does not name it"
    for name, cases in sorted(members.items()):
        if len(cases) < settings.least:
            reason = f"{name} has {len(cases)}, fewer than {settings.least} (--least)"
            left_out.update(dict.fromkeys((case.name for case in members.pop(name)), reason))
    if not members:
        raise DataError(f"no site has {settings.least} cases or more; lower that with --least")

    modalities = sorted({m for cases in members.values() for case in cases for m in case.images})
    holds = choose_modalities(
        sorted(members),
        modalities,
        settings.setting,
        settings.holds,
        np.random.default_rng((settings.seed, _MODALITIES)),
    )
    sites = []
    for number, (name, cases) in enumerate(sorted(members.items())):
        rng = np.random.default_rng((settings.seed, _TEST, number))
        tests = choose_tests(cases, modalities, settings.test_share, rng)
        train = []
        for case in cases:
            if case.name not in tests:
                seen = case.only(holds[name])
                if seen.images:
                    train.append(seen)
                else:
                    left_out[case.name] = f"{name} holds {', '.join(holds[name])}; it has none"
        if not train:
            raise DataError(
                f"{name}: holds {', '.join(holds[name])}, which none of its training cases has; "
                "choose by --hold what it holds, or another --seed"
            )
        chosen = tuple(case for case in cases if case.name in tests)
        sites.append(Site(name, holds[name], tuple(train), chosen))

    # plans have only modalities that some training case has
    trained = {m for site in sites for case in site.train for m in case.images}
    refused = {item.name: item.reason for item in found.refused}
    here = {case.name for case in found.cases} | refused.keys()
    return Split(
        found.folder,
        settings,
        tuple(modalities),
        tuple(
            dataclasses.replace(site, tests=tuple(case.only(trained) for case in site.tests))
            for site in sites
        ),
        dict(sorted(left_out.items())),
        refused,
        tuple(sorted(site_of.keys() - here)),
    )


def _site_of_cases(found: FolderCases, settings: Settings) -> dict[str, str]:
    """Return the site of each case by name, from the partition or by random dealing."""
    names = [case.name for case in found.cases]
    if settings.partition is not None:
        site_of = read_partition(settings.partition)
        if site_of.keys().isdisjoint(names):
            raise DataError(
                f"{settings.partition}: names subjects such as {min(site_of)!r}, and none of "
                f"the {len(names)} cases in {found.folder} such as {min(names)!r}; is it of "
                "another data set?"
            )
        return site_of
    patients = {case.name: patient_of(case.name, case.person) for case in found.cases}
    site_of = assign_cases(patients, settings.sites, np.random.default_rng((settings.seed, _DEAL)))
    count = Counter(site_of.values())
    smallest = min(count[name] for name in site_names(map(str, range(1, settings.sites + 1))))
    if smallest < settings.least:
        raise DataError(
            f"{found.folder}: its {len(names)} cases dealt to {settings.sites} sites give one of "
            f"them {smallest}, and {settings.least} are needed; ask for fewer sites (--sites), or "
            "lower what is needed (--least)"
        )
    return site_of


def site_names(identifiers: Iterable[str]) -> list[str]:
    """Return the sites' names: ``site_07`` for 7 among up to 99; words stay unchanged."""
    identifiers = list(identifiers)
    width = max((len(each) for each in identifiers if each.isdecimal()), default=0)
    return [f"site_{each.zfill(width)}" if each.isdecimal() else each for each in identifiers]


def read_partition(file: Path) -> dict[str, str]:
    """Read which subject is at which site; columns other than ``COLUMNS`` are ignored.

    Returns:
        The site's name (``site_names``) by subject.

    Raises:
        DataError: The file cannot be read, lacks a column or a value, names a site that cannot be
            a folder, or puts a subject at two sites.
    """
    if not file.is_file():
        raise DataError(f"{file}: there is no such file; a partition as FeTS ships it is needed")
    try:
        with open_table(file) as lines:
            reader = csv.DictReader(lines)
            columns, empty = check_columns(reader.fieldnames), "of an empty file"
            if not set(COLUMNS) <= set(columns):
                raise DataError(
                    f"{file}: has the columns {one_line(', '.join(columns) or empty, 200)}; "
                    "needed "
                    f"are {' and '.join(COLUMNS)}, with a row per case"
                )
            rows = [
                (reader.line_num, (row[COLUMNS[0]] or "").strip(), (row[COLUMNS[1]] or "").strip())
                for row in reader
            ]
    except FileNotFoundError:
        raise DataError(f"{file}: there is no such file") from None
    except (OSError, ValueError, csv.Error) as reason:
        raise DataError(f"{file}: cannot be read as CSV ({why(reason)})") from None
    site_of: dict[str, str] = {}
    names = site_names(identifier for _, identifier, _ in rows)
    for (line, identifier, subject), site in zip(rows, names, strict=True):
        if (
            not is_word(subject, 255)
            or not _SITE_NAME.fullmatch(identifier)
            or identifier.endswith(_TESTS)
        ):
            raise DataError(
                f"{file}, line {line}: {COLUMNS[0]} is {quoted(identifier)}, {COLUMNS[1]} "
                f"{quoted(subject)}; needed are both in one line, the first of letters, "
                f"digits and _.- and not ending in {_TESTS}"
            )
        if site_of.setdefault(subject, site) != site:
            raise DataError(
                f"{file}, line {line}: {quoted(subject)} is at {quoted(site)}, and before at "
                f"{quoted(site_of[subject])}; "
                "a case can be at one site only"
            )
    if not site_of:
        raise DataError(f"{file}: holds no row; needed is one per case")
    return site_of


def assign_cases(
    patient_by_case: Mapping[str, str], sites: int, rng: np.random.Generator
) -> dict[str, str]:
    """Deal cases at random to sites whose sizes are as 1 : 2 : … : ``sites``, as patients differ.

    All examinations of a patient go to one site.

    Returns:
        The site's name by case.
    """
    patients = sorted({*patient_by_case.values()})
    order = rng.permutation(len(patients))
    ends = [round(len(order) * k * (k + 1) / (sites * (sites + 1))) for k in range(sites + 1)]
    site_of = {
        patients[index]: site
        for site, (start, end) in zip(
            site_names(str(k) for k in range(1, sites + 1)), itertools.pairwise(ends), strict=True
        )
        for index in order[start:end]
    }
    return {case: site_of[patient] for case, patient in sorted(patient_by_case.items())}


def choose_modalities(
    sites: Sequence[str],
    modalities: Sequence[str],
    setting: str,
    holds: Mapping[str, tuple[str, ...]],
    rng: np.random.Generator,
) -> dict[str, tuple[str, ...]]:
    """Choose the modalities of each site.

    In multi-modal each site holds all, in cross-modal one, in turn. In mix-modal ``holds`` gives
    the modalities of some sites; to the other sites the sets of two or more modalities, but not of
    all, are dealt in a random order, each once before any comes again. That is the first order
    drawn by which every modality has two holders, or, if none of a thousand does, the first by
    which the rarest modality has most.

    Args:
        sites: The sites' names, sorted.
        modalities: The modalities of the federation, sorted.
        setting: One of ``SETTINGS``.
        holds: Mix-modal only: the modalities of some of the sites.
        rng: The source of random orders.

    Returns:
        The modalities of each site, sorted.

    Raises:
        DataError: ``holds`` names an unknown site or modality, or there are too few modalities
            for sites to hold different sets of them.
    """
    if setting == "multi-modal":
        return dict.fromkeys(sites, tuple(modalities))
    if setting == "cross-modal":
        return {site: (m,) for site, m in zip(sites, itertools.cycle(modalities), strict=False)}
    for site, chosen in holds.items():
        if site not in sites:
            raise DataError(f"--hold: there is no site {site!r}; these are: {', '.join(sites)}")
        if strange := sorted(set(chosen) - set(modalities)):
            raise DataError(
                f"--hold {site}: no case has {', '.join(strange)}; the cases have "
                f"{', '.join(modalities)}"
            )
    others = [site for site in sites if site not in holds]
    sets = [s for n in range(2, len(modalities)) for s in itertools.combinations(modalities, n)]
    if others and not sets:
        raise DataError(
            f"the cases have only {', '.join(modalities)}: too few for sets of two or more, but "
            f"not all, that mix-modal deals to sites. Choose for {', '.join(others)} by --hold, or "
            "another --setting"
        )

    def deal() -> dict[str, tuple[str, ...]]:
        order = itertools.cycle(rng.permutation(len(sets)))
        dealt = {site: sets[index] for site, index in zip(others, order, strict=False)}
        return {site: tuple(sorted(holds.get(site, ()))) or dealt[site] for site in sites}

    def rarest(dealt: Mapping[str, tuple[str, ...]]) -> int:
        count = Counter(m for held in dealt.values() for m in held)
        return min(HOLDERS, *(count[m] for m in modalities))

    return max((deal() for _ in range(SHUFFLES if others else 1)), key=rarest)


def choose_tests(
    cases: Sequence[Case], modalities: Collection[str], share: float, rng: np.random.Generator
) -> set[str]:
    """Choose a site's test cases, at random among the patients all of whose cases are complete.

    No patient is in both training and test cases. There are fewer test cases than the share if too
    few patients are complete, or if one patient has more cases than are needed.

    Args:
        cases: The cases of the site, sorted by name.
        modalities: The modalities of a complete case.
        share: The share of test cases, rounded to whole cases; at least one of five or more
            cases, unless it is 0.
        rng: The source of random orders.

    Returns:
        The names of the test cases.
    """
    count = round(share * len(cases))
    if share and len(cases) >= TESTED_FROM:
        count = max(count, 1)
    count = min(count, len(cases) - 1)
    patients: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        patients[patient_of(case.name, case.person)].append(case)
    complete = [
        [case.name for case in own]
        for own in patients.values()
        if all(case.images.keys() >= set(modalities) for case in own)
    ]
    chosen: set[str] = set()
    for index in rng.permutation(len(complete)):
        if len(chosen) + len(complete[index]) <= count:
            chosen.update(complete[index])
    return chosen


def write_federation(
    folder: Path,
    split: Split,
    labels: Labels,
    copy: bool = False,
    watch: Callable[[Sequence[tuple[str, Case]]], Iterable[tuple[str, Case]]] = iter,
) -> None:
    """Write the folder of a split by ``write_sites``.

    Args:
        folder: New or empty.
        split: The sites and their cases.
        labels: The label description of the cases.
        copy: Copy files instead of linking to them.
        watch: A function that is given (folder, case) for each case and yields them, such as a
            progress bar.

    Raises:
        DataError: The folder is not empty or lies among the cases, or a file cannot be linked.
    """
    write_sites(folder, split.source, split.sites, split.to_json(), labels, copy, watch)


def write_sites(
    folder: Path,
    source: Path,
    sites: Sequence[Site],
    record: Mapping[str, Any],
    labels: Labels,
    copy: bool = False,
    watch: Callable[[Sequence[tuple[str, Case]]], Iterable[tuple[str, Case]]] = iter,
) -> None:
    """Write a federation's folder, whole or not at all.

    Links are absolute and lead to the files themselves, not to other links. So the federation can
    be moved, and a broken link shows which file is gone.

    Args:
        folder: New or empty.
        source: The folder of the cases.
        sites: The cases of each site.
        record: The content of ``split.json``.
        labels: The label description of the cases.
        copy: Copy files instead of linking to them.
        watch: A function that is given (folder, case) for each case and yields them, such as a
            progress bar.

    Raises:
        DataError: The folder is not empty or lies among the cases, or a file cannot be linked.
    """
    _check_new(folder, source)
    placed = [(site.name, case) for site in sites for case in site.train]
    placed += [(tests_folder(site.name), case) for site in sites for case in site.tests]
    tests = {site.name: tests_folder(site.name) for site in sites if site.tests}
    with replacing(folder.resolve()) as temporary:
        temporary.mkdir()
        for place, case in watch(placed):
            target = temporary / place / case.name
            target.mkdir(parents=True)
            files = case.files
            if isinstance(case.label, Path):
                files = {**files, "seg": case.label}
            for kind, file in files.items():
                _put(file, target, kind, copy)
        write_json(temporary / "dataset.json", labels.to_json())
        write_json(temporary / "federation.json", {"held_out": [], "tests": tests})
        write_json(temporary / SPLIT, record)


def _check_new(folder: Path, source: Path) -> None:
    if folder.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{folder}: lies among the cases in {source}; name a folder elsewhere")
    existing = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if existing:
        raise DataError(
            f"{folder}: holds {', '.join(existing[:3])}{', …' if existing[3:] else ''}; nothing is "
            "overwritten. Name a new or empty folder"
        )


def _put(file: Path, folder: Path, kind: str, copy: bool) -> None:
    """Link or copy a file into a folder, named after its kind, as any reader understands."""
    ending = ending_of(file)
    if ending in DETACHED:
        raise DataError(
            f"{file}: is a header, and its voxels lie in another file, which it would not find "
            "from elsewhere; convert it to one file (.nrrd, .mha, .nii.gz)"
        )
    target = folder / f"{kind}{ending}"
    if copy:
        shutil.copyfile(file, target)
        return
    try:
        target.symlink_to(file.resolve())
    except OSError as reason:
        raise DataError(
            f"{folder.parent}: cannot hold links ({reason.strerror}); --copy copies the files"
        ) from None
