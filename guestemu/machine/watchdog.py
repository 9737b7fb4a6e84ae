# SPDX-License-Identifier: GPL-2.0-or-later
"""A wall-clock bound beside the block budgets: it stops the CPU and interrupts Python code.

A budget counts guest blocks, so it bounds neither what one block costs (a host that answers each
exit slowly, a translation for every page) nor a host that never answers. The watchdog is a thread
that waits. When the time is up it empties the budget of the running CPU again and again, so that
the next block ends the run, and signals the main thread, whose handler raises `TimeUp` out of
whatever Python code runs there: a user's host, or a model that is slow.

The CPU runs with the GIL held (engine.py) and releases it only under a watchdog. Code that keeps
the GIL leaves the thread no turn; a timer outside of Python (deadline.py) ends the process then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Final, Self

from guestemu.abi.errors import TimeUp
from guestemu.machine.deadline import Deadline
from guestemu.machine.interruption import defer
from guestemu.machine.machine import Machine

_WALL_FACTOR: Final = 6
"""Wall-clock seconds for each second of CPU time: a busy computer must not end a program that is
right, and a host that sleeps must not keep it for ever."""

_TICK_S: Final = 0.02
_LEAST_GRACE_S: Final = 5.0
_LAST_GRACE_S: Final = 1.0
"""What the thread has beyond its own grace, before the process is ended without it."""

_LATER: Final = 100
_LEAST_S: Final = 0.05
GAVE_UP: Final = 1
"""Exit status of a process whose code does not stop when it is interrupted."""

_SIGNAL: Final = signal.SIGRTMIN + 9


class Watchdog:
    """Bounds what happens inside of `with`: `seconds` of CPU time of this process, and six times as
    much on the wall clock.

    `machine` gives the machine that runs at the moment; without one only Python code is bounded.
    `is_up` says that the time was up; the CPU then ends every run at its first block. In the main
    thread Python code is interrupted by `TimeUp`, again and again while it goes on. Code that
    also catches that, or keeps the interpreter lock, ends the process with status 1 when the time
    was up for as long as it had been given.
    """

    def __init__(self, machine: Callable[[], Machine] | None, seconds: float) -> None:
        self._machine = machine
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._wait, daemon=True)
        self._is_main = threading.current_thread() is threading.main_thread()
        self._target = threading.get_ident()
        self._turn = threading.Lock()
        self._is_resting = False
        self.is_up = False
        self._deadline = Deadline(self._last_word)

    @property
    def text(self) -> str:
        """What is said about a program whose time was up."""
        return (
            f"it took more than {self._seconds:g} s of CPU time "
            f"or {self._seconds * _WALL_FACTOR:g} s in all"
        )

    def __enter__(self) -> Self:
        if self._is_main:
            self._before = signal.signal(_SIGNAL, self._on_signal)
            self._say = sys.unraisablehook
            sys.unraisablehook = self._on_unraisable
        self._watched = None if self._machine is None else self._machine().launcher
        if self._watched is not None:
            self._watched.share_interpreter(True)
        self._deadline.start(self._last)
        self.renew()
        self._thread.start()
        return self

    def renew(self) -> None:
        """The time counts from now: another program begins. After one whose time was up the others
        get a hundredth: what looks for the smallest such program runs it many times."""
        with self._turn:
            if self.is_up:
                self._seconds = max(self._seconds / _LATER, min(self._seconds, _LEAST_S))
            self.is_up = self._is_resting = False
            self._cpu_end = time.process_time() + self._seconds
            self._wall_end = time.monotonic() + self._seconds * _WALL_FACTOR
            self._deadline.move(self._last)

    def rest(self) -> None:
        """The program is over: nothing is interrupted until `renew`."""
        self._is_resting = True
        self._deadline.move(None)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_resting = True
        self._deadline.stop()
        self._over.set()
        self._thread.join()
        if self._watched is not None:
            self._watched.share_interpreter(False)
        if self._is_main:
            signal.pthread_sigmask(signal.SIG_BLOCK, ())  # a signal on its way arrives here
            signal.signal(_SIGNAL, self._before)
            sys.unraisablehook = self._say

    def _left(self) -> float:
        return min(self._cpu_end - time.process_time(), self._wall_end - time.monotonic())

    def _on_signal(self, _number: int, frame: FrameType | None) -> None:
        if self.is_up and not self._is_resting:
            error = TimeUp(self.text)
            if not defer(error, frame):
                raise error

    def _on_unraisable(self, args: sys.UnraisableHookArgs) -> None:
        """A finalizer was interrupted, from where no error arrives: the next signal's does."""
        if not isinstance(args.exc_value, TimeUp):
            self._say(args)

    @property
    def _grace(self) -> float:
        """Seconds from the first interrupt to the end of the process."""
        return max(self._seconds * _WALL_FACTOR, _LEAST_GRACE_S)

    @property
    def _last(self) -> float:
        """Seconds to the end of the process by the timer outside of Python."""
        return self._seconds * _WALL_FACTOR + self._grace + _LAST_GRACE_S

    @property
    def _last_word(self) -> str:
        return f"guestemu: {self.text}, and does not stop when it is interrupted"

    def _give_up(self) -> None:
        sys.stderr.write(f"{self._last_word}\n")
        sys.stderr.flush()
        os._exit(GAVE_UP)

    def _wait(self) -> None:
        ticks = 0
        while True:
            with self._turn:
                left = self._seconds if self._is_resting else self._left()
                if left <= 0:
                    self._strike(ticks)
            ticks = ticks + 1 if left <= 0 else 0
            if self._over.wait(_TICK_S if left <= 0 else left + _TICK_S):
                return

    def _strike(self, ticks: int) -> None:
        """The time is up, seen for the time number `ticks` in a row."""
        self.is_up = True
        if self._machine is not None:
            self._machine().hooks.watch.left = -1
        if self._is_main and ticks % 10 == 0:
            signal.pthread_kill(self._target, _SIGNAL)
        if ticks * _TICK_S > self._grace:
            self._give_up()
