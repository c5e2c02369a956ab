"""Making, renewing and ending of start-up kits: what each site needs to join, and its policies."""

import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from nvflare.lighter.entity import Project
from nvflare.lighter.impl.signature import SignatureBuilder
from nvflare.lighter.impl.static_file import StaticFileBuilder
from nvflare.lighter.impl.workspace import WorkspaceBuilder
from nvflare.lighter.provisioner import Provisioner

from mixmfl.core.declarations import text
from mixmfl.core.errors import DataError
from mixmfl.core.files import read_json, write_json
from mixmfl.core.records import read_record
from mixmfl.core.text import quoted
from mixmfl.federated.flare.hospital_settings import write_policies
from mixmfl.federated.flare.kits import (
    ADMIN,
    CERTIFICATES,
    COORDINATOR,
    LONGEST_NAME,
    SITES_FILE,
    HospitalNames,
    is_host,
    is_port,
    is_site_name,
    read_kit,
)
from mixmfl.federated.flare.requests import RequestedCertificates, make_request, read_requests
from mixmfl.federated.secure_aggregation.signatures import fingerprint_of

ORG = "mixmfl"  # FLARE wants one; rights here are by role
COORDINATOR_CLASS = "mixmfl.federated.flare.Coordinator"
"""The class that a job may run here, as ``SITE_CLASS`` at a hospital."""

_ROLE = "project_admin"
_TAKEN = {COORDINATOR, "server", "authority"}  # the second means the server to FLARE
_AUTHORITY_DAYS = 3650  # certificates hold 360 days: FLARE's choice
_PROJECT = "mixmfl"
_STATE = Path(_PROJECT) / "state" / "cert.json"  # where FLARE's authority keeps what it issued


@dataclass(frozen=True)
class _Written:
    """A network as its file describes it."""

    server: Annotated[str, text(LONGEST_NAME + 6, ".+:[0-9]{1,5}", '"host:port"')]
    sites: HospitalNames


@dataclass(frozen=True)
class Network:
    """The sites of a federation, and the address of its coordinator.

    Attributes:
        host: Name or address at which the hospitals reach the coordinator.
        port: The only port; all connections go from the hospitals to it.
        sites: Names of the hospitals.
    """

    host: str
    port: int
    sites: tuple[str, ...]

    @classmethod
    def load(cls, path: Path) -> "Network":
        """Read a network's file.

        Raises:
            DataError: The file is missing, or its content is not a network.
        """
        written = read_record(_Written, read_json(path), str(path), DataError)
        host, _, port = written.server.rpartition(":")
        if not (is_host(host) and is_port(port)):
            raise DataError(
                f"{path}: has server {quoted(written.server)}; needed is the name or IPv4 address "
                f"at which the hospitals reach the coordinator, of at most {LONGEST_NAME} letters, "
                "and a port up to 65535"
            )
        taken = {*_TAKEN, host.lower()}
        for name in written.sites:  # they name folders, too, and some file systems ignore case
            if name.lower() in taken:
                raise DataError(
                    f"{path}: sites has {name!r}; each name is needed once, in whatever case, and "
                    f"none of {', '.join(sorted(_TAKEN))} or the host's"
                )
            taken.add(name.lower())
        return cls(host, int(port), written.sites)


def request_kit(site: str, out: Path) -> str:
    """Make a hospital's own private key and a request for its kit; see ``make_request``.

    Raises:
        DataError: No hospital can have this name, or there is such a key already.
    """
    if not is_site_name(site):
        raise DataError(
            f"--request {quoted(site)}: a hospital's name has letters, digits and hyphens, and at "
            f"most {LONGEST_NAME} of them"
        )
    return make_request(site, out)


