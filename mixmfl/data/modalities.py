"""The modalities that are known, and the words that a user adds for them."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Annotated

from mixmfl.core.declarations import text
from mixmfl.core.errors import DataError
from mixmfl.data.sequence_phrases import is_sequence_word, without_accents
from mixmfl.data.sequence_vocabulary import ANATOMY
from mixmfl.data.sequence_words import LONGEST_TEXT, read_words

# One entry per modality: its name, and aliases that a user added. ``sequence_words`` knows how
# hospitals and converters write them.
TABLE: Mapping[str, tuple[str, ...]] = {
    "t1": (), "t1c": (), "t2": (), "flair": (), "pd": (), "dwi": (), "adc": (), "swi": (),
    "t2star": (),
}  # fmt: skip

LABEL_WORDS = (
    "seg", "dseg", "segmentation", "segmentations", "label", "labels", "labelstr", "labelsts",
    "mask", "masks", "gt", "ground truth", "groundtruth", "truth", "lesion", "lesions",
    "gtv", "lesion mask", "lesion seg", "tumor mask", "tumor seg", "tumour mask", "tumour seg",
    "lesionsmooth", "tumor", "tumour", "wmh", "msk", "consensus", "roi", "rois", "annotation",
    "annotations", "delineation", "delineations",
    "o ot", "xx ot",  # of BraTS 2013 to 2015 and ISLES 2015
    "segm", "segmentierung", "segmentazione", "segmentacion", "maske", "masque", "mascara",
    "maschera", "masker", "laesion", "lasion", "laesionen", "lasionen", "lesione", "lesioni",
    "lesiones", "lesao", "lesoes", "laesie", "tumeur", "tumore",
    "glistrboost", "masken", "segmentierungen", "masques", "mascaras", "maschere", "maskers",
    "lesie", "lesies", "hyperintensity", "hyperintensities", "abnormality", "abnormalities",
    "wm lesion", "wm lesions", "gm lesion", "gm lesions", "wm hyperintensity",
    "wm hyperintensities",
)  # fmt: skip
# label words glued together, also by an "s", or numbered by rater or part: lesionmask, manualseg,
# laesionsmaske, mask1
_ONE_LABEL = f"(?:{'|'.join(word for word in LABEL_WORDS if ' ' not in word)})"
_LABEL = re.compile(
    rf"(?:final|manual|expert|stroke)?{_ONE_LABEL}(?:s?{_ONE_LABEL})*\d*"
    r"|(?:rater|reader|annotator|observer)\d*"
)

# masks of the head, and segmentations of healthy tissue; none must be trained on as if it were the
# lesion
OTHER_WORDS = (
    "brain mask", "brainmask", "bet mask", "head mask", "headmask", "brain seg", "defacemask",
    "deface mask", "aseg", "aparc", "aparcaseg", "aparc aseg", "aparc+aseg", "tissue", "tissues",
    "pveseg", "pve", "probseg", "wmparc", "synthseg", "parcellation", "parenchyma",
    "gm", "wm", "csf", "ribbon",
    "mask brain", "skull mask", "bone mask", "fov mask", "firstseg", "fast seg", "fastseg",
    "hdbet mask", "bet bet mask", "synthstrip mask", "strip mask", "stripped mask",
    "skullstrip mask", "skullstripped mask", "skull strip mask", "robex mask", "robexmask",
    "brain extraction mask", "brainextractionmask", "brainsegmentation", "face mask", "fg mask",
    "foreground mask", "body mask", "head masks", "brain masks", "brainmasks", "valid mask",
    "anatomy", "anatomical", "softmax", "logits", "posterior", "posteriors", "mixeltype",
    "origsegs", "firstsegs", "fsl seg", "fseg", "dkt31", "dkt40", "neuromorphometrics",
    "prob", "probs", "probability", "probabilities", "probmap", "uncertainty", "heatmap",
    "exclusion mask", "mask exclusion", "ignore mask", "mask inverted", "mask inverse",
    "inverted mask", "inverse mask", "seg inverted", "inverted seg", "nawm", "nagm", "mask healthy",
    "healthy mask", "masque cerveau", "masque cerebral", "mascara cerebro", "mascara cerebral",
    "maschera cervello", "maschera encefalo", "masker hersenen",
    "samseg", "bianca", "ples", "seg cerebrum", "seg ventricle", "seg ventricles",
)  # fmt: skip

# parts of lesions that may each have a label of its own; at the end of names without a sequence
PARTS_OF_LESIONS = {
    "edema", "oedema", "odem", "oedem", "oedeme", "edeme", "necrosis", "necrotic", "nekrose",
    "necrose", "necrosi", "core", "cavity", "enhancing", "nonenhancing", "penumbra", "infarct",
    "infarction", "infarkt", "infarto", "hemorrhage", "haemorrhage", "blutung", "metastasis",
    "metastases", "metastase", "metastasen", "abscess", "abszess", "meningioma", "meningeom",
    "glioma", "gliom", "glioblastoma", "glioblastom", "adenoma", "adenom", "schwannoma",
    "schwannom", "lymphoma", "lymphom", "cyst", "zyste", "aneurysm", "aneurysma",
}  # fmt: skip

_OF_LESION = re.compile(
    r"lesion.*|tumou?rs?.*|la(?:e)?sion.*|lesie.*|lesione.*|wmh|gtv|ctv|ptv|hyperintens.*|abnormal.*|"
    r"stroke|cancer|carcinoma.*|mets?|plaques?|unhealthy|.*oma"
)

LABEL, OTHER = "a label", "another mask"  # kinds of file besides the modalities
_WORD = re.compile(r"[^\s_.\-]+")
_NAME = "[a-z][a-z0-9_]*"

LONGEST_NAME = 32
"""The characters that a modality's name may have; the longest of ``TABLE`` has 6."""

