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
        self._max = max(self._max, value)
        self._count += 1
        shift = max(0, value.bit_length() - _MANTISSA_BITS)
        floor = (value >> shift) << shift
        self._buckets[floor] = self._buckets.get(floor, 0) + 1

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