def provision(
    network: Network, out: Path, renew: Sequence[str] = (), requests: Path | None = None
) -> tuple[Path, ...]:
    """Write a kit for the coordinator and for every hospital; existing kits stay.

    The certificate authority is made at the first call and kept in ``out/authority``, so that a
    later call can add hospitals. A renewed kit is issued by this same authority, so that all other
    kits keep working.

    Args:
        network: The sites and the coordinator's address.
        out: Folder of kits.
        renew: Sites, or ``COORDINATOR``, whose kits are made again, with another key and
            certificate; the old kits are set aside.
        requests: Folder of the hospitals' signing requests: only hospitals with one get a kit,
            which has no private key. None: keys are made here.

    Returns:
        The folders written.

    Raises:
        DataError: FLARE could not make the kits, ``out`` holds kits of another server, a kit to
            renew does not exist, or a request does not fit.
    """
    _check_existing(network, out, renew)
    requested = {} if requests is None else read_requests(requests, network.sites)
    for name in network.sites:
        if (out / name).is_dir():
            _check_request(out / name, requested.get(name), renewed=name in renew)
    sites = [
        name
        for name in network.sites
        if requests is None or name in requested or (out / name).is_dir()
    ]
    authority = out / "authority"
    authority.mkdir(parents=True, exist_ok=True)
    authority.chmod(0o700)
    if (authority / _STATE).is_file():  # of a kit that was deleted there may be a certificate
        _forget(authority, [name for name in requested if not (out / name).is_dir()])
    for name in sorted(set(renew)):
        _forget(authority, [network.host, ADMIN] if name == COORDINATOR else [name])
        (out / name).rename(_aside(out / name))
    old_mask = os.umask(0o077)  # keys, and the authority's own, are for their owner alone
    try:
        built = _build(network, sites, authority, requested)
        if built is None:
            raise DataError(f"{out}: the kits could not be made; FLARE's reason is above")
        shutil.move(built / ADMIN, built / network.host / "admin")
        written = [
            _take_kit(built, network, name, out / name, own_key=name in requested)
            for name in (COORDINATOR, *sites)
            if not (out / name).exists()
        ]
        write_json(out / COORDINATOR / "local" / SITES_FILE, {"sites": list(network.sites)})
        _list_certificates(out)
        shutil.rmtree(built)
    finally:
        os.umask(old_mask)
    return tuple(written)


def _check_existing(network: Network, out: Path, renew: Sequence[str]) -> None:
    """Check what is to be renewed, and that existing kits are of the same server.

    Raises:
        DataError: There is no such kit to renew, or ``out`` holds kits of another server.
    """
    names = (COORDINATOR, *network.sites)
    for name in renew:
        if name not in names:
            raise DataError(
                f"--renew {name}: is not in this network; its kits are {', '.join(names)}"
            )
        if not (out / name).is_dir():
            raise DataError(f"{out}: holds no kit of {name}, so there is none to renew")
    if (out / COORDINATOR).is_dir():
        # an expired certificate is no obstacle: it may be the one to renew
        existing = read_kit(out / COORDINATOR, coordinator=True).server
        if existing != f"{network.host}:{network.port}":
            raise DataError(
                f"{out}: holds kits for the server {existing}, not for "
                f"{network.host}:{network.port}; make new kits for everyone in another folder"
            )


def _build(
    network: Network,
    sites: Sequence[str],
    authority: Path,
    requested: Mapping[str, x509.CertificateSigningRequest],
) -> Path | None:
    """Have FLARE build kits for all, new or not, and return their folder; None: it could not."""
    project = Project(_PROJECT, "mixmfl")
    ports = {"fed_learn_port": network.port, "admin_port": network.port}
    project.set_server(network.host, ORG, ports)
    for name in sites:
        project.add_client(name, ORG, {})
    project.add_admin(ADMIN, ORG, {"role": _ROLE})
    builders = [
        WorkspaceBuilder(),
        StaticFileBuilder(config_folder="config"),
        RequestedCertificates(_AUTHORITY_DAYS, requested),
        SignatureBuilder(),
    ]
    context = Provisioner(str(authority), builders).provision(project, logger=_Quiet())
    built = context.get("current_prod_dir")
    return Path(built) if built and not context.get("build_error") else None


def _take_kit(built: Path, network: Network, name: str, kit: Path, *, own_key: bool) -> Path:
    """Move a kit to its place, with its policies, and return the place.

    Args:
        built: Folder of what FLARE built.
        network: The sites and the coordinator's address.
        name: Name of the hospital, or ``COORDINATOR``.
        kit: Where the kit is to be.
        own_key: Whether the hospital made its key itself, so that the kit has none.
    """
    source = built / (network.host if name == COORDINATOR else name)
    if own_key:
        (source / "startup" / "client.key").unlink()
    # before it is where somebody may take it
    if name == COORDINATOR:
        _write_coordinator_policy(source / "local")
    else:
        write_policies(source / "local")
    shutil.move(source, kit)
    return kit


