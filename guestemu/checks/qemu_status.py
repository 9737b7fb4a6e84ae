# SPDX-License-Identifier: GPL-2.0-or-later
"""What a migrating QEMU believes is what the guest said.

After a sync, and after a resize that follows it, every page's status is KVM's record at that sync
(H.4 item 7; memory without GPA is encrypted, device RAM is plain: D34, D8c). After a handover the
destination knows the same shared pages as the source (D22, D25); after a reset none is shared;
after a migration that failed or was cancelled the firmware's guest runs (D16); a well-formed status
record is understood (D8b). Written without calling QEMU's sync.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from bitarray import bitarray
from bitarray.util import zeros

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, RamAddr
from guestemu.abi.errno import EIO
from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.host.base import Host
from guestemu.host.qemu.operations import HasQemuWorld
from guestemu.program.ops import OpKind

if TYPE_CHECKING:
    from guestemu.host.qemu.world import QemuWorld

_RAM: Final = "pc.ram"
_WORD: Final = 64
_ONE: Final = bitarray("1")
_BITMAP_RECORD: Final = 0
_FIRST_END: Final = 2
_STEPS: Final = 4
_KINDS: Final = 6


class QemuStatusCheck(Oracle):
    """See the module's docstring. Remembers the record at the last sync."""

    name = "qemu-status"
    kinds: frozenset[OpKind] | None = frozenset(
        {
            OpKind.QEMU_STATUS,
            OpKind.QEMU_SYNC,
            OpKind.QEMU_RESIZE,
            OpKind.QEMU_HANDOVER,
            OpKind.QEMU_RESET,
            OpKind.QEMU_SEND,
            OpKind.QEMU_RECORD,
        }
    )

    demands: ClassVar[Mapping[str, str]] = {
        "qemu-status": (
            "After a sync, QEMU's status of every page is KVM's record; after a handover both "
            "sides know the same shared pages, after a reset none is shared."
        ),
    }
    explanations: ClassVar[Mapping[str, str]] = {
        "qemu-status": "QEMU sends a page by the wrong status: it arrives as garbage.",
    }

    @classmethod
    def applies(cls, host: Host) -> bool:
        """Hosts with a migrating QEMU."""
        return isinstance(host, HasQemuWorld)

    def __init__(self) -> None:
        self._synced: dict[str, bitarray] = {}
        self._host: Host | None = None
        self._migrating: HasQemuWorld | None = None

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        if view.host is not self._host:
            self._host = view.host
            self._migrating = view.host if isinstance(view.host, HasQemuWorld) else None
        host = self._migrating
        if host is None:
            return ()
        if view.index == 0:
            self._synced = {}
        return [
            Violation(self.name, view.index, message, fact)
            for message, fact in self._judge(view, host.qemu_world())
        ]

    def _judge(self, view: OpView, world: QemuWorld) -> Iterator[tuple[str, str]]:
        kind, value = view.op.kind, view.outcome.value
        if kind is OpKind.QEMU_SYNC:
            self._synced = _truth(world)
            yield from self._compare(world)
        elif kind is OpKind.QEMU_RESIZE and value == 0:
            yield from self._compare(world)
        elif kind is OpKind.QEMU_HANDOVER and value == 0:
            yield from _same_regions(world)
        elif kind is OpKind.QEMU_RESET and value == 0 and world.regions:
            yield f"{len(world.regions)} shared regions survived the reset", "D22, M55"
        elif kind is OpKind.QEMU_SEND and value == 0:
            is_over = view.op.arguments[0] % _STEPS >= _FIRST_END
            if is_over and world.firmware.state != "running":
                yield (
                    f"the migration is over and the firmware's guest {world.firmware.state}",
                    "D16",
                )
        elif kind is OpKind.QEMU_RECORD and value not in (1, -EIO) and _is_good(view, world):
            yield "a well-formed status record was not understood", "D8b, M75"

    def _compare(self, world: QemuWorld) -> Iterator[tuple[str, str]]:
        status = world.status
        for name, expected in self._synced.items():
            block = world.machine.blocks[name]
            wrong: Iterator[int]
            if world.has_list:
                wrong = (
                    page
                    for page in range(block.pages)
                    if world.machine.gpa_of(RamAddr(block.ram_addr + (page << PAGE_SHIFT)))
                    is not None
                    and status.is_private(block, page, live=True) != expected[page]
                )
            else:
                wrong = (status.copied_map(block) ^ expected).search(_ONE)
            page = next(wrong, None)
            if page is not None:
                word = "shared" if expected[page] else "private"
                text = f"page {page:#x} of {name} counts as {word}, the guest said otherwise"
                yield text, "H.4 item 7, D1 to D23"
                return


def _truth(world: QemuWorld) -> dict[str, bitarray]:
    """Status by block and page from the record; memory without GPA is encrypted, device RAM not."""
    found = {name: zeros(block.pages, "little") for name, block in world.machine.blocks.items()}
    ram = found[_RAM]
    ram.setall(True)
    for section in world.machine.sections:
        if section.block.name == _RAM:
            first, pages = section.offset >> PAGE_SHIFT, section.size >> PAGE_SHIFT
            ram[first : first + pages] = world.private_bits(section.gpa >> PAGE_SHIFT, pages)
    return found


def _same_regions(world: QemuWorld) -> Iterator[tuple[str, str]]:
    """Compared over what the format can carry: the list everything, a bitmap what is RAM."""
    if world.regions == world.received:
        return
    if world.has_list:
        source, target = (
            world.shared_set(world.regions),
            world.shared_set(world.received),
        )
        differs = source != target
    else:
        bits = [
            _bits(regions, section.gpa >> PAGE_SHIFT, section.size >> PAGE_SHIFT)
            for section in world.machine.sections
            for regions in (world.regions, world.received)
        ]
        differs = bits[::2] != bits[1::2]
    if differs:
        yield "the destination has other shared pages than the source", "D22, D25, M55"


def _bits(regions: Iterable[tuple[int, int]], start: int, pages: int) -> bitarray:
    bits = bitarray(pages, endian="little")
    bits.setall(True)
    for first, last in regions:
        low, high = max(first - start, 0), min(last - start, pages)
        if low < high:
            bits[low:high] = False
    return bits


def _is_good(view: OpView, world: QemuWorld) -> bool:
    """Whether the record is a bitmap as a correct source writes it."""
    kind, start, pages, size, _ = view.op.arguments
    if kind % _KINDS != _BITMAP_RECORD or world.has_list:
        return False
    end = (start >> PAGE_SHIFT) + pages
    need = (pages + _WORD - 1) // _WORD * 8
    return not start & PAGE_MASK and pages > 0 and end <= world.machine.top_gfn and size == need
