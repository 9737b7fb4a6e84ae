# SPDX-License-Identifier: GPL-2.0-or-later
"""One run of a program to its end, also when the host's user space stops the VM on the way."""

from __future__ import annotations

import msgspec

from guestemu.abi.errors import InputError
from guestemu.checks.base import Violation
from guestemu.host.userspace.base import VmStopped
from guestemu.program.op_text import format_op
from guestemu.program.program import Program
from guestemu.program.validity import header_problem, problem_of
from guestemu.testbed import OpResult, Outcome, Testbed, build_testbed
from guestemu.trace.places import Places


class VmStop(msgspec.Struct, frozen=True):
    """User space ended the VM during operation `op`; `message` says why. Later ops did not run."""

    op: int
    message: str


class Run(msgspec.Struct, frozen=True):
    """A program, what its operations did, what the checks said, and how to name its pages."""

    program: Program
    outcome: Outcome
    places: Places
    stop: VmStop | None = None


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


def run_in(testbed: Testbed, program: Program) -> Run:
    """Resets `testbed` and runs `program` in it; its header is not looked at.

    Raises `InputError` for a fault op that the host cannot do.
    """
    testbed.reset()
    results: list[OpResult] = []
    violations: list[Violation] = []
    stop: VmStop | None = None
    for index in range(len(program.ops)):
        stop = step_in(testbed, program, index, results, violations)
        if stop is not None:
            break
    outcome = Outcome(tuple(results), tuple(violations))
    return Run(program, outcome, Places(testbed.guest.regions), stop)


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
    except NotImplementedError as error:
        raise InputError(f"op {index} ({format_op(op)}): {error}; use another host") from error
    return None


def run_program(program: Program) -> Run:
    """Runs `program` as its header says, in a testbed of its own.

    Raises `InputError` for a configuration that cannot be.
    """
    check_program(program)
    testbed = build_testbed(program.header)
    try:
        return run_in(testbed, program)
    finally:
        testbed.close()
