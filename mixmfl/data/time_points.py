"""The words and days by which names tell the examinations of a patient apart.

The one vocabulary of time points: for the grouping of files into cases, and for the patient of a
case.
"""

import re
from collections import Counter
from collections.abc import Sequence

from mixmfl.data.sequence_phrases import without_accents

SIDE = "left|right|links|rechts|gauche|droite|destra|sinistra"
"""A pattern of the words for a side, of which a patient has two."""

_DAY_OF_MONTH = r"(?:0?[1-9]|[12]\d|3[01])"
# without accents, in the languages of ``sequence_vocabulary`` and Portuguese
_MONTHS = (
    "jan(?:uar[iy]?|ner|vier|eiro)?|ene(?:ro)?|genn(?:aio)?|feb(?:ruar[iy]?|rero|braio)?|"
    "fev(?:rier|ereiro)?|mar(?:ch|s|zo|co|z)?|ma?e?rz|maart|a[pv]r(?:il[e]?)?|abr(?:il)?|ma[iy]o?|"
    "magg(?:io)?|mei|jun[ei]?|junio|junho|juin|giu(?:gno)?|jul[iy]?|julio|julho|juil(?:let)?|"
    "lug(?:lio)?|aug(?:ust(?:us)?)?|aout|ago(?:sto)?|sep(?:t(?:emb(?:er|re))?|tiembre)?|"
    "sett?(?:embre|embro)|o[ck]t(?:ob(?:er|re))?|octubre|ott(?:obre)?|outubro|"
    "nov(?:emb(?:er|re|ro)|iembre)?|de[cz](?:emb(?:er|re|ro))?|dic(?:iembre|embre)?"
)
_EVENTS = (
    r"op|opera[a-z]*|surgery|surgical|chir[a-z]*|cirug[a-z]*|cirurg[a-z]*|interven[a-z]*|"
    r"therap[a-z]*|terap[a-z]*|treatment|traitement|trattament[a-z]*|tratamient[a-z]*|"
    r"tratament[a-z]*|behandel[a-z]*|behandlung|rt|radiot[a-z]*|bestrahlung|chemo[a-z]*|"
    r"chimio[a-z]*|quimio[a-z]*|rese[ck][a-z]*"
)
_STATE = (
    r"(?:(?:pr[aä]e?|pr[eé]|post|intra|mid|vor|nach|before|after|avant|apr[eè]s|prima|dopo|antes|"
    r"despues|depois)[ _-]?|(?:voor|na|przed|po)[ _-])"
    rf"(?:(?:the|de|la|le|el|der|dem|della)[ _-])?(?:{_EVENTS})"
    r"|intraop|baseline|follow[ _-]?up"
)
_ORDINAL = "first|second|third|1st|2nd|3rd|erste|zweite|dritte"
# an examination in the course of a disease, by itself or before its number
_COURSE = r"verlauf|[ck]ontroll?e?|suivi"
# words before a number, which with it tell nothing but examinations
_POINT = r"tp|session|time|timepoint|day|week|wk|month|year|fu|follow[ _-]?up"
# words before a number, which with it tell examinations, and other things, too
_COUNTER = (
    r"visite?|monat|mois|woche|semaine|jahr|exam|mrt|mri|mr|tag|jour|study|studie|cycle|zyklus|age|"
    r"quarter|quartal"
)
# words that tell nothing but examinations
_NAMED = rf"(?:{_POINT}|ses|visit)[ _.-]?\d+d?|baseline|follow[ _-]?up|preop|postop"
# words that count examinations, and other things, too
_COUNTED = (
    rf"(?:{_COUNTER}|{_COURSE}|controllo|untersuchung|examen|esame)[ _-]?\d{{1,2}}|"
    r"[vmdw]\d{1,2}|q[1-4]"
)
_UNITS = (
    r"meses|mes|mesi|mese|mois|monate?n?|months?|wochen?|weeks?|semanas?|settiman[ae]|semaines?|"
    r"jahre?n?|years?|anos?|ann[io]|ans?|tage?n?|days?|dias?|jours?|giorn[io]"
)
_SHORT_SPAN = r"\d{1,3}(?:h|m|mo|wk?|yr?)"
_SPAN = rf"{_SHORT_SPAN}|\d{{2,3}}d|\d{{1,3}}[ _-]?(?:{_UNITS})"
_MM, _DD = r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
# 2023-0012 is no day, but the number of a patient
_DAY = (
    rf"(?:19|20)\d\d(?:{_MM}{_DD}|[-_.]{_MM}[-_.]{_DD})(?:[-_.]?\d{{2,6}}){{0,3}}"
    rf"|{_DD}\.{_MM}\.(?:19|20)\d\d"
)
_LOOSE_DAY = (
    rf"(?:19|20)\d\d[-_.年]{_DAY_OF_MONTH}[-_.月]{_DAY_OF_MONTH}日?"
    rf"|{_DAY_OF_MONTH}[-_.]{_DAY_OF_MONTH}[-_.](?:19|20)\d\d"
)
# March 2019, 12-mar-2019, Mar 12 2019, 12 de marzo de 2019
_WORDED = (
    rf"(?:{_DAY_OF_MONTH}[ _.-]*(?:de )?)?(?:{_MONTHS})[ _.,-]*(?:de )?"
    rf"(?:{_DAY_OF_MONTH}[ _.,-]+)?20[0-3]\d"
)
_MONTH = r"20[0-3]\d[-_.](?:0?[1-9]|1[0-2])|(?:0?[1-9]|1[0-2])[-_.]20[0-3]\d"
# a loose day without underscores, for Brats18_2013_2_1 has none
_WRITTEN_DAY = (
    rf"{_DAY_OF_MONTH}\.{_DAY_OF_MONTH}\.(?:19|20)\d\d|"
    rf"(?:19|20)\d\d-{_DAY_OF_MONTH}-{_DAY_OF_MONTH}"
)
# words before a day, a month or a year, which with it tell an examination
_SCAN = r"mri?|mrt|irm|rmn?|scan|exam|examen|esame|study|studie|untersuchung"
_EPISODE = r"nadir|relapse|recurrence|rezidiv|recidive|progression"
# what at the end of a name tells an examination; before a number it may tell a group of patients
_STAGE = (
    rf"(?:{_EPISODE}|recurrent|recidiv[ao]|remission|primary|acute|akut|chronic|chronisch|"
    r"admission|discharge|aufnahme|entlassung|initiale?|basale?|controllo|kontrolle|controle|"
    r"suivi|verlauf|onset|esordio)(?!.*\d)"
)
# what tells an examination as the whole name of a folder
_ALONE = (
    rf"{SIDE}|{_STATE}|{_ORDINAL}|{_NAMED}|{_COUNTED}|{_SPAN}|{_DAY}(?:[-_.]\d+)*|{_LOOSE_DAY}|20[0-3]\d|"
    rf"{_WORDED}|{_EPISODE}|"
    rf"(?:{_SCAN})[ _-]+(?:pr[aä]e?|pr[eé]|post|vor|nach|avant|apr[eè]s|prima|dopo)|"
    rf"(?:{_SCAN})[ _-]+(?:(?:du|vom|of|from|del|le|on)[ _-]+)?"
    rf"(?:{_DAY}|{_LOOSE_DAY}|{_MONTH}|20[0-3]\d)|"
    rf"{_LOOSE_DAY}-.+-\d{{5}}|"  # 12-05-2001-MRI BRAIN-12345, of TCIA
    rf"(?:[^\W\d]+[ _-]+){{0,2}}\d{{1,3}}[ _-]?(?:{_UNITS})|"  # control 6 meses
    rf"basale?|esordio|onset|diagnos[ei]s?|"
    rf"(?:scan|week)[ _-]?\d{{1,3}}(?:-\d+)?|bl|fu|initial|erstuntersuchung|{_COURSE}"
)

