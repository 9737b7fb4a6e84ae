# SPDX-License-Identifier: GPL-2.0-or-later
"""A campaign runs each program once, as far as it remembers."""

from __future__ import annotations

import msgspec
import planted_hosts
import pytest

from guestemu.campaign.programs import IN_A_ROW, ProgramSet
from guestemu.campaign.session import Plan, Session, SessionOver
from guestemu.campaign.targets import find_target
from guestemu.program.binary import encode_op, encode_ops
from guestemu.program.ops import Op, OpKind, Region

NOTIFY = Op(OpKind.HYPERCALL, (12, 0, 1, 0, 0), Region.D, 3, True)


def session_on(name: str = "hypercall", **plan: int) -> Session:
    target = find_target(name)
    return Session(Plan(target, target.header, **plan))


def numbered(count: int) -> list[tuple[Op, ...]]:
    return [(msgspec.structs.replace(NOTIFY, page=page),) for page in range(count)]


def test_a_program_is_new_once() -> None:
    programs = ProgramSet()
    for ops in ((), (NOTIFY,), (NOTIFY, NOTIFY)):
        assert programs.add(ops)
        assert not programs.add(ops)


def test_the_set_forgets_the_oldest() -> None:
    programs = ProgramSet(10)
    ops = numbered(21)
    assert all(map(programs.add, ops))
    assert not any(map(programs.add, ops[11:]))
    assert programs.add(ops[0])


def test_a_used_program_stays_known() -> None:
    programs = ProgramSet(10)
    first, *others = numbered(60)
    programs.add(first)
    for ops in others:
        assert programs.add(ops)
        assert not programs.add(first)


@pytest.mark.parametrize("skips", [True, False])
def test_bytes_that_the_decoder_ignores_make_no_program(skips: bool) -> None:
    session = session_on()
    session.skips_known = skips
    data = encode_op(NOTIFY)
    session.execute(data)
    for tail in range(4):
        session.execute(data + bytes([tail]))
    assert session.executions == (1 if skips else 5)
    assert session.distinct == 1
    session.execute(encode_ops((NOTIFY, NOTIFY)))
    assert session.distinct == session.make_report().distinct == 2


def test_a_campaign_whose_space_is_used_up_still_ends() -> None:
    session = session_on(execs=3)
    session.skips_known = True
    data = encode_op(NOTIFY)
    for _ in range(1 + 2 * (IN_A_ROW + 1)):
        session.execute(data)
    with pytest.raises(SessionOver):
        session.execute(data)
    assert session.executions == 3
    assert session.distinct == 1


@pytest.mark.parametrize("wanted", [1, 2, None])
def test_a_session_ends_at_the_finding_that_is_wanted(wanted):
    target = find_target("hypercall")
    plan = Plan(target, target.header, until_finding=wanted)
    session = Session(plan, host=planted_hosts.AttributeBit0())
    bit_0 = encode_op(msgspec.structs.replace(NOTIFY, arguments=(12, 0, 1, 1, 0)))
    session.execute(bit_0)
    if wanted == 1:
        with pytest.raises(SessionOver):
            session.execute(bit_0)
    else:
        session.execute(bit_0)
    assert len(session.make_report().findings) == 1
