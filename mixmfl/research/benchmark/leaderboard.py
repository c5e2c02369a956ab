"""The leaderboard of a benchmark: its methods by their points, with those of other people.

Whoever has the same plans and cases trains a method of theirs and sends ``results.json``; it holds
``entries`` and no case. Nothing of it but what is declared here is read.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from mixmfl.core.declarations import entries, text, within
from mixmfl.core.errors import DataError
from mixmfl.core.files import read_long_json
from mixmfl.core.nan import or_nan, or_none
from mixmfl.core.records import read_value
from mixmfl.core.text import plural
from mixmfl.evaluation.html import Section, Table, page
from mixmfl.inference.report import RESEARCH_ONLY
from mixmfl.research.benchmark.methods import describe, what_is
from mixmfl.research.benchmark.records import Cost, Name
from mixmfl.research.benchmark.statistics import Estimate, Scores
from mixmfl.research.benchmark.tables import UNDEFINED, number, spread

_Points = Annotated[float, within(0, 100)]
_Number = Annotated[float, within(0, 1e18)]
_MOST_ENTRIES, _MOST_SEEDS = 1000, 1000


@dataclass(frozen=True)
class Entry:
    """A method on the leaderboard; what is not known is None.

    Attributes:
        method: Name of the method.
        what: The method in one sentence.
        code: Digest of the file of a method that is not ours; empty: it is ours.
        seeds: Seeds that it was trained with.
        own: Points on own modalities, mean over seeds.
        own_deviation: Standard deviation of ``own`` over seeds.
        subsets: Points over every subset of modalities, mean over seeds.
        subsets_deviation: Standard deviation of ``subsets`` over seeds.
        sent_bytes: Bytes that a site sent in a training, mean over seeds.
        seconds: Seconds that a training took, mean over seeds.
    """

    method: Name
    what: Annotated[str, text(1000)]
    code: Annotated[str, text(64, "[0-9a-f]{64}", "a digest")] | None
    seeds: Annotated[
        tuple[Annotated[int, within(0, 2**63 - 1)], ...], entries(1, _MOST_SEEDS, distinct=True)
    ]
    own: _Points | None
    own_deviation: _Points | None
    subsets: _Points | None
    subsets_deviation: _Points | None
    sent_bytes: _Number | None
    seconds: _Number | None


def make_entries(scores: Scores, costs: Sequence[Cost]) -> list[Entry]:
    """Return the entries of the methods that were scored."""
    made = []
    for method in scores.methods:
        own, subsets = (scores.points(method, kind) for kind in ("own", "subsets"))
        mine = [cost for cost in costs if cost.method == method]
        made.append(
            Entry(
                method,
                what_is(method),
                describe(method, scores.seeds[method][0]).get("sha256"),
                scores.seeds[method],
                or_none(own.mean),
                or_none(own.std),
                or_none(subsets.mean),
                or_none(subsets.std),
                or_none(Estimate.over([or_nan(cost.sent_bytes) for cost in mine]).mean),
                or_none(Estimate.over([cost.seconds for cost in mine]).mean),
            )
        )
    return made


def read_entries(file: Path, benchmark: Mapping[str, Any]) -> list[Entry]:
    """Read the entries of somebody else's ``results.json``.

    Args:
        file: The file.
        benchmark: What this benchmark compares, as its own ``results.json`` has it.

    Raises:
        DataError: It is no such file, or of another benchmark.
    """
    content = read_long_json(file)
    theirs = content.get("benchmark")
    if not isinstance(theirs, Mapping) or "entries" not in content:
        raise DataError(
            f"{file}: is no results.json of mixmfl_benchmark, which has benchmark and entries"
        )
    names = dict.fromkeys([*benchmark, *theirs])
    if other := [name for name in names if theirs.get(name) != benchmark.get(name)]:
        raise DataError(
            f"{file}: is of a benchmark with other {', '.join(map(str, other))[:300]}; its numbers "
            "would not compare. The same plans, cases, size and machine precision are needed"
        )
    kind = Annotated[tuple[Entry, ...], entries(1, _MOST_ENTRIES)]
    return list(read_value(kind, content["entries"], f"{file}: entries", DataError))


def leaderboard_page(made: Mapping[str, Sequence[Entry]], benchmark: Mapping[str, Any]) -> str:
    """Return the page, the method with most points over all subsets first.

    Args:
        made: Entries by whose they are: the name of a file; empty: this benchmark's own.
        benchmark: What is compared.
    """
    ranked = sorted(
        ((entry, whose) for whose, each in made.items() for entry in each),
        key=lambda pair: (pair[0].subsets is None, -(pair[0].subsets or 0), pair[0].method),
    )
    rows = [
        [
            str(place),
            entry.method,
            spread(Estimate(or_nan(entry.subsets), or_nan(entry.subsets_deviation))),
            spread(Estimate(or_nan(entry.own), or_nan(entry.own_deviation))),
            str(len(entry.seeds)),
            number(or_nan(entry.sent_bytes) / 1e6),
            number(or_nan(entry.seconds), 0),
            entry.code[:12] if entry.code else "mixmfl",
            whose or "here",
        ]
        for place, (entry, whose) in enumerate(ranked, start=1)
    ]
    columns = ["place", "method", "all subsets", "own modalities", "seeds", "MB sent", "seconds"]
    tests = benchmark["tests"]
    words = (
        "Dice in points: 100 is perfect. All subsets: each test case from every subset of its "
        "modalities; own modalities: from those of its site; means over cases, sites and subsets, "
        "± the standard deviation over seeds. A place says nothing of chance: table.md has "
        f"differences with intervals. {UNDEFINED} is what is not known.\n\n"
        f"{plural(sum(tests.values()), 'test case')} of {plural(len(tests), 'site')}; "
        f"{plural(benchmark['rounds'], 'round')} of {plural(benchmark['local_steps'], 'step')}, "
        f"{benchmark['configuration']}, {benchmark.get('precision', '')}. Cases and how they were "
        f"made: {benchmark.get('cases', UNDEFINED)}."
    )
    facts = {f"{entry.method} ({whose})" if whose else entry.method: entry.what
             for entry, whose in ranked}  # fmt: skip
    sections = [
        Section("Methods", words, tables=[Table([*columns, "code", "results of"], rows)]),
        Section("What they are", facts=facts),
    ]
    return page("Leaderboard", "One benchmark, many methods.", sections, notice=RESEARCH_ONLY)
