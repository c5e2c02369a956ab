"""Folders of archives, programs and clinics, each with what is to be read from it."""

from pathlib import Path

import numpy as np
import pytest

from mixmfl.data.cases import FolderCases, account, find_cases
from mixmfl.data.grid import Grid
from mixmfl.data.image import write_image
from mixmfl.data.patients import patient_of
from mixmfl.planning.site_folders import find_site


def found_in(folder: Path, names: str, *, labels_needed: bool = False) -> FolderCases:
    """Make a file of other content for each word or line, and find the cases among them."""
    for number, name in enumerate(names.split("\n") if "\n" in names else names.split()):
        path = folder / name.strip()
        path = path if path.suffix else path.with_name(f"{path.name}.nii.gz")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]))
    return find_cases(folder, labels_needed=labels_needed)


def uses(found: FolderCases) -> dict[str, list[str]]:
    """Return the files that each case is made from, below the folder and without endings."""
    return {
        case.name: sorted(
            path.relative_to(found.folder).as_posix().removesuffix(".nii.gz")
            for path in (*case.files.values(), *([case.label] if case.label else []))
            if isinstance(path, Path)
        )
        for case in found.cases
    }


@pytest.mark.parametrize(
    ("names", "used"),
    [
        ("p/T1 p/T1_motion p/bad/T1", "p/T1"),
        ("p/T1 p/old/T1", "p/T1"),
        ("p/T1 p/3DT1", "p/T1"),
        ("p/t1_sag p/t1_sag_ND", "p/t1_sag"),
        ("p/T1 p/T1.mgz", "p/T1"),
        ("p/T1 p/reg_T1", "p/T1"),
        ("p/T1 p/lesion_filled_T1", "p/T1"),
        ("p/T1 p/T1_noise", "p/T1"),
        ("p/T1 p/T1~", "p/T1"),
        ("A/pre/T1 A/pre/T1c", "A/pre/T1 A/pre/T1c"),
        ("p/T1 p/reg_FLAIRWarped", "p/T1 p/reg_FLAIRWarped"),
        ("p/Series_2_t1 p/Series_6_t2", "p/Series_2_t1 p/Series_6_t2"),
        ("p/FLAIR p/FLAIR_cpp p/FLAIR_res", "p/FLAIR"),
        ("p%201/T1%20MPRAGE p%201/T2%20FLAIR", "p%201/T1%20MPRAGE p%201/T2%20FLAIR"),
        ("p/T1\np/Kopie von T1", "p/T1"),
        ("p/T1 p/FLAIR_to_T1_Warped p/FLAIR_to_T1_InverseWarped", "p/FLAIR_to_T1_Warped p/T1"),
        ("p1_T1.mha/p1_T1.mha p1_T2.nii.gz/p1_T2.nii",
         "p1_T1.mha/p1_T1.mha p1_T2.nii.gz/p1_T2.nii"),
        ("p/12_pd_t2_e1 p/12_pd_t2_e2 p/13_t1 p/15_flair",
         "p/12_pd_t2_e1 p/12_pd_t2_e2 p/13_t1 p/15_flair"),
        ("p/T1 p/tmp_T1", "p/T1"),
        ("p/MT_T1 p/FLAIR", "p/FLAIR"),
        ("p/T1 p/T1_noskull p/T1_smoothed p/T1_cortex p/T1_iso1mm p/T1_uint8", "p/T1"),
        ("p/DWI p/DWI_iso", "p/DWI_iso"),
        ("p1/p1_t1_KM_20210503120000_9 p1/p1_t1_KM_MPR_tra_20210503120000_14",
         "p1/p1_t1_KM_20210503120000_9"),
        ("sub-1/anat/sub-1_T1w sub-1/anat/sub-1_T1w__dup-01", "sub-1/anat/sub-1_T1w"),
        ("sub-1/anat/sub-1_T1w sourcedata/sub-1/T1 tmp_dcm2bids/sub-1/003_T1",
         "sub-1/anat/sub-1_T1w"),
        ("p1_IR_T1 p1_FLAIR", "p1_FLAIR p1_IR_T1"),
        ("p/T1 p/T1_patch_001", "p/T1"),
        ("p/T1 augmented/p_rot/T1", "p/T1"),
        ("p/T1_to_SRI p/FL_to_SRI", "p/FL_to_SRI p/T1_to_SRI"),
        ("p/T1/T1 p/T2/T2 p/T1+C/T1+C", "p/T1+C/T1+C p/T1/T1 p/T2/T2"),
        ("p/DWI_iso p/DWI_x p/DWI_y", "p/DWI_iso"),
        ("p/DWI_b50 p/DWI_b800", "p/DWI_b800"),
        ("p9/hdbet/p9_hdbet_brats_t1 p9/raw/p9_raw_t1", "p9/raw/p9_raw_t1"),
        ("p/1.2.840.1.1/T1 p/1.2.840.1.2/FLAIR", "p/1.2.840.1.1/T1 p/1.2.840.1.2/FLAIR"),
        ("p/T1 p/QC_failed/FLAIR", "p/T1"),
        ("DataForFeTS/p1/p1_brain_t1 DataForQC/p1/reoriented/raw_t1",
         "DataForFeTS/p1/p1_brain_t1"),
        ("p/T1 nat\np/T1 KM", "p/T1 KM p/T1 nat"),
        ("sub-1/sub-1_space-T2S_T1 sub-1/sub-1_space-T2S_T2S",
         "sub-1/sub-1_space-T2S_T1 sub-1/sub-1_space-T2S_T2S"),
        ("p/700_FLAIR p/ORIG_700_FLAIR p/300_T1 p/400_T2", "p/300_T1 p/400_T2 p/700_FLAIR"),
        ("p/DWI_raw p/DWI_TRACE", "p/DWI_TRACE"),
        ("p/DWI_b0 p/DWI_b1000", "p/DWI_b1000"),
        ("p/p_hbv p/p_t2w", "p/p_hbv p/p_t2w"),
        ("sub-1/sub-1_T1w sub-1/sub-1_rec-norm_T1w", "sub-1/sub-1_T1w"),
        ("images_structural/p1/p1_T2 images_structural_unstripped/p1/p1_T2_unstripped",
         "images_structural_unstripped/p1/p1_T2_unstripped"),  # of UPENN-GBM
        ("p/T1 p/preproc/T1 p/bet/T1 p/FLAIR", "p/FLAIR p/T1"),
        ("p/bravo p/t1_pre p/t1_gd", "p/t1_gd p/t1_pre"),  # of Stanford's metastases
        ("p/t1_vibe_in_7 p/t1_vibe_W_8 p/t1_vibe_F_9", "p/t1_vibe_W_8"),
        ("p/WATER_LAVA p/FAT_LAVA p/InPhase_LAVA p/OutPhase_LAVA", "p/WATER_LAVA"),
        ("s1/mprage_anonymized s1/mprage_skullstripped", "s1/mprage_anonymized"),
        ("p/T1 p/FLAIR1", "p/FLAIR1 p/T1"),
        ("p/SWI p/SWI_TOTAL_MAG p/T1", "p/SWI p/T1"),
        ("p/T1_KM p/Sub_T1_KM-T1", "p/T1_KM"),
        ("in/q_T1 HD-BET/q_T1_bet", "in/q_T1"),
        ("in/q_T1 brain_extracted/q_T1 bias_field_corrected/q_T1", "in/q_T1"),
        ("2_S_4/M/2011-06-02/I240811/2_S_4_T1_I240811 2_S_4/F/2011-06-02/I240815/2_S_4_T2_I240815",
         "2_S_4/F/2011-06-02/I240815/2_S_4_T2_I240815 2_S_4/M/2011-06-02/I240811/2_S_4_T1_I240811"),
        ("M/20190101 MRI/3 T1/3 T1\nM/20190101 MRI/5 T2/5 T2",
         "M/20190101 MRI/3 T1/3 T1 M/20190101 MRI/5 T2/5 T2"),
        ("p/T1 p/CT1 p/T1_r2s_bet p/CT1_r2s_bet_reg", "p/CT1 p/T1"),
        ("p/anat_T1 p/mri/p7anat_T1", "p/anat_T1"),
        ("p/p_t1 p/p_t1_BrainExtractionPrior0GenericAffine", "p/p_t1"),
        ("nifti/bert/T1 fs/bert/mri/T1.mgz fs/bert/mri/aseg.mgz", "nifti/bert/T1"),
        ("p_1/mri/T1.mgz p_1.long.p/mri/T1.mgz p/mri/T1.mgz", "p_1/mri/T1.mgz"),
        ("nifti/p1_T1 fs/p1/mri/T1.mgz fs/p1/mri/aseg.mgz", "nifti/p1_T1"),
        ("sub-1/ses-1/sub-1_ses-1_T1w fs/sub-1_ses-1/mri/T1.mgz", "sub-1/ses-1/sub-1_ses-1_T1w"),
        ("nifti/p1/T1 fs/p1_recon/mri/T1.mgz", "nifti/p1/T1"),
        ("p1/T1 p1/freesurfer/mri/T1.mgz", "p1/T1"),
        ("OAS1_1/OAS1_1_T1 OAS1_1/T88_111/OAS1_1_T1_111_t88", "OAS1_1/OAS1_1_T1"),
        ("X/P1_MR1/SCANS/3/NIFTI/P1_MR1_3_T1 X/P1_MR1/SCANS/5/NIFTI/P1_MR1_5_FLAIR",
         "X/P1_MR1/SCANS/3/NIFTI/P1_MR1_3_T1 X/P1_MR1/SCANS/5/NIFTI/P1_MR1_5_FLAIR"),
        ("case12/3_T1 case12/4_T1_POST", "case12/3_T1 case12/4_T1_POST"),
        ("A/2_S_4/x/I8/A_2_S_4_MR_FLAIR_I8 A/2_S_4/y/I9/A_2_S_4_MR_Fast_T1_I9",
         "A/2_S_4/x/I8/A_2_S_4_MR_FLAIR_I8 A/2_S_4/y/I9/A_2_S_4_MR_Fast_T1_I9"),  # of ADNI
        ("p/T1 p/Routine_FLAIR", "p/Routine_FLAIR p/T1"),
        ("p/FLAIR p/T1.anat/T1 p/T1.anat/T1_orig p/T1.anat/T1_biascorr p/T1.anat/T1_fast_seg",
         "p/FLAIR p/T1.anat/T1"),
        ("A/03_t1 A/04_flair A/05_dw_ADC A/05_dw_TRACEW A/07_t1_km A/08_t1_km_MPR_cor",
         "A/03_t1 A/04_flair A/05_dw_ADC A/05_dw_TRACEW A/07_t1_km"),
        ("p/p_t1ce_LPS_rSRI p/p_t1ce_LPS_rSRI_SSFinal", "p/p_t1ce_LPS_rSRI"),
        ("p/T1\np/T1 (Anna's conflicted copy 2021-02-03)", "p/T1"),
        ("p/T2 p/SWI_Images p/SWI_Images_mag", "p/SWI_Images p/T2"),
        ("p/carto_ADC p/FLAIR p/T1_gado", "p/FLAIR p/T1_gado p/carto_ADC"),
        ("p/CT1 p/T1 p/HD-GLIO-AUTO/segmentation_CT1_origspace p/HD-GLIO-AUTO/x/CT1_r2s_bet",
         "p/CT1 p/T1"),
        ("X1/d/3.000000-AX T1 PRE-926.nii.gz\nX1/d/5.000000-AX FLAIR-111.nii.gz",
         "X1/d/3.000000-AX T1 PRE-926 X1/d/5.000000-AX FLAIR-111"),
        ("p/T1_with_skull p/T1_brain", "p/T1_with_skull"),
        ("p/T1_mit_Schädel p/T1_ohne_Schädel", "p/T1_mit_Schädel"),
        ("p/withskull/T1 p/withskull/T2 p/brain/T1 p/brain/T2", "p/withskull/T1 p/withskull/T2"),
        ("p/avec_crâne/T1 p/brain/T1 p/avec_crâne/T2", "p/avec_crâne/T1 p/avec_crâne/T2"),
        ("X/P1/P1_MR1/4/t1 X/P1/P1_MR1/5/t2", "X/P1/P1_MR1/4/t1 X/P1/P1_MR1/5/t2"),
        ("S1/SCANS/4/NIFTI/4_t1 S1/ASSESSORS/S1_FS/out/resources/DATA/files/T1.mgz",
         "S1/SCANS/4/NIFTI/4_t1"),
        ("p/T1 p/T1_N4Corrected0 p/T1_BrainExtractionBrain", "p/T1"),
        ("p1/3_t1 p1/3_t1_Tilt_1 p1/7_t2", "p1/3_t1_Tilt_1 p1/7_t2"),
    ],
)  # fmt: skip
def test_one_of_several_images_is_used_where_names_say_which(
    names: str, used: str, tmp_path: Path
) -> None:
    found = found_in(tmp_path, names)
    (images,) = uses(found).values()
    assert " ".join(images) == used
    assert found.cases[0].warnings == ()


