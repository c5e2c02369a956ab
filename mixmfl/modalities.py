"""Which words in a file's name mean which modality: the table, and how names are read with it."""

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from mixmfl.errors import DataError

_T1 = ("t1", "t1w")
_CONTRAST = ("ce", "gd", "gad", "gado", "gadolinium", "contrast", "post contrast", "postcontrast")
# only after "t1": "post_t1" may be a T1 after the operation, and "c_t1" one of hospital C
_CONTRAST_AFTER = (*_CONTRAST, "c", "km", "post", "with contrast")
_NATIVE_AFTER = ("pre", "pre contrast", "precontrast", "native", "no contrast", "without contrast")


def _pairs(words: Iterable[str], others: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{word} {other}" for word, other in itertools.product(words, others))


# One entry per modality: its name, and how files call it. Upper and lower case are one, and so
# are spaces, "_", "-" and "."; the name itself needs no mention.
TABLE: Mapping[str, tuple[str, ...]] = {
    "t1": ("t1w", "t1n", "t1pre", "t1native", "mprage", "mp rage", "t1mprage", "t1 mprage",
           "mp2rage", *_pairs(_T1, _NATIVE_AFTER)),
    "t1c": ("t1ce", "t1gd", "t1post", "t1km", "t1wce", "t1wgd", "t1contrast",
            *_pairs(_T1, _CONTRAST_AFTER), *_pairs(_CONTRAST, _T1)),
    "t2": ("t2w", "t2tse", "t2 tse"),
    "flair": ("t2f", "t2flair", "t2 flair", "t2w flair", "flair t2", "flair t2w", "flairw",
              "dark fluid", "darkfluid"),
    "pd": ("pdw",),
    "dwi": ("b1000",),
    "adc": ("adcmap", "adc map"),
    "swi": ("swan",),
    "t2star": ("t2*", "t2*w", "t2starw", "t2 star", "t2 star w"),
}  # fmt: skip

LABEL_WORDS = (
    "seg", "dseg", "segmentation", "segmentations", "label", "labels", "labelstr", "labelsts",
    "mask", "masks", "gt", "ground truth", "groundtruth", "truth", "lesion", "lesions",
    "lesion mask", "lesion seg", "tumor mask", "tumor seg", "tumour mask", "tumour seg",
)  # fmt: skip

# masks that tell where the head is; to train on one as if it were the lesion must not happen
OTHER_WORDS = ("brain mask", "brainmask", "bet mask", "head mask", "headmask")

_LABEL, _OTHER = "a label", "another mask"  # kinds of file besides the modalities
_WORD = re.compile(r"[^\s_.\-]+")
_BIDS_CASE = re.compile(r"(sub-[^_]+(?:_ses-[^_]+)?)_.+", re.IGNORECASE)
_NAME = re.compile(r"[a-z][a-z0-9_]*")

LONGEST_NAME = 32
"""Characters of a modality's name; the longest of ``TABLE`` has 6."""

MOST_MODALITIES = 32
"""Of a federation."""

Words = tuple[str, ...]


def is_modality_name(name: object) -> bool:
    """Say whether something can be a modality's name: short, a letter, then a-z, 0-9 and _.

    So it leads to no other folder, and is no markup, wherever it came from.
    """
    return isinstance(name, str) and len(name) <= LONGEST_NAME and bool(_NAME.fullmatch(name))


@dataclass(frozen=True)
class FileName:
    """What a file's name says.

    Attributes:
        case: What is left of the name without the words for its kind; empty for ``T1.nii.gz``.
        modality: The modality, or None for a label and where no known word was found.
        is_label: Whether the file is a segmentation.
    """

    case: str
    modality: str | None = None
    is_label: bool = False

    @property
    def is_known(self) -> bool:
        """Whether the name says what the file is."""
        return self.modality is not None or self.is_label


@dataclass(frozen=True)
class Modalities:
    """The modalities that are known, and the words that mean them.

    Attributes:
        table: For each modality, by its name in lower case, its aliases. The name is one too.

    Raises:
        DataError: An alias means two modalities.
    """

    table: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: TABLE)

    def __post_init__(self) -> None:
        _kinds(self.table)  # raises here, not while files are read

    @property
    def names(self) -> tuple[str, ...]:
        """The known modalities, sorted."""
        return tuple(sorted(self.table))

    def with_aliases(self, options: Iterable[str]) -> "Modalities":
        """Return the table with more aliases, or with more modalities.

        Args:
            options: As on a command line: ``"t1c=km,contrast"``, ``"myseq=foo"``.

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
        """Return the modality that some words mean as a whole, such as a channel's name."""
        kind = self._kinds.get(_split(words))
        return kind if kind in self.table else None

    def kinds_in(self, text: str) -> set[str]:
        """Return the modalities that the words of a text name, the longest matches only."""
        words = [span.group().lower() for span in _WORD.finditer(text)]
        found = {match.kind for match in _longest_matches(words, self._kinds)}
        return found & set(self.table)

    def read_name(self, stem: str) -> FileName:
        """Read a file's name, without its ending.

        The longest match counts: ``t2_flair`` is not T2. Words before the last number belong to
        the case: ``PD-012_t1`` is the T1 of patient PD-012. A BIDS name is taken by its last
        part, and its case is subject and session.

        Raises:
            DataError: The name fits two modalities.
        """
        spans = list(_WORD.finditer(stem))
        matches = _longest_matches([span.group().lower() for span in spans], self._kinds)
        if not matches or any(match.kind == _OTHER for match in matches):
            return FileName(case=stem)
        last = matches[-1]

        bids = _BIDS_CASE.fullmatch(stem)
        if bids and last.stop == len(spans):
            # the contrast agent is an entity in BIDS, and may have any name
            contrast = last.kind == "t1" and "_ce-" in stem.lower()
            return _file_name(bids[1], "t1c" if contrast else last.kind)

        matched = {i for match in matches for i in range(match.start, match.stop)}
        last_number = max(
            (i for i, span in enumerate(spans) if i not in matched and re.search(r"\d", span[0])),
            default=-1,
        )
        matches = [match for match in matches if match.start > last_number] or matches
        kinds = sorted({match.kind for match in matches})
        if last.kind == _LABEL:
            drop = matches  # "t1_seg" is a label that was drawn on T1
        elif len(kinds) == 1:
            drop = [last]
        else:
            raise DataError(
                f"the name {stem!r} fits {' and '.join(kinds)}; rename it so that it fits one"
            )
        case = stem
        for match in reversed(drop):
            before = case[: spans[match.start].start()].rstrip(" _-.")
            after = case[spans[match.stop - 1].end() :].lstrip(" _-.")
            case = f"{before}_{after}" if before and after else before or after
        return _file_name(case, last.kind)

    @cached_property
    def _kinds(self) -> dict[Words, str]:
        return _kinds(self.table)


