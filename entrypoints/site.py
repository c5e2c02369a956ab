"""``mixmfl_site``: a hospital's client in a federation on a network."""

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mixmfl.core import devices
from mixmfl.core.errors import MixmflError
from mixmfl.core.text import printable

from . import _options, _paths, _runner

if TYPE_CHECKING:
    import torch

    from mixmfl.federated.client.approval import Approval
    from mixmfl.federated.client.limits import Limits
    from mixmfl.federated.client.site_config import SiteConfig
    from mixmfl.federated.flare.kits import Kit
    from mixmfl.federated.secure_aggregation.identities import KeyFiles
    from mixmfl.federated.secure_aggregation.signatures import Identity

DESCRIPTION = """\
Join the federation of KIT, and answer the coordinator until Ctrl-C: statistics for a plan,
training, validation. The command prints all that leaves the site, and WORK/exchange.log lists it
with sizes and hashes. Images, labels and names of cases never leave. The coordinator can only start
and stop training here: it cannot send code, nor read a file or a log.
WORK also gets the preprocessed cases, the finished model (WORK/runs/<run>/model.safetensors), and
problems.log, with failures and the images that were resampled.
Statistics for a plan, preprocessing and every run are jobs, which --policy or a person (--ask)
approves of.
WORK/audit.jsonl records all that left, so that --verify-log shows whether a line was changed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; see ``--help``."""
    parser = _runner.parser("mixmfl_site", DESCRIPTION)
    parser.add_argument("--kit", type=_paths.KIT, metavar="KIT", help="this hospital's kit; needed")
    parser.add_argument(
        "-i",
        "--input",
        type=_paths.CASES,
        metavar="CASES",
        help="folder of this hospital's cases; needed",
    )
    parser.add_argument(
        "-o", "--out", type=_paths.new_folder(), metavar="WORK", help="folder to write to; needed"
    )
    parser.add_argument(
        "--verify-log",
        type=_paths.file("an audit.jsonl of this hospital"),
        metavar="FILE",
        help="check an audit.jsonl, say what left, and end; needs no other option and no kit",
    )
    parser.add_argument(
        "--labels", type=_paths.LABELS, metavar="FILE", help="dataset.json of these cases"
    )
    _options.add_processes(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="list what would leave the site, with sizes; send nothing",
    )
    _options.add_minimum(
        parser,
        "withhold what rests on fewer {counted} (default: 5 cases, 100 voxels; the coordinator "
        "may ask for more)",
    )
    _options.add_privacy(parser, "this hospital")
    _add_limits(parser)
    _add_approval(parser)
    parser.add_argument(
        "--peers",
        type=_paths.file("a file with the fingerprint of each hospital's key"),
        metavar="FILE",
        help='fingerprints of the hospitals\' keys, compared by telephone, {"south": "…", …}: '
        "masked rounds are done with these keys alone; default: with every key that the "
        "federation's authority certified (docs/privacy.md)",
    )
    parser.add_argument(
        "--proxy",
        metavar="HOST:PORT",
        help="the HTTP proxy that connects to the coordinator (CONNECT); default: none, whatever "
        "the environment says",
    )
    parser.add_argument(
        "--proxy-login",
        type=_paths.file("a file with name:password for the proxy, which its owner alone may read"),
        metavar="FILE",
        help="name:password for the proxy (Basic), in a line of a file of mode 600",
    )
    parser.add_argument(
        "--turns",
        type=_paths.new_file("a file that hospitals on this machine share"),
        metavar="FILE",
        help="hospitals on one machine that name the same file work one at a time",
    )
    _options.add_workers(parser)
    _options.add_alignment(parser)
    _options.add_brains(parser)
    _options.add_alias(parser)
    _options.add_device(parser)
    return _runner.run(parser, argv, _work)


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """Add what the hospital allows; a default is that of ``Limits``, which waits for torch."""
    parser.add_argument(
        "--require-masked",
        action="store_true",
        default=None,
        help="join masked runs only (docs/privacy.md)",
    )
    parser.add_argument(
        "--no-loss",
        action="store_true",
        default=None,
        help="do not send the mean loss of a round (docs/privacy.md)",
    )
    for option, kind, what in (
        ("--max-rounds", int, "rounds trained here, over all runs; default: 10000"),
        ("--max-local-steps", int, "gradient steps in a round; default: 100000"),
        ("--max-learning-rate", float, "learning rate; default: 10"),
        ("--max-queries", int, "validations answered, over all runs; default: 10000"),
        (
            "--max-jobs",
            int,
            "statistics, preprocessing and runs that are asked for; default: 10000",
        ),
        ("--min-validation-cases", int, "fewest cases behind a Dice that is sent; default: 5"),
        (
            "--min-training-cases",
            int,
            "fewest training cases of each modality behind weights that "
            "are sent neither masked nor with noise; a label that fewer have is not trained; "
            "default: 2",
        ),
        (
            "--min-set-cases",
            int,
            "fewest patients with exactly the same modalities whose cases validate; default: 2",
        ),
        ("--max-bytes", int, "bytes sent, over all runs; default: 10^15"),
        ("--max-disk", int, "bytes that WORK may hold; default: 10^12"),
    ):
        parser.add_argument(option, type=kind, metavar="N", help=what)


