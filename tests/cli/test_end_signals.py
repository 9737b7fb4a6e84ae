# SPDX-License-Identifier: GPL-2.0-or-later
"""An interrupt that CPython drops comes again."""

from __future__ import annotations

import os
import signal
import threading
import time
import weakref

import pytest

from guestemu.processes import EndSignals


class Thing:
    """Something that a weak reference can refer to."""


def test_an_interrupt_in_a_callback_of_a_weak_reference_is_not_lost() -> None:
    def on_end(_dead: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):  # the handler runs here
            pass

    def lose() -> None:
        thing = Thing()
        reference = weakref.ref(thing, on_end)
        with EndSignals():
            del thing
            assert reference() is None
            for _ in range(600):
                time.sleep(0.1)

    with pytest.raises(KeyboardInterrupt):
        lose()


def test_an_interrupt_that_is_early_is_not_lost_either(monkeypatch: pytest.MonkeyPatch) -> None:
    """It arrives while the thread that sends it again is started, as on a slow machine."""
    start = threading.Timer.start
    slow = iter((True,))

    def started(timer: threading.Timer) -> None:
        start(timer)
        if next(slow, False):
            timer.join()

    monkeypatch.setattr(threading.Timer, "start", started)
    test_an_interrupt_in_a_callback_of_a_weak_reference_is_not_lost()
