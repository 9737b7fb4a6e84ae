# SPDX-License-Identifier: GPL-2.0-or-later
"""From a run to its trace.

Order inside an operation: op-begin; what happened on the way; warnings; what ended it, if it did
not return; op-end; violations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from guestemu.events.base import Event
from guestemu.events.lines import Line, lines_of
from guestemu.events.operations import (
    Oops,
    OpBegin,
    OpEnd,
    Raised,
    Stopped,
    Violation,
    Warned,
)
from guestemu.guest.base import CallOutcome, GuestOops
from guestemu.machine.exits import BudgetExhausted, ExceptionExit, Shutdown, Unbacked
from guestemu.program.op_text import format_op
from guestemu.report.trace.run import Run
from guestemu.report.trace.words import VM_STOPPED, op_word, value_of


def events_of(run: Run) -> Iterator[Line]:
    """The events of `run` in their order, as JSON lines."""
    where = run.places.traced
    for op, event in _events(run):
        yield from lines_of(op, event, where)


def _events(run: Run) -> Iterator[tuple[int, Event]]:
    violations: dict[int, list[Violation]] = defaultdict(list)
    for violation in run.outcome.violations:
        violations[violation.op].append(violation)
    for index, result in enumerate(run.outcome.results):
        outcome = result.outcome
        yield index, OpBegin(format_op(result.op))
        for event in result.events:
            yield index, event
        for name in outcome.warnings:
            yield index, Warned(name)
        end = _end(outcome)
        if end is not None:
            yield index, end
        yield index, OpEnd(op_word(outcome), value_of(result.op, outcome))
        for found in violations[index]:
            yield index, found
    if run.stop is not None:
        index = run.stop.op
        yield index, OpBegin(format_op(run.program.ops[index]))
        yield index, Stopped(VM_STOPPED, run.stop.message, 0)
        yield index, OpEnd(VM_STOPPED, None)


def _end(outcome: CallOutcome) -> Event | None:
    """What kept the operation from returning."""
    end = outcome.end
    if outcome.value is not None or end is None:
        return None
    if isinstance(end, GuestOops):
        return Oops(end.vector, end.error_code, end.rip, end.cr2)
    if isinstance(end, ExceptionExit):
        return Raised(end.vector, end.error_code, end.rip, end.cr2)
    word = op_word(outcome)
    if isinstance(end, BudgetExhausted):
        return Stopped(word, "the budget of basic blocks is used up", end.rip)
    if isinstance(end, Shutdown):
        return Stopped(word, end.reason, end.rip)
    if isinstance(end, Unbacked):
        what = "write to" if end.is_write else "read from"
        return Stopped(word, f"{what} GPA {end.gpa:#x}, where no RAM is", end.rip)
    return Stopped(word, type(end).__name__, getattr(end, "rip", 0))
