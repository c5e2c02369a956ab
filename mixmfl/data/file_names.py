"""Reading of an image file's name: its modality or label, and its case.

Names by hospitals and converters are read by the words of ``sequence_words``; BIDS names are read
by the BIDS specification, where the suffix alone says what a file is.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from mixmfl.data.contrast_agent import agent_in, looks_like_agent
from mixmfl.data.modalities import LABEL, OTHER, TABLE, Match, Modalities, words_of
from mixmfl.data.sequence_phrases import (
    begins_kind,
    is_sequence_word,
    meaning_of,
    names_both_echoes,
    with_skull_in_a_word,
    without_accents,
)
from mixmfl.data.sequence_vocabulary import AGENTS, HARMLESS, KINDS, PROCESSING
from mixmfl.data.sequence_words import Reading, read_words
from mixmfl.data.time_points import names_examination


@dataclass(frozen=True)
class FileName:
    """The reading of a file's name.

    Attributes:
        case: The rest of the name without the words for its kind; empty for ``T1.nii.gz``.
        modality: The modality, or None for a label and where no known word was found.
        is_label: Whether the file is a segmentation.
        head: The part before the words for its kind. It names the patient where names also differ
            behind these words, as those of converters do.
        processing: The words that say that the image was made from another one.
        aside: The kind of an image that is not used, such as ``"field map"``.
        doubt: The reason why words about a sequence do not decide the modality.
        is_bids: Whether the name follows BIDS.
        is_nobodys: Whether it is of no case, as templates and rejects are.
        unknown: Short words that alone leave a T1 undecided, and may be a patient's.
        remark: What a person should see to if the image is used, though nothing is asked.
    """

    case: str
    modality: str | None = None
    is_label: bool = False
    head: str = ""
    processing: tuple[str, ...] = ()
    aside: str = ""
    doubt: str = ""
    is_bids: bool = False
    is_nobodys: bool = False
    unknown: tuple[str, ...] = ()
    remark: str = ""

    @property
    def is_known(self) -> bool:
        """Whether the name says what the file is."""
        return self.modality is not None or self.is_label

    def set_aside(self, why: str) -> "FileName":
        """Return it as of an image that is not used, whatever its name says that it is."""
        return replace(self, modality=None, is_label=False, doubt="", aside=why)


# these say nothing of the image itself: AAL_in_T1
_ONTO = frozenset(("to", "in", "into", "on", "onto"))
# "T1_to_T2" is a T1 on the grid of a T2
_CONNECTORS = _ONTO | {"reg2", "regto", "reg", "coreg", "registered", "aligned"}
_OF_SPACE = re.compile(r"(?i)(?:t1|t1w|t1c|t2|t2w|flair)space")
# words before a sequence that are not the patient's
_BEFORE_SEQUENCE = frozenset(
    ("mr", "mri", "brats", "raw", "hdbet", "coreg", "preproc", "anat", "struct")
)
# "no", "vor" and "with" before a word for a contrast agent are about it
_PREPOSITIONS = frozenset(("not", "perhaps not", "before", "beside"))
_OF_AGENTS = _PREPOSITIONS | {"agent", "letter", "with", "without"}
# words that may begin a patient's name, and before a sequence say what it is
_ASIDE_BEFORE = {"syn": "synthetic", "b0": "diffusion without weighting"}
_TEMPLATES = frozenset(("mni", "mni152", "std", "atlas", "template", "sri", "sri24"))
_GLUED = re.compile(  # FLAIR2T1, FLAIR_reg2T1, T1toMNI, t2_refT1
    r"(?i)(?<![a-z0-9])(?:(flair|t1c|t1ce|t1w?|t2w?)[ _.-]*(?:reg)?|reg)(?:2|to|in|ref)"
    r"(flair|t1c|t1ce|t1w?|t2w?|mni|std|atlas)(?![a-z0-9])"
)
# what ANTs appends to a prefix: T1Warped.nii.gz, T1InverseWarped.nii.gz, T11Warp.nii.gz
_ANTS = re.compile(
    r"(?i)(?<=[a-z0-9_.-])((?:inverse)?warped|\d(?:(?:inverse)?warp|genericaffine))$|(?<=brainsegmentation)(posteriors)"
)
# an image whose lesions were filled, for programs that measure healthy tissue
_FILLED = re.compile(
    r"(?i)(?<![a-z])(?:lesions?[ _.-]?(?:fill|inpaint)(?:ed|ing)|"
    r"(?:fill|inpaint)(?:ed|ing)[ _.-]?lesions?)(?![a-z])"
)
# HD-GLIO's "reoriented to standard", which elsewhere is a map of R2*
_ORIENTED = re.compile(r"(?i)(?<![a-z0-9])(flair|ct1|t1[a-z]*|t2w?)([ _.-])r2s(?![a-z0-9])")
# an image that SPM brought onto another: rT1, rFlair; "rt1" and "RT1" may be of a radiotherapy
_RESLICED = re.compile(
    r"(?<![A-Za-z0-9])r(FLAIR|Flair|T[12][Ww]?|T1[Cc][Ee]?|DWI|SWI|PD)(\d*)(?![A-Za-z0-9])"
)
# a number glued to a sequence at the end of a name: FLAIR1
_COUNTED = re.compile(r"(?i)(?<![a-z0-9])(flair|mprage|dwi|adc|swi|[a-z]?t[12]w)(\d{1,4})$")
# a sequence to which Chinese, Japanese or Korean letters are glued: T1增强
_GLUED_SCRIPT = re.compile(
    r"(?i)(?<![a-z0-9])(flair|dwi|adc|swi|pd|t[12]w?)(?=[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af])"
)
# what dcm2niix appends; a letter more tells files of one name apart
_PART = re.compile(r"(?i)_(ph|real|imaginary)[a-z]?$")
_EVEN = re.compile(r"(?i)_eq(?:_\d+)?[a-z]?$")
_ECHO = re.compile(r"(?i)_e([12])$")
_PARTS = {"ph": "phase", "real": "real part", "imaginary": "imaginary part"}
EVEN = "eq"
"""The word of ``FileName.processing`` for an image on even slices made of one on uneven ones."""
TILT = "tilt"
"""The word there for an image on upright slices made of those of a tilted gantry."""

FITS_LABEL = "fits a label and"
"""What ``FileName.doubt`` begins with for a name that may be of a label or of an image."""

BY_PROGRAM = "a segmentation by a program"
"""What ``FileName.aside`` begins with for a label that no person drew."""

MADE_IN_BIDS = "an image of BIDS derivatives; the original is what is read"
"""What ``FileName.aside`` says of an image below BIDS's derivatives."""

