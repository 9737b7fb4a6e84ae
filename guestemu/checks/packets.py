# SPDX-License-Identifier: GPL-2.0-or-later
"""What the receiving firmware accepted and should not have: packets again, out of order, elsewhere
(E15). The firmware cannot tell; the wire's own record of what was sent can."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Final

from guestemu.abi.addresses import gpa_text
from guestemu.checks.base import OpView, Oracle, Violation
from guestemu.events.memory import PacketArrived
from guestemu.program.ops import OpKind

PACKET_REPLAYED: Final = "packet_replayed"
PACKET_REORDERED: Final = "packet_reordered"
PACKET_MOVED: Final = "packet_moved"


class PacketCheck(Oracle):
    """No packet is accepted twice, out of order or at another frame in one migration; each kind of
    violation is told once."""

    name = "packets"
    kinds: frozenset[OpKind] | None = None

    demands: ClassVar[Mapping[str, str]] = {
        PACKET_REPLAYED: "The receiving firmware accepts each packet once.",
        PACKET_REORDERED: (
            "The receiving firmware accepts packets in the order in which they were made."
        ),
        PACKET_MOVED: "The receiving firmware puts a packet at the frame that it was made of.",
    }
    explanations: ClassVar[Mapping[str, str]] = {
        PACKET_REPLAYED: "The host puts an old content of the page into the guest's memory.",
        PACKET_REORDERED: "The host puts an old content of the page into the guest's memory.",
        PACKET_MOVED: "The host moves a content to another place of the guest's memory.",
    }

    def __init__(self) -> None:
        self._numbers: set[int] = set()
        self._last = 0
        self._told: set[str] = set()

    def after(self, view: OpView) -> Iterable[Violation]:
        """Judges what arrived during the operation."""
        for event in view.events:
            if not isinstance(event, PacketArrived):
                continue
            number = event.number
            place = f"packet {number}, sent from {gpa_text(event.sent_from)},"
            if number in self._numbers:
                yield from self._tell(PACKET_REPLAYED, view, f"{place} was accepted again")
            elif number < self._last:
                text = f"{place} was accepted after packet {self._last}"
                yield from self._tell(PACKET_REORDERED, view, text)
            if event.gfn != event.sent_from:
                text = f"{place} was accepted at {gpa_text(event.gfn)}"
                yield from self._tell(PACKET_MOVED, view, text)
            self._numbers.add(number)
            self._last = max(self._last, number)

    def _tell(self, name: str, view: OpView, text: str) -> Iterable[Violation]:
        if name not in self._told:
            self._told.add(name)
            yield Violation(name, view.index, text, "E15")
