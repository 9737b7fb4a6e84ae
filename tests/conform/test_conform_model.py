# SPDX-License-Identifier: GPL-2.0-or-later
"""Every recorded step of two real kernels against the model, called without a machine."""

from pathlib import Path

import msgspec
import pytest

from guestemu.abi.x86 import VECTORS_WITH_ERROR_CODE
from guestemu.conformance.recordings.model import RecordedHost
from guestemu.conformance.recordings.reader import decode_hex, read_recording
from guestemu.conformance.recordings.recording import (
    Config,
    Cpuid,
    Filter,
    Hex,
    RecordedOutcome,
    RecordedStep,
    StepOp,
)
from guestemu.host.base import GuestFault
from guestemu.host.kvm.kernels import find_kernel
from guestemu.host.standin import StandInVcpu

DATA = Path(__file__).parent.parent / "data" / "kvm-oracle"
CODE = 0x8000
OPCODES = {
    StepOp.VMMCALL: b"\x0f\x01\xd9",
    StepOp.VMCALL: b"\x0f\x01\xc1",
    StepOp.RDMSR: b"\x0f\x32",
    StepOp.WRMSR: b"\x0f\x30",
}
U32 = 0xFFFFFFFF


def signed(value, bits):
    return value - (1 << bits) if value >> (bits - 1) & 1 else value


def make_vcpu(step):
    vcpu = StandInVcpu(
        cpl=step.cpl,
        is_64bit=step.mode == "long64",
        code=OPCODES[step.op],
        is_code_writable=not step.cfg.ro_code,
    )
    vcpu.registers["rip"] = CODE
    return vcpu


def hypercall_registers(step, rax):
    if step.mode == "long64":
        return {"rax": Hex(rax), "rax_s": signed(rax, 64)}
    return {"rax": Hex(rax), "eax_s": signed(rax & U32, 32)}


def patched(step, vcpu):
    changed = bytes(vcpu.code) != OPCODES[step.op]
    return {"code_patched_to": vcpu.code.hex()} if changed else {}


def fault(step, error, vcpu, registers):
    has_code = error.vector in VECTORS_WITH_ERROR_CODE and step.mode != "real16"
    cr2 = {"cr2": Hex(vcpu.cr2)} if vcpu.cr2 is not None else {}
    return RecordedOutcome(
        outcome="exception",
        other_regs_changed="",
        vector=error.vector,
        errcode=error.error_code if has_code else -1,
        fault_rip_off=0,
        **cr2,
        **registers,
    )


def execute(host, step):
    """What a CPU would make of the step: result into RAX, RIP over the instruction, go on."""
    if step.op.is_ioctl:
        return host.ioctl(step.op, step.inputs)
    refused = host.refused_mode(step.mode)
    if refused is not None:
        return refused
    vcpu = make_vcpu(step)
    values = step.inputs
    if step.op.is_hypercall:
        call = vcpu.hypercall(
            values.rax,
            values.rbx,
            values.rcx,
            values.rdx,
            values.rsi,
            vmcall=step.op is StepOp.VMCALL,
        )
        try:
            rax = host.hypercall(call)
        except GuestFault as error:
            return fault(step, error, vcpu, hypercall_registers(step, values.rax))
        if vcpu.registers["rip"] == CODE + 3:
            # one instruction too many is skipped: the guest lands behind its OUT, on a HLT
            return RecordedOutcome(
                outcome="other_exit", exit_reason=5, info=0, rip_off=6, rax=Hex(rax), hw=Hex(0)
            )
        return RecordedOutcome(
            outcome="done",
            other_regs_changed="",
            **hypercall_registers(step, rax),
            **patched(step, vcpu),
        )
    if step.op is StepOp.RDMSR:
        before = {"rax": Hex(0x5A5A5A5A5A5A5A5A), "rdx": Hex(0x7B7B7B7B7B7B7B7B)}
        try:
            value = host.rdmsr(values.msr, vcpu)
        except GuestFault as error:
            return fault(step, error, vcpu, before)
        registers = {"rax": Hex(value & U32), "rdx": Hex(value >> 32)}
        return RecordedOutcome(outcome="done", other_regs_changed="", **registers)
    registers = {"rax": Hex(values.val & U32), "rdx": Hex(values.val >> 32)}
    try:
        host.wrmsr(values.msr, values.val, vcpu)
    except GuestFault as error:
        return fault(step, error, vcpu, registers)
    return RecordedOutcome(outcome="done", other_regs_changed="", **registers)


