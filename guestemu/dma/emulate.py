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

from collections.abc import Callable
from typing import Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, Gfn, Gva
from guestemu.abi.errno import EIO
from guestemu.checks.base import Violation as CheckViolation
from guestemu.checks.free import FreePagesCheck
from guestemu.dma.events import Event
from guestemu.dma.kernel import KernelCoherent
from guestemu.dma.live import Accountant
from guestemu.dma.replay import Replayer
from guestemu.dma.report import DmaReport, MachineCounts, PoolCounts, Violation, make_report
from guestemu.dma.trace import TraceReport
from guestemu.guest.base import CallOutcome
from guestemu.guest.dma.coherent import CoherentAllocator, CoherentDma
from guestemu.guest.dma.emulated import TrackedAllocator
from guestemu.guest.dma.policy import policy_named
from guestemu.testbed import OpResult, Testbed

KEPT_VIOLATIONS: Final = 1000


class ViolationLog:
    """Counts violations and keeps the first 1000, with the trace line `line` they were seen at.

    Free pages that are shared stay so: what that check said last it does not say again.
    """

    def __init__(self) -> None:
        self.line = 0
        self.count = 0
        self.kept: list[Violation] = []
        self._standing = ""

    def add(self, check: str, message: str, fact: str = "") -> None:
        """Counts one."""
        if check == FreePagesCheck.name:
            if message == self._standing:
                return
            self._standing = message
        self.count += 1
        if len(self.kept) < KEPT_VIOLATIONS:
            self.kept.append(Violation(check, self.line, message, fact))


class WatchedConversions:
    """`CoherentGuest` over a testbed: converts through it and counts flips and exits.

    `free_frames` are the frames in the guest's page allocator, kept up to date by their owner.
    """

    def __init__(self, testbed: Testbed, log: ViolationLog, free_frames: bitarray) -> None:
        self.decrypted = 0
        self.encrypted = 0
        self.hypercalls = 0
        self.peak_shared = 0
        self._testbed = testbed
        self._log = log
        self._free_frames = free_frames

    def set_memory_decrypted(self, gfn: Gfn, pages: int, /) -> int:
        """See `CoherentGuest`."""
        return self._convert(gfn, pages, private=False)

    def set_memory_encrypted(self, gfn: Gfn, pages: int, /) -> int:
        """See `CoherentGuest`."""
        return self._convert(gfn, pages, private=True)

    def memset(self, gfn: Gfn, size: int, /) -> None:
        """See `CoherentGuest`."""
        guest = self._testbed.guest
        outcome = guest.memset(Gva(guest.direct_map + (gfn << PAGE_SHIFT)), 0, size)
        self._value(f"memset of {size} bytes at frame {gfn:#x}", outcome, ())

    def _convert(self, gfn: Gfn, pages: int, private: bool) -> int:
        result, violations = self._testbed.convert(
            self._log.line, gfn, pages, private, self._free_frames
        )
        self.count(result)
        name = "set_memory_encrypted" if private else "set_memory_decrypted"
        return self._value(f"{name} of {pages} pages at frame {gfn:#x}", result.outcome, violations)

    def count(self, result: OpResult) -> None:
        """Adds the flips and exits of one call."""
        for _, flip in result.flips:
            if flip.is_alias:
                continue
            if flip.private:
                self.encrypted += flip.changed
            else:
                self.decrypted += flip.changed
            self.peak_shared = max(self.peak_shared, self.decrypted - self.encrypted)
        self.hypercalls += sum(1 for record in result.exits if record.kind == "hypercall")

    def judged(
        self,
        what: str,
        private: bool,
        call: Callable[[], CallOutcome],
        frames: Callable[[CallOutcome], tuple[int, int] | None],
    ) -> tuple[int, int]:
        """Runs, counts and judges a converting call: its value (or -EIO) and the pages flipped."""
        result, violations = self._testbed.judge(self._log.line, private, call, frames)
        before = self.decrypted + self.encrypted
        self.count(result)
        value = self._value(what, result.outcome, violations)
        return value, self.decrypted + self.encrypted - before

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


class Emulation:
    """One trace on one testbed, event by event; `report` gives the figures so far.

    Resets the testbed and makes the atomic pools. The guest's kernel generation decides which pages
    are converted and what a failed conversion does. Raises what the host and the machine raise.
    """

    def __init__(self, testbed: Testbed, accountant: Accountant | None = None) -> None:
        testbed.reset()
        guest = testbed.guest
        self._accountant = accountant or Accountant()
        self._log = ViolationLog()
        free = bitarray(0)
        if guest.dma_frames:
            memory = TrackedAllocator(guest)
            free = memory.free_frames
        self._buffers = WatchedConversions(testbed, self._log, free)
        self._pools = WatchedConversions(testbed, self._log, free)
        dma: CoherentAllocator
        if guest.dma_frames:
            policy = policy_named(guest.generation)
            dma = CoherentDma(self._buffers, memory, policy, pool_guest=self._pools)
        else:
            dma = KernelCoherent(guest, self._buffers, self._pools)
        self._replayer = Replayer(dma, self._accountant)

    @property
    def pages_converted(self) -> int:
        """Pages whose C-bit changed so far, for buffers and pools."""
        return sum(watch.decrypted + watch.encrypted for watch in (self._buffers, self._pools))

    def step(self, event: Event) -> None:
        """Replays one event."""
        self._log.line = event.line
        self._replayer.step(event)

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

    def report(self, trace: TraceReport | None = None, interrupted: bool = False) -> DmaReport:
        """The report; `trace` is what the reader of a recorded trace saw."""
        replay = self._replayer.result()
        return make_report(
            replay.account,
            self._accountant.anomalies,
            trace,
            replay,
            self.counts(),
            interrupted,
        )
