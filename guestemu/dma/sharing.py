# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the shared pages lie: runs, 2 MiB ranges, and how often pages changed their status."""

from __future__ import annotations

from typing import Final

import msgspec
from bitarray import bitarray

from guestemu.dma.cost import LEAF_PAGES, Conversion

MAP_CELLS: Final = 4096
_SHIFT: Final = 9
_PAGES_BITS: Final = 32


class Fragmentation(msgspec.Struct, frozen=True):
    """How scattered the shared pages are.

    `runs` of neighbouring shared pages lie in `ranges` ranges of 2 MiB, where `ranges_needed` would
    hold them; `peak_runs` and `peak_ranges` are the most at any moment.
    """

    shared_pages: int
    runs: int
    peak_runs: int
    ranges: int
    peak_ranges: int
    ranges_needed: int


class Churn(msgspec.Struct, frozen=True):
    """How often pages were converted: `pages_by_conversions` counts pages that were converted once,
    twice …, 2**n to 2**(n+1)-1 times (key: 2**n); the page `busiest_gfn` was converted most."""

    pages_by_conversions: dict[int, int]
    busiest_gfn: int | None
    busiest_conversions: int


class MapCell(msgspec.Struct, frozen=True):
    """`pages` frames from `gfn` on: the most of them that were shared, those shared now, and the
    conversions that touched them."""

    gfn: int
    pages: int
    peak_shared: int
    shared: int
    conversions: int


class SharedPages:
    """Follows a bit array of C-bits (1 = private) from conversion to conversion.

    What is shared at the start (firmware, swiotlb) does not count. `private` must be up to date
    when `update` is called.
    """

    def __init__(self, private: bitarray) -> None:
        self._private = private
        self._frames = len(private)
        self._base_runs = count_runs(private)
        self._runs = self._base_runs
        self._peak_runs = self._runs
        self._ranges: dict[int, list[int]] = {}
        self._used = self._peak_used = 0
        self._calls: dict[int, int] = {}

    def update(self, conversion: Conversion) -> None:
        """After a conversion."""
        gfn = conversion.gfn
        pages = conversion.pages
        end = gfn + pages
        calls = self._calls
        key = gfn << _PAGES_BITS | pages
        calls[key] = calls.get(key, 0) + 1
        changed = conversion.changed
        if not changed:
            return
        bits = self._private
        if changed == pages:
            joined = 1 if gfn and not bits[gfn - 1] else 0
            if end < self._frames and not bits[end]:
                joined += 1
            if conversion.private:
                self._runs += joined - 1
            else:
                self._runs += 1 - joined
        else:
            self._runs = count_runs(bits)
        if self._runs > self._peak_runs:
            self._peak_runs = self._runs
        first = gfn >> _SHIFT
        if end - 1 >> _SHIFT != first:
            self._recount(gfn, end)
            return
        cell = self._ranges.get(first)
        if cell is None:
            self._count(first, -changed if conversion.private else changed)
            return
        before = cell[0]
        cell[0] = now = before - changed if conversion.private else before + changed
        cell[2] += 1
        if now > cell[1]:
            cell[1] = now
        if not (before and now):
            self._occupy(now > before)

    def _count(self, number: int, change: int) -> None:
        cell = self._ranges.get(number)
        if cell is None:
            cell = self._ranges[number] = [0, 0, 0]
        before = cell[0]
        cell[0] = now = before + change
        cell[2] += 1
        if now > cell[1]:
            cell[1] = now
        if not (before and now):
            self._occupy(now > before)

    def _occupy(self, is_more: bool) -> None:
        """A range became the home of shared pages, or lost its last one."""
        self._used += 1 if is_more else -1
        if self._used > self._peak_used:
            self._peak_used = self._used

    def _recount(self, gfn: int, end: int) -> None:
        bits = self._private
        for number in range(gfn >> _SHIFT, (end - 1 >> _SHIFT) + 1):
            start = number << _SHIFT
            stop = min(start + LEAF_PAGES, len(bits))
            before = self._ranges[number][0] if number in self._ranges else 0
            change = bits.count(False, start, stop) - before
            if change:
                self._count(number, change)

    def fragmentation(self) -> Fragmentation:
        """As it is now."""
        shared = sum(cell[0] for cell in self._ranges.values())
        return Fragmentation(
            shared_pages=shared,
            runs=self._runs - self._base_runs,
            peak_runs=self._peak_runs - self._base_runs,
            ranges=self._used,
            peak_ranges=self._peak_used,
            ranges_needed=-(-shared // LEAF_PAGES),
        )

    def churn(self) -> Churn:
        """Conversions per page so far."""
        by_count: dict[int, int] = {}
        steps: dict[int, int] = {}
        for call, count in self._calls.items():
            gfn = call >> _PAGES_BITS
            end = gfn + (call & (1 << _PAGES_BITS) - 1)
            steps[gfn] = steps.get(gfn, 0) + count
            steps[end] = steps.get(end, 0) - count
        level = best = 0
        busiest: int | None = None
        previous = 0
        for gfn in sorted(steps):
            if level:
                key = 1 << level.bit_length() - 1
                by_count[key] = by_count.get(key, 0) + gfn - previous
                if level > best:
                    best, busiest = level, previous
            level += steps[gfn]
            previous = gfn
        return Churn(dict(sorted(by_count.items())), busiest, best)

    def address_map(self, cells: int = MAP_CELLS) -> tuple[MapCell, ...]:
        """All frames in at most `cells` cells of one size, a power of two of 2 MiB."""
        frames = len(self._private)
        size = LEAF_PAGES
        while size * cells < frames:
            size *= 2
        sums: dict[int, list[int]] = {}
        shift = size.bit_length() - 1 - _SHIFT
        for number, (shared, peak, conversions) in self._ranges.items():
            cell = sums.setdefault(number >> shift, [0, 0, 0])
            cell[0] += shared
            cell[1] += peak
            cell[2] += conversions
        empty = [0, 0, 0]
        return tuple(
            MapCell(first, min(size, frames - first), cell[1], cell[0], cell[2])
            for first in range(0, frames, size)
            for cell in (sums.get(first // size, empty),)
        )


def count_runs(private: bitarray) -> int:
    """Runs of neighbouring shared pages."""
    if not private:
        return 0
    shared = ~private
    return (shared & (private >> 1)).count() + shared[0]