@pytest.mark.parametrize("series", ["6.1", "6.12"])
def test_every_recorded_step_agrees(series):
    recording = read_recording(DATA / f"linux-{series}.jsonl")
    assert recording.meta.kernel.startswith(f"{series}.")
    kernel = find_kernel(series)
    host, case, wrong = None, None, []
    for step, line in zip(recording.steps, recording.lines, strict=True):
        if step.id != case:
            host, case = RecordedHost(step.cfg, kernel), step.id
        host.begin(step.inputs, CODE)
        out = execute(host, step)
        if (host.rc, host.events, out) != (step.rc, step.events, step.expected):
            wrong.append((line, step.op, step.inputs, host.rc, host.events, out))
    assert len(recording.steps) == 1549
    assert not wrong, wrong[0]


def case(kernel, *, cpuid=Cpuid.LEAF, features=0, enforce=0, user_space_msr=None):
    cfg = Config(
        exit_hypercall=Hex(0x1000),
        cpuid=cpuid,
        kvm_features=Hex(features),
        enforce_pv=enforce,
        irqchip=0,
        user_space_msr=user_space_msr,
        msr_filter=Filter.NONE,
    )
    return RecordedHost(cfg, find_kernel(kernel))


def run_step(host, op, **inputs):
    values = {"op": op, "in": inputs, "mode": "long64", "id": 0, "step": 0, "grp": "", "out": {}}
    cfg = {
        "exit_hypercall": None,
        "cpuid": "kvm_leaf",
        "kvm_features": "0x0",
        "enforce_pv": 0,
        "irqchip": 0,
        "user_space_msr": None,
        "msr_filter": "none",
    }
    values |= {"cfg": cfg, "rc": {}, "events": []}
    step = msgspec.convert(values, RecordedStep, dec_hook=decode_hex)
    host.begin(step.inputs, CODE)
    return execute(host, step)


def test_7_2_refuses_long_mode_before_cpuid_was_set():
    refused = RecordedOutcome(outcome="set_sregs_failed", rc=-22)
    assert run_step(case("7.2", cpuid=Cpuid.NONE), "vmmcall", rax="0xc") == refused
    assert run_step(case("6.18", cpuid=Cpuid.NONE), "vmmcall", rax="0xc") != refused


@pytest.mark.parametrize(
    ("kernel", "reason", "get"),
    [("6.1", 2, 0), ("6.12", 2, 1), ("6.18", 1, 0), ("7.2", 2, 1)],
)
def test_msr_with_its_feature_enforced_away(kernel, reason, get):
    host = case(kernel, enforce=1, user_space_msr=7)
    run_step(host, "rdmsr", msr="0x4b564d00", answer_data="0x5")
    assert [event.reason for event in host.events] == [reason]
    assert run_step(host, "host_get_msr", msr="0x4b564d00").ioctl == get


@pytest.mark.parametrize(("kernel", "ret"), [("6.12", 0xA5A5A5A5A5A5A5A5), ("6.18", 0)])
def test_ret_that_user_space_leaves_alone_is_stale_or_zero(kernel, ret):
    host = case(kernel)
    answer = "leave_ret_untouched"
    out = run_step(host, "vmmcall", rax="0xc", rbx="0x1000", rcx="0x1", answer=answer)
    assert out.rax == ret
