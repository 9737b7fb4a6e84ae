# SPDX-License-Identifier: GPL-2.0-or-later
"""The distribution of buffer lifetimes in bounded memory.

Times go into buckets whose width is 1/1024 of their value or less (exact below 2048 ns), so a
quantile of any number of lifetimes is at most 0.1 % too low. Minimum and maximum are exact.
"""

from __future__ import annotations

from typing import Final

import msgspec

_MANTISSA_BITS: Final = 11


class Lifetimes(msgspec.Struct, frozen=True):
    """Lifetimes of freed buffers in nanoseconds, and how many buffers were never freed.

    Without any freed buffer the four times are None. Quantiles are nearest-rank.
    """

    count: int
    min_ns: int | None
    median_ns: int | None
    p90_ns: int | None
    max_ns: int | None
    still_alive: int


class LifetimeHistogram:
    """Collects lifetimes; see the module's docstring for the precision."""

    def __init__(self) -> None:
        self._buckets: dict[int, int] = {}
        self._count = 0
        self._min = 0
        self._max = 0

    def add(self, lifetime_ns: int) -> None:
        """Counts one lifetime; a negative one (clock out of order) counts as 0."""
        value = max(0, lifetime_ns)
        if not self._count or value < self._min:
            self._min = value
        if value > self._max:
            self._max = value
        self._count += 1
        shift = value.bit_length() - _MANTISSA_BITS
        floor = value >> shift << shift if shift > 0 else value
        buckets = self._buckets
        buckets[floor] = buckets.get(floor, 0) + 1

    def merge(self, other: LifetimeHistogram) -> None:
        """Counts all lifetimes of another one."""
        if not other._count:
            return
        self._min = min(self._min, other._min) if self._count else other._min
        self._max = max(self._max, other._max)
        self._count += other._count
        for floor, count in other._buckets.items():
            self._buckets[floor] = self._buckets.get(floor, 0) + count

    def quantile(self, percent: int) -> int | None:
        """The lifetime that at least `percent` of all are not above (nearest rank), or None."""
        if not self._count:
            return None
        rank = max(1, -(-self._count * percent // 100))
        for floor in sorted(self._buckets):
            rank -= self._buckets[floor]
            if rank <= 0:
                return max(floor, self._min)
        return self._max

    def powers(self) -> dict[int, int]:
        """Lifetimes by power of two: from each key (in ns) to less than twice it; 0 for 0."""
        sums: dict[int, int] = {}
        for floor in sorted(self._buckets):
            key = 1 << floor.bit_length() - 1 if floor else 0
            sums[key] = sums.get(key, 0) + self._buckets[floor]
        return sums

    def result(self, still_alive: int) -> Lifetimes:
        """The distribution so far, with the number of buffers that are still allocated."""
        return Lifetimes(
            count=self._count,
            min_ns=self._min if self._count else None,
            median_ns=self.quantile(50),
            p90_ns=self.quantile(90),
            max_ns=self._max if self._count else None,
            still_alive=still_alive,
        )
