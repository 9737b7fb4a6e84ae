# SPDX-License-Identifier: GPL-2.0-or-later
"""A handler in the mirror of a guest that runs: one memory, two CPUs, two address spaces."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mirror_world import KEY

from guestemu.abi.addresses import PAGE_SIZE, RamAddr
from guestemu.abi.regions import Region
from guestemu.guest.base import Guest
from guestemu.host.mirror.context import HandlerConfig
from guestemu.host.mirror.driver import MailboxHandler
from guestemu.host.mirror.placement import place_identity
from guestemu.host.mirror.vm import SharedRamMirror
from guestemu.program.program import Header
from guestemu.runner.testbed import build_testbed

FILL = 0x5A5A_5A5A_5A5A_5A5A


@contextmanager
def guest_with_handler(sender: int, peer: int) -> Iterator[tuple[Guest, MailboxHandler]]:
    testbed = build_testbed(Header(guest="snippet:6.1", host="map-gpa-range"))
    guest = testbed.guest
    machine = guest.machine
    last = (machine.ram.frames - 16) * PAGE_SIZE
    placement = place_identity(
        [RamAddr(last + i * PAGE_SIZE) for i in (0, 2, 4, 6, 8, 10, 12)],
        RamAddr(last + 14 * PAGE_SIZE),
    )
    handler = MailboxHandler(
        SharedRamMirror(machine.ram),
        placement,
        HandlerConfig(KEY, sender, peer),
        39,
        machine.code,
    )
    handler.install()
    assert handler.init() == 0
    try:
        yield guest, handler
    finally:
        handler.close()


def test_what_a_guest_stored_another_guest_loads() -> None:
    with guest_with_handler(1, 2) as (here, sender), guest_with_handler(2, 1) as (there, receiver):
        gva, gpa = here.gva(Region.D, 0), here.gpa(Region.D, 0)
        here.memset(gva, FILL & 0xFF, PAGE_SIZE)
        saved = sender.save(gpa)
        assert receiver.restore(gpa, saved.header, saved.page) == 0
        assert there.load(there.gva(Region.D, 0)).value == FILL
        # The guest goes on, and so does the handler.
        here.memset(gva, 0x11, PAGE_SIZE)
        saved = sender.save(gpa)
        assert receiver.restore(gpa, saved.header, saved.page) == 0
        assert there.load(there.gva(Region.D, 0)).value == 0x1111_1111_1111_1111


def test_a_page_that_the_guest_shared_leaves_as_garbage() -> None:
    with guest_with_handler(1, 2) as (here, sender), guest_with_handler(2, 1) as (there, receiver):
        gva, gpa = here.gva(Region.D, 0), here.gpa(Region.D, 0)
        assert here.set_memory_decrypted(gva, 1).value == 0
        here.memset(gva, FILL & 0xFF, PAGE_SIZE)
        saved = sender.save(gpa)
        assert receiver.restore(gpa, saved.header, saved.page) == 0
        assert there.load(there.gva(Region.D, 0)).value != FILL
        assert here.load(gva).value == FILL
