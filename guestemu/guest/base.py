# SPDX-License-Identifier: GPL-2.0-or-later
"""The `Guest` interface: what runs on the machine, by the kernel's own names.

A guest owns a machine with page tables, places the regions that programs name, and carries out one
operation at a time. Every operation runs on the emulated CPU and ends in a `CallOutcome`; exits on
the way are answered by whatever `machine.hooks.handler` is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec
from bitarray import bitarray

from guestemu.abi.addresses import Gpa, Gva
from guestemu.abi.errno import ENOSYS
from guestemu.abi.regions import Instruction, Region
from guestemu.abi.x86 import Mode
from guestemu.events.exits import HypercallExit, MapGpaRangeExit, WrmsrExit
from guestemu.guest.td import Td
from guestemu.machine.exits import Exit
from guestemu.machine.leafmap import LeafMap
from guestemu.machine.machine import Machine

if TYPE_CHECKING:
    from guestemu.guest.linux.userland.hostile_device import HostileDevice
    from guestemu.guest.td_stub import TdStub

BootExit: TypeAlias = HypercallExit | MapGpaRangeExit | WrmsrExit
"""One exit of a guest's boot that a host hears of."""


class GuestOops(msgspec.Struct, frozen=True):
    """The guest's own exception handler gave up (a kernel would print an oops)."""

    vector: int
    error_code: int
    rip: int
    cr2: int


class CallOutcome(msgspec.Struct, frozen=True, gc=False):
    """How an operation ended.

    `value` is what the function returned (None if it did not return); `end` the exit or oops that
    ended it otherwise; `warnings` the WARN sites that were hit, by name and in order.
    """

    value: int | None
    end: Exit | GuestOops | None = None
    warnings: tuple[str, ...] = ()


class PlacedRegion(msgspec.Struct, frozen=True):
    """Where a guest put a region: first GVA and GPA, size in 4 KiB pages."""

    gva: Gva
    gpa: Gpa
    pages: int


class RawRegisters(NamedTuple):
    """RAX, RBX, RCX, RDX, RSI for a raw instruction."""

    rax: int = 0
    rbx: int = 0
    rcx: int = 0
    rdx: int = 0
    rsi: int = 0


