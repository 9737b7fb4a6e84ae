# SPDX-License-Identifier: GPL-2.0-or-later
"""Detects a guest that stores to a page before it notified the host of the flip (S1c, M65).

A migration that sends the page between the two takes the new bytes for bytes of the old status. A
store makes the other view of its page stale, so at the notification the old view of a page that
this operation flipped must still be current if it was when the operation began.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from guestemu.abi.addresses import PAGE_SHIFT, gpa_text
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.campaign.planted.checks import with_agreement
from guestemu.checks.base import Check, OpView, Violation
from guestemu.events.exits import AnsweredExit
from guestemu.guest.base import Guest
from guestemu.host.base import Host, Hypercall, MapGpaRange
from guestemu.machine.memory_watch import FLAG_STALE
from guestemu.program.ops import OpKind
from guestemu.runner.exit_recorder import ExitRecorder
from guestemu.runner.testbed import Testbed

_MAX_PAGES: Final = 4096


class EarlyStoreRecorder(ExitRecorder):
    """An `ExitRecorder` that also keeps the frames whose old view went stale too early.

    The testbed gives it a fresh list of records at the start of every operation.
    """

    def __init__(self, host: Host, guest: Guest) -> None:
        self._flags = guest.machine.ram.flags
        self._frames = guest.machine.ram.frames
        super().__init__(host, guest)

    @property
    def records(self) -> list[AnsweredExit]:
        """The exits of the operation that runs."""
        return self._records

    @records.setter
    def records(self, records: list[AnsweredExit]) -> None:
        """An operation begins."""
        self._records = records
        self._before = bytes(self._flags)
        self.stored: set[int] = set()

    def hypercall(self, call: Hypercall) -> int:
        """See `ExitRecorder`."""
        if call.nr == KVM_HC_MAP_GPA_RANGE:
            self._note(call.a0, call.a1, call.a2)
        return super().hypercall(call)

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """See `ExitRecorder`."""
        self._note(call.gpa, call.pages, call.attributes)
        return super().map_gpa_range(call)

    def _note(self, gpa: int, pages: int, attributes: int) -> None:
        if pages > _MAX_PAGES:
            return
        first = gpa >> PAGE_SHIFT
        old = 0 if attributes & MAP_GPA_RANGE_ENCRYPTED else self._frames
        for gfn in range(first, min(first + pages, self._frames)):
            if self._flags[old + gfn] & ~self._before[old + gfn] & FLAG_STALE:
                self.stored.add(gfn)


class EarlyStoreCheck:
    """No frame that the operation flipped was stored to before its notification."""

    name = "early-store"
    kinds: frozenset[OpKind] | None = None

    def __init__(self, recorder: EarlyStoreRecorder) -> None:
        self._recorder = recorder

    def after(self, view: OpView) -> Iterable[Violation]:
        """See the class."""
        stored = self._recorder.stored
        if not stored:
            return ()
        flipped = {flip.gfn + page for flip in view.flips for page in range(flip.pages)}
        early = stored & flipped
        if not early:
            return ()
        message = (
            f"{len(early)} frames were written before the host knew, the first at "
            f"{gpa_text(min(early))}"
        )
        return (Violation(self.name, view.index, message, "M65"),)


def early_store_checks(host: Host) -> tuple[Check, ...]:
    """The checks for guests; `watch_early_stores` adds the one of this module."""
    return with_agreement(host)


def watch_early_stores(testbed: Testbed) -> None:
    """Puts the recorder and its check into a testbed."""
    recorder = EarlyStoreRecorder(testbed.host, testbed.guest)
    testbed.recorder = recorder
    recorder.attach()
    testbed.checks = (*testbed.checks, EarlyStoreCheck(recorder))
