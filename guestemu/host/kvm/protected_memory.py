# SPDX-License-Identifier: GPL-2.0-or-later
"""The memory of a software-protected VM with what is in it, as the guest and its user space see it.

A frame has a shared page, which user space has mapped, and where its slot has a guest_memfd a
private one; the attribute says which of them the guest uses. Neither a conversion nor a slot that
comes or goes changes what is in a page, only a hole does (GM3).

Where no slot is KVM keeps an MMIO entry in its page table. While slots do not change, an access
there is MMIO, private frame or not; afterwards the entry is out of date, but the access that meets
it still counts as shared: kvm_mmu_page_fault() looks at the attribute for other faults only, and
neither a conversion nor a deleted slot removes the entry.

Source: virt/kvm/guest_memfd.c and kvm_mmu_faultin_pfn() (arch/x86/kvm/mmu/mmu.c), Linux 7.3; GM1,
GM3 to GM6; held against Linux 7.3.4 with KVM_SW_PROTECTED_VM.
"""

from __future__ import annotations

from typing import Final

import msgspec

from guestemu.abi.addresses import PAGE_MASK, PAGE_SHIFT
from guestemu.abi.errno import EFAULT, EINVAL, ENODEV
from guestemu.host.kvm.guest_memory import GuestMemory, MemoryFaultExit, Slot
from guestemu.host.kvm.memory_slots import KVM_MEM_GUEST_MEMFD, MemorySlot, MemorySlots

PRIVATE_RAM: Final = 0x100000
"""Bytes of slot 0, which has a guest_memfd; slot 1 behind it is plain memory of the same size."""
MEMFD_BYTES: Final = 0x180000
SPARE_AT: Final = 2 * PRIVATE_RAM
"""Where in user space's memory the pages of all other slots lie."""
SPARE: Final = 0x200000


GUEST_MEMFD_FLAG_MMAP: Final = 1
GUEST_MEMFD_FLAG_INIT_SHARED: Final = 2


def create_memfd(
    size: int, flags: int, *, has_private_memory: bool
) -> tuple[int, int, int, int, int]:
    """KVM_CREATE_GUEST_MEMFD (0 or a negative errno), then what user space meets in that file, an
    errno or 0 each: a shared mapping of two pages, a private one, a read of the first page and of
    the second.

    A file is all private or all shared: pages of one that starts shared can be touched, up to its
    end. It can start so only in a VM kind that has no private memory. Source: kvm_gmem_create(),
    kvm_gmem_mmap(), kvm_gmem_fault_user_mapping() (virt/kvm/guest_memfd.c, Linux 7.3); GM7.
    """
    known = GUEST_MEMFD_FLAG_MMAP | (0 if has_private_memory else GUEST_MEMFD_FLAG_INIT_SHARED)
    if flags & ~known or not 0 < size < 1 << 63 or size & PAGE_MASK:
        return (-EINVAL, 0, 0, 0, 0)
    if not flags & GUEST_MEMFD_FLAG_MMAP:
        return (0, ENODEV, ENODEV, 0, 0)
    is_shared = bool(flags & GUEST_MEMFD_FLAG_INIT_SHARED)
    first = 0 if is_shared else EFAULT
    second = 0 if is_shared and size > 1 << PAGE_SHIFT else EFAULT
    return (0, 0, EINVAL, first, second)


class MmioExit(msgspec.Struct, frozen=True):
    """KVM_EXIT_MMIO at `gpa`."""

    gpa: int
    is_write: bool


class ProtectedMemory:
    """Two slots at first: 1 MiB with a guest_memfd of 1.5 MiB, 1 MiB without.

    `memory` has attributes and slots, `slots` the rules for changing them. User space addresses its
    memory by the offset in it: slots 0 and 1 lie at their GPA, other slots at `SPARE_AT`.
    """

    def __init__(self) -> None:
        self.slots = MemorySlots(PRIVATE_RAM, memfd_bytes=MEMFD_BYTES)
        self.slots.replace(
            {
                0: MemorySlot(0, PRIVATE_RAM, KVM_MEM_GUEST_MEMFD),
                1: MemorySlot(PRIVATE_RAM, PRIVATE_RAM),
            }
        )
        self.memory = GuestMemory(
            2 * PRIVATE_RAM >> PAGE_SHIFT, self._places(), memfd_bytes=MEMFD_BYTES
        )
        self.memory.attributes.setall(False)
        self._private: dict[int, int] = {}
        self._shared: dict[int, int] = {}
        self._mmio: dict[int, int] = {}
        self._generation = 0

    def _places(self) -> tuple[Slot, ...]:
        return tuple(
            Slot(one.gpa, one.size, one.memfd_offset, one.has_memfd, one.is_read_only)
            for one in self.slots.all
        )

    # What user space does ---------------------------------------------------------------------

    def set_attributes(self, gpa: int, size: int, attributes: int, flags: int) -> int:
        """KVM_SET_MEMORY_ATTRIBUTES: 0 or a negative errno."""
        return self.memory.set_memory_attributes(gpa, size, attributes, flags)

    def fallocate(self, mode: int, offset: int, length: int) -> int:
        """Changes the guest_memfd: 0 or a negative errno; a hole empties its pages."""
        result = self.memory.fallocate(0, mode, offset, length)
        if not result and mode & 2:
            end = offset + length
            self._private = {
                place: value for place, value in self._private.items() if not offset <= place < end
            }
        return result

    def set_slot(self, number: int, slot: MemorySlot) -> int:
        """KVM_SET_USER_MEMORY_REGION2 on a slot behind the first two: 0 or a negative errno."""
        before = self.slots.all
        result = self.slots.set(number, slot)
        if self.slots.all != before:
            self.memory.set_slots(self._places())
            self._generation += 1
        return result

    def peek(self, offset: int) -> int:
        """A byte of user space's memory."""
        return self._shared.get(offset, 0)

    def poke(self, offset: int, value: int) -> None:
        """Writes a byte of user space's memory."""
        self._shared[offset] = value

    # What the guest does ----------------------------------------------------------------------

    def access(self, gpa: int, value: int | None = None) -> int | MemoryFaultExit | MmioExit:
        """Reads the byte at `gpa`, or writes `value` there; what it is then, or the exit."""
        is_write, gfn = value is not None, gpa >> PAGE_SHIFT
        if gfn in self._mmio:
            if self._mmio[gfn] == self._generation:
                return MmioExit(gpa, is_write)
            if self.memory.is_private(gfn):
                return MemoryFaultExit(gfn << PAGE_SHIFT, 1 << PAGE_SHIFT, False)
        fault = self.memory.access(gpa, False, by_attribute=True)
        if fault is not None:
            return fault
        found = self.slots.at(gpa)
        if found is None:
            self._mmio[gfn] = self._generation
        if found is None or (is_write and found[1].is_read_only):
            return MmioExit(gpa, is_write)
        self._mmio.pop(gfn, None)
        number, slot = found
        inside = gpa - slot.gpa
        if self.memory.is_private(gfn):
            pages, place = self._private, slot.memfd_offset + inside
        else:
            pages, place = self._shared, gpa if number < 2 else SPARE_AT + inside
        if value is not None:
            pages[place] = value & 0xFF
        return pages.get(place, 0)
