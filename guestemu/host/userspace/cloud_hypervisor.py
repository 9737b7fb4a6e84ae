# SPDX-License-Identifier: GPL-2.0-or-later
"""cloud-hypervisor's exit handler of August 2026 (ae44c2971c83): V2, V4, V10. SNP guests.

Memory is plugged as an ACPI DIMM, a slot with a guest_memfd of its own, all private
(MemoryManager::hotplug_ram_region(), KvmVm::create_user_memory_region()). A smaller size does
nothing there (MemoryManager::resize()). With virtio-mem the slot is there from the start, and what
is unplugged is discarded in the shared mapping only (discard_memory_range(),
virtio-devices/src/mem.rs): its private pages stay. That is not modelled.
"""

from __future__ import annotations

from typing import ClassVar

from guestemu.abi.addresses import PAGE_MASK
from guestemu.abi.errno import EINVAL
from guestemu.abi.hypercalls import MAP_GPA_RANGE_ENCRYPTED
from guestemu.host.kvm.guest_memory import MemoryFaultExit, Slot
from guestemu.host.userspace.converting import (
    FAULT_NO_PUNCH,
    NO_DISCARD,
    OTHER_NUMBER_OK,
    PUNCH_LOGGED,
    SIZE_WRAP,
    STALE_RET,
    STOPS_VM,
    ConvertingUserSpace,
    VmmHost,
)


class CloudHypervisorUserSpace(ConvertingUserSpace):
    """No test of the range. Punches on the way to shared, and reports success if that fails
    ("punch-logged"); keeps the shared copy on the way to private ("no-discard")."""

    __slots__ = ()

    def convert(self, gpa: int, pages: int, attributes: int) -> int:
        """Attributes for the full size, then the punch."""
        size = self._size(pages)
        if size is None:
            return -EINVAL
        is_private = bool(attributes & MAP_GPA_RANGE_ENCRYPTED)
        before = self._attributes_of(gpa, size)
        error = self._set_attributes(gpa, size, is_private)
        if error:
            return error
        if is_private and NO_DISCARD not in self._repaired:
            return 0
        error = self._free_other(gpa, size, is_private)
        if error and PUNCH_LOGGED in self._repaired:
            self._undo(gpa, before)
            return error
        return 0

    def take_slot(self, slot: Slot) -> int:
        """A DIMM is plugged."""
        self.memory.plug(slot)
        return 0

    def other_number(self) -> int:
        """Re-enters and leaves the answer as KVM left it."""
        return -EINVAL if OTHER_NUMBER_OK in self._repaired else 0

    def memory_fault(self, fault: MemoryFaultExit) -> bool:
        """Sets the attributes alone: the private page stays ("fault-no-punch")."""
        if FAULT_NO_PUNCH in self._repaired:
            return super().memory_fault(fault)
        if self._set_attributes(fault.gpa, fault.size, fault.is_private):
            raise self._stop(f"memory fault at GPA {fault.gpa & ~PAGE_MASK:#x}")
        return True


class CloudHypervisorHost(VmmHost):
    """KVM under cloud-hypervisor."""

    name: ClassVar[str] = "cloud-hypervisor"
    summary: ClassVar[str] = "merged ABI under cloud-hypervisor of 2026: SNP guests"
    handler: ClassVar[type[ConvertingUserSpace]] = CloudHypervisorUserSpace
    switches: ClassVar[tuple[str, ...]] = (
        SIZE_WRAP,
        STOPS_VM,
        STALE_RET,
        PUNCH_LOGGED,
        FAULT_NO_PUNCH,
        NO_DISCARD,
        OTHER_NUMBER_OK,
    )
