# SPDX-License-Identifier: GPL-2.0-or-later
"""Channel 0 of the 8254 interval timer, in nanoseconds of guest time (facts U3).

Modes 2 and 3 repeat, the others fire once. The count is written as two bytes, low first. Channels 1
and 2, BCD counting and the latched read-back are not modelled: reads return 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from guestemu.machine.devices.state import StatefulDevice

PORTS: Final = (0x40, 0x41, 0x42, 0x43)
_CONTROL: Final = 0x43
_CHANNEL_0: Final = 0x40
_FREQUENCY: Final = 1_193_182
_NANOSECONDS: Final = 1_000_000_000
_PERIODIC: Final = frozenset({2, 3, 6, 7})


class PitState(msgspec.Struct):
    """`low` is the first byte of a count half written, `deadline` when channel 0 fires next."""

    mode: int = 2
    low: int | None = None
    period: int = 0
    deadline: int | None = None


class IntervalTimer(StatefulDevice[PitState]):
    """The timer; `now` returns the guest's time in nanoseconds."""

    def __init__(self, now: Callable[[], int]) -> None:
        super().__init__(PitState())
        self._now = now

    @property
    def deadline(self) -> int | None:
        """When channel 0 fires next, None for never."""
        return self.state.deadline

    def write(self, port: int, value: int) -> None:
        """OUT to one of `PORTS`."""
        state = self.state
        if port == _CONTROL:
            if not value >> 6:
                state.mode, state.low, state.deadline = value >> 1 & 7, None, None
        elif port == _CHANNEL_0:
            if state.low is None:
                state.low = value
                return
            count = (value << 8 | state.low) or 0x10000
            state.low = None
            state.period = count * _NANOSECONDS // _FREQUENCY
            state.deadline = self._now() + state.period

    def take_expired(self) -> bool:
        """Whether channel 0 has fired since it was asked last; several periods count once."""
        state = self.state
        now = self._now()
        if state.deadline is None or now < state.deadline:
            return False
        if state.mode in _PERIODIC:
            missed = (now - state.deadline) // state.period
            state.deadline += (missed + 1) * state.period
        else:
            state.deadline = None
        return True
