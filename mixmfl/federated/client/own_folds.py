"""The folds of a hospital, which are dealt once: no fold or seed that is asked for changes them.

Whoever may choose how cases are split learns one case's Dice as the difference of two sums, over
cases that differ in that one. The five folds of one dealing have no case in common, so of their
sums nothing about fewer cases than a fold's can be had by subtraction.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated

from mixmfl.core.declarations import LONGEST_PATH, entries, text, within
from mixmfl.core.errors import PrivacyError
from mixmfl.core.files import read_long_json, write_json
from mixmfl.core.records import read_value
from mixmfl.core.text import plural
from mixmfl.data.patients import patient_of
from mixmfl.federated.exchange_log import note
from mixmfl.federated.sites import Split, deal_folds, split_fold
from mixmfl.inference.model_folder import EVERY_CASE, FOLD_COUNT
from mixmfl.planning.fingerprint import MOST_CASES

_Dealt = Annotated[
    Mapping[Annotated[str, text(LONGEST_PATH)], Annotated[int, within(0, FOLD_COUNT - 1)]],
    entries(0, MOST_CASES),
]


class OwnFolds:
    """A hospital's record of the fold in which each of its cases validates."""

    def __init__(self, file: Path, log: Path) -> None:
        """Args: file: where the record lasts; log: where it is noted what does not validate."""
        self._file, self._log = file, log

    def split(
        self,
        cases: Mapping[str, Collection[str]],
        fold: str,
        seed: int,
        site: str,
        patients: Mapping[str, str],
    ) -> Split:
        """Split the cases as ``split_fold`` does when it is asked first, and so ever after.

        A case that came later trains and never validates. A fold that lost a case validates none,
        because its Dice and the one before would differ by that case.

        Raises:
            PrivacyError: The record is damaged.
        """
        if fold == EVERY_CASE:
            return split_fold(cases, fold, seed, site, patients)
        if not self._file.exists():
            write_json(self._file, deal_folds(cases, seed, site, patients))
        content = read_long_json(self._file, PrivacyError)
        dealt: Mapping[str, int] = read_value(_Dealt, content, str(self._file), PrivacyError)
        of_fold = {name for name, number in dealt.items() if number == int(fold)}
        held = {patient_of(name, patients.get(name, "")) for name in of_fold}
        training = tuple(
            name for name in sorted(cases) if patient_of(name, patients.get(name, "")) not in held
        )
        problems = []
        if new := cases.keys() - dealt.keys():
            problems.append(f"{plural(len(new), 'case')} came later and validate in no fold")
        if lost := of_fold - cases.keys():
            problems.append(f"fold {fold} lost {plural(len(lost), 'case')} and validates none")
        for problem in problems:
            note(
                self._log,
                f"{self._file} has this hospital's folds: {problem}. To deal again, which lets a "
                "coordinator compare new sums of Dice with old ones, remove that file",
            )
        return training, () if lost else tuple(sorted(of_fold))