@pytest.mark.parametrize(
    ("names", "label"),
    [
        ("p/T1 p/infarct", "p/infarct"),
        ("T1/p1 FLAIR/p1 labels/p1", "labels/p1"),
        ("p/T1 p/Läsionsmaske", "p/Läsionsmaske"),
        ("p/T1 p/mask_GTV p/mask_Brainstem", "p/mask_GTV"),
        ("in/p1_T1 in/p1_seg bet/p1_T1_bet bet/p1_T1_mask", "in/p1_seg"),
        ("p/T1 p/T1_brain p/T1_mask", None),
        ("bet/T1 bet/T1_mask", None),
        ("brain/p_T1 brain/p_mask", "brain/p_mask"),
        ("p1_T1 p1_BRAIN p1_MASK", "p1_MASK"),
        ("p1/p1_t1_LPS_rSRI p1/p1_GlistrBoost_ManuallyCorrected",
         "p1/p1_GlistrBoost_ManuallyCorrected"),
        ("p/T1 p/FSL_SEG/p_masked_gfc_fseg", None),
        ("p/T1 p/Meningeom p/Oedem", None),
        ("images/a1/t1 annot/a1_LESION annot/a2_LESION", "annot/a1_LESION"),
        ("p/t1 p/lesion_in_t1_space", "p/lesion_in_t1_space"),
        ("p1/v1/T1 p2/v1/T1 labels/p1_v1", "labels/p1_v1"),
        ("nnUNet_raw/p1/T1 nnUNet_raw/p1/seg", "nnUNet_raw/p1/seg"),
        ("p/T1 p/tumor p/edema", None),
        ("p/T1 p/KM-Tumor p/Nekrose p/Ödem", None),
        ("p/T1 p/lesions_A p/STAPLE_mask", "p/STAPLE_mask"),
        ("p/T1 p/p_majorityvote_seg p/p_final_seg", "p/p_final_seg"),
        ("p/T1 p/seg p/old/seg", "p/seg"),
        ("p/T1 p/seg_AI p/seg_manual", "p/seg_manual"),
        ("p7/p7_MR_t1 p7/p7_Lesion_Mask", "p7/p7_Lesion_Mask"),
        ("images/p7/p7_1_t2w x_labels/x_lesion_delineations/expert/p7_1 "
         "x_labels/x_lesion_delineations/AI/p7_1", "x_labels/x_lesion_delineations/expert/p7_1"),
        ("images/p7/p7_1_t2w labels/set/human/p7_1 labels/set/AI/p7_1",
         "labels/set/human/p7_1"),
        ("Bilder/p7/T1 Segmentierungen/p7_seg_final", "Segmentierungen/p7_seg_final"),
        ("031/t01/031_t1w_deface_stx 031/t01/031_LesionSmooth_stx",
         "031/t01/031_LesionSmooth_stx"),
        ("p/T1 masks/p masks/cases.json masks/cases.csv", None),
        ("p/T1 masks/p masks/predict_from_raw_data_args.json", None),
        ("p/study1_T1 p/study2_T1 p/gt", None),
        ("R/R-MR-T1 R/R-SEG-tumor-MR-T1", "R/R-SEG-tumor-MR-T1"),
        ("R/R-T1 R/R-SEG-tumor_residual-MR-T1", "R/R-SEG-tumor_residual-MR-T1"),
        ("R/R-T1 R/R-SEG-tumor-MR-T1 R/R-SEG-cerebrum-MR-T1", "R/R-SEG-tumor-MR-T1"),
        ("p/X.O.MR_T1/X.O.MR_T1.7.nii.gz p/X_3more.XX.XX.OT/X_3more.XX.XX.OT.9.nii.gz",
         "p/X_3more.XX.XX.OT/X_3more.XX.XX.OT.9"),
        ("p1/p1_T1 p1/p1_seg p1/p1_mask_model_0", "p1/p1_seg"),
        ("p/T1 p/FLAIR_lesies", "p/FLAIR_lesies"),
        ("p/1-T1 p/1-Flair p/1-LesionSeg-Flair", "p/1-LesionSeg-Flair"),
    ],
)  # fmt: skip
def test_the_label_is_known_or_asked_for(names: str, label: str | None, tmp_path: Path) -> None:
    found = found_in(tmp_path, names, labels_needed=True)
    labels = [case.label.relative_to(tmp_path).as_posix() for case in found.cases
              if isinstance(case.label, Path)]  # fmt: skip
    assert labels == ([f"{label}.nii.gz"] if label else [])
    assert all(case.warnings == () for case in found.cases)


