# SPDX-License-Identifier: GPL-2.0-or-later
"""A recorded case as a model: KVM configured as the case's `cfg` says, and a user space that
answers as the recorder did and notes what it saw in the recorder's own terms.

The caller executes a step's instruction (with a CPU, or directly) and compares `events` and the
outcome with the recording.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, U32_MASK, U64_MASK, to_signed
from guestemu.abi.errno import EINTR, EINVAL
from guestemu.conformance.recordings.recording import (
    Answer,
    Config,
    Cpuid,
    Event,
    Filter,
    Hex,
    HypercallEvent,
    ImmediateEvent,
    Inputs,
    RdmsrEvent,
    RecordedOutcome,
    SetupResults,
    StepOp,
    WrmsrEvent,
)
from guestemu.host.base import Host, Hypercall, VcpuAccess
from guestemu.host.kvm.guest_memory import (
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    KVM_MEMORY_EXIT_FLAG_PRIVATE,
    MemoryFaultExit,
)
from guestemu.host.kvm.kernels import KvmKernel
from guestemu.host.kvm.memory_slots import MemorySlot, MemorySlots
from guestemu.host.kvm.merged import MergedKvm
from guestemu.host.kvm.msr_filter import MsrFilter, MsrFilterRange
from guestemu.host.kvm.protected_memory import MmioExit, ProtectedMemory, create_memfd
from guestemu.host.kvm.run import KvmRun
from guestemu.host.kvm.settings import VmSettings
from guestemu.host.kvm.uapi import KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE
from guestemu.host.userspace.base import UserSpace

MEMORY: Final = 0x200000
"""RAM of the recorder's VMs in bytes."""

FILL: Final = 0xA5
"""What the recorder fills run->hypercall with before each step."""

_TO_PRIVATE: Final = 1 << 4
_RANGE_BASE: Final = 0x4B564D00
_RANGE_COUNT: Final = 16
_ALL_ALLOWED: Final = (1 << 512) - 1
_READ_WRITE: Final = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE

_FILTERS: Final = {
    Filter.DENY_RW: MsrFilter(True, (MsrFilterRange(_RANGE_BASE, _RANGE_COUNT, _READ_WRITE, 0),)),
    Filter.DENY_R: MsrFilter(
        True, (MsrFilterRange(_RANGE_BASE, _RANGE_COUNT, KVM_MSR_FILTER_READ, 0),)
    ),
    Filter.DENY_W: MsrFilter(
        True, (MsrFilterRange(_RANGE_BASE, _RANGE_COUNT, KVM_MSR_FILTER_WRITE, 0),)
    ),
    Filter.RANGE_ALLOWED: MsrFilter(
        False, (MsrFilterRange(_RANGE_BASE, _RANGE_COUNT, _READ_WRITE, _ALL_ALLOWED),)
    ),
    Filter.OTHER_RANGE: MsrFilter(False, (MsrFilterRange(0x10, 8, _READ_WRITE, _ALL_ALLOWED),)),
}


_NO_FILTER: Final = MsrFilter(True, ())
FILTERS: Final = tuple(Filter)
"""By the number that is the `val` of a SET_FILTER step."""


def _no_segments() -> None:
    """A vCPU without segment registers: there is no CS.L to clear."""


class ScriptedUserSpace(UserSpace):
    """Answers exits with a step's `answer` values and appends each exit to `events`.

    `code` is the address of the instruction under test; RIP is noted relative to it. `clear_cs_l`
    does KVM_SET_SREGS with CS.L clear on the vCPU: `VcpuAccess` has no segment registers.
    """

    touches_vcpu: ClassVar[bool] = True

    __slots__ = ("clear_cs_l", "code", "events", "inputs", "memory")

    def __init__(self) -> None:
        self.inputs = Inputs()
        self.events: list[Event] = []
        self.code = 0
        self.clear_cs_l: Callable[[], None] = _no_segments
        self.memory: ProtectedMemory | None = None

    def _rip_offset(self, rip: int) -> int:
        return to_signed(rip - self.code)

    def hypercall_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """Notes the exit, then does what `answer` says; all but UNTOUCHED write `ret`."""
        request = run.hypercall
        self.events.append(
            HypercallEvent(
                nr=Hex(request.nr),
                args=tuple(Hex(arg) for arg in request.args),
                ret_at_exit=Hex(request.ret),
                longmode_u32=request.longmode,
                pad_u32=request.pad,
                rip_off=self._rip_offset(vcpu.read_register("rip")),
                rax_at_exit=Hex(vcpu.read_register("rax")),
            )
        )
        answer = self.inputs.answer
        if answer is Answer.UNTOUCHED:
            return
        request.ret = self.inputs.ret
        if answer in (Answer.SET_RAX, Answer.SKIP_RIP):
            vcpu.write_register("rax", 0x7777)
        if answer is Answer.SKIP_RIP:
            vcpu.write_register("rip", vcpu.read_register("rip") + 3)
        elif answer is Answer.CHANGE_ARGS:
            request.nr, request.args[0], request.longmode = 99, 1, 0
        elif answer is Answer.IMMEDIATE:
            run.immediate_exit = True
        elif answer is Answer.CLEAR_CS_L:
            self.clear_cs_l()
        elif answer is Answer.CONVERT and self.memory is not None:
            gpa, pages, attributes = request.args[:3]
            kind = KVM_MEMORY_ATTRIBUTE_PRIVATE if attributes & _TO_PRIVATE else 0
            size = pages << PAGE_SHIFT & U64_MASK
            request.ret = self.memory.set_attributes(gpa, size, kind, 0) & U64_MASK

    def interrupted(self, run: KvmRun, vcpu: VcpuAccess, rip: int, rax: int) -> None:
        """Notes what KVM_RUN returned and the registers then."""
        run.immediate_exit = False
        self.events.append(ImmediateEvent(-1, EINTR, self._rip_offset(rip), Hex(rax)))

    def rdmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """Notes the exit; answers with `answer_error` and `answer_data`."""
        access = run.msr
        rip_offset = self._rip_offset(vcpu.read_register("rip"))
        self.events.append(
            RdmsrEvent(access.reason, access.error, Hex(access.index), Hex(access.data), rip_offset)
        )
        access.error = self.inputs.answer_error
        access.data = self.inputs.answer_data

    def wrmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """Notes the exit; answers with `answer_error`."""
        access = run.msr
        rip_offset = self._rip_offset(vcpu.read_register("rip"))
        self.events.append(
            WrmsrEvent(access.reason, access.error, Hex(access.index), Hex(access.data), rip_offset)
        )
        access.error = self.inputs.answer_error


