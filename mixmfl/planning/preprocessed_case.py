"""Preprocessed cases on disk: Blosc2 arrays with only the modalities a case has, and JSON.

A case is ``<case>.images.b2nd``, ``<case>.labels.b2nd`` and ``<case>.json``. The JSON is written
last; a case without it was left half done and does not exist for readers.
"""

import dataclasses
import errno
import math
import os
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import blosc2
import numpy as np
from blosc2 import blosc2_ext
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import DataError, why
from mixmfl.core.files import only_files, read_long_json, replacing, write_json
from mixmfl.core.json_fields import MOST_NAME, shown
from mixmfl.core.records import read_record
from mixmfl.core.text import times
from mixmfl.data.image import MOST_VOXELS
from mixmfl.data.labels import MOST_LABELS, Labels
from mixmfl.data.modalities import MOST_MODALITIES, ModalityName
from mixmfl.planning.bounds import SPACING

FORMAT = 3

_Name = Annotated[str, text(MOST_NAME)]
_Digest = Annotated[str, text(200)]
_ClassKey = Annotated[str, text(10_000, r"-?\d{1,9}(,-?\d{1,9})*", "whole numbers with commas")]


@dataclass(frozen=True)
class _Record:
    """The JSON of a case; ``PreprocessedCase`` says what is in it."""

    format: Literal[3]
    modalities: Annotated[tuple[ModalityName, ...], entries(1, MOST_MODALITIES, distinct=True)]
    shape: Annotated[tuple[Annotated[int, within(1, MOST_VOXELS)], ...], entries(3, 3)]
    spacing: Annotated[
        tuple[Annotated[float, within(0, SPACING.greatest, above=True)], ...], entries(3, 3)
    ]
    origin: _Digest
    content: _Digest
    planned: _Digest
    class_locations: Annotated[
        Mapping[
            _ClassKey,
            Annotated[Sequence[Annotated[int, within(0, MOST_VOXELS)]], entries(0, MOST_VOXELS)],
        ],
        entries(0, MOST_LABELS),
    ]
    labelled: Annotated[tuple[_Name, ...], entries(0, MOST_LABELS)] | None = None
    patient: Annotated[str, text(16, "[0-9a-f]+", "hexadecimal digits")] | None = None


@dataclass(frozen=True)
class PreprocessedCase:
    """A preprocessed case; one that was opened reads its arrays from disk where they are sliced.

    It travels to another process as its place on disk, and what it labels.

    Attributes:
        folder: Folder of the case's files.
        name: Name of the case.
        modalities: Modalities that the case has, in the order of the first axis of ``images``.
        planned: Digest ``Plans.preprocessing`` of the plans that it was made with.
        spacing: mm, (Z, Y, X) of the arrays.
        images: Array ``(K, Z, Y, X)`` float32, z-scored.
        labels: Array ``(1, Z, Y, X)`` of class indices, -1 outside the head.
        class_locations: Voxels ``(n, 4)`` as ``(0, z, y, x)`` of each class or region, from
            which foreground patches are chosen; a class that the case has not has none.
        labelled: The plans' labels and regions that the case labels; None: all of them. Where some
            are missing, background may hide them.
        patient: What stands for the patient, ``patients.patient_key``; empty where only the name
            tells.
    """

    folder: Path
    name: str
    modalities: tuple[str, ...]
    planned: str
    spacing: tuple[float, ...]
    images: Any
    labels: Any
    class_locations: Mapping[Any, np.ndarray]
    labelled: tuple[str, ...] | None = None
    patient: str = ""

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.folder, self.name, self.labelled, tuple(self.class_locations))


def _reopen(
    folder: Path, name: str, labelled: tuple[str, ...] | None, classes: Collection[Any]
) -> PreprocessedCase:
    """Open a case as it was in another process; see ``unlabelled``."""
    case = open_case(folder, name)
    places = {key: voxels for key, voxels in case.class_locations.items() if key in classes}
    return dataclasses.replace(case, labelled=labelled, class_locations=places)


