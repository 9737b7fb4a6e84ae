# SPDX-License-Identifier: GPL-2.0-or-later
"""AMD's own certificates (ASK and ARK): another layout than the platform's, RSA keys.

A header of 64 bytes (version, the key's id, the certifying key's id, usage, sizes in bits), then
exponent, modulus and signature, each as long as the modulus, all little-endian. The ARK signs
itself and the ASK; the firmware knows its ARK. The roots here are generated: nothing that a real
processor signed validates against them. Source: AMD's published firmware, amd_cert.h; facts E5.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from guestemu.abi.sev_firmware import Status
from guestemu.host.firmware.certificates import ALGORITHM_RSA_SHA256, PublicKey, Usage
from guestemu.host.firmware.rsa_pss import RsaKey, verify_pss
from guestemu.host.firmware.state import Refused

_HEADER: Final = struct.Struct("<I16s16sI16xII")
_VERSION: Final = 1
_SIZES: Final = (256, 512)
assert _HEADER.size == 64


class AmdCertificate(msgspec.Struct, frozen=True):
    """Key ids are 16 bytes; `signed` is what the little-endian `signature` covers."""

    version: int
    key_id: bytes
    signer_id: bytes
    usage: int
    key: RsaKey
    signed: bytes
    signature: bytes

    def pack(self) -> bytes:
        """The bytes of the certificate."""
        return self.signed + self.signature

    def public_key(self) -> PublicKey:
        """The key it certifies, as a signer of platform certificates."""
        return PublicKey(self.usage, ALGORITHM_RSA_SHA256, self.key)


def certificate_size(key_size: int) -> int:
    """Bytes of a certificate whose modulus has `key_size` bytes."""
    return _HEADER.size + 3 * key_size


CHAIN_SIZES: Final = tuple(
    certificate_size(ask) + certificate_size(ark) for ask in _SIZES for ark in _SIZES
)
"""Lengths in bytes that an ASK with its ARK can have."""


def unsigned_part(usage: Usage, key_id: bytes, signer_id: bytes, key: RsaKey) -> bytes:
    """Everything before the signature."""
    bits = 8 * key.size
    header = _HEADER.pack(_VERSION, key_id, signer_id, usage, bits, bits)
    exponent = key.exponent.to_bytes(key.size, "little")
    return header + exponent + key.modulus.to_bytes(key.size, "little")


def take_certificate(data: bytes) -> tuple[AmdCertificate, bytes]:
    """The certificate at the start of `data` and what follows it, or INVALID_CERTIFICATE."""
    if len(data) < _HEADER.size:
        raise Refused(Status.INVALID_CERTIFICATE)
    version, key_id, signer_id, usage, exponent_bits, bits = _HEADER.unpack_from(data)
    size = bits // 8
    is_known = size in _SIZES and exponent_bits == bits
    if not is_known or len(data) < certificate_size(size):
        raise Refused(Status.INVALID_CERTIFICATE)
    middle = _HEADER.size + size
    end = middle + size
    key = RsaKey(
        int.from_bytes(data[_HEADER.size : middle], "little"),
        int.from_bytes(data[middle:end], "little"),
        size,
    )
    signature = data[end : end + size]
    found = AmdCertificate(version, key_id, signer_id, usage, key, data[:end], signature)
    return found, data[end + size :]


def validate_amd(certificate: AmdCertificate, usage: Usage, signer: AmdCertificate) -> None:
    """Usage and the name of its `signer` (INVALID_CERTIFICATE), the signature (BAD_SIGNATURE)."""
    is_named = certificate.signer_id == signer.key_id and certificate.usage == usage
    if certificate.version != _VERSION or not is_named:
        raise Refused(Status.INVALID_CERTIFICATE)
    if not verify_pss(signer.key, certificate.signed, certificate.signature[::-1]):
        raise Refused(Status.BAD_SIGNATURE)
