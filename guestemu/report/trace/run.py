# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of a program to its end, also when the host's user space stops the VM on the way."""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.errors import EngineError, InputError, TimeUp
from guestemu.checks.base import Violation
from guestemu.checks.lost import LOST_DEFINED, LOST_STRICT
from guestemu.host.userspace.base import VmStopped
from guestemu.machine.watchdog import Watchdog
from guestemu.program.op_text import format_op
from guestemu.program.program import Header, Program
from guestemu.program.validity import header_problem, problem_of
from guestemu.report.strip import Strip
from guestemu.report.trace.places import Places
from guestemu.report.trace.strips import StripRecorder
from guestemu.runner.scout import Scout, may_end_process
from guestemu.runner.testbed import HOST_FAILED, TIME_UP, OpResult, Outcome, Testbed, build_testbed

LIMIT_S: Final = 5.0
LIMIT_LINUX_S: Final = 300.0
_LOST: Final = frozenset({LOST_STRICT, LOST_DEFINED})
_ELSEWHERE: Final = "The records of these frames agree: the violation is about something else."


class VmStop(msgspec.Struct, frozen=True):
    """User space ended the VM during operation `op`; `message` says why. Later ops did not run."""

    op: int
    message: str


class Run(msgspec.Struct, frozen=True):
    """A program, what its operations did, what the checks said, and how to name its pages; the
    strip after the first violation, or after the last operation, if one was asked for."""

    program: Program
    outcome: Outcome
    places: Places
    stop: VmStop | None = None
    strip: Strip | None = None


def check_program(program: Program) -> None:
    """Raises `InputError` where header and ops do not fit together.

    A file was checked when it was read; this is for a header that was changed since.
    """
    problem = header_problem(program.header)
    if problem is not None:
        raise InputError(problem[1])
    for index, op in enumerate(program.ops):
        wrong = problem_of(op, program.header)
        if wrong is not None:
            raise InputError(f"op {index} ({format_op(op)}): {wrong}")


def seconds_for(header: Header) -> float:
    """How many seconds of CPU time a program may take: far more than any that is to the point."""
    return LIMIT_LINUX_S if header.guest.startswith("linux:") else LIMIT_S


def run_in(testbed: Testbed, program: Program, seconds: float | None = None) -> Run:
    """Resets `testbed` and runs `program` in it; of its header only the guest is looked at.

    A program that takes more than `seconds` of CPU time (default: `seconds_for`) violates `TIME_UP`
    and is not run on; the testbed is then of no use. Where the host's code would end this process,
    that is a violation. Raises `InputError` for a fault op that the host cannot do.
    """
    results: list[OpResult] = []
    violations: list[Violation] = []
    stop: VmStop | None = None
    limit = seconds_for(program.header) if seconds is None else seconds
    if testbed.scout is None and may_end_process(testbed.host):
        testbed.scout = Scout(testbed, patience=limit)
    if not testbed.try_out(program.ops):
        raise EngineError(f"the process that ran {len(program.ops)} operations first died")
    with Watchdog(lambda: testbed.guest.machine, limit) as watchdog:
        testbed.reset()
        for index in range(len(program.ops)):
            stop = step_in(testbed, program, index, results, violations)
            add_time_up(violations, index, watchdog)
            if stop is not None or watchdog.is_up:
                break
    outcome = Outcome(tuple(results), tuple(violations))
    return Run(program, outcome, Places(testbed.guest.regions), stop)


def add_time_up(violations: list[Violation], index: int, watchdog: Watchdog) -> None:
    """The violation of a program whose time is up at operation `index`, if it is; a host that did
    not return has one already."""
    if watchdog.is_up and not any(found.check == HOST_FAILED for found in violations):
        violations.append(Violation(TIME_UP, index, watchdog.text))


def step_in(
    testbed: Testbed,
    program: Program,
    index: int,
    results: list[OpResult],
    violations: list[Violation],
) -> VmStop | None:
    """Runs operation `index` and appends its result and violations, or says why the VM stopped.

    Raises `InputError` for a fault op that the host cannot do.
    """
    op = program.ops[index]
    try:
        testbed.step(index, op, results, violations)
    except VmStopped as error:
        return VmStop(index, str(error))
    except TimeUp as error:
        return VmStop(index, str(error))
    except NotImplementedError as error:
        raise InputError(f"op {index} ({format_op(op)}): {error}; use another host") from error
    return None


def decisive_strip(recorder: StripRecorder, run: Run) -> Strip | None:
    """The strip at which to look: where a migrated guest found a page lost, else after the first
    operation that violated something, else after the last one."""
    lost = [found.op for found in run.outcome.violations if found.check in _LOST]
    first = min(lost or [found.op for found in run.outcome.violations], default=None)
    strip = recorder.strip(run.places, first)
    if strip is None or first is None or any(strip.disagree):
        return strip
    return msgspec.structs.replace(strip, sentences=(_ELSEWHERE,))


def run_program(program: Program, seconds: float | None = None) -> Run:
    """Runs `program` as its header says, in a testbed of its own, for at most `seconds` of CPU time
    (see `run_in`).

    Raises `InputError` for a configuration that cannot be.
    """
    check_program(program)
    testbed = build_testbed(program.header)
    try:
        recorder = StripRecorder(testbed)
        run = run_in(testbed, program, seconds)
        return msgspec.structs.replace(run, strip=decisive_strip(recorder, run))
    finally:
        testbed.close()
