import csv
from pathlib import Path

import pytest

from mixmfl.data.modalities import TABLE
from mixmfl.data.sequence_phrases import is_sequence_word
from mixmfl.data.sequence_vocabulary import MEANINGS
from mixmfl.data.sequence_words import read_words

# descriptions of series: 415 from public archives and protocols, with what each is and its source,
# and 898 made up to be hard, whose modality is the truth, though words may not decide it
TABLE_OF_DESCRIPTIONS = Path(__file__).parent / "series_descriptions.csv"
DESCRIPTIONS = list(csv.DictReader(TABLE_OF_DESCRIPTIONS.read_text(encoding="utf-8").splitlines()))
_MADE_UP = ("made", "unseen", "third", "fourth")


def test_descriptions_of_public_protocols_are_read_right() -> None:
    public = [row for row in DESCRIPTIONS if row["held_out"] not in _MADE_UP]
    assert len(public) >= 150
    wrong = [
        row["description"]
        for row in public
        if read_words(row["description"]).modality != row["modality"]
    ]
    assert len(wrong) <= 0.03 * len(public), wrong


def test_most_descriptions_that_were_made_up_to_be_hard_are_read_right() -> None:
    hard = [row for row in DESCRIPTIONS if row["held_out"] in _MADE_UP]
    right = [row for row in hard if read_words(row["description"]).modality == row["modality"]]
    assert len(hard) > 800
    assert len(right) >= 0.8 * len(hard)


def test_no_description_of_public_protocols_is_taken_for_another_sequence() -> None:
    for row in DESCRIPTIONS:
        assert read_words(row["description"]).modality in ("", row["modality"]), row


def test_each_row_of_the_table_has_a_source_and_a_known_modality() -> None:
    for row in DESCRIPTIONS:
        assert row["source"]
        assert row["modality"] in ("", *TABLE)


@pytest.mark.parametrize(
    "text",
    """AX T1 W/O CONTRAST|SAG T1 WO CONTRAST|AX T1 NON CONTRAST|T1 AX SE C-|AX T1 -GD|t1 o. KM
    AX T1 W/O|T1 (W/O), AX|T1 w.o. contrast|T1 without IV contrast|t1_tse_tra_o_KM|T1 oKM|t1 KM-
    T1 ohne i.v. KM|T1 vor KM|T1_SE_NATIV|T1 sans injection de gadolinium|T1 NON INJECTÉ
    (-) contrast T1|T1 ohneGd
    T1 avant injection|T1 S/C|T1 sin contraste|T1 SENZA MDC|T1 senza mezzo di contrasto
    T1 zonder contrast|3D_T1_NO_GAD|T1_W_O_CONTRAST|non-contrast T1|ohne KM T1|t1n
    T1 no brain contrast|T1 ohne c-spine KM
    T1 ohne KM mit FS|T1_POST_OP_PRE_GD|T1 km neg|T1 W/OUT CONTRAST|T1 prior to Gd|T1 KM-frei
    T1 prima del contrasto|T1 voor contrast|T1 basale|T1 kontrastmittelfrei|T1 s.m.d.c.|T1 s/CIV
    T1 senza m.c.|T1 Gd free|T1 CM-|T1 Gd (-)
    T1 s. mdc|T1 high contrast|T1 N/C|T1 w/out gad|T1 nicht KM-verstärkt|T1 utan kontrast
    T1 n-c|T1 przed kontrastem|T1 ohne KM i.v.|t1_minusGd|T1 KM -|T1 pas de gado""".replace(
        "\n", "|"
    ).split("|"),
)
def test_a_negation_beside_the_contrast_word_makes_a_native_t1(text: str) -> None:
    assert read_words(text).modality == "t1"


@pytest.mark.parametrize(
    "text",
    """AX T1 SE C+|T1 GD+|t1 mKM|AX T1 W CONTRAST|AX T1+C|AX T1 + C|T1 nach KM|T1_Gd|T1-GD|T1 IV+
    t1_mprage_sag_p2_iso_KM|T1 INJ|T1 avec injection|T1 C/C|T1 CON MDC|T1 dopo mdc|T1 met contrast
    T1 na gado|Post AX T1|T1 W/C|t1ce|T1post|T1 post W/O FS|T1 ohne FS mit KM|T1 POST OP GD
    T1 lumbar Gd|T1 tra Hals KM|SAG T1 L-SPINE GD
    BRAVO +C|AX T1 FLAIR POST GAD|AX T1 POST: Processed|T1 kontrastverstärkt
    T1 contrastado|T1 après gadolinium|T1 con m.d.c.|T1 nach Gabe von KM
    T1 +CM|T1_post_bet|T1 +c|T1 C+|T1 gd+|T1 c/CM|T1 m. KM|T1 avec gado|T1 post inj|T1 Gad|T1 n KM
    T1 na toediening gadolinium|T1 dopo somministrazione di mdc
    T1 con m.c.|T1 post CIV|T1 5 cm KM|HKCL T1 post KM HawkAI|T1 med kontrast
    T1 kontrastmittelgestützt|Ax T1 W GD|T1 dotarem 0.1|T1 KM i.v.|T1 black blood KM
    t1_plusGd|t1 gad final|T1 po kontraście|T1 etter kontrast|SE T1 mAxial CE|T1 Gd(+)""".replace(
        "\n", "|"
    ).split("|"),
)
def test_a_contrast_word_makes_a_t1_with_contrast_agent(text: str) -> None:
    assert read_words(text).modality == "t1c"