# an earlier examination, or one by somebody else, for comparison
_EARLIER = (
    r"prev(?:ious(?:ly)?)?|priors?|earlier|outside|external|compar(?:e|ison)|"
    r"vor(?:her(?:ige?[rsn]?)?|aufnahmen?|untersuchung(?:en)?|befunde?|bilder|ige[rsn]?)|vu|"
    r"fr(?:ue|u)here?[rsn]?|extern(?:e[rsn]?)?|fremd(?:e[rsn]?)?|vergleich|"
    r"anterieure?s?|precedente?s?|preceden[tz]i|previ[ao]s?|anteriores"
)
_OLD = r"old|alt(?:e[rsn]?)?|ancien(?:ne)?s?|oude?"  # or of a worse image
_NEW = r"new(?:er)?|neu(?:e[rsn]?)?|nouveau|nouvelle|nuov[ao]|nuev[ao]|nieuwe?|novo|nova"
_SHOWN = (
    r"(?:scans?|exams?|mris?|mrts?|mr|irm|study|studies|images|imaging|bilder|aufnahmen?|"
    r"untersuchung(?:en)?)"
)

NAMES_EXAMINATION = rf"(?:{_NAMED}|{_STATE}|erstuntersuchung|verlauf|intraop)"
"""A pattern of words behind a patient's name that name an examination, whatever the name is."""