def configure(cfg: Config, kernel: KvmKernel) -> tuple[VmSettings, SetupResults]:
    """The settings of a case's VM under `kernel`, and what each set-up ioctl returned.

    KVM_CAP_EXIT_HYPERCALL before or after vCPU creation makes no difference to KVM.
    """
    settings = VmSettings(
        kernel,
        memory=MEMORY,
        in_kernel_irqchip=bool(cfg.irqchip),
        ignore_msrs=bool(cfg.ignore_msrs),
    )
    rc_exit = rc_umsr = rc_quirk = rc_filter = rc_enforce = 0
    if cfg.exit_hypercall is not None:
        rc_exit = settings.enable_exit_hypercall(cfg.exit_hypercall)
    if cfg.user_space_msr is not None:
        rc_umsr = settings.enable_user_space_msr(cfg.user_space_msr)
    if cfg.disable_quirks2 is not None:
        rc_quirk = settings.disable_quirks(cfg.disable_quirks2)
    if cfg.msr_filter is not Filter.NONE:
        rc_filter = settings.set_msr_filter(_FILTERS[cfg.msr_filter])
    if cfg.enforce_pv:
        rc_enforce = settings.enforce_pv_features(True)
    if cfg.cpuid is Cpuid.NONE:
        rc_cpuid = 1
    else:
        has_leaf = cfg.cpuid is not Cpuid.NO_LEAF
        rc_cpuid = settings.set_cpuid(cfg.kvm_features if has_leaf else None)
    return settings, SetupResults(rc_exit, rc_cpuid, rc_enforce, rc_umsr, rc_filter, rc_quirk)


def _memory_step(memory: ProtectedMemory, op: StepOp, inputs: Inputs) -> RecordedOutcome:
    match op:
        case StepOp.SET_ATTRIBUTES:
            words = inputs.rax, inputs.rbx, inputs.rcx, inputs.rdx
            return RecordedOutcome(ioctl=memory.set_attributes(*words))
        case StepOp.FALLOCATE:
            result = memory.fallocate(inputs.rcx & U32_MASK, inputs.rax, inputs.rbx)
            return RecordedOutcome(ioctl=result)
        case StepOp.HOST_READ:
            return RecordedOutcome(ioctl=0, data=Hex(memory.peek(inputs.rax)))
        case StepOp.HOST_WRITE:
            memory.poke(inputs.rax, inputs.rbx & 0xFF)
            return RecordedOutcome(ioctl=0)
    found = memory.access(inputs.rbx, inputs.rax if op is StepOp.GUEST_WRITE else None)
    if isinstance(found, MemoryFaultExit):
        flags = KVM_MEMORY_EXIT_FLAG_PRIVATE if found.is_private else 0
        return RecordedOutcome(
            outcome="memory_fault", data=Hex(found.gpa), hw=Hex(flags), rax=Hex(found.size)
        )
    if isinstance(found, MmioExit):
        return RecordedOutcome(outcome="mmio", data=Hex(found.gpa), info=int(found.is_write))
    return RecordedOutcome(outcome="done", data=Hex(found))


