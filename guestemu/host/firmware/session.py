# SPDX-License-Identifier: GPL-2.0-or-later
"""The session blob of SEND_START and RECEIVE_START: how the transport keys cross (E16).

128 bytes: nonce, wrapped TEK and TIK, the IV of the wrapping, MAC of the wrapped keys under KIK,
MAC of the policy under TIK. Both ends derive KEK and KIK from their ECDH secret and the nonce.
"""

from __future__ import annotations

import hmac
import struct
from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec

from guestemu.abi.sev_firmware import SESSION_SIZE
from guestemu.host.firmware.kdf import KEY_SIZE, master_secret, wrap_keys
from guestemu.host.firmware.packet import counter_cipher

_SESSION: Final = struct.Struct("<16s32s16s32s32s")
assert _SESSION.size == SESSION_SIZE


class TransportKeys(msgspec.Struct, frozen=True):
    """The transport keys of an open session: encryption and integrity, 16 bytes each."""

    tek: bytes
    tik: bytes


class FirmwareSession(msgspec.Struct, frozen=True):
    """The blob: `nonce` and `iv` of 16 bytes, `wrapped`, `wrap_mac` and `policy_mac` of 32."""

    nonce: bytes
    wrapped: bytes
    iv: bytes
    wrap_mac: bytes
    policy_mac: bytes

    def pack(self) -> bytes:
        """The 128 bytes."""
        return _SESSION.pack(self.nonce, self.wrapped, self.iv, self.wrap_mac, self.policy_mac)


def unpack_session(data: bytes) -> FirmwareSession:
    """The fields of 128 bytes of session blob."""
    return FirmwareSession(*_SESSION.unpack(data))


def policy_mac(tik: bytes, policy: int) -> bytes:
    """HMAC-SHA-256 under TIK of the policy's four bytes."""
    return hmac.digest(tik, policy.to_bytes(4, "little"), "sha256")


def open_client(
    private: ec.EllipticCurvePrivateKey,
    peer: ec.EllipticCurvePublicKey,
    policy: int,
    random: Callable[[int], bytes],
) -> tuple[FirmwareSession, TransportKeys]:
    """The sender's side: random transport keys, wrapped for the owner of `peer`."""
    channel = TransportKeys(random(KEY_SIZE), random(KEY_SIZE))
    nonce = random(16)
    kek, kik = wrap_keys(master_secret(private, peer, nonce))
    iv = random(16)
    wrapped = counter_cipher(kek, iv, channel.tek + channel.tik)
    wrap_mac = hmac.digest(kik, wrapped, "sha256")
    return FirmwareSession(nonce, wrapped, iv, wrap_mac, policy_mac(channel.tik, policy)), channel


def open_server(
    private: ec.EllipticCurvePrivateKey, peer: ec.EllipticCurvePublicKey, session: FirmwareSession
) -> TransportKeys | None:
    """The receiver's side: the transport keys, or None where the MAC of the wrapping is wrong."""
    kek, kik = wrap_keys(master_secret(private, peer, session.nonce))
    if not hmac.compare_digest(hmac.digest(kik, session.wrapped, "sha256"), session.wrap_mac):
        return None
    keys = counter_cipher(kek, session.iv, session.wrapped)
    return TransportKeys(keys[:KEY_SIZE], keys[KEY_SIZE:])
