# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of a flow: its operations on a testbed, and all that they showed.

The scene also plays the callers of the kernel's functions: a caller that gets an error gives the
pages up and does not use them (A.9); a caller that gets none fills them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, PAGE_SIZE, Gpa, Gva
from guestemu.abi.regions import Region
from guestemu.checks.base import Violation
from guestemu.guest.base import CallOutcome, Guest, GuestOops
from guestemu.guest.dma.policy import OnFailure, policy_named
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.program.ops import Op, OpKind
from guestemu.runner.testbed import OpResult, Testbed
from guestemu.study.ledger.pages import WrittenPages

OLD: Final = 0x20
"""Value of a first page before the flow; the next pages have the next values."""

NEW: Final = 0xA0
"""The same after it."""

_PIECE: Final = 64
_TIME: Final = re.compile(r"^\[ *[0-9.]+\] ")


class Scene:
    """`is_dead`: an operation did not return. `error`: a caller got one. `leaked`: pages that a
    caller gave up for good, None if that cannot be known."""

    def __init__(self, bed: Testbed) -> None:
        self.bed = bed
        self.written = WrittenPages()
        self.warnings: list[str] = []
        self.violations: list[Violation] = []
        self.has_error = False
        self._console_start = self._console()
        self.is_dead = False
        self.oops: GuestOops | None = None
        self.leaked: int | None = 0
        self._results: list[OpResult] = []

    @property
    def guest(self) -> Guest:
        """The guest as it is now, after a migration that at the destination."""
        return self.bed.guest

    def mark(self) -> None:
        """What was logged so far does not count."""
        self.warnings.clear()
        self._console_start = self._console()

    def log(self) -> frozenset[str]:
        """What the guest has logged since `mark`: the WARNs of our code, or the lines of a real
        kernel's console without their times."""
        guest = self.bed.guest
        if not isinstance(guest, LinuxGuest):
            return frozenset(self.warnings)
        lines = guest.console.text[self._console_start :].splitlines()
        return frozenset(_TIME.sub("", line) for line in lines)

    def _console(self) -> int:
        """Length of what a real kernel has printed."""
        guest = self.bed.guest
        return len(guest.console.text) if isinstance(guest, LinuxGuest) else 0

    def has_died(self) -> bool:
        """`is_dead`, as it is now."""
        return self.is_dead

    def step(self, op: Op) -> CallOutcome:
        """Runs one operation; nothing at all once the guest is dead."""
        if self.is_dead:
            return CallOutcome(None)
        self.bed.step(len(self._results), op, self._results, self.violations)
        result = self._results[-1]
        self.written.flip(result.flips)
        return self._keep(result.outcome)

    def _keep(self, outcome: CallOutcome) -> CallOutcome:
        self.warnings += outcome.warnings
        if outcome.value is None:
            self.is_dead = True
            if isinstance(outcome.end, GuestOops):
                self.oops = outcome.end
        return outcome

    # Memory -----------------------------------------------------------------------------------

    def fill(self, region: Region, page: int, pages: int, value: int) -> None:
        """The guest fills pages of a region, each with another byte; very many in large pieces."""
        size = 1 if pages <= _PIECE else _PIECE
        for number, first in enumerate(range(0, pages, size)):
            self._fill(region, page + first, min(size, pages - first), value + number)

    def _fill(self, region: Region, page: int, pages: int, value: int) -> None:
        op = Op(OpKind.WRITE, (value, 0, pages * PAGE_SIZE), region=region, page=page)
        if self.step(op).value is not None:
            guest = self.guest
            for index in range(page, page + pages):
                self.written.note(guest.gva(region, index), guest.gpa(region, index), value)

    def fill_frames(self, frames: Iterable[int], value: int) -> None:
        """The guest fills direct-mapped frames."""
        for index, gfn in enumerate(frames):
            if self.is_dead:
                return
            byte = value + index % _PIECE
            gva = Gva(self.guest.direct_map + (gfn << PAGE_SHIFT))
            if self._keep(self.guest.memset(gva, byte, PAGE_SIZE)).value is not None:
                self.written.note(gva, Gpa(gfn << PAGE_SHIFT), byte)

    # Callers ----------------------------------------------------------------------------------

    def convert(self, kind: OpKind, region: Region, page: int, pages: int) -> bool:
        """A caller of set_memory_*() or early_set_memory_*(): False if it got an error, gave the
        pages up and leaked them."""
        size = pages * PAGE_SIZE if kind in _EARLY else pages
        outcome = self.step(Op(kind, (size, 0), region=region, page=page))
        if outcome.value:
            self.has_error = True
            first = self.guest.gpa(region, page) >> PAGE_SHIFT
            self.written.abandon(range(first, first + pages))
            if self.leaked is not None:
                self.leaked += pages
        return outcome.value == 0

    def dma_alloc(self, slot: int, pages: int, atomic: bool) -> range:
        """A driver: the frames of its buffer, which it fills; nothing if it got none."""
        outcome = self.step(Op(OpKind.DMA_ALLOC, (slot, pages * PAGE_SIZE, int(atomic))))
        if outcome.value is None:
            return range(0)
        if outcome.value <= 0:
            self.has_error = True
            self._count_leak(pages, policy_named(self.guest.generation).decrypt_failure)
            return range(0)
        first = outcome.value >> PAGE_SHIFT
        frames = range(first, first + pages)
        self.fill_frames(frames, NEW)
        return frames

    def dma_free(self, slot: int, frames: range) -> None:
        """A driver gives its buffer back; the kernel's own code sees the result. The next
        owner of the frames fills them."""
        outcome = self.step(Op(OpKind.DMA_FREE, (slot,)))
        if outcome.value is None:
            return
        if outcome.value:
            self.written.abandon(frames)
            self.has_error = True
            self._count_leak(len(frames), policy_named(self.guest.generation).encrypt_failure)
        elif self.guest.leaf_map.private[frames.start : frames.stop].all():
            self.fill_frames(frames, OLD)
        else:  # a kernel's dma_free_attrs() is void; the pages did not become private
            self.written.abandon(frames)
            self.leaked = None

    def reuse_freed(self) -> None:
        """The next owner of free frames that are shared in the page tables fills them (M2, M3)."""
        free = self.guest.free_frames()
        if free is not None and not self.is_dead:
            suspects = free & ~self.guest.leaf_map.private
            self.fill_frames(suspects.search(1), OLD)

    def _count_leak(self, pages: int, policy: OnFailure) -> None:
        if self.guest.free_frames() is None:
            self.leaked = None
        elif policy is OnFailure.LEAK and self.leaked is not None:
            self.leaked += pages


_EARLY: Final = frozenset({OpKind.EARLY_SET_MEMORY_ENCRYPTED, OpKind.EARLY_SET_MEMORY_DECRYPTED})
