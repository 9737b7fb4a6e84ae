# SPDX-License-Identifier: GPL-2.0-or-later
"""How a VMM and a migration handler may name pages: the prototype's way and Bonzini's proposals.

Each is a mapping (the mirror's memory slots and the handler's page tables) and a translation (what
goes into a command for a page of RAM). Pages of RAM are named by ram_addr_t, which a page keeps
whether or not it appears in the guest (F7, D33). Source: F5, F6, F11, F13, F16b.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, PUD_SIZE, Gpa, Gva, RamAddr
from guestemu.abi.errors import InputError
from guestemu.abi.msrs import KVM_MIGRATION_READY
from guestemu.host.mirror.interface import MirrorSlot
from guestemu.host.mirror.mailbox import WINDOW_GVA
from guestemu.host.mirror.placement import PROTOTYPE_REACH, PagePlace, Placement, Reach
from guestemu.host.qemu.memory_map import MemoryMap

SHIFT: Final = 1 << 42
"""Where proposal 1 has ram_addr_t 0: "a huge value such as 2^42" (F6)."""

OWN_BASE: Final = Gpa(1 << 41)
"""Where proposals 2 and 3 have the handler: "usually very high" (seed thread, F6)."""

OWN_BLOCK: Final = "mirror.own"
"""The RAM block of a mirror whose handler is a copy; no part of the guest."""

_LOW_GIGABYTES: Final = 4
_DATA_GIGABYTES: Final = 64
_OWN_PAGES: Final = 16


class Proposal(enum.IntEnum):
    """Who is named how.

    `GPA`: the prototype. Commands carry GPAs, the mirror has the guest's memory slots (F5, F11).
    `RAM_ADDR`: proposal 1. The low 4 GiB of GPAs are mapped 1:1, RAM at 2^42 + ram_addr_t.
    `TUPLE`: proposal 2. RAM at ram_addr_t; the handler at tuples (GPA, length, mirror GPA) that it
    registers before MIGRATION_CONTROL is written for the first time.
    `COPY`: proposal 3. As 2, but the tuples' memory is copied into memory of the mirror's own.
    """

    GPA = 0
    RAM_ADDR = 1
    TUPLE = 2
    COPY = 3


class HandlerTuple(msgspec.Struct, frozen=True):
    """`pages` pages of the guest from `gpa` on appear in the mirror at `mirror_gpa` (F6)."""

    gpa: Gpa
    pages: int
    mirror_gpa: Gpa


class TupleRegistry:
    """The tuples as QEMU keeps them: taken until the guest first sets MIGRATION_CONTROL bit 0."""

    def __init__(self) -> None:
        self._tuples: list[HandlerTuple] = []
        self.is_closed = False

    @property
    def tuples(self) -> tuple[HandlerTuple, ...]:
        """What was registered in time."""
        return tuple(self._tuples)

    def register(self, one: HandlerTuple) -> bool:
        """Takes a tuple; False after the first MSR write."""
        if not self.is_closed:
            self._tuples.append(one)
        return not self.is_closed

    def write_msr(self, value: int) -> None:
        """WRMSR of MIGRATION_CONTROL."""
        self.is_closed |= bool(value & KVM_MIGRATION_READY)


def reach_of(proposal: Proposal) -> tuple[Reach, ...]:
    """What the handler's page tables map."""
    window = Gva(WINDOW_GVA)
    if proposal is Proposal.GPA:
        return PROTOTYPE_REACH
    if proposal is Proposal.RAM_ADDR:
        return (
            Reach(Gva(0), Gpa(0), _LOW_GIGABYTES),
            Reach(Gva(SHIFT), Gpa(SHIFT), _DATA_GIGABYTES),
            Reach(window, Gpa(0), 1, private=False),
        )
    return (
        Reach(Gva(0), Gpa(0), _DATA_GIGABYTES),
        Reach(Gva(OWN_BASE), OWN_BASE, 1),
        Reach(window, OWN_BASE, 1, private=False),
    )


def shift_of(proposal: Proposal) -> int:
    """What the handler adds to a command's address."""
    return SHIFT if proposal is Proposal.RAM_ADDR else 0


def handler_tuples(pages: Sequence[Gpa]) -> tuple[HandlerTuple, ...]:
    """What a handler at `pages` (guest GPAs, the mailbox's two last) registers: page after page."""
    return tuple(
        HandlerTuple(gpa, 1, Gpa(OWN_BASE + index * PAGE_SIZE)) for index, gpa in enumerate(pages)
    )


def place_handler(
    proposal: Proposal, machine: MemoryMap, pages: Sequence[Gpa], registry: TupleRegistry
) -> Placement:
    """Where the handler at the guest's `pages` (code, context, bounce, stack, tables, and the
    mailbox's two) is in the mirror and in RAM. Raises `InputError` where a page has no RAM, or
    where nothing was registered for it."""
    if proposal in (Proposal.GPA, Proposal.RAM_ADDR):
        places = [PagePlace(gpa, _backing(machine, gpa)) for gpa in pages]
    else:
        registered = {one.gpa: one.mirror_gpa for one in registry.tuples}
        missing = [gpa for gpa in pages if gpa not in registered]
        if missing:
            raise InputError(
                f"handler page {missing[0]:#x}: in no tuple; register it before the first write of "
                "MIGRATION_CONTROL"
            )
        own = machine.blocks[OWN_BLOCK].ram_addr if proposal is Proposal.COPY else 0
        places = [
            PagePlace(
                registered[gpa],
                RamAddr(own + index * PAGE_SIZE)
                if proposal is Proposal.COPY
                else _backing(machine, gpa),
            )
            for index, gpa in enumerate(pages)
        ]
    code, context, bounce, stack, *tables = places[:-2]
    reach = reach_of(proposal)
    return Placement(code, context, bounce, stack, tuple(tables), places[-2], reach)


def _backing(machine: MemoryMap, gpa: int) -> RamAddr:
    found = machine.ram_addr_of(gpa)
    if found is None:
        raise InputError(f"handler page {gpa:#x}: no RAM there; map it before the migration")
    return found


def mirror_slots(
    proposal: Proposal, machine: MemoryMap, placement: Placement
) -> tuple[MirrorSlot, ...]:
    """The mirror's memory slots for the memory map as it is now
    (KVM_SET_USER_MEMORY_REGION when a migration begins)."""
    guest = [
        MirrorSlot(Gpa(slot.gfn << PAGE_SHIFT), slot.ram_addr, slot.pages)
        for slot in machine.slots()
    ]
    if proposal is Proposal.GPA:
        return tuple(guest)
    base = shift_of(proposal)
    data = [
        MirrorSlot(Gpa(base + block.ram_addr), block.ram_addr, block.pages)
        for block in machine.blocks.values()
        if block.name != OWN_BLOCK
    ]
    if proposal is Proposal.RAM_ADDR:
        low = [slot for slot in guest if slot.mirror_gpa < _LOW_GIGABYTES * PUD_SIZE]
        return (*low, *data)
    return (*data, *placement.own_slots)


def command_address(proposal: Proposal, machine: MemoryMap, ram_addr: RamAddr) -> int | None:
    """What a command calls the page at `ram_addr`; None: it has no name (F16b: migration stops)."""
    return machine.gpa_of(ram_addr) if proposal is Proposal.GPA else ram_addr


def block_address(machine: MemoryMap, ram_addr: RamAddr) -> int | None:
    """The GPA of a page as the address of its block plus the offset: wrong behind a hole (D23)."""
    block = machine.block_of(ram_addr)
    return None if block is None else block.mr_addr + ram_addr - block.ram_addr
