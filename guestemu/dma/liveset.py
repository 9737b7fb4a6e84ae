# SPDX-License-Identifier: GPL-2.0-or-later
"""The buffers that are allocated at one moment of a trace, found by address and by range."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SIZE


class LiveBuffer(msgspec.Struct, frozen=True, gc=False):
    """An allocated buffer: bus address, bytes asked for, pages, owner, and since when: trace line,
    clock, phase."""

    dma_addr: int
    size: int
    pages: int
    device: str
    line: int
    time_ns: int
    phase: str = ""

    @property
    def end(self) -> int:
        """First byte after the buffer's last page."""
        return (self.dma_addr & ~PAGE_MASK) + self.pages * PAGE_SIZE


class LiveSet:
    """Buffers by bus address; page ranges never overlap, because `add` evicts what is in the way.

    The page allocator hands no page out twice, so a buffer in the way of a new one is one whose
    free was not recorded.
    """

    def __init__(self) -> None:
        self._by_address: dict[int, LiveBuffer] = {}
        self._starts: list[int] = []
        self._unaligned: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._by_address)

    def buffers(self) -> Iterable[LiveBuffer]:
        """The buffers in the order they were added."""
        return self._by_address.values()

    def add(self, buffer: LiveBuffer) -> list[LiveBuffer]:
        """Adds `buffer`, returns the evicted ones. A buffer of 0 pages is kept by address only."""
        address = buffer.dma_addr
        start = address & ~PAGE_MASK
        starts = self._starts
        position = bisect_left(starts, start)
        evicted = self._overlapping(position, start, buffer.end) if buffer.pages else []
        same = self._by_address.get(address)
        if same is not None and same not in evicted:
            evicted.append(same)
        if evicted:
            for old in evicted:
                self.remove(old.dma_addr)
            position = bisect_left(starts, start)
        self._by_address[address] = buffer
        if buffer.pages:
            starts.insert(position, start)
            if start != address:
                self._unaligned[start] = address
        return evicted

    def remove(self, dma_addr: int) -> LiveBuffer | None:
        """Takes the buffer at `dma_addr` out; None when there is none."""
        buffer = self._by_address.pop(dma_addr, None)
        if buffer is not None and buffer.pages:
            start = dma_addr & ~PAGE_MASK
            del self._starts[bisect_left(self._starts, start)]
            if start != dma_addr:
                del self._unaligned[start]
        return buffer

    def _overlapping(self, position: int, first: int, end: int) -> list[LiveBuffer]:
        """The buffers with pages in [first, end); `position` is where `first` would be inserted."""
        starts = self._starts
        found = []
        if position:
            before = self._starting(starts[position - 1])
            if before.end > first:
                found.append(before)
        while position < len(starts) and starts[position] < end:
            found.append(self._starting(starts[position]))
            position += 1
        return found

    def _starting(self, start: int) -> LiveBuffer:
        """The buffer whose first page starts at `start`."""
        unaligned = self._unaligned
        return self._by_address[unaligned.get(start, start) if unaligned else start]
