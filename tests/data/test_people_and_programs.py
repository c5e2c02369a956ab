"""Folders in which a patient, a time or a program is easily taken for something else."""

from pathlib import Path

import pytest
from empty_files import found_in

from mixmfl.data.cases import Case, find_cases
from mixmfl.data.patients import patient_of


def patient(case: Case) -> str:
    return patient_of(case.name, case.person)


@pytest.mark.parametrize(
    "names",
    [
        "p1/2019/T1 p1/2019/FLAIR p1/2020/T1 p1/2020/FLAIR",
        "Mueller/04.03.2019/T1 Mueller/04.03.2020/T1",
        "p1/0mo/T1 p1/6mo/T1",
        "p1/Mar2019/T1 p1/Oct2019/T1",
        "p1/nadir/T1 p1/relapse/T1",
        "p1/vor OP/T1\np1/nach OP/T1",
        "A/MRI Pre/FLAIR\nA/MRI Post/FLAIR",
        "p7 [baseline]/T1\np7 [month 6]/T1",
        "p1_scanA/T1 p1_scanB/T1",
        "Meier/1.2.840.113619.2.1/T1 Meier/1.2.840.113619.2.2/T1",  # UIDs of studies
        "P1/T1/P1_T1_T1 P1/T1/P1_T1_T2 P1/T1/P1_T1_FLAIR "  # of MSLesSeg
        "P1/T2/P1_T2_T1 P1/T2/P1_T2_T2 P1/T2/P1_T2_FLAIR",
        "p1_T1_preop p1_FLAIR_preop p1_T1_postop p1_FLAIR_postop",
        "p1/T1_left p1/PD_left p1/T1_right p1/PD_right",
        "p1_V1_T1 p1_V2_T1",
        "p1_Erstuntersuchung_T1 p1_Verlauf_T1",
        "p1/initial/T1 p1/controle1/T1",
        "p1_MR1_T1 p1_MR2_T1",
        "p1_T2_left p1_T2_right",
        "20190304_Mueller_T1 20200304_Mueller_T1",
        "UCSF-PDGM-0541_nifti/UCSF-PDGM-0541_T1 "
        "UCSF-PDGM-0541_FU016d_nifti/UCSF-PDGM-0541_FU016d_T1",
        "training01/orig/training01_01_t2 training01/orig/training01_02_t2",
        "RHUH-0001/0/RHUH-0001_0_t1 RHUH-0001/1/RHUH-0001_1_t1",
        "ReMIND-001/preop/ReMIND-001-preop-3D_AX_T2 ReMIND-001/intraop/ReMIND-001-intraop-3D_AX_T2",
        "raw/p1/T1 archive/p1/T1",
        "train/p1/T1 test_2/p1/T1",
        "p1/T1\np1 - Kopie/T1",
        "p1/T1\nCopy of p1/T1",
        "p1/T1\np1 (1)/T1",
        "2019-01-02/T1 2020-03-04/T1",
        "p1/MRT 2019-03/T1\np1/MRT 2020-03/T1",
        "p1/2019-03/T1 p1/2020-03/T1",
        "p1_BL/T1 p1_FU/T1",
        "baseline/T1 followup/T1",
        "p1/Kopf/T1 p1/HWS/T2",
        "p1/brain/T1 p1/spine/T2",
        "p1/3T/T1 p1/7T/T1",
        "3T/p1/T1 7T/p1/T1",
        "scanner1/sub-1/sub-1_T1w scanner2/sub-1/sub-1_T1w",
        "S1_a_T1 S1_b_T1",
        "R-1/R-1-preoperative/T1 R-1/R-1-early_postop/T1",  # of RHUH-GBM
        "A/12/M/2010-01-01/I1/A_12_T1_adni_I1 A/12/M/2012-01-01/I2/A_12_T1_adni_I2",  # of AIBL
        "P01/pre/P01_T1 P01/post/P01_FLAIR",
        "Kopf/p1/T1 HWS/p1/T1",
        "p1/ACC9001/T1 p1/ACC9055/T1",
        "p1/1.2.840.1.11/T1 p1/1.2.840.1.12/T1",
        "p1/T1 p1_repeat/T1",
        "p1/T1 p1_2/T1",
        "p1/T1 results/p1/T1_brain",
        "p1/new/T1 p1/old/T1",
        "p1/T1_1 p1/T1_2 p1/FLAIR_1 p1/FLAIR_2",
        "sub1/1/T1 sub1/2/T1",
        "S1/Pre/FLAIR S1/Post/FLAIR",
        "S01_R1_T1 S01_R2_T1",
        "hv01_scan1/T1 hv01_scan2/T1",
        "2/preRT/2_preRT_T2 2/midRT/2_midRT_T2 2/midRT/2_preRT_T2_registered",  # of HNTS-MRG
        "sub001_001_T1 sub001_002_T1",  # of ATLAS
        "P13/flair_time01_on_middle_space P13/flair_time02_on_middle_space",  # of MSSEG-2
        "p1/1_MRT/T1 p1/2_MRT/T1",
        "p1/Aufnahme/T1 p1/Entlassung/FLAIR",
        "p1/1577836800/T1 p1/1609459200/T1",
        "p1/T1_screening p1/FLAIR_screening p1/T1_eot p1/FLAIR_eot",
        "p1/T1 p1_aug1/T1",
        "p1-1/T1 p1-2/T1",
        "Pat7_T1_2021-Q4 Pat7_T1_2022-Q1",
        "P001_S1_T1 P001_S2_T1",
        "BraTSReg_001/BraTSReg_001_00_0000_t1 BraTSReg_001/BraTSReg_001_01_0106_t1",
        "sub-01/preop/sub-01_preop-t1mri-1 sub-01/postop/sub-01_postop-t1mri-1",  # of EPISURG
        "G1/12-05-2001-MRI BRAIN-12345/3.000000-AX T1-11111/img\n"
        "G1/03-01-2002-MRI BRAIN-99999/3.000000-AX T1-44444/img",
    ],
)
def test_examinations_are_cases_of_one_patient(names: str, tmp_path: Path) -> None:
    found = found_in(tmp_path, names)
    assert found.refused == ()
    assert len(found.cases) == 2
    assert len({patient(case) for case in found.cases}) == 1


