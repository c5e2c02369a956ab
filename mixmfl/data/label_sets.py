"""Sites with different label sets: one description for all, and how each site's values map to it.

Labels are matched by name. A class that a site does not label is unknown there, not known to be
missing: the background of its cases may hide it.
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
"""The labels and regions that a voxel belongs to; empty for background."""


@dataclass(frozen=True)
class LabelMap:
    """How the label files of one site are read in the federation's indices.

    Attributes:
        index_of: The federation's index for every value that the site's files may hold.
        labelled: The federation's labels and regions that the site labels; None for all of them.
    """

    index_of: Mapping[int, int]
    labelled: tuple[str, ...] | None

    def to_indices(self, array: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
        """Replace the site's values by the federation's indices.

        Raises:
            DataError: The array holds values that the site does not declare.
        """
        return replace_values(array, self.index_of)


def map_labels(own: Labels, federation: Labels) -> LabelMap:
    """Return how a site's values map to those of its federation.

    A value stands for the labels and regions that it belongs to. Where the site labels only some,
    several of the federation's values may fit; the one that belongs to fewest others is taken.

    Raises:
        DataError: The federation lacks a name, or a value that fits.
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
    best: dict[Pattern, int] = {}  # by the labels of the site in it
    for value in sorted(known, key=lambda v: (len(known[v]), v)):
        best.setdefault(known[value] & names, value)
    value_of = {}
    for value, pattern in patterns(own).items():
        if pattern not in best:
            raise DataError(
                f"value {value} is in {_join_names(pattern)} and in no other of "
                f"{_join_names(names)}; no value of "
                f"{_join_names(frozenset(federation.foreground))} is so"
            )
        value_of[value] = best[pattern]
    if own.ignore is not None and federation.ignore is not None:
        value_of[own.ignore] = federation.ignore
    value_of |= {value: value_of[other] for value, other in own.read_as.items()}
    index = federation.index_of_value
    return LabelMap(
        {value: index[new] for value, new in value_of.items()},
        None if names == frozenset(federation.foreground) else tuple(own.foreground),
    )


def agree_on_labels(sites: Mapping[str, Labels], described: Labels | None = None) -> Labels:
    """Return one description for all sites: their common one, or else the union of their labels.

    The union keeps the values and the order of ``described``, or of the site with the most labels,
    as far as these go. Regions of different sites overlap where one description says so.

    Args:
        sites: The label description of each site.
        described: The federation's own label description, if there is one.

    Raises:
        DataError: Two names differ in spelling only, or values of the union are ambiguous.
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
        agreed = Labels(base.declared, base.regions_class_order)
        if _fits(ordered, agreed):
            return agreed
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
    """Return a name without what people spell differently: case, spaces and punctuation."""
    return "".join(filter(str.isalnum, name.casefold()))


def describe_sets(sites: Mapping[str, Labels], federation: Labels) -> list[str]:
    """Return a line per label or region with the sites that label it; nothing if all are equal."""
    if all(labels.difference(federation) is None for labels in sites.values()):
        return []
    lines = ["labels of the federation (the sites describe theirs differently):"]
    for name, values in federation.foreground.items():
        who = [
            f"{site} as {', '.join(map(str, sites[site].foreground[name]))}"
            for site in sorted(sites)
            if name in sites[site].foreground
        ]
        listed = "; ".join(who) if who else "no site, so the network cannot learn it"
        lines.append(f"  {name} ({', '.join(map(str, values))}): {listed}")
    return lines


def labels_each(federation: Labels, labelled: Collection[str] | None) -> list[bool]:
    """Return for each label or region of the federation whether it is among the labelled ones."""
    return [labelled is None or name in labelled for name in federation.foreground]


def known_indices(federation: Labels, labelled: Collection[str] | None) -> tuple[bool, ...]:
    """Return for each index of the federation whether a voxel with it is surely of that class.

    A site that labels only some regions may not separate two classes; then neither is known.
    Background counts as known: it hides little of other classes.
    """
    if labelled is None:
        return (True,) * len(federation.values)
    seen = [pattern & frozenset(labelled) for pattern in patterns(federation).values()]
    count = Counter(seen)
    return tuple(index == 0 or count[pattern] == 1 for index, pattern in enumerate(seen))


def patterns(labels: Labels) -> dict[int, Pattern]:
    """Return the labels and regions of each value, sorted by value, background first."""
    names_of: dict[int, set[str]] = {value: set() for value in labels.values}
    for name, values in labels.foreground.items():
        for value in values:
            names_of[value].add(name)
    return {value: frozenset(names) for value, names in names_of.items()}


def _fits(sites: list[Labels], federation: Labels) -> bool:
    try:
        return all(map_labels(labels, federation) for labels in sites)
    except DataError:
        return False


def _free(value: int, used: Mapping[int, Pattern]) -> int:
    """Return the value if it is unused, else the smallest unused value above 0."""
    return next(v for v in (value, *range(1, len(used) + 2)) if v not in used)


def _check_spelling(sites: Mapping[str, Labels]) -> None:
    """Refuse names that differ only in case, spaces and the like: they would be two classes."""
    seen: dict[str, tuple[str, str]] = {}
    for site in sorted(sites):
        for name in sites[site].foreground:
            known, other = seen.setdefault(plain_name(name), (name, site))
            if known != name:
                raise DataError(
                    f"site {other} labels {known!r}, site {site} {name!r}: is that the same? Write "
                    'it alike in both dataset.json, or give it another name there by "label_map"'
                )


def _join_names(names: Pattern) -> str:
    return ", ".join(sorted(names)) or "background"