_REPEATED = r"(?:r|run|rep|retest|scan)[_-]?\d{1,2}|(?:scan|session|visit|exam)[_-]?[a-d]"
MAY_NAME_EXAMINATION = (
    rf"(?:{_REPEATED}|{_ORDINAL}|{_COUNTED}|{_SPAN}|{_DAY}|{_WRITTEN_DAY}|"
    rf"{_WORDED}|{_STAGE}|bl|fu)"
)
"""A pattern of what names an examination behind a name that has a number."""

# what in two names says that they are of two examinations, each pattern for itself
_WHEN = (
    re.compile(  # a day: 20190312, 20190312101530, 2019-03-12, 12.03.2019
        r"(?<!\d)(?:(?:19|20)\d\d[01]\d[0-3]\d(?=\d{4}(?!\d)|\d{6}(?!\d)|\D|$)"
        rf"|(?:{_LOOSE_DAY})(?!\d))"
    ),
    re.compile(r"(?<![a-z0-9])[0-3]\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])(?!\d)"),  # 190312
    re.compile(rf"(?<![a-z])(?:{_MONTHS})[ _.-]?(?:20)?[0-3]\d(?!\d)"),  # Mar2019, jan19
    re.compile(rf"(?<![\d.-]){_DAY_OF_MONTH}([-.]){_DAY_OF_MONTH}\1[0-3]\d(?![\d.-])"),  # 12-3-19
    re.compile(r"(?<![a-z0-9])c\d{1,2}d\d{1,2}(?![a-z0-9])"),  # of a therapy, C1D1
    # 2019, but no series 2001
    re.compile(r"(?<![\d.])(?:199\d|20(?:0[2-9]|[12]\d|3[0-5]))(?![\d.])"),
    re.compile(
        rf"(?<![a-z0-9])(?:(?:[vmd]|{_POINT}|{_COUNTER})[ _-]?\d{{1,3}}|w\d{{1,3}}|q[1-4])"
        r"(?![a-z0-9])"
    ),
    re.compile(rf"(?<![a-z0-9.]){_SHORT_SPAN}(?![a-z0-9])|(?<![a-z0-9])\d{{2,3}}d(?![a-z])"),
    re.compile(rf"(?<![a-z])(?:{_ORDINAL})(?![a-z])"),
    re.compile(rf"(?<![a-z])(?:{_STATE})(?![a-z])"),
    re.compile(rf"(?<![a-z])(?:{SIDE})(?![a-z])"),
)
_STATE_WORDS = re.compile(rf"(?<![a-z])(?:{_STATE})(?![a-z])")
_ALONE_WORDS = re.compile(rf"(?:{_ALONE})(?:[ _-]+(?:{_ALONE}))*")  # 2019-05-03_preop
_EARLIER_WORDS = re.compile(rf"(?:{_SHOWN}[ _-]*)?(?:{_EARLIER}|{_OLD})(?:[ _-]*{_SHOWN})?")
_SURE_TIMES = re.compile(rf"(?<![a-z0-9])(?:{_NAMED}|{_STATE}|{_EARLIER})(?![a-z0-9])")
_EARLIER_ALONE = re.compile(rf"(?<![a-z0-9])(?:{_EARLIER})(?![a-z0-9])")
_DAY_WITHIN = re.compile(rf"(?<!\d)(?:{_DAY}|{_LOOSE_DAY}|{_WORDED}|\d\d?\.\d\d?\.\d\d)(?!\d)")
_AGE = re.compile(rf"(?<![a-z])(?:{_OLD}|{_NEW})(?![a-z])")
_TIME = re.compile(_DAY)
_MONTH_ALONE = re.compile(_MONTH)
NAMES_PATIENT = r"(?:p|pat|pt|patient|paciente|paziente|sub|subj|subject|case|fall)[ _-]?\d+"
"""A pattern of a word for a patient, and a number."""

