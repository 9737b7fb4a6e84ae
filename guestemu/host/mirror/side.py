# SPDX-License-Identifier: GPL-2.0-or-later
"""One end of a migration through handlers: a guest's RAM and memory map, a mirror, its handler.

The guest is as large as the address proposals need it: pc.ram on both sides of a PCI hole, a DIMM
behind it, virtio-mem that was unplugged with its content in place, and the save area of a SEV-ES
vCPU, which no page table of the guest maps (F7, F16, D33). A frame of `ram` is a ram_addr_t.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from functools import cache
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa
from guestemu.host.firmware.memory import PlacedCipher
from guestemu.host.mirror.context import HandlerConfig
from guestemu.host.mirror.driver import MailboxHandler
from guestemu.host.mirror.interface import HandlerError, HandlerStop, Saved
from guestemu.host.mirror.mailbox import MAILBOX_GPA, MAILBOX_PAGES, PageForm
from guestemu.host.mirror.placement import Placement, tables_needed
from guestemu.host.mirror.proposals import (
    OWN_BLOCK,
    Proposal,
    TupleRegistry,
    handler_tuples,
    mirror_slots,
    place_handler,
    reach_of,
    shift_of,
)
from guestemu.host.mirror.vm import SharedRamMirror
from guestemu.host.qemu.memory_map import MemoryMap, PcLayout, pc_machine
from guestemu.machine.machine import Machine, MachineConfig

CBIT: Final = 39
TRANSPORT_KEY: Final = bytes(range(0xA0, 0xB0))

_MIB: Final = 1 << 20
RAM: Final = 16 * _MIB
HOLE: Final = 12 * _MIB
DIMM: Final = "dimm0"
DIMM_SIZE: Final = 10 * _MIB
DIMM_AT: Final = Gpa(0x1_4000_0000)
VIRTIO_MEM: Final = "virtio-mem0"
VIRTIO_MEM_SIZE: Final = 2 * _MIB
VIRTIO_MEM_AT: Final = Gpa(0x1_8000_0000)
VMSA: Final = "vmsa"

_HANDLER_AT: Final = (0x801, 0x803, 0x804, 0x807, 0x808, 0x80A, 0x80B, 0x80E)
_OTHER_BUILD: Final = 0x40
_FIXED: Final = slice(0, 0x18)
_KEY: Final = slice(0x50, 0x60)
_WRMSR_VALUE: Final = 1


class Weakness(enum.Enum):
    """What a handler or its VMM may have wrong; the prototype has all of them but
    `unbound`, which is for handlers that encrypt."""

    COPY_FORM = "copy-form"
    """No cryptography: the host reads every page (F12)."""
    CBIT_47 = "cbit-47"
    """The C-bit of the page tables is bit 47 whatever the processor's is (F11, M62)."""
    BLOCK_OFFSET_SKIP = "block-offset-skip"
    """Own pages are recognised by their offset in the RAM block (F14, M63)."""
    UNCHECKED_STATUS = "unchecked-status"
    """Every page goes through the handler, shared ones too (F15, M64)."""
    NO_GUARD = "no-guard"
    """The handler restores over its own pages (F9)."""
    BLOCK_GPA = "block-gpa"
    """With GPAs: the GPA is the block's address plus the offset (D23, M56)."""
    UNBOUND = "unbound"
    """Packets do not say which page they are, nor in which order."""


def guest_memory() -> MemoryMap:
    """The memory map of every guest here; both ends have the same. The caller may change it."""
    return _first_memory().copy()


@cache
def _first_memory() -> MemoryMap:
    machine = pc_machine(PcLayout(ram=RAM, hole_start=HOLE))
    machine.hot_plug(DIMM, DIMM_SIZE, DIMM_AT)
    machine.hot_plug(VIRTIO_MEM, VIRTIO_MEM_SIZE, VIRTIO_MEM_AT)
    machine.hot_unplug(VIRTIO_MEM, keeps_block=True)
    machine.add_block(VMSA, PAGE_SIZE)
    machine.add_block(OWN_BLOCK, 16 * PAGE_SIZE)
    return machine


def handler_pages(proposal: Proposal, is_other_build: bool) -> tuple[Gpa, ...]:
    """Guest GPAs of a firmware build's handler, not contiguous (F8); the mailbox's two last."""
    count = 4 + tables_needed(reach_of(proposal))
    move = _OTHER_BUILD if is_other_build else 0
    pages = [Gpa(frame + move << PAGE_SHIFT) for frame in _HANDLER_AT[:count]]
    mailbox = MAILBOX_GPA + move * PAGE_SIZE
    return (*pages, *(Gpa(mailbox + i * PAGE_SIZE) for i in range(MAILBOX_PAGES)))


