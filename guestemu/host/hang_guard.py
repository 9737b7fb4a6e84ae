# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends a call of a user's host that computes for ever, without a system call for each call.

The guard counts: the number is odd while a call is inside the host. A timer of the process's own
CPU time ticks now and then; a call that is the same at so many ticks in a row gets `TimeUp`, raised
in the main thread, where the host's code runs. How busy the computer is does not matter.

A defect that does not return is met again and again. So a method that did not return once may take
four times what its host's calls took that returned, and not ten ticks: the search for the smallest
program and every further meeting then cost a hundredth of a second each.

Machine code that a host calls gives Python no turn. Each tick moves a second timer, SIGPROF, which
ends the process if no tick comes for long. A host that sleeps uses no CPU time; the supervisor ends
its process (campaign/supervisor.py).
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Final

from guestemu.abi.errors import TimeUp

_CALL_S: Final = 0.05
_FRAME_S: Final = 2e-6
"""What a call may take for each frame of RAM: some hosts walk over all of them."""

_TICKS: Final = 10
"""Ticks in the time that a call may take."""

_TIMES_LONGER: Final = 4
_STUCK_TICKS: Final = 40
_SCOUT_TICKS: Final = 30
_SCOUT_TICKS_KNOWN: Final = 3
"""Ticks' time without a tick after which the process ends; the last where machine code that did
not return is known."""


class HangGuard:
    """`turn` is odd while a call is inside the host, of the method `method`; the caller sets both.

    `knows_stuck` says that machine code which did not return was met.
    """

    __slots__ = (
        *("_at_tick", "_hung", "_longest", "_stuck_s", "_ticks", "knows_stuck", "method"),
        "turn",
    )

    def __init__(self) -> None:
        self.turn = 0
        self.method = ""
        self.knows_stuck = False
        self._at_tick = 0
        self._ticks = 0
        self._longest = 0
        self._hung: set[str] = set()
        self._stuck_s = 0.0

    def start(self, frames: int, ends_process: bool = False, is_scout: bool = False) -> None:
        """Watches a host of a VM with `frames` frames of RAM from now on, until the process ends.
        In the main thread only. With `ends_process` machine code that computes for ever ends the
        process, soon in a scout (runner/scout.py)."""
        tick = (_CALL_S + frames * _FRAME_S) / _TICKS
        if ends_process:
            known = _SCOUT_TICKS_KNOWN if self.knows_stuck else _SCOUT_TICKS
            self._stuck_s = tick * (known if is_scout else _STUCK_TICKS)
            signal.signal(signal.SIGPROF, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_PROF, self._stuck_s)
        signal.signal(signal.SIGVTALRM, self._tick)
        signal.setitimer(signal.ITIMER_VIRTUAL, tick, tick)

    def _tick(self, _number: int, _frame: FrameType | None) -> None:
        if self._stuck_s:
            signal.setitimer(signal.ITIMER_PROF, self._stuck_s)
        turn = self.turn
        if turn != self._at_tick:
            self._longest = max(self._longest, self._ticks)
            self._at_tick, self._ticks = turn, 0
        elif turn & 1:
            self._ticks += 1
            if self._ticks >= self._allowed:
                self._ticks = 0
                self._hung.add(self.method)
                raise TimeUp("it computed for ever")

    @property
    def _allowed(self) -> int:
        """Ticks that the call which is made may take."""
        if self.method not in self._hung:
            return _TICKS
        return min(_TICKS, 1 + _TIMES_LONGER * self._longest)
