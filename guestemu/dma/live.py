# SPDX-License-Identifier: GPL-2.0-or-later
"""The trace's own account: what drivers allocated and freed, and when.

Nothing here knows about encryption; the figures follow from the trace alone and can be checked
against its text. A bus address (`dma_addr`) identifies a buffer; with `has_iommu` a bus address
identifies a buffer of one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT
from guestemu.dma.account import Account, AllocationTally, DeviceAccount, DeviceEvents, Leak, Level
from guestemu.dma.anomalies import AnomalyKind, AnomalyLog
from guestemu.dma.events import Alloc, Event, Free, Mark
from guestemu.dma.lifetimes import LifetimeHistogram
from guestemu.dma.liveset import LiveBuffer, LiveSet
from guestemu.guest.dma.gfp import may_block

DEFAULT_RAM_BYTES: Final = 1 << 40
_NO_TIME: Final = 1 << 128
FIRST_PHASE: Final = "start"
"""The phase before the first mark."""


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
        self._common = LiveSet()
        self._spaces: dict[str, LiveSet] = {"": self._common}
        self._total = Level()
        self._devices: dict[str, DeviceAccount] = {}
        self._phase = Level()
        self._phase_name = FIRST_PHASE
        self._phases: dict[str, Level] = {FIRST_PHASE: self._phase}
        self._cells: dict[str, DeviceEvents] = {}
        self._by_phase: dict[str, dict[str, DeviceEvents]] = {FIRST_PHASE: self._cells}
        self._failed = self._null = self._pages_lost = 0
        self._first_ns: int | None = None
        self._last_ns = _NO_TIME

    @property
    def has_iommu(self) -> bool:
        """Whether each device has its own bus addresses."""
        return self._has_iommu

    def see(self, event: Event) -> Sequence[LiveBuffer]:
        """Accounts for one event; returns the buffers it shows to have been freed unrecorded."""
        if isinstance(event, Alloc):
            return self.allocate(event)
        if isinstance(event, Free):
            self.free(event)
        else:
            self.enter(event)
        return ()

    def _look_at_clock(self, event: Event) -> None:
        """The first event, or one before an earlier line."""
        now = event.time_ns
        if self._first_ns is None:
            self._first_ns = self._last_ns = now
            return
        self.anomalies.add(
            AnomalyKind.OUT_OF_ORDER, event.line, f"{self._last_ns - now} ns before an earlier line"
        )

    def allocate(self, event: Alloc) -> Sequence[LiveBuffer]:
        """See `see`."""
        if event.time_ns < self._last_ns:
            self._look_at_clock(event)
        else:
            self._last_ns = event.time_ns
        if event.has_failed:
            self._failed += 1
            return ()
        size = event.size
        pages = size + PAGE_MASK >> PAGE_SHIFT
        if not size or size > self._ram_bytes:
            self.anomalies.add(
                AnomalyKind.ABSURD_SIZE, event.line, f"{event.device} allocates {size} bytes"
            )
            pages = 0
        cell = self._cells.get(event.device) or self._cell(event.device, event.driver)
        buffer = LiveBuffer(
            event.dma_addr, size, pages, event.device, event.line, event.time_ns, self._phase_name
        )
        lost = (self._space(event.device) if self._has_iommu else self._common).add(buffer)
        for old in lost:
            self._lose(event, old)
        sizes = cell.blocking if may_block(event.gfp) else cell.nonblocking
        sizes[pages] = sizes.get(pages, 0) + 1
        level = cell.owner.level
        level.live += 1
        level.pages = now = level.pages + pages
        if now > level.peak:
            level.peak = now
        level = self._total
        level.live += 1
        level.pages = now = level.pages + pages
        if now > level.peak:
            level.peak = now
        level = self._phase
        if now > level.peak:
            level.peak = now
        return lost

    def _lose(self, event: Alloc, old: LiveBuffer) -> None:
        self._pages_lost += old.pages
        self._total.drop(old.pages)
        self._devices[old.device].level.drop(old.pages)
        self.anomalies.add(
            AnomalyKind.OVERLAP,
            event.line,
            f"{event.device} gets {event.dma_addr:#x} that overlaps {old.dma_addr:#x} of "
            f"{old.device}, allocated in line {old.line} and not freed since",
        )

    def free(self, event: Free) -> None:
        """See `see`."""
        if event.time_ns < self._last_ns:
            self._look_at_clock(event)
        else:
            self._last_ns = event.time_ns
        if event.is_null:
            self._null += 1
            return
        device = event.device
        space = self._space(device) if self._has_iommu else self._common
        buffer = space.remove(event.dma_addr)
        cell = self._cells.get(device) or self._cell(device, event.driver)
        cell.frees += 1
        if buffer is None:
            cell.unknown_frees += 1
            self.anomalies.add(
                AnomalyKind.UNKNOWN_FREE,
                event.line,
                f"{device} frees {event.dma_addr:#x}, which is not allocated",
            )
            return
        if buffer.device != device:
            cell = self._cells.get(buffer.device) or self._cell(buffer.device, "")
        pages = buffer.pages
        level = self._total
        level.live -= 1
        level.pages -= pages
        owner = cell.owner
        level = owner.level
        level.live -= 1
        level.pages -= pages
        owner.lifetimes.add(event.time_ns - buffer.time_ns)
        released = cell.released
        released[pages] = released.get(pages, 0) + 1
        if event.size != buffer.size or buffer.device != device:
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

    def enter(self, event: Mark) -> None:
        """See `see`."""
        if event.time_ns < self._last_ns:
            self._look_at_clock(event)
        else:
            self._last_ns = event.time_ns
        self._close_phase()
        level = self._phases.get(event.name)
        if level is None:
            level = self._phases[event.name] = Level()
        level.peak = max(level.peak, self._total.pages)
        self._phase = level
        self._phase_name = event.name
        self._cells = self._by_phase.setdefault(event.name, {})

    def _close_phase(self) -> None:
        """What is live at the end of a phase is what is live now."""
        self._phase.live = self._total.live
        self._phase.pages = self._total.pages

    def _space(self, device: str) -> LiveSet:
        space = self._spaces.get(device)
        if space is None:
            space = self._spaces[device] = LiveSet()
        return space

    def _cell(self, device: str, driver: str) -> DeviceEvents:
        """What happens to the device in this phase; `driver` is taken where it is a new device."""
        owner = self._devices.get(device)
        if owner is None:
            owner = self._devices[device] = DeviceAccount(driver)
        cell = self._cells[device] = DeviceEvents(owner)
        return cell

    def _leaks(self) -> tuple[Leak, ...]:
        """Buffers that are still live, by device and by the phase that allocated them."""
        found: dict[tuple[str, str], list[int]] = {}
        for space in self._spaces.values():
            for buffer in space.buffers():
                sums = found.setdefault((buffer.device, buffer.phase), [0, 0, buffer.line])
                sums[0] += 1
                sums[1] += buffer.pages
        return tuple(Leak(*key, *sums) for key, sums in found.items())

    def result(self) -> Account:
        """The account of the events seen so far. The empty first phase is left out."""
        self._close_phase()
        unnamed = DeviceAccount("")
        total = DeviceEvents(unnamed)
        lifetimes = LifetimeHistogram()
        for device_state in self._devices.values():
            lifetimes.merge(device_state.lifetimes)
        devices = {name: DeviceEvents(device) for name, device in self._devices.items()}
        phases: dict[str, AllocationTally] = {}
        for phase, cells in self._by_phase.items():
            events = DeviceEvents(unnamed)
            for device, cell in cells.items():
                events.merge(cell)
                devices[device].merge(cell)
            total.merge(events)
            if phase != FIRST_PHASE or events.allocations or events.frees:
                phases[phase] = events.tally("", self._phases[phase])
        return Account(
            total=total.tally("", self._total),
            failed_allocations=self._failed,
            null_frees=self._null,
            pages_lost=self._pages_lost,
            by_device={
                name: events.tally(self._devices[name].driver, self._devices[name].level)
                for name, events in devices.items()
            },
            by_phase=phases,
            lifetimes=lifetimes.result(self._total.live),
            lifetimes_by_device={
                name: device.lifetimes.result(device.level.live)
                for name, device in self._devices.items()
            },
            orders_by_device={name: events.orders() for name, events in devices.items()},
            lifetime_buckets=lifetimes.powers(),
            leaks=self._leaks(),
            duration_ns=0 if self._first_ns is None else self._last_ns - self._first_ns,
        )
