"""``mixmfl_plan_preprocess``: fingerprints, one plan for all sites, and preprocessed cases."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mixmfl.core.errors import MixmflError
from mixmfl.core.text import one_line, plural, printable, times

from . import _options, _paths, _runner

if TYPE_CHECKING:
    from mixmfl.core.errors import Refused
    from mixmfl.core.worker_pool import Workers
    from mixmfl.data.dataset_card import DatasetCard
    from mixmfl.data.labels import Labels
    from mixmfl.data.modalities import Modalities
    from mixmfl.planning.fingerprint import Fingerprint
    from mixmfl.planning.model_card import ModelCard
    from mixmfl.planning.plans import Plans, Preset
    from mixmfl.planning.site_folders import SiteFolder

DESCRIPTION = """\
Take every site's fingerprint (statistics, no row per case), make one plan from their sum with
nnU-Net's planner, and preprocess each site's cases with the modalities they have.

  all sites on this machine    mixmfl_plan_preprocess -i FEDERATION -o WORK
  at one hospital, first       mixmfl_plan_preprocess -i FOLDER --site -o WORK --fingerprint-only
  at the coordinator           mixmfl_plan_preprocess --merge A.json B.json -o WORK
  at one hospital, then        mixmfl_plan_preprocess -i FOLDER --site -o WORK --plans plans.json
  all of it over a network     mixmfl_plan_preprocess --kit KIT -o WORK, mixmfl_site at each site

FEDERATION holds a folder per site. Valid results are kept, so that the same command resumes after
an interruption.
Exit code 0: all cases were preprocessed; 1: some were refused; 2: nothing could start."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_plan_preprocess", DESCRIPTION)
    parser.add_argument(
        "-i",
        "--input",
        type=_paths.folder("a folder with a folder of cases per site; with --site, of one site"),
        metavar="FEDERATION",
        help="folder of sites",
    )
    parser.add_argument(
        "-o",
        "--out",
        type=_paths.new_folder(),
        required=True,
        metavar="WORK",
        help="folder to write",
    )
    parser.add_argument("--site", action="store_true", help="the input is one site's own folder")
    parser.add_argument("--fingerprint-only", action="store_true", help="stop after fingerprints")
    parser.add_argument(
        "--merge",
        type=_paths.file("a fingerprint.json of a site"),
        nargs="+",
        metavar="FILE",
        help="sites' fingerprints",
    )
    parser.add_argument(
        "--kit",
        type=_paths.KIT,
        metavar="KIT",
        help="plan over the network, with the coordinator's kit",
    )
    parser.add_argument(
        "--sites", nargs="+", default=[], help="with --kit; default: all of the kit's"
    )
    _options.add_minimum(
        parser,
        "with --kit: sites withhold statistics that rest on fewer {counted} (default: 5 cases, "
        "100 voxels; a site may ask for more)",
    )
    parser.add_argument(
        "--plans",
        type=_paths.file("a plans.json"),
        metavar="FILE",
        help="preprocess with these plans",
    )
    parser.add_argument(
        "--replan", action="store_true", help="make the plans again, although WORK has some"
    )
    parser.add_argument("--preset", default="default", help="shipped preset or a .json of your own")
    parser.add_argument(
        "-c",
        "--configurations",
        nargs="+",
        choices=_options.CONFIGURATIONS,
        default=list(_options.CONFIGURATIONS),
        help="which to preprocess (default: both)",
    )
    parser.add_argument(
        "--mapping",
        type=_paths.MAPPING,
        metavar="FILE",
        help="with --site: the table of its DICOM series, from mixmfl_predict --write-mapping "
        "(default: mapping.csv in the site's folder, if it exists)",
    )
    parser.add_argument(
        "--labels", type=_paths.LABELS, metavar="FILE", help="dataset.json for all sites"
    )
    parser.add_argument(
        "--card",
        type=_paths.file("a dataset.json that says where data come from"),
        metavar="FILE",
        help="dataset.json that says where the data come from, for the model file (default: the "
        "one of --labels, else of the input folder)",
    )
    _options.add_processes(parser)
    _options.add_alignment(parser)
    _options.add_brains(parser)
    _options.add_alias(parser)
    return _runner.run(parser, argv, _work)


