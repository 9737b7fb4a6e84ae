# SPDX-License-Identifier: GPL-2.0-or-later
"""SEV certificates (PDH, PEK, CEK, OCA): layout, signatures, validation.

2084 bytes, little-endian: version, API version, public key (usage, algorithm, curve and point in
fields of 72 bytes), two signatures of 520 bytes. The PEK is signed by OCA and CEK, the PDH by the
PEK, the OCA by itself, the CEK by AMD's ASK with RSA-PSS. Source: AMD's published firmware,
sev_cert.h and sev_cert_validate; facts E5.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.hashes import SHA256

from guestemu.abi.sev_firmware import Status
from guestemu.host.firmware.rsa_pss import RsaKey, verify_pss
from guestemu.host.firmware.state import Refused

CERTIFICATE_SIZE: Final = 2084
_BODY_SIZE: Final = 1044
_BODY: Final = struct.Struct("<IBBHIII72s72s880x")
_SIGNATURE: Final = struct.Struct("<II512s")
_CURVE_P384: Final = 2
_POINT_FIELD: Final = 72
_VERSION: Final = 1
assert _BODY.size == _BODY_SIZE
assert _BODY_SIZE + 2 * _SIGNATURE.size == CERTIFICATE_SIZE


class Usage(enum.IntEnum):
    """What a key is for."""

    __hash__ = int.__hash__

    ARK = 0x00
    ASK = 0x13
    INVALID = 0x1000
    OCA = 0x1001
    PEK = 0x1002
    PDH = 0x1003
    CEK = 0x1004


ALGORITHM_INVALID: Final = 0x000
ALGORITHM_RSA_SHA256: Final = 0x001
ALGORITHM_ECDSA_SHA256: Final = 0x002
ALGORITHM_ECDH_SHA256: Final = 0x003

_PARENTS: Final[Mapping[int, tuple[Usage, ...]]] = {
    Usage.PDH: (Usage.PEK,),
    Usage.PEK: (Usage.OCA, Usage.CEK),
    Usage.OCA: (Usage.OCA,),
    Usage.CEK: (Usage.ASK,),
}


_KEPT: Final = 64
"""Keys and signatures whose answer is remembered: programs meet the same few again and again."""


class PublicKey(msgspec.Struct, frozen=True):
    """A key that signs certificates: an elliptic-curve point, or AMD's RSA key."""

    usage: int
    algorithm: int
    key: ec.EllipticCurvePublicKey | RsaKey


class Certificate(msgspec.Struct, frozen=True):
    """One certificate; `body` is what is signed, `signatures` are (usage, algorithm, 512 bytes)."""

    version: int
    api: tuple[int, int]
    usage: int
    algorithm: int
    curve: int
    x: bytes
    y: bytes
    body: bytes
    signatures: tuple[tuple[int, int, bytes], ...]

    def pack(self) -> bytes:
        """The 2084 bytes."""
        return self.body + b"".join(_SIGNATURE.pack(*signature) for signature in self.signatures)

    def public_key(self) -> PublicKey:
        """The key it certifies, or INVALID_CERTIFICATE where that is not a point of P-384."""
        if self.curve != _CURVE_P384:
            raise Refused(Status.INVALID_CERTIFICATE)
        x, y = int.from_bytes(self.x, "little"), int.from_bytes(self.y, "little")
        try:
            return PublicKey(self.usage, self.algorithm, _point(x, y))
        except ValueError:
            raise Refused(Status.INVALID_CERTIFICATE) from None


def unpack_certificate(data: bytes) -> Certificate:
    """The certificate in 2084 bytes; nothing is validated."""
    body = data[:_BODY_SIZE]
    version, major, minor, _reserved, usage, algorithm, curve, x, y = _BODY.unpack(body)
    signatures = tuple(_SIGNATURE.iter_unpack(data[_BODY_SIZE:CERTIFICATE_SIZE]))
    return Certificate(version, (major, minor), usage, algorithm, curve, x, y, body, signatures)