def test_what_was_registered_to_another_state_is_set_aside_without_a_question(
    tmp_path: Path,
) -> None:
    names = (
        "2/preRT/2_preRT_T2 2/preRT/2_preRT_mask 2/midRT/2_midRT_T2 2/midRT/2_midRT_mask "
        "2/midRT/2_preRT_T2_registered 2/midRT/2_preRT_mask_registered"
    )
    found = found_in(tmp_path, names, labels_needed=True)
    assert found.refused == ()
    assert [case.warnings for case in found.cases] == [(), ()]


def test_patients_with_examinations_are_told_apart(tmp_path: Path) -> None:
    found = found_in(tmp_path, "Mueller/2019/T1 Mueller/2020/T1 Meier/2019/T1")
    assert len({patient(case) for case in found.cases}) == 2
    for number, names in enumerate(
        (
            "R1/d000/T1 R1/d100/T1 R2/d000/T1",
            "preop_Meier_T1 postop_Meier_T1 preop_Koch_T1",
            "Ole 3.1.2024/T1\nOle 4.6.2024/T1\nPer 4.6.2024/T1",
            "2024-01-03 Ole/T1\n2024-06-04 Ole/T1\n2024-06-04 Per/T1",
            "0001_01/T1 0001_02/T1 0002_01/T1",
            "p1/alpha/T1 p1/beta/T1 p2/alpha/T1 p2/beta/T1",
            "Export 1/Meier/T1\nExport 2/Meier/T1\nExport 2/Schulz/T1",
        )
    ):
        found = found_in(tmp_path / str(number), names)
        assert len({patient(case) for case in found.cases}) == 2, names
    found = found_in(tmp_path / "more", "T1/p1_brain T1/p2_brain FLAIR/p1 FLAIR/p2")
    assert {case.name: set(case.images) for case in found.cases} == {
        "p1": {"t1", "flair"},
        "p2": {"t1", "flair"},
    }


