# SPDX-License-Identifier: GPL-2.0-or-later
"""A run of a trace: the replay, who converts for it, and the analysis of what that cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, Protocol

from guestemu.dma.analysis import Analysis, Analyst
from guestemu.dma.events import Event
from guestemu.dma.live import Accountant
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


class DmaRun:
    """One trace on one guest, event by event; `report` gives the figures so far.

    `buffers` and `pools` count what `dma` converts, `observer` hears it (it includes `analyst`),
    `counts` and `analyze` give the machine's figures and the analysis so far.
    """

    def __init__(
        self,
        dma: CoherentAllocator,
        counters: tuple[Counter, Counter],
        observer: Observer,
        analyst: Analyst,
        accountant: Accountant | None = None,
    ) -> None:
        self.accountant = accountant or Accountant()
        self._counters = counters
        self._begin: Callable[[Event], None] = observer.begin
        self._analyst = analyst
        self._replayer = Replayer(dma, self.accountant)
        self._step = self._replayer.step

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
        )
