"""Brain extraction: what is not brain becomes 0 in all images of a case, as in stripped data.

The brain is found once per case, in one of its images, by deepbet or by a command of the place
where the case lies. Plans and model files say in one closed word what was done. They never hold
a command: reading them must not run one.
"""

import dataclasses
import os
import shlex
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from mixmfl.core.declarations import LONGEST_PATH, one_of, text
from mixmfl.core.errors import DataError, MixmflError, PlansError, explain
from mixmfl.core.text import one_line
from mixmfl.data import image
from mixmfl.data.grid import from_canonical, grid_difference, to_canonical
from mixmfl.data.load_case import LoadedCase
from mixmfl.planning.heads import DEEPBET, MIXED, NONE, OWN, SKULL, SKULLS, STRIPPED
from mixmfl.planning.skull import shows_skull

Mask = npt.NDArray[np.bool_]

# deepbet was made for T1. On 77 patients with gliomas it cut 0.2 % of the lesion off in T1, 0.1 %
# in FLAIR, 0.5 % in T1c; in T2 of three patients its brain agreed least with theirs.
PREFERRED = ("t1", "flair", "t1c", "t2", "pd")

MARGIN = 4.0  # mm around deepbet's brain, which ends at the cortex; lesions there stay whole

COMMAND_SECONDS = 3600


@dataclass(frozen=True)
class BrainExtraction:
    """How brains are extracted at this place.

    Attributes:
        tool: ``"none"``, ``"deepbet"`` or ``"own"``.
        command: The own command; its words ``{image}`` and ``{mask}`` become file names.
    """

    tool: Annotated[str, one_of((NONE, DEEPBET, OWN))] = NONE
    command: Annotated[str, text(LONGEST_PATH, least=0)] = ""

    def check(self) -> None:
        """Check that the tool is there.

        Raises:
            MixmflError: deepbet is not installed; or the command names no files, or no program.
        """
        if self.tool == DEEPBET and find_spec("deepbet") is None:
            raise MixmflError(
                "brain extraction: needs deepbet, which is not installed; install it by pip "
                "install 'mixmfl[brain]', or give images whose skull was removed"
            )
        if self.tool != OWN:
            return
        words = _words(self.command)
        if not all(any(part in word for word in words) for part in ("{image}", "{mask}")):
            raise MixmflError(
                f"--brain-command {one_line(self.command)!r}: must contain {{image}}, the file to "
                "read, and {mask}, the file to write"
            )
        if shutil.which(words[0]) is None:
            raise MixmflError(
                f"--brain-command: there is no program {one_line(words[0])!r}; give its path"
            )


def asked_extraction(brain_only: bool, command: str) -> BrainExtraction:
    """Return what a user asks for by ``--brain-only`` or ``--brain-command``.

    Raises:
        MixmflError: Both are given, or the command cannot be run.
    """
    if brain_only and command:
        raise MixmflError("--brain-only and --brain-command: give one of them")
    if not command:
        return BrainExtraction(DEEPBET if brain_only else NONE)
    extraction = BrainExtraction(OWN, command)
    extraction.check()
    return extraction


def agreed_extraction(planned: Iterable[str], here: BrainExtraction) -> BrainExtraction:
    """Return what is done with cases so that they are as those that plans were made from.

    Args:
        planned: ``Plans.heads`` of one or several models.
        here: What was asked for at this place.

    Raises:
        PlansError: The plans say something else than what was asked for here, or contradict
            each other, or a command is needed.
    """
    words = set(planned)
    made = words & {DEEPBET, OWN}
    if len(made) > 1 or (made and words & {SKULLS, MIXED}):
        raise PlansError(
            f"the models were planned for different heads ({', '.join(sorted(words))}) and cannot "
            "be averaged"
        )
    if DEEPBET in made:
        if here.tool == OWN:
            raise PlansError(
                "--brain-command: the plans say that brains are extracted by deepbet, and this "
                "must be the same everywhere; leave the option out"
            )
        return BrainExtraction(DEEPBET)
    if OWN in made and here.tool != OWN:
        raise PlansError(
            "the plans say that each place extracts brains by its own command; give it by "
            "--brain-command 'tool {image} {mask}'"
        )
    if not made and here.tool != NONE and words & {SKULLS, MIXED}:
        raise PlansError(
            "--brain-only: these plans were made from heads with their skulls; leave the option "
            "out, or plan again with it at all sites"
        )
    return here


@dataclass(frozen=True)
class Extracted:
    """A case as it is used.

    Attributes:
        case: The case; if its brain was extracted, 0 outside of it.
        state: One of ``STATES``.
        brain: ``(Z, Y, X)`` on the canonical grid; None where nothing was extracted.
    """

    case: LoadedCase
    state: str
    brain: Mask | None = None