@pytest.mark.parametrize(
    "names",
    [
        "Patient (1)/T1\nPatient (2)/T1",  # as Windows numbers what is renamed together
        "2019-03/T1 2019-04/T1",
        "2023-0012/T1 2023-0013/T1",
        "site/T1/anna site/T1/bert site/FLAIR/anna site/FLAIR/bert",
        "C1/IM_1_T1 C1/IM_2_FLAIR C2/IM_1_T1 C2/IM_2_FLAIR",
        "centre1/p1/T1 centre2/p1/T1",
        "2020-01-01/p1/T1 2020-01-01/p2/T1",
        "Müller/T1 Müller_Anna/T1",
        "Brats18_2013_2_1/T1 Brats18_2013_3_1/T1",
        "scan_001/T1 scan_002/T1 study_1/T1 study_2/T1",
        "101_01/T1 101_02/T1 102_01/T1",  # sites of a trial
        "NYU_0050952/T1 NYU_0050953/T1 UCLA_1_0051201/T1",
        "Ward3/Meier/T1 Ward3/Schulz/T1 Ward4/Meier/T1",
        "siteA/sub-01/sub-01_T1w siteB/sub-01/sub-01_T1w",
        "T1_p1 FLAIR_p1 T1_p2 FLAIR_p2",
        "TCIA/Prostate3T-01-0001/T2 TCIA/Prostate3T-01-0002/T2",
        " ".join(f"Heads/Brain_{number}/T1" for number in range(1, 12)),
        "BRAIN_01/visit_x/T1 BRAIN_02/visit_x/T1",
        "001_01/T1 001_02/T1",  # of one site, perhaps
        "controls/01/T1 patients/01/T1",
        "site1/1/T1 site1/2/T1",
        " ".join(f"2020-01-{day}/T1" for day in range(10, 22)),  # a collection by days
    ],
)
def test_patients_are_told_apart(names: str, tmp_path: Path) -> None:
    found = found_in(tmp_path, names)
    assert len({patient(case) for case in found.cases}) == len(found.cases) > 1


