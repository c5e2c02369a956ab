"""Patients of hospitals as federations, by test fold and by the modalities that sites train on.

A *study* is a read-only folder of patients::

    DATA/<site>/<patient>/...    cases in a layout that ``cases.find_cases`` knows
    DATA/splits.json             {"modality_sets": {SET: {SITE: [MODALITY, ...]}},
                                  "test_folds": [{SITE: [PATIENT, ...]}, ...]}
    DATA/dataset.json            what the labels mean; without it 1 is a lesion

A federation has a fold and a set. The patients of the fold are test cases, with all modalities that
any site trains on; a site trains on its other patients, with the modalities of the set alone.
"""

import dataclasses
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from mixmfl.core.errors import DataError, Refused
from mixmfl.core.files import read_long_json
from mixmfl.core.records import read_record
from mixmfl.data.cases import Case, find_cases
from mixmfl.data.labels import Labels, read_folder_labels
from mixmfl.data.modalities import Modalities
from mixmfl.data.partition import SPLIT, Site, write_sites
from mixmfl.research.benchmark.records import Splits

SPLITS = "splits.json"
LESION = Labels({"background": 0, "lesion": 1})
"""The labels of a study without ``dataset.json``."""


@dataclass(frozen=True)
class Study:
    """The patients of several hospitals, and how they are split.

    Attributes:
        folder: The study's folder.
        cases: Cases of each site, sorted by name.
        refused: Cases of each site that cannot be used.
        modality_sets: Modalities that a site trains on, by the set's name, then by site.
        test_folds: Names of the test patients, by fold, then by site.
        labels: Meaning of the labels.
    """

    folder: Path
    cases: Mapping[str, tuple[Case, ...]]
    refused: Mapping[str, tuple[Refused, ...]]
    modality_sets: Mapping[str, Mapping[str, tuple[str, ...]]]
    test_folds: tuple[Mapping[str, tuple[str, ...]], ...]
    labels: Labels

    def only(self, hospitals: Collection[str]) -> "Study":
        """Return the study of some hospitals, as if the others were not in its modality sets.

        Raises:
            DataError: No modality set has one of them.
        """
        known = {site for held in self.modality_sets.values() for site in held}
        if unknown := sorted(set(hospitals) - known):
            raise DataError(
                f"{self.folder / SPLITS}: no modality set has a hospital {unknown[0]!r}, but "
                f"{', '.join(sorted(known))}"
            )
        sets = {
            name: {site: held for site, held in by_site.items() if site in hospitals}
            for name, by_site in self.modality_sets.items()
        }
        return dataclasses.replace(self, modality_sets=sets)

    def federation(self, modality_set: str, fold: int) -> tuple[Site, ...]:
        """Return the sites of a federation, sorted by name.

        Args:
            modality_set: Name of the modality set.
            fold: Number of the test fold, from 0.

        Raises:
            DataError: There is no such set or fold, or a site would have nothing to train on.
        """
        if modality_set not in self.modality_sets:
            known = ", ".join(self.modality_sets)
            raise DataError(
                f"{self.folder / SPLITS}: no modality set {modality_set!r}, but {known}"
            )
        if not 0 <= fold < len(self.test_folds):
            raise DataError(
                f"{self.folder / SPLITS}: no fold {fold}; there are 0 to {len(self.test_folds) - 1}"
            )
        sites, tests = [], self.test_folds[fold]
        for name, modalities in sorted(self.modality_sets[modality_set].items()):
            tested = tests.get(name, ())
            cases = [case for case in self.cases[name] if case.name not in tested]
            seen = [case.only(modalities) for case in cases]
            train = tuple(case for case in seen if case.images)
            if not train:
                raise DataError(
                    f"{self.folder / name}: in set {modality_set} the site trains on "
                    f"{', '.join(modalities)}, which none of its patients outside fold {fold} has"
                )
            chosen = tuple(case for case in self.cases[name] if case.name in tested)
            sites.append(Site(name, tuple(sorted(modalities)), train, chosen))
        if not sites:
            raise DataError(
                f"{self.folder / SPLITS}: set {modality_set} has none of the hospitals asked for"
            )
        # plans know a modality only by cases that train on it
        trained = {m for site in sites for case in site.train for m in case.images}
        return tuple(
            dataclasses.replace(site, tests=tuple(case.only(trained) for case in site.tests))
            for site in sites
        )


def read_study(folder: Path) -> Study:
    """Read a study's splits and find its patients; no image is opened.

    Raises:
        DataError: Splits are missing or damaged, or contradict the patients in the folder.
    """
    file = folder / SPLITS
    if not file.is_file():
        raise DataError(
            f"{file}: there is no such file; a folder of patients with modality_sets and "
            "test_folds in splits.json is needed (docs/benchmark.md)"
        )
    splits = read_record(Splits, read_long_json(file), str(file), DataError)
    modalities, folds = Modalities(), splits.test_folds
    sets = {
        name: {
            site: tuple(_modality(word, modalities, file) for word in words)
            for site, words in held.items()
        }
        for name, held in splits.modality_sets.items()
    }
    names = sorted({site for by_site in (*sets.values(), *folds) for site in by_site})
    listings = {site: find_cases(folder / site, modalities, labels_needed=True) for site in names}
    for number, fold in enumerate(folds):
        for site, patients in fold.items():
            known = {case.name for case in listings[site].cases}
            known |= {refused.name for refused in listings[site].refused}
            if unknown := sorted(set(patients) - known):
                raise DataError(
                    f"{file}: {unknown[0]!r} tests in fold {number}, but {folder / site} has no "
                    "such patient; are splits and patients of the same study?"
                )
    return Study(
        folder,
        {site: each.cases for site, each in listings.items()},
        {site: each.refused for site, each in listings.items()},
        sets,
        folds,
        read_folder_labels(folder) or LESION,
    )


def write_patients(study: Study, modality_set: str, fold: int, out: Path) -> None:
    """Write a federation's folder of links to the study's files, whole or not at all.

    Args:
        study: The study with the patients.
        modality_set: Name of the modality set.
        fold: Number of the test fold.
        out: Folder to write, outside the study: new, empty, or with this federation, which is left
            as it is.

    Raises:
        DataError: ``Study.federation`` or ``partition.write_sites`` raised it, or ``out`` has other
            hospitals or patients.
    """
    sites = study.federation(modality_set, fold)
    by_name = {site.name: site.to_json() for site in sites}
    if (out / SPLIT).is_file():
        if read_long_json(out / SPLIT)["sites"] != json.loads(json.dumps(by_name)):
            raise DataError(
                f"{out}: is of other hospitals, patients or modalities than asked for now "
                f"({', '.join(by_name)}); name another folder by -o"
            )
        return
    record = {
        "what": "which patient went where; written by mixmfl_benchmark_patients",
        "cases": str(study.folder.resolve()),
        "modality_set": modality_set,
        "fold": fold,
        "sites": by_name,
    }
    write_sites(out, study.folder, sites, record, study.labels)


def _modality(word: str, modalities: Modalities, file: Path) -> str:
    name = modalities.find(word)
    if name is None:
        raise DataError(f"{file}: {word!r} is no modality; known are {', '.join(modalities.names)}")
    return name
