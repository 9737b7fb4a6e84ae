# SPDX-License-Identifier: GPL-2.0-or-later
"""A set of integers as sorted, disjoint, non-touching half-open intervals.

For address space outside RAM, where a guest may name ranges of 2^52 pages: memory grows with the
number of ranges, never with their length.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class IntervalSet:
    """The set; `add` and `remove` are set union and difference with [start, end)."""

    __slots__ = ("_ends", "_starts")

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        """Adds [start, end); nothing where start >= end."""
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start = min(start, self._starts[first])
            end = max(end, self._ends[last - 1])
        self._starts[first:last] = [start]
        self._ends[first:last] = [end]

    def remove(self, start: int, end: int) -> None:
        """Takes [start, end) away."""
        if start >= end:
            return
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        if first >= last:
            return
        left, right = self._starts[first], self._ends[last - 1]
        kept = [piece for piece in ((left, start), (end, right)) if piece[0] < piece[1]]
        self._starts[first:last] = [piece[0] for piece in kept]
        self._ends[first:last] = [piece[1] for piece in kept]

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The intervals cut to [start, end), in order."""
        index = bisect_right(self._ends, start)
        while index < len(self._starts) and self._starts[index] < end:
            yield max(start, self._starts[index]), min(end, self._ends[index])
            index += 1

    def __contains__(self, value: int) -> bool:
        index = bisect_right(self._starts, value)
        return index > 0 and value < self._ends[index - 1]

    def __len__(self) -> int:
        """The number of intervals."""
        return len(self._starts)
