# SPDX-License-Identifier: GPL-2.0-or-later
"""The migration operations of a testbed's programs: a second guest and host, made when first asked
for, and the swap to them.

One migration a run. Its destination is kept for the next run, with the bulk (what the guest held
after boot) in place; it is put back when a migration begins.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, Protocol

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.errno import EBUSY, EINVAL, ENOTTY
from guestemu.checks.base import Check
from guestemu.checks.lost import LostCheck
from guestemu.guest.base import CallOutcome, Guest
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.host.base import Host
from guestemu.migration.endpoints import (
    DESTINATION_BASE,
    Destination,
    Source,
    bulk_packets,
    used_frames,
)
from guestemu.migration.firmware_link import FirmwareReceiver, FirmwareSender
from guestemu.migration.links import PlainSender, Sender
from guestemu.migration.steps import PassSteps
from guestemu.program.ops import Op, OpKind

DESTINATION_KEY: Final = bytes(range(16, 32))

MakePair = Callable[[], tuple[Guest, Host]]
"""Boots the destination's guest under `DESTINATION_KEY` and loads its host."""


class Movable(Protocol):
    """What the operations need of the testbed."""

    guest: Guest
    host: Host

    def move_to(self, guest: Guest, host: Host) -> None:
        """The next operations run on `guest` over `host`."""

    def watch(self, check: Check | None) -> None:
        """Asks `check` after every operation, too; None: no longer."""


class MigrationOperations:
    """The migration of one testbed; `make` is None where there can be no destination."""

    def __init__(self, testbed: Movable, make: MakePair | None) -> None:
        self._testbed = testbed
        self._make = make
        self._pair: Destination | None = None
        self._source: Source | None = None
        self._home: tuple[Guest, Host] | None = None
        self.is_on = False
        """A migration was started in this run."""

    def operations(self) -> Mapping[OpKind, Callable[[Op], CallOutcome]]:
        """What each kind of operation does."""
        return {
            OpKind.MIGRATE_START: self._start,
            OpKind.HOST_DIRTY_FETCH: lambda op: self._step(
                lambda steps: steps.fetch(bool(op.arguments[0]))
            ),
            OpKind.HOST_DIRTY_CLEAR: lambda op: self._step(PassSteps.clear),
            OpKind.HOST_STATUS_COPY: lambda op: self._step(PassSteps.copy_status),
            OpKind.HOST_SEND: lambda op: self._step(
                lambda steps: steps.send(bool(op.arguments[0]))
            ),
            OpKind.MIGRATE_STOP: self._stop,
        }

    def reset(self) -> None:
        """Before the next run: the testbed has its own guest and host again."""
        self.is_on = False
        self._source = None
        self._testbed.watch(None)
        if self._home is not None:
            self._testbed.move_to(*self._home)
            self._home = None

    def close(self) -> None:
        """Frees the destination."""
        if self._pair is not None:
            self._pair.guest.close()
            self._pair = None

    def _destination(self, guest: Guest) -> Destination | None:
        """The destination, ready for a migration; None where there can be none."""
        if self._pair is None:
            if self._make is None:
                return None
            self._pair = Destination(*self._make())
            self._pair.take_bulk(bulk_packets(guest))
        self._pair.reset()
        return self._pair

    def _frames(self, op: Op) -> frozenset[int]:
        guest = self._testbed.guest
        pages = op.arguments[0]
        if pages:
            first = guest.gpa(op.region, op.page) >> PAGE_SHIFT
            return frozenset(range(first, min(first + pages, guest.machine.ram.frames)))
        return used_frames(guest)

    def _start(self, op: Op) -> CallOutcome:
        if self.is_on:
            return CallOutcome(-EBUSY)
        guest, host = self._testbed.guest, self._testbed.host
        target = self._destination(guest)
        if target is None:
            return CallOutcome(-ENOTTY)
        ram = guest.machine.ram
        sender: Sender = PlainSender(ram)
        if op.arguments[1]:
            link = FirmwareSender(ram, guest.machine.config.key)
            receiver = FirmwareReceiver(target.guest.machine.ram, DESTINATION_BASE)
            target.use(receiver, receiver.open(link.open(receiver.offer())))
            sender = link
        frames = self._frames(op)
        target.discard(frames)
        self._source = Source(guest, host, sender, frames, target.deliver)
        self.is_on = True
        self._testbed.watch(LostCheck())
        return CallOutcome(0)

    def _step(self, step: Callable[[PassSteps], int]) -> CallOutcome:
        return CallOutcome(-EINVAL if self._source is None else step(self._source.steps))

    def _stop(self, _op: Op) -> CallOutcome:
        source, target = self._source, self._pair
        if source is None or target is None:
            return CallOutcome(-EINVAL)
        target.resume(source.finish())
        guest, host = self._testbed.guest, self._testbed.host
        if isinstance(target.guest, SnippetGuest) and isinstance(guest, SnippetGuest):
            target.guest.take_over(guest)
        self._source = None
        self._home = (guest, host)
        self._testbed.move_to(target.guest, target.host)
        return CallOutcome(0)
