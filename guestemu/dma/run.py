# SPDX-License-Identifier: GPL-2.0-or-later
"""A run of a trace: the replay, who converts for it, and the analysis of what that cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.dma.analysis import Analysis, Analyst
from guestemu.dma.events import Event
from guestemu.dma.live import Accountant
from guestemu.dma.migration import Migration, MigrationObserver, MigrationPlan, SentBy
from guestemu.dma.observer import Observer
from guestemu.dma.replay import Replayer
from guestemu.dma.report import DmaReport, MachineCounts, make_report
from guestemu.dma.sharing import MapCell
from guestemu.dma.trace import TraceReport
from guestemu.guest.dma.coherent import CoherentAllocator

BATCH_EVENTS: Final = 256
"""How many events a reader and a run should take turns by."""


class Counter(Protocol):
    """Counts conversions: pages by direction, and hypercalls."""

    decrypted: int
    encrypted: int
    hypercalls: int


class RunOptions(msgspec.Struct, frozen=True):
    """What a run has beside guest and trace: a contiguous area of `cma` MiB (0: none), and a
    migration by `plan` (None: none), once for each of `sources`."""

    cma: int = 0
    plan: MigrationPlan | None = None
    sources: tuple[SentBy, ...] = tuple(SentBy)

    @property
    def cma_pages(self) -> int:
        """Pages of the contiguous area."""
        return self.cma << 20 >> PAGE_SHIFT

    def migrations(self, private: bitarray) -> tuple[MigrationObserver, ...]:
        """The migrations, of a guest with these C-bits."""
        if self.plan is None:
            return ()
        return tuple(MigrationObserver(private, self.plan, source) for source in self.sources)


NO_OPTIONS: Final = RunOptions()


class DmaRun:
    """One trace on one guest, event by event; `report` gives the figures so far.

    `buffers` and `pools` count what `dma` converts, `observer` hears it (it includes `analyst`),
    `counts` and `analyze` give the machine's figures and the analysis so far. `migrations` are
    among the observers.
    """

    def __init__(
        self,
        dma: CoherentAllocator,
        counters: tuple[Counter, Counter],
        observer: Observer,
        analyst: Analyst,
        accountant: Accountant | None = None,
        migrations: tuple[MigrationObserver, ...] = (),
    ) -> None:
        self.accountant = accountant or Accountant()
        self._counters = counters
        self._begin: Callable[[Event], None] = observer.begin
        self._analyst = analyst
        self._replayer = Replayer(dma, self.accountant)
        self._step = self._replayer.step
        self._migrations = migrations
        self._migrated: tuple[Migration, ...] | None = None

    @property
    def pages_converted(self) -> int:
        """Pages whose C-bit changed so far, for buffers and pools."""
        return sum(counter.decrypted + counter.encrypted for counter in self._counters)

    def step(self, event: Event) -> None:
        """Replays one event."""
        self._begin(event)
        self._step(event)

    def steps(self, events: Iterable[Event]) -> None:
        """Replays events. A reader and a run that take turns by hundreds of events are faster than
        by one."""
        self._replayer.steps(events, self._begin)

    def counts(self) -> MachineCounts:
        """What was done so far. Every kind of run has its own."""
        raise NotImplementedError

    def analyze(self) -> Analysis:
        """The analysis so far. Every kind of run has its own."""
        raise NotImplementedError

    def address_map(self) -> tuple[MapCell, ...]:
        """Where the shared pages lie and lay."""
        return self._analyst.address_map()

    def migrated(self) -> tuple[Migration, ...]:
        """The migrations, which go on to their ends with the guest as it is now; call it when the
        run has ended."""
        if self._migrated is None:
            self._migrated = tuple(migration.finish() for migration in self._migrations)
        return self._migrated

    def report(self, trace: TraceReport | None = None, interrupted: bool = False) -> DmaReport:
        """The report; `trace` is what the reader of a recorded trace saw."""
        replay = self._replayer.result()
        return make_report(
            replay.account,
            self.accountant.anomalies,
            trace,
            replay,
            self.counts(),
            interrupted,
            self.analyze(),
            self.migrated(),
        )