@pytest.mark.parametrize(
    "text",
    ["AX T1 C", "T1_C_", "AX T1 W/WO CONTRAST", "T1 pre post", "T1 +/- C", "T1 C+/C-", "T1+",
     "T1 sense contrast", "AX T1 - GD", "T1 GADO -", "T1 mit und ohne KM", "T1 sans et avec gado",
     "T1 W+WO",
     "T1 w & w/o contrast", "T1 sin y con contraste", "T1 zonder en met contrast", "T1 prae/post",
     "T1 post brain surgery", "T1 KM Kopf fehlt",
     "T1 WITH", "T1 GD NO", "T1 with and without", "t1ce nativ", "T1 post resection", "T1 Gd?",
     "T1 contrast not given", "T1 (Gd refused)", "T1 mit u. ohne KM", "T1 0ml gadovist",
     "T1 0 gad", "T1 delayed", "T1 spät", "T1 PC", "T1 CM", "T1_CM",
     "T1 iv", "T1 i.v.", "T1 (C)", "T1 -c", "T1 G", "T1 K", "T1 EV", "T1 MC", "T1 P.C.", "T1 pos",
     "T1 abc KM", "T1 p KM", "T1 s gd", "T1 KM nein", "T1 KM abgebrochen", "T1 dotarem 0",
     "T1 contrast optimized", "T1 post cyberknife", "T1 pre stealth",
     "T1 VIBE arteriell", "T1 portal venous", "T1 5 min", "T1 unkontrastiert",
     # Turkish and Swedish: "without" is an ending
     "T1 kontrastsiz", "T1 kontrasts\u0131z", "T1 kontrastfri",
     "Contrast: none T1 TSE", "T1 (KM: keins)", "- contrast T1", "T1 mdc: no", "T1_early",
    "T1 jamais de gado", "T1 allergic to gad", "T1 GAD N", "T1 KM: 0", "t1_km - t1_nativ",
     "T1 Kontrastmittelallergie", "T1c-T1", "AX T1 W", "T1 W FS", "T1_W_TSE_C",
     "AX 3D T1 STEALTH W", "T1 no sag contrast", "T1 ohne sag KM"],
)  # fmt: skip
def test_a_contradiction_or_a_lost_sign_or_object_decides_nothing(text: str) -> None:
    reading = read_words(text)
    assert reading.modality == ""
    assert reading.set_aside == ""
    assert reading.why.endswith("does not say whether with or without contrast agent")


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        ("T1 p.i.", ("p", "i")), ("T1 pi", ("pi",)), ("T1 xyz", ("xyz",)), ("T1 pstc", ("pstc",)),
        ("T1 10 ml", ("ml",)), ("T1 10ml", ("10ml",)), ("T1 KM2", ("km2",)), ("T1 sKM", ("skm",)),
        ("T1 Rehaussement", ("rehaussement",)), ("T1 postcontr", ("postcontr",)),
        ("T1 contarst", ("contarst",)), ("T1 double dose", ("dose",)),
        # "enhanced", "plain scan" and "with contrast" in other scripts, and "agent" in Finnish
        ("T1WI\u589e\u5f3a", ("\u589e\u5f3a",)), ("T1 \u5e73\u626b", ("\u5e73\u626b",)),
        ("T1 \u0441 \u043a\u043e\u043d\u0442\u0440\u0430\u0441\u0442\u043e\u043c",
         ("\u0441", "\u043a\u043e\u043d\u0442\u0440\u0430\u0441\u0442\u043e\u043c")),
        ("T1 tehosteaine", ("tehosteaine",)),
        ("T1 ???", ("???",)), ("T1 \ufffd\ufffd", ("\ufffd\ufffd",)),  # lost letters
    ],
)  # fmt: skip
def test_a_word_beside_a_t1_that_may_be_an_agent_in_any_language_leaves_it_undecided(
    text: str, unknown: tuple[str, ...]
) -> None:
    reading = read_words(text)
    assert reading.modality == ""
    assert reading.unknown == unknown
    assert reading.why.endswith("may tell of a contrast agent")


@pytest.mark.parametrize(
    "text",
    [
        "T1 C5-C7",
        "T1 (AXI, Gray/White Contrast)",
        "OSag T1",
        "T1 straight",
        "IXI T1",
        "T1 p2 32ch",
        "T1 iso control",
        "T1 p01",
        "T1-W",
        "t1_vibe_dixon_tra_bh_W",
        "T1 SE ASS",
        "t1_gre_fsp_3d_sag",
        "T1_W_TSE",
        "T1 W 3D FFE",
        "T1_LF",
        "T1 HFS",
    ],
)
def test_other_words_beside_a_t1_do_not_matter(text: str) -> None:
    assert read_words(text).modality == "t1"


