"""Reading of an MR sequence from the words of a description or of a file's name.

``read_words`` is the one reader for the names of files and folders and for DICOM descriptions.
Words count as a whole, in English, German, French, Spanish, Dutch and Italian. Where they
contradict each other, or where the sign of a contrast agent is lost, the modality stays undecided:
a T1 with a contrast agent and one without are never taken for each other.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache

from mixmfl.data.sequence_vocabulary import (
    AFTER,
    AGENT_ENDS,
    AGENT_LETTERS,
    AGENT_STEMS,
    AGENTS,
    ASIDES,
    CONTRAST_ENDINGS,
    DENIALS,
    GRADIENT_ECHOES,
    HARMLESS,
    KINDS,
    MEANINGS,
    METHODS,
    PARTS_OF_BODY,
    PLANNING,
    PROCESSING,
    TREATMENTS,
)


@dataclass(frozen=True)
class Reading:
    """The reading of a text.

    Attributes:
        modality: One of ``modalities.TABLE``; empty where it is undecided.
        why: The words that decided, or the reason why it is undecided.
        set_aside: The kind of an image that is not for segmentation, such as ``"angiography"``.
        unknown: Words beside a T1 which we do not know, and which may tell of a contrast agent.
            They alone leave it undecided.
    """

    modality: str
    why: str
    set_aside: str = ""
    unknown: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Phrase:
    """One or more words of a text, and their meaning: a key of ``MEANINGS``, or nothing."""

    words: str
    meaning: str


_T1 = {"t1", "t1 native", "t1 with agent", "t1 by technique"}
_NEGATIONS = ("not", "perhaps not", "before")
_TABLE: Mapping[tuple[str, ...], str] = {
    tuple(phrase.split()): meaning for meaning, phrases in MEANINGS.items() for phrase in phrases
}
_PARTS = frozenset(word for phrase in _TABLE for word in phrase)
_OF_BODY = frozenset(word for words in PARTS_OF_BODY.values() for word in words.split())
_LONGEST = max(map(len, _TABLE))
# words that may be glued together into one, such as "axt2flair" and "t1mpragepost"
_PIECES = frozenset(
    word
    for meaning in (*KINDS, "agent", "post", "pre", "with", "without", "orientation", "technique")
    for phrase in MEANINGS[meaning]
    if " " not in (word := phrase) and len(word) > 1
)
LONGEST_TEXT = 1000
"""Characters of a text that is read; DICOM's descriptions have 64."""

