"""Whose key a site signs with, and whose it knows: from its kit, from a file, in a simulation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any

from mixmfl.core.declarations import entries, text
from mixmfl.core.errors import PrivacyError, why
from mixmfl.core.files import read_json, read_small
from mixmfl.core.records import read_value
from mixmfl.core.text import shorten
from mixmfl.federated.secure_aggregation.signatures import MOST_SITES, Identity, SiteName

_Fingerprint = Annotated[
    str, text(80, "[0-9A-Fa-f ]+", "the 64 hexadecimal digits of a key's fingerprint")
]
_Fingerprints = Annotated[Mapping[SiteName, _Fingerprint], entries(1, MOST_SITES)]


@dataclass(frozen=True)
class KeyFiles:
    """Where a site's key and certificates are, and whose signatures it takes.

    Attributes:
        folder: Folder of ``client.key``, ``client.crt`` and ``rootCA.pem``.
        no_sites: Names in the coordinator's certificates.
        peers: File with the fingerprints of the sites' keys; None: certificates suffice.
    """

    folder: Path
    no_sites: Annotated[tuple[Annotated[str, text(255)], ...], entries(0, 10)] = ()
    peers: Path | None = None


def load_identity(site: str, files: KeyFiles) -> Identity:
    """Read a site's key and certificates, and the fingerprints of its peers.

    Raises:
        PrivacyError: A file is missing or damaged, or the key is not that of the certificate.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

    key, own, root = (files.folder / name for name in ("client.key", "client.crt", "rootCA.pem"))
    if not key.is_file():
        raise PrivacyError(
            f"{key}: there is no such file; put the hospital's private key there, which "
            "mixmfl_provision --request made, or have the kit made again"
        )
    try:
        private = read_small(key)
        certificate, authority = (
            x509.load_pem_x509_certificate(read_small(file)) for file in (own, root)
        )
        public: Any = load_pem_private_key(private, None).public_key()
    except (OSError, ValueError, TypeError) as error:
        raise PrivacyError(
            f"{files.folder}: the key or a certificate cannot be read ({why(error)})"
        ) from None
    if public != certificate.public_key():
        raise PrivacyError(
            f"{key}: is not the key of {own}; put the key there that the request for this kit "
            "was made with"
        )
    return Identity(
        site,
        private,
        certificate.public_bytes(Encoding.DER),
        authority.public_bytes(Encoding.DER),
        files.no_sites,
        None if files.peers is None else read_peers(files.peers),
    )


def read_peers(file: Path) -> dict[str, str]:
    """Read the fingerprints of sites' keys, which hospitals compared: an object by site.

    Raises:
        PrivacyError: The file is missing or has something else.
    """
    content = read_json(file, PrivacyError)
    known: Mapping[str, str] = read_value(_Fingerprints, content, str(file), PrivacyError)
    peers = {site: "".join(digits.split()).lower() for site, digits in known.items()}
    if wrong := sorted(site for site, digits in peers.items() if len(digits) != 64):
        raise PrivacyError(f"{file}: {shorten(wrong)}: a fingerprint has 64 hexadecimal digits")
    return peers


def simulated_identities(sites: Sequence[str]) -> dict[str, Identity]:
    """Return identities for sites of one machine, from an authority that nobody else has."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    root, now = Ed25519PrivateKey.generate(), datetime.now(timezone.utc)

    def issue(name: str, public: Any) -> bytes:
        subject, issuer = (
            x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, each)])
            for each in (name, "simulation")
        )
        made = x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
        made = made.not_valid_before(now - timedelta(days=1))
        made = made.not_valid_after(now + timedelta(days=3650))
        return made.sign(root, None).public_bytes(Encoding.DER)

    authority, identities = issue("simulation", root.public_key()), {}
    for site in sites:
        key = Ed25519PrivateKey.generate()
        private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        identities[site] = Identity(site, private, issue(site, key.public_key()), authority)
    return identities