def _kinds(table: Mapping[str, tuple[str, ...]]) -> dict[Words, str]:
    """Return what kind of file each alias means, by the alias's words."""
    entries: list[tuple[str, Iterable[str]]] = [
        (_LABEL, LABEL_WORDS),
        (_OTHER, OTHER_WORDS),
        *((name, (name, *aliases)) for name, aliases in table.items()),
    ]
    kinds: dict[Words, str] = {}
    for kind, aliases in entries:
        for alias in aliases:
            meant = kinds.setdefault(_split(alias), kind)
            if meant != kind:
                raise DataError(f"alias {alias!r} means {meant} and {kind}; it can mean one only")
    return kinds


@dataclass(frozen=True)
class _Match:
    """Words ``start`` to ``stop`` of a name, and the kind of file that they mean."""

    start: int
    stop: int
    kind: str


def _longest_matches(words: list[str], kinds: Mapping[Words, str]) -> list[_Match]:
    """Return the matches that do not overlap, longer before shorter, in the order of the name."""
    longest = max(map(len, kinds))
    found: list[_Match] = []
    taken: set[int] = set()
    for length in range(longest, 0, -1):
        for start in range(len(words) - length, -1, -1):
            kind = kinds.get(tuple(words[start : start + length]))
            if kind and taken.isdisjoint(range(start, start + length)):
                found.append(_Match(start, start + length, kind))
                taken.update(range(start, start + length))
    return sorted(found, key=lambda match: match.start)


def _file_name(case: str, kind: str) -> FileName:
    return FileName(case, is_label=True) if kind == _LABEL else FileName(case, modality=kind)


def _split(words: str) -> Words:
    return tuple(word.lower() for word in _WORD.findall(words))
