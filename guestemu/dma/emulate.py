# SPDX-License-Identifier: GPL-2.0-or-later
"""Drives a DMA trace through an emulated guest and counts what the machine does.

The allocator model chooses the frames (`guestemu.guest.dma`); each conversion and each memset is
the guest's own code on the CPU, its exits are answered by the testbed's host, and the testbed's
checks judge every conversion. The figures of `MachineCounts` come from page-table stores and exits
alone, never from what the allocator asked for, so the two can be compared.

The atomic pools (B8) are counted apart: their pages are decrypted at boot and when a pool grows,
not for an allocation of the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, Gfn, Gva, gpa_text
from guestemu.abi.errno import EIO
from guestemu.abi.errors import InputError
from guestemu.checks.base import Violation as CheckViolation
from guestemu.checks.free import FreePagesCheck
from guestemu.dma.analysis import Analysis, Analyst
from guestemu.dma.cost import LEAF_PAGES, Conversion
from guestemu.dma.events import Event
from guestemu.dma.kernel import KernelCoherent
from guestemu.dma.leaves import GIB_PAGES
from guestemu.dma.live import Accountant
from guestemu.dma.observer import Observer, Observers
from guestemu.dma.report import MachineCounts, PoolCounts, TraceViolation
from guestemu.dma.run import NO_OPTIONS, DmaRun, RunOptions
from guestemu.events.exits import AnsweredExit, HypercallExit
from guestemu.guest.base import CallOutcome
from guestemu.guest.dma.coherent import CoherentAllocator, CoherentDma
from guestemu.guest.dma.emulated import TrackedAllocator
from guestemu.guest.dma.policy import policy_named
from guestemu.runner.testbed import OpResult, Testbed

KEPT_VIOLATIONS: Final = 1000
MEMSET_BYTES: Final = 4 << 20
"""Cleared by one call of the guest's memset, which a guest's budget of work allows for."""


class ViolationLog:
    """Counts violations and keeps the first 1000, with the trace line `line` they were seen at.

    Free pages that are shared stay so: what that check said last it does not say again.
    """

    def __init__(self) -> None:
        self.line = 0
        self.count = 0
        self.kept: list[TraceViolation] = []
        self._standing = ""

    def add(self, check: str, message: str, fact: str = "") -> None:
        """Counts one."""
        if check == FreePagesCheck.name:
            if message == self._standing:
                return
            self._standing = message
        self.count += 1
        if len(self.kept) < KEPT_VIOLATIONS:
            self.kept.append(TraceViolation(check, self.line, message, fact))


class WatchedConversions:
    """`CoherentGuest` over a testbed: converts through it and counts flips and exits.

    `free_frames` are the frames in the guest's page allocator, kept up to date by their owner.
    `observer` is told of every conversion, as `is_pool` for the atomic pools.
    """

    def __init__(
        self,
        testbed: Testbed,
        log: ViolationLog,
        free_frames: bitarray,
        observer: Observer,
        is_pool: bool,
    ) -> None:
        self.decrypted = 0
        self.encrypted = 0
        self.hypercalls = 0
        self.peak_shared = 0
        self._testbed = testbed
        self._log = log
        self._free_frames = free_frames
        self._observer = observer
        self._is_pool = is_pool
        self._leaf_map = testbed.guest.leaf_map

    def set_memory_decrypted(self, gfn: Gfn, pages: int, /) -> int:
        """See `CoherentGuest`."""
        return self._convert(gfn, pages, private=False)

    def set_memory_encrypted(self, gfn: Gfn, pages: int, /) -> int:
        """See `CoherentGuest`."""
        return self._convert(gfn, pages, private=True)

    def memset(self, gfn: Gfn, size: int, /) -> None:
        """See `CoherentGuest`."""
        guest = self._testbed.guest
        start = guest.direct_map + (gfn << PAGE_SHIFT)
        for offset in range(0, size, MEMSET_BYTES):
            part = min(MEMSET_BYTES, size - offset)
            outcome = guest.memset(Gva(start + offset), 0, part)
            self._value(f"memset of {size} bytes at {gpa_text(gfn)}", outcome, ())
        self._observer.cleared(gfn, size)

    def report_clearing(self, gfn: Gfn, pages: int) -> None:
        """Tells how many of the pages, from the first on, a device would read as zeros: what a
        kernel that clears its buffers itself has cleared."""
        ram = self._testbed.guest.machine.ram
        zero = 0
        while zero < pages and not any(ram.dram(Gfn(gfn + zero))):
            zero += 1
        if zero:
            self._observer.cleared(gfn, zero << PAGE_SHIFT)

    def _convert(self, gfn: Gfn, pages: int, private: bool) -> int:
        tables = self._leaf_map.table_pages
        result, violations = self._testbed.convert(
            self._log.line, gfn, pages, private, self._free_frames
        )
        self.count(result)
        splits = self._leaf_map.table_pages - tables
        self._tell(conversion_of(result, (gfn, pages), private, splits))
        name = "set_memory_encrypted" if private else "set_memory_decrypted"
        return self._value(
            f"{name} of {pages} pages at {gpa_text(gfn)}", result.outcome, violations
        )

    def count(self, result: OpResult) -> None:
        """Adds the flips and exits of one call."""
        for flip in result.flips:
            if flip.is_alias:
                continue
            if flip.private:
                self.encrypted += flip.changed
            else:
                self.decrypted += flip.changed
            self.peak_shared = max(self.peak_shared, self.decrypted - self.encrypted)
        self.hypercalls += sum(1 for record in result.exits if isinstance(record, HypercallExit))

    def judged(
        self,
        what: str,
        private: bool,
        call: Callable[[], CallOutcome],
        frames: Callable[[CallOutcome], tuple[int, int] | None],
    ) -> tuple[int, int]:
        """Runs, counts and judges a converting call: its value (or -EIO) and the pages flipped."""
        tables = self._leaf_map.table_pages
        result, violations = self._testbed.judge(self._log.line, private, call, frames)
        before = self.decrypted + self.encrypted
        self.count(result)
        splits = self._leaf_map.table_pages - tables
        for part in ranges_of(result):
            self._tell(conversion_of(result, part, private, splits))
            splits = 0
        value = self._value(what, result.outcome, violations)
        return value, self.decrypted + self.encrypted - before

    def _tell(self, conversion: Conversion) -> None:
        self._observer.converted(conversion, self._is_pool)

    def _value(
        self, what: str, outcome: CallOutcome, violations: tuple[CheckViolation, ...]
    ) -> int:
        """What the caller gets: the function's value, or -EIO when it never returned. Nothing in
        this guest takes pages away, so an oops is a violation here, which the checks let pass."""
        for found in violations:
            self._log.add(found.check, found.message, found.fact)
        if outcome.value is not None:
            return outcome.value
        if not violations:
            self._log.add("progress", f"{what} did not return: {outcome.end}")
        return -EIO


def ranges_of(result: OpResult) -> list[tuple[int, int]]:
    """The ranges (first frame, pages) of neighbouring frames whose C-bit a call changed."""
    ranges: list[tuple[int, int]] = []
    flips = sorted((flip.gfn, flip.pages) for flip in result.flips if not flip.is_alias)
    for gfn, pages in flips:
        if ranges and sum(ranges[-1]) == gfn:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + pages)
        else:
            ranges.append((gfn, pages))
    return ranges


def conversion_of(
    result: OpResult, frames: tuple[int, int], private: bool, splits: int
) -> Conversion:
    """What a call did to the range `frames` (first frame, pages), from its exits and flips."""
    gfn, pages = frames
    flips = [
        flip
        for flip in result.flips
        if not flip.is_alias and gfn <= flip.gfn + flip.pages - 1 and flip.gfn < gfn + pages
    ]
    small = middle = large = 0
    for record in result.exits:
        if isinstance(record, HypercallExit) and _is_about(record, frames):
            size = record.args[1]
            small += size < LEAF_PAGES
            middle += LEAF_PAGES <= size < GIB_PAGES
            large += size >= GIB_PAGES
    changed = sum(flip.changed for flip in flips)
    return Conversion(gfn, pages, private, changed, len(flips), small, middle, large, splits)


def _is_about(record: AnsweredExit, frames: tuple[int, int]) -> bool:
    first = record.args[0] >> PAGE_SHIFT
    return first < sum(frames) and frames[0] < first + record.args[1]


class Emulation(DmaRun):
    """One trace on one testbed, event by event; `report` gives the figures so far.

    Resets the testbed and makes the atomic pools. The guest's kernel generation decides which pages
    are converted and what a failed conversion does. `observers` hear of every conversion. Raises
    what the host and the machine raise.
    """

    def __init__(
        self,
        testbed: Testbed,
        accountant: Accountant | None = None,
        observers: tuple[Observer, ...] = (),
        options: RunOptions = NO_OPTIONS,
    ) -> None:
        testbed.reset()
        guest = testbed.guest
        self._log = ViolationLog()
        self._leaf_map = guest.leaf_map
        self._small_at_boot = guest.leaf_map.small_leaves()
        has_model_allocator = bool(guest.dma_frames)
        analyst = Analyst(guest.leaf_map.private)
        migrations = options.migrations(guest.leaf_map.private)
        watching: tuple[Observer, ...] = (analyst, *migrations, *observers)
        observer: Observer = Observers(watching) if len(watching) > 1 else analyst
        free = bitarray(0)
        if has_model_allocator:
            memory = TrackedAllocator(guest)
            free = memory.free_frames
        self._buffers = WatchedConversions(testbed, self._log, free, observer, False)
        self._pools = WatchedConversions(testbed, self._log, free, observer, True)
        dma: CoherentAllocator
        if has_model_allocator:
            policy = policy_named(guest.generation)
            dma = CoherentDma(self._buffers, memory, policy, None, self._pools, options.cma_pages)
        elif options.cma:
            raise InputError(
                f"cma of {options.cma} MiB: a real kernel has the area it was built and booted "
                f"with; use snippet:GENERATION or model:GENERATION"
            )
        else:
            dma = KernelCoherent(guest, self._buffers, self._pools)
        super().__init__(
            dma, (self._buffers, self._pools), observer, analyst, accountant, migrations
        )

    def step(self, event: Event) -> None:
        """Replays one event."""
        self._log.line = event.line
        super().step(event)

    def steps(self, events: Iterable[Event]) -> None:
        """Replays events."""
        for event in events:
            self.step(event)

    def counts(self) -> MachineCounts:
        """What the machine did so far."""
        buffers = self._buffers
        return MachineCounts(
            pages_decrypted=buffers.decrypted,
            pages_encrypted=buffers.encrypted,
            hypercalls=buffers.hypercalls,
            peak_shared_pages=buffers.peak_shared,
            violations=tuple(self._log.kept),
            violation_count=self._log.count,
            pools=PoolCounts(self._pools.decrypted, self._pools.hypercalls),
        )

    def analyze(self) -> Analysis:
        """See `DmaRun`. Leaves that were small at boot were not split by this run."""
        split = self._leaf_map.small_leaves() - self._small_at_boot
        return self._analyst.result(self._leaf_map.private, split)
