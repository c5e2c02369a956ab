import csv
from pathlib import Path

import pytest

from mixmfl.data.dicom.header import Header
from mixmfl.data.dicom.sequence_type import recognise
from mixmfl.data.modalities import Modalities


@pytest.mark.parametrize(
    ("header", "modality"),
    [
        (Header(description="t2_tirm_tra_dark-fluid"), "flair"),
        (Header(description="Ax T2 FLAIR"), "flair"),
        (Header(description="t2_tse_tra"), "t2"),
        # the echo time says which of two echoes it is
        (Header(description="pd_t2_tse", scanning=("SE",), echo_ms=15, repetition_ms=4000), "pd"),
        (Header(description="pd_t2_tse", scanning=("SE",), echo_ms=95, repetition_ms=4000), "t2"),
        (Header(description="pd_t2_tse"), ""),
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
        # fields of the header, with words and against them
        (Header(contrast="FLUID_ATTENUATED"), "flair"),
        (Header(contrast="T2", description="flair tra"), "flair"),
        (Header(contrast="T1", description="AX T2"), ""),
        (Header(contrast="T1", agent="Gadovist"), "t1c"),
        (Header(contrast="T1", description="head C+"), "t1c"),
        (Header(contrast="T1", agent="NONE"), "t1"),
        (Header(description="t1 tra", phase="contrast"), "t1c"),
        (Header(description="t1 tra", agent="Gadovist", phase="native"), "t1"),
        (Header(description="AX T1 POST GD", phase="native"), ""),
        (Header(description="AX T1 POST GD", agent="NONE"), ""),
        (Header(description="AX T1 PRE", phase="contrast"), ""),
        (Header(description="sag KM", protocol="t1_se"), "t1c"),
        (Header(description="t1_mprage", protocol="BRAIN W CONTRAST"), "t1"),
        (Header(description="AX T1 C", agent=""), ""),
        # a protocol that names a T1 with an agent: made with it, or copied from one that was
        (Header(description="t1_mprage", protocol="t1_mprage_KM"), ""),
        (Header(description="t1_mprage", protocol="t1_mprage_KM", agent="Gadovist"), "t1c"),
        (Header(description="T2 tra", protocol="t2_tirm_tra_dark-fluid"), ""),
        (Header(description="t1_mprage nativ", protocol="t1_mprage_KM"), "t1"),
        # a protocol of another weighting: times or fields decide, or nothing does
        (Header(description="AX T1", protocol="t2_tse_tra"), ""),
        (Header(description="AX T2", protocol="t1_se_tra"), ""),
        (Header(description="FLAIR tra", protocol="t1_se_tra"), ""),
        (Header(description="AX T1 POST GD", protocol="t2_tse_tra"), ""),
        (Header(description="FLAIR tra", protocol="t2_tirm_tra"), "flair"),
        (Header(description="AX T1", protocol="t2_tse_tra", contrast="T1"), "t1"),
        (
            Header(
                description="AX T1",
                protocol="t2_tse",
                scanning=("SE",),
                echo_ms=12,
                repetition_ms=500,
            ),
            "t1",
        ),
        (Header(description="AX T1", protocol="Brain T1 T2 FLAIR"), "t1"),
        # a word that may tell of an agent, and a field that does
        (Header(description="AX T1 xyz"), ""),
        (Header(description="AX T1", comment="post Gd"), ""),
        (Header(description="AX T1", comment="post Gd", agent="Gadovist"), "t1c"),
        (Header(description="AX T1 PRE", comment="post Gd"), "t1"),
        (Header(description="AX T1 xyz", agent="Gadovist"), "t1c"),
        (Header(description="AX T1 xyz", agent="NONE"), ""),
        (Header(description="AX T1 xyz", phase="native"), "t1"),
        (Header(description="AX T1 xyz", phase="contrast"), "t1c"),
        (Header(description="AX T1 xyz", contrast="T2"), ""),
        (Header(description="AX T1 C", agent="Gadovist"), ""),
        (Header(image_type=("DERIVED", "PRIMARY", "DIFFUSION", "ADC")), "adc"),
        (Header(description="ep2d_diff", image_type=("DERIVED", "PRIMARY", "ADC")), "adc"),
        (Header(description="DWI", scanning=("EP",), b_value=0), ""),
        (Header(scanning=("GR", "IR"), variant=("SP", "MP")), "t1"),
        # times that a sequence of that name cannot have
        (Header(description="T2 tra", echo_ms=10), ""),
        (Header(description="T1 tra", echo_ms=100), ""),
        (Header(description="FLAIR", echo_ms=10), ""),
        (Header(description="FLAIR", scanning=("SE",), echo_ms=100, inversion_ms=0), ""),
        (Header(description="FLAIR", scanning=("SE",), echo_ms=100), "flair"),
        (Header(description="T2", scanning=("EP", "SE"), echo_ms=90), ""),
        (Header(description="T2", scanning=("GR",), echo_ms=35), ""),
        (Header(description="T1", scanning=("SE",), echo_ms=12, repetition_ms=3500), ""),
        # an inversion that darkens fat, or fluid
        (Header(description="T2 fs", scanning=("SE", "IR"), echo_ms=60, inversion_ms=160), ""),
        (Header(description="FLAIR fs", scanning=("SE", "IR"), echo_ms=60, inversion_ms=170), ""),
        (Header(description="T2", scanning=("SE", "IR"), echo_ms=120, inversion_ms=2500), ""),
        (
            Header(description="FLAIR", scanning=("SE", "IR"), echo_ms=350, inversion_ms=1650),
            "flair",
        ),
        (Header(description="T2 SPAIR", scanning=("SE",), echo_ms=80, inversion_ms=130), "t2"),
        # by times alone, in ms: echo, repetition, inversion
        (Header(scanning=("SE",), echo_ms=12, repetition_ms=500), "t1"),
        (Header(scanning=("SE",), echo_ms=12, repetition_ms=500, agent="Dotarem"), "t1c"),
        (Header(scanning=("SE",), echo_ms=100, repetition_ms=4500), "t2"),
        (Header(scanning=("SE",), echo_ms=20, repetition_ms=3000), "pd"),
        (
            Header(scanning=("SE", "IR"), echo_ms=110, repetition_ms=9000, inversion_ms=2500),
            "flair",
        ),
        (
            Header(description="DIR_3D sag", scanning=("SE", "IR"), echo_ms=300, inversion_ms=3000),
            "",
        ),
        (Header(scanning=("GR", "IR"), echo_ms=3, repetition_ms=2300, inversion_ms=900), "t1"),
        (Header(scanning=("GR",), echo_ms=20, repetition_ms=600), "t2star"),
        (Header(scanning=("EP",), echo_ms=90, repetition_ms=5000, b_value=1000), "dwi"),
        (Header(scanning=("GR",), echo_ms=3.6, repetition_ms=22), ""),  # a T1, or an angiography
        (Header(scanning=("GR",), echo_ms=4, repetition_ms=250), "t1"),
        (Header(description="post KM", scanning=("SE",), echo_ms=12, repetition_ms=500), "t1c"),
        (Header(scanning=("SE", "IR"), echo_ms=30, repetition_ms=4000, inversion_ms=150), ""),
        (Header(scanning=("SE",), echo_ms=50, repetition_ms=1500), ""),
        (Header(), ""),
    ],
)
def test_sequences_are_recognised_by_their_header(header: Header, modality: str) -> None:
    found = recognise(header, Modalities())
    assert found.modality == modality
    assert found.why


