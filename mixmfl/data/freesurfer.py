"""Reading of FreeSurfer's images, MGH and its packed form MGZ; headers are checked.

Only this module, ``nifti`` and ``image`` import nibabel.
"""

import math
from pathlib import Path

import nibabel as nib
import numpy as np

from mixmfl.core.errors import DataError
from mixmfl.data.nifti import Header, damaged, not_an_image, unpacked

ENDINGS = (".mgz", ".mgh")

_START = 284  # the byte at which the voxels begin
# number types by their code in the header; all are big endian
_KINDS = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2"}


def read_header(path: Path) -> Header:
    """Read and check the header of an MGH or MGZ file.

    Raises:
        DataError: The file is unreadable, no MGH file, no three-dimensional image with one number
            per voxel, or does not say where it lies.
    """
    with unpacked(path) as file:
        start = file.read(_START)
    if len(start) < _START or start[:4] != b"\0\0\0\1":
        raise not_an_image(path, "it has no MGH header")
    header = nib.MGHImage.header_class(start, check=False)
    x, y, z, frames = (int(size) for size in header["dims"])
    if min(x, y, z) < 1:
        raise not_an_image(path, f"its header has {x} x {y} x {z} voxels")
    if frames not in (0, 1):
        raise DataError(
            f"{path}: is 4-dimensional, {x} x {y} x {z} x {frames} voxels; needed is one "
            "three-dimensional volume per file"
        )
    if int(header["type"]) not in _KINDS:
        raise not_an_image(path, f"MGH has no number type {int(header['type'])}")
    # not of ``header``, where nibabel has filled in a place
    if start[28:30] == b"\0\0":
        raise DataError(
            f"{path}: does not say where left and right are (its goodRASFlag is 0). Convert it to "
            "NIfTI with the program that wrote it"
        )
    spacing = tuple(float(step) for step in header["delta"][::-1])
    if not all(math.isfinite(step) and step > 0 for step in spacing):
        raise DataError(f"{path}: has spacing {spacing} mm; it must be positive and finite")
    affine = np.asarray(header.get_affine(), dtype=float)
    if not np.isfinite(affine).all():
        raise damaged(path, "its place is not finite")
    return Header(
        (z, y, x),
        (spacing[0], spacing[1], spacing[2]),
        tuple(map(tuple, affine.tolist())),
        None,
        path,
        np.dtype(_KINDS[int(header["type"])]),
        _START,
        goes_on=True,  # times of the sequence, and notes
    )
