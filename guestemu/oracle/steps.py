# SPDX-License-Identifier: GPL-2.0-or-later
"""Between what is asked of a KVM (`matrix.Act`) and the records of the channel, and back: what a
reply says in the terms of a recording."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from guestemu.abi.addresses import to_signed
from guestemu.abi.x86 import VECTOR_PF
from guestemu.conformance.recordings.recording import (
    Answer,
    Config,
    Cpuid,
    Event,
    Filter,
    Hex,
    HypercallEvent,
    ImmediateEvent,
    RdmsrEvent,
    RecordedOutcome,
    SetupResults,
    StepOp,
    WrmsrEvent,
)
from guestemu.oracle import wire
from guestemu.oracle.matrix import LONG, MODES, Act
from guestemu.oracle.wire import ConfigFlag, End, WireOp

_OPS: Final[Mapping[StepOp, int]] = {
    StepOp.VMMCALL: int(WireOp.VMMCALL),
    StepOp.VMCALL: int(WireOp.VMCALL),
    StepOp.RDMSR: int(WireOp.RDMSR),
    StepOp.WRMSR: int(WireOp.WRMSR),
    StepOp.HOST_GET_MSR: int(WireOp.GET_MSR),
    StepOp.HOST_SET_MSR: int(WireOp.SET_MSR),
    StepOp.ENABLE_EXITS: int(WireOp.EXIT_CAP),
    StepOp.ENABLE_MSR_EXITS: int(WireOp.MSR_CAP),
    StepOp.DISABLE_QUIRKS: int(WireOp.QUIRKS_CAP),
    StepOp.ENFORCE_PV: int(WireOp.ENFORCE),
    StepOp.SET_FILTER: int(WireOp.FILTER),
    StepOp.SET_SLOT: int(WireOp.SLOT),
    StepOp.SET_ATTRIBUTES: int(WireOp.ATTRIBUTES),
    StepOp.FALLOCATE: int(WireOp.FALLOCATE),
    StepOp.GUEST_READ: int(WireOp.READ),
    StepOp.GUEST_WRITE: int(WireOp.WRITE),
    StepOp.HOST_READ: int(WireOp.PEEK),
    StepOp.HOST_WRITE: int(WireOp.POKE),
    StepOp.CREATE_MEMFD: int(WireOp.MEMFD),
}
_MODE_NUMBERS: Final = {mode: number for number, mode in enumerate(MODES)}
_ANSWERS: Final = {answer: number for number, answer in enumerate(Answer)}
_CPUIDS: Final = {cpuid: number for number, cpuid in enumerate(Cpuid)}
_FILTERS: Final = {kind: number for number, kind in enumerate(Filter)}
_ENDS: Final = {
    End.DONE: "done",
    End.EXCEPTION: "exception",
    End.SHUTDOWN: "shutdown",
    End.TIMEOUT: "timeout",
    End.FAIL_ENTRY: "fail_entry",
    End.INTERNAL_ERROR: "internal_error",
    End.OTHER_EXIT: "other_exit",
    End.RUN_ERROR: "run_error",
}
_REGISTERS: Final = ("rbx", "rcx", "rdx", "rsi", "rdi", "r8/rbp")
_CHANGED: Final = tuple(
    "".join(f"{name} " for bit, name in enumerate(_REGISTERS) if bits >> bit & 1)
    for bits in range(64)
)
_NO_CODE: Final = bytes(4)
_ACCESSES: Final = (End.DONE, End.OTHER_EXIT, End.RUN_ERROR)
_DONE: Final = int(End.DONE)
_EXCEPTION: Final = int(End.EXCEPTION)
_IOCTL: Final = int(End.IOCTL)
_REPLY: Final = wire.REPLY
_EVENT: Final = wire.EVENT
_READ_OPS: Final = (*(StepOp.RDMSR, StepOp.HOST_GET_MSR, StepOp.HOST_READ, StepOp.CREATE_MEMFD),)
_EXIT_MMIO: Final = 6
_EXIT_MEMORY_FAULT: Final = 39


def pack_config(cfg: Config, vcpus: int = 1) -> bytes:
    """The record of a VM's configuration."""
    flags = ConfigFlag(0)
    if cfg.exit_hypercall is not None:
        flags |= ConfigFlag.EXIT
    for flag, is_set in (
        (ConfigFlag.EXIT_LATE, cfg.exit_cap_after_vcpu),
        (ConfigFlag.USER_MSR, cfg.user_space_msr is not None),
        (ConfigFlag.QUIRKS, cfg.disable_quirks2 is not None),
        (ConfigFlag.ENFORCE, cfg.enforce_pv),
        (ConfigFlag.IRQCHIP, cfg.irqchip),
        (ConfigFlag.READ_ONLY, cfg.ro_code),
        (ConfigFlag.IGNORE_MSRS, cfg.ignore_msrs),
        (ConfigFlag.PROTECTED, cfg.protected),
    ):
        if is_set:
            flags |= flag
    numbers = (
        int(flags),
        _CPUIDS[cfg.cpuid],
        _FILTERS[cfg.msr_filter],
        vcpus,
        0,
        cfg.kvm_features & 0xFFFFFFFF,
        (cfg.user_space_msr or 0) & 0xFFFFFFFF,
        cfg.exit_hypercall or 0,
        cfg.disable_quirks2 or 0,
    )
    return wire.CONFIG.pack(*numbers)