MOST_MODALITIES = 32
"""The modalities that a federation may have."""

ModalityName = Annotated[
    str, text(LONGEST_NAME, _NAME, "a modality's name (a letter, then a-z, 0-9 and _)")
]
"""What ``is_modality_name`` takes, as a field of a record declares it."""

Words = tuple[str, ...]


def is_modality_name(name: object) -> bool:
    """Say whether an object is a valid name of a modality: short, a letter, then a-z, 0-9 and _.

    So a name from anywhere can neither lead to another folder nor be markup.
    """
    return isinstance(name, str) and len(name) <= LONGEST_NAME and bool(re.fullmatch(_NAME, name))


@dataclass(frozen=True)
class Modalities:
    """The modalities that are known, and the words that mean them.

    Attributes:
        table: The aliases of each modality, by its name in lower case, which is an alias, too.

    Raises:
        DataError: An alias means two modalities.
    """

    table: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: TABLE)

    def __post_init__(self) -> None:
        _ = self._kinds  # raises here, not while files are read

    @property
    def names(self) -> tuple[str, ...]:
        """The known modalities, sorted."""
        return tuple(sorted(self.table))

    def with_aliases(self, options: Iterable[str]) -> "Modalities":
        """Return the table with more aliases, or with more modalities.

        Args:
            options: Values of ``--alias``, such as ``"t1c=km,contrast"`` and ``"myseq=foo"``.

        Raises:
            DataError: An option has another form, or an alias already means something else.
        """
        table = dict(self.table)
        for option in options:
            name, equals, aliases = option.partition("=")
            name = name.strip().lower()
            words = [alias.strip() for alias in aliases.split(",")]
            if not equals or not is_modality_name(name) or not all(map(_split, words)):
                raise DataError(
                    f"--alias {option!r}: needed is NAME=ALIAS[,ALIAS], such as t1c=km,contrast; "
                    "the name starts with a letter and has only a-z, 0-9 and _, "
                    f"{LONGEST_NAME} at most"
                )
            table[name] = (*table.get(name, ()), *words)
        return Modalities(table)

    def find(self, words: str) -> str | None:
        """Return the modality that words, such as a channel's name, mean as a whole; else None."""
        if len(words) > LONGEST_TEXT:
            return None
        kind = self._kinds.get(_split(words))
        if kind is None and all(map(is_sequence_word, words.split())):
            kind = read_words(words).modality
        return kind if kind in self.table else None

    def kinds_in(self, text: str) -> set[str]:
        """Return the modalities with a name or alias in a text; only the longest matches count."""
        return {match.kind for match in self.matches(words_of(text))} & set(self.table)

    def matches(self, words: Sequence[str]) -> list["Match"]:
        """Return the places of labels, other masks, and names or aliases of modalities in words."""
        return _longest_matches([without_accents(word) for word in words], self._kinds)

    @cached_property
    def _kinds(self) -> Mapping[Words, str]:
        return _kinds_of(tuple((name, tuple(aliases)) for name, aliases in self.table.items()))


