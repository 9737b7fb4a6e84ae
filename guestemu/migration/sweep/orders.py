# SPDX-License-Identifier: GPL-2.0-or-later
"""Orders of a host's steps, as what they make of one page: the last packet that was sent of it.

An order is evaluated on tuples of instants, one for each of its places and the last one for the
stop. It says which packet the destination has of the page when it starts: the content as of one
instant, sent by the status as of that or an earlier one. The steps are those of the order model
(`migration.model.steps`); `+` joins steps of one instant. Before the first step a first pass has
sent the page as it was when the window began. At the stop the final pass sends a page that is in
the snapshot or was written since the log was cleared, by the status of then. Two rules of the model
change that: `final-reuses-status` and `clear-is-unconditional`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.migration.model.notation import STOP
from guestemu.migration.model.rules import Rules
from guestemu.migration.model.steps import HostStep, perform

LastPacket = tuple[int, bool] | None
"""Instant of the content and whether it was sent as private; None: the first pass's."""

Stored = Callable[[int, int], bool]
"""Whether the page was stored to between two instants."""

Status = Callable[[int], bool]
"""Whether the host takes the page for private at an instant."""


class SweepOrder(msgspec.Struct, frozen=True):
    """One order: the steps of each place. `is_right`: no tuple of it may lose."""

    places: tuple[tuple[HostStep, ...], ...]
    is_right: bool
    rules: Rules = Rules()

    @property
    def name(self) -> str:
        """In the notation, such as `E D+S STOP`, with the rules that differ."""
        words = ["+".join(step.value for step in steps) for steps in self.places]
        rules = [
            rule.replace("_", "-")
            for rule, is_on in msgspec.structs.asdict(self.rules).items()
            if is_on
        ]
        return " ".join([*words, STOP, *rules])

    @property
    def instants(self) -> int:
        """How many instants make a tuple."""
        return len(self.places) + 1

    def last_packet(self, at: tuple[int, ...], stored: Stored, status: Status) -> LastPacket:
        """What the destination has of the page where the order's places are at the instants `at`;
        the window begins at instant 0."""
        world = _Instants(self.rules, stored, status)
        for world.now, steps in zip(at, self.places, strict=False):
            for step in steps:
                perform(step, world)
        world.now = at[-1]
        world.stop()
        return world.last


class _Instants:
    """What a kernel did to one page between recorded instants, as a world. `now` is the present
    instant, `last` the packet that was sent last."""

    def __init__(self, rules: Rules, stored: Stored, status: Status) -> None:
        self.now = 0
        self.last: LastPacket = None
        self._rules = rules
        self._stored = stored
        self._status = status
        self._seen = self._copied = 0
        self._is_in_snapshot = False

    def fetch(self, clear: bool) -> None:
        """See `World`."""
        self._is_in_snapshot |= self._stored(self._seen, self.now)
        if clear:
            self._seen = self.now

    def clear(self) -> None:
        """See `World`."""
        if self._is_in_snapshot or self._rules.clear_is_unconditional:
            self._seen = self.now

    def copy_status(self) -> None:
        """See `World`."""
        self._copied = self.now

    def send(self, live: bool) -> None:
        """See `World`."""
        if self._is_in_snapshot:
            self.last = (self.now, self._status(self.now if live else self._copied))
            self._is_in_snapshot = False

    def stop(self) -> None:
        """The final pass."""
        if self._is_in_snapshot or self._stored(self._seen, self.now):
            by = self._copied if self._rules.final_reuses_status else self.now
            self.last = (self.now, self._status(by))


_D, _G, _C, _E, _S = (HostStep(letter) for letter in "DGCES")
_REUSED: Final = Rules(final_reuses_status=True)
_UNCONDITIONAL: Final = Rules(clear_is_unconditional=True)

ORDERS: Final = (
    SweepOrder(((_D, _E, _S),), True),
    SweepOrder(((_D,),), True),
    SweepOrder(((_E,),), False, _REUSED),
    SweepOrder(((_D, _E, _S),), False, _REUSED),
    SweepOrder(((_D,), (_E, _S)), True),
    SweepOrder(((_E,), (_D, _S)), False),
    SweepOrder(((_G, _E, _S), (_C,)), False, _UNCONDITIONAL),
    SweepOrder(((_D,), (_E,), (_S,)), True),
    SweepOrder(((_E,), (_D,), (_S,)), False),
)
"""As the tables show them."""
