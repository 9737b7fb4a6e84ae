# SPDX-License-Identifier: GPL-2.0-or-later
"""Campaigns on the target mirror: nothing where nothing is wrong, planted bugs, live migrations."""

from __future__ import annotations

import pytest
from hunt import hunt_here

from guestemu.abi.addresses import PAGE_SIZE
from guestemu.abi.errors import InputError
from guestemu.campaign.engines.random import RandomEngine
from guestemu.campaign.executor import Executor
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.migration_ops import PAGES, steps_of
from guestemu.campaign.planted.cell import OURS, HuntCell
from guestemu.campaign.session import Plan, Report, Session
from guestemu.campaign.targets import find_target
from guestemu.program.ops import Op, OpKind, canonical_op


def fuzz(target: str, execs: int, seed: int = 1, faults: bool = False) -> Report:
    chosen = find_target(target)
    plan = Plan(chosen, chosen.header, faults=faults, seed=seed, execs=execs)
    session = Session(plan, None)
    RandomEngine().run(session, lambda error: pytest.fail(str(error)))
    return session.make_report()


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    report = fuzz("mirror", 150)
    assert (report.executions, report.findings) == (150, [])


# Executions until the random engine with seed 1 found them, with room.
@pytest.mark.parametrize(
    ("bug", "execs"), [("M27", 1000), ("M28c", 500), ("M62b", 100), ("M63", 1000)]
)
def test_planted_bugs_are_found(bug: str, execs: int) -> None:
    result = hunt_here(HuntCell(bug, True, "random", OURS, 1, execs))
    assert result.found, bug


def test_the_target_with_an_order_migrates_by_handlers() -> None:
    target = find_target("mirror:DES")
    assert OpKind.MIGRATE_HANDLER in target.kinds
    assert OpKind.MIGRATE_START not in target.kinds
    with pytest.raises(InputError, match="such as DES"):
        find_target("mirror:XYZ")


def test_the_right_order_loses_nothing() -> None:
    report = fuzz("mirror:DES", 40)
    assert (report.executions, report.findings) == (40, [])


def test_a_wrong_order_loses_what_was_written() -> None:
    """The page goes as private, by the status that was copied before its conversion."""
    target = find_target("mirror:EDS")
    executor = Executor(target, target.header, target.kinds, Feedback())
    status, log, send = steps_of("EDS")
    body = (
        status,
        Op(OpKind.SET_MEMORY_DECRYPTED, (1, 0), page=3),
        Op(OpKind.WRITE, (0x5A, 0, PAGE_SIZE), page=3),
        log,
        send,
    )
    start, stop = Op(OpKind.MIGRATE_HANDLER, (PAGES,)), Op(OpKind.MIGRATE_STOP)
    ops = (start, *body, status, log, send, stop, Op(OpKind.READ, (0,), page=3))
    ops = tuple(map(canonical_op, ops))
    assert executor.allows(ops)
    assert [violation.check for violation in executor.run(ops)] == ["lost_defined"]


def test_packets_that_are_played_with_are_refused() -> None:
    """The firmware takes them (E15), handlers that bind their packets do not."""
    report = fuzz("mirror:DES", 40, faults=True)
    assert report.findings == []
