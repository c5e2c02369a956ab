"""Words and phrases of a text about a sequence, each with its meaning.

Words count as a whole, in English, German, French, Spanish, Dutch and Italian; a word that is glued
of several, such as ``axt2flair``, is taken apart.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache

from mixmfl.data.sequence_vocabulary import (
    AGENT_STEMS,
    ASIDES,
    CONTRAST_ENDINGS,
    DENIALS,
    KINDS,
    MEANINGS,
)


@dataclass(frozen=True)
class Phrase:
    """One or more words of a text, and their meaning: a key of ``MEANINGS``, or nothing."""

    words: str
    meaning: str


PHRASES: Mapping[tuple[str, ...], str] = {
    tuple(phrase.split()): meaning for meaning, phrases in MEANINGS.items() for phrase in phrases
}
"""The meaning of each known phrase, by its words."""

_PARTS = frozenset(word for phrase in PHRASES for word in phrase)
_LONGEST = max(map(len, PHRASES))
# words that may be glued together into one, such as "axt2flair" and "t1mpragepost"
_PIECES = frozenset(
    word
    for meaning in (*KINDS, "agent", "post", "pre", "with", "without", "orientation", "technique")
    for phrase in MEANINGS[meaning]
    if " " not in (word := phrase) and len(word) > 1
)
_LONGEST_GLUED = 40  # letters of a glued word; it is tried at every letter
_LEAST_FIRST = 4  # letters of a technique that may begin a glued word: "tirmdarkfluid", not "set2"
_AGENT = (
    r"(?:c|g|gd|gad|gado|gadolinium|km|ce|contrast|kontrast|contraste|contrasto|mdc|iv|inj|cte|cm"
    r"|civ)"
)
# what may stand between the words of a name
_SPACE = r"[ _.-]*"
_SKULL = r"(?:skull|sch(?:ae|[aä])del|cr[aâ]ne|cr[aá]neo|cranio|schedel)"
_WITH_SKULL, _WITHOUT_SKULL = (
    re.compile(
        rf"(?i)(?<![^\W_]){before}{_SPACE}(?:the|el|le|il|de)?{_SPACE}{_SKULL}"
        rf"(?![^\W_])(?!{_SPACE}bas)"
    )
    for before in ("(?:with|w|mit|avec|con|met)", "(?:without|w/?o|no|ohne|sans|sin|senza|zonder)")
)
_REWRITTEN = (
    # of the skull, and not of an agent
    (_WITH_SKULL, " unstripped "),
    (_WITHOUT_SKULL, " noskull "),
    (re.compile(rf"(?<![a-z0-9])sense[\s_-]+(?={_AGENT}(?![a-z0-9]))"), " either "),  # Catalan: not
    (re.compile(rf"(?<![a-z0-9])\(\s?-\s?\)\s?(?={_AGENT}(?![a-z0-9]))"), " minus "),  # (-) Gd
    (re.compile(r"[\s_]?\(\s?([+-])\s?\)"), r"\1"),  # Gd(-)
    (re.compile(r"(?<![a-z0-9])sub-[a-z0-9]*\d[a-z0-9]*"), " "),  # BIDS: a subject
    (re.compile(r"t2w?\s?\*(?:wi?)?"), " t2star "),
    (re.compile(r"(?<![a-z0-9])ph\d+\s?/"), " dynamic : "),  # a time point, as GE numbers them
    # "sy" and "syn" are what scanners call synthetic images; behind the words it is ANTs' way
    (re.compile(r"(?<![a-z0-9])syn?[ _-]*(?=(?:t1|t2|pd|stir|flair))"), " synthetic "),
    (re.compile(r":\s?syn(?![a-z])"), " synthetic "),
    # a map of what lies below or above a value: ADC<620, ADC_lt_620; not <MPR> or "left 3"
    (re.compile(r"[<>≤≥]\s?=?\s?\d+(?:[.,]\d+)?(?![\d.]*\s*>)"), " threshold "),
    (re.compile(r"(?<![a-z0-9])[lg][te][ _-]?\d{3,}(?!\d)"), " threshold "),
    # a subtraction of series, as GE writes it: (5-3), (1008/S8/1)-(8/S1/1)
    (re.compile(r"\(\d+\s?-\s?\d+\)|\(\d+/[^()]*\)\s?-\s?\(\d+/[^()]*\)"), " sub "),
    (re.compile(r"(?<![a-z0-9])n\s?[/-]\s?c(?![a-z])"), " nc "),
    (re.compile(r"(?<![a-z0-9])t1-w(?![a-z0-9])"), " t1w "),
    (
        re.compile(
            r"(?<![a-z])minus[ _-]*(?=nat|pre|ohne|vor|sans|avant|sin|senza|zonder|t[12]|flair)"
        ),
        " sub ",
    ),
    (re.compile(r"flair\s?\*"), " flairstar "),
    (re.compile(r"\+\s?/\s?-|±"), " either "),
    (re.compile(r"(?<![a-z0-9])0[.,]\d*[1-9]\d*"), " "),  # 0.1 mmol/kg, of which 0 would be none
    (re.compile(r"(?<![a-z0-9])b\s?=\s?0(?![\d.])"), " b0 "),
    (re.compile(r"(?<![a-z0-9])\d+\s?cm(?![a-z0-9])"), " "),  # centimetres, no contrast medium
    (re.compile(r"(?<![a-z0-9])\d+\s?(?:min|minuten|minutes)(?![a-z])"), " minutes "),
    (re.compile(r"(?<![a-z0-9])w\s?/?\s?(?:[/&+,]|and)\s?w\s?/?\s?o(?:ut)?(?![a-z])"), " wwo "),
    (re.compile(r"(?<![a-z0-9])w\s?/?\s?o(?:ut)?\s?(?:[/&+,]|and)\s?w(?![a-z])"), " wwo "),
    (re.compile(r"(?<![a-z0-9])w\s?/\s?o(?:ut)?(?=[^a-z]|$|con|gad|gd|iv)"), " without "),
    (re.compile(r"(?<![a-z0-9])w\s?/(?=[^a-z]|$|contrast|gad|gd|c\b|iv)"), " with "),
    (re.compile(r"(?<![a-z0-9])(s\.|c\.|)m\.\s?d\.\s?c\.?(?![a-z])"), r" \1mdc "),
    (re.compile(r"(?<![a-z0-9])m\.\s?c\.?(?![a-z])"), " mc "),
    (re.compile(rf"(?<![a-z0-9])s\s?[/.]\s?(?={_AGENT}(?![a-z]))"), " sin "),
    (re.compile(rf"(?<![a-z0-9])c\s?[/.]\s?(?={_AGENT}(?![a-z]))"), " con "),
    (re.compile(rf"(?<![a-z0-9])({_AGENT})\s?\?"), r" \1 either "),
    (re.compile(r"(?<![a-z0-9])i\.\s?v\.?(?![a-z])"), " iv "),
    (re.compile(r"(?<![a-z0-9])k\.\s?m\.?(?![a-z])"), " km "),
    # the sign of an agent: before it after a space, or after it before one
    (re.compile(r"(?<![^\s_(,;])-(?=c(?![a-z0-9]))"), " dash "),
    (re.compile(rf"(?<![^\s_(,;])-(?={_AGENT}(?![a-z0-9]))"), " minus "),
    (re.compile(rf"(?<![a-z0-9])({_AGENT})-(?![a-z0-9])"), r" \1 minus "),
    # "T1C-" is a T1 without it
    (
        re.compile(r"(?<![a-z0-9])(t1w?)[\s_]?(c|ce|gd|km)(?:-(?![a-z0-9])|\s-\s*$)"),
        r" \1 \2 minus ",
    ),
    (re.compile(r"(?<![a-z0-9])(t1w?)[\s_]?(c|ce|gd|km)\s?\+"), r" \1 \2 plus "),
    (re.compile(r"\+"), " plus "),
    (re.compile(rf"(?:^|\s)-\s+(?={_AGENT}(?![a-z0-9]))"), " dash "),  # a sign, or only a dash
    (re.compile(rf"(?<![a-z0-9])({_AGENT})\s+-(?![a-z0-9])"), r" \1 dash "),
    (re.compile(r"[:;,|()\[\]<>]"), " : "),  # a phrase ends here
)
# letters of other scripts than the Latin one are words of their own, and so are those that a file
# without its character set has lost
_WORD = re.compile(r"[a-z0-9\u00df-\u024f]+|[^\W\d_\u0000-\u024f]+|[:&]|\?{2,}|\ufffd+")
SHORT = 3
"""The letters of a word that may abbreviate anything."""
SHORT_NAME = 4
"""The letters of a word that may be a patient's initials or name."""