class Guest(ABC):
    """One guest on one machine. Methods named after kernel functions do what those do."""

    name: str
    generation: str
    """The kernel generation, a key of `guest.dma.policy.POLICIES`."""
    machine: Machine
    leaf_map: LeafMap
    regions: dict[Region, PlacedRegion]
    budget: int
    direct_map: Gva
    """Where GPA 0 is mapped."""
    dma_frames: range
    """Frames that the guest's page allocator gives to dma_alloc_coherent."""
    lie: str = ""
    """What the hypervisor lies about (`use_lie`)."""
    kvm: str = ""
    """The kernel of the KVM below (`use_kvm`)."""
    td: Td | None = None
    """A TD's module and page states."""
    td_stub: TdStub | None = None
    """A TD's calls made by hand."""
    device: HostileDevice | None = None
    """The device of a kernel in user space (`use_device`)."""
    boot_exits: Sequence[BootExit] = ()
    """The exits that the guest made before the state that `reset` returns to."""

    @abstractmethod
    def reset(self) -> None:
        """Back to the state after `boot`: memory, page tables, registers."""

    def gva(self, region: Region, page: int) -> Gva:
        """The virtual address of a page."""
        return Gva(self.regions[region].gva + (page << 12))

    def gpa(self, region: Region, page: int) -> Gpa:
        """The physical address of a page."""
        return Gpa(self.regions[region].gpa + (page << 12))

    @abstractmethod
    def set_memory_encrypted(self, gva: Gva, pages: int) -> CallOutcome:
        """The kernel's function; `pages` is its int argument."""

    @abstractmethod
    def set_memory_decrypted(self, gva: Gva, pages: int) -> CallOutcome:
        """The kernel's function; `pages` is its int argument."""

    @abstractmethod
    def early_set_memory_encrypted(self, gva: Gva, size: int) -> CallOutcome:
        """The kernel's function; `size` in bytes."""

    @abstractmethod
    def early_set_memory_decrypted(self, gva: Gva, size: int) -> CallOutcome:
        """The kernel's function; `size` in bytes."""

    @abstractmethod
    def memset(self, gva: Gva, value: int, size: int) -> CallOutcome:
        """Stores `size` bytes through the current mapping."""

    @abstractmethod
    def load(self, gva: Gva) -> CallOutcome:
        """Loads 8 bytes through the current mapping."""

    @abstractmethod
    def touch_cbit(self, gva: Gva, private: bool) -> CallOutcome:
        """Sets the C-bit of a 4 KiB entry and invalidates it, without telling the host."""

    @abstractmethod
    def kvm_init_platform(self, efi: bool) -> CallOutcome:
        """Tells the host that RAM is private and writes MIGRATION_CONTROL (A40)."""

    @abstractmethod
    def kvm_guest_cpu_offline(self) -> CallOutcome:
        """Writes MIGRATION_CONTROL = 0 (A43)."""

    @abstractmethod
    def set_memory_enc_stop_conversion(self) -> CallOutcome:
        """Takes mem_enc_lock for good (A21); returns -ENOSYS where the generation has none."""

    @abstractmethod
    def raw_hypercall(
        self, instruction: Instruction, registers: RawRegisters, mode: Mode, cpl: int
    ) -> CallOutcome:
        """VMMCALL or VMCALL with these registers; the value is RAX. Exceptions end it."""

    @abstractmethod
    def raw_rdmsr(self, index: int, mode: Mode, cpl: int) -> CallOutcome:
        """RDMSR; the value is EDX:EAX. Exceptions end it."""

    @abstractmethod
    def raw_wrmsr(self, index: int, value: int, mode: Mode, cpl: int) -> CallOutcome:
        """WRMSR. Exceptions end it."""

    @abstractmethod
    def fail_split(self, after: int) -> None:
        """Page-table allocations fail after `after` more of them; `clear_faults` ends that."""

    @abstractmethod
    def clear_faults(self) -> None:
        """Allocations succeed again."""

    @abstractmethod
    def edit_entry(self, gva: Gva, clear_all: bool) -> bool:
        """Zeroes the 4 KiB entry of `gva` (or clears only PRESENT); False if there is none."""

    def location(self, rip: int) -> str:
        """Where in the guest's code `rip` is, for people."""
        return f"{rip:#x}"

    def use_kvm(self, kernel: str, repaired: frozenset[str] = frozenset()) -> None:
        """The KVM below the guest is that of `kernel` ("7.2"); "": of no particular one.
        `repaired` are values of `PscDefect` that it does not have. Matters
        for what SEV-ES and SNP guests ask of KVM itself."""
        self.kvm = kernel

    def use_lie(self, name: str) -> None:
        """The hypervisor of an SNP guest lies as `psc_lies.LIES` says, or is honest ("")."""
        self.lie = name

    def lie_until_reset(self, name: str) -> None:
        """As `use_lie`, until `reset`. Nothing for a guest without SNP."""
        return

    def raw_psc(
        self, words: Sequence[int], header: int, scratch: int = 0, length: int = 2032
    ) -> CallOutcome:
        """A page-state request that the guest's kernel did not make (`OpKind.PSC`).

        `words` are its entries, `header` the bits of the header to invert, `scratch` what to add to
        the buffer's address, `length` SW_EXITINFO2. The value is KVM's SW_EXITINFO2; -ENOSYS for a
        guest without SNP.
        """
        return CallOutcome(-ENOSYS)

    def use_device(self, call: Callable[[HostileDevice], CallOutcome]) -> CallOutcome:
        """What `call` does with the device of a kernel in user space; -ENOSYS without one."""
        return CallOutcome(-ENOSYS)

    def close(self) -> None:
        """The caller needs the guest no more."""
        self.machine.close()

    def dma_alloc_pages(self, size: int, may_block: bool) -> CallOutcome:
        """The kernel's function: the value is the buffer's GPA, or -ENOMEM; -ENOSYS where the guest
        has none."""
        return CallOutcome(-ENOSYS)

    def dma_free_pages(self, gpa: Gpa) -> CallOutcome:
        """The kernel's function, for the buffer at `gpa`."""
        return CallOutcome(-ENOSYS)

    @abstractmethod
    def dma_alloc_coherent(self, size: int, may_block: bool) -> CallOutcome:
        """The kernel's function: the value is the buffer's GPA, or -ENOMEM. The first call makes
        the atomic pools; an allocation that may not block is served from them."""

    @abstractmethod
    def dma_free_coherent(self, gpa: Gpa) -> CallOutcome:
        """The kernel's function for the buffer at `gpa`: 0, also where there is none."""

    def free_frames(self) -> bitarray | None:
        """One bit per frame, 1 = in the page allocator, where the guest's allocator is ours."""
        return None

    def activate(self, vcpu: int) -> None:
        """Runs the next operations on vCPU `vcpu`."""
        self.machine.activate(vcpu)
