# SPDX-License-Identifier: GPL-2.0-or-later
"""Four-level page tables with a view bit: building them, and walking them as the CPU does.

Tables are private pages; every entry that points to a table has the bit of the private view.
All entries are made with ACCESSED and DIRTY set, as the kernel's own mappings are, so that the CPU
never writes a table by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, PMD_SIZE, PUD_SIZE, Gpa, Gva
from guestemu.abi.errors import EngineError
from guestemu.abi.x86 import (
    PTE_ACCESSED,
    PTE_ADDRESS_MASK,
    PTE_DIRTY,
    PTE_PRESENT,
    PTE_PSE,
    PTE_RW,
    PTE_USER,
)
from guestemu.machine.memory import GuestRam
from guestemu.machine.view_bit import ViewBit

TABLE_FLAGS: Final = PTE_PRESENT | PTE_RW | PTE_ACCESSED | PTE_DIRTY
LEAF_LEVELS: Final = {PAGE_SIZE: 1, PMD_SIZE: 2, PUD_SIZE: 3}
LEAF_SIZES: Final = {level: size for size, level in LEAF_LEVELS.items()}


class Leaf(msgspec.Struct, frozen=True):
    """The entry that ends a walk.

    `level` is 1 for 4 KiB, 2 for 2 MiB, 3 for 1 GiB (larger: a table is missing there);
    `entry_gpa` is where the entry lies, `entry` its value (0 for a hole), `gva` the first address
    that it maps.
    """

    level: int
    entry_gpa: Gpa
    entry: int
    gva: Gva

    @property
    def is_present(self) -> bool:
        """PRESENT is set."""
        return bool(self.entry & PTE_PRESENT)


def walk(
    ram: GuestRam, bit_mask: int, root: Gpa, gva: Gva, tables: list[Gpa] | None = None
) -> Leaf:
    """The leaf that maps `gva` in the tables at `root`, or the empty entry where the walk ends.

    `bit_mask` are the bits of an entry's address that select a view. The addresses of the entries
    that were read are appended to `tables`.
    """
    table = root
    for level in (4, 3, 2):
        shift = PAGE_SHIFT + 9 * (level - 1)
        entry_gpa = Gpa(table + 8 * (gva >> shift & 0x1FF))
        entry = ram.read_u64(entry_gpa)
        if tables is not None:
            tables.append(entry_gpa)
        if not entry & PTE_PRESENT or (level < 4 and entry & PTE_PSE):
            return Leaf(level, entry_gpa, entry, Gva(gva >> shift << shift))
        table = Gpa(entry & PTE_ADDRESS_MASK & ~bit_mask)
    entry_gpa = Gpa(table + 8 * (gva >> PAGE_SHIFT & 0x1FF))
    if tables is not None:
        tables.append(entry_gpa)
    return Leaf(1, entry_gpa, ram.read_u64(entry_gpa), Gva(gva & ~PAGE_MASK))


def translate(ram: GuestRam, bit: ViewBit, root: Gpa, gva: Gva) -> tuple[Gpa, bool] | None:
    """GPA and privacy of `gva` in the tables at `root`, or None where nothing is mapped."""
    leaf = walk(ram, bit.mask, root, gva)
    if not leaf.is_present or leaf.level > 3:
        return None
    size = LEAF_SIZES[leaf.level]
    base = leaf.entry & PTE_ADDRESS_MASK & ~bit.mask & ~(size - 1)
    return Gpa(base | gva & size - 1), bit.is_private(leaf.entry)


class PageTables:
    """One address space.

    `bit` is the view bit as the guest writes it into entries; `pool` gives the GPAs of zeroed pages
    for new tables.
    """

    def __init__(self, ram: GuestRam, bit: ViewBit, root: Gpa, pool: Iterator[Gpa]) -> None:
        self.ram = ram
        self.bit = bit
        self.root = root
        self._pool = pool
        self.ram.mark_table(root >> PAGE_SHIFT)

    @property
    def cr3(self) -> int:
        """The value for CR3."""
        return self.root | self.bit.private

    def address(self, entry: int) -> Gpa:
        """The GPA in an entry, for a 4 KiB leaf or a table."""
        return Gpa(entry & PTE_ADDRESS_MASK & ~self.bit.mask)

    def walk(self, gva: Gva) -> Leaf:
        """The leaf that maps `gva`, or the empty entry where the walk ends."""
        return walk(self.ram, self.bit.mask, self.root, gva)

    def translate(self, gva: Gva) -> tuple[Gpa, bool] | None:
        """GPA and privacy of `gva`, or None where nothing is mapped."""
        return translate(self.ram, self.bit, self.root, gva)

    def map(
        self,
        gva: Gva,
        gpa: Gpa,
        leaf_size: int = PAGE_SIZE,
        private: bool = True,
        flags: int = PTE_RW,
        *,
        count: int = 1,
    ) -> None:
        """Maps `count` leaves, each behind the one before; `flags` may hold RW, USER and NX."""
        target = LEAF_LEVELS[leaf_size]
        shift = PAGE_SHIFT + 9 * (target - 1)
        entry = self.bit.select(gpa, private) | PTE_PRESENT | PTE_ACCESSED | PTE_DIRTY | flags
        if target > 1:
            entry |= PTE_PSE
        while count:
            table = self._table(gva, target, flags & PTE_USER)
            index = gva >> shift & 0x1FF
            fitting = min(count, 512 - index)
            size = fitting * leaf_size
            entries = struct.pack(f"<{fitting}Q", *range(entry, entry + size, leaf_size))
            self.ram.write(Gpa(table + 8 * index), entries)
            count -= fitting
            entry += size
            gva = Gva(gva + size)

    def _table(self, gva: Gva, target: int, user: int) -> Gpa:
        """The table of level `target` for `gva`; those that are missing are made."""
        table = self.root
        for level in range(4, target, -1):
            entry_gpa = Gpa(table + 8 * (gva >> PAGE_SHIFT + 9 * (level - 1) & 0x1FF))
            entry = self.ram.read_u64(entry_gpa)
            if not entry & PTE_PRESENT:
                new = next(self._pool, None)
                if new is None:
                    raise EngineError("no page left for a page table")
                self.ram.mark_table(new >> PAGE_SHIFT)
                entry = new | TABLE_FLAGS | self.bit.private | user
                self.ram.write_u64(entry_gpa, entry)
            elif entry & PTE_PSE:
                raise EngineError(f"{gva:#x} is mapped by a larger leaf already")
            table = self.address(entry)
        return table