def without_accents(text: str) -> str:
    """Return a text in lower case and without accents, as all words are compared."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in apart if not unicodedata.combining(letter))


def with_skull_in_a_word(text: str) -> str:
    """Return a name with ``unstripped`` for "with skull", and ``noskull`` for "without skull"."""
    return _WITHOUT_SKULL.sub("noskull", _WITH_SKULL.sub("unstripped", text))


def names_both_echoes(text: str) -> bool:
    """Say whether a text names proton density and T2, the two echoes of one sequence."""
    return {each.meaning for each in phrases_of(text)} & set(KINDS) == {"pd", "t2"}


@cache
def is_sequence_word(word: str) -> bool:
    """Say whether a word of a file's name is about the sequence, not the patient."""
    if word.isdecimal() and len(word) < 3:  # T1_1 is not only "inv 1": it may be of patient 1
        return False
    return all(each.meaning or each.words in _PARTS for each in phrases_of(word))


def begins_kind(words: Sequence[str]) -> bool:
    """Say whether words begin with a phrase of several: ``dark fluid``, or ``non con``."""
    lower = [word.casefold() for word in words[:_LONGEST]]
    return any(
        PHRASES.get(tuple(lower[:length]), "") in (*KINDS, *ASIDES, "with", "without")
        for length in range(2, len(lower) + 1)
    )


