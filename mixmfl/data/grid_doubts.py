"""Doubts about the place and size of an image, by its header alone."""

import numpy as np

from mixmfl.core.text import times
from mixmfl.data.grid import Grid, to_show

# Images of people are not smaller than the first along all axes, where one has as many voxels, nor
# larger than the last along all of them.
SMALL_MM, MANY, LARGE_MM = 40.0, 64, 600.0


def doubts_of_grid(grid: Grid) -> tuple[list[str], list[str]]:
    """Return notes and warnings about the place and size of an image by its header.

    Args:
        grid: The grid as ``image.read_grid`` returns it, with what the header says of it.
    """
    place = grid.place
    lengths = [n * step for n, step in zip(grid.shape, grid.spacing, strict=True)]
    notes: list[str] = []
    warnings: list[str] = []
    if (max(lengths) < SMALL_MM and max(grid.shape) >= MANY) or min(lengths) > LARGE_MM:
        warnings.append(
            f"it is {times(to_show(tuple(lengths)))} mm large, which no image of a person is; "
            "does its header count in millimetres? Of an animal it may be right"
        )
    if grid.unstated:
        warnings.append(grid.unstated)
    if place is None:
        return notes, warnings
    if not place.is_stated:
        return notes, [
            *warnings,
            "its header does not say where it lies (sform and qform have code 0); nibabel's "
            "default was taken, where left and right may be exchanged",
        ]
    if place.unit:
        warnings.append(
            f"its header counts in {place.unit}; its numbers were taken as millimetres, as nibabel "
            "and FSL do. Look at its spacing"
        )
    if place.qform is not None:
        signs = [np.sign(np.linalg.det(np.array(each))) for each in (place.affine, place.qform)]
        if signs[0] != signs[1]:
            warnings.append(
                "its sform and its qform are mirror images of each other; the sform was taken. "
                "Look which of them has left and right as they are"
            )
        else:
            notes.append("its sform differs from its qform; the sform was taken")
    pixdim = dict(place.fields)["pixdim"][3:0:-1]
    if not np.allclose(grid.spacing, pixdim, rtol=0.02, atol=0):
        warnings.append(
            f"by its sform it has voxels of {times(to_show(grid.spacing))} mm, by its pixdim of "
            f"{times(pixdim)} mm; the sform was taken"
        )
    return notes, warnings
