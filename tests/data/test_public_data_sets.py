"""Names and folders of public data sets, and of what programs make of them."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from empty_files import found_in

from mixmfl.data.cases import FolderCases, find_cases
from mixmfl.data.grid import Grid
from mixmfl.data.image import write_image
from mixmfl.data.patients import patient_of

GRID = Grid((4, 5, 6), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
RAW = "bids/sub-01/ses-1/anat/sub-01_ses-1_"
CAPS = "caps/subjects/sub-01/ses-1/"
CROP = "space-MNI152NLin2009cSym_desc-Crop_res-1x1x1"


def used(found: FolderCases) -> list[str]:
    """Return each case's images, as ``t1=p1/T1 flair=p1/FLAIR``."""
    return sorted(
        " ".join(
            f"{modality}={path.relative_to(found.folder).as_posix().removesuffix('.nii.gz')}"
            for modality, path in case.files.items()
        )
        for case in found.cases
    )


@pytest.mark.parametrize(
    ("names", "cases"),
    [
        # images of derivatives in a folder of any name
        (f"{RAW}T1w {CAPS}t1_linear/sub-01_ses-1_{CROP}_T1w", [f"t1={RAW}T1w"]),
        (f"{RAW}T1w {CAPS}flair_linear/sub-01_ses-1_{CROP}_FLAIR", [f"t1={RAW}T1w"]),
        (f"{RAW}T1w {CAPS}t1_linear/sub-01_ses-1_T1w_{CROP}_T1w", [f"t1={RAW}T1w"]),
        (f"{RAW}T1w {CAPS}t1_volume/sub-01_ses-1_T1w_segm-csf_dartelinput", [f"t1={RAW}T1w"]),
        (f"{RAW}T1w prep/sub-01/anat/sub-01_desc-preproc_FLAIR", [f"t1={RAW}T1w"]),
        # but not of subjects whom the other folder does not have, nor where a raw image is
        (f"{RAW}T1w b/sub-07/anat/sub-07_desc-x_T1w",
         ["t1=b/sub-07/anat/sub-07_desc-x_T1w", f"t1={RAW}T1w"]),
        ("a/sub-1/anat/sub-1_T1w b/sub-1/anat/sub-1_desc-x_T1w b/sub-1/anat/sub-1_FLAIR",
         ["flair=b/sub-1/anat/sub-1_FLAIR t1=b/sub-1/anat/sub-1_desc-x_T1w",
          "t1=a/sub-1/anat/sub-1_T1w"]),
        ("sub-01/anat/sub-01_T1w work/anat_wf/sub-01_T1w_ras", ["t1=sub-01/anat/sub-01_T1w"]),
        # FLAIR of the first time, and a T1 FLAIR
        ("P1/T1/P1_T1_FLAIR P1/T1/P1_ADC", ["adc=P1/T1/P1_ADC"]),
        ("P1/T1_FLAIR P1/T2", ["t1=P1/T1_FLAIR t2=P1/T2"]),
        # navigators
        ("p1/T1w_setter_vNav p1/FLAIR", ["flair=p1/FLAIR"]),
        # one image on the grid of the other
        ("v/v_t1_refT1 v/v_t2_refT2", ["t1=v/v_t1_refT1 t2=v/v_t2_refT2"]),
        # by SPM, without the images that they were made of; RT1 may be a time of radiotherapy
        ("p1/rT1 p1/rFlair p2/rT1", ["flair=p1/rFlair t1=p1/rT1", "t1=p2/rT1"]),
        ("p1/rDWI2 p1/RT1_FLAIR", ["dwi=p1/rDWI2 flair=p1/RT1_FLAIR"]),
        # what is made of an image beside it
        ("p1/T1 p1/T1_IR p1/T1_harmonized p1/T1_sigma", ["t1=p1/T1"]),
        ("p1/T1 p1/T1_orig p1/FLAIR", ["flair=p1/FLAIR t1=p1/T1_orig"]),
        ("p1/T1 p1/FLAIR_quantib p1/T2_result", ["t1=p1/T1"]),
        ("01_raw/p1/T1 02_preprocessed/p1/T1 02_preprocessed/p2/T1",
         ["t1=01_raw/p1/T1", "t1=02_preprocessed/p2/T1"]),
    ],
)  # fmt: skip
def test_images_of_a_data_set_are_used_as_they_were_acquired(
    names: str, cases: list[str], tmp_path: Path
) -> None:
    assert used(found_in(tmp_path, names)) == cases


def test_an_image_by_adni_is_the_original_of_a_day(tmp_path: Path) -> None:
    path = "ADNI/002_S_0295/{}/{}_08_20_30.0/I{}/ADNI_002_S_0295_MR_{}_{}_S1_I{}"
    raw, scaled = "MP-RAGE", "MPR__GradWarp__B1_Correction__N3__Scaled"
    first = path.format(raw, "2006-04-18", 7, raw, "br_raw_20060418193713091", 7)
    made = path.format(scaled, "2006-04-18", 8, scaled, "Br_20070319113623975", 8)
    later = path.format(raw, "2007-05-25", 9, raw, "br_raw_20070525154710011", 9)
    assert used(found_in(tmp_path, f"{first} {made} {later}")) == [f"t1={first}", f"t1={later}"]