@cache
def meaning_of(word: str) -> str:
    """Return the meaning of one word, a key of ``MEANINGS``; empty if it is unknown.

    A word of glued pieces has the meaning of its first piece about a contrast.
    """
    phrases = phrases_of(word)
    if not phrases or not all(each.meaning for each in phrases):
        return ""
    return next((each.meaning for each in phrases if each.meaning in KINDS), phrases[0].meaning)


def phrases_of(text: str) -> list[Phrase]:
    """Return the words of a text in order, with the meaning of the longest phrases."""
    text = without_accents(text)
    for pattern, written in _REWRITTEN:
        text = pattern.sub(written, text)
    words = [piece for word in _WORD.findall(text) for piece in _pieces(word)]
    phrases, start = [], 0
    while start < len(words):
        for length in range(min(_LONGEST, len(words) - start), 0, -1):
            phrase = tuple(words[start : start + length])
            if length == 1 or phrase in PHRASES:
                phrases.append(
                    Phrase(" ".join(phrase), PHRASES.get(phrase, "") or _stem(phrase[0]))
                )
                start += length
                break
    # "ohne i.v. KM" and "ohne KM i.v." say no more than "ohne KM"
    meanings = ["", *(each.meaning for each in phrases), ""]
    beside = zip(meanings, meanings[2:], strict=False)
    return [
        each
        for each, neighbours in zip(phrases, beside, strict=True)
        if each.words != "iv" or "agent" not in neighbours
    ]


def _stem(word: str) -> str:
    """Return the meaning of an unlisted word by its stem; empty if it has none."""
    if word.startswith(AGENT_STEMS):
        is_contrast = word.startswith(("contrast", "kontrast"))
        if word.endswith(DENIALS):
            return "without"
        return "both" if is_contrast and word[8:] not in CONTRAST_ENDINGS else "agent"
    if word.startswith("synth"):
        return "synthetic"
    if len(word) > SHORT and word.endswith(("map", "maps")):
        return "map"
    return "both" if any(stem in word for stem in AGENT_STEMS) else ""


@cache
def _pieces(word: str) -> tuple[str, ...]:
    """Return the pieces of a glued word, such as ``axt2flair``; else the word itself."""
    if (word,) in PHRASES or len(word) > _LONGEST_GLUED:
        return (word,)

    def split(rest: str, first: bool) -> tuple[str, ...] | None:
        if not rest:
            return ()
        for stop in range(len(rest), 1, -1):
            piece = rest[:stop]
            short = len(piece) < _LEAST_FIRST
            if piece not in _PIECES or (first and short and PHRASES[piece,] == "technique"):
                continue
            if (others := split(rest[stop:], False)) is not None:
                return (piece, *others)
        return None

    pieces = split(word, True) or (word,)
    return pieces if any(PHRASES.get((piece,)) in KINDS for piece in pieces) else (word,)


def quoted_words(phrases: Sequence[Phrase], meanings: Set[str]) -> str:
    """Return the phrases of these meanings, each once and in quotes, for a message."""
    words = dict.fromkeys(f"'{each.words}'" for each in phrases if each.meaning in meanings)
    return ", ".join(words)
