# SPDX-License-Identifier: GPL-2.0-or-later
"""Drives the coherent allocator of a guest through the events of a trace.

The replay drives and the guest converts; what the machine really did (hypercalls, shared pages,
violations) is counted where the machine is watched, and reaches the report as
`guestemu.dma.report.MachineCounts`. The figures here are what the kernel's DMA code asked for.

The guest's memory is smaller than the traced machine's, so buffers are placed by the guest's own
allocator. Where the trace shows that a free was not recorded (an address is handed out again), the
free is made up for before the new allocation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec

from guestemu.abi.addresses import Gfn
from guestemu.dma.account import Account
from guestemu.dma.anomalies import Anomaly, AnomalyKind
from guestemu.dma.events import Alloc, Event, Free
from guestemu.dma.live import Accountant
from guestemu.dma.liveset import LiveBuffer
from guestemu.guest.dma.coherent import AllocOutcome, CoherentAllocator, FreeOutcome, Origin
from guestemu.guest.dma.zones import DMA_BIT_MASK_64

PROGRESS_EVENTS: Final = 1024

_FAILURES: Final[Mapping[AllocOutcome, AnomalyKind]] = {
    AllocOutcome.NO_MEMORY: AnomalyKind.NO_MEMORY,
    AllocOutcome.POOL_EMPTY: AnomalyKind.NO_MEMORY,
    AllocOutcome.DECRYPT_FAILED: AnomalyKind.CONVERSION_FAILED,
}


_DMA: Final = Origin.DMA
_POOL: Final = AllocOutcome.POOL
_ENCRYPT_FAILED: Final = FreeOutcome.ENCRYPT_FAILED
"""Looked up once: a member of an enumeration costs as much as a call."""


class Replay(msgspec.Struct, frozen=True):
    """What the replay asked of the guest; pages are 4 KiB.

    `pages_decrypted` and `pages_encrypted` were asked for by allocations and frees;
    `pool_pages_decrypted` by the atomic pools at boot and when they grew. `pool_hits` are
    allocations from a pool. `no_memory` and `pool_empty` are allocations the smaller guest could
    not serve. `implied_frees` were not in the trace, `skipped_frees` have no buffer in the guest.
    `leaked_pages` are lost to the guest, `freed_suspect_pages` went back to its allocator after a
    failed conversion, maybe shared; `pages_beyond` were converted though they are not the buffer's
    (5.10 with CMA). With `--strict`, any anomaly is a finding.
    """

    events: int
    allocations: int
    frees: int
    implied_frees: int
    skipped_frees: int
    pool_hits: int
    no_memory: int
    pool_empty: int
    conversion_failures: int
    pages_decrypted: int
    pages_encrypted: int
    pool_pages_decrypted: int
    leaked_pages: int
    freed_suspect_pages: int
    pages_beyond: int
    anomalies: tuple[Anomaly, ...]
    anomaly_counts: dict[AnomalyKind, int]
    account: Account


class Replayer:
    """One replay in steps: `step` for each event, `result` for the figures so far.

    `dma` must not have been used before; its pools are made here. `masks` are DMA masks by device
    name, 64 bits for a device not in it.
    """

    def __init__(
        self,
        dma: CoherentAllocator,
        accountant: Accountant | None = None,
        masks: Mapping[str, int] | None = None,
    ) -> None:
        self._dma = dma
        self._accountant = accountant or Accountant()
        self._masks = masks or {}
        self._has_iommu = self._accountant.has_iommu
        self._common: dict[int, Gfn] = {}
        self._spaces: dict[str, dict[int, Gfn]] = {}
        self._events = self._allocations = self._frees = 0
        self._implied = self._skipped = self._pool_hits = 0
        self._no_memory = self._pool_empty = self._failures = 0
        self._decrypted = self._encrypted = self._suspect = 0
        self._run_work = dma.pools.run_work
        dma.boot()
        self._growths_seen = 0
        self._report_growth(0)

    def step(self, event: Event) -> None:
        """Replays one event and then runs the kernel's pending pool work."""
        self.steps((event,))

    def steps(
        self, events: Iterable[Event], begin: Callable[[Event], None] = lambda _event: None
    ) -> None:
        """`step` for each event, after `begin`. This loop is what a run of the model is made of."""
        see_alloc, see_free = self._accountant.allocate, self._accountant.free
        allocate, free, run_work = self._allocate, self._free, self._run_work
        for event in events:
            begin(event)
            if isinstance(event, Alloc):
                if lost := see_alloc(event):
                    self._make_up(lost, event.line)
                allocate(event)
            elif isinstance(event, Free):
                see_free(event)
                free(event)
            else:
                self._accountant.enter(event)
            if run_work():
                self._report_growth(event.line)
            self._events += 1

    def _make_up(self, lost: Iterable[LiveBuffer], line: int) -> None:
        """Frees what the trace shows to have been freed unrecorded."""
        for buffer in lost:
            gfn = self._placed(buffer.device).pop(buffer.dma_addr, None)
            if gfn is not None:
                self._implied += 1
                self._release(gfn, line)

    def _allocate(self, event: Alloc) -> None:
        if event.has_failed:
            return
        mask = self._masks.get(event.device, DMA_BIT_MASK_64) if self._masks else DMA_BIT_MASK_64
        if event.origin is _DMA:
            record = self._dma.alloc(event.size, event.gfp, mask, event.via_pages)
        else:
            record = self._dma.share(event.size, event.origin)
        self._allocations += 1
        self._decrypted += record.decrypted_pages
        outcome = record.outcome
        if record.buffer is not None:
            self._pool_hits += outcome is _POOL
            placed = self._placed(event.device) if self._has_iommu else self._common
            placed[event.dma_addr] = record.buffer.gfn
            return
        self._suspect += record.freed_suspect_pages
        self._no_memory += outcome is AllocOutcome.NO_MEMORY
        self._pool_empty += outcome is AllocOutcome.POOL_EMPTY
        self._failures += outcome is AllocOutcome.DECRYPT_FAILED
        self._accountant.anomalies.add(
            _FAILURES[record.outcome],
            event.line,
            f"{event.device} asks for {event.size} bytes: {record.outcome.value}"
            + (f", error {record.error}" if record.error else ""),
        )

    def _free(self, event: Free) -> None:
        if event.is_null:
            return
        placed = self._placed(event.device) if self._has_iommu else self._common
        gfn = placed.pop(event.dma_addr, None)
        if gfn is None:
            self._skipped += 1
            return
        self._frees += 1
        self._release(gfn, event.line)

    def _placed(self, device: str) -> dict[int, Gfn]:
        """The guest's buffers by bus address, of the address space of `device`."""
        return self._spaces.setdefault(device, {}) if self._has_iommu else self._common

    def _release(self, gfn: Gfn, line: int) -> None:
        record = self._dma.free(gfn)
        self._encrypted += record.encrypted_pages
        self._suspect += record.freed_suspect_pages
        if record.outcome is _ENCRYPT_FAILED:
            self._failures += 1
            self._accountant.anomalies.add(
                AnomalyKind.CONVERSION_FAILED,
                line,
                f"set_memory_encrypted of {record.encrypted_pages} pages: error {record.error}",
            )

    def _report_growth(self, line: int) -> None:
        growths = self._dma.pools.growths
        for growth in growths[self._growths_seen :]:
            self._suspect += growth.freed_suspect
            if growth.error:
                self._accountant.anomalies.add(
                    AnomalyKind.POOL_GROWTH_FAILED,
                    line,
                    f"pool of zone {growth.zone.value}: error {growth.error}",
                )
        self._growths_seen = len(growths)

    def result(self) -> Replay:
        """The figures of the events replayed so far."""
        anomalies = self._accountant.anomalies
        return Replay(
            events=self._events,
            allocations=self._allocations,
            frees=self._frees,
            implied_frees=self._implied,
            skipped_frees=self._skipped,
            pool_hits=self._pool_hits,
            no_memory=self._no_memory,
            pool_empty=self._pool_empty,
            conversion_failures=self._failures,
            pages_decrypted=self._decrypted,
            pages_encrypted=self._encrypted,
            pool_pages_decrypted=sum(growth.decrypted for growth in self._dma.pools.growths),
            leaked_pages=self._dma.leaked_pages,
            freed_suspect_pages=self._suspect,
            pages_beyond=self._dma.pages_beyond,
            anomalies=anomalies.kept,
            anomaly_counts=dict(anomalies.counts),
            account=self._accountant.result(),
        )


def replay(
    events: Iterable[Event],
    dma: CoherentAllocator,
    accountant: Accountant | None = None,
    masks: Mapping[str, int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Replay:
    """Replays all `events`; see `Replayer` for the arguments.

    `progress` is called with the number of events done after every 1024 and at the end. Errors are
    those of iterating over the events and of the guest.
    """
    replayer = Replayer(dma, accountant, masks)
    done = 0
    for event in events:
        replayer.step(event)
        done += 1
        if progress is not None and done % PROGRESS_EVENTS == 0:
            progress(done)
    if progress is not None:
        progress(done)
    return replayer.result()