class RecordedHost(Host):
    """The model of one recorded case, as a host that a machine can run the steps against.

    `rc` is to be compared with the case's `rc`; `events` grows during a step.
    """

    name: ClassVar[str] = "recorded"
    summary: ClassVar[str] = "KVM as one case of a recording configured it"

    def __init__(self, cfg: Config, kernel: KvmKernel) -> None:
        self._cfg = cfg
        self._kernel = kernel
        self.reset(0)

    def reset(self, frames: int) -> None:
        """A new VM of the case; `frames` does not matter."""
        self.settings, self.rc = configure(self._cfg, self._kernel)
        self._script = ScriptedUserSpace()
        self._script.memory = ProtectedMemory() if self._cfg.protected else None
        self.kvm = MergedKvm(self.settings, self._script)

    def begin(
        self, inputs: Inputs, code: int, clear_cs_l: Callable[[], None] | None = None
    ) -> None:
        """Prepares for a step with `inputs`, whose instruction is at address `code`.

        `clear_cs_l` makes the vCPU's code 32-bit, for the answer that asks for it.
        """
        self._script.clear_cs_l = clear_cs_l or _no_segments
        self._script.inputs = inputs
        self._script.events = []
        self._script.code = code
        self.kvm.run.hypercall.fill(FILL)

    @property
    def events(self) -> tuple[Event, ...]:
        """The exits of the step begun last."""
        return tuple(self._script.events)

    def refused_mode(self, mode: str) -> RecordedOutcome | None:
        """The outcome where KVM_SET_SREGS refuses the step's mode, else None.

        7.2 refuses long mode before KVM_SET_CPUID2 (recorded).
        """
        is_long = mode in ("long64", "compat32")
        if is_long and self._cfg.cpuid is Cpuid.NONE and self._kernel.sregs_need_cpuid:
            return RecordedOutcome(outcome="set_sregs_failed", rc=-EINVAL)
        return None

    def ioctl(self, op: StepOp, inputs: Inputs) -> RecordedOutcome:
        """Does a step that is an ioctl. Raises `ValueError` for what is none."""
        if op is StepOp.HOST_GET_MSR:
            processed, data = self.kvm.msrs.host_get(inputs.msr)
            return RecordedOutcome(ioctl=processed, data=Hex(data))
        if op is StepOp.HOST_SET_MSR:
            return RecordedOutcome(ioctl=self.kvm.msrs.host_set(inputs.msr, inputs.val))
        if op.is_memory or op in (StepOp.SET_SLOT, StepOp.CREATE_MEMFD):
            return self._memory_ioctl(op, inputs)
        settings, value = self.settings, inputs.val
        if op is StepOp.SET_FILTER:
            kind = FILTERS[value % len(FILTERS)]
            return RecordedOutcome(ioctl=settings.set_msr_filter(_FILTERS.get(kind, _NO_FILTER)))
        match op:
            case StepOp.ENABLE_EXITS:
                result = settings.enable_exit_hypercall(value)
            case StepOp.ENABLE_MSR_EXITS:
                result = settings.enable_user_space_msr(value)
            case StepOp.DISABLE_QUIRKS:
                result = settings.disable_quirks(value)
            case StepOp.ENFORCE_PV:
                result = settings.enforce_pv_features(bool(value))
            case _:
                raise ValueError(f"{op.value} is not an ioctl")
        return RecordedOutcome(ioctl=result)

    def _memory_ioctl(self, op: StepOp, inputs: Inputs) -> RecordedOutcome:
        """Does a step about slots, attributes and the guest_memfd."""
        memory = self._script.memory
        if op is StepOp.SET_SLOT:
            return RecordedOutcome(ioctl=self._set_slot(inputs))
        if op is StepOp.CREATE_MEMFD:
            made, *errors = create_memfd(
                inputs.rax, inputs.rbx, has_private_memory=memory is not None
            )
            data = sum(error << 8 * place for place, error in enumerate(errors))
            return RecordedOutcome(ioctl=made, data=Hex(data))
        if memory is None:
            raise ValueError(f"{op.value} is of software-protected VMs")
        return _memory_step(memory, op, inputs)

    def _set_slot(self, inputs: Inputs) -> int:
        flags, offset = inputs.rdx & U32_MASK, inputs.rsi
        if self._script.memory is not None:
            slot = MemorySlot(inputs.rax, inputs.rbx, flags, offset)
            return self._script.memory.set_slot(inputs.rcx & U32_MASK, slot)
        if self.settings.slots is None:
            self.settings.slots = MemorySlots(self.settings.memory)
        new = MemorySlot(inputs.rax, inputs.rbx, flags)
        return self.settings.slots.set(inputs.rcx & U32_MASK, new)

    def hypercall(self, call: Hypercall) -> int:
        """See `MergedKvm.hypercall`."""
        return self.kvm.hypercall(call)

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """See `MsrAccess.read`."""
        return self.kvm.msrs.read(index, vcpu)

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """See `MsrAccess.write`."""
        self.kvm.msrs.write(index, value, vcpu)

    def private_map(self) -> bitarray:
        """Empty: the recorder keeps no record of pages."""
        return bitarray(0, endian="little")

    @property
    def migration_ready(self) -> bool:
        """False: the recorder keeps no latch."""
        return False
