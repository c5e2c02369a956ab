"""Signatures under the keys of masked rounds, made by keys that the coordinator does not hold.

The coordinator passes the sites' keys of a round on. So each site signs its own, together with the
federation, run, round and name that it is for, and takes another site's only with a certificate
of the federation's authority, or with the key that the hospitals compared by telephone.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Annotated, Any

from mixmfl.core.declarations import text
from mixmfl.core.errors import PrivacyError
from mixmfl.core.text import quoted
from mixmfl.federated.secure_aggregation.crypto import KEY_BYTES

if TYPE_CHECKING:
    from cryptography import x509

MOST_SITES = 1000
"""Most sites in a masked round: every site adds a mask for every other."""

SiteName = Annotated[str, text(80)]

_BASE64 = "[A-Za-z0-9+/]+={0,2}"


PublicKey = Annotated[
    str, text(2 * KEY_BYTES, f"[0-9a-f]{{{2 * KEY_BYTES}}}", "hexadecimal digits of a key")
]
Certificate = Annotated[str, text(8192, _BASE64, "a certificate in base64")]
Signature = Annotated[str, text(1024, _BASE64, "a signature in base64")]


@dataclass(frozen=True)
class SignedKey:
    """A site's public key of a round, and what shows that it is this site's.

    Attributes:
        key: The key, hexadecimal.
        certificate: The site's certificate, DER in base64.
        signature: Signature by the certificate's key, base64; see ``signed_content``.
    """

    key: PublicKey
    certificate: Certificate
    signature: Signature

    def to_json(self) -> dict[str, str]:
        """Return the key as a record."""
        return {"key": self.key, "certificate": self.certificate, "signature": self.signature}


@dataclass(frozen=True)
class Identity:
    """What a site signs with, and whose signatures it takes.

    Attributes:
        site: Name of the site.
        private: Private key of the certificate, PEM.
        certificate: The site's certificate, DER.
        authority: Certificate of the federation's authority, DER; its digest names the federation.
        no_sites: Names in the coordinator's certificates, which the authority issued, too.
        peers: Fingerprint of the key of every site that is taken; None: certificates suffice.
    """

    site: str
    private: bytes = field(repr=False)
    certificate: bytes
    authority: bytes
    no_sites: tuple[str, ...] = ()
    peers: Mapping[str, str] | None = None

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the site's own key, which hospitals compare by telephone."""
        from cryptography import x509

        return fingerprint_of(x509.load_der_x509_certificate(self.certificate))

    def sign(self, run: str, round_number: int, public: bytes) -> SignedKey:
        """Sign a public key for a round of a run."""
        from cryptography.hazmat.primitives.asymmetric import rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        content = signed_content(self.authority, run, round_number, self.site, public.hex())
        private: Any = load_pem_private_key(self.private, None)
        how = _rsa() if isinstance(private, rsa.RSAPrivateKey) else ()
        return SignedKey(
            public.hex(),
            base64.b64encode(self.certificate).decode(),
            base64.b64encode(private.sign(content, *how)).decode(),
        )

    def check(self, run: str, round_number: int, keys: Mapping[str, SignedKey]) -> None:
        """Check that keys of a round are those of the sites that they are said to be of.

        Args:
            run: Name of the run, and how it was joined.
            round_number: Counted from 0.
            keys: What the coordinator passed on, by site; this site's own is not looked at.

        Raises:
            PrivacyError: One of them is not shown to be that; nothing may be sent.
        """
        from cryptography import x509

        now, authority = datetime.now(timezone.utc), x509.load_der_x509_certificate(self.authority)
        for site, signed in keys.items():
            if site == self.site:
                continue
            try:
                self._check_one(run, round_number, site, signed, authority, now)
            except _NotShownError as why:
                raise PrivacyError(
                    f"the key that the coordinator passed on as that of site {quoted(site)} in "
                    f"round {round_number + 1} is not shown to be of that site: {why}. Nothing is "
                    "sent: someone between the sites could read it. Tell the hospitals"
                ) from None

    def _check_one(
        self,
        run: str,
        round_number: int,
        site: str,
        signed: SignedKey,
        authority: "x509.Certificate",
        now: datetime,
    ) -> None:
        from cryptography import x509
        from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

        # what a certificate that anybody made raises, beside its own errors
        unreadable = (ValueError, TypeError, x509.InvalidVersion, UnsupportedAlgorithm)
        try:
            certificate = x509.load_der_x509_certificate(_decoded(signed.certificate))
            (name,) = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        except unreadable:
            raise _NotShownError("its certificate cannot be read") from None
        if name.value != site:
            raise _NotShownError(f"its certificate is that of {quoted(name.value)}")
        if site in self.no_sites:
            raise _NotShownError("its certificate is the coordinator's and no hospital's")
        try:
            certificate.verify_directly_issued_by(authority)
        except (*unreadable, InvalidSignature):
            raise _NotShownError("its certificate is not of this federation's authority") from None
        if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
            raise _NotShownError(
                f"its certificate is valid from {certificate.not_valid_before_utc:%Y-%m-%d} to "
                f"{certificate.not_valid_after_utc:%Y-%m-%d}, and it is {now:%Y-%m-%d}"
            )
        fingerprint = fingerprint_of(certificate)
        if self.peers is not None and (known := self.peers.get(site)) != fingerprint:
            expected = f"this site knows {known}" if known else "this site knows no key of it"
            raise _NotShownError(f"its key has the fingerprint {fingerprint}, and {expected}")
        content = signed_content(self.authority, run, round_number, site, signed.key)
        if not _is_signed(certificate.public_key(), _decoded(signed.signature), content):
            raise _NotShownError(
                "its signature is not of this federation, run, plans, settings, round and key"
            )


class _NotShownError(Exception):
    """Why a key is not shown to be a site's."""


def signed_content(authority: bytes, run: str, round_number: int, site: str, key: str) -> bytes:
    """Return what a site signs: that a key is its own, in one round of one run of a federation."""
    federation = hashlib.sha256(authority).hexdigest()
    return json.dumps(["mixmfl key of a round", federation, run, round_number, site, key]).encode()


def fingerprint_of(holder: Any) -> str:
    """Return the fingerprint of a public key: the SHA-256 of its DER form.

    Args:
        holder: A certificate or a signing request.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(holder.public_key().public_bytes(*form)).hexdigest()


def _is_signed(public: Any, signature: bytes, content: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

    try:
        if isinstance(public, rsa.RSAPublicKey):
            public.verify(signature, content, *_rsa())
        elif isinstance(public, ed25519.Ed25519PublicKey):  # in a simulation
            public.verify(signature, content)
        else:
            return False
    except InvalidSignature:
        return False
    return True


def _rsa() -> tuple[Any, Any]:
    """Return padding and digest of a signature by RSA."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import padding

    sha256 = hashes.SHA256()
    return padding.PSS(padding.MGF1(sha256), padding.PSS.DIGEST_LENGTH), sha256


def _decoded(content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error:
        return b""
