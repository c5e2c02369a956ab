"""``mixmfl_split_federation``: make a federation of one folder of cases, such as BraTS."""

import argparse
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixmfl.core.errors import DataError, MixmflError
from mixmfl.core.text import plural, printable, shorten

from . import _options, _paths, _runner

if TYPE_CHECKING:
    from mixmfl.data.modalities import Modalities
    from mixmfl.data.partition import Split

DESCRIPTION = """\
Make a federation of one folder of cases, such as BraTS or FeTS: a folder per site with links
to the modalities that the site holds, and <site>_tests with test cases that have all modalities.

Sites come from --partition, FeTS' CSV with the columns Partition_ID and Subject_ID. Without it
cases are assigned at random to sites with sizes in the ratio 1 : 2 : ... : N. The same options
give the same split; split.json lists the site of each case.

Exit code 0: all cases were used; 1: files were refused or subjects of the partition are missing,
and the rest is written; 2: nothing is written."""

LABELS_NEEDED = """\
{folder}: the meaning of its labels is unknown. Write a dataset.json there, or name one by --labels.
If enhancing tumour is 4 (BraTS 2017 to 2021, FeTS), write
  {{"labels": {{"background": 0, "whole_tumour": [1, 2, 4], "tumour_core": [1, 4], "enhancing": 4}},
   "regions_class_order": [2, 1, 4]}}
and if it is 3 (BraTS 2023),
  {{"labels": {{"background": 0, "whole_tumour": [1, 2, 3], "tumour_core": [1, 3], "enhancing": 3}},
   "regions_class_order": [2, 1, 3]}}"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_split_federation", DESCRIPTION)
    parser.add_argument(
        "-i", "--input", type=_paths.CASES, required=True, metavar="CASES", help="folder"
    )
    parser.add_argument(
        "-o",
        "--out",
        type=_paths.new_folder(),
        required=True,
        metavar="FEDERATION",
        help="new or empty folder",
    )
    parser.add_argument(
        "--partition",
        type=_paths.file("a CSV with the site of each case"),
        metavar="FILE",
        help="CSV: the site of each case",
    )
    parser.add_argument("--sites", type=int, metavar="N", help="number of sites (default: 4)")
    _options.add_setting(parser)
    parser.add_argument(
        "--hold",
        action="append",
        default=[],
        metavar="SITE:t1,t2",
        help="the modalities of a site in mix-modal (repeatable; default: drawn at random)",
    )
    parser.add_argument(
        "--test-share",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="share of each site's cases, at least 1 of 5 (default: 0.2)",
    )
    parser.add_argument(
        "--least",
        type=int,
        default=5,
        metavar="N",
        help="sites with fewer cases are left out (default: 5)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of all random numbers (default: 0)"
    )
    parser.add_argument(
        "--labels", type=_paths.LABELS, metavar="FILE", help="the dataset.json to use"
    )
    parser.add_argument("--copy", action="store_true", help="copy files instead of linking to them")
    _options.add_alias(parser)
    return _runner.run(parser, argv, _work)


def _work(options: argparse.Namespace) -> int:
    from mixmfl.data.cases import describe, find_cases
    from mixmfl.data.labels import Labels
    from mixmfl.data.modalities import Modalities
    from mixmfl.data.partition import Settings, split_cases, write_federation

    if options.partition is not None and options.sites is not None:
        raise MixmflError("give either --partition, which defines the sites, or --sites")
    modalities = Modalities().with_aliases(options.alias)
    settings = Settings(
        setting=options.setting,
        partition=options.partition,
        sites=4 if options.sites is None else options.sites,
        holds=_read_holds(options.hold, modalities),
        test_share=options.test_share,
        least=options.least,
        seed=options.seed,
    )
    found = find_cases(options.input, modalities, labels_needed=True)
    print(printable(describe(found)))
    if not found.cases:
        raise DataError(f"{options.input}: holds no case with a label, so nothing can be split")
    labels = Labels.load(options.labels) if options.labels else found.labels
    if labels is None:
        raise DataError(LABELS_NEEDED.format(folder=options.input))
    split = split_cases(found, settings)
    write_federation(
        options.out,
        split,
        labels,
        options.copy,
        lambda each: _runner.progress(each, len(each), "cases"),
    )
    _print_split(split, options.out)
    return _runner.SOME_FAILED if split.refused or split.unknown else 0


def _read_holds(values: Sequence[str], modalities: "Modalities") -> dict[str, tuple[str, ...]]:
    """Read ``--hold SITE:t1,t2``; modalities may be called by any of their aliases."""
    holds: dict[str, tuple[str, ...]] = {}
    for option in values:
        site, _, words = option.partition(":")
        names = [modalities.find(word) for word in words.split(",")]
        known = {name for name in names if name is not None}
        if not site or len(known) < len(names):
            raise MixmflError(
                f"--hold {option!r}: SITE:MODALITY[,MODALITY] is needed, each modality once; the "
                f"known modalities are {', '.join(modalities.names)}"
            )
        if site in holds:
            raise MixmflError(
                f"--hold {option!r}: site {site} is given twice; name all of its modalities at once"
            )
        holds[site] = tuple(sorted(known))
    return holds


def _print_split(split: "Split", out: Path) -> None:
    for site in split.sites:
        print(
            f"{site.name}: holds {', '.join(site.holds)}; {len(site.train)} to train on, "
            f"{len(site.tests)} to test"
        )
    for count, meaning in (
        (0, "no site: it is not trained, and test cases are used without it"),
        (1, "one site only: there is nothing to average it with"),
    ):
        if rare := [name for name, holders in split.holders.items() if holders == count]:
            print(f"{', '.join(rare)}: held by {meaning}")
    if not any(site.tests for site in split.sites):
        print(
            "no test cases: none were requested, or sites are too small, or no case has all "
            "modalities; mixmfl_benchmark needs some"
        )
    _print_left_out(split.left_out)
    if split.unknown:
        print(
            f"{len(split.unknown)} subjects of the partition are not among the cases: "
            f"{shorten(sorted(split.unknown))}",
            file=sys.stderr,
        )
    print(f"federation of {len(split.sites)} sites: {out} (split.json lists the site of each case)")


def _print_left_out(left_out: Mapping[str, str]) -> None:
    by_reason = defaultdict(list)
    for name, reason in left_out.items():
        by_reason[reason].append(name)
    for reason, names in sorted(by_reason.items()):
        print(f"left out {plural(len(names), 'case')}: {reason}: {shorten(sorted(names))}")


if __name__ == "__main__":
    sys.exit(main())
