# SPDX-License-Identifier: GPL-2.0-or-later
"""What a trace costs a SEV guest: by device, driver and phase, over time, and by address.

The analysis listens to a run (`Observer`); it does not care whether a CPU or the model converted.
Memory is bounded by devices times phases, by frames of the guest, and by constants.
"""

from __future__ import annotations

from typing import Final

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, pfn_up
from guestemu.dma.cost import LEAF_PAGES, Conversion, Cost
from guestemu.dma.events import Alloc, Event, Free, Mark
from guestemu.dma.live import FIRST_PHASE
from guestemu.dma.series import Bucket, Series
from guestemu.dma.sharing import Churn, Fragmentation, MapCell, SharedPages

_LISTED_PHASES: Final = 256
_LANES: Final = 64
"""Drivers that are followed over time; the rest are one more lane."""

_LANE_BUCKETS: Final = 128
OTHERS: Final = "(others)"


class SharedOverTime(msgspec.Struct, frozen=True):
    """Shared pages of buffers and pools: at most, on average over time, at the end, and over time
    in at most 1024 buckets."""

    peak: int
    mean: float
    at_end: int
    buckets: tuple[Bucket, ...]


class PhaseBegin(msgspec.Struct, frozen=True):
    """A phase of the trace begins."""

    time_ns: int
    name: str


class Analysis(msgspec.Struct, frozen=True):
    """See the module's docstring.

    `total` is the sum over devices; `pools` is what the atomic pools cost, at boot and when they
    grew. `phases` are the first 256 phases in the order of time. `splits_unneeded` counts split
    2 MiB leaves all of whose pages are private again at the end: nothing merges them (A28).
    `shared_by_driver` has the buffers of the first 64 drivers over time, in at most 129 buckets
    each; those of other drivers are together under `OTHERS`.
    """

    total: Cost
    pools: Cost
    by_device: dict[str, Cost]
    by_driver: dict[str, Cost]
    by_phase: dict[str, Cost]
    peak_shared_by_device: dict[str, int]
    shared: SharedOverTime
    fragmentation: Fragmentation
    churn: Churn
    splits_unneeded: int
    phases: tuple[PhaseBegin, ...] = ()
    shared_by_driver: dict[str, SharedOverTime] = {}


class _Cell:
    """One device in one phase: its cost, and the pages it shares now and at most (of the device).

    Most conversions are alike: `plain` counts them by pages, hypercalls and direction; their cost
    is summed at the end.
    """

    __slots__ = ("cost", "lane", "level", "plain")

    def __init__(self, level: list[int], lane: Series) -> None:
        self.cost = Cost()
        self.level = level
        self.lane = lane
        self.plain: dict[int, int] = {}

    def total(self) -> Cost:
        total = Cost()
        total.merge(self.cost)
        for key, times in self.plain.items():
            pages = key >> 2
            total.add_plain(pages, bool(key & 1), pages if key & 2 else 0, times)
        return total