@pytest.mark.parametrize(
    ("text", "aside"),
    [
        ("3D TOF MRA", "angiography"), ("LOCALIZER", "localiser"), ("AAHead_Scout", "localiser"),
        ("gre_field_mapping", "field map"), ("ep2d_bold_rest", "functional"),
        ("t1_vibe_dyn", "dynamic"), ("T1 SUB post-pre", "subtraction"), ("T2 STIR SAG", "STIR"),
        ("mIP_Images(SW)", "projection"), ("ASSET calibration", "calibration"),
        ("T1_Images", "map"), ("perf_MTT", "perfusion"),
        ("t2_tirm_dark fat", "STIR"), ("T1 opposed phase", "opposed-phase image"),
        ("T2 FISP", "steady state"), ("BASG T2W", "steady state"), ("T1 tagging", "tagging"),
        ("T1 fusion PET", "fused image"), ("T2 MRCP", "cholangiography or myelography"),
        ("FLAIR*", "synthetic"), ("T1 template", "template"),
        ("T1 VIBE dixon_F", "fat image"), ("CISS T2", "steady state"), ("eADC", "diffusion map"),
        ("T1 mDIXON F", "fat image"), ("FAT: Ax T1 LAVA Flex", "fat image"),
        ("T2 IDEAL FAT", "fat image"), ("T2 IDEAL: FatFrac", "map"), ("T1 fat fraction", "map"),
        ("quantitative T1", "map"), ("T2_calc", "map"), ("T2 CPMG", "map"),
        ("T1w/T2w ratio", "map"), ("T1W quickmap", "map"), ("SyT2 FLAIR", "synthetic"),
        ("T1 FL2D OPP", "opposed-phase image"),
        ("Ph2/AX T1 LAVA", "dynamic"), ("Syn T2 FLAIR", "synthetic"), ("synth T1", "synthetic"),
        ("FLAIR_synthesized", "synthetic"), ("predicted T1c", "synthetic"),
        ("t1_vibe_tra_F_9", "fat image"), ("FAT_Ax_LAVA", "fat image"),
        ("SWI_TOTAL_MAG", "magnitude of an SWI"),
        ("T1 VIBE F", "fat image"), ("T1 phase", "phase"), ("T1 time of flight", "angiography"),
        ("T1 Curved MPR", "projection"),
        ("post minus pre T1", "subtraction"), ("T1 KM minus nativ", "subtraction"),
    ],
)  # fmt: skip
def test_what_is_none_to_segment_is_known_for_what_it_is(text: str, aside: str) -> None:
    assert read_words(text).set_aside == aside
    assert read_words(text).modality == ""


@pytest.mark.parametrize(
    ("text", "modality"),
    [
        ("t2_tirm_tra_dark-fluid", "flair"), ("Ax T2 FLAIR ASSET", "flair"), ("Sag T1 FLAIR", "t1"),
        ("axt2flair", "flair"), ("t1_mpr_ns_sag_p2_iso", "t1"), ("t2_tirm_tra", ""),
        ("MPR__GradWarp__B1_Correction__N3", "t1"), ("MPR cor", ""), ("SPACE", ""),
        ("AX T2* GRE", "t2star"),
        ("T2 EG", "t2star"), ("SWI_Images", "swi"), ("ep2d_diff_b1000_ADC", "adc"), ("PD/T2", ""),
        ("t1 T2", ""), ("set1", ""),
        ("DIR FLAIR", ""), ("T1 IR real part", ""), ("T2 inversion recovery", ""), ("T2 dark", ""),
        ("T2 multi echo", ""), ("AX T2 DUAL_TSE", ""),
        ("T1 C-SPINE", "t1"), ("SAG T2 C-SPINE", "t2"), ("T1 3D POST FOSSA", "t1"),
        ("fat sat T1", "t1"), ("sVEN_BOLD", "swi"), ("T1DUAL in", "t1"), ("T1_F_9", ""),
    ],
)  # fmt: skip
def test_sequences_are_told_by_all_their_words(text: str, modality: str) -> None:
    assert read_words(text).modality == modality


def test_what_was_read_is_said() -> None:
    assert read_words("t1_mprage KM").why == "'t1', 'mprage', 'km' says with contrast agent"
    assert read_words("TOF").why == "'tof' says angiography"
    assert read_words("T1 T2").why == "'t1', 't2': these are different sequences"
    assert read_words("") == read_words("abc")
    assert read_words("abc").why == "no word of it names a sequence that we know"


def test_words_of_sequences_and_names_of_patients_are_told_apart() -> None:
    assert is_sequence_word("mprage")
    assert is_sequence_word("KM")
    assert not is_sequence_word("p01")


def test_no_phrase_of_the_vocabulary_has_two_meanings() -> None:
    phrases = [phrase for phrases in MEANINGS.values() for phrase in phrases]
    assert len(phrases) > 300
    assert sorted(phrases) == sorted(set(phrases))


def test_a_glued_word_without_end_is_no_word() -> None:
    for text in ("t1" * 5000, "flair" * 5000, "t1ce" * 60 + "x"):
        read_words(text)
