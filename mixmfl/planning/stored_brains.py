"""The brain of each case, found once, and stored for the steps that use it later."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mixmfl.core.errors import DataError
from mixmfl.core.files import read_long_json, write_json
from mixmfl.data import image
from mixmfl.data.cases import Case
from mixmfl.data.grid import Grid, from_canonical, grid_difference, to_canonical
from mixmfl.data.load_case import LoadedCase
from mixmfl.planning.brains import BrainExtraction, Extracted, extract_brain
from mixmfl.planning.heads import NONE
from mixmfl.planning.site_folders import SiteFolder, origin


@dataclass(frozen=True)
class StoredBrain:
    """The files with a case's brain, which is found once and used by every later step.

    Attributes:
        folder: Folder of the site's brains.
        name: Name of the case.
        origin: Digest of the case and of what extracts its brain.
    """

    folder: Path
    name: str
    origin: str

    @property
    def mask(self) -> Path:
        """The brain, on the grid of the case's reference."""
        return self.folder / f"{self.name}.nii.gz"

    @property
    def record(self) -> Path:
        """What it was made from."""
        return self.folder / f"{self.name}.json"

    def read(self, grid: Grid) -> Any:
        """Return the brain on the canonical grid; None where there is none of this case."""
        try:
            if read_long_json(self.record).get("origin") != self.origin:
                return None
            stored, own = image.read_labels(self.mask)
        except DataError:
            return None
        same = grid_difference(own, grid) is None
        return to_canonical(stored, grid)[0] > 0 if same else None

    def write(self, brain: Any, grid: Grid) -> None:
        """Write the brain, its record last."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.record.unlink(missing_ok=True)
        image.write_labels(self.mask, from_canonical(brain.astype(np.uint8), grid), grid)
        write_json(self.record, {"origin": self.origin})


def stored_brain(case: Case, site: SiteFolder, out: Path) -> StoredBrain:
    """Return the files of a case's brain in ``out``, the site's folder in WORK."""
    return StoredBrain(out / "brains", case.name, origin(case, site))


def extract_once(loaded: LoadedCase, brains: BrainExtraction, files: StoredBrain) -> Extracted:
    """Extract a case's brain as ``brains`` says, by the mask in ``files`` if it is there.

    A brain that was found now is stored there.

    Raises:
        DataError: The tool failed, or what it found is no brain.
    """
    if brains.tool == NONE:
        return extract_brain(loaded, brains)
    known = files.read(loaded.grid)
    extracted = extract_brain(loaded, brains, known)
    if known is None and extracted.brain is not None:
        files.write(extracted.brain, loaded.grid)
    return extracted