class Analyst:
    """Gathers an `Analysis`. `private` are the guest's C-bits, always up to date when a conversion
    is reported."""

    def __init__(self, private: bitarray) -> None:
        self.shared = SharedPages(private)
        self._series = Series()
        self._record = self._series.record
        self._update = self.shared.update
        self._pools = Cost()
        self._phases: dict[str, dict[str, _Cell]] = {}
        self._cells = self._phases.setdefault(FIRST_PHASE, {})
        self._drivers: dict[str, str] = {}
        self._levels: dict[str, list[int]] = {}
        self._lanes: dict[str, Series] = {}
        self._cell = _Cell([0, 0], Series(_LANE_BUCKETS))
        self._time_ns: int | None = None
        self._first: int | None = None
        self._at_boot = 0
        self._begins: list[PhaseBegin] = []
        self._last: Conversion | None = None
        self._last_cell = self._cell

    def begin(self, event: Event, /) -> None:
        """See `Observer`."""
        if self._time_ns is None:
            self._series.record(event.time_ns, self._at_boot)
            self._first = event.time_ns
        self._time_ns = event.time_ns
        if isinstance(event, Mark):
            self._cells = self._phases.setdefault(event.name, {})
            if len(self._begins) < _LISTED_PHASES:
                self._begins.append(PhaseBegin(event.time_ns, event.name))
        else:
            self._cell = self._cells.get(event.device) or self._new_cell(event)

    def _new_cell(self, event: Alloc | Free) -> _Cell:
        device = event.device
        if device not in self._levels:
            self._drivers[device] = event.driver
            self._levels[device] = [0, 0]
        cell = self._cells[device] = _Cell(self._levels[device], self._lane(event.driver))
        return cell

    def _lane(self, driver: str) -> Series:
        """The driver's level over time, from 0 at the trace's begin."""
        name = driver if driver in self._lanes or len(self._lanes) < _LANES else OTHERS
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Series(_LANE_BUCKETS)
            lane.record(self._first or 0, 0)
        return lane

    def converted(self, conversion: Conversion, is_pool: bool, /) -> None:
        """See `Observer`."""
        if self._last is not None:
            self._miss_clearing(self._last)
        self._update(conversion)
        private = conversion.private
        changed = conversion.changed
        change = -changed if private else changed
        if self._time_ns is None:
            self._at_boot += change
        else:
            self._record(self._time_ns, self._series.level + change)
        if is_pool:
            self._pools.add(conversion)
            return
        cell = self._cell
        if not private:
            self._last = conversion
            self._last_cell = cell
        level = cell.level
        lane = cell.lane
        lane.record(self._time_ns or 0, lane.level + change)
        level[0] = now = level[0] + change
        if now > level[1]:
            level[1] = now
        pages = conversion.pages
        calls = conversion.calls_4k
        is_plain = changed == pages == conversion.leaf_changes < LEAF_PAGES
        if is_plain and (calls == pages or not calls) and not conversion.splits:
            key = pages << 2 | (2 if calls else 0) | private
            cell.plain[key] = cell.plain.get(key, 0) + 1
        else:
            cell.cost.add(conversion)

    def cleared(self, gfn: int, size: int, /) -> None:
        """See `Observer`."""
        last = self._last
        if last is not None and last.gfn == gfn:
            if last.pages << PAGE_SHIFT > size:
                self._last_cell.cost.never_cleared_pages += last.pages - pfn_up(size)
            self._last = None

    def _miss_clearing(self, last: Conversion) -> None:
        """What was shared last was not cleared."""
        self._last_cell.cost.never_cleared_pages += last.pages
        self._last = None

    def address_map(self) -> tuple[MapCell, ...]:
        """Where the shared pages lie, in at most 4096 cells."""
        return self.shared.address_map()

    def result(self, private: bitarray, split_leaves: frozenset[int]) -> Analysis:
        """The analysis so far; `split_leaves` are first frames of 2 MiB leaves that were split."""
        if self._last is not None:
            self._miss_clearing(self._last)
        now = self._time_ns or 0
        self._series.record(now, self._at_boot if self._time_ns is None else self._series.level)
        for lane in self._lanes.values():
            lane.record(now, lane.level)
        total = Cost()
        by_device: dict[str, Cost] = {}
        by_driver: dict[str, Cost] = {}
        by_phase: dict[str, Cost] = {}
        for phase, cells in self._phases.items():
            for device, cell in cells.items():
                cost = cell.total()
                total.merge(cost)
                by_device.setdefault(device, Cost()).merge(cost)
                by_driver.setdefault(self._drivers[device], Cost()).merge(cost)
                by_phase.setdefault(phase, Cost()).merge(cost)
        return Analysis(
            total=total,
            pools=self._pools,
            by_device=by_device,
            by_driver=by_driver,
            by_phase=by_phase,
            peak_shared_by_device={name: level[1] for name, level in self._levels.items()},
            shared=_over_time(self._series),
            fragmentation=self.shared.fragmentation(),
            churn=self.shared.churn(),
            splits_unneeded=sum(private[gfn : gfn + 512].all() for gfn in split_leaves),
            phases=tuple(self._begins),
            shared_by_driver={name: _over_time(lane) for name, lane in self._lanes.items()},
        )


def _over_time(series: Series) -> SharedOverTime:
    return SharedOverTime(series.peak, series.mean, series.level, series.buckets())
