# SPDX-License-Identifier: GPL-2.0-or-later
"""The part of a VMM that answers exits, as a class: KVM's half is guestemu's.

A VMM's author derives from `VmmHandler` and writes what the VMM does when KVM_RUN returns. CPL,
number, alignment, wrap and 32-bit truncation were tested before, by the KVM that the modelled
kernel has (K3-c). `HandlerHost` makes a host of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from bitarray import bitarray

from guestemu.abi.addresses import U64_MASK
from guestemu.abi.errno import MAX_ERRNO
from guestemu.abi.msrs import KVM_MIGRATION_READY, MSR_KVM_MIGRATION_CONTROL
from guestemu.host.base import VcpuAccess
from guestemu.host.kvm.guest_memory import GuestMemory, MemoryFaultExit, Slot
from guestemu.host.kvm.in_place_memory import InPlaceMemory
from guestemu.host.kvm.memory_host import MemoryHost
from guestemu.host.kvm.run import KvmRun
from guestemu.host.userspace.base import UserSpace, VmStopped
from guestemu.host.userspace.injection import Injection


class VmmHandler(ABC):
    """Answers the exits of one VM. `memory` has the VM's slots and the VMM's calls into its kernel,
    which are answered and recorded.

    A handler may raise `VmStopped` where the VMM ends the VM. Any other exception is a defect.
    """

    serves_migration_control: ClassVar[bool] = False
    """Whether the VMM serves MSR_KVM_MIGRATION_CONTROL; otherwise an access is #GP."""

    converts_in_place: ClassVar[bool] = False
    """Whether the VM's guest_memfd holds shared pages, too: `memory` is `InPlaceMemory` then."""

    memory: GuestMemory

    vcpu: int = 0
    """The number of the vCPU whose exit is handled."""

    def reset(self, memory: GuestMemory) -> None:
        """A new VM, and a VM that is reset: all of `memory` is private. Forget everything else."""
        self.memory = memory

    @abstractmethod
    def map_gpa_range(self, gpa: int, pages: int, attributes: int) -> int:
        """KVM_EXIT_HYPERCALL of KVM_HC_MAP_GPA_RANGE: `gpa` is page-aligned, `pages` not 0, and
        `attributes` are the guest's 64 bits (bit 4: private). Returns 0 or a negative errno, which
        becomes `run->hypercall.ret`."""

    def memory_fault(self, gpa: int, size: int, is_private: bool) -> bool:
        """KVM_EXIT_MEMORY_FAULT of `size` bytes; whether the vCPU runs again. Here: no."""
        return False

    def memory_plugged(self, number: int) -> int:
        """Memory was hot-plugged: slot `number` of `memory.slots`, all private. Returns 0, or a
        negative errno where the VMM refuses it. A reset takes it back. Here: 0, as suits a handler
        that looks at `memory` for each exit."""
        return 0

    def memory_unplugged(self, slot: Slot) -> int:
        """Memory is hot-unplugged: `slot` is gone when this returns 0, its pages with it. A
        negative errno where the VMM refuses. Here: 0."""
        return 0

    def write_migration_control(self, value: int) -> bool:
        """KVM_EXIT_X86_WRMSR of MSR_KVM_MIGRATION_CONTROL; False is #GP in the guest. Here: no bit
        but READY is taken (K5-f). Called only where the VMM serves it."""
        return not value & ~KVM_MIGRATION_READY

    def private_map(self) -> bitarray:
        """The VMM's record, one bit a frame of RAM (little-endian bitarray), 1 = private. Here:
        KVM's memory attributes."""
        return self.memory.attributes


class _HandledExits(UserSpace):
    """`handler` as the user space of a VM with `memory`."""

    touches_vcpu: ClassVar[bool] = False

    __slots__ = ("handler", "injection", "memory", "migration_control")

    def __init__(self, handler: VmmHandler, memory: GuestMemory) -> None:
        self.handler = handler
        self.memory = memory
        self.injection = Injection()
        self.migration_control = 0
        handler.reset(memory)

    def restore(self) -> bool:
        """By the handler's own reset."""
        self.memory.restore()
        self.migration_control = 0
        self.handler.reset(self.memory)
        return True

    def hypercall_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """Asks the handler."""
        request = run.hypercall
        if self.injection.answers:
            request.ret = self.injection.take_answer()
            return
        self.handler.vcpu = vcpu.index
        answer = self.handler.map_gpa_range(*request.args[:3])
        if not isinstance(answer, int) or not -MAX_ERRNO <= answer <= 0:
            raise TypeError(f"map_gpa_range returned {answer!r:.60}; return 0 or a negative errno")
        request.ret = answer & U64_MASK

    def rdmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """What the guest wrote last."""
        if self.injection.take_msr_error() or not self._serves(run):
            run.msr.error = 1
        else:
            run.msr.data = self.migration_control

    def wrmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """Asks the handler."""
        value = run.msr.data
        self.handler.vcpu = vcpu.index
        fails = self.injection.take_msr_error() or not self._serves(run)
        if fails or not self.handler.write_migration_control(value):
            run.msr.error = 1
        else:
            self.migration_control = value

    def _serves(self, run: KvmRun) -> bool:
        is_known = run.msr.index == MSR_KVM_MIGRATION_CONTROL
        return is_known and self.handler.serves_migration_control

    def memory_fault(self, fault: MemoryFaultExit) -> bool:
        """Asks the handler; raises `VmStopped` where it does not re-enter."""
        if not self.handler.memory_fault(fault.gpa, fault.size, fault.is_private):
            raise VmStopped(f"the VMM stopped the VM: memory fault at {fault.gpa:#x}")
        return True


class HandlerHost(MemoryHost):
    """Merged KVM under a `VmmHandler`."""

    name: ClassVar[str] = "handler"
    summary: ClassVar[str] = "merged KVM under a VMM's exit handler in Python"

    user: _HandledExits

    def __init__(self, handler: VmmHandler) -> None:
        self._handler = handler
        self.serves_migration_control = handler.serves_migration_control
        super().__init__()

    def make_user_space(self, frames: int) -> tuple[UserSpace, Injection]:
        """The handler over fresh memory, all private."""
        make = InPlaceMemory if self._handler.converts_in_place else GuestMemory
        self.user = _HandledExits(self._handler, make(frames, self.memory_slots))
        return self.user, self.user.injection

    def take_slot(self, slot: Slot) -> int:
        """Asks the handler."""
        memory = self.user.memory
        memory.plug(slot)
        answer = self._handler.memory_plugged(len(memory.slots) - 1)
        if not isinstance(answer, int) or not -MAX_ERRNO <= answer <= 0:
            raise TypeError(f"memory_plugged returned {answer!r:.60}; return 0 or a negative errno")
        if answer:
            memory.unplug(slot)
        return answer

    def give_slot(self, slot: Slot) -> int:
        """Asks the handler; then the slot is gone."""
        answer = self._handler.memory_unplugged(slot)
        if not isinstance(answer, int) or not -MAX_ERRNO <= answer <= 0:
            raise TypeError(
                f"memory_unplugged returned {answer!r:.60}; return 0 or a negative errno"
            )
        if not answer:
            self.user.memory.unplug(slot)
        return answer

    def private_map(self) -> bitarray:
        """The handler's record."""
        return self._handler.private_map()

    @property
    def migration_ready(self) -> bool:
        """Bit 0 of what the guest wrote last."""
        return bool(self.user.migration_control & KVM_MIGRATION_READY)
