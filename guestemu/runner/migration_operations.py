# SPDX-License-Identifier: GPL-2.0-or-later
"""The migration operations of a testbed's programs: a second guest and host, made when first asked
for, and the swap to them. The links that bring a library of cryptography are imported then.

One migration a run. Its destination is kept for the next run, with the bulk (what the guest held
after boot) in place; it is put back when a migration begins.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, Protocol

from guestemu.abi.addresses import PAGE_SHIFT
from guestemu.abi.errno import EBUSY, EINVAL, EIO, ENOTTY
from guestemu.checks.base import Check
from guestemu.checks.lost import LostCheck
from guestemu.checks.packets import PacketCheck
from guestemu.events.base import Event
from guestemu.guest.base import CallOutcome, Guest
from guestemu.guest.snippet.guest import SnippetGuest
from guestemu.host.base import Host
from guestemu.host.mirror.interface import HandlerError
from guestemu.migration.endpoints import (
    DESTINATION_BASE,
    Destination,
    Source,
    bulk_packets,
    used_frames,
)
from guestemu.migration.host_ops import HOST_OP_KINDS, step_of
from guestemu.migration.links import LinkRefusal, Packet, PlainSender, Sender
from guestemu.migration.model.steps import perform
from guestemu.migration.wire import Wire
from guestemu.program.ops import Op, OpKind

if TYPE_CHECKING:
    from guestemu.migration.handler_link import HandlerLink

DESTINATION_KEY: Final = bytes(range(16, 32))

MakePair = Callable[[], tuple[Guest, Host]]
"""Boots the destination's guest under `DESTINATION_KEY` and loads its host."""


class Movable(Protocol):
    """What the operations need of the testbed."""

    guest: Guest
    host: Host

    def move_to(self, guest: Guest, host: Host) -> None:
        """The next operations run on `guest` over `host`."""

    def watch(self, *extra: Check) -> None:
        """Asks `extra` after every operation, in place of the extra checks of an earlier call."""