def extract_brain(
    case: LoadedCase, extraction: BrainExtraction, known: Mask | None = None
) -> Extracted:
    """Set what is not brain to 0 in all images of a case, in place, if it shows its skull.

    Args:
        case: The case.
        extraction: How brains are extracted.
        known: The brain as found before, on the canonical grid; None: it is looked for.

    Raises:
        DataError: The tool failed, or what it found is no brain.
    """
    if not shows_skull(case.images.values(), case.canonical.spacing):
        return Extracted(case, STRIPPED)
    if extraction.tool == NONE:
        return Extracted(case, SKULL)
    brain, note = known, f"the brain found before by {extraction.tool} was used"
    if brain is None:
        known_first = [name for name in PREFERRED if name in case.images]
        name = (known_first or sorted(case.images))[0]
        find = _by_deepbet if extraction.tool == DEEPBET else _by_command
        brain = find(case, name, extraction.command)
        note = f"the brain was extracted by {extraction.tool} from {name}"
    _check_brain(case, brain)
    ml = float(brain.sum()) * float(np.prod(case.canonical.spacing)) / 1000
    for each in case.images.values():
        each[~brain] = 0
    noted = dataclasses.replace(case, notes=(*case.notes, f"{note} ({ml:.0f} ml)"))
    return Extracted(noted, extraction.tool, brain)


def _check_brain(case: LoadedCase, brain: Mask) -> None:
    """Refuse what can be no brain of this case."""
    if not any((each[brain] != 0).any() for each in case.images.values()):
        raise DataError(
            f"case {case.name!r}: brain extraction found no brain in it. Look at its images; if "
            "they show one, remove the skull yourself"
        )
    if case.labels is None:
        return
    labelled = case.labels > 0
    if labelled.any() and (outside := float((labelled & ~brain).sum() / labelled.sum())) > 0.5:
        raise DataError(
            f"case {case.name!r}: {outside:.0%} of what is labelled lies outside the brain that "
            "brain extraction found. Look at its images, or remove the skull yourself"
        )


@cache
def _deepbet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about how the package stores its network
        from deepbet import BrainExtraction as Network

        return Network(no_gpu=True)  # the same brain on every machine


def _by_deepbet(case: LoadedCase, name: str, _: str) -> Mask:
    shown = image.to_nibabel(case.images[name], case.canonical)
    try:
        _, mask, _ = _deepbet().run(shown)
    except (AssertionError, ValueError):  # of an empty mask it takes the largest part
        return np.zeros(case.canonical.shape, dtype=bool)
    brain = np.asarray(mask.dataobj).T > 0
    if not brain.any():
        return brain
    distance = ndimage.distance_transform_edt(~brain, sampling=case.canonical.spacing)
    return np.asarray(distance <= MARGIN)


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise MixmflError(f"--brain-command: {error}") from None
    if not words:
        raise MixmflError("--brain-command: is empty")
    return words


def _by_command(case: LoadedCase, name: str, command: str) -> Mask:
    """Run the own command on an image, in a folder of its own, under names that tell nothing."""
    with tempfile.TemporaryDirectory(prefix="mixmfl-brain-") as folder:
        source, target = Path(folder) / "image.nii.gz", Path(folder) / "mask.nii.gz"
        image.write_image(source, from_canonical(case.images[name], case.grid), case.grid)
        words = [
            word.replace("{image}", str(source)).replace("{mask}", str(target))
            for word in _words(command)
        ]
        try:
            ended = subprocess.run(
                words,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=COMMAND_SECONDS,
                check=False,
                # our word for our own helpers; a program of the user's may lie beside its modules
                env={n: value for n, value in os.environ.items() if n != "PYTHONSAFEPATH"},
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DataError(
                f"case {case.name!r}: --brain-command failed: {explain(error)}"
            ) from None
        if ended.returncode or not target.is_file():
            what = f"exit code {ended.returncode}" if ended.returncode else "it wrote no {mask}"
            last = (ended.stderr.strip() or ended.stdout.strip() or "no output").splitlines()[-1]
            raise DataError(
                f"case {case.name!r}: --brain-command failed ({what}): {one_line(last, 300)}"
            )
        mask, grid = image.read_labels(target)
    if (differs := grid_difference(grid, case.grid)) is not None:
        raise DataError(
            f"case {case.name!r}: the mask of --brain-command is not on the grid of its image "
            f"({differs})"
        )
    return np.asarray(to_canonical(mask, grid)[0] > 0)
