# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes the program of a violation minimal on the campaign's own testbed."""

from __future__ import annotations

from typing import Final

from guestemu.campaign.executor import Executor
from guestemu.campaign.findings import signature
from guestemu.checks.base import Violation
from guestemu.program.ops import Op
from guestemu.program.program import Program
from guestemu.program.shrink import shrink

LIMIT: Final = 300
"""Runs that one minimisation may take."""


def violation_like(violations: list[Violation], ops: tuple[Op, ...], sign: str) -> Violation | None:
    """The first of the violations of `ops` whose signature is `sign`."""
    for violation in violations:
        if signature(violation, ops[violation.op]) == sign:
            return violation
    return None


def minimise(
    executor: Executor, ops: tuple[Op, ...], sign: str
) -> tuple[tuple[Op, ...], Violation, list[Violation]] | None:
    """The smallest program found that still has a violation with signature `sign`, that violation,
    and all that the program has.

    The header stays, because the testbed does. None when `ops` run once more do not show it: the
    machine then remembered something that it should not.
    """

    def keeps(candidate: Program) -> bool:
        if candidate.header != executor.header:
            return False
        found = executor.run(candidate.ops)
        return violation_like(found, candidate.ops, sign) is not None

    if violation_like(executor.run(ops), ops, sign) is None:
        return None
    smallest = shrink(Program(executor.header, ops), keeps, LIMIT).ops
    violations = executor.run(smallest)
    violation = violation_like(violations, smallest, sign)
    return None if violation is None else (smallest, violation, violations)
