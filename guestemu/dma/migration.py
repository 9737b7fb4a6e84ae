# SPDX-License-Identifier: GPL-2.0-or-later
"""A live migration laid over a run: which pages it sends, again, or by the wrong status.

The model of a pass (facts G.2): the dirty log is fetched and cleared, the status of every page is
copied, then the pages of the log are sent in the order of their frames, so many per second, each as
private or as shared by the copied status, or by the live one. The first pass sends all pages; when
at most `stop` pages are dirty, or after `passes` passes, the guest stops and the rest is sent.

A trace shows which pages a guest clears, not what else it writes. So dirty pages are those that
were cleared after their conversion, and a pass with few of them is shorter than on a busy machine.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import pfn_up
from guestemu.abi.errors import InputError
from guestemu.dma.cost import Conversion
from guestemu.dma.events import Event

_SECOND: Final = 1_000_000_000
_MIB_PAGES: Final = 256
_ONE: Final = bitarray("1")
KEPT_PASSES: Final = 1000


_LIMITS: Final[Mapping[str, tuple[int, int]]] = {
    "rate": (1, 1 << 20),
    "passes": (1, 1000),
    "stop": (0, 1 << 28),
}


class SentBy(enum.StrEnum):
    """By which status a page is sent."""

    COPIED = "copied"
    """The one copied when the pass began, after the dirty log (order 1 of G.2)."""
    LIVE = "live"
    """The one at the moment of sending (order 5)."""


class MigrationPlan(msgspec.Struct, frozen=True):
    """When a migration begins (`at_ns` after the first event) and how it goes on.

    `rate` is in MiB per second; `stop` in pages, `passes` without the one while the guest stands.
    """

    at_ns: int = 0
    rate: int = 1024
    passes: int = 30
    stop: int = 256


class Pass(msgspec.Struct, frozen=True):
    """One pass: clock of the trace, pages `sent`, how many of them `resent` (not for the first
    time), and how many by the `wrong_way`: the status had changed between copying and sending.

    `converted` counts the guest's conversions meanwhile. `is_blackout`: the guest stood still.
    """

    begin_ns: int
    end_ns: int
    sent: int
    resent: int
    wrong_way: int
    converted: int
    is_blackout: bool


class Migration(msgspec.Struct, frozen=True):
    """What a migration did.

    `wrong_pages_peak` is the most pages whose copy at the destination was sent the wrong way and
    not yet sent again; `wrong_page_seconds` sums how long they lay there. `changed_since_sent` are
    pages that changed their status after they were sent last and were never written, so no log
    names them: a destination that reads them finds something else than the source had (C6, C7).
    `converged`: the stop came with at most `stop` dirty pages. `has_begun` is false where the run
    ended before. The first 1000 passes are listed.
    """

    status: SentBy
    plan: MigrationPlan
    passes: tuple[Pass, ...]
    sent: int
    resent: int
    wrong_way: int
    wrong_pages_peak: int
    wrong_page_seconds: float
    wrong_at_end: int
    changed_since_sent: int
    blackout_pages: int
    blackout_seconds: float
    converged: bool
    has_begun: bool


class MigrationObserver:
    """An `Observer`: migrates while the run goes on, `finish` when it has ended.

    `private` are the live C-bits of the guest, changed before a conversion is told. Times that go
    back count as the latest time seen.
    """

    def __init__(self, private: bitarray, plan: MigrationPlan, status: SentBy) -> None:
        self._private = private
        self._plan = plan
        self._source = status
        self._rate = plan.rate * _MIB_PAGES
        self._dirty = _bits(private, 1)
        self._log = _bits(private, 0)
        self._copied = private
        self._way = _bits(private, 0)
        self._was_sent = _bits(private, 0)
        self._wrong = _bits(private, 0)
        self._wrong_pages = self._wrong_peak = self._wrong_area = 0
        self._now = 0
        self._start_ns: int | None = None
        self._begin_ns: int | None = None
        self._end_ns: int | None = None
        self._next = self._sent = self._resent = self._wrong_way = self._converted = 0
        self._total = self._done = 0
        self._passes: list[Pass] = []
        self._count = 0
        self._sums = [0, 0, 0]
        self._changed = 0
        self._blackout = (0, False)

    def begin(self, event: Event, /) -> None:
        """Sends what is sent by the time of the event. See `Observer`."""
        now = event.time_ns
        if self._start_ns is None:
            self._now = now
            self._start_ns = now + self._plan.at_ns
        if now > self._now:
            self._now = now
        if self._now >= self._start_ns:
            self._advance(self._now)

    def converted(self, conversion: Conversion, is_pool: bool, /) -> None:
        """See `Observer`."""
        self._converted += 1

    def cleared(self, gfn: int, size: int, /) -> None:
        """A page that is written is dirty. See `Observer`."""
        self._dirty[gfn : gfn + pfn_up(size)] = True

    def finish(self) -> Migration:
        """Runs the migration to its end, without the guest doing anything more; its figures."""
        has_begun = self._start_ns is not None and self._now >= self._start_ns
        while has_begun and self._end_ns is None:
            self._advance(None)
        area = self._wrong_area + self._wrong_pages * (self._end_ns or 0)
        return Migration(
            status=self._source,
            plan=self._plan,
            passes=tuple(self._passes),
            sent=self._sums[0],
            resent=self._sums[1],
            wrong_way=self._sums[2],
            wrong_pages_peak=self._wrong_peak,
            wrong_page_seconds=round(area / _SECOND, 9),
            wrong_at_end=self._wrong.count(),
            changed_since_sent=self._changed,
            blackout_pages=self._blackout[0],
            blackout_seconds=round(self._blackout[0] / self._rate, 9),
            converged=self._blackout[1],
            has_begun=has_begun,
        )

    def _advance(self, now: int | None) -> None:
        """Passes up to the moment `now`; None: one pass more, whatever the time."""
        while self._end_ns is None:
            if self._begin_ns is None:
                self._start_pass(self._start_ns or 0)
            begin = self._begin_ns or 0
            due = self._total
            if now is not None:
                due = min(due, (now - begin) * self._rate // _SECOND)
            self._send(due)
            if due < self._total:
                return
            end = self._moment(self._total)
            if now is not None and end > now:
                return
            self._end_pass(end)
            if now is None:
                return

    def _start_pass(self, now: int) -> None:
        """Fetches and clears the log, then copies the status."""
        self._begin_ns = now
        self._log, self._dirty = self._dirty, _bits(self._dirty, 0)
        if self._source is SentBy.COPIED:
            self._copied = self._private.copy()
        self._total = self._log.count()
        self._next = self._done = self._sent = self._resent = self._wrong_way = self._converted = 0

    def _moment(self, pages: int) -> int:
        """When the `pages`th page of this pass has been sent."""
        return (self._begin_ns or 0) - -pages * _SECOND // self._rate

    def _send(self, due: int) -> None:
        """Sends the pages of the log up to the `due`th of this pass."""
        if due <= self._done:
            return
        begin = self._next
        end = _position(self._log, begin, due - self._done)
        mask = self._log[begin:end]
        way = self._copied[begin:end]
        was_wrong = self._wrong[begin:end] & mask
        wrong = (way ^ self._private[begin:end]) & mask
        self._resent += (self._was_sent[begin:end] & mask).count()
        self._wrong_way += wrong.count()
        self._was_sent[begin:end] |= mask
        self._way[begin:end] = (self._way[begin:end] & ~mask) | (way & mask)
        self._wrong[begin:end] = (self._wrong[begin:end] & ~mask) | wrong
        self._wrong_area += self._moments(mask, was_wrong) - self._moments(mask, wrong)
        self._wrong_pages += wrong.count() - was_wrong.count()
        self._wrong_peak = max(self._wrong_peak, self._wrong_pages)
        self._next, self._done, self._sent = end, due, due

    def _moments(self, mask: bitarray, pages: bitarray) -> int:
        """The sum of the moments at which `pages`, some of `mask`, are sent."""
        total = position = 0
        rank = self._done
        for index in pages.search(_ONE):
            rank += mask.count(True, position, index + 1)
            position = index + 1
            total += self._moment(rank)
        return total

    def _end_pass(self, end: int) -> None:
        begin = self._begin_ns or 0
        sums = (self._sent, self._resent, self._wrong_way)
        self._note(Pass(begin, end, *sums, self._converted, False))
        dirty = self._dirty.count()
        self._count += 1
        changed = self._was_sent & (self._way ^ self._private) & ~self._dirty
        self._start_pass(end)
        if dirty > self._plan.stop and self._count < self._plan.passes:
            return
        self._send(dirty)
        self._changed = changed.count()
        stop = self._moment(self._total)
        self._note(Pass(end, stop, self._sent, self._resent, self._wrong_way, 0, True))
        self._blackout = (dirty, dirty <= self._plan.stop)
        self._end_ns = stop

    def _note(self, done: Pass) -> None:
        for index, value in enumerate((done.sent, done.resent, done.wrong_way)):
            self._sums[index] += value
        if len(self._passes) < KEPT_PASSES:
            self._passes.append(done)


def _bits(like: bitarray, value: int) -> bitarray:
    """As many bits of the same order."""
    bits = like.copy()
    bits.setall(value)
    return bits


def _position(bits: bitarray, begin: int, count: int) -> int:
    """The first position at which `count` bits from `begin` on are set; there are that many."""
    step = count
    low, high = begin, min(len(bits), begin + step)
    while (found := bits.count(True, low, high)) < count:
        count -= found
        step *= 2
        low, high = high, min(len(bits), high + step)
    while high - low > 1:
        middle = (low + high) // 2
        found = bits.count(True, low, middle)
        if found >= count:
            high = middle
        else:
            count -= found
            low = middle
    return high


def parse_plan(text: str) -> tuple[MigrationPlan, tuple[SentBy, ...]]:
    """Reads `[at=SECONDS][,rate=MIB][,passes=N][,stop=PAGES][,status=copied|live]`; without
    `status` both. InputError names what is wrong."""
    plan = MigrationPlan()
    sources = tuple(SentBy)
    for setting in filter(None, text.split(",")):
        key, _, value = setting.partition("=")
        if key == "status" and value in tuple(SentBy):
            sources = (SentBy(value),)
        elif key == "at" and _is_number(value.replace(".", "", 1)):
            plan = msgspec.structs.replace(plan, at_ns=round(float(value) * _SECOND))
        elif key in _LIMITS and _is_number(value) and _in_range(key, int(value)):
            plan = msgspec.structs.replace(plan, **{key: int(value)})
        else:
            raise InputError(
                f"migration {setting[:40]!r}: give at=SECONDS, rate=MIB (per second), passes=N, "
                f"stop=PAGES or status=copied|live"
            )
    return plan, sources


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 12


def _in_range(key: str, value: int) -> bool:
    low, high = _LIMITS[key]
    return low <= value <= high
