from pathlib import Path

import pytest

from mixmfl.data.file_names import FileName, read_name
from mixmfl.data.image_files import part_behind_patient
from mixmfl.data.modalities import Modalities


def read(stem: str, folder: str = "") -> FileName:
    return read_name(stem, Modalities(), folder)


@pytest.mark.parametrize(
    ("stem", "case", "modality"),
    [
        # a folder per case: the name is the modality
        ("T1", "", "t1"),
        ("t1ce", "", "t1c"),
        ("T2_FLAIR", "", "flair"),
        ("T2*", "", "t2star"),
        # BraTS, old and new
        ("BraTS20_Training_001_t1ce", "BraTS20_Training_001", "t1c"),
        ("BraTS20_Training_001_flair", "BraTS20_Training_001", "flair"),
        ("BraTS-GLI-00001-000-t1n", "BraTS-GLI-00001-000", "t1"),
        ("BraTS-GLI-00001-000-t1c", "BraTS-GLI-00001-000", "t1c"),
        ("BraTS-GLI-00001-000-t2w", "BraTS-GLI-00001-000", "t2"),
        ("BraTS-GLI-00001-000-t2f", "BraTS-GLI-00001-000", "flair"),
        # BIDS: the case is subject and session, whatever else is said
        ("sub-01_T1w", "sub-01", "t1"),
        ("sub-01_ses-1_FLAIR", "sub-01_ses-1", "flair"),
        ("sub-01_acq-x_FLAIR", "sub-01", "flair"),
        ("sub-01_ses-1_ce-gadolinium_T1w", "sub-01_ses-1", "t1c"),
        ("sub-01_ce-Dotarem_run-2_T1w", "sub-01", "t1c"),
        ("sub-01_ses-post_T1w", "sub-01_ses-post", "t1"),
        ("sub-01_space-T2_T1w", "sub-01", "t1"),
        ("sub-01_T2starw", "sub-01", "t2star"),
        # as hospitals write
        ("IXI002-Guys-0828-T1", "IXI002-Guys-0828", "t1"),
        ("T1_001", "001", "t1"),
        ("north_T1_001", "north_001", "t1"),
        ("p01.T2 tse", "p01", "t2"),
        ("p01_T1_post", "p01", "t1c"),
        ("p01_T1_pre_contrast", "p01", "t1"),
        ("p01-GD-T1", "p01", "t1c"),
        ("p01_t2_star", "p01", "t2star"),
        ("p01_ADC", "p01", "adc"),
        # words before the number belong to the case
        ("PD-012_t1", "PD-012", "t1"),
        ("lesion_001_t2", "lesion_001", "t2"),
        # as converters write: times and numbers stay behind, to be looked at beside the others
        ("p01_t2_tirm_tra_dark-fluid_20190101120000_9", "p01_20190101120000_9", "flair"),
        ("p01_t1_mprage_sag_p2_iso_KM_20190101120000_12", "p01_20190101120000_12", "t1c"),
        ("201_T1W_3D_TFE", "201", "t1"),
        ("SUB_01_T1", "SUB_01", "t1"),
        ("p2_t1", "p2", "t1"),
        ("sub-01_acq-gd_T1w", "sub-01", "t1c"),
        ("sub-01_ce-none_T1w", "sub-01", "t1"),
        # the sign before or behind decides
        ("p01_T1C-", "p01", "t1"),
        ("p01_T1C+", "p01", "t1c"),
        ("p01_T1Gd-", "p01", "t1"),
        ("T1_enh", "", "t1c"),
        # what denies an agent may be before the sequence
        ("no_contrast_T1", "", "t1"),
        ("p01_non-enhanced_T1", "p01", "t1"),
        ("p01_w_o_Gd_T1", "p01", "t1"),
        ("p01_vor_KM_T1", "p01", "t1"),
        ("p01_non con T1", "p01", "t1"),
        ("p01_nach_KM_T1", "p01", "t1c"),
        ("p01_with_contrast_T1", "p01", "t1c"),
        ("p01_anat_T1", "p01", "t1"),
        # a sequence of several words may begin the name, or be glued to a time
        ("dark_fluid_spc", "", "flair"),
        ("p01_proton_density", "p01", "pd"),
        ("20200115_101010tirmdarkfluid", "20200115_101010", "flair"),
        # echoes of a double echo: the first is the short one
        ("p01_pd_t2_tse_e1", "p01_e1", "pd"),
        ("p01_pd_t2_tse_e2", "p01_e2", "t2"),
        # as tools write what they made of an image
        ("T2_r2s_bet_reg", "", "t2"),
        ("T1_brain", "", "t1"),
        ("T1Warped", "", "t1"),
        ("T1_to_T2", "", "t1"),
        ("FLAIR_reg2T1", "", "flair"),
        ("T1c_coreg_T1", "", "t1c"),
        ("T1_syn", "", "t1"),  # registered by ANTs
        # a sign is no part of a patient's name
        ("p01_+C_T1", "p01", "t1c"),
        ("p01_C+_T1", "p01", "t1c"),
        ("sub-01_acq-dixonW_T1w", "sub-01", "t1"),
        ("sub-01_acq-T2_FLAIR", "sub-01", "flair"),
        ("sub-01_rec-ADC_dwi", "sub-01", "adc"),
    ],
)
def test_the_modality_is_read_from_the_name(stem: str, case: str, modality: str) -> None:
    file_name = read(stem)
    assert (file_name.case, file_name.modality, file_name.is_label) == (case, modality, False)


