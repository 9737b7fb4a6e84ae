# SPDX-License-Identifier: GPL-2.0-or-later
"""What a call of a user's host may take, in ticks of the process's own time."""

from __future__ import annotations

import signal

import pytest

from guestemu.abi.errors import TimeUp
from guestemu.host.hang_guard import HangGuard


@pytest.fixture
def guard():
    """A guard whose ticks are only those that a test makes."""
    before = signal.getsignal(signal.SIGVTALRM)
    made = HangGuard()
    made.start(0)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    yield made
    signal.signal(signal.SIGVTALRM, before)


def call(guard: HangGuard, method: str, ticks: int) -> None:
    """A call that `ticks` ticks happen in, and one outside of it."""
    guard.method = method
    guard.turn += 1
    try:
        for _ in range(ticks):
            signal.raise_signal(signal.SIGVTALRM)
    finally:
        guard.turn += 1
    signal.raise_signal(signal.SIGVTALRM)


def test_a_call_may_take_ten_ticks_and_after_one_that_did_not_return_one(guard):
    call(guard, "hypercall", 1)
    with pytest.raises(TimeUp, match="computed for ever"):
        call(guard, "hypercall", 11)
    call(guard, "hypercall", 1)
    with pytest.raises(TimeUp):
        call(guard, "hypercall", 2)


def test_another_method_still_may_take_ten(guard):
    with pytest.raises(TimeUp):
        call(guard, "hypercall", 11)
    call(guard, "wrmsr", 10)
    with pytest.raises(TimeUp):
        call(guard, "wrmsr", 11)


def test_a_host_that_is_slow_where_it_returns_gets_four_times_that(guard):
    call(guard, "hypercall", 3)
    with pytest.raises(TimeUp):
        call(guard, "hypercall", 11)
    call(guard, "hypercall", 9)
    with pytest.raises(TimeUp):
        call(guard, "hypercall", 11)
