# SPDX-License-Identifier: GPL-2.0-or-later
"""The wire between two hosts, and attacks on its packets.

A packet of the firmware has no address, no number and no total under its MAC (E14): replayed, in
another order or at another address it is accepted. The wire keeps every packet and says what
arrived where, so that a check can tell what the firmware cannot.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from guestemu.events.base import Event
from guestemu.events.memory import PacketArrived
from guestemu.migration.links import Packet


class Wire:
    """Passes packets on to `deliver`; `emit` hears of each firmware packet that was accepted."""

    def __init__(self, deliver: Callable[[Packet], None], emit: Callable[[Event], None]) -> None:
        self._deliver = deliver
        self._emit = emit
        self._sent: list[Packet] = []
        self._held: list[int] = []
        self._hold = 0

    def send(self, packet: Packet) -> None:
        """A packet of the sender's."""
        if not packet.header:
            self._deliver(packet)
            return
        number = len(self._sent)
        self._sent.append(packet)
        if self._hold:
            self._hold -= 1
            self._held.append(number)
            if not self._hold:
                self.release()
            return
        self._arrive(number, packet.gfn)

    def _arrive(self, number: int, gfn: int) -> None:
        packet = self._sent[number]
        self._deliver(msgspec.structs.replace(packet, gfn=gfn))
        self._emit(PacketArrived(number, packet.gfn, gfn))

    def reverse(self, count: int) -> int:
        """The next `count` packets arrive in reverse order, when the last is there."""
        self.release()
        self._hold = count
        return 0

    def release(self) -> None:
        """What is held back arrives, the last first."""
        self._hold = 0
        held, self._held = self._held, []
        for number in reversed(held):
            self._arrive(number, self._sent[number].gfn)

    def replay(self, number: int, gfn: int | None) -> bool:
        """Packet `number` (modulo all) arrives once more, at `gfn` or where it belongs; False if
        none was sent. Raises `SevIoctlError` where the firmware refuses."""
        if not self._sent:
            return False
        number %= len(self._sent)
        self._arrive(number, self._sent[number].gfn if gfn is None else gfn)
        return True
