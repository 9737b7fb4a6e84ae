# SPDX-License-Identifier: GPL-2.0-or-later
"""The migration bitmap: which pages of which RAM block are still to be sent.

Source: migration/ram.c migration_bitmap_sync(), ramblock_sync_dirty_bitmap(),
migration_clear_memory_region_dirty_bitmap() (D32), accel/kvm/kvm-all.c kvm_log_clear().
"""

from __future__ import annotations

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.errors import InputError
from guestemu.host.qemu.dirty_log import KvmDirtyLogs
from guestemu.host.qemu.memory_map import MemoryMap, RamBlock


class MigrationBitmap:
    """By page of ram_addr_t. `chunk_pages` is what a lazy clear clears at once (clear_bmap).

    `seen` is what GET found and CLEAR has not cleared yet: QEMU's copy of the slots' logs.
    """

    def __init__(self, machine: MemoryMap, logs: KvmDirtyLogs, chunk_pages: int) -> None:
        if chunk_pages < 64 or chunk_pages % 64:
            raise InputError(f"chunk of {chunk_pages} pages: give a multiple of 64")
        self._machine = machine
        self._logs = logs
        self._chunk = chunk_pages
        self._pending = bitarray(machine.ram_pages, endian="little")
        self._seen = [bitarray(slot.pages, endian="little") for slot in logs.slots]

    @property
    def count(self) -> int:
        """Pages pending."""
        return self._pending.count()

    def set_all(self) -> None:
        """All pages of all blocks are pending."""
        for block in self._machine.blocks.values():
            first = block.ram_addr >> PAGE_SHIFT
            self._pending[first : first + block.pages] = True

    def sync_log(self) -> None:
        """KVM_GET_DIRTY_LOG of every slot; what it found is pending."""
        for index, (slot, log) in enumerate(zip(self._logs.slots, self._logs.logs, strict=True)):
            found = log.get()
            first = slot.ram_addr >> PAGE_SHIFT
            self._pending[first : first + slot.pages] |= found
            self._seen[index] |= found

    def clear_log(self) -> None:
        """KVM_CLEAR_DIRTY_LOG of all that GET found."""
        for index, slot in enumerate(self._logs.slots):
            self._clear(index, 0, slot.pages)

    def clear_chunk(self, block: RamBlock, page: int) -> None:
        """The same for the chunk that holds `page` of `block`, where it has not been done."""
        address = (block.ram_addr >> PAGE_SHIFT) + page
        for index, slot in enumerate(self._logs.slots):
            inside = address - (slot.ram_addr >> PAGE_SHIFT)
            if 0 <= inside < slot.pages:
                first = inside // self._chunk * self._chunk
                self._clear(index, first, min(self._chunk, slot.pages - first))

    def _clear(self, index: int, first: int, pages: int) -> None:
        seen = self._seen[index]
        if seen[first : first + pages].any():
            self._logs.logs[index].clear(first, pages, seen[first : first + pages])
            seen[first : first + pages] = False

    def take(self) -> tuple[RamBlock, int] | None:
        """The pending page with the lowest ram_addr_t, which is not pending any more: its block and
        its page in it."""
        page = self._pending.find(True)
        if page < 0:
            return None
        self._pending[page] = False
        for block in self._machine.blocks.values():
            first = block.ram_addr >> PAGE_SHIFT
            if first <= page < first + block.pages:
                return block, page - first
        raise InputError(f"ram_addr_t page {page:#x}: its RAM block was removed during a migration")
