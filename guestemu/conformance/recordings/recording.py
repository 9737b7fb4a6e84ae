# SPDX-License-Identifier: GPL-2.0-or-later
"""Recordings of a real KVM: one JSON object a line, the run's `meta` line first.

A recording holds cases; a case is one VM, its steps (lines with the same `id`) run in order of
`step`. The record types below are the format, field for field. Numbers that can exceed
53 bits are hexadecimal strings in the file and integers here.
"""

from __future__ import annotations

import enum
from typing import Final

import msgspec


class Hex(int):
    """A number written as a hexadecimal string ("0x1000")."""

    __slots__ = ()


class StepOp(enum.Enum):
    """What a step does: a guest instruction, or an ioctl of the VMM.

    `enable_exits` and the ops behind it change the VM while it lives; `val` is their argument. A
    memory slot is given by address, size, number, flags and offset in the guest_memfd in `rax`,
    `rbx`, `rcx`, `rdx` and `rsi`.

    The others are of software-protected VMs: `set_attributes` has address, size, attributes and
    flags in `rax` to `rdx`, `fallocate` (of the guest_memfd) offset, length and mode in `rax` to
    `rcx`; the guest reads or writes (`rax`) the byte at `rbx`, user space the one at offset `rax`
    of its memory (`rbx`). `create_memfd` makes another guest_memfd of size `rax` with flags `rbx`
    and closes it; its `data` has an errno in each byte: of a shared mapping, of a private one, of a
    read of the first page and of the second. Any VM can be asked for one.
    """

    VMMCALL = "vmmcall"
    VMCALL = "vmcall"
    RDMSR = "rdmsr"
    WRMSR = "wrmsr"
    HOST_GET_MSR = "host_get_msr"
    HOST_SET_MSR = "host_set_msr"
    ENABLE_EXITS = "enable_exits"
    ENABLE_MSR_EXITS = "enable_msr_exits"
    DISABLE_QUIRKS = "disable_quirks"
    ENFORCE_PV = "enforce_pv"
    SET_FILTER = "set_filter"
    SET_SLOT = "set_slot"
    SET_ATTRIBUTES = "set_attributes"
    FALLOCATE = "fallocate"
    GUEST_READ = "guest_read"
    GUEST_WRITE = "guest_write"
    HOST_READ = "host_read"
    HOST_WRITE = "host_write"
    CREATE_MEMFD = "create_memfd"

    @property
    def is_hypercall(self) -> bool:
        """VMMCALL or VMCALL."""
        return self in _HYPERCALLS

    @property
    def is_msr(self) -> bool:
        """An access to an MSR."""
        return self in _MSRS

    @property
    def is_ioctl(self) -> bool:
        """Done without an instruction that is under test."""
        return self not in _INSTRUCTIONS

    @property
    def is_memory(self) -> bool:
        """Of software-protected VMs only."""
        return self in _MEMORY


_HYPERCALLS: Final = frozenset((StepOp.VMMCALL, StepOp.VMCALL))
_INSTRUCTIONS: Final = _HYPERCALLS | {StepOp.RDMSR, StepOp.WRMSR}
_MEMORY: Final = frozenset(
    (
        *(StepOp.SET_ATTRIBUTES, StepOp.FALLOCATE, StepOp.GUEST_READ, StepOp.GUEST_WRITE),
        *(StepOp.HOST_READ, StepOp.HOST_WRITE),
    )
)
_MSRS: Final = frozenset((StepOp.RDMSR, StepOp.WRMSR, StepOp.HOST_GET_MSR, StepOp.HOST_SET_MSR))


class Cpuid(enum.Enum):
    """Whether and where the VMM set KVM's CPUID leaves."""

    NONE = "no_set_cpuid"
    NO_LEAF = "no_kvm_leaf"
    LEAF = "kvm_leaf"
    RELOCATED = "kvm_leaf_at_0x40000100"


class Filter(enum.Enum):
    """The MSR filter of the VM; `range` is 16 MSRs from 0x4b564d00 on."""

    NONE = "none"
    DENY_RW = "deny_rw"
    DENY_R = "deny_r"
    DENY_W = "deny_w"
    RANGE_ALLOWED = "default_deny_but_range_allowed"
    OTHER_RANGE = "default_deny_other_range"