def labels_in(case: PreprocessedCase, labels: Labels) -> frozenset[str]:
    """Return the labels or regions that a case labels and has, in one voxel at least."""
    has = {_values(key) for key, voxels in case.class_locations.items() if len(voxels)}
    labelled = labels.consecutive().only(case.labelled).foreground
    return frozenset(name for name, values in labelled.items() if values in has)


def unlabelled(case: PreprocessedCase, names: Collection[str], labels: Labels) -> PreprocessedCase:
    """Return a case as one that does not label some of the plans' labels or regions.

    Background may hide these, and no patch is chosen for them.
    """
    kept = labels.foreground if case.labelled is None else case.labelled
    gone = labels.consecutive().only(names).foreground.values()
    return dataclasses.replace(
        case,
        labelled=tuple(name for name in kept if name not in names),
        class_locations={k: v for k, v in case.class_locations.items() if _values(k) not in gone},
    )


def _values(key: Any) -> tuple[int, ...]:
    """Return the class indices of a key of ``class_locations``."""
    return tuple(np.atleast_1d(key).tolist())


def save_case(case: PreprocessedCase, origin: str, content: str, patch_size: Sequence[int]) -> None:
    """Write a case, its record last.

    Args:
        case: The case, with arrays of numpy; images may be of any precision.
        origin: Digest of what the case was made from; see ``site_folders.origin``.
        content: Digest of the bytes that it was made from; see ``site_folders.content``.
        patch_size: Patch of the network; arrays are stored in blocks that suit it.

    Raises:
        OSError: The disk is full, or the system cannot write for another reason.
    """
    record = case.folder / f"{case.name}.json"
    record.unlink(missing_ok=True)  # from here on the case is half done
    for kind, array in (("images", case.images.astype(np.float32)), ("labels", case.labels)):
        _write_array(case.folder / f"{case.name}.{kind}.b2nd", array, patch_size)
    shape = case.labels.shape[1:]
    write_json(
        record,
        {
            "format": FORMAT,
            "modalities": list(case.modalities),
            "shape": list(shape),
            "spacing": list(case.spacing),
            "origin": origin,
            "content": content,
            "planned": case.planned,
            "class_locations": {
                ",".join(map(str, np.atleast_1d(key))): _flat(voxels, shape)
                for key, voxels in case.class_locations.items()
            },
            **({} if case.labelled is None else {"labelled": list(case.labelled)}),
            **({"patient": case.patient} if case.patient else {}),
        },
    )


def _write_array(file: Path, array: np.ndarray, patch_size: Sequence[int]) -> None:
    """Write an array in blocks that suit the patch; raise OSError where the disk is full."""
    blocks, chunks = comp_blosc2_params(array.shape, patch_size, array.itemsize)
    with replacing(file) as temporary:
        try:
            blosc2.asarray(
                np.ascontiguousarray(array),
                urlpath=str(temporary),
                chunks=chunks,
                blocks=blocks,
                # LZ4HC, nnU-Net's choice, takes three times as long for a tenth less
                cparams={"codec": blosc2.Codec.LZ4, "clevel": 5},
            )
        except RuntimeError:  # blosc2 does not say what the system found
            if shutil.disk_usage(file.parent).free > array.nbytes:
                raise
            full = errno.ENOSPC
            raise OSError(full, os.strerror(full), str(temporary)) from None


def is_stored(folder: Path, name: str, origin: str) -> bool:
    """Say whether a whole and readable case made from ``origin`` is there."""
    try:
        open_case(folder, name)
        return read_long_json(folder / f"{name}.json").get("origin") == origin
    except DataError:
        return False


def case_names(folder: Path) -> tuple[str, ...]:
    """Return the names of the whole cases in a folder, sorted."""
    return tuple(sorted(file.stem for file in folder.glob("*.json")))