# programs that segment, and words for what they make
_MAKERS = frozenset(
    ("automated", "automatic", "automatisch", "automatique", "automatico", "predicted",
     "prediction", "predictions", "inference", "inferred", "inferredts", "inferredtr", "nnunet",
     "nnunetv2", "mixmfl", "deepmedic", "bianca", "samseg", "synthseg", "hdglio", "deepbratumia",
     "totalsegmentator", "raidionics", "fmriprep", "smriprep", "nibabies", "freesurfer",
     "fastsurfer", "volbrain", "cat12", "oncohabitats", "unetr", "swinunetr", "segresnet",
     "ensemble", "output", "outputs", "qsiprep", "qsirecon", "aslprep", "xcp", "mriqc", "micapipe",
     "ciftify", "tractoflow", "glistrboost", "drawem9", "drawem87", "clinica", "petprep",
     "hippunfold", "qsmxt", "medsam")
)  # fmt: skip
SHORT_MAKERS = frozenset(
    ("ai", "auto", "pred", "preds", "unet", "lst", "lga", "lpa", "lstai", "model")
)
"""Further ones, which may be of a patient's name, too."""

_BY_HAND = re.compile(r"(?i)manually[ _-]?(?:corrected|edited|revised)")

_MAKERS_OF_TWO = (("hd", "glio"), ("total", "segmentator"), ("nn", "unet"), ("lst", "ai"))

OF_ARCHIVE = re.compile(r"^\d+\.\d{6}-(.+?)(?:-\d+)?$")
"""A series as TCIA names it: 3.000000-AX T1-11111."""