@pytest.mark.parametrize(
    ("names", "people"),
    [
        ("P1/E1/S1_T1 P1/E1/S2_T2 P1/E2/S1_T1 P2/E1/S1_T1", 2),
        ("P1/E1/S1_T1 P1/E2/S1_T1", 1),
        ("Meier/2019-05-03_preop/T1 Meier/2019-05-05_postop/T1", 1),
        ("Roy/IRM du 03-05-2019/T1\nRoy/IRM du 12-11-2019/T1", 1),
        ("Huber/Erst-MRT/T1\nHuber/Verlauf 1/T1\nKoch/Erst-MRT/T1", 2),
        ("Huber/Erste Aufnahme/T1\nHuber/Verlauf 1/T1\nKoch/T1", 2),
        ("S1A/T1 S1B/T1 S2A/T1", 2),
        ("R1/W00/T1 R1/W12/T1 R2/W00/T1 R2/W12/T1", 2),
        ("R1/Q1/T1 R1/Q2/T1 R2/Q1/T1 R2/Q2/T1", 2),
        ("Gil/basal/T1\nGil/control 6 meses/T1\nPaz/basal/T1", 2),
        ("Po/esordio/T1\nPo/follow-up 1/T1\nIva/T1", 2),
        (" ".join(f"study/M{number}/T1" for number in range(12)), 12),
        ("pre_01_FLAIR post_01_FLAIR pre_02_FLAIR post_02_FLAIR", 2),
        ("100-01/T1 100-02/T1 101-01/T1 101-02/T1", 2),
        ("0002_01/T1 0002_02/T1", 1),
        ("2021_01/T1 2021_02/T1", 2),
        ("UCSD-PTGBM-0002_01/T1 UCSD-PTGBM-0002_02/T1 UCSD-PTGBM-0003_01/T1", 2),
        ("001_pre/T1 001_post/T1 002_pre/T1", 2),
        ("Ward 3/Hart, Maria/T1\nWard 3/Kopf, Peter/T1", 2),
        ("P1/MRT Kopf/T1\nP1/MRT Hals/T1", 1),
        ("Study_2020/A/T1 Study_2020/B/T1", 2),
        (
            "Meier/2023/3_t1 Meier/2023/5_flair Meier/2024/3_t1 Meier/2024/5_flair Weiss/2023/3_t1",
            2,
        ),
    ],
)
def test_examinations_in_folders_are_of_the_person_around_them(
    names: str, people: int, tmp_path: Path
) -> None:
    found = found_in(tmp_path, names)
    assert len({patient_of(case.name, case.person) for case in found.cases}) == people
    assert found.refused == ()
    assert not any(case.warnings for case in found.cases)


