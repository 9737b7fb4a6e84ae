# SPDX-License-Identifier: GPL-2.0-or-later
"""A mirror's own memory slots and page tables: other GPAs, other C-bits, other address spaces."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from mirror_world import FRAMES, KEY, PAGE, SCATTERED, Side, content

from guestemu.abi.addresses import PAGE_SIZE, Gpa, Gva, RamAddr
from guestemu.abi.errors import InputError
from guestemu.host.mirror.context import HandlerConfig
from guestemu.host.mirror.driver import MailboxHandler
from guestemu.host.mirror.interface import HandlerError, MirrorSlot, StopCause
from guestemu.host.mirror.mailbox import PageHeader
from guestemu.host.mirror.mmu import Translation
from guestemu.host.mirror.placement import (
    PROTOTYPE_REACH,
    PagePlace,
    Placement,
    Reach,
    place_identity,
)
from guestemu.host.mirror.vm import SharedRamMirror

HIGH = 1 << 42
WHOLE = MirrorSlot(Gpa(0), RamAddr(0), FRAMES)


def slot(mirror_gpa: int, ram_addr: int, pages: int) -> MirrorSlot:
    return MirrorSlot(Gpa(mirror_gpa), RamAddr(ram_addr), pages)


def handler_over(
    side: Side, slots: Iterable[MirrorSlot], placement: Placement, shift: int
) -> MailboxHandler:
    config = HandlerConfig(key=KEY, sender=1, peer=2, shift=shift)
    vm = SharedRamMirror(side.ram, slots)
    handler = MailboxHandler(vm, placement, config, 39, side.machine.code)
    handler.install()
    assert handler.init() == 0
    return handler


@pytest.mark.parametrize("shift", [1 << 32, 1 << 39, HIGH, 1 << 46])
def test_ram_addresses_shifted_behind_the_identity_map(shift: int) -> None:
    side = Side()
    reach = (*PROTOTYPE_REACH, Reach(Gva(shift), Gpa(shift), 8))
    if shift == 1 << 32:
        reach = PROTOTYPE_REACH
    pages = [*SCATTERED, RamAddr(0x402000)]
    handler = handler_over(
        side, [WHOLE, slot(shift, 0, FRAMES)], place_identity(pages, reach=reach), shift
    )
    side.write(PAGE, content(shift))
    saved = handler.save(PAGE)
    header = PageHeader.unpack(saved.header)
    assert header is not None
    assert (saved.ret, header.address) == (0, PAGE)
    # The handler knows its own pages under their shifted addresses, too.
    assert handler.save(SCATTERED[1]).ret == -3


def test_a_page_without_gpa_in_the_guest_can_be_reached() -> None:
    side = Side()
    # The guest lost [0x500000, 0x600000): the mirror's first slots leave it out, too.
    slots = [slot(0, 0, 0x500), slot(0x600000, 0x600000, 0x300), slot(1 << 32, 0, FRAMES)]
    side.write(PAGE, content("unplugged"))
    by_gpa = handler_over(side, slots[:2], place_identity(SCATTERED), 0)
    with pytest.raises(HandlerError) as caught:
        by_gpa.save(PAGE)
    assert (caught.value.record.cause, caught.value.record.detail) == (StopCause.MMIO, PAGE)
    by_ram_addr = handler_over(side, slots, place_identity(SCATTERED), 1 << 32)
    assert by_ram_addr.save(PAGE).ret == 0


def test_a_handler_with_an_address_space_of_its_own() -> None:
    """Proposal 2: the handler's pages at very high mirror GPAs, nothing of it 1:1 (F6)."""
    side = Side()
    base = 1 << 45
    places = [PagePlace(Gpa(base + i * 0x5000), page) for i, page in enumerate(SCATTERED)]
    reach = (
        Reach(Gva(base), Gpa(base), 1),
        Reach(Gva(0), Gpa(0), 4),
        Reach(Gva(0xFFFF_FF80_0000_0000), Gpa(base), 1, private=False),
    )
    mailbox = PagePlace(Gpa(base + 0x820000), RamAddr(0x820000))
    tables = (*places[4:], PagePlace(Gpa(base + 0x70000), RamAddr(0x601000)))
    placement = Placement(*places[:4], tables, mailbox, reach)
    handler = handler_over(side, [WHOLE, *placement.own_slots], placement, 0)
    side.write(PAGE, content("guest"))
    assert handler.save(PAGE).ret == 0
    for own in (SCATTERED[1], base + 0x5000):
        assert handler.save(own).ret == -3


