# SPDX-License-Identifier: GPL-2.0-or-later
"""The model of a VM without a CPU: what one instruction under test does, worked out from the host
model's answer. A tenth of the time of `conform.run.Conformance`, for campaigns.

A RIP that user space moved three bytes on lands behind the guest's OUT, on HLT.
"""

from __future__ import annotations

from typing import Final

from guestemu.abi.addresses import U32_MASK, U64_MASK, to_signed
from guestemu.abi.x86 import VECTOR_PF, VECTORS_WITH_ERROR_CODE
from guestemu.conformance.recordings.model import RecordedHost
from guestemu.conformance.recordings.recording import Config, Event, Hex, RecordedOutcome, StepOp
from guestemu.host.base import GuestFault, Hypercall
from guestemu.host.kvm.kernels import KvmKernel
from guestemu.machine import layout
from guestemu.machine.vcpu import PAGE_FAULT_WRITE
from guestemu.oracle.matrix import COMPAT, LONG, REAL, Act

_CODE: Final = layout.STUB
_RAX_OF_RDMSR: Final = 0x5A5A5A5A5A5A5A5A
_RDX_OF_RDMSR: Final = 0x7B7B7B7B7B7B7B7B
_PAGED: Final = (LONG, COMPAT)
_NO_ERROR_CODE: Final = -1
_EXIT_HLT: Final = 5


class _Vcpu:
    """What KVM sees of the vCPU: `VcpuAccess` without a processor behind it."""

    __slots__ = ("cpl", "index", "is_64bit", "is_read_only", "patched", "rax", "rip")

    def __init__(self) -> None:
        self.index = 0
        self.cpl = 0
        self.is_64bit = True
        self.is_read_only = False
        self.patched: bytes | None = None
        self.rax = 0
        self.rip = _CODE

    def read_register(self, name: str) -> int:
        return self.rip if name == "rip" else self.rax

    def write_register(self, name: str, value: int) -> None:
        if name == "rip":
            self.rip = value
        else:
            self.rax = value

    def read_code(self, size: int) -> bytes:
        return bytes(size)

    def patch_code(self, code: bytes) -> None:
        if self.is_read_only:
            raise GuestFault(VECTOR_PF, PAGE_FAULT_WRITE)
        self.patched = code

    def leave_long_mode(self) -> None:
        self.is_64bit = False


