# SPDX-License-Identifier: GPL-2.0-or-later
"""The trace's own account: what drivers asked for and gave back, and when.

Nothing here knows about encryption; the figures follow from the trace alone and can be checked
against its text. A bus address (`dma_addr`) identifies a buffer; with `has_iommu` a bus address
identifies a buffer of one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from guestemu.dma.anomalies import AnomalyKind, AnomalyLog
from guestemu.dma.events import Alloc, Event, Free, Mark
from guestemu.dma.lifetimes import LifetimeHistogram, Lifetimes
from guestemu.dma.liveset import LiveBuffer, LiveSet

DEFAULT_RAM_BYTES: Final = 1 << 40
FIRST_PHASE: Final = "start"
"""The phase before the first mark."""


class Tally(msgspec.Struct, frozen=True):
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


class Account(msgspec.Struct, frozen=True):
    """The figures of a trace. `pages_requested` = `pages_released` + `pages_lost` + live pages.

    `pages_lost` are of buffers whose address was handed out again although no free was recorded.
    `failed_allocations` are traced allocations that gave NULL; they count nowhere else, and so do
    `null_frees`.
    """

    total: Tally
    failed_allocations: int
    null_frees: int
    pages_lost: int
    by_device: dict[str, Tally]
    by_phase: dict[str, Tally]
    lifetimes: Lifetimes
    duration_ns: int


class _Counter:
    """The changing form of `Tally`."""

    __slots__ = (
        "allocations",
        "driver",
        "frees",
        "live",
        "live_pages",
        "nonblocking",
        "peak",
        "released",
        "requested",
        "unknown_frees",
    )

    def __init__(self, driver: str = "", live: int = 0, live_pages: int = 0) -> None:
        self.driver = driver
        self.allocations = self.frees = self.unknown_frees = self.nonblocking = 0
        self.requested = self.released = 0
        self.live = live
        self.live_pages = self.peak = live_pages

    def allocate(self, pages: int, is_blocking: bool) -> None:
        self.allocations += 1
        self.nonblocking += not is_blocking
        self.requested += pages
        self.live += 1
        self.live_pages += pages
        self.peak = max(self.peak, self.live_pages)

    def drop(self, pages: int) -> None:
        self.live -= 1
        self.live_pages -= pages

    def tally(self) -> Tally:
        return Tally(
            driver=self.driver,
            allocations=self.allocations,
            frees=self.frees,
            unknown_frees=self.unknown_frees,
            nonblocking=self.nonblocking,
            pages_requested=self.requested,
            pages_released=self.released,
            peak_live_pages=self.peak,
            live_pages_at_end=self.live_pages,
            live_at_end=self.live,
        )


class Accountant:
    """Takes the events of a trace in order (`see`) and gives the account (`result`).

    `ram_bytes` is the memory of the traced machine: an allocation of more, or of nothing, is
    reported and its pages are not counted. `has_iommu` says that each device has its own bus
    addresses. Anomalies go into `anomalies`.
    """

    def __init__(self, ram_bytes: int = DEFAULT_RAM_BYTES, has_iommu: bool = False) -> None:
        self.anomalies = AnomalyLog()
        self._ram_bytes = ram_bytes
        self._has_iommu = has_iommu
        self._spaces: dict[str, LiveSet] = {}
        self._total = _Counter()
        self._phase = _Counter()
        self._devices: dict[str, _Counter] = {}
        self._phases: dict[str, _Counter] = {FIRST_PHASE: self._phase}
        self._lifetimes = LifetimeHistogram()
        self._failed = self._null = self._pages_lost = 0
        self._first_ns: int | None = None
        self._last_ns = 0

    def space_of(self, device: str) -> str:
        """The address space of a device's bus addresses: its name, or "" for the common one."""
        return device if self._has_iommu else ""

    def see(self, event: Event) -> Sequence[LiveBuffer]:
        """Accounts for one event; returns the buffers it shows to have been freed unrecorded."""
        if self._first_ns is None:
            self._first_ns = self._last_ns = event.time_ns
        if event.time_ns < self._last_ns:
            self.anomalies.add(
                AnomalyKind.OUT_OF_ORDER,
                event.line,
                f"{self._last_ns - event.time_ns} ns before an earlier line",
            )
        else:
            self._last_ns = event.time_ns
        if isinstance(event, Alloc):
            return self._allocate(event)
        if isinstance(event, Free):
            self._free(event)
        else:
            self._enter(event)
        return ()

    def _allocate(self, event: Alloc) -> Sequence[LiveBuffer]:
        if event.has_failed:
            self._failed += 1
            return ()
        pages = event.pages
        if not event.size or event.size > self._ram_bytes:
            self.anomalies.add(
                AnomalyKind.ABSURD_SIZE, event.line, f"{event.device} allocates {event.size} bytes"
            )
            pages = 0
        buffer = LiveBuffer(
            event.dma_addr, event.size, pages, event.device, event.line, event.time_ns
        )
        lost = self._space(event.device).add(buffer)
        for old in lost:
            self._lose(event, old)
        is_blocking = event.is_blocking
        for counter in (self._total, self._phase, self._device(event)):
            counter.allocate(pages, is_blocking)
        return lost

    def _lose(self, event: Alloc, old: LiveBuffer) -> None:
        self._pages_lost += old.pages
        for counter in (self._total, self._phase, self._devices[old.device]):
            counter.drop(old.pages)
        self.anomalies.add(
            AnomalyKind.OVERLAP,
            event.line,
            f"{event.device} gets {event.dma_addr:#x} that overlaps {old.dma_addr:#x} of "
            f"{old.device}, allocated in line {old.line} and not freed since",
        )

    def _free(self, event: Free) -> None:
        if event.is_null:
            self._null += 1
            return
        freeing = self._device(event)
        buffer = self._space(event.device).remove(event.dma_addr)
        for counter in (self._total, self._phase, freeing):
            counter.frees += 1
            counter.unknown_frees += buffer is None
        if buffer is None:
            self.anomalies.add(
                AnomalyKind.UNKNOWN_FREE,
                event.line,
                f"{event.device} frees {event.dma_addr:#x}, which is not allocated",
            )
            return
        for counter in (self._total, self._phase, self._devices[buffer.device]):
            counter.drop(buffer.pages)
            counter.released += buffer.pages
        self._lifetimes.add(event.time_ns - buffer.time_ns)
        self._compare(event, buffer)

    def _compare(self, event: Free, buffer: LiveBuffer) -> None:
        if event.size != buffer.size:
            self.anomalies.add(
                AnomalyKind.SIZE_MISMATCH,
                event.line,
                f"{event.device} frees {event.size} bytes of a buffer of {buffer.size}",
            )
        if event.device != buffer.device:
            self.anomalies.add(
                AnomalyKind.DEVICE_MISMATCH,
                event.line,
                f"{event.device} frees a buffer of {buffer.device}",
            )

    def _enter(self, event: Mark) -> None:
        counter = self._phases.get(event.name)
        if counter is None:
            counter = self._phases[event.name] = _Counter()
        counter.live = self._total.live
        counter.live_pages = self._total.live_pages
        counter.peak = max(counter.peak, counter.live_pages)
        self._phase = counter

    def _space(self, device: str) -> LiveSet:
        key = self.space_of(device)
        space = self._spaces.get(key)
        if space is None:
            space = self._spaces[key] = LiveSet()
        return space

    def _device(self, event: Alloc | Free) -> _Counter:
        counter = self._devices.get(event.device)
        if counter is None:
            counter = self._devices[event.device] = _Counter(event.driver)
        return counter

    def result(self) -> Account:
        """The account of the events seen so far. The empty first phase is left out."""
        phases = {
            name: counter.tally()
            for name, counter in self._phases.items()
            if name != FIRST_PHASE or counter.allocations or counter.frees
        }
        return Account(
            total=self._total.tally(),
            failed_allocations=self._failed,
            null_frees=self._null,
            pages_lost=self._pages_lost,
            by_device={name: counter.tally() for name, counter in self._devices.items()},
            by_phase=phases,
            lifetimes=self._lifetimes.result(self._total.live),
            duration_ns=0 if self._first_ns is None else self._last_ns - self._first_ns,
        )
