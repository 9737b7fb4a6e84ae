# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration packet: a 52-byte header and the ciphertext (E13, E14).

AES-128-CTR under TEK, then HMAC-SHA-256 under TIK over the context byte, the header's flags and IV,
both lengths and the ciphertext. There is no guest address, no sequence number and no total in it:
within one session packets can be placed anywhere, replayed, reordered and dropped (E15).
"""

from __future__ import annotations

import hmac
import struct
from typing import Final

import msgspec
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES128
from cryptography.hazmat.primitives.ciphers.modes import CTR

from guestemu.abi.sev_firmware import HEADER_SIZE, ChannelContext

_HEADER: Final = struct.Struct("<I16s32s")
_AUTHENTICATED: Final = struct.Struct("<BI16sII")
assert _HEADER.size == HEADER_SIZE


class PacketHeader(msgspec.Struct, frozen=True):
    """`flags` u32 (bit 0 compressed), `iv` 16 bytes, `mac` 32 bytes."""

    flags: int
    iv: bytes
    mac: bytes

    def pack(self) -> bytes:
        """The 52 bytes on the wire."""
        return _HEADER.pack(self.flags, self.iv, self.mac)


def unpack_header(data: bytes) -> PacketHeader:
    """The header in the first 52 bytes of `data`."""
    return PacketHeader(*_HEADER.unpack(data[:HEADER_SIZE]))


def counter_cipher(key: bytes, iv: bytes, data: bytes) -> bytes:
    """AES-128-CTR; encryption and decryption are the same."""
    return Cipher(AES128(key), CTR(iv)).encryptor().update(data)


def packet_mac(tik: bytes, flags: int, iv: bytes, data: bytes, size: int | None = None) -> bytes:
    """The MAC of a DATA or VMSA packet; `size` is the guest length where it differs from that of
    the ciphertext (it never does here). This firmware uses the DATA context for both (E14)."""
    length = len(data)
    guest = length if size is None else size
    prefix = _AUTHENTICATED.pack(ChannelContext.DATA, flags, iv, guest, length)
    return hmac.digest(tik, prefix + data, "sha256")


def seal(tek: bytes, tik: bytes, plain: bytes, iv: bytes) -> tuple[PacketHeader, bytes]:
    """Header and ciphertext of a packet that carries `plain`; `iv` is fresh for each packet."""
    data = counter_cipher(tek, iv, plain)
    return PacketHeader(0, iv, packet_mac(tik, 0, iv, data)), data


def unseal(tek: bytes, tik: bytes, header: PacketHeader, data: bytes) -> bytes | None:
    """The plaintext, or None where the MAC does not match."""
    mac = packet_mac(tik, header.flags, header.iv, data)
    if not hmac.compare_digest(mac, header.mac):
        return None
    return counter_cipher(tek, header.iv, data)
