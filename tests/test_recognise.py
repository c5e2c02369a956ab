import pytest

from mixmfl.dicom_header import Header
from mixmfl.modalities import Modalities
from mixmfl.recognise import recognise


@pytest.mark.parametrize(
    ("header", "modality"),
    [
        (Header(description="t2_tirm_tra_dark-fluid"), "flair"),
        (Header(description="Ax T2 FLAIR"), "flair"),
        (Header(description="t2_tse_tra"), "t2"),
        (Header(description="MPRAGE"), "t1"),
        (Header(description="T1 FLAIR sag"), "t1"),
        (Header(description="t1_mprage_sag KM"), "t1c"),
        (Header(description="AX T1 POST GD"), "t1c"),
        (Header(description="AX T1", agent="Gadovist 7 ml"), "t1c"),
        (Header(description="AX T1 PRE", agent="Gadovist 7 ml"), "t1"),
        (Header(description="t1 ohne KM", agent=""), "t1"),
        (Header(description="AX T2", agent="Gadovist 7 ml"), "t2"),
        (Header(description="ep2d_diff_b1000_ADC"), "adc"),
        (Header(description="series 7", protocol="T2W_TSE"), "t2"),
        # by times alone, in ms: echo, repetition, inversion
        (Header(scanning=("SE",), echo_ms=12, repetition_ms=500), "t1"),
        (Header(scanning=("SE",), echo_ms=12, repetition_ms=500, agent="Dotarem"), "t1c"),
        (Header(scanning=("SE",), echo_ms=100, repetition_ms=4500), "t2"),
        (Header(scanning=("SE",), echo_ms=20, repetition_ms=3000), "pd"),
        (
            Header(scanning=("SE", "IR"), echo_ms=110, repetition_ms=9000, inversion_ms=2500),
            "flair",
        ),
        (Header(scanning=("GR", "IR"), echo_ms=3, repetition_ms=2300, inversion_ms=900), "t1"),
        (Header(scanning=("GR",), echo_ms=20, repetition_ms=600), "t2star"),
        (Header(scanning=("EP",), echo_ms=90, repetition_ms=5000, b_value=1000), "dwi"),
        (Header(scanning=("SE",), echo_ms=50, repetition_ms=1500), ""),
        (Header(), ""),
    ],
)
def test_sequences_are_recognised_by_their_header(header: Header, modality: str) -> None:
    found = recognise(header, Modalities())
    assert found.modality == modality
    assert found.why
