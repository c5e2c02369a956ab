"""Whether the words of a text say that a contrast agent was given.

Where the sign of an agent is lost, or a word beside it is unknown, it stays unclear: a T1 with a
contrast agent and one without are never taken for each other.
"""

import re
from collections.abc import Sequence, Set
from difflib import get_close_matches
from functools import cache

from mixmfl.data.sequence_phrases import (
    PHRASES,
    SHORT,
    SHORT_NAME,
    Phrase,
    phrases_of,
    quoted_words,
)
from mixmfl.data.sequence_vocabulary import (
    AFTER,
    AGENT_ENDS,
    AGENT_LETTERS,
    AGENTS,
    FAT_AND_WATER,
    HARMLESS,
    METHODS,
    PARTS_OF_BODY,
    PLANNING,
    PROCESSING,
    PULSES,
    TREATMENTS,
)

_NEGATIONS = ("not", "perhaps not", "before")
_OF_BODY = frozenset(word for words in PARTS_OF_BODY.values() for word in words.split())
_NONE = re.compile("0(?:ml|cc)?")
_VOWELS = frozenset("aeiouy")
_PERHAPS_AGENTS = ("ml", "cc", "mmol", "pi")  # behind or before a number
_LONG_AGENTS = [word for word in (*AGENTS["agent"], *AGENTS["with"]) if len(word) > 5]
_ALIKE = 0.75  # difflib's ratio, from which two words may be one with a slip


def agent_in(text: str) -> str:
    """Return what a text of sequence words alone, such as a folder's name, says of an agent.

    Returns:
        ``"with"``, ``"without"``, ``"unclear"``, or ``""`` where it says nothing or is about more.
    """
    phrases = [each for each in phrases_of(text) if each.words not in METHODS]
    if all(each.words in AFTER or each.meaning == "beside" for each in phrases):
        # the agent, or surgery; "n" and "po" are patients' initials
        return "unclear" * any(len(each.words) > 2 for each in phrases)
    if all(each.meaning == "not" and len(each.words) > 3 for each in phrases):
        return "without"  # beside a folder "mit"
    speaking = (
        "agent", "with", "without", "both", "post", "pre", "t1 with agent", "t1 native",
    )  # fmt: skip
    meanings = {each.meaning for each in phrases}
    has_sign = "letter" in meanings and not meanings.isdisjoint(("plus", "minus", "dash"))
    if "" in meanings or not (
        has_sign
        or any(
            each.meaning in speaking and (len(each.words) > 2 or each.words in ("gd", "km"))
            for each in phrases
        )
    ):
        return ""  # a folder "c" or "NC" has another reason
    # the agent or surgery; the agent, or an image that a program made better
    if {each.words for each in phrases} in ({"post"}, {"enhanced"}, {"enhancement"}):
        return "unclear"
    return agent_of(phrases, meanings)[0]


def may_be_with_agent(text: str) -> bool:
    """Say whether a text about more, such as the name of an examination, tells of an agent given.

    So "MRI brain with contrast" does, where a T1 may be of before, "p1_postcontrast", and
    "T1c_dataset", but not what may be of a patient's name: "P01_KM", "Gad_Ben", "CTE_001".
    """
    phrases = phrases_of(text)
    meanings = {each.meaning for each in phrases}
    speaking = ("agent", "with", "both", "t1 with agent")
    named = {at for at, each in enumerate(phrases) if each.meaning in speaking}
    is_clear = any(not _may_be_of_patient(phrases, at) for at in named)
    is_spoken = is_clear or not meanings.isdisjoint(("beside", "plus"))
    return bool(named) and is_spoken and agent_of(phrases, meanings)[0] in ("with", "unclear")


def _may_be_of_patient(phrases: Sequence[Phrase], at: int) -> bool:
    """Say whether an agent's word is as short as initials, or begins a name or ID: "Gad_Ben"."""
    each, following = phrases[at], phrases[at + 1 : at + 2]
    begins = at == 0 and bool(following) and not following[0].meaning
    longest = SHORT_NAME if begins else 2
    return each.meaning == "agent" and len(each.words) <= longest


def names_examination_of(text: str) -> bool:
    """Say whether a text names a method or a part of the body, as those of examinations do."""
    return any(each.words in METHODS or _is_part(each) for each in phrases_of(text))


def agent_in_name(text: str) -> str:
    """Return what the words of a T1's name say of an agent, as ``agent_in`` does."""
    phrases = phrases_of(text)
    return agent_of(phrases, {each.meaning for each in phrases})[0]


