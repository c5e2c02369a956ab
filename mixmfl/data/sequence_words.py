"""Reading of an MR sequence from the words of a description or of a file's name.

``read_words`` is the one reader for the names of files and folders and for DICOM descriptions.
Words count as a whole, in English, German, French, Spanish, Dutch and Italian. Where they
contradict each other, or where the sign of a contrast agent is lost, the modality stays undecided:
a T1 with a contrast agent and one without are never taken for each other.
"""

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

from mixmfl.data.contrast_agent import agent_of, may_name_agent
from mixmfl.data.sequence_phrases import Phrase, phrases_of, quoted_words
from mixmfl.data.sequence_vocabulary import ASIDES, FAT_AND_WATER, GRADIENT_ECHOES, KINDS


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


_T1 = {"t1", "t1 native", "t1 with agent", "t1 by technique"}
LONGEST_TEXT = 1000
"""Characters of a text that is read; DICOM's descriptions have 64."""

_WATER = re.compile(r"(?i)(?<![a-z])(?:water|w)[ _]*$|^water[ _:]")
_IN_PHASE = re.compile(r"(?i)(?<![a-z])(?:in[ _-]?phase|ip|in)[ _]*$|^in[ _-]?phase[ _:]")
_INVERSIONS = frozenset(("tirm", "ir", "tir", "inversion", "dark", "fluid"))
_FAT_SUPPRESSED_T1 = frozenset(("vibe", "starvibe", "lava", "thrive", "ethrive"))


def read_words(text: str) -> Reading:
    """Return the sequence that the words of a text describe; a text without end says nothing."""
    if len(text) > LONGEST_TEXT:
        return Reading("", f"it has {len(text)} characters")
    phrases = phrases_of(text)
    kinds = {each.meaning for each in phrases if each.meaning in KINDS}
    if aside := _aside(phrases, kinds):
        return Reading("", f"{quoted_words(phrases, {aside})} says {aside}", aside)
    names = quoted_words(phrases, kinds)
    words = {word for each in phrases for word in each.words.split()}
    modality, doubt = _contrast(kinds, words, {each.meaning for each in phrases})
    if modality == "t2" and (foreign := _in_another_script(phrases)):
        return Reading("", f"{names} is a T2, but {foreign} may tell of another sequence")
    if modality != "t1":
        return Reading(modality, names if modality else f"{names}: {doubt}" if names else doubt)
    if _last_word(phrases) == "f":  # of a Dixon, or a woman
        return Reading("", f"{names} is a T1, but 'f' may say that it shows fat", "", ("f",))
    agent, agent_words = agent_of(phrases, kinds)
    if agent == "unclear":
        return Reading("", f"{names} is a T1, but {agent_words}")
    if not agent and (unknown := may_name_agent(phrases)):
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


def shows_water(text: str) -> bool:
    """Say whether the beginning or end of a description says the water image of a Dixon."""
    return bool(_WATER.search(text))


def is_in_phase(text: str) -> bool:
    """Say whether the beginning or end of a description says the in-phase image of a Dixon."""
    return bool(_IN_PHASE.search(text))


def _aside(phrases: Sequence[Phrase], kinds: Set[str]) -> str:
    """Return the kind of an image that is no modality of ours; empty where no word says so."""
    words = {word for each in phrases for word in each.words.split()}
    meanings = {each.meaning for each in phrases}
    if words & _FAT_SUPPRESSED_T1 and _last_word(phrases) == "f":
        return "fat image"  # of a Dixon, as its end says
    if phrases and phrases[0].words == "fat" and kinds and _fat_alone(phrases):
        return "fat image"  # as GE writes it: FAT: Ax LAVA
    if words & FAT_AND_WATER and (words & {"f", "out"} or _fat_alone(phrases)):
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
            and quoted_words(phrases, {aside}) == "'fa'"
            and kinds & {*_T1, "t2"}
        ):
            continue  # a flip angle
        if aside == "diffusion tensor series" and (words & {"trace", "tracew"} or "adc" in kinds):
            continue
        return aside
    return ""


def _in_another_script(phrases: Sequence[Phrase]) -> str:
    """Return the words in letters that are not Latin ones, for a message: they may say FLAIR."""
    foreign = (each.words for each in phrases if not (each.meaning or each.words.isascii()))
    return ", ".join(map(repr, foreign))


def _last_word(phrases: Sequence[Phrase]) -> str:
    """Return the last word of a text that is not a number, as of a series."""
    return next((each.words for each in reversed(phrases) if not each.words.isdecimal()), "")


def _is_of_time(phrases: Sequence[Phrase]) -> bool:
    """Say whether "phase" beside a T1 is not its phase image: "venous phase", "in phase"."""
    at = [number for number, each in enumerate(phrases) if each.meaning == "phase"]
    spoken = all(phrases[number].words in ("phase", "phasen") for number in at)
    return spoken and all(number and phrases[number - 1].meaning not in KINDS for number in at)


def _fat_alone(phrases: Sequence[Phrase]) -> bool:
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
