# SPDX-License-Identifier: GPL-2.0-or-later
"""A level over time in bounded memory: what a plot and a mean need."""

from __future__ import annotations

from typing import Final

import msgspec

MAX_BUCKETS: Final = 1024


class Bucket(msgspec.Struct, frozen=True):
    """From `time_ns` on, until the next bucket: the highest and the last level."""

    time_ns: int
    highest: int
    last: int


class Series:
    """Levels in buckets of equal width; where they get too many, the width doubles.

    Times that go back count as the latest time seen. `peak` is exact, and so is `mean`.
    """

    def __init__(self, most: int = MAX_BUCKETS) -> None:
        """`most` buckets are kept, and one more."""
        self._most = most
        self.level = 0
        self.peak = 0
        self._width = 1024
        self._buckets: dict[int, tuple[int, int]] = {}
        self._until = 0
        self._highest = 0
        self._number = 0
        self._first: int | None = None
        self._now = 0
        self._area = 0

    def record(self, time_ns: int, level: int) -> None:
        """The level from `time_ns` on."""
        if time_ns > self._now:
            self._area += self.level * (time_ns - self._now)
            self._now = time_ns
        if self._now >= self._until:
            self._open()
        self.level = level
        if level > self._highest:
            self._highest = level
            if level > self.peak:
                self.peak = level

    def _open(self) -> None:
        """The bucket of this moment; the one before is full."""
        if self._first is None:
            self._first = self._now
        else:
            self._close(self._buckets)
            if len(self._buckets) > self._most:
                self._halve()
        self._number = (self._now - self._first) // self._width
        self._until = self._first + (self._number + 1) * self._width
        self._highest = 0

    def _close(self, buckets: dict[int, tuple[int, int]]) -> None:
        """Writes the open bucket, which may have a part written before the width doubled."""
        highest, _ = buckets.get(self._number, (0, 0))
        buckets[self._number] = (max(highest, self._highest), self.level)

    def _halve(self) -> None:
        self._width *= 2
        merged: dict[int, tuple[int, int]] = {}
        for number, (highest, last) in self._buckets.items():
            before = merged.get(number >> 1)
            merged[number >> 1] = (max(highest, before[0]) if before else highest, last)
        self._buckets = merged

    @property
    def mean(self) -> float:
        """The mean level over time, 0 for no time."""
        span = self._now - (self._first or 0)
        return self._area / span if span else 0.0

    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets in the order of time; times are those of the trace."""
        first = self._first
        if first is None:
            return ()
        buckets = dict(self._buckets)
        self._close(buckets)
        return tuple(
            Bucket(first + number * self._width, highest, last)
            for number, (highest, last) in buckets.items()
        )