def test_ct1_is_a_t1_with_contrast_agent_where_that_of_another_patient_is(tmp_path: Path) -> None:
    found = found_in(tmp_path, "p1/CT1 p1/T1 p2/CT1 p2/FLAIR")
    assert [sorted(case.images) for case in found.cases] == [["t1", "t1c"], ["flair", "t1c"]]


def test_a_localiser_in_a_folder_of_its_own_is_no_case_beside_its_patients_images(
    tmp_path: Path,
) -> None:
    names = "A/5_S_2/T1/d1/I7/A_5_S_2_MR_T1_br_raw_S1_I7 A/5_S_2/Loc/d1/I3/A_5_S_2_MR_Loc_br_I3"
    found = found_in(tmp_path, names)
    assert [list(case.images) for case in found.cases] == [["t1"]]
    assert found.refused == ()


def test_a_mask_that_is_called_like_an_image_is_told_from_it_by_its_values(tmp_path: Path) -> None:
    grid = Grid((4, 4, 4), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    (tmp_path / "p").mkdir()
    image = np.arange(64, dtype=np.float32).reshape(4, 4, 4) / 3
    write_image(tmp_path / "p" / "T1_brain.nii.gz", image, grid)
    write_image(tmp_path / "p" / "T1_thalamus.nii.gz", (image > 9).astype(np.float32), grid)
    found = find_cases(tmp_path)
    assert uses(found) == {"p": ["p/T1_brain"]}
    why = {each.path.name: each.why for each in found.records}["T1_thalamus.nii.gz"]
    assert why == "its values are those of a mask, though its name says t1"


def test_the_image_that_a_label_is_called_like_is_taken_with_a_warning(tmp_path: Path) -> None:
    (case,) = found_in(tmp_path, "p/FLAIR_5 p/FLAIR_7 p/FLAIR_7_roi p/T1").cases
    assert case.files["flair"].name == "FLAIR_7.nii.gz"
    assert "FLAIR_7.nii.gz is taken, as a label is called like it" in case.warnings[0]


def test_folders_with_several_images_below_scans_are_patients(tmp_path: Path) -> None:
    found = found_in(tmp_path, "scans/P1/T1 scans/P1/FLAIR scans/P2/T1 scans/P2/FLAIR")
    assert [case.name for case in found.cases] == ["P1", "P2"]
    assert found.refused == ()


def test_a_label_of_one_of_several_examinations_is_no_case_for_prediction(tmp_path: Path) -> None:
    found = found_in(tmp_path, "p/study1_T1 p/study2_T1 p/gt")
    assert (len(found.cases), found.refused) == (2, ())
    why = {each.path.name: each.why for each in found.records}["gt.nii.gz"]
    assert why == "a label; of which of the cases beside it is not known"


def test_numbers_with_a_label_each_are_of_patients(tmp_path: Path) -> None:
    names = "x_1_ceT1 x_1_Label x_2_ceT1 x_2_Label x_106_hrT2"
    found = found_in(tmp_path, names)
    assert [case.name for case in found.cases] == ["x_1", "x_106", "x_2"]


def test_a_spine_beside_images_of_no_known_part_is_a_question(tmp_path: Path) -> None:
    found = found_in(tmp_path, "p1/T1 p1/T1c p1/T2_spine")
    assert list(uses(found).values()) == [["p1/T1", "p1/T1c"]]
    assert "says SPINE, and names beside it say no part of the body" in found.cases[0].warnings[0]
    found = found_in(tmp_path / "more", "Hals_T1 Hals_T2")  # a person
    assert list(uses(found).values()) == [["Hals_T1", "Hals_T2"]]


@pytest.mark.parametrize(
    ("first", "second", "cases"),
    [
        ("control/{}_T1", "lesion/lesion_{}_T1", 4),
        ("tumor/{}_T1", "lesion/{}_T1", 4),
        ("images/{}_T1", "lesion/{}_T1", 2),
        ("images/{}_T1", "masks/mask_{}_T1", 2),
    ],
)
def test_a_folder_called_as_labels_may_be_of_a_diagnosis_by_its_voxels(
    first: str, second: str, cases: int, tmp_path: Path
) -> None:
    grid = Grid((4, 8, 8), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    for number in ("001", "002"):
        for place in (first, second):
            path = tmp_path / f"{place.format(number)}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            image = np.arange(256, dtype=np.float32).reshape(grid.shape) * 3 + len(place)
            image += 100 * int(number)
            if place == second and cases == 2:
                image = np.where(image > 300, 1, 0).astype(np.float32)
            write_image(path, image, grid)
    found = find_cases(tmp_path)
    assert len(found.cases) == cases
    assert found.refused == ()
    assert {case.label is not None for case in found.cases} == {cases == 2}
    assert not any(case.warnings for case in found.cases)


def test_a_damaged_image_does_not_make_a_folder_one_of_labels(tmp_path: Path) -> None:
    grid = Grid((4, 8, 8), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), (1.0, 0, 0, 0, 1.0, 0, 0, 0, 1.0))
    (tmp_path / "lesion").mkdir()
    (tmp_path / "lesion" / "001_T1.nii.gz").write_bytes(b"damaged")
    image = np.arange(256, dtype=np.float32).reshape(grid.shape) * 3
    for number in ("002", "003"):
        write_image(tmp_path / "lesion" / f"{number}_T1.nii.gz", image, grid)
    assert [list(case.images) for case in find_cases(tmp_path).cases] == [["t1"]] * 3


def test_freesurfers_subject_by_another_name_is_a_question(tmp_path: Path) -> None:
    found = found_in(tmp_path, "nifti/Meier/T1 fs/subj01/mri/T1.mgz")
    assert list(uses(found).values()) == [["nifti/Meier/T1"]]
    assert "FreeSurfer's of 'subj01', who may be one of the others" in found.refused[0].reason
    found = found_in(tmp_path / "more", "p1/T1 p2/mri/T1.mgz")  # somebody else, by the number
    assert len(found.cases) == 2


def test_numbers_of_series_are_no_other_name(tmp_path: Path) -> None:
    names = "W_20230101_4_t1 W_20230101_5_t2 K_20230303_4_t1 K_20230303_5_t2"
    found = found_in(tmp_path, names)
    assert [(len(case.images), case.warnings) for case in found.cases] == [(2, ()), (2, ())]


def test_an_unread_label_of_two_examinations_joins_them_not(tmp_path: Path) -> None:
    found = found_in(tmp_path, "p1/study1_T1 p1/study1_FLAIR p1/study2_T1 p1/study2_FLAIR p1/gt")
    assert [sorted(case.images) for case in found.cases] == [["flair", "t1"], ["flair", "t1"]]


def test_a_label_of_another_examination_than_its_images_is_not_taken(tmp_path: Path) -> None:
    names = "p1/T1 p1/FLAIR p1/seg_followup"
    assert found_in(tmp_path / "a", names, labels_needed=True).cases == ()
    names = "p1/T1_followup p1/FLAIR_followup p1/seg_followup"
    assert len(found_in(tmp_path / "b", names, labels_needed=True).cases) == 1
    names = "p1/followup/T1 p1/followup/FLAIR_followup p1/followup/seg_followup"
    (case,) = found_in(tmp_path / "c", names, labels_needed=True).cases
    assert set(case.images) == {"t1", "flair"}


def test_a_label_elsewhere_does_not_refuse_a_case_of_its_name(tmp_path: Path) -> None:
    found = found_in(tmp_path, "p1/T1 p1/FLAIR p2/T1 p2/FLAIR results/p1_T1_seg")
    assert [case.name for case in found.cases] == ["p1", "p2"]


def test_patients_called_t1_and_t2_are_a_question(tmp_path: Path) -> None:
    found = found_in(tmp_path, "T1/T1_flair T1/T1_t2 T2/T2_flair T2/T2_t2")
    assert found.cases == ()
    assert "may be a time point" in found.refused[0].reason


def test_two_files_of_one_series_do_not_divide_a_patient(tmp_path: Path) -> None:
    found = found_in(tmp_path, "p/3_t1 p/5_t2 p/9_t1_km p/9_t1_km_sag p/12_flair")
    assert [sorted(case.images) for case in found.cases] == [["flair", "t1", "t2"]]
    assert "2 files for t1c" in found.cases[0].warnings[0]


def test_numbers_of_a_protocol_with_a_label_each_are_a_question(tmp_path: Path) -> None:
    names = " ".join(f"{p}/4_t1 {p}/9_t1_km {p}/4_seg {p}/9_seg" for p in ("ew", "hk"))
    found = found_in(tmp_path, names)
    assert found.cases == ()
    assert "may be of one patient's series or of several patients" in found.refused[0].reason


def test_a_link_to_a_folder_that_is_read_gives_no_second_patient(tmp_path: Path) -> None:
    found_in(tmp_path, "store/p1/T1 store/p1/FLAIR store/p2/T1")
    (tmp_path / "cohort").mkdir()
    (tmp_path / "cohort" / "p1").symlink_to(tmp_path / "store" / "p1")
    found = account(find_cases(tmp_path))
    assert [case.name for case in found.cases] == ["store_p1", "store_p2"]
    assert [each.why for each in found.aside] == ["a link to a folder that is read where it lies"]


def test_the_folder_above_a_data_set_of_nnunet_may_be_given(tmp_path: Path) -> None:
    described = '{"channel_names": {"0": "T1"}, "labels": {"background": 0, "lesion": 1}}'
    for number, names in enumerate(
        (
            "D/imagesTr/p1_0000 D/labelsTr/p1",
            "images/p1_0000 labels/p1",
            "raw/D/imagesTr/p1_0000 raw/D/labelsTr/p1 nnUNet_preprocessed/D/gt/p1",
        )
    ):
        folder = tmp_path / str(number)
        data_set = folder / names.split("images")[0]
        data_set.mkdir(parents=True, exist_ok=True)
        (data_set / "dataset.json").write_text(described)
        found = found_in(folder, names, labels_needed=True)
        assert [(case.name, list(case.images)) for case in found.cases] == [("p1", ["t1"])]
        assert found.labels is not None
        assert find_site(folder).labels == found.labels


def test_echoes_of_one_series_do_not_part_a_patient(tmp_path: Path) -> None:
    names = [f"p1/6_t2star_e{echo}" for echo in range(1, 6)]
    found = found_in(tmp_path, " ".join([*names, "p1/7_flair"]))
    assert uses(found) == {"p1": ["p1/7_flair"]}
    assert "not used: 5 files for t2star" in found.cases[0].warnings[0]


def test_an_image_with_its_skull_beside_others_is_warned_of(tmp_path: Path) -> None:
    (case,) = found_in(tmp_path, "p/T1_with_skull p/T1_brain p/FLAIR").cases
    assert case.files["t1"].name == "T1_with_skull.nii.gz"
    assert "p/T1_with_skull.nii.gz shows the skull, and names of the other" in case.warnings[0]


def test_numbered_folders_of_one_image_each_at_the_top_are_patients(tmp_path: Path) -> None:
    assert uses(found_in(tmp_path, "1/t1 2/flair")) == {"1": ["1/t1"], "2": ["2/flair"]}
