# SPDX-License-Identifier: GPL-2.0-or-later
"""What the exit handlers of today's VMMs have in common: an exit converts guest_memfd memory.

A handler turns KVM_EXIT_HYPERCALL 12 into KVM_SET_MEMORY_ATTRIBUTES and a second call that frees
the backing the guest no longer uses. The handlers differ in what they test, in which order they
call, and in what they do when a call fails (V2). A defect is modelled as released; a switch repairs
it.

No modelled VMM serves MIGRATION_CONTROL, writes EAGAIN, or starts with shared memory (V1).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Final

from bitarray import bitarray

from guestemu.abi.addresses import PAGE_SHIFT, U64_MASK
from guestemu.abi.errno import EINVAL, ENOTTY
from guestemu.abi.hypercalls import KVM_HC_MAP_GPA_RANGE, MAP_GPA_RANGE_ENCRYPTED
from guestemu.host.base import VcpuAccess
from guestemu.host.kvm.guest_memory import (
    KVM_MEMORY_ATTRIBUTE_PRIVATE,
    MADV_DONTNEED,
    PUNCH,
    GuestMemory,
    MemoryFaultExit,
    Slot,
)
from guestemu.host.kvm.memory_host import MemoryHost
from guestemu.host.kvm.run import KvmRun
from guestemu.host.userspace.base import UserSpace, VmStopped
from guestemu.host.userspace.injection import Injection

ATTRIBUTES_WORD: Final = "attributes-word"
SIZE_WRAP: Final = "size-wrap"
STOPS_VM: Final = "stops-vm"
STALE_RET: Final = "stale-ret"
ANSWER_ONE: Final = "answer-one"
ATTRIBUTES_FIRST: Final = "attributes-first"
PUNCH_LOGGED: Final = "punch-logged"
FAULT_NO_PUNCH: Final = "fault-no-punch"
NO_DISCARD: Final = "no-discard"
LISTENER_FAILS: Final = "listener-fails"
OTHER_NUMBER_OK: Final = "other-number-ok"
PLUG_PLAIN: Final = "plug-plain"

ORDERED, STOPPED, REFUSED, DONE, OTHER_NUMBER = 1, 2, 3, 4, 5


class ConvertingUserSpace(UserSpace):
    """An exit handler over `memory`; `repaired` names the switches that are set.

    A handler supplies `convert`. It returns 0 or a negative errno, and raises `VmStopped` where the
    VMM ends the VM whatever the switches say.
    """

    touches_vcpu: ClassVar[bool] = False

    __slots__ = ("_repaired", "_state", "injection", "memory")

    def __init__(self, memory: GuestMemory, repaired: frozenset[str]) -> None:
        self.memory = memory
        self.injection = Injection()
        self._repaired = repaired
        self._state = 0

    @abstractmethod
    def convert(self, gpa: int, pages: int, attributes: int) -> int:
        """Converts a range as the VMM does; `attributes` as the guest gave them, 64 bits."""

    def hypercall_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """Converts; `ret` is written by a handler with "stale-ret" repaired only (V1)."""
        request = run.hypercall
        if self.injection.answers:
            self._state = ORDERED
            request.ret = self.injection.take_answer()
            return
        if request.nr != KVM_HC_MAP_GPA_RANGE:
            self._state = OTHER_NUMBER
            result = self.other_number()
        else:
            gpa, pages, attributes = request.args[:3]
            result = self.convert(gpa, pages, attributes)
            self._state = REFUSED if result else DONE
        if result and STOPS_VM not in self._repaired:
            raise self._stop(f"exit {request.nr}, arguments {request.args[:3]}: error {result}")
        if result or STALE_RET in self._repaired:
            request.ret = -result & U64_MASK

    def other_number(self) -> int:
        """The result for an exit with another hypercall's number: the VMM ends the VM."""
        return -EINVAL

    def memory_fault(self, fault: MemoryFaultExit) -> bool:
        """KVM_EXIT_MEMORY_FAULT: True after a conversion, so that the vCPU runs again.

        Here as a hypercall for the same page; raises `VmStopped` where that fails.
        """
        attributes = MAP_GPA_RANGE_ENCRYPTED if fault.is_private else 0
        result = self.convert(fault.gpa, fault.size >> PAGE_SHIFT, attributes)
        if result:
            raise self._stop(f"memory fault at {fault.gpa:#x}: error {result}")
        return True

    def take_slot(self, slot: Slot) -> int:
        """Hot-plugs memory: 0 or a negative errno. Here: -ENOTTY, there is none."""
        return -ENOTTY

    def give_slot(self, slot: Slot) -> int:
        """Hot-unplugs memory: 0 or a negative errno. Here: -ENOTTY, there is none."""
        return -ENOTTY

    def _stop(self, why: str) -> VmStopped:
        self._state = STOPPED
        return VmStopped(f"the VMM stopped the VM: {why}")

    def _size(self, pages: int) -> int | None:
        """Bytes of a range: the product wraps at 64 bits as released, None if that is repaired."""
        size = pages << PAGE_SHIFT
        if size > U64_MASK and SIZE_WRAP in self._repaired:
            return None
        return size & U64_MASK

    def _set_attributes(self, gpa: int, size: int, is_private: bool) -> int:
        attributes = KVM_MEMORY_ATTRIBUTE_PRIVATE if is_private else 0
        return self.memory.set_memory_attributes(gpa, size, attributes)

    def _punch(self, gpa: int, size: int) -> int:
        """Frees the private pages of a range, slot by slot; the first error ends it."""
        for number, place, start, length in self.memory.parts(gpa, size):
            if place.has_guest_memfd:
                offset = place.offset_of(start)
                error = self.memory.fallocate(number, PUNCH, offset, length)
                if error:
                    return error
        return 0

    def _discard(self, gpa: int, size: int) -> int:
        """Frees the shared copies of a range, slot by slot; the first error ends it."""
        for number, place, start, length in self.memory.parts(gpa, size):
            if place.has_guest_memfd:
                offset = start - place.gpa
                error = self.memory.madvise(number, offset, length, MADV_DONTNEED)
                if error:
                    return error
        return 0

    def _free_other(self, gpa: int, size: int, is_private: bool) -> int:
        return self._discard(gpa, size) if is_private else self._punch(gpa, size)

    def _convert_whole(self, gpa: int, size: int, is_private: bool) -> int:
        """Attributes, then the other backing. With "attributes-first" repaired a later error takes
        the attributes back, so that the guest's refusal is true."""
        before = self._attributes_of(gpa, size)
        error = self._set_attributes(gpa, size, is_private)
        if error:
            return error
        error = self._free_other(gpa, size, is_private)
        if error and ATTRIBUTES_FIRST in self._repaired:
            self._undo(gpa, before)
        return error

    def _attributes_of(self, gpa: int, size: int) -> bitarray:
        """What the attributes of a range's frames in RAM are, one bit each."""
        first = gpa >> PAGE_SHIFT
        return self.memory.attributes[first : (gpa + size) >> PAGE_SHIFT]

    def _undo(self, gpa: int, before: bitarray) -> None:
        """Sets the attributes of a range back to what `_attributes_of` gave, run by run."""
        start = 0
        while start < len(before):
            is_private = bool(before[start])
            end = before.find(not is_private, start)
            end = len(before) if end < 0 else end
            part = gpa + (start << PAGE_SHIFT), (end - start) << PAGE_SHIFT
            self._set_attributes(*part, is_private)
            start = end

    def rdmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """No modelled VMM serves an MSR: an error, #GP in the guest."""
        self.injection.take_msr_error()
        run.msr.error = 1

    def wrmsr_exit(self, run: KvmRun, vcpu: VcpuAccess) -> None:
        """No modelled VMM serves an MSR: an error, #GP in the guest."""
        self.injection.take_msr_error()
        run.msr.error = 1

    def restore(self) -> bool:
        """All memory private, no call made."""
        self.memory.restore()
        self._state = 0
        return True

    @property
    def state(self) -> int:
        """1 ordered answer, 2 stopped, 3 refused, 4 done, 5 another number."""
        return self._state


class VmmHost(MemoryHost):
    """Merged KVM under one of today's VMMs; `handler` is its exit handler.

    Its record is KVM's memory attributes. The default kernel is the newest, as these VMMs need
    guest_memfd.
    """

    handler: ClassVar[type[ConvertingUserSpace]]
    user: ConvertingUserSpace
    serves_migration_control = False

    def make_user_space(self, frames: int) -> tuple[UserSpace, Injection]:
        """The handler over fresh memory: one slot with guest_memfd, all private."""
        self.user = self.handler(GuestMemory(frames, self.memory_slots), self.repaired)
        return self.user, self.user.injection

    def take_slot(self, slot: Slot) -> int:
        """To the handler."""
        return self.user.take_slot(slot)

    def give_slot(self, slot: Slot) -> int:
        """To the handler."""
        return self.user.give_slot(slot)

    def private_map(self) -> bitarray:
        """KVM's memory attributes for RAM; valid until the next reset."""
        return self.user.memory.attributes

    @property
    def migration_ready(self) -> bool:
        """Never: no modelled VMM migrates such a guest."""
        return False
