"""Images that several cases have: a file in a wrong folder, or one patient under two names."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from mixmfl.core.errors import DataError
from mixmfl.data.image import are_copies, read_image

_PLACES, _LENGTH = 8, 4096  # pieces of a file that are compared before all of it, and their bytes


def shared_images(images_of: Mapping[str, Sequence[Path]]) -> list[tuple[tuple[str, Path], ...]]:
    """Return groups of images of the same bytes in several cases, each with its case.

    Files of different size differ; so images that were packed or stored again are not found. Images
    of one value do not count: some archives fill missing modalities up with them.

    Args:
        images_of: The images of each case, by its name.
    """
    alike: dict[tuple[int, str], list[tuple[str, Path]]] = defaultdict(list)
    sizes: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for name, images in images_of.items():
        for image in images:
            if image.is_file():  # a broken link is refused when it is read
                sizes[image.stat().st_size].append((name, image))
    for size, mine in sizes.items():
        if size and len({name for name, _ in mine}) > 1:
            for name, image in mine:
                alike[size, _sample(image, size)].append((name, image))
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