@pytest.mark.parametrize(
    ("stem", "case"),
    [
        ("seg", ""),
        ("BraTS20_Training_001_seg", "BraTS20_Training_001"),
        ("sub-01_ses-1_dseg", "sub-01_ses-1"),
        ("sub-01_label-lesion_mask", "sub-01"),
        ("p01_T1_seg", "p01"),
        ("p01 lesions", "p01"),
        ("UCSF-PDGM-0004_tumor_segmentation", "UCSF-PDGM-0004"),
    ],
)
def test_labels_are_read_from_the_name(stem: str, case: str) -> None:
    file_name = read(stem)
    assert (file_name.case, file_name.modality, file_name.is_label) == (case, None, True)


@pytest.mark.parametrize("stem", ["p01_scan", "case_0000", "IM_0001"])
def test_other_names_stay_unknown(stem: str) -> None:
    file_name = read(stem)
    assert file_name == FileName(stem, head=stem)
    assert not file_name.is_known


@pytest.mark.parametrize(
    ("stem", "aside"),
    [
        ("brain_mask", "mask"), ("p01_brainmask", "mask"), ("T1_bet_mask", "mask"),
        ("aparc+aseg", "mask"), ("p01_bold", "functional"), ("T1InverseWarped", "deformation"),
        ("T11Warp", "deformation"), ("p01_TOF", "angiography"),
        ("sub-01_desc-brain_mask", "mask"), ("sub-01_desc-aparcaseg_dseg", "mask"),
        ("sub-01_label-GM_probseg", "mask"), ("sub-01_mod-T1w_defacemask", "mask"),
        ("sub-01_acq-t1_magnitude1", "field map"), ("sub-01_acq-dwi_dir-AP_epi", "field map"),
        ("sub-01_task-rest_acq-T2star_bold", "functional"), ("sub-01_T1map", "map"),
        ("sub-01_inv-1_MP2RAGE", "one image of an MP2RAGE"), ("sub-01_part-phase_T2starw", "phase"),
        ("sub-01_angio", "angiography"), ("sub-01_asl", "perfusion"),
        ("p01_swi_7_ph", "phase"), ("p01_t1_se_4_real", "real part"),
        ("p01_t1_se_4_imaginaryb", "imaginary part"), ("p01_R2s", "map"),
        ("p01_SYN_T1", "synthetic"), ("p01_b0_T2", "diffusion without weighting"),
        ("FLAIR_SynthSR", "synthetic"), ("sub-01_rec-FA_dwi", "diffusion map"),
        ("FLAIR_lesion_prob", "mask"), ("T1_to_MNI_nonlin_jac", "deformation"),
        ("BiasField_T1", "map"), ("T1_first_all_fast_firstseg", "mask"),
        ("T1_fast_seg", "mask"), ("Quantib T1 report", "screen shot"),
        ("FLAIR_flipped", "altered copy"), ("T2_mirrored", "altered copy"),
        ("T1_inverted", "altered copy"), ("T2_simulated", "synthetic"), ("T1c_gan", "synthetic"),
        ("T1_delta", "subtraction"), ("FLAIR_snr", "map"),
        ("T1 annotated", "screen shot"), ("FLAIR_Messungen", "screen shot"),
        ("sub-01_acq-STIR_T2w", "STIR"), ("sub-01_acq-DIR_T2w", "double inversion"),
        ("sub-01_acq-TOF_T1w", "angiography"), ("sub-01_acq-dixonF_T1w", "fat image"),
    ],
)  # fmt: skip
def test_what_is_no_image_to_segment_is_known_for_what_it_is(stem: str, aside: str) -> None:
    file_name = read(stem)
    assert file_name.aside == aside
    assert not file_name.is_known


