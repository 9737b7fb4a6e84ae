# SPDX-License-Identifier: GPL-2.0-or-later
"""Two hosts, a guest that leaves one for the other through handlers, and attacks by each party.

The VMM here is QEMU's side of the prototype (F13 to F16b) with its defects as switches: it moves a
page by the host's record of its status, which is kept by ram_addr_t (F7). `seen` tells checks what
the last operation did; nothing here judges.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, Gpa, RamAddr
from guestemu.abi.errno import EFAULT, EINVAL, EIO
from guestemu.host.mirror.driver import MailboxHandler
from guestemu.host.mirror.interface import HandlerStop
from guestemu.host.mirror.mailbox import MAILBOX_GPA, MAILBOX_PAGES, PAGE_OFFSET, Ret
from guestemu.host.mirror.proposals import Proposal, block_address, command_address
from guestemu.host.mirror.side import (
    DIMM,
    DIMM_AT,
    HOLE,
    VIRTIO_MEM,
    VIRTIO_MEM_AT,
    VMSA,
    MirrorSide,
    Weakness,
)
from guestemu.program.ops import OpKind

SKIPPED: Final = 1
"""Result of a migration of a page that does not travel: the other handler has its own."""

_LOW: Final = 0x100000
_PAGES: Final = 2
_SOURCE: Final = 1
_DESTINATION: Final = 2
_SOURCE_KEY: Final = bytes(range(16))
_DESTINATION_KEY: Final = bytes(range(16, 32))
_DESTINATION_BASE: Final = 0x4_0000_0000
_FORMER: Final = 0xD1


class MemoryKind(enum.IntEnum):
    """Which memory a page is of."""

    LOW = 0
    """pc.ram below the PCI hole: GPA and ram_addr_t are equal."""
    ABOVE_HOLE = 1
    HOT_PLUGGED = 2
    UNMAPPED = 3
    """virtio-mem that was unplugged and kept its content."""
    VMSA = 4
    OWN = 5
    """A page of the source's firmware for the handler."""
    PEER = 6
    """A page of the destination's firmware for the handler."""
    TWIN = 7
    """The page of the DIMM with the mailbox's offset in its block."""


_PAGES_OF: Final = {
    **dict.fromkeys(
        (MemoryKind.LOW, MemoryKind.ABOVE_HOLE, MemoryKind.HOT_PLUGGED, MemoryKind.UNMAPPED), _PAGES
    ),
    MemoryKind.VMSA: 1,
    MemoryKind.TWIN: MAILBOX_PAGES,
}
"""How many pages of a kind programs can name; of a handler's it depends on the proposal."""

_ALL_PAGES: Final = 256


class Sent(msgspec.Struct, frozen=True):
    """A packet: the page it was made of, the session and the number in it, what crossed."""

    ram_addr: int
    session: int
    number: int
    header: bytes
    page: bytes


class Seen(msgspec.Struct):
    """What the last operation did.

    `stop`: a handler stopped answering although its pages were untouched and the address was one
    of the guest's. `accepted`: a packet that was not the next one, or not for that page, was
    taken. `lost`: a page was said to have moved and is not what it was. `skipped`: a page of the
    guest was left out. `exported`: a page that the host knew as shared left as private.
    `is_readable`: the host could read a private page in the mailbox. `damaged`: pages of the
    destination's handler that were overwritten, as RAM addresses.
    """

    stop: HandlerStop | None = None
    accepted: str = ""
    lost: str = ""
    skipped: bool = False
    exported: bool = False
    is_readable: bool = False
    damaged: tuple[int, ...] = ()


_PLACES: Final = {
    OpKind.MIRROR_WRITE: 0,
    OpKind.MIRROR_TELL: 0,
    OpKind.MIRROR_LOAD: 0,
    OpKind.MIRROR_MIGRATE: 0,
    OpKind.MIRROR_SAVE: 0,
    OpKind.MIRROR_RESTORE: 1,
    OpKind.MIRROR_INJECT: 1,
}
"""Which argument is the place; the next one is the page."""

_CHANGES: Final = 4
_FORGERIES: Final = 3