class MirrorSide:
    """One end, called `name` in headers, whose peer is `peer`. `base` is where RAM lies in the
    host's memory."""

    def __init__(self, name: int, peer: int, key: bytes, base: int) -> None:
        self.name = name
        self.peer = peer
        self.map = guest_memory()
        self.machine = Machine(MachineConfig(frames=self.map.ram_pages, cbit=CBIT, key=key))
        self.ram = self.machine.ram
        self.ram.cipher = PlacedCipher(key, base >> PAGE_SHIFT)
        self.ram.checkpoint()
        self._handlers: dict[tuple[Proposal, bool, frozenset[Weakness]], MailboxHandler] = {}
        self.stop: HandlerStop | None = None
        self.proposal = Proposal.RAM_ADDR
        self.weaknesses: frozenset[Weakness] = frozenset()
        self._fixed: dict[int, bytes] = {}
        self.firmware: tuple[int, ...] = ()
        """RAM addresses of the pages that the firmware has for a handler; with `Proposal.COPY` the
        handler is elsewhere, and these are pages of the guest like others."""
        self.handler: MailboxHandler

    @property
    def placement(self) -> Placement:
        """Where the handler is now."""
        return self.handler.placement

    @property
    def own(self) -> frozenset[int]:
        """RAM addresses of the handler's pages."""
        return frozenset(page.ram_addr for page in self.placement.pages)

    def set_up(
        self, proposal: Proposal, is_other_build: bool, weaknesses: frozenset[Weakness]
    ) -> None:
        """Empty RAM, the first memory map, a new handler in a session."""
        self.ram.rollback()
        self.map = guest_memory()
        self.stop = None
        self.proposal = proposal
        self.weaknesses = weaknesses
        key = (proposal, is_other_build, weaknesses)
        if key not in self._handlers:
            self._handlers[key] = self._make(proposal, is_other_build)
        self.handler = self._handlers[key]
        self.firmware = tuple(
            sorted(
                self.map.ram_addr_of(gpa) or 0 for gpa in handler_pages(proposal, is_other_build)
            )
        )
        self.remap()
        self.handler.install()
        self._fixed = self._fixed_bytes()
        self.ask(MailboxHandler.init)

    def _make(self, proposal: Proposal, is_other_build: bool) -> MailboxHandler:
        pages = handler_pages(proposal, is_other_build)
        registry = TupleRegistry()
        for one in handler_tuples(pages):
            registry.register(one)
        registry.write_msr(_WRMSR_VALUE)
        placement = place_handler(proposal, self.map, pages, registry)
        vm = SharedRamMirror(self.ram, mirror_slots(proposal, self.map, placement))
        weak = self.weaknesses
        form = PageForm.COPY if Weakness.COPY_FORM in weak else PageForm.BOUND
        config = HandlerConfig(
            TRANSPORT_KEY,
            self.name,
            self.peer,
            PageForm.UNBOUND if Weakness.UNBOUND in weak else form,
            shift_of(proposal),
            Weakness.NO_GUARD not in weak,
            47 if Weakness.CBIT_47 in weak else None,
        )
        return MailboxHandler(vm, placement, config, CBIT, self.machine.code)

    def remap(self) -> None:
        """The mirror's slots follow the memory map."""
        self.handler.vm.set_slots(mirror_slots(self.proposal, self.map, self.placement))

    # Commands: a handler that stopped once never answers again -------------------------------

    def ask(self, call: Callable[[MailboxHandler], int]) -> int | None:
        """`ret` of a call of the handler; None where it does not answer, `stop` says why."""
        if self.stop is not None:
            return None
        try:
            return call(self.handler)
        except HandlerError as error:
            self.stop = error.record
            return None
        finally:
            self.ram.table_writes()

    def save(self, address: int) -> Saved | None:
        """SAVE, as `ask`."""
        found: list[Saved] = []

        def call(handler: MailboxHandler) -> int:
            found.append(handler.save(address))
            return 0

        self.ask(call)
        return found[0] if found else None

    def _fixed_bytes(self) -> dict[int, bytes]:
        """What must not change: code, tables, configuration, key."""
        place = self.placement
        pages = {
            int(page.ram_addr): self.ram.read(Gpa(page.ram_addr), PAGE_SIZE)
            for page in (place.code, *place.tables)
        }
        context = self.ram.read(Gpa(place.context.ram_addr), PAGE_SIZE)
        return pages | {int(place.context.ram_addr): context[_FIXED] + context[_KEY]}

    def damaged(self) -> list[int]:
        """RAM addresses of fixed pages of the handler that are not what was installed."""
        now = self._fixed_bytes()
        return [address for address, data in self._fixed.items() if now[address] != data]

    def close(self) -> None:
        """Frees the CPUs."""
        for handler in self._handlers.values():
            handler.close()
        self.machine.close()
