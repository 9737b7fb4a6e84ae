# SPDX-License-Identifier: GPL-2.0-or-later
"""Programs that go wrong take half of a campaign that ends by the clock, and no more."""

from __future__ import annotations

import pytest

from guestemu.campaign import session as sessions
from guestemu.campaign.session import Plan, Session, SessionOver
from guestemu.campaign.targets import find_target
from guestemu.program.binary import encode_ops
from guestemu.program.ops import Op, OpKind

WRONG = encode_ops([Op(OpKind.HYPERCALL, (12, 0, 1, 0, 0))])


class Clock:
    """Time that passes where a test says so."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(sessions.time, "monotonic", made.monotonic)
    return made


def make(seconds, execs=None):
    target = find_target("hypercall")
    return Session(Plan(target, target.header, seconds=seconds, execs=execs))


def test_beyond_half_of_the_time_they_are_counted_and_not_looked_at(clock):
    session = make(3600)
    clock.now += 10
    with session.aside():
        clock.now += 9
    assert not session.pass_over(WRONG)
    with session.aside():
        clock.now += 3
    assert session.pass_over(WRONG)
    assert (session.executions, session.lengths[1]) == (1, 1)
    clock.now += 3
    assert not session.pass_over(WRONG)


def test_a_campaign_without_an_end_by_the_clock_looks_at_all(clock):
    session = make(None)
    with session.aside():
        clock.now += 9
    assert not session.pass_over(WRONG)


def test_what_is_passed_over_ends_a_campaign_as_what_runs_does(clock):
    session = make(3600, execs=1)
    with session.aside():
        clock.now += 9
    assert session.pass_over(WRONG)
    with pytest.raises(SessionOver):
        session.pass_over(WRONG)
    late = make(5)
    with late.aside():
        clock.now += 9
    with pytest.raises(SessionOver):
        late.pass_over(WRONG)