def plain_arguments(kind: OpKind, arguments: tuple[int, ...]) -> tuple[int, ...]:
    """Those that `MirrorWorld` does the same for (see `Host.plain`)."""
    found = list(arguments)
    if kind in _PLACES:
        at = _PLACES[kind]
        place = found[at] = found[at] % len(MemoryKind)
        found[at + 1] %= _PAGES_OF.get(MemoryKind(place), _ALL_PAGES)
    match kind:
        case OpKind.MIRROR_SETUP:
            found[0] %= len(Proposal)
        case OpKind.MIRROR_PLUG:
            found[0] %= _CHANGES
        case OpKind.MIRROR_INJECT:
            found[0] %= _FORGERIES
        case OpKind.MIRROR_CONTEXT:
            found[1] %= _CHANGES
    return tuple(found)


class MirrorWorld:
    """See the module's docstring. Results are 0 or more, or a negative errno."""

    def __init__(self, weaknesses: frozenset[Weakness] = frozenset()) -> None:
        self.weaknesses = weaknesses
        self.source = MirrorSide(_SOURCE, _DESTINATION, _SOURCE_KEY, 0)
        self.target = MirrorSide(_DESTINATION, _SOURCE, _DESTINATION_KEY, _DESTINATION_BASE)
        self.is_touched = True
        self.seen = Seen()
        self.reset()

    def reset(self) -> None:
        """As new: proposal 1, the same firmware at both ends."""
        if self.is_touched:
            self.set_up(Proposal.RAM_ADDR, False)
            self.is_touched = False

    def set_up(self, proposal: int, is_other_build: bool) -> int:
        """Both ends anew, by a proposal (modulo 4); `is_other_build`: the destination's firmware
        has its handler at other pages."""
        self.proposal = Proposal(proposal % len(Proposal))
        self.source.set_up(self.proposal, False, self.weaknesses)
        self.target.set_up(self.proposal, is_other_build, self.weaknesses)
        self._shared: set[int] = set()
        self._believed: set[int] = set()
        self._packets: list[Sent] = []
        self._session = 1
        self._number = 0
        self._next: tuple[int, int] | None = (1, 0)
        self._taken: set[tuple[int, int]] = set()
        self._is_poked = False
        self.seen = Seen(stop=self.source.stop or self.target.stop)
        self.is_touched = True
        return 0

    def ram_addr(self, place: int, page: int) -> RamAddr:
        """Which page of RAM is meant; numbers are taken modulo what there is."""
        blocks = self.source.map.blocks
        kind = MemoryKind(place % len(MemoryKind))
        offset = page % _PAGES << PAGE_SHIFT
        if kind is MemoryKind.VMSA:
            return blocks[VMSA].ram_addr
        if kind in (MemoryKind.OWN, MemoryKind.PEER):
            side = self.source if kind is MemoryKind.OWN else self.target
            pages = side.firmware
            return RamAddr(pages[page % len(pages)])
        if kind is MemoryKind.TWIN:
            return RamAddr(blocks[DIMM].ram_addr + MAILBOX_GPA + (page % MAILBOX_PAGES << 12))
        starts = {
            MemoryKind.LOW: _LOW,
            MemoryKind.ABOVE_HOLE: HOLE,
            MemoryKind.HOT_PLUGGED: blocks[DIMM].ram_addr,
            MemoryKind.UNMAPPED: blocks[VIRTIO_MEM].ram_addr,
        }
        return RamAddr(starts[kind] + offset)

    @property
    def state(self) -> int:
        """What distinguishes situations for a campaign: the proposal, how many pages are shared,
        believed so and on their way, lies, sessions, handlers that stopped."""
        lies = self._shared ^ self._believed
        counts = (self._shared, self._believed, self._packets, lies)
        state = int(self.proposal)
        for items in counts:
            state = state << 2 | min(len(items), 3)
        flags = (self._session > 1, self.source.stop, self.target.stop, self._is_poked)
        for flag in flags:
            state = state << 1 | bool(flag)
        return state

    # The guest --------------------------------------------------------------------------------

    def write(self, place: int, page: int, value: int, is_shared: bool) -> int:
        """The guest maps a page shared or private, notifies the host, and fills it."""
        self._begin()
        address = self.ram_addr(place, page)
        if address in self.source.own:
            return -EINVAL  # `poke` is for that
        for record in (self._shared, self._believed):
            (record.add if is_shared else record.discard)(address)
        self.source.ram.write(Gpa(address), bytes([value]) * PAGE_SIZE, not is_shared)
        return 0

    def tell(self, place: int, page: int, private: bool) -> int:
        """The guest notifies the host of a status and maps nothing."""
        self._begin()
        address = self.ram_addr(place, page)
        (self._believed.discard if private else self._believed.add)(address)
        return 0

    def poke(self, page: int, value: int) -> int:
        """The guest writes into a page of the handler, which its address space has as writable."""
        self._begin()
        self._is_poked = True
        places = self.source.placement.private_pages
        address = places[page % len(places)].ram_addr
        self.source.ram.write(Gpa(address), bytes([value]) * PAGE_SIZE)
        return 0

    def plug(self, change: int) -> int:
        """The guest's memory changes at both ends: 0, 1: the DIMM goes and keeps its content, comes
        back; 2, 3: virtio-mem comes back, goes (modulo 4)."""
        self._begin()
        name, gpa = ((DIMM, DIMM_AT), (VIRTIO_MEM, VIRTIO_MEM_AT))[change >> 1 & 1]
        is_mapping = change % _CHANGES in (1, 2)
        for side in (self.source, self.target):
            is_mapped = any(one.block.name == name for one in side.map.sections)
            if is_mapping == is_mapped:
                return -EINVAL
            if is_mapping:
                side.map.map(name, gpa)
            else:
                side.map.hot_unplug(name, keeps_block=True)
            side.remap()
        return 0

    def load(self, place: int, page: int) -> int:
        """The first 8 bytes of the page at the destination, as the guest maps it."""
        self._begin()
        address = self.ram_addr(place, page)
        data = self.target.ram.read(Gpa(address), 8, address not in self._shared)
        return int.from_bytes(data, "little")

    # The VMMs ---------------------------------------------------------------------------------

    def migrate(self, place: int, page: int) -> int:
        """A page moves: 0, `SKIPPED`, -EFAULT (it has no name, F16b), or -EIO (a handler refused
        or stopped; the migration begins anew with a session of its own)."""
        self._begin()
        address = self.ram_addr(place, page)
        if self._skips(address):
            self.seen.skipped = not self._is_own(address)
            return SKIPPED
        is_shared = address in self._believed
        if is_shared and Weakness.UNCHECKED_STATUS not in self.weaknesses:
            if self._is_guarded(address):
                return -EIO
            data = self.source.ram.read(Gpa(address), PAGE_SIZE, False)
            self.target.ram.write(Gpa(address), data, False)
            self._compare(address)
            return 0
        names = [self._name(side, address) for side in (self.source, self.target)]
        if names[0] is None or names[1] is None:
            return -EFAULT
        self.seen.exported = is_shared
        packet = self._export(address, names[0])
        if packet is None or self._import(packet, address, names[1]) != Ret.OK:
            self._restart()
            return -EIO
        self._compare(address)
        return 0

    def save(self, place: int, page: int) -> int:
        """The VMM asks for a page, whatever its status; `ret`, -EIO from a stopped handler."""
        self._begin()
        address = self.ram_addr(place, page)
        name = self._name(self.source, address)
        if name is None:
            return -EFAULT
        return 0 if self._export(address, name) is not None else -EIO

    def restore(self, packet: int, place: int, page: int) -> int:
        """The VMM gives a former packet (modulo all) to the destination's handler, for any page."""
        self._begin()
        address = self.ram_addr(place, page)
        name = self._name(self.target, address)
        if not self._packets or name is None:
            return -EINVAL
        ret = self._import(self._packets[packet % len(self._packets)], address, name)
        return -EIO if ret is None else ret

    def inject(self, kind: int, place: int, page: int) -> int:
        """The VMM makes a packet itself: 0 one bit of the last one is flipped, 1 a sender with
        the owner's key made it, 2 a sender without that key (modulo 3)."""
        from guestemu.host.mirror.forgery import forged

        self._begin()
        address = self.ram_addr(place, page)
        name = self._name(self.target, address)
        if not self._packets or name is None:
            return -EINVAL
        due = self._next or (self._session, 0)
        packet = forged(self._packets[-1], kind % _FORGERIES, name, due)
        ret = self._import(packet, address, name)
        return -EIO if ret is None else ret

    def command(self, is_target: bool, number: int, address: int) -> int:
        """The VMM writes any command into the mailbox; `ret`, -EIO from a handler that stops."""
        self._begin()
        side = self.target if is_target else self.source
        is_sane = not address & PAGE_MASK and side.map.block_of(RamAddr(address)) is not None
        before = side.stop
        ret = side.ask(lambda handler: handler.command(number, address))
        self._note_stop(side, before, is_sane and number <= 3)
        self._next = None  # after a command by hand nothing is known of numbers
        return -EIO if ret is None else ret

    # Inside -----------------------------------------------------------------------------------

    def _begin(self) -> None:
        self.is_touched = True
        self.seen = Seen()

    def _is_own(self, address: int) -> bool:
        return address in self.source.own and address in self.target.own

    def _skips(self, address: int) -> bool:
        if Weakness.BLOCK_OFFSET_SKIP not in self.weaknesses:
            return self._is_own(address)
        block = self.source.map.block_of(RamAddr(address))
        offset = address - (block.ram_addr if block else 0)
        return MAILBOX_GPA <= offset < MAILBOX_GPA + MAILBOX_PAGES * PAGE_SIZE

    def _is_guarded(self, address: int) -> bool:
        return address in self.target.own and Weakness.NO_GUARD not in self.weaknesses

    def _name(self, side: MirrorSide, address: RamAddr) -> int | None:
        if Weakness.BLOCK_GPA in self.weaknesses and self.proposal is Proposal.GPA:
            return block_address(side.map, address)
        return command_address(self.proposal, side.map, address)

    def _note_stop(self, side: MirrorSide, before: HandlerStop | None, is_sane: bool) -> None:
        if side.stop is not None and before is None and is_sane and not self._is_poked:
            self.seen.stop = side.stop

    def _export(self, address: int, name: int) -> Sent | None:
        side = self.source
        before = side.stop
        saved = side.save(name)
        self._note_stop(side, before, True)
        if saved is None or saved.ret != Ret.OK:
            return None
        page = side.ram.read(Gpa(address), PAGE_SIZE)
        mailbox = side.ram.read(
            Gpa(side.placement.mailbox.ram_addr + PAGE_OFFSET), PAGE_SIZE, False
        )
        if address not in self._shared and any(page):
            self.seen.is_readable = mailbox == page
        packet = Sent(address, self._session, self._number, saved.header, saved.page)
        self._number += 1
        self._packets.append(packet)
        return packet

    def _import(self, packet: Sent, address: int, name: int) -> int | None:
        side = self.target
        before = side.stop
        ret = side.ask(lambda handler: handler.restore(name, packet.header, packet.page))
        self._note_stop(side, before, True)
        if not self._is_poked:
            self.seen.damaged = tuple(side.damaged())
        if ret == Ret.OK:
            self._note_accepted(packet, address)
        return ret

    def _note_accepted(self, packet: Sent, address: int) -> None:
        due = self._next
        place = (packet.session, packet.number)
        name = f"packet {packet.number} of session {packet.session}"
        if packet.ram_addr < 0:
            self.seen.accepted = f"a forged packet was taken for RAM {address:#x}"
        elif packet.ram_addr != address:
            self.seen.accepted = (
                f"{name}, made of RAM {packet.ram_addr:#x}, was taken for {address:#x}"
            )
        elif place in self._taken:
            self.seen.accepted = f"{name} was taken twice"
        elif due is not None and place != due:
            self.seen.accepted = f"{name} was taken where {due[1]} of {due[0]} was due"
        self._taken.add(place)
        if due is not None:
            self._next = (packet.session, packet.number + 1)

    def _restart(self) -> None:
        """The migration failed; the next one has a session of its own."""
        for side in (self.source, self.target):
            side.ask(MailboxHandler.init)
        self._session += 1
        self._number = 0
        if self._next is not None:
            self._next = (self._session, 0)

    def _compare(self, address: int) -> None:
        if (address in self._shared) != (address in self._believed):
            return  # the guest lied: what it loses is its own
        private = address not in self._shared
        there, here = (
            side.ram.read(Gpa(address), PAGE_SIZE, private) for side in (self.target, self.source)
        )
        if there != here:
            count = sum(map(int.__ne__, there, here))
            self.seen.lost = f"RAM {address:#x} at the destination: {count} bytes differ"

    def close(self) -> None:
        """Frees both ends."""
        self.source.close()
        self.target.close()
