# SPDX-License-Identifier: GPL-2.0-or-later
"""The page allocator of the modelled guest: a binary buddy, deterministic.

It models mm/page_alloc.c as far as coherent DMA sees it: blocks of 2**order pages, naturally
aligned, split on allocation and merged with their buddy on free. Linux reuses the most recently
freed block; this takes the smallest order that is big enough and in it the lowest address, so a
program always places its buffers alike.
"""

from __future__ import annotations

import enum
from heapq import heappop, heappush
from typing import Final

import msgspec

from guestemu.abi.addresses import Gfn

MAX_PAGE_ORDER: Final = 10
"""The largest block is 2**10 pages = 4 MiB (B8)."""


class Block(msgspec.Struct, frozen=True, gc=False):
    """An allocated block of 2**order pages from frame `gfn` on."""

    gfn: Gfn
    order: int

    @property
    def pages(self) -> int:
        """Size in 4 KiB pages."""
        return 1 << self.order


class FreeResult(enum.Enum):
    """What became of a free."""

    FREED = "freed"
    DOUBLE_FREE = "double free"
    """The frame starts or lies in a block that is free already."""
    NOT_A_BLOCK = "not the start of an allocated block"
    """Outside the allocator's frames, or inside an allocated block."""


_FREED: Final = FreeResult.FREED


class BuddyAllocator:
    """Frames [first, first + frames), of which every one is free or in one allocated block.

    The range need not be aligned: its ragged ends become smaller blocks. Raises ValueError for a
    negative range.
    """

    def __init__(self, first: Gfn, frames: int, max_order: int = MAX_PAGE_ORDER) -> None:
        if first < 0 or frames < 0:
            raise ValueError(f"no such frames: {frames} from {first}")
        self._first = first
        self._end = first + frames
        self._max_order = max_order
        self._heaps: list[list[int]] = [[] for _ in range(max_order + 1)]
        self._free: dict[int, int] = {}
        self._allocated: dict[int, int] = {}
        self._free_pages = 0
        position: int = first
        while position < self._end:
            order = min(max_order, (self._end - position).bit_length() - 1)
            if position:
                order = min(order, (position & -position).bit_length() - 1)
            self._insert(position, order)
            position += 1 << order

    @property
    def free_pages(self) -> int:
        """Pages that are free."""
        return self._free_pages

    @property
    def frames(self) -> int:
        """Pages managed, free or not."""
        return self._end - self._first

    def holds(self, gfn: Gfn) -> bool:
        """Whether the frame is one of this allocator's."""
        return self._first <= gfn < self._end

    def free_blocks(self) -> list[Block]:
        """The free blocks by address; after everything was freed, the same as at the start."""
        return [Block(Gfn(start), order) for start, order in sorted(self._free.items())]

    def allocated_blocks(self) -> list[Block]:
        """The allocated blocks by address."""
        return [Block(Gfn(start), order) for start, order in sorted(self._allocated.items())]

    def allocate(self, order: int, below: int | None = None) -> Block | None:
        """A block of 2**order pages, or None when there is none (alloc_pages).

        With `below` all its frames lie below that frame number, as a device's DMA mask demands.
        Entries of blocks that merged away are dropped when they come to the top of a heap: one
        stays only while lower blocks of its order are free, so a heap never holds more entries than
        there are frames.
        """
        limit = self._end if below is None else below
        free = self._free
        size = 1 << order
        for candidate in range(order, self._max_order + 1):
            heap = self._heaps[candidate]
            while heap and free.get(heap[0]) != candidate:
                heappop(heap)
            if not heap or heap[0] + size > limit:
                continue
            start = heappop(heap)
            del free[start]
            while candidate > order:
                candidate -= 1
                half = start + (1 << candidate)
                free[half] = candidate
                heappush(self._heaps[candidate], half)
            self._free_pages -= size
            self._allocated[start] = order
            return Block(Gfn(start), order)
        return None

    def free(self, gfn: Gfn) -> FreeResult:
        """Frees the block that starts at `gfn` and merges it with its buddies (free_pages).

        A wrong `gfn` changes nothing and is named in the result.
        """
        order = self._allocated.pop(gfn, None)
        if order is None:
            return self._refusal(gfn)
        self._free_pages += 1 << order
        free = self._free
        start: int = gfn
        while order < self._max_order:
            buddy = start ^ (1 << order)
            if free.get(buddy) != order:
                break
            del free[buddy]
            if buddy < start:
                start = buddy
            order += 1
        free[start] = order
        heappush(self._heaps[order], start)
        return _FREED

    def reserve(self, pages: int) -> Block | None:
        """Takes `pages` neighbouring pages for good, rounded up to largest blocks and from the
        highest ones that are free, as memblock does before there are free lists; None: no room.

        The record's `gfn` counts, its `order` means nothing.
        """
        size = 1 << self._max_order
        wanted = -(-pages // size)
        run = 0
        for start in range((self._end & -size) - size, self._first - 1, -size):
            run = run + 1 if self._free.get(start) == self._max_order else 0
            if run == wanted:
                for position in range(start, start + wanted * size, size):
                    del self._free[position]
                self._free_pages -= wanted * size
                return Block(Gfn(start), self._max_order)
        return None

    def _refusal(self, gfn: int) -> FreeResult:
        for order in range(self._max_order + 1):
            if self._free.get(gfn & -(1 << order)) == order:
                return FreeResult.DOUBLE_FREE
        return FreeResult.NOT_A_BLOCK

    def _insert(self, start: int, order: int) -> None:
        self._free[start] = order
        self._free_pages += 1 << order
        heappush(self._heaps[order], start)
