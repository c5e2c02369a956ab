"""Images that several cases have: a file in a wrong folder, or one patient under two names."""

import hashlib
import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import DataError
from mixmfl.data.image import are_copies, first_values, read_image

_PLACES, _LENGTH = 8, 4096  # pieces of a file that are compared before all of it, and their bytes
_PACKED = b"\x1f\x8b"  # what gzip writes first; last are a sum and the size of what it packed
_PIECE = 1 << 20
_VOXELS = 4096  # beyond the background, that tell an image
_FEWEST_VALUES = 32  # different ones among these
_STEPS = 4095  # that the brightest of them is divided into

Groups = list[tuple[tuple[str, Path], ...]]
"""What is the same in several cases, each file with its case."""


def shared_images(images_of: Mapping[str, Sequence[Path]]) -> Groups:
    """Return groups of images with the same first voxels beyond the background in several cases.

    Header, format and type of numbers, and a factor that all are multiplied by, make no difference;
    another order of the voxels, or values that were rounded, do. Images of a few values count if
    they are of the same bytes.

    Args:
        images_of: The images of each case, by its name.
    """
    alike: dict[str, list[tuple[str, Path]]] = defaultdict(list)
    others: dict[str, list[Path]] = defaultdict(list)
    for name, images in images_of.items():
        for image in images:
            try:
                pattern = pattern_of(*first_values(image, _VOXELS))
            except DataError:
                continue  # which reading it will tell
            if pattern:
                alike[pattern].append((name, image))
            else:
                others[name].append(image)
    groups = [tuple(mine) for mine in alike.values() if len({name for name, _ in mine}) > 1]
    return [*groups, *shared_files(others)]


def pattern_of(values: npt.NDArray[np.floating], shape: Sequence[int]) -> str:
    """Return a digest of voxels that is the same if all are multiplied, or stored in another type.

    It is empty for a few values, as of a mask or of an image without content.
    """
    if not np.isfinite(values).all() or len(np.unique(values)) < _FEWEST_VALUES:
        return ""
    # no voxel lies on the border of two steps, where rounding would decide
    steps = np.floor(values / np.abs(values).max() * _STEPS + 1 / math.pi)
    return hashlib.sha256(f"{tuple(shape)}".encode() + steps.astype(np.int16).tobytes()).hexdigest()


def shared_files(images_of: Mapping[str, Sequence[Path]]) -> Groups:
    """Return groups of images or masks of the same bytes in several cases, each with its case.

    Packed by gzip or not makes no difference. Those of one value do not count: some archives fill
    missing modalities up with them.

    Args:
        images_of: The images or masks of each case, by its name.
    """
    alike: dict[tuple[int, str], list[tuple[str, Path]]] = defaultdict(list)
    sizes: dict[int, list[tuple[str, Path, bytes]]] = defaultdict(list)
    for name, images in images_of.items():
        for image in images:
            size, packed = _unpacked_size(image)
            sizes[size].append((name, image, packed))
    for size, mine in sizes.items():
        if size and len({name for name, _, _ in mine}) > 1:
            is_mixed = len({bool(packed) for _, _, packed in mine}) > 1
            for name, image, packed in mine:
                digest = packed.hex() or (_sum(image) if is_mixed else _sample(image, size))
                alike[size, digest].append((name, image))
    groups = (tuple(mine) for mine in alike.values() if len({name for name, _ in mine}) > 1)
    return [
        mine
        for mine in groups
        if are_copies([image for _, image in mine]) and _shows_something(mine[0][1])
    ]


def _shows_something(image: Path) -> bool:
    try:
        array, _ = read_image(image)
    except DataError:
        return False  # which reading it will tell
    return bool(array.min() < array.max())


def _unpacked_size(image: Path) -> tuple[int, bytes]:
    """Return the size of an image without gzip, and the sum that gzip wrote, if it is packed.

    The size is 0 for what cannot be read, such as a broken link, which reading it will tell.
    """
    try:
        with image.open("rb") as file:
            is_packed = file.read(len(_PACKED)) == _PACKED
            size = file.seek(0, 2)
            if not is_packed or size < 18:  # the shortest file of gzip
                return size, b""
            file.seek(-8, 2)
            total = file.read(4)
            return int.from_bytes(file.read(4), "little"), total
    except OSError:
        return 0, b""


def _sum(image: Path) -> str:
    """Return the sum of a file that gzip would write, or whatever can be read of it."""
    total = 0
    try:
        with image.open("rb") as file:
            while piece := file.read(_PIECE):
                total = zlib.crc32(piece, total)
    except OSError:
        return str(image)
    return total.to_bytes(4, "little").hex()


def _sample(image: Path, size: int) -> str:
    """Return a digest of pieces of a file, or of whatever can be read of it."""
    digest = hashlib.sha256()
    try:
        with image.open("rb") as file:
            for number in range(_PLACES):
                file.seek(size * number // _PLACES)
                digest.update(file.read(_LENGTH))
    except OSError:
        return str(image)  # which reading it will tell
    return digest.hexdigest()