class DirectVm:
    """A VM of `vcpus` vCPUs, configured as `cfg` says, under the model of `kernel`.

    The clock of the machine under test is its TSC, so that clocks can be paired.
    """

    def __init__(self, cfg: Config, kernel: KvmKernel, vcpus: int = 1) -> None:
        self.cfg = cfg
        self._hosts = [RecordedHost(cfg, kernel) for _ in range(vcpus)]
        self._vcpu = _Vcpu()
        for host in self._hosts:
            host.settings.pairs_clock = True
        self.rc = self._hosts[0].rc
        self._end: int | tuple[str | None, int | None] | None = None

    def do(self, act: Act) -> tuple[tuple[Event, ...], RecordedOutcome]:
        """The exits and the outcome of `act`."""
        events, out = self._do(act)
        if act.op.is_msr and len(self._hosts) > 1:
            clock = self._hosts[act.vcpu].kvm.msrs.pv.wall_clock
            for host in self._hosts:
                host.kvm.msrs.pv.wall_clock = clock
        self._end = (out.outcome, out.vector) if out.ioctl is None else out.ioctl
        return events, out

    def _do(self, act: Act) -> tuple[tuple[Event, ...], RecordedOutcome]:
        if act.op.is_ioctl:
            return (), self._ioctl(act)
        host = self._hosts[act.vcpu]
        refused = host.refused_mode(act.mode)
        if refused is not None:
            return (), refused
        vcpu = self._vcpu
        vcpu.cpl = act.cpl
        vcpu.is_64bit = act.mode == LONG
        vcpu.is_read_only = bool(self.cfg.ro_code) and act.mode in _PAGED
        vcpu.patched = None
        vcpu.rip = _CODE
        host.begin(act.inputs, _CODE, vcpu.leave_long_mode)
        try:
            out = self._hypercall(host, act) if act.op.is_hypercall else self._msr(host, act)
        except GuestFault as fault:
            out = self._fault(act, fault)
        return host.events, out

    def feature(self, act: Act) -> int:
        """A number for what the last `do(act)` met: coverage of the model."""
        host = self._hosts[act.vcpu]
        where = hash((act.op.value, act.mode, act.cpl > 0, act.inputs.answer.value))
        index = act.inputs.msr if act.op.is_msr else 0
        return hash((where, int(host.kvm.path), host.kvm.run.exit_reason, index, self._end))

    def _ioctl(self, act: Act) -> RecordedOutcome:
        op = act.op
        if op.is_msr or op is StepOp.ENFORCE_PV:
            return self._hosts[act.vcpu].ioctl(op, act.inputs)
        outcomes = [host.ioctl(op, act.inputs) for host in self._hosts]
        return outcomes[0]

    def _hypercall(self, host: RecordedHost, act: Act) -> RecordedOutcome:
        inputs, vcpu = act.inputs, self._vcpu
        vcpu.rax = inputs.rax
        result = host.hypercall(
            Hypercall(
                nr=inputs.rax,
                a0=inputs.rbx,
                a1=inputs.rcx,
                a2=inputs.rdx,
                a3=inputs.rsi,
                cpl=act.cpl,
                is_64bit=vcpu.is_64bit,
                vcpu=vcpu,
                is_vmcall=act.op is StepOp.VMCALL,
            )
        )
        if vcpu.rip != _CODE:
            reason, name = (-1, "timeout") if self.cfg.irqchip else (_EXIT_HLT, "other_exit")
            rip = to_signed(vcpu.rip - _CODE) + 3
            return RecordedOutcome(
                outcome=name, exit_reason=reason, info=0, rip_off=rip, rax=Hex(result), hw=Hex(0)
            )
        return self._done(act, result)

    def _done(self, act: Act, rax: int, rdx: int | None = None) -> RecordedOutcome:
        is_call, is_long = act.op.is_hypercall, act.mode == LONG
        return RecordedOutcome(
            outcome="done",
            rax=Hex(rax),
            rdx=None if rdx is None else Hex(rdx),
            rax_s=to_signed(rax) if is_call and is_long else None,
            eax_s=to_signed(rax & U32_MASK, 32) if is_call and not is_long else None,
            other_regs_changed="",
            code_patched_to=self._patched,
        )

    @property
    def _patched(self) -> str | None:
        code = self._vcpu.patched
        return None if code is None else code.hex()

    def _msr(self, host: RecordedHost, act: Act) -> RecordedOutcome:
        inputs, vcpu = act.inputs, self._vcpu
        if act.op is StepOp.WRMSR:
            host.wrmsr(inputs.msr, inputs.val, vcpu)
            return self._done(act, inputs.val & U32_MASK, inputs.val >> 32)
        value = host.rdmsr(inputs.msr, vcpu)
        return self._done(act, value & U32_MASK, value >> 32)

    def _fault(self, act: Act, fault: GuestFault) -> RecordedOutcome:
        inputs = act.inputs
        has_code = fault.vector in VECTORS_WITH_ERROR_CODE and act.mode != REAL
        rdx = None
        if act.op is StepOp.RDMSR:
            rax, rdx = _RAX_OF_RDMSR, _RDX_OF_RDMSR
        elif act.op is StepOp.WRMSR:
            rax, rdx = inputs.val & U32_MASK, inputs.val >> 32
        else:
            rax = inputs.rax & U64_MASK
        return _with_fault(self._done(act, rax, rdx), fault, has_code)


def _with_fault(done: RecordedOutcome, fault: GuestFault, has_code: bool) -> RecordedOutcome:
    return RecordedOutcome(
        outcome="exception",
        rax=done.rax,
        rdx=done.rdx,
        rax_s=done.rax_s,
        eax_s=done.eax_s,
        other_regs_changed="",
        vector=fault.vector,
        errcode=fault.error_code if has_code else _NO_ERROR_CODE,
        fault_rip_off=0,
        cr2=Hex(_CODE) if fault.vector == VECTOR_PF else None,
        code_patched_to=done.code_patched_to,
    )