def test_a_slot_that_comes_later_gets_around_the_guard() -> None:
    side = Side().ready()
    side.vm.set_slots([WHOLE, slot(1 << 32, SCATTERED[1], 1)])
    assert side.handler.save(1 << 32).ret == 0


@pytest.mark.parametrize("cbit", [33, 39, 47, 51])
def test_any_c_bit_of_the_processor(cbit: int) -> None:
    side = Side(machine_cbit=cbit).ready()
    side.write(PAGE, content(cbit))
    assert side.handler.save(PAGE).ret == 0
    leaf = side.handler.vcpu.mmu.translate(SCATTERED[4] | 1 << cbit, PAGE)
    assert (leaf.ram_addr, leaf.is_private) == (PAGE, True)


def test_a_hard_coded_c_bit_on_another_processor_reaches_nothing() -> None:
    """M62: tables with bit 47 where the C-bit is 51: it is an address bit without a slot."""
    side = Side(cbit=47, machine_cbit=51)
    with pytest.raises(HandlerError) as caught:
        side.handler.init()
    record = caught.value.record
    assert (record.cause, record.detail) == (StopCause.MMIO, 1 << 47 | SCATTERED[4])
    assert Side(cbit=47, machine_cbit=47).handler.init() == 0


def test_a_table_that_the_host_replaces_through_its_own_view_is_garbage() -> None:
    side = Side().ready()
    root = side.read(SCATTERED[4])
    side.write(SCATTERED[4], root, private=False)
    side.handler.restart()
    with pytest.raises(HandlerError):
        side.handler.save(PAGE)


def test_a_table_is_read_through_the_view_of_the_pointer_to_it() -> None:
    mmu = Side().handler.vcpu.mmu
    assert isinstance(mmu.translate(SCATTERED[4] | 1 << 39, PAGE), Translation)
    assert not isinstance(mmu.translate(SCATTERED[4], PAGE), Translation)


def test_the_same_ram_at_two_addresses() -> None:
    side = Side()
    vm = SharedRamMirror(side.ram, [WHOLE, slot(HIGH, PAGE, 1)])
    assert vm.ram_addr_of(HIGH + 5) == vm.ram_addr_of(PAGE + 5) == PAGE + 5
    assert vm.ram_addr_of(HIGH + PAGE_SIZE) is None
    assert vm.ram_addr_of(FRAMES * PAGE_SIZE) is None


def test_slots_take_effect_at_once() -> None:
    side = Side().ready()
    side.write(PAGE, content("here"))
    side.write(0x600000, content("there"))
    assert side.handler.save(PAGE).ret == 0
    side.vm.set_slots([slot(0, 0, 0x500), slot(PAGE, 0x600000, 1), slot(0x600000, 0x600000, 0x300)])
    saved = side.handler.save(PAGE)
    target = Side(2, 1).ready()
    # Sequence 0 went to nobody: the target has to see it first.
    assert target.handler.restore(PAGE, saved.header, saved.page) == -2
    side.handler.init()
    saved = side.handler.save(PAGE)
    assert target.handler.restore(PAGE, saved.header, saved.page) == 0
    assert target.read() == content("there")


@pytest.mark.parametrize(
    ("slots", "message"),
    [
        ([slot(0, 0, 2), slot(0x1000, 0, 1)], "mirror slot at 0x1000: overlaps the slot before"),
        ([slot(0x800, 0, 1)], "mirror slot at 0x800: give whole pages"),
        ([slot(0, 0, 0)], "mirror slot at 0x0: give whole pages"),
        ([slot(0, 0x1000, FRAMES)], "mirror slot at 0x0: RAM 0x1000 and 2304 pages; RAM has 2304"),
    ],
)
def test_bad_slots_change_nothing(slots: list[MirrorSlot], message: str) -> None:
    vm = SharedRamMirror(Side().ram)
    with pytest.raises(InputError, match=message):
        vm.set_slots(slots)
    assert vm.slots == (WHOLE,)


def test_a_mailbox_that_the_tables_do_not_map_is_refused() -> None:
    with pytest.raises(InputError, match=r"mirror GPA 0x40000000: .* do not map it with C=0"):
        Side(placement=place_identity(SCATTERED, RamAddr(1 << 30)))
