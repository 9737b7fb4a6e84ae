# SPDX-License-Identifier: GPL-2.0-or-later
"""Page status by ram_addr_t, converted at the hypercall: Bonzini's principle (F7, C23).

The record belongs to the memory and not to its address, so it survives unplugging and moving, and
memory that is encrypted but mapped nowhere can be seen. Fresh memory is encrypted (D34).
"""

from __future__ import annotations

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, Gfn, RamAddr
from guestemu.host.qemu.memory_map import MemoryMap, RamBlock


class RamStatus:
    """The record of a machine; grows with its blocks. A `StatusSource`, too."""

    def __init__(self, machine: MemoryMap) -> None:
        self._machine = machine
        self._private: dict[str, bitarray] = {}

    def _of(self, block: RamBlock) -> bitarray:
        bits = self._private.get(block.name)
        if bits is None or len(bits) != block.pages:
            bits = bitarray([True], endian="little") * block.pages
            self._private[block.name] = bits
        return bits

    def forget(self, name: str) -> None:
        """The block's memory was freed: a later block of that name starts encrypted."""
        self._private.pop(name, None)

    def set(self, gfn: Gfn, pages: int, *, is_private: bool) -> int:
        """A hypercall's range: sets what is RAM of it; the number of such pages. Work is bounded by
        the sections and not by `pages`."""
        done = 0
        for section in self._machine.sections:
            start = max(gfn, section.gpa >> PAGE_SHIFT)
            end = min(gfn + pages, section.end >> PAGE_SHIFT)
            if start < end:
                first = start - (section.gpa >> PAGE_SHIFT) + (section.offset >> PAGE_SHIFT)
                self._of(section.block)[first : first + end - start] = is_private
                done += end - start
        return done

    def is_private(self, address: RamAddr) -> bool:
        """Of the page at a ram_addr_t, mapped or not. True where there is no memory."""
        block = self._machine.block_of(address)
        if block is None:
            return True
        return bool(self._of(block)[(address - block.ram_addr) >> PAGE_SHIFT])

    def unmapped_private(self) -> list[RamAddr]:
        """Pages that are encrypted and mapped nowhere: a migration cannot send them by GPA and has
        to stop (F7, F16b)."""
        found: list[RamAddr] = []
        for block in self._machine.blocks.values():
            mapped = bitarray(block.pages, endian="little")
            for section in self._machine.sections:
                if section.block.name == block.name:
                    first = section.offset >> PAGE_SHIFT
                    mapped[first : first + (section.size >> PAGE_SHIFT)] = True
            lost = self._of(block) & ~mapped
            found += [RamAddr(block.ram_addr + (page << PAGE_SHIFT)) for page in lost.search(1)]
        return found

    def get_page_enc_bitmap(self, start: Gfn, pages: int) -> bytes:
        """See `interfaces.StatusSource`; 1 where there is no RAM."""
        bits = bitarray((pages + 63) // 64 * 64, endian="little")
        bits.setall(True)
        for section in self._machine.sections:
            first = max(start, section.gpa >> PAGE_SHIFT)
            end = min(start + pages, section.end >> PAGE_SHIFT)
            if first < end:
                inside = first - (section.gpa >> PAGE_SHIFT) + (section.offset >> PAGE_SHIFT)
                own = self._of(section.block)[inside : inside + end - first]
                bits[first - start : end - start] = own
        return bits.tobytes()