def pack_request(act: Act, slot: int, flags: int = 0) -> bytes:
    """The record of `act` on the VM of `slot`."""
    op, inputs = act.op, act.inputs
    words: tuple[int, ...]
    if op.is_hypercall:
        words = inputs.rax, inputs.rbx, inputs.rcx, inputs.rdx, inputs.rsi, inputs.ret
    elif op in (StepOp.SET_SLOT, StepOp.CREATE_MEMFD) or op.is_memory:
        words = inputs.rax, inputs.rbx, inputs.rcx, inputs.rdx, inputs.rsi, 0
    else:
        words = inputs.val, 0, inputs.msr, 0, 0, inputs.answer_data
    head = (
        _OPS[op],
        _MODE_NUMBERS[act.mode],
        act.cpl,
        act.vcpu,
        _ANSWERS[inputs.answer],
        flags,
        slot,
        inputs.answer_error,
        0,
    )
    return wire.REQUEST.pack(*head, *words)


def read_setup(reply: memoryview) -> SetupResults:
    """What the set-up ioctls of the step's VM returned."""
    return SetupResults(*_REPLY.unpack_from(reply)[16:22])


def read_reply(act: Act, reply: memoryview) -> tuple[tuple[Event, ...], RecordedOutcome]:
    """The exits and the outcome of `act`. What /init cannot have written reads as an outcome that
    no model has."""
    values = _REPLY.unpack_from(reply)
    end, count = values[0], values[1]
    events = tuple(_event(reply, number) for number in range(min(count, 2))) if count else ()
    if act.op in (StepOp.GUEST_READ, StepOp.GUEST_WRITE) and end in _ACCESSES:
        return events, _accessed(values)
    if end in (_DONE, _EXCEPTION):
        return events, _finished(act, values)
    return events, _other(act, values)


def newly_covered(reply: memoryview) -> int:
    """Places of the kernel's code that this step reached and none before it."""
    return int(_REPLY.unpack_from(reply)[wire.COVERED])


def _finished(act: Act, values: tuple[int, ...]) -> RecordedOutcome:
    end, _, vector, changed, _, _, _, rax, rdx, _, fault_rip, errcode, cr2 = values[:13]
    rdx_seen = rax_s = eax_s = None
    if not act.op.is_hypercall:
        rdx_seen = Hex(rdx)
    elif act.mode == LONG:
        rax_s = to_signed(rax)
    else:
        eax_s = to_signed(rax & 0xFFFFFFFF, 32)
    is_fault = end == _EXCEPTION
    return RecordedOutcome(
        outcome="exception" if is_fault else "done",
        rax=Hex(rax),
        rdx=rdx_seen,
        rax_s=rax_s,
        eax_s=eax_s,
        other_regs_changed=_CHANGED[changed & 63],
        vector=vector if is_fault else None,
        errcode=errcode if is_fault else None,
        fault_rip_off=fault_rip if is_fault else None,
        cr2=Hex(cr2) if is_fault and vector == VECTOR_PF else None,
        code_patched_to=_patched(values),
    )


def _accessed(values: tuple[int, ...]) -> RecordedOutcome:
    """How a read or a write of the guest ended."""
    end, reason, info, rax, data, hw, size = (values[place] for place in (0, 5, 6, 7, 13, 14, 12))
    if end == _DONE:
        return RecordedOutcome(outcome="done", data=Hex(rax & 0xFF))
    if end == End.OTHER_EXIT and reason == _EXIT_MMIO:
        return RecordedOutcome(outcome="mmio", data=Hex(data), info=info)
    if reason == _EXIT_MEMORY_FAULT:
        return RecordedOutcome(outcome="memory_fault", data=Hex(data), hw=Hex(hw), rax=Hex(size))
    return RecordedOutcome(outcome=_ENDS.get(End(end)), exit_reason=reason, info=info)


def _other(act: Act, values: tuple[int, ...]) -> RecordedOutcome:
    end, _, _, _, rc, reason, info, rax = values[:8]
    rip, data, hw = values[9], values[13], values[14]
    if end == _IOCTL:
        return RecordedOutcome(ioctl=rc, data=Hex(data) if act.op in _READ_OPS else None)
    if end == End.SREGS_REFUSED:
        return RecordedOutcome(outcome="set_sregs_failed", rc=rc)
    if end == End.NO_VM:
        return RecordedOutcome(outcome="no_vm", rc=rc)
    name = next((text for kind, text in _ENDS.items() if kind == end), f"unknown outcome {end}")
    return RecordedOutcome(
        outcome=name,
        exit_reason=reason,
        info=info,
        rip_off=rip,
        rax=Hex(rax),
        hw=Hex(hw),
        code_patched_to=_patched(values),
    )


def _patched(values: tuple[int | bytes, ...]) -> str | None:
    code = values[15]
    if not isinstance(code, bytes) or code == _NO_CODE:
        return None
    return code[:3].hex()


def _event(reply: memoryview, number: int) -> Event:
    values = _EVENT.unpack_from(reply, _REPLY.size + number * _EVENT.size)
    kind, reason, nr, *args = values[:9]
    ret, longmode, pad, rip, rax = values[9:]
    if kind == wire.EVENT_IMMEDIATE:
        return ImmediateEvent(to_signed(nr), reason, rip, Hex(rax))
    if kind == wire.EVENT_RDMSR:
        return RdmsrEvent(reason, longmode, Hex(nr), Hex(ret), rip)
    if kind == wire.EVENT_WRMSR:
        return WrmsrEvent(reason, longmode, Hex(nr), Hex(ret), rip)
    words = tuple(Hex(arg) for arg in args)
    return HypercallEvent(
        nr=Hex(nr),
        args=words,
        ret_at_exit=Hex(ret),
        longmode_u32=longmode,
        pad_u32=pad,
        rip_off=rip,
        rax_at_exit=Hex(rax),
    )