# T1_3T, T1_1.5T
_FIELD = re.compile(r"(?i)[ _-](?:0[.,]5|1[.,_]?5|3(?:[.,]0)?|7(?:[.,]0)?) ?T(?:esla)?(?=[ _.-]|$)")
# what Dropbox adds to the name of a file that two people changed
_CONFLICT = re.compile(
    r"(?i)\([^()]*(?:conflicted copy|in konflikt stehende kopie|copie en conflit|"
    r"copia en conflicto)[^()]*\)"
)
# what browsers and file managers write behind a name that is there: T1(1)
_COPY_NUMBER = re.compile(r"(?<=[^\W_])(\(\d{1,2}\))$")
# what dcm2nii writes: 20190101_120000t1mpragesag, 20190101_120000t1mpragesags003a1001
_TIMED = re.compile(
    r"(?<![a-zA-Z0-9])(\d{4,})([a-zA-Z][a-zA-Z0-9]*?)(?:s\d{3}a\d{3,4}[a-zA-Z]?)?(?![a-zA-Z0-9])"
)
_BIDS = re.compile(
    r"(?P<case>sub-[a-z0-9+]+(?:_ses-[a-z0-9+]+)?)(?P<entities>(?:_[a-z]+-[a-z0-9+.-]+)*)"
    r"_(?P<suffix>[a-z0-9*]+)",
    re.IGNORECASE,
)
_REPEATED = re.compile(r"(sub-.+)__dup-?\d+")
# with the suffix of the image it was made of, too: sub-01_T1w_space-MNI_T1w, of Clinica
_MADE_OF = re.compile(
    r"(sub-[a-z0-9+]+(?:_[a-z]+-[a-z0-9+.-]+)*)_(?:t1w|t2w|flair|dwi)(?=(?:_[a-z]+-[a-z0-9+.-]+)+_[a-z0-9]+$)",
    re.IGNORECASE,
)
_IN_ONE_WORD = re.compile(r"(?<=[a-z])(?=[A-Z0-9])")  # BIDS: "dixonF" is two words
_POST = re.compile("post?")
_SUBJECT = re.compile(r"sub-[^_]+(?:_ses-[^_]+)?(?=_|$)", re.IGNORECASE)
_UNIFORM = "unit1"  # made of the inversions of an MP2RAGE
_SUFFIXES = {
    "t1w": "t1", "t2w": "t2", "flair": "flair", "pdw": "pd", "pd": "pd", "t2starw": "t2star",
    "t2star": "t2star", "t2s": "t2star", "dwi": "dwi", "swi": "swi", _UNIFORM: "t1",
}  # fmt: skip
_ASIDE_SUFFIXES = {
    **dict.fromkeys(("epi", "magnitude", "magnitude1", "magnitude2", "phasediff", "phase1",
                     "phase2", "fieldmap", "tb1tfl", "tb1rfm", "tb1dam", "rb1cor"), "field map"),
    **dict.fromkeys(("bold", "sbref", "cbv", "phase", "noRF".lower()), "functional"),
    **dict.fromkeys(("asl", "m0scan", "perf"), "perfusion"),
    **dict.fromkeys(("t1map", "t2map", "t2starmap", "r1map", "r2map", "r2starmap", "pdmap",
                     "mtrmap", "mtsat", "mtvmap", "mwfmap", "t1rho", "m0map", "s0map", "chimap",
                     "b1map", "tb1map", "rb1map"), "map"),
    **dict.fromkeys(("angio",), "angiography"),
    "mp2rage": "one image of an MP2RAGE",
    **dict.fromkeys(("megre", "mese", "vfa", "irt1", "mpm", "mts", "pdt2", "flash", "tfl"),
                    "one of several images that make a map"),
    **dict.fromkeys(("inplanet1", "inplanet2"), "slices for planning"),
    **dict.fromkeys(("defacemask", "probseg"), "mask"),
}  # fmt: skip
_DATATYPES = {"fmap": "field map", "func": "functional", "perf": "perfusion"}


def field_strength_in(stem: str) -> str:
    """Return the field strength that a name says, or nothing: T1_1.5T."""
    found = _FIELD.search(stem)
    return found[0].strip(" _-") if found else ""


def maker_in(name: str, words_too: frozenset[str] = frozenset()) -> str:
    """Return the words of a name that say that a program made its segmentations, or nothing."""
    words = [without_accents(word) for word in words_of(name)]
    if words[-1:] == ["raw"]:  # nnUNet_raw is what nnU-Net reads
        return ""
    pairs = (pair for pair in itertools.pairwise(words) if pair in _MAKERS_OF_TWO)
    one = (word for word in words if word in _MAKERS | words_too)
    return next(one, "") or " ".join(next(pairs, ""))


