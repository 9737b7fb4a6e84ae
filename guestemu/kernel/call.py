# SPDX-License-Identifier: GPL-2.0-or-later
"""One call of a kernel function, with everything that it did."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, to_signed
from guestemu.abi.errors import InputError
from guestemu.abi.names import plural
from guestemu.events.exits import HypercallExit, WrmsrExit
from guestemu.events.memory import LeafChange
from guestemu.guest.base import CallOutcome, GuestOops
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.kernel.arguments import CallArgument, Earlier, resolve
from guestemu.kernel.calltree import CallTracer, FunctionLine, TracedExits
from guestemu.machine.exits import BudgetExhausted

MAX_ARGUMENTS: Final = 6


class CalledExit(msgspec.Struct, frozen=True):
    """A hypercall: number, a0 to a3 as in the registers, and the answer."""

    nr: int
    args: tuple[int, ...]
    ret: int


class CalledMsr(msgspec.Struct, frozen=True):
    """A WRMSR."""

    msr: int
    value: int


class ChangedLeaf(msgspec.Struct, frozen=True):
    """A leaf whose C-bit changed: `pages` of 4 KiB from `gva` on, which map `gpa`."""

    gva: int
    gpa: int
    pages: int
    private: bool


class CallReport(msgspec.Struct, frozen=True):
    """What a call did. `returned` is the value by the function's C type (None: void, or an
    `oops`, which says why it did not return);
    `arguments` hold the memory that they stand for in the run that is told; `console` are the lines
    that the kernel printed, `tree` who called whom if that was asked for."""

    function: str
    arguments: tuple[CallArgument, ...]
    returned: int | None
    hypercalls: tuple[CalledExit, ...]
    msrs: tuple[CalledMsr, ...]
    ptes: tuple[ChangedLeaf, ...]
    warnings: tuple[str, ...]
    instructions: int
    oops: str | None = None
    console: tuple[str, ...] = ()
    tree: tuple[FunctionLine, ...] = ()


class Called(msgspec.Struct, frozen=True):
    """A call of a sequence: the function, and its arguments as text (kernel/arguments.py)."""

    function: str
    arguments: tuple[str, ...] = ()


def call_function(
    guest: LinuxGuest, function: str, texts: Sequence[str], answer: int = 0, depth: int = 0
) -> CallReport:
    """`call_functions` of one function."""
    [report] = call_functions(guest, (Called(function, tuple(texts)),), answer, depth)
    return report


def call_functions(
    guest: LinuxGuest, calls: Sequence[Called], answer: int = 0, depth: int = 0
) -> tuple[CallReport, ...]:
    """Makes `calls` one after the other in a freshly reset guest, up to the first that does not
    return; the host answers hypercalls with `answer`. A `depth` above 0 asks for the trees of
    calls, down to so many levels.

    All is done twice from the same state, the second time to count instructions: counting makes
    every instruction a hook. What uses up its budget is done once and reported as `oops`. Raises
    `InputError` for arguments that do not fit and a function that is not there.
    """
    for call in calls:
        _check(guest, call)
    recorder = BootRecorder(answer)
    guest.machine.hooks.handler = recorder
    guest.reset()
    reports: list[CallReport] = []
    earlier: list[Earlier] = []
    for call in calls:
        arguments = tuple(resolve(text, guest, earlier) for text in call.arguments)
        guest.leaf_map.among(())
        recorder.exits.clear()
        outcome = guest.call(call.function, *(argument.value for argument in arguments))
        earlier.append(Earlier(outcome.value or 0, arguments))
        reports.append(_report(guest, call.function, arguments, outcome, recorder))
        if outcome.value is None:
            break
    if isinstance(outcome.end, BudgetExhausted):
        calls = calls[: len(reports) - 1]
    counted = _again(guest, calls[: len(reports)], answer, depth)
    for index, (instructions, tree) in enumerate(counted):
        reports[index] = msgspec.structs.replace(
            reports[index], instructions=instructions, tree=tree
        )
    return tuple(reports)


def _check(guest: LinuxGuest, call: Called) -> None:
    """Raises `InputError` for a function that is not there and for arguments that do not fit."""
    prototype = guest.kernel.btf.prototype(call.function)
    guest.kernel.address(call.function)
    given = len(call.arguments)
    if given > MAX_ARGUMENTS:
        raise InputError(f"{call.function}: {given} arguments; six fit into registers")
    if prototype is not None and prototype.parameters:
        wanted = prototype.parameters
        if given != len(wanted):
            raise InputError(
                f"{call.function} takes {len(wanted)} arguments ({', '.join(wanted)}); "
                f"{given} are given"
            )


def _report(
    guest: LinuxGuest,
    function: str,
    arguments: tuple[CallArgument, ...],
    outcome: CallOutcome,
    recorder: BootRecorder,
) -> CallReport:
    """What a call did that has just been made."""
    prototype = guest.kernel.btf.prototype(function)
    _, flips = guest.leaf_map.among(())
    exits = tuple(recorder.exits)
    returned = None
    if outcome.value is not None:
        if prototype is None or not prototype.parameters:
            returned = to_signed(outcome.value, 64)
        elif prototype.result_size:
            value = outcome.value & (1 << 8 * prototype.result_size) - 1
            returned = to_signed(value, 8 * prototype.result_size) if prototype.is_signed else value
    return CallReport(
        function=function,
        arguments=arguments,
        returned=returned,
        hypercalls=tuple(
            CalledExit(one.nr, one.args, to_signed(recorder.answer, 64))
            for one in exits
            if isinstance(one, HypercallExit)
        ),
        msrs=tuple(CalledMsr(one.nr, one.args[0]) for one in exits if isinstance(one, WrmsrExit)),
        ptes=tuple(_leaf(flip) for flip in flips),
        warnings=outcome.warnings,
        instructions=0,
        oops=None if outcome.end is None else _describe(guest, outcome.end, len(exits)),
        console=tuple(guest.calls.lines),
    )


def _leaf(flip: LeafChange) -> ChangedLeaf:
    return ChangedLeaf(int(flip.gva), flip.gfn << PAGE_SHIFT, flip.pages, flip.private)


def _describe(guest: LinuxGuest, end: object, exits: int) -> str:
    if isinstance(end, BudgetExhausted):
        return (
            f"did not return: {guest.budget} basic blocks used up in {guest.location(end.rip)} "
            f"after {plural(exits, 'exit')}; a larger --budget shows whether it is a loop"
        )
    if isinstance(end, GuestOops):
        where = guest.location(end.rip)
        address = f", address {end.cr2:#x}" if end.cr2 else ""
        return f"exception {end.vector} (error code {end.error_code:#x}) in {where}{address}"
    return str(end)


def _again(
    guest: LinuxGuest, calls: Sequence[Called], answer: int, depth: int
) -> Iterator[tuple[int, tuple[FunctionLine, ...]]]:
    """Instructions that each call executes, in a second run, and its tree of calls down to `depth`;
    the guest stays slow."""
    if not calls:
        return
    guest.reset()
    tracer: CallTracer | None = None
    if depth:
        tracer = CallTracer(guest)
        guest.machine.hooks.handler = TracedExits(answer, tracer)
    else:
        guest.count_instructions()
    earlier: list[Earlier] = []
    for call in calls:
        arguments = tuple(resolve(text, guest, earlier) for text in call.arguments)
        guest.instructions = 0
        if tracer is not None:
            tracer.begin()
        outcome = guest.call(call.function, *(argument.value for argument in arguments))
        earlier.append(Earlier(outcome.value or 0, arguments))
        if tracer is None:
            yield guest.instructions, ()
        else:
            tracer.end()
            yield tracer.instructions, tracer.lines(depth)
