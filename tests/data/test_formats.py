"""FreeSurfer's images, and images in two files."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813 - its own abbreviation

from mixmfl.core.errors import DataError
from mixmfl.data import image
from mixmfl.data.accounting import header_of
from mixmfl.data.cases import Case
from mixmfl.data.grid_doubts import doubts_of_grid
from mixmfl.inference.case_reader import digests_of

VOXELS = np.random.default_rng(0).integers(1, 900, (6, 5, 4)).astype(np.int16)  # X, Y, Z
AFFINE = np.diag([-2.0, -1.5, 3.0, 1.0])
AFFINE[:3, 3] = 10, 20, -30
TURNED = np.array([[0.8, -0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ AFFINE


def repacked(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes()))))


@pytest.mark.parametrize("name", ["t1.mgz", "t1.mgh", "t1.hdr", "T1.img.gz"])
@pytest.mark.parametrize("kind", ["i2", "f4", "u1", "i4"])
def test_an_image_lies_where_nibabel_has_it_and_so_does_its_mask(
    tmp_path: Path, name: str, kind: str
) -> None:
    voxels = (VOXELS % 200).astype(kind)
    made = nib.MGHImage if ".mg" in name else nib.Nifti1Pair
    nib.save(made(voxels, TURNED), tmp_path / name)
    file = tmp_path / name.replace(".img", ".hdr")
    array, grid = image.read_image(file)
    np.testing.assert_array_equal(array, voxels.T)
    image.write_labels(tmp_path / "mask.nii.gz", (array > 99).astype(np.uint8), grid)
    mask = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_allclose(mask.affine, TURNED, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), voxels > 99)


def test_what_freesurfer_writes_behind_the_voxels_is_passed_over(tmp_path: Path) -> None:
    nib.save(nib.MGHImage(VOXELS, AFFINE), tmp_path / "t1.mgz")
    repacked(tmp_path / "t1.mgz", lambda content: content + b"mri_convert" * 99)
    np.testing.assert_array_equal(image.read_image(tmp_path / "t1.mgz")[0], VOXELS.T)


def patched(at: int, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content[:at] + new + content[at + len(new) :]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content[:300], r"is incomplete \(300 bytes found, 524 needed\)"),
        (patched(4, b"\x7f"), "promises .* voxels|at most .* are read"),
        (patched(16, b"\0\0\0\2"), "is 4-dimensional, 6 x 5 x 4 x 2 voxels"),
        (patched(20, b"\0\0\0\7"), "MGH has no number type 7"),
        (patched(28, b"\0\0"), "does not say where left and right are"),
        (patched(30, b"\0\0\0\0"), "has spacing .* must be positive"),
        (patched(0, b"\x89HDF"), "has no MGH header"),
        (lambda content: content + bytes((1 << 24) + 1), "goes on behind its last voxel"),
    ],
)
def test_a_freesurfer_image_that_is_none_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], message: str
) -> None:
    nib.save(nib.MGHImage(VOXELS, AFFINE), tmp_path / "t1.mgz")
    repacked(tmp_path / "t1.mgz", change)
    with pytest.raises(DataError, match=message):
        image.read_image(tmp_path / "t1.mgz")


def test_a_pair_needs_both_files_and_its_header_an_orientation(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / "t1.hdr")
    (tmp_path / "t1.img").write_bytes((tmp_path / "t1.img").read_bytes()[:-1])
    with pytest.raises(DataError, match=r"t1\.img: is incomplete \(239 bytes found, 240 needed"):
        image.read_image(tmp_path / "t1.hdr")
    (tmp_path / "t1.img").unlink()
    with pytest.raises(DataError, match=r"no file \.img with its voxels lies beside it"):
        image.read_image(tmp_path / "t1.hdr")
    nib.save(nib.AnalyzeImage(VOXELS, AFFINE), tmp_path / "t2.hdr")
    with pytest.raises(DataError, match=r"Analyze 7\.5, which does not say where left and right"):
        image.read_image(tmp_path / "t2.hdr")
    nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "t1.nii")
    (tmp_path / "t1.nii").rename(tmp_path / "t3.hdr")
    with pytest.raises(DataError, match=r"its name should end in \.nii"):
        image.read_image(tmp_path / "t3.hdr")


@pytest.mark.parametrize("name", ["t1.hdr", "t1.nhdr", "t1.mhd"])
def test_the_voxels_in_another_file_are_part_of_an_image(tmp_path: Path, name: str) -> None:
    if name == "t1.hdr":
        nib.save(nib.Nifti1Pair(VOXELS, AFFINE), tmp_path / name)
    else:
        nib.save(nib.Nifti1Image(VOXELS, AFFINE), tmp_path / "whole.nii")
        voxels: Any
        voxels, grid = image.read_image(tmp_path / "whole.nii")
        (tmp_path / "whole.nii").unlink()
        sitk.WriteImage(image.to_sitk(voxels, grid), str(tmp_path / name))
    header, data = image.files_of(tmp_path / name)
    assert {header, data} == set(tmp_path.iterdir())
    assert header_of(data) == name
    case = Case("p", {"t1": header})
    before = digests_of(case)
    data.write_bytes(data.read_bytes()[:-1] + b"\x17")
    assert digests_of(case) != before  # so its mask is made again


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_ways_of_writing_a_header_that_itk_reads_are_read(tmp_path: Path, ending: str) -> None:
    path, voxels = tmp_path / f"t1{ending}", VOXELS.T.tobytes()
    local = {".mha": "local", ".mhd": "LOCAL"}.get(ending, "")
    if local:
        text = (
            f"NDims = 3\nDimSize = 6 5 4\nElementSpacing = 2 1.5 3\nOrientation = {'1 0 0 0 ' * 2}1"
        )
        text += f"\nOffset = 1 2 3\nElementType = MET_SHORT\nElementDataFile = {local}\n"
    else:
        vectors = "(2,0,0,0) (0,1.5,0,0) (0,0,3,0) (0,0,0,1)"
        text = "NRRD0004\ntype: short\ndimension: 4\nspace: left-posterior-superior-time\n"
        text += f"sizes: 6 5 4 1\nspace directions: {vectors}\nspace origin: (1,2,3,0)\n"
        text += "endian: little\nencoding: raw\n"
        text += "data file: ./t1.raw\n\n" if ending == ".nhdr" else "\n"
    (tmp_path / "t1.raw").write_bytes(voxels)
    path.write_bytes(text.encode() + (b"" if ending == ".nhdr" else voxels))
    array, grid = image.read_image(path)
    np.testing.assert_array_equal(array, VOXELS.T)
    by_itk = sitk.ReadImage(str(path))
    assert (*grid.origin, *grid.spacing) == (*by_itk.GetOrigin()[:3], *by_itk.GetSpacing()[2::-1])
    assert doubts_of_grid(grid) == ([], [])
    assert len(image.files_of(path)) == (2 if ending == ".nhdr" else 1)


def test_an_image_in_metres_is_none_of_millimetres(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(VOXELS, np.diag([0.002, 0.002, 0.003, 1])), tmp_path / "t1.nii")
    with pytest.raises(DataError, match=r"0\.012 mm long; .* count in millimetres"):
        image.read_image(tmp_path / "t1.nii")