_PATIENT = re.compile(NAMES_PATIENT)
_NAMED_WORDS = re.compile(_NAMED)
_FIRST_WORDS = re.compile(rf"(?:{_NAMED}|{_STATE})(?![a-z0-9])")


def is_day(text: str) -> bool:
    """Say whether a text is a day, or a day and a time."""
    return bool(_TIME.fullmatch(text))


def without_day(text: str) -> str:
    """Return a text without the days in it, but for accents and capitals."""
    return _DAY_WITHIN.sub("", without_accents(text))


def is_examination(text: str) -> bool:
    """Say whether a text, such as a folder's name, is a time point and nothing else."""
    return bool(_ALONE_WORDS.fullmatch(without_accents(text)))


def is_earlier_examination(text: str) -> bool:
    """Say whether a folder's name may be of an examination before that of the folder around it."""
    return bool(_EARLIER_WORDS.fullmatch(without_accents(text)))


def time_in(name: str) -> str:
    """Return the word of a name that surely is about an examination, or nothing: FLAIR_prior."""
    found = _SURE_TIMES.search(without_accents(name))
    return found[0] if found else ""


def earlier_in(text: str) -> str:
    """Return the word of a text that calls an image one for comparison, or nothing: T1 extern."""
    found = _EARLIER_ALONE.search(without_accents(text))
    return found[0] if found else ""


def age_in(name: str) -> str:
    """Return the word of a name that calls an image older or newer than others, or nothing."""
    found = _AGE.search(without_accents(name))
    return found[0] if found else ""


def begins_with_examination(text: str) -> bool:
    """Say whether a text is a time point, or begins with a word that surely is one."""
    return is_examination(text) or bool(_FIRST_WORDS.match(text.lower()))


def is_days_folder(folders: Sequence[str]) -> bool:
    """Say whether the last of several folders begins with a day, and is in one of its patient."""
    return len(folders) > 1 and is_day(folders[-1].split(" ")[0])


def names_patient(text: str) -> bool:
    """Say whether a text is a word for a patient and a number, and nothing else."""
    return bool(_PATIENT.fullmatch(without_accents(text)))


def is_month(text: str) -> bool:
    """Say whether a text is a month of a year: an examination, or the number of a patient."""
    return bool(_MONTH_ALONE.fullmatch(text))


def names_examination(text: str) -> bool:
    """Say whether a word of a text surely names an examination."""
    return bool(_NAMED_WORDS.search(text.lower()))


def are_of_other_times(names: Sequence[str]) -> bool:
    """Say whether names have different days, visits or states of treatment in them."""
    names = [without_accents(name) for name in names]
    for pattern in _WHEN:
        found = [
            {re.sub(r"[ _.-]", "", when[0])[:8] for when in pattern.finditer(name)}
            for name in names
        ]
        some = [whens for whens in found if whens]
        count = Counter(when for whens in some for when in whens)
        own = [{when for when in whens if count[when] < len(some)} for whens in some]
        # a birthday is in all names
        if len({when for whens in own for when in whens}) > 1 and sum(map(bool, own)) > 1:
            return True
    return False


def is_of_another_state(name: str, folders: Sequence[str]) -> bool:
    """Say whether a file's name says another state of treatment than the folders it lies in."""
    mine, around = (states_in(name), states_in(" ".join(folders)))
    return bool(mine and around and not mine & around)


def states_in(text: str) -> set[str]:
    """Return the states of treatment that a text names: before, during or after."""
    states = (each[0] for each in _STATE_WORDS.finditer(without_accents(text)))
    return {
        "during"
        if state.startswith(("intra", "mid"))
        else "before"
        if state.startswith(("pr", "vor", "voor", "before", "avant", "antes", "base"))
        else "after"
        for state in states
    }