def test_the_type_of_data_of_a_bids_folder_counts() -> None:
    assert read("sub-01_T1w", "fmap").aside == "field map"
    assert read("sub-01_T1w", "func").aside == "functional"
    assert read("sub-01_T1w", "anat").modality == "t1"


@pytest.mark.parametrize(
    ("stem", "doubt"),
    [
        ("p_t1_t2", "is undecided ('t1', 't2': these are different sequences)"),
        ("lesion_t1", "fits a label and t1"),
        ("T1_C", "is undecided ('t1' is a T1, but 'c' does not say whether with or without"),
        ("CT1", "is undecided ('ct1': a T1 with contrast agent, or a computed tomography)"),
        ("p01_post_T1", "has 'post' before a T1, which may tell the time or a contrast agent"),
        ("p01_cm_T1", "has 'cm' before a T1, which may tell of a contrast agent"),
        ("CM_T1_tse", "has 'CM' before a T1, which may tell of a contrast agent"),
        ("KM_T1", "begins with 'KM', a contrast agent or a patient's initials"),
        ("p01_T1_pi", "is undecided ('t1' is a T1, but 'pi' may tell of a contrast agent)"),
        ("T1_xyz", "is undecided ('t1' is a T1, but 'xyz' may tell of a contrast agent)"),
        ("sub-01_acq-pi_T1w", "is undecided ('t1' is a T1, but 'pi' may tell of a contrast agent)"),
        ("sub-01_acq-FLAIR_T2w", "says flair by acq-flair and t2 by its suffix"),
        ("sub-01_acq-c_T1w", "is undecided ('t1' is a T1, but 'c' does not say"),
        ("sub-01_acq-T1_FLAIR", "says t1 by acq-t1 and flair by its suffix"),
        ("sub-01_ses-postgd_T1w", "says no agent by 'ce', and one by 'postgd'"),
        ("sub-01_desc-contrast_T1w", "says no agent by 'ce', and one by 'contrast'"),
    ],
)
def test_a_name_that_does_not_decide_says_why(stem: str, doubt: str) -> None:
    file_name = read(stem)
    assert file_name.doubt.startswith(doubt)
    assert not file_name.is_known


def test_bids_tells_of_an_agent_by_its_own_entity_so_other_words_do_not_matter() -> None:
    assert read("sub-01_acq-xyz_T1w").modality == "t1"
    assert read("sub-01_acq-xyz_ce-gd_T1w").modality == "t1c"


def test_what_was_made_of_an_image_is_told_from_the_image() -> None:
    assert read("T1").processing == ()
    assert read("T1_N4_brain").processing == ("N4", "brain")
    assert read("T1_to_T2").processing == ("to T2",)
    assert read("p01_t2_tse_5_Eq_1").processing == ("eq",)
    assert read("sub-01_space-MNI152_desc-preproc_T1w").processing == (
        "space-mni152",
        "desc-preproc",
    )


def test_a_letter_before_an_agent_may_deny_it_or_be_a_patients() -> None:
    assert "which may deny it" in read("p01_o_KM_T1").doubt


def test_what_is_before_the_words_is_the_patient() -> None:
    assert read("p01_t1_mprage_20190101120000_5").head == "p01"
    assert read("UCSF-PDGM-0004_T1_bias").head == "UCSF-PDGM-0004"
    assert read("3D_T1_5").head == ""


def test_a_part_of_the_body_is_the_images_and_not_the_patients() -> None:
    assert part_behind_patient(Path("p1_T2_HWS.nii.gz")) == "CSPINE"
    assert part_behind_patient(Path("T1_hip.nii.gz")) == "HIP"
    assert part_behind_patient(Path("Hals_T1.nii.gz")) == ""
    assert part_behind_patient(Path("Huber/LWS/T1.nii.gz")) == "LSPINE"
    assert part_behind_patient(Path("Hand_Karl/T1.nii.gz")) == ""
