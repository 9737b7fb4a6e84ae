# SPDX-License-Identifier: GPL-2.0-or-later
"""What QEMU believes about each page while it migrates: encrypted or not, by patch-set generation.

The bitmap sets (2019, 2020) copy KVM's bitmap at each sync through a map of their own; the 2021 set
looks into its list of shared regions when it sends a page. Both can also be asked for the other
way, copied or live, since claims about the order of steps need it (G.2).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, Gfn, RamAddr
from guestemu.abi.errors import GuestemuError
from guestemu.host.kvm.page_enc_bitmap import bitmap_bytes
from guestemu.host.qemu.interfaces import Region, RegionSource, StatusSource
from guestemu.host.qemu.memory_map import BlockKind, MemoryMap, RamBlock, Section
from guestemu.host.qemu.patch_sets import PatchSet, QemuDefect
from guestemu.host.qemu.status_sync import is_encrypted, store_bitmap, whole_words
from guestemu.host.qemu.stream_format import BitmapRange, SharedRegions, StatusBitmap
from guestemu.host.userspace.qemu_v4_stream import gfn_of_block_page


class UnmappedPage(GuestemuError):
    """A page without GPA is to be sent, so its status is unknown (F7, F16b): the migration
    stops."""


def forced_status(
    block: RamBlock, version: PatchSet, defects: frozenset[QemuDefect]
) -> bool | None:
    """The status that a block's kind decides alone, None where the record is asked.

    ROM is plain (D8, F16b); the 2020 and 2021 sets force flash (D13); device RAM is plain only in
    the repaired form (M76).
    """
    if block.kind is BlockKind.ROM:
        return False
    if version.forces_flash and block.kind in (BlockKind.FLASH_CODE, BlockKind.FLASH_VARS):
        return block.kind is BlockKind.FLASH_CODE
    if block.kind is BlockKind.DEVICE and QemuDefect.DEVICE_RAM not in defects:
        return False
    return None


class PageStatus(ABC):
    """The status record of one migration."""

    def __init__(
        self, machine: MemoryMap, version: PatchSet, defects: frozenset[QemuDefect]
    ) -> None:
        self.machine = machine
        self.version = version
        self.defects = defects

    @abstractmethod
    def sync(self) -> None:
        """Brings the copy up to date (step E)."""

    @abstractmethod
    def _copied(self, block: RamBlock, page: int) -> bool: ...

    @abstractmethod
    def _live(self, block: RamBlock, page: int) -> bool: ...

    @abstractmethod
    def final_record(self) -> StatusBitmap | SharedRegions:
        """What goes to the destination, once, behind the last page (D12, D25)."""

    def is_private(self, block: RamBlock, page: int, *, live: bool) -> bool:
        """Whether `page` of `block` goes through the firmware. `UnmappedPage` where a repaired set
        cannot know."""
        forced = forced_status(block, self.version, self.defects)
        if forced is not None:
            return forced
        return self._live(block, page) if live else self._copied(block, page)

    def copied_map(self, block: RamBlock) -> bitarray:
        """`is_private` of every page of `block` by the copy, one bit each."""
        pages = range(block.pages)
        return bitarray([self.is_private(block, page, live=False) for page in pages], "little")

    def _mapped_gfn(self, block: RamBlock, page: int) -> Gfn:
        gpa = self.machine.gpa_of(RamAddr(block.ram_addr + (page << PAGE_SHIFT)))
        if gpa is None:
            raise UnmappedPage(
                f"page {page} of RAM block {block.name!r} is mapped nowhere: whether it is"
                " encrypted is not known"
            )
        return Gfn(gpa >> PAGE_SHIFT)


class BitmapStatus(PageStatus):
    """2019 and 2020: KVM's bitmap, slot by slot, into the map by ram_addr_t that DIRTY_MEMORY_
    ENCRYPTED is, from there into each block's `encbmap` (D1)."""

    def __init__(
        self,
        machine: MemoryMap,
        version: PatchSet,
        defects: frozenset[QemuDefect],
        source: StatusSource,
    ) -> None:
        super().__init__(machine, version, defects)
        self._source = source
        self.encrypted = bitarray(machine.ram_pages, endian="little")
        """DIRTY_MEMORY_ENCRYPTED, by page of ram_addr_t: zeros at first as posted."""
        self.encrypted.setall(QemuDefect.OPPOSITE_DEFAULTS not in defects)
        self.block_maps: dict[str, bitarray] = {}
        """`encbmap` of each block: ones at first."""
        for name, block in machine.blocks.items():
            self.block_maps[name] = bitarray([True], endian="little") * block.pages

    def sync(self) -> None:
        """kvm_physical_sync...: all slots, then all blocks."""
        for section, slots in self.machine.slots_by_section():
            for slot in slots:
                self._sync_slot(section, slot.gfn, slot.pages, slot.ram_addr)
        for name, block in self.machine.blocks.items():
            first = block.ram_addr >> PAGE_SHIFT
            self.block_maps[name] = self.encrypted[first : first + block.pages]

    def _sync_slot(self, section: Section, gfn: Gfn, pages: int, address: RamAddr) -> None:
        """D2: as posted buffer and first gfn are the slot's, length and place the section's."""
        bits = self._fetch(gfn, pages)
        if QemuDefect.SLOT_SECTION in self.defects:
            pages, address = section.size >> PAGE_SHIFT, section.ram_addr
        store_bitmap(self.encrypted, bits, address >> PAGE_SHIFT, pages, self.defects)

    def _fetch(self, gfn: Gfn, pages: int) -> bitarray:
        bits = bitarray(endian="little")
        bits.frombytes(self._source.get_page_enc_bitmap(gfn, pages))
        return bits

    def block_resized(self, block: RamBlock) -> None:
        """qemu_ram_resize() clears the block's dirty bits, and as posted its status (D7)."""
        if QemuDefect.CLEAR_STATUS in self.defects:
            first = block.ram_addr >> PAGE_SHIFT
            self.encrypted[first : first + block.pages] = False
            self.block_maps[block.name].setall(False)

    def copied_map(self, block: RamBlock) -> bitarray:
        """See `PageStatus`."""
        forced = forced_status(block, self.version, self.defects)
        if forced is not None:
            return bitarray([forced], "little") * block.pages
        bits = self.block_maps[block.name]
        return (whole_words(bits) if QemuDefect.WORD_TEST in self.defects else bits)[: block.pages]

    def _copied(self, block: RamBlock, page: int) -> bool:
        return is_encrypted(self.block_maps[block.name], page, self.defects)

    def _live(self, block: RamBlock, page: int) -> bool:
        return bool(self._fetch(self._mapped_gfn(block, page), 1)[0])

    def final_record(self) -> StatusBitmap:
        """A range for each slot, read from KVM now, without regard to the copy."""
        ranges: list[BitmapRange] = []
        for slot in self.machine.slots():
            bits = self._source.get_page_enc_bitmap(slot.gfn, slot.pages)
            raw = bits[: bitmap_bytes(slot.pages)]
            ranges.append(BitmapRange(slot.gfn << PAGE_SHIFT, slot.pages, raw))
        return StatusBitmap(tuple(ranges))


