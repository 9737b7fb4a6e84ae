# SPDX-License-Identifier: GPL-2.0-or-later
"""How the processes of a command end: by Ctrl-C or SIGTERM, with their terminal or parent.

A command that is ended from outside stops at once, keeps what it has, leaves no process behind and
exits with status 130.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Final, Self

from guestemu.machine.interruption import defer

END_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, `kill`, the end of the terminal."""

_PR_SET_PDEATHSIG: Final = 1
_STATUS: Final = 1
_AGAIN: Final = 0.01
"""Seconds until an interrupt that was dropped is sent again."""


def interrupt(_number: int, frame: FrameType | None) -> None:
    """A handler of `END_SIGNALS`: raises KeyboardInterrupt, in a callback of the CPU emulator as
    soon as the CPU has stopped."""
    error = KeyboardInterrupt()
    if not defer(error, frame):
        raise error


def _send_again(number: int) -> None:
    main = threading.main_thread().ident
    assert main is not None
    again = threading.Timer(_AGAIN, signal.pthread_kill, (main, number))
    again.daemon = True
    again.start()


class EndSignals:
    """While entered, each of `END_SIGNALS` raises KeyboardInterrupt in the main thread. A signal
    that the process was started to ignore stays ignored. Does nothing in other threads.

    CPython drops what is raised in a callback of a weak reference, and importlib has one for each
    module: such an interrupt is sent again."""

    def __init__(self) -> None:
        self._before: dict[signal.Signals, Any] = {}
        self._hook = sys.unraisablehook
        self._is_in_hook = False

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._hook, sys.unraisablehook = sys.unraisablehook, self._on_dropped
            for number in END_SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self.handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if sys.unraisablehook == self._on_dropped:
            sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _on_dropped(self, dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            self._hook(dropped)
            return
        number = next(iter(self._before), None)
        if number is not None:
            self._is_in_hook = True
            _send_again(number)
            self._is_in_hook = False  # nothing is called behind this: no handler runs any more

    def handle(self, number: int, frame: FrameType | None) -> None:
        """What a signal does."""
        if self._is_in_hook:  # on a slow machine it is there before its thread's start is told
            _send_again(number)
        else:
            interrupt(number, frame)

    def keep(self) -> None:
        """Leaves the signals as they are now when this is left."""
        self._before.clear()

    def ignore(self) -> None:
        """The command is at its end: no further signal changes that, nor its status."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        # CPython notes a KeyboardInterrupt that leaves an exec() of source text, as when a class is
        # built at import, and at its end kills the process for it although it was caught. The next
        # exec() of source text takes the note back.
        exec("")


@contextmanager
def end_signals_held() -> Iterator[None]:
    """Around the start of a process and what notes it: one of `END_SIGNALS` that comes meanwhile is
    handled behind it, so that no process is started that nobody knows of. A process started inside
    inherits that until it calls `follow_parent`."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, END_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def follow_parent() -> None:
    """Makes this process a worker: it dies with the thread that started it, whatever ends that,
    and leaves Ctrl-C to it."""
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, END_SIGNALS)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(_STATUS)
