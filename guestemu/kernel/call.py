# SPDX-License-Identifier: GPL-2.0-or-later
"""One call of a kernel function, with everything that it did."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_SHIFT, to_signed
from guestemu.abi.errors import InputError
from guestemu.abi.names import plural
from guestemu.events.exits import HypercallExit, WrmsrExit
from guestemu.events.memory import LeafChange
from guestemu.guest.base import GuestOops
from guestemu.guest.linux.guest import LinuxGuest
from guestemu.guest.linux.recorder import BootRecorder
from guestemu.kernel.arguments import Argument, resolve
from guestemu.kernel.calltree import CallTracer, TracedExits, TreeLine
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
    arguments: tuple[Argument, ...]
    returned: int | None
    hypercalls: tuple[CalledExit, ...]
    msrs: tuple[CalledMsr, ...]
    ptes: tuple[ChangedLeaf, ...]
    warnings: tuple[str, ...]
    instructions: int
    oops: str | None = None
    console: tuple[str, ...] = ()
    tree: tuple[TreeLine, ...] = ()


def call_function(
    guest: LinuxGuest, function: str, texts: Sequence[str], answer: int = 0, depth: int = 0
) -> CallReport:
    """Calls `function` of a freshly reset guest; the host answers hypercalls with `answer`. A
    `depth` above 0 asks for the tree of calls, down to so many levels.

    The call is made twice from the same state, the second time to count instructions: counting
    makes every instruction a hook. A call that uses up its budget is made once and reported as
    `oops`. Raises `InputError` for arguments that do not fit and a function that is not there.
    """
    prototype = guest.kernel.btf.prototype(function)
    guest.kernel.address(function)
    if len(texts) > MAX_ARGUMENTS:
        raise InputError(f"{function}: {len(texts)} arguments; six fit into registers")
    if prototype is not None and prototype.parameters:
        wanted = prototype.parameters
        if len(texts) != len(wanted):
            raise InputError(
                f"{function} takes {len(wanted)} arguments ({', '.join(wanted)}); "
                f"{len(texts)} are given"
            )
    recorder = BootRecorder(answer)
    guest.machine.hooks.handler = recorder
    guest.reset()
    arguments = tuple(resolve(text, guest) for text in texts)
    guest.leaf_map.update(guest.machine.ram.table_writes())
    recorder.exits.clear()
    outcome = guest.call(function, *(argument.value for argument in arguments))
    flips = guest.leaf_map.update(guest.machine.ram.table_writes())
    exits = tuple(recorder.exits)
    end = outcome.end
    returned = None
    if outcome.value is not None:
        if prototype is None or not prototype.parameters:
            returned = to_signed(outcome.value, 64)
        elif prototype.result_size:
            value = outcome.value & (1 << 8 * prototype.result_size) - 1
            returned = to_signed(value, 8 * prototype.result_size) if prototype.is_signed else value
    console = tuple(guest.calls.lines)
    instructions, tree = 0, tuple[TreeLine, ...]()
    if not isinstance(end, BudgetExhausted):
        instructions, tree = _again(guest, function, texts, answer, depth)
    return CallReport(
        function=function,
        arguments=arguments,
        returned=returned,
        hypercalls=tuple(
            CalledExit(one.nr, one.args, to_signed(answer, 64))
            for one in exits
            if isinstance(one, HypercallExit)
        ),
        msrs=tuple(CalledMsr(one.nr, one.args[0]) for one in exits if isinstance(one, WrmsrExit)),
        ptes=tuple(_leaf(flip) for flip in flips),
        warnings=outcome.warnings,
        instructions=instructions,
        oops=None if end is None else _describe(guest, end, len(exits)),
        console=console,
        tree=tree,
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
    guest: LinuxGuest, function: str, texts: Sequence[str], answer: int, depth: int
) -> tuple[int, tuple[TreeLine, ...]]:
    """Instructions that the call executes, in a second run, and the tree of calls down to `depth`;
    the guest stays slow."""
    guest.reset()
    values = [resolve(text, guest).value for text in texts]
    if not depth:
        guest.count_instructions()
        guest.instructions = 0
        guest.call(function, *values)
        return guest.instructions, ()
    tracer = CallTracer(guest)
    guest.machine.hooks.handler = TracedExits(answer, tracer)
    tracer.begin()
    guest.call(function, *values)
    tracer.end()
    return tracer.instructions, tracer.lines(depth)
