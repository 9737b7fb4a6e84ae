# SPDX-License-Identifier: GPL-2.0-or-later
"""What `Host.plain` takes for the same does the same."""

from __future__ import annotations

import random

import pytest

from guestemu.campaign.executor import Executor
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.session import Plan, Session
from guestemu.campaign.targets import find_target
from guestemu.checks.base import OpView
from guestemu.program.binary import encode_op
from guestemu.program.ops import Op, OpKind

Seen = list[tuple[object, ...]]


def runs_of(executor: Executor, ops: tuple[Op, ...]) -> tuple[Seen, list[str]]:
    seen: Seen = []

    def observe(view: OpView) -> None:
        exits = [(record.nr, record.args, record.ret) for record in view.exits]
        host = view.host
        seen.append(
            (view.outcome, exits, host.state, host.migration_ready, host.private_map().copy())
        )

    executor.testbed.observe = observe
    violations = executor.run(ops)
    return seen, [violation.message for violation in violations]


@pytest.mark.parametrize("name", ["msr", "sync", "stream", "firmware", "mirror", "lockstep"])
def test_plain_programs_do_what_the_others_do(name: str) -> None:
    target = find_target(name)
    executor = Executor(target, target.header, target.kinds, Feedback())
    rng = random.Random(1)
    reduced = 0
    for _ in range(40):
        ops = executor.decode(rng.randbytes(48 * rng.randint(1, min(target.max_ops, 5))))
        plain = tuple(map(executor.plain, ops))
        assert tuple(map(executor.plain, plain)) == plain
        assert runs_of(executor, ops) == runs_of(executor, plain)
        reduced += ops != plain
    assert reduced > 5


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("sync", Op(OpKind.QEMU_SEND, (6,)), Op(OpKind.QEMU_SEND, (2,))),
        ("mirror", Op(OpKind.MIRROR_TELL, (8, 2, 1)), Op(OpKind.MIRROR_TELL, (0, 0, 1))),
        ("msr", Op(OpKind.RDMSR, (5,), cpl=3), Op(OpKind.RDMSR, (7,), cpl=3)),
    ],
)
def test_a_program_that_does_the_same_is_no_execution(name: str, one: Op, other: Op) -> None:
    target = find_target(name)
    session = Session(Plan(target, target.header))
    session.skips_known = True
    for op in (one, other):
        session.execute(encode_op(op))
    assert (session.executions, session.distinct) == (1, 1)