def test_patients_of_nnunets_layout_are_known_as_others_are(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text('{"channel_names": {"0": "T1"}}')
    names = "0001_01 0001_02 0002_01 p1 p1_repeat"
    found = found_in(tmp_path, " ".join(f"imagesTr/{name}_0000" for name in names.split()))
    assert "nnU-Net" in found.layout
    assert [patient(case) for case in found.cases] == ["0001", "0001", "0002_01", "p1", "p1"]


def test_a_folder_that_stores_a_collection_names_no_case(tmp_path: Path) -> None:
    found = found_in(tmp_path, "train/p1/T1 train/p1/FLAIR test/p2/T1 raw/p3/T1 archive/p3/T1")
    assert [case.name for case in found.cases] == ["archive_p3", "p1", "p2", "p3"]


@pytest.mark.parametrize(
    "names",
    [
        "sub-01/anat/sub-01_T1w derivatives/fmriprep/sub-01/anat/sub-01_dseg",
        "p1/T1 p1/T1_r2s_bet p1/segmentation",  # of HD-GLIO
        "p1/T1 p1/seg_pred",
        "p1/T1 p1/lesion_auto",
        "p1/T1 nnunet/p1/seg",
        "p1/T1 p1/swinunetr_seg",
        "p1/T1 p1/output_mask",
        "p1/T1 p1/T1_seg p1/T1_pve_0",  # of FAST
        "p1/T1 p1/final_mask p1/bianca_mask",
        "p1/FLAIR p1/lst_lesions",
        "p1/p1_FLAIR p1/p1_GlistrBoost",
        # fMRIPrep's folder by itself, with tissue
        "sub-01/anat/sub-01_T1w sub-01/anat/sub-01_dseg sub-01/anat/sub-01_label-GM_probseg",
        "p1/T1 p1/T1_lesion_filled",  # images for programs that measure healthy tissue
        "p1/T1 p1/T1_filled_lesions",
    ],
)
def test_segmentations_by_programs_are_no_labels(names: str, tmp_path: Path) -> None:
    found = found_in(tmp_path, names, labels_needed=True)
    assert [case.label for case in found.cases] == []
    assert any("no label" in refused.reason for refused in found.refused)


def test_of_several_raters_the_consensus_is_the_label(tmp_path: Path) -> None:
    names = "p1/FLAIR p1/rater1/lesion p1/rater2/lesion p1/consensus/lesion"
    names += " p2/FLAIR p2/seg_r1 p2/seg_r2 p2/seg_majority"
    labels = [case.label for case in found_in(tmp_path, names, labels_needed=True).cases]
    assert labels == [
        tmp_path / f"{name}.nii.gz" for name in ("p1/consensus/lesion", "p2/seg_majority")
    ]


@pytest.mark.parametrize("names", ["images/LST_FLAIR labels/LST_seg", "LST/FLAIR LST/LST_seg"])
def test_a_patient_may_be_called_as_a_program(names: str, tmp_path: Path) -> None:
    (case,) = found_in(tmp_path, names, labels_needed=True).cases
    assert case.label


def test_a_programs_segmentation_that_says_it_was_corrected_is_a_label(tmp_path: Path) -> None:
    names = "p1/p1_t1 p1/p1_GlistrBoost p1/p1_GlistrBoost_ManuallyCorrected"
    (case,) = found_in(tmp_path, names, labels_needed=True).cases
    assert case.label == tmp_path / "p1" / "p1_GlistrBoost_ManuallyCorrected.nii.gz"


def test_rejects_alone_are_refused_with_the_reason(tmp_path: Path) -> None:
    for place, why in {
        "backup/p1": "a file of the folder 'backup'",
        "derivatives/x/sub-1": "an image of BIDS derivatives",
    }.items():
        (refused,) = found_in(tmp_path / why, f"{place}/T1").refused
        assert why in refused.reason


def test_parts_of_an_image_by_freesurfer_are_no_image(tmp_path: Path) -> None:
    (tmp_path / "p1" / "mri").mkdir(parents=True)
    for name in ("T1", "lh.hippoAmygLabels-T1.v21", "ThalamicNuclei.v13.T1"):
        (tmp_path / "p1" / "mri" / f"{name}.mgz").touch()
    (case,) = find_cases(tmp_path).cases
    assert [path.name for path in case.files.values()] == ["T1.mgz"]
    assert case.warnings == ()


@pytest.mark.parametrize(
    "names",
    [
        "Bilder/p1_T1 Bilder/p2_T1 Masken/p1 Masken/p2",
        "Bilder/p1/T1 Bilder/p2/T1 Masken/p1/seg Masken/p2/seg",
        "images/lesion_1_T1 images/lesion_2_T1 labels/lesion_1 labels/lesion_2",
        "images/p1/FLAIR images/p2/FLAIR masks/p1/T1 masks/p2/FLAIR",
        "T1w/p1/img T1w/p2/img FLAIR/p2/img GT/p1/img GT/p2/img",
        "lesion01/T1 lesion01/FLAIR lesion01/seg lesion02/T1 lesion02/seg",  # patients
        "Seg/p1_T1 Seg/p1_seg Seg/p2_T1 Seg/p2_seg",
        "Masks/p1/T1 Masks/p1/seg Masks/p2/T1 Masks/p2/seg",
        "p1/MR/T1 p1/RT/GTV p2/MR/T1 p2/RT/GTV",
        "img_1_T1 seg_1_T1 img_2_T1 seg_2_T1",
        "scan/1_T1 scan/2_T1 truth/label_1_T1 truth/label_2_T1",
        "p1_FLAIR mask_p1_FLAIR p2_FLAIR mask_p2_FLAIR",
        "p1/FLAIR p1/lesion_FLAIR p2/FLAIR p2/lesion_FLAIR",
        "p1_t1_sag_p2 p1_flair_sag_p2 p1_seg p2_t1_sag_p2 p2_flair_sag_p2 p2_seg",
        "images/img_001_T1 images/img_002_T1 labels/seg_001 labels/seg_002",
        "p1/T1 p1/CT_KM p1/seg p2/T1 p2/p2_CT_nativ p2/seg",
        "sub-1/ses-a/sub-1_ses-a_T1w derivatives/m/sub-1/sub-1_label-lesion_mask "
        "sub-2/ses-b/sub-2_ses-b_T1w derivatives/m/sub-2/sub-2_space_T1_label-tumor",
        "p1/T2_prostate p1/prostate_seg p2/T2_prostate p2/prostate_seg",
    ],
)
def test_labels_in_a_folder_of_their_own_find_their_cases(names: str, tmp_path: Path) -> None:
    found = found_in(tmp_path, names, labels_needed=True)
    assert found.refused == ()
    assert len([case for case in found.cases if case.label]) == 2
    assert all(case.label not in case.images.values() for case in found.cases)
    assert not any(case.warnings for case in found.cases)


def test_a_person_may_be_called_as_a_label(tmp_path: Path) -> None:
    found = found_in(tmp_path, "Gtv/T1 Gtv/FLAIR Maier/T1 Maier/FLAIR Ott/T1 Ott/FLAIR")
    assert [case.name for case in found.cases] == ["Gtv", "Maier", "Ott"]
    assert all(set(case.images) == {"t1", "flair"} for case in found.cases)
    found = found_in(tmp_path / "more", "lesion01_T1 lesion01_FLAIR lesion02_T1 lesion02_FLAIR")
    assert [case.name for case in found.cases] == ["lesion01", "lesion02"]


def test_the_only_label_of_a_patients_folder_may_have_another_name(tmp_path: Path) -> None:
    names = "Training_355/Training_355_t1 Training_355/W39_1998.09.19_Segm"  # of BraTS 2020
    (case,) = found_in(tmp_path, names, labels_needed=True).cases
    assert case.label is not None
    assert "called 'w39 1998 09 19', and the other images are not" in case.warnings[0]


@pytest.mark.parametrize(
    "names", ["A/p1_T1 B/p1_seg", "A/p1_T1 B/p1_T1 labels/p1", "p1/p1_T1 p1/p2_seg"]
)
def test_a_label_that_may_be_of_another_patient_is_not_taken(names: str, tmp_path: Path) -> None:
    assert found_in(tmp_path, names, labels_needed=True).cases == ()


def test_a_label_that_a_person_corrected_is_no_worse_for_it(tmp_path: Path) -> None:
    found = found_in(tmp_path, "p1/T1 p1/seg p1/seg_corrected", labels_needed=True)
    assert found.cases == ()  # which of the two, is asked


@pytest.mark.parametrize(
    ("names", "of"),
    [
        ("p1/T1_3T p1/T1_1.5T p1/FLAIR_3T", "T1_3T"),
        ("p1/T2_neck p1/T2_pelvis p1/T1", "not used: 2 files for t2"),
        ("p1/T2_cervical p1/T1_lumbar", "parts of the body"),
        ("p1/T1 p1/p1_POST p1/FLAIR", "tells of a contrast agent, and not of which sequence"),
        ("sub-1/sub-1_acq-post_T1w sub-1/sub-1_T1w", "acq-post may be after one or after surgery"),
        ("p1/T1 p1/T1_high_res p1/FLAIR", "not used: 2 files for t1"),
        ("Flair_Anna_T1 Flair_Anna_T2", "Anna"),
        ("site/anna_T1 site/bert_FLAIR site/carl_T2", "looks like one patient, or like several"),
        ("p1/T1 p1/p2_FLAIR p2/T1", "p2"),
        ("p1/T1 p2/T1 FLAIR", "FLAIR.nii.gz lies beside several cases"),
        ("p1/T1 p1/p2_FLAIR p3/T1", "begins with 'p2', and lies in the folder 'p1'"),
        ("p1/p1_T1 p1/p2_FLAIR", "begins with 'p2'"),
        ("sub-01/anat/sub-01_T1w sub-1/anat/sub-1_FLAIR", "leading zeros or signs alone"),
        ("P5/T1/P5_T1_FLAIR P5/T2/P5_T2_FLAIR", "time point"),
        ("p1/T1_left p1/PD_right", "sides"),
        ("p1/T1 p1/FLAIR p1/2019-03-02/T2", "lies in the folder '2019-03-02', which may be of"),
        ("p1/T1\np1/alte Bilder/T2", "lies in the folder 'alte Bilder', which may be of"),
        ("p1/T1 p1/Voruntersuchung/T2", "lies in the folder 'Voruntersuchung', which may be of"),
        ("p1/T1 p1/FLAIR p1/T2_previous", "another examination ('previous') than the names beside"),
        ("p1_T1 p1_FLAIR p1_T2_followup", "another examination ('followup') than the names beside"),
        ("PAT1/ST1/MR0003_T1 PAT1/ST1/MR0004_FLAIR PAT1/ST1/MR0009_T1", "looks like one patient"),
        ("p1/T2_neck p1/T1_knee", "parts of the body"),
        ("sub-1/sub-1_T1w sub-1/sub-2_FLAIR", "is of another folder than 'sub-1'"),
        ("Meier/T1 Meier/FLAIR Meier/Schulz_T2", "is called 'schulz'"),
        ("A/MRI Pre/T1\nA/MRI Post/T1", "contrast agent"),
        ("p1_precontrast/T1 p1_postcontrast/T1", "'p1_postcontrast' tells of a contrast agent"),
        (
            "p1/MRI BRAIN WITH CONTRAST-1/AX T1/i\np1/MRI BRAIN WITH CONTRAST-1/FLAIR/i",
            "CONTRAST-1'",
        ),
        ("Huber/MRT Kopf mit KM/t1\nHuber/MRT Kopf mit KM/t2", "'MRT Kopf mit KM' tells"),
        ("p/without/T1 p/with/T1", "'with' tells of a contrast agent"),
        ("p/T1_F p/T1_W p/FLAIR", "'f' may say that it shows fat"),
        ("A/12_pd_t2_e1 A/12_pd_t2_e2 A/13_t1", "one patient's series"),
        ("P1_T1 p1_flair", "in capitals"),
        ("Meier_Hans_T1\nMeier Hans_FLAIR", "signs alone"),
        ("KM/T1 KM/FLAIR HS/T1 HS/FLAIR", "contrast agent"),  # initials, or an agent
        ("Gado_T1 Gado_FLAIR", "or the patient"),
        ("p1/T1_1 p1/T1_2 p1/FLAIR_1", "2 files for t1"),
        ("p01_01_T1 p01_FLAIR p02_01_T1 p02_FLAIR", "looks like one patient, or like several"),
        ("Klinik/2021-02-03/1_T1 Klinik/2021-02-03/2_FLAIR", "several patients"),
        ("p1_Skyra_T1 p1_Aera_FLAIR", "looks like one patient, or like several"),
        ("OAS1_1_MR1/RAW/OAS1_1_MR1_mpr-1 OAS1_1_MR1/RAW/OAS1_1_MR1_mpr-2", "--alias t1=mpr"),
        ("p1/T1_pre p1/T1", "2 files for t1"),  # preprocessed, perhaps
        ("p1/FAT/T1 p1/FLAIR", "its folder 'FAT' a fat image"),
        ("T1c_dataset/p1/T1 T1c_dataset/p2/T1", "'T1c_dataset' tells of a contrast agent"),
        ("p1/T1 p1/enhanced/T1", "'enhanced' tells of a contrast agent"),  # or made better
        ("gad_MRI/T1 gad_MRI/FLAIR", "contrast agent"),
        ("p1/dcm2niix/T1 p1/mrconvert/T1", "2 files for t1"),
        ("Sub_Anna_T1 Anna_T1", "its name says subtraction"),
        ("brain_AXFLAIR_200_6002425 brain_AXT1POST_201_6002688", "several patients"),  # of fastMRI
    ],
)
def test_what_names_leave_open_is_asked(names: str, of: str, tmp_path: Path) -> None:
    found = found_in(tmp_path, names)
    doubts = [refused.reason for refused in found.refused]
    doubts += [warning for case in found.cases for warning in case.warnings]
    assert any(of in doubt for doubt in doubts), doubts


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ("p1/FAT/T1 p1/WATER/T1", ["p1/WATER/T1"]),
        ("p1/F/T1 p1/W/T1 p1/FLAIR", ["p1/FLAIR", "p1/W/T1"]),
        ("p1/IN_PHASE/T1 p1/OUT_PHASE/T1 p1/WATER/T1 p1/FAT/T1", ["p1/WATER/T1"]),
        ("IN_PHASE/p1_T1 OUT_PHASE/p1_T1 IN_PHASE/p2_T1", ["IN_PHASE/p1_T1", "IN_PHASE/p2_T1"]),
        ("Fat/T1 Meier/T1", ["Fat/T1", "Meier/T1"]),
        ("in/p1_T1 out/p2_T1", ["in/p1_T1", "out/p2_T1"]),
        ("p1/FATSAT/T1 p1/FLAIR", ["p1/FLAIR", "p1/FATSAT/T1"]),
    ],
)
def test_folders_may_name_the_parts_of_a_dixon(
    names: str, taken: list[str], tmp_path: Path
) -> None:
    cases = found_in(tmp_path, names).cases
    used = [path.relative_to(tmp_path).as_posix() for c in cases for path in c.files.values()]
    assert used == [f"{name}.nii.gz" for name in taken]


