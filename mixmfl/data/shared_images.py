"""Images that several cases have: a file in a wrong folder, or one patient under two names."""

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixmfl.core.errors import DataError
from mixmfl.data.image import are_copies, read_image

_PLACES, _LENGTH = 8, 4096  # pieces of a file that are compared before all of it, and their bytes
_PACKED = b"\x1f\x8b"  # what gzip writes first; last are a sum and the size of what it packed
_PIECE = 1 << 20


def shared_images(images_of: Mapping[str, Sequence[Path]]) -> list[tuple[tuple[str, Path], ...]]:
    """Return groups of images of the same bytes in several cases, each with its case.

    Packed by gzip or not makes no difference. An image that a program stored again, with another
    header, is not seen. Images of one value do not count: some archives fill missing modalities up
    with them.

    Args:
        images_of: The images of each case, by its name.
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
