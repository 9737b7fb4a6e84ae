# SPDX-License-Identifier: GPL-2.0-or-later
"""Who a platform is: its key pairs, its certificate chain, and the roots that vouch for it (E5).

PDH <- PEK <- CEK <- ASK <- ARK, and PEK <- OCA for domains. All keys are generated here; the roots
stand in for AMD's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from guestemu.host.firmware.amd_certificates import (
    AmdCertificate,
    take_certificate,
    unsigned_part,
)
from guestemu.host.firmware.certificates import (
    ALGORITHM_ECDH_SHA256,
    ALGORITHM_ECDSA_SHA256,
    ALGORITHM_RSA_SHA256,
    Certificate,
    Usage,
    certificate_for,
    sign,
    with_signature,
)
from guestemu.host.firmware.rsa_pss import public_of, sign_pss

_ORDER: Final = int(
    "ffffffffffffffffffffffffffffffffffffffffffffffff"
    "c7634d81f4372ddf581a0db248b0a77aecec196accc52973",
    16,
)
"""Order of the group of P-384 (SEC 2)."""

Random = Callable[[int], bytes]
"""A source of that many random bytes."""


class Authority(msgspec.Struct, frozen=True):
    """A vendor: ARK and ASK certificates and the key that signs chips' CEKs."""

    ark: AmdCertificate
    ask: AmdCertificate
    ask_key: rsa.RSAPrivateKey

    def chain(self) -> bytes:
        """ASK then ARK, as user space hands them to SEND_START."""
        return self.ask.pack() + self.ark.pack()


class Owner(msgspec.Struct, frozen=True):
    """A platform owner: the OCA key pair and its self-signed certificate. Platforms of one owner
    form a domain."""

    key: ec.EllipticCurvePrivateKey
    certificate: Certificate


class Identity(msgspec.Struct, frozen=True):
    """One platform's keys and certificates; `pdh_key` is the Diffie-Hellman key of sessions."""

    pdh_key: ec.EllipticCurvePrivateKey
    pdh: Certificate
    pek: Certificate
    oca: Certificate
    cek: Certificate
    authority: Authority

    def platform_chain(self) -> bytes:
        """PEK, OCA, CEK, as PDH_CERT_EXPORT gives them out."""
        return self.pek.pack() + self.oca.pack() + self.cek.pack()


def generate_authority() -> Authority:
    """Fresh roots with RSA keys of 2048 bits, from the operating system's randomness (about a tenth
    of a second each)."""
    ark_key = rsa.generate_private_key(65537, 2048)
    ask_key = rsa.generate_private_key(65537, 2048)
    ark_id, ask_id = b"guestemu ark    ", b"guestemu ask    "
    ark = _amd_certificate(Usage.ARK, ark_id, ark_id, ark_key, ark_key)
    ask = _amd_certificate(Usage.ASK, ask_id, ark_id, ask_key, ark_key)
    return Authority(ark, ask, ask_key)


def _amd_certificate(
    usage: Usage,
    key_id: bytes,
    signer_id: bytes,
    key: rsa.RSAPrivateKey,
    signer: rsa.RSAPrivateKey,
) -> AmdCertificate:
    signed = unsigned_part(usage, key_id, signer_id, public_of(key))
    return take_certificate(signed + sign_pss(signer, signed)[::-1])[0]


def generate_owner(random: Random, api: tuple[int, int]) -> Owner:
    """A fresh self-signed OCA."""
    key = _private_key(random)
    plain = certificate_for(Usage.OCA, ALGORITHM_ECDSA_SHA256, key.public_key(), api)
    return Owner(key, sign(plain, Usage.OCA, key))


def generate_identity(
    authority: Authority, owner: Owner, random: Random, api: tuple[int, int]
) -> Identity:
    """Fresh PDH, PEK and CEK of one chip under `authority` and `owner`. Keys depend on `random`
    alone; ECDSA and PSS signatures are randomised by the library."""
    pdh_key, pek_key, cek_key = (_private_key(random) for _ in range(3))
    cek = certificate_for(Usage.CEK, ALGORITHM_ECDSA_SHA256, cek_key.public_key(), api)
    signature = sign_pss(authority.ask_key, cek.body)[::-1]
    cek = with_signature(cek, Usage.ASK, ALGORITHM_RSA_SHA256, signature)
    pek = certificate_for(Usage.PEK, ALGORITHM_ECDSA_SHA256, pek_key.public_key(), api)
    pek = sign(sign(pek, Usage.OCA, owner.key), Usage.CEK, cek_key)
    pdh = certificate_for(Usage.PDH, ALGORITHM_ECDH_SHA256, pdh_key.public_key(), api)
    pdh = sign(pdh, Usage.PEK, pek_key)
    return Identity(pdh_key, pdh, pek, owner.certificate, cek, authority)


def _private_key(random: Random) -> ec.EllipticCurvePrivateKey:
    """A P-384 key with 64 extra random bits, so that the reduction shows no bias."""
    scalar = int.from_bytes(random(56), "big") % (_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP384R1())
