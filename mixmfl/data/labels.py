"""The meaning of the numbers in a label file: nnU-Net's description, checked once when read.

Files hold *values* (BraTS: 0, 1, 2, 4); networks use *indices* (0, 1, 2, 3). Values are in files
and messages, indices everywhere else. Sites may have other values and label other classes than
their federation; ``label_sets`` maps them, by name.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json
from mixmfl.core.records import read_record
from mixmfl.core.text import quoted, shorten

LARGEST_VALUE = 65535  # label files are written with at most 16 bits
MOST_LABELS = 1000  # and regions; atlases of the brain have some 200
LONGEST_NAME = 100  # characters of a label's name
EXAMPLE = '{"labels": {"background": 0, "lesion": 1}}'
REGIONS_EXAMPLE = (
    '{"labels": {"background": 0, "whole tumour": [1, 2, 3], "core": [2, 3], "enhancing": 3}, '
    '"regions_class_order": [1, 2, 3]}'
)


_Value = Annotated[int, within(0, LARGEST_VALUE)]
_Values = Annotated[tuple[_Value, ...], entries(1, MOST_LABELS)]
_Name = Annotated[str, text(LONGEST_NAME)]
_NewName = Annotated[str, text(LONGEST_NAME, r"[^<>/\\]+", "printable text without < > / \\")]


@dataclass(frozen=True)
class _Written:
    """The description as dataset.json has it, but for a label's single value, a list of one here.

    Attributes:
        labels: Values by name of a label or region.
        regions_class_order: See ``Labels``; only read where there are regions.
        label_map: By label, or by value as text, its name in the federation.
    """

    labels: Annotated[Mapping[_Name, _Values], entries(1, MOST_LABELS)]
    regions_class_order: Annotated[tuple[_Value, ...], entries(0, MOST_LABELS)] | None = None
    label_map: Annotated[Mapping[_Name, _NewName], entries(0, MOST_LABELS)] = field(
        default_factory=dict
    )


@dataclass(frozen=True)
class Labels:
    """A label description.

    Attributes:
        declared: nnU-Net's ``labels``: each name's value, or the values whose union is that
            region. Holds ``"background": 0`` and may hold ``"ignore"``, which is never a region.
        regions_class_order: For each region the value painted for it, later over earlier;
            None where every name is one value.
        read_as: Values in files that stand for a declared value, by ``label_map``.
        renamed: The new names of labels that dataset.json has under another name.
    """

    declared: Mapping[str, int | tuple[int, ...]]
    regions_class_order: tuple[int, ...] | None = None
    read_as: Mapping[int, int] = field(default_factory=dict)
    renamed: Mapping[str, str] = field(default_factory=dict, compare=False)

    @staticmethod
    def from_dataset_json(content: Mapping[str, Any], source: str) -> "Labels":
        """Read and check the label description of a dataset.json.

        Args:
            content: The whole file, of which ``labels``, ``regions_class_order`` and ``label_map``
                are read; or plans, which hold such a description.
            source: The file's name in messages.

        Raises:
            DataError: The description is missing, or contradicts itself.
        """
        if not isinstance(content, Mapping):
            raise DataError(f"{source}: is {quoted(content)}; an object as {EXAMPLE} is needed")
        written = content.get("labels")
        if isinstance(written, Mapping) and isinstance(written.get("labels"), Mapping):
            return Labels.from_dataset_json(written, source)  # of plans
        if not isinstance(written, Mapping) or not written:
            raise DataError(f'{source}: "labels" is missing or empty; write it as {EXAMPLE}')
        if written.get("0") == "background":
            raise DataError(
                f'{source}: "labels" maps values to names, the form before nnU-Net v2; '
                f"names must come first, as in {EXAMPLE}"
            )
        described = _read_written(content, source)
        declared = _declared(described.labels, source)
        if declared.get("background") != 0:
            background = declared.get("background", "not declared")
            raise DataError(f'{source}: "background" is {background}; it must be declared as 0')
        ignore = declared.get("ignore")
        if isinstance(ignore, tuple):
            raise DataError(f'{source}: "ignore" is {list(ignore)}; it must be a single value')

        order = _check_order(described.regions_class_order, declared, source)
        labels = Labels(declared, order)
        if len(labels.values) > MOST_LABELS + 1:
            raise DataError(
                f"{source}: regions have {len(labels.values) - 1} values; {MOST_LABELS} at most"
            )
        if not labels.foreground:
            raise DataError(f'{source}: "labels" names nothing but background; see {EXAMPLE}')
        if ignore in labels.values:
            raise DataError(f'{source}: "ignore" is {ignore}, which another label uses as well')
        if not labels.has_regions:
            name_of: dict[int | tuple[int, ...], str] = {}
            for name, value in declared.items():
                if value in name_of:
                    raise DataError(
                        f"{source}: labels {name_of[value]!r} and {name!r} both have value {value}"
                    )
                name_of[value] = name
        return _map_names(labels, described.label_map, source)

    @classmethod
    def load(cls, path: Path) -> "Labels":
        """Read the labels of a dataset.json.

        Raises:
            DataError: The file is missing, damaged or contradicts itself.
        """
        return cls.from_dataset_json(read_json(path), str(path))

    def to_json(self) -> dict[str, Any]:
        """Return the description in nnU-Net's form, as dataset.json holds it."""
        written: dict[str, Any] = {
            "labels": {
                name: list(value) if isinstance(value, tuple) else value
                for name, value in self.declared.items()
            }
        }
        if self.regions_class_order is not None:
            written["regions_class_order"] = list(self.regions_class_order)
        if self.read_as:
            name_of = {
                value: name for name, value in self.declared.items() if isinstance(value, int)
            }
            written["label_map"] = {str(v): name_of[self.read_as[v]] for v in sorted(self.read_as)}
        return written

    @property
    def values(self) -> tuple[int, ...]:
        """All values a case may hold, sorted, with 0 and without the ignore value."""
        numbers = {0}
        for value in self.foreground.values():
            numbers.update(value)
        return tuple(sorted(numbers))

    @property
    def ignore(self) -> int | None:
        """The value of voxels without a label, if one is declared."""
        value = self.declared.get("ignore")
        return value if isinstance(value, int) else None

    @property
    def has_regions(self) -> bool:
        """Whether some name stands for more than one value."""
        return _has_regions(self.declared)

    @property
    def foreground(self) -> dict[str, tuple[int, ...]]:
        """The values of each foreground label or region, in the order declared."""
        return {
            name: value if isinstance(value, tuple) else (value,)
            for name, value in self.declared.items()
            if name not in ("background", "ignore")
        }

    def only(self, names: Collection[str] | None) -> "Labels":
        """Return the description of some labels or regions only; with None this description."""
        if names is None:
            return self
        chosen = [name for name in self.foreground if name in names]
        order = self.regions_class_order
        return Labels(
            {n: v for n, v in self.declared.items() if n in (*chosen, "background", "ignore")},
            None
            if order is None
            else tuple(v for n, v in zip(self.foreground, order, strict=True) if n in chosen),
        )

    def to_indices(self, array: npt.NDArray[Any]) -> npt.NDArray[np.int16]:
        """Replace values by indices 0..K-1; the ignore value becomes K.

        Raises:
            DataError: The array holds values that are not declared.
        """
        index = self.index_of_value
        return replace_values(array, {**index, **{v: index[w] for v, w in self.read_as.items()}})

    def to_values(self, array: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
        """Replace indices 0..K-1, and K where an ignore value is declared, by values."""
        return np.asarray(self._values_by_index(), dtype=np.int32)[array]

    def counted(self, reference: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return which voxels of a reference, in values of this description, are not ignored."""
        if self.ignore is None:
            return np.ones(reference.shape, dtype=bool)
        return np.asarray(reference != self.ignore)

    def consecutive(self) -> "Labels":
        """Return the same description in indices, which is the form nnU-Net accepts."""
        index = self.index_of_value
        order = self.regions_class_order
        return Labels(
            {
                name: tuple(index[v] for v in value) if isinstance(value, tuple) else index[value]
                for name, value in self.declared.items()
            },
            None if order is None else tuple(index[value] for value in order),
        )

    def difference(self, other: "Labels") -> str | None:
        """Describe how another description differs; None where both mean the same."""
        for name in sorted(self.declared.keys() | other.declared.keys()):
            mine, theirs = self.declared.get(name), other.declared.get(name)
            if mine != theirs:
                return f"label {name!r} is {_in_words(mine)} against {_in_words(theirs)}"
        # plain labels mean the same in any order; regions are painted one over the other
        if self.has_regions and list(self.foreground) != list(other.foreground):
            return f"regions are listed as {list(self.foreground)} against {list(other.foreground)}"
        if self.regions_class_order != other.regions_class_order:
            return (
                f"regions_class_order is {_in_words(self.regions_class_order)} "
                f"against {_in_words(other.regions_class_order)}"
            )
        return None

    @property
    def index_of_value(self) -> dict[int, int]:
        """The network's index of every declared value; the ignore value has the last one."""
        return {value: index for index, value in enumerate(self._values_by_index())}

    def _values_by_index(self) -> tuple[int, ...]:
        return self.values if self.ignore is None else (*self.values, self.ignore)


def replace_values(array: npt.NDArray[Any], index_of: Mapping[int, int]) -> npt.NDArray[np.int16]:
    """Replace every value of an array by its index.

    Raises:
        DataError: The array holds values without an index.
    """
    lowest, highest = (int(array.min()), int(array.max())) if array.size else (0, 0)
    if lowest >= 0 and highest <= LARGEST_VALUE:
        present = np.flatnonzero(np.bincount(array.ravel(), minlength=1))
    else:
        present = np.unique(array)
    strange = sorted(set(present.tolist()) - set(index_of))
    if strange:
        raise DataError(
            f"holds the label values {shorten(strange, 10)}, but only "
            f"{shorten(sorted(index_of), 10)} are declared"
        )
    table = np.zeros(max(index_of) + 1, dtype=np.int16)
    table[list(index_of)] = list(index_of.values())
    return table[array]


def read_dataset_json(folder: Path) -> dict[str, Any]:
    """Read a folder's dataset.json; return an empty dictionary if there is none.

    Raises:
        DataError: The file is damaged.
    """
    path = folder / "dataset.json"
    return read_json(path) if path.is_file() else {}


def read_folder_labels(folder: Path) -> Labels | None:
    """Read the label description of a folder's own dataset.json; None if there is none.

    Raises:
        DataError: The file is damaged or contradicts itself.
    """
    content = read_dataset_json(folder)
    if "labels" not in content:
        return None
    return Labels.from_dataset_json(content, str(folder / "dataset.json"))


def read_site_labels(site_folder: Path, federation_folder: Path) -> Labels:
    """Read a site's label description: from its own dataset.json, else from the federation's.

    Raises:
        DataError: Neither file holds a label description, or one is damaged.
    """
    for folder in (site_folder, federation_folder):
        if labels := read_folder_labels(folder):
            return labels
    found = [f / "dataset.json" for f in (site_folder, federation_folder) if read_dataset_json(f)]
    without = f'{" and ".join(map(str, found))}: no "labels" in it. ' if found else ""
    raise DataError(
        f"{site_folder}: what do its labels mean? {without}Needed is a dataset.json there, or for "
        f"all sites in {federation_folder}, such as\n  {EXAMPLE}\n"
        f"or, for regions that overlap,\n  {REGIONS_EXAMPLE}"
    )


def _has_regions(declared: Mapping[str, int | tuple[int, ...]]) -> bool:
    return any(isinstance(value, tuple) for value in declared.values())


def _read_written(content: Mapping[str, Any], source: str) -> _Written:
    """Read the fields of a dataset.json that describe labels; others are left alone.

    Raises:
        DataError: One of them is something else than it may be.
    """
    listed = {
        name: value if isinstance(value, list | tuple) else [value]
        for name, value in content["labels"].items()
    }
    found: dict[str, Any] = {"labels": listed}
    if any(len(values) != 1 for values in listed.values()):
        found["regions_class_order"] = content.get("regions_class_order")
    if "label_map" in content:
        found["label_map"] = content["label_map"]
    return read_record(_Written, found, source, DataError)


def _declared(
    labels: Mapping[str, tuple[int, ...]], source: str
) -> dict[str, int | tuple[int, ...]]:
    """Return each name's value, or the sorted values of a region; a list of one is one value.

    Raises:
        DataError: A name other than background has value 0.
    """
    declared: dict[str, int | tuple[int, ...]] = {}
    for name, values in labels.items():
        if name != "background" and 0 in values:
            raise DataError(
                f"{source}: label {name!r} is {list(values)}; 0 is background and nothing else"
            )
        unique = tuple(sorted(set(values)))
        declared[name] = unique if len(unique) > 1 else unique[0]
    return declared


def _check_order(
    order: tuple[int, ...] | None, declared: Mapping[str, int | tuple[int, ...]], source: str
) -> tuple[int, ...] | None:
    """Check ``regions_class_order`` against the regions; without regions it has no meaning.

    Raises:
        DataError: It is missing, or has another number of values, or values of other regions.
    """
    if not _has_regions(declared):
        return None
    regions = Labels(declared).foreground
    example: list[int] = []
    later: set[int] = set()
    for values in reversed(regions.values()):  # painted later, so that its values are not free
        example.insert(0, next((value for value in values if value not in later), values[0]))
        later |= {*values}
    if order is None or len(order) != len(regions):
        written = "missing" if order is None else quoted(list(order))
        raise DataError(
            f'{source}: "regions_class_order" is {written}; the regions {list(regions)} '
            f"need one value each, such as {example}: the value to paint for it, later over earlier"
        )
    for value, (name, values) in zip(order, regions.items(), strict=True):
        if value not in values:
            raise DataError(
                f'{source}: "regions_class_order" paints {value} for region {name!r}, '
                f"which holds the values {list(values)} only"
            )
    return order


def _map_names(labels: Labels, new_names: Mapping[str, str], source: str) -> Labels:
    """Apply ``label_map``, which gives some labels or values their name in the federation.

    Without regions several labels may become one label, background, or ignored.
    """
    example = '{"label_map": {"tumour": "lesion", "cyst": "background", "7": "ignore"}}'
    reserved = {"background", "ignore"} & labels.declared.keys()
    name_of = {
        name: name if name in reserved else new_names.get(name, name) for name in labels.declared
    }
    targets = [name_of[name] for name in labels.foreground]
    merged = {n for n in targets if n in ("background", "ignore") or targets.count(n) > 1}
    if labels.has_regions and merged:
        raise DataError(
            f'{source}: "label_map" adds labels to {sorted(merged)[0]!r}; where there are regions '
            'it only gives other names. Write under "labels" which values belong to them'
        )
    declared: dict[str, int | tuple[int, ...]] = {}
    read_as: dict[int, int] = {}
    for name in sorted(name_of, key=lambda name: name not in reserved):  # these keep their values
        value = labels.declared[name]
        known = declared.setdefault(name_of[name], value)
        if isinstance(value, int) and isinstance(known, int) and known != value:
            read_as[value] = known
    for key, name in new_names.items():
        if key in labels.foreground:
            continue
        value = int(key) if key.isdecimal() and len(key) < 6 else 0
        if not 0 < value <= LARGEST_VALUE or value in (*labels.values, labels.ignore):
            raise DataError(
                f'{source}: "label_map" names {quoted(key)}, which is neither one of its labels '
                f"({', '.join(labels.foreground)}) nor a value beside them; see {example}"
            )
        known = declared.setdefault(name, value)
        if isinstance(known, tuple):
            raise DataError(
                f'{source}: "label_map" reads {key} as {name!r}, which is a region; add the value '
                'to it under "labels"'
            )
        if known != value:
            read_as[value] = known
    order = {name: declared[name] for name in name_of.values()} | declared
    renamed = {name: new for name, new in name_of.items() if name != new}
    mapped = replace(labels, declared=order, read_as=read_as, renamed=renamed)
    if not mapped.foreground:
        raise DataError(f'{source}: "label_map" leaves no label but background; see {example}')
    return mapped


def _in_words(value: int | tuple[int, ...] | None) -> str:
    if value is None:
        return "not declared"
    return str(list(value)) if isinstance(value, tuple) else str(value)
