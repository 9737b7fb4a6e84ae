# SPDX-License-Identifier: GPL-2.0-or-later
"""Key derivation: NIST SP 800-108 in counter mode with HMAC-SHA-256, and ECDH on P-384 (E16).

The counter and the length are 32-bit numbers. SP 800-108 leaves their byte order to the protocol;
the firmware's is little-endian (AMD's published source, nist_kdf.c: the integers' own bytes on a
little-endian processor).
"""

from __future__ import annotations

import hmac
from functools import lru_cache
from typing import Final, Literal

from cryptography.hazmat.primitives.asymmetric import ec

MASTER_SECRET_LABEL: Final = b"sev-master-secret"
KEK_LABEL: Final = b"sev-kek"
KIK_LABEL: Final = b"sev-kik"
KEY_SIZE: Final = 16
"""Bytes of KEK, KIK, TEK, TIK and of the master secret."""

_KEPT: Final = 64
"""Secrets that are remembered: two platforms agree on the same one in every program."""

ByteOrder = Literal["little", "big"]


def counter_mode(key: bytes, fixed: bytes, size: int, order: ByteOrder) -> bytes:
    """SP 800-108 section 5.1: `size` bytes from HMAC-SHA-256(key, counter || fixed), counter from 1
    in 32 bits of byte order `order`."""
    out = b""
    counter = 0
    while len(out) < size:
        counter += 1
        out += hmac.digest(key, counter.to_bytes(4, order) + fixed, "sha256")
    return out[:size]


def derive(key: bytes, label: bytes, context: bytes, size: int) -> bytes:
    """The firmware's derivation: label, a zero byte, context, length in bits; little-endian."""
    fixed = label + b"\0" + context + (8 * size).to_bytes(4, "little")
    return counter_mode(key, fixed, size, "little")


def agree(private: ec.EllipticCurvePrivateKey, public: ec.EllipticCurvePublicKey) -> bytes:
    """The ECDH shared secret on P-384: the x coordinate, 48 bytes big-endian."""
    point = public.public_numbers()
    return _exchange(private, point.x, point.y)


@lru_cache(_KEPT)
def _exchange(private: ec.EllipticCurvePrivateKey, x: int, y: int) -> bytes:
    peer = ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()
    return private.exchange(ec.ECDH(), peer)


def master_secret(
    private: ec.EllipticCurvePrivateKey, public: ec.EllipticCurvePublicKey, nonce: bytes
) -> bytes:
    """The 16-byte master secret of a session between two PDH keys, with the session's nonce."""
    return derive(agree(private, public), MASTER_SECRET_LABEL, nonce, KEY_SIZE)


def wrap_keys(master: bytes) -> tuple[bytes, bytes]:
    """(KEK, KIK), the keys that wrap the transport keys and authenticate the wrapping."""
    return derive(master, KEK_LABEL, b"", KEY_SIZE), derive(master, KIK_LABEL, b"", KEY_SIZE)
