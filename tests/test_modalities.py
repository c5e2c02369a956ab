import pytest

from mixmfl.errors import DataError
from mixmfl.modalities import FileName, Modalities


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
        ("sub-01_acq-FLAIR_T2w", "sub-01", "flair"),
        ("sub-01_space-T2_T1w", "sub-01", "t1"),
        ("sub-01_T2starw", "sub-01", "t2star"),
        # as hospitals write
        ("IXI002-Guys-0828-T1", "IXI002-Guys-0828", "t1"),
        ("T1_001", "001", "t1"),
        ("north_T1_001", "north_001", "t1"),
        ("p01.T2 tse", "p01", "t2"),
        ("p01_T1_post", "p01", "t1c"),
        ("p01_post_T1", "p01_post", "t1"),
        ("p01_T1_pre_contrast", "p01", "t1"),
        ("p01-GD-T1", "p01", "t1c"),
        ("p01_t2_star", "p01", "t2star"),
        ("p01_ADC", "p01", "adc"),
        # words before the number belong to the case
        ("PD-012_t1", "PD-012", "t1"),
        ("lesion_001_t2", "lesion_001", "t2"),
    ],
)
def test_the_modality_is_read_from_the_name(stem: str, case: str, modality: str) -> None:
    assert Modalities().read_name(stem) == FileName(case, modality)


@pytest.mark.parametrize(
    ("stem", "case"),
    [
        ("seg", ""),
        ("BraTS20_Training_001_seg", "BraTS20_Training_001"),
        ("sub-01_ses-1_dseg", "sub-01_ses-1"),
        ("sub-01_label-lesion_mask", "sub-01"),
        ("p01_T1_seg", "p01"),
        ("p01 lesions", "p01"),
    ],
)
def test_labels_are_read_from_the_name(stem: str, case: str) -> None:
    assert Modalities().read_name(stem) == FileName(case, is_label=True)


@pytest.mark.parametrize(
    "stem", ["p01_bold", "case_0000", "brain_mask", "p01_brainmask", "sub-01_desc-brain_mask"]
)
def test_other_names_stay_unknown(stem: str) -> None:
    said = Modalities().read_name(stem)
    assert said == FileName(stem)
    assert not said.is_known


@pytest.mark.parametrize(
    ("stem", "kinds"),
    [("p_t1_t2", "t1 and t2"), ("T1_to_T2", "t1 and t2"), ("lesion_t1", "a label and t1")],
)
def test_a_name_that_fits_two_modalities_is_refused(stem: str, kinds: str) -> None:
    with pytest.raises(DataError, match=f"the name '{stem}' fits {kinds}; rename it"):
        Modalities().read_name(stem)


def test_a_user_adds_aliases_and_modalities_without_code() -> None:
    modalities = Modalities().with_aliases(["t1c=Omniscan, agent in", "ours = perfusion"])
    assert modalities.read_name("p01_omniscan") == FileName("p01", "t1c")
    assert modalities.read_name("p01_Agent_in") == FileName("p01", "t1c")
    assert modalities.read_name("p01_perfusion") == FileName("p01", "ours")
    assert modalities.read_name("p01_OURS") == FileName("p01", "ours")
    assert "ours" in modalities.names
    assert "ours" not in Modalities().names
    assert Modalities().read_name("p01_omniscan") == FileName("p01_omniscan")


@pytest.mark.parametrize("option", ["t1c", "=km", "t1c=", "t1c=km,,x", "2d=flat", "t-1=x", "t1=-"])
def test_an_alias_in_another_form_is_refused(option: str) -> None:
    with pytest.raises(DataError, match=r"--alias '.*': needed is NAME=ALIAS\[,ALIAS\]"):
        Modalities().with_aliases([option])


@pytest.mark.parametrize(
    ("option", "kinds"),
    [("t2=flair", "t2 and flair"), ("swi=T1-GD", "t1c and swi"), ("t2=seg", "a label and t2")],
)
def test_an_alias_of_two_modalities_is_refused(option: str, kinds: str) -> None:
    with pytest.raises(DataError, match=f"alias '.*' means {kinds}; it can mean one only"):
        Modalities().with_aliases([option])


def test_a_channel_name_is_taken_as_a_whole() -> None:
    modalities = Modalities()
    assert modalities.find("T1") == "t1"
    assert modalities.find("T2-FLAIR") == "flair"
    assert modalities.find("T1 with contrast") == "t1c"
    assert modalities.find("T1 with something") is None
    assert modalities.find("label") is None
    assert modalities.find("") is None
