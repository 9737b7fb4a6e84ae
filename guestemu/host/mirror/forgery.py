# SPDX-License-Identifier: GPL-2.0-or-later
"""Packets that no handler of this migration made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.host.mirror.mailbox import AAD_SIZE, PageHeader
from guestemu.host.mirror.side import TRANSPORT_KEY

if TYPE_CHECKING:
    from guestemu.host.mirror.world import Sent

FLIPPED: Final = 0
OTHER_SENDER: Final = 1
OTHER_KEY: Final = 2

_SOMEBODY: Final = 3
_WRONG_KEY: Final = bytes(16)
_CONTENT: Final = b"\xee" * PAGE_SIZE
_NEVER: Final = (-1, -1)


def forged(packet: Sent, kind: int, name: int, due: tuple[int, int]) -> Sent:
    """A packet for the page called `name` in the place (session, number) `due`.

    `FLIPPED`: `packet` with one bit of its page changed; without a header (the prototype's form)
    there is nothing else to make, whatever `kind` is. `OTHER_SENDER` has the owner's key, as
    another guest of the same owner has; `OTHER_KEY` says that it is the source.
    """
    header = PageHeader.unpack(packet.header)
    if kind == FLIPPED or header is None:
        page = bytes([packet.page[0] ^ 1]) + packet.page[1:]
        return _as_foreign(packet, packet.header, page)
    session, number = due
    own = PageHeader(
        header.form,
        name if header.address or header.form == 1 else 0,
        session << 32 | number,
        _SOMEBODY if kind == OTHER_SENDER else header.sender,
        bytes(16),
    )
    key = TRANSPORT_KEY if kind == OTHER_SENDER else _WRONG_KEY
    sealed = AESGCM(key).encrypt(own.iv, _CONTENT, own.pack()[:AAD_SIZE])
    signed = msgspec.structs.replace(own, tag=sealed[PAGE_SIZE:])
    return _as_foreign(packet, signed.pack(), sealed[:PAGE_SIZE])


def _as_foreign(packet: Sent, header: bytes, page: bytes) -> Sent:
    session, number = _NEVER
    return msgspec.structs.replace(
        packet, ram_addr=-1, session=session, number=number, header=header, page=page
    )
