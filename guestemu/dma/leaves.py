# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest's direct map without a CPU: leaf sizes, C-bits, and what a conversion does to them.

Models `__change_page_attr` and the notifier for the direct map (arch/x86/mm/pat/set_memory.c; facts
A5, A24, A27, A28): a large leaf that is covered wholly changes as one, one that is covered in part
is split first, one that has the wanted C-bit already is left alone; then there is one hypercall per
leaf. A range of frames costs a few operations on a bit array, whatever its length.
"""

from __future__ import annotations

from typing import Final

from bitarray import bitarray

from guestemu.dma.cost import LEAF_PAGES, Conversion

GIB_PAGES: Final = LEAF_PAGES * 512
_SMALL_GIB: Final = 1
_SHIFT: Final = 9


class DirectMap:
    """`frames` frames, all private; 2 MiB leaves in the first and last GiB, else 1 GiB leaves, as
    the snippet guest boots. `private` has one bit per frame (callers only read it).

    `notifies`: hypercalls are made (not by 5.10, A10). `batches`: one for a whole conversion,
    counted as one of a 4 KiB leaf; no kernel does this.
    """

    def __init__(self, frames: int, notifies: bool = True, batches: bool = False) -> None:
        self.private = bitarray(frames)
        self.private.setall(True)
        self.split_leaves: set[int] = set()
        """First frames of the 2 MiB leaves that were split."""
        self._notifies = notifies
        self._batches = batches
        giants = max(0, frames // GIB_PAGES - _SMALL_GIB)
        if frames % GIB_PAGES == 0:
            giants = max(0, giants - 1)
        self._giants = set(range(_SMALL_GIB, _SMALL_GIB + giants))
        self._is_split = bytearray(-(-frames // LEAF_PAGES))

    def convert(self, gfn: int, pages: int, private: bool) -> Conversion:
        """set_memory_encrypted or set_memory_decrypted of frames that exist."""
        end = gfn + pages
        leaf = gfn >> _SHIFT
        if pages and self._is_split[leaf] and (end - 1) >> _SHIFT == leaf:
            bits = self.private
            changed = pages - bits.count(private, gfn, end)
            bits[gfn:end] = private
            calls = pages if self._notifies else 0
            if self._batches:
                calls = min(calls, 1)
            return Conversion(gfn, pages, private, changed, changed, calls, 0, 0, 0)
        return self._convert_leaves(gfn, end, private)

    def _convert_leaves(self, gfn: int, end: int, private: bool) -> Conversion:
        changed = stores = small = middle = large = splits = 0
        position = gfn
        while position < end:
            size = self._leaf_pages(position)
            start = position & -size
            stop = min(end, start + size)
            if size > 1 and stop - position < size and self.private[position] != private:
                self._split(position)
                splits += 1
                continue
            if size == 1:
                stop = min(end, (position & -LEAF_PAGES) + LEAF_PAGES)
                flipped = self._flip(position, stop, private)
                stores += flipped
                small += stop - position
            else:
                flipped = self._flip(position, stop, private)
                stores += bool(flipped)
                middle += size == LEAF_PAGES
                large += size == GIB_PAGES
            changed += flipped
            position = stop
        if not self._notifies:
            small = middle = large = 0
        elif self._batches:
            small, middle, large = int(end > gfn), 0, 0
        return Conversion(gfn, end - gfn, private, changed, stores, small, middle, large, splits)

    def _flip(self, gfn: int, end: int, private: bool) -> int:
        bits = self.private
        changed = end - gfn - bits.count(private, gfn, end)
        bits[gfn:end] = private
        return changed

    def _leaf_pages(self, gfn: int) -> int:
        if self._giants and gfn // GIB_PAGES in self._giants:
            return GIB_PAGES
        return 1 if self._is_split[gfn >> _SHIFT] else LEAF_PAGES

    def _split(self, gfn: int) -> None:
        if gfn // GIB_PAGES in self._giants:
            self._giants.discard(gfn // GIB_PAGES)
        else:
            self._is_split[gfn >> _SHIFT] = 1
            self.split_leaves.add(gfn & -LEAF_PAGES)
