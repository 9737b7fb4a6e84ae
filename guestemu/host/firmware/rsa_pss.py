# SPDX-License-Identifier: GPL-2.0-or-later
"""RSA-PSS with SHA-256, as AMD's root and signing keys use it (E5)."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256

_KEPT: Final = 64
"""Signatures whose answer is remembered: a chain of certificates is checked again and again."""

_PADDING: Final = padding.PSS(padding.MGF1(SHA256()), padding.PSS.DIGEST_LENGTH)


class RsaKey(msgspec.Struct, frozen=True):
    """A public key; `size` is that of the modulus in bytes."""

    exponent: int
    modulus: int
    size: int


@lru_cache(_KEPT)
def verify_pss(key: RsaKey, message: bytes, signature: bytes) -> bool:
    """Whether the big-endian `signature` of `message` is by `key`; False for a
    malformed key."""
    try:
        public = rsa.RSAPublicNumbers(key.exponent, key.modulus).public_key()
        public.verify(signature, message, _PADDING, SHA256())
    except (InvalidSignature, ValueError):
        return False
    return True


def sign_pss(private: rsa.RSAPrivateKey, message: bytes) -> bytes:
    """The big-endian signature of `message`."""
    return private.sign(message, _PADDING, SHA256())


def public_of(private: rsa.RSAPrivateKey) -> RsaKey:
    """The public half."""
    numbers = private.public_key().public_numbers()
    return RsaKey(numbers.e, numbers.n, private.key_size // 8)
