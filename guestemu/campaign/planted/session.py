# SPDX-License-Identifier: GPL-2.0-or-later
"""One campaign of the zoo: runs inputs until the wanted check fails, or the budget is used up."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from guestemu.campaign.executor import Executor
from guestemu.campaign.planted.bug import Configuration
from guestemu.campaign.session import Plan, Session, SessionOver
from guestemu.campaign.targets import Target
from guestemu.checks.base import Violation
from guestemu.program.ops import Op


class Find(msgspec.Struct, frozen=True):
    """The program that ended a campaign and the violation it has."""

    ops: tuple[Op, ...]
    violation: Violation


class ZooSession(Session):
    """A session on `configuration` that ends at the first violation of `check` (None: of any).

    `found` is that program; other violations do not end it and are counted by check in `others`.
    `seconds` bounds the run beside `plan.execs`.
    """

    may_be_native: ClassVar[bool] = False

    def __init__(
        self,
        target: Target,
        configuration: Configuration,
        check: str | None,
        *,
        seed: int,
        execs: int | None,
        seconds: float | None = None,
    ) -> None:
        header = configuration.header
        super().__init__(
            Plan(target, header, seed=seed, execs=execs),
            build=lambda feedback: Executor(
                target, header, target.kinds, feedback, testbed=configuration.build()
            ),
        )
        self.found: Find | None = None
        self.others: dict[str, int] = {}
        self._check = check
        self._execs = execs
        self._until = None if seconds is None else time.monotonic() + seconds

    def execute(self, data: bytes, before: Sequence[bytes] | None = None) -> bool:
        """Runs one input; whether it covered something new. Raises `SessionOver` at the end."""
        if self.found is not None or self.executions == self._execs:
            raise SessionOver
        if self._until is not None and not self.executions & 63 and time.monotonic() > self._until:
            raise SessionOver
        self.executions += 1
        executor = self.executor
        ops = executor.decode(data)
        violations = executor.run(ops)
        is_new = self.feedback.take()
        for violation in violations:
            if self._check is None or violation.check == self._check:
                self.found = Find(ops, violation)
                raise SessionOver
            self.others[violation.check] = self.others.get(violation.check, 0) + 1
        return is_new