@lru_cache(maxsize=8)  # to read all aliases takes longer than to find the cases of a small folder
def _kinds_of(table: tuple[tuple[str, tuple[str, ...]], ...]) -> Mapping[Words, str]:
    """Return the kind of file that each alias means, by the alias's words."""
    names = {name for name, _ in table}
    entries: list[tuple[str, Iterable[str]]] = [
        (LABEL, LABEL_WORDS),
        (OTHER, OTHER_WORDS),
        *((name, (name, *aliases)) for name, aliases in table),
    ]
    kinds: dict[Words, str] = {}
    for kind, aliases in entries:
        for alias in aliases:
            meant = kinds.setdefault(_split(alias), kind)
            if meant != kind:
                raise DataError(f"alias {alias!r} means {meant} and {kind}; it can mean one only")
            known = read_words(alias).modality
            if kind in names and known in names and known != kind:
                raise DataError(f"alias {alias!r} means {known} and {kind}; it can mean one only")
    return kinds


@dataclass(frozen=True)
class Match:
    """Words ``start`` to ``stop`` of a name, and the kind of file that they mean.

    Attributes:
        start: Index of the first word.
        stop: Index behind the last word.
        kind: A modality, ``LABEL`` or ``OTHER``.
    """

    start: int
    stop: int
    kind: str


def _longest_matches(words: list[str], kinds: Mapping[Words, str]) -> list[Match]:
    """Return the matches that do not overlap, longer before shorter, in the order of the name."""
    longest = max(map(len, kinds))
    matches: list[Match] = []
    taken: set[int] = set()
    for length in range(longest, 0, -1):
        for start in range(len(words) - length, -1, -1):
            kind = kinds.get(tuple(words[start : start + length]))
            if not kind and length == 1 and _LABEL.fullmatch(words[start]):
                kind = LABEL
            if kind and taken.isdisjoint(range(start, start + length)):
                matches.append(Match(start, start + length, kind))
                taken.update(range(start, start + length))
    return sorted(matches, key=lambda match: match.start)


def names_part(stem: str) -> bool:
    """Say whether a name ends in the word for a part of a lesion, as that of its label does."""
    words = words_of(without_accents(stem))
    return bool(words) and words[-1].rstrip("0123456789") in PARTS_OF_LESIONS


def anatomy_in(words: Iterable[str]) -> str:
    """Return the word for a healthy part of the body among those of a label, or nothing.

    It is nothing where another word is of a lesion: brainstem_glioma.
    """
    plain = [without_accents(word).strip("0123456789") for word in words]
    if any(word in PARTS_OF_LESIONS or _OF_LESION.fullmatch(word) for word in plain):
        return ""
    return next((word for word in plain if word in ANATOMY), "")


def words_of(text: str) -> list[str]:
    """Return the words of a name, in their original case."""
    return _WORD.findall(text)


def _split(words: str) -> Words:
    return tuple(without_accents(word) for word in words_of(words))