def _work(options: argparse.Namespace) -> int:
    if sum(way is not None for way in (options.input, options.merge, options.kit)) != 1:
        raise MixmflError(
            "give one of -i FEDERATION, --merge with the sites' fingerprints, or --kit"
        )
    _options.check_processes(options.processes)
    if options.kit:
        return _over_network(options)
    return _merge(options) if options.merge else _process(options)


def _over_network(options: argparse.Namespace) -> int:
    site_options = (
        "alias",
        "labels",
        "mapping",
        "reference",
        "register",
        "plans",
        "site",
        "fingerprint_only",
        "brain_only",
        "brain_command",
    )
    if unusable := [
        f"--{name.replace('_', '-')}" for name in site_options if getattr(options, name)
    ]:
        raise MixmflError(
            f"{', '.join(unusable)}: over a network each hospital reads its own cases, with the "
            "options of mixmfl_site"
        )
    from mixmfl.federated.server.orders import PlanningJob
    from mixmfl.federated.state import NETWORK_MINIMUM
    from mixmfl.planning.plans import Plans, load_preset, preset_names, read_preprocessed

    flare = _runner.network_engine()
    kit = flare.open_kit(options.kit, coordinator=True)
    load_preset(options.preset)  # a wrong name is refused now, not when all sites are connected
    minimum = _options.minimum(options, NETWORK_MINIMUM)
    sites = _options.sites(options.sites, flare.site_names(kit))
    own_preset = options.preset not in preset_names()
    orders = PlanningJob(
        options.out.resolve(),
        tuple(sites),
        # a job runs in a folder of its own
        str(Path(options.preset).resolve()) if own_preset else options.preset,
        tuple(options.configurations),
        (minimum.cases, minimum.voxels),
        options.replan,
        options.card.resolve() if options.card else None,
    )
    _card(options)  # what is wrong in it is said now, too
    flare.run_jobs(kit, orders, quorum=len(sites), deadline=_runner.A_DAY, say=print)
    print(f"plans: {options.out / 'plans.json'}")
    _say_missing(Plans.load(options.out / "plans.json").card)
    failed = 0
    for site, configurations in read_preprocessed(options.out / "preprocessed.json").items():
        for name, (done, refused) in configurations.items():
            print(f"site {site}, {name}: {plural(done, 'case')} preprocessed, {refused} refused")
            failed += refused
    return _runner.SOME_FAILED if failed else 0


def _merge(options: argparse.Namespace) -> int:
    from mixmfl.data.labels import Labels
    from mixmfl.planning.federation_plans import read_fingerprints
    from mixmfl.planning.plans import load_preset

    if options.labels is None:
        raise MixmflError(
            "--merge needs --labels dataset.json: fingerprints do not name the labels"
        )
    plans_file = options.out / "plans.json"
    if plans_file.exists() and not options.replan:
        raise MixmflError(f"{plans_file}: exists already; --replan makes it again")
    fingerprints = read_fingerprints(options.merge)
    labels, card = Labels.load(options.labels), _card(options)
    preset = load_preset(options.preset)
    _, cases = _make_plans(fingerprints, labels, preset, card, options.out)
    print(f"plans for {cases} cases of {len(options.merge)} sites: {plans_file}")
    return 0


def _make_plans(
    fingerprints: "Sequence[Fingerprint]",
    labels: "Labels",
    preset: "Preset",
    card: "DatasetCard",
    work: Path,
) -> "tuple[Plans, int]":
    """Make the plans of WORK, print what is to be known of them, and return them and the cases."""
    from mixmfl.planning.federation_plans import write_plans
    from mixmfl.planning.heads import describe_heads

    plans, merged = write_plans(fingerprints, labels, preset, card, work)
    print(describe_heads(merged.heads))
    _say_missing(plans.card)
    return plans, merged.cases


def _card(options: argparse.Namespace) -> "DatasetCard":
    """Return what the coordinator's own dataset.json says of the data."""
    from mixmfl.core.files import read_json
    from mixmfl.data.dataset_card import DatasetCard, find_card, read_card

    if file := options.card or options.labels:
        return read_card(read_json(file), str(file))
    return find_card(options.input) if options.input else DatasetCard()