class MigrationOperations:
    """The migration of one testbed; `make` is None where there can be no destination."""

    def __init__(self, testbed: Movable, make: MakePair | None) -> None:
        self._testbed = testbed
        self._make = make
        self._pair: Destination | None = None
        self._handlers: HandlerLink | None = None
        self._source: Source | None = None
        self._wire = Wire(_drop, _unheard)
        self._home: tuple[Guest, Host] | None = None
        self.is_on = False
        """A migration was started in this run."""
        self.sent: dict[int, bool] = {}
        """How each frame was sent last in this run: True as a private page."""
        self.sends: Counter[int] = Counter()
        """How often each frame was sent in this run."""

    @property
    def left(self) -> Guest | None:
        """The guest that the migration left behind; None before `migrate_stop`."""
        return None if self._home is None else self._home[0]

    def operations(self) -> Mapping[OpKind, Callable[[Op], CallOutcome]]:
        """What each kind of operation does."""
        return {
            OpKind.MIGRATE_START: self._start,
            OpKind.MIGRATE_HANDLER: self._start_handler,
            **dict.fromkeys(HOST_OP_KINDS, self._step),
            OpKind.MIGRATE_STOP: self._stop,
            OpKind.LINK_REPLAY: self._replay,
            OpKind.LINK_REVERSE: self._reverse,
        }

    def reset(self) -> None:
        """Before the next run: the testbed has its own guest and host again."""
        self.is_on = False
        self.sent.clear()
        self.sends.clear()
        self._source = None
        self._testbed.watch()
        if self._home is not None:
            self._testbed.move_to(*self._home)
            self._home = None

    def close(self) -> None:
        """Frees the destination."""
        if self._handlers is not None:
            self._handlers.close()
            self._handlers = None
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
        return used_frames(guest.machine.ram)

    def _start(self, op: Op) -> CallOutcome:
        target = self._ready_destination()
        if isinstance(target, CallOutcome):
            return target
        machine = self._testbed.guest.machine
        sender: Sender = PlainSender(machine.ram)
        if op.arguments[1]:
            from guestemu.migration.firmware_link import FirmwareReceiver, FirmwareSender

            link = FirmwareSender(machine.ram, machine.config.key)
            receiver = FirmwareReceiver(target.guest.machine.ram, DESTINATION_BASE)
            target.use(receiver, receiver.open(link.open(receiver.offer())))
            sender = link
        return self._begin(op, target, sender)

    def _start_handler(self, op: Op) -> CallOutcome:
        target = self._ready_destination()
        if isinstance(target, CallOutcome):
            return target
        machine = self._testbed.guest.machine
        if machine.config.cbit is None or machine.cache is not None:
            return CallOutcome(-ENOTTY)
        if self._handlers is None:
            from guestemu.migration.handler_link import handler_link

            self._handlers = handler_link(machine, target.guest.machine)
        else:
            self._handlers.open()
        target.use(self._handlers.receiver, target.guest.machine.config.key)
        return self._begin(op, target, self._handlers.sender, self._handlers.frames)

    def _ready_destination(self) -> Destination | CallOutcome:
        """The destination; or why a migration cannot begin."""
        if self.is_on:
            return CallOutcome(-EBUSY)
        target = self._destination(self._testbed.guest)
        return CallOutcome(-ENOTTY) if target is None else target

    def _begin(
        self, op: Op, target: Destination, sender: Sender, own: frozenset[int] = frozenset()
    ) -> CallOutcome:
        """`own` are frames that stay where they are."""
        guest, host = self._testbed.guest, self._testbed.host
        frames = self._frames(op) - own
        target.discard(frames)
        self._wire = wire = Wire(target.deliver, guest.machine.log.append)

        def deliver(packet: Packet) -> None:
            self.sent[packet.gfn] = packet.is_private
            self.sends[packet.gfn] += 1
            wire.send(packet)

        self._source = Source(guest, host, sender, frames, deliver, own)
        self.is_on = True
        self._testbed.watch(LostCheck(), PacketCheck())
        return CallOutcome(0)

    def _step(self, op: Op) -> CallOutcome:
        if self._source is None:
            return CallOutcome(-EINVAL)
        try:
            return CallOutcome(perform(step_of(op), self._source.steps))
        except (LinkRefusal, HandlerError):
            return CallOutcome(-EIO)  # as QEMU's side of the prototype (F13); the guest stays

    def _replay(self, op: Op) -> CallOutcome:
        if self._source is None:
            return CallOutcome(-EINVAL)
        number, moved = op.arguments
        gfn = self._testbed.guest.gpa(op.region, op.page) >> PAGE_SHIFT if moved else None
        try:
            return CallOutcome(0 if self._wire.replay(number, gfn) else -EINVAL)
        except LinkRefusal:
            return CallOutcome(-EIO)

    def _reverse(self, op: Op) -> CallOutcome:
        if self._source is None:
            return CallOutcome(-EINVAL)
        return CallOutcome(self._wire.reverse(op.arguments[0]))

    def _stop(self, _op: Op) -> CallOutcome:
        source, target = self._source, self._pair
        if source is None or target is None:
            return CallOutcome(-EINVAL)
        try:
            handover = source.finish(self._wire.release)
        except (LinkRefusal, HandlerError):
            return CallOutcome(-EIO)
        target.resume(handover)
        guest, host = self._testbed.guest, self._testbed.host
        if isinstance(target.guest, SnippetGuest) and isinstance(guest, SnippetGuest):
            target.guest.take_over(guest)
        self._source = None
        self._home = (guest, host)
        self._testbed.move_to(target.guest, target.host)
        return CallOutcome(0)


def _drop(_packet: Packet) -> None:
    """Where packets go before there is a migration."""


def _unheard(_event: Event) -> None:
    """Who hears of packets before there is a migration."""