def open_cases(folder: Path) -> list[PreprocessedCase]:
    """Open all whole cases of a folder, sorted by name; see ``open_case``."""
    return [open_case(folder, name) for name in case_names(folder)]


def open_case(folder: Path, name: str) -> PreprocessedCase:
    """Open a case; its arrays stay on disk.

    Raises:
        DataError: A file is missing or damaged, or was written in another format.
    """
    file = folder / f"{name}.json"
    content = read_long_json(file)  # it grows with the classes
    if content.get("format") != FORMAT:
        raise DataError(
            f"{file}: format {shown(content.get('format'))} was found, {FORMAT} is needed; "
            "run mixmfl_plan_preprocess again"
        )
    record = read_record(_Record, content, str(file), DataError)
    voxels = math.prod(record.shape)
    if voxels > MOST_VOXELS:
        raise DataError(
            f"{file}: shape: {times(record.shape)} voxels are more than the {MOST_VOXELS} that are "
            "read; run mixmfl_plan_preprocess again"
        )
    images, labels = (_open_array(folder / f"{name}.{kind}.b2nd") for kind in ("images", "labels"))
    if (
        images.shape != (len(record.modalities), *record.shape)
        or labels.shape != (1, *record.shape)
        or images.dtype != np.float32
        or labels.dtype.kind not in "iu"
    ):
        raise DataError(
            f"{folder / name}: arrays {images.shape} {images.dtype} and {labels.shape} "
            f"{labels.dtype} do not fit the record ({len(record.modalities)} modalities, "
            f"{record.shape}); run mixmfl_plan_preprocess again"
        )
    if strange := [
        k for k, flat in record.class_locations.items() if max(flat, default=0) >= voxels
    ]:
        raise DataError(
            f"{file}: class_locations: {strange[0]}: lies beyond the {voxels} voxels of the case; "
            "run mixmfl_plan_preprocess again"
        )
    return PreprocessedCase(
        folder,
        name,
        record.modalities,
        record.planned,
        record.spacing,
        images,
        labels,
        {_class_key(k): _voxels(flat, record.shape) for k, flat in record.class_locations.items()},
        record.labelled,
        record.patient or "",
    )


def _open_array(file: Path) -> Any:
    """Open an array; its numbers stay on disk.

    Not by ``blosc2.open``: up to blosc2 4.14.0 that runs the Python code of a lazy array, which a
    file may hold instead of numbers.

    Raises:
        DataError: The file is missing, damaged, or holds something else than numbers.
    """
    try:
        with open(file, "rb", opener=only_files):  # blosc2 would wait for a pipe
            array = blosc2_ext.open(str(file), "r", 0)
        if not isinstance(array, blosc2.NDArray):
            raise ValueError(f"holds {type(array).__name__}, and no array")
        if strange := sorted({*array.schunk.meta} - {"b2nd"}) or len(array.schunk.vlmeta):
            raise ValueError(f"holds more than numbers: {shown(strange)}")
    except (OSError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{file}: cannot be read ({why(error)}); run mixmfl_plan_preprocess again"
        ) from None
    return array


def _class_key(text: str) -> int | tuple[int, ...]:
    """Return a class, or the classes of a region, from their form as a JSON key."""
    values = tuple(int(value) for value in text.split(","))
    return values if len(values) > 1 else values[0]


def _flat(voxels: Any, shape: tuple[int, ...]) -> list[int]:
    """Return the places of voxels ``(n, 4)`` in an array of one dimension."""
    return np.ravel_multi_index(np.asarray(voxels).T[1:], shape).tolist() if len(voxels) else []


def _voxels(flat: Sequence[int], shape: tuple[int, ...]) -> np.ndarray:
    """Return the voxels ``(n, 4)`` whose places ``_flat`` gave."""
    places = np.stack(np.unravel_index(np.asarray(flat, dtype=np.int64), shape), axis=1)
    return np.concatenate([np.zeros((len(places), 1), dtype=np.int64), places], axis=1)