def _say_missing(card: "ModelCard") -> None:
    if card.missing:
        print(
            f"the model file will not say: {', '.join(card.missing)}. Write that into dataset.json "
            "(docs/data.md), and plan again with --replan"
        )


@dataclass(frozen=True)
class _Cases:
    """The cases of a folder, which train or test a site's models.

    Attributes:
        kind: ``_TRAINING`` or ``_TESTS``, as messages name them before the site.
        site: The cases, by the name of that site.
        out: Their folder in WORK.
        refused: Those that could not be used; every step adds to it.
    """

    kind: str
    site: "SiteFolder"
    out: Path
    refused: "list[Refused]"

    @property
    def title(self) -> str:
        """What messages call them."""
        return f"{self.kind} {self.site.name}"


_TRAINING, _TESTS = "site", "tests of"


def _process(options: argparse.Namespace) -> int:
    """Plan for the sites whose folders are here, and preprocess their cases."""
    from mixmfl.core.worker_pool import Workers
    from mixmfl.data.modalities import Modalities
    from mixmfl.planning.plans import load_preset
    from mixmfl.planning.preprocess import check_site

    preset, card = load_preset(options.preset), _card(options)
    modalities = Modalities().with_aliases(options.alias)
    cases, held_out = _find_cases(options, modalities)
    training = [each for each in cases if each.kind == _TRAINING]
    _print_found(cases, held_out)
    labels = _agree_on_labels(options, training, modalities)
    with _runner.bars() as report, Workers(options.processes, report) as workers:
        fingerprints = []
        if options.plans is None or options.fingerprint_only:
            fingerprints = _take_fingerprints(training, options.out, workers)
        if options.fingerprint_only:
            return _print_refused(cases)
        plans = _adopt_plans(options, training)
        if plans is None:
            plans, _ = _make_plans(fingerprints, labels, preset, card, options.out)
            print(f"plans: {options.out / 'plans.json'}")
        for each in cases:
            if each.kind == _TESTS:
                check_site(each.site, plans, _TESTS)
        _print_plans(plans)
        for each in cases:
            _preprocess(each, plans, options.configurations, workers)
    return _print_refused(cases)


def _find_cases(
    options: argparse.Namespace, modalities: "Modalities"
) -> tuple[list[_Cases], tuple[str, ...]]:
    """Return the cases of every folder, and the names of the folders that are held out."""
    from mixmfl.planning.federation_plans import site_folder, sites_folder
    from mixmfl.planning.site_folders import find_site, find_sites

    alignment = _options.alignment(options, modalities)
    brains = _options.brains(options)
    brains.check()
    if options.mapping and not options.site:
        raise MixmflError(
            "--mapping is for one site's folder (--site); with several sites, store each site's "
            "table in its folder as mapping.csv"
        )
    sites: tuple[SiteFolder, ...]
    tests: tuple[SiteFolder, ...] = ()
    held_out: tuple[str, ...] = ()
    if options.site:
        sites = (find_site(options.input, modalities, options.labels, alignment, options.mapping),)
    else:
        federation = find_sites(options.input, modalities, options.labels, alignment)
        sites, tests, held_out = federation.sites, federation.tests, federation.held_out
        _check_work(sites_folder(options.out), {site.name for site in sites})
        _check_work(options.out / "tests", {site.name for site in tests})
    places = [(_TRAINING, site, site_folder(options.out, site.name)) for site in sites]
    places += [(_TESTS, site, options.out / "tests" / site.name) for site in tests]
    return [
        _Cases(kind, replace(site, brains=brains), out, list(site.found.refused))
        for kind, site, out in places
    ], held_out


def _check_work(folder: Path, names: set[str]) -> None:
    """Refuse a WORK with sites or tests that the federation no longer has: they would be used."""
    unknown = sorted({path.name for path in folder.glob("*")} - names)
    if unknown:
        use = "train on" if folder.name == "sites" else "test with"
        raise MixmflError(
            f"{folder}: holds {', '.join(unknown)}, which the federation does not {use} "
            "(any more); remove these folders and give --replan, or name another WORK"
        )


