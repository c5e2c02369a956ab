"""Sums over some of a site's validation cases, and which of them may leave beside those over all.

Two sums that differ in a few cases tell of these by difference. So the sums that leave cut the
cases into parts, and no part may be of fewer patients than the hospital's floor.
"""

from collections import defaultdict
from collections.abc import Collection, Sequence

from mixmfl.data.labels import Labels
from mixmfl.data.patients import patient_of
from mixmfl.planning.preprocessed_case import PreprocessedCase, labels_in
from mixmfl.training.validation import are_enough


class JudgedCases:
    """The cases that sums are over, by label: whose they are, and which have the label."""

    def __init__(self, labels: Labels) -> None:
        """Begin with no case."""
        self._labels = labels
        self._judged: dict[str, set[str]] = defaultdict(set)
        self._patients: dict[str, dict[str, str]] = defaultdict(dict)

    def add(self, case: PreprocessedCase) -> None:
        """Add a case, whether anything is measured of it or not."""
        for name in self._labels.only(case.labelled).foreground:
            self._judged[name].add(case.name)
        for name in labels_in(case, self._labels):
            self._patients[name][case.name] = patient_of(case.name, case.patient)

    def may_leave(self, label: str, sums: Sequence[Collection[str]], fewest: int) -> list[bool]:
        """Say of each of some sums of a label whether it leaves.

        Args:
            label: Label or region.
            sums: The names of the cases behind each sum; an earlier one goes before a later one.
            fewest: Fewest patients whose reference has the label; where it has not, Dice is 0.
        """
        patients, parts, leave = self._patients[label], [self._judged[label]], list[bool]()
        for cases in sums:
            finer = [some for part in parts for some in (part & {*cases}, part - {*cases}) if some]
            behind = [{patients[name] for name in some if name in patients} for some in finer]
            leave.append(all(are_enough(each, fewest) for each in behind))
            parts = finer if leave[-1] else parts
        return leave