def test_folders_named_as_converters_are_of_the_case_around_them(tmp_path: Path) -> None:
    names = "p1/dcm2niix/T1 p1/mrconvert/FLAIR p2/dcm2niix/T1"
    found = found_in(tmp_path, names)
    assert {case.name: set(case.images) for case in found.cases} == {
        "p1": {"t1", "flair"},
        "p2": {"t1"},
    }


def test_sub_before_a_name_is_a_subjects(tmp_path: Path) -> None:
    found = found_in(tmp_path, "Sub_Anna_T1 Sub_Anna_FLAIR Sub_T1 p1_T1 p1_sub_T1")
    assert {case.name: set(case.images) for case in found.cases} == {
        "Sub_Anna": {"t1", "flair"},
        "p1": {"t1"},
    }


def test_an_original_beside_a_processed_image_is_warned_of(tmp_path: Path) -> None:
    names = "raw/p1/FLAIR raw/p1/T2 skull_stripped/p1/FLAIR skull_stripped/p1/T1"
    (case,) = found_in(tmp_path, names).cases
    assert case.warnings[0].startswith("by its name skull_stripped/p1/T1.nii.gz was processed")
    (case,) = found_in(tmp_path / "more", "p1/T1_bet p1/FLAIR").cases
    assert case.warnings[0].startswith("by its name p1/T1_bet.nii.gz was processed")
    (case,) = found_in(tmp_path / "tilted", "p1/T1 p1/T1_bet p1/FLAIR_6_Tilt_1").cases
    assert case.warnings == ()  # the converter did it


