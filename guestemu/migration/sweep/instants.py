# SPDX-License-Identifier: GPL-2.0-or-later
"""A migration at every N-th instruction of the window, each run to its end and compared."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from typing import Final

import msgspec

from guestemu.host.kvm.tdx_map_gpa import TdxKvm
from guestemu.migration.sweep.experiment import Departure, Experiment
from guestemu.migration.sweep.heat import KEPT, LOST, UNDEFINED


class FetchOrder(enum.Enum):
    """What the host reads first: both are read once, and then pages are sent."""

    DIRTY_FIRST = "dirty-first"
    """The dirty log, then the status: right."""

    STATUS_FIRST = "status-first"
    """The status when the window begins, the dirty log at the stop: a page that was converted in
    between is sent by what it was (C15)."""


class SweepPoint(msgspec.Struct, frozen=True, kw_only=True):
    """One migration, `index` instructions into the window.

    `difference` says what the end of the run shows, None for nothing. `lost_defined`: the guest
    reads other bytes than it stored since the last change of the C-bit, right away or at the end of
    the window. `lost_strict`: as that, or any other byte of the page reads differently.
    `pages` were sent. `function` is the kernel's that the guest was in.
    """

    index: int
    difference: str | None
    lost_strict: bool
    lost_defined: bool
    pages: int
    function: str = ""

    @property
    def letter(self) -> str:
        """What became of it, for the heat strip."""
        if self.lost_defined or self.difference is not None:
            return LOST
        return UNDEFINED if self.lost_strict else KEPT


class SweepResult(msgspec.Struct):
    """Sums over the points so far; `first` are the first few that went wrong, `tries` the
    function and the letter of each; `seconds` and `cpu_seconds` (of this process) are those of the
    migrations alone."""

    points: int = 0
    differences: int = 0
    lost_strict: int = 0
    lost_defined: int = 0
    pages: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    first: list[SweepPoint] = msgspec.field(default_factory=list)
    tries: list[tuple[str, str]] = msgspec.field(default_factory=list)

    def add(self, point: SweepPoint, seconds: float, cpu_seconds: float) -> None:
        """Counts one more."""
        self.points += 1
        self.differences += point.difference is not None
        self.lost_strict += point.lost_strict
        self.lost_defined += point.lost_defined
        self.pages += point.pages
        self.seconds += seconds
        self.cpu_seconds += cpu_seconds
        is_wrong = point.difference is not None or point.lost_defined
        self.tries.append((point.function, point.letter))
        if is_wrong and len(self.first) < SHOWN:
            self.first.append(point)


BETWEEN_CHUNKS: Final = "tdx_map_gpa, between two chunks"

SHOWN = 8
"""Points that went wrong and are shown."""


def migrate(
    experiment: Experiment, index: int, order: FetchOrder, cut: TdxKvm | None = None
) -> SweepPoint:
    """One migration, with the source stopped in front of instruction `index` of the window; with
    `cut` inside of the TDCALL before it, between two chunks of its MapGPA."""
    departure = experiment.leave(index, cut)
    function = experiment.function if cut is None else BETWEEN_CHUNKS
    is_late = order is FetchOrder.STATUS_FIRST
    packets = experiment.packets(departure, experiment.first_status if is_late else None)
    arrived = experiment.arrive(departure, packets)
    ended, page = experiment.go_on()
    difference = experiment.difference(ended, departure)
    defined, strict = judge(experiment, departure, arrived, page)
    return SweepPoint(
        index=index,
        difference=difference,
        lost_strict=strict,
        lost_defined=defined,
        pages=len(packets),
        function=function,
    )


def judge(
    experiment: Experiment, departure: Departure, arrived: bytes, at_end: bytes | None
) -> tuple[bool, bool]:
    """(lost_defined, lost_strict) of a guest that arrived with the page `arrived` and had it as
    `at_end` at the end of the window."""
    differs = arrived != departure.page
    is_wrong_later = at_end != experiment.page_at_end
    loses = is_wrong_later
    if differs and not loses:
        mask = int.from_bytes(experiment.recording.defined_at(departure.index))
        loses = bool(mask & (int.from_bytes(arrived) ^ int.from_bytes(departure.page)))
    return loses, loses or differs


def sweep(
    experiment: Experiment,
    every: int,
    order: FetchOrder,
    result: SweepResult,
    kvm: TdxKvm | None = None,
) -> Iterator[SweepPoint]:
    """Migrates at instruction 0, `every`, 2 * `every` … of the window, then, with a `kvm` for it,
    between the chunks of each MapGPA; adds to `result`."""
    stops: list[tuple[int, TdxKvm | None]] = [
        (index, None) for index in range(0, experiment.recording.length, every)
    ]
    if kvm is not None:
        stops += [(index, kvm) for index in experiment.cuts()]
    for index, cut in stops:
        start, start_cpu = time.perf_counter(), time.process_time()
        point = migrate(experiment, index, order, cut)
        result.add(point, time.perf_counter() - start, time.process_time() - start_cpu)
        yield point