def _add_approval(parser: argparse.ArgumentParser) -> None:
    """Add who approves of jobs, and where it is recorded what left."""
    parser.add_argument(
        "--policy",
        type=_paths.file("a policy, a file that docs/privacy.md describes"),
        metavar="FILE",
        help="what this hospital approves of without being asked, and its limits "
        "(docs/privacy.md); a job beyond it is refused, or asked about with --ask. Default: all "
        "within the limits",
    )
    parser.add_argument(
        "--ask",
        action="store_true",
        help="show each job that no policy covers on this terminal, and wait for a yes",
    )
    parser.add_argument(
        "--syslog",
        metavar="ADDRESS",
        help="send each line of WORK/audit.jsonl there, too: host:port (UDP), or /dev/log",
    )


def _limits(options: argparse.Namespace) -> "Limits":
    from mixmfl.federated.client.limits import Limits

    given = {
        "masked_only": options.require_masked,
        "rounds": options.max_rounds,
        "local_steps": options.max_local_steps,
        "learning_rate": options.max_learning_rate,
        "queries": options.max_queries,
        "validation_cases": options.min_validation_cases,
        "bytes": options.max_bytes,
        "training_cases": options.min_training_cases,
        "jobs": options.max_jobs,
        "no_loss": options.no_loss,
        "set_cases": options.min_set_cases,
        "disk": options.max_disk,
    }
    if wrong := [name for name, value in given.items() if value is not None and not value >= 0]:
        raise MixmflError(f"a limit must be 0 or more: {', '.join(wrong)}")
    return Limits(**{name: value for name, value in given.items() if value is not None})


def _work(options: argparse.Namespace) -> int:
    if options.verify_log is not None:
        return _verify(options.verify_log)
    if options.kit is None or options.input is None or options.out is None:
        raise MixmflError("--kit, -i and -o are needed, except with --verify-log")
    _options.check_processes(options.processes)
    from mixmfl.federated.client.outbound import outbound_table
    from mixmfl.federated.client.outbound_preview import preview_of_site
    from mixmfl.federated.secure_aggregation.identities import KeyFiles, load_identity

    flare = _runner.network_engine()
    for decides in filter(None, (options.policy, options.peers)):
        flare.check_writers(decides, "for this hospital")
    kit = flare.open_kit(options.kit, coordinator=False)
    if options.proxy_login is not None:
        if options.proxy is None:
            raise MixmflError("--proxy-login: needs --proxy, for which it is")
        flare.check_login(options.proxy_login)
    device = devices.find_device(options.device)
    keys = KeyFiles(
        kit.folder / "startup",
        kit.coordinators,
        options.peers.resolve() if options.peers else None,
    )
    identity = load_identity(kit.name, keys)
    config = _config(options, kit, device, keys)
    config.check()
    with suppress(FileExistsError):
        # images of patients come into it, and whoever writes to it can approve of jobs
        config.work.mkdir(mode=0o700, parents=True)
    _print_site(kit, identity, config.within_policy())
    if options.dry_run:
        fields, remark = preview_of_site(config)
        print(outbound_table(fields))
        print(remark, end="")
        return 0
    config.audit_log.add("started", to=kit.server, key=identity.fingerprint)
    print("all messages sent and received are listed here; stop with Ctrl-C", flush=True)
    _serve(options.kit, kit, config)


def _config(
    options: argparse.Namespace, kit: "Kit", device: "torch.device", keys: "KeyFiles"
) -> "SiteConfig":
    from mixmfl.data.modalities import Modalities
    from mixmfl.federated.client.site_config import SiteConfig
    from mixmfl.federated.state import NETWORK_MINIMUM

    return SiteConfig(
        name=kit.name,
        data=options.input.resolve(),
        work=options.out.resolve(),
        device=str(device),
        workers=_options.workers(options.workers, device),
        processes=options.processes,
        aliases=tuple(options.alias),
        labels=options.labels.resolve() if options.labels else None,
        alignment=_options.alignment(options, Modalities().with_aliases(options.alias)),
        minimum=_options.minimum(options, NETWORK_MINIMUM),
        privacy=_options.privacy(options, options.out.resolve() / "privacy.json"),
        turns=options.turns.resolve() if options.turns else None,
        limits=_limits(options),
        brains=_options.brains(options),
        keys=keys,
        approval=_approval(options),
        server=kit.server,
        syslog=options.syslog,
        proxy=_runner.network_engine().check_proxy(options.proxy) if options.proxy else None,
        proxy_login=options.proxy_login.resolve() if options.proxy_login else None,
    )