@pytest.mark.parametrize(
    ("names", "taken"),
    [
        ("native/p1_T1 mni/p1_T1", {"t1": "native/p1_T1"}),
        ("raw/p1/T1 skull_stripped/p1/T1", {"t1": "raw/p1/T1"}),
        (  # all without a skull, as there is no other T1
            "raw/p1/FLAIR stripped/p1/FLAIR stripped/p1/T1",
            {"flair": "stripped/p1/FLAIR", "t1": "stripped/p1/T1"},
        ),
        ("p1/T1 resampled_1mm/p1/T1", {"t1": "p1/T1"}),
        ("p1/T1 p1/FLAIR backup/p1/T1", {"t1": "p1/T1", "flair": "p1/FLAIR"}),
        ("p1/T1 #snapshot/p1/T1 ~snapshot/p1/T1 lost+found/p1/T1", {"t1": "p1/T1"}),
        ("p1/T1 p1/FLAIR p1/previous/T1", {"t1": "p1/T1", "flair": "p1/FLAIR"}),
        ("p1/T1 p1/T1_prev", {"t1": "p1/T1"}),
        ("p1/T1 p1/2019/FLAIR", {"t1": "p1/T1"}),
        (
            "p1/T1_baseline p1/T2_baseline p1/FLAIR",
            {"t1": "p1/T1_baseline", "t2": "p1/T2_baseline"},
        ),
        ("MR1/FLAIR_prior MR1/T2_prior", {"flair": "MR1/FLAIR_prior", "t2": "MR1/T2_prior"}),
        (
            "Meier/SE000003_T1 Meier/SE000004_FLAIR Meier/SE000009_T2",
            {"t1": "Meier/SE000003_T1", "flair": "Meier/SE000004_FLAIR", "t2": "Meier/SE000009_T2"},
        ),
        ("p1/T1 $RECYCLE.BIN/S-1-5/T1", {"t1": "p1/T1"}),
        ("p1/T1 #recycle/p1/T1 @eaDir/p1/T1", {"t1": "p1/T1"}),
        (
            "sub-01/sub-01_T1w qsiprep/sub-01/sub-01_desc-preproc_T1w",
            {"t1": "sub-01/sub-01_T1w"},
        ),
        ("p1/MNINonLinear/T1w p1/T1w/T1w_acpc_dc", {"t1": "p1/T1w/T1w_acpc_dc"}),
        ("p1/T1 p1/MNI152_T1_1mm MNI152_T1_1mm_brain template/T1", {"t1": "p1/T1"}),
        ("p1/T1 fsaverage/mri/T1 spm12/canonical/single_subj_T1", {"t1": "p1/T1"}),
        ("sub-1/sub-1_T1w derivatives/CAT12/sub-1/mri/wmsub-1_T1w", {"t1": "sub-1/sub-1_T1w"}),
        ("p1/T1 p1/T1.anat/T1 p1/T1.anat/T1_orig", {"t1": "p1/T1"}),
        ("p1/T1 p1/T1_masked p1/T1_lesion_filled p1/T1-voided", {"t1": "p1/T1"}),
        ("p1/SWI p1/SWI_mag", {"swi": "p1/SWI"}),
        (
            "p1/T1_brain p1/FLAIR_brain p1/T2_spine",
            {"t1": "p1/T1_brain", "flair": "p1/FLAIR_brain"},
        ),
        ("p1/T1 p1/FLAIR p1/T2_HWS", {"t1": "p1/T1", "flair": "p1/FLAIR"}),
        ("p1/axial/T1 p1/sagittal/T2", {"t1": "p1/axial/T1", "t2": "p1/sagittal/T2"}),
        ("p1/orig/T1 p1/reg_to_mni/T1", {"t1": "p1/orig/T1"}),
        ("p1/T1_Kopf/img p1/T2_HWS/img", {"t1": "p1/T1_Kopf/img"}),
        ("Tumor/p1_T1 Tumor/p1_FLAIR", {"t1": "Tumor/p1_T1", "flair": "Tumor/p1_FLAIR"}),
        ("p1/T1 p1/tumor/T1 p1/tumor/FLAIR", {"t1": "p1/T1"}),  # drawn on both
        ("p1/MNI152_T1 p1/MNI152_FLAIR", {"t1": "p1/MNI152_T1", "flair": "p1/MNI152_FLAIR"}),
        (
            "sub-1/sub-1_T1w Derivatives/x/sub-1/sub-1_desc-preproc_T1w",
            {"t1": "sub-1/sub-1_T1w"},
        ),
        ("p1/C-/T1 p1/C+/T1", {"t1": "p1/C-/T1", "t1c": "p1/C+/T1"}),
        ("P01_KM/T1 P01_KM/FLAIR", {"t1": "P01_KM/T1", "flair": "P01_KM/FLAIR"}),  # initials
        (  # of an examination with one before and one after
            "p1/MRI_WITH_CONTRAST/T1/img p1/MRI_WITH_CONTRAST/T1_GD/img",
            {"t1": "p1/MRI_WITH_CONTRAST/T1/img", "t1c": "p1/MRI_WITH_CONTRAST/T1_GD/img"},
        ),
        ("p1/T1W p1/T1WKS", {"t1": "p1/T1W", "t1c": "p1/T1WKS"}),
        ("p1/p1_T1_3T p1/p1_FLAIR_1.5T", {"t1": "p1/p1_T1_3T", "flair": "p1/p1_FLAIR_1.5T"}),
        ("C1/native_space/T1c C1/mni_space/T1c", {"t1c": "C1/native_space/T1c"}),
        ("C1/native_space/T1 C1/mni_space/T1", {"t1": "C1/native_space/T1"}),
        ("p1/T1_KM p1/T1_KM_MPR_TRA p1/T1_KM_1mm", {"t1c": "p1/T1_KM"}),
        ("T1_nativ/P01/img T1_KM/P01/img", {"t1": "T1_nativ/P01/img", "t1c": "T1_KM/P01/img"}),
        ("C1/native/T1c C1/native/T1 C1/atlas/T1", {"t1c": "C1/native/T1c", "t1": "C1/native/T1"}),
        (
            "p1/T1 p1/T1_BrainExtractionBrain p1/T1_BrainSegmentation0N4 p1/T1_CorticalThickness "
            "p1/T1_BrainSegmentationPosteriors1 p1/T1_logJacobian p1/T1_pydeface",
            {"t1": "p1/T1"},
        ),
        (
            "Weber/20220301091500_2_T1 Weber/20220301091500_3_T2",
            {"t1": "Weber/20220301091500_2_T1", "t2": "Weber/20220301091500_3_T2"},
        ),
        (  # a patient's visit, of UK Biobank
            "1000012_20252_2_0/T1/T1 1000012_20253_2_0/T2_FLAIR/T2_FLAIR",
            {"t1": "1000012_20252_2_0/T1/T1", "flair": "1000012_20253_2_0/T2_FLAIR/T2_FLAIR"},
        ),
        (
            "1.2.3.4.5/1.2.3.4.5.11_T1 1.2.3.4.5/1.2.3.4.5.12_T2",
            {"t1": "1.2.3.4.5/1.2.3.4.5.11_T1", "t2": "1.2.3.4.5/1.2.3.4.5.12_T2"},
        ),
    ],
)
def test_twins_and_leftovers_are_not_taken(
    names: str, taken: dict[str, str], tmp_path: Path
) -> None:
    found = found_in(tmp_path, names)
    assert found.refused == ()
    (case,) = found.cases
    files = {kind: path.relative_to(tmp_path).as_posix() for kind, path in case.files.items()}
    assert files == {kind: f"{name}.nii.gz" for kind, name in taken.items()}