class Answer(enum.Enum):
    """What user space does at a hypercall exit. `CONVERT`: KVM_SET_MEMORY_ATTRIBUTES for the range
    of MAP_GPA_RANGE, and its result is the answer."""

    WRITE_RET = "write_ret"
    UNTOUCHED = "leave_ret_untouched"
    SET_RAX = "set_regs_rax_then_write_ret"
    SKIP_RIP = "set_regs_rip_plus3"
    IMMEDIATE = "write_ret_then_immediate_exit"
    CHANGE_ARGS = "modify_args"
    CLEAR_CS_L = "clear_cs_l_before_resume"
    CONVERT = "set_memory_attributes"


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the parts of a line: an unknown field is an error, never ignored."""


class Config(_Line, frozen=True):
    """How the VM of a case was set up; null means that the ioctl was not made."""

    exit_hypercall: Hex | None
    cpuid: Cpuid
    kvm_features: Hex
    enforce_pv: int
    irqchip: int
    user_space_msr: int | None
    msr_filter: Filter
    exit_cap_after_vcpu: int = 0
    disable_quirks2: Hex | None = None
    ro_code: int = 0
    ignore_msrs: int = 0
    protected: int = 0
    """1: a software-protected VM, of 1 MiB with a guest_memfd and 1 MiB without."""


class SetupResults(_Line, frozen=True):
    """What the set-up ioctls returned: 0 or a negative errno; `cpuid` is 1 when not made."""

    exit: int = 0
    cpuid: int = 0
    enforce: int = 0
    umsr: int = 0
    filter: int = 0
    quirk: int = 0


class Inputs(_Line, frozen=True):
    """The registers or the MSR access of a step, and what user space answers."""

    rax: Hex = Hex(0)
    rbx: Hex = Hex(0)
    rcx: Hex = Hex(0)
    rdx: Hex = Hex(0)
    rsi: Hex = Hex(0)
    answer: Answer = Answer.WRITE_RET
    ret: Hex = Hex(0)
    msr: Hex = Hex(0)
    val: Hex = Hex(0)
    answer_error: int = 0
    answer_data: Hex = Hex(0)
    unused: int = msgspec.field(name="_", default=0)


class HypercallEvent(_Line, frozen=True, tag_field="exit", tag="HYPERCALL"):
    """KVM_EXIT_HYPERCALL as user space saw it, before it answered."""

    nr: Hex
    args: tuple[Hex, ...]
    ret_at_exit: Hex
    longmode_u32: int
    pad_u32: int
    rip_off: int
    rax_at_exit: Hex


class ImmediateEvent(_Line, frozen=True, tag_field="exit", tag="IMMEDIATE"):
    """KVM_RUN with immediate_exit set: its result and the registers after it."""

    rc: int
    errno: int
    rip_off: int
    rax: Hex


class RdmsrEvent(_Line, frozen=True, tag_field="exit", tag="X86_RDMSR"):
    """KVM_EXIT_X86_RDMSR as user space saw it."""

    reason: int
    error_at_exit: int
    index: Hex
    data: Hex
    rip_off: int


class WrmsrEvent(_Line, frozen=True, tag_field="exit", tag="X86_WRMSR"):
    """KVM_EXIT_X86_WRMSR as user space saw it."""

    reason: int
    error_at_exit: int
    index: Hex
    data: Hex
    rip_off: int


Event = HypercallEvent | ImmediateEvent | RdmsrEvent | WrmsrEvent


class RecordedOutcome(_Line, frozen=True):
    """How a step ended: a guest outcome with its registers, or an ioctl's result.

    `us` (the time it took) is not part of the behaviour and is dropped by `RecordedStep.expected`.
    "memory_fault" has address, flags and size of KVM_EXIT_MEMORY_FAULT in `data`, `hw` and `rax`,
    "mmio" the address in `data` and 1 for a write in `info`.
    """

    outcome: str | None = None
    rax: Hex | None = None
    rdx: Hex | None = None
    rax_s: int | None = None
    eax_s: int | None = None
    other_regs_changed: str | None = None
    vector: int | None = None
    errcode: int | None = None
    fault_rip_off: int | None = None
    cr2: Hex | None = None
    code_patched_to: str | None = None
    exit_reason: int | None = None
    info: int | None = None
    rip_off: int | None = None
    hw: Hex | None = None
    ioctl: int | None = None
    data: Hex | None = None
    rc: int | None = None
    us: int | None = None


class RecordedStep(_Line, frozen=True):
    """One recorded step. `mode` and `cpl` are the guest code's; ioctls have none."""

    id: int
    step: int
    grp: str
    cfg: Config
    rc: SetupResults
    op: StepOp
    inputs: Inputs = msgspec.field(name="in")
    events: tuple[Event, ...]
    out: RecordedOutcome
    mode: str = "long64"
    cpl: int = 0
    vcpu: int = 0

    @property
    def expected(self) -> RecordedOutcome:
        """`out` without the time."""
        return msgspec.structs.replace(self.out, us=None)


FORMAT: Final = 1
"""The version of recordings that is read."""


class Meta(msgspec.Struct, frozen=True):
    """The first line: which kernel was recorded, in which version of the format (recorders before
    versions wrote none, and mean 1). Other keys of it are not used."""

    meta: str
    format: int = FORMAT
    kernel: str = ""
    version: str = ""


class FailedCase(_Line, frozen=True):
    """A case whose VM the recorder could not make: it has no steps, `error` says why."""

    id: int
    grp: str
    error: str


class Recording(msgspec.Struct, frozen=True):
    """A whole file: its meta line, the steps in file order, the line number of each step, and the
    cases that could not be recorded."""

    meta: Meta
    steps: tuple[RecordedStep, ...]
    lines: tuple[int, ...]
    failed: tuple[FailedCase, ...] = ()
