"""A head with scalp, bone and brain, as a case of files; and a tool that finds its brain."""

import sys
from pathlib import Path

import numpy as np

from mixmfl.data.grid import Grid
from mixmfl.data.image import write_image, write_labels

SHAPE, SPACING = (10, 90, 90), (5.0, 2.0, 2.0)
GRID = Grid(SHAPE, SPACING, (-90.0, -90.0, 0.0), (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
BRAIN_MM, BONE_MM, SKIN_MM = 60.0, 68.0, 76.0

_Y, _X = np.ogrid[: SHAPE[1], : SHAPE[2]]
RADIUS = np.broadcast_to(np.hypot(2.0 * (_Y - 44.5), 2.0 * (_X - 44.5)), SHAPE)
"""Distance of each voxel from the middle, mm."""


def whole_head(seed: int = 0, air: float = 2.0) -> np.ndarray:
    """Return an image ``(Z, Y, X)``; the air around it is noise, or 0."""
    generator = np.random.default_rng(seed)
    tissue = np.select(
        [RADIUS < BRAIN_MM, RADIUS < BONE_MM, RADIUS < SKIN_MM], [60.0, 8.0, 90.0], 0.0
    )
    noise = generator.normal(0, 3, SHAPE) + 3
    around = air * generator.rayleigh(1, SHAPE)
    return np.where(tissue > 0, tissue + noise, around).astype(np.float32)


def brain_alone(seed: int = 0) -> np.ndarray:
    """Return the same image, 0 outside the brain."""
    return np.where(RADIUS < BRAIN_MM, whole_head(seed), 0).astype(np.float32)


def write_head(folder: Path, stripped: bool = False, seed: int = 0) -> None:
    """Write a case with T1 and FLAIR and a lesion as a folder of files."""
    folder.mkdir(parents=True)
    labels = np.zeros(SHAPE, dtype=np.uint8)
    labels[3:7, 40:52, 50:60] = 1
    for number, name in enumerate(("t1", "flair")):
        made = (brain_alone if stripped else whole_head)(seed + 10 * number)
        write_image(folder / f"{name}.nii.gz", made + 20.0 * number * labels, GRID)
    write_labels(folder / "seg.nii.gz", labels, GRID)


# reads and writes NIfTI itself: nibabel, or mixmfl, takes longer to start than the rest
TOOL = """
import gzip, sys
import numpy as np
with gzip.open(sys.argv[1]) as file:
    content = bytearray(file.read())
shape = np.frombuffer(content, "<i2", 3, 42)
image = np.frombuffer(content, "<f4", offset=352).reshape(shape[::-1])
affine = np.frombuffer(content, "<f4", 12, 280).reshape(3, 4)  # of the header that is written
brain = np.load({brain!r})
{body}
np.frombuffer(content, "<f4", 3, 80)[:] = np.linalg.norm(affine[:, :3], axis=0)
np.frombuffer(content, "<i2", 2, 70)[:] = 2, 8  # bytes
np.frombuffer(content, "<i2", 2, 252)[:] = 0, 2  # the place is that of the affine matrix
with gzip.open(sys.argv[2], "wb") as file:
    file.write(content[:352] + brain.astype(np.uint8).tobytes())
"""


def brain_tool(folder: Path, body: str = "") -> str:
    """Write a program that finds the brain of ``whole_head``, and return the command.

    Args:
        folder: Folder of the program.
        body: Statements that run first.
    """
    program, brain = folder / "tool.py", folder / "brain.npy"
    np.save(brain, RADIUS < BRAIN_MM)
    program.write_text(TOOL.format(brain=str(brain), body=body))
    return f"'{sys.executable}' '{program}' {{image}} {{mask}}"