@pytest.mark.parametrize("folder", ["", "brain/"])
def test_images_of_people_with_a_number_each_are_a_question(folder: str, tmp_path: Path) -> None:
    names = "file_brain_AXT1PRE_200_6002079 file_brain_AXFLAIR_201_6002868"
    found = found_in(tmp_path, " ".join(f"{folder}{name}" for name in names.split()))
    assert found.cases == ()
    assert "may be of one patient's series or of several patients" in found.refused[0].reason


@pytest.mark.parametrize(
    ("label", "part"),
    [
        ("thalamus_mask", "thalamus"),
        ("L_hippocampus_seg", "hippocampus"),
        ("brainstem_glioma_seg", ""),
        ("lesion_thalamus", ""),
        ("wm_lesions_seg", ""),
        ("infarct_mask", ""),
        ("frontal_lesion", ""),
    ],
)
def test_a_label_of_a_healthy_part_has_a_warning(label: str, part: str, tmp_path: Path) -> None:
    (case,) = found_in(tmp_path, f"p1/T1 p1/FLAIR p1/{label}", labels_needed=True).cases
    assert ["a part of the body and no lesion" in each for each in case.warnings] == [True] * bool(
        part
    )
    assert all(f"is called {part!r}" in each for each in case.warnings)


@pytest.mark.parametrize(
    ("label", "remark"),
    [
        ("seg_dilated", "is called 'dilated'; its border is not as drawn"),
        ("lesion_bbox", "is called 'bbox'; its border is not as drawn"),
        ("new_lesions_mask", "is called 'new lesions'; see that it marks all lesions"),
    ],
)
def test_a_label_that_was_changed_or_marks_some_lesions_has_a_warning(
    label: str, remark: str, tmp_path: Path
) -> None:
    (case,) = found_in(tmp_path, f"p1/T1 p1/FLAIR p1/{label}", labels_needed=True).cases
    assert [remark in each for each in case.warnings] == [True]


def test_a_healthy_part_in_the_names_of_patients_is_none_of_a_label(tmp_path: Path) -> None:
    names = "images/hippocampus_001_T1 labels/hippocampus_001 thalamus_02/T1 thalamus_02/seg"
    found = found_in(tmp_path, names, labels_needed=True)
    assert [case.warnings for case in found.cases] == [(), ()]


@pytest.mark.parametrize(
    "names",
    [
        "p1/T1_W4 p1/FLAIR_W12",
        "p1/T1_age34 p1/FLAIR_age36",
        "p1/T1_Q1 p1/FLAIR_Q3",
        "p1/T1_cycle1 p1/FLAIR_cycle3",
    ],
)
def test_weeks_and_ages_behind_the_words_are_a_question(names: str, tmp_path: Path) -> None:
    found = found_in(tmp_path, names)
    assert found.cases == ()
    assert "have other days, times" in found.refused[0].reason


def test_a_patient_of_several_weeks_is_one(tmp_path: Path) -> None:
    for names, people in (("W4/p1/T1 W12/p1/FLAIR W4/p2/T1", 2), ("W01/T1 W02/T1", 2)):
        cases = found_in(tmp_path / names[:3], names).cases
        assert len(cases) == len(names.split())
        assert len({patient_of(case.name, case.person) for case in cases}) == people


def test_two_field_strengths_in_a_case_are_a_warning(tmp_path: Path) -> None:
    (case,) = found_in(tmp_path, "p1/T1_3T p1/FLAIR_1.5T p1/T2").cases
    assert [each.split(";")[0] for each in case.warnings] == [
        "p1/FLAIR_1.5T.nii.gz: is called '1.5T', and others of another field strength",
        "p1/T1_3T.nii.gz: is called '3T', and others of another field strength",
    ]


def test_an_image_whose_contrast_was_changed_has_a_warning(tmp_path: Path) -> None:
    (case,) = found_in(tmp_path, "p1/T1_harmonized p1/FLAIR").cases
    assert "its contrast is not as scanned" in case.warnings[0]


@pytest.mark.parametrize("again", ["float", "header", "factor", "mgz", "nrrd"])
def test_an_image_that_was_stored_again_is_seen_in_two_cases(again: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("p1/T1", "p1/FLAIR", "p2/FLAIR"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        voxels = draw.integers(0, 999, GRID.shape).astype(np.int16)
        write_image(tmp_path / f"{name}.nii.gz", voxels, GRID)
    image = nib.load(tmp_path / "p1/T1.nii.gz")
    voxels, path = np.asarray(image.dataobj), tmp_path / "p2/T1.nii.gz"
    if again == "float":
        nib.save(nib.Nifti1Image(voxels.astype(np.float32), image.affine), path)
    elif again == "header":
        nib.save(nib.Nifti1Image(voxels, image.affine @ np.diag([2, 1, 1, 1])), path)
    elif again == "factor":
        nib.save(nib.Nifti1Image(voxels * np.float32(0.3), image.affine), path)
    elif again == "mgz":
        nib.save(nib.MGHImage(voxels.astype(np.float32), image.affine), path.with_name("T1.mgz"))
    else:
        write_image(path.with_name("T1.nrrd"), voxels.T, GRID)
    one, two = find_cases(tmp_path).cases
    assert "p1/T1.nii.gz: is the same image as p2/T1." in one.warnings[0]
    assert [len(case.warnings) for case in (one, two)] == [1, 1]
    assert one.person == two.person != ""