def _print_found(cases: Sequence[_Cases], held_out: Sequence[str]) -> None:
    from mixmfl.data.cases import describe
    from mixmfl.data.dicom.cases import describe_rows

    for each in (each for each in cases if each.kind == _TRAINING):
        print(printable(f"{each.title}: {describe(each.site.found)}"))
        if each.site.rows:
            print(printable(describe_rows(each.site.rows)))
    for name in held_out:
        print(f"folder {name}: held out (federation.json)")
    for each in (each for each in cases if each.kind == _TESTS):
        print(printable(f"{each.title}: {describe(each.site.found)}"))


def _agree_on_labels(
    options: argparse.Namespace, training: Sequence[_Cases], modalities: "Modalities"
) -> "Labels":
    """Return the labels of the federation, and print how each site's are mapped to them."""
    from mixmfl.data.label_sets import agree_on_labels, describe_sets
    from mixmfl.data.labels import read_folder_labels
    from mixmfl.data.unknown_modalities import check_most_are_known

    if options.plans is None:
        check_most_are_known([each.site.found for each in training], modalities)
    described = None if options.site or options.labels else read_folder_labels(options.input)
    sets = {each.site.name: each.site.labels for each in training}
    labels = agree_on_labels(sets, described)
    for line in describe_sets(sets, labels):
        print(printable(line))
    return labels


def _take_fingerprints(
    training: Sequence[_Cases], work: Path, workers: "Workers"
) -> "list[Fingerprint]":
    """Return the sites' fingerprints."""
    from mixmfl.planning.federation_plans import gather_fingerprints

    fingerprints = []
    gathered = gather_fingerprints([each.site for each in training], work, workers)
    for each, site in zip(training, gathered, strict=True):
        fingerprints.append(site.fingerprint)
        each.refused.extend(site.refused)
        print(f"fingerprint of {each.site.name}: {site.file}")
    return fingerprints


def _adopt_plans(options: argparse.Namespace, training: Sequence[_Cases]) -> "Plans | None":
    """Return the plans that ``--plans`` names or that WORK has; None: they are to be made.

    Raises:
        MixmflError: They do not fit a site, or WORK has others than those named.
    """
    from mixmfl.planning.federation_plans import kept_plans
    from mixmfl.planning.plans import Plans
    from mixmfl.planning.preprocess import check_site

    file = options.out / "plans.json"
    if options.plans is None:
        stored = kept_plans(options.out, replan=options.replan)
        if stored is not None:
            print(f"plans: {file} is kept (--replan makes it again)")
        return stored
    plans = Plans.load(options.plans)
    for each in training:
        check_site(each.site, plans)
    if not file.exists() or not file.samefile(options.plans):
        if file.exists() and Plans.load(file) != plans:
            raise MixmflError(f"{file}: holds other plans; use another WORK")
        plans.save(file)
    return plans


def _print_plans(plans: "Plans") -> None:
    for name in plans.configurations:
        planned = plans.configuration(name)
        spacing, size = times(planned["spacing"]), times(planned["patch_size"])
        print(f"  {name}: {spacing} mm, patch {size}, batch {planned['batch_size']}")


def _preprocess(
    cases: _Cases, plans: "Plans", configurations: Sequence[str], workers: "Workers"
) -> None:
    """Preprocess the cases of a folder, and print what became of them."""
    from mixmfl.planning.preprocess import preprocess_site

    for name in configurations:
        if name not in plans.configurations:
            print(f"{cases.title}, {name}: not planned for these images")
            continue
        result = preprocess_site(cases.site, plans, name, cases.out, workers)
        known = {item.name for item in cases.refused}
        cases.refused.extend(item for item in result.refused if item.name not in known)
        kept = f", {len(result.kept)} kept" if result.kept else ""
        done = plural(len(result.done), "case")
        print(f"{cases.title}, {name}: {done} preprocessed{kept}")
        for case, notes in result.notes.items():
            print(printable(f"  {case}: {'; '.join(notes)}"))


def _print_refused(cases: Sequence[_Cases]) -> int:
    """Print the refused cases on stderr, and return the command's exit code."""
    lines = [
        printable(f"  {place}/{one_line(item.name)}: {item.reason}")
        for each in cases
        for place in [each.site.name if each.kind == _TRAINING else each.title]
        for item in each.refused
    ]
    if not lines:
        return 0
    print(f"refused {plural(len(lines), 'case')}:", *lines, sep="\n", file=sys.stderr)
    return _runner.SOME_FAILED


if __name__ == "__main__":
    sys.exit(main())
