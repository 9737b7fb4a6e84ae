# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends a call of a user's host that computes for ever, without a system call for each call.

The guard counts: the number is odd while a call is inside the host. A timer of the process's own
CPU time ticks now and then; a call that is the same at two ticks in a row gets `TimeUp`, raised in
the main thread, where the host's code runs. How busy the computer is does not matter. A host that
sleeps uses no CPU time; the supervisor ends its process (campaign/supervisor.py).
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Final

from guestemu.abi.errors import TimeUp

_TICK_S: Final = 0.05
_FRAME_S: Final = 2e-6
"""What a call may take for each frame of RAM: some hosts walk over all of them."""


class HangGuard:
    """`turn` is odd while a call is inside the host; the caller counts."""

    __slots__ = ("_at_tick", "_text", "turn")

    def __init__(self) -> None:
        self.turn = 0
        self._at_tick = 0
        self._text = ""

    def start(self, frames: int) -> None:
        """Watches a host of a VM with `frames` frames of RAM from now on, until the process ends.
        In the main thread only."""
        tick = _TICK_S + frames * _FRAME_S
        self._text = f"it computed for more than {tick:.2g} s"
        signal.signal(signal.SIGVTALRM, self._tick)
        signal.setitimer(signal.ITIMER_VIRTUAL, tick, tick)

    def _tick(self, _number: int, _frame: FrameType | None) -> None:
        turn = self.turn
        is_same, self._at_tick = turn == self._at_tick, turn
        if turn & 1 and is_same:
            raise TimeUp(self._text)
