"""Sites with different label sets: one description for all, and what each site's values are in it.

Names bring them together. A class that a site does not label is unknown there, not absent: in its
cases background may hide it.
"""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError
from mixmfl.data.labels import Labels, replace_values

Pattern = frozenset[str]
"""The labels and regions that a voxel belongs to; none of background."""


@dataclass(frozen=True)
class LabelMap:
    """How the label files of one site are read in the federation's indices.

    Attributes:
        index_of: The federation's index of every value that the site's files may hold.
        value_of: The federation's value of each.
        labelled: The federation's labels and regions that the site labels; None: all of them.
    """

    index_of: Mapping[int, int]
    value_of: Mapping[int, int]
    labelled: tuple[str, ...] | None

    def to_indices(self, array: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
        """Replace the site's values by the federation's indices.

        Raises:
            DataError: The array holds values that the site does not declare.
        """
        return replace_values(array, self.index_of)

    @property
    def renamed(self) -> dict[str, str]:
        """The federation's value of each, as a fingerprint names values."""
        return {str(old): str(new) for old, new in self.value_of.items()}


def map_labels(own: Labels, federation: Labels) -> LabelMap:
    """Return how a site's values are read in its federation's terms.

    A value stands for the labels and regions that it belongs to. Where the site labels some only,
    several of the federation's values may be that; the one that belongs to fewest others is taken.

    Raises:
        DataError: The federation does not know a name, or has no such value.
    """
    names = frozenset(own.foreground)
    if strange := [name for name in own.foreground if name not in federation.foreground]:
        raise DataError(
            f"labels {', '.join(map(repr, strange))} are not among "
            f"{', '.join(map(repr, federation.foreground))}; if one of these is meant, say so by "
            '"label_map" in dataset.json'
        )
    if own.ignore is not None and federation.ignore is None:
        raise DataError(f"ignores the value {own.ignore}, and 'ignore' is declared for no site")
    known = patterns(federation)
    best: dict[Pattern, int] = {}  # by what the site would see of it
    for value in sorted(known, key=lambda v: (len(known[v]), v)):
        best.setdefault(known[value] & names, value)
    value_of = {}
    for value, pattern in patterns(own).items():
        if pattern not in best:
            raise DataError(
                f"value {value} is in {_say(pattern)} and in no other of "
                f"{_say(names)}; no value of {_say(frozenset(federation.foreground))} is so"
            )
        value_of[value] = best[pattern]
    if own.ignore is not None and federation.ignore is not None:
        value_of[own.ignore] = federation.ignore
    value_of |= {value: value_of[other] for value, other in own.read_as.items()}
    index = federation.index_of_value
    return LabelMap(
        {value: index[new] for value, new in value_of.items()},
        value_of,
        None if names == frozenset(federation.foreground) else tuple(own.foreground),
    )


def agree_on_labels(sites: Mapping[str, Labels], described: Labels | None = None) -> Labels:
    """Return one description for all sites: what they share, or else the union of their labels.

    The union keeps the values and the order of ``described``, or of the site with the most labels,
    as far as these go. Regions of different sites overlap where one description says so.

    Args:
        sites: What each site's labels mean.
        described: What the federation itself says of labels, if it does.

    Raises:
        DataError: Two names differ in spelling only, or the union cannot be told apart.
    """
    ordered = [sites[name] for name in sorted(sites)]
    first = ordered[0]
    if all(other.difference(first) is None for other in ordered):
        return Labels(first.declared, first.regions_class_order)
    _check_spelling(sites)
    # the one that needs the fewest additions; of these the first
    base = described or max(ordered, key=lambda labels: len(labels.foreground))
    parts = [base, *ordered]
    names = list(dict.fromkeys(name for part in parts for name in part.foreground))
    ignores = [part.ignore for part in parts if part.ignore is not None]
    if set(names) == set(base.foreground) and (base.ignore is not None or not ignores):
        made = Labels(base.declared, base.regions_class_order)
        if _fits(ordered, made):
            return made
    union: dict[int, Pattern] = {}  # by value
    for part in sorted(parts, key=lambda part: (part is not base, -len(part.foreground))):
        own = frozenset(part.foreground)
        known = {frozenset[str](), *(pattern & own for pattern in union.values())}
        for value, pattern in patterns(part).items():
            if pattern not in known:
                union[_free(value, union)] = pattern
                known.add(pattern)
    members = {n: tuple(sorted(v for v, known in union.items() if n in known)) for n in names}
    regions = any(len(pattern) > 1 for pattern in union.values())
    # a region is painted over by those that lie in it
    names.sort(key=lambda name: -len(members[name]) if regions else 0)
    declared: dict[str, int | tuple[int, ...]] = {"background": 0}
    for name in names:
        declared[name] = members[name] if len(members[name]) > 1 else members[name][0]
    if ignores:
        declared["ignore"] = _free(ignores[0], union)
    order = tuple(min(members[n], key=lambda v: (len(union[v]), v)) for n in names)
    return Labels(declared, order if any(len(m) > 1 for m in members.values()) else None)


def plain_name(name: str) -> str:
    """Return a name without what people write now so, now so: case, spaces and signs."""
    return "".join(filter(str.isalnum, name.casefold()))


def describe_sets(sites: Mapping[str, Labels], federation: Labels) -> list[str]:
    """Return who labels what, a line per label or region; nothing where all label the same."""
    if all(labels.difference(federation) is None for labels in sites.values()):
        return []
    lines = ["labels of the federation (the sites describe theirs differently):"]
    for name, values in federation.foreground.items():
        who = [
            f"{site} as {', '.join(map(str, sites[site].foreground[name]))}"
            for site in sorted(sites)
            if name in sites[site].foreground
        ]
        told = "; ".join(who) if who else "no site, so the network cannot learn it"
        lines.append(f"  {name} ({', '.join(map(str, values))}): {told}")
    return lines


def labels_each(federation: Labels, labelled: Collection[str] | None) -> list[bool]:
    """Return whether each label or region of the federation is among those that are labelled."""
    return [labelled is None or name in labelled for name in federation.foreground]


def known_indices(federation: Labels, labelled: Collection[str] | None) -> tuple[bool, ...]:
    """Return for each index of the federation whether a voxel labelled so is surely of that class.

    With regions, a site that labels some of them may not tell two classes apart; then neither is
    known. Background is taken for known: what it hides of other classes is little.
    """
    if labelled is None:
        return (True,) * len(federation.values)
    seen = [pattern & frozenset(labelled) for pattern in patterns(federation).values()]
    count = Counter(seen)
    return tuple(index == 0 or count[pattern] == 1 for index, pattern in enumerate(seen))


def patterns(labels: Labels) -> dict[int, Pattern]:
    """Return what each value belongs to, background first, values sorted."""
    found: dict[int, set[str]] = {value: set() for value in labels.values}
    for name, values in labels.foreground.items():
        for value in values:
            found[value].add(name)
    return {value: frozenset(names) for value, names in found.items()}


def _fits(sites: list[Labels], federation: Labels) -> bool:
    try:
        return all(map_labels(labels, federation) for labels in sites)
    except DataError:
        return False


def _free(value: int, used: Mapping[int, Pattern]) -> int:
    """Return a value, or the smallest other above 0 that is not used."""
    return next(v for v in (value, *range(1, len(used) + 2)) if v not in used)


def _check_spelling(sites: Mapping[str, Labels]) -> None:
    """Refuse names that are the same but for case, spaces and the like: one class became two."""
    seen: dict[str, tuple[str, str]] = {}
    for site in sorted(sites):
        for name in sites[site].foreground:
            known, other = seen.setdefault(plain_name(name), (name, site))
            if known != name:
                raise DataError(
                    f"site {other} labels {known!r}, site {site} {name!r}: is that the same? Write "
                    'it alike in both dataset.json, or give it another name there by "label_map"'
                )


def _say(names: Pattern) -> str:
    return ", ".join(sorted(names)) or "background"
