# SPDX-License-Identifier: GPL-2.0-or-later
"""Pages over both links, by the right status and by the wrong one, on AES memory."""

from __future__ import annotations

import msgspec
import pytest
from migration_world import PAGE, TEXT, bare_pair, fill, view

from guestemu.abi.addresses import Gfn
from guestemu.machine.layout import LOW_PAGES
from guestemu.migration.sev_host import SevIoctlError

LINKS = pytest.mark.parametrize("kind", ["plain", "firmware"])


@LINKS
def test_a_private_page_keeps_its_content_and_gets_other_dram_bytes(kind: str) -> None:
    source, target, link = bare_pair(kind)
    fill(source, private=True)
    packet = link.send(PAGE, True)
    assert packet.gfn == PAGE
    assert packet.is_private
    assert len(packet.header) == (52 if kind == "firmware" else 0)
    assert (packet.data == TEXT) == (kind == "plain")
    link.deliver(packet)
    assert view(target, private=True) == TEXT
    assert len({view(source, private=False), view(target, private=False), TEXT}) == 3


@LINKS
def test_a_shared_page_moves_as_it_is(kind: str) -> None:
    source, target, link = bare_pair(kind)
    fill(source, private=False)
    packet = link.send(PAGE, False)
    assert packet.data == TEXT
    assert not packet.header
    link.deliver(packet)
    assert view(target, private=False) == TEXT
    assert view(target, private=True) != view(source, private=True)


@LINKS
def test_a_private_send_of_plain_bytes_is_what_the_cipher_makes_of_them(kind: str) -> None:
    """C15: the C=1 view is kept, the C=0 bytes change."""
    source, target, link = bare_pair(kind)
    fill(source, private=False)
    link.deliver(link.send(PAGE, True))
    seen = source.ram.cipher.decrypt(PAGE, TEXT)
    assert view(target, private=True) == seen
    assert view(target, private=False) == target.ram.cipher.encrypt(PAGE, seen) != TEXT


@LINKS
def test_a_plain_send_of_encrypted_bytes_is_garbage_under_the_other_key(kind: str) -> None:
    """C15: the C=0 bytes are kept, the C=1 view changes."""
    source, target, link = bare_pair(kind)
    fill(source, private=True)
    link.deliver(link.send(PAGE, False))
    bytes_sent = source.ram.cipher.encrypt(PAGE, TEXT)
    assert view(target, private=False) == bytes_sent
    assert view(target, private=True) == target.ram.cipher.decrypt(PAGE, bytes_sent) != TEXT


@LINKS
def test_a_low_frame_counts_as_private_memory(kind: str) -> None:
    source, target, link = bare_pair(kind)
    low = LOW_PAGES - 1
    fill(source, private=True, gfn=low)
    link.deliver(link.send(Gfn(low), True))
    assert view(target, private=True, gfn=low) == TEXT
    fill(source, private=True, data=TEXT[::-1], gfn=low)
    link.deliver(link.send(Gfn(low), False))
    assert view(target, private=True, gfn=low) not in (TEXT, TEXT[::-1])


@pytest.mark.parametrize("field", ["data", "header"])
def test_a_changed_firmware_packet_is_refused_and_stores_nothing(field: str) -> None:
    source, target, link = bare_pair("firmware")
    fill(source, private=True)
    packet = link.send(PAGE, True)
    old = bytearray(getattr(packet, field))
    old[-1] ^= 1
    before = view(target, private=False)
    with pytest.raises(SevIoctlError, match="RECEIVE_UPDATE_DATA gave -5, firmware status 0xb"):
        link.deliver(msgspec.structs.replace(packet, **{field: bytes(old)}))
    assert view(target, private=False) == before


def test_after_finish_the_firmware_sends_nothing_more() -> None:
    _source, _target, link = bare_pair("firmware")
    link.sender.finish()
    link.receiver.finish()
    with pytest.raises(SevIoctlError, match="SEND_UPDATE_DATA gave -5, firmware status 0x2"):
        link.send(PAGE, True)