class ListStatus(PageStatus):
    """2021: the list of shared regions; what none covers is encrypted (D19)."""

    def __init__(
        self,
        machine: MemoryMap,
        version: PatchSet,
        defects: frozenset[QemuDefect],
        source: RegionSource,
    ) -> None:
        super().__init__(machine, version, defects)
        self._source = source
        self._copy: tuple[Region, ...] = ()

    def sync(self) -> None:
        """A copy of the list; the posted set makes none."""
        self._copy = tuple(self._source.regions)

    def _gfn(self, block: RamBlock, page: int) -> Gfn:
        """D23: as posted from the address of the block's memory region."""
        if QemuDefect.BLOCK_GFN in self.defects:
            return gfn_of_block_page(page, block.mr_addr)
        return self._mapped_gfn(block, page)

    def _copied(self, block: RamBlock, page: int) -> bool:
        return not _covers(self._copy, self._gfn(block, page))

    def _live(self, block: RamBlock, page: int) -> bool:
        return not _covers(self._source.regions, self._gfn(block, page))

    def final_record(self) -> SharedRegions:
        """The list as it is now."""
        return SharedRegions(tuple(self._source.regions))


def _covers(regions: Sequence[Region], gfn: int) -> bool:
    return any(start <= gfn < end for start, end in regions)
