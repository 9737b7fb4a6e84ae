# SPDX-License-Identifier: GPL-2.0-or-later
"""How a step ended, in the recorder's terms: read from registers and guest memory alone.

The recorder sees a vector by the port that the handler wrote to, the error code and the faulting
RIP in the frame on the guest's stack, and compares every register that the instruction must leave.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from guestemu.abi.addresses import Gva, to_signed
from guestemu.abi.x86 import VECTOR_PF, VECTORS_WITH_ERROR_CODE, Mode
from guestemu.conformance.recordings.recording import (
    Event,
    Hex,
    HypercallEvent,
    RdmsrEvent,
    RecordedOutcome,
    RecordedStep,
    StepOp,
    WrmsrEvent,
)
from guestemu.conformance.recordings.testvm import (
    CODE,
    OPCODES,
    PORT_DONE,
    PORT_EXCEPTION,
    TestVm,
    initial_registers,
)
from guestemu.host.kvm.uapi import KVM_EXIT_HYPERCALL, KVM_EXIT_X86_RDMSR, KVM_EXIT_X86_WRMSR
from guestemu.machine import layout
from guestemu.machine.exits import BudgetExhausted, Exit, Halt, PortOut, Shutdown, Unbacked

_EXIT_IO: Final = 2
_EXIT_HLT: Final = 5
_EXIT_MMIO: Final = 6
_EXIT_SHUTDOWN: Final = 8
_NO_EXIT: Final = -1
_NO_ERROR_CODE: Final = -1


def read_outcome(
    vm: TestVm, step: RecordedStep, mode: Mode, end: Exit, events: tuple[Event, ...]
) -> RecordedOutcome:
    """The `out` of a step whose instruction ran in `vm` until `end`."""
    port = end.port if isinstance(end, PortOut) else None
    code = vm.code(step.op)
    patched = None if code == OPCODES[step.op] else code.hex()
    if port == PORT_DONE:
        out = _with_registers(vm, step, mode, RecordedOutcome(outcome="done"))
    elif port is not None and 0 <= port - PORT_EXCEPTION < layout.VECTORS:
        out = _with_registers(vm, step, mode, RecordedOutcome(outcome="exception"))
        out = _with_frame(vm, step, mode, port - PORT_EXCEPTION, out)
    else:
        out = _other_end(vm, step, end, events)
    return msgspec.structs.replace(out, code_patched_to=patched)


def _with_registers(
    vm: TestVm, step: RecordedStep, mode: Mode, out: RecordedOutcome
) -> RecordedOutcome:
    before = initial_registers(step.op, step.inputs, step.cpl)
    after = vm.registers()
    changed = [
        name
        for name in ("rbx", "rcx", "rdx", "rsi", "rdi")
        if getattr(before, name) != getattr(after, name)
        and not (name == "rdx" and step.op is StepOp.RDMSR)
    ]
    if (before.r8, before.rbp) != (after.r8, after.rbp):
        changed.append("r8/rbp")
    out = msgspec.structs.replace(
        out, rax=Hex(after.rax), other_regs_changed="".join(f"{name} " for name in changed)
    )
    if not step.op.is_hypercall:
        return msgspec.structs.replace(out, rdx=Hex(after.rdx))
    if mode is Mode.LONG64:
        return msgspec.structs.replace(out, rax_s=to_signed(after.rax))
    return msgspec.structs.replace(out, eax_s=to_signed(after.rax, 32))


def _with_frame(
    vm: TestVm, step: RecordedStep, mode: Mode, vector: int, out: RecordedOutcome
) -> RecordedOutcome:
    """Adds what the handler finds on its stack (APM volume 2, 8.9)."""
    has_code = vector in VECTORS_WITH_ERROR_CODE and mode is not Mode.REAL16
    word = {Mode.REAL16: "H", Mode.PROT32: "I"}.get(mode, "Q")
    layout_of_frame = struct.Struct(f"<{1 + has_code}{word}")
    stack = vm.registers().rsp & (0xFFFF if mode is Mode.REAL16 else 0xFFFF_FFFF_FFFF_FFFF)
    frame = vm.vcpu.read_memory(Gva(stack), layout_of_frame.size)
    words = layout_of_frame.unpack(frame or bytes(layout_of_frame.size))
    cr2 = Hex(vm.vcpu.read_register("cr2")) if vector == VECTOR_PF else None
    return msgspec.structs.replace(
        out,
        vector=vector,
        errcode=words[0] if has_code else _NO_ERROR_CODE,
        fault_rip_off=words[-1] - CODE[step.op],
        cr2=cr2,
    )


def _other_end(
    vm: TestVm, step: RecordedStep, end: Exit, events: tuple[Event, ...]
) -> RecordedOutcome:
    """Anything but one of the guest's OUT instructions: an exit that the recorder does not expect.

    HLT exits to user space only without an in-kernel interrupt controller; with one the vCPU sleeps
    until the recorder's alarm.
    """
    rip = vm.vcpu.read_register("rip")
    if isinstance(end, Halt) and not step.cfg.irqchip:
        name, reason = "other_exit", _EXIT_HLT
    elif isinstance(end, Halt | BudgetExhausted):
        name, reason = "timeout", _last_reason(events)
    elif isinstance(end, Shutdown):
        name, reason = "shutdown", _EXIT_SHUTDOWN
    elif isinstance(end, Unbacked):
        name, reason = "other_exit", _EXIT_MMIO
    elif isinstance(end, PortOut):
        name, reason = "other_exit", _EXIT_IO
    else:
        name, reason = f"unexpected {type(end).__name__}", _NO_EXIT
    return RecordedOutcome(
        outcome=name,
        exit_reason=reason,
        info=0,
        rip_off=to_signed(rip - CODE[step.op]),
        rax=Hex(vm.registers().rax),
        hw=Hex(0),
    )


def _last_reason(events: tuple[Event, ...]) -> int:
    """run->exit_reason of the last completed KVM_RUN, -1 if there was none."""
    for event in reversed(events):
        match event:
            case HypercallEvent():
                return KVM_EXIT_HYPERCALL
            case RdmsrEvent():
                return KVM_EXIT_X86_RDMSR
            case WrmsrEvent():
                return KVM_EXIT_X86_WRMSR
            case _:
                pass
    return _NO_EXIT