def _check_request(
    kit: Path, request: x509.CertificateSigningRequest | None, *, renewed: bool
) -> None:
    """Check what a hospital that has a kit requests.

    Raises:
        DataError: The kit would be made again with a key that is not the hospital's, or the same.
    """
    site = kit.name
    if request is None:
        if renewed and not (kit / "startup" / "client.key").exists():
            raise DataError(
                f"--renew {site}: made its own key; have it make another one and a request "
                "(mixmfl_provision --request), and name their folder by --requests"
            )
        return
    same = fingerprint_of(request) == read_kit(kit, coordinator=False).fingerprint
    if renewed and same:
        raise DataError(
            f"--renew {site}: its request has the key of the kit that is to end; whoever has that "
            "kit would get in again. Have it make another key (mixmfl_provision --request)"
        )
    if not renewed and not same:
        raise DataError(
            f"{kit}: is a kit for another key than that of the request; add --renew {site}, which "
            "ends the old one"
        )


def revoke(out: Path, site: str) -> None:
    """End a hospital's kit: the coordinator's server, even while it runs, lets it in no more.

    Args:
        out: Folder of kits, whose coordinator's kit is the one in use.
        site: Name of the hospital.

    Raises:
        DataError: No certificate of such a site is valid.
    """
    host = read_kit(out / COORDINATOR, coordinator=True).server.rpartition(":")[0]
    if site not in _certificates(out) or site == host or not is_site_name(site):
        raise DataError(f"--revoke {quoted(site)}: {out} has no valid certificate of such a site")
    _forget(out / "authority", [site])
    _list_certificates(out)
    if (out / site).is_dir():
        (out / site).rename(_aside(out / site))


def _certificates(out: Path) -> dict[str, x509.Certificate]:
    """Return by subject the certificates that the authority issued and did not replace."""
    state = read_json(out / "authority" / _STATE)
    return {
        subject: x509.load_pem_x509_certificate(content["cert"].encode())
        for subject, content in state.items()
        if isinstance(content, dict)
    }


def _list_certificates(out: Path) -> None:
    """Write into the coordinator's kit which certificates its server accepts."""
    content = {
        subject: {
            "sha256": certificate.fingerprint(SHA256()).hex(),
            "until": f"{certificate.not_valid_after_utc:%Y-%m-%d}",
        }
        for subject, certificate in sorted(_certificates(out).items())
    }
    write_json(out / COORDINATOR / "local" / CERTIFICATES, content)


def _forget(authority: Path, subjects: Sequence[str]) -> None:
    """Remove keys and certificates from the authority's records, so that it issues new ones.

    Args:
        authority: Folder of the certificate authority.
        subjects: Subjects of the certificates: a site's name; for the coordinator its server's
            host and ``ADMIN``.
    """
    file = authority / _STATE
    state = read_json(file)
    for subject in subjects:
        state.pop(subject, None)  # a call that was interrupted may have removed it
    write_json(file, state)
    file.chmod(0o600)


def _aside(kit: Path) -> Path:
    """Return an unused path for a kit that is replaced."""
    number = 1
    while (aside := kit.with_name(f"{kit.name}.replaced-{number}")).exists():
        number += 1
    return aside


def _write_coordinator_policy(local: Path) -> None:
    """Write into the coordinator's kit which class a job may run there."""
    resources = read_json(local / "resources.json.default")
    resources["class_allow_list"] = [COORDINATOR_CLASS]
    resources["class_list_enforcement_mode"] = "enforce"
    resources["allow_log_streaming"] = False
    resources["components"] = [c for c in resources["components"] if "log" not in c["id"]]
    write_json(local / "resources.json", resources)


class _Quiet:
    """A logger that prints only what FLARE's provisioner calls errors."""

    def debug(self, *args: Any) -> None:
        """Print nothing."""

    info = warning = debug

    def error(self, message: str, *args: Any) -> None:
        """Print the message on stderr."""
        sys.stderr.write(f"{message}\n")
