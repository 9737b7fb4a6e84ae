# SPDX-License-Identifier: GPL-2.0-or-later
"""Every choice of instants for an order's steps, decided by migrations that really ran.

What a destination makes of the page depends on three things only: where the guest was stopped, and
of which instant and by which status its last packet was. All of these are migrated once. An order
then takes its results from that matrix, for tens of thousands of tuples in a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import combinations_with_replacement

import msgspec

from guestemu.migration.links import Packet
from guestemu.migration.sweep.experiment import Experiment
from guestemu.migration.sweep.instants import judge
from guestemu.migration.sweep.orders import ORDERS, LastPacket, SweepOrder
from guestemu.migration.sweep.recording import WindowRecording


class Instant(msgspec.Struct, frozen=True):
    """The source, stopped: the packets of the page by both statuses, and what the host believes."""

    index: int
    is_private: bool
    as_private: Packet
    as_shared: Packet


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """What one migration showed of the page (`Point`), and whether anything else was different."""

    lost_defined: bool
    lost_strict: bool
    difference: str | None


class OrderResult(msgspec.Struct, frozen=True):
    """One order over all its tuples: how many lose stored bytes, how many differ only in
    undefined bytes, the first losing tuple (numbers of instructions)."""

    order: str
    is_right: bool
    tuples: int
    lost: int
    undefined: int
    example: tuple[int, ...] | None


def visible_instants(recording: WindowRecording) -> list[int]:
    """The instants that a host could tell apart, as numbers of instructions executed.

    Of each run of stores to the page the first, the second, those at a quarter, a half and three
    quarters and the last; every other event; each of them just before and just after. And the
    window's begin, and the second instruction behind its last store.
    """
    end = recording.stores[-1].index + 2
    found = {0, end}
    for run in recording.runs():
        count = len(run)
        for place in (0, 1, count // 4, count // 2, 3 * count // 4, count - 1):
            found |= {run[place].index, run[place].index + 1}
    for event in recording.events:
        if event.index < end:
            found |= {event.index, event.index + 1}
    return sorted(found)


class Matrix:
    """The migrations of `experiment` for all stops and last packets among `instants`.

    `run` makes them; `arrivals` maps (stop, content's instant and status, or None) to results.
    """

    def __init__(self, experiment: Experiment, instants: list[int]) -> None:
        self.instants = instants
        self.arrivals: dict[tuple[int, LastPacket], Arrival] = {}
        self.seconds = self.cpu_seconds = 0.0
        self._experiment = experiment
        self._seen: dict[int, Instant] = {}

    @property
    def size(self) -> int:
        """How many migrations it takes."""
        count = len(self.instants)
        return count + count * (count + 1)

    def run(self) -> Iterator[Arrival]:
        """Migrates, one after the other."""
        experiment = self._experiment
        gfn = experiment.scenario.gfn
        for stop in self.instants:
            departure = experiment.leave(stop)
            others = [page for page in experiment.packets(departure) if page.gfn != gfn]
            self._seen[stop] = Instant(
                stop,
                not departure.shared[gfn],
                experiment.packet(True),
                experiment.packet(False),
            )
            for last in self._last_packets():
                start, start_cpu = time.perf_counter(), time.process_time()
                packets = [*others, self._packet(last)] if last is not None else others
                arrived = experiment.arrive(departure, packets)
                ended, page = experiment.go_on()
                defined, strict = judge(experiment, departure, arrived, page)
                difference = experiment.difference(ended, departure)
                arrival = Arrival(defined, strict, difference)
                self.arrivals[stop, last] = arrival
                self.seconds += time.perf_counter() - start
                self.cpu_seconds += time.process_time() - start_cpu
                yield arrival

    def _last_packets(self) -> list[LastPacket]:
        return [None, *((index, way) for index in self._seen for way in (False, True))]

    def _packet(self, last: tuple[int, bool]) -> Packet:
        seen = self._seen[last[0]]
        return seen.as_private if last[1] else seen.as_shared

    def is_private(self, index: int) -> bool:
        """The host's record of the page at an instant that was migrated."""
        return self._seen[index].is_private

    def judge_order(self, order: SweepOrder) -> OrderResult:
        """`order` over all its tuples; after `run`."""
        tuples = lost = undefined = 0
        example: tuple[int, ...] | None = None
        stored = self._experiment.recording.stored
        times = {pair: stored(*pair) for pair in combinations_with_replacement(self.instants, 2)}
        for at in combinations_with_replacement(self.instants, order.instants):
            last = order.last_packet(at, lambda first, end: times[first, end], self.is_private)
            arrival = self.arrivals[at[-1], last]
            tuples += 1
            if arrival.lost_defined:
                lost += 1
                example = example or at
            elif arrival.lost_strict:
                undefined += 1
        return OrderResult(order.name, order.is_right, tuples, lost, undefined, example)

    def judge_all(self) -> list[OrderResult]:
        """All orders; after `run`."""
        return [self.judge_order(order) for order in ORDERS]