def read_name(stem: str, modalities: Modalities, folder: str = "") -> FileName:
    """Read a file's name, without its ending.

    Args:
        stem: The name without its ending.
        modalities: The known modalities, with the words that a user added.
        folder: The name of the file's folder; in BIDS it is the type of data, such as ``anat``.
    """
    if repeated := _REPEATED.fullmatch(stem):
        return read_name(repeated[1], modalities, folder).set_aside("a repeat, by heudiconv")
    if bids := _BIDS.fullmatch(stem := _MADE_OF.sub(r"\1", stem)):
        return _by_program(_read_bids(stem, bids, modalities, folder), stem)
    stem = _FIELD.sub("", OF_ARCHIVE.sub(r"\1", _CONFLICT.sub("copy", stem)))
    stem = _COPY_NUMBER.sub(r"_\1", stem)
    stem = _RESLICED.sub(r"\1_reg_\2", _GLUED_SCRIPT.sub(r"\1_", stem))
    stem = _COUNTED.sub(r"\1_\2", _FILLED.sub("filled", with_skull_in_a_word(stem)))
    for pattern, apart in ((_ANTS, r"_\g<0>_"), (_GLUED, r"\1_to_\2"), (_ORIENTED, r"\1\2std")):
        stem = pattern.sub(apart, stem)
    return _by_program(_read_converted(_TIMED.sub(_without_time, stem), modalities), stem)


def _by_program(file_name: FileName, stem: str) -> FileName:
    """Set aside a label whose name says that a program made it: nobody has looked at it yet."""
    if not file_name.is_label:
        return file_name
    maker = maker_in(stem) or maker_in(stem[len(file_name.head) :], SHORT_MAKERS)
    if maker and not _BY_HAND.search(stem):
        return replace(file_name, is_label=False, aside=f"{BY_PROGRAM} ({maker})")
    return file_name


def _read_converted(stem: str, modalities: Modalities) -> FileName:
    """Read a name at whose end dcm2niix may have written what the image is."""
    if part := _PART.search(stem):
        file_name = _read_free(stem[: part.start()], modalities)
        if file_name.modality:
            aside = _PARTS[part[1].lower()]
            return replace(file_name, case=stem, modality=None, aside=aside)
    if even := _EVEN.search(stem):
        file_name = _read_free(stem[: even.start()], modalities)
        return replace(file_name, processing=(*file_name.processing, EVEN))
    file_name = _read_free(stem, modalities)
    echo = _ECHO.search(stem)
    if echo and file_name.doubt and names_both_echoes(stem):  # the first one is the short one
        return replace(file_name, modality="pd" if echo[1] == "1" else "t2", doubt="")
    return file_name


def _without_time(match: re.Match[str]) -> str:
    return f"{match[1]}_{match[2]}" if meaning_of(match[2]) in KINDS else match[0]


