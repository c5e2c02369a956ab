"""Reading of a case that will be predicted, in a process of its own.

It needs neither a network nor torch, and imports neither: two processes with torch would take
twice the memory. Nor does it import what writes pages, so that it starts sooner.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.files import sha256
from mixmfl.core.pipeline import WaitTurn
from mixmfl.core.process_memory import peak_memory_mb, reset_peak
from mixmfl.data.cases import Case
from mixmfl.data.image import Source, files_of
from mixmfl.data.load_case import AlignmentOptions, LoadedCase, load_case, voxels_of
from mixmfl.evaluation.subset_dice import Expectations

LARGE_BYTES = 1 << 30
"""Size of images in single precision above which a case is read when nothing else runs."""


@dataclass(frozen=True)
class ReadCase:
    """A case as the reading process gives it.

    Attributes:
        loaded: Its images, and the grids.
        shown: The images ``(Z, Y, X)`` for pages, by modality; empty where no page is written.
        inputs: SHA-256 of what was read, by modality.
        peak_memory_mb: Peak memory of reading.
    """

    loaded: LoadedCase
    shown: Mapping[str, npt.NDArray[np.uint8]]
    inputs: Mapping[str, str]
    peak_memory_mb: float


def read_case(
    wait_turn: WaitTurn,
    constant: tuple[AlignmentOptions, bool, Expectations],
    case: Case,
) -> ReadCase:
    """Read a case, for ``pipeline.PrefetchProcess``.

    Args:
        wait_turn: Called before a case is read that is too large to be read beside another.
        constant: What to do with images on different grids; whether a page is written; and what
            to expect of masks from some modalities.
        case: The case to read.

    Raises:
        DataError: The case cannot be used.
    """
    alignment, report, expectations = constant
    reset_peak()
    if 4 * voxels_of(case) * len(case.images) > LARGE_BYTES:
        wait_turn()
    inputs = digests_of(case)
    loaded = load_case(case, None, alignment, expectations.worth)
    shown = {name: for_pages(image) for name, image in loaded.images.items() if report}
    return ReadCase(loaded, shown, inputs, peak_memory_mb())


def for_pages(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Return an image in 255 grey values, and 0 where it was 0."""
    inside = image != 0
    low, high = np.percentile(image[inside], [0.5, 99.5]) if inside.any() else (0.0, 1.0)
    scaled = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1) * 254 + 1
    return np.where(inside, scaled, 0).astype(np.uint8)


def digests_of(case: Case) -> dict[str, str]:
    """Return the SHA-256 of each modality's source; empty where it cannot be read."""

    def digest(source: Path | Source) -> str:
        try:
            if not isinstance(source, Path):
                return source.sha256()
            digests = [sha256(file) for file in files_of(source)]
            return digests[0] if len(digests) == 1 else "+".join(digests)
        except OSError:  # it is left out of the case, or refused, when it is read
            return ""

    return {name: digest(source) for name, source in case.images.items()}
