# SPDX-License-Identifier: GPL-2.0-or-later
"""What a vCPU hands out: typed records of the events that real hardware would hand to KVM."""

from __future__ import annotations

from typing import Final, Protocol, TypeAlias

import msgspec

from guestemu.abi.x86 import VECTOR_GP


class GuestFault(Exception):
    """Raised by whatever answers an exit, to inject an exception instead of completing it."""

    def __init__(self, vector: int = VECTOR_GP, error_code: int | None = 0) -> None:
        super().__init__(f"vector {vector}, error code {error_code}")
        self.vector = vector
        self.error_code = error_code


class VcpuAccess(Protocol):
    """What KVM may read and write of the vCPU that exited (KVM_GET/SET_REGS and SREGS, in part)."""

    @property
    def index(self) -> int:
        """The number of the vCPU in its VM, from 0 on."""

    def read_register(self, name: str) -> int:
        """The 64-bit register `name` ("rax" … "r15", "rip", "rflags")."""

    def write_register(self, name: str, value: int) -> None:
        """Sets the 64-bit register `name`; "rip" moves the instruction that completes."""

    @property
    def cpl(self) -> int:
        """Current privilege level, 0 to 3."""

    @property
    def is_64bit(self) -> bool:
        """Executes 64-bit code: EFER.LMA and CS.L."""

    def read_code(self, size: int) -> bytes:
        """`size` bytes of code at RIP."""

    def patch_code(self, code: bytes) -> None:
        """Writes `code` at RIP as KVM's emulator would: #PF (`GuestFault`) where not writable."""


class Hypercall(msgspec.Struct, frozen=True, gc=False):
    """A VMMCALL or VMCALL exit: raw 64-bit registers and where the vCPU stood.

    `nr`, `a0` … `a3` are RAX, RBX, RCX, RDX, RSI untruncated.
    """

    nr: int
    a0: int
    a1: int
    a2: int
    a3: int
    cpl: int
    is_64bit: bool
    vcpu: VcpuAccess
    is_vmcall: bool = False


MEMORY_FAULT: Final = "memory-fault"
"""The origin of a `MapGpaRange` that stands for KVM_EXIT_MEMORY_FAULT."""


class MapGpaRange(msgspec.Struct, frozen=True, gc=False):
    """Frames that a guest wants private or shared, as KVM hands the request to user space:
    KVM_EXIT_HYPERCALL with number 12 (KVM_HC_MAP_GPA_RANGE), without a hypercall of the guest.

    `gpa` in bytes, `pages` of 4 KiB, `attributes` as KVM_HC_MAP_GPA_RANGE defines them. `origin` is
    the request's way: "psc-msr" or "psc-buffer" (page-state change of an SNP guest), "mapgpa"
    (TD), or "memory-fault": KVM_EXIT_MEMORY_FAULT, where answer 0 says that user space converts the
    range.
    """

    gpa: int
    pages: int
    attributes: int
    origin: str
    vcpu: VcpuAccess


class Vmgexit(msgspec.Struct, frozen=True):
    """REP VMMCALL: the GHCB of a SEV-ES or SNP guest has a request. `rip` is its address."""

    rip: int


class Rdmsr(msgspec.Struct, frozen=True):
    """RDMSR of an MSR that the CPU does not keep itself."""

    index: int


class Wrmsr(msgspec.Struct, frozen=True):
    """WRMSR of an MSR that the CPU does not keep itself; `value` is EDX:EAX."""

    index: int
    value: int


class Halt(msgspec.Struct, frozen=True):
    """HLT; `rip` is the address after it."""

    rip: int


class Trap(msgspec.Struct, frozen=True):
    """A UD2 at an address that the guest announced (a WARN site, the end of a stub)."""

    rip: int


class Syscall(msgspec.Struct, frozen=True):
    """SYSCALL, which the emulator leaves to the caller of the vCPU; RIP stands at or behind it."""


class ExceptionExit(msgspec.Struct, frozen=True):
    """An exception that was not delivered to the guest.

    `error_code` is None for vectors without one; `rip` is the address that the guest's handler
    would find; `cr2` matters for #PF only.
    """

    vector: int
    error_code: int | None
    rip: int
    cr2: int = 0


class Shutdown(msgspec.Struct, frozen=True):
    """A triple fault; `reason` says which delivery failed."""

    reason: str
    rip: int


class Terminated(Shutdown, frozen=True):
    """The guest asked to be terminated (GHCB specification, 2.3.1): KVM_EXIT_SYSTEM_EVENT with
    KVM_SYSTEM_EVENT_SEV_TERM. `reason_set` 0 is the specification's, 1 is Linux's."""

    reason_set: int = 0
    reason_code: int = 0


class RunFailed(Shutdown, frozen=True):
    """KVM_RUN returned an error to user space, which stops the VM: the vCPU stands still."""


class BudgetExhausted(msgspec.Struct, frozen=True):
    """The run used up its basic blocks; `rip` is where it stood."""

    rip: int


class Unbacked(msgspec.Struct, frozen=True):
    """An access to a physical address without RAM (on hardware: MMIO, handed to user space)."""

    gpa: int
    size: int
    is_write: bool
    rip: int


class ViewFault(msgspec.Struct, frozen=True):
    """An access to a view that is closed to it (view_gates.py); nothing of it has happened.

    `kind` is "read", "write", "fetch" or "walk" (of the CPU's page walk, in a page table); `gva`
    and `gpa` (without the view bit) are the page's, and of a walk the entry's: the emulator does
    not say where in the page the access is. `rip` is the instruction, to be executed again once the
    view is open.
    """

    kind: str
    gva: int
    gpa: int
    is_private: bool
    rip: int


class PortOut(msgspec.Struct, frozen=True):
    """OUT to an I/O port."""

    port: int
    size: int
    value: int


Exit: TypeAlias = (
    Hypercall
    | Vmgexit
    | Rdmsr
    | Wrmsr
    | Halt
    | Trap
    | Syscall
    | ExceptionExit
    | Shutdown
    | BudgetExhausted
    | Unbacked
    | ViewFault
    | PortOut
)


class ExitHandler(Protocol):
    """Answers hypercalls and MSR accesses while a vCPU runs (a host, in practice)."""

    def hypercall(self, call: Hypercall) -> int:
        """The value that RAX gets, or `GuestFault`."""

    def map_gpa_range(self, call: MapGpaRange) -> int:
        """User space's answer to a page-state change (`hypercall.ret` of the exit), 64 bits."""

    def rdmsr(self, index: int, vcpu: VcpuAccess) -> int:
        """The value of an MSR, or `GuestFault`."""

    def wrmsr(self, index: int, value: int, vcpu: VcpuAccess) -> None:
        """Takes a new value of an MSR, or `GuestFault`."""