_LONGEST_GLUED = 40  # letters of a glued word; it is tried at every letter
_LEAST_FIRST = 4  # letters of a technique that may begin a glued word: "tirmdarkfluid", not "set2"
_AGENT = (
    r"(?:c|g|gd|gad|gado|gadolinium|km|ce|contrast|kontrast|contraste|contrasto|mdc|iv|inj|cte|cm"
    r"|civ)"
)
_REWRITTEN = (
    (re.compile(r"[\s_]?\(\s?([+-])\s?\)"), r"\1"),  # Gd(-)
    (re.compile(r"(?<![a-z0-9])sub-[a-z0-9]*\d[a-z0-9]*"), " "),  # BIDS: a subject
    (re.compile(r"t2w?\s?\*(w?)"), " t2star "),
    (re.compile(r"(?<![a-z0-9])ph\d+\s?/"), " dynamic : "),  # a time point, as GE numbers them
    # "sy" and "syn" are what scanners call synthetic images; behind the words it is ANTs' way
    (re.compile(r"(?<![a-z0-9])syn?[ _-]*(?=(?:t1|t2|pd|stir|flair))"), " synthetic "),
    (re.compile(r":\s?syn(?![a-z])"), " synthetic "),
    # a subtraction of series, as GE writes it: (5-3), (1008/S8/1)-(8/S1/1)
    (re.compile(r"\(\d+\s?-\s?\d+\)|\(\d+/[^()]*\)\s?-\s?\(\d+/[^()]*\)"), " sub "),
    (re.compile(r"(?<![a-z0-9])n\s?[/-]\s?c(?![a-z])"), " nc "),
    (re.compile(r"(?<![a-z0-9])t1-w(?![a-z0-9])"), " t1w "),
    (
        re.compile(r"(?<![a-z])minus[ _-]*(?=nat|pre|ohne|vor|sans|avant|sin|senza|zonder|t1)"),
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
    (re.compile(rf"\s-\s+(?={_AGENT}(?![a-z0-9]))"), " dash "),  # a sign, or only a dash
    (re.compile(rf"(?<![a-z0-9])({_AGENT})\s+-(?![a-z0-9])"), r" \1 dash "),
    (re.compile(r"[:;,|()\[\]<>]"), " : "),  # a phrase ends here
)
# letters of other scripts than the Latin one are words of their own, and so are those that a file
# without its character set has lost
_WORD = re.compile(r"[a-z0-9\u00df-\u024f]+|[^\W\d_\u0000-\u024f]+|[:&]|\?{2,}|\ufffd+")
_INVERSIONS = frozenset(("tirm", "ir", "tir", "inversion", "dark", "fluid"))
_FAT_SUPPRESSED_T1 = frozenset(("vibe", "starvibe", "lava", "thrive", "ethrive"))
_FAT_AND_WATER = frozenset(("dixon", "mdixon", "ideal", "flex"))  # methods that part the two
_NONE = re.compile("0(?:ml|cc)?")
_SHORT = 3  # letters of a word that may abbreviate anything
_VOWELS = frozenset("aeiouy")
_PERHAPS_AGENTS = ("ml", "cc", "mmol", "pi")  # behind or before a number
_LONG_AGENTS = [word for word in (*AGENTS["agent"], *AGENTS["with"]) if len(word) > 5]
_ALIKE = 0.75  # difflib's ratio, from which two words may be one with a slip


def read_words(text: str) -> Reading:
    """Return the sequence that the words of a text describe; a text without end says nothing."""
    if len(text) > LONGEST_TEXT:
        return Reading("", f"it has {len(text)} characters")
    phrases = _understand(text)
    kinds = {each.meaning for each in phrases if each.meaning in KINDS}
    if aside := _aside(phrases, kinds):
        return Reading("", f"{_quoted(phrases, {aside})} says {aside}", aside)
    names = _quoted(phrases, kinds)
    words = {word for each in phrases for word in each.words.split()}
    modality, doubt = _contrast(kinds, words, {each.meaning for each in phrases})
    if modality != "t1":
        return Reading(modality, names if modality else f"{names}: {doubt}" if names else doubt)
    agent, agent_words = _agent(phrases, kinds)
    if agent == "unclear":
        return Reading("", f"{names} is a T1, but {agent_words}")
    if not agent and (unknown := _may_name_agent(phrases)):
        quoted = ", ".join(map(repr, unknown))
        return Reading(
            "", f"{names} is a T1, but {quoted} may tell of a contrast agent", "", unknown
        )
    if agent == "with":
        return Reading(
            "t1c", f"{names}, {agent_words} says with contrast agent" if agent_words else names
        )
    return Reading(
        "t1", f"{names}, {agent_words} says without contrast agent" if agent_words else names
    )


def agent_in(text: str) -> str:
    """Return what a text of sequence words alone, such as a folder's name, says of an agent.

    Returns:
        ``"with"``, ``"without"``, ``"unclear"``, or ``""`` where it says nothing or is about more.
    """
    phrases = [each for each in _understand(text) if each.words not in METHODS]
    if [each.words for each in phrases] == [each.words for each in phrases if each.words in AFTER]:
        return "unclear" * bool(phrases)  # the agent, or surgery
    speaking = (
        "agent", "with", "without", "both", "post", "pre", "t1 with agent", "t1 native",
    )  # fmt: skip
    if not all(each.meaning for each in phrases) or not any(
        each.meaning in speaking and (len(each.words) > 2 or each.words in ("gd", "km"))
        for each in phrases
    ):
        return ""  # a folder "c" or "NC" has another reason
    if {each.words for each in phrases} == {"post"}:  # the agent, or surgery
        return "unclear"
    return _agent(phrases, {each.meaning for each in phrases})[0]


def agent_in_name(text: str) -> str:
    """Return what the words of a T1's name say of an agent, as ``agent_in`` does."""
    phrases = _understand(text)
    return _agent(phrases, {each.meaning for each in phrases})[0]


def without_accents(text: str) -> str:
    """Return a text in lower case and without accents, as all words are compared."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in apart if not unicodedata.combining(letter))


def names_both_echoes(text: str) -> bool:
    """Say whether a text names proton density and T2, the two echoes of one sequence."""
    return {each.meaning for each in _understand(text)} & set(KINDS) == {"pd", "t2"}


@cache
def is_sequence_word(word: str) -> bool:
    """Say whether a word of a file's name is about the sequence, not the patient."""
    if word.isdecimal() and len(word) < 3:  # T1_1 is not only "inv 1": it may be of patient 1
        return False
    return all(each.meaning or each.words in _PARTS for each in _understand(word))


def begins_kind(words: Sequence[str]) -> bool:
    """Say whether words begin with a phrase of several words, as ``dark fluid`` is one."""
    lower = [word.casefold() for word in words[:_LONGEST]]
    return any(
        _TABLE.get(tuple(lower[:length]), "") in (*KINDS, *ASIDES)
        for length in range(2, len(lower) + 1)
    )


@cache
def meaning_of(word: str) -> str:
    """Return the meaning of one word, a key of ``MEANINGS``; empty if it is unknown.

    A word of glued pieces has the meaning of its first piece about a contrast.
    """
    phrases = _understand(word)
    if not phrases or not all(each.meaning for each in phrases):
        return ""
    return next((each.meaning for each in phrases if each.meaning in KINDS), phrases[0].meaning)


def _understand(text: str) -> list[_Phrase]:
    """Return the words of a text in order, with the meaning of the longest phrases."""
    text = without_accents(text)
    for pattern, written in _REWRITTEN:
        text = pattern.sub(written, text)
    words = [piece for word in _WORD.findall(text) for piece in _pieces(word)]
    phrases, start = [], 0
    while start < len(words):
        for length in range(min(_LONGEST, len(words) - start), 0, -1):
            phrase = tuple(words[start : start + length])
            if length == 1 or phrase in _TABLE:
                phrases.append(
                    _Phrase(" ".join(phrase), _TABLE.get(phrase, "") or _stem(phrase[0]))
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
    if len(word) > _SHORT and word.endswith(("map", "maps")):
        return "map"
    return "both" if any(stem in word for stem in AGENT_STEMS) else ""


@cache
def _pieces(word: str) -> tuple[str, ...]:
    """Return the pieces of a glued word, such as ``axt2flair``; else the word itself."""
    if (word,) in _TABLE or len(word) > _LONGEST_GLUED:
        return (word,)

    def split(rest: str, first: bool) -> tuple[str, ...] | None:
        if not rest:
            return ()
        for stop in range(len(rest), 1, -1):
            piece = rest[:stop]
            short = len(piece) < _LEAST_FIRST
            if piece not in _PIECES or (first and short and _TABLE[piece,] == "technique"):
                continue
            if (others := split(rest[stop:], False)) is not None:
                return (piece, *others)
        return None

    pieces = split(word, True) or (word,)
    return pieces if any(_TABLE.get((piece,)) in KINDS for piece in pieces) else (word,)


def _aside(phrases: Sequence[_Phrase], kinds: Set[str]) -> str:
    """Return the kind of an image that is no modality of ours; empty where no word says so."""
    words = {word for each in phrases for word in each.words.split()}
    meanings = {each.meaning for each in phrases}
    if words & _FAT_SUPPRESSED_T1 and [each.words for each in phrases][-1:] == ["f"]:
        return "fat image"  # of a Dixon, as its end says
    if words & _FAT_AND_WATER and (words & {"f", "out"} or _fat_alone(phrases)):
        return "fat image"
    if "b0" in words and kinds and kinds <= {"dwi", "t2"}:
        return "diffusion without weighting"
    for aside in ASIDES:
        if aside not in meanings:
            continue
        if aside == "phase" and kinds & {*_T1, "t2", "flair"} and _is_of_time(phrases):
            continue
        if aside == "another imaging method" and kinds:
            continue
        if (
            aside == "diffusion map"
            and _quoted(phrases, {aside}) == "'fa'"
            and kinds & {*_T1, "t2"}
        ):
            continue  # a flip angle
        if aside == "diffusion tensor series" and (words & {"trace", "tracew"} or "adc" in kinds):
            continue
        return aside
    return ""


def _is_of_time(phrases: Sequence[_Phrase]) -> bool:
    """Say whether "phase" beside a T1 is not its phase image: "venous phase", "in phase"."""
    at = [number for number, each in enumerate(phrases) if each.meaning == "phase"]
    spoken = all(phrases[number].words in ("phase", "phasen") for number in at)
    return spoken and all(number and phrases[number - 1].meaning not in KINDS for number in at)


def _fat_alone(phrases: Sequence[_Phrase]) -> bool:
    """Say whether the image shows fat, and does not suppress it."""
    words = [word for each in phrases for word in each.words.split()]
    after = dict(zip(words, [*words[1:], ""], strict=True))
    return "fat" in words and after["fat"] not in ("sat", "sup", "suppressed", "suppression")


def _contrast(kinds: Set[str], words: Set[str], meanings: Set[str]) -> tuple[str, str]:
    """Return the modality of several kinds, any T1 as ``t1``; or the reason why there is none."""
    t1, others = kinds & _T1, kinds - _T1
    modality = ""
    if not kinds:
        return "", "no word of it names a sequence that we know"
    if "ct1" in words:
        return "", "a T1 with contrast agent, or a computed tomography"
    if others & {"t2", "pd"} and "two echoes" in meanings:
        return "", "two echoes, of which it does not say which"
    if words & {"epi", "ep2d"} and (t1 or "t2" in others) and not others - {"t2", "t2star"}:
        return "", "is an echo planar image"
    if "dir" in words and others & {"t2", "flair"}:
        return "", "double inversion, or a direction"
    if "real" in words and t1:
        return "", "the real part, or an inversion that keeps its sign"
    if not t1 and "adc" in others and others <= {"adc", "dwi", "t2"}:
        modality = "adc"
    elif not t1 and "swi" in others and others <= {"swi", "t2", "t2star"}:
        modality = "swi"
    elif not others or (others == {"flair"} and t1 - {"t1 by technique"}):
        modality = "t1"  # an inversion that darkens fluid in a T1 makes no FLAIR of it
    elif t1:
        pass
    elif "flair" in others and others <= {"flair", "t2"}:
        modality = "flair"
    elif "t2star" in others and others <= {"t2star", "t2"}:
        modality = "t2star"
    elif "dwi" in others and others <= {"dwi", "t2"}:
        modality = "dwi"
    elif others == {"t2"} and words & GRADIENT_ECHOES:
        modality = "t2star"
    elif others == {"t2"} and words & _INVERSIONS:
        return "", "dark fluid or dark fat, which it does not say"
    elif len(others) == 1:
        (modality,) = others
    return modality, "" if modality else "these are different sequences"


def _agent(phrases: Sequence[_Phrase], kinds: Set[str]) -> tuple[str, str]:
    """Return whether the words say with or without a contrast agent, and these words.

    Returns:
        ``"with"``, ``"without"``, ``"unclear"``, or ``""`` without a word about it; and the
        words, or the reason why they are unclear.
    """
    heard: dict[str, list[str]] = {"with": [], "without": [], "unclear": []}
    if "t1 with agent" in kinds:
        heard["with"].append("")
    if "t1 native" in kinds:
        heard["without"].append("")
    if {"t1", "t1 with agent"} <= kinds:
        heard["unclear"].append(_quoted(phrases, {"t1", "t1 with agent"}))  # "T1c-T1"
    for at, each in enumerate(phrases):
        before, after = _beside(phrases, at, -1), _beside(phrases, at, 1)
        verdict = _verdict(each, before, after)
        if each.meaning in ("post", "pre") and _is_event(_behind(phrases, at), each.meaning):
            verdict = "unclear"  # post resection
        if each.words == "w" and before != "t1" and _FAT_AND_WATER & {one.words for one in phrases}:
            verdict = ""  # the water image
        if each.words == "pos" and after != "agent":
            verdict = "unclear"  # "after" in Spanish, or a position
        if verdict == "with" and each.meaning == "agent" and _is_among_unknown(phrases, at):
            verdict = "unclear"  # contrast optimised
        if verdict:
            heard[verdict].append(f"'{each.words}'")
    if not any(heard.values()):
        heard["unclear"] = [f"'{each.words}'" for each in phrases if each.meaning == "late"]
    verdicts = [name for name, words in heard.items() if words]
    if not verdicts:
        return "", ""
    quoted = ", ".join(word for name in verdicts for word in heard[name] if word)
    if len(verdicts) == 1 and verdicts[0] != "unclear":
        return verdicts[0], quoted
    return "unclear", f"{quoted} does not say whether with or without contrast agent"


def _beside(phrases: Sequence[_Phrase], at: int, step: int) -> str:
    """Return the meaning of the next word that has one; ``"end"`` where there is none.

    Parts of the body are passed over, and before an agent other words for it: "sans injection de
    gadolinium" denies both.
    """
    passed = {"filler", "and"}
    if step < 0 and phrases[at].meaning == "agent":
        passed.add("agent")
    at += step
    while 0 <= at < len(phrases) and (phrases[at].meaning in passed or _is_part(phrases[at])):
        at += step
    if not 0 <= at < len(phrases) or phrases[at].meaning == "break":
        return "end"
    return phrases[at].meaning or "unknown"


def _is_part(each: _Phrase) -> bool:
    """Say whether a phrase names a part of the body: "brain", "c spine"."""
    return not _OF_BODY.isdisjoint(each.words.split())


def _behind(phrases: Sequence[_Phrase], at: int) -> list[_Phrase]:
    """Return the phrase behind one of a text, or none; parts of the body are passed over."""
    return [each for each in phrases[at + 1 :] if not _is_part(each)][:1]


def _is_event(following: Sequence[_Phrase], when: str) -> bool:
    """Say whether a word behind "post" or "pre" may be about something else than an agent."""
    events = TREATMENTS | PLANNING if when == "pre" else TREATMENTS
    return any(_is_unknown(each) or each.words in events for each in following)


def _is_unknown(each: _Phrase) -> bool:
    return not each.meaning and not _is_harmless(each.words) and _is_spoken(each.words)


def _is_harmless(word: str) -> bool:
    """Say whether a word that names no sequence says nothing of a contrast agent either."""
    return word in HARMLESS or word in PROCESSING


def _is_spoken(word: str) -> bool:
    """Say whether a word is one of letters alone, also of letters that were lost."""
    return word.isalpha() or not word[0].isalnum()


def _may_name_agent(phrases: Sequence[_Phrase]) -> tuple[str, ...]:
    """Return the words of a T1's text that we do not know and that may tell of a contrast agent."""
    unknown = dict.fromkeys(each.words for each in phrases if not each.meaning)
    return tuple(word for word in unknown if _may_abbreviate(word) or looks_like_agent(word))


def _may_abbreviate(word: str) -> bool:
    """Say whether a word that we do not know is short enough to abbreviate anything."""
    is_short = len(word) <= _SHORT or not set(word) & _VOWELS
    return is_short and _is_spoken(word) and not _is_harmless(word)


@cache
def looks_like_agent(word: str) -> bool:
    """Say whether a word that we do not know looks like one for a contrast agent, in any language.

    So do "km2", "10ml", "p.i." (after injection), "contrst" and "Anreicherung", but not "c5".
    """
    letters = word.strip("0123456789")
    if word != letters:
        known = _TABLE.get((letters,), "") in AGENTS and len(letters) > 1
        return known or letters in _PERHAPS_AGENTS
    if _is_harmless(word) or not word.isalpha():
        return False
    return (
        word in _PERHAPS_AGENTS
        or any(part in word for part in AGENT_LETTERS)
        or word.startswith(AGENT_ENDS)
        or word.endswith(AGENT_ENDS)
        or bool(get_close_matches(word, _LONG_AGENTS, 1, _ALIKE))
    )


def _is_among_unknown(phrases: Sequence[_Phrase], at: int) -> bool:
    """Say whether an unknown word may say what a word for an agent does not: that none was given.

    A sign or a preposition before it tells enough, unless the unknown word comes between. Parts of
    the body are passed over.
    """
    spoken = [
        each for each in phrases[:at]
        if each.meaning != "filler" and not _is_harmless(each.words) and not _is_part(each)
    ]  # fmt: skip
    before = spoken[-1:]
    after = _behind(phrases, at)
    if any(_is_unknown(each) or _NONE.fullmatch(each.words) for each in before):
        return True
    if any(each.meaning in ("plus", "beside", "post") for each in before):
        return False
    value = [each.words for each in phrases[at + 1 :] if each.meaning != "break"][:1]
    return any(map(_is_unknown, after)) or value in (["0"], ["n"])  # "KM: 0"


def _verdict(each: _Phrase, before: str, after: str) -> str:
    """Return what one word says of a contrast agent, given the meanings of its neighbours."""
    signs = {before} & {"plus", "minus", "dash", *_NEGATIONS, "beside", "post", "pre"}
    signs |= {after} & {"plus", "minus", "dash"}
    is_with = bool(signs & {"plus", "beside", "post"})
    is_without = bool(signs & {"minus", "pre", *_NEGATIONS})
    verdict = each.meaning if each.meaning in ("with", "without") else ""
    pair = {each.meaning, before}  # "mit und ohne KM"
    both = "beside" in pair and not pair.isdisjoint(_NEGATIONS)
    if each.meaning == "both" or both or (verdict and before in _NEGATIONS):
        verdict = "unclear"
    elif each.meaning in ("agent", "letter"):
        if (is_with and is_without) or "dash" in signs or after in ("not", "perhaps not"):
            verdict = "unclear"  # contrast not given
        elif is_with or is_without:
            verdict = "with" if is_with else "without"
        elif each.meaning == "agent":
            verdict = "with"
        else:  # its sign is lost
            verdict = "unclear"
    elif each.meaning in ("post", "pre"):
        verdict = (
            "unclear" if before in _NEGATIONS else "with" if each.meaning == "post" else "without"
        )
    elif each.meaning == "not" and after in ("end", "orientation"):
        verdict = "without"
    elif each.words == "w" and after in ("end", "orientation", "technique"):
        verdict = "unclear"  # weighted, or with
    elif (each.meaning == "not" and after == "unknown") or (
        after == "end" and _needs_more(each, before)
    ):
        verdict = "unclear"
    return verdict


def _needs_more(last: _Phrase, before: str) -> bool:
    """Say whether a text that ends in this word lost its object, as "T1 with" did."""
    if last.meaning in ("plus", "minus", "dash"):
        return before not in ("agent", "letter", "with")
    small = len(last.words) == 1
    return last.meaning in ("perhaps not", "before", "beside") and not small


def _quoted(phrases: Sequence[_Phrase], meanings: Set[str]) -> str:
    words = dict.fromkeys(f"'{each.words}'" for each in phrases if each.meaning in meanings)
    return ", ".join(words)
