# SPDX-License-Identifier: GPL-2.0-or-later
"""What the guest's page tables say about every frame, kept up to date from the stores into them.

Walking the tables after each operation would cost more than the operation. The memory hook logs
every store into a page-table page, and this map replays the log: for each frame of the direct map
the view of the leaf that maps it, for each page of an alias window the same. It only believes what
was stored in a page that is linked into the tables; a table that is filled before it is linked is
read when it is linked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, Gva
from guestemu.abi.x86 import PTE_ADDRESS_MASK, PTE_PRESENT, PTE_PSE
from guestemu.events.base import Event
from guestemu.events.memory import LeafChange
from guestemu.machine.memory import GuestRam
from guestemu.machine.view_bit import ViewBit

_VA_BITS: Final = (1 << 48) - 1
_ENTRIES: Final = 512
_FRAMES_SIZE: Final = _ENTRIES * PAGE_SIZE
_ONE: Final = bitarray("1")
_MAX_TOUCHED: Final = 4096


class Window(msgspec.Struct, frozen=True):
    """`pages` virtual pages from `gva` on; page i is expected to map frame `gfn + i`."""

    gva: Gva
    gfn: int
    pages: int


class LeafMap:
    """Views of a direct map and of one alias window.

    `private` has one bit per frame of the direct map, `alias` one per page of the alias window
    (1 = private; a hole keeps its last value). `moved` holds the virtual pages whose leaf maps
    another frame than expected, `holes` those whose entry is zero.
    """

    def __init__(
        self, ram: GuestRam, root: Gpa, bit: ViewBit, direct: Window, alias: Window | None
    ) -> None:
        self._ram = ram
        self._mask = bit.mask
        self._private = bit.private
        self._direct = direct
        self._alias = alias
        self.private = bitarray(direct.pages, endian="little")
        self.private.setall(True)
        self._before = self.private.copy()
        self._touched: list[tuple[int, int]] = []
        self._noted = 0
        self.alias = bitarray(alias.pages if alias else 0, endian="little")
        self.alias.setall(True)
        self.moved: set[int] = set()
        self.holes: set[int] = set()
        self._tables: dict[int, tuple[int, int]] = {}
        self._direct_start = direct.gva & _VA_BITS
        self._offset_mask = ~ram.bit.mask
        self._is_changed = False
        self._link(root >> PAGE_SHIFT, 4, 0, [])
        self.checkpoint()

    @property
    def table_pages(self) -> int:
        """Page-table pages that are linked: a split adds one."""
        return len(self._tables)

    @property
    def tables(self) -> Mapping[int, tuple[int, int]]:
        """The level of each page-table page that is linked, and the address it maps from, cut to
        48 bits; by frame."""
        return self._tables

    @property
    def windows(self) -> tuple[Window, Window | None]:
        """The direct map and the alias window."""
        return self._direct, self._alias

    def small_leaves(self) -> frozenset[int]:
        """First frames of the 2 MiB ranges of the direct map that 4 KiB leaves map."""
        direct = self._direct
        start = direct.gva & _VA_BITS
        end = start + direct.pages * PAGE_SIZE
        return frozenset(
            direct.gfn + (base - start >> PAGE_SHIFT)
            for level, base in self._tables.values()
            if level == 1 and start <= base < end
        )

    def begin(self) -> bitarray:
        """An operation begins: `private` as it is now, valid until the next one begins. Costs what
        has changed since the last one, whatever the guest's memory."""
        touched = self._touched
        if len(touched) == self._noted:
            return self._before
        for page, end in touched[self._noted :]:
            self._before[page:end] = self.private[page:end]
        if len(touched) > _MAX_TOUCHED:
            touched[:] = [(0, len(self.private))]
        self._noted = len(touched)
        return self._before

    def became(self, first: int, end: int, private: bool) -> bool:
        """Whether the frames [first, end) are `private` and no other's leaf was stored into since
        `begin`; False may also mean that this is not known."""
        touched = self._touched[self._noted :]
        return self.private.count(private, first, end) == end - first and all(
            first <= page and last <= end for page, last in touched
        )

    def checkpoint(self) -> None:
        """What `rollback` returns to."""
        self._before[:] = self.private
        self._touched.clear()
        self._noted = 0
        self._base = (
            self.private.copy(),
            self.alias.copy(),
            frozenset(self.moved),
            frozenset(self.holes),
        )
        self._base_tables = dict(self._tables)
        self._is_changed = False

    def rollback(self) -> None:
        """Back to the checkpoint."""
        if not self._is_changed:
            return
        self._is_changed = False
        private, alias, moved, holes = self._base
        for page, end in self._touched:
            self._before[page:end] = self.private[page:end] = private[page:end]
        self._touched.clear()
        self._noted = 0
        if alias:
            self.alias[:] = alias
        if self.moved != moved:
            self.moved = set(moved)
        if self.holes != holes:
            self.holes = set(holes)
        if len(self._tables) != len(self._base_tables):
            self._tables = dict(self._base_tables)

    def among(self, events: Sequence[Event]) -> tuple[Sequence[Event], Sequence[LeafChange]]:
        """Reads the log of stores: `events` with the leaves that changed between them, and those
        alone. An event that counted the stores (`table_writes`) stands behind their changes."""
        writes = self._ram.table_writes()
        if not writes:
            return events, ()
        changes: list[LeafChange] = []
        ordered: list[Event] = []
        total = len(writes)
        done = 0
        for place, event in enumerate(events):
            count: int = getattr(event, "table_writes", 0)
            if count > done:
                found = self.update(writes if count == total and not done else writes[done:count])
                changes += found
                ordered += found
                done = count
                if done == total:
                    ordered += events[place:]
                    break
            ordered.append(event)
        if done < total:
            found = self.update(writes[done:])
            changes += found
            ordered += found
        return ordered, changes

    def update(self, writes: list[tuple[int, int]]) -> list[LeafChange]:
        """Replays stores (physical address, value) and returns the leaves whose view changed."""
        flips: list[LeafChange] = []
        tables = self._tables
        mask = self._offset_mask
        self._is_changed = True
        for address, value in writes:
            gpa = address & mask
            meta = tables.get(gpa >> PAGE_SHIFT)
            if meta is None:
                continue
            level, base = meta
            if level == 1 and value:
                self._leaf_in_place(base | (gpa & 0xFF8) << 9, value, flips)
            else:
                shift = PAGE_SHIFT + 9 * (level - 1)
                self._entry(level, base | (gpa >> 3 & 0x1FF) << shift, value, flips)
        return flips

    def _leaf_in_place(self, va: int, entry: int, flips: list[LeafChange]) -> None:
        """`_entry` for the common case, a 4 KiB leaf of the direct map that stays where it is."""
        direct = self._direct
        page = va - self._direct_start >> PAGE_SHIFT
        gfn = direct.gfn + page
        if (
            not 0 <= page < direct.pages
            or self.holes
            or self.moved
            or (entry & PTE_ADDRESS_MASK & ~self._mask) >> PAGE_SHIFT != gfn
        ):
            self._entry(1, va, entry, flips)
            return
        private = entry & self._mask == self._private
        bits = self.private
        if bits[page] != private:
            bits[page] = private
            self._touched.append((page, page + 1))
            flips.append(LeafChange(Gva(direct.gva + page * PAGE_SIZE), gfn, 1, private, 1, False))

    def reread(self, entry_gpa: Gpa) -> list[LeafChange]:
        """After a host-side edit of one entry."""
        return self.update([(entry_gpa, self._ram.read_u64(entry_gpa))])

    def is_table(self, gfn: int) -> bool:
        """Whether frame `gfn` is a page-table page that is linked."""
        return gfn in self._tables

    def replace_table(self, gfn: int, before: bytes) -> list[LeafChange]:
        """After a host-side change of the whole table page `gfn`; its 4096 bytes were `before`."""
        start = gfn * PAGE_SIZE
        now = self._ram.private[start : start + PAGE_SIZE].cast("Q").tolist()
        old = memoryview(before).cast("Q").tolist()
        return self.update(
            [
                (start + 8 * index, entry)
                for index, (entry, was) in enumerate(zip(now, old, strict=True))
                if entry != was
            ]
        )

    def _entry(self, level: int, va: int, entry: int, flips: list[LeafChange]) -> None:
        if level > 1 and entry & PTE_PRESENT and not (level < 4 and entry & PTE_PSE):
            gfn = (entry & PTE_ADDRESS_MASK & ~self._mask) >> PAGE_SHIFT
            if gfn < self._ram.frames:
                self._link(gfn, level - 1, va, flips)
            return
        pages = 1 << 9 * (level - 1)
        for window, bits, is_alias in (
            (self._direct, self.private, False),
            (self._alias, self.alias, True),
        ):
            if window is None:
                continue
            page = (va - (window.gva & _VA_BITS)) >> PAGE_SHIFT
            if 0 <= page < window.pages:
                self._leaf(window, bits, is_alias, page, pages, entry, flips)

    def _leaf(
        self,
        window: Window,
        bits: bitarray,
        is_alias: bool,
        page: int,
        pages: int,
        entry: int,
        flips: list[LeafChange],
    ) -> None:
        gva = Gva(window.gva + page * PAGE_SIZE)
        if entry == 0:
            self.holes.update(range(gva, gva + pages * PAGE_SIZE, PAGE_SIZE))
            return
        if self.holes:
            self.holes.difference_update(range(gva, gva + pages * PAGE_SIZE, PAGE_SIZE))
        gfn = (entry & PTE_ADDRESS_MASK & ~self._mask) >> PAGE_SHIFT & ~(pages - 1)
        if gfn != window.gfn + page:
            self.moved.add(gva)
        elif self.moved:
            self.moved.discard(gva)
        private = entry & self._mask == self._private
        end = min(page + pages, len(bits))
        if end - page == 1:
            changed = int(bits[page] != private)
            bits[page] = private
        else:
            changed = end - page - bits.count(private, page, end)
            bits[page:end] = private
        if changed:
            if not is_alias:
                self._touched.append((page, end))
            flips.append(LeafChange(gva, window.gfn + page, end - page, private, changed, is_alias))

    def _link(self, gfn: int, level: int, base: int, flips: list[LeafChange]) -> None:
        self._tables[gfn] = (level, base)
        self._ram.mark_table(gfn)
        start = gfn * PAGE_SIZE
        entries = self._ram.private[start : start + PAGE_SIZE].cast("Q").tolist()
        page = base - self._direct_start >> PAGE_SHIFT
        if level == 1 and self._is_in_place(entries, page):
            mask, set_for = self._mask, self._private
            now = bitarray((entry & mask == set_for for entry in entries), endian="little")
            for index in (now ^ self.private[page : page + _ENTRIES]).search(_ONE):
                self._leaf_in_place(base | index << PAGE_SHIFT, entries[index], flips)
            return
        shift = PAGE_SHIFT + 9 * (level - 1)
        for index, entry in enumerate(entries):
            if entry:
                self._entry(level, base | index << shift, entry, flips)

    def _is_in_place(self, entries: list[int], page: int) -> bool:
        """A split leaf of the direct map: every entry maps the frame that its page should map."""
        if not 0 <= page <= self._direct.pages - _ENTRIES or self.holes or self.moved:
            return False
        mask = PTE_ADDRESS_MASK & ~self._mask
        first = self._direct.gfn + page << PAGE_SHIFT
        frames = [entry & mask for entry in entries]
        return entries[0] != 0 and frames == list(range(first, first + _FRAMES_SIZE, PAGE_SIZE))
