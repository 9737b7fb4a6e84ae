# SPDX-License-Identifier: GPL-2.0-or-later
"""What the receiving firmware accepted and should not have: packets again, out of order, elsewhere
(E15). The firmware cannot tell; the wire's own record of what was sent can."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.migration.wire import Delivery
from guestemu.program.ops import OpKind

PACKET_REPLAYED: Final = "packet_replayed"
PACKET_REORDERED: Final = "packet_reordered"
PACKET_MOVED: Final = "packet_moved"


class PacketCheck(Oracle):
    """Reads `deliveries` of one migration, which grows; each kind of violation is told once."""

    name = "packets"
    kinds: frozenset[OpKind] | None = None

    def __init__(self, deliveries: Sequence[Delivery]) -> None:
        self._deliveries = deliveries
        self._seen = 0
        self._numbers: set[int] = set()
        self._last = -1
        self._told: set[str] = set()

    def after(self, view: OpView) -> Iterable[Violation]:
        """Judges what arrived since the operation before."""
        for delivery in self._deliveries[self._seen :]:
            number = delivery.number
            place = f"packet {number}, sent from frame {delivery.sent_from:#x},"
            if number in self._numbers:
                yield from self._tell(PACKET_REPLAYED, view, f"{place} was accepted again")
            elif number < self._last:
                text = f"{place} was accepted after packet {self._last}"
                yield from self._tell(PACKET_REORDERED, view, text)
            if delivery.gfn != delivery.sent_from:
                text = f"{place} was accepted at frame {delivery.gfn:#x}"
                yield from self._tell(PACKET_MOVED, view, text)
            self._numbers.add(number)
            self._last = max(self._last, number)
        self._seen = len(self._deliveries)

    def _tell(self, name: str, view: OpView, text: str) -> Iterable[Violation]:
        if name not in self._told:
            self._told.add(name)
            yield Violation(name, view.index, text, "E15")