def certificate_for(
    usage: Usage, algorithm: int, public: ec.EllipticCurvePublicKey, api: tuple[int, int]
) -> Certificate:
    """An unsigned certificate of `public` for firmware of API version `api`."""
    numbers = public.public_numbers()
    x = numbers.x.to_bytes(_POINT_FIELD, "little")
    y = numbers.y.to_bytes(_POINT_FIELD, "little")
    body = _BODY.pack(_VERSION, api[0], api[1], 0, usage, algorithm, _CURVE_P384, x, y)
    unsigned = (int(Usage.INVALID), ALGORITHM_INVALID, bytes(512))
    signatures = (unsigned, unsigned)
    return Certificate(_VERSION, api, usage, algorithm, _CURVE_P384, x, y, body, signatures)


def with_signature(
    certificate: Certificate, usage: Usage, algorithm: int, value: bytes
) -> Certificate:
    """The certificate with `value` in its first unused signature field."""
    filled = list(certificate.signatures)
    free = next(index for index, entry in enumerate(filled) if entry[0] == Usage.INVALID)
    filled[free] = (int(usage), algorithm, value.ljust(512, b"\0"))
    return msgspec.structs.replace(certificate, signatures=tuple(filled))


def sign(
    certificate: Certificate, usage: Usage, private: ec.EllipticCurvePrivateKey
) -> Certificate:
    """The certificate with an ECDSA signature of the key whose usage is `usage`."""
    r, s = utils.decode_dss_signature(private.sign(certificate.body, ec.ECDSA(SHA256())))
    value = r.to_bytes(_POINT_FIELD, "little") + s.to_bytes(_POINT_FIELD, "little")
    return with_signature(certificate, usage, ALGORITHM_ECDSA_SHA256, value)


def check_diffie_hellman(certificate: Certificate) -> ec.EllipticCurvePublicKey:
    """The peer's PDH key, or INVALID_CERTIFICATE where the body does not describe one."""
    is_pdh = certificate.usage == Usage.PDH and certificate.algorithm == ALGORITHM_ECDH_SHA256
    if certificate.version != _VERSION or not is_pdh:
        raise Refused(Status.INVALID_CERTIFICATE)
    key = certificate.public_key().key
    assert isinstance(key, ec.EllipticCurvePublicKey)
    return key


def validate(certificate: Certificate, signer: PublicKey) -> None:
    """The signature by `signer`, then the body, then whether such a key may sign such a one.

    BAD_SIGNATURE for a wrong or malformed signature, INVALID_CERTIFICATE for everything else. The
    last signature that names `signer` decides, as in the firmware.
    """
    result = Status.INVALID_CERTIFICATE
    for usage, algorithm, value in certificate.signatures:
        if (algorithm == ALGORITHM_INVALID) != (usage == Usage.INVALID):
            raise Refused(Status.BAD_SIGNATURE)
        if algorithm == signer.algorithm and usage == signer.usage:
            is_good = _verify(signer, certificate.body, value)
            result = Status.SUCCESS if is_good else Status.BAD_SIGNATURE
    if result is not Status.SUCCESS:
        raise Refused(result)
    if certificate.version != _VERSION:
        raise Refused(Status.INVALID_CERTIFICATE)
    certificate.public_key()
    if signer.usage not in _PARENTS.get(certificate.usage, ()):
        raise Refused(Status.INVALID_CERTIFICATE)


def _verify(signer: PublicKey, body: bytes, value: bytes) -> bool:
    key = signer.key
    if isinstance(key, RsaKey):
        return verify_pss(key, body, value[: key.size][::-1])
    point = key.public_numbers()
    return _is_signed(point.x, point.y, body, value)


@lru_cache(_KEPT)
def _point(x: int, y: int) -> ec.EllipticCurvePublicKey:
    """The key at a point of P-384. Raises ValueError where there is none."""
    return ec.EllipticCurvePublicNumbers(x, y, ec.SECP384R1()).public_key()


@lru_cache(_KEPT)
def _is_signed(x: int, y: int, body: bytes, value: bytes) -> bool:
    """Whether the signature `value` of `body` is by the key at (x, y)."""
    r = int.from_bytes(value[:_POINT_FIELD], "little")
    s = int.from_bytes(value[_POINT_FIELD : 2 * _POINT_FIELD], "little")
    try:
        _point(x, y).verify(utils.encode_dss_signature(r, s), body, ec.ECDSA(SHA256()))
    except InvalidSignature:
        return False
    return True