def agent_of(phrases: Sequence[Phrase], kinds: Set[str]) -> tuple[str, str]:
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
        heard["unclear"].append(quoted_words(phrases, {"t1", "t1 with agent"}))  # "T1c-T1"
    for at, each in enumerate(phrases):
        before, after = _beside(phrases, at, -1), _beside(phrases, at, 1)
        verdict = _verdict(each, before, after)
        if each.meaning in ("post", "pre") and _is_event(_behind(phrases, at), each.meaning):
            verdict = "unclear"  # post resection
        if each.words == "w" and before != "t1" and FAT_AND_WATER & {one.words for one in phrases}:
            verdict = ""  # the water image
        if each.words == "w" and before == "t1" and _is_of_pulses(phrases[at + 1 :]):
            verdict = ""  # T1_W_TSE
        if each.words == "pos" and after != "agent":
            verdict = "unclear"  # "after" in Spanish, or a position
        if verdict == "with" and each.meaning == "agent" and _is_among_unknown(phrases, at):
            verdict = "unclear"  # contrast optimised
        if verdict == "with" and before == "orientation" and _is_denied_before(phrases, at):
            verdict = "unclear"  # no sag contrast
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


def _beside(phrases: Sequence[Phrase], at: int, step: int) -> str:
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


def _is_denied_before(phrases: Sequence[Phrase], at: int) -> bool:
    """Say whether a negation is before the words for a plane that precede one for an agent."""
    others = (each.meaning for each in reversed(phrases[:at]) if each.meaning != "orientation")
    return next(others, "") in _NEGATIONS


def _is_of_pulses(behind: Sequence[Phrase]) -> bool:
    """Say whether the next words name a sequence of pulses, as ``3D TSE`` do."""
    others = (each.words for each in behind if each.words not in ("2d", "3d"))
    return next(others, "") in PULSES


def _is_part(each: Phrase) -> bool:
    """Say whether a phrase names a part of the body: "brain", "c spine"."""
    return not _OF_BODY.isdisjoint(each.words.split())


def _behind(phrases: Sequence[Phrase], at: int) -> list[Phrase]:
    """Return the phrase behind one of a text, or none; parts of the body are passed over."""
    return [each for each in phrases[at + 1 :] if not _is_part(each)][:1]


def _is_event(following: Sequence[Phrase], when: str) -> bool:
    """Say whether a word behind "post" or "pre" may be about something else than an agent."""
    events = TREATMENTS | PLANNING if when == "pre" else TREATMENTS
    return any(_is_unknown(each) or each.words in events for each in following)


def _is_unknown(each: Phrase) -> bool:
    return not each.meaning and not _is_harmless(each.words) and _is_spoken(each.words)


def _is_harmless(word: str) -> bool:
    """Say whether a word that names no sequence says nothing of a contrast agent either."""
    return word in HARMLESS or word in PROCESSING


def _is_spoken(word: str) -> bool:
    """Say whether a word is one of letters alone, also of letters that were lost."""
    return word.isalpha() or not word[0].isalnum()


def may_name_agent(phrases: Sequence[Phrase]) -> tuple[str, ...]:
    """Return the words of a T1's text that we do not know and that may tell of a contrast agent."""
    unknown = dict.fromkeys(each.words for each in phrases if not each.meaning)
    return tuple(word for word in unknown if _may_abbreviate(word) or looks_like_agent(word))


def _may_abbreviate(word: str) -> bool:
    """Say whether a word that we do not know is short enough to abbreviate anything."""
    is_short = len(word) <= SHORT or not set(word) & _VOWELS
    return is_short and _is_spoken(word) and not _is_harmless(word)


@cache
def looks_like_agent(word: str) -> bool:
    """Say whether a word that we do not know looks like one for a contrast agent, in any language.

    So do "km2", "10ml", "p.i." (after injection), "contrst" and "Anreicherung", but not "c5".
    """
    letters = word.strip("0123456789")
    if word != letters:
        known = PHRASES.get((letters,), "") in AGENTS and len(letters) > 1
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


def _is_among_unknown(phrases: Sequence[Phrase], at: int) -> bool:
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
    return any(map(_is_unknown, after)) or _has_value_none(phrases[at + 1 :])


def _has_value_none(behind: Sequence[Phrase]) -> bool:
    """Say whether a value that denies it follows an agent: "KM: 0", but not "KM, kein FS"."""
    spoken = [each for each in behind if each.meaning != "break"][:2]
    value, following = [*spoken, Phrase("", ""), Phrase("", "")][:2]
    denies = value.words in ("0", "n") or value.meaning in ("perhaps not", "minus")
    return denies and following.meaning != "technique"


def _verdict(each: Phrase, before: str, after: str) -> str:
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


def _needs_more(last: Phrase, before: str) -> bool:
    """Say whether a text that ends in this word lost its object, as "T1 with" did."""
    if last.meaning in ("plus", "minus", "dash"):
        return before not in ("agent", "letter", "with")
    small = len(last.words) == 1
    return last.meaning in ("perhaps not", "before", "beside") and not small