def _read_bids(stem: str, parts: re.Match[str], modalities: Modalities, folder: str) -> FileName:
    case, suffix = parts["case"], parts["suffix"].lower()
    pairs = [pair.partition("-") for pair in parts["entities"].split("_") if pair]
    written = {key.lower(): value for key, _, value in pairs}
    entities = {key: value.lower() for key, value in written.items()}

    def aside(what: str) -> FileName:
        return FileName(case, head=case, aside=what, is_bids=True)

    if folder.lower() in _DATATYPES:
        return aside(_DATATYPES[folder.lower()])
    if suffix in _ASIDE_SUFFIXES:
        return aside(_ASIDE_SUFFIXES[suffix])
    processing = tuple(
        f"{key}-{entities[key]}" for key in ("space", "desc", "rec") if key in entities
    ) + (_UNIFORM,) * (suffix == _UNIFORM)
    matches = modalities.matches([suffix])
    if any(match.kind == LABEL for match in matches):
        words = [entities.get("label", ""), entities.get("desc", ""), suffix]
        if {match.kind for match in modalities.matches(words)} & {OTHER} or "brain" in words:
            return aside("mask")
        return FileName(case, is_label=True, head=case, processing=processing, is_bids=True)
    if entities.get("part", "mag") != "mag" or "inv" in entities:
        return aside("phase" if "part" in entities else "one inversion of an MP2RAGE")
    if "hemi" in entities:
        return aside("one half of the brain")
    modality = _SUFFIXES.get(suffix) or modalities.find(suffix)
    if modality is None:
        return FileName(case, head=case, is_bids=True)
    file_name = FileName(case, modality, head=case, processing=processing, is_bids=True)
    acquired = entities.get("acq", "")
    made = " ".join(entities.get(key, "") for key in ("acq", "rec", "desc"))
    if modality == "dwi" and (reading := read_words(f"dwi {made}")).modality != "dwi":
        if reading.modality == "adc":
            return replace(file_name, modality="adc")
        if reading.set_aside == "diffusion map":
            return aside(reading.set_aside)
    if modality in ("t1", "t2", "flair", "pd") and acquired:
        reading = read_words(f"{modality} {_IN_ONE_WORD.sub(' ', written['acq'])}")
        if reading.set_aside:
            return aside(reading.set_aside)
        if modality != "t1" and reading.modality != modality:
            what = f"{reading.modality or reading.why} by acq-{acquired}"
            doubt = f"says {what} and {modality} by its suffix"
            return FileName(case, head=case, is_bids=True, doubt=doubt)
    if modality == "t1":
        # the contrast agent is an entity in BIDS, and may have any name
        reading = read_words(f"T1 {acquired}") if acquired else Reading("t1", "")
        agent = entities.get("ce")
        others = (parts["case"].partition("_ses-")[2], entities.get("rec"), entities.get("desc"))
        named = next((each for each in others if each and agent_in(each) == "with"), "")
        if agent is None and named:
            doubt = f"says no agent by 'ce', and one by {named!r}"
            return FileName(case, head=case, is_bids=True, doubt=doubt)
        if agent is not None:
            without = agent in ("no", "none", "pre", "without", "nativ", "native", "0")
            reading = Reading("t1" if without else "t1c", "")
        if reading.modality == "t1c":
            if agent is None and read_words(f"T1 {_POST.sub('', acquired)}").modality != "t1c":
                doubt = (
                    f"says no agent by 'ce', and acq-{acquired} may be after one or after surgery"
                )
                return FileName(case, head=case, is_bids=True, doubt=doubt)
            return FileName(case, "t1c", head=case, processing=processing, is_bids=True)
        # BIDS tells of an agent by "ce", so a word that may be anything is about something else
        other = reading.unknown and not any(map(looks_like_agent, reading.unknown))
        if not reading.modality and not other and reading.set_aside == "":
            return FileName(case, head=case, is_bids=True, doubt=_undecided(reading))
    return file_name


def _read_free(stem: str, modalities: Modalities) -> FileName:
    stem, target = _without_target(stem, modalities)
    words = words_of(stem)
    matches = modalities.matches(words)
    first = _first_of_sequence(stem, words, matches)
    while 1 < first < len(words) and words[first - 1].lower() in _BEFORE_SEQUENCE:
        first -= 1  # p01_MR_t1
    if first == len(words):
        return FileName(case=stem, head=stem)
    offset = _offset(stem, words, first)
    head = stem[:offset].rstrip(" _-.")
    if any(match.kind == OTHER for match in matches if match.start >= first):
        return FileName(case=stem, head=head, aside="mask")
    body = words[first:]
    if doubt := _doubt_of_name_between(body):
        return FileName(stem, head=head or words[0], doubt=doubt)
    if doubt := _doubt_of_grid(words[:first], body):
        return FileName(head, head=head, doubt=doubt)
    if first and words[first - 1].lower() in _ASIDE_BEFORE:
        return FileName(stem, head=head, aside=_ASIDE_BEFORE[words[first - 1].lower()])
    matches = [
        Match(match.start - first, match.stop - first, match.kind)
        for match in matches
        if match.start >= first
    ]
    processing = [word for word in body if word.lower() in PROCESSING] + target
    case = _rest(head, body, matches)
    kind = _kind(stem[offset:], body, matches, modalities)
    if isinstance(kind, str):
        reading = read_words(stem[offset:])
        unknown = reading.unknown if kind == _undecided(reading) else ()
        if any(map(looks_like_agent, unknown)):
            unknown = ()
        return FileName(case, head=head, doubt=kind, unknown=unknown, processing=tuple(processing))
    modality, is_label, aside = kind
    if modality in ("t1", "t1c") and (doubt := _doubt_of_agent_before(words[:first], body)):
        return FileName(case, head=head, doubt=doubt)
    case = case if modality or is_label else stem
    return FileName(case, modality, is_label, head, tuple(processing), aside)


