# SPDX-License-Identifier: GPL-2.0-or-later
"""The records of a trace's own account, and the counters that they are made from."""

from __future__ import annotations

import msgspec

from guestemu.dma.lifetimes import LifetimeHistogram, Lifetimes


class AllocationTally(msgspec.Struct, frozen=True):
    """Figures of a device, of a phase or of the whole trace.

    `allocations` and `frees` are events; `unknown_frees` those of `frees` that matched no
    allocation; `pages_requested` sums PFN_UP of each allocation, `pages_released` the pages of each
    allocation that was freed. `nonblocking` counts the allocations a SEV guest takes from the
    atomic pool. Live figures are of the device's buffers; of a phase they are of all buffers, at
    its end.
    """

    driver: str
    allocations: int
    frees: int
    unknown_frees: int
    nonblocking: int
    pages_requested: int
    pages_released: int
    peak_live_pages: int
    live_pages_at_end: int
    live_at_end: int


class Leak(msgspec.Struct, frozen=True):
    """Buffers of a device that a phase allocated, never freed; `line` is the first one's."""

    device: str
    phase: str
    buffers: int
    pages: int
    line: int


class Account(msgspec.Struct, frozen=True):
    """The figures of a trace. `pages_requested` = `pages_released` + `pages_lost` + live pages.

    `pages_lost` are of buffers whose address was handed out again although no free was recorded.
    `failed_allocations` are traced allocations that gave NULL; they count nowhere else, and so do
    `null_frees`. `orders_by_device` counts allocations by order (2**order pages hold the buffer),
    `lifetime_buckets` lifetimes by power of two (key: the lower bound in ns).
    """

    total: AllocationTally
    failed_allocations: int
    null_frees: int
    pages_lost: int
    by_device: dict[str, AllocationTally]
    by_phase: dict[str, AllocationTally]
    lifetimes: Lifetimes
    lifetimes_by_device: dict[str, Lifetimes]
    orders_by_device: dict[str, dict[int, int]]
    lifetime_buckets: dict[int, int]
    leaks: tuple[Leak, ...]
    duration_ns: int


class Level:
    """Buffers and pages that are live, and the most pages that were."""

    __slots__ = ("live", "pages", "peak")

    def __init__(self, live: int = 0, pages: int = 0) -> None:
        self.live = live
        self.pages = self.peak = pages

    def drop(self, pages: int) -> None:
        """A buffer of `pages` pages is gone."""
        self.live -= 1
        self.pages -= pages


class DeviceEvents:
    """What happened for one device in one phase; the sums of `AllocationTally` come from these.

    `blocking` and `nonblocking` count allocations by pages, `released` counts freed buffers by
    pages: sums are made at the end, as this happens for every event.
    """

    __slots__ = ("blocking", "frees", "nonblocking", "owner", "released", "unknown_frees")

    def __init__(self, owner: DeviceAccount) -> None:
        self.owner = owner
        self.frees = self.unknown_frees = 0
        self.blocking: dict[int, int] = {}
        self.nonblocking: dict[int, int] = {}
        self.released: dict[int, int] = {}

    @property
    def allocations(self) -> int:
        """Allocations of all sizes."""
        return sum(self.blocking.values()) + sum(self.nonblocking.values())

    def merge(self, other: DeviceEvents) -> None:
        """Adds another one's counts."""
        self.frees += other.frees
        self.unknown_frees += other.unknown_frees
        _merge_counts(self.blocking, other.blocking)
        _merge_counts(self.nonblocking, other.nonblocking)
        _merge_counts(self.released, other.released)

    def orders(self) -> dict[int, int]:
        """Allocations by buddy order."""
        orders: dict[int, int] = {}
        for counts in (self.blocking, self.nonblocking):
            for pages, count in counts.items():
                order = (pages - 1).bit_length() if pages else 0
                orders[order] = orders.get(order, 0) + count
        return dict(sorted(orders.items()))

    def tally(self, driver: str, level: Level) -> AllocationTally:
        """The sums, with the live pages of `level`."""
        return AllocationTally(
            driver=driver,
            allocations=self.allocations,
            frees=self.frees,
            unknown_frees=self.unknown_frees,
            nonblocking=sum(self.nonblocking.values()),
            pages_requested=_sum_pages(self.blocking) + _sum_pages(self.nonblocking),
            pages_released=_sum_pages(self.released),
            peak_live_pages=level.peak,
            live_pages_at_end=level.pages,
            live_at_end=level.live,
        )


def _merge_counts(into: dict[int, int], other: dict[int, int]) -> None:
    for key, count in other.items():
        into[key] = into.get(key, 0) + count


def _sum_pages(counts: dict[int, int]) -> int:
    return sum(pages * count for pages, count in counts.items())


class DeviceAccount:
    """One device: its driver, what is live, the lifetimes of its buffers."""

    __slots__ = ("driver", "level", "lifetimes")

    def __init__(self, driver: str) -> None:
        self.driver = driver
        self.level = Level()
        self.lifetimes = LifetimeHistogram()
