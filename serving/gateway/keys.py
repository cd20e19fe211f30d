"""API keys: made, recognised and hashed here, without I/O.

    fl_live_ 0123456789 abcdefghijABCDEFGHIJ 4Gk2Zq
             key id     the rest of 30       CRC-32 of all before it, six digits of base 62
             (public)   random characters

A typing error or a made-up key fails the checksum and costs no look-up. The table holds HMAC-SHA256(pepper, key) under the
key id: 178 random bits need no slow hash, and without the pepper, which is in another service, the table proves nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from dataclasses import dataclass

PREFIX = "fl_live_"
KEY_ID_LENGTH = 10
PROOF_SECRET_BYTES = 32
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_RANDOM_LENGTH, _CHECK_LENGTH = 30, 6
_PROOF_BYTES = 32
_SHAPE = re.compile(rf"{PREFIX}[0-9A-Za-z]{{{_RANDOM_LENGTH + _CHECK_LENGTH}}}", re.ASCII)


@dataclass(frozen=True)
class ApiKey:
    """A well-formed key. It is a secret: only `key_id` may be stored, shown or logged."""

    secret: str

    @property
    def key_id(self) -> str:
        """The public name of the key."""
        return self.secret[len(PREFIX) : len(PREFIX) + KEY_ID_LENGTH]

    def __repr__(self) -> str:
        return f"ApiKey({self.key_id})"


def mint() -> ApiKey:
    """A new key from the system's randomness."""
    body = PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(_RANDOM_LENGTH))
    return ApiKey(body + _checksum(body))


def parse(text: str) -> ApiKey | None:
    """`text` as a key, or None where it cannot be one."""
    if _SHAPE.fullmatch(text) is None or _checksum(text[:-_CHECK_LENGTH]) != text[-_CHECK_LENGTH:]:
        return None
    return ApiKey(text)


def digest(pepper: bytes, key: ApiKey) -> bytes:
    """What is stored in place of the key."""
    return hmac.digest(pepper, key.secret.encode(), "sha256")


def matches(pepper: bytes, key: ApiKey, stored: bytes) -> bool:
    """`key` is the one stored. The comparison takes the same time wherever they differ."""
    return hmac.compare_digest(digest(pepper, key), stored)


def proof(secret: bytes, key: ApiKey) -> bytes:
    """What a process may keep in memory to know a key again that it has matched; without its own `secret` it is worth nothing."""
    return hashlib.blake2b(key.secret.encode(), key=secret, digest_size=_PROOF_BYTES).digest()


def _checksum(text: str) -> str:
    value, digits = zlib.crc32(text.encode()), ""
    for _ in range(_CHECK_LENGTH):
        value, digit = divmod(value, len(_ALPHABET))
        digits = _ALPHABET[digit] + digits
    return digits
