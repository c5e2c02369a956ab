"""Masks that hide a number in a sum: keys, shares of secrets, key streams, fixed point.

``cryptography`` does what is cryptography here. The arithmetic is modulo 2^64, in which a mask
that is uniform hides any number perfectly and cancels exactly.
"""

import json
import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mixmfl.core.errors import PrivacyError
from mixmfl.core.strict_json import parse_json

Words = npt.NDArray[np.uint64]
"""Numbers modulo 2^64."""

SEED_BYTES = 32

# the Mersenne prime above all secrets of 256 bits
_PRIME = 2**521 - 1


def key_pair() -> tuple[bytes, bytes]:
    """Return a new X25519 private key and its public key, 32 bytes each."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    made = X25519PrivateKey.generate()
    return made.private_bytes_raw(), made.public_key().public_bytes_raw()


def agree(private: bytes, public: bytes, purpose: str) -> bytes:
    """Return the secret of two key pairs for one purpose, 32 bytes; the same from either side.

    Raises:
        PrivacyError: The public key is none.
    """
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    try:
        mine, theirs = (
            X25519PrivateKey.from_private_bytes(private),
            X25519PublicKey.from_public_bytes(public),
        )
        common = mine.exchange(theirs)  # raises for keys of small order
    except ValueError as error:
        raise PrivacyError(f"a key that came for masking is none ({error})") from None
    derive = HKDF(hashes.SHA256(), SEED_BYTES, salt=None, info=f"mixmfl {purpose}".encode())
    return derive.derive(common)


def seal(key: bytes, content: Any) -> str:
    """Return JSON content encrypted and authenticated by AES-GCM, as hexadecimal digits."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = secrets.token_bytes(12)
    return (nonce + AESGCM(key).encrypt(nonce, json.dumps(content).encode(), None)).hex()


def open_sealed(key: bytes, sealed: str) -> Any:
    """Return what ``seal`` was given.

    Raises:
        PrivacyError: The bytes were sealed with another key, or changed on the way.
    """
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        content = bytes.fromhex(sealed)
        return parse_json(AESGCM(key).decrypt(content[:12], content[12:], None))
    except (InvalidTag, ValueError, TypeError):
        raise PrivacyError("shares that came for masking were changed on the way") from None


def key_stream(seed: bytes, count: int, start: int = 0) -> Words:
    """Return numbers that only who knows the seed can tell from random: AES-256 in counter mode.

    A seed must serve one stream only.

    Args:
        seed: 32 bytes.
        count: How many numbers.
        start: The first, counted from 0: a stream can be had a piece at a time.
    """
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    block, skip = divmod(start, 2)  # a block of AES is two numbers
    stream = Cipher(algorithms.AES(seed), modes.CTR(block.to_bytes(16, "big"))).encryptor()
    made = np.frombuffer(stream.update(bytes(8 * (skip + count))), dtype="<u8")
    return made[skip:].astype(np.uint64, copy=False)


def split_secret(secret: bytes, shares: int, threshold: int) -> list[str]:
    """Return shares of a secret, any ``threshold`` of which give it and fewer tell nothing.

    Shamir 1979, How to share a secret. The share at place i belongs to participant i + 1.
    """
    terms = [
        int.from_bytes(secret, "big"),
        *(secrets.randbelow(_PRIME) for _ in range(1, threshold)),
    ]
    return [
        f"{sum(term * pow(x, power, _PRIME) for power, term in enumerate(terms)) % _PRIME:x}"
        for x in range(1, shares + 1)
    ]


def join_secret(shares: Mapping[int, str], threshold: int) -> bytes:
    """Return the secret of ``threshold`` or more shares; of more, one may be wrong.

    Args:
        shares: Shares by participant, counted from 1.
        threshold: The threshold that the secret was split with.

    Raises:
        PrivacyError: There are fewer shares, or they do not belong together.
    """
    if len(shares) < threshold:
        raise PrivacyError(f"{len(shares)} shares of a secret came, {threshold} are needed")
    places = sorted(shares)
    # where there are more than are needed, one that is wrong can be left out: by chance a secret
    # of wrong shares is this small once in 2^265
    for without in (None, *(places if len(places) > threshold else ())):
        chosen = [place for place in places if place != without][:threshold]
        if (secret := _joined({place: shares[place] for place in chosen})) < 2 ** (8 * SEED_BYTES):
            return secret.to_bytes(SEED_BYTES, "big")
    raise PrivacyError("shares of a secret do not belong together")


def _joined(shares: Mapping[int, str]) -> int:
    total = 0
    for x, share in shares.items():
        factor = 1
        for other in shares:
            if other != x:
                factor = factor * other * pow(other - x, -1, _PRIME) % _PRIME
        total += int(share, 16) * factor
    return total % _PRIME


def to_words(values: npt.NDArray[np.float64], bits: int, parties: int) -> Words:
    """Return numbers in fixed point modulo 2^64, so that sums of ``parties`` of them fit.

    Args:
        values: Numbers that will be summed.
        bits: Binary digits after the point.
        parties: How many at most.

    Raises:
        PrivacyError: One is too large, NaN or infinite.
    """
    scaled = np.rint(values * 2.0**bits)
    if not (np.abs(scaled) < 2.0**62 / parties).all():
        raise PrivacyError(
            f"a number is NaN, infinite or beyond {2.0 ** (62 - bits) / parties:.3g}, and cannot "
            "be masked"
        )
    return scaled.astype(np.int64).view(np.uint64)


def from_words(words: Words, bits: int) -> npt.NDArray[np.float64]:
    """Return what a sum of ``to_words`` stands for."""
    return words.view(np.int64).astype(np.float64) / 2.0**bits


def sum_words(parts: Iterable[Words]) -> Words:
    """Return the sum modulo 2^64, of at least one part; one is there at a time."""
    left = iter(parts)
    total = next(left).copy()
    for part in left:
        total += part
    return total