def _print_site(kit: "Kit", identity: "Identity", config: "SiteConfig") -> None:
    """Print which site this is, and what its operator must know before it joins."""
    from mixmfl.data.cases import describe

    found = config.cases().found
    print(printable(f"site {kit.name}: {describe(found)}"))
    through = f" through the proxy {config.proxy}" if config.proxy else ""
    print(f"certificate until {kit.expires:%Y-%m-%d}; coordinator at {kit.server}{through}")
    today = datetime.now(timezone.utc).date()
    if line := _runner.network_engine().ends_soon(kit, today):
        print(line)
    print(f"fingerprint of this hospital's key: {identity.fingerprint}")
    if os.name == "posix" and config.work.stat().st_mode & 0o077:
        print(f"others on this machine may read {config.work}, which holds images of patients, or")
        print(f"write to it and approve of jobs: chmod 700 {shlex.quote(str(config.work))}")
    if identity.peers is not None and config.keys is not None:
        print(f"masked rounds with {', '.join(sorted(identity.peers))} alone ({config.keys.peers})")
    print(config.limits.describe_floors())
    if len(found.cases) < (least := config.minimum.cases):
        print(
            f"statistics of fewer than {least} cases are withheld (--minimum-cases): no plan is "
            "made from this site's images, and none at all where every site has so few"
        )


def _serve(folder: Path, kit: "Kit", config: "SiteConfig") -> NoReturn:
    """Run the site's client, again where it ended, and print what is logged until Ctrl-C.

    Args:
        folder: The kit as it was named; it is read again every day.
        kit: The kit.
        config: Settings of the site.
    """
    flare = _runner.network_engine()
    config.exchange_log.parent.mkdir(parents=True, exist_ok=True)
    config.exchange_log.touch()
    warned = datetime.now(timezone.utc).date()
    with config.exchange_log.open(encoding="utf-8") as log:
        log.seek(0, 2)
        while True:
            with flare.running_client(kit, config) as process:
                while process.poll() is None:
                    if (today := datetime.now(timezone.utc).date()) != warned:
                        warned = today
                        # it may have been replaced, and an expired one ends this
                        kit = flare.open_kit(folder, coordinator=False)
                        if line := flare.ends_soon(kit, today):
                            print(line, flush=True)
                    if log.tell() > config.exchange_log.stat().st_size:
                        log.seek(0)  # it was rotated
                    sys.stdout.write(log.read())
                    sys.stdout.flush()
                    if config.approval.ask:
                        _ask_for_jobs(config.jobs)
                    config.health_file.touch()
                    time.sleep(0.5)
            print(f"the connection ended; see {kit.folder}/log.txt; connecting again", flush=True)
            time.sleep(5)


def _approval(options: argparse.Namespace) -> "Approval":
    from mixmfl.federated.client.approval import Approval, Policy
    from mixmfl.federated.client.audit_log import address_of

    if options.ask and not sys.stdin.isatty():
        raise MixmflError("--ask: needs a terminal; name a --policy to run without one")
    if options.policy is not None:
        policy = Policy.load(options.policy)
        print(f"jobs are approved by {options.policy} until {policy.until}")
    if options.syslog is not None:
        address_of(options.syslog)
    return Approval(options.policy.resolve() if options.policy else None, options.ask)


def _ask_for_jobs(folder: Path) -> None:
    """Show the jobs that wait for a person, and record the answers."""
    from mixmfl.federated.client.approval import answer_job, waiting

    for file, facts in waiting(folder):
        print(f"\nthe coordinator asks for a job ({file}):")
        for name, fact in facts.items():
            print(printable(f"  {name}: {fact}"))
        try:
            answer = input("Shall this site do it? Type yes, or anything else to refuse: ")
        except EOFError:
            raise MixmflError("--ask: the terminal was closed; nothing was approved") from None
        approved = answer.strip() == "yes"
        answer_job(file, approved)
        print("approved" if approved else "refused", flush=True)


def _verify(file: Path) -> int:
    from mixmfl.federated.client.audit_log import verify_log

    found = verify_log(file)
    print(f"{file}: {found.lines} lines from {found.begin} to {found.end}, none of them changed,")
    print("none removed before the last; whether any is missing after it, only its digest tells")
    print(f"{found.sent} messages left, {found.sent_bytes} bytes")
    print(f"sha256 of the last line, to compare with what was noted elsewhere: {found.head}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
