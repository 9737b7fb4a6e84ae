# SPDX-License-Identifier: GPL-2.0-or-later
"""From a run to its events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from guestemu.abi.addresses import to_signed
from guestemu.checks.base import ExitRecord, Violation
from guestemu.guest.base import CallOutcome, GuestOops
from guestemu.machine.exits import BudgetExhausted, ExceptionExit, Shutdown, Unbacked
from guestemu.machine.leafmap import Flip as LeafFlip
from guestemu.program.op_text import format_op
from guestemu.testbed import OpResult
from guestemu.trace.events import (
    Answer,
    Event,
    Exit,
    Flip,
    Oops,
    OpBegin,
    OpEnd,
    Raised,
    Stopped,
    Violated,
    Warned,
)
from guestemu.trace.places import Places
from guestemu.trace.run import Run
from guestemu.trace.words import VM_STOPPED, op_word, value_of


def events_of(run: Run) -> Iterator[Event]:
    """The events of `run` in their order."""
    violations: dict[int, list[Violation]] = defaultdict(list)
    for violation in run.outcome.violations:
        violations[violation.op].append(violation)
    for index, result in enumerate(run.outcome.results):
        yield OpBegin(index, format_op(result.op))
        yield from _exits_and_flips(index, result, run.places)
        yield from (Warned(index, name) for name in result.outcome.warnings)
        end = _end(index, result.outcome)
        if end is not None:
            yield end
        yield OpEnd(index, op_word(result.outcome), value_of(result.op, result.outcome))
        for found in violations[index]:
            yield Violated(index, found.check, found.message, found.fact)
    if run.stop is not None:
        yield OpBegin(run.stop.op, format_op(run.program.ops[run.stop.op]))
        yield Stopped(run.stop.op, VM_STOPPED, run.stop.message, 0)
        yield OpEnd(run.stop.op, VM_STOPPED, None)


def _exits_and_flips(index: int, result: OpResult, places: Places) -> Iterator[Event]:
    flips = list(result.flips)
    for number, record in enumerate(result.exits):
        while flips and flips[0][0] <= number:
            yield _flip(index, flips.pop(0)[1], places)
        yield Exit(index, record.kind, record.nr, record.args, record.cpl, record.is_64bit)
        yield Answer(index, record.kind, signed_answer(record))
    for _, flip in flips:
        yield _flip(index, flip, places)


def signed_answer(record: ExitRecord) -> int | None:
    """RAX as the signed 64-bit value it is; an MSR's value as it is."""
    if record.ret is None or record.kind != "hypercall":
        return record.ret
    return to_signed(record.ret, 64)


def _flip(index: int, flip: LeafFlip, places: Places) -> Flip:
    where = places.page(flip.gva, flip.gfn, flip.pages, flip.is_alias)
    return Flip(index, where, flip.pages, flip.private)


def _end(index: int, outcome: CallOutcome) -> Event | None:
    """What kept the operation from returning."""
    end = outcome.end
    if outcome.value is not None or end is None:
        return None
    if isinstance(end, GuestOops):
        return Oops(index, end.vector, end.error_code, end.rip, end.cr2)
    if isinstance(end, ExceptionExit):
        return Raised(index, end.vector, end.error_code, end.rip, end.cr2)
    word = op_word(outcome)
    if isinstance(end, BudgetExhausted):
        return Stopped(index, word, "the budget of basic blocks is used up", end.rip)
    if isinstance(end, Shutdown):
        return Stopped(index, word, end.reason, end.rip)
    if isinstance(end, Unbacked):
        what = "write to" if end.is_write else "read from"
        return Stopped(index, word, f"{what} GPA {end.gpa:#x}, where no RAM is", end.rip)
    return Stopped(index, word, type(end).__name__, getattr(end, "rip", 0))
