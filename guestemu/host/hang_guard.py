# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends a call of a user's host that computes for ever, without a system call for each call.

The guard counts: the number is odd while a call is inside the host. A timer of the process's own
CPU time ticks now and then; a call that is the same at two ticks in a row gets `TimeUp`, raised in
the main thread, where the host's code runs. How busy the computer is does not matter.

Machine code that a host calls gives Python no turn. Each tick moves a second timer, SIGPROF, which
ends the process if no tick comes for long. A host that sleeps uses no CPU time; the supervisor ends
its process (campaign/supervisor.py).
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Final

from guestemu.abi.errors import TimeUp

_TICK_S: Final = 0.05
_FRAME_S: Final = 2e-6
"""What a call may take for each frame of RAM: some hosts walk over all of them."""

_STUCK_TICKS: Final = 16
_SCOUT_TICKS: Final = 3
"""Ticks' time without a tick after which the process ends."""


class HangGuard:
    """`turn` is odd while a call is inside the host; the caller counts."""

    __slots__ = ("_at_tick", "_stuck_s", "_text", "turn")

    def __init__(self) -> None:
        self.turn = 0
        self._at_tick = 0
        self._text = ""
        self._stuck_s = 0.0

    def start(self, frames: int, ends_process: bool = False, is_scout: bool = False) -> None:
        """Watches a host of a VM with `frames` frames of RAM from now on, until the process ends.
        In the main thread only. With `ends_process` machine code that computes for ever ends the
        process, soon in a scout (runner/scout.py)."""
        tick = _TICK_S + frames * _FRAME_S
        self._text = f"it computed for more than {tick:.2g} s"
        if ends_process:
            self._stuck_s = tick * (_SCOUT_TICKS if is_scout else _STUCK_TICKS)
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, self._stuck_s)
        signal.signal(signal.SIGVTALRM, self._tick)
        signal.setitimer(signal.ITIMER_VIRTUAL, tick, tick)

    def _tick(self, _number: int, _frame: FrameType | None) -> None:
        if self._stuck_s:
            signal.setitimer(signal.ITIMER_PROF, self._stuck_s)
        turn = self.turn
        is_same, self._at_tick = turn == self._at_tick, turn
        if turn & 1 and is_same:
            raise TimeUp(self._text)
