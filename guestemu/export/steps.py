# SPDX-License-Identifier: GPL-2.0-or-later
"""What a program lets a KVM see: its hypercalls and MSR accesses, in order, with their answers.

A page conversion is the guest kernel's work; KVM sees the hypercalls that come of it. So a program
is run once, and each exit becomes a step that a guest of a few instructions can make.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT, U64_MASK
from guestemu.abi.errors import InputError
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE
from guestemu.events.exits import AnsweredExit, MapGpaRangeExit
from guestemu.program.op_text import format_op
from guestemu.program.ops import Op
from guestemu.program.program import Program
from guestemu.report.trace.run import run_program

MAX_STEPS: Final = 4096
_VMMCALL: Final = "VMMCALL"
_RDMSR: Final = "RDMSR"
_WRMSR: Final = "WRMSR"


class KvmStep(msgspec.Struct, frozen=True, kw_only=True):
    """One instruction of the guest. `what` is VMMCALL, RDMSR or WRMSR; `nr` the number of hypercall
    or MSR; `args` a0 to a3 of a hypercall, (value,) of a WRMSR.

    `ret` is RAX or the MSR's value, `faults` whether the guest gets #GP in its place, `exits`
    whether KVM hands it to user space, which answers `ret`. `text` is the operation that it is of.
    """

    what: str
    nr: int
    args: tuple[int, ...]
    ret: int
    faults: bool
    exits: bool
    text: str


def steps_of(program: Program) -> tuple[KvmStep, ...]:
    """Runs `program` and returns its steps.

    Raises `InputError` for one that has none, or more than `MAX_STEPS`, or that needs another guest
    than 64-bit code at CPL 0 without memory encryption.
    """
    run = run_program(program)
    steps = [_step(told, result.op) for result in run.outcome.results for told in result.exits]
    if not steps:
        raise InputError("the program makes no hypercall and no MSR access: KVM would see nothing")
    if len(steps) > MAX_STEPS:
        raise InputError(f"the program makes {len(steps)} exits; {MAX_STEPS} can be exported")
    return tuple(steps)


def _step(told: AnsweredExit, op: Op) -> KvmStep:
    text = format_op(op)
    if isinstance(told, MapGpaRangeExit):
        raise InputError(f"{text}: a page-state change; SNP and TDX guests cannot be exported")
    if told.is_hypercall and (told.cpl or not told.is_64bit):
        raise InputError(f"{text}: not 64-bit code at CPL 0; the exported guest runs nothing else")
    what = _VMMCALL if told.is_hypercall else _RDMSR if told.is_rdmsr else _WRMSR
    return KvmStep(
        what=what,
        nr=told.nr & U64_MASK,
        args=told.args,
        ret=0 if told.ret is None else told.ret,
        faults=told.ret is None,
        exits=not told.is_hypercall or _reaches_user_space(told),
        text=text,
    )


def _reaches_user_space(told: AnsweredExit) -> bool:
    """What KVM lets through (fact K3-c): a page-aligned, non-empty range that does not wrap."""
    gpa, pages = told.args[:2]
    if told.nr != KVM_HC_MAP_GPA_RANGE or gpa & PAGE_MASK or not pages:
        return False
    return (gpa >> PAGE_SHIFT) + pages <= U64_MASK
