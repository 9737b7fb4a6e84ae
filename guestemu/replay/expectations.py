# SPDX-License-Identifier: GPL-2.0-or-later
"""Whether a run is what its program expects.

A program without an `outcome` line for the whole run and without `violation` lines is expected to
end in "ok": a file that expects nothing passes only if nothing is wrong. With `violation` lines the
violations must be those and no others; `violation NAME` without `at` allows the check to fail
anywhere, any number of times, and `violation none` says that no check fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Final

import msgspec

from guestemu.abi.addresses import U64_MASK
from guestemu.events.exits import HypercallExit
from guestemu.guest.base import GuestOops
from guestemu.machine.exits import ExceptionExit
from guestemu.program.expectation_text import format_expectation
from guestemu.program.program import Expectation
from guestemu.report.trace.derive import events_of
from guestemu.report.trace.digest import trace_hash
from guestemu.report.trace.run import Run
from guestemu.report.trace.words import OK, VM_STOPPED, op_word, run_word, value_of
from guestemu.runner.testbed import OpResult

NONE: Final = "none"
_IMPLICIT: Final = Expectation("outcome", OK)


class Mismatch(msgspec.Struct, frozen=True):
    """One expectation that does not hold: its line, and what there was instead."""

    expectation: str
    found: str


def judge(run: Run) -> tuple[Mismatch, ...]:
    """Every expectation of `run`'s program that does not hold, in the order of the file."""
    expectations = run.program.expectations
    named = {line.name for line in expectations if line.op is None or line.name == "violation"}
    if not named & {"outcome", "violation"}:
        expectations = (*expectations, _IMPLICIT)
    mismatches = [
        Mismatch(format_expectation(line), found)
        for line in expectations
        if (found := _FINDERS[line.name](run, line)) is not None
    ]
    return (*mismatches, *_unexpected(run))


def _violations(run: Run) -> list[tuple[str, int]]:
    return [(violation.check, violation.op) for violation in run.outcome.violations]


def _unexpected(run: Run) -> Iterator[Mismatch]:
    """Violations that no `violation` line names, if there is any such line."""
    lines = [line for line in run.program.expectations if line.name == "violation"]
    if not lines:
        return
    known = {(line.value, line.op) for line in lines}
    for violation in run.outcome.violations:
        place = (violation.check, violation.op)
        if place not in known and (violation.check, None) not in known:
            yield Mismatch(
                f"no violation of {violation.check} at {violation.op}", violation.message
            )


def _result(run: Run, op: int | None) -> OpResult | None:
    results = run.outcome.results
    return results[op] if op is not None and op < len(results) else None


def _outcome(run: Run, line: Expectation) -> str | None:
    if line.op is None:
        found = run_word(run)
    else:
        result = _result(run, line.op)
        stopped = run.stop is not None and run.stop.op == line.op
        found = op_word(result.outcome) if result else VM_STOPPED if stopped else "not run"
    return None if found == line.value else f"outcome {found}{_first_violation(run, line)}"


def _first_violation(run: Run, line: Expectation) -> str:
    for violation in run.outcome.violations:
        if line.op is None or violation.op == line.op:
            return f" ({violation.check} at {violation.op}: {violation.message})"
    return ""


def _violation(run: Run, line: Expectation) -> str | None:
    found = [check for check, op in _violations(run) if line.op is None or op == line.op]
    if line.value in found or (line.value == NONE and not found):
        return None
    return f"violations of {', '.join(dict.fromkeys(found))}" if found else "no violation"


def _hypercalls(run: Run, line: Expectation) -> str | None:
    records = (record for result in run.outcome.results for record in result.exits)
    found = sum(isinstance(record, HypercallExit) for record in records)
    return None if found == int(line.value) else f"hypercalls {found}"


def _hash(run: Run, line: Expectation) -> str | None:
    found = trace_hash(events_of(run))
    return None if found.startswith(line.value) else f"trace_hash {found}"


def _value(run: Run, line: Expectation) -> str | None:
    """Equal as 64-bit values, so that -22 and 0xffffffffffffffea are the same."""
    result = _result(run, line.op)
    if result is None:
        return "the operation did not run"
    found = value_of(result.op, result.outcome)
    if found is None:
        word = op_word(result.outcome)
        return "the operation gives no value" if word == OK else f"outcome {word}"
    if (found - int(line.value, 0)) & U64_MASK == 0:
        return None
    return f"{line.name} {found}" if abs(found) <= 0xFFFF else f"{line.name} {found:#x}"


def exception_of(result: OpResult) -> int | None:
    """The vector that ended an operation, if one did."""
    end = result.outcome.end
    return end.vector if isinstance(end, ExceptionExit | GuestOops) else None


def _exception(run: Run, line: Expectation) -> str | None:
    result = _result(run, line.op)
    found = exception_of(result) if result is not None else None
    wanted = None if line.value == NONE else int(line.value)
    return None if found == wanted else f"exception {NONE if found is None else found}"


def _warning(run: Run, line: Expectation) -> str | None:
    result = _result(run, line.op)
    found = result.outcome.warnings if result is not None else ()
    if line.value in found or (line.value == NONE and not found):
        return None
    return f"warnings {', '.join(found)}" if found else "no warning"


_FINDERS: Final[Mapping[str, Callable[[Run, Expectation], str | None]]] = {
    "outcome": _outcome,
    "violation": _violation,
    "hypercalls": _hypercalls,
    "trace_hash": _hash,
    "result": _value,
    "value": _value,
    "exception": _exception,
    "warning": _warning,
}
"""For each name of an expectation what was found instead, or None where it holds."""