def _kind(
    text: str, body: Sequence[str], matches: Sequence[Match], modalities: Modalities
) -> tuple[str | None, bool, str] | str:
    """Return the modality, whether it is a label, and any other kind; or why it is undecided."""
    known = [i for i, word in enumerate(body) if meaning_of(word) in KINDS]
    labels = [match for match in matches if match.kind == LABEL]
    own = {match.kind for match in matches if _is_alias(match, body)}
    if labels and (not known or labels[-1].start > known[-1]):
        return None, True, ""  # "t1_seg" is a label that was drawn on T1
    if len(own) > 1:
        return f"fits {' and '.join(sorted(own))}"
    if own and not labels:
        return own.pop(), False, ""
    reading = read_words(text)
    if labels:
        return f"{FITS_LABEL} {reading.modality or 'a sequence'}"
    if reading.modality and reading.modality not in modalities.table:
        return None, False, ""
    if known and not reading.modality and not reading.set_aside:
        return _undecided(reading)
    return reading.modality or None, False, reading.set_aside


def _is_alias(match: Match, body: Sequence[str]) -> bool:
    """Say whether the words of a match are an alias that a user added."""
    words = [word.lower() for word in body[match.start : match.stop]]
    return match.kind not in (LABEL, OTHER) and (match.kind not in TABLE or words != [match.kind])


def _first_of_sequence(stem: str, words: Sequence[str], matches: Sequence[Match]) -> int:
    """Return the index of the first word about the sequence, not the patient."""
    if subject := _SUBJECT.match(stem):
        start = len(words_of(subject[0]))
    elif len(words) > 1 and words[0].lower() == "sub" and _is_number(words[1]):
        start = 2
    else:
        start = 0
    matched = {i for match in matches for i in range(match.start, match.stop)}

    def is_about_sequence(at: int) -> bool:
        word, meaning = words[at].lower(), meaning_of(words[at])
        if at in matched or meaning in KINDS or begins_kind(words[at:]):
            return True
        if "+" in word and meaning in AGENTS:  # "+C" and "C+" are no part of a patient's name
            return True
        if not meaning or meaning in ("beside", "filler", "before", "other", "perhaps not"):
            return False
        if re.search(r"\d", word) and meaning in ("technique", "orientation"):
            return word in ("2d", "3d") or len(word) > 3  # "p2" may be a patient
        return len(word) > 2 or meaning in ("agent", "orientation")

    def has_kind(after: int) -> bool:
        return any(
            i in matched or meaning_of(words[i]) in KINDS or begins_kind(words[i:])
            for i in range(after, len(words))
        )

    while start < len(words):
        if not is_about_sequence(start):
            start += 1
            continue
        # PD-012_t1 is of patient PD-012, and lesion_001_t2 of lesion_001
        numbered = not start and len(words) > 1 and _is_number(words[1])
        contrast = meaning_of(words[start]).split()[:1] in (["t1"], ["t2"], ["flair"])
        if numbered and not contrast and has_kind(start + 2):
            start += 2
            continue
        break
    return start - _prepositions_before(words, start)


def _prepositions_before(words: Sequence[str], at: int) -> int:
    """Return how many words before one for a contrast agent belong to it: "without" or "nach".

    A letter by itself may be a patient's initial, but ``w_o`` is "without".
    """
    before = at
    while before and at < len(words) and meaning_of(words[before]) in _OF_AGENTS:
        if [word.lower() for word in words[max(0, before - 2) : before]] == ["w", "o"]:
            before -= 2
        elif len(words[before - 1]) > 1 and meaning_of(words[before - 1]) in _PREPOSITIONS:
            before -= 1
        else:
            break
    return at - before


def _is_number(word: str) -> bool:
    return bool(re.search(r"\d", word)) and not meaning_of(word)


def _undecided(reading: Reading) -> str:
    return f"is undecided ({reading.why})"


