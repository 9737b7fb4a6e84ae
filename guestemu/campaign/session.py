# SPDX-License-Identifier: GPL-2.0-or-later
"""One process's part of a campaign: runs inputs, keeps what is new, files what is wrong.

Engines choose inputs and call `execute`; everything else is the same for all of them.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from guestemu.campaign.executor import Executor
from guestemu.campaign.feedback import Feedback
from guestemu.campaign.findings import FindingBook, FindingCount, finding_key, signature
from guestemu.campaign.minimise import minimise
from guestemu.campaign.store import Store
from guestemu.campaign.targets import Target
from guestemu.checks.base import Violation
from guestemu.host.base import Host
from guestemu.program.ops import Op
from guestemu.program.program import Expectation, Header, Program

LENGTH_SIZE: Final = 4
"""Bytes of the length in front of the input in `Session.current`."""

_CLOCK_MASK: Final = 63
"""The clock is read every 64 executions."""


class Plan(msgspec.Struct, frozen=True):
    """What a session does: `execs` and `seconds` end it (None: no limit), `seed` decides its
    random choices, `report_every` is the time between two reports in seconds,
    `is_shared` says that other sessions feed the same corpus."""

    target: Target
    header: Header
    faults: bool = False
    seed: int = 0
    execs: int | None = None
    seconds: float | None = None
    report_every: float = 0.5
    is_shared: bool = False


class Report(msgspec.Struct, frozen=True):
    """Figures of one session so far; times in seconds since its start; `lengths[n]` counts the
    programs of n ops."""

    executions: int
    seconds: float
    guest_blocks: int
    model_states: int
    last_new_s: float
    new_inputs: int
    lengths: list[int]
    findings: list[FindingCount]
    unstable: list[str]
    is_final: bool = False


def median_length(reports: Iterable[Report]) -> int:
    """The median number of ops of the programs in all `reports`, 0 for none."""
    counts: list[int] = []
    for report in reports:
        counts += [0] * (len(report.lengths) - len(counts))
        for length, count in enumerate(report.lengths):
            counts[length] += count
    left = (sum(counts) + 1) // 2
    for length, count in enumerate(counts):
        left -= count
        if left <= 0:
            return length
    return 0


class SessionOver(Exception):
    """Raised by `Session.execute` when a limit is reached or `Session.stop` was called."""


class Session:
    """See the module's docstring. `report` is called now and then and once at the end.
    `current`, if set, holds the input that runs (its length in LENGTH_SIZE bytes, then the bytes)
    for whoever looks after this process has died.

    `host` replaces the one named in the header (for tests); without a `store` nothing is written.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store | None = None,
        report: Callable[[Report], None] | None = None,
        host: Host | None = None,
    ) -> None:
        self.plan = plan
        self.store = store
        self.kinds = plan.target.kinds_with(plan.faults)
        self.feedback = Feedback()
        self.executor = Executor(plan.target, plan.header, self.kinds, self.feedback, host)
        self.book = FindingBook()
        self.executions = 0
        self.unstable: list[str] = []
        self.current: mmap.mmap | None = None
        self._report = report
        self._lengths = [0] * (plan.target.max_ops + 1)
        self._new_inputs = 0
        self._last_new = 0.0
        self._start = time.monotonic()
        self._next_report = self._start + plan.report_every
        self._deadline = None if plan.seconds is None else self._start + plan.seconds
        self._limit = plan.execs
        self._is_stopped = False

    def stop(self) -> None:
        """The next `execute` ends the session (safe in a signal handler)."""
        self._is_stopped = True

    def execute(self, data: bytes) -> bool:
        """Runs one input; whether it covered something new. Raises `SessionOver` instead of
        running when the session is over. The caller clears the counters before, if libFuzzer does
        not."""
        if self._is_stopped or self.executions == self._limit:
            raise SessionOver
        if not self.executions & _CLOCK_MASK:
            self._look_at_clock()
        self.executions += 1
        if self.current is not None:
            self.current[: len(data) + LENGTH_SIZE] = (
                len(data).to_bytes(LENGTH_SIZE, "little") + data
            )
        executor = self.executor
        ops = executor.decode(data)
        self._lengths[len(ops)] += 1
        violations = executor.run(ops)
        is_new = self.feedback.take()
        if is_new:
            self._new_inputs += 1
            self._last_new = self._elapsed()
        if violations:
            self._file(ops, violations)
        return is_new

    def finish(self) -> Report:
        """The last report; sends it."""
        final = self.make_report(is_final=True)
        if self._report is not None:
            self._report(final)
        return final

    def make_report(self, is_final: bool = False) -> Report:
        """The figures now."""
        return Report(
            executions=self.executions,
            seconds=self._elapsed(),
            guest_blocks=self.feedback.guest_blocks,
            model_states=self.feedback.model_states,
            last_new_s=self._last_new,
            new_inputs=self._new_inputs,
            lengths=list(self._lengths),
            findings=list(self.book.findings.values()),
            unstable=self.unstable,
            is_final=is_final,
        )

    def _elapsed(self) -> float:
        return round(time.monotonic() - self._start, 3)

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if self._deadline is not None and now >= self._deadline:
            raise SessionOver
        if self._report is not None and now >= self._next_report:
            self._next_report = now + self.plan.report_every
            self._report(self.make_report())

    def _file(self, ops: tuple[Op, ...], violations: list[Violation]) -> None:
        """Counts violations, and minimises and saves what is new, outside the counters."""
        counters = self.feedback.save()
        for violation in violations:
            sign = signature(violation, ops[violation.op])
            if not self.book.meet(sign):
                continue
            found = minimise(self.executor, ops, sign)
            if found is None:
                self.unstable.append(f"{sign} (not seen again with the same program)")
                continue
            smallest, shown, shows = found
            key = finding_key(shown, smallest)
            if self.book.settle(sign, key, shown.check, self._elapsed()) and self.store:
                self._save(key, smallest, shown, shows)
        self.feedback.load(counters)

    def _save(
        self, key: str, ops: tuple[Op, ...], violation: Violation, violations: list[Violation]
    ) -> None:
        assert self.store is not None
        path = self.store.finding_path(key)
        lines = [
            f"Finding {key} of a campaign on target {self.plan.target.name}.",
            f"Check {violation.check}, after op {violation.op}: {violation.message}",
        ]
        if violation.fact:
            lines.append(f"Demanded by: {violation.fact}")
        lines.append(f"Reproduce: guestemu run {path}")
        expected = dict.fromkeys(Expectation("violation", v.check, v.op) for v in violations)
        program = Program(self.plan.header, ops, tuple(expected))
        self.store.save_finding(key, program, "\n".join(lines))
