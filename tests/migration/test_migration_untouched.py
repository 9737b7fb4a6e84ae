# SPDX-License-Identifier: GPL-2.0-or-later
"""A flip without a store, then a migration, then the flip back (C15, C15b, S3).

The rule: a private send keeps what the private view (C=1) shows and changes the bytes in DRAM
(C=0); a plain send keeps the bytes and changes what the private view shows; never both.
"""

from __future__ import annotations

import pytest
from migration_world import TEXT, bare_pair, fill, host_for, snippet, view
from test_migration_program import PASS, names, run

from guestemu.abi.regions import Region
from guestemu.migration.endpoints import DESTINATION_BASE, Destination, Source, bulk_packets
from guestemu.migration.firmware_link import FirmwareReceiver, FirmwareSender
from guestemu.migration.links import PlainSender, Sender

LINKS = pytest.mark.parametrize("kind", ["plain", "firmware"])
GFN = 0x400


@LINKS
@pytest.mark.parametrize("as_private", [True, False])
@pytest.mark.parametrize("written_private", [True, False])
def test_one_view_is_kept_and_the_other_changes(
    kind: str, as_private: bool, written_private: bool
) -> None:
    source, target, link = bare_pair(kind)
    fill(source, written_private, TEXT)
    link.deliver(link.send(20, as_private))
    kept = {private for private in (True, False) if view(source, private) == view(target, private)}
    assert kept == {as_private}


@LINKS
@pytest.mark.parametrize("as_private", [True, False])
def test_there_on_the_source_and_back_at_the_destination(kind: str, as_private: bool) -> None:
    """The guest writes privately, flips to shared without touching the page and is migrated. The
    shared view is ciphertext, with a private send another one; flipped back, the text is there
    again only after a private send."""
    guest, other = snippet(), snippet(bytes(range(16, 32)))
    gva = guest.gva(Region.D, 0)
    target = Destination(other, host_for(other))
    target.take_bulk(bulk_packets(guest))
    target.reset()
    guest.memset(gva, 0x11, 4096)
    guest.touch_cbit(gva, False)
    sender: Sender = PlainSender(guest.machine.ram)
    if kind == "firmware":
        sender = FirmwareSender(guest.machine.ram, guest.machine.config.key)
        receiver = FirmwareReceiver(other.machine.ram, DESTINATION_BASE)
        target.use(receiver, receiver.open(sender.open(receiver.offer())))
    target.deliver(sender.send(GFN, as_private))
    target.resume(Source(guest, host_for(guest), sender, {GFN}, target.deliver).finish())
    before = guest.load(gva).value
    ciphertext = guest.machine.ram.cipher.encrypt(GFN, b"\x11" * 4096)
    assert before == int.from_bytes(ciphertext[:8], "little")
    after = other.load(gva).value
    assert (after == before) == (not as_private)
    assert other.touch_cbit(gva, True).end is None
    assert (other.load(gva).value == 0x1111111111111111) == as_private


@pytest.mark.parametrize("link", ["firmware=0", "firmware=1"])
def test_s3_by_either_status_as_a_program(link: str) -> None:
    """By the old status (copied before the hypercall) the round trip keeps its text, by the new
    one it is lost, by lost_strict alone."""
    start = f"write D[0] value=0x11\nmigrate_start D[0] {link}\n"
    there = "touch_cbit D[0] private=0\nhypercall nr=12 a0=D[0] a1=1 a2=0\n"
    back = "touch_cbit D[0] private=1\nhypercall nr=12 a0=D[0] a1=1 a2=0x10\n"
    old = f"host_status_copy\n{there}host_dirty_fetch\nhost_send\n"
    assert names(run(f"{start}{old}migrate_stop\n{back}read D[0]")) == []
    new = f"{start}{there}{PASS}migrate_stop\n{back}read D[0]"
    assert names(run(new)) == [("lost_strict", 10)]
    unsent = f"{start}{PASS}{there}{PASS}migrate_stop\n{back}read D[0]"
    assert names(run(unsent)) == []