def _doubt_of_agent_before(patient: Sequence[str], body: Sequence[str]) -> str:
    """Say why a word before a T1 is all that may speak of an agent; empty if there is none.

    So ``p01_post_T1`` may be after surgery, and ``KM_T1`` of a patient with these initials.
    """
    first = body[0].lower()
    if read_words(" ".join(body)).modality == "t1":
        if patient and meaning_of(patient[-1]) == "letter":
            return f"has {patient[-1]!r} before a T1, which may tell of a contrast agent"
    elif patient and len(patient[-1]) == 1 and meaning_of(first) == "agent":
        if read_words(" ".join((patient[-1], *body))).modality != "t1c":
            return f"has {patient[-1]!r} before a contrast agent, which may deny it"
    elif read_words(" ".join(body[1:])).modality == "t1":
        if patient and first == "post":
            return "has 'post' before a T1, which may tell the time or a contrast agent"
        if not patient and len(first) == 2 and meaning_of(first) == "agent":
            return f"begins with {body[0]!r}, a contrast agent or a patient's initials"
    return ""


def _doubt_of_grid(before: Sequence[str], body: Sequence[str]) -> str:
    """Say why an image may be another one on the grid of a sequence: ``AAL_in_T1``, ``CT_T1space``.

    ``p01_reg_T1`` is a T1 that was registered, and ``CT_T1`` of a patient with these initials.
    """
    last = before[-1].lower() if before else body[0].lower()
    is_method = meaning_of(last) == "another imaging method"
    if len(before) > 1 and last in _ONTO:
        return f"has {before[-1]!r} before a sequence, so that it may be another image on its grid"
    if is_method and any(word.lower() in {*_ONTO, "space"} or _OF_SPACE.fullmatch(word)
                         for word in body):  # fmt: skip
        return f"has {last!r} before the space of a sequence, so that it may be no such image"
    return ""


def _doubt_of_name_between(body: Sequence[str]) -> str:
    """Say why a name may begin with the patient's: ``Flair_Anna_T2`` is no FLAIR."""
    first, name = meaning_of(body[0]), body[1] if len(body) > 2 else ""
    others = {meaning_of(word) for word in body[2:]} & set(KINDS)
    known = meaning_of(name) or name.lower() in PROCESSING | HARMLESS | _CONNECTORS
    if first in KINDS and others - {first} and name.isalpha() and len(name) > 2 and not known:
        return f"has {name!r} between two sequences, so that the first may be of the patient's name"
    return ""


def _without_target(stem: str, modalities: Modalities) -> tuple[str, list[str]]:
    """Remove the target of a registration from a name: "T1_to_T2_seg" is a label on T1."""
    words = words_of(stem)
    labels = [each.start for each in modalities.matches(words) if each.kind == LABEL]
    for at in range(1, len(words) - 1):
        stop = at + 1
        while stop < len(words) and _may_be_target(words[stop]):
            stop += 1
        before = (
            any(meaning_of(word) in KINDS for word in words[:at]) or min(labels, default=at) < at
        )
        if words[at].lower() in _CONNECTORS and before and stop > at + 1:
            left = stem[: _offset(stem, words, at)].rstrip(" _-.")
            rest = stem[_offset(stem, words, stop) :]
            return f"{left}_{rest}" if rest else left, [" ".join(words[at:stop])]
    return stem, []


def _may_be_target(word: str) -> bool:
    return meaning_of(word) in KINDS or word.lower() in _TEMPLATES


def _rest(head: str, body: Sequence[str], matches: Sequence[Match]) -> str:
    """Return the rest of a name without the words about the sequence."""
    matched = {i for match in matches for i in range(match.start, match.stop)}
    left = [
        word
        for at, word in enumerate(body)
        if at not in matched
        and (not is_sequence_word(word) or names_examination(word))  # T1_preop
        and word.lower() not in PROCESSING | _BEFORE_SEQUENCE
    ]
    return "_".join(filter(None, (head, *left)))


def _offset(stem: str, words: Sequence[str], at: int) -> int:
    """Return the position in the name at which a word begins."""
    position = 0
    for number, word in enumerate(words):
        position = stem.index(word, position)
        if number == at:
            return position
        position += len(word)
    return len(stem)