@pytest.mark.parametrize(
    ("agent", "modality"),
    [
        *((agent, "t1") for agent in (
            "0 ml", "0ml", "0.0", "NOT GIVEN", "geen contrast", "senza mdc", "nessuno", "aucun",
            "nicht gegeben", "-NONE-", "N.A.", "n/a", "(none)", "refused", "NoContrast", "PRE",
            "non-contrast", "w/o", "N", "", "unknown",
        )),
        *((agent, "t1c") for agent in (
            "Gadovist 7.5ml", "DOTAREM", "Y", "7.5 ml", "IV", "GD", "KM", "1", "Prohance 10",
        )),
        *((agent, "") for agent in (
            "?", "of unknown name", "tbd", "planned", "Allergie", "Gadovist 0 ml",
        )),
    ],
)  # fmt: skip
def test_a_t1_is_with_or_without_an_agent_by_what_people_write_into_its_field(
    agent: str, modality: str
) -> None:
    assert recognise(Header(description="AX T1", agent=agent), Modalities()).modality == modality


def test_no_description_of_public_protocols_is_taken_for_another_sequence() -> None:
    table = Path(__file__).parents[1] / "series_descriptions.csv"
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert len(rows) >= 150
    for row in rows:
        found = recognise(Header(description=row["description"]), Modalities())
        assert found.modality in ("", row["modality"]), row
