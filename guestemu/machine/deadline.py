# SPDX-License-Identifier: GPL-2.0-or-later
"""Ends this process at a time, whatever runs in it.

A plug-in's code may keep Python's interpreter lock (a regular expression that backtracks for hours,
a number of a billion digits); no thread and no signal handler of Python runs then. A POSIX timer
whose signal is handled by machine code (native/deadline.c) writes one line and ends the process
with status 1. Without machine code there is no deadline.
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from functools import cache
from typing import Final

from guestemu.native import load
from guestemu.native.build import HOOKS

_SIGNAL: Final = signal.SIGRTMIN + 10
_CLOCK_MONOTONIC: Final = 1
_SIGEV_SIGNAL: Final = 0
_TEXT: Final = 256
_LIBRT: Final = "librt.so.1"
"""Where glibc before 2.34 has its timers."""

_NEVER: Final = 1 << 62
_STEP: Final = 60_000_000_000
"""Nanoseconds between two looks at a deadline that is further away, or at none."""


class _Event(ctypes.Structure):
    """struct sigevent of 64-bit Linux."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("pad", ctypes.c_byte * 48),
    )


class _Shared(ctypes.Structure):
    """struct deadline of deadline.c."""

    _fields_ = (
        ("text", ctypes.c_char * _TEXT),
        ("end", ctypes.c_int64),
        ("step", ctypes.c_int64),
        ("timer", ctypes.c_void_p),
        ("settime", ctypes.c_void_p),
    )


class _Timer:
    """The timer of one process, and who has a deadline. Raises `OSError` or `AttributeError` where
    the system has none."""

    def __init__(self, library: ctypes.PyDLL) -> None:
        self.shared = _Shared.in_dll(library, "deadline")
        self.deadlines: list[Deadline] = []
        self._look = library["deadline_check"]
        system = ctypes.CDLL(None, use_errno=True)
        timers = system if hasattr(system, "timer_create") else ctypes.CDLL(_LIBRT, use_errno=True)
        number = ctypes.c_void_p()
        event = _Event(None, _SIGNAL, _SIGEV_SIGNAL)
        if timers.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(number)):
            raise OSError(ctypes.get_errno(), "timer_create")
        self.shared.end, self.shared.step = _NEVER, _STEP
        self.shared.timer = number
        self.shared.settime = ctypes.cast(timers.timer_settime, ctypes.c_void_p)
        system.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        system.signal.restype = ctypes.c_void_p
        system.signal(_SIGNAL, ctypes.cast(self._look, ctypes.c_void_p))

    def choose(self) -> None:
        """The earliest deadline counts."""
        first = min(self.deadlines, key=lambda one: one.end, default=None)
        if first is None:
            self.shared.end = _NEVER
            return
        self.shared.text = f"{first.line}\n".encode("ascii", "replace")[: _TEXT - 1]
        self.shared.end = first.end

    def set(self) -> None:
        """Sets the timer anew."""
        self.choose()
        self._look(_SIGNAL)


@cache
def _timer(_process: int) -> _Timer | None:
    """A timer belongs to a process; a child that was forked makes its own."""
    library = load(HOOKS)
    try:
        return None if library is None else _Timer(library)
    except (OSError, AttributeError):
        return None


class Deadline:
    """A time at which this process ends with status 1, while `start` and not `stop` was called;
    `line` is written to standard error then."""

    def __init__(self, line: str) -> None:
        self.line = line
        self.end = _NEVER
        self._timer: _Timer | None = None

    def start(self, seconds: float) -> None:
        """It ends in `seconds`."""
        self.end = time.monotonic_ns() + int(seconds * 1e9)
        self._timer = _timer(os.getpid())
        if self._timer is not None:
            self._timer.deadlines.append(self)
            self._timer.set()

    def move(self, seconds: float | None) -> None:
        """It ends in `seconds` from now; None: not before the next call of this method."""
        self.end = _NEVER if seconds is None else time.monotonic_ns() + int(seconds * 1e9)
        timer = self._timer
        if timer is None:
            return
        if len(timer.deadlines) == 1:
            timer.shared.end = self.end
        else:
            timer.choose()

    def stop(self) -> None:
        """It does not end by this any more."""
        if self._timer is not None:
            self._timer.deadlines.remove(self)
            self._timer.choose()
            self._timer = None
