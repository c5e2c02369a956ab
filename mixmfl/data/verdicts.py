"""What names and descriptions say of an image's worth: not to be used, bad, or not as scanned."""

import re

from mixmfl.data.sequence_phrases import without_accents

# all as words without accents
_NOT_TO_USE = (
    r"do not use|don ?t use|donotuse|not to be used|not used?|notused|unused|unusable|"
    r"nicht (?:verwenden|verwendet|benutzen|benutzt|nutzen)|unbrauchbar|ausgeschlossen|"
    r"ne pas utiliser|inutilisable|a exclure|non (?:usare|utilizzare)|inutilizzabile|"
    r"no (?:usar|utilizar)|nao usar|inutilizable|niet gebruiken|onbruikbaar|uitgesloten|"
    r"nie uzywac|kullanmayin|excluded?|excluid[oa]s?|esclus[oaie]|rejected|discarded|"
    r"qc fail(?:ed)?|fail(?:ed)? qc"
)
# as a whole name; "Ausschluss MS" is what a patient was examined for
_ALONE = {
    "quarantine", "failed", "ausschluss", "exclu", "exclus", "exclue", "exclues",
}  # fmt: skip
FAULT = (
    r"(?:bad|noise|noisy|poor|schlecht|motion|verwackelt|bewegt|blurr(?:ed|y)|unscharf|mosso|movido|"
    r"art[ei]fa[ck]t[es]?|fail(?:ed)?|fehler(?:haft)?|defe[ck]t|corrupt(?:ed)?|broken|kaputt|wrong|"
    r"falsch|incomplete|unvollstandig|aborted|abgebrochen|unfinished|unfertig|draft|entwurf|todo$|"
    r"preliminary|vorlaufig|provisional|provisoire|"
    r"(?:not for|non|nicht|no) ?diagnosti[a-z]*|not for diagnosis|nicht zur (?:befundung|diagnose)"
    r")(?! (?:corr|[ck]omp|free|frei|kor|redu|resist|robust|insens|suppr))"  # motion corrected
)
"""A pattern of words that call an image bad."""

STATISTIC = r"means?|avg|averaged?|median|mittelwert|moyenne"
"""A pattern of words for what is calculated of several images."""

_RESHAPED = r"dilated?|dilatiert|eroded?|erodiert|expanded|bbox|bounding ?box|convex ?hull"
_SOME = r"(?:new|enlarging|neue) (?:lesions?|lasion(?:en)?)"
CHANGED = r"harmoni[sz](?:ed|iert)|combat|haca3"
"""A pattern of words for an image whose contrast was made like that of other scanners."""

_NO_PATIENT = r"phantom[es]?|fantom[ea]?|fantoccio|dummy|qa|test ?(?:scan|patient|person|obje[ck]t)"
_PAINTED = r"(?:lesions?)?filled|(?:healthy)?inpainted|voided|(?:without|no|ohne|sans) lesions?"


def _words(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![^ ])(?:{pattern})(?![^ ])")


_SORTED_OUT = _words(_NOT_TO_USE)
_REMARKS = (
    (_words(FAULT), "see that it is good enough"),
    (_words(STATISTIC), "see that it is no map, and shows lesions as other images do"),
    (_words(CHANGED), "its contrast is not as scanned; see that the model was made for that"),
    (_words(_RESHAPED), "its border is not as drawn; see that it marks what others do"),
    (_words(_SOME), "see that it marks all lesions, and not only some"),
    (_words(_PAINTED), "lesions may be painted over in it; see that it shows them"),
    (_words(_NO_PATIENT), "see that it is of a patient"),
)
_PHANTOM = _REMARKS[-1][0]


def not_to_use(text: str) -> str:
    """Return the words of a name or description that say not to use what it is of, or nothing."""
    plain = _plain(text)
    match = _SORTED_OUT.search(plain)
    return match[0] if match else plain if plain in _ALONE else ""


def remark_on(text: str) -> str:
    """Return what a name or description says against an image that is used, or nothing."""
    plain = _plain(text)
    matches = ((pattern.search(plain), see) for pattern, see in _REMARKS)
    return next((f"is called {match[0]!r}; {see}" for match, see in matches if match), "")


def doubts_of_patient(names: str) -> list[str]:
    """Return a warning where the names of a case, or of its patient, are those of a phantom."""
    match = _PHANTOM.search(_plain(names))
    return [f"its patient is called {match[0]!r}; see that it is one"] if match else []


def _plain(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", without_accents(text)))
