"""What the heads of cases are like, in closed words: with skull, without, or extracted by what."""

from collections.abc import Mapping

from mixmfl.core.errors import PlansError

NONE, DEEPBET, OWN = "none", "deepbet", "own"
SKULL, STRIPPED = "skull", "stripped"

STATES = (SKULL, STRIPPED, DEEPBET, OWN)
"""What a case is like: it shows its skull; it came without; it was extracted, by what."""

SKULLS, MIXED = "skulls", "mixed"

PLANNED_WORDS = {
    SKULLS: "with skulls",
    STRIPPED: "without skulls",
    MIXED: "some with skulls, some without",
    DEEPBET: "brains extracted by deepbet",
    OWN: "brains extracted by each site's own command",
}
"""What plans say of the cases they were made from, and the same for people."""

# so many cases may differ where plans speak of all: this share, or this number. A hospital on a
# network counts fewer than 5 as the others, so they must not decide on one machine either
FEW, FEW_CASES = 0.05, 4


def planned_heads(counts: Mapping[str, int]) -> str:
    """Return what plans say of cases, a key of ``PLANNED_WORDS``.

    Args:
        counts: How many cases are of each of ``STATES``.

    Raises:
        PlansError: Brains were extracted at some sites and not at others, or in two ways.
    """
    made = [tool for tool in (DEEPBET, OWN) if counts.get(tool)]
    skulls, cases = counts.get(SKULL, 0), sum(counts.values())
    if len(made) > 1 or (made and skulls):
        raise PlansError(
            "brain extraction must be the same at all sites, but there are cases "
            f"{_listed(counts)}. Give --brain-only at all sites or at none, or --brain-command at "
            "all"
        )
    if made:
        return made[0]
    if min(skulls, cases - skulls) > max(FEW_CASES, FEW * cases):
        return MIXED
    return SKULLS if 2 * skulls > cases else STRIPPED


_STATE_WORDS = {
    SKULL: "with skull",
    STRIPPED: "without skull",
    DEEPBET: "extracted by deepbet",
    OWN: "extracted by a site's own command",
}


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{_STATE_WORDS[state]} ({counts[state]})" for state in STATES if counts.get(state)
    )


def describe_heads(counts: Mapping[str, int]) -> str:
    """Return a line on the heads of the cases that plans were made from; see ``planned_heads``."""
    line = f"heads: {_listed(counts)}"
    if planned_heads(counts) == MIXED:
        line += "; --brain-only would make them alike, and a model learns both kinds worse"
    return line


def head_doubt(state: str, planned: str) -> str:
    """Return how a case's head differs from those of plans, in a sentence; empty: it does not.

    Args:
        state: ``Extracted.state``.
        planned: ``Plans.heads``.
    """
    if state == SKULL and planned in (STRIPPED, DEEPBET, OWN):
        return (
            "it shows its skull, which was removed from the images that the model was planned for"
        )
    if state != SKULL and planned == SKULLS:
        return "its skull was removed; the model was planned for heads with their skulls"
    return ""
